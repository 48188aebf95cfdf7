//! Looks for secrets where none may be.

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::Namespace;

/// How a secret may look that was written down by mistake: plain, form-encoded, and in the middle of any base64.
fn spellings(secret: &str) -> Vec<String> {
    let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let mut spellings = vec![secret.to_owned(), form];
    for shift in 0..3 {
        let encoded = BASE64_STANDARD.encode([" ".repeat(shift).as_bytes(), secret.as_bytes()].concat());
        // What stands at the ends depends on the neighbours.
        spellings.push(encoded[4..encoded.trim_end_matches('=').len() - 3].to_owned());
    }
    spellings
}

/// In every token that the servers of tests make.
pub const MARK: &str = "-canary-";

/// Fails if a token that is marked stands in a text, plain or in base64.
pub fn assert_unmarked(place: &str, text: &str) {
    let marked = (0..3).map(|shift| {
        let encoded = BASE64_STANDARD.encode([" ".repeat(shift).as_bytes(), MARK.as_bytes(), b"  "].concat());
        encoded[(shift * 4).div_ceil(3)..][..9].to_owned()
    });
    for mark in marked.chain([MARK.to_owned()]) {
        if let Some(line) = text.lines().find(|line| line.contains(&mark)) {
            panic!("a secret is told in {place}: {line}");
        }
    }
}

/// What many may read of a namespace: the objects of ours, their Events, and the metadata of the broker's Secrets.
pub fn shown(ns: &Namespace) -> Vec<(&'static str, String)> {
    let mut places = vec![];
    for kind in ["mailcredentials", "mailproviders", "events"] {
        places.push((kind, ns.kubectl(["get", kind, "-o", "yaml"])));
        places.push((kind, ns.kubectl(["describe", kind])));
    }
    let own = "app.kubernetes.io/managed-by=mail-token-broker";
    let metadata = ns.kubectl(["get", "secrets", "-l", own, "-o", "jsonpath={.items[*].metadata}"]);
    places.push(("the metadata of the broker's Secrets", metadata));
    places
}

/// Fails if one of `secrets`, however it is spelled, stands in one of the `places`.
pub fn assert_untold(places: &[(&str, String)], secrets: &[String]) {
    for secret in secrets {
        for spelling in spellings(secret) {
            assert!(spelling.len() >= 12, "{spelling}");
            for (place, text) in places {
                if let Some(at) = text.find(&spelling) {
                    let around = text.get(at.saturating_sub(300)..(at + 200).min(text.len()));
                    panic!("a secret is told in {place}: {around:?}");
                }
            }
        }
    }
}
