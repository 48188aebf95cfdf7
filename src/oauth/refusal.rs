//! Refusals (RFC 6749 section 5.2): what a provider's "no" means, without anything of it that could hold a secret.

use http::{Response, StatusCode, header};
use k8s_openapi::jiff::{SignedDuration, Timestamp, fmt::rfc2822, tz::TimeZone};
use serde::Deserialize;

use crate::api::Reason;

/// A token request that got no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What it means for the credential.
    pub reason: Reason,
    /// What happened, in words of ours.
    pub what: String,
    /// The status of the answer, if there was one.
    pub http_status: Option<u16>,
    /// The OAuth error code, if there was one that looks like one.
    pub error: Option<OAuthError>,
    /// The provider's own code, such as `AADSTS7000215`.
    pub provider_code: Option<String>,
    /// The id that the provider's support asks for.
    pub correlation_id: Option<String>,
    /// How long the provider asked to wait.
    pub retry_after: Option<SignedDuration>,
    /// What to do about it, where the provider's knowledge goes beyond the reason's.
    pub advice: Option<&'static str>,
}

impl Refusal {
    /// A failure that has no HTTP answer, or one that is not worth a look.
    pub fn new(reason: Reason, what: impl Into<String>) -> Self {
        Self {
            reason,
            what: what.into(),
            http_status: None,
            error: None,
            provider_code: None,
            correlation_id: None,
            retry_after: None,
            advice: None,
        }
    }

    /// A 2xx answer that is no token response.
    pub(super) fn malformed(status: StatusCode, what: Malformed) -> Self {
        let mut refusal = Self::new(Reason::MalformedResponse, what.as_str());
        refusal.http_status = Some(status.as_u16());
        refusal
    }
}

/// What is wrong with an answer that should hold a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    Empty,
    NotATokenResponse,
    NoAccessToken,
    ControlCharacter,
    TokenType,
    ExpiresIn,
}

impl Malformed {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "the answer is empty",
            Self::NotATokenResponse => "the answer is no token response",
            Self::NoAccessToken => "the answer holds no access_token",
            Self::ControlCharacter => "the access_token holds characters that no token may hold",
            Self::TokenType => "the token_type is not Bearer",
            Self::ExpiresIn => "expires_in is no positive, sensible number of seconds",
        }
    }
}

/// An OAuth error code: lower-case letters and underscores, so that nothing else can hide in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OAuthError(String);

impl OAuthError {
    /// Longest code that is shown; the longest registered one has 36 characters.
    const MAX: usize = 40;

    fn parse(code: &str) -> Option<Self> {
        let plain =
            !code.is_empty() && code.len() <= Self::MAX && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        plain.then(|| Self(code.to_owned()))
    }

    /// The code.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// RFC 6749 sections 4.1.2.1 and 5.2, RFC 8628 section 3.5, RFC 8707 section 2, OpenID Connect Core section 3.1.2.6.
    fn reason(&self) -> Reason {
        match self.as_str() {
            "invalid_client" | "unauthorized_client" => Reason::InvalidClient,
            "invalid_grant" => Reason::InvalidGrant,
            "invalid_scope" | "invalid_target" => Reason::InvalidScope,
            "consent_required" => Reason::ConsentRequired,
            "interaction_required" | "login_required" => Reason::AuthorizationRequired,
            "temporarily_unavailable" | "server_error" => Reason::ProviderUnavailable,
            "slow_down" => Reason::Throttled,
            _ => Reason::RequestRefused,
        }
    }
}

/// Reads an answer that grants nothing. `now` serves a `Retry-After` that names a date, where the answer has no `Date`.
pub fn read_refusal(response: &Response<impl AsRef<[u8]>>, now: Timestamp) -> Refusal {
    let status = response.status();
    let body: Option<Body> = serde_json::from_slice(response.body().as_ref()).ok();
    let error = body.as_ref().and_then(|body| body.error.as_ref());
    let code = error.and_then(|error| OAuthError::parse(error.as_str()?));
    let provider_code = body.as_ref().and_then(Body::provider_code);

    let reason = match (&code, error) {
        _ if status == StatusCode::TOO_MANY_REQUESTS => Reason::Throttled,
        (Some(code), _) => code.reason(),
        (None, Some(_)) => Reason::RequestRefused,
        (None, None) if status.is_server_error() => Reason::ProviderUnavailable,
        (None, None) => Reason::MalformedResponse,
    };
    let what = match &code {
        Some(code) => format!("the provider answered {}{}", code.as_str(), suffix(provider_code.as_deref(), status)),
        None if status.is_redirection() => {
            format!("the provider answered with a redirect (HTTP {}), which is never followed", status.as_u16())
        }
        None if status.is_success() => "the answer is no token response".to_owned(),
        None => format!("the provider answered HTTP {} without an OAuth error", status.as_u16()),
    };
    Refusal {
        reason,
        what,
        http_status: Some(status.as_u16()),
        error: code,
        provider_code,
        correlation_id: body.and_then(|body| body.correlation_id).filter(|id| is_correlation_id(id)),
        retry_after: retry_after(response, now),
        advice: None,
    }
}

fn suffix(provider_code: Option<&str>, status: StatusCode) -> String {
    match provider_code {
        Some(code) => format!(" ({code}, HTTP {})", status.as_u16()),
        None => format!(" (HTTP {})", status.as_u16()),
    }
}

/// `Retry-After` in both forms (RFC 9110 section 10.2.3); a date is counted from the answer's own `Date`.
fn retry_after(response: &Response<impl AsRef<[u8]>>, now: Timestamp) -> Option<SignedDuration> {
    let text = |name| response.headers().get(name)?.to_str().ok().map(str::trim);
    let value = text(header::RETRY_AFTER)?;
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(SignedDuration::from_secs(seconds.into()));
    }
    if value.bytes().all(|byte| byte.is_ascii_digit()) && !value.is_empty() {
        return Some(SignedDuration::from_secs(u32::MAX.into()));
    }
    let date = |value: &str| Some(rfc2822::parse(value).ok()?.with_time_zone(TimeZone::UTC).timestamp());
    let from = text(header::DATE).and_then(date).unwrap_or(now);
    let wait = date(value)?.duration_since(from);
    wait.is_positive().then_some(wait)
}

/// The members of an error response that are looked at; `error_description` only for Microsoft's code at its start.
#[derive(Deserialize)]
struct Body {
    error: Option<serde_json::Value>,
    error_description: Option<serde_json::Value>,
    error_codes: Option<serde_json::Value>,
    correlation_id: Option<String>,
}

impl Body {
    fn provider_code(&self) -> Option<String> {
        let listed = || self.error_codes.as_ref()?.as_array()?.first()?.as_u64();
        let described = || {
            let text = self.error_description.as_ref()?.as_str()?.strip_prefix("AADSTS")?;
            text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let number = listed().or_else(described)?;
        (1_000..=999_999_999).contains(&number).then(|| format!("AADSTS{number}"))
    }
}

fn is_correlation_id(id: &str) -> bool {
    id.len() == 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(784_111_777).unwrap() // Sun, 06 Nov 1994 08:49:37 GMT, RFC 9110's example
    }

    fn read(status: u16, body: &str) -> Refusal {
        read_refusal(&Response::builder().status(status).body(body.as_bytes()).unwrap(), now())
    }

    #[test]
    fn the_oauth_error_counts_whatever_the_status() {
        let table = [
            ("invalid_client", Reason::InvalidClient),
            ("unauthorized_client", Reason::InvalidClient),
            ("invalid_grant", Reason::InvalidGrant),
            ("invalid_scope", Reason::InvalidScope),
            ("consent_required", Reason::ConsentRequired),
            ("interaction_required", Reason::AuthorizationRequired),
            ("temporarily_unavailable", Reason::ProviderUnavailable),
            ("server_error", Reason::ProviderUnavailable),
            ("invalid_request", Reason::RequestRefused),
            ("never_heard_of", Reason::RequestRefused),
        ];
        for (error, reason) in table {
            for status in [200, 400, 401, 403, 404, 500, 503] {
                assert_eq!(read(status, &format!(r#"{{"error":"{error}"}}"#)).reason, reason, "{status} {error}");
            }
        }
    }

    #[test]
    fn without_an_oauth_error_the_status_counts() {
        for (status, reason) in [
            (429, Reason::Throttled),
            (500, Reason::ProviderUnavailable),
            (502, Reason::ProviderUnavailable),
            (302, Reason::MalformedResponse),
            (404, Reason::MalformedResponse),
            (401, Reason::MalformedResponse),
        ] {
            assert_eq!(read(status, "<html>").reason, reason, "{status}");
        }
        assert_eq!(read(429, r#"{"error":"invalid_grant"}"#).reason, Reason::Throttled);
    }

    #[test]
    fn nothing_of_the_answer_is_repeated_but_codes() {
        let refusal = read(
            400,
            r#"{"error":"invalid_client","error_description":"AADSTS7000215: Invalid secret s3cr3t","error_codes":[7000215],
                "correlation_id":"5e1b2c3d-0000-4000-8000-00000000abcd","trace_id":"s3cr3t"}"#,
        );
        assert_eq!(refusal.provider_code.as_deref(), Some("AADSTS7000215"));
        assert_eq!(refusal.correlation_id.as_deref(), Some("5e1b2c3d-0000-4000-8000-00000000abcd"));
        assert!(!format!("{refusal:?}").contains("s3cr3t"));
        let odd = read(400, r#"{"error":"S3cr3t with spaces","correlation_id":"s3cr3t"}"#);
        assert_eq!((odd.reason, odd.error.is_none()), (Reason::RequestRefused, true));
        assert!(!format!("{odd:?}").contains("3cr3t"));
    }

    #[test]
    fn microsofts_code_is_also_found_in_the_description() {
        let refusal =
            read(400, r#"{"error":"invalid_request","error_description":"AADSTS90002: Tenant 'x' not found."}"#);
        assert_eq!(refusal.provider_code.as_deref(), Some("AADSTS90002"));
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let wait = |value: &str| {
            let response = Response::builder().status(429).header("retry-after", value).body(&b""[..]).unwrap();
            read_refusal(&response, now()).retry_after.map(|wait| wait.as_secs())
        };
        assert_eq!(wait("120"), Some(120));
        assert_eq!(wait("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(wait("Sun, 06 Nov 1994 08:00:00 GMT"), None);
        assert_eq!(wait("1000000000000"), Some(i64::from(u32::MAX)));
        assert_eq!(wait("-5"), None);
        assert_eq!(wait("soon"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_and_any_header_are_read_without_panic(body: Vec<u8>, value in "[ -~]{0,40}") {
            let response = Response::builder().status(503).header("retry-after", value).body(body).unwrap();
            let refusal = read_refusal(&response, now());
            proptest::prop_assert!(refusal.retry_after.is_none_or(|wait| !wait.is_negative()));
        }
    }
}
