//! Kube wiring only: the two queues of work here, the watches in `watches`, whom their events wake in `hub`.

mod hub;
mod watches;

use std::{collections::HashMap, fmt::Debug, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt as _;
use futures::StreamExt as _;
use kube::{
    Resource,
    runtime::{
        Controller,
        controller::{Action, Config},
        reflector::ObjectRef,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use self::{
    hub::{Gone, Hub, forget},
    watches::Watches,
};
use crate::{
    api::{ClusterMailProvider, MailCredential, MailProvider, credential::ProviderKind},
    error::{Error, told_by},
    fail_point,
    reconcile::{
        self, Context,
        stores::{Key, Mirror, ProviderKey},
    },
};

/// After a failed step towards Kubernetes, an object is tried again after this long.
const RETRY: Duration = Duration::from_secs(5);
/// The ends of the [`Waker`] that the controllers listen at.
pub struct Queues {
    /// Credentials.
    pub credentials: mpsc::UnboundedReceiver<Key>,
    /// Providers.
    pub providers: mpsc::UnboundedReceiver<ProviderKey>,
}

/// Runs the controllers until `ended`.
pub async fn run(context: Arc<Context>, queues: Queues, concurrency: u16, ended: CancellationToken) {
    let stores = context.stores.clone();
    let mut controllers = vec![];
    let mut run = |work| controllers.push(work);
    let start = Start { context: context.clone(), concurrency, ended };

    let credentials = start.controllers(&stores.credentials, reconcile_credential, &mut run);
    let providers = start.controllers(&stores.providers, reconcile_provider::<MailProvider>, &mut run);
    let cluster = stores
        .cluster_providers
        .as_ref()
        .map(|mirror| start.controllers(mirror, reconcile_provider::<ClusterMailProvider>, &mut run));

    let Queues { credentials: mut credential_keys, providers: mut provider_keys } = queues;
    let route_credentials = async move {
        while let Some((namespace, name)) = credential_keys.recv().await {
            credentials.wake(&namespace, &name);
        }
    };
    let route_providers = async move {
        while let Some(key) = provider_keys.recv().await {
            match (key.kind, &cluster) {
                (ProviderKind::MailProvider, _) => providers.wake(&key.namespace, &key.name),
                (ProviderKind::ClusterMailProvider, Some(cluster)) => cluster.wake("", &key.name),
                (ProviderKind::ClusterMailProvider, None) => {}
            }
        }
    };
    tokio::select! {
        _ = futures::future::join_all(controllers) => {}
        ((), ()) = futures::future::join(route_credentials, route_providers) => {}
    }
}

/// The queues of one kind's controllers, by the namespace they watch.
struct Wakes<K: Resource>(HashMap<Option<String>, mpsc::UnboundedSender<ObjectRef<K>>>);

impl<K: Resource<DynamicType = ()>> Wakes<K> {
    fn wake(&self, namespace: &str, name: &str) {
        let object = ObjectRef::new(name);
        let object = if namespace.is_empty() { object } else { object.within(namespace) };
        let queue = self.0.get(&None).or_else(|| self.0.get(&Some(namespace.to_owned())));
        if queue.is_some_and(|queue| queue.send(object).is_err()) {
            tracing::debug!("the controller has ended");
        }
    }
}

/// What every controller is started with.
struct Start {
    context: Arc<Context>,
    concurrency: u16,
    ended: CancellationToken,
}

impl Start {
    /// A controller for each store of a kind. Everything wakes objects through its queue, their own watch too.
    fn controllers<K, F>(
        &self,
        mirror: &Mirror<K>,
        reconcile: fn(Arc<K>, Arc<Context>) -> F,
        run: &mut impl FnMut(futures::future::BoxFuture<'static, ()>),
    ) -> Wakes<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        F: Future<Output = Result<Action, Error>> + Send + 'static,
    {
        let mut wakes = HashMap::new();
        for (namespace, store) in mirror.stores() {
            let (sender, queue) = mpsc::unbounded_channel();
            wakes.insert(namespace.clone(), sender);
            let queue = futures::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
            let controller = Controller::for_stream(futures::stream::pending(), store.clone())
                .with_config(Config::default().concurrency(self.concurrency))
                .reconcile_on(queue)
                .graceful_shutdown_on(self.ended.clone().cancelled_owned())
                .run(move |object, context| isolated(reconcile, object, context).boxed(), retry, self.context.clone())
                .for_each(|_| std::future::ready(()));
            run(controller.boxed());
        }
        Wakes(wakes)
    }
}

/// A panic in the reconcile of one object is isolated: the others go on.
async fn isolated<K, F>(
    reconcile: fn(Arc<K>, Arc<Context>) -> F,
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

async fn reconcile_credential(credential: Arc<MailCredential>, context: Arc<Context>) -> Result<Action, Error> {
    fail_point::panic_at("reconcile", &key(&*credential).1);
    reconcile::reconcile(credential, context).await
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

fn retry<K>(_: Arc<K>, error: &Error, context: Arc<Context>) -> Action {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<kube::Error>()).map(told_by);
    tracing::warn!(
        category = error.category(),
        why = source,
        "{error} failed; it is tried again in {} s",
        RETRY.as_secs()
    );
    context.metrics.reconcile_error(error.category());
    Action::requeue(RETRY)
}

fn key(object: &impl Resource) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}
