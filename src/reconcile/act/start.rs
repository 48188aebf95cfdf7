//! Asks the admission for a permit, and sends the request in a task of its own.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt as _;
use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt as _;

use crate::{
    admission::Answer,
    api::{MailCredential, Reason, provider_object::ProviderKey},
    fail_point,
    oauth::{ClientAuth, Refusal, token::TokenFingerprint},
    policy::{
        Decision, Observed, RequestKind, checks,
        grant::{self, RefreshGrant},
        inputs,
        outcome::{Outcome, Refused},
        urgency::urgency,
    },
    provider_client::{authentication::Authentication, try_each::TryEach},
    providers,
    reconcile::{
        act::{
            activity::{Activity, Permit},
            admit::{ask, host},
            attempt::{Attempt, StepResult, client_status, endpoint},
            device,
            refusals::{advice_context, unavailable},
            token,
        },
        context::Context,
        custody::pending::Claimed,
        observe,
    },
};

/// Asks for a permit, and starts the request if the permit is granted.
pub(in crate::reconcile) fn start_request(
    kind: RequestKind,
    decision: &Decision,
    observed: &Observed,
    context: &Arc<Context>,
) -> Decision {
    let now = context.clock.now();
    let since =
        |waited| now - SignedDuration::from_secs(SignedDuration::try_from(waited).unwrap_or_default().as_secs());
    let ask = ask(&observed.credential, endpoint(kind), urgency(observed, decision, now), context);
    match context.requests.admission.ask(&Activity::grant(&observed.credential), ask) {
        // Thousands may wait: nothing but the row is remembered of them.
        Answer::Queued(waited) => Decision::Queued { since: since(waited) },
        Answer::Admitted(permit) => {
            context.cache.with(checks::uid(&observed.credential), |entry| {
                entry.object.waiting_since.get_or_insert(since(permit.waited()));
            });
            match kind {
                // Every few seconds, for as long as a person takes.
                RequestKind::Poll => tracing::debug!("polling for the sign-in"),
                RequestKind::Token | RequestKind::SignIn => tracing::info!(?decision, "request started"),
            }
            start(kind, permit, observed, context);
            Decision::InFlight
        }
    }
}

/// Whether the admission's row stays after a decision: the request is still wanted, or the next decision follows at
/// once.
pub(in crate::reconcile) fn wants_a_permit(decision: &Decision) -> bool {
    decision.is_under_way() || decision.queued_since().is_some()
}

/// Starts a request that has its permit. At its end the outcome is in the cache, and the credential is enqueued.
fn start(kind: RequestKind, permit: Permit, observed: &Observed, context: &Arc<Context>) {
    let credential = observed.credential.clone();
    let grant = observed.grant.clone();
    let published = observed.token().map(|token| token.fingerprint.clone());
    let uid = credential.uid().unwrap_or_default();
    context.cache.with(&uid, |entry| entry.attempt.in_flight = Some(context.clock.now()));
    let made_with = observed.attempt_for(kind);
    let first = observed.history.client.as_ref().and_then(|client| usize::try_from(client.index).ok()).unwrap_or(0);
    let context = context.clone();
    let key = (checks::namespace(&credential).to_owned(), credential.name_any());
    let span = tracing::info_span!("request", ?kind, namespace = checks::namespace(&credential), name = %credential.name_any());
    tokio::spawn(tracing::Instrument::instrument(
        async move {
            let attempted = Box::pin(attempt(kind, permit, credential.clone(), grant, published, first, &context));
            let attempted = AssertUnwindSafe(attempted).catch_unwind().await.unwrap_or_else(|_| {
                context.metrics.reconcile_error("panic");
                tracing::error!("request panicked");
                let refusal = Refusal::new(Reason::RequestRefused, "the broker failed: see its log");
                let context = advice_context(&credential, None, None);
                Err(Some(Box::new(Refused { refusal, context, client: None, spent: None })))
            });
            let outcome = match attempted {
                Ok(outcome) => Some(outcome),
                Err(Some(refused)) => Some(Outcome::Refused { refused, attempt: made_with }),
                Err(None) => None,
            };
            context.cache.finish(&uid, outcome);
            context.queue.enqueue_result(key);
        },
        span,
    ));
}

/// Sends the request. `Err(None)`: there is no outcome, because the provider cannot be used (its own status reports why),
/// another replica leads now, or another writer changed the grant Secret. The permit is released at the end.
async fn attempt(
    kind: RequestKind,
    permit: Permit,
    credential: Arc<MailCredential>,
    grant: Option<RefreshGrant>,
    published: Option<TokenFingerprint>,
    first: usize,
    context: &Arc<Context>,
) -> Result<Outcome, Option<Box<Refused>>> {
    fail_point::panic_at("request", &credential.name_any());
    let key = ProviderKey::of(&credential);
    let object = context.stores.provider(&key).ok_or(None)?;
    let resolved = context.providers.resolve(&object, false, Some(&permit)).await;
    let Ok(resolved) = resolved.map_err(|error| unavailable(&error, &credential, &context.metrics))? else {
        context.queue.enqueue_provider(key);
        return Err(None);
    };
    let profile = providers::profile(object.spec()).ok_or(None)?;
    if endpoint(kind)(&resolved.endpoints).is_some_and(|url| *host(url) != *permit.host()) {
        // The endpoint was not known before: the credential asks for a permit for its host.
        return Err(None);
    }
    // The provider may have changed since the broker found that the grant belongs to it.
    let bound_to = grant::bound_to(&credential, profile.source.identity(), &object.spec().client.id);
    if grant.as_ref().is_some_and(|grant| grant.bound_to.as_ref() != Some(&bound_to)) {
        return Err(None);
    }
    let scopes = inputs::scopes(&credential, object.spec(), &profile);
    // What was allowed when the request was queued may be forbidden now.
    if let Some(blocker) = observe::permission(&credential, &object, &profile, &scopes, &context.stores) {
        tracing::info!(reason = blocker.reason.as_str(), "request not sent: no longer necessary");
        return Err(None);
    }
    let context = context.clone();
    let attempt = Attempt { permit, credential, grant, published, object, profile, resolved, scopes, context };
    try_each_authentication(&attempt, kind, first).await
}

/// Tries the client authentications of the provider, beginning with the one that the provider accepted last.
async fn try_each_authentication(
    attempt: &Attempt,
    kind: RequestKind,
    first: usize,
) -> Result<Outcome, Option<Box<Refused>>> {
    let mut claimed: Option<Claimed> = None;
    let mut each = TryEach::new(&attempt.resolved.authentication, first);
    while let Some(entry) = each.next_entry() {
        let proof = attempt.proof(entry).await;
        let proof = proof.map_err(|error| unavailable(&error, &attempt.credential, &attempt.context.metrics))?;
        let Some(auth) = proof else { continue };
        if !attempt.is_wanted() {
            return Err(None);
        }
        if each.is_repeated() {
            attempt.permit.charge();
        }
        match run(attempt, kind, entry, &auth, &mut claimed).await {
            Ok(outcome) => return Ok(outcome),
            Err(refusal) => each.refused(entry, refusal.ok_or(None)?),
        }
    }
    let (refusal, entry) = each.into_refusal().ok_or(None)?;
    let advice = advice_context(&attempt.credential, Some(&attempt.object), Some(entry));
    let spent = claimed.map(|claimed| claimed.claim.token);
    Err(Some(Box::new(Refused { refusal, context: advice, client: Some(client_status(entry)), spent })))
}

async fn run(
    attempt: &Attempt,
    kind: RequestKind,
    entry: &Authentication,
    auth: &ClientAuth,
    claimed: &mut Option<Claimed>,
) -> StepResult {
    match kind {
        RequestKind::Token => token::obtain(attempt, entry, auth, claimed).await,
        RequestKind::SignIn => device::begin(attempt, entry, auth).await,
        RequestKind::Poll => device::poll(attempt, entry, auth).await,
    }
}
