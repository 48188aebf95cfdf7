//! The meaning of a response to a poll of the device flow (RFC 8628 section 3.5), and the time of the next poll.

use k8s_openapi::jiff::SignedDuration;

use crate::{
    api::{Reason, Retry},
    oauth::Refusal,
};

/// Longest wait after a poll without a usable response, in seconds. A person waits for the result.
const UNANSWERED_MAX: i64 = 60;

/// Meanings of a refused poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollOutcome {
    /// The user has not signed in yet.
    Pending,
    /// The user has not signed in yet, and the provider demands a longer interval for all further polls.
    SlowDown,
    /// The code has expired, or the provider has exchanged it and the response was lost. Only a new code helps.
    CodeOver,
    /// The user, or a policy of the provider, denied the sign-in. Only a user can start another sign-in.
    Denied,
    /// The sign-in cannot succeed, for a reason that the refusal names. Only a user can start another sign-in.
    Failed,
    /// The provider sent no response, or reported a transient failure. The code is still valid.
    Unanswered,
    /// The provider refused the client or the request. The code is still valid.
    Refused,
}

/// Classifies a refused poll. The `error` code of the response decides before the reason, because a provider's own
/// codes only refine the reason.
pub fn outcome(refusal: &Refusal) -> PollOutcome {
    let code = refusal.error.as_ref().map(|error| error.as_str()).unwrap_or_default();
    match (code, refusal.reason) {
        ("authorization_pending", _) => PollOutcome::Pending,
        ("slow_down", _) => PollOutcome::SlowDown,
        ("expired_token" | "bad_verification_code", _) | ("invalid_grant", Reason::InvalidGrant) => {
            PollOutcome::CodeOver
        }
        // Microsoft's response to a code that it has exchanged already.
        ("invalid_request", Reason::AuthorizationRequired) => PollOutcome::CodeOver,
        // `authorization_declined` is Microsoft's code.
        ("access_denied" | "authorization_declined", _) => PollOutcome::Denied,
        (_, Reason::AuthorizationRequired | Reason::ConsentRequired | Reason::InvalidGrant) => PollOutcome::Failed,
        (_, reason) if reason.retry() == Retry::Transient => PollOutcome::Unanswered,
        _ => PollOutcome::Refused,
    }
}

/// Seconds until the next poll after `unanswered` consecutive polls without a response. The wait doubles each time (RFC
/// 8628 section 3.5), up to a minute or `interval`, whichever is longer. It is never shorter than the provider's
/// Retry-After.
pub fn wait_after_unanswered(interval: i64, unanswered: u32, retry_after: Option<SignedDuration>) -> i64 {
    let asked = retry_after.map_or(0, |wait| wait.as_secs());
    interval.saturating_mul(1 << unanswered.min(6)).min(UNANSWERED_MAX.max(interval)).max(asked)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::oauth::refusal::read_refusal;

    /// A refusal whose response has the error `code`. `reason`: the meaning of a provider's own code.
    fn refusal(code: &str, reason: Option<Reason>) -> Refusal {
        let body = format!(r#"{{"error": "{code}"}}"#).into_bytes();
        let response = http::Response::builder().status(400).body(body).unwrap();
        let mut refusal = read_refusal(&response, Timestamp::UNIX_EPOCH);
        assert_eq!(refusal.error.as_ref().map(|error| error.as_str()), Some(code));
        refusal.reason = reason.unwrap_or(refusal.reason);
        refusal
    }

    #[test]
    fn each_answer_to_a_poll_has_one_meaning() {
        for (code, reason, expected) in [
            ("authorization_pending", None, PollOutcome::Pending),
            // A provider's own code never turns a wait into a failure.
            ("authorization_pending", Some(Reason::InvalidGrant), PollOutcome::Pending),
            ("slow_down", None, PollOutcome::SlowDown),
            ("expired_token", None, PollOutcome::CodeOver),
            ("bad_verification_code", None, PollOutcome::CodeOver),
            ("invalid_grant", None, PollOutcome::CodeOver),
            ("invalid_request", Some(Reason::AuthorizationRequired), PollOutcome::CodeOver),
            ("access_denied", None, PollOutcome::Denied),
            ("authorization_declined", None, PollOutcome::Denied),
            ("invalid_grant", Some(Reason::AuthorizationRequired), PollOutcome::Failed),
            ("invalid_grant", Some(Reason::ConsentRequired), PollOutcome::Failed),
            ("interaction_required", Some(Reason::AuthorizationRequired), PollOutcome::Failed),
            ("invalid_client", None, PollOutcome::Refused),
            ("invalid_scope", None, PollOutcome::Refused),
            ("invalid_request", None, PollOutcome::Refused),
            ("server_error", Some(Reason::ProviderUnavailable), PollOutcome::Unanswered),
            ("temporarily_unavailable", Some(Reason::Throttled), PollOutcome::Unanswered),
        ] {
            assert_eq!(outcome(&refusal(code, reason)), expected, "{code} {reason:?}");
        }
        for (reason, expected) in [
            (Reason::ProviderUnavailable, PollOutcome::Unanswered),
            (Reason::Throttled, PollOutcome::Unanswered),
            (Reason::MalformedResponse, PollOutcome::Unanswered),
            (Reason::TLSFailed, PollOutcome::Unanswered),
            (Reason::EgressDenied, PollOutcome::Refused),
            (Reason::InvalidSpec, PollOutcome::Refused),
        ] {
            assert_eq!(outcome(&Refusal::new(reason, "no code")), expected, "{reason:?}");
        }
    }

    #[test]
    fn unanswered_polls_are_twice_as_far_apart_each_time_up_to_a_minute() {
        let waits = |interval| [1, 2, 3, 4, 5, 100].map(|count| wait_after_unanswered(interval, count, None));
        assert_eq!(waits(5), [10, 20, 40, 60, 60, 60]);
        assert_eq!(waits(90), [90; 6], "no shorter than the interval");
        let asked = Some(SignedDuration::from_secs(300));
        assert_eq!(wait_after_unanswered(5, 1, asked), 300);
    }
}
