//! Brokers that die, freeze, leave or are too many in the middle of an exchange.

use std::time::Duration;

use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Secret},
    jiff::Timestamp,
};
use mail_token_broker::{api::MailCredential, lease};
use mailtoken_testkit::{broker::Settings, custody::REQUEST_TIMEOUT, fault_log::tried, standin::Fault, *};
use serde_json::{Value, json};

/// Waits until somebody has claimed the refresh token that is kept, and tells until when.
async fn claimed(custody: &Custody) -> Timestamp {
    let claim = |secret: &Secret| secret.metadata.annotations.as_ref()?.get("mailtoken.dev/claim").cloned();
    let has = |secret: &Secret| claim(secret).is_some();
    let secret = custody.ns.until::<Secret>("billing-grant", "it is claimed", has).await;
    let claim: Value = serde_json::from_str(&claim(&secret).unwrap()).unwrap();
    claim["until"].as_str().unwrap().parse().unwrap()
}

/// A request may take longer than all that the test does meanwhile.
fn patient(settings: Settings) -> Settings {
    settings.without("--request-timeout").flag("--request-timeout=8s")
}

/// In `faults_crash` the one that was killed comes again; here another takes its place.
#[tokio::test]
async fn the_claim_of_a_broker_that_is_gone_is_respected_and_the_same_token_then_tried_once_more() {
    let mut custody = Custody::new().await;
    custody.idp.grace(1);
    custody.issued().await;
    let (kept, sent) = (custody.kept().await, custody.idp.token_requests().len());
    custody.idp.next(Fault::Late(REQUEST_TIMEOUT * 5));
    custody.ask().await;
    custody.asked(sent + 1).await;
    custody.broker.kill();
    let end = claimed(&custody).await;
    custody.broker.again().await;
    let left = Duration::try_from(end.duration_since(wait::now())).unwrap_or_default();
    holds(left, "the claim is respected", async || match custody.idp.token_requests().len() {
        number if number == sent + 1 => Ok(()),
        number => Err(format!("{number} requests")),
    })
    .await;
    custody.asked(sent + 2).await;
    let grant = custody.rotated(&kept).await;
    assert_eq!(custody.idp.presented(&kept), 2);
    assert!(custody.idp.is_valid(&text(&grant, "refresh_token")));
    custody.renew().await;
    assert_eq!((custody.idp.reuses(), custody.idp.families_revoked()), (0, 0));
    tried("K2", 1, "nothing");
}

#[tokio::test]
async fn what_cannot_be_stored_is_held_and_stored_before_anything_else_also_while_suspended() {
    let custody = Custody::new().await;
    custody.guarded().await;
    custody.issued().await;
    let (kept, sent) = (custody.kept().await, custody.idp.token_requests().len());
    let published = text(&custody.ns.get("billing").await, "access_token");
    custody.seal().await;
    custody.ask().await;
    let failed = custody.ns.condition::<MailCredential>("billing", "Renewed", "SecretWriteFailed").await;
    assert!(failed.message.contains("billing-grant") && failed.message.contains("it is sealed"), "{}", failed.message);
    custody.ns.tells("billing", &["Warning SecretWriteFailed"]).await;
    let counted = custody.broker.metric("mailtoken_reconcile_errors_total", "write_secret").await;
    assert!(counted.is_some_and(|number| number >= 1.0), "{counted:?}");
    custody.ask().await;
    custody.ns.patch::<MailCredential>("billing", json!({"spec": {"suspend": true}})).await;
    holds(Duration::from_secs(7), "nothing is asked for, nothing published", async || {
        let secret = text(&custody.ns.get("billing").await, "access_token");
        match custody.idp.token_requests().len() == sent + 1 && secret == published {
            true => Ok(()),
            false => Err(format!("{} requests", custody.idp.token_requests().len())),
        }
    })
    .await;
    custody.unseal().await;
    let grant = custody.rotated(&kept).await;
    assert!(custody.idp.is_valid(&text(&grant, "refresh_token")));
    assert_eq!(text(&grant, "previous_refresh_token"), kept);
    assert_eq!(text(&custody.ns.get("billing").await, "access_token"), published, "it is suspended");
    custody.ns.patch::<MailCredential>("billing", json!({"spec": {"suspend": false}})).await;
    let fresh = |secret: &Secret| text(secret, "access_token") != published;
    custody.ns.until::<Secret>("billing", "another token is published", fresh).await;
    custody.renew().await;
    assert_eq!((custody.idp.reuses(), custody.idp.families_revoked()), (0, 0));
    tried("F08", 1, "nothing");
}

#[tokio::test]
async fn a_refresh_token_is_not_sent_while_its_secret_cannot_be_written() {
    let custody = Custody::new().await;
    custody.guarded().await;
    custody.issued().await;
    let (kept, sent) = (custody.kept().await, custody.idp.token_requests().len());
    custody.mark(json!({custody::SHUT: "true"})).await;
    let asked = custody.ask().await;
    let failed = custody.ns.condition::<MailCredential>("billing", "Renewed", "SecretWriteFailed").await;
    assert!(failed.message.contains("billing-grant") && failed.message.contains("it is shut"), "{}", failed.message);
    assert!(custody.broker.metric("mailtoken_reconcile_errors_total", "write_secret").await.is_some());
    assert_eq!(custody.idp.token_requests().len(), sent);
    custody.mark(json!({custody::SHUT: null})).await;
    custody.answered(&asked).await;
    assert_eq!((custody.idp.token_requests().len(), custody.idp.presented(&kept)), (sent + 1, 1));
    tried("F08", 1, "nothing");
}

#[tokio::test]
async fn an_answer_is_stored_over_what_somebody_wrote_after_the_claim() {
    let custody = Custody::new().await;
    custody.issued().await;
    let (kept, sent) = (custody.kept().await, custody.idp.token_requests().len());
    custody.idp.next(Fault::Late(REQUEST_TIMEOUT / 2));
    let asked = custody.ask().await;
    custody.asked(sent + 1).await;
    // The store is answered with 409: the claim's resourceVersion is not the last any more.
    custody.mark(json!({"test/other": "kept"})).await;
    custody.answered(&asked).await;
    let grant = custody.grant().await;
    assert!(custody.idp.is_valid(&text(&grant, "refresh_token")));
    assert_eq!(text(&grant, "previous_refresh_token"), kept);
    assert_eq!(grant.metadata.annotations.unwrap()["test/other"], "kept");
    custody.renew().await;
    assert_eq!((custody.idp.token_requests().len(), custody.idp.reuses()), (sent + 2, 0));
    tried("F08", 1, "nothing");
}

#[tokio::test]
async fn asked_to_leave_a_broker_stays_until_it_has_stored_what_it_holds() {
    // What was refused is written again after five seconds, then after ten: the end waits for longer than that.
    let mut custody = Custody::with(|settings| patient(settings).flag("--leader-elect=false")).await;
    custody.guarded().await;
    custody.issued().await;
    let kept = custody.kept().await;
    custody.seal().await;
    custody.ask().await;
    custody.ns.condition::<MailCredential>("billing", "Renewed", "SecretWriteFailed").await;
    custody.broker.signal("TERM");
    holds(Duration::from_secs(2), "it stays", async || {
        custody.broker.ended().map_or(Ok(()), |status| Err(status.to_string()))
    })
    .await;
    custody.unseal().await;
    assert!(custody.broker.terminate().await.success());
    let grant = custody.grant().await;
    assert_ne!(text(&grant, "refresh_token"), kept);
    assert!(custody.idp.is_valid(&text(&grant, "refresh_token")));
    custody.broker.again().await;
    custody.renew().await;
    assert_eq!(custody.idp.reuses(), 0);
    tried("F08", 1, "nothing");
}

#[tokio::test]
async fn asked_to_leave_in_the_middle_of_a_request_a_broker_waits_for_the_answer() {
    let mut custody = Custody::with(patient).await;
    custody.issued().await;
    let (kept, sent) = (custody.kept().await, custody.idp.token_requests().len());
    custody.idp.next(Fault::Late(Duration::from_secs(2)));
    let asked = custody.ask().await;
    custody.asked(sent + 1).await;
    assert!(custody.broker.terminate().await.success());
    let grant = custody.grant().await;
    assert!(custody.idp.is_valid(&text(&grant, "refresh_token")));
    assert_eq!(text(&grant, "previous_refresh_token"), kept);
    // Published and told, too, before the lease was given back.
    custody.answered(&asked).await;
    assert_eq!(custody.idp.latest("billing@example.org"), Some(text(&custody.ns.get("billing").await, "access_token")));
    let lease: Lease = custody.ns.get(lease::NAME).await;
    assert_eq!(lease.spec.unwrap().holder_identity, None);
    tried("F27", 1, "nothing");
}

#[tokio::test]
async fn two_brokers_without_an_election_spend_no_token_twice() {
    let custody = Custody::new().await;
    let second = Custody::settings(&custody.ns).flag("--leader-elect=false").start().await;
    custody.issued().await;
    for round in 0..8 {
        // Both are awake for each, and for a new seed too.
        if round % 3 == 0 {
            custody.seed().await;
        }
        custody.renew().await;
    }
    assert!(custody.idp.token_requests().len() >= 9);
    // The other one may be about to exchange it once more.
    until("the token that is kept is good", async || match custody.idp.is_valid(&custody.kept().await) {
        true => Ok(()),
        false => Err(format!("{} requests", custody.idp.token_requests().len())),
    })
    .await;
    assert_eq!((custody.idp.reuses(), custody.idp.families_revoked()), (0, 0));
    let both = [custody.broker.log(), second.log()].map(|log| log.contains("obtained a token"));
    assert!(both.contains(&true));
    tried("F11", 9, "nothing");
}

#[tokio::test]
async fn a_frozen_leader_does_not_write_over_what_came_after_it() {
    let custody = Custody::with(|settings| settings).await;
    custody.idp.grace(1);
    custody.issued().await;
    let second = Custody::settings(&custody.ns).start().await;
    let (kept, sent) = (custody.kept().await, custody.idp.token_requests().len());
    custody.idp.next(Fault::Late(REQUEST_TIMEOUT * 2));
    custody.ask().await;
    custody.asked(sent + 1).await;
    custody.broker.signal("STOP");
    // The answer waits in its socket; the other one leads when the lease has run out, and the claim too.
    custody.asked(sent + 2).await;
    let newer = text(&custody.rotated(&kept).await, "refresh_token");
    custody.broker.signal("CONT");
    until("it sees that it came too late", async || {
        let log = custody.broker.log();
        let seen = ["it is left there", "leadership lost"].iter().any(|words| log.contains(words));
        if seen { Ok(()) } else { Err(String::new()) }
    })
    .await;
    holds(Duration::from_secs(4), "the newer token stays", async || match custody.kept().await {
        now if now == newer => Ok(()),
        now => Err(now),
    })
    .await;
    custody.renew().await;
    assert!(second.log().contains("obtained a token"));
    assert_eq!((custody.idp.reuses(), custody.idp.families_revoked()), (0, 0));
    tried("F10", 1, "nothing");
}

#[tokio::test]
async fn a_refresh_token_that_cannot_be_stored_outlives_its_credential_where_the_grant_is_retained() {
    let custody = Custody::new().await;
    custody.guarded().await;
    custody.seed().await;
    custody.ns.apply(by_seed("billing").set("spec.secret", json!({"deletionPolicy": "Retain"}))).await;
    custody.ready().await;
    let kept = custody.kept().await;
    custody.seal().await;
    custody.ask().await;
    until("the broker has given up to store it at once", async || {
        let log = custody.broker.log();
        log.contains("a refresh token could not be stored").then_some(()).ok_or(log)
    })
    .await;
    custody.ns.delete::<MailCredential>("billing").await;
    custody.broker.forgets("billing").await;
    assert_eq!(
        (custody.kept().await, custody.broker.metric("mailtoken_refresh_tokens_unstored", "").await),
        (kept.clone(), Some(1.0))
    );
    custody.unseal().await;
    let stored = custody.rotated(&kept).await;
    assert!(custody.idp.is_valid(&text(&stored, "refresh_token")));
    until("nothing is held any more", async || {
        match custody.broker.metric("mailtoken_refresh_tokens_unstored", "").await {
            Some(0.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(custody.idp.reuses(), 0);
}
