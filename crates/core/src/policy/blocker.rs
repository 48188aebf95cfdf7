//! Blockers: why the broker cannot use a credential or a provider.

use crate::api::{Reason, Retry};

/// The problem that blocks a credential or a provider, and its fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// The reason of the condition.
    pub reason: Reason,
    /// What is wrong, where, and the command or field that fixes it.
    pub message: String,
    /// The class of the blocker: which event removes it.
    pub cause: Cause,
}

/// Classes of blockers, by the event that removes a blocker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The problem is transient, such as a network failure: the broker retries.
    Transient,
    /// An object is missing. A user may have applied it together with the blocked object, so it may still arrive.
    Missing,
    /// A person must act.
    Person,
}

impl Cause {
    /// The usual cause of a reason.
    pub const fn of(reason: Reason) -> Self {
        match reason.retry() {
            Retry::Transient | Retry::None => Self::Transient,
            Retry::OnChange if reason.may_arrive() => Self::Missing,
            Retry::OnChange | Retry::Permanent => Self::Person,
        }
    }
}

impl Blocker {
    /// Creates a blocker with the usual cause of its reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), cause: Cause::of(reason) }
    }

    /// Returns the blocker with another cause.
    #[must_use]
    pub fn because(mut self, cause: Cause) -> Self {
        self.cause = cause;
        self
    }
}
