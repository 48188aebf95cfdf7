//! Discovery documents: an accepted endpoint is an https URL in printable ASCII, which HTTP can express.
#![no_main]

use http::{Response, Uri};
use libfuzzer_sys::fuzz_target;
use mailtoken_core::oauth::discovery::{DiscoveryError, read_discovery};

const ISSUER: &str = "https://id.example.org";

fuzz_target!(|data: &[u8]| {
    let response = Response::new(data);
    match read_discovery(&response, ISSUER) {
        Ok(found) => {
            let optional = [found.device_authorization_url, found.revocation_url, found.authorization_url];
            for url in optional.into_iter().flatten().chain([found.token_url]) {
                assert!(url.bytes().all(|byte| byte.is_ascii_graphic()), "{url:?}");
                let uri: Uri = url.parse().expect("a URI");
                assert_eq!(uri.scheme_str(), Some("https"));
                let user = uri.authority().expect("a host").as_str().rsplit_once('@').map_or("", |(user, _)| user);
                assert!(user.trim_matches(':').is_empty(), "{url:?}");
            }
        }
        Err(DiscoveryError::IssuerMismatch(reported)) => {
            assert!(reported.len() <= 256 && reported.bytes().all(|byte| byte.is_ascii_graphic()));
        }
        Err(_) => {}
    }
});
