//! When a status that differs is written while the credential waits for a request. Most requests end soon; one write of the
//! status then reports everything. Pure.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::Decision;

/// How long the report of a token's end may wait: for an object that no watch has shown, for a permit and for a response,
/// together. `Ready` is False within 5 s of the end, whatever hangs.
pub const END_REPORTED_AFTER: SignedDuration = SignedDuration::from_secs(3);

/// How long the report of a queued request waits: most requests get their permit sooner.
const QUEUED_REPORTED_AFTER: SignedDuration = SignedDuration::from_secs(5);

/// Whether a status that differs is written now. `ends`: it reports the end of a token. `waiting`: since when the report of an
/// end waits.
pub fn is_due(decision: &Decision, ends: bool, waiting: Option<Timestamp>, now: Timestamp) -> bool {
    let queued = decision.queued_since();
    if !decision.is_under_way() && queued.is_none() {
        return true;
    }
    let end_is_due = ends && waiting.is_none_or(|since| since + END_REPORTED_AFTER <= now);
    end_is_due || queued.is_some_and(|since| since + QUEUED_REPORTED_AFTER <= now)
}

/// When [`is_due`] may change without a change of an object.
pub fn next(decision: &Decision, waiting: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    let end = waiting.map(|since| since + END_REPORTED_AFTER);
    let queued = decision.queued_since().map(|since| since + QUEUED_REPORTED_AFTER);
    end.into_iter().chain(queued).filter(|at| *at > now).min()
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
            assert_eq!(is_due(&decision, ends, waiting, at(second)), due, "{decision:?} {ends} {waiting:?} {second}");
            assert_eq!(next(&decision, waiting, at(second)), again.map(at), "{decision:?} {ends} {waiting:?} {second}");
        }
    }
}
