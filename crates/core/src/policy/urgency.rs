//! The urgency of a request to a provider: the order of the requests if the broker cannot send all immediately.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{Decision, Observed, RequestKind};
use crate::api::Retry;

/// The class of a queued request, from the most to the least urgent. The broker serves an earlier class first, except for
/// every second permit of a host and for namespaces with more than half of the permits (see `src/admission/queue.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A user waits: a new object or spec, `mailtoken.dev/reissue`, a new seed, the start of a sign-in, a deletion.
    Person,
    /// The token expires within `spec.renewal.minValidity`, or has expired.
    EndsSoon,
    /// A renewal with a token that is valid for longer, or a poll for a sign-in.
    Renewal,
    /// An earlier attempt with the same inputs has failed.
    Retry,
}

/// The class and the due time of the request for `decision`. Within a class, the broker serves the earliest due time
/// first. The due time is the expiry of the token, or `now` if a user waits or there is no token.
pub fn urgency(observed: &Observed, decision: &Decision, now: Timestamp) -> (Class, Timestamp) {
    let token = observed.token();
    let min_validity = SignedDuration::try_from(Duration::from(observed.credential.spec.renewal.min_validity));
    let min_validity = min_validity.unwrap_or(SignedDuration::MAX);
    let ends_soon = token.is_some_and(|token| token.expires_at.duration_since(now) <= min_validity);
    let serves = token.is_some_and(|token| token.is_unexpired(now));
    let class = match failed_before(observed, decision) {
        Some(Retry::Permanent | Retry::OnChange) => Class::Retry,
        Some(Retry::Transient | Retry::None) | None if decision.request() == Some(RequestKind::Poll) => {
            return (Class::Renewal, now);
        }
        // A valid token comes before the first token of a credential that the provider has refused.
        Some(Retry::Transient | Retry::None) if ends_soon && serves => Class::EndsSoon,
        Some(Retry::Transient | Retry::None) => Class::Retry,
        None if decision.has_a_waiting_user() => return (Class::Person, now),
        None if ends_soon => Class::EndsSoon,
        None => Class::Renewal,
    };
    (class, token.map_or(now, |token| token.expires_at))
}

/// The reason of the last failure, if the next attempt has the same inputs.
fn failed_before(observed: &Observed, decision: &Decision) -> Option<Retry> {
    let (reason, _) = observed.history.failure()?;
    let next = observed.attempt_hash_for(decision.request().unwrap_or(RequestKind::Token));
    (observed.history.failed_with.as_ref() == Some(&next)).then_some(reason.retry())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::Reason,
        fixtures::{Case, at},
        policy::{
            IssueReason::{self, NoToken, Reissue},
            hash::AttemptHash,
        },
    };

    const RENEWAL: Decision = Decision::Issue(IssueReason::RenewalDue);
    const FIRST: Decision = Decision::Issue(NoToken);

    fn failed(case: &mut Case, reason: Reason, attempt: &AttemptHash) {
        let history = &mut case.observed.history;
        (history.failed_attempts, history.failed_with) = (1, Some(attempt.clone()));
        history.last = Some((reason, "it was refused".to_owned()));
    }

    #[test]
    fn each_need_has_its_class_and_its_due_time() {
        let with = |change: fn(&mut Case), decision: &Decision| {
            let mut case = Case::ready();
            case.now = at(2000);
            change(&mut case);
            urgency(&case.observed, decision, case.now)
        };
        let end = at(3600);
        assert_eq!(with(Case::without_token, &FIRST), (Class::Person, at(2000)));
        assert_eq!(with(|_| (), &Decision::Issue(Reissue)), (Class::Person, at(2000)));
        assert_eq!(with(Case::without_token, &Decision::SignIn), (Class::Person, at(2000)));
        assert_eq!(with(|_| (), &Decision::Issue(IssueReason::Reseeded)), (Class::Person, at(2000)));
        for reason in [IssueReason::KeepAlive, IssueReason::FromTheFuture] {
            assert_eq!(with(|_| (), &Decision::Issue(reason)), (Class::Renewal, end), "{reason:?}");
        }
        assert_eq!(with(|_| (), &Decision::Poll), (Class::Renewal, at(2000)));
        assert_eq!(with(|_| (), &RENEWAL), (Class::Renewal, end));
        assert_eq!(with(|case| case.now = at(3001), &RENEWAL), (Class::EndsSoon, end));
        assert_eq!(with(|case| case.now = at(3700), &Decision::Issue(IssueReason::Expired)), (Class::EndsSoon, end));
    }

    #[test]
    fn a_failed_credential_waits_for_the_others_unless_its_token_expires_soon() {
        let after = |reason, now: i64, inputs: Option<&str>| {
            let mut case = Case::ready();
            case.now = at(now);
            let attempt = inputs.map_or_else(|| case.observed.attempt_hash.clone(), AttemptHash::from);
            failed(&mut case, reason, &attempt);
            urgency(&case.observed, &RENEWAL, case.now).0
        };
        assert_eq!(after(Reason::ProviderUnavailable, 2000, None), Class::Retry);
        assert_eq!(after(Reason::ProviderUnavailable, 3001, None), Class::EndsSoon);
        assert_eq!(after(Reason::ProviderUnavailable, 3700, None), Class::Retry);
        assert_eq!(after(Reason::InvalidClient, 3001, None), Class::Retry);
        assert_eq!(after(Reason::InvalidClient, 2000, Some("other inputs")), Class::Renewal);
    }
}
