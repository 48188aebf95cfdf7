//! What is to be written into the grant Secret: the response to an exchange, or the end of a sign-in.

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

/// Why the grant Secret was not written.
#[derive(Debug, ThisError)]
pub enum CustodyError {
    /// Another writer changed the Secret: it is read and decided again.
    #[error("another writer changed it at the same moment")]
    Stale,
    /// The Secret of that name belongs to another object, in words.
    #[error("the Secret {0}")]
    Foreign(String),
    /// The token that would be written cannot be used.
    #[error("{}", .0.message)]
    Blocked(Blocker),
    /// The API server refuses it: quota, admission, a terminating namespace, permissions, an outage.
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
    /// The claim as the grant Secret holds it.
    pub claim: Claim,
    /// Whether the token comes from a new seed.
    pub reseeded: bool,
}

impl Claimed {
    /// The grant Secret as the claim left it.
    pub fn stored(&self) -> &GrantSecret {
        &self.stored
    }
}

/// The result of a response that is not written into the grant Secret yet.
#[derive(Clone, Debug)]
pub enum PendingGrantWrite {
    /// The response to an exchange.
    Exchanged {
        /// The claim under which the exchange was made.
        claimed: Box<Claimed>,
        /// The refresh token that replaces the exchanged one; `None`: the provider keeps the old one valid.
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
    /// When the request was sent.
    pub fn since(&self) -> Timestamp {
        match self {
            Self::Exchanged { used_at, .. } => *used_at,
            Self::SignedIn(signed_in) => signed_in.at,
        }
    }
}

/// How a sign-in ended.
pub(in crate::reconcile) enum SignInEnd {
    /// The user signed in.
    SignedIn(SignedIn),
    /// The sign-in failed, with the description for users.
    Failed(String),
}
