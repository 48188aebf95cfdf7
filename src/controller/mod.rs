//! Kube's controllers. The watches are in `watches`, the mapping of their changes to objects in `mapper`.

mod enqueue_all;
mod failures;
mod follow;
mod mapper;
mod sweep;
mod watches;

use std::{any::Any, fmt::Debug, panic::AssertUnwindSafe, sync::Arc};

use futures::{FutureExt as _, StreamExt as _};
use kube::{
    Resource,
    runtime::{
        Controller,
        controller::{Action, Config},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    api::{
        ClusterMailProvider, MailCredential, MailProvider, credential::ProviderKind, provider_object::ProviderKey,
        reference::key,
    },
    controller::failures::Failures,
    error::{Error, describe},
    fail_point,
    reconcile::{
        self,
        context::Context,
        slots::Slots,
        work_queue::{Receivers, Work},
    },
    stores::Mirror,
};

pub use crate::controller::{
    enqueue_all::{enqueue_all_when_leading, enqueue_all_when_the_clock_jumps},
    mapper::{Eviction, Mapper, evict_all},
    sweep::sweep,
    watches::Watches,
};

/// Runs a controller for each store of credentials and providers, until `ended`.
pub async fn run(context: Arc<Context>, work: Work, concurrency: u16, ended: CancellationToken) {
    let stores = context.stores.clone();
    let mut controllers = vec![];
    let mut run = |controller| controllers.push(controller);
    let start = Start { context, concurrency, ended };
    let slots = Arc::new(Slots::new(concurrency, start.context.queue.clone()));
    let reconcile_credential = move |credential, context| reconcile_credential(credential, context, slots.clone());
    start.controllers(&stores.credentials, work.credentials, reconcile_credential, &mut run);
    start.controllers(&stores.providers, work.providers, reconcile_provider::<MailProvider>, &mut run);
    if let Some(cluster) = &stores.cluster_providers {
        start.controllers(cluster, work.cluster_providers, reconcile_provider::<ClusterMailProvider>, &mut run);
    }
    futures::future::join_all(controllers).await;
}

/// What every controller is started with.
struct Start {
    context: Arc<Context>,
    concurrency: u16,
    ended: CancellationToken,
}

impl Start {
    /// A controller for each store of a kind. Its queue is the only source of work: the watches enqueue too.
    fn controllers<K, F>(
        &self,
        mirror: &Mirror<K>,
        mut work: Receivers<K>,
        reconcile: impl Fn(Arc<K>, Arc<Context>) -> F + Clone + Send + Sync + 'static,
        run: &mut impl FnMut(futures::future::BoxFuture<'static, ()>),
    ) where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        F: Future<Output = Result<Action, Error>> + Send + 'static,
    {
        let failures = Arc::new(Failures::default());
        // Shared by the controllers of all namespaces.
        let slots = Arc::new(Semaphore::new(usize::from(self.concurrency)));
        for (namespace, store) in mirror.stores() {
            let Some(queue) = work.remove(namespace) else { continue };
            let queue = futures::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
            let slots = slots.clone();
            let controller = Controller::for_stream(futures::stream::pending(), store.clone())
                .with_config(Config::default().concurrency(self.concurrency))
                .reconcile_on(queue)
                .graceful_shutdown_on(self.ended.clone().cancelled_owned())
                .run(
                    {
                        let (failures, slots, reconcile) = (failures.clone(), slots.clone(), reconcile.clone());
                        move |object: Arc<K>, context| {
                            let (failures, slots, name) = (failures.clone(), slots.clone(), called(&*object));
                            let reconcile = reconcile.clone();
                            async move {
                                // An error would mean that the slots are closed, which they never are.
                                let _slot = slots.acquire_owned().await;
                                isolated(reconcile, object, context).await.inspect(|_| failures.succeeded(&name))
                            }
                            .boxed()
                        }
                    },
                    {
                        let failures = failures.clone();
                        move |object, error, context| retry(&*object, error, &failures, &context)
                    },
                    self.context.clone(),
                )
                .for_each(|_| std::future::ready(()));
            run(controller.boxed());
        }
    }
}

/// A panic in the reconcile of one object is isolated: the others go on.
async fn isolated<K, F>(
    reconcile: impl Fn(Arc<K>, Arc<Context>) -> F,
    object: Arc<K>,
    context: Arc<Context>,
) -> Result<Action, Error>
where
    K: Resource<DynamicType = ()>,
    F: Future<Output = Result<Action, Error>>,
{
    let (namespace, name) = key(&*object);
    let panicked = || Error::Panicked { name: format!("{} {namespace}/{name}", K::kind(&())) };
    let span = tracing::info_span!("reconcile", kind = %K::kind(&()), namespace, name);
    let work = AssertUnwindSafe(reconcile(object, context).instrument(span)).catch_unwind();
    work.await.unwrap_or_else(|_| Err(panicked()))
}

async fn reconcile_credential(
    credential: Arc<MailCredential>,
    context: Arc<Context>,
    slots: Arc<Slots>,
) -> Result<Action, Error> {
    fail_point::panic_at("reconcile", &key(&*credential).1);
    reconcile::reconcile(credential, context, &slots).await
}

async fn reconcile_provider<K: IsProvider>(provider: Arc<K>, context: Arc<Context>) -> Result<Action, Error> {
    let (namespace, name) = key(&*provider);
    reconcile::provider::reconcile(&ProviderKey { kind: K::KIND, namespace, name }, &context).await
}

/// The two kinds of provider.
trait IsProvider: Resource<DynamicType = ()> {
    const KIND: ProviderKind;
}

impl IsProvider for MailProvider {
    const KIND: ProviderKind = ProviderKind::MailProvider;
}

impl IsProvider for ClusterMailProvider {
    const KIND: ProviderKind = ProviderKind::ClusterMailProvider;
}

/// The back-off of an object whose reconcile Kubernetes failed: longer each time, but no longer than until the end of
/// its token, which must be reported.
fn retry<K: Resource<DynamicType = ()> + 'static>(
    object: &K,
    error: &Error,
    failures: &Failures,
    context: &Context,
) -> Action {
    context.metrics.reconcile_error(error.category());
    let now = context.clock.now();
    let next = failures.failed(called(object), failures::is_refusal(error), now);
    let end = (object as &dyn Any)
        .downcast_ref::<MailCredential>()
        .and_then(|credential| reconcile::end_of_ready(credential, context))
        .filter(|end| now < *end)
        .map(|end| context.clock.until(end));
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
    Action::requeue(after)
}

/// The kind, namespace and name of an object.
fn called<K: Resource<DynamicType = ()>>(object: &K) -> (String, String, String) {
    let (namespace, name) = key(object);
    (K::kind(&()).into_owned(), namespace, name)
}
