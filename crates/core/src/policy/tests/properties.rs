//! Properties of the decision for all observations.

use k8s_openapi::jiff::SignedDuration;
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{
    fixtures::{Case, at},
    observations::{case, failure, passing, retry_after},
};
use crate::{
    api::Reason,
    oauth::{ClientAuth, Refusal, TokenRequest, read_token_response},
    policy::{
        Decision, decide,
        observed::History,
        status::{next_turn, status},
    },
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn nothing_is_requested_while_backing_off_and_nothing_written_after_a_write_that_failed(case in case()) {
        let decision = decide(&case.observed, case.now);
        if case.observed.sign_in_backoff(case.now).is_some() {
            prop_assert!(!matches!(decision, Decision::SignIn | Decision::Poll));
        }
        if case.observed.backoff(case.now).is_some() {
            prop_assert!(!matches!(decision, Decision::Issue(_)));
            if case.observed.history.failure().is_some_and(|(reason, _)| reason == Reason::SecretWriteFailed) {
                prop_assert!(!matches!(decision, Decision::Store | Decision::Publish(_) | Decision::KeepGrant));
            }
        }
    }

    #[test]
    fn a_retry_after_is_never_undercut_up_to_an_hour(
        (reason, times, second, ..) in failure(), part in 0i64..1_000, asked in retry_after(), elapsed in 0i64..3_600_000,
    ) {
        let (failed, asked) = (at(second) + SignedDuration::from_millis(part), SignedDuration::from_secs(asked));
        let mut refusal = Refusal::new(reason, "what");
        refusal.retry_after = Some(asked);
        let mut case = Case::new();
        for _ in 0..times {
            case.observed.history.fail(&refusal, "what. What to do.".into(), &"attempt".into(), failed);
        }
        let least = failed + asked.min(SignedDuration::from_hours(1));
        prop_assert!(case.observed.history.next_attempt.unwrap() >= least);
        let now = failed + SignedDuration::from_millis(elapsed);
        if now < least {
            let decision = decide(&case.observed, now);
            prop_assert!(matches!(decision, Decision::BackOff { until } if until >= least), "{:?}", decision);
        }
    }

    #[test]
    fn while_failures_that_pass_go_on_no_wait_is_shorter_than_the_one_before(
        reasons in vec(select(passing()), 2..20), asked in option::of(retry_after()),
    ) {
        let mut history = History::default();
        let (mut now, mut before) = (at(0), SignedDuration::ZERO);
        for reason in reasons {
            let mut refusal = Refusal::new(reason, "what");
            refusal.retry_after = asked.map(SignedDuration::from_secs);
            history.fail(&refusal, "what. What to do.".into(), &"attempt".into(), now);
            let next = history.next_attempt.unwrap();
            let wait = next.duration_since(now);
            prop_assert!(wait >= before, "{:?} after {:?}", wait, before);
            (now, before) = (next, wait);
        }
    }

    #[test]
    fn a_refresh_token_is_spent_by_one_alone_and_where_it_belongs(case in case()) {
        let decision = decide(&case.observed, case.now);
        let Some(grant) = &case.observed.grant else {
            let of_a_grant = matches!(decision, Decision::KeepGrant | Decision::SignIn | Decision::Poll | Decision::AwaitSignIn { .. } | Decision::Claimed { .. });
            prop_assert!(!of_a_grant);
            return Ok(());
        };
        let asks = matches!(decision, Decision::Issue(_) | Decision::SignIn | Decision::Poll);
        let claim = grant.stored.as_ref().and_then(|stored| stored.claim.as_ref());
        if claim.is_some_and(|claim| claim.holder != "me" && case.now < claim.until) || grant.foreign.is_some() || grant.unsaved {
            prop_assert!(!asks, "{:?}", decision);
        }
        if grant.unsaved {
            let taken = grant.foreign.is_some() && matches!(&decision, Decision::Stall(_));
            let kept_first = matches!(decision, Decision::InFlight | Decision::KeepGrant | Decision::BackOff { .. }) || taken;
            prop_assert!(kept_first, "{:?}", decision);
        }
        if matches!(decision, Decision::Issue(_)) {
            prop_assert!(grant.token().is_some() || matches!(grant.seed, Some(Ok(_))));
            prop_assert!(!matches!(grant.seed, Some(Err(_))));
        }
    }

    #[test]
    fn every_wait_ends_in_the_future(case in case()) {
        let decision = decide(&case.observed, case.now);
        match decision {
            Decision::Wait { until }
            | Decision::BackOff { until }
            | Decision::AwaitSignIn { until }
            | Decision::Claimed { until } => prop_assert!(until > case.now),
            _ => {}
        }
        prop_assert!(next_turn(&case.observed, &decision, case.now).is_none_or(|turn| turn > case.now));
    }

    #[test]
    fn a_token_is_renewed_in_time_to_be_valid_for_as_long_as_wanted(case in case()) {
        if let Decision::Wait { until } = decide(&case.observed, case.now) {
            let token = case.observed.token().unwrap();
            let lifetime = token.expires_at.duration_since(token.issued_at);
            let margin = SignedDuration::from_mins(12).min(lifetime / 2);
            // The broker renews a token with a lifetime of seconds after a second at the earliest.
            prop_assert!(until <= (token.expires_at - margin).max(token.issued_at + SignedDuration::from_secs(1)));
        }
    }

    #[test]
    fn ready_is_exactly_an_unexpired_token_for_this_spec(case in case()) {
        let decision = decide(&case.observed, case.now);
        let after = status(&case.observed, &decision, case.now);
        let ready = after.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        let good = case.observed.target.own().is_some_and(|published| {
            case.observed.is_for_this_spec(published)
                && published.token.as_ref().is_some_and(|token| token.is_unexpired(case.now))
        });
        prop_assert_eq!(ready.status == "True", good);
        prop_assert_eq!(ready.reason == "TokenValid", good);
        prop_assert_eq!(ready.observed_generation, Some(1));
    }

    #[test]
    fn a_status_that_was_written_is_decided_about_as_before_and_written_no_more(case in case()) {
        let decision = decide(&case.observed, case.now);
        let written = status(&case.observed, &decision, case.now);
        let mut again = case.clone();
        again.observed.history = History::of(&written);
        again.credential(|credential| credential.status = Some(written.clone()));
        let second = decide(&again.observed, case.now);
        prop_assert_eq!(&second, &decision);
        prop_assert_eq!(status(&again.observed, &second, case.now), written);
    }

    #[test]
    fn kstatus_sees_one_condition_at_most(case in case()) {
        let decision = decide(&case.observed, case.now);
        let after = status(&case.observed, &decision, case.now);
        let find = |kind: &str| after.conditions.iter().find(|condition| condition.type_ == kind);
        let (stalled, reconciling) = (find("Stalled"), find("Reconciling"));
        prop_assert!(stalled.is_none() || reconciling.is_none());
        prop_assert!([stalled, reconciling].into_iter().flatten().all(|condition| condition.status == "True"));
        let suspended = decision == Decision::Suspended;
        if suspended {
            prop_assert!(stalled.is_none() && reconciling.is_none());
        }
        let ready = find("Ready").unwrap();
        if ready.status == "True" {
            prop_assert!(stalled.is_none() && reconciling.is_none());
            if let Decision::Stall(blocker) = &decision {
                prop_assert_eq!(&find("Renewed").unwrap().status, "False");
                prop_assert!(ready.message.contains(&blocker.message));
            }
        } else if !suspended {
            prop_assert!(stalled.is_some() || reconciling.is_some());
        }
    }

    #[test]
    fn no_type_with_a_secret_shows_it(secret in "[A-Za-z0-9._~+/-]{12,60}={0,2}", body in "[a-z]{0,8}") {
        let answer = serde_json::json!({"access_token": secret, "token_type": "Bearer", "expires_in": 60, "scope": body});
        let response = http::Response::new(answer.to_string().into_bytes());
        let answer = read_token_response(&response, at(0), &[]).unwrap();
        let mut case = Case::ready();
        case.hold();
        let mut unwritten = case.observed.unwritten.clone().unwrap();
        unwritten.answer = answer.clone();
        case.observed.unwritten = Some(unwritten.clone());
        let auth = [ClientAuth::SecretPost(secret.clone().into()), ClientAuth::SecretBasic(secret.clone().into())];
        let scopes = vec![];
        let request = TokenRequest { token_url: "https://x/t", client_id: "c", auth: &auth[1], grant: crate::oauth::GrantProof::ClientCredentials, scopes: &scopes, parameters: &Default::default(), unique: "j", now: k8s_openapi::jiff::Timestamp::UNIX_EPOCH };
        let wire = crate::oauth::token_request(&request).unwrap();
        let texts = [
            format!("{answer:?}"),
            format!("{unwritten:?}"),
            format!("{case:#?}"),
            format!("{auth:?}"),
            format!("{request:?}"),
            format!("{:?}", wire.headers()),
        ];
        for text in texts {
            prop_assert!(!text.contains(&secret), "{}", text);
        }
    }

    #[test]
    fn nothing_of_a_refusals_body_is_shown(canary in "[A-Z0-9]{12,40}") {
        let body = serde_json::json!({
            "error": "invalid_client", "error_description": format!("secret {canary} is wrong"),
            "error_uri": canary, "correlation_id": canary, "trace_id": canary, "access_token": canary,
        });
        let response = http::Response::builder().status(400).body(body.to_string().into_bytes()).unwrap();
        let refusal = read_token_response(&response, at(0), &[]).unwrap_err();
        let text = format!("{refusal:?}");
        prop_assert!(!text.contains(&canary), "{}", text);
    }
}

#[test]
fn a_ready_credential_that_is_observed_again_waits_and_is_not_written() {
    let mut case = Case::ready();
    case.write_status();
    let before = case.observed.credential.status.clone();
    for second in [0, 1, 60, 1_000] {
        case.now = at(second);
        let decision = decide(&case.observed, case.now);
        assert!(matches!(decision, Decision::Wait { .. }));
        assert_eq!(Some(status(&case.observed, &decision, case.now)), before);
    }
}
