//! What is on its way to the grant Secret: a claim, the response to an exchange, the end of a sign-in.

use k8s_openapi::jiff::Timestamp;
use secrecy::SecretString;
use thiserror::Error as ThisError;

use crate::{
    error::{Error, describe_step},
    oauth::token::Rotated,
    policy::{
        Blocker,
        grant::{Claim, GrantSecret},
    },
    reconcile::custody::data::Data,
};

/// Why the grant Secret was not written.
#[derive(Debug, ThisError)]
pub enum CustodyError {
    /// Somebody else wrote it meanwhile: it has to be looked at again.
    #[error("it was written by somebody else at the same moment")]
    Stale,
    /// The Secret of that name is not the credential's; whose it is, in words.
    #[error("the Secret {0}")]
    Foreign(String),
    /// What would be written cannot be had.
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
    /// The refresh token.
    pub refresh_token: SecretString,
    /// The claim.
    pub claim: Claim,
    /// It was taken over from another seed just now.
    pub reseeded: bool,
}

impl Claimed {
    /// The grant Secret as the claim left it.
    pub fn stored(&self) -> &GrantSecret {
        &self.stored
    }
}

/// What came with an answer and is not stored yet.
#[derive(Clone, Debug)]
pub enum PendingGrantWrite {
    /// The answer to an exchange.
    Exchanged {
        /// The right by which it was made.
        claimed: Box<Claimed>,
        /// The refresh token that takes the place of the one that was exchanged; `None`: that one stays good.
        rotated: Option<Rotated>,
        /// When.
        used_at: Timestamp,
    },
    /// The answer to a sign-in.
    SignedIn {
        /// The refresh token, if one came.
        rotated: Option<Rotated>,
        /// See [`crate::policy::grant::Grant::bound_to`].
        bound_to: String,
        /// See [`crate::policy::grant::Grant::revocable_at`].
        revocable_at: String,
        /// When.
        at: Timestamp,
    },
}

impl PendingGrantWrite {
    /// When the response arrived that it is from.
    pub fn since(&self) -> Timestamp {
        match self {
            Self::Exchanged { used_at, .. } => *used_at,
            Self::SignedIn { at, .. } => *at,
        }
    }
}

/// How a sign-in ended.
pub(in crate::reconcile) enum SignInEnd {
    /// Well, with a refresh token as a rule.
    SignedIn {
        /// The refresh token.
        rotated: Option<Rotated>,
        /// See [`crate::policy::grant::Grant::bound_to`].
        bound_to: String,
        /// See [`crate::policy::grant::Grant::revocable_at`].
        revocable_at: String,
        /// When.
        at: Timestamp,
    },
    /// Without a grant; how, in words.
    Nothing(String),
}
