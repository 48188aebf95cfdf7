//! Asks the admission for a permit, and sends the request in a task of its own when the permit is granted.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt as _;
use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt as _;

use crate::{
    admission::Answer,
    api::{MailCredential, Reason, provider_object::ProviderKey, reference::key},
    error::PANIC,
    fail_point,
    oauth::{ClientAuth, Refusal, token::TokenFingerprint},
    policy::{
        Decision, Observed, RequestKind, checks,
        grant::RefreshGrant,
        outcome::{Outcome, Refused},
        urgency::urgency,
    },
    provider_client::{authentication::Authentication, try_each::TryEach},
    reconcile::{
        act::{
            activity::{Activity, Permit},
            admit::ask_for_request,
            attempt::{Attempt, StepResult, client_status, endpoint},
            device,
            refusals::{advice_context, unavailable},
            token,
            usable_provider::{Unusable, UsableProvider},
        },
        context::Context,
        custody::pending::Claimed,
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
    let ask = ask_for_request(&observed.credential, endpoint(kind), urgency(observed, decision, now), context);
    match context.requests.admission.ask(&Activity::grant(&observed.credential), ask) {
        // Thousands of requests may wait: the broker remembers only their rows.
        Answer::Queued(waited) => Decision::Queued { since: since(waited) },
        Answer::Admitted(permit) => {
            context.cache.with(checks::uid(&observed.credential), |entry| {
                entry.object.waiting_since.get_or_insert(since(permit.waited()));
            });
            match kind {
                // The broker polls every few seconds until the user has signed in.
                RequestKind::Poll => tracing::debug!("polling for the sign-in"),
                RequestKind::Token | RequestKind::SignIn => tracing::info!(?decision, "request started"),
            }
            start(kind, permit, observed, context);
            Decision::InFlight
        }
    }
}

/// Whether the admission keeps the credential's row after a decision: the request is still wanted, or the next decision
/// follows immediately.
pub(in crate::reconcile) fn wants_a_permit(decision: &Decision) -> bool {
    decision.is_under_way() || decision.queued_since().is_some()
}

/// Starts a request that has its permit. At its end, stores the outcome in the cache and enqueues the credential.
fn start(kind: RequestKind, permit: Permit, observed: &Observed, context: &Arc<Context>) {
    let credential = observed.credential.clone();
    let grant = observed.grant.clone();
    let published = observed.token().map(|token| token.fingerprint.clone());
    let uid = credential.uid().unwrap_or_default();
    context.cache.with(&uid, |entry| entry.attempt.in_flight = Some(context.clock.now()));
    let attempt_hash = observed.attempt_hash_for(kind);
    let first = observed.history.client.as_ref().and_then(|client| usize::try_from(client.index).ok()).unwrap_or(0);
    let context = context.clone();
    let key = key(&*credential);
    let span = tracing::info_span!("request", ?kind, namespace = checks::namespace(&credential), name = %credential.name_any());
    tokio::spawn(tracing::Instrument::instrument(
        async move {
            let attempted =
                Box::pin(prepare_and_send(kind, permit, credential.clone(), grant, published, first, &context));
            let attempted = AssertUnwindSafe(attempted).catch_unwind().await.unwrap_or_else(|_| {
                context.metrics.reconcile_error(PANIC);
                tracing::error!("request panicked");
                let refusal = Refusal::new(Reason::RequestRefused, "the broker failed: see its log");
                let context = advice_context(&credential, None, None);
                Err(Some(Box::new(Refused { refusal, context, client: None, spent: None })))
            });
            let outcome = match attempted {
                Ok(outcome) => Some(outcome),
                Err(Some(refused)) => Some(Outcome::Refused { refused, attempt_hash }),
                Err(None) => None,
            };
            context.cache.finish(&uid, outcome);
            context.queue.enqueue_result(key);
        },
        span,
    ));
}

/// Sends the request, and releases the permit at the end. `Err(None)`: the attempt has no outcome, see [`StepResult`].
/// Examples: the credential must not use the provider, the spec has changed, or another replica leads now.
async fn prepare_and_send(
    kind: RequestKind,
    permit: Permit,
    credential: Arc<MailCredential>,
    grant: Option<RefreshGrant>,
    published: Option<TokenFingerprint>,
    first: usize,
    context: &Arc<Context>,
) -> Result<Outcome, Option<Box<Refused>>> {
    fail_point::panic_at("request", &credential.name_any());
    let refused = |unusable: Unusable| match unusable {
        Unusable::Gone | Unusable::OtherHost => None,
        Unusable::Forbidden(blocker) => {
            tracing::info!(
                reason = blocker.reason.as_str(),
                "request not sent: the credential may not use the provider"
            );
            None
        }
        Unusable::Broken(_) => {
            context.queue.enqueue_provider(ProviderKey::of(&credential));
            None
        }
        Unusable::Kubernetes(error) => Some(unavailable(&error, &credential, &context.metrics)),
    };
    let provider = UsableProvider::of(&credential, &context.stores).map_err(refused)?;
    // A user may have changed the provider since the decision found that the grant belongs to it.
    if grant.as_ref().is_some_and(|grant| grant.bound_to.as_ref() != Some(&provider.bound_to(&credential))) {
        return Err(None);
    }
    let resolved = provider.resolve(&credential, &permit, endpoint(kind), context).await.map_err(refused)?;
    let UsableProvider { object, profile, scopes } = provider;
    let context = context.clone();
    let attempt = Attempt { permit, credential, grant, published, object, profile, resolved, scopes, context };
    try_each_authentication(&attempt, kind, first).await
}

/// Tries the client authentications of the provider. Begins with the one that the provider accepted last.
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
