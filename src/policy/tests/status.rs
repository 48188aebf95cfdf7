//! What users are told, by condition and by Event.

use serde_json::json;

use super::fixtures::{Case, at, blocker};
use crate::{
    api::{Reason, status::MailCredentialStatus},
    policy::{
        decide,
        notices::{Notice, notices},
        observed::Target,
        status::{next_turn, status},
    },
};

fn told(case: &Case) -> MailCredentialStatus {
    status(&case.observed, &decide(&case.observed, case.now), case.now)
}

/// Status, reason and message of a condition.
fn condition(status: &MailCredentialStatus, kind: &str) -> Option<(String, String, String)> {
    let found = status.conditions.iter().find(|condition| condition.type_ == kind)?;
    Some((found.status.clone(), found.reason.clone(), found.message.clone()))
}

fn reason(status: &MailCredentialStatus, kind: &str) -> Option<String> {
    condition(status, kind).map(|(status, reason, _)| format!("{status} {reason}"))
}

/// The Events for the turn from one case to the next: `Warning InvalidClient`.
fn events(before: &Case, after: &Case) -> Vec<String> {
    let (before, after) = (told(before), told(after));
    let line =
        |notice: Notice| format!("{} {}", if notice.warning { "Warning" } else { "Normal" }, notice.reason.as_str());
    notices(&before, &after).into_iter().map(line).collect()
}

#[test]
fn a_reissue_that_the_secret_knows_to_be_answered_is_told_whatever_the_status_said_before() {
    let mut case = Case::ready();
    case.annotate("mailtoken.dev/reissue", "2");
    case.observed.history.handled_reissue = Some("1".into());
    assert_eq!(told(&case).last_handled_reissue.as_deref(), Some("1"));
    case.own(|own| own.handled_reissue = Some("2".into()));
    assert_eq!(told(&case).last_handled_reissue.as_deref(), Some("2"));
}

#[test]
fn ready_follows_the_token_and_not_the_quarrel_with_the_provider() {
    let mut case = Case::ready();
    case.now = at(3000);
    case.failed_at(Reason::InvalidClient, 3000);
    let status = told(&case);
    assert_eq!(reason(&status, "Ready").unwrap(), "True TokenValid");
    assert_eq!(reason(&status, "Renewed").unwrap(), "False InvalidClient");
    assert_eq!(reason(&status, "Stalled").unwrap(), "True InvalidClient");
    assert_eq!(status.failed_attempts, Some(1));
}

#[test]
fn an_expired_token_is_not_ready_also_while_suspended_and_says_what_keeps_a_new_one_away() {
    let mut case = Case::ready();
    case.now = at(3600);
    case.failed_at(Reason::ProviderUnavailable, 3600);
    let (ready, reason, message) = condition(&told(&case), "Ready").unwrap();
    assert_eq!((ready.as_str(), reason.as_str()), ("False", "Expired"));
    assert!(message.contains("what. What to do."), "{message}");
    case.credential(|credential| credential.spec.suspend = true);
    let (_, reason, message) = condition(&told(&case), "Ready").unwrap();
    assert_eq!(reason, "Expired");
    let resume = r#"`kubectl -n shop patch mailcredential billing --type merge -p '{"spec":{"suspend":false}}'`"#;
    assert!(message.contains(resume), "{message}");
}

#[test]
fn a_token_for_other_inputs_is_not_ready_and_stays_named_until_it_is_replaced() {
    let mut case = Case::ready();
    case.provider().issued_for = "another tenant".into();
    case.failed(Reason::InvalidScope);
    let status = told(&case);
    assert_eq!(reason(&status, "Ready").unwrap(), "False InvalidScope");
    assert_eq!(status.secret_name.as_deref(), Some("billing"));
    assert!(status.token.is_some());
}

#[test]
fn a_provider_that_goes_away_takes_no_token_away_but_one_that_never_was_brings_none() {
    let mut gone = Case::ready();
    gone.told();
    gone.observed.provider = Err(blocker(Reason::ProviderNotFound));
    assert_eq!(reason(&told(&gone), "Ready").unwrap(), "True TokenValid");
    assert_eq!(reason(&told(&gone), "Stalled").unwrap(), "True ProviderNotFound");

    let mut other = gone.clone();
    other.credential(|credential| credential.metadata.generation = Some(2));
    for _ in 0..3 {
        assert_eq!(reason(&told(&other), "Ready").unwrap(), "False ProviderNotFound");
        other.told();
    }
}

#[test]
fn a_transient_trouble_is_worked_on_and_a_permanent_one_waits_for_a_person() {
    let first = |failure| {
        let mut case = Case::new();
        case.failed(failure);
        told(&case)
    };
    let transient = first(Reason::ProviderUnavailable);
    assert_eq!(reason(&transient, "Ready").unwrap(), "False ProviderUnavailable");
    assert_eq!(reason(&transient, "Reconciling").unwrap(), "True Progressing");
    assert_eq!(reason(&transient, "Stalled"), None);
    let permanent = first(Reason::InvalidClient);
    assert_eq!(reason(&permanent, "Ready").unwrap(), "False InvalidClient");
    assert_eq!(reason(&permanent, "Stalled").unwrap(), "True InvalidClient");
    assert_eq!(reason(&permanent, "Reconciling"), None);
    for status in [transient, permanent] {
        assert!(status.next_attempt_time.is_some() && status.last_failure_time.is_some());
    }
}

#[test]
fn a_suspension_is_no_failure() {
    let mut case = Case::ready();
    case.credential(|credential| credential.spec.suspend = true);
    let status = told(&case);
    assert_eq!(reason(&status, "Ready").unwrap(), "True TokenValid");
    assert_eq!(reason(&status, "Renewed").unwrap(), "False Suspended");
    assert_eq!((reason(&status, "Stalled"), reason(&status, "Reconciling")), (None, None));
    assert_eq!(events(&Case::ready(), &case), [""; 0]);
}

#[test]
fn a_conflict_is_not_ready_and_stalls() {
    let mut case = Case::new();
    case.observed.target = Target::Foreign("belongs to the Deployment web".into());
    let status = told(&case);
    assert_eq!(reason(&status, "Ready").unwrap(), "False SecretConflict");
    assert_eq!(reason(&status, "Stalled").unwrap(), "True SecretConflict");
    assert_eq!((status.secret_name, status.token), (None, None));
}

#[test]
fn a_lifetime_that_is_too_short_is_told_once() {
    let mut short = Case::ready();
    short.own(|published| published.token.as_mut().unwrap().expires_at = at(600));
    let (_, _, message) = condition(&told(&short), "Ready").unwrap();
    assert!(message.contains("LifetimeTooShort") && message.contains("10m"), "{message}");
    assert_eq!(events(&Case::ready(), &short), ["Warning LifetimeTooShort"]);
    assert_eq!(events(&short, &short), [""; 0]);
}

#[test]
fn the_end_of_a_client_secret_is_told_at_thirty_seven_and_one_day() {
    let day = 24 * 3600;
    let with = |days: i64| {
        let mut case = Case::ready();
        case.observed.history.client = Some(
            serde_json::from_value(
                json!({"method": "clientSecret", "index": 0, "expiresAt": at(days * day).to_string()}),
            )
            .unwrap(),
        );
        case
    };
    let of = |days| condition(&told(&with(days)), "ClientCredentialExpiringSoon").map(|(_, reason, _)| reason);
    assert_eq!(
        [31, 30, 7, 1, -1].map(of),
        [None, Some("Within30d"), Some("Within7d"), Some("Within1d"), Some("Within1d")]
            .map(|reason| reason.map(str::to_owned))
    );
    assert_eq!(next_turn(&with(31).observed, at(0)), Some(at(3600)), "the token's end comes first");
    assert_eq!(events(&with(31), &with(30)), ["Warning Within30d"]);
    assert_eq!(events(&with(30), &with(29)), [""; 0]);
    assert_eq!(events(&with(8), &with(7)), ["Warning Within7d"]);
}

#[test]
fn events_tell_of_turns_and_of_nothing_else() {
    let new = Case::new();
    let ready = Case::ready();
    let mut refused = Case::new();
    refused.failed(Reason::InvalidClient);
    let mut unavailable = Case::new();
    unavailable.failed(Reason::ProviderUnavailable);
    let mut failing = Case::ready();
    failing.failed(Reason::Throttled);
    let mut again = failing.clone();
    again.failed(Reason::Throttled);
    let mut unlabelled = Case::new();
    unlabelled.provider().blocker = Some(blocker(Reason::SourceNotLabeled));

    let none: [&str; 0] = [];
    assert_eq!(events(&new, &ready), none, "an uneventful issue");
    assert_eq!(events(&ready, &ready), none, "an uneventful renewal");
    assert_eq!(events(&new, &refused), ["Warning InvalidClient"]);
    assert_eq!(events(&refused, &refused), none);
    assert_eq!(events(&refused, &ready), ["Normal RenewalSucceeded", "Normal TokenValid"]);
    assert_eq!(events(&new, &unavailable), ["Warning ProviderUnavailable"]);
    assert_eq!(events(&unavailable, &refused), ["Warning InvalidClient"]);
    assert_eq!(events(&ready, &failing), ["Warning Throttled"]);
    assert_eq!(events(&failing, &again), none, "one more failure of the same kind");
    assert_eq!(events(&failing, &ready), ["Normal RenewalSucceeded"]);
    assert_eq!(events(&new, &unlabelled), ["Warning SourceNotLabeled"]);
}

#[test]
fn another_client_authentication_is_told_when_it_works() {
    let with = |index: i32| {
        let mut case = Case::ready();
        case.observed.history.client =
            serde_json::from_value(json!({"method": "clientSecret", "index": index})).unwrap();
        case
    };
    assert_eq!(events(&with(0), &with(1)), ["Normal ClientAuthenticationChanged"]);
    assert_eq!(events(&with(1), &with(1)), [""; 0]);
    assert_eq!(events(&Case::ready(), &with(1)), [""; 0], "the first");
    let mut refused = with(1);
    refused.failed(Reason::InvalidClient);
    assert_eq!(events(&with(0), &refused), ["Warning InvalidClient"]);
}
