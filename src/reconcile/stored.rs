//! The token that is stored in a target Secret, as its annotations and its data describe it.

use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use secrecy::{ExposeSecret as _, SecretString};

use crate::{
    api::{names, status::TokenStatus},
    oauth::{
        Token,
        token::{TokenFingerprint, is_access_token},
    },
    policy::{
        expiry::{self, DataExpiry},
        hash::RevocationHash,
        observed::TokenFacts,
    },
};

pub(super) fn annotation<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// A token that is stored in a target Secret, with what its annotations say about it.
pub(super) struct Stored {
    /// The token and its times.
    pub(super) token: Token,
    /// The annotation `mailtoken.dev/revocable-at`; empty where it is missing.
    pub(super) revocable_at: RevocationHash,
    /// The annotation `mailtoken.dev/object-id`, if there.
    pub(super) object_id: Option<String>,
    /// The annotation `mailtoken.dev/warning`, if there.
    pub(super) unsuitable: Option<String>,
}

/// The token in a target Secret, if the annotations describe the token in the data; and whether annotations, data and
/// `status` agree about its end. Where they differ, the earliest time counts.
pub(super) fn stored_token(secret: &Secret, status: Option<&TokenStatus>) -> Option<(Stored, bool)> {
    let mut facts = TokenFacts::read(&secret.metadata)?;
    let text = |key: &str| String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok();
    // Another writer may have changed the data: a value that cannot be an access token is not copied into the other
    // keys.
    let access_token = SecretString::from(text("access_token").filter(|token| is_access_token(token))?);
    if TokenFingerprint::of(access_token.expose_secret()) != facts.fingerprint {
        return None;
    }
    let data = DataExpiry {
        date: text("expires_at").and_then(|text| names::time(&text)),
        seconds: text("expires_at_unix").and_then(|text| Timestamp::from_second(text.parse().ok()?).ok()),
    };
    let agrees = expiry::settle_with_data(&mut facts, data) & expiry::settle_with_status(&mut facts, status);
    let token_type =
        text("token_type").filter(|kind| kind.eq_ignore_ascii_case("bearer")).unwrap_or_else(|| "Bearer".to_owned());
    let token = Token {
        access_token,
        token_type,
        issued_at: facts.issued_at,
        expires_at: facts.expires_at,
        refresh_at: facts.refresh_at,
        scopes: facts.scopes,
    };
    let stored = Stored {
        token,
        revocable_at: annotation(secret, names::ANNOTATION_REVOCABLE_AT).unwrap_or_default().into(),
        object_id: facts.object_id,
        unsuitable: facts.unsuitable,
    };
    Some((stored, agrees))
}
