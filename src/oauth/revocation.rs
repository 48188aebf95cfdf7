//! Token revocation (RFC 7009).

use http::{Request, Response};
use k8s_openapi::jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use url::form_urlencoded::Serializer;

use super::{
    client_auth::{ClientAuth, Occasion},
    grant::{RequestError, post},
    refusal::{Refusal, read_refusal},
};

/// What is revoked: a hint for servers that look tokens up by kind (RFC 7009 section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// With it, the tokens that were issued by it.
    RefreshToken,
    /// Alone.
    AccessToken,
}

impl TokenKind {
    /// The value of `token_type_hint`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RefreshToken => "refresh_token",
            Self::AccessToken => "access_token",
        }
    }
}

/// The request that revokes a token.
///
/// # Errors
/// Why it cannot be made.
pub fn revocation_request(
    url: &str,
    client_id: &str,
    auth: &ClientAuth,
    token: &SecretString,
    kind: TokenKind,
    occasion: Occasion<'_>,
) -> Result<Request<Vec<u8>>, RequestError> {
    let mut form = Serializer::new(String::new());
    form.append_pair("token", token.expose_secret());
    form.append_pair("token_type_hint", kind.as_str());
    post(url, client_id, auth, occasion, form)
}

/// Reads the answer. A token that the provider does not know is as good as revoked: 200 (RFC 7009 section 2.2).
///
/// # Errors
/// The provider's refusal: the token may still be valid.
pub fn read_revocation(response: &Response<impl AsRef<[u8]>>, now: Timestamp) -> Result<(), Refusal> {
    if response.status().is_success() { Ok(()) } else { Err(read_refusal(response, now)) }
}
