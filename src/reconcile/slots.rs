//! Keeps one namespace from holding all reconciles. A step of a reconcile waits for Kubernetes; where an admission webhook of
//! one namespace hangs, each step there takes up to 30 s, and the steps of all other namespaces would wait for a slot.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{api::reference::ObjectKey, reconcile::work_queue::WorkQueue};

/// A step that takes longer than this is slow: most take milliseconds.
const SLOW: Duration = Duration::from_secs(1);

/// Lets steps of reconciles begin.
pub struct Slots(Arc<Shared>);

struct Shared {
    /// Steps of one namespace at the same time, at most.
    quick: usize,
    /// The same while its steps are slow.
    slow: usize,
    queue: WorkQueue,
    namespaces: Mutex<HashMap<String, Steps>>,
}

/// The steps of a namespace.
#[derive(Default)]
struct Steps {
    /// When each began, the oldest first.
    begun: BTreeMap<u64, Instant>,
    last: u64,
    /// The one that ended last was slow.
    was_slow: bool,
    parked: VecDeque<String>,
    known: HashSet<String>,
}

/// The right to make a step, until it is dropped.
pub struct Slot {
    shared: Arc<Shared>,
    namespace: String,
    number: u64,
}

impl Slots {
    /// Slots for so many reconciles at the same time: three quarters for one namespace, an eighth while it is slow.
    pub fn new(concurrency: u16, queue: WorkQueue) -> Self {
        let concurrency = usize::from(concurrency);
        let (quick, slow) = ((concurrency * 3 / 4).max(1), (concurrency / 8).max(1));
        Self(Arc::new(Shared { quick, slow, queue, namespaces: Mutex::default() }))
    }

    /// A slot for a step of this credential. `None`: the namespace has all that it may have; the credential is enqueued when
    /// one of these becomes free.
    pub fn enter(&self, (namespace, name): &ObjectKey) -> Option<Slot> {
        let now = now();
        let mut namespaces = self.0.namespaces.lock();
        let steps = namespaces.entry(namespace.clone()).or_default();
        if steps.begun.len() >= self.0.limit(steps, now) {
            if steps.known.insert(name.clone()) {
                steps.parked.push_back(name.clone());
            }
            return None;
        }
        steps.last += 1;
        steps.begun.insert(steps.last, now);
        Some(Slot { shared: self.0.clone(), namespace: namespace.clone(), number: steps.last })
    }
}

impl Shared {
    fn limit(&self, steps: &Steps, now: Instant) -> usize {
        let slow = |begun: &Instant| now.duration_since(*begun) >= SLOW;
        let is_slow = steps.was_slow || steps.begun.values().next().is_some_and(slow);
        if is_slow { self.slow } else { self.quick }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let now = now();
        let mut namespaces = self.shared.namespaces.lock();
        let Some(steps) = namespaces.get_mut(&self.namespace) else { return };
        let begun = steps.begun.remove(&self.number);
        steps.was_slow = begun.is_some_and(|begun| now.duration_since(begun) >= SLOW);
        let free = self.shared.limit(steps, now).saturating_sub(steps.begun.len());
        for name in steps.parked.drain(..free.min(steps.parked.len())) {
            steps.known.remove(&name);
            self.shared.queue.enqueue_credential((self.namespace.clone(), name));
        }
        if steps.begun.is_empty() && steps.parked.is_empty() && !steps.was_slow {
            namespaces.remove(&self.namespace);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a step takes, by the monotonic clock")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use crate::reconcile::work_queue::Work;

    use super::*;

    fn slots() -> (Slots, Work) {
        let (queue, work) = WorkQueue::new(&[], true);
        (Slots::new(16, queue), work)
    }

    fn key(namespace: &str, number: usize) -> ObjectKey {
        (namespace.to_owned(), format!("mailbox-{number}"))
    }

    fn fill(slots: &Slots, namespace: &str) -> Vec<Slot> {
        (0..16).map_while(|number| slots.enter(&key(namespace, number))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_has_three_quarters_of_the_slots_and_an_eighth_while_it_is_slow() {
        let (slots, _work) = slots();
        let unwritten = fill(&slots, "slow");
        assert_eq!(unwritten.len(), 12);
        advance(SLOW).await;
        drop(unwritten);
        assert_eq!(fill(&slots, "slow").len(), 2);
        assert_eq!(fill(&slots, "quick").len(), 12);
        // The steps of `fill` ended at once: it is quick again.
        assert_eq!(fill(&slots, "slow").len(), 12);
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_is_slow_while_its_oldest_step_is() {
        let (slots, _work) = slots();
        let _hangs = slots.enter(&key("slow", 0)).unwrap();
        advance(SLOW).await;
        assert_eq!(fill(&slots, "slow").len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_without_a_slot_is_enqueued_once_when_one_is_free() {
        let (slots, mut work) = slots();
        let mut unwritten = fill(&slots, "shop");
        for number in [20, 21, 20] {
            assert!(slots.enter(&key("shop", number)).is_none());
        }
        unwritten.pop();
        // The first that `fill` was refused, then those in their order.
        assert_eq!(work.next_credential(), Some(key("shop", 12)));
        drop(unwritten);
        assert_eq!([work.next_credential(), work.next_credential()], [Some(key("shop", 20)), Some(key("shop", 21))]);
        assert_eq!(work.next_credential(), None);
        assert!(slots.0.namespaces.lock().is_empty(), "nothing is left to remember");
    }
}
