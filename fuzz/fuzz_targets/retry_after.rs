//! `Retry-After` and `Date`: the next attempt is in the future, and at most an hour after a transient failure.
#![no_main]

use http::{HeaderValue, Response};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use libfuzzer_sys::fuzz_target;
use mailtoken_core::{oauth::refusal::read_refusal, policy::schedule::next_attempt};

fuzz_target!(|data: &[u8]| {
    let (attempts, text) = data.split_at(data.len().min(4));
    let attempts = attempts.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte)).max(1);
    let mut values = text.splitn(2, |byte| *byte == b'\n').map(HeaderValue::from_bytes);
    let mut response = Response::builder().status(429).body(vec![]).expect("a response");
    for name in ["retry-after", "date"] {
        if let Some(Ok(value)) = values.next() {
            response.headers_mut().insert(name, value);
        }
    }
    let now = Timestamp::from_second(1_800_000_000).expect("a time");
    let refusal = read_refusal(&response, now);
    let at = next_attempt(refusal.reason, attempts, now, refusal.retry_after);
    let wait = at.duration_since(now);
    assert!(SignedDuration::from_secs(5) <= wait && wait <= SignedDuration::from_hours(1), "{wait}");
});
