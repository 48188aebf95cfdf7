//! The watches: each fills a store with the objects of one kind. The stores keep only the necessary fields.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{BoxStream, FuturesUnordered},
};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, Resource,
    core::{ObjectMeta, PartialObjectMeta},
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;

use crate::{
    api::{credential::ProviderKind, names, provider_object::ProviderObject},
    controller::{
        follow::{Change, Follower},
        incoming::Incoming,
        mapper, missing_crd,
    },
    health::Health,
    kubernetes::is_too_long,
    reconcile::context::Context,
    stores::{
        Mirror, Stores,
        slim::{self, Slim},
        store::{Store, Stored},
    },
};

/// Number of objects in a page of a list. The API server's time for one page grows with the number of all objects of the
/// kind: 9 ms of CPU with 50,000 objects.
const PAGE: u32 = 150;
/// Maximum size of a page of a list in bytes. A page of objects of a usual size has less than a megabyte. Tenants may write
/// more than a megabyte of labels and annotations into each object; the watch then requests smaller pages.
pub const LONGEST_LIST: usize = 8 << 20;
/// Interval at which a start logs the watches that have not synced.
const REMIND: Duration = Duration::from_secs(30);
/// Maximum number of watches that such a log line names.
const NAMED: usize = 20;

/// Returns the scopes of the watches: the whole cluster, or single namespaces.
fn scopes(namespaces: &[String]) -> Vec<Option<String>> {
    match namespaces {
        [] => vec![None],
        names => names.iter().cloned().map(Some).collect(),
    }
}

fn in_scope<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
{
    namespace.map_or_else(|| Api::all(client.clone()), |namespace| Api::namespaced(client.clone(), namespace))
}

fn in_cluster<K>(client: &Client, _: Option<&str>) -> Api<K>
where
    K: Resource<Scope = k8s_openapi::ClusterResourceScope, DynamicType = ()>,
{
    Api::all(client.clone())
}

/// The watches, whose stores may be incomplete.
pub struct Watches {
    stores: Stores,
    pending: Vec<Pending>,
    /// The command that installs the CRDs.
    install: String,
}

impl Watches {
    /// Prepares all watches, with empty stores. `cluster`: the broker may read cluster-scoped objects.
    pub fn new(client: &Client, namespaces: &[String], broker_namespace: &str, cluster: bool) -> Self {
        let scopes = scopes(namespaces);
        // A ClusterMailProvider's Secrets are in the broker's namespace, which need not be a watched one.
        let mut source_scopes = scopes.clone();
        if cluster && !namespaces.is_empty() && !namespaces.contains(&broker_namespace.to_owned()) {
            source_scopes.push(Some(broker_namespace.to_owned()));
        }
        let objects = watcher::Config::default().page_size(PAGE);
        let install = missing_crd::install(broker_namespace);
        let mut begin = Begin { client, install: &install, pending: vec![] };
        let stores = Stores {
            credentials: begin.follow::<_, slim::Credential>(
                &scopes,
                WatchSettings {
                    api: in_scope,
                    config: objects.clone(),
                    packs: |_| true,
                    arriving: |context, credential| {
                        context.cache.begin(credential.metadata.uid.as_deref().unwrap_or_default());
                    },
                    seen: mapper::credential,
                },
            ),
            providers: begin.follow::<_, slim::Provider>(
                &scopes,
                WatchSettings {
                    api: in_scope,
                    config: objects.clone(),
                    packs: |_| false,
                    arriving: |_, _| {},
                    seen: |context, seen| {
                        mapper::provider(context, seen, ProviderKind::MailProvider, ProviderObject::Namespaced);
                    },
                },
            ),
            cluster_providers: cluster.then(|| {
                begin.follow::<_, slim::Provider>(
                    &[None],
                    WatchSettings {
                        api: in_cluster,
                        config: objects.clone(),
                        packs: |_| false,
                        arriving: |_, _| {},
                        seen: |context, seen| {
                            mapper::provider(context, seen, ProviderKind::ClusterMailProvider, ProviderObject::Cluster);
                        },
                    },
                )
            }),
            own_secrets: begin.follow::<_, slim::OwnSecret>(
                &scopes,
                WatchSettings {
                    api: in_scope,
                    config: objects.clone().labels(&format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGER)),
                    // Grant Secrets stay unpacked: each new seed is compared with them.
                    packs: |secret: &PartialObjectMeta<Secret>| !keeps_grant(&secret.metadata),
                    arriving: |_, _| {},
                    seen: |context, seen| mapper::own_secret(context, seen),
                },
            ),
            sources: begin.follow::<_, slim::Source>(
                &source_scopes,
                WatchSettings {
                    api: in_scope,
                    config: objects.clone().labels(&format!("{}=true", names::LABEL_SOURCE)),
                    packs: |_| true,
                    arriving: |_, _| {},
                    seen: |context, seen| mapper::source(context, seen),
                },
            ),
            namespaces: cluster.then(|| {
                begin.follow::<_, slim::Namespace>(
                    &[None],
                    WatchSettings {
                        api: in_cluster,
                        config: objects.clone(),
                        packs: |_| false,
                        arriving: |_, _| {},
                        seen: |context, seen| mapper::namespace(context, seen),
                    },
                )
            }),
            references: Arc::default(),
            unreadable: Arc::default(),
            broker_namespace: broker_namespace.to_owned(),
        };
        let pending = begin.pending;
        Self { stores, pending, install }
    }

    /// Returns the stores of all watches.
    pub fn stores(&self) -> Stores {
        self.stores.clone()
    }

    /// Runs all watches, each in its own task. Waits until every watch has completed its first list, and logs the others
    /// from time to time.
    pub async fn run(self, context: &Arc<Context>, health: &Health) {
        let (mut names, mut complete) = (BTreeSet::new(), FuturesUnordered::new());
        for Pending { name, run, complete: future } in self.pending {
            health.supervise(format!("watch of {name}"), run(context.clone()));
            names.insert(name.clone());
            complete.push(future.map(|()| name));
        }
        loop {
            match tokio::time::timeout(REMIND, complete.next()).await {
                Ok(Some(name)) => {
                    names.remove(&name);
                }
                Ok(None) => return,
                Err(_) => {
                    let missing = names.iter().map(String::as_str).take(NAMED).collect::<Vec<_>>().join(", ");
                    tracing::warn!(
                        watches = names.len(),
                        "not ready: watches not synced: {missing}. If a CRD is missing, install it with `{}`. Otherwise \
                         check that the broker's ServiceAccount may list and watch these",
                        self.install
                    );
                }
            }
        }
    }
}

/// A watch that has not started.
struct Pending {
    /// The name of the watch, for the log.
    name: String,
    /// Follows the objects. Never returns.
    run: Box<dyn FnOnce(Arc<Context>) -> BoxFuture<'static, ()> + Send>,
    /// Completes when the store is complete.
    complete: BoxFuture<'static, ()>,
}

/// Whether one of the broker's Secrets stores a refresh token.
fn keeps_grant(meta: &ObjectMeta) -> bool {
    let role = meta.labels.as_ref().and_then(|labels| labels.get(names::LABEL_ROLE));
    role.is_some_and(|role| role == names::ROLE_GRANT)
}

/// Makes the access to the objects of one namespace; `None` is all namespaces.
type Access<K> = fn(&Client, Option<&str>) -> Api<K>;

/// The settings of one watch.
struct WatchSettings<K, S> {
    /// Returns the API for the objects of one namespace; `None` means all namespaces.
    api: Access<Incoming<K, S>>,
    config: watcher::Config,
    /// Whether the store may pack an object.
    packs: fn(&K) -> bool,
    /// Gets each object before the store has the object.
    arriving: fn(&Context, &K),
    /// Gets each difference after the store has the object.
    seen: fn(&Arc<Context>, Change<K>),
}

/// Prepares the watches, and collects them until [`Watches::run`] starts them.
struct Begin<'a> {
    client: &'a Client,
    /// The command that installs the CRDs.
    install: &'a str,
    /// The watches that have not started.
    pending: Vec<Pending>,
}

impl Begin<'_> {
    /// Prepares the watches of one kind: one store for each scope.
    fn follow<K: Stored, S: Slim>(&mut self, scopes: &[Option<String>], settings: WatchSettings<K, S>) -> Mirror<K> {
        let stores: HashMap<_, _> =
            scopes.iter().map(|scope| (scope.clone(), self.follow_scope(scope.as_deref(), &settings))).collect();
        Mirror::new(stores)
    }

    /// Prepares the watch of one kind and scope.
    fn follow_scope<K: Stored, S: Slim>(&mut self, scope: Option<&str>, settings: &WatchSettings<K, S>) -> Store<K> {
        let mut follower = Follower::<K>::new(settings.packs);
        let store = follower.store();
        let name = match scope {
            Some(namespace) => format!("{} in namespace {namespace}", K::plural(&())),
            None => K::plural(&()).into_owned(),
        };
        let (reported, install) = (name.clone(), self.install.to_owned());
        let (api, mut config) = ((settings.api)(self.client, scope), settings.config.clone());
        let (arriving, seen) = (settings.arriving, settings.seen);
        let follow = async move |context: Arc<Context>| {
            let mut events = watch_events(&api, &config);
            let (mut failing, mut complete) = (false, false);
            while let Some(event) = events.next().await {
                match event {
                    // If the watch lists again after a complete list, double the page: the large objects may be gone.
                    Ok(watcher::Event::Init)
                        if std::mem::take(&mut complete) && config.page_size.is_some_and(|page| page < PAGE) =>
                    {
                        config.page_size = config.page_size.map(|page| (2 * page).min(PAGE));
                        events = watch_events(&api, &config);
                    }
                    Ok(event) => {
                        complete |= matches!(event, watcher::Event::InitDone);
                        failing = failing && matches!(event, watcher::Event::Init);
                        let seen = |change| mapper::isolated_change(&context.metrics, || seen(&context, change));
                        follower.take(event, &|object| arriving(&context, object), &seen);
                    }
                    Err(error) if is_too_long(&error) && config.page_size.is_some_and(|page| page > 1) => {
                        let page = config.page_size.map_or(1, |page| page / 2);
                        tracing::warn!(
                            watch = reported,
                            page,
                            "objects with very large metadata: lists read fewer objects at a time. This finds them: \
                             `kubectl get {} -A -o json | jq -r '.items[].metadata | \"\\(tostring | length) \
                             \\(.namespace) \\(.name)\"' | sort -n | tail`",
                            K::plural(&())
                        );
                        config = config.page_size(page);
                        events = watch_events(&api, &config);
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            match missing_crd::missing::<K>(&error) {
                                Some(crd) => tracing::warn!(
                                    watch = reported,
                                    "watch failed: the CRD {crd} is not installed: retrying. Install it with `{install}`"
                                ),
                                None => tracing::warn!(watch = reported, %error, "watch failed: retrying"),
                            }
                        }
                    }
                }
            }
        };
        let run = Box::new(move |context| follow(context).boxed());
        let filled = store.clone();
        let complete = async move { filled.complete().await };
        self.pending.push(Pending { name, run, complete: complete.boxed() });
        store
    }
}

fn watch_events<W>(api: &Api<W>, config: &watcher::Config) -> BoxStream<'static, watcher::Result<watcher::Event<W>>>
where
    W: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    // This back-off is shorter than kube's (0.8 to 30 s), so that a watch recovers soon after an outage of the API server.
    let backoff = backon::ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times();
    watcher(api.clone(), config.clone()).backoff(watcher::ExponentialBackoff::from(backoff)).boxed()
}
