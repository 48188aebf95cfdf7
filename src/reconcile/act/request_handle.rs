//! How whoever sent an attempt waits for its end.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::{api::reference::ObjectKey, reconcile::work_queue::WorkQueue};

/// An attempt that has gone out at once. Where nobody has waited for its end, the end wakes the credential: it is told
/// once, either way.
pub(in crate::reconcile) struct RequestHandle {
    /// Is told of the end.
    pub(super) end: oneshot::Receiver<()>,
    /// Whose attempt it is.
    pub(super) credential: ObjectKey,
    /// Wakes it.
    pub(super) queue: WorkQueue,
}

impl RequestHandle {
    /// Whether it ends within this time.
    pub(in crate::reconcile) async fn ends_within(mut self, time: Duration) -> bool {
        tokio::time::timeout(time, &mut self.end).await.is_ok_and(|ended| ended.is_ok())
    }
}

impl Drop for RequestHandle {
    fn drop(&mut self) {
        // An end that comes from here on finds nobody, and whoever sends it wakes the credential.
        self.end.close();
        if self.end.try_recv().is_ok() {
            self.queue.enqueue_credential(self.credential.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_end_is_either_awaited_or_enqueues_the_credential() {
        let patience = Duration::from_secs(1);
        let (queue, mut work) = WorkQueue::new(&[], true);
        let credential: ObjectKey = ("shop".to_owned(), "billing".to_owned());
        let handle = |end| RequestHandle { end, credential: credential.clone(), queue: queue.clone() };

        let (ended, end) = oneshot::channel();
        ended.send(()).unwrap();
        assert!(handle(end).ends_within(patience).await);
        assert_eq!(work.next_credential(), None);

        let (ended, end) = oneshot::channel();
        assert!(!handle(end).ends_within(patience).await);
        assert!(ended.send(()).is_err(), "nobody waits any more");
        assert_eq!(work.next_credential(), None);

        let (ended, end) = oneshot::channel();
        let unheard = handle(end);
        ended.send(()).unwrap();
        drop(unheard);
        assert_eq!(work.next_credential(), Some(credential.clone()));
    }
}
