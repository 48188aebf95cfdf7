//! One token request, in a task of its own: a slow provider holds up no reconcile, and no watch event cancels it.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt as _;
use kube::ResourceExt as _;

use super::{
    Context,
    material::{self, Authentication, Prepared},
    stores::{ProviderKey, ProviderObject},
};
use crate::{
    api::{MailCredential, Reason, names, status::ClientStatus},
    idp::TransportError,
    oauth::{GrantProof, Refusal, TokenRequest, read_token_response, token_request},
    policy::{
        Observed,
        advice::Place,
        checks,
        commands::{self, Subject},
        inputs,
        observed::Held,
    },
    providers::{self, Case, Profile, TokenSource},
};

/// How an attempt ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// With a token.
    Issued(Box<Held>),
    /// Without one.
    Refused {
        /// Why.
        refused: Box<Refused>,
        /// What the attempt was made with, which may have changed since.
        attempt: String,
    },
}

/// Why an attempt brought no token.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// Where.
    pub place: Place,
    /// The client authentication that was tried last.
    pub client: Option<ClientStatus>,
}

/// Begins an attempt. Its outcome is left in the memory, and the credential is woken.
pub(super) fn start(observed: &Observed, context: &Arc<Context>) {
    let credential = observed.credential.clone();
    let uid = credential.uid().unwrap_or_default();
    context.memory.with(&uid, |entry| entry.in_flight = true);
    let made_with = observed.attempt.clone();
    let first = observed.history.client.as_ref().and_then(|client| usize::try_from(client.index).ok()).unwrap_or(0);
    let context = context.clone();
    let span =
        tracing::info_span!("token request", namespace = checks::namespace(&credential), name = %credential.name_any());
    tokio::spawn(tracing::Instrument::instrument(
        async move {
            let attempted = AssertUnwindSafe(attempt(&credential, first, &context)).catch_unwind().await;
            let ended = attempted.unwrap_or_else(|_| {
                context.metrics.reconcile_error("panic");
                tracing::error!("the token request panicked");
                let refusal = Refusal::new(Reason::RequestRefused, "the broker failed: see its log");
                Some(Err(Refused { refusal, place: place(&credential, None, None), client: None }))
            });
            let outcome = ended.map(|ended| match ended {
                Ok(held) => Outcome::Issued(Box::new(held)),
                Err(refused) => Outcome::Refused { refused: Box::new(refused), attempt: made_with },
            });
            context.memory.finish(&uid, outcome);
            context.waker.credential((checks::namespace(&credential).to_owned(), credential.name_any()));
        },
        span,
    ));
}

/// `None`: nothing was asked, because the provider turned out not to be usable (its own status tells), or because
/// another broker leads now.
async fn attempt(credential: &Arc<MailCredential>, first: usize, context: &Context) -> Option<Result<Held, Refused>> {
    let key = ProviderKey::of(credential);
    let object = context.stores.provider(&key)?;
    let prepared = match context.material.prepare(&object, false, context).await {
        Ok(Ok(prepared)) => prepared,
        Ok(Err(_)) => {
            context.waker.provider(key);
            return None;
        }
        Err(error) => {
            let what = material::told(&error);
            context.metrics.reconcile_error(error.category());
            let refusal = Refusal::new(Reason::ProviderUnavailable, what);
            return Some(Err(Refused { refusal, place: place(credential, None, None), client: None }));
        }
    };
    let profile = providers::profile(object.spec())?;
    let count = prepared.authentication.len();
    let mut last = None;
    // The entry in use stays in use until it is refused; then the next is tried, going round.
    for entry in prepared.authentication.iter().cycle().skip(first.min(count)).take(count) {
        let Ok(_) = &entry.auth else { continue };
        match try_with(entry, credential, &object, &profile, &prepared, context).await? {
            Ok(held) => return Some(Ok(held)),
            Err(refusal) => {
                let next = matches!(refusal.reason, Reason::InvalidClient | Reason::ClientSecretExpired);
                let (place, client) = (place(credential, Some(&object), Some(entry)), Some(client_status(entry)));
                last = Some(Err(Refused { refusal, place, client }));
                if !next {
                    break;
                }
            }
        }
    }
    last
}

async fn try_with(
    entry: &Authentication,
    credential: &MailCredential,
    object: &ProviderObject,
    profile: &Profile,
    prepared: &Prepared,
    context: &Context,
) -> Option<Result<Held, Refusal>> {
    let auth = entry.auth.as_ref().ok()?;
    let scopes = inputs::scopes(credential, object.spec(), profile);
    let request = TokenRequest {
        token_url: &prepared.endpoints.token_url,
        client_id: &object.spec().client.id,
        auth,
        grant: GrantProof::ClientCredentials,
        scopes: &scopes,
        unique: &unique(),
        now: context.clock.now(),
    };
    let wire = match token_request(&request) {
        Ok(wire) => wire,
        Err(error) => return Some(Err(Refusal::new(Reason::RequestRefused, error.to_string()))),
    };
    let leadership = context.leadership.clone();
    let timer = context.metrics.token_request(profile.preset);
    let answer = match prepared.client.send(wire, move || leadership.is_leader()).await {
        Ok(exchange) => read_token_response(&exchange.response, exchange.sent_at, &scopes).map_err(|mut refusal| {
            (profile.refine)(&mut refusal, &Case { grant: credential.spec.grant.kind(), grant_age: None });
            refusal
        }),
        Err(TransportError::Withheld) => {
            tracing::info!("another broker leads now: the token request was not sent");
            return None;
        }
        Err(error) => {
            let (reason, message) = material::transport(&error, object, context.stores.home(&object.key()));
            Err(Refusal::new(reason, message))
        }
    };
    let outcome = answer.as_ref().err().map_or(Reason::RenewalSucceeded, |refusal| refusal.reason);
    timer.observe(credential.spec.grant.kind(), outcome);
    match &answer {
        Ok(answer) => {
            tracing::info!(expires_at = %answer.token.expires_at, fingerprint = %answer.token.fingerprint(), "obtained a token")
        }
        Err(refusal) => tracing::warn!(reason = refusal.reason.as_str(), what = %refusal.what, "obtained no token"),
    }
    let moved =
        |refusal: &Refusal| matches!(refusal.http_status, Some(301..=308 | 404 | 410)) && refusal.error.is_none();
    if matches!(profile.source, TokenSource::Discovery { .. }) && answer.as_ref().is_err_and(moved) {
        context.material.distrust(&object.key());
    }
    Some(answer.map(|answer| Held {
        answer,
        issued_for: inputs::issued_for(credential, object.spec(), profile, &scopes),
        reissue: credential.annotations().get(names::ANNOTATION_REISSUE).cloned(),
        client: Some(client_status(entry)),
    }))
}

/// 128 random bits, for an assertion's `jti`.
fn unique() -> String {
    let mut bytes = [0; 16];
    // Without random numbers there is no TLS either; a `jti` of zeros is refused at its second use.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        tracing::error!("the system gives no random numbers");
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn client_status(entry: &Authentication) -> ClientStatus {
    ClientStatus {
        method: entry.method.to_owned(),
        index: i32::try_from(entry.index).unwrap_or_default(),
        expires_at: entry.expires_at.clone(),
    }
}

fn place(credential: &MailCredential, object: Option<&ProviderObject>, entry: Option<&Authentication>) -> Place {
    let subject = Subject::provider_of(credential);
    Place {
        provider: checks::provider_words(credential),
        scopes: if credential.spec.scopes.is_empty() { subject.clone() } else { Subject::credential(credential) },
        subject,
        client_id: object.map_or_else(|| "<client id>".to_owned(), |object| object.spec().client.id.clone()),
        secret: entry.and_then(|entry| entry.source.clone()),
        grant: credential.spec.grant.kind(),
        credential: Subject::credential(credential),
        mailbox: credential.spec.mailbox.user().to_owned(),
        sign_in: commands::sign_in(credential),
        federated: None,
    }
}
