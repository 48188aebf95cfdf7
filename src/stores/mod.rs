//! The stores with the objects that the watches show, and an index of the references between objects.

mod packed;
pub mod reference_index;
pub mod slim;
pub mod store;
pub mod unreadable;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Namespace, Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
    jiff::Timestamp,
};
use kube::{
    ResourceExt as _,
    core::{ObjectMeta, PartialObjectMeta},
};

use crate::{
    api::{
        ClusterMailProvider, MailCredential, MailProvider,
        credential::ProviderKind,
        provider_object::{ProviderKey, ProviderObject},
        reference::ObjectKey,
    },
    policy::{
        observed::target_name,
        ownership::{self, OwnerState, Ownership},
        rival::{Contender, Holder, winner},
        unreadable::ObjectKind,
    },
    stores::{
        reference_index::ReferenceIndex,
        store::{Store, Stored},
        unreadable::Unreadable,
    },
};

/// The stores of one kind: one for the cluster, or one for each watched namespace.
pub struct Mirror<K>(Arc<HashMap<Option<String>, Store<K>>>);

impl<K> Clone for Mirror<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Stored> Mirror<K> {
    /// Creates a mirror from the stores of namespaces; the key `None` means all namespaces.
    pub fn new(stores: HashMap<Option<String>, Store<K>>) -> Self {
        Self(Arc::new(stores))
    }

    fn store(&self, namespace: &str) -> Option<&Store<K>> {
        self.0.get(&None).or_else(|| self.0.get(&Some(namespace.to_owned())))
    }

    /// Returns the object with this name; the namespace of a cluster-scoped object is empty.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.store(namespace)?.get(namespace, name)
    }

    /// Whether an object with this name exists.
    pub fn contains(&self, namespace: &str, name: &str) -> bool {
        self.store(namespace).is_some_and(|store| store.contains(namespace, name))
    }

    /// Whether the store has exactly this version of an object.
    pub fn has(&self, meta: &ObjectMeta) -> bool {
        self.store(meta.namespace.as_deref().unwrap_or_default()).is_some_and(|store| store.has(meta))
    }

    /// Whether the broker watches all namespaces.
    pub fn is_complete(&self) -> bool {
        self.0.contains_key(&None)
    }

    /// Returns the names of all objects that `wanted` accepts by namespace and name, without unpacking the objects.
    pub fn names(&self, wanted: impl Fn(&str, &str) -> bool) -> Vec<ObjectKey> {
        self.0.values().flat_map(|store| store.names(&wanted)).collect()
    }

    /// Returns the unpacked objects. They include all objects that must stay unpacked.
    pub fn whole(&self) -> Vec<Arc<K>> {
        self.0.values().flat_map(Store::whole).collect()
    }

    /// Returns all objects, one after the other.
    pub fn all(&self) -> impl Iterator<Item = Arc<K>> {
        self.0.values().flat_map(Store::all)
    }
}

/// The stores of all watched kinds.
#[derive(Clone)]
pub struct Stores {
    /// The MailCredentials that parse.
    pub credentials: Mirror<MailCredential>,
    /// The MailProviders that parse.
    pub providers: Mirror<MailProvider>,
    /// The ClusterMailProviders that parse; `None` if the broker may not read them.
    pub cluster_providers: Option<Mirror<ClusterMailProvider>>,
    /// The labels of namespaces; `None` if the broker may not read them.
    pub namespaces: Option<Mirror<PartialObjectMeta<Namespace>>>,
    /// The metadata of the broker's own Secrets.
    pub own_secrets: Mirror<PartialObjectMeta<Secret>>,
    /// The metadata of the Secrets that the broker may read.
    pub sources: Mirror<PartialObjectMeta<Secret>>,
    /// The references between objects.
    pub references: Arc<ReferenceIndex>,
    /// The objects that do not parse. They are in none of the stores above.
    pub unreadable: Arc<Unreadable>,
    /// The namespace of the Secrets of ClusterMailProviders.
    pub broker_namespace: String,
}

impl Stores {
    /// Returns the provider with this key.
    pub fn provider(&self, key: &ProviderKey) -> Option<ProviderObject> {
        match key.kind {
            ProviderKind::MailProvider => self.providers.get(&key.namespace, &key.name).map(ProviderObject::Namespaced),
            ProviderKind::ClusterMailProvider => {
                self.cluster_providers.as_ref()?.get("", &key.name).map(ProviderObject::Cluster)
            }
        }
    }

    /// Returns all providers of both kinds, one after the other.
    pub fn all_providers(&self) -> impl Iterator<Item = ProviderObject> {
        let cluster = self.cluster_providers.iter().flat_map(Mirror::all).map(ProviderObject::Cluster);
        self.providers.all().map(ProviderObject::Namespaced).chain(cluster)
    }

    /// Returns the namespace of the objects that a provider refers to.
    pub fn home<'a>(&'a self, key: &'a ProviderKey) -> &'a str {
        match key.kind {
            ProviderKind::MailProvider => &key.namespace,
            ProviderKind::ClusterMailProvider => &self.broker_namespace,
        }
    }

    /// Returns the labels of a namespace, if known.
    pub fn namespace_labels(&self, name: &str) -> Option<BTreeMap<String, String>> {
        let namespace = self.namespaces.as_ref()?.get("", name)?;
        Some(namespace.metadata.labels.clone().unwrap_or_default())
    }

    /// Returns the name of another credential that owns the same target by the rules of [`winner`]. `target` is the
    /// metadata of the target Secret, if known.
    pub fn rival(&self, credential: &MailCredential, target: Option<&ObjectMeta>, now: Timestamp) -> Option<String> {
        let namespace = credential.namespace().unwrap_or_default();
        let name = target_name(credential);
        let others = self.references.by_target(&(namespace, name.clone()));
        let others = others.iter().filter_map(|key| self.credentials.get(&key.0, &key.1)).filter(|other| {
            let another = other.metadata.uid != credential.metadata.uid;
            another && other.metadata.deletion_timestamp.is_none() && target_name(other) == name
        });
        let contender = |credential: &MailCredential| Contender {
            name: credential.name_any(),
            uid: credential.uid().unwrap_or_default(),
            created: credential.creation_timestamp().map(|time| time.0),
        };
        let mut contenders: Vec<_> = others.map(|other| contender(&other)).collect();
        if contenders.is_empty() {
            return None;
        }
        let me = contender(credential);
        contenders.push(me.clone());
        let holder = target.and_then(|target| Holder::of(target, &contenders, now));
        winner(&contenders, holder).filter(|winner| **winner != me).map(|winner| winner.name.clone())
    }

    /// Returns which object owns a target Secret, by its metadata.
    pub fn ownership(&self, meta: &ObjectMeta, credential: &MailCredential, now: Timestamp) -> Ownership {
        ownership::of_target(meta, credential, |owner| self.state_of(owner, credential, meta, now))
    }

    /// Returns the state of the credential `owner`, which controls the Secret with this metadata.
    fn state_of(
        &self,
        owner: &OwnerReference,
        credential: &MailCredential,
        meta: &ObjectMeta,
        now: Timestamp,
    ) -> OwnerState {
        let namespace = credential.namespace().unwrap_or_default();
        let found = self.credentials.get(&namespace, &owner.name);
        if let Some(other) = found.filter(|other| other.metadata.uid.as_ref() == Some(&owner.uid)) {
            let same_target = target_name(&other) == target_name(credential);
            return OwnerState::Exists { gives_way: same_target && self.rival(&other, Some(meta), now).is_some() };
        }
        match self.unreadable.exists(ObjectKind::Credential, &(namespace, owner.name.clone())) {
            true => OwnerState::Unreadable,
            false => OwnerState::Gone,
        }
    }
}
