//! How many requests are in flight.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests in flight to one host and port, at most.
pub const PER_HOST_LIMIT: usize = 32;

/// Requests in flight in all, at most.
pub const TOTAL_LIMIT: usize = 128;

type Destination = (String, u16);

/// Lets requests through, first come, first served, to each host and then in all.
///
/// A request takes its host's permit first and waits for the common one only then. So whoever waits for a slow host holds
/// no permit that a request to another host could use.
pub(super) struct Queue {
    total: Arc<Semaphore>,
    hosts: Lanes<Destination>,
}

/// The right to have one request in flight, until it is dropped.
pub(super) struct Permit {
    _total: Option<OwnedSemaphorePermit>,
    _host: Lane,
}

impl Default for Queue {
    fn default() -> Self {
        Self { total: Arc::new(Semaphore::new(TOTAL_LIMIT)), hosts: Lanes::default() }
    }
}

impl Queue {
    /// Waits for its turn. Dropping the future leaves the queue.
    pub(super) async fn enter(&self, destination: Destination) -> Permit {
        let host = self.hosts.enter(destination).await;
        let total = self.total.clone().acquire_owned().await.ok();
        Permit { _total: total, _host: host }
    }
}

/// A queue for each key, from which [`PER_HOST_LIMIT`] are let through at a time, first come, first served.
pub struct Lanes<K>(Mutex<HashMap<K, Weak<Semaphore>>>);

/// A place in a lane, until it is dropped.
///
/// It is optional since acquiring from a closed semaphore fails; these are never closed.
pub struct Lane {
    _place: Option<OwnedSemaphorePermit>,
}

impl<K> Default for Lanes<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Lanes<K> {
    /// Waits for a place. Dropping the future leaves the queue.
    pub async fn enter(&self, key: K) -> Lane {
        Lane { _place: self.semaphore(key).acquire_owned().await.ok() }
    }

    /// A place, if there is one that nobody waits for.
    pub fn try_enter(&self, key: K) -> Option<Lane> {
        self.semaphore(key).try_acquire_owned().ok().map(|place| Lane { _place: Some(place) })
    }

    /// A semaphore lives as long as somebody waits for it or holds a permit of it.
    fn semaphore(&self, key: K) -> Arc<Semaphore> {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lanes.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        lanes.retain(|_, other| other.strong_count() > 0);
        let fresh = Arc::new(Semaphore::new(PER_HOST_LIMIT));
        lanes.insert(key, Arc::downgrade(&fresh));
        fresh
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn host(name: &str) -> Destination {
        (name.to_owned(), 443)
    }

    fn enter_at_once(queue: &Queue, name: &str) -> Option<Permit> {
        queue.enter(host(name)).now_or_never()
    }

    #[test]
    fn a_full_host_makes_its_own_requests_wait_and_no_others() {
        let queue = Queue::default();
        let held: Vec<_> = (0..PER_HOST_LIMIT).map(|_| enter_at_once(&queue, "slow").unwrap()).collect();
        assert!(enter_at_once(&queue, "slow").is_none());
        assert!(enter_at_once(&queue, "other").is_some());
        drop(held);
        assert!(enter_at_once(&queue, "slow").is_some());
    }

    #[test]
    fn those_that_wait_for_a_slow_host_hold_no_common_permit() {
        let queue = Queue::default();
        let _held: Vec<_> = (0..PER_HOST_LIMIT).map(|_| enter_at_once(&queue, "slow").unwrap()).collect();
        let mut waiting: Vec<_> = (0..TOTAL_LIMIT).map(|_| Box::pin(queue.enter(host("slow")))).collect();
        assert!(waiting.iter_mut().all(|turn| turn.as_mut().now_or_never().is_none()));
        assert_eq!(queue.total.available_permits(), TOTAL_LIMIT - PER_HOST_LIMIT);
    }

    #[test]
    fn no_more_than_the_total_are_let_through() {
        let queue = Queue::default();
        let names: Vec<_> = (0..TOTAL_LIMIT / PER_HOST_LIMIT).map(|number| format!("host-{number}")).collect();
        let mut held = Vec::new();
        for name in &names {
            held.extend((0..PER_HOST_LIMIT).map(|_| enter_at_once(&queue, name).unwrap()));
        }
        assert!(enter_at_once(&queue, "one-more").is_none());
        held.pop();
        assert!(enter_at_once(&queue, "one-more").is_some());
    }

    #[test]
    fn a_host_that_nobody_asks_for_is_forgotten() {
        let queue = Queue::default();
        for number in 0..1000 {
            drop(enter_at_once(&queue, &format!("host-{number}")).unwrap());
        }
        assert_eq!(queue.hosts.0.lock().unwrap().len(), 1);
    }
}
