//! Token revocation (RFC 7009).

use http::{Request, Response};
use k8s_openapi::jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use url::form_urlencoded::Serializer;

use super::{
    assertion::AssertionParams,
    client_auth::ClientAuth,
    refusal::{Refusal, read_refusal},
    token_request::{RequestError, post},
};

/// The type of the revoked token, as a hint for servers that search by type (RFC 7009 section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// The refresh token, together with the access tokens that it issued.
    RefreshToken,
    /// Only the access token.
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

/// Builds the request that revokes a token.
///
/// # Errors
/// If the request cannot be built.
pub fn revocation_request(
    url: &str,
    client_id: &str,
    auth: &ClientAuth,
    token: &SecretString,
    kind: TokenKind,
    params: AssertionParams<'_>,
) -> Result<Request<Vec<u8>>, RequestError> {
    let mut form = Serializer::new(String::new());
    form.append_pair("token", token.expose_secret());
    form.append_pair("token_type_hint", kind.as_str());
    post(url, client_id, auth, params, form)
}

/// Reads the response. A token that the provider does not know counts as revoked: status 200 (RFC 7009 section 2.2).
///
/// # Errors
/// The provider's refusal: the token may still be valid.
pub fn read_revocation(response: &Response<impl AsRef<[u8]>>, now: Timestamp) -> Result<(), Refusal> {
    if response.status().is_success() { Ok(()) } else { Err(read_refusal(response, now)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Reason;

    #[test]
    fn a_request_names_the_token_its_kind_and_the_client() {
        let token_url = "https://id.example.org";
        let params = AssertionParams { audience: token_url, token_url, unique: "j1", now: Timestamp::UNIX_EPOCH };
        for (kind, hint) in [(TokenKind::RefreshToken, "refresh_token"), (TokenKind::AccessToken, "access_token")] {
            let url = "https://id.example.org/revoke";
            let request = revocation_request(url, "app", &ClientAuth::Public, &"t&1".into(), kind, params).unwrap();
            assert_eq!(request.uri(), url);
            let body = String::from_utf8(request.into_body()).unwrap();
            assert_eq!(body, format!("token=t%261&token_type_hint={hint}&client_id=app"));
        }
    }

    #[test]
    fn only_success_revokes() {
        let read = |status: u16, body: &'static str| {
            read_revocation(&Response::builder().status(status).body(body.as_bytes()).unwrap(), Timestamp::UNIX_EPOCH)
        };
        assert!(read(200, "").is_ok());
        assert_eq!(read(503, "").unwrap_err().reason, Reason::ProviderUnavailable);
        assert_eq!(read(401, r#"{"error":"invalid_client"}"#).unwrap_err().reason, Reason::InvalidClient);
    }
}
