//! Discovery documents (OpenID Connect Discovery 1.0 section 4).

use http::{Request, Response, Uri, header};
use serde::Deserialize;
use thiserror::Error;
use url::Url;

use super::lenient::{Text, body, object};

/// The endpoints of a provider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// The token endpoint (RFC 6749 section 3.2).
    pub token_url: String,
    /// The device authorization endpoint (RFC 8628 section 3.1).
    pub device_authorization_url: Option<String>,
    /// The revocation endpoint (RFC 7009 section 2).
    pub revocation_url: Option<String>,
    /// The authorization endpoint, at which a user signs in with a browser (RFC 6749 section 3.1).
    pub authorization_url: Option<String>,
}

/// Errors of a discovery document.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DiscoveryError {
    /// The response has another status than 200.
    #[error("the request for the discovery document was answered with HTTP {0}")]
    Status(u16),
    /// The response is not JSON, or lacks a required member.
    #[error("the response is not a discovery document")]
    NotADocument,
    /// The document names another issuer (OpenID Connect Discovery 1.0 section 4.3).
    #[error("the discovery document names the issuer {0}")]
    IssuerMismatch(String),
    /// An endpoint is not a URL to which the broker may send a secret.
    #[error("the discovery document's {0} is not an https URL")]
    Endpoint(&'static str),
}

/// Builds the request for the discovery document of `issuer`.
///
/// # Errors
/// If HTTP cannot express the URL.
pub fn discovery_request(issuer: &str) -> Result<Request<Vec<u8>>, http::Error> {
    let url = format!("{}/.well-known/openid-configuration", issuer.strip_suffix('/').unwrap_or(issuer));
    Request::get(url).header(header::ACCEPT, "application/json").body(vec![])
}

/// Reads the discovery document of `issuer`, which must name that issuer byte for byte. An unusable optional endpoint
/// counts as absent, so only the features that need this endpoint fail.
///
/// # Errors
/// If the document cannot be used.
pub fn read_discovery(response: &Response<impl AsRef<[u8]>>, issuer: &str) -> Result<Endpoints, DiscoveryError> {
    if response.status() != http::StatusCode::OK {
        return Err(DiscoveryError::Status(response.status().as_u16()));
    }
    let document: Document = object(body(response)).ok_or(DiscoveryError::NotADocument)?;
    let (Some(named), Some(token_endpoint)) = (document.issuer.0, document.token_endpoint.0) else {
        return Err(DiscoveryError::NotADocument);
    };
    if named != issuer {
        return Err(DiscoveryError::IssuerMismatch(printable(&named)));
    }
    let optional = |Text(url), name| url.and_then(|url| https(url, name).ok());
    Ok(Endpoints {
        token_url: https(token_endpoint, "token_endpoint")?,
        device_authorization_url: optional(document.device_authorization_endpoint, "device_authorization_endpoint"),
        revocation_url: optional(document.revocation_endpoint, "revocation_endpoint"),
        authorization_url: optional(document.authorization_endpoint, "authorization_endpoint"),
    })
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    issuer: Text,
    token_endpoint: Text,
    device_authorization_endpoint: Text,
    revocation_endpoint: Text,
    authorization_endpoint: Text,
}

fn https(url: String, name: &'static str) -> Result<String, DiscoveryError> {
    let parsed = Url::parse(&url).map_err(|_| DiscoveryError::Endpoint(name))?;
    // The URL parser accepts `https:host` and line breaks; HTTP does not.
    let written = url.starts_with("https://") && url.is_ascii() && url.parse::<Uri>().is_ok();
    let plain = written
        && parsed.scheme() == "https"
        && parsed.username().is_empty()
        && parsed.password().is_none()
        && parsed.fragment().is_none()
        && url.len() <= 2_048;
    if plain { Ok(url) } else { Err(DiscoveryError::Endpoint(name)) }
}

/// Makes a server's text safe for a message: printable ASCII of bounded length.
fn printable(text: &str) -> String {
    text.chars()
        .filter(char::is_ascii_graphic)
        .filter(|c| !matches!(c, '\'' | '"' | '`' | '\\' | '$'))
        .take(256)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUER: &str = "https://id.example.org/realms/mail";

    fn read(status: u16, body: &str) -> Result<Endpoints, DiscoveryError> {
        read_discovery(&Response::builder().status(status).body(body.as_bytes()).unwrap(), ISSUER)
    }

    #[test]
    fn the_document_is_below_the_issuer() {
        for issuer in [ISSUER.to_owned(), format!("{ISSUER}/")] {
            let request = discovery_request(&issuer).unwrap();
            assert_eq!(request.uri(), "https://id.example.org/realms/mail/.well-known/openid-configuration");
        }
    }

    #[test]
    fn the_issuer_must_match_byte_for_byte() {
        let document = |issuer: &str| format!(r#"{{"issuer":"{issuer}","token_endpoint":"https://id.example.org/t"}}"#);
        assert_eq!(read(200, &document(ISSUER)).unwrap().token_url, "https://id.example.org/t");
        for other in ["https://id.example.org/realms/mail/", "https://ID.example.org/realms/mail", "https://evil"] {
            assert_eq!(read(200, &document(other)), Err(DiscoveryError::IssuerMismatch(other.to_owned())));
        }
    }

    #[test]
    fn endpoints_must_be_https_without_user_info() {
        for url in [
            "http://id.example.org/t",
            "https://u:p@id.example.org/t",
            "https://id.example.org/t#f",
            "file:///etc/passwd",
            "https:id.example.org/t",
            "https://id.example.org/t\\n",
            "https://id.example.org/\u{e4}",
        ] {
            let body = format!(r#"{{"issuer":"{ISSUER}","token_endpoint":"{url}"}}"#);
            assert_eq!(read(200, &body), Err(DiscoveryError::Endpoint("token_endpoint")), "{url}");
        }
    }

    #[test]
    fn an_optional_endpoint_that_cannot_be_used_counts_as_absent() {
        for endpoint in
            [r#""""#, r#""http://id.example.org/d""#, r#""id.example.org/d""#, "null", "7", "[]", "{}", "true"]
        {
            for name in ["device_authorization_endpoint", "revocation_endpoint", "authorization_endpoint"] {
                let body = format!(
                    r#"{{"issuer":"{ISSUER}","token_endpoint":"https://id.example.org/t","{name}":{endpoint}}}"#
                );
                let found = read(200, &body).unwrap_or_else(|error| panic!("{name} {endpoint}: {error}"));
                let optional = [found.device_authorization_url, found.revocation_url, found.authorization_url];
                assert_eq!(optional, [None, None, None], "{name} {endpoint}");
            }
        }
        let good = format!(
            "\u{feff}{{\"issuer\":\"{ISSUER}\",\"token_endpoint\":\"https://id.example.org/t\",\
             \"revocation_endpoint\":\"https://id.example.org/r\"}}"
        );
        assert_eq!(read(200, &good).unwrap().revocation_url.as_deref(), Some("https://id.example.org/r"));
    }

    #[test]
    fn other_answers_are_no_document() {
        assert_eq!(read(404, "{}"), Err(DiscoveryError::Status(404)));
        assert_eq!(read(302, ""), Err(DiscoveryError::Status(302)));
        for body in ["", "<html>", "{}", "[]", r#"{"issuer":"x"}"#, r#"{"issuer":7,"token_endpoint":"https://x/t"}"#] {
            assert_eq!(read(200, body), Err(DiscoveryError::NotADocument), "{body}");
        }
    }
}
