//! Tests of the steps of a sign-in with a code.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::fixtures::{Case, at, note};
use crate::{
    api::Reason,
    oauth::Refusal,
    policy::{
        Decision, IssueReason, decide,
        grant::{GrantSecret, RefreshGrant, SignIn},
        notices::notices,
        status::status,
    },
};

const DAY: i64 = 24 * 3600;

/// A credential with a code that was shown at `at(0)` for ten minutes.
fn pending() -> Case {
    let mut case = Case::new();
    case.credential(|credential| credential.spec.grant = serde_json::from_str(r#"{"deviceCode": {}}"#).unwrap());
    let sign_in = SignIn {
        user_code: "WDJB-MJHT".into(),
        verification_uri: "https://x/sign-in".into(),
        verification_uri_complete: None,
        expires_at: at(600),
        interval: 5,
        shown_at: at(0),
        began_at: at(0),
        asked_by: "generation 1".into(),
        asked_for: "inputs".into(),
        ended: None,
    };
    case.observed.grant = Some(RefreshGrant {
        stored: Some(GrantSecret { sign_in: Some(sign_in), ..GrantSecret::default() }),
        bound_to: Some("bound".into()),
        revocable_at: "revocable".into(),
        asked_by: "generation 1".into(),
        asked_for: Some("inputs".into()),
        next_poll: Some(at(6)),
        ..RefreshGrant::default()
    });
    case
}

impl Case {
    fn sign_in(&mut self) -> &mut SignIn {
        self.grant().stored.as_mut().unwrap().sign_in.as_mut().unwrap()
    }

    fn sign_in_failed(&mut self, reason: Reason) {
        let attempt = self.observed.sign_in_attempt_hash();
        self.observed.history.fail(&Refusal::new(reason, "what"), "what.".into(), &attempt, at(0));
    }

    fn decides(&self) -> Decision {
        decide(&self.observed, self.now)
    }

    fn decides_at(&mut self, second: i64) -> Decision {
        self.now = at(second);
        self.decides()
    }
}

fn wait_until(second: i64) -> Decision {
    Decision::AwaitSignIn { until: at(second) }
}

#[test]
fn a_code_is_polled_when_the_provider_allows_it_and_replaced_when_it_ends() {
    let mut case = pending();
    assert_eq!(case.decides_at(5), wait_until(6));
    assert_eq!(case.decides_at(6), Decision::Poll);
    case.grant().next_poll = Some(at(1000));
    assert_eq!(case.decides_at(599), wait_until(600));
    assert_eq!(case.decides_at(600), Decision::SignIn);
}

#[test]
fn a_code_that_the_provider_ends_is_replaced_soon_but_not_in_a_loop() {
    let mut case = pending();
    case.grant().code_over = true;
    assert_eq!(case.decides_at(9), wait_until(10));
    assert_eq!(case.decides_at(10), Decision::SignIn);
    let mut short = pending();
    short.sign_in().expires_at = at(1);
    assert_eq!(short.decides_at(1), wait_until(10));
}

#[test]
fn codes_are_replaced_for_a_day_and_then_only_on_request() {
    let mut case = pending();
    case.sign_in().shown_at = at(DAY - 600);
    case.sign_in().expires_at = at(DAY);
    assert_eq!(case.decides_at(DAY - 1), Decision::Poll);
    let Decision::Stall(blocker) = case.decides_at(DAY) else { panic!("a code is asked for after a day") };
    assert!(blocker.reason == Reason::AuthorizationRequired && blocker.message.contains("for a day"));
    case.grant().asked_by = "generation 2".into();
    assert_eq!(case.decides(), Decision::SignIn);
}

#[test]
fn a_code_outlives_unrelated_changes_and_its_end_until_a_new_request() {
    let mut case = pending();
    case.grant().asked_by = "generation 2".into();
    assert_eq!(case.decides_at(6), Decision::Poll, "a suspension, say");
    case.sign_in().ended = Some("the sign-in was denied".into());
    assert_eq!(case.decides(), Decision::SignIn);
    case.grant().asked_by = "generation 1".into();
    assert!(matches!(case.decides(), Decision::Stall(_)));
    let mut other = pending();
    other.grant().asked_for = Some("other scopes".into());
    assert_eq!(other.decides(), Decision::SignIn);
}

#[test]
fn a_refused_refresh_token_begins_a_sign_in_immediately_and_its_failures_wait() {
    let refused = [Reason::InvalidGrant, Reason::AuthorizationRequired, Reason::ConsentRequired, Reason::InvalidScope];
    for reason in refused {
        let mut case = pending();
        case.grant().stored = Some(GrantSecret { token: Some(note()), ..GrantSecret::default() });
        assert_eq!(case.decides(), Decision::Issue(IssueReason::NoToken));
        case.failed(reason);
        assert_eq!(case.decides(), Decision::SignIn, "{reason:?}");
        case.sign_in_failed(Reason::ProviderUnavailable);
        assert_eq!(case.decides(), Decision::BackOff { until: at(5) }, "{reason:?}");
        assert_eq!(case.decides_at(5), Decision::SignIn, "the refresh token is not presented again: {reason:?}");
    }
    let mut down = pending();
    down.grant().stored = Some(GrantSecret { token: Some(note()), ..GrantSecret::default() });
    down.failed(Reason::ProviderUnavailable);
    assert_eq!(down.decides_at(5), Decision::Issue(IssueReason::NoToken));
}

#[test]
fn a_token_of_a_sign_in_is_written_despite_earlier_refusals() {
    let mut case = pending();
    case.failed(Reason::InvalidGrant);
    case.hold();
    assert_eq!(case.decides(), Decision::Store);
    case.failed(Reason::SecretWriteFailed);
    assert_eq!(case.decides(), Decision::BackOff { until: at(5) });
}

#[test]
fn a_code_is_shown_only_while_it_is_polled() {
    let shown = |case: &Case| {
        let status = status(&case.observed, &case.decides(), case.now);
        status.authorization.map(|authorization| authorization.user_code)
    };
    let mut case = pending();
    assert_eq!(shown(&case).as_deref(), Some("WDJB-MJHT"));
    case.sign_in_failed(Reason::InvalidClient);
    case.now = at(6);
    assert_eq!(shown(&case), None, "the provider is not asked for a quarter of an hour");
    let mut suspended = pending();
    suspended.credential(|credential| credential.spec.suspend = true);
    assert_eq!(shown(&suspended), None);
}

#[test]
fn a_code_that_has_ended_is_not_shown() {
    let shown = |change: fn(&mut Case), second| {
        let mut case = pending();
        case.observed.in_flight = true;
        change(&mut case);
        case.now = at(second);
        status(&case.observed, &case.decides(), case.now).authorization.is_some()
    };
    assert_eq!([599, 600].map(|second| shown(|_| (), second)), [true, false]);
    assert!(!shown(|case| case.sign_in().ended = Some("the sign-in was denied".into()), 599));
}

#[test]
fn the_message_names_the_page_the_code_and_its_end() {
    let reported = |case: &Case| {
        let status = status(&case.observed, &case.decides(), case.now);
        status.conditions.into_iter().find(|condition| condition.type_ == "Reconciling").unwrap().message
    };
    let mut case = pending();
    assert_eq!(
        reported(&case),
        "billing@example.org has to sign in: open https://x/sign-in and enter WDJB-MJHT before 2027-01-15T08:10:00Z"
    );
    case.sign_in().verification_uri_complete = Some("https://x/sign-in?code=WDJB-MJHT".into());
    assert_eq!(
        reported(&case),
        "billing@example.org has to sign in: open https://x/sign-in?code=WDJB-MJHT (or https://x/sign-in and enter \
         WDJB-MJHT) before 2027-01-15T08:10:00Z"
    );
}

#[test]
fn a_replacement_code_is_reported_once() {
    let reported = |code: &str| {
        let mut case = pending();
        case.sign_in().user_code = code.into();
        status(&case.observed, &case.decides(), case.now)
    };
    let told_between = |before, after| notices(&reported(before), &reported(after));
    assert_eq!(told_between("WDJB-MJHT", "WDJB-MJHT"), []);
    let shown = |notices: Vec<crate::policy::notices::EventNote>, code: &str| {
        let [notice] = &notices[..] else { panic!("not one Event: {notices:?}") };
        assert!(!notice.warning && notice.reason == Reason::AuthorizationRequired);
        assert!(notice.note.contains(&format!("enter {code}")), "{}", notice.note);
    };
    shown(told_between("WDJB-MJHT", "BCDF-GHJK"), "BCDF-GHJK");
    shown(notices(&crate::api::MailCredentialStatus::default(), &reported("WDJB-MJHT")), "WDJB-MJHT");
}

#[test]
fn a_poll_is_never_too_soon_although_the_clock_has_whole_seconds() {
    let truncated =
        |millis: i64| Timestamp::from_second(Timestamp::from_millisecond(millis).unwrap().as_second()).unwrap();
    for millis in [0, 1, 999] {
        let next = crate::policy::grant::next_poll(5, truncated(millis));
        let answered = Timestamp::from_millisecond(millis).unwrap();
        assert!(next.duration_since(answered) >= SignedDuration::from_secs(5), "{millis}");
    }
}
