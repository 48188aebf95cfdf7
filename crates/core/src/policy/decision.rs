//! What is done about a credential, and why.

use k8s_openapi::jiff::Timestamp;

use super::blocker::Blocker;

/// What is done about a credential now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write the refresh token that came with the last answer, or the labels and the owner of the Secret that keeps it.
    KeepGrant,
    /// Ask the provider for a token.
    Issue(IssueReason),
    /// Ask the provider for a code by which a person signs in.
    SignIn,
    /// Ask the provider whether the person has signed in.
    Poll,
    /// Nothing, until the provider may be asked again whether the person has signed in.
    AwaitSignIn {
        /// When that is.
        until: Timestamp,
    },
    /// Nothing, because another broker is exchanging the refresh token.
    Claimed {
        /// When its time is over.
        until: Timestamp,
    },
    /// Write the token that has just been obtained.
    Store,
    /// Write the token that is stored already, in another shape or place.
    Publish(PublishReason),
    /// A request is under way: wait for it.
    InFlight,
    /// A request waits for its permit: other requests come first.
    Queued {
        /// Since when.
        since: Timestamp,
    },
    /// Nothing, until the renewal is due.
    Wait {
        /// When the renewal is due.
        until: Timestamp,
    },
    /// Nothing, because the last attempt failed.
    BackOff {
        /// When the next attempt is due.
        until: Timestamp,
    },
    /// Nothing, because `spec.suspend` is true.
    Suspended,
    /// Nothing, until a person has changed something.
    Stall(Blocker),
}

/// Each question is one match without a wildcard: a new decision does not compile until each has an answer.
impl Decision {
    /// Whether a request is sent to the provider.
    pub const fn is_request(&self) -> bool {
        match self {
            Self::Issue(_) | Self::SignIn | Self::Poll => true,
            Self::KeepGrant
            | Self::AwaitSignIn { .. }
            | Self::Claimed { .. }
            | Self::Store
            | Self::Publish(_)
            | Self::InFlight
            | Self::Queued { .. }
            | Self::Wait { .. }
            | Self::BackOff { .. }
            | Self::Suspended
            | Self::Stall(_) => false,
        }
    }

    /// What is written into which Secret; `None` for a decision that writes none.
    pub const fn write(&self) -> Option<Write> {
        match self {
            Self::KeepGrant => Some(Write::Grant),
            Self::Store => Some(Write::Token),
            Self::Publish(_) => Some(Write::Shape),
            Self::Issue(_)
            | Self::SignIn
            | Self::Poll
            | Self::AwaitSignIn { .. }
            | Self::Claimed { .. }
            | Self::InFlight
            | Self::Queued { .. }
            | Self::Wait { .. }
            | Self::BackOff { .. }
            | Self::Suspended
            | Self::Stall(_) => None,
        }
    }

    /// Whether a Secret is written.
    pub const fn is_write(&self) -> bool {
        self.write().is_some()
    }

    /// Whether the broker works on the credential: the next status follows at once, or when the request ends.
    pub const fn is_under_way(&self) -> bool {
        match self {
            Self::KeepGrant
            | Self::Issue(_)
            | Self::SignIn
            | Self::Poll
            | Self::Store
            | Self::Publish(_)
            | Self::InFlight => true,
            Self::AwaitSignIn { .. }
            | Self::Claimed { .. }
            | Self::Queued { .. }
            | Self::Wait { .. }
            | Self::BackOff { .. }
            | Self::Suspended
            | Self::Stall(_) => false,
        }
    }

    /// Since when the request waits for its permit.
    pub const fn queued_since(&self) -> Option<Timestamp> {
        match self {
            Self::Queued { since } => Some(*since),
            Self::KeepGrant
            | Self::Issue(_)
            | Self::SignIn
            | Self::Poll
            | Self::AwaitSignIn { .. }
            | Self::Claimed { .. }
            | Self::Store
            | Self::Publish(_)
            | Self::InFlight
            | Self::Wait { .. }
            | Self::BackOff { .. }
            | Self::Suspended
            | Self::Stall(_) => None,
        }
    }

    /// Whether nothing happens before the spec or another object changes.
    pub const fn awaits_change(&self) -> bool {
        match self {
            Self::Suspended | Self::Stall(_) => true,
            Self::KeepGrant
            | Self::Issue(_)
            | Self::SignIn
            | Self::Poll
            | Self::AwaitSignIn { .. }
            | Self::Claimed { .. }
            | Self::Store
            | Self::Publish(_)
            | Self::InFlight
            | Self::Queued { .. }
            | Self::Wait { .. }
            | Self::BackOff { .. } => false,
        }
    }

    /// Whether a person may be signing in meanwhile.
    pub const fn awaits_sign_in(&self) -> bool {
        match self {
            Self::SignIn | Self::Poll | Self::AwaitSignIn { .. } | Self::InFlight | Self::Queued { .. } => true,
            Self::KeepGrant
            | Self::Issue(_)
            | Self::Claimed { .. }
            | Self::Store
            | Self::Publish(_)
            | Self::Wait { .. }
            | Self::BackOff { .. }
            | Self::Suspended
            | Self::Stall(_) => false,
        }
    }

    /// What stalls the credential.
    pub const fn blocker(&self) -> Option<&Blocker> {
        match self {
            Self::Stall(blocker) => Some(blocker),
            Self::KeepGrant
            | Self::Issue(_)
            | Self::SignIn
            | Self::Poll
            | Self::AwaitSignIn { .. }
            | Self::Claimed { .. }
            | Self::Store
            | Self::Publish(_)
            | Self::InFlight
            | Self::Queued { .. }
            | Self::Wait { .. }
            | Self::BackOff { .. }
            | Self::Suspended => None,
        }
    }
}

/// What a decision writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    /// The refresh token, or the labels and the owner of the grant Secret.
    Grant,
    /// The token that has just been obtained.
    Token,
    /// The stored token in another shape or place.
    Shape,
}

/// Why a token is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IssueReason {
    /// There is no token of ours in the target.
    NoToken,
    /// The token was issued for other inputs.
    InputsChanged,
    /// The token has ended.
    Expired,
    /// The annotation `mailtoken.dev/reissue` has a new value.
    Reissue,
    /// The renewal time has come.
    RenewalDue,
    /// The token was issued in the future: the clock was set back since, and when the token ends is not known.
    FromTheFuture,
    /// Another refresh token was put into the seed's Secret.
    Reseeded,
    /// The refresh token would die for want of use.
    KeepAlive,
}

/// Why the stored token is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishReason {
    /// `spec.secret.name` changed.
    Renamed,
    /// The Secret cannot be written any more and has to be made again.
    Recreate,
    /// Somebody else changed the Secret.
    Repair,
    /// Formats, labels, mailbox or servers changed.
    Layout,
}

impl IssueReason {
    /// Whether the token that is there still serves meanwhile.
    pub(super) fn leaves_one_that_serves(self) -> bool {
        !matches!(self, Self::NoToken | Self::InputsChanged | Self::Expired)
    }
}
