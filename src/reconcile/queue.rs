//! Decides which object is reconciled next. Pure: the time is an input. Objects are reconciled in the order in which
//! they were enqueued. Objects with the result of a request precede all others. Two reconciles of one object never run
//! at the same time: an object that is enqueued during its reconcile is reconciled again afterwards.
//!
//! One namespace must not use all reconciles. A reconcile waits for Kubernetes. If an admission webhook of one
//! namespace hangs, each call there takes up to 30 s, and the objects of all other namespaces would wait.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::api::reference::ObjectKey;

/// The objects of one kind that wait for a reconcile, and the objects whose reconcile runs.
pub(super) struct ReconcileQueue {
    objects: HashMap<Arc<ObjectKey>, State>,
    /// The objects whose reconcile precedes those in `ready`.
    first: VecDeque<Arc<ObjectKey>>,
    /// The objects whose reconcile may begin. `next` skips an object that was put into `first` later.
    ready: VecDeque<Arc<ObjectKey>>,
    /// The requeued objects.
    waiting: BTreeMap<Due, Arc<ObjectKey>>,
    /// The namespaces with running reconciles, and the namespaces whose last reconcile was slow.
    namespaces: HashMap<String, Namespace>,
    /// The namespaces with blocked objects in which a reconcile has ended.
    freed: VecDeque<String>,
    /// Whether the last object was blocked before. The next one comes from `ready`, so that slow namespaces do not get all
    /// reconciles.
    was_blocked: bool,
    /// Number of requeues and reconciles so far.
    count: u64,
    /// Number of running reconciles.
    running: usize,
    limits: Limits,
}

/// The time at which a requeued object becomes ready, and the number of the requeue.
type Due = (Duration, u64);

#[derive(Clone, Copy)]
enum State {
    /// The object is in `first`, in `ready`, or in `blocked` of its namespace.
    Ready,
    /// The object is in `waiting`.
    Waits(Due),
    /// The object's reconcile runs.
    Runs {
        /// The number of the reconcile.
        number: u64,
        /// The place at which the object was enqueued during its reconcile.
        again: Option<Place>,
    },
}

/// A place in the order of the objects.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Before all objects that were enqueued at `Last`.
    First,
    /// After all other objects.
    Last,
}

/// The reconciles of one namespace.
#[derive(Default)]
struct Namespace {
    /// The start times of the running reconciles by their numbers, the oldest first.
    begun: BTreeMap<u64, Duration>,
    /// Whether the last ended reconcile was slow.
    was_slow: bool,
    /// The objects that wait until the namespace may have another reconcile.
    blocked: VecDeque<Arc<ObjectKey>>,
    /// Whether the namespace is in `freed`.
    is_freed: bool,
}

/// Where the queue has found the next object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    First,
    Blocked,
    Ready,
}

/// Maximum numbers of concurrent reconciles.
#[derive(Clone, Copy)]
struct Limits {
    /// Maximum number in total.
    total: usize,
    /// Maximum number in one namespace.
    quick: usize,
    /// Maximum number in one namespace whose last or oldest reconcile was slow.
    slow: usize,
}

/// Duration after which a reconcile is slow. Most reconciles take milliseconds, and none waits for a provider.
const SLOW: Duration = Duration::from_secs(1);
/// Number of entries below which a table keeps its memory.
const SMALL: usize = 1_024;

impl Limits {
    fn of(self, namespace: &Namespace, now: Duration) -> usize {
        let oldest_is_slow = namespace.begun.values().next().is_some_and(|begun| now.saturating_sub(*begun) >= SLOW);
        if namespace.was_slow || oldest_is_slow { self.slow } else { self.quick }
    }
}

impl ReconcileQueue {
    /// Creates a queue for `concurrency` concurrent reconciles: three quarters for one namespace, an eighth while it is
    /// slow.
    pub(super) fn new(concurrency: usize) -> Self {
        let limits = Limits { total: concurrency, quick: (concurrency * 3 / 4).max(1), slow: (concurrency / 8).max(1) };
        Self {
            objects: HashMap::new(),
            first: VecDeque::new(),
            ready: VecDeque::new(),
            waiting: BTreeMap::new(),
            namespaces: HashMap::new(),
            freed: VecDeque::new(),
            was_blocked: false,
            count: 0,
            running: 0,
            limits,
        }
    }

    /// Enqueues an object at a place.
    pub(super) fn enqueue(&mut self, key: ObjectKey, place: Place) {
        let key = match self.objects.get_key_value(&key) {
            Some((_, State::Ready)) if place == Place::Last => return,
            Some((key, State::Ready)) => key.clone(),
            Some((key, State::Waits(due))) => {
                self.waiting.remove(due);
                key.clone()
            }
            Some((key, State::Runs { number, again })) => {
                let again = if *again == Some(Place::First) { Place::First } else { place };
                let state = State::Runs { number: *number, again: Some(again) };
                self.objects.insert(key.clone(), state);
                return;
            }
            None => Arc::new(key),
        };
        self.make_ready(key, place);
    }

    /// Returns the object whose reconcile begins at `now`: the first object whose namespace may have one more
    /// reconcile. The caller calls [`Self::done`] at the end of the reconcile.
    pub(super) fn next(&mut self, now: Duration) -> Option<Arc<ObjectKey>> {
        while self.due().is_some_and(|at| at <= now)
            && let Some((_, key)) = self.waiting.pop_first()
        {
            self.make_ready(key, Place::Last);
        }
        while self.running < self.limits.total
            && let Some((key, source)) = self.candidate(now)
        {
            if !matches!(self.objects.get(&key), Some(State::Ready)) {
                continue;
            }
            let namespace = self.namespaces.entry(key.0.clone()).or_default();
            let is_later = source == Source::Ready && !namespace.blocked.is_empty();
            if is_later || namespace.begun.len() >= self.limits.of(namespace, now) {
                match source {
                    Source::First => namespace.blocked.push_front(key),
                    Source::Blocked | Source::Ready => namespace.blocked.push_back(key),
                }
                continue;
            }
            self.count += 1;
            namespace.begun.insert(self.count, now);
            self.objects.insert(key.clone(), State::Runs { number: self.count, again: None });
            self.running += 1;
            self.was_blocked = source == Source::Blocked;
            return Some(key);
        }
        None
    }

    /// Takes out the next object. If the object's namespace already has its maximum of reconciles, the caller blocks the
    /// object.
    fn candidate(&mut self, now: Duration) -> Option<(Arc<ObjectKey>, Source)> {
        if let Some(key) = self.first.pop_front() {
            return Some((key, Source::First));
        }
        let ready = if self.was_blocked { self.ready.pop_front() } else { None };
        let blocked = if ready.is_none() { self.unblocked(now) } else { None };
        match blocked {
            Some(key) => Some((key, Source::Blocked)),
            None => ready.or_else(|| self.ready.pop_front()).map(|key| (key, Source::Ready)),
        }
    }

    /// Returns the first blocked object of a namespace that may have one more reconcile. Blocked objects precede the
    /// objects of the same namespace in `ready`.
    fn unblocked(&mut self, now: Duration) -> Option<Arc<ObjectKey>> {
        while let Some(name) = self.freed.pop_front() {
            let Some(namespace) = self.namespaces.get_mut(&name) else { continue };
            namespace.is_freed = false;
            if namespace.begun.len() < self.limits.of(namespace, now)
                && let Some(key) = namespace.blocked.pop_front()
            {
                namespace.is_freed = true;
                self.freed.push_back(name);
                return Some(key);
            }
        }
        None
    }

    /// Ends a reconcile at `now`. Requeues the object immediately if it was enqueued during the reconcile, otherwise at
    /// `again`. `None`: the object waits until it is enqueued again.
    pub(super) fn done(&mut self, key: &ObjectKey, again: Option<Duration>, now: Duration) {
        let Some((key, State::Runs { number, again: enqueued })) = self.objects.remove_entry(key) else { return };
        self.running -= 1;
        self.end(&key.0, number, now);
        if let Some(place) = enqueued {
            self.make_ready(key, place);
        } else if let Some(at) = again {
            self.count += 1;
            self.waiting.insert((at, self.count), key.clone());
            self.objects.insert(key, State::Waits((at, self.count)));
        }
        // Free the memory after a burst of thousands.
        if self.objects.capacity() > 4 * self.objects.len().max(SMALL) {
            self.objects.shrink_to_fit();
        }
        if self.ready.capacity() > 4 * self.ready.len().max(SMALL) {
            self.ready.shrink_to_fit();
        }
    }

    /// Whether an object is enqueued, or its reconcile runs.
    pub(super) fn has(&self, key: &ObjectKey) -> bool {
        matches!(self.objects.get(key), Some(State::Ready | State::Runs { .. }))
    }

    /// Returns the time at which the next requeued object becomes ready.
    pub(super) fn due(&self) -> Option<Duration> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    fn make_ready(&mut self, key: Arc<ObjectKey>, place: Place) {
        self.objects.insert(key.clone(), State::Ready);
        match place {
            Place::First => self.first.push_back(key),
            Place::Last => self.ready.push_back(key),
        }
    }

    /// Ends the reconcile with this number in its namespace.
    fn end(&mut self, name: &str, number: u64, now: Duration) {
        let Some(namespace) = self.namespaces.get_mut(name) else { return };
        let begun = namespace.begun.remove(&number);
        namespace.was_slow = begun.is_some_and(|begun| now.saturating_sub(begun) >= SLOW);
        if !namespace.blocked.is_empty() {
            if !std::mem::replace(&mut namespace.is_freed, true) {
                self.freed.push_back(name.to_owned());
            }
        } else if namespace.begun.is_empty() && !namespace.was_slow {
            self.namespaces.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn key(namespace: &str, number: usize) -> ObjectKey {
        (namespace.to_owned(), number.to_string())
    }

    /// Returns the numbers of the objects whose reconciles begin at `second`.
    fn served(queue: &mut ReconcileQueue, second: u64) -> Vec<usize> {
        std::iter::from_fn(|| queue.next(at(second)).map(|key| key.1.parse().unwrap())).collect()
    }

    fn enqueue(queue: &mut ReconcileQueue, namespace: &str, numbers: impl IntoIterator<Item = usize>) {
        numbers.into_iter().for_each(|number| queue.enqueue(key(namespace, number), Place::Last));
    }

    fn with(numbers: impl IntoIterator<Item = usize>) -> ReconcileQueue {
        let mut queue = ReconcileQueue::new(16);
        enqueue(&mut queue, "shop", numbers);
        queue
    }

    fn done(queue: &mut ReconcileQueue, namespace: &str, numbers: impl IntoIterator<Item = usize>, second: u64) {
        numbers.into_iter().for_each(|number| queue.done(&key(namespace, number), None, at(second)));
    }

    #[test]
    fn objects_are_reconciled_once_in_the_order_in_which_they_were_enqueued() {
        let mut queue = with([3, 1, 2, 1, 3]);
        assert_eq!(served(&mut queue, 0), [3, 1, 2]);
        done(&mut queue, "shop", [1, 2, 3], 0);
        assert!(
            queue.objects.is_empty() && queue.due().is_none() && queue.namespaces.is_empty() && queue.running == 0,
            "no state is kept of objects that wait for a change"
        );
    }

    #[test]
    fn no_more_reconciles_run_than_the_concurrency_allows() {
        let mut queue = ReconcileQueue::new(2);
        for namespace in ["shop", "lab", "office"] {
            enqueue(&mut queue, namespace, [1]);
        }
        assert_eq!(served(&mut queue, 0).len(), 2);
        done(&mut queue, "lab", [1], 0);
        assert_eq!(served(&mut queue, 0).len(), 1);
    }

    #[test]
    fn an_object_that_is_enqueued_during_its_reconcile_is_reconciled_again() {
        let mut queue = with([1]);
        assert_eq!(served(&mut queue, 0), [1]);
        enqueue(&mut queue, "shop", [1, 1]);
        assert_eq!(served(&mut queue, 0), [0; 0], "never twice at the same time");
        queue.done(&key("shop", 1), Some(at(60)), at(0));
        assert_eq!((served(&mut queue, 0), queue.due()), (vec![1], None));
        done(&mut queue, "shop", [1], 0);
        assert_eq!(served(&mut queue, 100), [0; 0]);
    }

    #[test]
    fn a_requeued_object_is_reconciled_at_its_time_or_when_it_is_enqueued() {
        let mut queue = with([1, 2, 3]);
        assert_eq!(served(&mut queue, 0), [1, 2, 3]);
        for (number, second) in [(1, 9), (2, 5), (3, 7)] {
            queue.done(&key("shop", number), Some(at(second)), at(0));
        }
        assert_eq!((served(&mut queue, 4), queue.due()), (vec![], Some(at(5))));
        assert!(!queue.has(&key("shop", 3)) && !queue.has(&key("shop", 4)));
        enqueue(&mut queue, "shop", [3]);
        assert!(queue.has(&key("shop", 3)));
        assert_eq!((served(&mut queue, 4), queue.due()), (vec![3], Some(at(5))));
        assert!(queue.has(&key("shop", 3)), "its reconcile runs");
        done(&mut queue, "shop", [3], 4);
        assert_eq!((served(&mut queue, 9), queue.due()), (vec![2, 1], None));
    }

    #[test]
    fn a_namespace_has_three_quarters_of_the_reconciles_and_an_eighth_while_it_is_slow() {
        let mut queue = with(0..20);
        enqueue(&mut queue, "lab", 100..120);
        assert_eq!(served(&mut queue, 0), (0..12).chain(100..104).collect::<Vec<_>>());
        done(&mut queue, "lab", 100..104, 0);
        done(&mut queue, "shop", 0..12, 1);
        let mut both = served(&mut queue, 1);
        both.sort_unstable();
        assert_eq!(both, (12..14).chain(104..116).collect::<Vec<_>>(), "two of the slow namespace");
        done(&mut queue, "shop", 12..14, 1);
        assert_eq!(served(&mut queue, 1), (14..18).collect::<Vec<_>>(), "it is quick again");
    }

    #[test]
    fn a_namespace_is_slow_while_its_oldest_reconcile_is() {
        let mut queue = with([1]);
        assert_eq!(served(&mut queue, 0), [1]);
        enqueue(&mut queue, "shop", 2..10);
        assert_eq!(served(&mut queue, 1), [2]);
    }

    #[test]
    fn an_object_that_its_namespace_blocks_is_enqueued_once_and_comes_before_later_ones() {
        let mut queue = with(0..12);
        served(&mut queue, 0);
        enqueue(&mut queue, "shop", [20, 21, 20]);
        enqueue(&mut queue, "lab", [30]);
        assert_eq!(served(&mut queue, 0), [30]);
        assert!(queue.has(&key("shop", 21)), "a blocked object is enqueued");
        enqueue(&mut queue, "shop", [20, 22]);
        done(&mut queue, "shop", [0, 1], 0);
        assert_eq!(served(&mut queue, 0), [20, 21]);
        done(&mut queue, "shop", 2..12, 0);
        assert_eq!(served(&mut queue, 0), [22]);
    }

    #[test]
    fn an_object_with_a_result_comes_first_in_its_namespace_and_is_reconciled_once() {
        let mut queue = with(0..12);
        assert_eq!(served(&mut queue, 0).len(), 12);
        enqueue(&mut queue, "shop", 20..22);
        enqueue(&mut queue, "lab", 30..34);
        assert_eq!(served(&mut queue, 0), (30..34).collect::<Vec<_>>());
        enqueue(&mut queue, "lab", 40..44);
        queue.enqueue(key("shop", 21), Place::First);
        queue.enqueue(key("lab", 43), Place::First);
        queue.enqueue(key("lab", 30), Place::First);
        enqueue(&mut queue, "lab", [30]);
        done(&mut queue, "shop", [0], 0);
        done(&mut queue, "lab", [30, 31], 0);
        assert_eq!(served(&mut queue, 0), [21, 43, 30], "30 was enqueued first while its reconcile ran");
        done(&mut queue, "shop", [21, 1], 0);
        done(&mut queue, "lab", [43, 30], 0);
        assert_eq!(served(&mut queue, 0), [20, 40, 41, 42], "neither 21 nor 43 once more");
    }

    #[test]
    fn slow_namespaces_with_a_backlog_leave_reconciles_to_the_others() {
        let mut queue = ReconcileQueue::new(16);
        let begun = |queue: &mut ReconcileQueue, second| {
            std::iter::from_fn(|| queue.next(at(second))).collect::<Vec<Arc<ObjectKey>>>()
        };
        for namespace in 0..8 {
            enqueue(&mut queue, &format!("slow-{namespace}"), 0..40);
        }
        let mut running = begun(&mut queue, 0);
        for round in 1..12 {
            running.iter().for_each(|key| queue.done(key, None, at(30 * round)));
            running = begun(&mut queue, 30 * round);
        }
        assert_eq!(running.len(), 16);
        enqueue(&mut queue, "quick", [1]);
        queue.done(&running[0], None, at(360));
        queue.done(&running[1], None, at(360));
        assert!(begun(&mut queue, 360).contains(&Arc::new(key("quick", 1))));
    }
}
