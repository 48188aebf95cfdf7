//! Begins an attempt in a task of its own.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt as _;
use kube::ResourceExt as _;
use tokio::sync::oneshot;

use super::{Brought, Errand, Outcome, Permit, Refused, UnderWay, attempt, place};
use crate::{
    api::Reason,
    oauth::Refusal,
    policy::{Observed, checks},
    reconcile::Context,
};

/// Begins an attempt, which has its permit. Its outcome is left in the memory, and the credential is woken, unless somebody
/// waits for the end of what this returns.
pub(in crate::reconcile) fn start(
    errand: Errand,
    permit: Permit,
    observed: &Observed,
    context: &Arc<Context>,
) -> UnderWay {
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
    let under_way = UnderWay { end, credential: key.clone(), waker: context.waker.clone() };
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
                context.waker.credential(key);
            }
        },
        span,
    ));
    under_way
}
