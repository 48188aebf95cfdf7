//! What the response to the exchange of a refresh token means, and what of it is written into the grant Secret.

use k8s_openapi::jiff::Timestamp;

use super::{grant::Claim, hash::RefreshTokenHash};
use crate::{
    api::Reason,
    oauth::{Refusal, token::TokenFingerprint},
};

/// Whether a refusal leaves open whether the provider has exchanged the refresh token: a response that is not in the words of
/// the protocol may come from a gateway whose server has done its work. Then the same refresh token is sent again.
pub fn leaves_open(refusal: &Refusal) -> bool {
    let status = refusal.http_status.unwrap_or_default();
    let is_silent = !refusal.is_of_the_server() && refusal.retry_after.is_none() && refusal.reason != Reason::Throttled;
    is_silent && !(300..500).contains(&status)
}

/// A response to an exchange that is to be written.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// The claim under which the exchange was made.
    pub claim: &'a Claim,
    /// Hash of the refresh token that was exchanged.
    pub spent: &'a RefreshTokenHash,
    /// Hash of the refresh token that replaces it; `None` where the provider keeps the old one valid.
    pub rotated: Option<&'a RefreshTokenHash>,
}

/// What the grant Secret holds after another writer has changed it.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The claim in it.
    pub claim: Option<&'a Claim>,
    /// Hash of its refresh token.
    pub token: Option<&'a RefreshTokenHash>,
}

/// How a response is written although the grant Secret was changed after the claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The Secret was deleted: it is created again with the response, which is stored nowhere.
    Recreate,
    /// The Secret holds the response already: the write had succeeded, and its response was lost.
    Written,
    /// Another exchange has replaced the token that this one exchanged: its result is newer, and is left there.
    Superseded,
    /// The response is written over what the Secret holds.
    Write {
        /// The claim in the Secret is this one, and is removed with the write. A later claim stays.
        removes_claim: bool,
    },
}

/// Resolves a conflict after a claim. While the claim is still there, this response is the newest. Where another claim has
/// followed it, the response is written only over the very token that it replaces.
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

/// Whether another replica has written a newer access token into the target than the one that is about to be written. Each
/// token is given by the time when it was issued, and its fingerprint.
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
            // The claim stands: another writer changed a label, or emptied the Secret.
            (Some((Some(&own), Some("spent"))), Some("new"), newest),
            (Some((Some(&own), None)), Some("new"), newest),
            (Some((Some(&own), Some("another"))), Some("new"), newest),
            (Some((Some(&own), Some("spent"))), None, newest),
            // The write before had succeeded.
            (Some((None, Some("new"))), Some("new"), Resolution::Written),
            (Some((Some(&other), Some("new"))), Some("new"), Resolution::Written),
            // Another replica has claimed the token since, and has not replaced it yet.
            (Some((Some(&other), Some("spent"))), Some("new"), over_the_spent),
            (Some((None, Some("spent"))), Some("new"), over_the_spent),
            // Another replica has replaced it.
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
        // A 2xx answer that cannot be read, and no answer at all.
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
