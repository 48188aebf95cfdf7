//! What keeps a credential or a provider from going on.

use crate::api::{Reason, Retry};

/// Why something cannot go on, and its fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// The reason of the condition.
    pub reason: Reason,
    /// What is wrong, where, and the command or field that fixes it.
    pub message: String,
    /// What is necessary to remove the blocker.
    pub cause: Cause,
}

/// Classes of blockers by what removes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The problem is transient: a provider's network, for example.
    Transient,
    /// A missing object may still arrive, because it was applied together with this one.
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
