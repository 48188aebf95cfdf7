//! Pending writes of the grant Secret: the response to an exchange, or the end of a sign-in.

use k8s_openapi::jiff::Timestamp;
use secrecy::SecretString;
use thiserror::Error as ThisError;

use crate::{
    error::{Error, describe_step},
    oauth::token::Rotated,
    policy::{
        Blocker,
        grant::{Claim, GrantSecret},
        hash::{BindingHash, RevocationHash},
    },
    reconcile::custody::data::Data,
};

/// Why the broker did not write the grant Secret.
#[derive(Debug, ThisError)]
pub enum CustodyError {
    /// Another writer changed the Secret. The next reconcile reads the Secret and decides again.
    #[error("another writer changed it at the same moment")]
    Stale,
    /// The Secret of that name belongs to another object, which the text describes.
    #[error("the Secret {0}")]
    Foreign(String),
    /// The broker must not use the refresh token that it would write.
    #[error("{}", .0.message)]
    Blocked(Blocker),
    /// The API server refuses the write: quota, admission, a terminating namespace, permissions, an outage.
    #[error("{0}")]
    Refused(String),
}

impl From<Error> for CustodyError {
    fn from(error: Error) -> Self {
        Self::Refused(describe_step(&error))
    }
}

/// The right to exchange a refresh token.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub(super) stored: GrantSecret,
    pub(super) data: Data,
    /// The claimed refresh token.
    pub refresh_token: SecretString,
    /// The claim in the grant Secret.
    pub claim: Claim,
    /// Whether the token comes from a new seed, which replaces a stored refresh token.
    pub reseeded: bool,
}

impl Claimed {
    /// The grant Secret after the write of the claim.
    pub fn stored(&self) -> &GrantSecret {
        &self.stored
    }
}

/// A response that the broker has not written into the grant Secret yet.
#[derive(Clone, Debug)]
pub enum PendingGrantWrite {
    /// The response to an exchange.
    Exchanged {
        /// The claim of the exchange.
        claimed: Box<Claimed>,
        /// The refresh token that replaces the exchanged one; `None` if the provider keeps the old one valid.
        rotated: Option<Rotated>,
        /// The time at which the request was sent.
        used_at: Timestamp,
    },
    /// The response to a sign-in.
    SignedIn(SignedIn),
}

/// The response to a sign-in: the user signed in.
#[derive(Clone, Debug)]
pub struct SignedIn {
    /// The refresh token, if the response has one.
    pub rotated: Option<Rotated>,
    /// The provider and client of the token: see [`crate::policy::grant::RefreshGrant::bound_to`].
    pub bound_to: BindingHash,
    /// The revocation endpoint of the token: see [`crate::policy::grant::RefreshGrant::revocable_at`].
    pub revocable_at: RevocationHash,
    /// The time at which the request was sent.
    pub at: Timestamp,
}

impl PendingGrantWrite {
    /// Returns the time at which the request was sent.
    pub fn since(&self) -> Timestamp {
        match self {
            Self::Exchanged { used_at, .. } => *used_at,
            Self::SignedIn(signed_in) => signed_in.at,
        }
    }
}

/// The end of a sign-in.
pub(in crate::reconcile) enum SignInEnd {
    SignedIn(SignedIn),
    /// The sign-in failed. The text describes the failure for users.
    Failed(String),
}
