//! Token requests (RFC 6749 section 4).

use http::{HeaderValue, Method, Request, header};
use k8s_openapi::jiff::Timestamp;
use thiserror::Error;
use url::form_urlencoded;

use super::{
    assertion::SigningError,
    client_auth::{ClientAuth, Occasion},
};

/// A token request by the client credentials grant (RFC 6749 section 4.4.2).
#[derive(Clone, Debug)]
pub struct TokenRequest<'a> {
    /// The token endpoint.
    pub token_url: &'a str,
    /// The client's identifier.
    pub client_id: &'a str,
    /// The client's proof.
    pub auth: &'a ClientAuth,
    /// The scopes to ask for; none are sent if there are none.
    pub scopes: &'a [String],
    /// Makes an assertion unique; random, for each request anew.
    pub unique: &'a str,
    /// The present.
    pub now: Timestamp,
}

/// A request that cannot be made.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The token endpoint is no URL that HTTP can express; the API server's validation has already refused such.
    #[error("the token endpoint is no URL that can be asked")]
    Url(#[from] http::Error),
    /// The client's key does not sign.
    #[error(transparent)]
    Signing(#[from] SigningError),
}

/// The request as it goes over the wire.
///
/// # Errors
/// Why it cannot be made.
pub fn token_request(request: &TokenRequest<'_>) -> Result<Request<Vec<u8>>, RequestError> {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "client_credentials");
    if !request.scopes.is_empty() {
        form.append_pair("scope", &request.scopes.join(" "));
    }
    let occasion = Occasion { audience: request.token_url, unique: request.unique, now: request.now };
    request.auth.write_body(request.client_id, occasion, &mut form)?;
    let mut builder = Request::builder()
        .method(Method::POST)
        .uri(request.token_url)
        .header(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))
        .header(header::ACCEPT, HeaderValue::from_static("application/json"));
    if let Some(value) = request.auth.header(request.client_id) {
        builder = builder.header(header::AUTHORIZATION, value);
    }
    Ok(builder.body(form.finish().into_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::provider::SigningAlgorithm, oauth::assertion::SigningKey};

    fn request(auth: &ClientAuth, scopes: &[String]) -> Request<Vec<u8>> {
        token_request(&TokenRequest {
            token_url: "https://id.example.org/token",
            client_id: "app id",
            auth,
            scopes,
            unique: "j1",
            now: Timestamp::UNIX_EPOCH,
        })
        .unwrap()
    }

    #[test]
    fn post_puts_id_and_secret_into_the_body() {
        let wire = request(&ClientAuth::SecretPost("a~b&c=d+e%".into()), &["mail.send".into(), "mail.read".into()]);
        assert_eq!(
            String::from_utf8(wire.body().clone()).unwrap(),
            "grant_type=client_credentials&scope=mail.send+mail.read&client_id=app+id&client_secret=a%7Eb%26c%3Dd%2Be%25"
        );
        assert!(!wire.headers().contains_key(header::AUTHORIZATION));
    }

    #[test]
    fn basic_keeps_id_and_secret_out_of_the_body() {
        let wire = request(&ClientAuth::SecretBasic("s".into()), &[]);
        assert_eq!(wire.body(), b"grant_type=client_credentials");
        assert!(wire.headers()[header::AUTHORIZATION].is_sensitive());
    }

    #[test]
    fn an_assertion_names_its_type_and_goes_to_the_token_endpoint() {
        let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
        let key = SigningKey::read(pem.as_bytes(), None, SigningAlgorithm::EdDSA, None).unwrap();
        let body = String::from_utf8(request(&ClientAuth::PrivateKeyJwt(key), &[]).into_body()).unwrap();
        let head = "grant_type=client_credentials&client_id=app+id&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3A\
                    client-assertion-type%3Ajwt-bearer&client_assertion=ey";
        assert!(body.starts_with(head), "{body}");
    }

    #[test]
    fn a_public_client_only_names_itself() {
        assert_eq!(request(&ClientAuth::Public, &[]).body(), b"grant_type=client_credentials&client_id=app+id");
    }
}
