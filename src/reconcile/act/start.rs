//! Asks for a permit, and begins an attempt in a task of its own.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt as _;
use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt as _;
use tokio::sync::oneshot;

use crate::{
    admission::Answer,
    api::Reason,
    oauth::Refusal,
    policy::{
        Decision, Observed, checks,
        outcome::{Outcome, Refused},
        urgency::urgency,
    },
    reconcile::{
        Context,
        act::{Activity, Brought, Errand, Permit, UnderWay, ask, attempt, place},
    },
};

/// Asks for a permit, and sends a task to the provider if it is granted. The handle is left in `asked`.
pub(in crate::reconcile) fn set_out(
    decision: &Decision,
    observed: &Observed,
    asked: &mut Option<UnderWay>,
    context: &Arc<Context>,
) -> Decision {
    let errand = match decision {
        Decision::SignIn => Errand::SignIn,
        Decision::Poll => Errand::Poll,
        _ => Errand::Token,
    };
    let now = context.clock.now();
    let ask = ask(&observed.credential, errand.endpoint(), urgency(observed, decision, now), context);
    match context.admission.ask(&Activity::grant(&observed.credential), ask) {
        Answer::Queued(waited) => {
            let waited = SignedDuration::try_from(waited).unwrap_or_default();
            Decision::Queued { since: now - SignedDuration::from_secs(waited.as_secs()) }
        }
        Answer::Admitted(permit) => {
            match decision {
                // Every few seconds, for as long as a person takes.
                Decision::Poll => tracing::debug!("asking whether the person has signed in"),
                _ => tracing::info!(?decision, "asking the provider"),
            }
            *asked = Some(start(errand, permit, observed, context));
            Decision::InFlight
        }
    }
}

/// Whether a row of the admission stays after a decision: a request is still wanted, or is decided about again at once.
pub(in crate::reconcile) fn wants_a_permit(decision: &Decision) -> bool {
    match decision {
        Decision::Issue(_)
        | Decision::SignIn
        | Decision::Poll
        | Decision::Queued { .. }
        | Decision::InFlight
        | Decision::KeepGrant
        | Decision::Store
        | Decision::Publish(_) => true,
        Decision::AwaitSignIn { .. }
        | Decision::Claimed { .. }
        | Decision::Wait { .. }
        | Decision::BackOff { .. }
        | Decision::Suspended
        | Decision::Stall(_) => false,
    }
}

/// Begins an attempt, which has its permit. Its outcome is left in the memory, and the credential is woken, unless somebody
/// waits for the end of what this returns.
fn start(errand: Errand, permit: Permit, observed: &Observed, context: &Arc<Context>) -> UnderWay {
    let credential = observed.credential.clone();
    let grant = observed.grant.clone();
    let published = observed.token().map(|token| token.fingerprint.clone());
    let uid = credential.uid().unwrap_or_default();
    context.memory.with(&uid, |entry| entry.in_flight = Some(context.clock.now()));
    let made_with = match errand {
        Errand::Token => observed.attempt.clone(),
        Errand::SignIn | Errand::Poll => observed.sign_in_attempt(),
    };
    let first = observed.history.client.as_ref().and_then(|client| usize::try_from(client.index).ok()).unwrap_or(0);
    let context = context.clone();
    let (ended, end) = oneshot::channel();
    let key = (checks::namespace(&credential).to_owned(), credential.name_any());
    let under_way = UnderWay { end, credential: key.clone(), queue: context.queue.clone() };
    let span = tracing::info_span!("request", ?errand, namespace = checks::namespace(&credential), name = %credential.name_any());
    tokio::spawn(tracing::Instrument::instrument(
        async move {
            let attempted = Box::pin(attempt(errand, permit, credential.clone(), grant, published, first, &context));
            let attempted = AssertUnwindSafe(attempted).catch_unwind().await.unwrap_or_else(|_| {
                context.metrics.reconcile_error("panic");
                tracing::error!("the request panicked");
                let refusal = Refusal::new(Reason::RequestRefused, "the broker failed: see its log");
                Some(Err(Refused { refusal, place: place(&credential, None, None), client: None, spent: None }))
            });
            let outcome = attempted.map(|attempted| match attempted {
                Ok(Brought::Token(held)) => Outcome::Issued(held),
                Ok(Brought::Noted(client)) => Outcome::Noted { client },
                Err(refused) => Outcome::Refused { refused: Box::new(refused), attempt: made_with },
            });
            context.memory.finish(&uid, outcome);
            if ended.send(()).is_err() {
                context.queue.enqueue_credential(key);
            }
        },
        span,
    ));
    under_way
}
