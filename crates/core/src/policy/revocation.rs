//! The result of the revocation of a deleted credential's tokens, and the Event that reports it.

use k8s_openapi::jiff::Timestamp;

use super::notices::EventNote;
use crate::api::{MailCredential, Reason, Retry};

/// The result of a revocation.
#[derive(Clone, Debug)]
pub enum Revocation {
    /// The credential had no tokens to revoke.
    Nothing,
    /// The provider has revoked the tokens.
    Revoked,
    /// The provider has no revocation endpoint.
    NotSupported,
    /// The tokens are not revoked. The text has the cause; `Retry` shows whether another attempt may help.
    Failed(String, Retry),
}

/// The Event that reports a revocation. `None`: there was nothing to revoke.
pub fn notice(revocation: &Revocation, credential: &MailCredential, now: Timestamp) -> Option<EventNote> {
    let status = credential.status.as_ref();
    let had_tokens = status.is_some_and(|status| {
        status.grant.is_some() || status.token.as_ref().is_some_and(|token| now < token.expires_at.0)
    });
    let (warning, reason, note) = match revocation {
        Revocation::Nothing if !had_tokens => return None,
        // When a user deletes a namespace, Kubernetes deletes the Secrets in it in any order.
        Revocation::Nothing => (
            true,
            Reason::RevocationFailed,
            "the tokens are not revoked: the Secrets that held them were deleted before. Revoke them in the provider's own \
             console"
                .to_owned(),
        ),
        Revocation::Revoked => (false, Reason::GrantRevoked, "the provider has revoked the tokens".to_owned()),
        Revocation::NotSupported => (
            true,
            Reason::RevocationNotSupported,
            "the provider cannot revoke tokens: the access token expires, and a refresh token must be revoked in the \
             provider's own console"
                .to_owned(),
        ),
        Revocation::Failed(why, _) => (
            true,
            Reason::RevocationFailed,
            format!("the tokens are not revoked: {why}. Revoke them in the provider's own console"),
        ),
    };
    Some(EventNote { warning, reason, note })
}
