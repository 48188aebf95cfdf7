//! Token responses (RFC 6749 section 5.1), read liberally: the broker does not discard a good token because of the response
//! around it.

use std::fmt;

use http::Response;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, de::MapAccess};
use sha2::{Digest as _, Sha256};

use super::{
    claims::Claims,
    lenient::{Members, Number, Said, SecretText, Words, body, object, read_members, skip},
    refusal::{Malformed, Refusal, read_refusal, skew},
};
use crate::api::names;

/// Lifetime of a token if the response names none. The broker emits a Warning.
pub const DEFAULT_LIFETIME: SignedDuration = SignedDuration::from_hours(1);
/// Maximum plausible lifetime in seconds: a year.
const MAX_LIFETIME_SECONDS: f64 = 366.0 * 24.0 * 3600.0;
/// Maximum size of an access token in bytes. Access tokens of real providers have at most 4 KiB. The Secret contains the
/// token up to five times, and once for each placeholder.
pub const ACCESS_TOKEN_MAX: usize = 32 * 1024;
/// Maximum size of a refresh token in bytes: a Secret must hold two of them.
const REFRESH_TOKEN_MAX: usize = 128 * 1024;
/// Maximum number of scopes to keep from a response: the maximum of a spec.
pub const SCOPES_MAX: usize = 64;
/// Maximum length of a scope in bytes: the maximum of a spec.
pub const SCOPE_MAX: usize = 512;

/// An access token and its properties.
#[derive(Clone, Debug)]
pub struct Token {
    /// The access token itself.
    pub access_token: SecretString,
    /// The token type `Bearer`, in the provider's spelling.
    pub token_type: String,
    /// The time at which the token request was sent.
    pub issued_at: Timestamp,
    /// The time at which the token expires.
    pub expires_at: Timestamp,
    /// The time at which the provider recommends a refresh.
    pub refresh_at: Option<Timestamp>,
    /// The scopes that the provider granted.
    pub scopes: Vec<String>,
}

impl Token {
    /// Returns the fingerprint of the access token.
    pub fn fingerprint(&self) -> TokenFingerprint {
        TokenFingerprint::of(self.access_token.expose_secret())
    }
}

/// Names an access token in annotations, in the status and in log lines: `sha256:` and the first 16 hex digits of the
/// token's SHA-256.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenFingerprint(String);

impl TokenFingerprint {
    /// The fingerprint of `access_token`.
    pub fn of(access_token: &str) -> Self {
        Self(format!("sha256:{}", names::hex16(&Sha256::digest(access_token.as_bytes()))))
    }

    /// The text in annotations and in the status.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for TokenFingerprint {
    /// From an annotation or the status.
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for TokenFingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A valid token response.
#[derive(Clone, Debug)]
pub struct TokenAnswer {
    /// The token and its properties.
    pub token: Token,
    /// The properties that the response did not state in a usable form, so that the broker assumed them. Each leads to a
    /// Warning.
    pub assumed: Vec<Assumption>,
    /// The names of the account that signed in, where the response has an ID token with names: addresses, and plain user
    /// names without `@`.
    pub names: Vec<String>,
}

/// A property that the broker assumed, because the response did not state it in a usable form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assumption {
    /// The assumed lifetime.
    Lifetime {
        /// The flaw of the response, as the end of a sentence about it.
        flaw: &'static str,
        /// The source of the lifetime instead.
        taken: LifetimeSource,
    },
    /// The response has no `token_type`, so the broker assumes a Bearer token.
    TokenType,
}

/// Sources of a lifetime that the response does not state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifetimeSource {
    /// The claim `exp` of the token, which is a JWT.
    ExpClaim,
    /// The response's `expires_in`, although the token's own `exp` contradicts it.
    ExpiresIn,
    /// The default, [`DEFAULT_LIFETIME`].
    Default,
}

/// A new refresh token in a response. The broker reads and stores it even if the rest of the response is unusable: a
/// provider does not send a replaced refresh token twice.
#[derive(Clone, Debug)]
pub struct Rotated {
    /// The new refresh token.
    pub refresh_token: SecretString,
    /// The time at which the refresh token expires, if the response says so.
    pub expires_at: Option<Timestamp>,
}

impl Rotated {
    /// Reads the refresh token in the response to a request that was sent at `sent_at`, if it is usable. Also reads it from
    /// JSON that is truncated after it, or that has a member twice.
    pub fn read(response: &Response<impl AsRef<[u8]>>, sent_at: Timestamp) -> Option<Self> {
        #[derive(Default)]
        struct Found {
            refresh_token: Option<SecretString>,
            /// Google's name of the lifetime.
            refresh_token_expires_in: Number,
            /// Keycloak's name of the lifetime; 0 means no expiry.
            refresh_expires_in: Number,
        }
        impl Members for Found {
            fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, members: &mut A) -> Result<(), A::Error> {
                match name {
                    "refresh_token" => {
                        let SecretText(token) = members.next_value()?;
                        self.refresh_token = token.filter(is_refresh_token).or(self.refresh_token.take());
                    }
                    "refresh_token_expires_in" => self.refresh_token_expires_in = members.next_value()?,
                    "refresh_expires_in" => self.refresh_expires_in = members.next_value()?,
                    _ => skip(members)?,
                }
                Ok(())
            }
        }
        let mut found = Found::default();
        read_members(body(response), &mut found);
        let life = [found.refresh_token_expires_in, found.refresh_expires_in]
            .into_iter()
            .find_map(|number| lifetime(number).ok().flatten());
        Some(Self { refresh_token: found.refresh_token?, expires_at: life.map(|life| sent_at + life) })
    }
}

/// Reads the response to a token request that was sent at `sent_at` for `asked` scopes.
///
/// # Errors
/// The provider's refusal, or a response that is not a token response.
pub fn read_token_response(
    response: &Response<impl AsRef<[u8]>>,
    sent_at: Timestamp,
    asked: &[String],
) -> Result<TokenAnswer, Refusal> {
    if !response.status().is_success() {
        return Err(read_refusal(response, sent_at));
    }
    let malformed = |what| Refusal::malformed(response, what);
    let body = body(response);
    if body.is_empty() {
        return Err(malformed(Malformed::Empty));
    }
    let Some(wire) = object::<Wire>(body) else {
        // The JSON has a duplicate key or is invalid: first read the meaning of the provider's error.
        let refusal = read_refusal(response, sent_at);
        return Err(if refusal.error.is_some() { refusal } else { malformed(Malformed::NotATokenResponse) });
    };
    if wire.error.0 {
        return Err(read_refusal(response, sent_at));
    }
    let access_token = wire.access_token.0.ok_or_else(|| {
        // The error may have another member name.
        let refusal = read_refusal(response, sent_at);
        if refusal.error.is_some() { refusal } else { malformed(Malformed::NoAccessToken) }
    })?;
    check_access_token(access_token.expose_secret()).map_err(malformed)?;
    let mut assumed = vec![];
    let token_type = token_type(wire.token_type).map_err(malformed)?.unwrap_or_else(|| {
        assumed.push(Assumption::TokenType);
        BEARER.to_owned()
    });
    let exp = Claims::read(access_token.expose_secret()).and_then(|claims| claims.exp());
    // By the broker's clock, which may differ from the provider's.
    let exp = exp.and_then(|exp| exp.checked_sub(skew(response, sent_at).unwrap_or_default()).ok());
    let expires_at = expiry(sent_at, wire.expires_in, exp, &mut assumed);
    let refresh_in = lifetime(wire.refresh_in).unwrap_or_default();
    let granted: Vec<_> = wire.scope.0.into_iter().filter(|scope| is_scope(scope)).collect();
    let token = Token {
        access_token,
        token_type,
        issued_at: sent_at,
        expires_at,
        refresh_at: refresh_in.map(|seconds| sent_at + seconds).filter(|at| *at < expires_at),
        scopes: if granted.is_empty() { asked.to_vec() } else { granted },
    };
    let identity = wire.id_token.0.and_then(|token| Claims::read(token.expose_secret()));
    let names = identity.iter().flat_map(Claims::names).map(str::to_owned).collect();
    Ok(TokenAnswer { token, assumed, names })
}

/// The only token type that mail servers accept (RFC 6750).
const BEARER: &str = "Bearer";

/// `Bearer` in the provider's spelling; `None` without a type. Apigee calls it `BearerToken`.
fn token_type(Words(words): Words<2>) -> Result<Option<String>, Malformed> {
    match words.as_slice() {
        [] => Ok(None),
        [word] if word.eq_ignore_ascii_case(BEARER) => Ok(Some(word.clone())),
        [word] if word.eq_ignore_ascii_case("bearertoken") => Ok(Some(BEARER.to_owned())),
        _ => Err(Malformed::TokenType),
    }
}

/// The expiry of a token: after `expires_in`, or at the token's own `exp`, whichever is earlier.
fn expiry(sent_at: Timestamp, expires_in: Number, exp: Option<Timestamp>, assumed: &mut Vec<Assumption>) -> Timestamp {
    let stated = lifetime(expires_in);
    let ends = stated.ok().flatten().map(|lifetime| sent_at + lifetime);
    let own = exp.filter(|exp| *exp > sent_at && exp.duration_since(sent_at).as_secs_f64() <= MAX_LIFETIME_SECONDS);
    let taken = match (own, ends) {
        (Some(_), _) => LifetimeSource::ExpClaim,
        (None, Some(_)) => LifetimeSource::ExpiresIn,
        (None, None) => LifetimeSource::Default,
    };
    let flaw = match (stated, own) {
        (Err(flaw), _) => Some(flaw),
        (Ok(None), None) => Some("has no expires_in"),
        // The claim is in the past although the token was just issued.
        (Ok(Some(_)), None) if exp.is_some_and(|exp| exp <= sent_at) => {
            Some("holds a token whose own exp is in the past: a clock is wrong")
        }
        (Ok(_), _) => None,
    };
    assumed.extend(flaw.map(|flaw| Assumption::Lifetime { flaw, taken }));
    own.into_iter().chain(ends).min().unwrap_or(sent_at + DEFAULT_LIFETIME)
}

/// A lifetime in whole seconds; `None` without one.
///
/// # Errors
/// The flaw, as the end of a sentence about the response.
pub(super) fn lifetime(number: Number) -> Result<Option<SignedDuration>, &'static str> {
    match number {
        Number::Absent => Ok(None),
        Number::Unreadable => Err("has an expires_in that is not a number of seconds"),
        Number::Given(seconds) if seconds < 0.0 => Err("has a negative expires_in"),
        Number::Given(seconds) if seconds < 1.0 => Err("has an expires_in of zero"),
        Number::Given(seconds) if seconds > MAX_LIFETIME_SECONDS => Err("has an expires_in of more than a year"),
        Number::Given(seconds) => Ok(Some(SignedDuration::from_secs(seconds as i64))),
    }
}

/// Whether a text is an access token: RFC 6750's `b64token` of at most [`ACCESS_TOKEN_MAX`] bytes, which is safe in a
/// header, in a SASL string and in a file that a shell reads.
pub fn is_access_token(text: &str) -> bool {
    check_access_token(text).is_ok()
}

fn check_access_token(text: &str) -> Result<(), Malformed> {
    let symbols = text.trim_end_matches('=');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    match () {
        () if text.is_empty() => Err(Malformed::NoAccessToken),
        () if text.len() > ACCESS_TOKEN_MAX => Err(Malformed::TooLong),
        () if symbols.is_empty() || !symbols.bytes().all(plain) => Err(Malformed::Character),
        () => Ok(()),
    }
}

/// Whether a token is a refresh token: visible ASCII (RFC 6749 appendix A.17).
fn is_refresh_token(token: &SecretString) -> bool {
    let text = token.expose_secret();
    !text.is_empty() && text.len() <= REFRESH_TOKEN_MAX && text.bytes().all(|byte| (0x21..=0x7e).contains(&byte))
}

/// Parses the scopes in a text, within the limits of a response.
pub fn scopes(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().filter(|scope| is_scope(scope)).take(SCOPES_MAX).map(str::to_owned).collect()
}

/// Whether a text is a scope (RFC 6749 appendix A.4) of bounded length.
fn is_scope(scope: &str) -> bool {
    let plain = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    !scope.is_empty() && scope.len() <= SCOPE_MAX && scope.bytes().all(plain)
}

/// No `Debug`: it contains the token. Some servers respond with 200 and `error`, so `error` is read too.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire {
    access_token: SecretText,
    token_type: Words<2>,
    expires_in: Number,
    refresh_in: Number,
    scope: Words<SCOPES_MAX>,
    id_token: SecretText,
    error: Said,
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    use serde_json::{Value, json};

    use super::*;
    use crate::api::Reason;

    const NOW: i64 = 1_000_000;

    fn sent_at() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    fn read(status: u16, body: &str) -> Result<TokenAnswer, Refusal> {
        let response = Response::builder().status(status).body(body.as_bytes().to_vec()).unwrap();
        read_token_response(&response, sent_at(), &["asked".to_owned()])
    }

    /// A response with a token and these members.
    fn with(fields: &str) -> Result<TokenAnswer, Refusal> {
        let comma = if fields.is_empty() { "" } else { "," };
        read(200, &format!(r#"{{"access_token":"t"{comma}{fields}}}"#))
    }

    fn lifetime_of(answer: &TokenAnswer) -> i64 {
        answer.token.expires_at.as_second() - NOW
    }

    fn flaw(answer: &TokenAnswer) -> Option<&'static str> {
        answer.assumed.iter().find_map(|assumed| match assumed {
            Assumption::Lifetime { flaw, .. } => Some(*flaw),
            Assumption::TokenType => None,
        })
    }

    fn jwt(claims: &Value) -> String {
        format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    #[test]
    fn a_plain_response_is_read_and_its_lifetime_counts_from_the_request() {
        let answer =
            read(200, r#"{"access_token":"t0k","token_type":"bearer","expires_in":3599,"refresh_in":1800}"#).unwrap();
        assert_eq!(answer.token.expires_at.as_second(), 1_003_599);
        assert_eq!(answer.token.refresh_at.unwrap().as_second(), 1_001_800);
        assert_eq!(answer.token.scopes, ["asked"]);
        assert_eq!(answer.assumed, []);
        assert!(!format!("{answer:?}").contains("t0k"));
    }

    #[test]
    fn a_token_type_is_bearer_in_many_spellings_and_none_means_bearer_with_a_warning() {
        for (fields, spelling, assumed) in [
            (r#""token_type":"Bearer""#, "Bearer", false),
            (r#""token_type":"bearer""#, "bearer", false),
            (r#""token_type":" BEARER ""#, "BEARER", false),
            (r#""token_type":["Bearer"]"#, "Bearer", false),
            (r#""token_type":"BearerToken""#, "Bearer", false),
            ("", "Bearer", true),
            (r#""token_type":null"#, "Bearer", true),
            (r#""token_type":"""#, "Bearer", true),
        ] {
            let answer =
                with(&format!(r#"{fields}{}"expires_in":60"#, if fields.is_empty() { "" } else { "," })).unwrap();
            assert_eq!(answer.token.token_type, spelling, "{fields}");
            assert_eq!(answer.assumed, if assumed { vec![Assumption::TokenType] } else { vec![] }, "{fields}");
        }
        for other in [r#""mac""#, r#""N_A""#, r#""DPoP""#, r#""Bearer DPoP""#, r#"["mac"]"#, r#"["Bearer","mac"]"#] {
            let refusal = with(&format!(r#""token_type":{other}"#)).unwrap_err();
            assert_eq!(
                (refusal.reason, refusal.what.as_str()),
                (Reason::MalformedResponse, "the token_type is not Bearer")
            );
        }
    }

    #[test]
    fn scopes_are_a_text_or_a_list_and_the_granted_ones_override_the_requested() {
        for (scope, scopes) in [
            (r#""a b""#, &["a", "b"][..]),
            (r#""  a   b ""#, &["a", "b"]),
            (r#"["a","b"]"#, &["a", "b"]),
            (r#"["a b","c"]"#, &["a", "b", "c"]),
            (r#"["a",7,null,{"b":1},["c"],"d"]"#, &["a", "d"]),
            // A response without scopes means the requested ones (RFC 6749 section 5.1).
            (r#""""#, &["asked"]),
            ("[]", &["asked"]),
            ("null", &["asked"]),
            ("7", &["asked"]),
            (r#"{"a":"b"}"#, &["asked"]),
        ] {
            assert_eq!(with(&format!(r#""scope":{scope}"#)).unwrap().token.scopes, scopes, "{scope}");
        }
    }

    #[test]
    fn scopes_are_bounded_in_number_length_and_characters() {
        let many = with(&format!(r#""scope":"{}""#, "a ".repeat(120_000))).unwrap();
        assert_eq!(many.token.scopes.len(), SCOPES_MAX);
        let list = with(&format!(r#""scope":{}"#, json!(vec!["a"; 1_000]))).unwrap();
        assert_eq!(list.token.scopes.len(), SCOPES_MAX);
        let odd = json!(["ok", "x".repeat(513), "q\"uote", "back\\slash", "\u{1b}[31m", "b\u{fc}ro", "x".repeat(512)]);
        assert_eq!(with(&format!(r#""scope":{odd}"#)).unwrap().token.scopes, ["ok".to_owned(), "x".repeat(512)]);
        assert_eq!(scopes(&"a ".repeat(100)).len(), SCOPES_MAX);
        assert_eq!(scopes("a \u{1b}b c"), ["a", "c"]);
    }

    #[test]
    fn a_lifetime_is_a_number_however_it_is_written() {
        for (expires_in, seconds) in [
            ("3600", 3600),
            ("3600.0", 3600),
            ("3.6e3", 3600),
            ("59.9", 59),
            ("\"90\"", 90),
            ("\" 90 \"", 90),
            ("\"+90\"", 90),
            ("\"3600.0\"", 3600),
            ("31622400", 366 * 24 * 3600),
        ] {
            let answer = with(&format!(r#""token_type":"Bearer","expires_in":{expires_in}"#)).unwrap();
            assert_eq!((lifetime_of(&answer), answer.assumed), (seconds, vec![]), "{expires_in}");
        }
    }

    #[test]
    fn a_lifetime_that_cannot_be_right_is_an_hour_with_a_warning_that_says_what_is_wrong() {
        for (expires_in, what) in [
            ("0", "zero"),
            ("0.5", "zero"),
            ("-0", "zero"),
            ("-1", "negative"),
            ("\"-5\"", "negative"),
            ("1e12", "more than a year"),
            ("1000000000000", "more than a year"),
            ("99999999999999999999999999", "more than a year"),
            ("31622401", "more than a year"),
            ("\"1h\"", "not a number"),
            ("\"soon\"", "not a number"),
            ("\"\"", "not a number"),
            ("\"NaN\"", "not a number"),
            ("\"inf\"", "not a number"),
            ("\"0x10\"", "not a number"),
            ("true", "not a number"),
            ("[3600]", "not a number"),
            ("{}", "not a number"),
            // Beyond what a 64-bit float holds, and what no JSON has.
            ("1e999", "not a number"),
            ("-1E+400", "not a number"),
            (&"9".repeat(400), "not a number"),
            ("Infinity", "not a number"),
            ("-Infinity", "not a number"),
            ("NaN", "not a number"),
            ("null", "no expires_in"),
        ] {
            let answer = with(&format!(r#""expires_in":{expires_in}"#)).unwrap();
            assert_eq!(lifetime_of(&answer), 3600, "{expires_in}");
            assert!(flaw(&answer).unwrap().contains(what), "{expires_in}: {:?}", answer.assumed);
        }
        assert_eq!(flaw(&with("").unwrap()), Some("has no expires_in"));
    }

    #[test]
    fn of_the_response_and_the_token_itself_the_earlier_end_counts() {
        let of = |claims: Value, expires_in: Value| {
            let body = json!({"access_token": jwt(&claims), "token_type": "Bearer", "expires_in": expires_in});
            let answer = read(200, &body.to_string()).unwrap();
            (lifetime_of(&answer), flaw(&answer).is_some())
        };
        for (claims, expires_in, seconds, warns) in [
            (json!({"exp": NOW + 300}), json!(null), 300, false),
            (json!({"exp": (NOW + 300).to_string()}), json!(null), 300, false),
            (json!({"exp": 1_000_300.5}), json!(null), 300, false),
            (json!({"exp": NOW + 300}), json!(3600), 300, false),
            (json!({"exp": NOW + 7200}), json!(3600), 3600, false),
            (json!({"exp": NOW + 300}), json!("soon"), 300, true),
            (json!({"exp": NOW + 300}), json!(0), 300, true),
            // Claims without an expiry.
            (json!({"sub": "x"}), json!(60), 60, false),
            (json!({"exp": "soon"}), json!(60), 60, false),
            (json!({"exp": null}), json!(60), 60, false),
            (json!({"exp": -5}), json!(60), 60, false),
            (json!({"exp": 1e300}), json!(60), 60, false),
            (json!({"exp": NOW + 400 * 24 * 3600}), json!(null), 3600, true),
            // A clock is wrong: the response's lifetime applies, with a Warning.
            (json!({"exp": NOW - 10}), json!(60), 60, true),
            (json!({"exp": NOW}), json!(null), 3600, true),
        ] {
            let reported = format!("{claims} {expires_in}");
            assert_eq!(of(claims, expires_in), (seconds, warns), "{reported}");
        }
    }

    #[test]
    fn the_tokens_own_end_is_by_the_providers_clock() {
        let body = json!({"access_token": jwt(&json!({"exp": NOW - 600 + 300})), "token_type": "Bearer"});
        // The provider's clock is ten minutes behind the broker's, which is 1970-01-12 13:46:40.
        let response =
            Response::builder().header("date", "Mon, 12 Jan 1970 13:36:40 GMT").body(body.to_string()).unwrap();
        let answer = read_token_response(&response, sent_at(), &[]).unwrap();
        assert_eq!((lifetime_of(&answer), answer.assumed), (300, vec![]));
        for date in ["Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 GMT"] {
            let exp = json!({"access_token": jwt(&json!({"exp": 221_845_000_000_i64})), "expires_in": 60});
            let response = Response::builder().header("date", date).body(exp.to_string()).unwrap();
            assert_eq!(lifetime_of(&read_token_response(&response, sent_at(), &[]).unwrap()), 60);
        }
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        let body = |text: &str| [b"\xef\xbb\xbf", text.as_bytes()].concat();
        let good = Response::new(body(r#"{"access_token":"t","refresh_token":"r1"}"#));
        assert!(read_token_response(&good, sent_at(), &[]).is_ok());
        assert_eq!(Rotated::read(&good, sent_at()).unwrap().refresh_token.expose_secret(), "r1");
        let bad = Response::builder().status(400).body(body(r#"{"error":"invalid_grant"}"#)).unwrap();
        assert_eq!(read_token_response(&bad, sent_at(), &[]).unwrap_err().reason, Reason::InvalidGrant);
    }

    #[test]
    fn an_access_token_is_a_b64token_of_at_most_32_kib() {
        for good in ["t", "a.b-c_d~e+f/g", "abc==", "A0=", &"x".repeat(ACCESS_TOKEN_MAX)] {
            let answer = read(200, &json!({"access_token": good}).to_string()).unwrap();
            assert_eq!(answer.token.access_token.expose_secret(), good);
            assert!(is_access_token(good));
        }
        for bad in [
            "a b",
            "a\nb",
            "a\u{1}b",
            "a\"b",
            "a`b",
            "a$b",
            "a;b",
            "a'b",
            "a\\b",
            "a|b",
            "a:b",
            "a%20b",
            "a=b",
            "=",
            "b\u{fc}ro",
            "a\0",
        ] {
            let refusal = read(200, &json!({"access_token": bad}).to_string()).unwrap_err();
            assert_eq!(refusal.reason, Reason::MalformedResponse, "{bad:?}");
            assert!(refusal.what.contains("characters") && !refusal.what.contains(bad), "{}", refusal.what);
            assert!(!is_access_token(bad));
        }
        let long = json!({"access_token": "x".repeat(ACCESS_TOKEN_MAX + 1)});
        assert_eq!(read(200, &long.to_string()).unwrap_err().what, "the access_token has more than 32768 characters");
    }

    #[test]
    fn a_response_that_is_not_a_token_response_is_malformed() {
        for body in [
            "",
            "<html>",
            "[]",
            "7",
            "{}",
            "null",
            r#"{"access_token":""}"#,
            r#"{"access_token":null}"#,
            r#"{"access_token":7}"#,
            r#"{"access_token":["t"]}"#,
            r#"{"access_token":"t","token_type":"Bearer","expires"#,
            r#"{"access_token":"t","access_token":"u","token_type":"Bearer"}"#,
        ] {
            assert_eq!(read(200, body).unwrap_err().reason, Reason::MalformedResponse, "{body}");
        }
    }

    #[test]
    fn a_fingerprint_is_the_beginning_of_the_hash() {
        // The example of FIPS 180-4.
        let token = read(200, r#"{"access_token":"abc","token_type":"Bearer"}"#).unwrap().token;
        assert_eq!(token.fingerprint().as_str(), "sha256:ba7816bf8f01cfea");
    }

    #[test]
    fn a_refresh_token_is_kept_however_odd_the_response_around_it() {
        let rotated = |body: &str| Rotated::read(&Response::new(body.as_bytes().to_vec()), sent_at());
        let kept = rotated(r#"{"refresh_token":"r1","refresh_expires_in":60}"#).unwrap();
        assert_eq!(kept.refresh_token.expose_secret(), "r1");
        assert_eq!(kept.expires_at, Some(sent_at() + SignedDuration::from_secs(60)));
        for (body, life) in [
            (r#"{"refresh_token":"r1"}"#, None),
            (r#"{"refresh_token":"r1","refresh_expires_in":0}"#, None),
            (r#"{"refresh_token":"r1","refresh_expires_in":"soon"}"#, None),
            (r#"{"refresh_token":"r1","refresh_token_expires_in":"604800.0"}"#, Some(604_800)),
            (r#"{"refresh_token":"r1","refresh_token_expires_in":[],"refresh_expires_in":60}"#, Some(60)),
            (r#"{"access_token":{"odd":[1,2]},"scope":7,"token_type":{},"refresh_token":"r1"}"#, None),
            (r#"{"access_token":"a b","refresh_token":"r1","expires_in":true}"#, None),
            (r#"{"access_token":"a","access_token":"b","refresh_token":"r1"}"#, None),
            (r#"{"refresh_token":"r0","refresh_token":"r1"}"#, None),
            (r#"{"refresh_token":"r1","refresh_token":null}"#, None),
            (r#"{"refresh_token":"r1","access_token":"trunc"#, None),
            (r#"{"refresh_token":"r1"} and more"#, None),
            (r#"[{"refresh_token":"r1"}]"#, None),
            (r#"{"expires_in":1e999,"refresh_token":"r1","refresh_expires_in":1e999}"#, None),
            (r#"{"expires_in":NaN,"refresh_token":"r1","refresh_expires_in":60}"#, Some(60)),
        ] {
            let kept = rotated(body).unwrap_or_else(|| panic!("{body}"));
            assert_eq!(kept.refresh_token.expose_secret(), "r1", "{body}");
            assert_eq!(kept.expires_at.map(|at| at.as_second() - NOW), life, "{body}");
        }
        let long = format!(r#"{{"refresh_token":"{}"}}"#, "x".repeat(REFRESH_TOKEN_MAX + 1));
        for body in [
            r#"{"access_token":"a"}"#,
            r#"{"refresh_token":7}"#,
            r#"{"refresh_token":""}"#,
            r#"{"refresh_token":"a b"}"#,
            r#"{"refresh_token":"trunc"#,
            "",
            "<html>",
            &long,
        ] {
            assert!(rotated(body).is_none(), "{body:.40}");
        }
    }

    #[test]
    fn a_hint_to_renew_that_says_nothing_is_none() {
        let refresh_at = |fields: &str| with(fields).unwrap().token.refresh_at.map(|at| at.as_second() - NOW);
        assert_eq!(refresh_at(r#""expires_in":100,"refresh_in":100"#), None);
        assert_eq!(refresh_at(r#""expires_in":100,"refresh_in":99"#), Some(99));
        assert_eq!(refresh_at(r#""expires_in":100,"refresh_in":"50.0""#), Some(50));
        for odd in ["0", "-1", "\"soon\"", "[]", "null"] {
            assert_eq!(refresh_at(&format!(r#""expires_in":100,"refresh_in":{odd}"#)), None, "{odd}");
        }
    }

    #[test]
    fn a_malformed_response_is_reported() {
        for (body, what) in [
            ("", "the answer is empty"),
            ("{}", "the response has no access_token"),
            (r#"{"access_token":"t","token_type":"mac"}"#, "the token_type is not Bearer"),
            ("<html>", "the response is not a token response"),
        ] {
            assert_eq!(read(200, body).unwrap_err().what, what, "{body}");
        }
        for (encoding, named) in [("br", "(br)"), ("zstd", "(zstd)"), ("s3cr3t", "(an unknown one)")] {
            let response = Response::builder().header("content-encoding", encoding).body(&b"\x1b\x00"[..]).unwrap();
            let what = read_token_response(&response, sent_at(), &[]).unwrap_err().what;
            assert!(what.contains(named) && what.contains("not a token response"), "{what}");
        }
    }

    #[test]
    fn an_error_with_status_200_is_the_error_and_an_empty_one_is_none() {
        for body in [
            r#"{"error":"invalid_grant"}"#,
            r#"{"error":"invalid_grant","access_token":"t"}"#,
            r#"{"errorCode":"invalid_grant"}"#,
        ] {
            assert_eq!(read(200, body).unwrap_err().reason, Reason::InvalidGrant, "{body}");
        }
        for empty in ["null", "\"\"", "false", "0", "[]", "{}"] {
            assert!(with(&format!(r#""error":{empty}"#)).is_ok(), "{empty}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic_and_never_make_an_unusable_token(body: Vec<u8>, status in 100u16..600) {
            let response = Response::builder().status(status).body(body).unwrap();
            if let Ok(answer) = read_token_response(&response, sent_at(), &[]) {
                proptest::prop_assert!(answer.token.expires_at > sent_at());
            }
        }

        #[test]
        fn any_lifetimes_and_dates_end_in_a_time_ahead(expires_in: f64, exp: f64, skew in -4_000_000_000_i64..200_000_000_000) {
            let body = json!({"access_token": jwt(&json!({"exp": exp})), "expires_in": expires_in});
            let theirs = Timestamp::from_second(NOW + skew).unwrap().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            let response = Response::builder().header("date", theirs).body(body.to_string()).unwrap();
            let token = read_token_response(&response, sent_at(), &[]).unwrap().token;
            proptest::prop_assert!(token.expires_at > sent_at());
            proptest::prop_assert!(token.expires_at.duration_since(sent_at()).as_hours() <= 366 * 24);
        }
    }
}
