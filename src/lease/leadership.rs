//! Reports to the rest of the broker whether this replica leads.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::{DURATION, RENEW_DEADLINE, monotonic};

/// Whether this replica leads. Clones and reads are cheap.
#[derive(Clone, Debug)]
pub struct Leadership(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    term: Mutex<Term>,
    /// How many times this replica took the lease.
    tenure: AtomicU64,
    announced: watch::Sender<Standing>,
}

/// The state that [`Leadership::changes`] announces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether this replica leads.
    pub leads: bool,
    /// Number of terms that ended and were renewed before [`Leadership::changes`] announced the end.
    lapses: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Term {
    None,
    Until(Instant),
    Always,
}

impl Default for Leadership {
    fn default() -> Self {
        Self::new()
    }
}

impl Leadership {
    /// Creates a leadership without a term, for [`run`](super::run).
    pub fn new() -> Self {
        Self::with(Term::None)
    }

    /// Creates a leadership that never ends, for `--leader-elect=false`.
    pub fn always() -> Self {
        Self::with(Term::Always)
    }

    fn with(term: Term) -> Self {
        let standing = Standing { leads: matches!(term, Term::Always), lapses: 0 };
        let announced = watch::Sender::new(standing);
        Self(Arc::new(Shared { term: Mutex::new(term), tenure: AtomicU64::new(0), announced }))
    }

    /// Whether this replica leads at this moment. The caller checks this immediately before an action that only the
    /// leader may take.
    pub fn is_leader(&self) -> bool {
        !self.time_left().is_zero()
    }

    /// Returns the time for which this replica still leads if no renewal succeeds: zero if it does not lead,
    /// [`Duration::MAX`] if it always leads.
    pub fn time_left(&self) -> Duration {
        match self.term() {
            Term::None => Duration::ZERO,
            Term::Until(end) => end.saturating_duration_since(monotonic()),
            Term::Always => Duration::MAX,
        }
    }

    /// Whether no other replica can lead before a request of at most the duration `request` has ended. A fresh lease
    /// also allows a request that takes longer than the lease: the claim then protects refresh tokens.
    pub fn leads_for(&self, request: Duration) -> bool {
        let spare = DURATION - RENEW_DEADLINE;
        let left = self.time_left();
        !left.is_zero() && left.saturating_add(spare) >= request.min(RENEW_DEADLINE)
    }

    /// Returns how many times this replica took a free or expired lease. While this number does not change, no other
    /// replica has led, even if [`Self::is_leader`] was false meanwhile.
    pub fn tenure(&self) -> u64 {
        self.0.tenure.load(Ordering::Acquire)
    }

    pub(super) fn begin_tenure(&self) {
        self.0.tenure.fetch_add(1, Ordering::AcqRel);
    }

    /// Announces the start and the end of leadership, including the expiry of a term. The channel also announces a term
    /// that expired and was renewed in between: a reconcile may have seen the lapse and done nothing. When a stopped
    /// process continues, [`Self::is_leader`] is right immediately; this channel is right when [`run`](super::run) runs
    /// again.
    pub fn changes(&self) -> watch::Receiver<Standing> {
        self.0.announced.subscribe()
    }

    fn term(&self) -> Term {
        *self.0.term.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, term: Term) {
        let before = std::mem::replace(&mut *self.0.term.lock().unwrap_or_else(PoisonError::into_inner), term);
        self.announce(matches!(before, Term::Until(end) if end <= monotonic()));
    }

    /// Announces the current state. `lapsed` is true if the previous term had ended.
    fn announce(&self, lapsed: bool) {
        let leads = self.is_leader();
        let mut before = false;
        let changed = self.0.announced.send_if_modified(|standing| {
            before = standing.leads;
            let unnoticed = lapsed && before && leads;
            let now = Standing { leads, lapses: standing.lapses + u64::from(unnoticed) };
            std::mem::replace(standing, now) != now
        });
        match (changed, before, leads) {
            (true, true, true) => info!("leadership renewed after a lapse"),
            (true, _, true) => info!("leadership acquired"),
            (true, _, false) => info!("leadership lost"),
            _ => {}
        }
    }

    /// Announces the end of each term that is not renewed.
    pub(super) async fn announce_ends(&self) -> Infallible {
        let mut changes = self.changes();
        loop {
            // `self` holds the sender, so the wait ends only after a change.
            let _ = changes.wait_for(|standing| standing.leads).await;
            if let Term::Until(end) = self.term() {
                sleep_until(end).await;
            }
            self.announce(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::lease::RENEW_DEADLINE;

    #[tokio::test(start_paused = true)]
    async fn leadership_ends_by_the_clock_before_any_other_task_runs() {
        let leadership = Leadership::new();
        assert!(!leadership.is_leader());
        leadership.set(Term::Until(monotonic() + RENEW_DEADLINE));
        assert!(leadership.is_leader() && leadership.changes().borrow().leads);
        assert_eq!(leadership.time_left(), RENEW_DEADLINE);
        // The clock also advances in a process that was stopped for a minute. Nothing announces this change.
        advance(Duration::from_secs(60)).await;
        assert!(!leadership.is_leader());
        assert_eq!(leadership.time_left(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lapse_that_was_renewed_in_the_same_moment_is_announced() {
        let leadership = Leadership::new();
        leadership.set(Term::Until(monotonic() + RENEW_DEADLINE));
        let mut changes = leadership.changes();
        leadership.set(Term::Until(monotonic() + RENEW_DEADLINE));
        assert!(!changes.has_changed().unwrap(), "a renewal in time changes nothing");
        advance(RENEW_DEADLINE).await;
        assert!(!leadership.is_leader(), "a reconcile sees this and does nothing");
        leadership.set(Term::Until(monotonic() + RENEW_DEADLINE));
        assert!(changes.has_changed().unwrap() && changes.borrow_and_update().leads);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_admitted_only_while_the_lease_outlasts_it() {
        let leadership = Leadership::new();
        assert!(!leadership.leads_for(Duration::ZERO));
        // For each request duration: the latest time after a renewal at which the request may begin. Another replica
        // takes over after 15 s.
        for (request, last) in [(1, 9_999), (6, 9_000), (8, 7_000), (10, 5_000), (30, 5_000)] {
            let request = Duration::from_secs(request);
            leadership.set(Term::Until(monotonic() + RENEW_DEADLINE));
            advance(Duration::from_millis(last)).await;
            assert!(leadership.leads_for(request), "{request:?}");
            advance(Duration::from_millis(1)).await;
            assert!(!leadership.leads_for(request), "{request:?}");
        }
    }

    #[tokio::test]
    async fn without_election_a_replica_always_leads() {
        let leadership = Leadership::always();
        assert!(leadership.is_leader() && leadership.changes().borrow().leads);
        assert_eq!(leadership.time_left(), Duration::MAX);
    }
}
