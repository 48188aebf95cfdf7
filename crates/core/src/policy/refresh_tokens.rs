//! The registry of refresh tokens: which credential has which refresh token. Two credentials of a namespace must not
//! use the same refresh token, because a provider that replaces refresh tokens treats the second use as theft. The
//! registry keeps hashes in memory; the annotations of the grant Secrets record the same hashes. Pure.

use std::collections::{BTreeSet, HashMap, VecDeque};

use kube::{ResourceExt as _, core::ObjectMeta};
use serde_json::json;

use super::{
    Blocker, checks,
    commands::{self, KubectlObject},
    grant::{GrantSecret, Seed},
    hash::RefreshTokenHash,
    secret_metadata::controller_of,
};
use crate::api::{MailCredential, Reason, names, reference::KeyRef};

/// Maximum number of exchanged tokens, in all namespaces, that the registry remembers after the end of their
/// credential. It drops the oldest tokens first.
const SPENT_MAX: usize = 10_000;
/// Maximum number of seeds that the registry remembers, each with about 200 bytes. Beyond it, the broker reads all
/// seeds again.
const SEEDS_MAX: usize = 10_000;

/// Namespace, and hash of the refresh token.
type TokenKey = (String, RefreshTokenHash);

/// Namespace, name of the Secret, and key in the Secret.
type SeedKey = (String, String, String);

/// The refresh tokens of all credentials.
#[derive(Default)]
pub struct RefreshTokens {
    held: HashMap<TokenKey, Holder>,
    /// The tokens of each credential, by its uid.
    of: HashMap<String, BTreeSet<TokenKey>>,
    /// The seeds that the broker has read.
    seeds: HashMap<SeedKey, Seed>,
    /// Tokens that a provider has replaced and whose credential is deleted or has another seed. The oldest token is
    /// first.
    spent: VecDeque<TokenKey>,
}

/// The credential that has or had a refresh token.
#[derive(Clone, Debug)]
struct Holder {
    uid: String,
    name: String,
    /// Whether the provider has replaced the token.
    spent: bool,
}

/// Why a credential cannot claim a refresh token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenClaimant {
    /// Another credential, with this name, has the token.
    Credential(String),
    /// No credential has the token: a provider has replaced it, and the replacement is deleted.
    Spent,
}

impl TokenClaimant {
    /// Why `credential` must not use the token. `None`: it may. `strict`: the provider rejects a replaced token.
    pub fn blocker(&self, credential: &MailCredential, strict: bool) -> Option<Blocker> {
        match self {
            Self::Credential(name) => Some(held_by(credential, name)),
            Self::Spent => strict.then(|| spent(credential)),
        }
    }
}

impl RefreshTokens {
    /// Records the tokens that a credential's grant Secret describes.
    pub fn note(&mut self, credential: &MailCredential, stored: &GrantSecret) {
        let Some(token) = &stored.token else { return };
        let seed = stored.seed.as_ref().map(|seed| &seed.hash);
        let known = [Some((&token.hash, false)), seed.map(|seed| (seed, *seed != token.hash))];
        let namespace = checks::namespace(credential);
        let uid = checks::uid(credential).to_owned();
        let before = self.of.remove(&uid).unwrap_or_default();
        let mut after = BTreeSet::new();
        for (hash, spent) in known.into_iter().flatten() {
            let key = (namespace.to_owned(), hash.clone());
            let other = self.held.get(&key).is_some_and(|holder| holder.uid != uid);
            if !other {
                let holder = Holder { uid: uid.clone(), name: credential.name_any(), spent };
                self.held.insert(key.clone(), holder);
            }
            after.insert(key);
        }
        for key in before.difference(&after) {
            self.release(key.clone(), &uid);
        }
        self.of.insert(uid, after);
    }

    /// Records the content of a seed's Secret.
    pub fn note_seed(&mut self, namespace: &str, reference: &KeyRef, seed: &Seed) {
        if self.seeds.len() >= SEEDS_MAX {
            self.seeds.clear();
        }
        self.seeds.insert(seed_key(namespace, reference), seed.clone());
    }

    /// The seed at the broker's last read. `None`: the broker has not read the seed yet.
    pub fn seed(&self, namespace: &str, reference: &KeyRef) -> Option<&Seed> {
        self.seeds.get(&seed_key(namespace, reference))
    }

    /// Registers a refresh token for a credential, unless the token has a claimant, see [`Self::claimant`].
    pub fn take(
        &mut self,
        credential: &MailCredential,
        hash: &RefreshTokenHash,
        lives: impl Fn(&str, &str) -> bool,
    ) -> Option<TokenClaimant> {
        let claimant = self.claimant(credential, hash, lives);
        if claimant.is_none() {
            let key = (checks::namespace(credential).to_owned(), hash.clone());
            let uid = checks::uid(credential).to_owned();
            let holder = Holder { uid: uid.clone(), name: credential.name_any(), spent: false };
            self.held.insert(key.clone(), holder);
            self.of.entry(uid).or_default().insert(key);
        }
        claimant
    }

    /// The owner of a refresh token that `credential` wants to use. `None`: the credential may use the token. `lives`:
    /// whether a credential with this name and uid exists in the namespace. Forgets a holder that does not exist.
    pub fn claimant(
        &mut self,
        credential: &MailCredential,
        hash: &RefreshTokenHash,
        lives: impl Fn(&str, &str) -> bool,
    ) -> Option<TokenClaimant> {
        let key = (checks::namespace(credential).to_owned(), hash.clone());
        match self.held.get(&key).cloned() {
            Some(holder) if holder.uid == checks::uid(credential) => return None,
            Some(holder) if lives(&holder.name, &holder.uid) => return Some(TokenClaimant::Credential(holder.name)),
            Some(holder) => self.forget(&holder.uid),
            None => {}
        }
        self.spent.contains(&key).then_some(TokenClaimant::Spent)
    }

    /// Forgets a deleted credential. Remembers only its tokens that a provider has replaced.
    pub fn forget(&mut self, uid: &str) {
        for key in self.of.remove(uid).unwrap_or_default() {
            self.release(key, uid);
        }
    }

    fn release(&mut self, key: TokenKey, uid: &str) {
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

/// Why a Secret of the broker forbids `credential` to use a refresh token: the Secret is another credential's grant
/// Secret, and records the token. `lives`: whether a credential with this name and uid exists in the namespace.
pub fn stored_elsewhere(
    credential: &MailCredential,
    secret: &ObjectMeta,
    hash: &RefreshTokenHash,
    strict: bool,
    lives: impl Fn(&str, &str) -> bool,
) -> Option<Blocker> {
    let label = |name: &str| secret.labels.as_ref().and_then(|labels| labels.get(name)).map(String::as_str);
    if secret.namespace.as_deref() != Some(checks::namespace(credential))
        || label(names::LABEL_ROLE) != Some(names::ROLE_GRANT)
        || secret.name.as_deref() == Some(&names::grant_secret(&credential.name_any()))
    {
        return None;
    }
    let stored = GrantSecret::read(secret);
    let has = stored.token.as_ref().is_some_and(|token| token.hash.is(hash));
    let had = stored.seed.as_ref().is_some_and(|seed| seed.hash.is(hash));
    if !has && !had {
        return None;
    }
    match controller_of(secret) {
        Some(owner) if lives(&owner.name, &owner.uid) => Some(held_by(credential, &owner.name)),
        // Kubernetes deletes the grant Secret with its credential, so the replacement of the token is lost.
        Some(_) => (strict && !has).then(|| spent(credential)),
        None => Some(held_by(credential, label(names::LABEL_CREDENTIAL).unwrap_or_default())),
    }
}

/// The key with the credential's seed. `None`: the grant type has no seed.
pub fn seed_ref(credential: &MailCredential) -> Option<&KeyRef> {
    credential.spec.grant.refresh_token.as_ref().map(|grant| &grant.secret_ref)
}

fn seed_key(namespace: &str, reference: &KeyRef) -> SeedKey {
    (namespace.to_owned(), reference.name.clone(), reference.key.clone())
}

/// The blocker of a credential whose refresh token the credential `other` uses.
pub fn held_by(credential: &MailCredential, other: &str) -> Blocker {
    let another = json!({"spec": {"grant": {"refreshToken": {"secretRef": {"name": "<another Secret>"}}}}});
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
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;
    use crate::fixtures::{credential, note};

    fn named(name: &str) -> MailCredential {
        let mut credential = credential();
        credential.metadata.name = Some(name.to_owned());
        credential.metadata.uid = Some(format!("uid of {name}"));
        let grant = json!({"refreshToken": {"secretRef": {"name": "seed", "key": "token"}}});
        credential.spec.grant = serde_json::from_value(grant).unwrap();
        credential
    }

    fn stored(token: &str, seed: &str) -> GrantSecret {
        let token = crate::policy::grant::TokenNote { hash: token.into(), ..note() };
        let seed = Seed { hash: seed.into(), version: String::new() };
        GrantSecret { token: Some(token), seed: Some(seed), ..GrantSecret::default() }
    }

    fn take(tokens: &mut RefreshTokens, name: &str, hash: &str, alive: &[&str]) -> String {
        let lives = |name: &str, uid: &str| alive.contains(&name) && uid == format!("uid of {name}");
        let seen = tokens.claimant(&named(name), &hash.into(), lives);
        let taken = tokens.take(&named(name), &hash.into(), lives);
        assert_eq!(seen, taken, "{name} {hash}");
        match taken {
            None => "taken".to_owned(),
            Some(TokenClaimant::Credential(other)) => format!("held by {other}"),
            Some(TokenClaimant::Spent) => "spent".to_owned(),
        }
    }

    #[test]
    fn a_refresh_token_belongs_to_the_first_credential_that_takes_it_while_that_credential_exists() {
        let mut tokens = RefreshTokens::default();
        assert_eq!(take(&mut tokens, "a", "t1", &["a", "b"]), "taken");
        assert_eq!(take(&mut tokens, "a", "t1", &["a", "b"]), "taken", "again");
        assert_eq!(take(&mut tokens, "b", "t1", &["a", "b"]), "held by a");
        let mut elsewhere = named("b");
        elsewhere.metadata.namespace = Some("another".to_owned());
        assert_eq!(tokens.claimant(&elsewhere, &"t1".into(), |_, _| true), None, "another namespace");
        assert_eq!(take(&mut tokens, "b", "t1", &["b"]), "taken", "no provider has replaced it");
        tokens.forget("uid of b");
        assert_eq!(take(&mut tokens, "c", "t1", &["b", "c"]), "taken", "the broker knows that b is deleted");
    }

    #[test]
    fn an_exchanged_token_is_known_as_spent_after_the_deletion_of_its_credential() {
        let mut tokens = RefreshTokens::default();
        tokens.note(&named("a"), &stored("t1", "t1"));
        tokens.note(&named("a"), &stored("t2", "t1"));
        for hash in ["t1", "t2"] {
            assert_eq!(take(&mut tokens, "b", hash, &["a", "b"]), "held by a");
        }
        assert_eq!(take(&mut tokens, "b", "t1", &["b"]), "spent");
        assert_eq!(take(&mut tokens, "b", "t2", &["b"]), "taken", "no record says that it was replaced");
        tokens.note(&named("c"), &stored("t5", "t3"));
        tokens.note(&named("c"), &stored("t6", "t4"));
        assert_eq!(take(&mut tokens, "b", "t3", &["b", "c"]), "spent", "another seed took its place");
        let signing_in = GrantSecret { token: None, ..stored("", "t6") };
        tokens.note(&named("d"), &signing_in);
        assert_eq!(
            take(&mut tokens, "b", "t6", &["b", "c", "d"]),
            "held by c",
            "a Secret without a token records none"
        );
    }

    #[test]
    fn a_credential_that_records_anothers_token_does_not_release_it() {
        let mut tokens = RefreshTokens::default();
        tokens.note(&named("a"), &stored("t1", "t1"));
        tokens.note(&named("b"), &stored("t1", "t1"));
        tokens.note(&named("b"), &stored("t2", "t2"));
        assert_eq!(take(&mut tokens, "c", "t1", &["a", "b", "c"]), "held by a");
        tokens.note(&named("b"), &stored("t1", "t1"));
        tokens.forget("uid of b");
        assert_eq!(take(&mut tokens, "c", "t1", &["a", "c"]), "held by a");
    }

    #[test]
    fn the_records_of_deleted_credentials_are_bounded() {
        let mut tokens = RefreshTokens::default();
        for number in 0..SPENT_MAX + 10 {
            let name = number.to_string();
            tokens.note(&named(&name), &stored("t", &name));
            assert_eq!(take(&mut tokens, "b", &name, &["b"]), "spent");
        }
        assert_eq!(tokens.spent.len(), SPENT_MAX);
        assert_eq!(tokens.of.len(), 0);
        assert_eq!(take(&mut tokens, "b", "0", &["b"]), "taken", "the oldest is forgotten");
    }

    #[test]
    fn a_seed_is_known_by_its_namespace_secret_and_key_and_the_number_of_seeds_is_bounded() {
        let mut tokens = RefreshTokens::default();
        let reference = |name: &str, key: &str| KeyRef { name: name.to_owned(), key: key.to_owned() };
        let seed = Seed { hash: "t1".into(), version: "7".to_owned() };
        tokens.note_seed("shop", &reference("seed", "token"), &seed);
        for (namespace, name, key, known) in [
            ("shop", "seed", "token", true),
            ("other", "seed", "token", false),
            ("shop", "other", "token", false),
            ("shop", "seed", "other", false),
        ] {
            assert_eq!(
                tokens.seed(namespace, &reference(name, key)),
                known.then_some(&seed),
                "{namespace} {name} {key}"
            );
        }
        for number in 1..SEEDS_MAX {
            tokens.note_seed("shop", &reference(&number.to_string(), "token"), &seed);
        }
        assert_eq!(tokens.seeds.len(), SEEDS_MAX);
        tokens.note_seed("shop", &reference("last", "token"), &seed);
        assert_eq!(tokens.seeds.len(), 1);
    }

    #[test]
    fn a_grant_secret_of_another_credential_keeps_its_token_and_its_seed() {
        /// Fields of the Secret: namespace, name, role, controller, label with the credential's name.
        type Secret = (&'static str, &'static str, &'static str, Option<&'static str>, Option<&'static str>);
        let of_a: Secret = ("shop", "a-grant", "grant", Some("a"), Some("a"));
        let of_gone: Secret = ("shop", "gone-grant", "grant", Some("gone"), Some("gone"));
        let retained: Secret = ("shop", "a-grant", "grant", None, Some("a"));
        const HELD: Option<Reason> = Some(Reason::SecretConflict);
        const SPENT: Option<Reason> = Some(Reason::AuthorizationRequired);
        // The Secret, its token, its seed, whether the provider is strict, and the blocker's reason and holder.
        type Row<'a> = (&'a str, Secret, &'a str, &'a str, bool, Option<Reason>, &'a str);
        let table: [Row<'_>; 13] = [
            ("has the token", of_a, "t1", "t0", true, HELD, "MailCredential a uses"),
            ("had the token", of_a, "t2", "t1", true, HELD, "MailCredential a uses"),
            ("had the token, which stays valid", of_a, "t2", "t1", false, HELD, "MailCredential a uses"),
            ("has other tokens", of_a, "t2", "t0", true, None, ""),
            ("had the token and is deleted", of_gone, "t2", "t1", true, SPENT, "exchanged before"),
            ("had the token, which stays valid, and is deleted", of_gone, "t2", "t1", false, None, ""),
            ("has the token and is deleted", of_gone, "t1", "t1", true, None, ""),
            ("is retained", retained, "t1", "t1", true, HELD, "MailCredential a uses"),
            (
                "is retained without a label",
                ("shop", "a-grant", "grant", None, None),
                "t1",
                "t1",
                true,
                HELD,
                "MailCredential  uses",
            ),
            ("is in another namespace", ("other", "a-grant", "grant", Some("a"), None), "t1", "t1", true, None, ""),
            ("is a target Secret", ("shop", "a-grant", "", Some("a"), None), "t1", "t1", true, None, ""),
            ("is the credential's own", ("shop", "b-grant", "grant", Some("a"), None), "t1", "t1", true, None, ""),
            (
                "has the name of another uid",
                ("shop", "a-grant", "grant", Some("A"), None),
                "t2",
                "t1",
                true,
                SPENT,
                "exchanged before",
            ),
        ];
        for (name, (namespace, secret, role, owner, label), token, seed, strict, reason, words) in table {
            let labels = [Some((names::LABEL_ROLE, role)), label.map(|label| (names::LABEL_CREDENTIAL, label))];
            let seed = json!({"hash": seed, "version": "1"}).to_string();
            let annotations = [
                (names::ANNOTATION_FINGERPRINT, token),
                (names::ANNOTATION_OBTAINED_AT, "2026-01-01T00:00:00Z"),
                (names::ANNOTATION_SEED, &seed),
            ];
            let owned = |map: Vec<(&str, &str)>| map.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
            let meta = ObjectMeta {
                namespace: Some(namespace.to_owned()),
                name: Some(secret.to_owned()),
                labels: Some(owned(labels.into_iter().flatten().collect())),
                annotations: Some(owned(annotations.to_vec())),
                owner_references: owner.map(|owner| {
                    let reference = OwnerReference {
                        name: owner.to_lowercase(),
                        uid: format!("uid of {owner}"),
                        controller: Some(true),
                        ..OwnerReference::default()
                    };
                    vec![reference]
                }),
                ..ObjectMeta::default()
            };
            let lives = |name: &str, uid: &str| name == "a" && uid == "uid of a";
            let blocker = stored_elsewhere(&named("b"), &meta, &"t1".into(), strict, lives);
            assert_eq!(blocker.as_ref().map(|blocker| blocker.reason), reason, "{name}");
            let message = blocker.map(|blocker| blocker.message).unwrap_or_default();
            assert!(message.contains(words), "{name}: {message}");
        }
    }

    #[test]
    fn a_blocker_names_the_secret_the_holder_and_the_commands() {
        let login = "mail-token-broker login --provider idp -n shop --mailbox 'billing@example.org' --secret seed";
        let held = TokenClaimant::Credential("a".to_owned());
        for strict in [true, false] {
            let blocker = held.blocker(&named("b"), strict).unwrap();
            assert_eq!(blocker.reason, Reason::SecretConflict);
            assert_eq!(
                blocker.message,
                format!(
                    "the MailCredential a uses the refresh token in key token of the Secret shop/seed. A provider may end a \
                     sign-in if two credentials use its refresh token: sign in again for this one with `{login}`, and refer \
                     to that Secret with `kubectl -n shop patch mailcredential b --type merge -p \
                     '{{\"spec\":{{\"grant\":{{\"refreshToken\":{{\"secretRef\":{{\"name\":\"<another Secret>\"}}}}}}}}}}'`"
                )
            );
        }
        assert_eq!(TokenClaimant::Spent.blocker(&named("b"), false), None, "the provider keeps replaced tokens valid");
        let blocker = TokenClaimant::Spent.blocker(&named("b"), true).unwrap();
        assert_eq!(blocker.reason, Reason::AuthorizationRequired);
        assert_eq!(
            blocker.message,
            format!(
                "the refresh token in key token of the Secret shop/seed was exchanged before, and its successor was deleted \
                 with its MailCredential. The provider may treat a second use as theft: sign in again with `{login}`"
            )
        );
    }
}
