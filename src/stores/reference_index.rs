//! An index of references: finds the objects to enqueue when an object to which they refer changes.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use kube::ResourceExt as _;
use parking_lot::RwLock;

use crate::{
    api::{
        MailCredential,
        credential::ProviderKind,
        names,
        provider::ProviderSpec,
        provider_object::{ProviderKey, source_secrets},
        reference::ObjectKey,
    },
    policy::observed::target_name,
};

/// The suffix that a grant Secret's name adds to the credential's name.
const GRANT_SUFFIX: &str = "-grant";

/// The references of credentials to providers, target Secrets, source Secrets and grant Secrets, and of providers to
/// source Secrets.
#[derive(Default)]
pub struct ReferenceIndex {
    credentials_of_provider: RwLock<Relation<ProviderKey, ObjectKey>>,
    /// Only credentials whose target Secret has another name than the credential.
    credentials_of_target: RwLock<Relation<ObjectKey, ObjectKey>>,
    credentials_of_secret: RwLock<Relation<ObjectKey, ObjectKey>>,
    providers_of_secret: RwLock<Relation<ObjectKey, ProviderKey>>,
    /// Only credentials whose name cannot be derived from the name of their grant Secret.
    credentials_of_grant: RwLock<Relation<ObjectKey, ObjectKey>>,
    /// Names of the credentials that use a ClusterMailProvider, by namespace. A change of the namespace's labels
    /// enqueues them.
    credentials_of_namespace: RwLock<HashMap<String, HashSet<String>>>,
    /// Names of the credentials with `grant.refreshToken`, by namespace.
    seeded_of_namespace: RwLock<HashMap<String, HashSet<String>>>,
    /// Only Secrets that a label assigns to a credential and that have neither the credential's name nor the name of
    /// its grant Secret.
    owners_of_secret: RwLock<Relation<ObjectKey, ObjectKey>>,
}

impl ReferenceIndex {
    /// Stores the references of a credential. Returns whether the credential is the first of its provider.
    pub fn credential(&self, credential: &MailCredential) -> bool {
        let namespace = credential.namespace().unwrap_or_default();
        let first = !self.is_used(&ProviderKey::of(credential));
        let key = (namespace.clone(), credential.name_any());
        let sources: Vec<ObjectKey> =
            credential.spec.grant.sources().map(|source| (namespace.clone(), source.name.clone())).collect();
        let target = Some((namespace, target_name(credential))).filter(|target| *target != key);
        self.credentials_of_secret.write().set(key.clone(), sources);
        self.credentials_of_provider.write().set(key.clone(), vec![ProviderKey::of(credential)]);
        let grant = names::grant_secret(&key.1);
        let readable = grant.strip_suffix(GRANT_SUFFIX) == Some(&key.1);
        let grant = (!readable).then(|| (key.0.clone(), grant));
        self.credentials_of_grant.write().set(key.clone(), grant.into_iter().collect());
        let concerned = credential.spec.provider_ref.kind == ProviderKind::ClusterMailProvider;
        in_namespace(&self.credentials_of_namespace, &key, concerned);
        in_namespace(&self.seeded_of_namespace, &key, credential.spec.grant.refresh_token.is_some());
        self.credentials_of_target.write().set(key, target.into_iter().collect());
        first
    }

    /// Stores which credential the label of one of the broker's Secrets names; `None` if the Secret no longer exists.
    pub fn own_secret(&self, secret: ObjectKey, credential: Option<String>) {
        let odd = credential.filter(|name| *name != secret.1 && names::grant_secret(name) != secret.1);
        let owner = odd.map(|name| (secret.0.clone(), name));
        self.owners_of_secret.write().set(secret, owner.into_iter().collect());
    }

    /// Removes the references of a credential.
    pub fn forget_credential(&self, key: &ObjectKey) {
        self.credentials_of_provider.write().set(key.clone(), vec![]);
        self.credentials_of_secret.write().set(key.clone(), vec![]);
        self.credentials_of_target.write().set(key.clone(), vec![]);
        self.credentials_of_grant.write().set(key.clone(), vec![]);
        in_namespace(&self.credentials_of_namespace, key, false);
        in_namespace(&self.seeded_of_namespace, key, false);
    }

    /// Stores the references of a provider. `home` is the namespace of the objects to which the provider refers.
    pub fn provider(&self, key: ProviderKey, home: &str, spec: &ProviderSpec) {
        let secrets = source_secrets(spec).into_iter().map(|name| (home.to_owned(), name.to_owned()));
        self.providers_of_secret.write().set(key, secrets.collect());
    }

    /// Removes the references of a provider.
    pub fn forget_provider(&self, key: ProviderKey) {
        self.providers_of_secret.write().set(key, vec![]);
    }

    /// Whether at least one credential refers to the provider.
    pub fn is_used(&self, key: &ProviderKey) -> bool {
        self.credentials_of_provider.read().found.contains_key(key)
    }

    /// Returns the credentials that refer to the provider.
    pub fn by_provider(&self, key: &ProviderKey) -> Vec<ObjectKey> {
        self.credentials_of_provider.read().get(key)
    }

    /// Returns the credentials whose target or grant Secret may have this name: the credential of the same name,
    /// credentials with this target, and the credential whose grant Secret has this name.
    pub fn by_target(&self, key: &ObjectKey) -> Vec<ObjectKey> {
        let mut found = self.credentials_of_target.read().get(key);
        found.push(key.clone());
        found.extend(key.1.strip_suffix(GRANT_SUFFIX).map(|name| (key.0.clone(), name.to_owned())));
        found.extend(self.credentials_of_grant.read().get(key));
        found
    }

    /// Returns the Secrets that a label assigns to the credential, without the Secret of the credential's name and
    /// without its grant Secret.
    pub fn secrets_of(&self, credential: &ObjectKey) -> Vec<ObjectKey> {
        self.owners_of_secret.read().get(credential)
    }

    /// Returns the credentials of a namespace that use a ClusterMailProvider. A change of the namespace's labels
    /// enqueues them.
    pub fn by_namespace(&self, namespace: &str) -> Vec<ObjectKey> {
        let namespaces = self.credentials_of_namespace.read();
        let names = namespaces.get(namespace).into_iter().flatten();
        names.map(|name| (namespace.to_owned(), name.clone())).collect()
    }

    /// Returns the credentials that refer directly to the source Secret.
    pub fn credentials_by_secret(&self, key: &ObjectKey) -> Vec<ObjectKey> {
        self.credentials_of_secret.read().get(key)
    }

    /// Returns the names of the credentials of a namespace that have `grant.refreshToken`.
    pub fn seeded(&self, namespace: &str) -> Vec<String> {
        self.seeded_of_namespace.read().get(namespace).into_iter().flatten().cloned().collect()
    }

    /// Returns the providers that refer to the source Secret.
    pub fn by_secret(&self, key: &ObjectKey) -> Vec<ProviderKey> {
        self.providers_of_secret.read().get(key)
    }
}

/// Adds the credential to the set of its namespace, or removes it from the set.
fn in_namespace(namespaces: &RwLock<HashMap<String, HashSet<String>>>, (namespace, name): &ObjectKey, is_one: bool) {
    let mut namespaces = namespaces.write();
    if is_one {
        namespaces.entry(namespace.clone()).or_default().insert(name.clone());
    } else if let Some(names) = namespaces.get_mut(namespace)
        && names.remove(name)
        && names.is_empty()
    {
        namespaces.remove(namespace);
    }
}

/// A relation that callers search by the right side and replace by the left side. Both directions share the names.
struct Relation<A, B> {
    found: HashMap<Arc<A>, HashSet<Arc<B>>>,
    of: HashMap<Arc<B>, Box<[Arc<A>]>>,
}

impl<A, B> Default for Relation<A, B> {
    fn default() -> Self {
        Self { found: HashMap::new(), of: HashMap::new() }
    }
}

impl<A: Clone + Eq + Hash, B: Clone + Eq + Hash> Relation<A, B> {
    fn set(&mut self, from: B, to: Vec<A>) {
        let before = self.of.get(&from).into_iter().flatten();
        if before.map(|name| &**name).eq(&to) {
            return;
        }
        let (from, before) = self.of.remove_entry(&from).unwrap_or_else(|| (Arc::new(from), Box::default()));
        for old in before {
            if let Some(set) = self.found.get_mut(&old) {
                set.remove(&from);
                if set.is_empty() {
                    self.found.remove(&old);
                }
            }
        }
        if to.is_empty() {
            return;
        }
        let to = to.into_iter().map(|name| {
            let name = self.found.get_key_value(&name).map_or_else(|| Arc::new(name), |(known, _)| known.clone());
            self.found.entry(name.clone()).or_default().insert(from.clone());
            name
        });
        self.of.insert(from.clone(), to.collect());
    }

    fn get(&self, of: &A) -> Vec<B> {
        self.found.get(of).into_iter().flatten().map(|name| B::clone(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relation_forgets_what_was_replaced() {
        let mut many = Relation::default();
        many.set("b1", vec!["a1", "a2"]);
        many.set("b2", vec!["a1"]);
        assert_eq!(many.get(&"a1").len(), 2);
        many.set("b1", vec!["a3"]);
        assert_eq!(many.get(&"a1"), ["b2"]);
        assert!(many.get(&"a2").is_empty());
        many.set("b2", vec![]);
        assert!(many.get(&"a1").is_empty() && !many.found.contains_key(&"a1"));
    }

    #[test]
    fn a_grant_secret_finds_its_credential_by_its_name() {
        let references = ReferenceIndex::default();
        let long = "x".repeat(250);
        for name in ["billing", &"y".repeat(80), &long] {
            let mut credential = mailtoken_core::fixtures::credential();
            credential.metadata.name = Some(name.to_owned());
            credential.metadata.namespace = Some("shop".to_owned());
            references.credential(&credential);
            let secret = ("shop".to_owned(), names::grant_secret(name));
            assert!(references.by_target(&secret).contains(&("shop".to_owned(), name.to_owned())), "{name}");
        }
        references.forget_credential(&("shop".to_owned(), long.clone()));
        let secret = ("shop".to_owned(), names::grant_secret(&long));
        assert!(!references.by_target(&secret).contains(&("shop".to_owned(), long)));
    }

    #[test]
    fn the_labels_of_a_namespace_concern_the_credentials_of_cluster_providers() {
        let references = ReferenceIndex::default();
        let mut credential = mailtoken_core::fixtures::credential();
        credential.spec.provider_ref.kind = ProviderKind::ClusterMailProvider;
        let key = (credential.namespace().unwrap(), credential.name_any());
        references.credential(&credential);
        assert_eq!(references.by_namespace(&key.0), std::slice::from_ref(&key));
        credential.spec.provider_ref.kind = ProviderKind::MailProvider;
        references.credential(&credential);
        assert!(references.by_namespace(&key.0).is_empty() && references.credentials_of_namespace.read().is_empty());
    }

    #[test]
    fn secrets_under_former_names_are_found_by_their_credential() {
        let references = ReferenceIndex::default();
        let key = |name: &str| ("shop".to_owned(), name.to_owned());
        for secret in ["billing", "billing-grant", "former"] {
            references.own_secret(key(secret), Some("billing".to_owned()));
        }
        assert_eq!(references.secrets_of(&key("billing")), [key("former")]);
        references.own_secret(key("former"), None);
        assert!(references.secrets_of(&key("billing")).is_empty());
    }
}
