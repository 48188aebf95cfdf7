//! Token responses (RFC 6749 section 5.1).

use http::Response;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{
    claims::Claims,
    refusal::{Malformed, Refusal, read_refusal},
};
use crate::api::names;

/// Lifetime where the answer names none (contract: with a Warning).
pub const DEFAULT_LIFETIME: SignedDuration = SignedDuration::from_hours(1);
/// Lifetimes beyond this are no sensible numbers: a year.
const MAX_LIFETIME_SECONDS: u64 = 366 * 24 * 3600;

/// An access token and what is known about it.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token itself.
    pub access_token: SecretString,
    /// Always `Bearer`, in the provider's spelling.
    pub token_type: String,
    /// When the request for it was sent.
    pub issued_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When the provider would like it to be refreshed.
    pub refresh_at: Option<Timestamp>,
    /// The scopes granted.
    pub scopes: Vec<String>,
}

impl Token {
    /// `sha256:` and the first 16 hex digits of the token's SHA-256.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.access_token.expose_secret())
    }
}

/// `sha256:` and the first 16 hex digits of the SHA-256 of `access_token`.
pub fn fingerprint(access_token: &str) -> String {
    format!("sha256:{}", names::hex16(&Sha256::digest(access_token.as_bytes())))
}

/// A token response that was understood.
#[derive(Clone, Debug)]
pub struct TokenAnswer {
    /// The token.
    pub token: Token,
    /// The answer named no lifetime, so [`DEFAULT_LIFETIME`] was taken.
    pub lifetime_unknown: bool,
    /// Who signed in, where the answer has an ID token that says so.
    pub addresses: Vec<String>,
}

/// A refresh token that came with an answer. It is read, and kept, whatever else the answer is worth: a provider that
/// has replaced a refresh token does not do so twice.
#[derive(Clone, Debug)]
pub struct Rotated {
    /// The refresh token.
    pub refresh_token: SecretString,
    /// When it ends, where the answer says so.
    pub expires_at: Option<Timestamp>,
}

impl Rotated {
    /// The refresh token in the answer to a request that was sent at `sent_at`, if there is one that can be used.
    pub fn read(response: &Response<impl AsRef<[u8]>>, sent_at: Timestamp) -> Option<Self> {
        #[derive(Deserialize)]
        struct Wire {
            refresh_token: Option<SecretString>,
            /// Google's name for it.
            refresh_token_expires_in: Option<Seconds>,
            /// Keycloak's; 0 is no end.
            refresh_expires_in: Option<Seconds>,
        }
        let wire: Wire = serde_json::from_slice(response.body().as_ref()).ok()?;
        let refresh_token = wire.refresh_token.filter(|token| check_text(token.expose_secret()).is_ok())?;
        let life = wire.refresh_token_expires_in.or(wire.refresh_expires_in).and_then(|seconds| seconds.read().ok());
        Some(Self { refresh_token, expires_at: life.map(|life| sent_at + life) })
    }
}

/// Reads the answer to a token request that was sent at `sent_at` for `asked` scopes.
///
/// # Errors
/// The provider's refusal, or that the answer is no token response.
pub fn read_token_response(
    response: &Response<impl AsRef<[u8]>>,
    sent_at: Timestamp,
    asked: &[String],
) -> Result<TokenAnswer, Refusal> {
    if !response.status().is_success() {
        return Err(read_refusal(response, sent_at));
    }
    let malformed = |what| Refusal::malformed(response.status(), what);
    let body = response.body().as_ref();
    if body.is_empty() {
        return Err(malformed(Malformed::Empty));
    }
    let Ok(wire) = serde_json::from_slice::<Wire>(body) else {
        // A duplicate key, a wrong type or an `error` in a 200: what the provider means is asked first.
        let refusal = read_refusal(response, sent_at);
        return Err(if refusal.error.is_some() { refusal } else { malformed(Malformed::NotATokenResponse) });
    };
    if wire.error.is_some() {
        return Err(read_refusal(response, sent_at));
    }
    let access_token = wire.access_token.ok_or_else(|| malformed(Malformed::NoAccessToken))?;
    check_text(access_token.expose_secret()).map_err(malformed)?;
    let token_type = wire.token_type.ok_or_else(|| malformed(Malformed::TokenType))?;
    if !token_type.eq_ignore_ascii_case("bearer") {
        return Err(malformed(Malformed::TokenType));
    }
    let lifetime = wire.expires_in.map(Seconds::read).transpose().map_err(malformed)?;
    let refresh_in = wire.refresh_in.map(Seconds::read).transpose().unwrap_or_default();
    let expires_at = sent_at + lifetime.unwrap_or(DEFAULT_LIFETIME);
    let scopes = match wire.scope {
        Some(scope) => scope.split_ascii_whitespace().map(str::to_owned).collect(),
        None => asked.to_vec(),
    };
    let token = Token {
        access_token,
        token_type,
        issued_at: sent_at,
        expires_at,
        refresh_at: refresh_in.map(|seconds| sent_at + seconds).filter(|at| *at < expires_at),
        scopes,
    };
    let identity = wire.id_token.and_then(|token| Claims::read(token.expose_secret()));
    let addresses = identity.iter().flat_map(Claims::addresses).map(str::to_owned).collect();
    Ok(TokenAnswer { token, lifetime_unknown: lifetime.is_none(), addresses })
}

/// RFC 6749 appendix A.12 allows VSCHAR; anything else could end a header or a SASL string early.
fn check_text(access_token: &str) -> Result<(), Malformed> {
    match access_token.bytes().all(|byte| (0x21..=0x7e).contains(&byte)) {
        true if access_token.is_empty() => Err(Malformed::NoAccessToken),
        true => Ok(()),
        false => Err(Malformed::ControlCharacter),
    }
}

/// No `Debug`: it holds the token. `error` is read too, since some servers answer 200 with it.
#[derive(Deserialize)]
struct Wire {
    access_token: Option<SecretString>,
    token_type: Option<String>,
    expires_in: Option<Seconds>,
    refresh_in: Option<Seconds>,
    scope: Option<String>,
    id_token: Option<SecretString>,
    error: Option<serde::de::IgnoredAny>,
}

/// A number of seconds; some servers send it as a string of digits.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Seconds {
    Number(serde_json::Number),
    Text(String),
}

impl Seconds {
    pub(super) fn read(self) -> Result<SignedDuration, Malformed> {
        let seconds = match self {
            Self::Number(number) => number.as_u64(),
            Self::Text(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            Self::Text(_) => None,
        };
        match seconds {
            Some(seconds @ 1..=MAX_LIFETIME_SECONDS) => Ok(SignedDuration::from_secs(seconds.cast_signed())),
            _ => Err(Malformed::ExpiresIn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Reason;

    fn sent_at() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    fn read(status: u16, body: &str) -> Result<TokenAnswer, Refusal> {
        let response = Response::builder().status(status).body(body.as_bytes().to_vec()).unwrap();
        read_token_response(&response, sent_at(), &["asked".to_owned()])
    }

    #[test]
    fn a_plain_answer_is_read_and_counted_from_when_it_was_asked_for() {
        let answer =
            read(200, r#"{"access_token":"t0k","token_type":"bearer","expires_in":3599,"refresh_in":1800}"#).unwrap();
        assert_eq!(answer.token.expires_at.as_second(), 1_003_599);
        assert_eq!(answer.token.refresh_at.unwrap().as_second(), 1_001_800);
        assert_eq!(answer.token.scopes, ["asked"]);
        assert!(!answer.lifetime_unknown);
        assert!(!format!("{answer:?}").contains("t0k"));
    }

    #[test]
    fn the_scopes_granted_win_over_those_asked_for() {
        let answer = read(200, r#"{"access_token":"t","token_type":"Bearer","expires_in":60,"scope":"a b"}"#).unwrap();
        assert_eq!(answer.token.scopes, ["a", "b"]);
    }

    #[test]
    fn digits_in_a_string_are_a_lifetime_and_none_is_an_hour() {
        let text = read(200, r#"{"access_token":"t","token_type":"Bearer","expires_in":"90"}"#).unwrap();
        assert_eq!(text.token.expires_at.as_second(), 1_000_090);
        let none = read(200, r#"{"access_token":"t","token_type":"Bearer"}"#).unwrap();
        assert_eq!(none.token.expires_at.as_second(), 1_003_600);
        assert!(none.lifetime_unknown);
    }

    #[test]
    fn odd_lifetimes_are_refused() {
        for odd in ["0", "-1", "1e12", "1000000000000", "1.5", "\"1h\"", "\"\"", "\"-5\"", "true", "[]", "{}"] {
            let refusal =
                read(200, &format!(r#"{{"access_token":"t","token_type":"Bearer","expires_in":{odd}}}"#)).unwrap_err();
            assert_eq!(refusal.reason, Reason::MalformedResponse, "{odd}");
        }
    }

    #[test]
    fn what_is_no_token_response_is_malformed() {
        for body in [
            "",
            "<html>",
            "[]",
            "{}",
            "null",
            r#"{"access_token":"t"}"#,
            r#"{"access_token":"","token_type":"Bearer"}"#,
            r#"{"access_token":"t","token_type":"mac"}"#,
            r#"{"access_token":"a\nb","token_type":"Bearer"}"#,
            r#"{"access_token":"a\u0001b","token_type":"Bearer"}"#,
            r#"{"access_token":"a b","token_type":"Bearer"}"#,
            r#"{"access_token":"t","token_type":"Bearer","expires"#,
            r#"{"access_token":"t","access_token":"u","token_type":"Bearer"}"#,
        ] {
            assert_eq!(read(200, body).unwrap_err().reason, Reason::MalformedResponse, "{body}");
        }
    }

    #[test]
    fn a_fingerprint_is_the_beginning_of_the_hash() {
        // FIPS 180-4's example.
        let token = read(200, r#"{"access_token":"abc","token_type":"Bearer"}"#).unwrap().token;
        assert_eq!(token.fingerprint(), "sha256:ba7816bf8f01cfea");
    }

    #[test]
    fn a_refresh_token_that_came_is_read_with_its_end() {
        let rotated = |body: &str| Rotated::read(&Response::new(body.as_bytes().to_vec()), sent_at());
        let kept = rotated(r#"{"refresh_token":"r1","refresh_expires_in":60}"#).unwrap();
        assert_eq!(kept.refresh_token.expose_secret(), "r1");
        assert_eq!(kept.expires_at, Some(sent_at() + SignedDuration::from_secs(60)));
        assert!(rotated(r#"{"access_token":"a"}"#).is_none());
    }

    #[test]
    fn a_hint_to_renew_at_the_end_is_none_and_a_sign_makes_no_number() {
        let of = |fields: &str| read(200, &format!(r#"{{"access_token":"t","token_type":"Bearer",{fields}}}"#));
        assert_eq!(of(r#""expires_in":100,"refresh_in":100"#).unwrap().token.refresh_at, None);
        assert!(of(r#""expires_in":100,"refresh_in":99"#).unwrap().token.refresh_at.is_some());
        assert!(of(r#""expires_in":"+5""#).is_err());
    }

    #[test]
    fn what_is_malformed_is_told() {
        for (body, what) in [
            ("", "the answer is empty"),
            ("{}", "the answer holds no access_token"),
            (r#"{"access_token":"t","token_type":"mac"}"#, "the token_type is not Bearer"),
        ] {
            assert_eq!(read(200, body).unwrap_err().what, what, "{body}");
        }
    }

    #[test]
    fn an_error_with_status_200_is_the_error() {
        let refusal = read(200, r#"{"error":"invalid_grant"}"#).unwrap_err();
        assert_eq!(refusal.reason, Reason::InvalidGrant);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic_and_never_make_an_unusable_token(body: Vec<u8>, status in 100u16..600) {
            let response = Response::builder().status(status).body(body).unwrap();
            if let Ok(answer) = read_token_response(&response, sent_at(), &[]) {
                proptest::prop_assert!(answer.token.expires_at > sent_at());
            }
        }
    }
}
