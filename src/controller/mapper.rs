//! Maps changes in the stores to the objects to enqueue: the object itself, and the objects that refer to it. Evicts
//! deleted objects from the caches.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{Resource, ResourceExt as _, core::PartialObjectMeta};

use crate::{
    api::{
        MailCredential,
        credential::{DeletionPolicy, ProviderKind},
        provider_object::{ProviderKey, ProviderObject},
        reference::{ObjectKey, key},
    },
    controller::follow::{Change, key_of},
    error::PANIC,
    fail_point,
    metrics::Metrics,
    policy::{observed::target_name, secret_metadata::credential_of, unreadable::ObjectKind},
    reconcile::{act::activity::Activity, context::Context, custody::persist_orphan},
};

/// Isolates a panic over one object: its watch continues with the others.
pub(super) fn isolated_change(metrics: &Metrics, work: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        metrics.reconcile_error(PANIC);
    }
}

pub(super) fn credential(context: &Arc<Context>, seen: Change<MailCredential>) {
    let (references, unreadable) = (&context.stores.references, &context.stores.unreadable);
    match seen {
        Change::Applied { object: credential, before } => {
            let key = key(&*credential);
            fail_point::panic_at("seen", &key.1);
            unreadable.forget(ObjectKind::Credential, &key);
            context.cache.shown(&credential);
            if references.credential(&credential) {
                context.queue.enqueue_provider(ProviderKey::of(&credential));
            }
            if let Some(before) = before.filter(|before| target_name(before) != target_name(&credential)) {
                // A younger credential with the former target may take over the target now.
                enqueue_target(context, &(key.0.clone(), target_name(&before)));
            }
            context.queue.enqueue_credential(key);
        }
        Change::Deleted(credential) => {
            let key = key(&*credential);
            references.forget_credential(&key);
            let uid = credential.uid().unwrap_or_default();
            evict_credential(context, &uid, Some(credential.clone()));
            // A younger credential with the same target may take over the target now.
            enqueue_target(context, &(key.0, target_name(&credential)));
        }
        Change::Unreadable { meta, error } => {
            let key = key_of(&meta);
            context.cache.begin(meta.uid.as_deref().unwrap_or_default());
            references.forget_credential(&key);
            unreadable.note(ObjectKind::Credential, key, &meta, error);
        }
        Change::Lost { key, uid } => {
            unreadable.forget(ObjectKind::Credential, &key);
            evict_credential(context, &uid, None);
        }
        Change::Rewound => forget_writes(context),
    }
}

/// Evicts a deleted credential. `object` is `None` if it did not parse.
fn evict_credential(context: &Arc<Context>, uid: &str, object: Option<Arc<MailCredential>>) {
    context.requests.withdraw(uid);
    // With the policy Delete, Kubernetes deletes the grant Secret with its credential.
    let retained = object.filter(|deleted| deleted.spec.secret.deletion_policy == DeletionPolicy::Retain);
    let pending = context.cache.evict(uid, retained.is_some());
    if let Some(credential) = retained.filter(|_| pending) {
        persist_orphan(credential, context.clone());
    }
}

/// Forgets the broker's last writes: the API server was restored from a backup, so they may be lost.
fn forget_writes(context: &Context) {
    tracing::warn!(
        "resourceVersions decreased: record of own writes cleared (was the API server restored from a backup?)"
    );
    context.cache.forget_writes();
    context.providers.forget_writes();
}

pub(super) fn provider<K: Resource<DynamicType = ()>>(
    context: &Context,
    seen: Change<K>,
    kind: ProviderKind,
    object: impl Fn(Arc<K>) -> ProviderObject,
) {
    let unreadable = &context.stores.unreadable;
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
            unreadable.forget(ObjectKind::Provider(kind), &(key.namespace.clone(), key.name.clone()));
            if unchanged {
                context.queue.enqueue_provider(key);
                return;
            }
            let home = context.stores.home(&key).to_owned();
            context.stores.references.provider(key.clone(), &home, provider.spec());
            context.queue.enqueue_with_credentials(key, &context.stores.references);
        }
        Change::Deleted(provider) => provider_gone(context, object(provider).key()),
        Change::Unreadable { meta, error } => {
            let place = key_of(&meta);
            unreadable.note(ObjectKind::Provider(kind), place.clone(), &meta, error);
            provider_gone(context, key(place));
        }
        Change::Lost { key: place, .. } => {
            unreadable.forget(ObjectKind::Provider(kind), &place);
            provider_gone(context, key(place));
        }
        Change::Rewound => forget_writes(context),
    }
}

fn provider_gone(context: &Context, key: ProviderKey) {
    context.stores.references.forget_provider(key.clone());
    context.requests.admission.withdraw(&Activity::Discovery(key.clone().into()));
    context.providers.forget(&key);
    context.providers.bundles.release(&key, None);
    // The credentials must report the missing provider. A new provider may already have the same name.
    context.queue.enqueue_with_credentials(key, &context.stores.references);
}

pub(super) fn own_secret(context: &Context, seen: Change<PartialObjectMeta<Secret>>) {
    let secret = match &seen {
        Change::Applied { object, .. } | Change::Deleted(object) => object,
        Change::Rewound => return forget_writes(context),
        // Metadata of a known form always parses.
        Change::Unreadable { .. } | Change::Lost { .. } => return,
    };
    let found = key(&**secret);
    let credential = credential_of(&secret.metadata).map(|name| (found.0.clone(), name));
    let is_gone = matches!(seen, Change::Deleted(_));
    let owner = credential.clone().map(|(_, name)| name).filter(|_| !is_gone);
    context.stores.references.own_secret(found.clone(), owner);
    if is_gone {
        evict_secret(context, &secret.uid().unwrap_or_default(), &found, credential.as_ref());
    }
    if let Some(credential) = credential {
        context.queue.enqueue_credential(credential);
    }
    enqueue_target(context, &found);
}

/// Evicts a deleted Secret of the broker. The name of `credential` may be truncated.
fn evict_secret(context: &Context, secret: &str, found: &ObjectKey, credential: Option<&ObjectKey>) {
    // Also search by the target's name: a label holds at most 63 characters of the credential's name.
    for (namespace, name) in context.stores.references.by_target(found).iter().chain(credential) {
        let Some(credential) = context.stores.credentials.get(namespace, name) else { continue };
        context.cache.with(credential.metadata.uid.as_deref().unwrap_or_default(), |entry| {
            for known in [&mut entry.object.target, &mut entry.custody.grant] {
                known.take_if(|meta| meta.uid.as_deref() == Some(secret));
            }
        });
    }
}

pub(super) fn source(context: &Context, seen: Change<PartialObjectMeta<Secret>>) {
    let (Change::Applied { object: secret, .. } | Change::Deleted(secret)) = seen else { return };
    context.queue.enqueue_readers(&key(&*secret), &context.stores.references);
}

pub(super) fn namespace(context: &Context, seen: Change<PartialObjectMeta<Namespace>>) {
    let Change::Applied { object: namespace, before } = seen else { return };
    if before.is_none_or(|before| before.metadata.labels != namespace.metadata.labels) {
        context.queue.enqueue_credentials(context.stores.references.by_namespace(&namespace.name_any()));
    }
}

fn enqueue_target(context: &Context, target: &ObjectKey) {
    context.queue.enqueue_credentials(context.stores.references.by_target(target));
}
