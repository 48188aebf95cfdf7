//! What a token says of itself. It is not for us and its signature is not checked, so nothing is decided by it: it gives
//! warnings, and names to show.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

/// A JWT beyond this is not looked into.
const JWT_MAX: usize = 64 * 1024;
/// Claims that may hold the address of who signed in (OpenID Connect Core section 5.1; Microsoft's `upn`).
const NAMES: [&str; 3] = ["email", "upn", "preferred_username"];

/// The claims of a JWT.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims(Map<String, Value>);

impl Claims {
    /// The claims of `token`; `None` for an opaque one.
    pub fn read(token: &str) -> Option<Self> {
        if token.len() > JWT_MAX {
            return None;
        }
        let mut parts = token.split('.');
        let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
        let json = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
        serde_json::from_slice(&json).ok().map(Self)
    }

    /// A claim that is one string or a list of them (`aud`, `roles`), or strings separated by spaces (`scp`).
    pub fn words(&self, name: &str) -> Vec<&str> {
        match self.0.get(name) {
            Some(Value::String(text)) => text.split_ascii_whitespace().collect(),
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
            _ => vec![],
        }
    }

    /// A claim that is a string.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// The addresses of who signed in. A name without `@` says nothing.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        NAMES.iter().filter_map(|name| self.text(name)).filter(|name| name.contains('@'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(payload: &str) -> Option<Claims> {
        Claims::read(&format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(payload)))
    }

    #[test]
    fn words_come_as_a_string_a_list_or_separated_by_spaces() {
        let claims = claims(r#"{"aud": "a", "roles": ["r1", 7, "r2"], "scp": "s1 s2", "exp": 5}"#).unwrap();
        assert_eq!(claims.words("aud"), ["a"]);
        assert_eq!(claims.words("roles"), ["r1", "r2"]);
        assert_eq!(claims.words("scp"), ["s1", "s2"]);
        assert!(claims.words("exp").is_empty() && claims.words("none").is_empty());
    }

    #[test]
    fn a_name_that_is_no_address_says_nothing() {
        let claims = claims(r#"{"email": "a@b.c", "upn": "a", "preferred_username": "x@y.z"}"#).unwrap();
        assert_eq!(claims.addresses().collect::<Vec<_>>(), ["a@b.c", "x@y.z"]);
    }

    #[test]
    fn an_opaque_token_has_none() {
        for token in ["ya29.opaque", "", "a.b.c", &format!("a.{}.c", "x".repeat(70_000))] {
            assert_eq!(Claims::read(token), None, "{token:.20}");
        }
    }
}
