//! Kube's controllers. `feed` gives them the objects to reconcile. The watches are in `watches`, the mapping of their changes
//! to objects in `mapper`.

mod enqueue_all;
mod failures;
mod feed;
mod follow;
mod mapper;
mod missing_crd;
mod pages;
mod sweep;
mod watches;

use std::{any::Any, convert::Infallible, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _};
use kube::{
    Resource,
    runtime::{
        Controller,
        controller::{Action as Done, Config},
    },
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    api::{
        ClusterMailProvider, MailCredential, MailProvider, credential::ProviderKind, provider_object::ProviderKey,
        reference::key,
    },
    controller::{
        failures::Failures,
        feed::{Feed, Named},
    },
    error::{Error, describe},
    fail_point,
    reconcile::{
        self,
        action::Action,
        context::Context,
        slots::Slots,
        work_queue::{ControllerQueues, Work},
    },
    stores::{Mirror, store::Stored},
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
        mut work: ControllerQueues,
        reconcile: impl Fn(Arc<K>, Arc<Context>) -> F + Clone + Send + Sync + 'static,
        run: &mut impl FnMut(futures::future::BoxFuture<'static, ()>),
    ) where
        K: Stored,
        F: Future<Output = Result<Action, Error>> + Send + 'static,
    {
        let failures = Arc::new(Failures::default());
        // Shared by the controllers of all namespaces.
        let slots = Arc::new(Semaphore::new(usize::from(self.concurrency)));
        for namespace in mirror.namespaces() {
            let Some(queue) = work.remove(namespace) else { continue };
            let (feed, running) = Feed::<K>::new(queue, self.concurrency);
            let one = {
                let (feed, failures, slots) = (feed.clone(), failures.clone(), slots.clone());
                let (mirror, reconcile) = (mirror.clone(), reconcile.clone());
                move |object: Arc<Named<K>>, context: Arc<Context>| {
                    let (feed, failures, slots) = (feed.clone(), failures.clone(), slots.clone());
                    let (mirror, reconcile, key) = (mirror.clone(), reconcile.clone(), key(&*object));
                    async move {
                        // An error would mean that the slots are closed, which they never are.
                        let _slot = slots.acquire_owned().await;
                        let again = match mirror.get(&key.0, &key.1) {
                            Some(object) => once(reconcile, object, &failures, &context).await,
                            None => None,
                        };
                        feed.done(&key, again);
                        // The feed requeues the object.
                        Ok::<_, Infallible>(Done::await_change())
                    }
                    .boxed()
                }
            };
            let controller = Controller::for_stream(futures::stream::pending(), running)
                .with_config(Config::default().concurrency(self.concurrency))
                .reconcile_on(feed.objects())
                .graceful_shutdown_on(self.ended.clone().cancelled_owned())
                .run(one, |_, never, _| match *never {}, self.context.clone())
                .for_each(|_| std::future::ready(()));
            run(controller.boxed());
        }
    }
}

/// Reconciles an object once. Returns after which time it is reconciled again.
async fn once<K, F>(
    reconcile: impl Fn(Arc<K>, Arc<Context>) -> F,
    object: Arc<K>,
    failures: &Failures,
    context: &Arc<Context>,
) -> Option<Duration>
where
    K: Resource<DynamicType = ()> + 'static,
    F: Future<Output = Result<Action, Error>>,
{
    match isolated(reconcile, object.clone(), context.clone()).await {
        Ok(action) => {
            failures.succeeded(&called(&*object));
            action.again_after
        }
        Err(error) => Some(retry(&*object, &error, failures, context)),
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
) -> Duration {
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
    after
}

/// The kind, namespace and name of an object.
fn called<K: Resource<DynamicType = ()>>(object: &K) -> (String, String, String) {
    let (namespace, name) = key(object);
    (K::kind(&()).into_owned(), namespace, name)
}
