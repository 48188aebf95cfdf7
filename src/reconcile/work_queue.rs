//! The queues of the objects to reconcile, one for each kind.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::{
    api::{credential::ProviderKind, provider_object::ProviderKey, reference::ObjectKey},
    reconcile::queue::{Place, ReconcileQueue},
    stores::reference_index::ReferenceIndex,
};

/// Enqueues objects for their controllers. A waiting object is not enqueued twice, and one reconcile of an object runs
/// at a time.
#[derive(Clone)]
pub struct WorkQueue(Arc<Queues>);

struct Queues {
    credentials: ControllerQueue,
    providers: ControllerQueue,
    cluster_providers: ControllerQueue,
}

/// The objects of one kind that wait for a reconcile, and the objects whose reconcile runs.
pub struct ControllerQueue {
    queue: Mutex<ReconcileQueue>,
    /// Notified when an object is enqueued, or a reconcile has ended.
    changed: Notify,
    /// The time zero from which the queue measures its times.
    begun: Instant,
}

impl ControllerQueue {
    fn new(concurrency: u16) -> Self {
        Self { queue: Mutex::new(ReconcileQueue::new(usize::from(concurrency))), changed: Notify::new(), begun: now() }
    }

    fn enqueue(&self, object: ObjectKey, place: Place) {
        self.queue.lock().enqueue(object, place);
        self.changed.notify_one();
    }

    /// Waits until a reconcile may begin, and returns its object. Only one caller may wait.
    pub async fn next(&self) -> Arc<ObjectKey> {
        loop {
            let due = {
                let mut queue = self.queue.lock();
                if let Some(object) = queue.next(self.time()) {
                    return object;
                }
                queue.due()
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(self.begun + due.unwrap_or_default()), if due.is_some() => {}
            }
        }
    }

    /// Ends a reconcile. Requeues the object `after` this time; `None`: the object waits until it is enqueued again.
    pub fn done(&self, object: &ObjectKey, after: Option<Duration>) {
        let now = self.time();
        // An `Instant` cannot represent every time.
        let at = after.and_then(|after| now.checked_add(after));
        self.queue.lock().done(object, at.filter(|at| self.begun.checked_add(*at).is_some()), now);
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
    /// Creates queues for `concurrency` concurrent reconciles of each kind.
    pub fn new(concurrency: u16) -> Self {
        let queue = || ControllerQueue::new(concurrency);
        Self(Arc::new(Queues { credentials: queue(), providers: queue(), cluster_providers: queue() }))
    }

    /// Returns the queue of credentials.
    pub fn credentials(&self) -> &ControllerQueue {
        &self.0.credentials
    }

    /// Returns the queue of providers of one kind.
    pub fn providers(&self, kind: ProviderKind) -> &ControllerQueue {
        match kind {
            ProviderKind::MailProvider => &self.0.providers,
            ProviderKind::ClusterMailProvider => &self.0.cluster_providers,
        }
    }

    /// Enqueues a credential for a reconcile.
    pub fn enqueue_credential(&self, credential: ObjectKey) {
        self.credentials().enqueue(credential, Place::Last);
    }

    /// Enqueues a credential whose request has ended, before all others: a token of the response is only in memory.
    pub fn enqueue_result(&self, credential: ObjectKey) {
        self.credentials().enqueue(credential, Place::First);
    }

    /// Whether a credential is enqueued, or its reconcile runs.
    pub fn has_credential(&self, credential: &ObjectKey) -> bool {
        self.credentials().queue.lock().has(credential)
    }

    /// Enqueues credentials for a reconcile.
    pub fn enqueue_credentials(&self, credentials: impl IntoIterator<Item = ObjectKey>) {
        credentials.into_iter().for_each(|credential| self.enqueue_credential(credential));
    }

    /// Enqueues the providers and credentials that refer to a source Secret, because a change of it may end their wait.
    pub fn enqueue_readers(&self, secret: &ObjectKey, references: &ReferenceIndex) {
        for provider in references.by_secret(secret) {
            self.enqueue_with_credentials(provider, references);
        }
        self.enqueue_credentials(references.credentials_by_secret(secret));
    }

    /// Enqueues a provider and its credentials, because a change may end their wait.
    pub fn enqueue_with_credentials(&self, provider: ProviderKey, references: &ReferenceIndex) {
        self.enqueue_credentials(references.by_provider(&provider));
        self.enqueue_provider(provider);
    }

    /// Enqueues a provider for a reconcile.
    pub fn enqueue_provider(&self, ProviderKey { kind, namespace, name }: ProviderKey) {
        self.providers(kind).enqueue((namespace, name), Place::Last);
    }
}

#[cfg(test)]
impl WorkQueue {
    /// Removes the next credential from its queue, and returns it.
    pub(crate) fn next_credential(&self) -> Option<ObjectKey> {
        self.credentials().take()
    }

    /// Removes the next MailProvider from its queue, and returns it.
    pub(crate) fn next_provider(&self) -> Option<ProviderKey> {
        let (namespace, name) = self.providers(ProviderKind::MailProvider).take()?;
        Some(ProviderKey { kind: ProviderKind::MailProvider, namespace, name })
    }
}

#[cfg(test)]
impl ControllerQueue {
    fn take(&self) -> Option<ObjectKey> {
        let object = self.queue.lock().next(self.time())?;
        self.done(&object, None);
        Some(ObjectKey::clone(&object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ("shop".to_owned(), name.to_owned())
    }

    #[test]
    fn an_object_is_enqueued_for_the_controller_of_its_kind() {
        let queue = WorkQueue::new(1);
        queue.enqueue_credential(key("billing"));
        for kind in [ProviderKind::MailProvider, ProviderKind::ClusterMailProvider] {
            queue.enqueue_provider(ProviderKey { kind, namespace: String::new(), name: format!("{kind:?}") });
        }
        assert!(queue.has_credential(&key("billing")) && !queue.has_credential(&key("orders")));
        assert_eq!((queue.next_credential(), queue.next_credential()), (Some(key("billing")), None));
        assert_eq!(queue.next_provider().unwrap().name, "MailProvider");
        assert_eq!(queue.providers(ProviderKind::ClusterMailProvider).take().unwrap().1, "ClusterMailProvider");
    }

    #[tokio::test(start_paused = true)]
    async fn an_enqueued_object_the_end_of_a_reconcile_and_a_time_wake_the_controller() {
        let queue = WorkQueue::new(1);
        let credentials = queue.credentials();
        let (next, ()) = futures::join!(credentials.next(), async { queue.enqueue_credential(key("a")) });
        assert_eq!(*next, key("a"));
        queue.enqueue_credential(key("b"));
        let ends = async { credentials.done(&key("a"), Some(Duration::from_secs(30))) };
        let (next, ()) = futures::join!(credentials.next(), ends);
        assert_eq!(*next, key("b"));
        credentials.done(&key("b"), None);
        let early = tokio::time::timeout(Duration::from_secs(29), credentials.next()).await;
        assert!(early.is_err(), "not before its time");
        assert_eq!(*credentials.next().await, key("a"));
        credentials.done(&key("a"), Some(Duration::MAX));
        let never = tokio::time::timeout(Duration::from_secs(1 << 40), credentials.next()).await;
        assert!(never.is_err(), "a time that no clock shows is never");
    }
}
