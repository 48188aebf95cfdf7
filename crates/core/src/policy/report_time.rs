//! When the broker writes a changed status while the credential waits for a request. Most requests end soon, and one
//! write of the status then reports everything. Pure.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{Decision, schedule::spread};
use crate::api::MailCredentialStatus;

/// How long the broker may delay the report that a token has expired. The delay includes the waits for an object that
/// no watch has shown, for a permit and for a response. `Ready` becomes False within 5 s of the expiry, even if one of
/// these waits does not end.
pub const END_REPORTED_AFTER: SignedDuration = SignedDuration::from_secs(3);

/// Shortest time for which the broker delays the report of a queued request. Most requests get their permit sooner. After
/// a start with thousands of expired tokens, this also delays the report that they have expired: each report would be a
/// third write for the API server, and delay the tokens.
const QUEUED_REPORTED_AFTER: SignedDuration = SignedDuration::from_secs(20);
/// Time over which the uids spread the reports of queued requests. Hundreds of credentials may wait for one provider since
/// the same second, and their reports delay the writes of others.
const QUEUED_REPORTS_SPREAD: SignedDuration = SignedDuration::from_secs(10);

/// How long the broker delays the report of a queued request after a user has changed the spec.
const CHANGE_REPORTED_AFTER: SignedDuration = SignedDuration::from_secs(5);

/// How long the broker delays the report of a queued request after a failed request: as long as the longest back-off.
/// The report of the failure says more, and thousands of requests may wait for one provider.
const REPEAT_REPORTED_AFTER: SignedDuration = SignedDuration::from_mins(5);

/// What determines the time of a report.
pub struct Report<'a> {
    /// The decision about the credential.
    pub decision: &'a Decision,
    /// The status that the credential has now.
    pub reported: &'a MailCredentialStatus,
    /// The uid of the credential.
    pub uid: &'a str,
    /// The generation of the credential's spec.
    pub generation: Option<i64>,
    /// Time since which the report of an expiry waits.
    pub waiting: Option<Timestamp>,
    /// Time at which the request in flight got its permit.
    pub in_flight: Option<Timestamp>,
}

impl Report<'_> {
    /// Whether the broker writes a changed status now. `ends`: the status reports the expiry of a token.
    pub fn is_due(&self, ends: bool, now: Timestamp) -> bool {
        let queued = self.of_the_queue();
        if !self.decision.is_under_way() && queued.is_none() {
            return true;
        }
        let end_is_due = ends && self.of_an_end().is_none_or(|at| at <= now);
        end_is_due || queued.is_some_and(|at| at <= now)
    }

    /// The next time at which [`Self::is_due`] may change without a change of an object.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        self.of_an_end().into_iter().chain(self.of_the_queue()).filter(|at| *at > now).min()
    }

    /// Time at which the status reports the expiry of a token; `None` is immediately.
    fn of_an_end(&self) -> Option<Timestamp> {
        let since = self.waiting?;
        let had_expired = self.reported.token.as_ref().is_some_and(|token| token.expires_at.0 <= since);
        let after_a_start = match self.in_flight {
            _ if !had_expired => None,
            _ if self.decision.queued_since().is_some() => Some(since + self.longest_wait()),
            // The wait in the queue was long enough without the wait for the response.
            Some(at) => Some((at + END_REPORTED_AFTER).min(since + self.longest_wait())),
            None => None,
        };
        Some(after_a_start.unwrap_or(since + END_REPORTED_AFTER))
    }

    /// Time at which the status reports that a request waits for its permit.
    fn of_the_queue(&self) -> Option<Timestamp> {
        let since = self.decision.queued_since()?;
        let failed = self.reported.failed_attempts.is_some_and(|attempts| attempts > 0);
        // A new spec has generation 1.
        let changed = self.generation > Some(1) && self.reported.observed_generation != self.generation;
        Some(
            since
                + match (changed, failed) {
                    (true, _) => CHANGE_REPORTED_AFTER,
                    (false, true) => REPEAT_REPORTED_AFTER,
                    (false, false) => self.longest_wait(),
                },
        )
    }

    /// Longest wait in the queue that the status does not report.
    fn longest_wait(&self) -> SignedDuration {
        QUEUED_REPORTED_AFTER + spread(self.uid, QUEUED_REPORTS_SPREAD)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::{api::status::TokenStatus, fixtures::at};

    const IN_FLIGHT: Decision = Decision::InFlight;
    /// A uid whose reports are spread by 0 s.
    const UNSPREAD: &str = "uid-8410";

    fn queued(second: i64) -> Decision {
        Decision::Queued { since: at(second) }
    }

    fn report<'a>(decision: &'a Decision, reported: &'a MailCredentialStatus, waiting: Option<i64>) -> Report<'a> {
        Report { decision, reported, uid: UNSPREAD, generation: Some(1), waiting: waiting.map(at), in_flight: None }
    }

    fn check(
        decision: &Decision,
        reported: &MailCredentialStatus,
        waiting: Option<i64>,
        cases: &[(bool, i64, bool, Option<i64>)],
    ) {
        let report = report(decision, reported, waiting);
        for (ends, second, due, again) in cases {
            let case = format!("{decision:?} {ends} {waiting:?} {second}");
            assert_eq!(report.is_due(*ends, at(*second)), *due, "{case}");
            assert_eq!(report.next(at(*second)), again.map(at), "{case}");
        }
    }

    #[test]
    fn an_end_waits_three_seconds_in_all_and_a_wait_in_the_queue_twenty() {
        let new = MailCredentialStatus::default();
        check(&Decision::Wait { until: at(9) }, &new, None, &[(false, 0, true, None)]);
        let cases = [(true, 2, false, Some(3)), (true, 3, true, None), (false, 9, false, None)];
        check(&IN_FLIGHT, &new, Some(0), &cases);
        check(&IN_FLIGHT, &new, None, &[(true, 0, true, None)]);
        let cases = [
            (true, 2, false, Some(3)),
            (true, 3, true, Some(20)),
            (false, 19, false, Some(20)),
            (false, 20, true, None),
        ];
        check(&queued(0), &new, Some(0), &cases);
        // The wait for a permit and the wait for a response count together.
        check(&IN_FLIGHT, &new, Some(-2), &[(true, 1, true, None)]);
        check(&queued(1), &new, Some(-2), &[(true, 1, true, Some(21))]);
    }

    #[test]
    fn a_token_that_had_expired_before_a_start_is_reported_with_the_wait_in_the_queue() {
        let token = TokenStatus {
            issued_at: Time(at(-3600)),
            expires_at: Time(at(0)),
            renewal_time: Time(at(-720)),
            scopes: vec![],
            fingerprint: String::new(),
            length: 1_400,
        };
        let expired = MailCredentialStatus { token: Some(token), ..MailCredentialStatus::default() };
        check(&queued(0), &expired, Some(0), &[(true, 3, false, Some(20)), (true, 20, true, None)]);
        check(&IN_FLIGHT, &expired, Some(0), &[(true, 3, true, None)]);
        // The token has expired during the wait.
        check(&queued(-1), &expired, Some(-1), &[(true, 2, true, Some(19))]);
        // The request got its permit after 9 s, or after 19.
        for (permit, due) in [(9, 12), (19, 20)] {
            let report = Report { in_flight: Some(at(permit)), ..report(&IN_FLIGHT, &expired, Some(0)) };
            assert!(!report.is_due(true, at(due - 1)) && report.is_due(true, at(due)), "{permit}");
        }
    }

    #[test]
    fn the_reports_of_requests_that_wait_since_the_same_second_are_spread_over_ten_seconds() {
        let new = MailCredentialStatus::default();
        let due = (0..1_000).map(|number| {
            let uid = format!("6d1b8f0e-0000-4000-8000-{number:012}");
            Report { uid: &uid, ..report(&queued(0), &new, None) }.next(at(0)).unwrap().as_second() - at(0).as_second()
        });
        let mut each_second = std::collections::BTreeMap::new();
        due.for_each(|second| *each_second.entry(second).or_insert(0) += 1);
        assert_eq!(each_second.keys().copied().collect::<Vec<_>>(), (20..30).collect::<Vec<_>>());
        assert!(each_second.values().all(|count| (50..150).contains(count)), "{each_second:?}");
    }

    #[test]
    fn a_failure_is_replaced_by_a_wait_in_the_queue_only_after_five_minutes() {
        let failed = MailCredentialStatus { failed_attempts: Some(1), ..MailCredentialStatus::default() };
        let cases = [(false, 20, false, Some(300)), (false, 299, false, Some(300)), (false, 300, true, None)];
        check(&queued(0), &failed, None, &cases);
        // The end of a token is reported nevertheless.
        check(&queued(0), &failed, Some(0), &[(true, 3, true, Some(300))]);
        // The status of a success has no failed attempt.
        let issued = MailCredentialStatus { failed_attempts: Some(0), ..MailCredentialStatus::default() };
        check(&queued(0), &issued, None, &[(false, 19, false, Some(20)), (false, 20, true, None)]);
    }

    #[test]
    fn a_changed_spec_is_reported_after_five_seconds_in_the_queue() {
        for (generation, observed, expected) in
            [(2, Some(1), 5), (2, Some(2), 20), (2, Some(-1), 5), (2, None, 5), (1, Some(-1), 20), (1, None, 20)]
        {
            let reported = MailCredentialStatus { observed_generation: observed, ..MailCredentialStatus::default() };
            let decision = queued(0);
            let report = Report { generation: Some(generation), ..report(&decision, &reported, None) };
            assert_eq!(report.next(at(0)), Some(at(expected)), "{generation} {observed:?}");
            assert!(!report.is_due(false, at(expected - 1)) && report.is_due(false, at(expected)));
        }
        let failed = MailCredentialStatus {
            observed_generation: Some(1),
            failed_attempts: Some(1),
            ..MailCredentialStatus::default()
        };
        let decision = queued(0);
        let report = Report { generation: Some(2), ..report(&decision, &failed, None) };
        assert!(!report.is_due(false, at(4)) && report.is_due(false, at(5)));
    }
}
