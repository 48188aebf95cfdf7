//! Limits the number of connections: in total, before login, and of one mailbox at an SMTP server.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Time that an SMTP login waits for a connection permit of its mailbox.
const WAIT: Duration = Duration::from_secs(30);
/// Maximum number of mailboxes whose permits the relay remembers. At most 256 mailboxes are mounted, and their user
/// names may change.
const REMEMBERED: usize = 512;

/// The permits for connections.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    all: AtomicUsize,
    before_login: AtomicUsize,
}

/// The permit of one connection. Dropping it frees the permit.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    is_before_login: bool,
}

impl Places {
    /// Creates permits for `max` connections. At most half of them are for connections before login.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, all: AtomicUsize::new(0), before_login: AtomicUsize::new(0) })
    }

    /// Returns the permit of a new connection, if one is free.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Place> {
        let take = |count: &AtomicUsize, max: usize| {
            count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| (count < max).then_some(count + 1)).is_ok()
        };
        if !take(&self.all, self.max) {
            return None;
        }
        if !take(&self.before_login, self.max.div_ceil(2)) {
            self.all.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Place { places: self.clone(), is_before_login: true })
    }
}

impl Place {
    /// Records that the client has logged in: frees the permit of a connection before login.
    pub(crate) fn logged_in(&mut self) {
        if std::mem::take(&mut self.is_before_login) {
            self.places.before_login.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.logged_in();
        self.places.all.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The connection permits of each mailbox at its SMTP server.
#[derive(Debug)]
pub(crate) struct SmtpPlaces {
    each: usize,
    mailboxes: Mutex<HashMap<(String, String), Arc<Semaphore>>>,
}

impl SmtpPlaces {
    /// Creates `each` permits for each mailbox.
    pub(crate) fn new(each: usize) -> Self {
        Self { each, mailboxes: Mutex::default() }
    }

    /// Waits for a permit of a user at a server, at most 30 seconds.
    pub(crate) async fn take(&self, host: &str, user: &str) -> Option<OwnedSemaphorePermit> {
        let places = {
            let mut mailboxes = self.mailboxes.lock();
            if mailboxes.len() >= REMEMBERED {
                // Keep the semaphores of running sessions: each permit holds a clone of its semaphore.
                mailboxes.retain(|_, places| Arc::strong_count(places) > 1);
            }
            let key = (host.to_ascii_lowercase(), user.to_ascii_lowercase());
            mailboxes.entry(key).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone()
        };
        tokio::time::timeout(WAIT, places.acquire_owned()).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_places_are_for_clients_before_login() {
        for (max, before_login) in [(1, 1), (2, 1), (5, 3), (256, 128)] {
            let places = Places::new(max);
            let mut taken: Vec<_> = (0..before_login).map(|_| places.take().unwrap()).collect();
            assert!(before_login == max || places.take().is_none(), "{max}");
            taken.iter_mut().for_each(Place::logged_in);
            taken.extend((before_login..max).map(|_| places.take().unwrap()));
            assert!(places.take().is_none());
            taken.pop();
            assert!(places.take().is_some());
        }
    }

    #[tokio::test]
    async fn a_mailbox_has_its_places_at_a_server() {
        let places = SmtpPlaces::new(1);
        let first = places.take("smtp.shop.example", "billing@shop.example").await.unwrap();
        assert!(places.take("smtp.shop.example", "other@shop.example").await.is_some());
        let waiting = places.take("SMTP.shop.example", "Billing@shop.example");
        tokio::pin!(waiting);
        assert!(futures_poll(&mut waiting).is_none());
        drop(first);
        assert!(waiting.await.is_some());
    }

    /// Polls once.
    fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }
}
