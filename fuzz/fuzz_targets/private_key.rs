//! Private keys and certificates in PEM: an accepted key signs.
#![no_main]

use k8s_openapi::jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use mailtoken_core::{
    api::authentication::SigningAlgorithm,
    oauth::assertion::{AssertionParams, SigningKey},
};
use secrecy::ExposeSecret as _;

const ALGORITHMS: [SigningAlgorithm; 4] =
    [SigningAlgorithm::PS256, SigningAlgorithm::RS256, SigningAlgorithm::ES256, SigningAlgorithm::EdDSA];

fuzz_target!(|data: &[u8]| {
    // The first byte: 0 to 3 select the algorithm; 4 to 7 select it in the same way, with a certificate in the same
    // file.
    let Some((digit, pem)) = data.split_first() else { return };
    let certificate = (digit & 4 != 0).then_some(pem);
    let algorithm = ALGORITHMS[usize::from(digit & 3)];
    let Ok(key) = SigningKey::read(pem, certificate, algorithm, Some("kid".to_owned())) else { return };
    let now = Timestamp::from_second(1_800_000_000).expect("a time");
    let token_url = "https://id.example.org/token";
    let params = AssertionParams { audience: "https://id.example.org", token_url, now, unique: "1" };
    let jwt = key.client_assertion("client", params).expect("it signs");
    assert_eq!(jwt.expose_secret().split('.').count(), 3);
});
