//! Tests of the decisions.

mod grants;
mod history;
mod inputs;
mod observations;
mod properties;
mod sign_in;
mod status;

use super::{Decision, IssueReason, PublishReason, decide, observed::Target};
use crate::{
    api::Reason,
    fixtures::{self, Case, at, published, token},
};

type Change = fn(&mut Case);
/// Checks whether a decision is the expected decision.
type Expected = fn(&Decision) -> bool;

/// The decision for a credential with a valid token, after one change.
fn decided(change: impl FnOnce(&mut Case)) -> Decision {
    let mut case = Case::ready();
    change(&mut case);
    decide(&case.observed, case.now)
}

fn stall(decision: &Decision) -> Option<Reason> {
    match decision {
        Decision::Stall(blocker) => Some(blocker.reason),
        _ => None,
    }
}

#[test]
fn a_good_token_is_left_alone_until_its_renewal_is_due() {
    let Decision::Wait { until } = decided(|_| ()) else { panic!("no wait") };
    assert!(until > at(0) && until < at(3600));
}

#[test]
fn credentials_that_were_made_together_are_not_renewed_together() {
    let due = |uid: &str| decided(|case| case.credential(|credential| credential.metadata.uid = Some(uid.into())));
    assert_ne!(due("one"), due("another"));
}

#[test]
fn a_token_is_requested_if_the_broker_has_published_none() {
    assert_eq!(decided(Case::without_token), Decision::Issue(IssueReason::NoToken));
    let emptied = |case: &mut Case| case.own(|published| published.token = None);
    assert_eq!(decided(emptied), Decision::Issue(IssueReason::NoToken));
}

#[test]
fn each_need_for_a_token_has_its_name() {
    let table: [(Change, IssueReason); 5] = [
        (|case| case.provider().issued_for = "another tenant".into(), IssueReason::InputsChanged),
        (|case| case.now = at(3600), IssueReason::Expired),
        (|case| case.annotate("mailtoken.dev/reissue", "1"), IssueReason::Reissue),
        (|case| case.now = at(3000), IssueReason::RenewalDue),
        (|case| case.now = at(-301), IssueReason::FromTheFuture),
    ];
    for (change, reason) in table {
        assert_eq!(decided(change), Decision::Issue(reason));
    }
    assert!(matches!(decided(|case| case.now = at(-300)), Decision::Wait { .. }), "clocks differ a little");
}

#[test]
fn a_failure_of_the_future_delays_nothing() {
    let after = |seconds| {
        decided(|case| {
            case.without_token();
            case.failed(Reason::ProviderUnavailable);
            case.now = at(seconds);
        })
    };
    assert_eq!(after(-300), Decision::BackOff { until: at(5) });
    assert_eq!(after(-301), Decision::Issue(IssueReason::NoToken));
}

#[test]
fn a_reissue_is_answered_once_by_the_record_in_secret_or_status() {
    let asked = |case: &mut Case| case.annotate("mailtoken.dev/reissue", "1");
    let on_the_secret = decided(|case| {
        asked(case);
        case.own(|published| published.handled_reissue = Some("1".into()));
    });
    let in_the_status = decided(|case| {
        asked(case);
        case.observed.history.handled_reissue = Some("1".into());
    });
    for decision in [on_the_secret, in_the_status] {
        assert!(matches!(decision, Decision::Wait { .. }), "{decision:?}");
    }
    let again = decided(|case| {
        case.annotate("mailtoken.dev/reissue", "2");
        case.own(|published| published.handled_reissue = Some("1".into()));
    });
    assert_eq!(again, Decision::Issue(IssueReason::Reissue));
}

#[test]
fn each_difference_of_the_target_has_its_name_and_needs_no_new_token() {
    let table: [(Change, PublishReason); 4] = [
        (
            |case| (case.observed.previous, case.observed.target) = (Some(published(token())), Target::Absent),
            PublishReason::Renamed,
        ),
        (|case| case.own(|published| published.must_recreate = true), PublishReason::Recreate),
        (|case| case.own(|published| published.intact = false), PublishReason::Repair),
        (|case| case.provider().layout = "with IMAP".into(), PublishReason::Layout),
    ];
    for (change, reason) in table {
        assert_eq!(decided(change), Decision::Publish(reason));
    }
}

#[test]
fn while_a_renewal_waits_the_token_that_serves_is_kept_in_shape() {
    let changed = |case: &mut Case| {
        case.now = at(3000);
        case.provider().layout = "with IMAP".into();
        case.failed_at(Reason::InvalidClient, 2999);
    };
    assert_eq!(decided(changed), Decision::Publish(PublishReason::Layout));
    let refused = decided(|case| {
        changed(case);
        case.failed_at(Reason::SecretWriteFailed, 3000);
    });
    assert_eq!(refused, Decision::BackOff { until: at(3005) });
    let expired = decided(|case| {
        changed(case);
        case.now = at(3600);
    });
    assert_eq!(expired, Decision::BackOff { until: at(2999 + 900) });
}

#[test]
fn a_renamed_secret_whose_token_is_for_other_inputs_is_not_carried_over() {
    let decision = decided(|case| {
        (case.observed.previous, case.observed.target) = (Some(published(token())), Target::Absent);
        case.provider().issued_for = "another tenant".into();
    });
    assert_eq!(decision, Decision::Issue(IssueReason::InputsChanged));
}

#[test]
fn after_a_failure_nothing_is_requested_before_its_time() {
    let failing = |now| {
        decided(move |case| {
            case.without_token();
            case.failed(Reason::InvalidClient);
            case.now = at(now);
        })
    };
    assert_eq!(failing(1), Decision::BackOff { until: at(900) });
    assert_eq!(failing(899), Decision::BackOff { until: at(900) });
    assert_eq!(failing(900), Decision::Issue(IssueReason::NoToken));
}

#[test]
fn any_change_of_the_inputs_of_an_attempt_ends_the_back_off() {
    let decision = decided(|case| {
        case.without_token();
        case.failed(Reason::InvalidClient);
        case.observed.attempt_hash = "another secret".into();
    });
    assert_eq!(decision, Decision::Issue(IssueReason::NoToken));
}

#[test]
fn a_token_that_is_held_is_written_and_never_requested_again() {
    assert_eq!(decided(|case| case.hold()), Decision::Store);
    let refused = decided(|case| {
        case.hold();
        case.failed(Reason::SecretWriteFailed);
    });
    assert_eq!(refused, Decision::BackOff { until: at(5) });
    let blocked = |reason: Reason| {
        let mut case = Case::ready();
        case.hold();
        case.provider().blocker = Some(fixtures::blocker(reason));
        decide(&case.observed, case.now)
    };
    assert_eq!(blocked(Reason::SourceNotFound), Decision::Store);
    // A withdrawn allowance also applies to a token that is not published yet.
    assert_eq!(stall(&blocked(Reason::NotAllowed)), Some(Reason::NotAllowed));
}

#[test]
fn a_held_token_for_other_inputs_or_at_its_end_is_of_no_use() {
    let other = decided(|case| {
        case.without_token();
        case.hold();
        case.provider().issued_for = "another tenant".into();
    });
    let ended = decided(|case| {
        case.without_token();
        case.hold();
        case.now = at(3600);
    });
    for decision in [other, ended] {
        assert_eq!(decision, Decision::Issue(IssueReason::NoToken));
    }
}

#[test]
fn a_held_token_is_overtaken_by_another_that_was_published_since() {
    let overtaken = |change: fn(&mut Case)| {
        let mut case = Case::ready();
        case.hold();
        change(&mut case);
        case.observed.is_overtaken()
    };
    assert!(overtaken(|_| ()), "there was none when it was asked for");
    assert!(!overtaken(Case::without_token));
    assert!(!overtaken(|case| case.observed.unwritten.as_mut().unwrap().follows = Some(fixtures::token().fingerprint)));
    // A watch shows the Secret of a deleted credential of the same name late.
    let older = |case: &mut Case| {
        let issued_at = case.observed.unwritten.as_ref().unwrap().answer.token.issued_at;
        case.own(|published| {
            published.token.as_mut().unwrap().issued_at = issued_at - k8s_openapi::jiff::SignedDuration::from_secs(1);
        });
    };
    assert!(!overtaken(older));
    // A write whose response was lost has already succeeded.
    let written = |case: &mut Case| {
        let fingerprint = case.observed.unwritten.as_ref().unwrap().answer.token.fingerprint();
        case.own(|published| published.token.as_mut().unwrap().fingerprint = fingerprint);
    };
    assert!(!overtaken(written));
}

#[test]
fn a_blocked_provider_stalls_also_while_the_token_is_good() {
    for reason in [Reason::InvalidSpec, Reason::NotAllowed, Reason::SourceNotLabeled, Reason::ProviderNotReady] {
        let decision = decided(|case| case.provider().blocker = Some(fixtures::blocker(reason)));
        assert_eq!(stall(&decision), Some(reason));
    }
    let missing = decided(|case| case.observed.provider = Err(fixtures::blocker(Reason::ProviderNotFound)));
    assert_eq!(stall(&missing), Some(Reason::ProviderNotFound));
}

#[test]
fn a_blocked_provider_stops_no_repair_of_what_was_allowed_before() {
    let blocked = |change: fn(&mut Case)| {
        decided(|case| {
            case.provider().blocker = Some(fixtures::blocker(Reason::NotAllowed));
            change(case);
        })
    };
    assert_eq!(blocked(|case| case.own(|own| own.intact = false)), Decision::Publish(PublishReason::Repair));
    assert_eq!(blocked(|case| case.own(|own| own.must_recreate = true)), Decision::Publish(PublishReason::Recreate));
    let other_layout = blocked(|case| {
        case.own(|own| own.intact = false);
        case.provider().layout = "other".into();
    });
    assert_eq!(stall(&other_layout), Some(Reason::NotAllowed));
}

#[test]
fn conflicts_name_both_solutions() {
    let foreign = decided(|case| case.observed.target = Target::Foreign("belongs to the Deployment web".into()));
    let rival = decided(|case| case.observed.rival = Some("older".into()));
    for (decision, who) in [(&foreign, "belongs to the Deployment web"), (&rival, "MailCredential older")] {
        let Decision::Stall(blocker) = decision else { panic!("{decision:?}") };
        assert_eq!(blocker.reason, Reason::SecretConflict);
        assert!(blocker.message.contains(who), "{}", blocker.message);
        let rename = r#"`kubectl -n shop patch mailcredential billing --type merge -p '{"spec":{"secret":{"name":"<another name>"}}}'`"#;
        assert!(blocker.message.contains(rename), "{}", blocker.message);
    }
}

#[test]
fn a_renewal_is_due_in_the_second_that_the_status_shows() {
    let Decision::Wait { until } = decided(|_| ()) else { panic!("nothing is due yet") };
    assert_ne!(until.subsec_nanosecond(), 0, "this one's jitter has a fraction");
    let reported =
        crate::policy::status::status(&Case::ready().observed, &Decision::Wait { until }, at(0)).token.unwrap();
    let second = reported.renewal_time.0;
    assert_eq!(decided(|case| case.now = second), Decision::Issue(IssueReason::RenewalDue));
    let before = at(second.as_second() - at(0).as_second() - 1);
    assert_eq!(decided(|case| case.now = before), Decision::Wait { until });
}

#[test]
fn the_earlier_rule_decides() {
    // Each change leads to a decision that precedes the decisions of the changes above it.
    let changes: [(Change, Expected); 8] = [
        (|case| case.provider().layout = "other".into(), |d| *d == Decision::Publish(PublishReason::Layout)),
        (|case| case.now = at(3000), |d| *d == Decision::Issue(IssueReason::RenewalDue)),
        (|case| case.failed_at(Reason::SecretWriteFailed, 2999), |d| *d == Decision::BackOff { until: at(3004) }),
        (
            |case| case.provider().blocker = Some(fixtures::blocker(Reason::SourceNotFound)),
            |d| stall(d) == Some(Reason::SourceNotFound),
        ),
        (|case| (case.hold(), case.observed.attempt_hash = "changed".into()).1, |d| *d == Decision::Store),
        (
            |case| case.observed.target = Target::Foreign("is not ours".into()),
            |d| stall(d) == Some(Reason::SecretConflict),
        ),
        (|case| case.observed.in_flight = true, |d| *d == Decision::InFlight),
        (|case| case.credential(|credential| credential.spec.suspend = true), |d| *d == Decision::Suspended),
    ];
    let mut case = Case::ready();
    for (index, (change, expected)) in changes.into_iter().enumerate() {
        change(&mut case);
        let decision = decide(&case.observed, case.now);
        assert!(expected(&decision), "{index}: {decision:?}");
    }
}

#[test]
fn a_token_that_still_works_is_kept_in_shape_while_its_renewal_waits_for_a_permit() {
    let with = |now: i64| {
        decided(|case| {
            (case.now, case.observed.queued) = (at(now), true);
            case.provider().layout = "other".into();
        })
    };
    assert_eq!(with(3000), Decision::Publish(PublishReason::Layout));
    assert_eq!(with(3600), Decision::Issue(IssueReason::Expired), "nothing is left to keep in shape");
    let in_shape = decided(|case| (case.now, case.observed.queued) = (at(3000), true));
    assert_eq!(in_shape, Decision::Issue(IssueReason::RenewalDue));
}

#[test]
fn a_suspended_credential_reports_no_conflict() {
    let decision = decided(|case| {
        case.credential(|credential| credential.spec.suspend = true);
        case.observed.rival = Some("older".into());
    });
    assert_eq!(decision, Decision::Suspended);
}

#[test]
fn failures_are_counted_by_kind_and_from_zero_after_a_change() {
    let mut case = Case::ready();
    let count = |case: &Case| case.observed.history.failed_attempts;
    case.failed(Reason::ProviderUnavailable);
    case.failed(Reason::Throttled);
    assert_eq!(count(&case), 2, "one kind: transient");
    case.failed(Reason::InvalidClient);
    assert_eq!((count(&case), case.observed.history.next_attempt), (1, Some(at(900))), "another kind");
    case.failed(Reason::InvalidClient);
    assert_eq!((count(&case), case.observed.history.next_attempt), (2, Some(at(1800))));
    case.observed.attempt_hash = "another secret".into();
    case.failed(Reason::InvalidClient);
    assert_eq!((count(&case), case.observed.history.next_attempt), (1, Some(at(900))), "after a change");
}

#[test]
fn a_missing_provider_is_reported_only_after_it_had_time_to_arrive() {
    let waits = |age: i64, change: fn(&mut Case)| {
        let mut case = Case::new();
        case.observed.provider = Err(fixtures::blocker(Reason::ProviderNotFound));
        case.credential(|credential| {
            let made = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0));
            credential.metadata.creation_timestamp = Some(made);
        });
        case.now = at(age);
        change(&mut case);
        super::provider_may_be_on_its_way(&case.observed, case.now)
    };
    assert_eq!([-1, 0, 1, 2].map(|age| waits(age, |_| ())), [false, true, true, false]);
    assert!(!waits(0, Case::write_status), "a reported problem stays reported");
    assert!(!waits(0, |case| case.observed.provider = Case::new().observed.provider));
}
