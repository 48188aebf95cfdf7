//! What the watches show, kept in memory, and the links by which a change of one object finds those that depend on it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Namespace, Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
    jiff::Timestamp,
};
use kube::{
    Resource, ResourceExt as _,
    core::{ObjectMeta, PartialObjectMeta},
    runtime::reflector::{ObjectRef, Store},
};
use parking_lot::RwLock;

use crate::{
    api::{
        ClusterMailProvider, MailCredential, MailProvider,
        credential::ProviderKind,
        names,
        provider::{Allowed, CaBundleRef, KeyRef, ProviderSpec},
    },
    policy::{
        observed::target_name,
        rival::{Contender, Holder, winner},
    },
};

/// `namespace` and `name` of a namespaced object.
pub type Key = (String, String);

/// The stores of one kind: one for the cluster, or one for each namespace that is watched.
#[derive(Clone)]
pub struct Mirror<K: Resource<DynamicType = ()> + 'static>(HashMap<Option<String>, Store<K>>);

impl<K: Resource<DynamicType = ()> + Clone + 'static> Mirror<K> {
    /// Stores by the namespace they watch; `None` is all.
    pub fn new(stores: HashMap<Option<String>, Store<K>>) -> Self {
        Self(stores)
    }

    /// The object of this name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let store = self.0.get(&None).or_else(|| self.0.get(&Some(namespace.to_owned())))?;
        store.get(&ObjectRef::new(name).within(namespace))
    }

    /// The cluster-scoped object of this name.
    pub fn get_cluster(&self, name: &str) -> Option<Arc<K>> {
        self.0.get(&None)?.get(&ObjectRef::new(name))
    }

    /// The stores by the namespace they watch.
    pub fn stores(&self) -> impl Iterator<Item = (&Option<String>, &Store<K>)> {
        self.0.iter()
    }

    /// Whether all namespaces are watched.
    pub fn is_complete(&self) -> bool {
        self.0.contains_key(&None)
    }

    /// All objects.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.0.values().flat_map(Store::state).collect()
    }
}

/// Everything that is watched.
#[derive(Clone)]
pub struct Stores {
    /// Credentials.
    pub credentials: Mirror<MailCredential>,
    /// Providers.
    pub providers: Mirror<MailProvider>,
    /// Providers of the cluster; `None` where the broker may not read them.
    pub cluster_providers: Option<Mirror<ClusterMailProvider>>,
    /// Labels of namespaces; `None` where the broker may not read them.
    pub namespaces: Option<Mirror<PartialObjectMeta<Namespace>>>,
    /// Secrets that the broker made.
    pub own_secrets: Mirror<PartialObjectMeta<Secret>>,
    /// Secrets that the broker may read.
    pub sources: Mirror<PartialObjectMeta<Secret>>,
    /// The namespace of a ClusterMailProvider's Secrets.
    pub broker_namespace: String,
}

/// A provider's kind, namespace (empty for the cluster's) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProviderKey {
    /// The kind.
    pub kind: ProviderKind,
    /// The namespace, empty for a ClusterMailProvider.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ProviderKey {
    /// The provider that a credential refers to.
    pub fn of(credential: &MailCredential) -> Self {
        let reference = &credential.spec.provider_ref;
        let namespace = match reference.kind {
            ProviderKind::MailProvider => credential.namespace().unwrap_or_default(),
            ProviderKind::ClusterMailProvider => String::new(),
        };
        Self { kind: reference.kind, namespace, name: reference.name.clone() }
    }
}

/// A provider of either kind.
#[derive(Clone)]
pub enum ProviderObject {
    /// Of a namespace.
    Namespaced(Arc<MailProvider>),
    /// Of the cluster.
    Cluster(Arc<ClusterMailProvider>),
}

impl ProviderObject {
    /// What both kinds have in common.
    pub fn spec(&self) -> &ProviderSpec {
        match self {
            Self::Namespaced(provider) => &provider.spec.provider,
            Self::Cluster(provider) => &provider.spec.provider,
        }
    }

    /// Its metadata.
    pub fn meta(&self) -> &kube::core::ObjectMeta {
        match self {
            Self::Namespaced(provider) => &provider.metadata,
            Self::Cluster(provider) => &provider.metadata,
        }
    }

    /// Its status.
    pub fn status(&self) -> Option<&crate::api::ProviderStatus> {
        match self {
            Self::Namespaced(provider) => provider.status.as_ref(),
            Self::Cluster(provider) => provider.status.as_ref(),
        }
    }

    /// Whom it allows; a MailProvider serves its namespace.
    pub fn allowed(&self) -> Option<&[Allowed]> {
        match self {
            Self::Namespaced(_) => None,
            Self::Cluster(provider) => Some(&provider.spec.allowed),
        }
    }

    /// Its key.
    pub fn key(&self) -> ProviderKey {
        let (kind, namespace) = match self {
            Self::Namespaced(_) => (ProviderKind::MailProvider, self.meta().namespace.clone().unwrap_or_default()),
            Self::Cluster(_) => (ProviderKind::ClusterMailProvider, String::new()),
        };
        ProviderKey { kind, namespace, name: self.meta().name.clone().unwrap_or_default() }
    }
}

/// Names of the Secrets that a provider's spec refers to.
pub fn source_secrets(spec: &ProviderSpec) -> Vec<&str> {
    let mut references = vec![];
    for entry in &spec.client.authentication {
        references.extend(entry.client_secret.iter().map(|secret| &secret.secret_ref));
        references.extend(entry.service_account_key.iter().map(|file| &file.secret_ref));
        references.extend(
            entry.private_key_jwt.iter().flat_map(|jwt| [&jwt.key_ref].into_iter().chain(&jwt.certificate_ref)),
        );
    }
    references.extend(bundle_secret(spec));
    references.into_iter().map(|reference| reference.name.as_str()).collect()
}

/// The Secret that a provider's CA bundle stands in.
pub fn bundle_secret(spec: &ProviderSpec) -> Option<&KeyRef> {
    spec.ca_bundle_ref.as_ref().and_then(|CaBundleRef { secret, .. }| secret.as_ref())
}

/// The ConfigMap that a provider's CA bundle stands in.
pub fn bundle_config_map(spec: &ProviderSpec) -> Option<&KeyRef> {
    spec.ca_bundle_ref.as_ref().and_then(|CaBundleRef { config_map, .. }| config_map.as_ref())
}

impl Stores {
    /// The provider of this key.
    pub fn provider(&self, key: &ProviderKey) -> Option<ProviderObject> {
        match key.kind {
            ProviderKind::MailProvider => self.providers.get(&key.namespace, &key.name).map(ProviderObject::Namespaced),
            ProviderKind::ClusterMailProvider => {
                self.cluster_providers.as_ref()?.get_cluster(&key.name).map(ProviderObject::Cluster)
            }
        }
    }

    /// Where the objects that a provider refers to stand.
    pub fn home<'a>(&'a self, key: &'a ProviderKey) -> &'a str {
        match key.kind {
            ProviderKind::MailProvider => &key.namespace,
            ProviderKind::ClusterMailProvider => &self.broker_namespace,
        }
    }

    /// The labels of a namespace.
    pub fn namespace_labels(&self, name: &str) -> Option<BTreeMap<String, String>> {
        let namespace = self.namespaces.as_ref()?.get_cluster(name)?;
        Some(namespace.metadata.labels.clone().unwrap_or_default())
    }

    /// Another credential with the same target that has it, by the rules of [`winner`]. `target` is the metadata of the
    /// Secret of that name, as far as it is known.
    pub fn rival(
        &self,
        credential: &MailCredential,
        target: Option<&ObjectMeta>,
        links: &Links,
        now: Timestamp,
    ) -> Option<String> {
        let namespace = credential.namespace().unwrap_or_default();
        let name = target_name(credential);
        let others = links.by_target(&(namespace, name.clone()));
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
        let holder = target.and_then(|target| {
            Some(Holder {
                uid: holder_of(target, &contenders)?,
                in_service: super::observe::facts(target).is_some_and(|token| token.is_unexpired(now)),
            })
        });
        winner(&contenders, holder).filter(|winner| **winner != me).map(|winner| winner.name.clone())
    }
}

/// Which credentials depend on a provider, want a target or read a source, and which providers read one.
#[derive(Default)]
pub struct Links {
    credentials_of_provider: RwLock<Many<ProviderKey, Key>>,
    /// Those alone whose target has another name than they have.
    credentials_of_target: RwLock<Many<Key, Key>>,
    credentials_of_secret: RwLock<Many<Key, Key>>,
    providers_of_secret: RwLock<Many<Key, ProviderKey>>,
}

impl Links {
    /// Notes what a credential refers to. Tells whether it is the first of its provider.
    pub fn credential(&self, credential: &MailCredential) -> bool {
        let namespace = credential.namespace().unwrap_or_default();
        let first = !self.is_used(&ProviderKey::of(credential));
        let key = (namespace.clone(), credential.name_any());
        let sources: Vec<Key> =
            credential.spec.grant.sources().map(|source| (namespace.clone(), source.name.clone())).collect();
        let target = Some((namespace, target_name(credential))).filter(|target| *target != key);
        self.credentials_of_secret.write().set(key.clone(), sources);
        self.credentials_of_provider.write().set(key.clone(), vec![ProviderKey::of(credential)]);
        self.credentials_of_target.write().set(key, target.into_iter().collect());
        first
    }

    /// Forgets a credential.
    pub fn forget_credential(&self, key: &Key) {
        self.credentials_of_provider.write().set(key.clone(), vec![]);
        self.credentials_of_secret.write().set(key.clone(), vec![]);
        self.credentials_of_target.write().set(key.clone(), vec![]);
    }

    /// Notes what a provider refers to. `home` is the namespace of what it refers to.
    pub fn provider(&self, key: ProviderKey, home: &str, spec: &ProviderSpec) {
        let secrets = source_secrets(spec).into_iter().map(|name| (home.to_owned(), name.to_owned()));
        self.providers_of_secret.write().set(key, secrets.collect());
    }

    /// Forgets a provider.
    pub fn forget_provider(&self, key: ProviderKey) {
        self.providers_of_secret.write().set(key, vec![]);
    }

    /// Whether any credential refers to a provider.
    pub fn is_used(&self, key: &ProviderKey) -> bool {
        self.credentials_of_provider.read().found.contains_key(key)
    }

    /// The credentials of a provider.
    pub fn by_provider(&self, key: &ProviderKey) -> Vec<Key> {
        self.credentials_of_provider.read().get(key)
    }

    /// The credentials that may want a target: the one of its name, and those that name it.
    pub fn by_target(&self, key: &Key) -> Vec<Key> {
        let mut found = self.credentials_of_target.read().get(key);
        found.push(key.clone());
        found
    }

    /// The credentials that read a Secret themselves.
    pub fn credentials_by_secret(&self, key: &Key) -> Vec<Key> {
        self.credentials_of_secret.read().get(key)
    }

    /// The providers that read a Secret.
    pub fn by_secret(&self, key: &Key) -> Vec<ProviderKey> {
        self.providers_of_secret.read().get(key)
    }
}

/// A relation that is found from its right side and replaced from its left side.
struct Many<A, B> {
    found: HashMap<A, HashSet<B>>,
    of: HashMap<B, Vec<A>>,
}

impl<A, B> Default for Many<A, B> {
    fn default() -> Self {
        Self { found: HashMap::new(), of: HashMap::new() }
    }
}

impl<A: Clone + Eq + Hash, B: Clone + Eq + Hash> Many<A, B> {
    fn set(&mut self, from: B, to: Vec<A>) {
        if self.of.get(&from).map_or(&[][..], Vec::as_slice) == to {
            return;
        }
        for old in self.of.remove(&from).unwrap_or_default() {
            if let Some(set) = self.found.get_mut(&old) {
                set.remove(&from);
                if set.is_empty() {
                    self.found.remove(&old);
                }
            }
        }
        for new in &to {
            self.found.entry(new.clone()).or_default().insert(from.clone());
        }
        if !to.is_empty() {
            self.of.insert(from, to);
        }
    }

    fn get(&self, of: &A) -> Vec<B> {
        self.found.get(of).into_iter().flatten().cloned().collect()
    }
}

/// The uid of the credential that a Secret belongs to: its owner, or, of a Secret that is retained, the one in its label.
fn holder_of<'a>(target: &'a ObjectMeta, contenders: &'a [Contender]) -> Option<&'a str> {
    if let Some(owner) = controller_of(target) {
        return Some(&owner.uid);
    }
    let label = target.labels.as_ref()?.get(names::LABEL_CREDENTIAL)?;
    let holder = contenders.iter().find(|contender| *label == names::label_value(&contender.name))?;
    Some(&holder.uid)
}

/// The owner that controls an object.
pub fn controller_of(meta: &kube::core::ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The credential that a Secret of ours belongs to, as far as its metadata tells.
pub fn credential_of(secret: &kube::core::ObjectMeta) -> Option<String> {
    let owner = controller_of(secret);
    match owner {
        Some(owner) => Some(owner.name.clone()),
        None => secret.labels.as_ref()?.get(names::LABEL_CREDENTIAL).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relation_forgets_what_was_replaced() {
        let mut many = Many::default();
        many.set("b1", vec!["a1", "a2"]);
        many.set("b2", vec!["a1"]);
        assert_eq!(many.get(&"a1").len(), 2);
        many.set("b1", vec!["a3"]);
        assert_eq!(many.get(&"a1"), ["b2"]);
        assert!(many.get(&"a2").is_empty());
        many.set("b2", vec![]);
        assert!(many.get(&"a1").is_empty() && !many.found.contains_key("a1"));
    }
}
