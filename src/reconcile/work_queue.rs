//! The queue of the objects to reconcile: one part for each controller.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::{
    api::{credential::ProviderKind, provider_object::ProviderKey, reference::ObjectKey},
    reconcile::queue::Queue,
};

/// Enqueues objects for their controllers. An object that waits already is not enqueued twice, and its reconcile runs once at
/// a time.
#[derive(Clone)]
pub struct WorkQueue(Arc<Work>);

/// The queues of the controllers.
#[derive(Clone)]
pub struct Work {
    /// The MailCredentials to reconcile.
    pub credentials: ControllerQueues,
    /// The MailProviders to reconcile.
    pub providers: ControllerQueues,
    /// ClusterMailProviders; empty where the broker may not read them.
    pub cluster_providers: ControllerQueues,
}

/// The queue of each controller of one kind, by the namespace that the controller watches; `None` is all namespaces.
pub type ControllerQueues = HashMap<Option<String>, Arc<ControllerQueue>>;

/// The objects of one controller that wait for a reconcile, and those whose reconcile runs.
pub struct ControllerQueue {
    queue: Mutex<Queue<ObjectKey>>,
    /// An object was enqueued, or a reconcile has ended.
    changed: Notify,
    /// Times in the queue count from here.
    begun: Instant,
}

impl Default for ControllerQueue {
    fn default() -> Self {
        Self { queue: Mutex::default(), changed: Notify::new(), begun: now() }
    }
}

impl ControllerQueue {
    fn enqueue(&self, object: ObjectKey) {
        self.queue.lock().enqueue(object);
        self.changed.notify_one();
    }

    /// The object whose reconcile begins now: as soon as there is one, and fewer than `concurrency` run. Only one caller waits.
    pub async fn next(&self, concurrency: usize) -> ObjectKey {
        loop {
            let due = {
                let mut queue = self.queue.lock();
                let free = queue.running() < concurrency;
                if free && let Some(object) = queue.next(self.time()) {
                    return ObjectKey::clone(&object);
                }
                queue.due().filter(|_| free)
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(self.begun + due.unwrap_or_default()), if due.is_some() => {}
            }
        }
    }

    /// Ends a reconcile. The object is requeued `after` this time; `None`: when it is enqueued again.
    pub fn done(&self, object: &ObjectKey, after: Option<Duration>) {
        // An `Instant` cannot represent every time.
        let at = after.and_then(|after| self.time().checked_add(after));
        self.queue.lock().done(object, at.filter(|at| self.begun.checked_add(*at).is_some()));
        self.changed.notify_one();
    }

    fn time(&self) -> Duration {
        now().duration_since(self.begun)
    }
}

#[expect(clippy::disallowed_methods, reason = "requeue times are measured by the monotonic clock")]
fn now() -> Instant {
    Instant::now()
}

impl WorkQueue {
    /// A queue for the controllers of these namespaces; of all namespaces where the list is empty. `cluster`:
    /// ClusterMailProviders are reconciled too.
    pub fn new(namespaces: &[String], cluster: bool) -> (Self, Work) {
        let scopes: Vec<Option<String>> = match namespaces {
            [] => vec![None],
            names => names.iter().cloned().map(Some).collect(),
        };
        let queues = |scopes: &[Option<String>]| scopes.iter().map(|scope| (scope.clone(), Arc::default())).collect();
        let cluster_providers = queues(if cluster { &[None] } else { &[] });
        let work = Work { credentials: queues(&scopes), providers: queues(&scopes), cluster_providers };
        (Self(Arc::new(work.clone())), work)
    }

    /// Enqueues a credential for the controller of its namespace.
    pub fn enqueue_credential(&self, credential: ObjectKey) {
        enqueue(&self.0.credentials, credential);
    }

    /// Whether a credential is enqueued, or its reconcile runs.
    pub fn has_credential(&self, credential: &ObjectKey) -> bool {
        let queue = queue_of(&self.0.credentials, credential);
        queue.is_some_and(|queue| queue.queue.lock().has(credential))
    }

    /// Enqueues a provider for the controller of its kind.
    pub fn enqueue_provider(&self, ProviderKey { kind, namespace, name }: ProviderKey) {
        match kind {
            ProviderKind::MailProvider => enqueue(&self.0.providers, (namespace, name)),
            ProviderKind::ClusterMailProvider => enqueue(&self.0.cluster_providers, (namespace, name)),
        }
    }
}

/// Objects of namespaces that no controller watches are dropped.
fn enqueue(queues: &ControllerQueues, object: ObjectKey) {
    if let Some(queue) = queue_of(queues, &object) {
        queue.enqueue(object);
    }
}

fn queue_of<'a>(queues: &'a ControllerQueues, object: &ObjectKey) -> Option<&'a Arc<ControllerQueue>> {
    queues.get(&None).or_else(|| queues.get(&Some(object.0.clone())))
}

#[cfg(test)]
impl ControllerQueue {
    /// Takes the next object out of the queue.
    fn take(&self) -> Option<ObjectKey> {
        let mut queue = self.queue.lock();
        let object = queue.next(self.time())?;
        queue.done(&object, None);
        Some(ObjectKey::clone(&object))
    }
}

#[cfg(test)]
impl Work {
    /// The next credential in the queue of all namespaces.
    pub(crate) fn next_credential(&mut self) -> Option<ObjectKey> {
        self.credentials.get(&None)?.take()
    }

    /// The next MailProvider in the queue of all namespaces.
    pub(crate) fn next_provider(&mut self) -> Option<ProviderKey> {
        let (namespace, name) = self.providers.get(&None)?.take()?;
        Some(ProviderKey { kind: ProviderKind::MailProvider, namespace, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(kind: ProviderKind, namespace: &str) -> ProviderKey {
        ProviderKey { kind, namespace: namespace.to_owned(), name: "m365".to_owned() }
    }

    #[test]
    fn an_object_is_enqueued_for_the_controller_of_its_namespace() {
        let (queue, work) = WorkQueue::new(&["shop".to_owned(), "lab".to_owned()], true);
        for namespace in ["lab", "elsewhere"] {
            queue.enqueue_credential((namespace.to_owned(), "billing".to_owned()));
            queue.enqueue_provider(provider(ProviderKind::MailProvider, namespace));
        }
        queue.enqueue_provider(provider(ProviderKind::ClusterMailProvider, ""));
        let has = |namespace: &str| queue.has_credential(&(namespace.to_owned(), "billing".to_owned()));
        assert_eq!(["shop", "lab", "elsewhere"].map(has), [false, true, false]);
        let credentials = |scope: &str| work.credentials[&Some(scope.to_owned())].take();
        assert_eq!(credentials("shop"), None);
        assert_eq!(credentials("lab").unwrap().1, "billing");
        assert_eq!(credentials("lab"), None, "nothing of a namespace that is not watched");
        assert_eq!(work.providers[&Some("lab".to_owned())].take().unwrap().0, "lab");
        assert_eq!(work.cluster_providers[&None].take(), Some((String::new(), "m365".to_owned())));
    }

    #[test]
    fn one_controller_watches_all_namespaces_and_none_the_cluster_where_that_is_not_allowed() {
        let (queue, mut work) = WorkQueue::new(&[], false);
        queue.enqueue_credential(("shop".to_owned(), "billing".to_owned()));
        queue.enqueue_provider(provider(ProviderKind::ClusterMailProvider, ""));
        assert_eq!(work.next_credential(), Some(("shop".to_owned(), "billing".to_owned())));
        assert_eq!(work.next_credential(), None);
        assert!(work.cluster_providers.is_empty() && work.next_provider().is_none());
    }
}
