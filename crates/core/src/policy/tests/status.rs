//! Tests of the status and the Events.

use k8s_openapi::jiff::SignedDuration;
use serde_json::json;

use super::fixtures::{Case, at, blocker};
use crate::{
    api::{Reason, status::MailCredentialStatus},
    policy::{
        Decision, decide,
        notices::{EventNote, notices},
        observed::{Cause, History, Target, TokenFacts},
        status::{next_turn, reports_an_end, status, words},
    },
};

fn status_of(case: &Case) -> MailCredentialStatus {
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

/// The Events for the change from one case to the next, such as `Warning InvalidClient`.
fn events(before: &Case, after: &Case) -> Vec<String> {
    let (before, after) = (status_of(before), status_of(after));
    let line =
        |notice: EventNote| format!("{} {}", if notice.warning { "Warning" } else { "Normal" }, notice.reason.as_str());
    notices(&before, &after).into_iter().map(line).collect()
}

#[test]
fn a_reissue_that_the_secret_records_is_reported_whatever_the_status_said_before() {
    let mut case = Case::ready();
    case.annotate("mailtoken.dev/reissue", "2");
    case.observed.history.handled_reissue = Some("1".into());
    assert_eq!(status_of(&case).last_handled_reissue.as_deref(), Some("1"));
    case.own(|own| own.handled_reissue = Some("2".into()));
    assert_eq!(status_of(&case).last_handled_reissue.as_deref(), Some("2"));
}

#[test]
fn ready_follows_the_token_and_not_the_quarrel_with_the_provider() {
    let mut case = Case::ready();
    case.now = at(3000);
    case.failed_at(Reason::InvalidClient, 3000);
    let status = status_of(&case);
    assert_eq!(reason(&status, "Ready").unwrap(), "True TokenValid");
    assert_eq!(reason(&status, "Renewed").unwrap(), "False InvalidClient");
    assert_eq!((reason(&status, "Stalled"), reason(&status, "Reconciling")), (None, None), "mail still works");
    assert_eq!(status.failed_attempts, Some(1));
    case.now = at(3600);
    assert_eq!(reason(&status_of(&case), "Stalled").unwrap(), "True InvalidClient");
}

#[test]
fn an_expired_token_is_not_ready_also_while_suspended_and_says_what_prevents_a_new_one() {
    let mut case = Case::ready();
    case.now = at(3600);
    case.failed_at(Reason::ProviderUnavailable, 3600);
    let (ready, reason, message) = condition(&status_of(&case), "Ready").unwrap();
    assert_eq!((ready.as_str(), reason.as_str()), ("False", "Expired"));
    assert!(message.contains("what. What to do."), "{message}");
    case.credential(|credential| credential.spec.suspend = true);
    let (_, reason, message) = condition(&status_of(&case), "Ready").unwrap();
    assert_eq!(reason, "Expired");
    let resume = r#"`kubectl -n shop patch mailcredential billing --type merge -p '{"spec":{"suspend":false}}'`"#;
    assert!(message.contains(resume), "{message}");
}

#[test]
fn a_token_for_other_inputs_is_not_ready_and_stays_named_until_it_is_replaced() {
    let mut case = Case::ready();
    case.provider().issued_for = "another tenant".into();
    case.failed(Reason::InvalidScope);
    let status = status_of(&case);
    assert_eq!(reason(&status, "Ready").unwrap(), "False InvalidScope");
    assert_eq!(status.secret_name.as_deref(), Some("billing"));
    assert!(status.token.is_some());
}

#[test]
fn a_deleted_provider_removes_no_token_and_a_missing_one_gives_none() {
    let mut gone = Case::ready();
    gone.write_status();
    gone.observed.provider = Err(blocker(Reason::ProviderNotFound));
    assert_eq!(reason(&status_of(&gone), "Ready").unwrap(), "True TokenValid");
    assert_eq!(reason(&status_of(&gone), "Renewed").unwrap(), "False ProviderNotFound");
    let (_, _, message) = condition(&status_of(&gone), "Ready").unwrap();
    assert!(message.ends_with(". It cannot be renewed: ProviderNotFound and its fix"), "{message}");
    assert_eq!(events(&Case::ready(), &gone), ["Warning ProviderNotFound"]);
    let mut back = gone.clone();
    back.write_status();
    back.observed.history = History::of(back.observed.credential.status.as_ref().unwrap());
    back.observed.provider = Case::ready().observed.provider;
    assert_eq!(reason(&status_of(&back), "Renewed").unwrap(), "True RenewalSucceeded", "no attempt failed meanwhile");

    let mut other = gone.clone();
    other.credential(|credential| credential.metadata.generation = Some(2));
    for _ in 0..3 {
        assert_eq!(reason(&status_of(&other), "Ready").unwrap(), "False ProviderNotFound");
        other.write_status();
    }
}

#[test]
fn a_transient_trouble_is_worked_on_and_a_permanent_one_waits_for_a_person() {
    let first = |failure| {
        let mut case = Case::new();
        case.failed(failure);
        status_of(&case)
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
fn a_failed_attempt_is_reported_also_while_a_blocker_stalls_the_credential() {
    let mut case = Case::ready();
    case.now = at(3000);
    case.provider().blocker = Some(blocker(Reason::NotAllowed));
    assert_eq!(reason(&status_of(&case), "Renewed").unwrap(), "False NotAllowed");
    case.failed_at(Reason::InvalidClient, 3000);
    let status = status_of(&case);
    assert_eq!(reason(&status, "Ready").unwrap(), "True TokenValid");
    assert_eq!(reason(&status, "Renewed").unwrap(), "False InvalidClient");
}

#[test]
fn a_suspension_is_no_failure() {
    let mut case = Case::ready();
    case.credential(|credential| credential.spec.suspend = true);
    let status = status_of(&case);
    assert_eq!(reason(&status, "Ready").unwrap(), "True TokenValid");
    assert_eq!(reason(&status, "Renewed").unwrap(), "False Suspended");
    assert_eq!((reason(&status, "Stalled"), reason(&status, "Reconciling")), (None, None));
    assert_eq!(events(&Case::ready(), &case), [""; 0]);
}

#[test]
fn a_conflict_is_not_ready_and_stalls() {
    let mut case = Case::new();
    case.observed.target = Target::Foreign("belongs to the Deployment web".into());
    let status = status_of(&case);
    assert_eq!(reason(&status, "Ready").unwrap(), "False SecretConflict");
    assert_eq!(reason(&status, "Stalled").unwrap(), "True SecretConflict");
    assert_eq!((status.secret_name, status.token), (None, None));
}

#[test]
fn ready_names_the_secret_the_account_and_the_end() {
    let mut case = Case::ready();
    let message = |case: &Case| condition(&status_of(case), "Ready").unwrap().2;
    assert_eq!(
        message(&case),
        "the Secret billing holds a token for billing@example.org that is valid until 2027-01-15T09:00:00Z"
    );
    case.credential(|credential| {
        credential.spec.secret.name = Some("mail-token".into());
        credential.spec.mailbox.authenticate_as = Some("svc@example.org".into());
    });
    assert!(message(&case).starts_with("the Secret mail-token holds a token for svc@example.org "));
}

#[test]
fn scopes_that_differ_from_the_request_are_reported() {
    let table: [(&[&str], &[&str], &str); 8] = [
        (&["mail.send"], &["mail.send"], ""),
        (&["mail.send"], &["Mail.Send"], ""),
        (&["mail.send", "mail.read"], &["mail.send"], ". the provider did not grant mail.read"),
        (
            &["mail.send"],
            &["mail.send", "all"],
            ". the provider granted 1 unrequested scope: status.token.scopes has it",
        ),
        (
            &["mail.send"],
            &["mail.read"],
            ". the provider did not grant mail.send, and the provider granted 1 unrequested scope: status.token.scopes has \
             it",
        ),
        // Scopes that are no permissions, which many providers omit.
        (&["mail.send", "offline_access", "openid"], &["mail.send", "email"], ""),
        (&["offline_access"], &["mail.send"], ""),
        // Microsoft's `.default` means all scopes with consent.
        (&["https://outlook.office365.com/.default"], &["mail.send"], ""),
    ];
    for (asked, granted, told_besides) in table {
        let list = |scopes: &[&str]| scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let mut case = Case::ready();
        case.provider().scopes = list(asked);
        case.own(|own| own.token.as_mut().unwrap().scopes = list(granted));
        let (_, _, message) = condition(&status_of(&case), "Ready").unwrap();
        assert_eq!(message.split_once("09:00:00Z").unwrap().1, told_besides, "{asked:?} {granted:?}");
    }
}

#[test]
fn a_renewal_is_reported_for_the_time_at_which_it_begins() {
    let case = Case::ready();
    let Decision::Wait { until } = decide(&case.observed, case.now) else { panic!("no wait") };
    let reported = status_of(&case).token.unwrap().renewal_time.0;
    assert_eq!((reported.as_second(), reported.subsec_nanosecond()), (until.as_second(), 0));
}

#[test]
fn the_length_of_a_token_is_remembered_while_it_is_that_token() {
    let mut case = Case::ready();
    case.write_status();
    let token = |case: &mut Case, change: fn(&mut TokenFacts)| {
        case.own(|own| change(own.token.as_mut().unwrap()));
        status_of(case).token.unwrap().length
    };
    assert_eq!(token(&mut case, |token| token.length = None), 40, "the Secret's data was not read again");
    assert_eq!(token(&mut case, |token| token.fingerprint = "sha256:fedcba9876543210".into()), 0);
    assert_eq!(token(&mut case, |token| token.length = Some(50)), 50);
}

#[test]
fn a_first_attempt_is_reported_as_in_flight() {
    let mut case = Case::ready();
    case.provider().issued_for = "another tenant".into();
    let (_, reason, message) = condition(&status_of(&case), "Ready").unwrap();
    assert_eq!((reason.as_str(), message.as_str()), ("Pending", "the broker is requesting a token"));
    assert_eq!(condition(&status_of(&case), "Reconciling").unwrap().2, message);
}

#[test]
fn the_reason_of_a_wait_is_reported() {
    let mut failed = Case::new();
    failed.failed(Reason::ProviderUnavailable);
    let (_, _, message) = condition(&status_of(&failed), "Reconciling").unwrap();
    assert_eq!(message, "the next attempt is at status.nextAttemptTime: what. What to do.");
    let mut claimed = Case::new();
    claimed.by_refresh_token();
    claimed.claimed("another", 60);
    let (_, _, message) = condition(&status_of(&claimed), "Reconciling").unwrap();
    assert_eq!(message, "another broker is exchanging the refresh token; its claim ends at 2027-01-15T08:01:00Z");
}

#[test]
fn a_duration_is_printed_as_in_a_spec() {
    let table =
        [(0, "0s"), (59, "59s"), (60, "1m"), (90, "1m30s"), (3600, "1h"), (7205, "2h5s"), (45_296, "12h34m56s")];
    for (seconds, text) in table {
        assert_eq!(words(SignedDuration::from_secs(seconds)), text);
    }
}

#[test]
fn while_a_request_is_in_flight_only_an_end_is_reported() {
    let (new, ready) = (Case::new(), Case::ready());
    let mut ended = Case::ready();
    ended.now = at(3600);
    let mut other = Case::ready();
    other.provider().issued_for = "another tenant".into();
    let reports =
        |before: &Case, after: &Case| reports_an_end(&status_of(before).conditions, &status_of(after).conditions);
    assert!(reports(&ready, &ended));
    assert!(!reports(&ended, &ended), "once");
    assert!(!reports(&new, &ended) && !reports(&new, &ready) && !reports(&ready, &ready) && !reports(&ready, &other));
}

#[test]
fn a_lifetime_that_is_too_short_is_reported_once() {
    let mut short = Case::ready();
    short.own(|published| published.token.as_mut().unwrap().expires_at = at(600));
    let (_, _, message) = condition(&status_of(&short), "Ready").unwrap();
    assert!(message.contains("LifetimeTooShort") && message.contains("10m"), "{message}");
    assert_eq!(events(&Case::ready(), &short), ["Warning LifetimeTooShort"]);
    assert_eq!(events(&short, &short), [""; 0]);
}

#[test]
fn the_end_of_a_client_secret_is_reported_at_thirty_seven_and_one_day() {
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
    let of = |days| condition(&status_of(&with(days)), "ClientCredentialExpiringSoon").map(|(_, reason, _)| reason);
    let (_, _, message) = condition(&status_of(&with(30)), "ClientCredentialExpiringSoon").unwrap();
    let what =
        "spec.client.authentication[0] (clientSecret) of the MailProvider shop/idp ends at 2027-02-14T08:00:00Z: ";
    assert!(message.starts_with(what), "{message}");
    assert_eq!(
        [31, 30, 7, 1, -1].map(of),
        [None, Some("Within30d"), Some("Within7d"), Some("Within1d"), Some("Within1d")]
            .map(|reason| reason.map(str::to_owned))
    );
    let next_turn = |now: i64| next_turn(&with(31).observed, &Decision::InFlight, at(now));
    assert_eq!(next_turn(0), Some(at(3600)), "the token's end comes first");
    let turn = |now| next_turn(now).map(|turn| turn.duration_since(at(0)).as_secs() / day);
    assert_eq!([3600, day, 24 * day, 30 * day].map(turn), [Some(1), Some(24), Some(30), None]);
    assert_eq!(events(&with(31), &with(7)), [""; 0], "the Event is the provider's");
}

#[test]
fn the_status_shows_dates_and_end_of_a_refresh_token() {
    let day = 24 * 3600;
    let with = |end: Option<i64>, idle_days: Option<i64>| {
        let mut case = Case::ready();
        case.by_refresh_token().idle_life = idle_days.map(|days| SignedDuration::from_hours(24 * days));
        case.stored().token.as_mut().unwrap().expires_at = end.map(|days| at(days * day));
        status_of(&case)
    };
    let grant = with(Some(31), None).grant.unwrap();
    assert_eq!((grant.obtained_at.0, grant.last_used_at.unwrap().0, grant.rotations), (at(0), at(0), 1));
    let end = |end, idle_days| with(end, idle_days).grant.unwrap().expires_at.map(|end| end.0);
    assert_eq!(end(None, None), None);
    assert_eq!(end(Some(31), None), Some(at(31 * day)));
    assert_eq!(end(Some(31), Some(90)), Some(at(31 * day)), "as the provider said");
    assert_eq!(end(Some(31), Some(14)), Some(at(14 * day)), "for want of use");
    let soon = |days| condition(&with(Some(days), None), "GrantExpiringSoon");
    assert_eq!(
        [31, 30, 7, 1].map(|days| soon(days).map(|(_, reason, _)| reason)),
        [None, Some("Within30d"), Some("Within7d"), Some("Within1d")].map(|reason| reason.map(str::to_owned))
    );
    let (_, _, message) = soon(30).unwrap();
    let sign_in = "with `mail-token-broker login --provider idp -n shop --mailbox 'billing@example.org' --secret seed`";
    assert!(message.contains("2027-02-14T08:00:00Z") && message.ends_with(sign_in), "{message}");
}

#[test]
fn events_report_changes_of_conditions_alone() {
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
    assert_eq!(events(&new, &unlabelled), none, "it may still arrive");
    unlabelled.write_status();
    let mut late = unlabelled.clone();
    late.now = at(30);
    assert_eq!(events(&unlabelled, &late), ["Warning SourceNotLabeled"]);

    let mut worse = failing.clone();
    worse.failed(Reason::InvalidClient);
    assert_eq!(events(&failing, &worse), ["Warning InvalidClient"], "while the token still serves");
    let mut expired = worse.clone();
    expired.now = at(3600);
    assert_eq!(events(&worse, &expired), ["Warning Expired"], "the refusal is known");
}

/// The status that kstatus computes (cli-utils, pkg/kstatus/status: generic.go and core.go) from the metadata and the
/// status.
fn kstatus(generation: i64, status: &MailCredentialStatus) -> &'static str {
    let is = |kind: &str, value: &str| {
        status.conditions.iter().any(|condition| condition.type_ == kind && condition.status == value)
    };
    match status.observed_generation {
        Some(observed) if observed != generation => "InProgress",
        _ if is("Reconciling", "True") => "InProgress",
        _ if is("Stalled", "True") => "Failed",
        _ if is("Ready", "False") || is("Ready", "Unknown") => "InProgress",
        _ => "Current",
    }
}

#[test]
fn kstatus_is_in_progress_for_transient_problems_and_failed_for_those_that_need_a_person() {
    type Change = fn(&mut Case);
    let blocked = |case: &mut Case, reason| case.provider().blocker = Some(blocker(reason));
    let table: [(&str, Case, i64, Change, &str); 13] = [
        ("a token", Case::ready(), 0, |_| (), "Current"),
        ("a token, and a refusal", Case::ready(), 0, |case| case.failed(Reason::InvalidClient), "Current"),
        ("the first request", Case::new(), 0, |_| (), "InProgress"),
        ("an outage", Case::new(), 0, |case| case.failed(Reason::ProviderUnavailable), "InProgress"),
        ("a refusal", Case::new(), 0, |case| case.failed(Reason::InvalidClient), "Failed"),
        ("a fresh federation", Case::new(), 0, |case| case.failed(Reason::FederationMismatch), "InProgress"),
        (
            "no provider yet",
            Case::new(),
            29,
            |case| case.observed.provider = Err(blocker(Reason::ProviderNotFound)),
            "InProgress",
        ),
        (
            "no provider",
            Case::new(),
            30,
            |case| case.observed.provider = Err(blocker(Reason::ProviderNotFound)),
            "Failed",
        ),
        ("not allowed", Case::new(), 0, |case| case.provider().blocker = Some(blocker(Reason::NotAllowed)), "Failed"),
        (
            "a provider that cannot be reached",
            Case::new(),
            3600,
            |case| case.provider().blocker = Some(blocker(Reason::ProviderNotReady).because(Cause::Transient)),
            "InProgress",
        ),
        (
            "a provider of another issuer",
            Case::new(),
            0,
            |case| case.provider().blocker = Some(blocker(Reason::ProviderNotReady)),
            "Failed",
        ),
        (
            "a code on offer",
            Case::new(),
            0,
            |case| {
                case.by_device_code();
                case.stored().token = None;
                case.signing_in(0, 600);
            },
            "InProgress",
        ),
        (
            "no code on offer",
            Case::new(),
            0,
            |case| {
                case.by_device_code();
                case.stored().token = None;
                case.signing_in(0, 600).ended = Some("it was denied".into());
            },
            "Failed",
        ),
    ];
    for (what, mut case, second, change, expected) in table {
        case.created(0);
        change(&mut case);
        case.now = at(second);
        assert_eq!(kstatus(1, &status_of(&case)), expected, "{what}");
    }
    // After a change of the spec, the broker waits again.
    let mut late = Case::new();
    late.created(-3600);
    blocked(&mut late, Reason::SourceNotFound);
    late.write_status();
    assert_eq!(kstatus(1, &status_of(&late)), "Failed");
    late.credential(|credential| credential.metadata.generation = Some(2));
    late.write_status();
    let first = status_of(&late);
    assert_eq!((kstatus(2, &first), reason(&first, "Ready").unwrap().as_str()), ("InProgress", "False SourceNotFound"));
    late.now = at(29);
    assert_eq!(kstatus(2, &status_of(&late)), "InProgress");
    late.now = at(30);
    assert_eq!(kstatus(2, &status_of(&late)), "Failed");
}

#[test]
fn another_client_authentication_is_reported_when_it_works() {
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
