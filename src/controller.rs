//! Kube wiring only: the watches, whom their events wake, and the two queues of work.

use std::{collections::HashMap, fmt::Debug, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt as _, Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        Controller, WatchStreamExt as _,
        controller::{Action, Config},
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{ClusterMailProvider, MailCredential, MailProvider, credential::ProviderKind, names},
    error::{Error, told_by},
    policy::observed::target_name,
    reconcile::{
        self, Context, Waker,
        stores::{Key, Links, Mirror, ProviderKey, ProviderObject, Stores, credential_of},
    },
};

/// After a failed step towards Kubernetes, an object is tried again after this long.
const RETRY: Duration = Duration::from_secs(5);
/// Keys of an object that nobody needs here and that may hold a secret.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// An event of a watch, for what depends on its object.
pub enum Seen<K> {
    /// The object is there, new or changed.
    There(Arc<K>),
    /// The object is gone.
    Gone(Arc<K>),
}

/// Where the watches look: everywhere, or in single namespaces.
fn scopes(namespaces: &[String]) -> Vec<Option<String>> {
    match namespaces {
        [] => vec![None],
        names => names.iter().cloned().map(Some).collect(),
    }
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
{
    namespace.map_or_else(|| Api::all(client.clone()), |namespace| Api::namespaced(client.clone(), namespace))
}

/// The watches, started but not yet complete.
pub struct Watches {
    stores: Stores,
    pending: Vec<futures::future::BoxFuture<'static, ()>>,
}

/// What the watches tell their events to.
#[derive(Clone)]
pub struct Hub {
    /// Which objects depend on which.
    pub links: Arc<Links>,
    /// Wakes what depends.
    pub waker: Waker,
    /// Told of everything that is gone.
    pub gone: mpsc::UnboundedSender<Gone>,
}

/// Something that the memory has to forget.
pub enum Gone {
    /// A credential, by uid.
    Credential(String),
    /// A Secret of a credential: the credential's uid, the Secret's.
    Target(Key, String),
    /// A provider.
    Provider(ProviderKey),
}

impl Watches {
    /// Starts all watches. `cluster` tells whether cluster-scoped objects may be read.
    pub fn start(client: &Client, namespaces: &[String], broker_namespace: &str, cluster: bool, hub: &Hub) -> Self {
        let mut pending = vec![];
        let scopes = scopes(namespaces);
        // A ClusterMailProvider's Secrets are in the broker's namespace, which need not be among those watched.
        let mut source_scopes = scopes.clone();
        if cluster && !namespaces.is_empty() && !namespaces.contains(&broker_namespace.to_owned()) {
            source_scopes.push(Some(broker_namespace.to_owned()));
        }
        let credentials = mirror(&scopes, &mut pending, |scope| {
            let hub = hub.clone();
            reflect(
                api::<DeserializeGuard<MailCredential>>(client, scope),
                watcher::Config::default(),
                unguard,
                move |seen| hub.credential(seen),
            )
        });
        let providers = mirror(&scopes, &mut pending, |scope| {
            let (hub, home) = (hub.clone(), broker_namespace.to_owned());
            reflect(
                api::<DeserializeGuard<MailProvider>>(client, scope),
                watcher::Config::default(),
                unguard,
                move |seen| {
                    hub.provider(seen, ProviderObject::Namespaced, &home);
                },
            )
        });
        let cluster_providers = cluster.then(|| {
            mirror(&[None], &mut pending, |_| {
                let (hub, home) = (hub.clone(), broker_namespace.to_owned());
                reflect(
                    Api::<DeserializeGuard<ClusterMailProvider>>::all(client.clone()),
                    watcher::Config::default(),
                    unguard,
                    move |seen| {
                        hub.provider(seen, ProviderObject::Cluster, &home);
                    },
                )
            })
        });
        let own = format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGER);
        let own_secrets = mirror(&scopes, &mut pending, |scope| {
            let hub = hub.clone();
            reflect(
                api::<PartialObjectMeta<Secret>>(client, scope),
                watcher::Config::default().labels(&own),
                Some,
                move |seen| hub.own_secret(seen),
            )
        });
        let labelled = format!("{}=true", names::LABEL_SOURCE);
        let sources = mirror(&source_scopes, &mut pending, |scope| {
            let hub = hub.clone();
            reflect(
                api::<PartialObjectMeta<Secret>>(client, scope),
                watcher::Config::default().labels(&labelled),
                bare,
                move |seen| hub.source(seen),
            )
        });
        let namespaces = cluster.then(|| {
            mirror(&[None], &mut pending, |_| {
                let (hub, credentials) = (hub.clone(), credentials.clone());
                reflect(
                    Api::<PartialObjectMeta<Namespace>>::all(client.clone()),
                    watcher::Config::default(),
                    Some,
                    move |seen| {
                        hub.namespace(seen, &credentials);
                    },
                )
            })
        });
        let stores = Stores {
            credentials,
            providers,
            cluster_providers,
            namespaces,
            own_secrets,
            sources,
            broker_namespace: broker_namespace.to_owned(),
        };
        Self { stores, pending }
    }

    /// What the watches show.
    pub fn into_stores(self) -> Stores {
        self.stores
    }

    /// Waits until every watch has shown what there is.
    pub async fn ready(&mut self) {
        futures::future::join_all(self.pending.drain(..)).await;
    }
}

/// The stores of one kind, one for each scope.
fn mirror<K>(
    scopes: &[Option<String>],
    pending: &mut Vec<futures::future::BoxFuture<'static, ()>>,
    mut start: impl FnMut(Option<&str>) -> (Store<K>, futures::future::BoxFuture<'static, ()>),
) -> Mirror<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let stores: HashMap<_, _> = scopes
        .iter()
        .map(|scope| {
            let (store, ready) = start(scope.as_deref());
            pending.push(ready);
            (scope.clone(), store)
        })
        .collect();
    Mirror::new(stores)
}

/// An object that does not parse is told and passed over; it stops nothing else.
fn unguard<K: Resource<DynamicType = ()>>(guarded: DeserializeGuard<K>) -> Option<K> {
    match guarded.0 {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::warn!(
                kind = %K::kind(&()),
                namespace = error.metadata.namespace,
                name = error.metadata.name,
                "an object does not parse and is passed over: was it made with another version of the CRDs? ({})",
                error.error
            );
            None
        }
    }
}

/// Of a source Secret, only that it is there and in which version.
fn bare(mut secret: PartialObjectMeta<Secret>) -> Option<PartialObjectMeta<Secret>> {
    secret.metadata.annotations = None;
    Some(secret)
}

/// Follows one kind into a store, in a task of its own. The future is done when the store is complete.
fn reflect<W, K>(
    api: Api<W>,
    config: watcher::Config,
    read: impl Fn(W) -> Option<K> + Send + 'static,
    seen: impl Fn(Seen<K>) + Send + 'static,
) -> (Store<K>, futures::future::BoxFuture<'static, ()>)
where
    W: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let (store, mut writer) = reflector::store::<K>();
    let reader = store.clone();
    tokio::spawn(async move {
        let events = watch_events(api, config);
        let mut events = std::pin::pin!(events);
        let mut failing = false;
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    if !failing {
                        tracing::warn!(kind = %K::kind(&()), %error, "a watch failed; it is tried again until it succeeds");
                    }
                    failing = true;
                    continue;
                }
            };
            failing = failing && matches!(event, watcher::Event::Init);
            let Some(event) = convert(event, &read) else { continue };
            let before = matches!(event, watcher::Event::InitDone).then(|| reader.state()).unwrap_or_default();
            writer.apply_watcher_event(&event);
            match event {
                watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
                    seen(Seen::There(Arc::new(object)))
                }
                watcher::Event::Delete(object) => seen(Seen::Gone(Arc::new(object))),
                watcher::Event::Init => {}
                // What went away while nobody watched has no event of its own.
                watcher::Event::InitDone => before
                    .into_iter()
                    .filter(|object| reader.get(&ObjectRef::from_obj(&**object)).is_none())
                    .for_each(|object| seen(Seen::Gone(object))),
            }
        }
    });
    let ready = store.clone();
    (
        store,
        async move {
            if ready.wait_until_ready().await.is_err() {
                tracing::error!(kind = %K::kind(&()), "a watch ended")
            }
        }
        .boxed(),
    )
}

fn watch_events<W>(api: Api<W>, config: watcher::Config) -> impl Stream<Item = watcher::Result<watcher::Event<W>>>
where
    W: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    // Not kube's 0.8 to 30 s: a broker that starts before its CRDs, or outlives an API server, is back at once.
    let backoff = backon::ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times();
    watcher(api, config).backoff(watcher::ExponentialBackoff::from(backoff))
}

fn convert<W, K>(event: watcher::Event<W>, read: &impl Fn(W) -> Option<K>) -> Option<watcher::Event<K>>
where
    W: Resource,
    K: Resource,
{
    let slim = |mut object: W| {
        object.meta_mut().managed_fields = None;
        if let Some(annotations) = &mut object.meta_mut().annotations {
            annotations.remove(LAST_APPLIED);
        }
        read(object)
    };
    Some(match event {
        watcher::Event::Apply(object) => watcher::Event::Apply(slim(object)?),
        watcher::Event::InitApply(object) => watcher::Event::InitApply(slim(object)?),
        watcher::Event::Delete(object) => watcher::Event::Delete(slim(object)?),
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitDone => watcher::Event::InitDone,
    })
}

impl Hub {
    fn credential(&self, seen: Seen<MailCredential>) {
        match seen {
            Seen::There(credential) => {
                self.links.credential(&credential);
                self.waker.credential(key(&*credential));
            }
            Seen::Gone(credential) => {
                let key = key(&*credential);
                self.links.forget_credential(&key);
                self.tell_gone(Gone::Credential(credential.uid().unwrap_or_default()));
                // A younger credential with the same target may have it now.
                self.wake_target(&(key.0, target_name(&credential)));
            }
        }
    }

    fn provider<K: Resource<DynamicType = ()>>(
        &self,
        seen: Seen<K>,
        object: impl Fn(Arc<K>) -> ProviderObject,
        broker_namespace: &str,
    ) {
        match seen {
            Seen::There(provider) => {
                let provider = object(provider);
                let key = provider.key();
                let home = match key.kind {
                    ProviderKind::MailProvider => key.namespace.clone(),
                    ProviderKind::ClusterMailProvider => broker_namespace.to_owned(),
                };
                self.links.provider(key.clone(), &home, provider.spec());
                self.wake_provider(key);
            }
            Seen::Gone(provider) => {
                let key = object(provider).key();
                self.links.forget_provider(key.clone());
                self.tell_gone(Gone::Provider(key.clone()));
                self.links.by_provider(&key).into_iter().for_each(|credential| self.waker.credential(credential));
            }
        }
    }

    fn own_secret(&self, seen: Seen<PartialObjectMeta<Secret>>) {
        let (Seen::There(secret) | Seen::Gone(secret)) = &seen;
        let (namespace, name) = key(&**secret);
        if let Some(credential) = credential_of(&secret.metadata) {
            if matches!(seen, Seen::Gone(_)) {
                self.tell_gone(Gone::Target((namespace.clone(), credential.clone()), secret.uid().unwrap_or_default()));
            }
            self.waker.credential((namespace.clone(), credential));
        }
        self.wake_target(&(namespace, name));
    }

    fn source(&self, seen: Seen<PartialObjectMeta<Secret>>) {
        let (Seen::There(secret) | Seen::Gone(secret)) = seen;
        self.links.by_secret(&key(&*secret)).into_iter().for_each(|provider| self.wake_provider(provider));
    }

    fn namespace(&self, seen: Seen<PartialObjectMeta<Namespace>>, credentials: &Mirror<MailCredential>) {
        let Seen::There(namespace) = seen else { return };
        let name = namespace.name_any();
        let concerned = |credential: &Arc<MailCredential>| {
            credential.metadata.namespace.as_deref() == Some(&name)
                && credential.spec.provider_ref.kind == ProviderKind::ClusterMailProvider
        };
        credentials
            .all()
            .iter()
            .filter(|credential| concerned(credential))
            .for_each(|credential| self.waker.credential(key(&**credential)));
    }

    fn wake_target(&self, target: &Key) {
        self.links.by_target(target).into_iter().for_each(|credential| self.waker.credential(credential));
    }

    /// The provider first; its credentials too, since a change ends their wait.
    fn wake_provider(&self, key: ProviderKey) {
        let credentials = self.links.by_provider(&key);
        self.waker.provider(key);
        credentials.into_iter().for_each(|credential| self.waker.credential(credential));
    }

    fn tell_gone(&self, gone: Gone) {
        if self.gone.send(gone).is_err() {
            tracing::debug!("nobody is left to forget what is gone");
        }
    }
}

fn key(object: &impl Resource) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// Lets the memory forget what is gone.
pub async fn forget(mut gone: mpsc::UnboundedReceiver<Gone>, context: Arc<Context>) {
    while let Some(gone) = gone.recv().await {
        match gone {
            Gone::Credential(uid) => context.memory.forget(&uid),
            Gone::Target((namespace, name), secret) => {
                let uid = context.stores.credentials.get(&namespace, &name).and_then(|credential| credential.uid());
                let Some(uid) = uid else { continue };
                context.memory.with(&uid, |entry| {
                    if entry.target.as_ref().is_some_and(|meta| meta.uid.as_ref() == Some(&secret)) {
                        entry.target = None;
                    }
                });
                context.waker.credential((namespace, name));
            }
            Gone::Provider(key) => {
                context.material.forget(&key);
                context.bundles.release(&key, None);
            }
        }
    }
}

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
    AssertUnwindSafe(reconcile(object, context)).catch_unwind().await.unwrap_or_else(|_| Err(panicked()))
}

async fn reconcile_credential(credential: Arc<MailCredential>, context: Arc<Context>) -> Result<Action, Error> {
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
