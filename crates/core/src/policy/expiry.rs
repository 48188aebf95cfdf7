//! When a token ends, if what is written about its end disagrees. Pure.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::observed::TokenFacts;
use crate::api::status::TokenStatus;

/// The Secret and the status may differ by this much without anybody having changed them: a provider that hands out the
/// same token twice counts its rest anew, and the broker may stop between the write of the Secret and that of the status.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(1);

/// What the data of a Secret says about the end of its token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataExpiry {
    /// The key `expires_at`.
    pub date: Option<Timestamp>,
    /// The key `expires_at_unix`.
    pub seconds: Option<Timestamp>,
}

/// Compares the annotations of a Secret, in `facts`, with its data: the token ends at the earliest of the times, and is
/// renewed at once where they disagree. Returns whether they agree.
pub fn settle_with_data(facts: &mut TokenFacts, data: DataExpiry) -> bool {
    let annotated = facts.expires_at;
    let agree = [data.date, data.seconds].into_iter().flatten().all(|end| end == annotated);
    facts.expires_at = [data.date, data.seconds].into_iter().flatten().fold(annotated, Timestamp::min);
    if !agree {
        renew_at_once(facts);
    }
    agree
}

/// Compares what a Secret says, in `facts`, with what the status says about the same token, in the same way. A status by
/// which the token ended before it was issued is nonsense that another writer made up, and says nothing.
pub fn settle_with_status(facts: &mut TokenFacts, status: Option<&TokenStatus>) -> bool {
    let about =
        |status: &&TokenStatus| status.fingerprint == facts.fingerprint && status.issued_at.0 < status.expires_at.0;
    let Some(status) = status.filter(about) else { return true };
    let (written, end) = (facts.expires_at, status.expires_at.0);
    facts.expires_at = written.min(end);
    if written.duration_since(end).abs() > TOLERANCE {
        renew_at_once(facts);
    }
    // Where the status alone is wrong, the Secret needs no repair.
    written <= end
}

/// The annotation by which a provider asks for an early renewal holds this, also after a repair and a restart.
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
        // The annotation, the keys expires_at and expires_at_unix, the status; the end, whether the Secret is as it was
        // written, and whether the token is renewed at once.
        let table = [
            (3600, Some(3600), Some(3600), Some(3600), 3600, true, false),
            (3600, Some(3600), Some(3600), None, 3600, true, false),
            (3600, None, None, Some(3600), 3600, true, false),
            // One of them says that it lives for years.
            (YEARS, Some(3600), Some(3600), Some(3600), 3600, false, true),
            (3600, Some(YEARS), Some(3600), Some(3600), 3600, false, true),
            (3600, Some(3600), Some(YEARS), Some(3600), 3600, false, true),
            (3600, Some(3600), Some(3600), Some(YEARS), 3600, true, true),
            // All but one do.
            (YEARS, Some(YEARS), Some(YEARS), Some(3600), 3600, false, true),
            (YEARS, Some(YEARS), Some(YEARS), None, YEARS, true, false),
            (YEARS, Some(3600), Some(YEARS), Some(YEARS), 3600, false, true),
            (YEARS, Some(YEARS), Some(3600), Some(YEARS), 3600, false, true),
            (3600, Some(YEARS), Some(YEARS), Some(YEARS), 3600, false, true),
            // One says that it ends sooner.
            (60, Some(3600), Some(3600), Some(3600), 60, false, true),
            (3600, Some(3600), Some(60), Some(3600), 60, false, true),
            (3600, Some(3600), Some(3600), Some(60), 60, false, true),
            // The same token, handed out again.
            (3601, Some(3601), Some(3601), Some(3600), 3600, false, false),
            (3600, Some(3600), Some(3600), Some(3601), 3600, true, false),
        ];
        for (annotated, date, seconds, told, end, intact, renewed) in table {
            let case = (annotated, date, seconds, told);
            let mut facts = TokenFacts { expires_at: at(annotated), ..token() };
            let told = told.map(|end| status(end, &facts.fingerprint));
            let data = DataExpiry { date: date.map(at), seconds: seconds.map(at) };
            let as_written = settle_with_data(&mut facts, data) & settle_with_status(&mut facts, told.as_ref());
            let found = (facts.expires_at, as_written, facts.refresh_at == Some(facts.issued_at));
            assert_eq!(found, (at(end), intact, renewed), "{case:?}");
        }
    }

    #[test]
    fn the_status_of_another_token_says_nothing_and_neither_does_nonsense() {
        let mut facts = token();
        assert!(settle_with_status(&mut facts, Some(&status(60, "sha256:fedcba9876543210"))));
        let nonsense = status(-1, &facts.fingerprint);
        assert!(settle_with_status(&mut facts, Some(&nonsense)));
        assert_eq!(facts, token());
    }
}
