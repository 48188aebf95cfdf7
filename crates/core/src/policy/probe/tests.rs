use mailtoken_mail::answers::Cause;
use serde_json::json;

use super::*;
use crate::{
    fixtures::{Case, at},
    policy::{Decision, status::status},
};

const MINUTE: i64 = 60;

/// A credential with a token and a probe.
fn probed() -> Case {
    probed_with(&json!({}), &["SMTP", "IMAP"])
}

fn probed_with(probe: &serde_json::Value, protocols: &[&str]) -> Case {
    let mut case = Case::ready();
    case.credential(|credential| {
        credential.spec.probe = serde_json::from_value(probe.clone()).unwrap();
        credential.spec.protocols = serde_json::from_value(json!(protocols)).unwrap();
    });
    let servers = json!({
        "smtp": {"host": "smtp.example.org", "port": 587},
        "imap": {"host": "imap.example.org", "port": 993},
        "pop3": {"host": "pop.example.org", "port": 995},
    });
    case.provider().profile.servers = serde_json::from_value(servers).unwrap();
    case.observed.probe = Some(Probe { record: None, verdict: None, inputs: inputs("objects") });
    case
}

fn inputs(objects: &str) -> ProbeInputs {
    ProbeInputs { objects: objects.into(), bundle: Some("".into()) }
}

fn refused(cause: Cause) -> Login {
    Login::Answered { cause, code: None }
}

fn unavailable() -> Login {
    Login::NotConnected { reason: Reason::MailServerUnavailable, words: "no connection".to_owned() }
}

/// Ends a probe in which each protocol has the result `login`, and writes the status.
fn ends(case: &mut Case, second: i64, login: &Login) {
    ends_with(
        case,
        second,
        &protocols(&case.observed.credential).iter().map(|p| (*p, login.clone())).collect::<Vec<_>>(),
    );
}

fn ends_with(case: &mut Case, second: i64, logins: &[(Protocol, Login)]) {
    case.now = at(second);
    let fingerprint = case.observed.token().unwrap().fingerprint.clone();
    let probe = case.observed.probe.as_ref().unwrap();
    let round = Round { logins: logins.to_vec(), inputs: probe.inputs.clone(), fingerprint, at: at(second) };
    case.observed.conclude(&round);
    case.write_status();
    // The next reconcile reads the status.
    let record = case.observed.credential.status.as_ref().unwrap().probe.clone();
    let probe = case.observed.probe.as_mut().unwrap();
    (probe.record, probe.verdict) = (record, None);
}

fn condition_of(case: &Case) -> (String, String) {
    let conditions = &case.observed.credential.status.as_ref().unwrap().conditions;
    let told = condition::find(conditions, ConditionType::MailboxAuthorized).unwrap();
    (told.status.clone(), told.reason.clone())
}

fn shown(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

fn due(case: &Case) -> Next {
    next(&case.observed, case.now)
}

#[test]
fn smtp_and_imap_are_probed_as_far_as_they_are_used_and_pop3_only_if_it_is_named() {
    for (probe, used, expected) in [
        (json!({}), &["SMTP", "IMAP", "POP3"][..], &[Protocol::Smtp, Protocol::Imap][..]),
        (json!({}), &["IMAP"], &[Protocol::Imap]),
        (json!({"protocols": ["POP3"]}), &["SMTP", "POP3"], &[Protocol::Pop3]),
        (json!({"protocols": ["IMAP", "SMTP"]}), &["SMTP", "IMAP"], &[Protocol::Imap, Protocol::Smtp]),
    ] {
        let case = probed_with(&probe, used);
        assert_eq!(protocols(&case.observed.credential), expected, "{probe} {used:?}");
    }
    assert!(protocols(&Case::ready().observed.credential).is_empty());
}

#[test]
fn the_first_token_is_probed_and_an_unusable_one_is_not() {
    assert_eq!(due(&probed()), Next::Now(Class::Person));
    type Change = fn(&mut Case);
    let changes: [(&str, Change); 7] = [
        ("no probe", |case| case.observed.probe = None),
        ("no token", Case::without_token),
        ("an expired token", |case| case.now = at(3600)),
        ("a token for another spec", |case| case.own(|published| published.issued_for = "other".into())),
        ("a Secret with former user names", |case| case.own(|published| published.layout = "former".into())),
        ("suspended", |case| case.credential(|credential| credential.spec.suspend = true)),
        ("not allowed", |case| case.provider().blocker = Some(crate::fixtures::blocker(Reason::NotAllowed))),
    ];
    for (what, change) in changes {
        let mut case = probed();
        change(&mut case);
        assert_eq!(due(&case), Next::Never, "{what}");
    }
    // The token in the Secret still works while the OAuth provider does not.
    let mut case = probed();
    case.provider().blocker = Some(crate::fixtures::blocker(Reason::SourceNotFound));
    assert_eq!(due(&case), Next::Now(Class::Person));
}

#[test]
fn a_server_that_no_provider_names_is_reported_and_not_probed() {
    let mut case = probed();
    case.provider().profile.servers.imap = None;
    assert_eq!(due(&case), Next::Never);
    case.write_status();
    let conditions = &case.observed.credential.status.as_ref().unwrap().conditions;
    let told = condition::find(conditions, ConditionType::MailboxAuthorized).unwrap();
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("Unknown", "ProbePending"));
    assert!(told.message.contains("names no IMAP server: set spec.servers.imap"), "{}", told.message);
}

#[test]
fn an_accepted_token_is_probed_again_after_the_interval_and_not_after_a_renewal() {
    let mut case = probed();
    ends(&mut case, 0, &Login::Accepted);
    assert_eq!(condition_of(&case), shown("True", "LoginSucceeded"));
    let Next::At(again) = due(&case) else { panic!("{:?}", due(&case)) };
    let wait = again.duration_since(at(0)).as_secs();
    assert!((324 * MINUTE..=396 * MINUTE).contains(&wait), "{wait}");
    case.own(|published| published.token.as_mut().unwrap().fingerprint = "sha256:another".into());
    assert_eq!(due(&case), Next::At(again));
    case.own(|published| published.token.as_mut().unwrap().expires_at = again + SignedDuration::from_hours(1));
    case.now = again;
    assert_eq!(due(&case), Next::Now(Class::Renewal));
}

#[test]
fn a_refusal_is_probed_after_5_15_30_and_60_minutes_then_hourly_and_with_each_new_token() {
    let mut case = probed();
    case.own(|published| published.token.as_mut().unwrap().expires_at = at(100_000));
    let mut second = 0;
    for wanted in [5, 15, 30, 60, 120, 180] {
        ends(&mut case, second, &refused(Cause::SmtpAuthDisabledForMailbox));
        assert_eq!(condition_of(&case), shown("False", "SMTPAuthDisabled"));
        assert_eq!(due(&case), Next::At(at(wanted * MINUTE)));
        second = wanted * MINUTE;
    }
    case.own(|published| published.token.as_mut().unwrap().fingerprint = "sha256:another".into());
    let last = 180 * MINUTE;
    assert_eq!((case.now, due(&case)), (at(120 * MINUTE), Next::At(at(120 * MINUTE + 5))));
    case.now = at(last);
    assert_eq!(due(&case), Next::Now(Class::Person));
}

#[test]
fn a_probe_that_shows_nothing_is_repeated_after_1_2_5_and_every_15_minutes() {
    let mut case = probed();
    case.own(|published| published.token.as_mut().unwrap().expires_at = at(100_000));
    let mut second = 0;
    for wait in [1, 2, 5, 15, 15] {
        ends(&mut case, second, &unavailable());
        assert_eq!(due(&case), Next::At(at(second + wait * MINUTE)));
        second += wait * MINUTE;
    }
    case.own(|published| published.token.as_mut().unwrap().fingerprint = "sha256:another".into());
    assert!(matches!(due(&case), Next::At(_)), "a new token shows no more about the server");
    case.now = at(second);
    assert_eq!(due(&case), Next::Now(Class::Retry));
}

#[test]
fn one_miss_changes_nothing_and_two_in_a_row_are_unknown() {
    let miss = |case: &mut Case, second| {
        ends(case, second, &unavailable());
        condition_of(case)
    };
    let mut case = probed();
    assert_eq!(miss(&mut case, 0), shown("Unknown", "ProbePending"));
    case.write_status();
    let conditions = &case.observed.credential.status.as_ref().unwrap().conditions;
    let told = condition::find(conditions, ConditionType::MailboxAuthorized).unwrap();
    assert!(told.message.contains("no connection"), "a later reconcile keeps the message: {}", told.message);
    assert_eq!(case.observed.probe.as_ref().unwrap().record.as_ref().unwrap().results.len(), 2, "shown at once");
    assert_eq!(miss(&mut case, 60), shown("Unknown", "MailServerUnavailable"));
    ends(&mut case, 120, &Login::Accepted);
    assert_eq!(miss(&mut case, 180), shown("True", "LoginSucceeded"));
    ends(&mut case, 240, &Login::Accepted);
    assert_eq!(miss(&mut case, 300), shown("True", "LoginSucceeded"), "the misses are not in a row");
    assert_eq!(miss(&mut case, 360), shown("Unknown", "MailServerUnavailable"));
    ends(&mut case, 420, &refused(Cause::Refused));
    assert_eq!(miss(&mut case, 480), shown("False", "LoginRefused"));
}

#[test]
fn one_refusal_counts_more_than_what_is_unknown_or_accepted() {
    let (smtp, imap) = (Protocol::Smtp, Protocol::Imap);
    for (logins, expected) in [
        ([(smtp, unavailable()), (imap, refused(Cause::NotConnected))], shown("False", "MailboxPermissionMissing")),
        ([(smtp, refused(Cause::Throttled)), (imap, Login::Accepted)], shown("Unknown", "ProbePending")),
        ([(smtp, refused(Cause::TokenTooShortLived)), (imap, Login::Accepted)], shown("False", "TokenTooShortLived")),
        ([(smtp, Login::Accepted), (imap, Login::Accepted)], shown("True", "LoginSucceeded")),
    ] {
        let mut case = probed();
        ends_with(&mut case, 0, &logins);
        assert_eq!(condition_of(&case), expected, "{logins:?}");
    }
}

#[test]
fn a_change_of_spec_provider_grant_or_bundle_is_probed_and_a_restart_is_not() {
    let mut case = probed();
    ends(&mut case, 0, &Login::Accepted);
    let with = |change: fn(&mut ProbeInputs)| {
        let mut case = case.clone();
        change(&mut case.observed.probe.as_mut().unwrap().inputs);
        assert!(matches!(due(&case), Next::At(_)), "not twice within 5 seconds");
        case.now = at(5);
        due(&case)
    };
    assert_eq!(with(|inputs| inputs.objects = "other".into()), Next::Now(Class::Person));
    assert_eq!(with(|inputs| inputs.bundle = Some("other".into())), Next::Now(Class::Person));
    assert!(matches!(with(|inputs| inputs.bundle = None), Next::At(_)), "not read since the start");

    let of = |generation, provider: [&str; 2], reissue| {
        let mut credential = crate::fixtures::credential();
        credential.metadata.generation = Some(generation);
        ProbeInputs::new(&credential, provider, None, reissue, None).objects
    };
    let first = of(1, ["uid", "1"], None);
    for other in [
        of(2, ["uid", "1"], None),
        of(1, ["uid", "2"], None),
        of(1, ["other", "1"], None),
        of(1, ["uid", "1"], Some("x")),
    ] {
        assert_ne!(first, other);
    }
    assert_eq!(first, of(1, ["uid", "1"], None));
}

#[test]
fn a_result_of_a_former_spec_is_dropped_and_the_condition_waits_for_another() {
    let mut case = probed();
    ends(&mut case, 0, &Login::Accepted);
    case.credential(|credential| credential.metadata.generation = Some(2));
    let probe = case.observed.probe.as_mut().unwrap();
    probe.inputs = inputs("changed");
    case.write_status();
    assert_eq!(condition_of(&case), shown("Unknown", "ProbePending"));
    let late = Round {
        logins: vec![(Protocol::Smtp, Login::Accepted)],
        inputs: inputs("objects"),
        fingerprint: TokenFingerprint::default(),
        at: at(1),
    };
    let before = case.observed.probe.clone();
    case.observed.conclude(&late);
    assert_eq!(case.observed.probe, before);
}

#[test]
fn without_a_probe_neither_condition_nor_record_is_left() {
    let mut case = probed();
    ends(&mut case, 0, &Login::Accepted);
    case.observed.probe = None;
    let after = status(&case.observed, &Decision::Wait { until: at(1) }, at(1));
    assert_eq!(condition::find(&after.conditions, ConditionType::MailboxAuthorized), None);
    assert_eq!(after.probe, None);
}

#[test]
fn the_other_conditions_do_not_depend_on_the_probe() {
    let mut case = probed();
    ends(&mut case, 0, &refused(Cause::Refused));
    let conditions = &case.observed.credential.status.as_ref().unwrap().conditions;
    assert!(condition::is_true(conditions, ConditionType::Ready));
    assert_eq!(condition::find(conditions, ConditionType::Stalled), None);
    assert_eq!(condition::find(conditions, ConditionType::Reconciling), None);
}

#[test]
fn a_message_names_each_server_its_cause_and_the_command() {
    let code = |code: u16, enhanced| Some(ServerCode::Smtp(code, Some(enhanced)));
    let mut case = probed();
    case.provider().client_id = "11111111-2222-4333-8444-555555555555".to_owned();
    case.own(|published| {
        published.token.as_mut().unwrap().object_id = Some("99999999-2222-4333-8444-555555555555".to_owned());
    });
    let smtp = Login::Answered { cause: Cause::SmtpAuthDisabledForMailbox, code: code(535, (5, 7, 139)) };
    ends_with(&mut case, 0, &[(Protocol::Smtp, smtp), (Protocol::Imap, Login::Accepted)]);
    let message = |case: &Case| {
        let conditions = &case.observed.credential.status.as_ref().unwrap().conditions;
        condition::find(conditions, ConditionType::MailboxAuthorized).unwrap().message.clone()
    };
    assert_eq!(
        message(&case),
        "SMTP at smtp.example.org:587 (535 5.7.139): SMTP AUTH is off for this mailbox: an Exchange administrator turns it \
         on with `Set-CASMailbox -Identity 'billing@example.org' -SmtpClientAuthenticationDisabled $false`. IMAP at \
         imap.example.org:993 accepts the token"
    );
    ends(&mut case, 60, &refused(Cause::PermissionMissing));
    let told = message(&case);
    for part in [
        "SMTP at smtp.example.org:587 and IMAP at imap.example.org:993: the token has no permission",
        "`New-ServicePrincipal -AppId 11111111-2222-4333-8444-555555555555 -ObjectId 99999999-2222-4333-8444-555555555555`",
        "`Add-MailboxPermission -Identity 'billing@example.org' -User 99999999-2222-4333-8444-555555555555",
        "SMTP.SendAsApp and IMAP.AccessAsApp",
        "`Set-CASMailbox -Identity 'billing@example.org' -ImapEnabled $true`",
        "the next token, or immediately after `kubectl -n shop annotate mailcredential billing --overwrite mailtoken.dev/reissue",
    ] {
        assert!(told.contains(part), "{part}\n{told}");
    }
}

#[test]
fn every_cause_has_an_advice_that_fits_a_message() {
    let causes = [
        Cause::SmtpAuthDisabledForTenant,
        Cause::SmtpAuthDisabledForMailbox,
        Cause::PermissionMissing,
        Cause::NotConnected,
        Cause::BlockedByPolicy,
        Cause::BrowserSignInRequired,
        Cause::TokenTooShortLived,
        Cause::WrongAccountKind,
        Cause::PasswordLoginDisabled,
        Cause::Refused,
        Cause::NoMechanism,
        Cause::NoStartTls,
        Cause::OffersXclient,
        Cause::TokenTooLong,
        Cause::Throttled,
        Cause::MailboxInUse,
        Cause::Unavailable,
        Cause::Malformed,
        Cause::Preauthenticated,
        Cause::BytesAfterStartTls,
    ];
    for cause in causes {
        assert!(Reason::parse(cause.reason()).is_some(), "{cause:?} has a reason that the API does not have");
        for by_a_person in [false, true] {
            let mut case = probed();
            if by_a_person {
                case.by_refresh_token();
            }
            case.observed.conclude(&Round {
                logins: vec![(Protocol::Smtp, refused(cause)), (Protocol::Imap, unavailable())],
                inputs: inputs("objects"),
                fingerprint: TokenFingerprint::default(),
                at: at(0),
            });
            let message = case.observed.probe.unwrap().verdict.unwrap().message;
            assert!(
                message.len() < 1_500 && !message.contains("  ") && !message.ends_with('.'),
                "{cause:?}: {message}"
            );
        }
    }
}
