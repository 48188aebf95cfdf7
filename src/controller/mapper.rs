//! Maps changes in the stores to the objects to enqueue: the object itself, and the objects that refer to it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{Resource, ResourceExt as _, core::PartialObjectMeta};
use tokio::sync::mpsc;

use crate::{
    api::{
        MailCredential,
        credential::{DeletionPolicy, ProviderKind},
        provider_object::{ProviderKey, ProviderObject},
        reference::{ObjectKey, key},
    },
    controller::follow::Change,
    error::PANIC,
    fail_point,
    metrics::Metrics,
    policy::{observed::target_name, secret_metadata::credential_of, unreadable::ObjectKind},
    reconcile::{
        act::activity::Activity, context::Context, credential_cache::CredentialCache, custody::persist_orphan,
        work_queue::WorkQueue,
    },
    stores::{reference_index::ReferenceIndex, unreadable::Unreadable},
};

/// Receives the changes of all watches, and enqueues objects.
#[derive(Clone)]
pub struct Mapper {
    /// The references between objects.
    pub references: Arc<ReferenceIndex>,
    /// The states of existing credentials.
    pub cache: Arc<CredentialCache>,
    /// The objects that do not parse.
    pub unreadable: Arc<Unreadable>,
    /// Enqueues the objects that a change concerns.
    pub queue: WorkQueue,
    /// Sends the objects to evict from the caches.
    pub evictions: mpsc::UnboundedSender<Eviction>,
    /// Counts panics caused by single objects.
    pub metrics: Arc<Metrics>,
    /// The namespace of the objects that a ClusterMailProvider refers to.
    pub broker_namespace: String,
}

/// An object to evict from the caches.
pub enum Eviction {
    /// A deleted credential.
    Credential {
        /// The uid of the credential.
        uid: String,
        /// The deleted object; `None` if it did not parse.
        object: Option<Arc<MailCredential>>,
    },
    /// A deleted Secret of the broker.
    Secret {
        /// The namespace and the name of the Secret.
        key: ObjectKey,
        /// The uid of the Secret.
        uid: String,
        /// The credential of the Secret. The name may be truncated.
        credential: Option<String>,
    },
    /// A deleted provider.
    Provider(ProviderKey),
    /// The API server was restored from a backup, so the broker's last writes may be lost.
    Writes,
}

impl Mapper {
    /// Isolates a panic over one object: its watch continues with the others.
    pub(super) fn isolated(&self, work: impl FnOnce(&Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.metrics.reconcile_error(PANIC);
        }
    }

    pub(super) fn credential(&self, seen: Change<MailCredential>) {
        match seen {
            Change::Applied { object: credential, before } => {
                let key = key(&*credential);
                fail_point::panic_at("seen", &key.1);
                self.unreadable.forget(ObjectKind::Credential, &key);
                self.cache.shown(&credential);
                if self.references.credential(&credential) {
                    self.queue.enqueue_provider(ProviderKey::of(&credential));
                }
                if let Some(before) = before.filter(|before| target_name(before) != target_name(&credential)) {
                    // A younger credential with the former target may take over the target now.
                    self.enqueue_target(&(key.0.clone(), target_name(&before)));
                }
                self.queue.enqueue_credential(key);
            }
            Change::Deleted(credential) => {
                let key = key(&*credential);
                self.references.forget_credential(&key);
                let uid = credential.uid().unwrap_or_default();
                self.evict(Eviction::Credential { uid, object: Some(credential.clone()) });
                // A younger credential with the same target may take over the target now.
                self.enqueue_target(&(key.0, target_name(&credential)));
            }
            Change::Unreadable { meta, error } => {
                let key = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
                self.cache.begin(meta.uid.as_deref().unwrap_or_default());
                self.references.forget_credential(&key);
                self.unreadable.note(ObjectKind::Credential, key, &meta, error);
            }
            Change::Lost { key, uid } => {
                self.unreadable.forget(ObjectKind::Credential, &key);
                self.evict(Eviction::Credential { uid, object: None });
            }
            Change::Rewound => self.evict(Eviction::Writes),
        }
    }

    pub(super) fn provider<K: Resource<DynamicType = ()>>(
        &self,
        seen: Change<K>,
        kind: ProviderKind,
        object: impl Fn(Arc<K>) -> ProviderObject,
    ) {
        let key = |(namespace, name): ObjectKey| ProviderKey { kind, namespace, name };
        match seen {
            Change::Applied { object: provider, before } => {
                // The broker itself writes the status. The provider's reconcile enqueues the credentials if necessary.
                let unchanged = before.is_some_and(|before| {
                    let (before, after) = (before.meta(), provider.meta());
                    (before.generation, &before.deletion_timestamp) == (after.generation, &after.deletion_timestamp)
                });
                let provider = object(provider);
                let key = provider.key();
                self.unreadable.forget(ObjectKind::Provider(kind), &(key.namespace.clone(), key.name.clone()));
                if unchanged {
                    self.queue.enqueue_provider(key);
                    return;
                }
                let home = match kind {
                    ProviderKind::MailProvider => key.namespace.clone(),
                    ProviderKind::ClusterMailProvider => self.broker_namespace.clone(),
                };
                self.references.provider(key.clone(), &home, provider.spec());
                self.enqueue_provider_and_credentials(key);
            }
            Change::Deleted(provider) => self.provider_gone(object(provider).key()),
            Change::Unreadable { meta, error } => {
                let place = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
                self.unreadable.note(ObjectKind::Provider(kind), place.clone(), &meta, error);
                self.provider_gone(key(place));
            }
            Change::Lost { key: place, .. } => {
                self.unreadable.forget(ObjectKind::Provider(kind), &place);
                self.provider_gone(key(place));
            }
            Change::Rewound => self.evict(Eviction::Writes),
        }
    }

    fn provider_gone(&self, key: ProviderKey) {
        self.references.forget_provider(key.clone());
        self.evict(Eviction::Provider(key.clone()));
        self.references.by_provider(&key).into_iter().for_each(|credential| self.queue.enqueue_credential(credential));
    }

    pub(super) fn own_secret(&self, seen: Change<PartialObjectMeta<Secret>>) {
        let secret = match &seen {
            Change::Applied { object, .. } | Change::Deleted(object) => object,
            Change::Rewound => return self.evict(Eviction::Writes),
            // Metadata of a known form always parses.
            Change::Unreadable { .. } | Change::Lost { .. } => return,
        };
        let (namespace, name) = key(&**secret);
        let credential = credential_of(&secret.metadata);
        let is_gone = matches!(seen, Change::Deleted(_));
        self.references.own_secret((namespace.clone(), name.clone()), credential.clone().filter(|_| !is_gone));
        if is_gone {
            self.evict(Eviction::Secret {
                key: (namespace.clone(), name.clone()),
                uid: secret.uid().unwrap_or_default(),
                credential: credential.clone(),
            });
        }
        if let Some(credential) = credential {
            self.queue.enqueue_credential((namespace.clone(), credential));
        }
        self.enqueue_target(&(namespace, name));
    }

    pub(super) fn source(&self, seen: Change<PartialObjectMeta<Secret>>) {
        let (Change::Applied { object: secret, .. } | Change::Deleted(secret)) = seen else { return };
        let key = key(&*secret);
        self.references
            .by_secret(&key)
            .into_iter()
            .for_each(|provider| self.enqueue_provider_and_credentials(provider));
        self.references
            .credentials_by_secret(&key)
            .into_iter()
            .for_each(|credential| self.queue.enqueue_credential(credential));
    }

    pub(super) fn namespace(&self, seen: Change<PartialObjectMeta<Namespace>>) {
        let Change::Applied { object: namespace, before } = seen else { return };
        if before.is_some_and(|before| before.metadata.labels == namespace.metadata.labels) {
            return;
        }
        let name = namespace.name_any();
        self.references
            .by_namespace(&name)
            .into_iter()
            .for_each(|credential| self.queue.enqueue_credential(credential));
    }

    fn enqueue_target(&self, target: &ObjectKey) {
        self.references.by_target(target).into_iter().for_each(|credential| self.queue.enqueue_credential(credential));
    }

    /// Enqueues a provider and its credentials, because a change ends their wait.
    fn enqueue_provider_and_credentials(&self, key: ProviderKey) {
        let credentials = self.references.by_provider(&key);
        self.queue.enqueue_provider(key);
        credentials.into_iter().for_each(|credential| self.queue.enqueue_credential(credential));
    }

    fn evict(&self, eviction: Eviction) {
        if self.evictions.send(eviction).is_err() {
            tracing::debug!("eviction dropped: the broker stops");
        }
    }
}

/// Evicts the objects that the mapper reports as deleted. Never returns.
pub async fn evict_all(mut evictions: mpsc::UnboundedReceiver<Eviction>, context: Arc<Context>) {
    while let Some(eviction) = evictions.recv().await {
        // Isolate a panic over one object: evict the others nevertheless.
        if catch_unwind(AssertUnwindSafe(|| evict_one(eviction, &context))).is_err() {
            context.metrics.reconcile_error(PANIC);
        }
    }
}

fn evict_one(eviction: Eviction, context: &Arc<Context>) {
    match eviction {
        Eviction::Credential { uid, object } => {
            context.requests.withdraw(&uid);
            // With the policy Delete, Kubernetes deletes the grant Secret with its credential.
            let retained = object.filter(|deleted| deleted.spec.secret.deletion_policy == DeletionPolicy::Retain);
            let pending = context.cache.evict(&uid, retained.is_some());
            if let Some(credential) = retained.filter(|_| pending) {
                persist_orphan(credential, context.clone());
            }
        }
        Eviction::Secret { key, uid: secret, credential } => {
            // Also search by the target's name: a label holds at most 63 characters of the credential's name.
            let made_for = credential.map(|name| (key.0.clone(), name));
            for (namespace, name) in context.stores.references.by_target(&key).into_iter().chain(made_for) {
                let uid = context.stores.credentials.get(&namespace, &name).and_then(|credential| credential.uid());
                let Some(uid) = uid else { continue };
                context.cache.with(&uid, |entry| {
                    for known in [&mut entry.object.target, &mut entry.custody.grant] {
                        known.take_if(|meta| meta.uid.as_ref() == Some(&secret));
                    }
                });
                context.queue.enqueue_credential((namespace, name));
            }
        }
        Eviction::Provider(key) => {
            context.requests.admission.withdraw(&Activity::Discovery(key.clone().into()));
            context.providers.forget(&key);
            context.providers.bundles.release(&key, None);
            // Another provider may have the same name now.
            context.queue.enqueue_provider(key);
        }
        Eviction::Writes => {
            tracing::warn!(
                "resourceVersions decreased: record of own writes cleared (was the API server restored from a backup?)"
            );
            context.cache.forget_writes();
            context.providers.forget_writes();
        }
    }
}
