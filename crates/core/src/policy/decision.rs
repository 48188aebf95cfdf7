//! Decisions about a credential, and their reasons.

use k8s_openapi::jiff::Timestamp;

use super::blocker::Blocker;

/// The decision about a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write the refresh token of the last response, or the labels and the owner of the grant Secret.
    KeepGrant,
    /// Request a token from the provider.
    Issue(IssueReason),
    /// Request a code for a user's sign-in.
    SignIn,
    /// Poll whether the user has signed in.
    Poll,
    /// Wait until the next poll.
    AwaitSignIn {
        /// Time of the next poll.
        until: Timestamp,
    },
    /// Wait, because another broker has claimed the refresh token.
    Claimed {
        /// Deadline of the claim.
        until: Timestamp,
    },
    /// Write the access token of the last response.
    Store,
    /// Write the stored token again, into a Secret with another content or name.
    Publish(PublishReason),
    /// Wait for the request in flight.
    InFlight,
    /// Wait for the permit of a queued request.
    Queued {
        /// Time at which the broker queued the request.
        since: Timestamp,
    },
    /// Wait until the renewal is due.
    Wait {
        /// Time of the renewal.
        until: Timestamp,
    },
    /// Wait, because the last attempt failed.
    BackOff {
        /// Time of the next attempt.
        until: Timestamp,
    },
    /// Do nothing, because `spec.suspend` is true.
    Suspended,
    /// Do nothing until a person or another controller changes an object.
    Stall(Blocker),
}

/// Each method is one match without a wildcard. A new decision therefore does not compile until each method handles it.
impl Decision {
    /// The request that the decision sends to the provider. `None`: the decision sends no request.
    pub const fn request(&self) -> Option<RequestKind> {
        match self {
            Self::Issue(_) => Some(RequestKind::Token),
            Self::SignIn => Some(RequestKind::SignIn),
            Self::Poll => Some(RequestKind::Poll),
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
            | Self::Stall(_) => None,
        }
    }

    /// Whether the decision sends a request to the provider.
    pub const fn is_request(&self) -> bool {
        self.request().is_some()
    }

    /// The kind of Secret content that the decision writes. `None`: the decision writes no Secret.
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

    /// Whether the decision writes a Secret.
    pub const fn is_write(&self) -> bool {
        self.write().is_some()
    }

    /// Whether the broker works on the credential: the next status follows immediately, or when the request ends.
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

    /// Time since which the request waits for its permit. `None`: no request waits for a permit.
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

    /// Whether the broker does nothing until the spec or another object changes.
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

    /// Whether a user may be signing in while the decision applies.
    pub const fn expects_sign_in(&self) -> bool {
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

    /// Whether a user waits for the response: the credential is new or was changed, or a sign-in begins.
    pub const fn has_a_waiting_user(&self) -> bool {
        match self {
            Self::SignIn => true,
            Self::Issue(reason) => reason.is_the_users(),
            Self::KeepGrant
            | Self::Poll
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

    /// The blocker that stalls the credential. `None`: the credential is not stalled.
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

/// The kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// A token request.
    Token,
    /// A request for a device code, by which a user signs in.
    SignIn,
    /// A poll of the token endpoint, which asks whether the user has signed in.
    Poll,
}

/// Kinds of Secret content that a decision writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    /// The refresh token, or the labels and the owner of the grant Secret.
    Grant,
    /// The access token of the last response.
    Token,
    /// The stored token, into a Secret with another content or name.
    Shape,
}

/// Reasons to request a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IssueReason {
    /// The target Secret has no token from the broker.
    NoToken,
    /// The inputs of the token have changed: issuer, client, scopes, grant or subject.
    InputsChanged,
    /// The token has expired.
    Expired,
    /// The annotation `mailtoken.dev/reissue` has a new value.
    Reissue,
    /// The renewal is due.
    RenewalDue,
    /// The recorded issue time is in the future: the clock was set back, so the expiry is unknown.
    FromTheFuture,
    /// The seed's Secret has a new refresh token.
    Reseeded,
    /// The refresh token would expire from disuse.
    KeepAlive,
}

/// Reasons to write the stored token again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishReason {
    /// `spec.secret.name` changed.
    Renamed,
    /// The broker cannot update the Secret, and must recreate it.
    Recreate,
    /// Another client changed the Secret.
    Repair,
    /// Formats, labels, mailbox or servers changed.
    Layout,
}

impl IssueReason {
    /// Whether a user's change is the reason.
    const fn is_the_users(self) -> bool {
        match self {
            Self::NoToken | Self::InputsChanged | Self::Reissue | Self::Reseeded => true,
            Self::Expired | Self::RenewalDue | Self::FromTheFuture | Self::KeepAlive => false,
        }
    }

    /// Whether the stored token is still valid while the broker requests a new token.
    pub(super) fn leaves_one_that_serves(self) -> bool {
        !matches!(self, Self::NoToken | Self::InputsChanged | Self::Expired)
    }
}
