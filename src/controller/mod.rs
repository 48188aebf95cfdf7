//! The controllers: each takes the objects of one kind from its queue and reconciles them. `watches` has the watches,
//! `mapper` maps their changes to objects.

mod enqueue_all;
mod failures;
mod follow;
mod incoming;
mod mapper;
mod missing_crd;
mod sweep;
mod watches;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use k8s_openapi::jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    api::{credential::ProviderKind, provider_object::ProviderKey, reference::ObjectKey},
    controller::failures::{Failures, Object},
    error::{Error, describe},
    fail_point,
    reconcile::{self, action::Action, context::Context, work_queue::ControllerQueue},
};

pub use crate::controller::{
    enqueue_all::{enqueue_all_when_leading, enqueue_all_when_the_clock_jumps},
    sweep::sweep,
    watches::{LONGEST_LIST, Watches},
};

/// Runs the controllers until `ended`. Then waits for the running reconciles.
pub async fn run(context: Arc<Context>, ended: CancellationToken) {
    let (queue, failures) = (context.queue.clone(), Failures::default());
    let credential = |key: Arc<ObjectKey>| reconcile_credential(key, &context, &failures);
    let provider = |kind| {
        let (context, failures) = (&context, &failures);
        move |key: Arc<ObjectKey>| reconcile_provider(kind, key, context, failures)
    };
    let [namespaced, cluster] = [ProviderKind::MailProvider, ProviderKind::ClusterMailProvider];
    tokio::join!(
        work(queue.credentials(), credential, &ended),
        work(queue.providers(namespaced), provider(namespaced), &ended),
        work(queue.providers(cluster), provider(cluster), &ended),
    );
}

/// Runs one controller until `ended`: begins a reconcile for each object from the queue. A reconcile returns the time
/// after which its object is reconciled again.
async fn work<F>(queue: &ControllerQueue, reconcile: impl Fn(Arc<ObjectKey>) -> F, ended: &CancellationToken)
where
    F: Future<Output = Option<Duration>>,
{
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = ended.cancelled() => break,
            key = queue.next() => {
                let reconcile = reconcile(key.clone());
                running.push(async move { queue.done(&key, reconcile.await) });
            }
            Some(()) = running.next() => {}
        }
    }
    while running.next().await.is_some() {}
}

async fn reconcile_credential(key: Arc<ObjectKey>, context: &Arc<Context>, failures: &Failures) -> Option<Duration> {
    let credential = context.stores.credentials.get(&key.0, &key.1)?;
    let object = ("MailCredential", ObjectKey::clone(&key));
    let reconcile = async {
        fail_point::panic_at("reconcile", &key.1);
        reconcile::reconcile(credential.clone(), context).await
    };
    match reconcile_isolated(&object, reconcile).await {
        Ok(action) => succeeded(&object, action, failures),
        Err(error) => Some(retry(object, &error, reconcile::end_of_ready(credential, context), context, failures)),
    }
}

async fn reconcile_provider(
    kind: ProviderKind,
    key: Arc<ObjectKey>,
    context: &Arc<Context>,
    failures: &Failures,
) -> Option<Duration> {
    let provider = ProviderKey { kind, namespace: key.0.clone(), name: key.1.clone() };
    let object = (kind.as_str(), ObjectKey::clone(&key));
    match reconcile_isolated(&object, reconcile::provider::reconcile(&provider, context)).await {
        Ok(action) => succeeded(&object, action, failures),
        Err(error) => Some(retry(object, &error, None, context, failures)),
    }
}

/// Isolates a panic in the reconcile of one object: the others continue.
async fn reconcile_isolated(
    (kind, (namespace, name)): &Object,
    reconcile: impl Future<Output = Result<Action, Error>>,
) -> Result<Action, Error> {
    let span = tracing::info_span!("reconcile", kind, namespace, name);
    let done = AssertUnwindSafe(reconcile.instrument(span)).catch_unwind().await;
    done.unwrap_or_else(|_| Err(Error::Panicked { name: format!("{kind} {namespace}/{name}") }))
}

fn succeeded(object: &Object, action: Action, failures: &Failures) -> Option<Duration> {
    failures.succeeded(object);
    action.again_after
}

/// Returns the back-off of an object after a failure in Kubernetes. It grows with each failure, and ends at the expiry
/// of the object's token, which the status must report.
fn retry(
    object: Object,
    error: &Error,
    end_of_token: Option<Timestamp>,
    context: &Context,
    failures: &Failures,
) -> Duration {
    context.metrics.reconcile_error(error.category());
    let now = context.clock.now();
    let next = failures.failed(object, failures::is_refusal(error), now);
    let end = end_of_token.filter(|end| now < *end).map(|end| context.clock.until(end));
    let after = end.map_or(next.after, |end| end.min(next.after));
    if next.logged {
        let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<kube::Error>());
        tracing::warn!(
            category = error.category(),
            step = %error,
            why = source.map(describe),
            retry_after_seconds = after.as_secs(),
            "reconcile failed: further failures of this object are counted in mailtoken_reconcile_errors_total and logged hourly"
        );
    } else {
        tracing::debug!(category = error.category(), step = %error, "reconcile failed again");
    }
    after
}
