//! Admission: decides when the broker may send a request to a provider. Admission owns all budgets: in total, by host,
//! by namespace, and each provider's `rateLimit`. `queue` and `bucket` are pure. This file provides the time and
//! enqueues the owners of rows.
//!
//! A row is data of about 300 bytes, not a task. The owner of a request calls [`Admission::ask`]. The call returns a
//! [`Permit`], or the row waits. When a permit becomes free for a waiting row, admission enqueues the owner, which
//! decides again. The owner then calls [`Admission::ask`], which returns the permit, or [`Admission::withdraw`], which
//! gives the permit to the next row.

mod bucket;
mod queue;
mod retry_limit;
mod row;

use std::{
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use self::queue::Queue;
pub use self::{
    bucket::{Bucket, Limit},
    row::{Ask, Budgets, PER_HOST_LIMIT, State, TOTAL_LIMIT},
};

/// Time after which admission enqueues an owner again that has not used its permit.
const OFFER_AGAIN: Duration = Duration::from_secs(30);
/// Time after which admission gives an unused permit to the next row.
const OFFER_ENDS: Duration = Duration::from_secs(120);

/// Grants permits to rows with keys of type `K`. Cheap to clone.
pub struct Admission<K>(Arc<Shared<K>>);

type Offer<K> = Box<dyn Fn(&K, &Ask) + Send + Sync>;

struct Shared<K> {
    queue: Mutex<Queue<K>>,
    /// Enqueues the owner of a row that has a permit.
    offer: Offer<K>,
    /// Notified when the time changes at which a `rateLimit` or the limit of a host opens.
    changed: Notify,
    /// Cancelled when admission stops granting permits.
    closed: CancellationToken,
    began: Instant,
}

/// The right to have one request in flight. Dropping the permit ends the right.
pub struct Permit<K: Clone + Eq + Hash> {
    shared: Arc<Shared<K>>,
    key: K,
    host: Arc<str>,
    waited: Duration,
    /// Whether the owner has sent a request.
    used: AtomicBool,
}

/// The result of [`Admission::ask`].
pub enum Answer<K: Clone + Eq + Hash> {
    /// The request may be sent.
    Admitted(Permit<K>),
    /// The request has waited for this time.
    Queued(Duration),
}

impl<K: Clone + Eq + Hash> Admission<K> {
    /// Creates an admission with these budgets. Admission grants no permit after `closed` is cancelled. It calls
    /// `offer` when a permit is free for a waiting row; `offer` must not call the admission.
    pub fn new(budgets: Budgets, closed: CancellationToken, offer: impl Fn(&K, &Ask) + Send + Sync + 'static) -> Self {
        let shared = Shared {
            queue: Mutex::new(Queue::new(budgets)),
            offer: Box::new(offer),
            changed: Notify::new(),
            closed,
            began: now(),
        };
        Self(Arc::new(shared))
    }

    /// Requests a permit for a new row, a waiting row, or a row with an offered permit.
    pub fn ask(&self, key: &K, ask: Ask) -> Answer<K> {
        let shared = &self.0;
        if shared.closed.is_cancelled() {
            return Answer::Queued(Duration::ZERO);
        }
        let (now, host) = (shared.now(), ask.host.clone());
        let mut queue = shared.queue.lock();
        queue.ask(key, ask, now);
        shared.admit(&mut queue, Some(key));
        if let Some(waited) = queue.send(key, now) {
            drop(queue);
            return Answer::Admitted(Permit {
                shared: shared.clone(),
                key: key.clone(),
                host,
                waited,
                used: AtomicBool::new(false),
            });
        }
        let waited = queue.state(key).map_or(Duration::ZERO, |(_, since)| now.saturating_sub(since));
        if queue.opens_after(now).is_some() {
            shared.changed.notify_one();
        }
        Answer::Queued(waited)
    }

    /// Removes a row that the owner no longer needs. A request in flight continues.
    pub fn withdraw(&self, key: &K) {
        let mut queue = self.0.queue.lock();
        if queue.state(key).is_some_and(|(state, _)| state != State::Sent) {
            queue.withdraw(key);
            self.0.admit(&mut queue, None);
        }
    }

    /// Removes a row whose permit the owner does not use. A waiting row keeps waiting.
    pub fn decline(&self, key: &K) {
        let mut queue = self.0.queue.lock();
        if queue.state(key).is_some_and(|(state, _)| state == State::Offered) {
            queue.withdraw(key);
            self.0.admit(&mut queue, None);
        }
    }

    /// The state of a row; `None` without a row.
    pub fn state(&self, key: &K) -> Option<State> {
        self.0.queue.lock().state(key).map(|(state, _)| state)
    }

    /// Grants permits when a `rateLimit` or the limit of a host opens, and repeats unused offers. After admission is
    /// closed, removes the waiting rows and never returns: supervision treats a task that ends as failed.
    pub async fn run(self) {
        let shared = self.0;
        let mut offer_again = shared.now() + OFFER_AGAIN;
        loop {
            let now = shared.now();
            let opens = {
                let mut queue = shared.queue.lock();
                // `offer_again` reads all rows, so it does not run each time that a limit opens.
                if now >= offer_again {
                    shared.offer_again(&mut queue, now);
                    offer_again = now + OFFER_AGAIN;
                }
                shared.admit(&mut queue, None);
                queue.opens_after(now)
            };
            let pause = opens.unwrap_or(offer_again).min(offer_again).saturating_sub(now);
            tokio::select! {
                () = shared.closed.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
                () = shared.changed.notified() => {}
            }
        }
        shared.queue.lock().clear();
        std::future::pending().await
    }
}

impl<K> Clone for Admission<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Clone + Eq + Hash> Shared<K> {
    fn now(&self) -> Duration {
        now().duration_since(self.began)
    }

    /// Grants free permits and enqueues the owners of the rows. Does not enqueue the caller `asks`, because the caller
    /// gets the permit directly.
    fn admit(&self, queue: &mut Queue<K>, asks: Option<&K>) {
        if self.closed.is_cancelled() {
            return;
        }
        for key in queue.admit(self.now()) {
            if asks != Some(&key)
                && let Some(ask) = queue.asked(&key)
            {
                (self.offer)(&key, ask);
            }
        }
    }

    fn offer_again(&self, queue: &mut Queue<K>, now: Duration) {
        for key in queue.unused_since(now.saturating_sub(OFFER_ENDS)) {
            queue.withdraw(&key);
        }
        for key in queue.unused_since(now.saturating_sub(OFFER_AGAIN)) {
            if let Some(ask) = queue.asked(&key) {
                (self.offer)(&key, ask);
            }
        }
    }
}

impl<K: Clone + Eq + Hash> Permit<K> {
    /// The permit's host and port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns how long the request has waited for the permit.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Records the end of a request. `served` is false if the host did not respond, or responded that it cannot serve
    /// now (429 or 5xx).
    pub fn ended(&self, served: bool) {
        tracing::debug!(host = &*self.host, served, "request ended");
        self.shared.queue.lock().end(&self.host, served);
    }

    /// Counts a request of the attempt against the provider's `rateLimit`. Admission has counted the first one with the
    /// permit.
    pub fn begin(&self) {
        if self.used.swap(true, Ordering::Relaxed) {
            let now = self.shared.now();
            self.shared.queue.lock().charge(&self.key, now);
        }
    }
}

impl<K: Clone + Eq + Hash> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.free(&self.key);
        self.shared.admit(&mut queue, None);
        if queue.opens_after(self.shared.now()).is_some() {
            self.shared.changed.notify_one();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a rateLimit counts elapsed time, because the wall clock may jump")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::policy::urgency::Class;

    fn ask() -> Ask {
        Ask {
            namespace: "shop".into(),
            name: "billing".into(),
            host: "idp:443".into(),
            provider: "idp".into(),
            limit: None,
            class: Class::Person,
            due: Timestamp::UNIX_EPOCH,
        }
    }

    fn limited() -> Ask {
        Ask { limit: Some(Limit::new(60, 1)), ..ask() }
    }

    type Offered = Arc<Mutex<Vec<u8>>>;

    fn one_permit() -> (Admission<u8>, Offered, CancellationToken) {
        let (offered, closed) = (Offered::default(), CancellationToken::new());
        let record = offered.clone();
        let budgets = Budgets { total: 1, host: 1, reserve: 0 };
        let admission = Admission::new(budgets, closed.clone(), move |key: &u8, _| record.lock().push(*key));
        (admission, offered, closed)
    }

    fn permit(answer: Answer<u8>) -> Option<Permit<u8>> {
        match answer {
            Answer::Admitted(permit) => Some(permit),
            Answer::Queued(_) => None,
        }
    }

    #[tokio::test]
    async fn a_place_that_becomes_free_is_offered_to_the_next_row() {
        let (admission, offered, _closed) = one_permit();
        let first = permit(admission.ask(&1, ask())).unwrap();
        assert!(permit(admission.ask(&2, ask())).is_none());
        assert!(permit(admission.ask(&3, ask())).is_none());
        assert!(offered.lock().is_empty(), "the caller gets the permit as the result");
        drop(first);
        assert_eq!(*offered.lock(), [2]);
        // The second row no longer wants its permit, so the third row gets it.
        admission.withdraw(&2);
        assert_eq!(*offered.lock(), [2, 3]);
        assert!(permit(admission.ask(&3, ask())).is_some());
    }

    #[tokio::test]
    async fn a_declined_permit_moves_to_the_next_row_and_a_waiting_row_stays() {
        let (admission, offered, _closed) = one_permit();
        let first = permit(admission.ask(&1, ask())).unwrap();
        assert!(permit(admission.ask(&2, ask())).is_none());
        admission.decline(&2);
        assert_eq!(admission.state(&2), Some(State::Queued));
        drop(first);
        admission.decline(&2);
        assert_eq!((admission.state(&2), offered.lock().len()), (None, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn rows_are_offered_a_place_when_their_rate_limit_opens() {
        let (admission, offered, closed) = one_permit();
        let run = tokio::spawn(admission.clone().run());
        drop(permit(admission.ask(&1, limited())).unwrap());
        assert!(permit(admission.ask(&2, limited())).is_none());
        tokio::time::sleep(Duration::from_millis(990)).await;
        assert!(offered.lock().is_empty());
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(*offered.lock(), [2]);
        closed.cancel();
        tokio::task::yield_now().await;
        assert!(!run.is_finished());
        assert_eq!(admission.state(&2), None);
        assert!(permit(admission.ask(&2, ask())).is_none(), "no request starts after the end");
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_of_an_attempt_counts_once_against_the_rate_limit() {
        let (admission, offered, _closed) = one_permit();
        tokio::spawn(admission.clone().run());
        let attempt = permit(admission.ask(&1, limited())).unwrap();
        (0..3).for_each(|_| attempt.begin());
        drop(attempt);
        assert!(permit(admission.ask(&2, limited())).is_none());
        tokio::time::sleep(Duration::from_millis(2_990)).await;
        assert!(offered.lock().is_empty(), "three requests use three seconds");
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(*offered.lock(), [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unused_offer_is_repeated_and_then_moves_to_the_next_row() {
        let (admission, offered, _closed) = one_permit();
        tokio::spawn(admission.clone().run());
        let first = permit(admission.ask(&1, ask())).unwrap();
        assert!(permit(admission.ask(&2, ask())).is_none() && permit(admission.ask(&3, ask())).is_none());
        drop(first);
        tokio::time::sleep(OFFER_AGAIN * 2 + Duration::from_secs(1)).await;
        assert!(offered.lock().len() >= 2 && !offered.lock().contains(&3));
        tokio::time::sleep(OFFER_ENDS).await;
        assert!(offered.lock().contains(&3));
    }
}
