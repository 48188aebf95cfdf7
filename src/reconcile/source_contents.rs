//! The version since which each source Secret has its current content. A watch shows only metadata, so each write of a
//! Secret could be a new content. The broker compares digests of the content. So a changed annotation or label ends no
//! back-off.

use std::{collections::HashMap, sync::Arc};

use aws_lc_rs::{hmac, rand};
use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt as _};
use parking_lot::Mutex;

use crate::{
    api::{names, reference::ObjectKey},
    error::describe,
    provider_client::sources::{Opened, SourceReads, is_labelled},
    reconcile::{
        memory_budget::{MemoryBudget, USUAL_SECRET},
        work_queue::WorkQueue,
    },
    stores::Stores,
};

/// Number of remembered Secrets at which the Secrets that no watch shows are forgotten.
const REMEMBERED: usize = 1_024;

/// A digest of a Secret's content. The digest stays in this process, because its key is random.
type Digest = [u8; 32];

/// The digests and versions of source Secrets.
#[derive(Clone)]
pub struct SourceContents(Arc<Shared>);

struct Shared {
    digests: Digests,
    client: Client,
    stores: Stores,
    queue: WorkQueue,
    /// The memory budget for Secrets that the broker reads.
    memory: Arc<MemoryBudget>,
}

/// The digests of source Secrets, under a random key of the process.
struct Digests {
    key: hmac::Key,
    secrets: Mutex<HashMap<ObjectKey, Known>>,
}

/// The known content of one Secret.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    /// The latest known resourceVersion.
    version: String,
    /// The earliest known resourceVersion with the same content.
    since: String,
    /// The digest of the content; `None` while the broker has not read this content.
    digest: Option<Digest>,
    /// Whether a task reads the Secret.
    reading: bool,
}

impl Known {
    fn new(version: String, digest: Option<Digest>) -> Self {
        Self { since: version.clone(), version, digest, reading: false }
    }

    /// Whether the Secret has had a version after `version`. resourceVersions are comparable numbers (KEP-5504).
    fn is_newer_than(&self, version: &str) -> bool {
        match (self.version.parse::<u64>(), version.parse::<u64>()) {
            (Ok(known), Ok(other)) => known > other,
            _ => false,
        }
    }

    /// Records the result of a read. Returns whether the content differs from the known content.
    fn read(&mut self, version: String, digest: Digest) -> bool {
        if self.is_newer_than(&version) {
            return false;
        }
        let same = self.digest.map_or(self.version == version, |known| known == digest);
        if !same {
            self.since.clone_from(&version);
        }
        (self.version, self.digest) = (version, Some(digest));
        !same
    }
}

impl SourceContents {
    /// Creates the value without known Secrets. It reads Secrets through `client`, within `memory`.
    pub fn new(client: Client, stores: Stores, queue: WorkQueue, memory: Arc<MemoryBudget>) -> Self {
        Self(Arc::new(Shared { digests: Digests::new(), client, stores, queue, memory }))
    }

    /// Returns the resourceVersion since which a source Secret has its current content; empty if no watch shows the
    /// Secret. If the content may have changed, a task reads the Secret. Until its end, this function returns the
    /// former version.
    pub(super) fn since(&self, key: &ObjectKey) -> String {
        let Some(shown) = self.shown(key) else { return String::new() };
        let mut secrets = self.0.digests.secrets.lock();
        if !secrets.contains_key(key) && secrets.len() >= REMEMBERED {
            secrets.retain(|key, _| self.shown(key).is_some());
        }
        let known = secrets.entry(key.clone()).or_insert_with(|| Known::new(shown.clone(), None));
        if known.version == shown || known.is_newer_than(&shown) {
            return known.since.clone();
        }
        if known.digest.is_none() {
            // The broker has not used the former content, so there is no content to compare.
            *known = Known { reading: known.reading, ..Known::new(shown, None) };
        } else if !std::mem::replace(&mut known.reading, true) {
            self.clone().read(key.clone());
        }
        known.since.clone()
    }

    /// Reads a source Secret with unknown content: a failed attempt used it before a restart.
    pub(super) fn learn(&self, key: &ObjectKey) {
        if let Some(known) = self.0.digests.secrets.lock().get_mut(key)
            && known.digest.is_none()
            && !std::mem::replace(&mut known.reading, true)
        {
            self.clone().read(key.clone());
        }
    }

    /// Forgets all versions: the API server was restored from a backup, and versions start again at lower numbers.
    pub fn forget_versions(&self) {
        self.0.digests.secrets.lock().clear();
    }

    fn shown(&self, key: &ObjectKey) -> Option<String> {
        self.0.stores.sources.get(&key.0, &key.1)?.resource_version()
    }

    /// Reads a Secret in a task, and records its content. A failed read counts as a new content, so that the broker
    /// misses no change.
    fn read(self, key: ObjectKey) {
        tokio::spawn(async move {
            let reservation = self.reserve(&key.0).await;
            let api: Api<Secret> = Api::namespaced(self.0.client.clone(), &key.0);
            let found = api.get_opt(&key.1).await.map(|found| found.map(Opened));
            match &found {
                Ok(Some(secret)) => self.note(&key, &secret.0),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(namespace = key.0, name = key.1, why = describe(error), "source Secret not read");
                }
            }
            let failed = found.is_err();
            drop((found, reservation));
            if self.0.digests.end(&key, failed, self.shown(&key)) {
                self.enqueue_readers(&key);
            }
        });
    }

    fn enqueue_readers(&self, key: &ObjectKey) {
        self.0.queue.enqueue_readers(key, &self.0.stores.references);
    }
}

impl SourceReads for SourceContents {
    fn reserve<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Box<dyn Send + 'a>> {
        async move { Box::new(self.0.memory.reserve(namespace, USUAL_SECRET).await) as Box<dyn Send + 'a> }.boxed()
    }

    /// Records the content of a source Secret. If the content differs from the known one, enqueues the objects that
    /// refer to the Secret: a reconcile that began before compares with the former content.
    fn note(&self, key: &ObjectKey, secret: &Secret) {
        if self.0.digests.note(key, secret) {
            self.enqueue_readers(key);
        }
    }
}

impl Digests {
    fn new() -> Self {
        let mut key = [0; 32];
        // Without random numbers, TLS does not work either, so the broker reads nothing.
        if rand::fill(&mut key).is_err() {
            tracing::error!("random numbers not available");
        }
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key), secrets: Mutex::default() }
    }

    fn note(&self, key: &ObjectKey, secret: &Secret) -> bool {
        let (version, digest) = (secret.resource_version().unwrap_or_default(), self.digest(secret));
        let mut secrets = self.secrets.lock();
        match secrets.get_mut(key) {
            Some(known) => known.read(version, digest),
            None => {
                // A watch shows a labelled Secret a moment later.
                if is_labelled(secret) {
                    secrets.insert(key.clone(), Known::new(version, Some(digest)));
                }
                false
            }
        }
    }

    /// Ends a read. `failed`: the content may be a new one. Returns whether the broker must enqueue the objects that
    /// refer to the Secret.
    fn end(&self, key: &ObjectKey, failed: bool, shown: Option<String>) -> bool {
        let mut secrets = self.secrets.lock();
        let Some(known) = secrets.get_mut(key) else { return false };
        known.reading = false;
        match shown {
            Some(shown) if failed && known.digest.is_some() => {
                *known = Known::new(shown, None);
                true
            }
            // The Secret changed during the read.
            Some(shown) => known.version != shown && !known.is_newer_than(&shown),
            None => false,
        }
    }

    /// Returns a digest of the parts of a source Secret that the broker uses: its data, its type, and the annotation
    /// with the permitted hosts.
    fn digest(&self, secret: &Secret) -> Digest {
        let mut digest = hmac::Context::with_key(&self.key);
        let mut part = |bytes: Option<&[u8]>| {
            let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
            digest.update(&length.to_be_bytes());
            digest.update(bytes.unwrap_or_default());
        };
        part(secret.type_.as_ref().map(String::as_bytes));
        for label in [names::LABEL_SOURCE, names::LABEL_MANAGED_BY] {
            part(secret.labels().get(label).map(String::as_bytes));
        }
        part(secret.annotations().get(names::ANNOTATION_SOURCE_HOSTS).map(String::as_bytes));
        for (key, value) in secret.data.iter().flatten() {
            part(Some(key.as_bytes()));
            part(Some(&value.0));
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.sign().as_ref());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(version: u64, value: &str, metadata: serde_json::Value) -> Secret {
        let mut secret = json!({"metadata": metadata, "data": {"client-secret": value}, "type": "Opaque"});
        secret["metadata"]["resourceVersion"] = version.to_string().into();
        serde_json::from_value(secret).unwrap()
    }

    #[test]
    fn the_digest_covers_exactly_what_the_broker_uses_of_a_secret() {
        let digests = Digests::new();
        let digest = |value: &str, metadata| digests.digest(&secret(1, value, metadata));
        let plain = digest("YQ==", json!({}));
        assert_eq!(plain, digest("YQ==", json!({"annotations": {"note": "x"}, "labels": {"team": "a"}})));
        let others = [
            digest("Yg==", json!({})),
            digest("YQ==", json!({"annotations": {"mailtoken.dev/source-hosts": "a.example"}})),
            digest("YQ==", json!({"annotations": {"mailtoken.dev/source-hosts": ""}})),
            digest("YQ==", json!({"labels": {"mailtoken.dev/source": "true"}})),
        ];
        assert!(others.iter().all(|other| *other != plain), "{others:?}");
        assert_ne!(plain, Digests::new().digest(&secret(1, "YQ==", json!({}))), "the key is the process's own");
    }

    #[test]
    fn a_version_with_the_same_content_counts_as_the_version_before() {
        let mut known = Known::new("7".to_owned(), Some([1; 32]));
        assert!(!known.read("9".to_owned(), [1; 32]));
        assert_eq!((known.since.as_str(), known.version.as_str()), ("7", "9"));
        assert!(!known.read("8".to_owned(), [2; 32]), "a read that comes late");
        assert!(known.read("10".to_owned(), [2; 32]));
        assert_eq!((known.since.as_str(), known.version.as_str()), ("10", "10"));
    }

    #[test]
    fn a_content_that_was_never_read_equals_none() {
        let mut known = Known::new("7".to_owned(), None);
        assert!(!known.read("7".to_owned(), [1; 32]), "the version that a watch shows");
        let mut known = Known::new("7".to_owned(), None);
        assert!(known.read("8".to_owned(), [1; 32]), "a later version");
        assert_eq!(known.since, "8");
    }
}
