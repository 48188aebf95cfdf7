//! Settles the expiry of a token whose records disagree. Pure.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::observed::TokenFacts;
use crate::api::status::TokenStatus;

/// Tolerated difference between the expiry in the Secret and in the status. A provider that returns the same token
/// twice counts the remaining lifetime again. The broker may also stop between its writes of the Secret and of the
/// status.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(1);

/// The expiry in the data of a Secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataExpiry {
    /// The value of the key `expires_at`.
    pub date: Option<Timestamp>,
    /// The value of the key `expires_at_unix`.
    pub seconds: Option<Timestamp>,
}

/// Compares the expiry in a Secret's annotations, in `facts`, with the Secret's data. The token expires at the earliest
/// of the times. If the times disagree, the renewal is due immediately. Returns whether the times agree.
pub fn settle_with_data(facts: &mut TokenFacts, data: DataExpiry) -> bool {
    let annotated = facts.expires_at;
    let agree = [data.date, data.seconds].into_iter().flatten().all(|end| end == annotated);
    facts.expires_at = [data.date, data.seconds].into_iter().flatten().fold(annotated, Timestamp::min);
    if !agree {
        renew_at_once(facts);
    }
    agree
}

/// Compares the expiry of a Secret's token, in `facts`, with the status of this token, as [`settle_with_data`] does.
/// Ignores a status with an expiry before the issue time, which another writer has forged. Returns whether the Secret
/// needs no repair.
pub fn settle_with_status(facts: &mut TokenFacts, status: Option<&TokenStatus>) -> bool {
    let about = |status: &&TokenStatus| {
        status.fingerprint == facts.fingerprint.as_str() && status.issued_at.0 < status.expires_at.0
    };
    let Some(status) = status.filter(about) else { return true };
    let (written, end) = (facts.expires_at, status.expires_at.0);
    facts.expires_at = written.min(end);
    if written.duration_since(end).abs() > TOLERANCE {
        renew_at_once(facts);
    }
    // If only the status is wrong, the Secret needs no repair.
    written <= end
}

/// Makes the renewal due immediately. The annotation for a provider's early renewal stores this time, so that it
/// survives a repair and a restart.
fn renew_at_once(facts: &mut TokenFacts) {
    facts.refresh_at = Some(facts.issued_at);
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::fixtures::{at, token};

    fn status(end: i64, fingerprint: &str) -> TokenStatus {
        TokenStatus {
            issued_at: Time(at(0)),
            expires_at: Time(at(end)),
            renewal_time: Time(at(0)),
            scopes: vec![],
            fingerprint: fingerprint.into(),
            length: 40,
        }
    }

    #[test]
    fn a_token_ends_at_the_earliest_time_and_is_renewed_where_the_times_disagree() {
        const YEARS: i64 = 300_000_000;
        // The annotation, the keys expires_at and expires_at_unix, the status; the expiry, whether the Secret is intact,
        // and whether the token is renewed immediately.
        let table = [
            (3600, Some(3600), Some(3600), Some(3600), 3600, true, false),
            (3600, Some(3600), Some(3600), None, 3600, true, false),
            (3600, None, None, Some(3600), 3600, true, false),
            // One record claims a lifetime of years.
            (YEARS, Some(3600), Some(3600), Some(3600), 3600, false, true),
            (3600, Some(YEARS), Some(3600), Some(3600), 3600, false, true),
            (3600, Some(3600), Some(YEARS), Some(3600), 3600, false, true),
            (3600, Some(3600), Some(3600), Some(YEARS), 3600, true, true),
            // All records except one claim a lifetime of years.
            (YEARS, Some(YEARS), Some(YEARS), Some(3600), 3600, false, true),
            (YEARS, Some(YEARS), Some(YEARS), None, YEARS, true, false),
            (YEARS, Some(3600), Some(YEARS), Some(YEARS), 3600, false, true),
            (YEARS, Some(YEARS), Some(3600), Some(YEARS), 3600, false, true),
            (3600, Some(YEARS), Some(YEARS), Some(YEARS), 3600, false, true),
            // One record claims an earlier expiry.
            (60, Some(3600), Some(3600), Some(3600), 60, false, true),
            (3600, Some(3600), Some(60), Some(3600), 60, false, true),
            (3600, Some(3600), Some(3600), Some(60), 60, false, true),
            // The provider returned the same token again.
            (3601, Some(3601), Some(3601), Some(3600), 3600, false, false),
            (3600, Some(3600), Some(3600), Some(3601), 3600, true, false),
        ];
        for (annotated, date, seconds, reported, end, intact, renewed) in table {
            let case = (annotated, date, seconds, reported);
            let mut facts = TokenFacts { expires_at: at(annotated), ..token() };
            let reported = reported.map(|end| status(end, facts.fingerprint.as_str()));
            let data = DataExpiry { date: date.map(at), seconds: seconds.map(at) };
            let as_written = settle_with_data(&mut facts, data) & settle_with_status(&mut facts, reported.as_ref());
            let found = (facts.expires_at, as_written, facts.refresh_at == Some(facts.issued_at));
            assert_eq!(found, (at(end), intact, renewed), "{case:?}");
        }
    }

    #[test]
    fn the_status_of_another_token_says_nothing_and_neither_does_nonsense() {
        let mut facts = token();
        assert!(settle_with_status(&mut facts, Some(&status(60, "sha256:fedcba9876543210"))));
        let nonsense = status(-1, facts.fingerprint.as_str());
        assert!(settle_with_status(&mut facts, Some(&nonsense)));
        assert_eq!(facts, token());
    }
}
