//! What the broker knows of each credential beyond what the watches show: work under way, tokens not yet written, and
//! its own latest writes, which a watch shows a moment later.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::jiff::Timestamp;
use kube::core::ObjectMeta;
use parking_lot::Mutex;
use secrecy::SecretString;

use super::{act::Outcome, custody::Unsaved};
use crate::{
    api::MailCredential,
    policy::observed::{Held, History, TokenFacts},
};

/// By uid, one entry for each credential of which there is something to remember.
#[derive(Default)]
pub struct Memory(Mutex<HashMap<String, Box<Entry>>>);

/// What is remembered of one credential.
#[derive(Default)]
pub struct Entry {
    /// The object as the broker last wrote its status.
    pub written: Option<Arc<MailCredential>>,
    /// The target's metadata as the broker last wrote or read it.
    pub target: Option<Arc<ObjectMeta>>,
    /// What reading the target's data showed.
    pub inspected: Option<Inspected>,
    /// The target exists and is not the credential's: it is looked at each time.
    pub conflict: bool,
    /// A token request is under way, since then.
    pub in_flight: Option<Timestamp>,
    /// How the last one ended, not yet worked into the status.
    pub outcome: Option<Outcome>,
    /// What attempts came to, while no status tells it yet.
    pub untold: Option<History>,
    /// A token that is not written yet.
    pub held: Option<Held>,
    /// The grant Secret's metadata as the broker last wrote or read it.
    pub grant: Option<Arc<ObjectMeta>>,
    /// A refresh token that is not written yet.
    pub unsaved: Option<Unsaved>,
    /// The seed's version that was found to be the one which the grant was begun with.
    pub seed_seen: Option<String>,
    /// The user code of the sign-in that is waited for, and its device code.
    pub device_code: Option<(String, SecretString)>,
    /// The provider is not asked about the sign-in before this.
    pub next_poll: Option<Timestamp>,
    /// How many times in a row it has not answered.
    pub unanswered: u32,
    /// The user code that the provider has ended.
    pub code_over: Option<String>,
    /// Nothing is written until somebody has changed something: a shutdown does not wait for that.
    pub stuck: bool,
}

/// What reading a Secret's data showed, for one resourceVersion.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspected {
    /// The resourceVersion that was read.
    pub resource_version: String,
    /// The layout that its content was compared with.
    pub layout: String,
    /// The token in it.
    pub token: Option<TokenFacts>,
    /// Content and metadata are as the broker writes them.
    pub intact: bool,
    /// It is immutable or of another type.
    pub must_recreate: bool,
}

impl Entry {
    /// Whether it says no more than a new one.
    fn is_blank(&self) -> bool {
        // All of them, so that one which is added is not forgotten here.
        let Self {
            written,
            target,
            inspected,
            conflict,
            in_flight,
            outcome,
            untold,
            held,
            grant,
            unsaved,
            seed_seen,
            device_code,
            next_poll,
            unanswered,
            code_over,
            stuck,
        } = self;
        let object = written.is_none() && target.is_none() && inspected.is_none() && !conflict && !stuck;
        let attempt = in_flight.is_none() && outcome.is_none() && untold.is_none() && held.is_none();
        let custody = grant.is_none() && unsaved.is_none() && seed_seen.is_none();
        let sign_in = device_code.is_none() && next_poll.is_none() && *unanswered == 0 && code_over.is_none();
        object && attempt && custody && sign_in
    }
}

impl Memory {
    /// Works on the entry of a credential.
    pub fn with<T>(&self, uid: &str, work: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entries = self.0.lock();
        work(entries.entry(uid.to_owned()).or_default())
    }

    /// Gives up the entry of a credential where nothing is left to remember: most of thousands are at rest.
    pub fn tidy(&self, uid: &str) {
        let mut entries = self.0.lock();
        if entries.get(uid).is_some_and(|entry| entry.is_blank()) {
            entries.remove(uid);
        }
    }

    /// Leaves the outcome of a token request. A credential that is gone meanwhile has no use for it.
    pub fn finish(&self, uid: &str, outcome: Option<Outcome>) {
        if let Some(entry) = self.0.lock().get_mut(uid) {
            entry.in_flight = None;
            entry.outcome = outcome;
        }
    }

    /// Forgets what another broker, which leads now, will have changed: when it polls, and which sign-in.
    pub fn stand_by(&self, uid: &str) {
        if let Some(entry) = self.0.lock().get_mut(uid) {
            (entry.device_code, entry.next_poll) = (None, None);
        }
    }

    /// Lets all sign-ins be asked for soon: the clock was set, by which that was to be.
    pub fn poll_soon(&self) {
        self.0.lock().values_mut().for_each(|entry| entry.next_poll = None);
    }

    /// Forgets a credential that is gone.
    pub fn forget(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    /// How many refresh tokens are only here, because they could not be stored yet.
    pub fn unstored(&self) -> usize {
        self.0.lock().values().filter(|entry| entry.unsaved.is_some()).count()
    }

    /// Whether anything is under way or not yet written: a shutdown waits for it. Who does not lead writes nothing but a
    /// refresh token that nobody else has.
    pub fn is_busy(&self, leads: bool) -> bool {
        let busy = |entry: &Entry| {
            let awaited = entry.in_flight.is_some() || entry.unsaved.is_some();
            awaited || leads && (entry.outcome.is_some() || entry.held.is_some() && !entry.stuck)
        };
        self.0.lock().values().any(|entry| busy(entry))
    }
}

/// Of what a watch shows and what the broker wrote itself, the newer. A store that has caught up makes the memory
/// unnecessary. resourceVersions are comparable numbers (KEP-5504).
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
        // The watch has not shown our write yet, or the object is gone: the caller knows which.
        (None, _) => None,
    }
}
