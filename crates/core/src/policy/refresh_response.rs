//! The exchange of a refresh token: what the provider's response means, and what the broker writes into the grant
//! Secret.

use k8s_openapi::jiff::Timestamp;

use super::{grant::Claim, hash::RefreshTokenHash};
use crate::{
    api::Reason,
    oauth::{Refusal, token::TokenFingerprint},
};

/// Whether the provider may have exchanged the refresh token although it sent no valid error. The response may come
/// from a gateway whose server has completed the exchange. The broker then sends the same token again.
pub fn leaves_open(refusal: &Refusal) -> bool {
    let status = refusal.http_status.unwrap_or_default();
    let is_silent = !refusal.is_of_the_server() && refusal.retry_after.is_none() && refusal.reason != Reason::Throttled;
    is_silent && !(300..500).contains(&status)
}

/// The response to an exchange, which the broker must write.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// The claim that the broker wrote before the exchange.
    pub claim: &'a Claim,
    /// Hash of the refresh token that the broker exchanged.
    pub spent: &'a RefreshTokenHash,
    /// Hash of the refresh token that replaces the exchanged token. `None`: the provider keeps the exchanged token
    /// valid.
    pub rotated: Option<&'a RefreshTokenHash>,
}

/// The content of the grant Secret after another writer has changed the Secret.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The claim in the Secret.
    pub claim: Option<&'a Claim>,
    /// Hash of the refresh token in the Secret.
    pub token: Option<&'a RefreshTokenHash>,
}

/// How the broker writes a response although the grant Secret was changed after the claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The Secret was deleted. The broker creates the Secret again with the response, which is stored nowhere.
    Recreate,
    /// The Secret already holds the response: an earlier write succeeded, but the API server's response to it was lost.
    Written,
    /// Another exchange has already replaced the exchanged token. The broker keeps the newer result in the Secret.
    Superseded,
    /// The broker writes the response over the Secret's content.
    Write {
        /// Whether the claim in the Secret belongs to this response. Then the write removes the claim. A later claim
        /// stays.
        removes_claim: bool,
    },
}

/// Resolves a conflict after a claim. While the Secret still has the response's claim, the response is the newest.
/// After a later claim, the broker writes the response only over the refresh token that the response replaces.
pub fn resolve_conflict(found: Option<Found<'_>>, response: Response<'_>) -> Resolution {
    let Some(found) = found else { return Resolution::Recreate };
    if response.rotated.is_some() && found.token == response.rotated {
        return Resolution::Written;
    }
    let is_newest = found.claim == Some(response.claim);
    if !is_newest && found.token != Some(response.spent) {
        return Resolution::Superseded;
    }
    Resolution::Write { removes_claim: is_newest }
}

/// Whether another replica has written a newer access token (`stored`) into the target than the token that this replica
/// is about to write (`ours`). Each pair has the token's issue time and its fingerprint.
pub fn is_overtaken(stored: (Timestamp, &TokenFingerprint), ours: (Timestamp, &TokenFingerprint)) -> bool {
    stored.0 > ours.0 && stored.1 != ours.1
}

#[cfg(test)]
mod tests {
    use http::header::RETRY_AFTER;

    use super::*;
    use crate::{fixtures::at, oauth::refusal::read_refusal};

    fn claim(holder: &str) -> Claim {
        Claim { holder: holder.to_owned(), since: at(0), until: at(25), token: "spent".into() }
    }

    #[test]
    fn a_response_takes_the_place_of_the_token_that_it_replaces_and_of_no_other() {
        let (own, other) = (claim("a"), claim("b"));
        let resolve = |found: Option<(Option<&Claim>, Option<&str>)>, rotated: Option<&str>| {
            let hash = |text: Option<&str>| text.map(RefreshTokenHash::from);
            let (token, rotated) = (hash(found.and_then(|(_, token)| token)), hash(rotated));
            let found = found.map(|(claim, _)| Found { claim, token: token.as_ref() });
            resolve_conflict(found, Response { claim: &own, spent: &"spent".into(), rotated: rotated.as_ref() })
        };
        let newest = Resolution::Write { removes_claim: true };
        let over_the_spent = Resolution::Write { removes_claim: false };
        for (found, rotated, expected) in [
            (None, Some("new"), Resolution::Recreate),
            (None, None, Resolution::Recreate),
            // The claim is unchanged: another writer changed a label, or emptied the Secret.
            (Some((Some(&own), Some("spent"))), Some("new"), newest),
            (Some((Some(&own), None)), Some("new"), newest),
            (Some((Some(&own), Some("another"))), Some("new"), newest),
            (Some((Some(&own), Some("spent"))), None, newest),
            // An earlier write of the response succeeded.
            (Some((None, Some("new"))), Some("new"), Resolution::Written),
            (Some((Some(&other), Some("new"))), Some("new"), Resolution::Written),
            // Another replica has claimed the token since, but has not replaced it yet.
            (Some((Some(&other), Some("spent"))), Some("new"), over_the_spent),
            (Some((None, Some("spent"))), Some("new"), over_the_spent),
            // Another replica has replaced the token.
            (Some((Some(&other), Some("newer"))), Some("new"), Resolution::Superseded),
            (Some((None, Some("newer"))), Some("new"), Resolution::Superseded),
            (Some((None, None)), Some("new"), Resolution::Superseded),
            (Some((None, Some("newer"))), None, Resolution::Superseded),
        ] {
            assert_eq!(resolve(found, rotated), expected, "{found:?} {rotated:?}");
        }
    }

    #[test]
    fn only_an_unanswered_request_leaves_the_refresh_token_unknown() {
        let open = |status: u16, body: &str, retry_after: bool| {
            let mut response = http::Response::builder().status(status);
            if retry_after {
                response = response.header(RETRY_AFTER, "5");
            }
            leaves_open(&read_refusal(&response.body(body.as_bytes().to_vec()).unwrap(), Timestamp::UNIX_EPOCH))
        };
        let error = |code: &str| format!(r#"{{"error": "{code}"}}"#);
        for status in [500, 502, 503, 504] {
            assert!(open(status, "<html>", false), "{status}");
            assert!(!open(status, "<html>", true), "{status}: it asks for a later request");
            assert!(!open(status, &error("invalid_grant"), false), "{status}: the server itself refused");
            assert!(open(status, &error("oops"), false), "{status}: a web framework's word");
        }
        for status in [302, 400, 401, 404, 429] {
            assert!(!open(status, "<html>", false), "{status}");
        }
        // Refusals without an HTTP status.
        assert!(leaves_open(&Refusal::new(Reason::MalformedResponse, "")));
        assert!(!leaves_open(&Refusal::new(Reason::Throttled, "")));
    }

    #[test]
    fn a_token_is_overtaken_by_a_later_one_alone() {
        let (a, b) = (TokenFingerprint::of("a"), TokenFingerprint::of("b"));
        for (stored, ours, expected) in [
            ((at(10), &b), (at(0), &a), true),
            ((at(10), &a), (at(0), &a), false),
            ((at(0), &b), (at(0), &a), false),
            ((at(0), &b), (at(10), &a), false),
        ] {
            assert_eq!(is_overtaken(stored, ours), expected, "{stored:?} {ours:?}");
        }
    }
}
