//! Odd responses of token endpoints, as reported for servers and gateways: a valid token in an unusual format, and
//! refusals that differ from RFC 6749.

use serde_json::{Value, json};

use super::super::server::Response;

/// The ways in which a token endpoint's responses are odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Odd {
    /// `token_type` is missing (Mail.ru, and servers older than the RFC).
    NoTokenType,
    /// `scope` is a list.
    ScopeList,
    /// `expires_in` is a string.
    LifetimeText,
    /// `expires_in` is `3600.0`.
    LifetimeFloat,
    /// `expires_in` is missing. Only the token's own `exp` shows the expiry, if the token is a JWT.
    NoLifetime,
    /// `expires_in` is 0.
    LifetimeZero,
    /// `expires_in` is a number that no float can represent. Many parsers therefore refuse the whole response.
    LifetimeInfinite,
    /// A byte order mark precedes the JSON.
    Bom,
    /// The body is compressed with gzip, although the request does not accept gzip.
    Gzip,
    /// The body is compressed with deflate, although the request does not accept deflate.
    Deflate,
    /// Error codes are in capitals (Yahoo).
    Capitals,
    /// The error code is in the field `errorCode`.
    ErrorCode,
    /// The error code is inside an object (Google's other services).
    ErrorObject,
    /// A gateway answers all requests with its own code: 500 `unknown_error`.
    Outage,
    /// A web framework answers all requests: 503 "Service Unavailable".
    Framework,
    /// The server refuses every request with an unknown code.
    UnknownCode,
}

impl Odd {
    /// All variants with their names.
    pub const ALL: [(&'static str, Self); 16] = [
        ("no-token-type", Self::NoTokenType),
        ("scope-list", Self::ScopeList),
        ("lifetime-text", Self::LifetimeText),
        ("lifetime-float", Self::LifetimeFloat),
        ("no-lifetime", Self::NoLifetime),
        ("lifetime-zero", Self::LifetimeZero),
        ("lifetime-infinite", Self::LifetimeInfinite),
        ("bom", Self::Bom),
        ("gzip", Self::Gzip),
        ("deflate", Self::Deflate),
        ("capitals", Self::Capitals),
        ("error-code", Self::ErrorCode),
        ("error-object", Self::ErrorObject),
        ("outage", Self::Outage),
        ("framework", Self::Framework),
        ("unknown-code", Self::UnknownCode),
    ];

    /// Changes a response in this way.
    pub fn applied(self, response: Response) -> Response {
        let Ok(mut body) = serde_json::from_str::<Value>(&response.body) else { return response };
        let error = body["error"].as_str().map(str::to_owned);
        let Some(fields) = body.as_object_mut() else { return response };
        match (self, error) {
            (Self::NoTokenType, None) => drop(fields.remove("token_type")),
            (Self::ScopeList, None) => {
                let scopes = fields.get("scope").and_then(Value::as_str).unwrap_or_default();
                let scopes: Vec<_> = scopes.split_whitespace().map(Value::from).collect();
                fields.insert("scope".to_owned(), scopes.into());
            }
            (Self::LifetimeText, None) => {
                let text = fields["expires_in"].to_string();
                fields.insert("expires_in".to_owned(), text.into());
            }
            (Self::LifetimeFloat, None) => {
                let number = fields["expires_in"].as_f64();
                fields.insert("expires_in".to_owned(), number.into());
            }
            (Self::NoLifetime, None) => drop(fields.remove("expires_in")),
            (Self::LifetimeZero, None) => drop(fields.insert("expires_in".to_owned(), 0.into())),
            (Self::LifetimeInfinite, None) => {
                fields.insert("expires_in".to_owned(), "1e999".into());
                return Response { body: body.to_string().replace("\"1e999\"", "1e999"), ..response };
            }
            (Self::Capitals, Some(error)) => drop(fields.insert("error".to_owned(), error.to_uppercase().into())),
            (Self::ErrorCode, Some(error)) => {
                fields.remove("error");
                fields.insert("errorCode".to_owned(), error.into());
            }
            (Self::ErrorObject, Some(error)) => {
                fields.insert("error".to_owned(), json!({"code": error, "message": "odd"}));
            }
            (Self::Bom, _) => return Response { body: format!("\u{feff}{body}"), ..response },
            (Self::Gzip, _) => return response.header("content-encoding", "gzip"),
            (Self::Deflate, _) => return response.header("content-encoding", "deflate"),
            (Self::Outage, _) => return Response::json(500, &json!({"error": "unknown_error"})),
            (Self::Framework, _) => {
                return Response::json(503, &json!({"status": 503, "error": "Service Unavailable", "path": "/token"}));
            }
            (Self::UnknownCode, _) => return Response::json(400, &json!({"error": "never_heard_of"})),
            _ => {}
        }
        Response { body: body.to_string(), ..response }
    }
}
