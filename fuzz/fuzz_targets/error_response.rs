//! Error responses: the shown parts have a fixed form, regardless of the content.
#![no_main]

use http::Response;
use k8s_openapi::jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use mailtoken_core::oauth::refusal::read_refusal;

const STATUS: [u16; 8] = [200, 302, 400, 401, 404, 429, 500, 503];

fuzz_target!(|data: &[u8]| {
    let Some((status, body)) = data.split_first() else { return };
    let status = STATUS[usize::from(*status) % STATUS.len()];
    let response = Response::builder().status(status).body(body).expect("a response");
    let refusal = read_refusal(&response, Timestamp::from_second(1_800_000_000).expect("a time"));
    let plain = |text: &str| text.len() <= 512 && text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    assert!(plain(&refusal.what), "{:?}", refusal.what);
    let codes = [refusal.error.as_ref().map(|error| error.as_str()), refusal.provider_code.as_deref(), refusal.correlation_id.as_deref()];
    for code in codes.into_iter().flatten() {
        assert!(plain(code) && code.len() <= 128 && !code.contains(' '), "{code:?}");
    }
});
