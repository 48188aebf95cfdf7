//! The mark in each token that the tests' servers issue. It makes a leaked token visible in a log or file.

use base64::{Engine as _, prelude::BASE64_STANDARD};

/// The text in every token that the tests' servers issue.
pub const MARK: &str = "-canary-";

/// Fails if the text contains a marked token, plain or in base64.
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
