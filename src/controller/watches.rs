//! The watches: each kind followed into a store that holds no more than is needed.

use std::{collections::HashMap, fmt::Debug, sync::Arc, time::Duration};

use futures::{FutureExt as _, Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;

use super::hub::{Hub, Seen};
use crate::{
    api::{ClusterMailProvider, MailCredential, MailProvider, names},
    reconcile::stores::{Mirror, ProviderObject, Stores, controller_of},
};

/// Keys of an object that nobody needs here and that may hold a secret.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Objects in a page of a list: a start reads them all, and holds each page as text and as a tree at one time. With kube's
/// 500 that is a third of all memory where there are 5,000.
const PAGE: u32 = 100;

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
                move |seen| hub.isolated(|hub| hub.credential(seen)),
            )
        });
        let providers = mirror(&scopes, &mut pending, |scope| {
            let (hub, home) = (hub.clone(), broker_namespace.to_owned());
            reflect(
                api::<DeserializeGuard<MailProvider>>(client, scope),
                watcher::Config::default(),
                unguard,
                move |seen| {
                    hub.isolated(|hub| hub.provider(seen, ProviderObject::Namespaced, &home));
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
                        hub.isolated(|hub| hub.provider(seen, ProviderObject::Cluster, &home));
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
                target,
                move |seen| hub.isolated(|hub| hub.own_secret(seen)),
            )
        });
        let labelled = format!("{}=true", names::LABEL_SOURCE);
        let sources = mirror(&source_scopes, &mut pending, |scope| {
            let hub = hub.clone();
            reflect(
                api::<PartialObjectMeta<Secret>>(client, scope),
                watcher::Config::default().labels(&labelled),
                bare,
                move |seen| hub.isolated(|hub| hub.source(seen)),
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
                        hub.isolated(|hub| hub.namespace(seen, &credentials));
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
        Ok(mut object) => {
            // What kubectl left in many, which has room for eleven.
            object.meta_mut().annotations.take_if(|annotations| annotations.is_empty());
            Some(object)
        }
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

/// Without the labels of a target that names its owner, which says all that they do: thousands may be kept here. Those of
/// a Secret that keeps a refresh token are put right by what is kept here.
fn target(mut secret: PartialObjectMeta<Secret>) -> Option<PartialObjectMeta<Secret>> {
    let owner = controller_of(&secret.metadata);
    if owner.is_some_and(|owner| names::grant_secret(&owner.name) != secret.name_any()) {
        secret.metadata.labels = None;
    }
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
    watcher(api, config.page_size(PAGE)).backoff(watcher::ExponentialBackoff::from(backoff))
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
