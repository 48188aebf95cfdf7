//! The result of a reconcile.

use std::time::Duration;

/// The time at which the object is reconciled again if no event enqueues it before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// The time after which the object is requeued; `None`: the object waits for an event.
    pub again_after: Option<Duration>,
}

impl Action {
    /// Requeues the object after `time`.
    pub const fn requeue(time: Duration) -> Self {
        Self { again_after: Some(time) }
    }

    /// Waits until an event enqueues the object.
    pub const fn await_change() -> Self {
        Self { again_after: None }
    }
}
