//! Admission: the one permit that decides when a request to a provider may leave. It owns all budgets: requests in all,
//! by host and by namespace, and each provider's `rateLimit`. `queue` and `bucket` are pure; this file gives them the
//! time, and reports to the owner of a row that a permit is free for it.
//!
//! A row is data, about 300 bytes, and no task. Whoever wants to send a request calls [`Admission::ask`]. The call returns
//! a [`Permit`], or the row waits. When a permit becomes free for a waiting row, its owner is enqueued, decides again, and
//! then either calls [`Admission::ask`], which returns the permit, or [`Admission::withdraw`], which gives the permit to
//! the next row.

mod bucket;
mod queue;

use std::{hash::Hash, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use self::queue::Queue;
pub use self::{
    bucket::Limit,
    queue::{Ask, Budgets, PER_HOST_LIMIT, State, TOTAL_LIMIT},
};

/// An owner that has not used a permit within this time is enqueued again.
const OFFER_AGAIN: Duration = Duration::from_secs(30);
/// A permit that was not used within this time goes to the next row.
const OFFER_ENDS: Duration = Duration::from_secs(120);

/// Grants permits to rows with keys of type `K`. Cheap to clone.
pub struct Admission<K>(Arc<Shared<K>>);

type Offer<K> = Box<dyn Fn(&K, &Ask) + Send + Sync>;

struct Shared<K> {
    queue: Mutex<Queue<K>>,
    /// Enqueues the owner of a row: it has a permit.
    offer: Offer<K>,
    /// A `rateLimit` may open at another time than before.
    changed: Notify,
    /// No permit is given any more.
    closed: CancellationToken,
    began: Instant,
}

/// The right to have one request in flight, until it is dropped.
pub struct Permit<K: Clone + Eq + Hash> {
    shared: Arc<Shared<K>>,
    key: K,
    host: Arc<str>,
}

/// What [`Admission::ask`] returns.
pub enum Answer<K: Clone + Eq + Hash> {
    /// The request may be sent.
    Admitted(Permit<K>),
    /// It waits, since so long.
    Queued(Duration),
}

impl<K: Clone + Eq + Hash> Admission<K> {
    /// An admission with these budgets, which gives no permit once `closed` is cancelled. `offer` is called when a permit
    /// is free for a row that has waited; it must not call back.
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

    /// Asks for a permit: for a row that is new, that has waited, or that was offered one.
    pub fn ask(&self, key: &K, ask: Ask) -> Answer<K> {
        let shared = &self.0;
        if shared.closed.is_cancelled() {
            return Answer::Queued(Duration::ZERO);
        }
        let (now, host) = (shared.now(), ask.host.clone());
        let mut queue = shared.queue.lock();
        queue.ask(key, ask, now);
        shared.admit(&mut queue, Some(key));
        if queue.send(key, now) {
            drop(queue);
            return Answer::Admitted(Permit { shared: shared.clone(), key: key.clone(), host });
        }
        let waited = queue.state(key).map_or(Duration::ZERO, |(_, since)| now.saturating_sub(since));
        if queue.opens_after(now).is_some() {
            shared.changed.notify_one();
        }
        Answer::Queued(waited)
    }

    /// Gives up a row that is not wanted any more. A request that is in flight goes on.
    pub fn withdraw(&self, key: &K) {
        let mut queue = self.0.queue.lock();
        if queue.state(key).is_some_and(|(state, _)| state != State::Sent) {
            queue.withdraw(key);
            self.0.admit(&mut queue, None);
        }
    }

    /// Gives up a permit that was offered and is not used. A row that waits goes on waiting.
    pub fn decline(&self, key: &K) {
        let mut queue = self.0.queue.lock();
        if queue.state(key).is_some_and(|(state, _)| state == State::Offered) {
            queue.withdraw(key);
            self.0.admit(&mut queue, None);
        }
    }

    /// How far a row has come; `None` without one.
    pub fn state(&self, key: &K) -> Option<State> {
        self.0.queue.lock().state(key).map(|(state, _)| state)
    }

    /// Gives permits when a `rateLimit` opens, and offers again what was offered and not used. Once the admission is closed it
    /// removes what waits, and does nothing more: a task that ends counts as broken.
    pub async fn run(self) {
        let shared = self.0;
        loop {
            let now = shared.now();
            let opens = {
                let mut queue = shared.queue.lock();
                shared.offer_again(&mut queue, now);
                shared.admit(&mut queue, None);
                queue.opens_after(now)
            };
            let pause = opens.map_or(OFFER_AGAIN, |at| at.saturating_sub(now)).min(OFFER_AGAIN);
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

    /// Gives free permits, and enqueues the owners; the one who asks learns it from the answer.
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
    /// The host and port that the permit is for.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Counts a further request of the same attempt against the provider's `rateLimit`.
    pub fn charge(&self) {
        let now = self.shared.now();
        self.shared.queue.lock().charge(&self.key, now);
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

#[expect(clippy::disallowed_methods, reason = "a rateLimit counts time that has passed: the wall clock may jump")]
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
        let told = offered.clone();
        let budgets = Budgets { total: 1, host: 1, reserve: 0 };
        let admission = Admission::new(budgets, closed.clone(), move |key: &u8, _| told.lock().push(*key));
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
        assert!(offered.lock().is_empty(), "whoever asks learns it from the answer");
        drop(first);
        assert_eq!(*offered.lock(), [2]);
        // The second is not wanted any more: the third is next.
        admission.withdraw(&2);
        assert_eq!(*offered.lock(), [2, 3]);
        assert!(permit(admission.ask(&3, ask())).is_some());
    }

    #[tokio::test]
    async fn a_place_that_is_declined_goes_on_and_a_row_that_waits_stays() {
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
        assert!(permit(admission.ask(&2, ask())).is_none(), "nothing begins after the end");
    }

    #[tokio::test(start_paused = true)]
    async fn an_offer_that_nobody_takes_is_repeated_and_then_goes_to_the_next() {
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
