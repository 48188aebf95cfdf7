//! What holds for every observation.

use k8s_openapi::jiff::SignedDuration;
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::fixtures::{Case, at, blocker, published, token};
use crate::{
    api::Reason,
    oauth::{ClientAuth, Refusal, TokenRequest, read_token_response},
    policy::{
        Decision, decide,
        grant::Seed,
        observed::{History, Target, TokenFacts},
        status::{next_turn, status},
    },
};

/// What may be found in the place of the target.
#[derive(Clone, Copy, Debug)]
enum Found {
    Nothing,
    Foreign,
    UnderTheFormerName,
    Own { issued_for_this: bool, intact: bool, same_layout: bool, usable: bool },
}

fn found() -> impl Strategy<Value = Found> {
    prop_oneof![
        1 => Just(Found::Nothing),
        1 => Just(Found::Foreign),
        1 => Just(Found::UnderTheFormerName),
        5 => (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(issued_for_this, intact, same_layout, usable)| Found::Own { issued_for_this, intact, same_layout, usable }
        ),
    ]
}

/// An attempt that failed: why, how often, when, with what `Retry-After`, whether it was a sign-in, and whether anything
/// changed since.
type Failure = (Reason, u32, i64, Option<i64>, bool, bool);

fn failure() -> impl Strategy<Value = Failure> {
    let failing: Vec<_> = Reason::ALL.iter().copied().filter(|reason| reason.stalls() || transient(*reason)).collect();
    (select(failing), 1u32..12, 0i64..4000, option::of(0i64..100_000), prop::bool::weighted(0.2), any::<bool>())
}

fn transient(reason: Reason) -> bool {
    reason.retry() == crate::api::Retry::Transient
}

fn passing() -> Vec<Reason> {
    Reason::ALL.iter().copied().filter(|reason| transient(*reason)).collect()
}

/// Seconds; as many within the hour up to which they are obeyed as beyond it.
fn retry_after() -> impl Strategy<Value = i64> {
    prop_oneof![0i64..3_600, 3_600i64..100_000]
}

fn blocked() -> impl Strategy<Value = Option<Reason>> {
    option::weighted(
        0.2,
        select(vec![Reason::InvalidSpec, Reason::NotAllowed, Reason::SourceNotLabeled, Reason::ProviderNotReady]),
    )
}

/// What a person has granted.
#[derive(Clone, Debug)]
struct Granted {
    by_code: bool,
    kept: bool,
    token: Option<(bool, Option<i64>, Option<i64>)>,
    claim: Option<(bool, i64)>,
    seed: Option<bool>,
    sign_in: Option<(i64, i64, bool, bool)>,
    foreign: bool,
    unsaved: bool,
    undressed: bool,
    next_poll: Option<i64>,
    code_over: bool,
    idle_days: Option<i64>,
}

prop_compose! {
    fn granted()(
        by_code in any::<bool>(),
        kept in prop::bool::weighted(0.9),
        token in option::weighted(0.8, (prop::bool::weighted(0.8), option::of(-4_000_000i64..4000), option::of(-100i64..4_000_000))),
        claim in option::of((any::<bool>(), -100i64..5000)),
        seed in option::weighted(0.3, any::<bool>()),
        sign_in in option::of((-100_000i64..0, 0i64..5000, prop::bool::weighted(0.8), prop::bool::weighted(0.2))),
        (foreign, unsaved, undressed) in (prop::bool::weighted(0.1), prop::bool::weighted(0.2), prop::bool::weighted(0.1)),
        next_poll in option::of(0i64..5000),
        code_over in prop::bool::weighted(0.2),
        idle_days in option::of(1i64..90),
    ) -> Granted {
        Granted { by_code, kept, token, claim, seed, sign_in, foreign, unsaved, undressed, next_poll, code_over, idle_days }
    }
}

fn grant(case: &mut Case, granted: Granted) {
    if granted.by_code {
        case.by_device_code()
    } else {
        case.by_refresh_token()
    };
    match granted.token {
        None => case.kept().token = None,
        Some((bound, used, end)) => {
            let token = case.kept().token.as_mut().unwrap();
            (token.last_used_at, token.expires_at) = (used.map(at), end.map(at));
            if !bound {
                token.bound_to = "another".into();
            }
        }
    }
    if let Some((mine, until)) = granted.claim {
        case.claimed(if mine { "me" } else { "another" }, until);
    }
    if let Some((began, until, asked, ended)) = granted.sign_in {
        let sign_in = case.signing_in(began, until);
        sign_in.ended = ended.then(|| "denied".to_owned());
        if !asked {
            sign_in.asked_for = "another spec".into();
        }
    }
    let grant = case.grant();
    let seed = Seed { hash: "another".into(), version: "9".into() };
    grant.seed = granted
        .seed
        .filter(|_| !granted.by_code)
        .map(|good| good.then_some(seed).ok_or_else(|| blocker(Reason::SourceNotLabeled)));
    grant.foreign = granted.foreign.then(|| "is not ours".to_owned());
    (grant.unsaved, grant.undressed, grant.code_over) = (granted.unsaved, granted.undressed, granted.code_over);
    grant.next_poll = granted.next_poll.map(at);
    grant.idle_life = granted.idle_days.map(|days| SignedDuration::from_hours(24 * days));
    if !granted.kept || granted.foreign {
        grant.kept = None;
    }
}

prop_compose! {
    fn case()(
        found in found(),
        lifetime in 2i64..100_000,
        refresh in option::of(1i64..50_000),
        now in 0i64..4000,
        failure in option::of(failure()),
        blocked in blocked(),
        missing in prop::bool::weighted(0.1),
        (held, in_flight, suspended, rival) in (any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.1), prop::bool::weighted(0.1)),
        reissue in option::of(select(vec!["1", "2"])),
        granted in option::of(granted()),
        told in any::<bool>(),
    ) -> Case {
        let mut case = Case::ready();
        let refresh_at = refresh.map(at).filter(|refresh_at| *refresh_at < at(lifetime));
        let own = published(TokenFacts { expires_at: at(lifetime), refresh_at, ..token() });
        case.observed.target = match found {
            Found::Nothing => Target::Absent,
            Found::Foreign => Target::Foreign("is not ours".into()),
            Found::UnderTheFormerName => {
                case.observed.previous = Some(own);
                Target::Absent
            }
            Found::Own { issued_for_this, intact, same_layout, usable } => {
                let mut own = own;
                own.intact = intact;
                own.must_recreate = !usable;
                if !issued_for_this { own.issued_for = "another tenant".into(); }
                if !same_layout { own.layout = "another".into(); }
                own.handled_reissue = Some("1".into());
                Target::Own(own)
            }
        };
        if matches!(case.observed.target, Target::Absent) {
            case.observed.history = History::default();
        }
        if told {
            case.told();
        }
        if let Some((reason, times, second, retry_after, signing_in, changed)) = failure {
            let mut refusal = Refusal::new(reason, "what");
            refusal.retry_after = retry_after.map(SignedDuration::from_secs);
            for _ in 0..times {
                case.observed.history.fail(&refusal, "what. What to do.".into(), "attempt", at(second));
            }
            if signing_in { case.observed.history.failed_with = Some(case.observed.sign_in_attempt()); }
            if changed { case.observed.attempt = "changed".into(); }
        }
        if held { case.hold(); }
        if let Some(reason) = blocked { case.provider().blocker = Some(blocker(reason)); }
        if missing { case.observed.provider = Err(blocker(Reason::ProviderNotFound)); }
        if let Some(granted) = granted { grant(&mut case, granted); }
        if let Some(value) = reissue { case.annotate("mailtoken.dev/reissue", value); }
        case.credential(|credential| credential.spec.suspend = suspended);
        case.observed.in_flight = in_flight;
        case.observed.rival = rival.then(|| "older".to_owned());
        case.now = at(now);
        case
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn nothing_is_asked_for_while_backing_off_and_nothing_written_after_a_write_that_failed(case in case()) {
        let decision = decide(&case.observed, case.now);
        if case.observed.history.backoff(&case.observed.sign_in_attempt(), case.now).is_some() {
            prop_assert!(!matches!(decision, Decision::SignIn | Decision::Poll));
        }
        if case.observed.history.backoff(&case.observed.attempt, case.now).is_some() {
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
            case.observed.history.fail(&refusal, "what. What to do.".into(), "attempt", failed);
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
            history.fail(&refusal, "what. What to do.".into(), "attempt", now);
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
        let claim = grant.kept.as_ref().and_then(|kept| kept.claim.as_ref());
        if claim.is_some_and(|claim| claim.holder != "me" && case.now < claim.until) || grant.foreign.is_some() || grant.unsaved {
            prop_assert!(!asks, "{:?}", decision);
        }
        if grant.unsaved {
            let kept_first = matches!(decision, Decision::InFlight | Decision::KeepGrant | Decision::BackOff { .. });
            prop_assert!(kept_first, "{:?}", decision);
        }
        if matches!(decision, Decision::Issue(_)) {
            prop_assert!(grant.token().is_some() || matches!(grant.seed, Some(Ok(_))));
            prop_assert!(!matches!(grant.seed, Some(Err(_))));
        }
    }

    #[test]
    fn whatever_waits_wakes_in_the_future(case in case()) {
        match decide(&case.observed, case.now) {
            Decision::Wait { until }
            | Decision::BackOff { until }
            | Decision::AwaitSignIn { until }
            | Decision::Claimed { until } => prop_assert!(until > case.now),
            _ => {}
        }
        prop_assert!(next_turn(&case.observed, case.now).is_none_or(|turn| turn > case.now));
    }

    #[test]
    fn a_token_is_renewed_in_time_to_be_valid_for_as_long_as_wanted(case in case()) {
        if let Decision::Wait { until } = decide(&case.observed, case.now) {
            let token = case.observed.token().unwrap();
            let lifetime = token.expires_at.duration_since(token.issued_at);
            let margin = SignedDuration::from_mins(12).min(lifetime / 2);
            // A token of seconds is renewed after a second at the soonest.
            prop_assert!(until <= (token.expires_at - margin).max(token.issued_at + SignedDuration::from_secs(1)));
        }
    }

    #[test]
    fn ready_is_an_unexpired_token_for_this_spec_and_nothing_else(case in case()) {
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
    fn kstatus_is_told_one_thing(case in case()) {
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
        if matches!(decision, Decision::Stall(_)) {
            prop_assert!(stalled.is_some());
        }
        if find("Ready").unwrap().status == "False" && !suspended {
            prop_assert!(stalled.is_some() || reconciling.is_some());
        }
    }

    #[test]
    fn no_secret_is_shown_by_what_holds_one(secret in "[!-~]{12,60}", body in "[a-z]{0,8}") {
        let answer = serde_json::json!({"access_token": secret, "token_type": "Bearer", "expires_in": 60, "scope": body});
        let response = http::Response::new(answer.to_string().into_bytes());
        let answer = read_token_response(&response, at(0), &[]).unwrap();
        let mut case = Case::ready();
        case.hold();
        let mut held = case.observed.held.clone().unwrap();
        held.answer = answer.clone();
        case.observed.held = Some(held.clone());
        let auth = [ClientAuth::SecretPost(secret.clone().into()), ClientAuth::SecretBasic(secret.clone().into())];
        let scopes = vec![];
        let request = TokenRequest { token_url: "https://x/t", client_id: "c", auth: &auth[1], grant: crate::oauth::GrantProof::ClientCredentials, scopes: &scopes, unique: "j", now: k8s_openapi::jiff::Timestamp::UNIX_EPOCH };
        let wire = crate::oauth::token_request(&request).unwrap();
        let texts = [
            format!("{answer:?}"),
            format!("{held:?}"),
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
    case.told();
    let before = case.observed.credential.status.clone();
    for second in [0, 1, 60, 1_000] {
        case.now = at(second);
        let decision = decide(&case.observed, case.now);
        assert!(matches!(decision, Decision::Wait { .. }));
        assert_eq!(Some(status(&case.observed, &decision, case.now)), before);
    }
}
