//! Decides which object is reconciled next. Pure: the time is an input. Objects are reconciled in the order in which they were
//! enqueued. Two reconciles of one object never run at the same time: an object that is enqueued while its reconcile runs is
//! reconciled again after that.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

/// The objects of one kind that wait for a reconcile, and those whose reconcile runs. `K` is the key of an object.
pub(super) struct Queue<K> {
    objects: HashMap<Arc<K>, State>,
    ready: VecDeque<Arc<K>>,
    /// The requeued objects.
    waiting: BTreeMap<Due, Arc<K>>,
    /// The number of requeues so far.
    waits: u64,
    /// The number of reconciles that run.
    running: usize,
}

/// Tables with fewer entries keep their memory.
const SMALL: usize = 1_024;

/// The time at which a requeued object becomes ready, and the number of the requeue.
type Due = (Duration, u64);

#[derive(Clone, Copy)]
enum State {
    /// The object is in `ready`.
    Ready,
    /// The object is in `waiting`.
    Waits(Due),
    /// The object's reconcile runs.
    Runs {
        /// The object was enqueued meanwhile.
        again: bool,
    },
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { objects: HashMap::new(), ready: VecDeque::new(), waiting: BTreeMap::new(), waits: 0, running: 0 }
    }
}

impl<K: Eq + Hash> Queue<K> {
    /// Enqueues an object.
    pub(super) fn enqueue(&mut self, key: K) {
        match self.objects.get_mut(&key) {
            Some(State::Ready) => {}
            Some(State::Runs { again }) => *again = true,
            Some(State::Waits(due)) => {
                if let Some(key) = self.waiting.remove(due) {
                    self.make_ready(key);
                }
            }
            None => self.make_ready(Arc::new(key)),
        }
    }

    /// Returns the object whose reconcile begins at `now`. The caller calls [`Self::done`] when the reconcile has ended.
    pub(super) fn next(&mut self, now: Duration) -> Option<Arc<K>> {
        while self.due().is_some_and(|at| at <= now)
            && let Some((_, key)) = self.waiting.pop_first()
        {
            self.make_ready(key);
        }
        let key = self.ready.pop_front()?;
        self.objects.insert(key.clone(), State::Runs { again: false });
        self.running += 1;
        Some(key)
    }

    /// Ends a reconcile. The object is requeued immediately if it was enqueued meanwhile, otherwise at `again`. `None`: the
    /// object is reconciled when it is enqueued again.
    pub(super) fn done(&mut self, key: &K, again: Option<Duration>) {
        let Some((key, State::Runs { again: enqueued })) = self.objects.remove_entry(key) else { return };
        self.running -= 1;
        if enqueued {
            self.make_ready(key);
        } else if let Some(at) = again {
            self.waits += 1;
            self.waiting.insert((at, self.waits), key.clone());
            self.objects.insert(key, State::Waits((at, self.waits)));
        }
        // After a burst of thousands.
        if self.objects.capacity() > 4 * self.objects.len().max(SMALL) {
            self.objects.shrink_to_fit();
        }
        if self.ready.capacity() > 4 * self.ready.len().max(SMALL) {
            self.ready.shrink_to_fit();
        }
    }

    /// Whether an object is enqueued, or its reconcile runs.
    pub(super) fn has(&self, key: &K) -> bool {
        matches!(self.objects.get(key), Some(State::Ready | State::Runs { .. }))
    }

    /// The number of reconciles that run.
    pub(super) const fn running(&self) -> usize {
        self.running
    }

    /// Returns when the next requeued object becomes ready.
    pub(super) fn due(&self) -> Option<Duration> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    fn make_ready(&mut self, key: Arc<K>) {
        self.objects.insert(key.clone(), State::Ready);
        self.ready.push_back(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn served(queue: &mut Queue<u8>, second: u64) -> Vec<u8> {
        std::iter::from_fn(|| queue.next(at(second)).map(|key| *key)).collect()
    }

    fn with(keys: impl IntoIterator<Item = u8>) -> Queue<u8> {
        let mut queue = Queue::default();
        keys.into_iter().for_each(|key| queue.enqueue(key));
        queue
    }

    #[test]
    fn objects_are_reconciled_once_in_the_order_in_which_they_were_enqueued() {
        let mut queue = with([3, 1, 2, 1, 3]);
        assert_eq!(served(&mut queue, 0), [3, 1, 2]);
        for key in [1, 2, 3] {
            queue.done(&key, None);
        }
        assert_eq!(queue.running(), 0);
        assert!(
            queue.objects.is_empty() && queue.due().is_none(),
            "no state is kept of objects that wait for a change"
        );
    }

    #[test]
    fn an_object_that_is_enqueued_during_its_reconcile_is_reconciled_again() {
        let mut queue = with([1]);
        assert_eq!(served(&mut queue, 0), [1]);
        queue.enqueue(1);
        queue.enqueue(1);
        assert_eq!(served(&mut queue, 0), [0; 0], "never twice at the same time");
        queue.done(&1, Some(at(60)));
        assert_eq!((served(&mut queue, 0), queue.due()), (vec![1], None));
        queue.done(&1, None);
        assert_eq!(served(&mut queue, 100), [0; 0]);
    }

    #[test]
    fn a_requeued_object_is_reconciled_at_its_time_or_when_it_is_enqueued() {
        let mut queue = with([1, 2, 3]);
        assert_eq!(served(&mut queue, 0), [1, 2, 3]);
        for (key, second) in [(1, 9), (2, 5), (3, 7)] {
            queue.done(&key, Some(at(second)));
        }
        assert_eq!((served(&mut queue, 4), queue.due()), (vec![], Some(at(5))));
        assert!(!queue.has(&3) && !queue.has(&4));
        queue.enqueue(3);
        assert!(queue.has(&3));
        assert_eq!((served(&mut queue, 4), queue.due()), (vec![3], Some(at(5))));
        assert!(queue.has(&3), "its reconcile runs");
        assert_eq!((served(&mut queue, 9), queue.due()), (vec![2, 1], None));
    }
}
