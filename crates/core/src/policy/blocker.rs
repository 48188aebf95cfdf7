//! What keeps a credential or a provider from going on.

use crate::api::{Reason, Retry};

/// Why something cannot go on, and its fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// The reason.
    pub reason: Reason,
    /// What is wrong, where, and the command or field that mends it.
    pub message: String,
    /// What it takes to remove it.
    pub cause: Cause,
}

/// What it takes to remove what blocks an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It passes: a provider's network, for example.
    Transient,
    /// An object is missing that may have been applied in the same go and arrive later.
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
    /// A blocker with the usual cause of its reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), cause: Cause::of(reason) }
    }

    /// The same blocker with another cause.
    #[must_use]
    pub fn because(mut self, cause: Cause) -> Self {
        self.cause = cause;
        self
    }
}
