//! Device authorization (RFC 8628): a user signs in on another device, with a code that the broker shows.

use std::collections::BTreeMap;

use http::{Request, Response};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use url::{Url, form_urlencoded::Serializer};

use super::{
    assertion::AssertionParams,
    client_auth::ClientAuth,
    lenient::{Number, SecretText, Text, body, object},
    refusal::{Refusal, read_refusal},
    token::lifetime,
    token_request::{RequestError, post},
};
use crate::api::Reason;

/// Interval between polls if the response has none (RFC 8628 section 3.2).
pub const DEFAULT_INTERVAL: SignedDuration = SignedDuration::from_secs(5);
/// Time that each `slow_down` permanently adds to the interval (RFC 8628 section 3.5).
pub const SLOW_DOWN: SignedDuration = SignedDuration::from_secs(5);
/// Maximum interval between polls. With longer intervals, every code would expire.
const INTERVAL_MAX: SignedDuration = SignedDuration::from_secs(60);
/// Maximum lifetime of codes. Longer lifetimes count as a day.
const LIFETIME_MAX: SignedDuration = SignedDuration::from_hours(24);
/// Maximum length of a shown URL in bytes. The CRD has the same limit.
const URI_MAX: usize = 2_048;
/// Maximum length of a user code in bytes. The CRD has the same limit.
const USER_CODE_MAX: usize = 64;
/// Maximum length of a device code in bytes. The grant Secret stores it.
const DEVICE_CODE_MAX: usize = 32 * 1024;

/// A sign-in that has begun.
#[derive(Clone, Debug)]
pub struct DeviceAuthorization {
    /// The code with which the broker polls.
    pub device_code: SecretString,
    /// The code that the user enters.
    pub user_code: String,
    /// The page at which the user enters the code.
    pub verification_uri: String,
    /// The page with the code in its address.
    pub verification_uri_complete: Option<String>,
    /// The time at which both codes expire.
    pub expires_at: Timestamp,
    /// The minimum interval between polls.
    pub interval: SignedDuration,
}

/// Builds the request that begins a sign-in (RFC 8628 section 3.1). It has the fields in `parameters`: some servers
/// choose the resource by this request, not by the token request (RFC 8707 section 2.1).
///
/// # Errors
/// If the request cannot be built.
pub fn device_authorization_request(
    url: &str,
    client_id: &str,
    auth: &ClientAuth,
    scopes: &[String],
    parameters: &BTreeMap<String, String>,
    params: AssertionParams<'_>,
) -> Result<Request<Vec<u8>>, RequestError> {
    let mut form = Serializer::new(String::new());
    if !scopes.is_empty() {
        form.append_pair("scope", &scopes.join(" "));
    }
    for (name, value) in parameters {
        form.append_pair(name, value);
    }
    post(url, client_id, auth, params, form)
}

/// Reads the response to a request that the broker sent at `sent_at`.
///
/// # Errors
/// The provider's refusal, or a response that begins no sign-in.
pub fn read_device_authorization(
    response: &Response<impl AsRef<[u8]>>,
    sent_at: Timestamp,
) -> Result<DeviceAuthorization, Refusal> {
    if !response.status().is_success() {
        return Err(read_refusal(response, sent_at));
    }
    let malformed = || {
        let refusal = read_refusal(response, sent_at);
        if refusal.error.is_some() {
            return refusal;
        }
        let mut refusal =
            Refusal::new(Reason::MalformedResponse, "the response is not a device authorization response");
        refusal.http_status = Some(response.status().as_u16());
        refusal
    };
    let wire: Wire = object(body(response)).ok_or_else(malformed)?;
    let page = wire.verification_uri.0.or(wire.verification_url.0).and_then(|uri| page(&uri));
    let (Some(device_code), Some(user_code), Some(verification_uri)) =
        (wire.device_code.0.filter(is_device_code), wire.user_code.0.filter(|code| is_user_code(code)), page)
    else {
        return Err(malformed());
    };
    let lifetime_of = |number| lifetime(number).ok().flatten();
    let expires_in = lifetime_of(wire.expires_in).ok_or_else(malformed)?;
    Ok(DeviceAuthorization {
        device_code,
        user_code,
        verification_uri,
        verification_uri_complete: wire.verification_uri_complete.0.and_then(|uri| self::page(&uri)),
        expires_at: sent_at + expires_in.min(LIFETIME_MAX),
        interval: lifetime_of(wire.interval).map_or(DEFAULT_INTERVAL, |interval| interval.min(INTERVAL_MAX)),
    })
}

fn is_device_code(code: &SecretString) -> bool {
    let code = code.expose_secret();
    !code.is_empty() && code.len() <= DEVICE_CODE_MAX && code.bytes().all(|byte| (0x21..=0x7e).contains(&byte))
}

/// Whether the broker can show a code in a status and an Event, next to commands that a user copies.
pub fn is_user_code(code: &str) -> bool {
    !code.is_empty() && code.len() <= USER_CODE_MAX && is_plain(code)
}

/// Whether a text equals the parsed URL of a page that the broker may show to a user.
pub fn is_page(url: &str) -> bool {
    page(url).is_some_and(|parsed| parsed == url)
}

/// Parses the URL of a page that the broker may show to a user. Returns the parsed form, so that the shown URL is the
/// URL that a browser opens.
fn page(url: &str) -> Option<String> {
    let parsed = Url::parse(url).ok()?;
    let plain = parsed.scheme() == "https" && parsed.username().is_empty() && parsed.password().is_none();
    let shown = parsed.as_str();
    (plain && is_plain(url) && is_plain(shown) && shown.len() <= URI_MAX).then(|| shown.to_owned())
}

/// Whether the text is visible ASCII without characters that end a quotation or start a command in a shell.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() && !b"`'\"$\\<>|;".contains(&byte))
}

/// This type has no `Debug`, because it contains the device code. `verification_url` is the name that Google and older
/// Azure use for `verification_uri`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire {
    device_code: SecretText,
    user_code: Text,
    verification_uri: Text,
    verification_url: Text,
    verification_uri_complete: Text,
    expires_in: Number,
    interval: Number,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &serde_json::Value) -> Result<DeviceAuthorization, Refusal> {
        let sent_at = Timestamp::from_second(1_800_000_000).unwrap();
        read_device_authorization(&Response::builder().status(200).body(body.to_string()).unwrap(), sent_at)
    }

    fn example() -> serde_json::Value {
        serde_json::json!({
            "device_code": "GmRhmhcxhwAzkoEqiMEg_DnyEysNkuNhszIySk9eS", "user_code": "WDJB-MJHT",
            "verification_uri": "https://example.com/device",
            "verification_uri_complete": "https://example.com/device?user_code=WDJB-MJHT", "expires_in": 1800, "interval": 7,
        })
    }

    #[test]
    fn a_request_is_rfc_8628s_example() {
        let url = "https://server.example.com/device_authorization";
        let params = AssertionParams { audience: "", token_url: "", unique: "", now: Timestamp::UNIX_EPOCH };
        let ask = |scopes: &[String]| {
            let parameters = BTreeMap::new();
            device_authorization_request(url, "1406020730", &ClientAuth::Public, scopes, &parameters, params).unwrap()
        };
        let request = ask(&["example_scope".to_owned(), "another".to_owned()]);
        assert_eq!((request.method(), request.uri().to_string().as_str()), (&http::Method::POST, url));
        assert_eq!(request.headers()["content-type"], "application/x-www-form-urlencoded");
        let text = |request: Request<Vec<u8>>| String::from_utf8(request.into_body()).unwrap();
        assert_eq!(text(request), "scope=example_scope+another&client_id=1406020730");
        assert_eq!(text(ask(&[])), "client_id=1406020730");
        let more = BTreeMap::from([("resource".to_owned(), "https://mail.example/".to_owned())]);
        let request = device_authorization_request(url, "1406020730", &ClientAuth::Public, &[], &more, params).unwrap();
        assert_eq!(text(request), "resource=https%3A%2F%2Fmail.example%2F&client_id=1406020730");
    }

    #[test]
    fn rfc_8628s_example_is_read() {
        let authorization = read(&example()).unwrap();
        assert_eq!(authorization.user_code, "WDJB-MJHT");
        assert_eq!(authorization.expires_at.as_second(), 1_800_001_800);
        assert_eq!(authorization.interval, SignedDuration::from_secs(7));
        assert!(authorization.verification_uri_complete.is_some());
        assert!(!format!("{authorization:?}").contains("GmRhmhcx"));
    }

    #[test]
    fn missing_fields_have_defaults() {
        let mut body = example();
        body.as_object_mut().unwrap().remove("interval");
        assert_eq!(read(&body).unwrap().interval, DEFAULT_INTERVAL);
    }

    #[test]
    fn digits_in_strings_are_seconds_and_neither_is_believed_beyond_reason() {
        let mut body = example();
        (body["expires_in"], body["interval"]) = ("900".into(), "7".into());
        let authorization = read(&body).unwrap();
        assert_eq!((authorization.expires_at.as_second(), authorization.interval.as_secs()), (1_800_000_900, 7));
        (body["expires_in"], body["interval"]) = (864_000.into(), 3_600.into());
        let authorization = read(&body).unwrap();
        assert_eq!((authorization.expires_at.as_second(), authorization.interval.as_secs()), (1_800_086_400, 60));
    }

    #[test]
    fn an_error_with_status_200_is_the_error() {
        assert_eq!(read(&serde_json::json!({"error": "invalid_scope"})).unwrap_err().reason, Reason::InvalidScope);
    }

    #[test]
    fn misleading_pages_and_codes_are_refused() {
        for (field, value) in [
            ("verification_uri", serde_json::json!("http://example.com/device")),
            ("verification_uri", serde_json::json!("https://user@example.com/device")),
            ("verification_uri", serde_json::json!("https://example.com/`kubectl delete ns shop`")),
            ("verification_uri", serde_json::json!("https://example.com/?a=$(id)")),
            ("verification_uri", serde_json::json!("https://example.com/?a='b'")),
            ("verification_uri", serde_json::json!("https://example.com/?a=\"b\"")),
            ("verification_uri", serde_json::json!("https://example.com/a b")),
            ("verification_uri", serde_json::json!("https://example.com/a\nb")),
            ("verification_uri", serde_json::json!("https://exa\u{202e}mple.com/")),
            ("verification_uri", serde_json::json!(format!("https://example.com/{}", "x".repeat(2_048)))),
            ("verification_uri", serde_json::json!(["https://example.com/device"])),
            ("user_code", serde_json::json!("AB\u{1b}[31m")),
            ("user_code", serde_json::json!("AB CD")),
            ("user_code", serde_json::json!("AB`CD`")),
            ("user_code", serde_json::json!("$(id)")),
            ("user_code", serde_json::json!("AB'CD")),
            ("user_code", serde_json::json!("x".repeat(65))),
            ("user_code", serde_json::json!(12)),
            ("expires_in", serde_json::json!(0)),
            ("expires_in", serde_json::json!("soon")),
            ("device_code", serde_json::json!("")),
            ("device_code", serde_json::json!("x".repeat(DEVICE_CODE_MAX + 1))),
        ] {
            let mut body = example();
            body[field] = value;
            assert_eq!(read(&body).unwrap_err().reason, Reason::MalformedResponse, "{body}");
        }
        let mut body = example();
        body["verification_uri_complete"] = serde_json::json!("https://example.com/`id`");
        assert_eq!(read(&body).unwrap().verification_uri_complete, None);
    }

    #[test]
    fn the_shown_page_is_the_page_that_a_browser_opens() {
        let mut body = example();
        body["verification_uri"] = serde_json::json!("HTTPS://EXAMPLE.com:443/x/../device");
        assert_eq!(read(&body).unwrap().verification_uri, "https://example.com/device");
        for (url, shown) in [
            ("https://example.com/device", true),
            ("https://example.com/x/../device", false),
            ("https://example.com/`id`", false),
        ] {
            assert_eq!(is_page(url), shown, "{url}");
        }
    }

    #[test]
    fn odd_forms_are_read() {
        let mut body = example();
        (body["expires_in"], body["interval"]) = (serde_json::json!(900.0), serde_json::json!("soon"));
        body["error"] = serde_json::json!(null);
        body["verification_uri_complete"] = serde_json::json!({});
        let text = format!("\u{feff}{body}");
        let response = Response::builder().status(200).body(text).unwrap();
        let authorization = read_device_authorization(&response, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!((authorization.expires_at.as_second(), authorization.interval), (900, DEFAULT_INTERVAL));
        assert_eq!(authorization.verification_uri_complete, None);
    }
}
