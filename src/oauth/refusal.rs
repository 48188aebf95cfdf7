//! Refusals (RFC 6749 section 5.2): what a provider's "no" means, without anything of it that could hold a secret.

use http::{HeaderName, Response, StatusCode, header};
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
    /// The provider's own code: Microsoft's `AADSTS7000215`, else its `suberror` or Google's `error_subtype`.
    pub provider_code: Option<String>,
    /// The id that the provider's support asks for.
    pub correlation_id: Option<String>,
    /// How long the provider asked to wait.
    pub retry_after: Option<SignedDuration>,
    /// How far the provider's clock is ahead of ours, where that is more than [`SKEW_MIN`] either way.
    pub skew: Option<SignedDuration>,
    /// The answer says in words that an assertion came too early or too late.
    pub untimely: bool,
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
            skew: None,
            untimely: false,
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

    /// RFC 6749 sections 4.1.2.1 and 5.2, RFC 8628 section 3.5, RFC 8707 section 2, OpenID Connect Core section 3.1.2.6;
    /// `authorization_declined` is Microsoft's `access_denied`.
    fn reason(&self) -> Reason {
        match self.as_str() {
            "invalid_client" | "unauthorized_client" => Reason::InvalidClient,
            "invalid_grant" => Reason::InvalidGrant,
            "invalid_scope" | "invalid_target" => Reason::InvalidScope,
            "consent_required" => Reason::ConsentRequired,
            "interaction_required"
            | "login_required"
            | "access_denied"
            | "authorization_declined"
            | "authorization_pending"
            | "expired_token" => Reason::AuthorizationRequired,
            "temporarily_unavailable" | "server_error" => Reason::ProviderUnavailable,
            "slow_down" => Reason::Throttled,
            _ => Reason::RequestRefused,
        }
    }
}

/// Clocks that differ by less are no reason for a refusal.
pub const SKEW_MIN: SignedDuration = SignedDuration::from_mins(1);

/// Reads an answer that grants nothing. `now` is when the request was sent: the answer's `Date` is held against it.
pub fn read_refusal(response: &Response<impl AsRef<[u8]>>, now: Timestamp) -> Refusal {
    let status = response.status();
    let body: Option<Body> = serde_json::from_slice(response.body().as_ref()).ok();
    let error = body.as_ref().and_then(|body| body.error.as_ref());
    let code = error.and_then(|error| OAuthError::parse(error.as_str()?));
    let provider_code = body.as_ref().and_then(Body::provider_code);
    let skew =
        date(response, header::DATE).map(|theirs| theirs.duration_since(now)).filter(|skew| skew.abs() > SKEW_MIN);

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
        untimely: body.as_ref().is_some_and(Body::is_untimely),
        correlation_id: body.and_then(|body| body.correlation_id).filter(|id| is_correlation_id(id)),
        retry_after: retry_after(response, now),
        skew,
        advice: None,
    }
}

/// Reads an error that a browser brought back from the authorization endpoint (RFC 6749 section 4.1.2.1).
pub(super) fn read_browser_error(error: &str, description: Option<&str>) -> Refusal {
    let code = OAuthError::parse(error);
    let provider_code = description.and_then(described_code).and_then(shown_code);
    let what = match (&code, &provider_code) {
        (Some(code), Some(provider_code)) => format!("the provider answered {} ({provider_code})", code.as_str()),
        (Some(code), None) => format!("the provider answered {}", code.as_str()),
        (None, _) => "the provider answered with an error of no known form".to_owned(),
    };
    let reason = code.as_ref().map_or(Reason::RequestRefused, OAuthError::reason);
    Refusal { error: code, provider_code, ..Refusal::new(reason, what) }
}

fn suffix(provider_code: Option<&str>, status: StatusCode) -> String {
    match provider_code {
        Some(code) => format!(" ({code}, HTTP {})", status.as_u16()),
        None => format!(" (HTTP {})", status.as_u16()),
    }
}

/// `Retry-After` in both forms (RFC 9110 section 10.2.3); a date is counted from the answer's own `Date`.
fn retry_after(response: &Response<impl AsRef<[u8]>>, now: Timestamp) -> Option<SignedDuration> {
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

/// An HTTP date (RFC 9110 section 5.6.7).
fn date(response: &Response<impl AsRef<[u8]>>, name: HeaderName) -> Option<Timestamp> {
    Some(rfc2822::parse(text(response, name)?).ok()?.with_time_zone(TimeZone::UTC).timestamp())
}

/// The members of an error response that are looked at; `error_description` only for Microsoft's code at its start, and
/// for Google's words about the time in an assertion.
#[derive(Deserialize)]
struct Body {
    error: Option<serde_json::Value>,
    error_description: Option<serde_json::Value>,
    error_codes: Option<serde_json::Value>,
    suberror: Option<serde_json::Value>,
    error_subtype: Option<serde_json::Value>,
    correlation_id: Option<String>,
}

impl Body {
    fn provider_code(&self) -> Option<String> {
        let listed = || self.error_codes.as_ref()?.as_array()?.first()?.as_u64();
        let number = listed().or_else(|| described_code(self.description()?));
        let word = || {
            let code = self.error_subtype.as_ref().or(self.suberror.as_ref())?.as_str()?;
            OAuthError::parse(code).map(|OAuthError(code)| code)
        };
        number.and_then(shown_code).or_else(word)
    }

    /// Google has no code for it: "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable
    /// timeframe. Check your iat and exp values in the JWT claim."
    fn is_untimely(&self) -> bool {
        self.description().is_some_and(|text| text.starts_with("Invalid JWT") && text.contains("reasonable timeframe"))
    }

    fn description(&self) -> Option<&str> {
        self.error_description.as_ref()?.as_str()
    }
}

/// Microsoft's code at the beginning of a description.
fn described_code(description: &str) -> Option<u64> {
    let text = description.strip_prefix("AADSTS")?;
    text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn shown_code(number: u64) -> Option<String> {
    (1_000..=999_999_999).contains(&number).then(|| format!("AADSTS{number}"))
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
            ("access_denied", Reason::AuthorizationRequired),
            ("authorization_declined", Reason::AuthorizationRequired),
            ("authorization_pending", Reason::AuthorizationRequired),
            ("expired_token", Reason::AuthorizationRequired),
            ("slow_down", Reason::Throttled),
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
    fn what_is_told_names_the_code_and_the_status() {
        let microsoft = r#"{"error":"invalid_grant","error_description":"AADSTS700082: The refresh token"}"#;
        for (status, body, what) in [
            (400, microsoft, "the provider answered invalid_grant (AADSTS700082, HTTP 400)"),
            (400, r#"{"error":"invalid_grant"}"#, "the provider answered invalid_grant (HTTP 400)"),
            (302, "", "the provider answered with a redirect (HTTP 302), which is never followed"),
            (200, "{}", "the answer is no token response"),
            (404, "", "the provider answered HTTP 404 without an OAuth error"),
        ] {
            assert_eq!(read(status, body).what, what);
        }
    }

    #[test]
    fn what_a_browser_brought_back_keeps_its_codes() {
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
        assert_eq!(skew(Some("Sun, 06 Nov 1994 08:50:37 GMT")), None, "a minute is none");
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
