//! When the broker writes a changed status while the credential waits for a request. Most requests end soon, and one
//! write of the status then reports everything. Pure.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::Decision;
use crate::api::MailCredentialStatus;

/// How long the broker may delay the report that a token has expired. The delay includes the waits for an object that
/// no watch has shown, for a permit and for a response. `Ready` becomes False within 5 s of the expiry, whichever of
/// them hangs.
pub const END_REPORTED_AFTER: SignedDuration = SignedDuration::from_secs(3);

/// How long the broker delays the report of a queued request. Most requests get their permit sooner.
const QUEUED_REPORTED_AFTER: SignedDuration = SignedDuration::from_secs(5);

/// How long the broker delays the report of a queued request after a failed request: as long as the longest back-off.
/// The report of the failure says more, and thousands of requests may wait for one provider.
const REPEAT_REPORTED_AFTER: SignedDuration = SignedDuration::from_mins(5);

/// Whether the broker writes a changed status now. `ends`: the status reports the expiry of a token. `waiting`: time
/// since which the report of an expiry waits.
pub fn is_due(
    decision: &Decision,
    reported: &MailCredentialStatus,
    ends: bool,
    waiting: Option<Timestamp>,
    now: Timestamp,
) -> bool {
    let queued = queued_report(decision, reported);
    if !decision.is_under_way() && queued.is_none() {
        return true;
    }
    let end_is_due = ends && waiting.is_none_or(|since| since + END_REPORTED_AFTER <= now);
    end_is_due || queued.is_some_and(|at| at <= now)
}

/// The next time at which [`is_due`] may change without a change of an object.
pub fn next(
    decision: &Decision,
    reported: &MailCredentialStatus,
    waiting: Option<Timestamp>,
    now: Timestamp,
) -> Option<Timestamp> {
    let end = waiting.map(|since| since + END_REPORTED_AFTER);
    end.into_iter().chain(queued_report(decision, reported)).filter(|at| *at > now).min()
}

/// Time at which the status reports that a request waits for its permit. `reported`: the present status.
fn queued_report(decision: &Decision, reported: &MailCredentialStatus) -> Option<Timestamp> {
    let failed = reported.failed_attempts.is_some_and(|attempts| attempts > 0);
    let after = if failed { REPEAT_REPORTED_AFTER } else { QUEUED_REPORTED_AFTER };
    decision.queued_since().map(|since| since + after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::at;

    const IN_FLIGHT: Decision = Decision::InFlight;

    fn queued(second: i64) -> Decision {
        Decision::Queued { since: at(second) }
    }

    #[test]
    fn an_end_waits_three_seconds_in_all_and_a_wait_in_the_queue_five() {
        let since = Some(at(0));
        for (decision, ends, waiting, second, due, again) in [
            (Decision::Wait { until: at(9) }, false, None, 0, true, None),
            (IN_FLIGHT, true, since, 2, false, Some(3)),
            (IN_FLIGHT, true, since, 3, true, None),
            (IN_FLIGHT, false, since, 9, false, None),
            (IN_FLIGHT, true, None, 0, true, None),
            (queued(0), true, since, 2, false, Some(3)),
            (queued(0), true, since, 3, true, Some(5)),
            (queued(0), false, since, 4, false, Some(5)),
            (queued(0), false, since, 5, true, None),
            // The wait for a permit and the wait for a response count together.
            (IN_FLIGHT, true, Some(at(-2)), 1, true, None),
            (queued(1), true, Some(at(-2)), 1, true, Some(6)),
        ] {
            let status = MailCredentialStatus::default();
            let case = format!("{decision:?} {ends} {waiting:?} {second}");
            assert_eq!(is_due(&decision, &status, ends, waiting, at(second)), due, "{case}");
            assert_eq!(next(&decision, &status, waiting, at(second)), again.map(at), "{case}");
        }
    }

    #[test]
    fn a_failure_is_replaced_by_a_wait_in_the_queue_only_after_five_minutes() {
        let failed = MailCredentialStatus { failed_attempts: Some(1), ..MailCredentialStatus::default() };
        for (second, due, again) in [(5, false, Some(300)), (299, false, Some(300)), (300, true, None)] {
            assert_eq!(is_due(&queued(0), &failed, false, None, at(second)), due, "{second}");
            assert_eq!(next(&queued(0), &failed, None, at(second)), again.map(at), "{second}");
        }
        assert!(is_due(&queued(0), &failed, true, Some(at(0)), at(3)), "the end of a token is reported nevertheless");
    }
}
