//! Watches the ConfigMaps that hold CA bundles: each by its name, never all of them.

use std::collections::HashMap;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt as _,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt as _, watcher},
};
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Context, Waker,
    stores::{Key, ProviderKey},
};

/// The watches, by ConfigMap.
#[derive(Default)]
pub struct Bundles(std::sync::Arc<Mutex<HashMap<Key, Watch>>>);

struct Watch {
    /// The ConfigMap's resourceVersion; empty if it does not exist or cannot be seen; `None` before the first look.
    version: Option<String>,
    /// The providers that refer to it.
    readers: Vec<ProviderKey>,
    /// The task that watches.
    _task: AbortOnDropHandle<()>,
}

impl Bundles {
    /// The version of a ConfigMap that `reader` refers to. The first call begins to watch it and tells `None`; the
    /// first look wakes the reader.
    pub fn version(&self, reader: &ProviderKey, map: &Key, context: &Context) -> Option<String> {
        let mut watches = self.0.lock();
        let watch = watches.entry(map.clone()).or_insert_with(|| Watch {
            version: None,
            readers: vec![],
            _task: AbortOnDropHandle::new(tokio::spawn(watch(
                self.0.clone(),
                map.clone(),
                context.client.clone(),
                context.waker.clone(),
            ))),
        });
        if !watch.readers.contains(reader) {
            watch.readers.push(reader.clone());
        }
        watch.version.clone()
    }

    /// Ends the watches that a provider no longer needs: all but that of `keep`.
    pub fn release(&self, reader: &ProviderKey, keep: Option<&Key>) {
        self.0.lock().retain(|map, watch| {
            if Some(map) != keep {
                watch.readers.retain(|other| other != reader);
            }
            !watch.readers.is_empty()
        });
    }
}

async fn watch(watches: std::sync::Arc<Mutex<HashMap<Key, Watch>>>, map: Key, client: kube::Client, waker: Waker) {
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
            Ok(watcher::Event::InitDone) => std::mem::take(&mut listed),
            Ok(watcher::Event::Apply(object)) => object.resource_version().unwrap_or_default(),
            Ok(watcher::Event::Delete(_)) => String::new(),
            Err(error) => {
                tracing::warn!(namespace = map.0, name = map.1, %error, "watching the ConfigMap of a CA bundle failed");
                // What was seen before still stands: an API server that is away for a moment changes no provider.
                match watches.lock().get(&map).and_then(|watch| watch.version.clone()) {
                    Some(_) => continue,
                    None => String::new(),
                }
            }
        };
        let readers = match watches.lock().get_mut(&map) {
            Some(watch) if watch.version.as_ref() != Some(&version) => {
                watch.version = Some(version);
                watch.readers.clone()
            }
            _ => continue,
        };
        readers.into_iter().for_each(|reader| waker.provider(reader));
    }
}
