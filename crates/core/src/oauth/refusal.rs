//! Refusals (RFC 6749 section 5.2): the meaning of a provider's error response, without parts that could contain a secret.

use http::{HeaderName, Response, StatusCode, header};
use k8s_openapi::jiff::{SignedDuration, Timestamp, fmt::rfc2822, tz::TimeZone};

pub use super::error_code::OAuthError;
use super::{
    error_body::{ErrorBody, described_code},
    lenient::body,
};
use crate::api::Reason;

/// A refusal of a token request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The condition's reason for this refusal.
    pub reason: Reason,
    /// What happened, in the broker's own words.
    pub what: String,
    /// The HTTP status of the response, if any.
    pub http_status: Option<u16>,
    /// The OAuth error code, if the response has a plausible one.
    pub error: Option<OAuthError>,
    /// The provider's own code: Microsoft's `AADSTS7000215` or `suberror`, or Google's `error_subtype`.
    pub provider_code: Option<String>,
    /// The provider's id of the request, for the provider's support.
    pub correlation_id: Option<String>,
    /// The wait that the provider requested, if any.
    pub retry_after: Option<SignedDuration>,
    /// How far the provider's clock is ahead of the broker's, if the clocks differ by more than [`SKEW_MIN`].
    pub skew: Option<SignedDuration>,
    /// Whether the response says that an assertion is not valid yet or has expired.
    pub untimely: bool,
    /// Whether the provider's code is unknown, so that the refusal may be transient.
    pub unknown_code: bool,
    /// The fix, if the provider's module knows a more specific fix than the general advice.
    pub advice: Option<&'static str>,
}

impl Refusal {
    /// Creates a refusal without an HTTP response, or without its details.
    pub fn new(reason: Reason, what: impl Into<String>) -> Self {
        Self {
            reason,
            what: what.into(),
            http_status: None,
            error: None,
            provider_code: None,
            correlation_id: None,
            retry_after: None,
            skew: None,
            untimely: false,
            unknown_code: false,
            advice: None,
        }
    }

    /// Creates a refusal for a 2xx response that is not a token response.
    pub(super) fn malformed<T>(response: &Response<T>, what: Malformed) -> Self {
        let mut refusal = Self::new(Reason::MalformedResponse, what.as_str());
        if let (Malformed::NotATokenResponse, Some(encoding)) = (what, foreign_encoding(response)) {
            refusal.what += &format!(": its body is encoded ({encoding}), which the broker did not request");
        }
        refusal.http_status = Some(response.status().as_u16());
        refusal
    }

    /// Sets the meaning of a provider's own code.
    pub fn understood(&mut self, reason: Reason, advice: Option<&'static str>) {
        (self.reason, self.advice, self.unknown_code) = (reason, advice, false);
    }

    /// Whether the authorization server itself refused, with a code of the protocol. A 5xx from a gateway or web framework
    /// does not show whether the server handled the request.
    pub fn is_of_the_server(&self) -> bool {
        let outage = self.http_status.is_some_and(|status| status >= 500);
        self.error.as_ref().is_some_and(|error| !outage || error.is_standard())
    }
}

/// The name of the encoding of a body that the broker did not decode. `None`: the body is not encoded.
fn foreign_encoding<T>(response: &Response<T>) -> Option<&'static str> {
    let value = response.headers().get(header::CONTENT_ENCODING)?.to_str().unwrap_or_default();
    match value.trim() {
        "" | "identity" => None,
        "br" => Some("br"),
        "zstd" => Some("zstd"),
        "compress" | "x-compress" => Some("compress"),
        _ => Some("an unknown one"),
    }
}

/// Flaws of a response that should contain a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    Empty,
    NotATokenResponse,
    NoAccessToken,
    Character,
    TooLong,
    TokenType,
}

impl Malformed {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "the answer is empty",
            Self::NotATokenResponse => "the response is not a token response",
            Self::NoAccessToken => "the response has no access_token",
            Self::Character => {
                "the access_token has characters that a Bearer token must not have (RFC 6750 section 2.1)"
            }
            Self::TooLong => "the access_token has more than 32768 characters",
            Self::TokenType => "the token_type is not Bearer",
        }
    }
}

/// Minimum difference between the clocks that can explain a refusal.
pub const SKEW_MIN: SignedDuration = SignedDuration::from_mins(1);

/// Reads a response that refuses a request. `now`: the time at which the broker sent the request, which the function
/// compares with the response's `Date`.
pub fn read_refusal(response: &Response<impl AsRef<[u8]>>, now: Timestamp) -> Refusal {
    let status = response.status();
    let body = ErrorBody::read(body(response));
    let code = body.code();
    let provider_code = body.provider_code();
    let reason = reason(status, code.as_ref(), body.says_error());
    let what = match &code {
        Some(code) => format!("the provider answered {}{}", code.as_str(), suffix(provider_code.as_deref(), status)),
        None if status.is_redirection() => {
            format!("the provider answered with a redirect (HTTP {}), which is never followed", status.as_u16())
        }
        None if status.is_success() => "the response is not a token response".to_owned(),
        None if body.says_error() => {
            format!("the provider answered HTTP {} with an error that is not an OAuth code", status.as_u16())
        }
        None => format!("the provider answered HTTP {} without an OAuth error", status.as_u16()),
    };
    Refusal {
        reason,
        what,
        http_status: Some(status.as_u16()),
        unknown_code: reason == Reason::RequestRefused && !code.as_ref().is_some_and(OAuthError::is_known),
        error: code,
        provider_code,
        untimely: body.is_untimely(),
        correlation_id: body.correlation_id(),
        retry_after: retry_after(response, now),
        skew: skew(response, now),
        advice: None,
    }
}

/// The reason for a response. The OAuth error determines the reason, regardless of the HTTP status. With a 5xx, a code
/// outside of the protocol comes from a gateway or a web framework.
fn reason(status: StatusCode, code: Option<&OAuthError>, says_error: bool) -> Reason {
    let outage = status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT;
    // Web frameworks return these statuses for a wrong URL.
    let elsewhere = matches!(status.as_u16(), 404 | 405 | 406 | 410 | 415);
    match code {
        _ if status == StatusCode::TOO_MANY_REQUESTS => Reason::Throttled,
        Some(code) if outage && !code.is_standard() => Reason::ProviderUnavailable,
        Some(code) => code.reason(),
        None if outage => Reason::ProviderUnavailable,
        None if says_error && !elsewhere && !status.is_redirection() => Reason::RequestRefused,
        None => Reason::MalformedResponse,
    }
}

/// How far the provider's clock is ahead of the broker's, if the clocks differ by more than [`SKEW_MIN`].
pub(super) fn skew(response: &Response<impl AsRef<[u8]>>, now: Timestamp) -> Option<SignedDuration> {
    date(response, header::DATE).map(|theirs| theirs.duration_since(now)).filter(|skew| skew.abs() > SKEW_MIN)
}

/// Reads an error that the browser returned from the authorization endpoint (RFC 6749 section 4.1.2.1).
pub(super) fn read_browser_error(error: &str, description: Option<&str>) -> Refusal {
    let code = OAuthError::parse(error);
    let provider_code = description.and_then(described_code);
    let what = match (&code, &provider_code) {
        (Some(code), Some(provider_code)) => format!("the provider answered {} ({provider_code})", code.as_str()),
        (Some(code), None) => format!("the provider answered {}", code.as_str()),
        (None, _) => "the provider answered with an error of no known form".to_owned(),
    };
    let reason = code.as_ref().map_or(Reason::RequestRefused, |code| code.reason());
    Refusal { error: code, provider_code, ..Refusal::new(reason, what) }
}

fn suffix(provider_code: Option<&str>, status: StatusCode) -> String {
    match provider_code {
        Some(code) => format!(" ({code}, HTTP {})", status.as_u16()),
        None => format!(" (HTTP {})", status.as_u16()),
    }
}

/// Returns the wait in `Retry-After`, in seconds or as a date (RFC 9110 section 10.2.3). A date counts from the response's
/// `Date`.
pub fn retry_after(response: &Response<impl AsRef<[u8]>>, now: Timestamp) -> Option<SignedDuration> {
    let value = text(response, header::RETRY_AFTER)?;
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(SignedDuration::from_secs(seconds.into()));
    }
    if value.bytes().all(|byte| byte.is_ascii_digit()) && !value.is_empty() {
        return Some(SignedDuration::from_secs(u32::MAX.into()));
    }
    let from = date(response, header::DATE).unwrap_or(now);
    let wait = date(response, header::RETRY_AFTER)?.duration_since(from);
    wait.is_positive().then_some(wait)
}

fn text(response: &Response<impl AsRef<[u8]>>, name: HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok().map(str::trim)
}

/// Parses an HTTP date (RFC 9110 section 5.6.7).
fn date(response: &Response<impl AsRef<[u8]>>, name: HeaderName) -> Option<Timestamp> {
    Some(rfc2822::parse(text(response, name)?).ok()?.with_time_zone(TimeZone::UTC).timestamp())
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
    fn an_error_of_the_protocol_counts_whatever_the_status_and_another_says_nothing_with_a_5xx() {
        let table = [
            ("invalid_client", Reason::InvalidClient, true),
            ("unauthorized_client", Reason::InvalidClient, true),
            ("invalid_grant", Reason::InvalidGrant, true),
            ("invalid_scope", Reason::InvalidScope, true),
            ("invalid_target", Reason::InvalidScope, true),
            ("invalid_token", Reason::InvalidGrant, true),
            ("insufficient_scope", Reason::InvalidScope, true),
            ("temporarily_unavailable", Reason::ProviderUnavailable, true),
            ("server_error", Reason::ProviderUnavailable, true),
            ("access_denied", Reason::AuthorizationRequired, true),
            ("authorization_pending", Reason::AuthorizationRequired, true),
            ("expired_token", Reason::AuthorizationRequired, true),
            ("slow_down", Reason::Throttled, true),
            ("invalid_request", Reason::RequestRefused, true),
            ("unsupported_grant_type", Reason::RequestRefused, true),
            ("consent_required", Reason::ConsentRequired, false),
            ("interaction_required", Reason::AuthorizationRequired, false),
            ("authorization_declined", Reason::AuthorizationRequired, false),
            ("unauthorized", Reason::InvalidClient, false),
            ("invalid_refresh_token", Reason::InvalidGrant, false),
            ("internal_server_error", Reason::ProviderUnavailable, false),
            ("never_heard_of", Reason::RequestRefused, false),
        ];
        for (error, reason, standard) in table {
            let body = format!(r#"{{"error":"{error}"}}"#);
            for status in [200, 400, 401, 403, 404] {
                assert_eq!(read(status, &body).reason, reason, "{status} {error}");
            }
            for status in [408, 500, 502, 503, 504, 599] {
                let wanted = if standard { reason } else { Reason::ProviderUnavailable };
                let refusal = read(status, &body);
                assert_eq!((refusal.reason, refusal.unknown_code), (wanted, false), "{status} {error}");
                assert_eq!(refusal.is_of_the_server(), standard || status < 500, "{status} {error}");
            }
        }
    }

    #[test]
    fn a_code_is_read_in_any_letter_case_and_under_any_of_its_names() {
        for (body, code, reason) in [
            (r#"{"error":"INVALID_GRANT"}"#, "invalid_grant", Reason::InvalidGrant),
            (r#"{"error":"Invalid_Client"}"#, "invalid_client", Reason::InvalidClient),
            (r#"{"error":"invalidGrant"}"#, "invalid_grant", Reason::InvalidGrant),
            (r#"{"error":"InvalidScope"}"#, "invalid_scope", Reason::InvalidScope),
            (r#"{"error":"invalid-client"}"#, "invalid_client", Reason::InvalidClient),
            (r#"{"error":" invalid grant "}"#, "invalid_grant", Reason::InvalidGrant),
            (r#"{"error":"Unauthorized"}"#, "unauthorized", Reason::InvalidClient),
            (r#"{"error":"INVALID_REFRESH_TOKEN"}"#, "invalid_refresh_token", Reason::InvalidGrant),
            (r#"{"errorCode":"invalid_grant"}"#, "invalid_grant", Reason::InvalidGrant),
            (r#"{"error_code":"invalid_client"}"#, "invalid_client", Reason::InvalidClient),
            (r#"{"code":"invalid_scope","message":"x"}"#, "invalid_scope", Reason::InvalidScope),
            (r#"{"error":{"code":"invalid_grant","message":"x"}}"#, "invalid_grant", Reason::InvalidGrant),
            (r#"{"error":{"error":"invalid_grant"}}"#, "invalid_grant", Reason::InvalidGrant),
            (r#"{"error":{"code":401,"status":"UNAUTHENTICATED"}}"#, "unauthenticated", Reason::InvalidClient),
            (r#"{"error":{"code":403,"status":"PERMISSION_DENIED"}}"#, "permission_denied", Reason::ConsentRequired),
            (r#"{"error":{"type":"invalid_client"}}"#, "invalid_client", Reason::InvalidClient),
            (r#"{"error":400,"errorCode":"invalid_grant"}"#, "invalid_grant", Reason::InvalidGrant),
            (r#"{"error":true,"error_code":"invalid_grant"}"#, "invalid_grant", Reason::InvalidGrant),
            (r#"{"error":["x"],"errorCode":"invalid_grant"}"#, "invalid_grant", Reason::InvalidGrant),
            (r#"{"error":"Bad Request","errorCode":"invalid_grant"}"#, "invalid_grant", Reason::InvalidGrant),
            (r#"[{"errorCode":"INVALID_GRANT","message":"x"}]"#, "invalid_grant", Reason::InvalidGrant),
            (r#"{"error":"invalid_grant","error":"invalid_client"}"#, "invalid_grant", Reason::InvalidGrant),
            (
                r#"{"error":"invalid_grant","error_description":{"a":[1]},"correlation_id":7}"#,
                "invalid_grant",
                Reason::InvalidGrant,
            ),
            (
                r#"{"correlation_id":1e999,"error_codes":[1e999],"error":"invalid_grant"}"#,
                "invalid_grant",
                Reason::InvalidGrant,
            ),
            (r#"{"timestamp":1,"error":"invalid_grant","trunc"#, "invalid_grant", Reason::InvalidGrant),
        ] {
            let refusal = read(400, body);
            assert_eq!(refusal.error.as_ref().map(OAuthError::as_str), Some(code), "{body}");
            assert_eq!((refusal.reason, refusal.unknown_code), (reason, false), "{body}");
        }
    }

    #[test]
    fn an_error_of_a_web_framework_is_no_refusal_of_the_server() {
        let spring = |status: u16, error: &str| {
            format!(r#"{{"timestamp":"2026-11-29T19:00:00Z","status":{status},"error":"{error}","path":"/token"}}"#)
        };
        for (status, error, reason, unknown) in [
            (500, "Internal Server Error", Reason::ProviderUnavailable, false),
            (503, "Service Unavailable", Reason::ProviderUnavailable, false),
            (504, "upstream request timeout", Reason::ProviderUnavailable, false),
            (408, "Request Timeout", Reason::ProviderUnavailable, false),
            (404, "Not Found", Reason::MalformedResponse, false),
            (405, "Method Not Allowed", Reason::MalformedResponse, false),
            (415, "Unsupported Media Type", Reason::MalformedResponse, false),
            (401, "Unauthorized", Reason::InvalidClient, false),
            (400, "Bad Request", Reason::RequestRefused, true),
            (403, "Forbidden", Reason::RequestRefused, true),
            (422, "Unprocessable Entity", Reason::RequestRefused, true),
        ] {
            let refusal = read(status, &spring(status, error));
            assert_eq!((refusal.reason, refusal.unknown_code), (reason, unknown), "{status} {error}");
        }
        for (status, body, reason) in [
            (500, r#"{"error":{"code":500,"message":"x","status":"INTERNAL"}}"#, Reason::ProviderUnavailable),
            (502, r#"{"message":"Internal server error"}"#, Reason::ProviderUnavailable),
            (500, r#"{"error":"unknown_error","error_description":"x"}"#, Reason::ProviderUnavailable),
            (500, r#"{"error":500}"#, Reason::ProviderUnavailable),
            (400, r#"{"error":400}"#, Reason::RequestRefused),
            (400, r#"{"error":{}}"#, Reason::RequestRefused),
            (400, r#"{"message":"no"}"#, Reason::MalformedResponse),
        ] {
            assert_eq!(read(status, body).reason, reason, "{status} {body}");
        }
    }

    #[test]
    fn the_message_names_the_code_and_the_status() {
        let microsoft = r#"{"error":"invalid_grant","error_description":"AADSTS700082: The refresh token"}"#;
        for (status, body, what) in [
            (400, microsoft, "the provider answered invalid_grant (AADSTS700082, HTTP 400)"),
            (400, r#"{"error":"invalid_grant"}"#, "the provider answered invalid_grant (HTTP 400)"),
            (302, "", "the provider answered with a redirect (HTTP 302), which is never followed"),
            (200, "{}", "the response is not a token response"),
            (404, "", "the provider answered HTTP 404 without an OAuth error"),
        ] {
            assert_eq!(read(status, body).what, what);
        }
    }

    #[test]
    fn a_refusal_in_the_browser_keeps_its_codes() {
        let refusal = read_browser_error("access_denied", Some("AADSTS65004: User declined"));
        assert_eq!(refusal.error.as_ref().map(OAuthError::as_str), Some("access_denied"));
        assert_eq!(refusal.provider_code.as_deref(), Some("AADSTS65004"));
        assert_eq!(refusal.what, "the provider answered access_denied (AADSTS65004)");
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
        // Letters of both cases may be a secret, so the broker shows only known codes.
        for secret in ["SuperSecretPassword", "hunterTwo", "s3cr3t", "s\u{e9}cret", &"x".repeat(41)] {
            let odd = read(400, &format!(r#"{{"error":"{secret}","errorCode":"{secret}","suberror":"{secret}"}}"#));
            assert_eq!((odd.error, odd.provider_code, odd.unknown_code), (None, None, true), "{secret}");
        }
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

    #[test]
    fn a_clock_that_differs_by_more_than_a_minute_is_seen_and_no_date_says_nothing() {
        let skew = |date: Option<&str>| {
            let builder = Response::builder().status(400);
            let builder = date.into_iter().fold(builder, |builder, date| builder.header("date", date));
            read_refusal(&builder.body(&br#"{"error":"invalid_grant"}"#[..]).unwrap(), now())
                .skew
                .map(|skew| skew.as_secs())
        };
        assert_eq!(skew(None), None);
        assert_eq!(skew(Some("Sun, 06 Nov 1994 08:50:37 GMT")), None, "a minute is no skew");
        assert_eq!(skew(Some("Sun, 06 Nov 1994 08:50:38 GMT")), Some(61));
        assert_eq!(skew(Some("Sun, 06 Nov 1994 08:44:37 GMT")), Some(-300));
        assert_eq!(skew(Some("yesterday")), None);
    }

    #[test]
    fn a_subtype_is_a_code_only_if_it_is_a_plain_word() {
        for (body, code) in [
            (r#"{"error":"invalid_grant","error_subtype":"invalid_rapt"}"#, Some("invalid_rapt")),
            (r#"{"error":"invalid_grant","suberror":"bad_token"}"#, Some("bad_token")),
            (r#"{"error":"invalid_grant","suberror":"bad_token","error_codes":[70000]}"#, Some("AADSTS70000")),
            (r#"{"error":"invalid_grant","error_subtype":"S3cr3t"}"#, None),
            (r#"{"error":"invalid_grant","error_subtype":["invalid_rapt"]}"#, None),
        ] {
            assert_eq!(read(400, body).provider_code.as_deref(), code, "{body}");
        }
    }

    #[test]
    fn googles_words_about_time_are_understood_and_not_repeated() {
        let body = r#"{"error":"invalid_grant","error_description":"Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim."}"#;
        let refusal = read(400, body);
        assert!(refusal.untimely && !format!("{refusal:?}").contains("timeframe"));
        assert!(!read(400, r#"{"error":"invalid_grant","error_description":"Invalid JWT Signature."}"#).untimely);
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
