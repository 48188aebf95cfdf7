//! The broker's knowledge of each credential that the watches do not show: requests in flight, unwritten tokens, and
//! the broker's latest writes, which a watch shows a moment later.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;
use kube::core::ObjectMeta;
use parking_lot::Mutex;
use secrecy::SecretString;

use crate::{
    api::MailCredential,
    lease::Leadership,
    policy::{
        checks,
        hash::LayoutHash,
        observed::{History, TokenFacts, UnwrittenToken},
        outcome::Outcome,
        probe::state::ProbeState,
        revocation::Revocation,
        spacing::Spacing,
    },
    reconcile::{
        custody::{pending::PendingGrantWrite, register::Register},
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

/// The state of one credential. Thousands of states may exist at the same time, so large parts are boxed.
#[derive(Default)]
pub struct CredentialState {
    /// The term of leadership ([`Leadership::tenure`]) in which the state was created.
    tenure: u64,
    /// The state of the credential's object and its target Secret.
    pub object: ObjectState,
    /// The state of the credential's last request.
    pub attempt: AttemptState,
    /// The state of the credential's grant Secret.
    pub custody: CustodyState,
    /// The state of the credential's sign-in by a device code.
    pub sign_in: SignInState,
    /// The state of the credential's probe and its logins.
    pub probe: ProbeState,
}

/// The state of a credential's object and its target Secret.
#[derive(Default)]
pub struct ObjectState {
    /// The object after the broker's last write of the status.
    pub written: Option<Arc<MailCredential>>,
    /// The metadata of the target Secret after the broker's last write or read.
    pub target: Option<Arc<ObjectMeta>>,
    /// The result of the last read of the target's data.
    pub inspected: Option<Box<Inspected>>,
    /// Whether the target Secret belongs to another object. If so, each reconcile reads the Secret.
    pub conflict: bool,
    /// Time since which the report of a token's expiry waits: for an object that no watch has shown, for a permit, or
    /// for a response. `None` while a request only waits for a permit: the admission then has this time.
    pub waiting_since: Option<Timestamp>,
    /// Whether the broker writes nothing until a user changes something. A shutdown does not wait for such a
    /// credential.
    pub stuck: bool,
}

/// The state of a credential's last request.
#[derive(Default)]
pub struct AttemptState {
    /// Time at which the request in flight was sent. A request that waits for a permit is not in flight.
    pub in_flight: Option<Timestamp>,
    /// The outcome of the last request, which no reconcile has recorded yet.
    pub outcome: Option<Outcome>,
    /// The history with the last outcome, which no status reports yet.
    pub unreported: Option<Box<History>>,
    /// A token that the broker has not written yet.
    pub unwritten: Option<Box<UnwrittenToken>>,
    /// The progress of the revocation of the deleted credential.
    pub revoking: Option<Revoking>,
}

/// The state of a credential's grant Secret.
#[derive(Default)]
pub struct CustodyState {
    /// The metadata of the grant Secret after the broker's last write or read.
    pub grant: Option<Arc<ObjectMeta>>,
    /// Earliest time at which the broker repairs labels and owner again after another writer has reverted them.
    pub sync_again: Option<Timestamp>,
    /// A refresh token that the broker has not written yet.
    pub unsaved: Option<Box<PendingGrantWrite>>,
    /// The version of the seed's Secret that contains the seed with which the grant began.
    pub seed_seen: Option<Box<str>>,
}

/// The state of a credential's sign-in by a code.
#[derive(Default)]
pub struct SignInState {
    /// The user code in the status, and its device code.
    pub device_code: Option<(String, SecretString)>,
    /// Earliest time of the next poll.
    pub next_poll: Option<Timestamp>,
    /// Number of consecutive polls without a response.
    pub unanswered: u32,
    /// The user code that the provider has ended.
    pub code_over: Option<Box<str>>,
}

/// The progress of a deleted credential's revocation. While the request is in flight, [`AttemptState::in_flight`] is
/// set.
#[derive(Clone, Debug)]
pub enum Revoking {
    /// The revocation failed, and the broker retries it.
    Again {
        /// The earliest time of the retry.
        at: Timestamp,
        /// The reason of the failure, for the Event.
        why: String,
    },
    /// The revocation has ended. The broker must still remove the finalizer.
    Over {
        revocation: Revocation,
        /// Whether an Event has reported the result.
        reported: bool,
    },
    /// The broker has removed the finalizer. The watch shows the removal later.
    Released,
}

/// The result of a read of a target Secret's data, for one resourceVersion.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspected {
    /// The resourceVersion of the read Secret.
    pub resource_version: String,
    /// The layout with which the broker compared the content.
    pub layout: LayoutHash,
    /// The token in the Secret.
    pub token: Option<TokenFacts>,
    /// Whether content and metadata are as the broker writes them.
    pub intact: bool,
    /// Whether the Secret is immutable or has another type.
    pub must_recreate: bool,
}

impl CredentialState {
    /// Whether the state equals a new one.
    fn is_blank(&self) -> bool {
        let Self { tenure: _, object, attempt, custody, sign_in, probe } = self;
        object.is_blank() && attempt.is_blank() && custody.is_blank() && sign_in.is_blank() && probe.is_blank()
    }

    /// Drops values that another replica may have changed in its term. Keeps an issued token and a pending refresh
    /// token: the broker compares both with their Secrets before it writes them.
    fn enter(&mut self, tenure: u64) {
        if self.tenure == tenure {
            return;
        }
        self.tenure = tenure;
        let Self { object, attempt, custody, sign_in, probe, .. } = self;
        (object.inspected, object.conflict, object.stuck) = (None, false, false);
        attempt.outcome.take_if(|outcome| !matches!(outcome, Outcome::Issued(_)));
        (attempt.unreported, attempt.revoking) = (None, None);
        custody.seed_seen = None;
        *sign_in = SignInState::default();
        probe.restart();
    }
}

// Each `is_blank` names all fields, so that the compiler reports a new field.

impl ObjectState {
    fn is_blank(&self) -> bool {
        let Self { written, target, inspected, conflict, waiting_since, stuck } = self;
        let nothing = written.is_none() && target.is_none() && inspected.is_none() && waiting_since.is_none();
        nothing && !conflict && !stuck
    }
}

impl AttemptState {
    fn is_blank(&self) -> bool {
        let Self { in_flight, outcome, unreported, unwritten, revoking } = self;
        in_flight.is_none() && outcome.is_none() && unreported.is_none() && unwritten.is_none() && revoking.is_none()
    }
}

impl CustodyState {
    fn is_blank(&self) -> bool {
        let Self { grant, sync_again, unsaved, seed_seen } = self;
        grant.is_none() && sync_again.is_none() && unsaved.is_none() && seed_seen.is_none()
    }
}

impl SignInState {
    fn is_blank(&self) -> bool {
        let Self { device_code, next_poll, unanswered, code_over } = self;
        device_code.is_none() && next_poll.is_none() && *unanswered == 0 && code_over.is_none()
    }
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

    /// Frees the state of a credential if it is blank. Most states are blank.
    pub fn tidy(&self, uid: &str) {
        if let Some(entry) = self.objects.lock().live.get_mut(uid) {
            entry.take_if(|entry| entry.is_blank());
        }
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

/// Returns the newer of the credential in the store and the credential that the broker wrote. Clears the latter when the
/// store has caught up.
pub fn newer_credential(shown: &Arc<MailCredential>, entry: &mut CredentialState) -> Arc<MailCredential> {
    newer(Some(shown.clone()), &mut entry.object.written, |object| object.metadata.resource_version.as_deref())
        .unwrap_or_else(|| shown.clone())
}

/// Returns the newer of the object in the store and the object that the broker wrote. Clears `written` when the store
/// has caught up. resourceVersions are comparable numbers (KEP-5504).
pub fn newer<T>(
    shown: Option<Arc<T>>,
    written: &mut Option<Arc<T>>,
    version: impl Fn(&T) -> Option<&str>,
) -> Option<Arc<T>> {
    let number = |object: &Arc<T>| version(object).and_then(|version| version.parse::<u64>().ok());
    match (&shown, &*written) {
        (Some(seen), Some(own)) if number(seen) < number(own) => Some(own.clone()),
        (Some(_), _) => {
            *written = None;
            shown
        }
        // The watch does not show the broker's write yet, or the object was deleted. The caller distinguishes both.
        (None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use mailtoken_core::fixtures;

    use crate::{
        api::status::ClientStatus,
        policy::hash::{BindingHash, RevocationHash},
        reconcile::custody::pending::SignedIn,
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
