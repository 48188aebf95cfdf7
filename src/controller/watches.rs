//! The watches: each kind followed into a store that holds no more than is needed.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Debug,
    time::Duration,
};

use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api, Client, Resource,
    core::{DeserializeGuard, ObjectMeta, PartialObjectMeta, error_boundary::InvalidObject},
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;

use crate::{
    api::{
        ClusterMailProvider, MailCredential, MailProvider, credential::ProviderKind, names,
        provider_object::ProviderObject,
    },
    controller::{
        follow::{Change, Follower, Read},
        mapper::Mapper,
        missing_crd,
        pages::Pages,
    },
    health::Health,
    stores::{
        Mirror, Stores, slim,
        store::{Store, Stored},
    },
};

/// How often a start that waits for its watches logs which have shown nothing.
const REMIND: Duration = Duration::from_secs(30);
/// How many of them it names.
const NAMED: usize = 20;
/// Longest description of why an object does not parse, in characters.
const ERROR_MAX: usize = 300;

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
    pending: Vec<Pending>,
    /// The command that installs the CRDs.
    install: String,
}

impl Watches {
    /// Starts all watches. `cluster`: cluster-scoped objects may be read.
    pub async fn start(
        client: &Client,
        namespaces: &[String],
        broker_namespace: &str,
        cluster: bool,
        mapper: &Mapper,
        health: &Health,
    ) -> Self {
        let mut pending = vec![];
        let install = missing_crd::install(broker_namespace);
        let begin = Begin { health, install: &install };
        let scopes = scopes(namespaces);
        // A ClusterMailProvider's Secrets are in the broker's namespace, which need not be among those watched.
        let mut source_scopes = scopes.clone();
        if cluster && !namespaces.is_empty() && !namespaces.contains(&broker_namespace.to_owned()) {
            source_scopes.push(Some(broker_namespace.to_owned()));
        }
        let counted = scopes.iter().map(|scope| api::<MailCredential>(client, scope.as_deref()));
        let pages = Pages::for_existing(counted).await;
        let objects = || watcher::Config::default().page_size(pages.objects);
        let secrets = |label: &str| watcher::Config::default().page_size(pages.secrets).labels(label);
        let credentials = mirror(&scopes, &mut pending, |scope| {
            let (mapper, cache) = (mapper.clone(), mapper.cache.clone());
            Follow {
                api: api::<DeserializeGuard<MailCredential>>(client, scope),
                config: objects(),
                scope: scope.map(str::to_owned),
                read: |object| unguard(object, slim::credential),
                packs: |_| true,
            }
            .start(
                &begin,
                move |credential| cache.begin(credential.metadata.uid.as_deref().unwrap_or_default()),
                move |seen| mapper.isolated(|mapper| mapper.credential(seen)),
            )
        });
        let providers = mirror(&scopes, &mut pending, |scope| {
            let (mapper, home) = (mapper.clone(), broker_namespace.to_owned());
            Follow {
                api: api::<DeserializeGuard<MailProvider>>(client, scope),
                config: objects(),
                scope: scope.map(str::to_owned),
                read: |object| unguard(object, slim::provider),
                packs: |_| false,
            }
            .start(
                &begin,
                |_| {},
                move |seen| {
                    mapper.isolated(|mapper| {
                        mapper.provider(seen, ProviderKind::MailProvider, ProviderObject::Namespaced, &home)
                    });
                },
            )
        });
        let cluster_providers = cluster.then(|| {
            mirror(&[None], &mut pending, |_| {
                let (mapper, home) = (mapper.clone(), broker_namespace.to_owned());
                Follow {
                    api: Api::<DeserializeGuard<ClusterMailProvider>>::all(client.clone()),
                    config: objects(),
                    scope: None,
                    read: |object| unguard(object, slim::provider),
                    packs: |_| false,
                }
                .start(
                    &begin,
                    |_| {},
                    move |seen| {
                        mapper.isolated(|mapper| {
                            mapper.provider(seen, ProviderKind::ClusterMailProvider, ProviderObject::Cluster, &home)
                        });
                    },
                )
            })
        });
        let own = format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGER);
        let own_secrets = mirror(&scopes, &mut pending, |scope| {
            let mapper = mapper.clone();
            Follow {
                api: api::<PartialObjectMeta<Secret>>(client, scope),
                config: secrets(&own),
                scope: scope.map(str::to_owned),
                read: |object| bare(object, slim::own_secret),
                // Those of grants are compared with each new seed.
                packs: |secret| !keeps_grant(&secret.metadata),
            }
            .start(&begin, |_| {}, move |seen| mapper.isolated(|mapper| mapper.own_secret(seen)))
        });
        let labelled = format!("{}=true", names::LABEL_SOURCE);
        let sources = mirror(&source_scopes, &mut pending, |scope| {
            let mapper = mapper.clone();
            Follow {
                api: api::<PartialObjectMeta<Secret>>(client, scope),
                config: secrets(&labelled),
                scope: scope.map(str::to_owned),
                read: |object| bare(object, slim::source),
                packs: |_| true,
            }
            .start(&begin, |_| {}, move |seen| mapper.isolated(|mapper| mapper.source(seen)))
        });
        let namespaces = cluster.then(|| {
            mirror(&[None], &mut pending, |_| {
                let mapper = mapper.clone();
                Follow {
                    api: Api::<PartialObjectMeta<Namespace>>::all(client.clone()),
                    config: objects(),
                    scope: None,
                    read: |object| bare(object, slim::namespace),
                    packs: |_| false,
                }
                .start(&begin, |_| {}, move |seen| mapper.isolated(|mapper| mapper.namespace(seen)))
            })
        });
        let stores = Stores {
            credentials,
            providers,
            cluster_providers,
            namespaces,
            own_secrets,
            sources,
            references: mapper.references.clone(),
            unreadable: mapper.unreadable.clone(),
            broker_namespace: broker_namespace.to_owned(),
        };
        Self { stores, pending, install }
    }

    /// What the watches show.
    pub fn into_stores(self) -> Stores {
        self.stores
    }

    /// Waits until every watch has shown what there is, and logs now and then which have not.
    pub async fn ready(&mut self) {
        let (mut names, mut complete) = (BTreeSet::new(), FuturesUnordered::new());
        for Pending { name, complete: future } in self.pending.drain(..) {
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

/// What all watches need to begin.
struct Begin<'a> {
    health: &'a Health,
    /// The command that installs the CRDs.
    install: &'a str,
}

/// A store that is not complete yet.
struct Pending {
    /// What is watched, in words.
    name: String,
    /// Done when the store is complete.
    complete: BoxFuture<'static, ()>,
}

/// The stores of one kind, one for each scope.
fn mirror<K>(
    scopes: &[Option<String>],
    pending: &mut Vec<Pending>,
    mut start: impl FnMut(Option<&str>) -> (Store<K>, Pending),
) -> Mirror<K>
where
    K: Stored,
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

/// Reads an object, with no more of its metadata than `slim` leaves.
fn unguard<K: Resource<DynamicType = ()>>(guarded: DeserializeGuard<K>, slim: fn(&mut ObjectMeta)) -> Read<K> {
    match guarded.0 {
        Ok(mut object) => {
            slim(object.meta_mut());
            Read::Object(object)
        }
        Err(InvalidObject { mut metadata, error }) => {
            slim(&mut metadata);
            Read::Unreadable(Box::new(metadata), error.chars().take(ERROR_MAX).collect())
        }
    }
}

/// The same of an object of which only metadata is watched.
fn bare<K>(mut object: PartialObjectMeta<K>, slim: fn(&mut ObjectMeta)) -> Read<PartialObjectMeta<K>>
where
    PartialObjectMeta<K>: Resource<DynamicType = ()>,
{
    slim(&mut object.metadata);
    Read::Object(object)
}

/// Whether a Secret of the broker's keeps a refresh token.
fn keeps_grant(meta: &ObjectMeta) -> bool {
    let role = meta.labels.as_ref().and_then(|labels| labels.get(names::LABEL_ROLE));
    role.is_some_and(|role| role == names::ROLE_GRANT)
}

/// How one kind is followed.
struct Follow<W, K> {
    api: Api<W>,
    config: watcher::Config,
    /// The namespace that is watched; `None` is all.
    scope: Option<String>,
    /// Reads an object as the watch delivered it.
    read: fn(W) -> Read<K>,
    /// Whether the store may pack an object.
    packs: fn(&K) -> bool,
}

impl<W, K> Follow<W, K>
where
    W: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    K: Stored,
{
    /// Begins, in a task of its own. `arriving` gets each object before the store has it, `seen` each difference after that.
    fn start(
        self,
        begin: &Begin<'_>,
        arriving: impl Fn(&K) + Send + 'static,
        seen: impl Fn(Change<K>) + Send + 'static,
    ) -> (Store<K>, Pending) {
        let Self { api, config, scope, read, packs } = self;
        let mut follower = Follower::<K>::new(packs);
        let store = follower.store();
        let name = match &scope {
            Some(namespace) => format!("{} in namespace {namespace}", K::plural(&())),
            None => K::plural(&()).into_owned(),
        };
        let (reported, install) = (name.clone(), begin.install.to_owned());
        begin.health.supervise(format!("watch of {name}"), async move {
            let events = watch_events(api, config);
            let mut events = std::pin::pin!(events);
            let mut failing = false;
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        failing = failing && matches!(event, watcher::Event::Init);
                        follower.take(convert(event, read), &arriving, &seen);
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
        });
        let complete = store.clone();
        let complete = async move { complete.complete().await };
        (store, Pending { name, complete: complete.boxed() })
    }
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

fn convert<W, K>(event: watcher::Event<W>, read: fn(W) -> Read<K>) -> watcher::Event<Read<K>> {
    match event {
        watcher::Event::Apply(object) => watcher::Event::Apply(read(object)),
        watcher::Event::InitApply(object) => watcher::Event::InitApply(read(object)),
        watcher::Event::Delete(object) => watcher::Event::Delete(read(object)),
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitDone => watcher::Event::InitDone,
    }
}
