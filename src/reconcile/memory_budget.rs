//! Bounds the memory for Secrets that the broker reads, renders or writes.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::render::SECRET_MAX;

/// Memory for all Secrets, in bytes: many small Secrets at a time, or a few of a megabyte each.
const MEMORY: usize = 16 * 1024 * 1024;
/// Memory for the Secrets of one namespace, in bytes: two of the largest. If an admission webhook of one namespace
/// hangs, the broker can still write the Secrets of other namespaces.
const SHARE: usize = 2 * 3 * SECRET_MAX;
/// The unit of the budget in bytes.
const BLOCK: usize = 4 * 1024;
/// Memory to reserve for a Secret that the broker only reads, in bytes. Most Secrets have a few KiB; their writers may
/// add up to a megabyte.
pub const USUAL_SECRET: usize = 256 * 1024;

/// Bounds the memory for Secrets.
pub struct MemoryBudget {
    all: Semaphore,
    /// The share of each namespace with a reservation.
    shares: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// Reserved memory for a Secret. Dropping it frees the memory.
pub struct Reservation<'a> {
    _of_all: SemaphorePermit<'a>,
    _of_the_share: OwnedSemaphorePermit,
}

impl Default for MemoryBudget {
    fn default() -> Self {
        Self { all: Semaphore::new(MEMORY / BLOCK), shares: Mutex::default() }
    }
}

impl MemoryBudget {
    /// Waits until memory is free for a Secret of `namespace` whose data has `bytes`. The memory covers the data, and
    /// the body of the request or response with the data in base64.
    pub async fn reserve(&self, namespace: &str, bytes: usize) -> Option<Reservation<'_>> {
        let blocks = (3 * bytes.min(SECRET_MAX)).div_ceil(BLOCK).max(1);
        let blocks = u32::try_from(blocks).unwrap_or(1);
        let of_the_share = self.share(namespace).acquire_many_owned(blocks).await.ok()?;
        Some(Reservation { _of_all: self.all.acquire_many(blocks).await.ok()?, _of_the_share: of_the_share })
    }

    fn share(&self, namespace: &str) -> Arc<Semaphore> {
        let mut shares = self.shares.lock();
        if let Some(share) = shares.get(namespace).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(SHARE / BLOCK));
        shares.insert(namespace.to_owned(), Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn the_largest_secrets_of_one_namespace_leave_room_for_those_of_others() {
        let budget = MemoryBudget::default();
        let reserve = |namespace: &str, bytes| budget.reserve(namespace, bytes).now_or_never().flatten();
        let held: Vec<_> = (0..64).map_while(|_| reserve("slow", SECRET_MAX)).collect();
        assert_eq!(held.len(), 2);
        assert!(reserve("slow", 1).is_none());
        let others: Vec<_> = ["a", "b", "c", "d"].into_iter().filter_map(|other| reserve(other, SECRET_MAX)).collect();
        assert_eq!(others.len(), 3, "in all five at a time");
        let small: Vec<_> = (0..64).map_while(|_| reserve("small", 4 * 1024)).collect();
        assert_eq!(small.len(), 64);
        drop((held, others, small));
        assert_eq!((0..64).map_while(|_| reserve("slow", SECRET_MAX)).collect::<Vec<_>>().len(), 2);
        assert_eq!(budget.shares.lock().len(), 1, "a namespace without a reservation has no share");
    }
}
