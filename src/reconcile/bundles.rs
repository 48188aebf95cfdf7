//! Follows the ConfigMaps with CA bundles, each by its name. The broker watches the ConfigMaps of providers in use,
//! within the bounds below. It reads the others once a minute.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt as _,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt as _, watcher},
};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    api::{provider_object::ProviderKey, reference::ObjectKey},
    error::describe,
    reconcile::work_queue::WorkQueue,
    stores::reference_index::ReferenceIndex,
};

/// Maximum number of watches. Each watch is a connection to the API server and takes about 40 KB.
const WATCHES: usize = 64;
/// Maximum number of watches in one namespace, so that one tenant cannot use all of them.
const WATCHES_OF_A_NAMESPACE: usize = 8;
/// Interval between two reads of the ConfigMaps without a watch.
const POLL: Duration = Duration::from_secs(60);

/// The versions of the ConfigMaps with CA bundles.
pub struct Bundles {
    client: Client,
    queue: WorkQueue,
    references: Arc<ReferenceIndex>,
    maps: Arc<Mutex<HashMap<ObjectKey, Followed>>>,
    /// Notified when a ConfigMap without a watch is added.
    added: Notify,
}

struct Followed {
    /// The ConfigMap's resourceVersion; empty if it does not exist or cannot be read; `None` before the first read.
    version: Option<String>,
    /// The providers that refer to the ConfigMap.
    readers: Vec<ProviderKey>,
    /// The task of the watch; `None` if the broker reads the ConfigMap once a minute.
    watch: Option<AbortOnDropHandle<()>>,
}

impl Bundles {
    /// Creates a `Bundles` that follows no ConfigMap yet. `Bundles` watches a ConfigMap through `client` if `references` shows that a
    /// credential uses its provider. A change enqueues the providers in `queue`.
    pub fn new(client: Client, queue: WorkQueue, references: Arc<ReferenceIndex>) -> Self {
        Self { client, queue, references, maps: Arc::default(), added: Notify::new() }
    }

    /// Returns the version of a ConfigMap to which `reader` refers. The first call returns `None` and starts to follow
    /// the ConfigMap. The first read then enqueues `reader`.
    pub fn version(&self, reader: &ProviderKey, map: &ObjectKey) -> Option<String> {
        let mut maps = self.maps.lock();
        let watched_already = maps.get(map).is_some_and(|followed| followed.watch.is_some());
        let may_watch = !watched_already && self.references.is_used(reader) && {
            let mut watched = maps.iter().filter(|(_, followed)| followed.watch.is_some()).map(|(map, _)| &map.0);
            let (all, of_this) = watched.try_fold((0, 0), |(all, of_this), namespace| {
                Some((all + 1, of_this + usize::from(*namespace == map.0)))
            })?;
            has_room(all, of_this)
        };
        let followed = maps.entry(map.clone()).or_insert_with(|| {
            if !may_watch {
                self.added.notify_one();
            }
            Followed { version: None, readers: vec![], watch: None }
        });
        if may_watch {
            let (client, queue) = (self.client.clone(), self.queue.clone());
            let task = tokio::spawn(watch(self.maps.clone(), map.clone(), client, queue));
            followed.watch = Some(AbortOnDropHandle::new(task));
        }
        if !followed.readers.contains(reader) {
            followed.readers.push(reader.clone());
        }
        followed.version.clone()
    }

    /// Stops following all ConfigMaps of a provider except `keep`.
    pub fn release(&self, reader: &ProviderKey, keep: Option<&ObjectKey>) {
        self.maps.lock().retain(|map, followed| {
            if Some(map) != keep {
                followed.readers.retain(|other| other != reader);
            }
            !followed.readers.is_empty()
        });
    }

    /// Returns the ConfigMaps without a watch. `all`: all of them; otherwise only those that the broker has not read yet.
    fn unwatched(&self, all: bool) -> Vec<ObjectKey> {
        let maps = self.maps.lock();
        let unwatched = maps.iter().filter(|(_, followed)| followed.watch.is_none());
        unwatched.filter(|(_, followed)| all || followed.version.is_none()).map(|(map, _)| map.clone()).collect()
    }

    /// Reads the ConfigMaps without a watch, one after the other: a new one immediately, all of them once a minute.
    /// Never returns.
    pub async fn poll(&self) {
        let mut rounds = tokio::time::interval(POLL);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let all = tokio::select! {
                _ = rounds.tick() => true,
                () = self.added.notified() => false,
            };
            for map in self.unwatched(all) {
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &map.0);
                let read = api.get_metadata_opt(&map.1).await;
                let version = read.map(|found| found.and_then(|map| map.resource_version()).unwrap_or_default());
                let version = version.map_err(|error| {
                    let why = describe(&error);
                    tracing::warn!(namespace = map.0, name = map.1, why, "ConfigMap of a CA bundle not read");
                });
                note(&self.maps, &map, version.ok(), &self.queue);
            }
        }
    }
}

fn has_room(watches: usize, of_the_namespace: usize) -> bool {
    watches < WATCHES && of_the_namespace < WATCHES_OF_A_NAMESPACE
}

/// Records a version, and enqueues the providers if the version differs. `None`: the broker cannot read the version
/// now, and keeps the last one.
fn note(maps: &Mutex<HashMap<ObjectKey, Followed>>, map: &ObjectKey, version: Option<String>, queue: &WorkQueue) {
    let readers = match maps.lock().get_mut(map) {
        Some(followed) if version.is_some() || followed.version.is_none() => {
            let version = version.unwrap_or_default();
            if followed.version.as_ref() == Some(&version) {
                return;
            }
            followed.version = Some(version);
            followed.readers.clone()
        }
        _ => return,
    };
    readers.into_iter().for_each(|reader| queue.enqueue_provider(reader));
}

async fn watch(maps: Arc<Mutex<HashMap<ObjectKey, Followed>>>, map: ObjectKey, client: Client, queue: WorkQueue) {
    let api: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(client, &map.0);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", map.1));
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut listed = String::new();
    while let Some(event) = events.next().await {
        let version = match event {
            Ok(watcher::Event::Init) => {
                listed = String::new();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed = object.resource_version().unwrap_or_default();
                continue;
            }
            Ok(watcher::Event::InitDone) => Some(std::mem::take(&mut listed)),
            Ok(watcher::Event::Apply(object)) => Some(object.resource_version().unwrap_or_default()),
            Ok(watcher::Event::Delete(_)) => Some(String::new()),
            Err(error) => {
                tracing::warn!(namespace = map.0, name = map.1, %error, "watch failed for the ConfigMap of a CA bundle: retrying");
                None
            }
        };
        note(&maps, &map, version, &queue);
    }
}

#[cfg(test)]
mod tests {
    use crate::api::credential::ProviderKind;

    use super::*;

    #[test]
    fn a_namespace_does_not_take_the_watches_of_the_others() {
        assert!(has_room(0, 0) && has_room(WATCHES - 1, WATCHES_OF_A_NAMESPACE - 1));
        assert!(!has_room(WATCHES_OF_A_NAMESPACE, WATCHES_OF_A_NAMESPACE));
        assert!(!has_room(WATCHES, 0));
    }

    #[test]
    fn only_another_version_enqueues_the_readers() {
        let queue = WorkQueue::new(1);
        let key: ObjectKey = ("shop".to_owned(), "ca".to_owned());
        let reader =
            ProviderKey { kind: ProviderKind::MailProvider, namespace: "shop".to_owned(), name: "m365".to_owned() };
        let followed = Followed { version: None, readers: vec![reader.clone()], watch: None };
        let maps = Mutex::new(HashMap::from([(key.clone(), followed)]));
        let noted = |version: Option<&str>| {
            note(&maps, &key, version.map(str::to_owned), &queue);
            queue.next_provider()
        };
        assert_eq!(noted(None), Some(reader.clone()), "the first look found nothing");
        assert_eq!(noted(Some("")), None);
        assert_eq!(noted(Some("7")), Some(reader.clone()));
        assert_eq!(noted(Some("7")), None);
        assert_eq!(noted(None), None, "the API server is away for a moment");
        assert_eq!(noted(Some("8")), Some(reader));
    }
}
