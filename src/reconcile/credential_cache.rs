//! The states of all credentials, by uid.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;

use crate::{
    api::MailCredential,
    lease::Leadership,
    policy::{checks, outcome::Outcome, spacing::Spacing},
    reconcile::{
        credential_state::{CredentialState, newer_credential},
        custody::register::Register,
        recent_writes::RecentWrites,
    },
};

/// The states of the credentials in the store, by uid. A state lives as long as its object. The cache drops later
/// results for the uid, except a refresh token that the broker is storing.
pub struct CredentialCache {
    objects: Mutex<Objects>,
    leadership: Leadership,
    /// The times of the last writes of Secrets.
    pub writes: RecentWrites,
    /// The owner of each refresh token.
    pub register: Register,
}

#[derive(Default)]
struct Objects {
    /// Credentials that exist; `None` for a credential without a state.
    live: HashMap<Box<str>, Option<Box<CredentialState>>>,
    /// Deleted credentials with a refresh token that the broker has not stored yet.
    orphans: HashMap<Box<str>, Box<CredentialState>>,
    /// The latest writes of statuses of credentials and providers, by uid.
    statuses: HashMap<Box<str>, Spacing>,
}

impl CredentialCache {
    /// Creates an empty cache. `leadership` gives the term in which states are created.
    pub fn new(leadership: Leadership) -> Self {
        Self { objects: Mutex::default(), leadership, writes: RecentWrites::default(), register: Register::default() }
    }

    /// Records that a credential exists. The caller calls this before the store holds the credential.
    pub fn begin(&self, uid: &str) {
        let mut objects = self.objects.lock();
        if !objects.live.contains_key(uid) {
            objects.live.insert(uid.into(), None);
        }
    }

    /// Runs `work` on the state of a credential. For a deleted credential, drops the state afterwards, unless it holds
    /// a pending refresh token.
    pub fn with<T>(&self, uid: &str, work: impl FnOnce(&mut CredentialState) -> T) -> T {
        let mut objects = self.objects.lock();
        if let Some(entry) = objects.live.get_mut(uid) {
            let entry = entry.get_or_insert_default();
            entry.enter(self.leadership.tenure());
            return work(entry);
        }
        let mut orphan = objects.orphans.remove(uid).unwrap_or_default();
        let done = work(&mut orphan);
        if orphan.custody.unsaved.is_some() {
            objects.orphans.insert(uid.into(), orphan);
        }
        done
    }

    /// Frees the broker's copy of a credential if the store has this version or a newer one. A copy takes about 4 KB, so
    /// thousands must not wait for a reconcile.
    pub fn shown(&self, credential: &Arc<MailCredential>) {
        let mut objects = self.objects.lock();
        let Some(entry) = objects.live.get_mut(checks::uid(credential)) else { return };
        if let Some(state) = entry {
            newer_credential(credential, state);
        }
        entry.take_if(|state| state.is_blank());
    }

    /// Frees the state of a credential if it is blank. Most states are blank. Returns whether the credential exists.
    pub fn tidy(&self, uid: &str) -> bool {
        let mut objects = self.objects.lock();
        let entry = objects.live.get_mut(uid);
        entry.map(|entry| entry.take_if(|entry| entry.is_blank())).is_some()
    }

    /// Stores the outcome of a request for the next reconcile; drops it if the credential was deleted.
    pub fn finish(&self, uid: &str, outcome: Option<Outcome>) {
        if let Some(Some(entry)) = self.objects.lock().live.get_mut(uid) {
            entry.attempt.in_flight = None;
            entry.attempt.outcome = outcome;
        }
    }

    /// Forgets the device code and the time of the next poll, which the new leader will change. The cache drops other
    /// values when a new term of leadership begins.
    pub fn stand_by(&self, uid: &str) {
        if let Some(Some(entry)) = self.objects.lock().live.get_mut(uid) {
            (entry.sign_in.device_code, entry.sign_in.next_poll) = (None, None);
        }
    }

    /// Forgets the times of the next polls: the broker computed them before the clock was set.
    pub fn poll_soon(&self) {
        self.objects.lock().live.values_mut().flatten().for_each(|entry| entry.sign_in.next_poll = None);
    }

    /// Forgets the broker's own writes: the API server was restored from a backup, and its resourceVersions start again
    /// at lower numbers.
    pub fn forget_writes(&self) {
        for entry in self.objects.lock().live.values_mut().flatten() {
            (entry.object.written, entry.object.target, entry.custody.grant, entry.object.inspected) =
                (None, None, None, None);
        }
    }

    /// Forgets a deleted credential, except a pending refresh token if `retain`. Returns whether a pending one exists.
    pub fn forget(&self, uid: &str, retain: bool) -> bool {
        let mut objects = self.objects.lock();
        let entry = objects.live.remove(uid).flatten();
        if let Some(entry) = entry.filter(|entry| retain && entry.custody.unsaved.is_some()) {
            objects.orphans.insert(uid.into(), entry);
        }
        objects.orphans.contains_key(uid)
    }

    /// Forgets a deleted credential and its refresh tokens, except a pending one if `retain`. Returns whether a pending
    /// one exists.
    pub fn evict(&self, uid: &str, retain: bool) -> bool {
        let pending = self.forget(uid, retain);
        self.register.forget(uid);
        pending
    }

    /// Whether a deleted credential has a pending refresh token.
    pub fn is_orphaned(&self, uid: &str) -> bool {
        self.objects.lock().orphans.contains_key(uid)
    }

    /// Forgets the pending refresh tokens of deleted credentials that arrived at `before` or earlier. Returns their
    /// number.
    pub fn forget_orphans(&self, before: Timestamp) -> usize {
        let orphans = &mut self.objects.lock().orphans;
        let count = orphans.len();
        orphans.retain(|_, entry| entry.custody.unsaved.as_ref().is_some_and(|unsaved| unsaved.since() > before));
        count - orphans.len()
    }

    /// Records that the broker writes the status of an object now, or returns the time at which it may. Two brokers
    /// that overwrite each other's status would otherwise write as fast as they can. `version` identifies the inputs of
    /// the status.
    pub fn defer_status(&self, uid: &str, version: &str, now: Timestamp) -> Option<Timestamp> {
        let version = BuildHasherDefault::<DefaultHasher>::default().hash_one(version);
        let statuses = &mut self.objects.lock().statuses;
        match statuses.get_mut(uid) {
            Some(spacing) => spacing.defer(version, now),
            None => {
                let mut spacing = Spacing::new(version, now);
                let due = spacing.defer(version, now);
                statuses.insert(uid.into(), spacing);
                due
            }
        }
    }

    /// Forgets writes of statuses that no longer limit another write at `now`.
    pub fn forget_statuses(&self, now: Timestamp) {
        self.objects.lock().statuses.retain(|_, spacing| !spacing.is_forgotten(now));
    }

    /// Whether a request of the credential is in flight, or its result is not written yet.
    pub fn is_under_way(&self, uid: &str) -> bool {
        match self.objects.lock().live.get(uid) {
            Some(Some(entry)) => {
                entry.attempt.in_flight.is_some()
                    || entry.attempt.outcome.is_some()
                    || entry.attempt.unwritten.is_some()
            }
            _ => false,
        }
    }

    /// Returns the number of refresh tokens that exist only in memory.
    pub fn unstored(&self) -> usize {
        let objects = self.objects.lock();
        let entries = objects.live.values().flatten().chain(objects.orphans.values());
        entries.filter(|entry| entry.custody.unsaved.is_some()).count()
    }

    /// Whether a request is in flight or a result is unwritten: a shutdown waits for both. A replica that does not lead
    /// writes only pending refresh tokens. Of deleted credentials, only pending refresh tokens count.
    pub fn is_busy(&self, leads: bool) -> bool {
        let busy = |entry: &CredentialState| {
            let awaited = entry.attempt.in_flight.is_some() || entry.custody.unsaved.is_some();
            awaited
                || leads
                    && (entry.attempt.outcome.is_some() || entry.attempt.unwritten.is_some() && !entry.object.stuck)
        };
        let objects = self.objects.lock();
        !objects.orphans.is_empty() || objects.live.values().flatten().any(|entry| busy(entry))
    }
}

#[cfg(test)]
mod tests {
    use mailtoken_core::fixtures;

    use crate::{
        api::status::ClientStatus,
        policy::hash::{BindingHash, RevocationHash},
        reconcile::custody::pending::{PendingGrantWrite, SignedIn},
    };

    use super::*;

    const UID: &str = "6d1b8f0e-0000-4000-8000-000000000001";

    fn cache() -> CredentialCache {
        let cache = CredentialCache::new(Leadership::always());
        cache.begin(UID);
        cache
    }

    fn unsaved(at: Timestamp) -> PendingGrantWrite {
        PendingGrantWrite::SignedIn(SignedIn {
            rotated: None,
            bound_to: BindingHash::default(),
            revocable_at: RevocationHash::default(),
            at,
        })
    }

    #[test]
    fn a_state_is_small() {
        // 512 bytes are a size class of the allocator. Every credential with a request in flight has a state.
        assert!(size_of::<CredentialState>() <= 512, "{}", size_of::<CredentialState>());
    }

    #[test]
    fn the_copy_of_a_written_credential_is_freed_when_the_watch_shows_it() {
        let version = |version: &str| {
            let mut credential = fixtures::credential();
            credential.metadata.uid = Some(UID.to_owned());
            credential.metadata.resource_version = Some(version.to_owned());
            Arc::new(credential)
        };
        for (shown, freed) in [("9", false), ("10", true), ("11", true)] {
            let cache = cache();
            cache.with(UID, |entry| entry.object.written = Some(version("10")));
            cache.shown(&version(shown));
            assert_eq!(cache.objects.lock().live[UID].is_none(), freed, "{shown}");
        }
        let cache = cache();
        cache.shown(&version("10"));
        assert!(cache.objects.lock().live[UID].is_none(), "no state is made");
    }

    #[test]
    fn a_credential_that_is_gone_leaves_nothing_behind() {
        let cache = cache();
        cache.with(UID, |entry| entry.attempt.in_flight = Some(Timestamp::UNIX_EPOCH));
        assert!(cache.is_busy(true) && cache.is_under_way(UID));
        cache.forget(UID, true);
        assert!(!cache.is_busy(true));
        // The response arrives after the deletion.
        cache.with(UID, |entry| entry.sign_in.next_poll = Some(Timestamp::UNIX_EPOCH));
        cache.finish(UID, None);
        assert!(!cache.is_busy(true) && cache.objects.lock().live.is_empty());
        assert_eq!(cache.with(UID, |entry| entry.sign_in.next_poll), None);
    }

    #[test]
    fn a_refresh_token_outlives_its_credential_until_it_is_stored_or_too_old() {
        let (cache, at) = (cache(), Timestamp::from_second(1_000).unwrap());
        cache.forget(UID, true);
        cache.with(UID, |entry| entry.custody.unsaved = Some(unsaved(at).into()));
        assert!(cache.is_busy(false) && cache.with(UID, |entry| entry.custody.unsaved.is_some()));
        assert_eq!(cache.forget_orphans(Timestamp::UNIX_EPOCH), 0);
        assert_eq!(cache.forget_orphans(at), 1);
        assert!(!cache.is_busy(false));
        cache.with(UID, |entry| entry.custody.unsaved = Some(unsaved(at).into()));
        cache.with(UID, |entry| entry.custody.unsaved = None);
        assert!(!cache.is_busy(false));
    }

    #[test]
    fn a_refresh_token_that_arrived_before_the_deletion_is_kept_where_its_secret_is() {
        for retain in [true, false] {
            let cache = cache();
            cache.with(UID, |entry| entry.custody.unsaved = Some(unsaved(Timestamp::UNIX_EPOCH).into()));
            assert_eq!(cache.forget(UID, retain), retain);
            assert_eq!((cache.is_orphaned(UID), cache.is_busy(false)), (retain, retain));
        }
    }

    #[test]
    fn a_new_term_keeps_only_obtained_tokens() {
        let mut entry = CredentialState::default();
        entry.custody.unsaved = Some(unsaved(Timestamp::UNIX_EPOCH).into());
        entry.attempt.unreported = Some(Box::default());
        entry.sign_in.next_poll = Some(Timestamp::UNIX_EPOCH);
        let client = ClientStatus { method: "clientSecret".to_owned(), index: 0, expires_at: None };
        entry.attempt.outcome = Some(Outcome::Noted { client });
        entry.enter(0);
        assert!(entry.attempt.unreported.is_some() && entry.attempt.outcome.is_some(), "the same tenure");
        entry.enter(1);
        assert!(
            entry.attempt.unreported.is_none() && entry.attempt.outcome.is_none() && entry.sign_in.next_poll.is_none()
        );
        assert!(entry.custody.unsaved.is_some());
    }
}
