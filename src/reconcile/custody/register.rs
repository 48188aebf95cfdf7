//! Which credential has which refresh token: no two of a namespace use the same one, since a provider that replaces refresh
//! tokens takes the second use for theft. Kept by hashes, in memory; the grant Secrets' annotations say the same.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use kube::{ResourceExt as _, core::ObjectMeta};
use parking_lot::Mutex;

use crate::{
    api::{MailCredential, Reason, names, reference::KeyRef},
    policy::{
        Blocker, checks,
        commands::{self, KubectlObject},
        grant::{GrantSecret, Seed},
        hash::RefreshTokenHash,
        secret_metadata::controller_of,
    },
    stores::Stores,
};

/// Tokens that are remembered although their credential is gone. A namespace that makes more loses its oldest first.
const SPENT_MAX: usize = 10_000;
/// Seeds that are remembered before all are read again: each has about 200 bytes.
const SEEDS_MAX: usize = 10_000;

/// Namespace, and hash of the refresh token.
type Token = (String, RefreshTokenHash);

/// Who has which refresh token.
#[derive(Default)]
pub struct Register(Mutex<Tokens>);

#[derive(Default)]
struct Tokens {
    held: HashMap<Token, Holder>,
    of: HashMap<String, BTreeSet<Token>>,
    /// Seeds that were read, by namespace, Secret and key.
    seeds: HashMap<(String, String, String), Seed>,
    /// Seeds that were exchanged for another refresh token by a credential that is gone, the oldest first.
    spent: std::collections::VecDeque<Token>,
}

/// A credential that has a refresh token, or had it.
#[derive(Clone, Debug)]
struct Holder {
    uid: String,
    name: String,
    /// The provider has replaced it.
    spent: bool,
}

/// What is known about a refresh token that a credential wants to take over.
enum Standing {
    /// Another credential has it.
    Held(String),
    /// It was exchanged for another one, which is gone.
    Spent,
}

impl Register {
    /// Notes what a credential's grant Secret keeps.
    pub(super) fn note(&self, credential: &MailCredential, stored: &GrantSecret) {
        let Some(token) = &stored.token else { return };
        let seed = stored.seed.as_ref().map(|seed| &seed.hash);
        let known = [Some((&token.hash, false)), seed.map(|seed| (seed, *seed != token.hash))];
        let namespace = checks::namespace(credential);
        let uid = checks::uid(credential).to_owned();
        let mut tokens = self.0.lock();
        let before = tokens.of.remove(&uid).unwrap_or_default();
        let mut after = BTreeSet::new();
        for (hash, spent) in known.into_iter().flatten() {
            let key = (namespace.to_owned(), hash.clone());
            let other = tokens.held.get(&key).is_some_and(|holder| holder.uid != uid);
            if !other {
                let holder = Holder { uid: uid.clone(), name: credential.name_any(), spent };
                tokens.held.insert(key.clone(), holder);
            }
            after.insert(key);
        }
        for key in before.difference(&after) {
            tokens.release(key.clone(), &uid);
        }
        tokens.of.insert(uid, after);
    }

    /// Notes the content of a seed's Secret.
    pub(super) fn note_seed(&self, namespace: &str, reference: &KeyRef, seed: &Seed) {
        let seeds = &mut self.0.lock().seeds;
        if seeds.len() >= SEEDS_MAX {
            seeds.clear();
        }
        seeds.insert(location(namespace, reference), seed.clone());
    }

    /// Whether this version of a seed's Secret was read.
    pub(super) fn knows(&self, namespace: &str, reference: &KeyRef, version: &str) -> bool {
        self.0.lock().seeds.get(&location(namespace, reference)).is_some_and(|seed| seed.version == version)
    }

    /// Whether a seed's Secret held this refresh token when it was read last.
    fn has(&self, namespace: &str, reference: &KeyRef, hash: &RefreshTokenHash) -> bool {
        self.0.lock().seeds.get(&location(namespace, reference)).is_some_and(|seed| seed.hash == *hash)
    }

    /// Forgets a deleted credential.
    pub fn forget(&self, uid: &str) {
        self.0.lock().bury(uid);
    }

    /// Why a credential must not take a seed over; `None` if it may.
    pub(super) fn seed_blocker(
        &self,
        credential: &MailCredential,
        hash: &RefreshTokenHash,
        strict: bool,
        stores: &Stores,
    ) -> Option<Blocker> {
        let standing = self.0.lock().standing(
            checks::namespace(credential),
            checks::uid(credential),
            hash,
            lives(credential, stores),
        );
        // The credential that has the token is named before an older one that waits for the token, too.
        if !matches!(standing, Some(Standing::Held(_)))
            && let Some(older) = self.older_by_the_same_token(credential, hash, stores)
        {
            return Some(held_by(credential, &older));
        }
        blocker_of(credential, standing, strict)
    }

    /// The same right before the seed is taken over, when also the grant Secrets are looked through that no reconcile has
    /// noted since the start. The token is the credential's from then on.
    pub(super) fn take_over(
        &self,
        credential: &MailCredential,
        hash: &RefreshTokenHash,
        strict: bool,
        stores: &Stores,
    ) -> Option<Blocker> {
        if let Some(blocker) = self.seed_blocker(credential, hash, strict, stores) {
            return Some(blocker);
        }
        let own = names::grant_secret(&credential.name_any());
        let another = |meta: &ObjectMeta| {
            let keeps = meta.labels.as_ref().and_then(|labels| labels.get(names::LABEL_ROLE));
            meta.namespace.as_deref() == Some(checks::namespace(credential))
                && keeps.is_some_and(|role| role == names::ROLE_GRANT)
                && meta.name.as_deref() != Some(&own)
        };
        // The store never packs the Secrets of grants.
        for secret in stores.own_secrets.whole() {
            if !another(&secret.metadata) {
                continue;
            }
            let stored = GrantSecret::read(&secret.metadata);
            let same = |stored: &RefreshTokenHash| stored.is(hash);
            let has = stored.token.as_ref().is_some_and(|token| same(&token.hash));
            let had = stored.seed.as_ref().is_some_and(|seed| same(&seed.hash));
            if !has && !had {
                continue;
            }
            let owner = controller_of(&secret.metadata);
            let label = secret.metadata.labels.as_ref().and_then(|labels| labels.get(names::LABEL_CREDENTIAL).cloned());
            match owner {
                // The grant Secret is deleted with its credential.
                Some(owner) if !lives(credential, stores)(&owner.name, &owner.uid) => {
                    if !has && strict {
                        return Some(spent(credential));
                    }
                }
                Some(owner) => return Some(held_by(credential, &owner.name)),
                None => return Some(held_by(credential, &label.unwrap_or_default())),
            }
        }
        blocker_of(credential, self.take(credential, hash, lives(credential, stores)), strict)
    }

    /// An older credential with the same seed: the same key of the same Secret, or another Secret with the same token that
    /// the older credential has not taken over yet.
    fn older_by_the_same_token(
        &self,
        credential: &MailCredential,
        hash: &RefreshTokenHash,
        stores: &Stores,
    ) -> Option<String> {
        let (namespace, own) = (checks::namespace(credential), seed_ref(credential)?);
        let same =
            |other: &MailCredential| seed_ref(other).is_some_and(|seed| seed == own || self.has(namespace, seed, hash));
        let older = older_with_seeds(credential, stores).into_iter();
        older.filter(|other| same(other)).map(|other| other.name_any()).min()
    }

    /// Takes a refresh token for a credential, unless another one has it.
    fn take(
        &self,
        credential: &MailCredential,
        hash: &RefreshTokenHash,
        lives: impl Fn(&str, &str) -> bool,
    ) -> Option<Standing> {
        let (namespace, uid) = (checks::namespace(credential).to_owned(), checks::uid(credential).to_owned());
        let mut tokens = self.0.lock();
        let standing = tokens.standing(&namespace, &uid, hash, lives);
        if standing.is_none() {
            let key = (namespace, hash.clone());
            let holder = Holder { uid: uid.clone(), name: credential.name_any(), spent: false };
            tokens.held.insert(key.clone(), holder);
            tokens.of.entry(uid).or_default().insert(key);
        }
        standing
    }
}

impl Tokens {
    fn standing(
        &mut self,
        namespace: &str,
        uid: &str,
        hash: &RefreshTokenHash,
        lives: impl Fn(&str, &str) -> bool,
    ) -> Option<Standing> {
        let key = (namespace.to_owned(), hash.clone());
        let holder = self.held.get(&key).cloned();
        match holder {
            Some(holder) if holder.uid == uid => return None,
            Some(holder) if lives(&holder.name, &holder.uid) => return Some(Standing::Held(holder.name)),
            Some(holder) => self.bury(&holder.uid),
            None => {}
        }
        self.spent.contains(&key).then_some(Standing::Spent)
    }

    /// Of a credential that is gone, or has another seed, only the tokens are remembered that its provider has replaced.
    fn bury(&mut self, uid: &str) {
        for key in self.of.remove(uid).unwrap_or_default() {
            self.release(key, uid);
        }
    }

    fn release(&mut self, key: Token, uid: &str) {
        let Some(holder) = self.held.get(&key).filter(|holder| holder.uid == uid) else { return };
        if holder.spent {
            self.spent.push_back(key.clone());
        }
        self.held.remove(&key);
        while self.spent.len() > SPENT_MAX {
            self.spent.pop_front();
        }
    }
}

/// Whether a credential of this name and uid exists in the same namespace.
fn lives<'a>(credential: &'a MailCredential, stores: &'a Stores) -> impl Fn(&str, &str) -> bool + 'a {
    move |name, uid| {
        let shown = stores.credentials.get(checks::namespace(credential), name);
        shown.is_some_and(|shown| shown.metadata.uid.as_deref() == Some(uid))
    }
}

/// The older credentials of the namespace that have a seed, and no grant yet or the same seed's Secret. Of two of the same
/// second the one that has a grant is the older, otherwise the one whose name comes first.
pub(super) fn older_with_seeds(credential: &MailCredential, stores: &Stores) -> Vec<Arc<MailCredential>> {
    let namespace = checks::namespace(credential);
    let has_none = |credential: &MailCredential| {
        stores.own_secrets.get(namespace, &names::grant_secret(&credential.name_any())).is_none()
    };
    let age = |credential: &MailCredential| {
        (credential.creation_timestamp().map(|time| time.0), has_none(credential), credential.name_any())
    };
    let (own_age, own_seed) = (age(credential), seed_ref(credential));
    let others = stores.references.seeded(namespace).into_iter();
    others
        .filter_map(|name| stores.credentials.get(namespace, &name))
        .filter(|other| other.metadata.uid != credential.metadata.uid && other.metadata.deletion_timestamp.is_none())
        .filter(|other| seed_ref(other) == own_seed || has_none(other))
        .filter(|other| age(other) < own_age)
        .collect()
}

fn seed_ref(credential: &MailCredential) -> Option<&KeyRef> {
    credential.spec.grant.refresh_token.as_ref().map(|grant| &grant.secret_ref)
}

fn location(namespace: &str, reference: &KeyRef) -> (String, String, String) {
    (namespace.to_owned(), reference.name.clone(), reference.key.clone())
}

fn blocker_of(credential: &MailCredential, standing: Option<Standing>, strict: bool) -> Option<Blocker> {
    match standing? {
        Standing::Held(name) => Some(held_by(credential, &name)),
        Standing::Spent if strict => Some(spent(credential)),
        Standing::Spent => None,
    }
}

fn held_by(credential: &MailCredential, other: &str) -> Blocker {
    let another = serde_json::json!({"spec": {"grant": {"refreshToken": {"secretRef": {"name": "<another Secret>"}}}}});
    Blocker::new(
        Reason::SecretConflict,
        format!(
            "the MailCredential {other} uses the refresh token in {}. A provider may end a sign-in if two credentials use \
             its refresh token: sign in again for this one with `{}`, and refer to that Secret with `{}`",
            place(credential),
            commands::sign_in(credential),
            KubectlObject::credential(credential).merge(&another)
        ),
    )
}

fn spent(credential: &MailCredential) -> Blocker {
    Blocker::new(
        Reason::AuthorizationRequired,
        format!(
            "the refresh token in {} was exchanged before, and its successor was deleted with its MailCredential. The \
             provider may treat a second use as theft: sign in again with `{}`",
            place(credential),
            commands::sign_in(credential)
        ),
    )
}

fn place(credential: &MailCredential) -> String {
    let (name, key) = seed_ref(credential).map(|seed| (seed.name.as_str(), seed.key.as_str())).unwrap_or_default();
    format!("key {key} of the Secret {}/{name}", checks::namespace(credential))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use mailtoken_core::fixtures::credential;

    use crate::policy::{
        grant::{Seed, TokenNote},
        hash::{BindingHash, RevocationHash},
    };

    use super::*;

    fn named(name: &str) -> MailCredential {
        let mut credential = credential();
        credential.metadata.name = Some(name.to_owned());
        credential.metadata.uid = Some(format!("uid of {name}"));
        credential
    }

    fn stored(token: &str, seed: &str) -> GrantSecret {
        let token = TokenNote {
            hash: token.into(),
            bound_to: BindingHash::default(),
            revocable_at: RevocationHash::default(),
            obtained_at: Timestamp::UNIX_EPOCH,
            last_used_at: None,
            expires_at: None,
            rotations: 0,
        };
        let seed = Seed { hash: seed.into(), version: String::new() };
        GrantSecret { token: Some(token), seed: Some(seed), ..GrantSecret::default() }
    }

    fn take(register: &Register, name: &str, hash: &str, alive: &[&str]) -> String {
        match register.take(&named(name), &hash.into(), |name, _| alive.contains(&name)) {
            None => "taken".to_owned(),
            Some(Standing::Held(other)) => format!("held by {other}"),
            Some(Standing::Spent) => "spent".to_owned(),
        }
    }

    #[test]
    fn a_refresh_token_is_the_firsts_to_take_it_as_long_as_that_credential_exists() {
        let register = Register::default();
        assert_eq!(take(&register, "a", "t1", &["a", "b"]), "taken");
        assert_eq!(take(&register, "a", "t1", &["a", "b"]), "taken", "again");
        assert_eq!(take(&register, "b", "t1", &["a", "b"]), "held by a");
        assert_eq!(take(&register, "b", "t1", &["b"]), "taken", "it was never exchanged");
    }

    #[test]
    fn an_exchanged_token_is_known_as_spent_after_the_deletion_of_its_credential() {
        let register = Register::default();
        register.note(&named("a"), &stored("t1", "t1"));
        register.note(&named("a"), &stored("t2", "t1"));
        for hash in ["t1", "t2"] {
            assert_eq!(take(&register, "b", hash, &["a", "b"]), "held by a");
        }
        assert_eq!(take(&register, "b", "t1", &["b"]), "spent");
        assert_eq!(take(&register, "b", "t2", &["b"]), "taken", "no record says that it was replaced");
        register.note(&named("c"), &stored("t5", "t3"));
        register.note(&named("c"), &stored("t6", "t4"));
        assert_eq!(take(&register, "b", "t3", &["b", "c"]), "spent", "another seed took its place");
    }

    #[test]
    fn the_records_of_deleted_credentials_are_bounded() {
        let register = Register::default();
        for number in 0..SPENT_MAX + 10 {
            let name = number.to_string();
            register.note(&named(&name), &stored("t", &name));
            assert_eq!(take(&register, "b", &name, &["b"]), "spent");
        }
        assert_eq!(register.0.lock().spent.len(), SPENT_MAX);
        assert_eq!(register.0.lock().of.len(), 0);
    }
}
