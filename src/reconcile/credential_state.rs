//! The state of one credential: what the watches do not show, and the broker's latest writes, which a watch shows a
//! moment later.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::core::ObjectMeta;
use secrecy::SecretString;

use crate::{
    api::MailCredential,
    policy::{
        hash::LayoutHash,
        observed::{History, TokenFacts, UnwrittenToken},
        outcome::Outcome,
        probe::state::ProbeState,
        revocation::Revocation,
    },
    reconcile::custody::pending::PendingGrantWrite,
};

/// The state of one credential. Thousands of states may exist at the same time, so large parts are boxed.
#[derive(Default)]
pub struct CredentialState {
    /// The term of leadership ([`Leadership::tenure`](crate::lease::Leadership::tenure)) in which the state was created.
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
    /// Time since which the report of a token's expiry waits: for an object that no watch has shown, or for the response to
    /// a request, counted from the time at which the request asked for its permit. While a request only waits for its
    /// permit, the admission has this time.
    pub waiting_since: Option<Timestamp>,
    /// Whether the broker writes nothing until a user changes something. A shutdown does not wait for such a
    /// credential.
    pub stuck: bool,
}

/// The state of a credential's last request.
#[derive(Default)]
pub struct AttemptState {
    /// Time at which a task got the permit for a request. A request that waits for a permit is not in flight.
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
    pub(super) fn is_blank(&self) -> bool {
        let Self { tenure: _, object, attempt, custody, sign_in, probe } = self;
        object.is_blank() && attempt.is_blank() && custody.is_blank() && sign_in.is_blank() && probe.is_blank()
    }

    /// Drops values that another replica may have changed in its term. Keeps an issued token and a pending refresh
    /// token: the broker compares both with their Secrets before it writes them.
    pub(super) fn enter(&mut self, tenure: u64) {
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
