//! Tests of the history of attempts.

use super::{
    decided,
    fixtures::{Case, at},
};
use crate::{
    api::{Reason, status::ClientStatus},
    oauth::Refusal,
    policy::{
        Decision, decide,
        observed::{History, UnwrittenToken},
    },
};

fn client(index: i32) -> ClientStatus {
    ClientStatus { method: "clientSecret".into(), index, expires_at: None }
}

/// A history without failures: the last request succeeded with the second client secret, and a reissue was handled.
fn well() -> History {
    History { client: Some(client(1)), handled_reissue: Some("1".into()), ..Case::ready().observed.history }
}

/// The history of [`well`] with a later failure.
fn failed(reason: Reason, attempt: &str) -> History {
    let mut history = well();
    history.fail(&Refusal::new(reason, "what"), "what. What to do.".into(), &attempt.into(), at(0));
    history
}

#[test]
fn a_success_wipes_the_failures_and_keeps_the_answered_reissue_and_the_client_that_worked() {
    let mut case = Case::ready();
    case.hold();
    let mut unwritten = case.observed.unwritten.unwrap();
    unwritten.client = Some(client(1));
    let succeeded = |unwritten: &UnwrittenToken| {
        let mut history = failed(Reason::InvalidClient, "attempt");
        history.client = Some(client(0));
        history.succeed(unwritten);
        history
    };
    assert_eq!(succeeded(&unwritten), well());
    unwritten.reissue = Some("2".into());
    assert_eq!(succeeded(&unwritten), History { handled_reissue: Some("2".into()), ..well() });
}

#[test]
fn a_step_of_a_sign_in_ends_the_failures_of_those_before_it() {
    let mut history = failed(Reason::ProviderUnavailable, "a step");
    history.step(client(0), &"attempt".into());
    assert_eq!(
        history,
        History { client: Some(client(0)), handled_reissue: Some("1".into()), ..History::default() },
        "a reissue that was answered is not asked for again"
    );
    let mut history = well();
    history.step(client(0), &"attempt".into());
    assert_eq!(history, History { client: Some(client(0)), ..well() }, "there was no failure");
}

#[test]
fn a_step_of_a_sign_in_does_not_restore_a_refused_refresh_token() {
    let mut case = Case::new();
    case.by_device_code();
    case.failed(Reason::InvalidGrant);
    let refused = case.observed.history.clone();
    case.observed.history.step(client(0), &"attempt".into());
    assert_eq!(case.observed.history, History { client: Some(client(0)), ..refused });
    assert_eq!(decide(&case.observed, at(900)), Decision::SignIn);
}

#[test]
fn a_token_that_was_written_at_last_leaves_nothing_of_the_writes_that_failed_before() {
    let mut history = failed(Reason::SecretWriteFailed, "attempt");
    history.recover();
    assert_eq!(history, well());
    let mut history = failed(Reason::InvalidClient, "attempt");
    history.recover();
    assert_eq!(history, failed(Reason::InvalidClient, "attempt"), "a provider's refusal is no failed write");
}

#[test]
fn a_change_of_the_inputs_of_a_sign_in_ends_the_wait_for_its_next_step() {
    let step = |change: fn(&mut Case)| {
        decided(|case| {
            case.without_token();
            case.by_device_code();
            case.stored().token = None;
            let attempt = case.observed.sign_in_attempt_hash();
            case.observed.history = failed(Reason::InvalidClient, attempt.as_str());
            change(case);
        })
    };
    assert_eq!(step(|_| ()), Decision::BackOff { until: at(900) });
    assert_eq!(step(|case| case.observed.attempt_hash = "another secret".into()), Decision::SignIn);
}

#[test]
fn a_suspension_leaves_no_success_where_an_attempt_failed_before_it() {
    let after_suspension = |case: &mut Case| {
        case.credential(|credential| credential.spec.suspend = true);
        case.write_status();
        History::of(case.observed.credential.status.as_ref().unwrap())
    };
    let mut ready = Case::ready();
    assert_eq!(after_suspension(&mut ready).last.map(|(reason, _)| reason), Some(Reason::RenewalSucceeded));
    let mut failed = Case::ready();
    failed.failed(Reason::ProviderUnavailable);
    let history = after_suspension(&mut failed);
    assert_eq!((history.failed_attempts, history.failure()), (1, None));
}

#[test]
fn a_status_without_failed_with_still_backs_off_until_the_spec_changes() {
    let mut case = Case::new();
    case.credential(|credential| credential.metadata.generation = Some(1));
    let prune = |case: &mut Case| {
        case.write_status();
        case.credential(|credential| credential.status.as_mut().unwrap().failed_with = None);
        case.observed.history = History::of(case.observed.credential.status.as_ref().unwrap());
    };
    case.failed(Reason::InvalidClient);
    prune(&mut case);
    let decides = |case: &Case| decide(&case.observed, case.now);
    assert_eq!(decides(&case), Decision::BackOff { until: at(900) });
    case.failed_at(Reason::InvalidClient, 900);
    assert_eq!(case.observed.history.failed_attempts, 2, "the waits grow");
    prune(&mut case);
    case.credential(|credential| credential.metadata.generation = Some(2));
    assert!(matches!(decides(&case), Decision::Issue(_)));
}

#[test]
fn the_end_of_a_client_secret_that_was_replaced_is_known_before_the_next_request() {
    let spec = |entries: serde_json::Value| -> crate::api::ProviderSpec {
        let client = serde_json::json!({"id": "c", "authentication": entries});
        serde_json::from_value(serde_json::json!({"oauth2": {"tokenURL": "https://x/t"}, "client": client})).unwrap()
    };
    let key = serde_json::json!({"name": "s", "key": "k"});
    let secret = |end: Option<&str>| serde_json::json!([{"clientSecret": {"secretRef": key, "expiresAt": end}}]);
    let after = |spec: &crate::api::ProviderSpec, index| {
        let mut known = client(index);
        known.expires_at = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
        let mut history = History { client: Some(known), ..History::default() };
        history.client_as_in(spec);
        history.client.unwrap().expires_at.map(|end| end.0)
    };
    let replaced = spec(secret(Some("2030-01-01T00:00:00Z")));
    assert_eq!(after(&replaced, 0), Some("2030-01-01T00:00:00Z".parse().unwrap()));
    assert_eq!(after(&spec(secret(None)), 0), None);
    assert_eq!(after(&replaced, 1), Some(at(0)), "the entry in use is gone");
    let jwt = serde_json::json!([{"privateKeyJWT": {"keyRef": key, "certificateRef": key}}]);
    assert_eq!(after(&spec(jwt), 0), Some(at(0)), "the end of a certificate is not in the spec");
}
