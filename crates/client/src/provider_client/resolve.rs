//! Resolves a provider: reads the objects to which it refers, and discovers its endpoints.

use kube::Client;
use serde_json::json;

use crate::{
    api::{
        Reason,
        credential::ProviderKind,
        provider_object::{ProviderObject, bundle_config_map, bundle_secret},
    },
    error::Error,
    idp::IdpClient,
    oauth::{
        discovery::{DiscoveryError, Endpoints, discovery_request, read_discovery},
        refusal::retry_after,
    },
    policy::Blocker,
    provider_client::{
        authentication::{Authentication, authentication},
        connection::{self, transport},
        problem::ProviderProblem,
        resolve_context::ResolveContext,
        resolved_provider::ResolvedProvider,
        sources::{SourceReads, read_config_map_key, read_secret_key},
    },
    providers::{self, TokenSource},
};

/// Resolves a provider: reads the objects to which it refers, and discovers its endpoints.
///
/// # Errors
/// The step that failed in Kubernetes. A problem of the provider is part of the result.
pub async fn resolve(
    object: &ProviderObject,
    context: &ResolveContext<'_>,
) -> Result<Result<ResolvedProvider, ProviderProblem>, Error> {
    let spec = object.spec();
    let Some(profile) = providers::profile(spec) else {
        return Ok(Err(problem(Reason::InvalidSpec, "the spec names no provider that this broker knows")));
    };
    // After a start, the broker resolves many providers at the same time. The reservation limits the memory of their
    // Secrets.
    let reservation = match context.reads {
        Some(reads) => Some(reads.reserve(context.home).await),
        None => None,
    };
    let client = match trust(object, context).await? {
        Ok(client) => client,
        Err(problem) => return Ok(Err(problem)),
    };
    let authentication = authentication(spec, &object.key(), profile.guid_is_no_secret, context).await?;
    if let Some(problem) = unusable(&authentication) {
        return Ok(Err(problem));
    }
    drop(reservation);
    let endpoints = match profile.source {
        TokenSource::Known(endpoints) => endpoints,
        TokenSource::Discovery { issuer } => match discover(&issuer, &client, object, context).await {
            Ok(endpoints) => endpoints,
            Err(problem) => return Ok(Err(problem)),
        },
    };
    let authentication = authentication.into_iter().map(|entry| entry.judged(&endpoints.token_url)).collect::<Vec<_>>();
    match unusable(&authentication) {
        Some(problem) => Ok(Err(problem)),
        None => Ok(Ok(ResolvedProvider { endpoints, authentication, client })),
    }
}

/// Returns the problem of the first unusable client authentication, if none can be used.
fn unusable(authentication: &[Authentication]) -> Option<ProviderProblem> {
    let blocker = authentication.iter().find_map(|entry| entry.client_credential.as_ref().err())?;
    let all = authentication.iter().all(|entry| entry.client_credential.is_err());
    all.then(|| ProviderProblem::of_the_client(blocker.clone()))
}

/// Returns the provider's CA bundle in PEM, if the provider refers to one. `home` is the namespace of the objects to
/// which the provider refers.
///
/// # Errors
/// A failed read in Kubernetes. A missing or unusable object is part of the result.
pub async fn ca_bundle(
    object: &ProviderObject,
    home: &str,
    kubernetes: &Client,
    reads: Option<&dyn SourceReads>,
) -> Result<Result<Option<Vec<u8>>, Blocker>, Error> {
    let spec = object.spec();
    let pem = match (bundle_secret(spec), bundle_config_map(spec)) {
        // A CA bundle is public, so `to_vec` may copy it.
        (Some(reference), _) => {
            read_secret_key(reference, home, kubernetes, reads).await?.map(|pem| Some(pem.to_vec()))
        }
        (None, Some(reference)) => read_config_map_key(reference, home, kubernetes).await?.map(Some),
        (None, None) => Ok(None),
    };
    Ok(pem)
}

/// Returns a client that trusts the provider's CA bundle.
async fn trust(
    object: &ProviderObject,
    context: &ResolveContext<'_>,
) -> Result<Result<IdpClient, ProviderProblem>, Error> {
    let (spec, ResolveContext { kubernetes, reads, home, .. }) = (object.spec(), context);
    let pem = match ca_bundle(object, home, kubernetes, *reads).await? {
        Ok(pem) => pem,
        Err(blocker) => return Ok(Err(ProviderProblem::of_the_provider(blocker))),
    };
    let reference = bundle_secret(spec).or_else(|| bundle_config_map(spec));
    let clients = match object.key().kind {
        ProviderKind::MailProvider => context.clients.clone(),
        ProviderKind::ClusterMailProvider => context.clients.for_cluster(),
    };
    Ok(clients.for_trust(pem.as_deref()).map_err(|error| {
        let place = reference.map(|r| format!("key {} of {home}/{}", r.key, r.name)).unwrap_or_default();
        problem(
            Reason::SourceInvalid,
            format!("the CA bundle in {place} cannot be used: {error}. It must hold the certificates of CAs in PEM"),
        )
    }))
}

fn problem(reason: Reason, message: impl Into<String>) -> ProviderProblem {
    ProviderProblem::of_the_provider(Blocker::new(reason, message))
}

async fn discover(
    issuer: &str,
    client: &IdpClient,
    object: &ProviderObject,
    context: &ResolveContext<'_>,
) -> Result<Endpoints, ProviderProblem> {
    let request =
        discovery_request(issuer).map_err(|_| problem(Reason::InvalidSpec, "spec.oidc.issuerURL is no URL"))?;
    let result = client.send(request, context.may_ask).await;
    (context.ended)(&result);
    let exchange = result.map_err(|error| {
        let (reason, message) = transport(&error, object, context.home, context.again);
        match reason {
            Reason::ProviderUnavailable | Reason::MalformedResponse => {
                let found = problem(Reason::DiscoveryFailed, format!("{message}. {}", context.again));
                if reason == Reason::MalformedResponse { found.by_a_person() } else { found }
            }
            _ => problem(reason, message),
        }
    })?;
    read_discovery(&exchange.response, issuer).map_err(|error| {
        let correct = |issuer: &str| connection::subject(object).merge(&json!({"spec": {"oidc": {"issuerURL": issuer}}}));
        let at = format!("{error} (at {}/.well-known/openid-configuration)", issuer.trim_end_matches('/'));
        match &error {
            DiscoveryError::IssuerMismatch(reported) => problem(
                Reason::IssuerMismatch,
                format!(
                    "{error}, and spec.oidc.issuerURL says {issuer}; the two must be equal, byte for byte. If the document \
                     is right: `{}`",
                    correct(reported)
                ),
            ),
            DiscoveryError::Status(429 | 500..) => {
                let retry_after = retry_after(&exchange.response, exchange.sent_at);
                let found = problem(Reason::DiscoveryFailed, format!("{at}. {}", context.again));
                ProviderProblem { retry_after, ..found }
            }
            DiscoveryError::Endpoint(_) => problem(
                Reason::DiscoveryFailed,
                format!("{at}, and no secret is sent elsewhere: the operator of the provider must fix its document"),
            )
            .by_a_person(),
            DiscoveryError::Status(_) | DiscoveryError::NotADocument => problem(
                Reason::DiscoveryFailed,
                format!("{at}. If the issuer is another: `{}`", correct("<issuer>")),
            )
            .by_a_person(),
        }
    })
}
