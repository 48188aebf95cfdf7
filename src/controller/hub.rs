//! Whom an event wakes: the object itself, and those that depend on it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{Resource, ResourceExt as _, core::PartialObjectMeta};
use tokio::sync::mpsc;

use super::key;
use crate::{
    api::{MailCredential, credential::ProviderKind},
    error::PANIC,
    fail_point,
    metrics::Metrics,
    policy::observed::target_name,
    reconcile::{
        Context, Waker,
        stores::{Key, Links, Mirror, ProviderKey, ProviderObject, credential_of},
    },
};

/// An event of a watch, for what depends on its object.
pub(super) enum Seen<K> {
    /// The object is there, new or changed.
    There(Arc<K>),
    /// The object is gone.
    Gone(Arc<K>),
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
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// Something that the memory has to forget.
pub enum Gone {
    /// A credential, by uid.
    Credential(String),
    /// A Secret of ours.
    Secret {
        /// Its namespace and name.
        key: Key,
        /// Its uid.
        uid: String,
        /// The credential that it was made for; its name may be cut.
        credential: Option<String>,
    },
    /// A provider.
    Provider(ProviderKey),
}

impl Hub {
    /// A panic over one object is isolated: its watch goes on with the others.
    pub(super) fn isolated(&self, work: impl FnOnce(&Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.metrics.reconcile_error(PANIC);
        }
    }

    pub(super) fn credential(&self, seen: Seen<MailCredential>) {
        match seen {
            Seen::There(credential) => {
                fail_point::panic_at("seen", &credential.name_any());
                if self.links.credential(&credential) {
                    self.waker.provider(ProviderKey::of(&credential));
                }
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

    pub(super) fn provider<K: Resource<DynamicType = ()>>(
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

    pub(super) fn own_secret(&self, seen: Seen<PartialObjectMeta<Secret>>) {
        let (Seen::There(secret) | Seen::Gone(secret)) = &seen;
        let (namespace, name) = key(&**secret);
        if matches!(seen, Seen::Gone(_)) {
            self.tell_gone(Gone::Secret {
                key: (namespace.clone(), name.clone()),
                uid: secret.uid().unwrap_or_default(),
                credential: credential_of(&secret.metadata),
            });
        }
        if let Some(credential) = credential_of(&secret.metadata) {
            self.waker.credential((namespace.clone(), credential));
        }
        self.wake_target(&(namespace, name));
    }

    pub(super) fn source(&self, seen: Seen<PartialObjectMeta<Secret>>) {
        let (Seen::There(secret) | Seen::Gone(secret)) = seen;
        let key = key(&*secret);
        self.links.by_secret(&key).into_iter().for_each(|provider| self.wake_provider(provider));
        self.links.credentials_by_secret(&key).into_iter().for_each(|credential| self.waker.credential(credential));
    }

    pub(super) fn namespace(&self, seen: Seen<PartialObjectMeta<Namespace>>, credentials: &Mirror<MailCredential>) {
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

/// Lets the memory forget what is gone.
pub async fn forget(mut gone: mpsc::UnboundedReceiver<Gone>, context: Arc<Context>) {
    while let Some(gone) = gone.recv().await {
        match gone {
            Gone::Credential(uid) => context.memory.forget(&uid),
            Gone::Secret { key, uid: secret, credential } => {
                // By the target's name too: a label may hold the credential's only cut.
                let made_for = credential.map(|name| (key.0.clone(), name));
                for (namespace, name) in context.links.by_target(&key).into_iter().chain(made_for) {
                    let uid = context.stores.credentials.get(&namespace, &name).and_then(|credential| credential.uid());
                    let Some(uid) = uid else { continue };
                    context.memory.with(&uid, |entry| {
                        for known in [&mut entry.target, &mut entry.grant] {
                            known.take_if(|meta| meta.uid.as_ref() == Some(&secret));
                        }
                    });
                    context.waker.credential((namespace, name));
                }
            }
            Gone::Provider(key) => {
                context.material.forget(&key);
                context.bundles.release(&key, None);
            }
        }
    }
}
