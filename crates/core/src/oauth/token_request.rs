//! Token requests (RFC 6749 section 4).

use std::collections::BTreeMap;

use http::{HeaderValue, Method, Request, header};
use k8s_openapi::jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use thiserror::Error;
use url::{Url, form_urlencoded::Serializer};

use super::{
    assertion::{AssertionParams, SigningError},
    client_auth::ClientAuth,
};

/// The parameters of a token request.
#[derive(Clone, Debug)]
pub struct TokenRequest<'a> {
    /// The URL of the token endpoint.
    pub token_url: &'a str,
    /// The identifier of the client.
    pub client_id: &'a str,
    /// The client's authentication for the request.
    pub auth: &'a ClientAuth,
    /// The grant of the token request.
    pub grant: GrantProof<'a>,
    /// The requested scopes. If empty, the request has no scope.
    pub scopes: &'a [String],
    /// More form fields, by name.
    pub parameters: &'a BTreeMap<String, String>,
    /// A random value, new for each request, that makes an assertion unique.
    pub unique: &'a str,
    /// The time of the request, for the times in an assertion.
    pub now: Timestamp,
}

/// The grant of a token request.
#[derive(Clone, Copy, Debug)]
pub enum GrantProof<'a> {
    /// The client's own authentication (RFC 6749 section 4.4).
    ClientCredentials,
    /// A refresh token (RFC 6749 section 6).
    RefreshToken(&'a SecretString),
    /// A device code (RFC 8628 section 3.4).
    DeviceCode(&'a SecretString),
    /// A code that a browser returned (RFC 6749 section 4.1.3, RFC 7636 section 4.5).
    AuthorizationCode {
        /// The authorization code.
        code: &'a SecretString,
        /// The exact redirect URI to which the code was returned.
        redirect_uri: &'a str,
        /// The verifier of the code challenge.
        verifier: &'a SecretString,
    },
    /// A JWT that the client signs about a subject (RFC 7523 section 2.1).
    JwtBearer {
        /// The subject of the JWT: the mailbox.
        subject: &'a str,
    },
    /// A JWT about a subject, signed by another service (RFC 7523 section 2.1).
    SignedJwt(&'a SecretString),
    /// A token of another service (RFC 8693 section 2.1).
    TokenExchange {
        /// The subject token.
        token: &'a SecretString,
        /// The type of the subject token.
        kind: &'a str,
        /// The service that the new token is for.
        audience: Option<&'a str>,
    },
}

impl GrantProof<'_> {
    /// Writes the grant's form fields except the scope.
    fn write(&self, request: &TokenRequest<'_>, form: &mut Serializer<'_, String>) -> Result<(), RequestError> {
        let mut add = |name: &str, value: &str| {
            form.append_pair(name, value);
        };
        match *self {
            Self::ClientCredentials => add("grant_type", "client_credentials"),
            Self::RefreshToken(token) => {
                add("grant_type", "refresh_token");
                add("refresh_token", token.expose_secret());
            }
            Self::DeviceCode(code) => {
                add("grant_type", "urn:ietf:params:oauth:grant-type:device_code");
                add("device_code", code.expose_secret());
            }
            Self::AuthorizationCode { code, redirect_uri, verifier } => {
                add("grant_type", "authorization_code");
                add("code", code.expose_secret());
                add("redirect_uri", redirect_uri);
                add("code_verifier", verifier.expose_secret());
            }
            Self::JwtBearer { subject } => {
                let key = request.auth.grant_key(request.client_id).ok_or(RequestError::NoKey)?;
                let assertion = key.assertion(subject, request.params(), request.scopes)?;
                add("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer");
                add("assertion", assertion.expose_secret());
            }
            Self::SignedJwt(jwt) => {
                add("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer");
                add("assertion", jwt.expose_secret());
            }
            Self::TokenExchange { token, kind, audience } => {
                add("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange");
                add("subject_token", token.expose_secret());
                add("subject_token_type", kind);
                add("requested_token_type", "urn:ietf:params:oauth:token-type:access_token");
                if let Some(audience) = audience {
                    add("audience", audience);
                }
            }
        }
        Ok(())
    }

    /// Whether the grant itself sends the field `name`, which `spec.client.parameters` may also have.
    fn sends(&self, name: &str) -> bool {
        match self {
            Self::TokenExchange { audience, .. } => {
                name == "requested_token_type" || (name == "audience" && audience.is_some())
            }
            _ => false,
        }
    }

    /// Whether the request has the field `scope`. A code already has its scopes. A Google service account's key names
    /// the scopes in its assertion.
    fn names_scopes(&self, auth: &ClientAuth) -> bool {
        match self {
            Self::DeviceCode(_) | Self::AuthorizationCode { .. } | Self::SignedJwt(_) => false,
            Self::JwtBearer { .. } => !matches!(auth, ClientAuth::ServiceAccountKey(_)),
            Self::ClientCredentials | Self::RefreshToken(_) | Self::TokenExchange { .. } => true,
        }
    }
}

/// Errors of building a request.
#[derive(Debug, Error)]
pub enum RequestError {
    /// HTTP cannot express the token endpoint's URL. The API server's validation has already rejected such URLs.
    #[error("the token endpoint is not a usable URL")]
    Url(#[from] http::Error),
    /// The client's key fails to sign.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The request would send an assertion to another origin than the token endpoint's.
    #[error(
        "the endpoint {url} has another origin (scheme, host, port) than the token endpoint {token_url}, and an assertion or \
         ServiceAccount token is sent to the token endpoint's origin only"
    )]
    OtherOrigin {
        /// The URL of the request.
        url: String,
        /// The URL of the token endpoint.
        token_url: String,
    },
    /// The grant needs a JWT, and the client has no key.
    #[error(
        "the client has no key to sign a JWT with: name a privateKeyJWT or serviceAccountKey in spec.client.authentication"
    )]
    NoKey,
}

impl TokenRequest<'_> {
    fn params(&self) -> AssertionParams<'_> {
        AssertionParams { audience: self.token_url, token_url: self.token_url, unique: self.unique, now: self.now }
    }
}

/// Builds the token request.
///
/// # Errors
/// If the request cannot be built.
pub fn token_request(request: &TokenRequest<'_>) -> Result<Request<Vec<u8>>, RequestError> {
    let mut form = Serializer::new(String::new());
    request.grant.write(request, &mut form)?;
    if !request.scopes.is_empty() && request.grant.names_scopes(request.auth) {
        form.append_pair("scope", &request.scopes.join(" "));
    }
    for (name, value) in request.parameters.iter().filter(|(name, _)| !request.grant.sends(name)) {
        form.append_pair(name, value);
    }
    post(request.token_url, request.client_id, request.auth, request.params(), form)
}

/// Whether two URLs have the same scheme, host and port.
pub fn same_origin(one: &str, other: &str) -> bool {
    match (Url::parse(one), Url::parse(other)) {
        (Ok(one), Ok(other)) => one.origin() == other.origin(),
        _ => false,
    }
}

/// Builds a form request to an endpoint that requires client authentication (RFC 6749 section 2.3).
pub(super) fn post(
    url: &str,
    client_id: &str,
    auth: &ClientAuth,
    params: AssertionParams<'_>,
    mut form: Serializer<'_, String>,
) -> Result<Request<Vec<u8>>, RequestError> {
    if auth.is_assertion() && !same_origin(url, params.token_url) {
        let (url, token_url) = (url.to_owned(), params.token_url.to_owned());
        return Err(RequestError::OtherOrigin { url, token_url });
    }
    auth.write_body(client_id, params, &mut form)?;
    let mut builder = Request::builder()
        .method(Method::POST)
        .uri(url)
        .header(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))
        .header(header::ACCEPT, HeaderValue::from_static("application/json"));
    if let Some(value) = auth.header(client_id) {
        builder = builder.header(header::AUTHORIZATION, value);
    }
    Ok(builder.body(form.finish().into_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::authentication::SigningAlgorithm, oauth::assertion::SigningKey};

    fn request(auth: &ClientAuth, scopes: &[String]) -> Request<Vec<u8>> {
        request_with(GrantProof::ClientCredentials, auth, scopes)
    }

    fn request_with(grant: GrantProof<'_>, auth: &ClientAuth, scopes: &[String]) -> Request<Vec<u8>> {
        token_request(&TokenRequest {
            token_url: "https://id.example.org/token",
            client_id: "app id",
            auth,
            grant,
            scopes,
            parameters: &BTreeMap::new(),
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
    fn an_assertion_names_its_type_and_is_sent_to_the_token_endpoint() {
        let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
        let key = SigningKey::read(pem.as_bytes(), None, SigningAlgorithm::EdDSA, None).unwrap();
        let body = String::from_utf8(request(&ClientAuth::PrivateKeyJwt(key), &[]).into_body()).unwrap();
        let head = "grant_type=client_credentials&client_id=app+id&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3A\
                    client-assertion-type%3Ajwt-bearer&client_assertion=ey";
        assert!(body.starts_with(head), "{body}");
    }

    #[test]
    fn an_assertion_is_sent_only_to_the_origin_of_the_token_endpoint() {
        let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
        let key = SigningKey::read(pem.as_bytes(), None, SigningAlgorithm::EdDSA, None).unwrap();
        let token_url = "https://id.example.org/token";
        let params = AssertionParams { audience: token_url, token_url, unique: "j1", now: Timestamp::UNIX_EPOCH };
        let assertions = [ClientAuth::PrivateKeyJwt(key), ClientAuth::Assertion("a.b.c".into())];
        let others = [ClientAuth::Public, ClientAuth::SecretPost("s".into()), ClientAuth::SecretBasic("s".into())];
        for (url, same) in [
            ("https://id.example.org/device", true),
            ("https://ID.example.org:443/a/b?c=d", true),
            ("https://id.example.org:8443/device", false),
            ("https://evil.example.org/device", false),
            ("https://id.example.org.evil.example/", false),
            ("https://id.example.org@evil.example/", false),
            ("http://id.example.org/device", false),
            ("no url", false),
        ] {
            for auth in &assertions {
                let made = post(url, "app", auth, params, Serializer::new(String::new()));
                assert_eq!(made.is_ok(), same, "{url}");
                assert_eq!(matches!(made, Err(RequestError::OtherOrigin { .. })), !same, "{url}");
            }
            for auth in &others {
                let made = post(url, "app", auth, params, Serializer::new(String::new()));
                assert!(!matches!(made, Err(RequestError::OtherOrigin { .. })), "{url}");
            }
        }
    }

    #[test]
    fn a_public_client_only_names_itself() {
        assert_eq!(request(&ClientAuth::Public, &[]).body(), b"grant_type=client_credentials&client_id=app+id");
    }

    fn body(wire: &Request<Vec<u8>>) -> Vec<(String, String)> {
        url::form_urlencoded::parse(wire.body()).into_owned().collect()
    }

    fn names(wire: &Request<Vec<u8>>) -> Vec<String> {
        body(wire).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn each_grant_names_itself_as_its_rfc_does() {
        let secret = SecretString::from("s3cret");
        let scopes = ["mail".to_owned()];
        let code =
            GrantProof::AuthorizationCode { code: &secret, redirect_uri: "http://localhost:1/", verifier: &secret };
        let exchange = GrantProof::TokenExchange { token: &secret, kind: "urn:x", audience: Some("mail") };
        let table: [(GrantProof<'_>, &str, &[&str]); 5] = [
            (GrantProof::SignedJwt(&secret), "urn:ietf:params:oauth:grant-type:jwt-bearer", &["assertion"]),
            (GrantProof::RefreshToken(&secret), "refresh_token", &["refresh_token", "scope"]),
            (GrantProof::DeviceCode(&secret), "urn:ietf:params:oauth:grant-type:device_code", &["device_code"]),
            (code, "authorization_code", &["code", "redirect_uri", "code_verifier"]),
            (
                exchange,
                "urn:ietf:params:oauth:grant-type:token-exchange",
                &["subject_token", "subject_token_type", "requested_token_type", "audience", "scope"],
            ),
        ];
        for (grant, name, fields) in table {
            let wire = request_with(grant, &ClientAuth::Public, &scopes);
            assert_eq!(body(&wire)[0], ("grant_type".to_owned(), name.to_owned()));
            assert_eq!(names(&wire), [&["grant_type"], fields, &["client_id"]].concat());
        }
    }

    #[test]
    fn a_key_that_is_the_whole_grant_names_the_scopes_in_its_assertion_and_others_beside_it() {
        let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
        let key = SigningKey::read(pem.as_bytes(), None, SigningAlgorithm::EdDSA, None).unwrap();
        let wire = request_with(
            GrantProof::JwtBearer { subject: "a@b.c" },
            &ClientAuth::PrivateKeyJwt(key),
            &["mail".to_owned()],
        );
        assert!(body(&wire).contains(&("scope".to_owned(), "mail".to_owned())));

        let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap().serialize_pem();
        let file = serde_json::json!({
            "type": "service_account", "client_email": "m@p.iam.gserviceaccount.com", "private_key_id": "k",
            "private_key": rsa,
        });
        let account = crate::oauth::assertion::ServiceAccountKey::read(file.to_string().as_bytes()).unwrap();
        let wire = request_with(
            GrantProof::JwtBearer { subject: "a@b.c" },
            &ClientAuth::ServiceAccountKey(account),
            &["mail".to_owned()],
        );
        assert!(!names(&wire).contains(&"scope".to_owned()));
    }

    #[test]
    fn parameters_are_sent_with_every_grant_and_nothing_is_sent_twice() {
        let secret = SecretString::from("s3cret");
        let code =
            GrantProof::AuthorizationCode { code: &secret, redirect_uri: "http://localhost:1/", verifier: &secret };
        let exchange = |audience| GrantProof::TokenExchange { token: &secret, kind: "urn:x", audience };
        let parameters = BTreeMap::from(
            [("audience", "https://mail.example/?a=b&c"), ("resource", "ü x")]
                .map(|(k, v)| (k.to_owned(), v.to_owned())),
        );
        for (grant, audience) in [
            (GrantProof::ClientCredentials, "https://mail.example/?a=b&c"),
            (GrantProof::RefreshToken(&secret), "https://mail.example/?a=b&c"),
            (GrantProof::DeviceCode(&secret), "https://mail.example/?a=b&c"),
            (code, "https://mail.example/?a=b&c"),
            (exchange(None), "https://mail.example/?a=b&c"),
            (exchange(Some("own")), "own"),
        ] {
            let wire = token_request(&TokenRequest {
                token_url: "https://id.example.org/token",
                client_id: "app",
                auth: &ClientAuth::Public,
                grant,
                scopes: &[],
                parameters: &parameters,
                unique: "j1",
                now: Timestamp::UNIX_EPOCH,
            })
            .unwrap();
            let sent = |name: &str| -> Vec<String> {
                body(&wire).into_iter().filter(|(sent, _)| sent == name).map(|(_, value)| value).collect()
            };
            assert_eq!((sent("audience"), sent("resource")), (vec![audience.to_owned()], vec!["ü x".to_owned()]));
        }
    }

    #[test]
    fn a_jwt_needs_a_key() {
        let request = TokenRequest {
            token_url: "https://id.example.org/token",
            client_id: "app",
            auth: &ClientAuth::SecretPost("s".into()),
            grant: GrantProof::JwtBearer { subject: "a@b.c" },
            scopes: &[],
            parameters: &BTreeMap::new(),
            unique: "j1",
            now: Timestamp::UNIX_EPOCH,
        };
        assert!(matches!(token_request(&request), Err(RequestError::NoKey)));
    }
}
