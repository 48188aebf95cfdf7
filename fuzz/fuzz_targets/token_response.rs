//! Token responses: an accepted token is valid, and has an expiry that can be formatted.
#![no_main]

use http::Response;
use k8s_openapi::jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use mailtoken_core::oauth::{device::read_device_authorization, read_token_response, token::Rotated};
use secrecy::ExposeSecret as _;

fuzz_target!(|data: &[u8]| {
    let Some((status, body)) = data.split_first() else { return };
    let status = if *status < 128 { 200 } else { 400 };
    let response = Response::builder().status(status).body(body).expect("a response");
    let sent_at = Timestamp::from_second(1_800_000_000).expect("a time");
    let _ = Rotated::read(&response, sent_at);
    let _ = read_device_authorization(&response, sent_at);
    match read_token_response(&response, sent_at, &["mail".to_owned()]) {
        Ok(answer) => {
            let token = answer.token.access_token.expose_secret();
            assert!(!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
            assert!(answer.token.token_type.eq_ignore_ascii_case("bearer"));
            assert!(answer.token.expires_at > sent_at);
            assert!(answer.token.refresh_at.is_none_or(|at| sent_at < at && at < answer.token.expires_at));
        }
        Err(refusal) => assert!(!refusal.what.is_empty()),
    }
});
