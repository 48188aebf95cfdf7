//! How whoever sent an attempt waits for its end.

use std::time::Duration;

use tokio::sync::oneshot;

/// An attempt that has gone out at once.
pub(in crate::reconcile) struct UnderWay(pub(super) oneshot::Receiver<()>);

impl UnderWay {
    /// Whether it ends within this time. If not, its end wakes the credential.
    pub(in crate::reconcile) async fn ends_within(mut self, time: Duration) -> bool {
        if let Ok(ended) = tokio::time::timeout(time, &mut self.0).await {
            return ended.is_ok();
        }
        self.0.close();
        self.0.try_recv().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_end_is_either_waited_for_or_told_to_the_queue() {
        let patience = Duration::from_secs(1);
        let (ended, end) = oneshot::channel();
        ended.send(()).unwrap();
        assert!(UnderWay(end).ends_within(patience).await);

        let (ended, end) = oneshot::channel();
        assert!(!UnderWay(end).ends_within(patience).await);
        assert!(ended.send(()).is_err(), "nobody waits any more");
    }
}
