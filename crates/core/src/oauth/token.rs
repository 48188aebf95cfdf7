//! Reads token responses (RFC 6749 section 5.1) leniently: the broker does not discard a good token because of other
//! flaws of the response.

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
/// Maximum size of a refresh token in bytes. The grant Secret must be able to hold two refresh tokens.
const REFRESH_TOKEN_MAX: usize = 128 * 1024;
/// Maximum number of scopes to keep from a response. `spec.scopes` has the same maximum.
pub const SCOPES_MAX: usize = 64;
/// Maximum length of a scope in bytes. A scope in `spec.scopes` has the same maximum.
pub const SCOPE_MAX: usize = 512;

/// An access token and its properties.
#[derive(Clone, Debug)]
pub struct Token {
    /// The access token itself.
    pub access_token: SecretString,
    /// The token type `Bearer`, in the provider's spelling.
    pub token_type: String,
    /// The time at which the broker sent the token request.
    pub issued_at: Timestamp,
    /// The time at which the token expires.
    pub expires_at: Timestamp,
    /// The time at which the provider recommends a renewal, if it recommends one.
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

    /// The fingerprint as text, as annotations and the status hold it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for TokenFingerprint {
    /// Takes the text from an annotation or from the status.
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
    /// The properties that the response did not state in a usable form. The broker assumed them, and emits a Warning
    /// for each.
    pub assumed: Vec<Assumption>,
    /// The names of the account that signed in, if the response has an ID token with names: addresses, and plain user
    /// names without `@`.
    pub names: Vec<String>,
}

/// A property that the broker assumed, because the response did not state it in a usable form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assumption {
    /// The broker assumed the lifetime.
    Lifetime {
        /// The flaw, as the end of a sentence about the response.
        flaw: &'static str,
        /// The source of the assumed lifetime.
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
    /// The time at which the refresh token expires, if the response reports it.
    pub expires_at: Option<Timestamp>,
}

impl Rotated {
    /// Reads the refresh token in the response to a request that the broker sent at `sent_at`. Accepts JSON that is
    /// truncated after the token, or that has a member twice. `None`: the response has no usable refresh token.
    pub fn read(response: &Response<impl AsRef<[u8]>>, sent_at: Timestamp) -> Option<Self> {
        #[derive(Default)]
        struct Found {
            refresh_token: Option<SecretString>,
            /// The lifetime in seconds by Google's name.
            refresh_token_expires_in: Number,
            /// The lifetime in seconds by Keycloak's name; 0 means no expiry.
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

/// Reads the response to a token request that the broker sent at `sent_at`. `asked`: the requested scopes.
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
    // Converts `exp` to the broker's clock, which may differ from the provider's.
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

/// Returns `Bearer` in the provider's spelling. `None`: the response has no type. Apigee writes `BearerToken`.
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
        // The claim `exp` is in the past, although the provider has just issued the token.
        (Ok(Some(_)), None) if exp.is_some_and(|exp| exp <= sent_at) => {
            Some("holds a token whose own exp is in the past: a clock is wrong")
        }
        (Ok(_), _) => None,
    };
    assumed.extend(flaw.map(|flaw| Assumption::Lifetime { flaw, taken }));
    own.into_iter().chain(ends).min().unwrap_or(sent_at + DEFAULT_LIFETIME)
}

/// A lifetime in whole seconds. `None`: the response has no lifetime.
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

/// This type has no `Debug`, because it contains the token. Some servers respond with the status 200 and an `error`, so
/// the broker also reads `error`.
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
mod tests;
