//! The claims of a token. Claims grant nothing: the token is not meant for the broker, and the broker does not check
//! the signature. Claims give warnings, names to show, and an expiry that may be earlier than the response's expiry.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value};

use super::lenient::object;

/// Maximum size of a JWT in bytes. The broker does not read a larger JWT.
const JWT_MAX: usize = 64 * 1024;
/// Maximum length of an address: 64 characters before the `@`, 255 after it (RFC 5321 section 4.5.3.1).
const ADDRESS_MAX: usize = 320;
/// The first second of the year 9000. Sums with later times could overflow.
const EXP_MAX: f64 = 221_845_392_000.0;
/// Claims that may name the account that signed in (OpenID Connect Core section 5.1; Microsoft's `upn`).
const NAMES: [&str; 3] = ["email", "upn", "preferred_username"];

/// The parsed claims of a JWT.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims(Map<String, Value>);

impl Claims {
    /// Parses the claims of `token`. `None`: the token is opaque.
    pub fn read(token: &str) -> Option<Self> {
        if token.len() > JWT_MAX {
            return None;
        }
        let mut parts = token.split('.');
        let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
        let json = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
        object(&json).map(Self)
    }

    /// The values of a claim that is a string or a list of strings (`aud`, `roles`), or strings separated by spaces
    /// (`scp`).
    pub fn words(&self, name: &str) -> Vec<&str> {
        match self.0.get(name) {
            Some(Value::String(text)) => text.split_ascii_whitespace().collect(),
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
            _ => vec![],
        }
    }

    /// The value of a claim that is a string.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// The claim `exp` (RFC 7519 section 4.1.4): the token's expiry by the issuer's clock. `None`: the claim is no time
    /// between 1970 and 8999. Some issuers write the number as a string.
    pub fn exp(&self) -> Option<Timestamp> {
        let seconds = match self.0.get("exp")? {
            Value::Number(number) => number.as_f64()?,
            Value::String(text) => text.trim().parse().ok()?,
            _ => return None,
        };
        (1.0..EXP_MAX).contains(&seconds).then(|| Timestamp::from_second(seconds as i64).ok())?
    }

    /// The names of the account that signed in: addresses and plain user names. Skips names with blanks or control
    /// characters, and an `email` without `@`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let claims = NAMES.iter().filter_map(|claim| Some((*claim, self.text(claim)?)));
        claims.filter(|(claim, name)| is_name(name) && (*claim != "email" || name.contains('@'))).map(|(_, name)| name)
    }
}

/// Whether the broker can show an address next to commands that a user copies: visible ASCII without quotes, backticks,
/// dollars and other characters that a shell interprets.
pub fn is_shown(address: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".@_+-=!#%*/?^{}~".contains(&byte);
    address.len() <= ADDRESS_MAX && address.bytes().all(plain)
}

fn is_name(name: &str) -> bool {
    let plain = |c: char| !c.is_whitespace() && !c.is_control();
    !name.is_empty() && name.len() <= ADDRESS_MAX && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(payload: &str) -> Option<Claims> {
        Claims::read(&format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(payload)))
    }

    #[test]
    fn words_are_a_string_a_list_or_separated_by_spaces() {
        let claims = claims(r#"{"aud": "a", "roles": ["r1", 7, "r2"], "scp": "s1 s2", "exp": 5}"#).unwrap();
        assert_eq!(claims.words("aud"), ["a"]);
        assert_eq!(claims.words("roles"), ["r1", "r2"]);
        assert_eq!(claims.words("scp"), ["s1", "s2"]);
        assert!(claims.words("exp").is_empty() && claims.words("none").is_empty());
    }

    #[test]
    fn names_are_addresses_and_plain_user_names_without_blanks() {
        let names = |payload: &str| claims(payload).unwrap().names().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names(r#"{"email": "a@b.c", "upn": "a", "preferred_username": "x@y.z"}"#), ["a@b.c", "a", "x@y.z"]);
        assert!(names(r#"{"email": "a@b.c\n", "upn": "a b@c", "preferred_username": "a@\u001b[31m"}"#).is_empty());
        assert!(names(r#"{"email": "a", "upn": "", "preferred_username": 7}"#).is_empty());
    }

    #[test]
    fn an_end_beyond_any_number_hides_no_other_claim() {
        let claims = claims(r#"{"exp": 1e999, "sub": "x"}"#).unwrap();
        assert_eq!((claims.exp(), claims.text("sub")), (None, Some("x")));
    }

    #[test]
    fn an_opaque_token_has_none() {
        for token in ["ya29.opaque", "", "a.b.c", &format!("a.{}.c", "x".repeat(70_000))] {
            assert_eq!(Claims::read(token), None, "{token:.20}");
        }
    }

    #[test]
    fn the_longest_token_that_is_parsed_has_64_kib() {
        let is_read = |length: usize| Claims::read(&format!("e30.e30.{}", "s".repeat(length - 8))).is_some();
        assert!(is_read(65_536) && !is_read(65_537));
    }
}
