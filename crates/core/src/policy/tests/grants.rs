//! Tests of decisions about users' grants.

use k8s_openapi::jiff::SignedDuration;

use super::{
    decided,
    fixtures::{self, Case, at, blocker},
    stall,
};
use crate::{
    api::Reason,
    policy::{
        Decision, IssueReason, decide,
        grant::{Claim, GrantSecret, Seed, TokenNote},
        observed::Target,
        status::{next_turn, status},
    },
};

const DAY: i64 = 24 * 3600;

/// Decides for a due renewal.
fn due(change: impl FnOnce(&mut Case)) -> Decision {
    decided(|case| {
        case.by_refresh_token();
        case.now = at(3000);
        change(case);
    })
}

fn seed() -> Seed {
    Seed { hash: "another".into(), version: "9".into() }
}

#[test]
fn a_refresh_token_is_exchanged_when_a_token_is_needed() {
    assert_eq!(due(|_| ()), Decision::Issue(IssueReason::RenewalDue));
    assert!(matches!(due(|case| case.now = at(1)), Decision::Wait { .. }));
}

#[test]
fn another_brokers_claim_prevents_the_exchange() {
    assert_eq!(due(|case| case.claimed("another", 3001)), Decision::Claimed { until: at(3001) });
    assert_eq!(due(|case| case.claimed("another", 3000)), Decision::Issue(IssueReason::RenewalDue), "its time is over");
    assert_eq!(due(|case| case.claimed("me", 9000)), Decision::Issue(IssueReason::RenewalDue), "the holder may");
    let seeded = due(|case| {
        case.grant().seed = Some(Ok(seed()));
        case.claimed("another", 3001);
    });
    assert_eq!(seeded, Decision::Claimed { until: at(3001) });
}

#[test]
fn an_unsaved_token_is_written_first() {
    let unsaved = |change: fn(&mut Case)| {
        due(|case| {
            case.grant().unsaved = true;
            case.hold();
            change(case);
        })
    };
    assert_eq!(unsaved(|_| ()), Decision::KeepGrant);
    assert_eq!(unsaved(|case| case.credential(|credential| credential.spec.suspend = true)), Decision::KeepGrant);
    assert_eq!(unsaved(|case| case.observed.target = Target::Foreign("is not ours".into())), Decision::KeepGrant);
    assert_eq!(unsaved(|case| case.failed_at(Reason::InvalidGrant, 2999)), Decision::KeepGrant);
    assert_eq!(unsaved(|case| case.failed_at(Reason::SecretWriteFailed, 2999)), Decision::BackOff { until: at(3004) });
    assert_eq!(unsaved(|case| case.observed.in_flight = true), Decision::InFlight);
    let suspended_in_flight = |case: &mut Case| {
        case.observed.in_flight = true;
        case.credential(|credential| credential.spec.suspend = true);
    };
    assert_eq!(unsaved(suspended_in_flight), Decision::InFlight, "the sender of the request stores its response");
}

#[test]
fn labels_and_owner_of_a_grant_secret_are_repaired_unless_suspended() {
    let out_of_sync = |change: fn(&mut Case)| {
        decided(|case| {
            case.by_refresh_token().out_of_sync = true;
            change(case);
        })
    };
    assert_eq!(out_of_sync(|_| ()), Decision::KeepGrant);
    assert_eq!(out_of_sync(|case| case.credential(|credential| credential.spec.suspend = true)), Decision::Suspended);
}

#[test]
fn a_refresh_token_of_another_provider_or_client_is_not_sent() {
    let elsewhere = |case: &mut Case| case.stored().token.as_mut().unwrap().bound_to = "another".into();
    let Decision::Stall(blocker) = due(elsewhere) else { panic!("it is sent") };
    assert_eq!(blocker.reason, Reason::AuthorizationRequired);
    assert!(blocker.message.contains("`mail-token-broker login --provider idp -n shop"), "{}", blocker.message);
    let seeded = due(|case| {
        elsewhere(case);
        case.grant().seed = Some(Ok(seed()));
    });
    assert_eq!(seeded, Decision::Issue(IssueReason::Reseeded));
}

#[test]
fn another_seed_is_used_immediately_and_until_it_yields_a_token() {
    let fresh = |change: fn(&mut Case)| {
        decided(|case| {
            case.by_refresh_token();
            change(case);
        })
    };
    assert_eq!(fresh(|case| case.grant().seed = Some(Ok(seed()))), Decision::Issue(IssueReason::Reseeded));
    let untried = |case: &mut Case| case.stored().token.as_mut().unwrap().last_used_at = None;
    assert_eq!(fresh(untried), Decision::Issue(IssueReason::Reseeded));
    let refused = fresh(|case| {
        case.stored().token.as_mut().unwrap().last_used_at = None;
        case.failed(Reason::InvalidGrant);
    });
    assert_eq!(refused, Decision::BackOff { until: at(900) });
}

#[test]
fn a_seed_that_is_withdrawn_stops_the_renewal_immediately_and_not_the_token() {
    let mut case = Case::ready();
    case.by_refresh_token().seed = Some(Err(blocker(Reason::SourceNotLabeled)));
    let decision = decide(&case.observed, case.now);
    assert_eq!(stall(&decision), Some(Reason::SourceNotLabeled));
    let reported = status(&case.observed, &decision, case.now);
    let find =
        |kind: &str| reported.conditions.iter().find(|condition| condition.type_ == kind).map(|it| it.reason.as_str());
    assert_eq!((find("Ready"), find("Renewed")), (Some("TokenValid"), Some("SourceNotLabeled")));
    assert_eq!(find("Stalled"), None, "mail still works");
}

#[test]
fn a_refresh_token_is_used_often_enough_to_live() {
    // Columns: the provider's expiry in days, the lifetime without use in days, the time from the last use to the next.
    let table =
        [(None, None, 7 * DAY), (None, Some(90), 7 * DAY), (None, Some(10), 5 * DAY), (Some(4), Some(90), 2 * DAY)];
    for (end, idle, due) in table {
        let mut case = Case::ready();
        case.own(|own| own.token.as_mut().unwrap().expires_at = at(400 * DAY));
        case.by_refresh_token().idle_life = idle.map(|days: i64| SignedDuration::from_hours(24 * days));
        case.stored().token.as_mut().unwrap().expires_at = end.map(|days: i64| at(days * DAY));
        case.now = at(due - 1);
        assert!(matches!(decide(&case.observed, case.now), Decision::Wait { .. }), "{due}");
        assert_eq!(next_turn(&case.observed, &decide(&case.observed, case.now), case.now), Some(at(due)));
        case.now = at(due);
        assert_eq!(decide(&case.observed, case.now), Decision::Issue(IssueReason::KeepAlive), "{due}");
    }
}

#[test]
fn a_grant_is_used_against_expiry_only_while_that_can_succeed() {
    let late = |change: fn(&mut Case)| {
        let mut case = Case::ready();
        case.own(|own| own.token.as_mut().unwrap().expires_at = at(400 * DAY));
        case.by_refresh_token();
        case.now = at(7 * DAY);
        change(&mut case);
        let decision = decide(&case.observed, case.now);
        let turn = next_turn(&case.observed, &decision, case.now);
        (decision, turn)
    };
    assert_eq!(late(|_| ()).0, Decision::Issue(IssueReason::KeepAlive));
    let (decision, turn) = late(|case| case.failed_at(Reason::ProviderUnavailable, 7 * DAY));
    assert!(matches!(decision, Decision::Wait { .. }));
    assert_eq!(turn, Some(at(7 * DAY + 5)));
    assert!(matches!(late(|case| case.claimed("another", 8 * DAY)).0, Decision::Wait { .. }));
    assert_eq!(late(|case| case.credential(|credential| credential.spec.suspend = true)).0, Decision::Suspended);
    assert_eq!(
        stall(&late(|case| case.provider().blocker = Some(blocker(Reason::NotAllowed))).0),
        Some(Reason::NotAllowed)
    );
}

#[test]
fn annotations_are_read_back_and_unknown_values_are_ignored() {
    let claim = Claim { holder: "me".into(), since: at(0), until: at(9), token: "hash".into() };
    let read = |annotations: &[(&str, &str)]| {
        let map = annotations.iter().map(|(key, value)| (format!("mailtoken.dev/{key}"), (*value).to_owned()));
        GrantSecret::read(&kube::core::ObjectMeta { annotations: Some(map.collect()), ..Default::default() })
    };
    let whole = read(&[
        ("fingerprint", "hash"),
        ("issued-for", "bound"),
        ("obtained-at", "2027-01-15T08:00:00Z"),
        ("rotations", "7"),
        ("claim", &serde_json::to_string(&claim).unwrap()),
    ]);
    assert_eq!(whole.token.as_ref().map(|token| (token.hash.as_str(), token.rotations)), Some(("hash", 7)));
    assert_eq!(whole.claim, Some(claim));
    let torn = read(&[
        ("fingerprint", "hash"),
        ("obtained-at", "yesterday"),
        ("claim", "{"),
        ("seed", "[]"),
        ("rotations", "x"),
    ]);
    assert_eq!((torn.token, torn.claim, torn.seed), (None, None, None));
}

#[test]
fn an_exchange_records_the_replacement_and_counts_only_another_token() {
    let before = || TokenNote { expires_at: Some(at(50)), rotations: 3, ..fixtures::note() };
    // The hash in the response, the expiry in the response; the recorded hash, expiry and number of replacements.
    type Row = (Option<&'static str>, Option<i64>, &'static str, Option<i64>, i64);
    let table: [Row; 4] = [
        (None, None, "hash", Some(50), 3),
        (Some("hash"), Some(90), "hash", Some(90), 3),
        (Some("next"), Some(90), "next", Some(90), 4),
        (Some("next"), None, "next", None, 4),
    ];
    for (rotated, end, hash, expires, rotations) in table {
        let mut token = before();
        token.note_exchange(at(7), rotated.map(|hash| (hash.into(), end.map(at))));
        let expires_at = expires.map(at);
        let expected = TokenNote { hash: hash.into(), last_used_at: Some(at(7)), expires_at, rotations, ..before() };
        assert_eq!(token, expected, "{rotated:?} {end:?}");
    }
}
