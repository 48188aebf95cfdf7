//! The mark in each token that the servers of the tests issue: it shows in a log or a file that holds such a token.

use base64::{Engine as _, prelude::BASE64_STANDARD};

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
            panic!("a secret appears in {place}: {line}");
        }
    }
}
