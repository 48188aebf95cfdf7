//! The credential of each refresh token, by the stores. [`RefreshTokens`] decides.

use std::sync::Arc;

use kube::ResourceExt as _;
use parking_lot::Mutex;

use crate::{
    api::{MailCredential, names, reference::KeyRef},
    policy::{
        Blocker, checks,
        grant::{GrantSecret, Seed},
        hash::RefreshTokenHash,
        refresh_tokens::{RefreshTokens, TokenClaimant, held_by, seed_ref, stored_elsewhere},
    },
    stores::Stores,
};

/// The refresh tokens of all credentials.
#[derive(Default)]
pub struct Register(Mutex<RefreshTokens>);

impl Register {
    /// Records the tokens that a credential's grant Secret describes.
    pub(super) fn note(&self, credential: &MailCredential, stored: &GrantSecret) {
        self.0.lock().note(credential, stored);
    }

    /// Records the content of a seed's Secret.
    pub(super) fn note_seed(&self, namespace: &str, reference: &KeyRef, seed: &Seed) {
        self.0.lock().note_seed(namespace, reference, seed);
    }

    /// Whether the broker has read this version of a seed's Secret.
    pub(super) fn knows(&self, namespace: &str, reference: &KeyRef, version: &str) -> bool {
        self.0.lock().seed(namespace, reference).is_some_and(|seed| seed.version == version)
    }

    /// Whether a seed's Secret held this refresh token at the last read.
    fn has(&self, namespace: &str, reference: &KeyRef, hash: &RefreshTokenHash) -> bool {
        self.0.lock().seed(namespace, reference).is_some_and(|seed| seed.hash == *hash)
    }

    /// Forgets a deleted credential.
    pub fn forget(&self, uid: &str) {
        self.0.lock().forget(uid);
    }

    /// Returns why a credential must not take a seed over; `None` if it may. `strict`: the provider no longer accepts a
    /// replaced token.
    pub(super) fn seed_blocker(
        &self,
        credential: &MailCredential,
        hash: &RefreshTokenHash,
        strict: bool,
        stores: &Stores,
    ) -> Option<Blocker> {
        let claimant = self.0.lock().claimant(credential, hash, lives(credential, stores));
        // The message names the credential that has the token, rather than an older credential that waits for the token too.
        if !matches!(claimant, Some(TokenClaimant::Credential(_)))
            && let Some(older) = self.older_by_the_same_token(credential, hash, stores)
        {
            return Some(held_by(credential, &older));
        }
        claimant?.blocker(credential, strict)
    }

    /// Takes the seed over for the credential, or returns why the credential must not have it. Also reads the grant Secrets
    /// that no reconcile has recorded since the start.
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
        // The store never packs grant Secrets.
        let mut secrets = stores.own_secrets.whole().into_iter();
        let lives = lives(credential, stores);
        secrets.find_map(|secret| stored_elsewhere(credential, &secret.metadata, hash, strict, &lives)).or_else(|| {
            let claimant = self.0.lock().take(credential, hash, &lives);
            claimant?.blocker(credential, strict)
        })
    }

    /// Returns an older credential with the same seed: it refers to the same key of the same Secret, or to another
    /// Secret with the same token that it has not taken over yet.
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
}

/// Returns a function that checks whether a credential with this name and uid exists in the same namespace.
fn lives<'a>(credential: &'a MailCredential, stores: &'a Stores) -> impl Fn(&str, &str) -> bool + 'a {
    move |name, uid| {
        let shown = stores.credentials.get(checks::namespace(credential), name);
        shown.is_some_and(|shown| shown.metadata.uid.as_deref() == Some(uid))
    }
}

/// Returns the older credentials of the namespace with a seed that have no grant yet, or refer to the same seed. Of two
/// credentials created in the same second, the one with a grant is the older; otherwise the one whose name is first.
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
