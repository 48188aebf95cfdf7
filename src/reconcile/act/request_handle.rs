//! Waiting for the end of a request.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::{api::reference::ObjectKey, reconcile::work_queue::WorkQueue};

/// Handle of a request that was sent. Either the holder awaits the end, or the end enqueues the credential: never both,
/// never neither.
pub(in crate::reconcile) struct RequestHandle {
    /// Receives the end of the request.
    pub(super) end: oneshot::Receiver<()>,
    /// The credential of the request.
    pub(super) credential: ObjectKey,
    /// The queue that enqueues the credential.
    pub(super) queue: WorkQueue,
}

impl RequestHandle {
    /// Whether the request ends within this time.
    pub(in crate::reconcile) async fn ends_within(mut self, time: Duration) -> bool {
        tokio::time::timeout(time, &mut self.end).await.is_ok_and(|ended| ended.is_ok())
    }
}

impl Drop for RequestHandle {
    fn drop(&mut self) {
        // Close first: a later `send` fails, and its sender enqueues the credential.
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
        let queue = WorkQueue::new(1);
        let credential: ObjectKey = ("shop".to_owned(), "billing".to_owned());
        let handle = |end| RequestHandle { end, credential: credential.clone(), queue: queue.clone() };

        let (ended, end) = oneshot::channel();
        ended.send(()).unwrap();
        assert!(handle(end).ends_within(patience).await);
        assert_eq!(queue.next_credential(), None);

        let (ended, end) = oneshot::channel();
        assert!(!handle(end).ends_within(patience).await);
        assert!(ended.send(()).is_err(), "the receiver is closed");
        assert_eq!(queue.next_credential(), None);

        let (ended, end) = oneshot::channel();
        let unheard = handle(end);
        ended.send(()).unwrap();
        drop(unheard);
        assert_eq!(queue.next_credential(), Some(credential.clone()));
    }
}
