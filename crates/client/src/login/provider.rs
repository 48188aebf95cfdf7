//! Reads and checks the provider with the user's own access to Kubernetes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};

use crate::{
    api::{ClusterMailProvider, MailProvider, credential::ProviderKind, provider_object::ProviderObject},
    error::{describe, describe_step},
    idp::IdpClients,
    login::{
        AGAIN, LoginError,
        target::{LoginTarget, kind},
    },
    policy::{checks, inputs},
    provider_client::{
        federation::Identities, problem::credential_blocker, resolve::resolve, resolve_context::ResolveContext,
        resolved_provider::ResolvedProvider,
    },
    providers::{self, Profile},
    settings::Login,
};

/// The clients that read a provider and the objects that it refers to.
pub(super) struct Reach<'a> {
    pub kubernetes: &'a Client,
    pub clients: &'a IdpClients,
    pub identities: &'a Identities,
}

/// Reads the MailProvider or ClusterMailProvider that the flags name.
pub(super) async fn read(settings: &Login, namespace: &str, client: &Client) -> Result<ProviderObject, LoginError> {
    let name = &settings.provider;
    let (found, words, list) = match kind(settings) {
        ProviderKind::MailProvider => {
            let api = Api::<MailProvider>::namespaced(client.clone(), namespace);
            let found =
                api.get_opt(name).await.map(|found| found.map(|object| ProviderObject::Namespaced(Arc::new(object))));
            (found, format!("MailProvider {namespace}/{name}"), format!("kubectl -n {namespace} get mailproviders"))
        }
        ProviderKind::ClusterMailProvider => {
            let api = Api::<ClusterMailProvider>::all(client.clone());
            let found =
                api.get_opt(name).await.map(|found| found.map(|object| ProviderObject::Cluster(Arc::new(object))));
            (found, format!("ClusterMailProvider {name}"), "kubectl get clustermailproviders".to_owned())
        }
    };
    let found = found.map_err(|error| LoginError(format!("the {words} cannot be read: {}", describe(&error))))?;
    found.ok_or_else(|| LoginError(format!("the {words} does not exist: choose one from `{list}`")))
}

/// Checks that the target's credentials may use the provider, and that the provider supports their grant, protocols and
/// mailbox.
pub(super) async fn check(
    object: &ProviderObject,
    target: &LoginTarget,
    client: &Client,
) -> Result<Profile, LoginError> {
    let spec = object.spec();
    let profile = providers::profile(spec)
        .ok_or_else(|| LoginError("the spec names no provider that this version supports".to_owned()))?;
    for credential in &target.credentials {
        let scopes = inputs::scopes(credential, spec, &profile);
        let mut blocker = checks::spec_blocker(credential, spec, &profile, &scopes);
        if let (None, ProviderObject::Cluster(provider)) = (&blocker, object) {
            let own = match spec.scopes.is_empty() {
                true => (profile.scopes)(spec, credential.spec.grant.kind(), &credential.spec.protocols),
                false => spec.scopes.clone(),
            };
            // Without the right to read the namespace, `login` cannot check the labels. The broker checks them later.
            if let Ok(namespace) = Api::<Namespace>::all(client.clone()).get(checks::namespace(credential)).await {
                let labels = namespace.metadata.labels.unwrap_or_default();
                blocker = checks::allowance_blocker(credential, &provider.spec.allowed, &labels, &own);
            }
        }
        if let Some(blocker) = blocker {
            return Err(LoginError(format!("{} ({})", blocker.message, blocker.reason.as_str())));
        }
    }
    Ok(profile)
}

/// Reads the objects that the provider refers to, and discovers its endpoints.
pub(super) async fn prepare(
    object: &ProviderObject,
    settings: &Login,
    namespace: &str,
    reach: &Reach<'_>,
) -> Result<ResolvedProvider, LoginError> {
    let home = home(settings, namespace);
    let Reach { kubernetes, clients, identities } = *reach;
    let may_ask = &|| true;
    let context = ResolveContext {
        kubernetes,
        reads: None,
        home: &home,
        clients,
        identities,
        may_ask,
        ended: &|_| {},
        again: AGAIN,
    };
    match resolve(object, &context).await {
        Ok(Ok(resolved)) => Ok(resolved),
        Ok(Err(problem)) => {
            let blocker = credential_blocker(&object.key(), problem);
            Err(LoginError(format!("{}{}", blocker.message, searched(settings, &home))))
        }
        Err(error) => Err(LoginError(format!("{}{}", describe_step(&error), searched(settings, &home)))),
    }
}

/// Returns the namespace of the objects that the provider refers to.
pub(super) fn home(settings: &Login, namespace: &str) -> String {
    match kind(settings) {
        ProviderKind::MailProvider => namespace.to_owned(),
        ProviderKind::ClusterMailProvider => settings.access.broker_namespace(),
    }
}

/// Returns the end of a message if the flags do not name the broker's namespace: `login` then had to assume one.
fn searched(settings: &Login, home: &str) -> String {
    match settings.cluster && settings.access.broker_namespace.is_none() {
        true => format!(
            "; login searched the namespace {home} for the objects of the ClusterMailProvider: if the broker is in another \
             namespace, name it with `--broker-namespace`"
        ),
        false => String::new(),
    }
}
