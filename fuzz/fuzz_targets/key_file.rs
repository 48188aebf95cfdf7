//! Google's key files (JSON), client secrets and the claims of JWTs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mailtoken_core::oauth::{Claims, assertion::ServiceAccountKey, client_auth::read_secret};
use secrecy::ExposeSecret as _;

fuzz_target!(|data: &[u8]| {
    if let Ok(key) = ServiceAccountKey::read(data) {
        assert!(format!("{key:?}").len() < 1024 + 2 * data.len());
    }
    if let Ok(secret) = read_secret(data, true) {
        let secret = secret.expose_secret();
        assert!(!secret.is_empty() && secret.trim() == secret && !secret.contains(char::is_control));
    }
    if let Some(claims) = std::str::from_utf8(data).ok().and_then(Claims::read) {
        let _ = claims.words("aud");
        assert!(claims.names().all(|name| !name.is_empty() && !name.contains(char::is_whitespace)));
    }
});
