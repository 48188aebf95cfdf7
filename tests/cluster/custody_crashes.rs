//! Brokers that are killed, frozen, terminated or duplicated in the middle of an exchange.

use std::time::Duration;

use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Secret},
    jiff::Timestamp,
};
use mail_token_broker::{api::MailCredential, lease};
use mailtoken_testkit::{broker::Settings, fault_log::tried, refresh_fixture::REQUEST_TIMEOUT, standin::Fault, *};
use serde_json::{Value, json};

/// Waits until a broker has claimed the stored refresh token, and returns the deadline of the claim.
async fn claimed(fixture: &RefreshFixture) -> Timestamp {
    let claim = |secret: &Secret| secret.metadata.annotations.as_ref()?.get("mailtoken.dev/claim").cloned();
    let has = |secret: &Secret| claim(secret).is_some();
    let secret = fixture.ns.until::<Secret>("billing-grant", "it is claimed", has).await;
    let claim: Value = serde_json::from_str(&claim(&secret).unwrap()).unwrap();
    claim["until"].as_str().unwrap().parse().unwrap()
}

/// Allows a request to take longer than the test's other steps together.
fn patient(settings: Settings) -> Settings {
    settings.without("--request-timeout").flag("--request-timeout=8s")
}

/// In `faults_crash` the killed broker starts again. Here another broker replaces it.
#[tokio::test]
async fn the_claim_of_a_killed_broker_is_respected_and_then_the_same_token_is_tried_again() {
    let mut fixture = RefreshFixture::new().await;
    fixture.idp.grace(1);
    fixture.issued().await;
    let (kept, sent) = (fixture.kept().await, fixture.idp.token_requests().len());
    fixture.idp.next(Fault::Late(REQUEST_TIMEOUT * 5));
    fixture.ask().await;
    fixture.asked(sent + 1).await;
    fixture.broker.kill();
    let end = claimed(&fixture).await;
    fixture.broker.again().await;
    let left = Duration::try_from(end.duration_since(wait::now())).unwrap_or_default();
    holds(left, "the claim is respected", async || match fixture.idp.token_requests().len() {
        number if number == sent + 1 => Ok(()),
        number => Err(format!("{number} requests")),
    })
    .await;
    fixture.asked(sent + 2).await;
    let grant = fixture.rotated(&kept).await;
    assert_eq!(fixture.idp.presented(&kept), 2);
    assert!(fixture.idp.is_valid(&text(&grant, "refresh_token")));
    fixture.renew().await;
    assert_eq!((fixture.idp.reuses(), fixture.idp.families_revoked()), (0, 0));
    tried("K2", 1, "nothing");
}

#[tokio::test]
async fn a_token_that_cannot_be_stored_is_held_and_stored_first_also_while_suspended() {
    let fixture = RefreshFixture::new().await;
    fixture.guarded().await;
    fixture.issued().await;
    let (kept, sent) = (fixture.kept().await, fixture.idp.token_requests().len());
    let published = text(&fixture.ns.get("billing").await, "access_token");
    fixture.seal().await;
    fixture.ask().await;
    let failed = fixture.ns.condition::<MailCredential>("billing", "Renewed", "SecretWriteFailed").await;
    assert!(failed.message.contains("billing-grant") && failed.message.contains("it is sealed"), "{}", failed.message);
    fixture.ns.event_reasons_include("billing", &["Warning SecretWriteFailed"]).await;
    let counted = fixture.broker.metric("mailtoken_reconcile_errors_total", "write_secret").await;
    assert!(counted.is_some_and(|number| number >= 1.0), "{counted:?}");
    fixture.ask().await;
    fixture.ns.patch::<MailCredential>("billing", json!({"spec": {"suspend": true}})).await;
    holds(Duration::from_secs(7), "nothing is asked for, nothing published", async || {
        let secret = text(&fixture.ns.get("billing").await, "access_token");
        match fixture.idp.token_requests().len() == sent + 1 && secret == published {
            true => Ok(()),
            false => Err(format!("{} requests", fixture.idp.token_requests().len())),
        }
    })
    .await;
    fixture.unseal().await;
    let grant = fixture.rotated(&kept).await;
    assert!(fixture.idp.is_valid(&text(&grant, "refresh_token")));
    assert_eq!(text(&grant, "previous_refresh_token"), kept);
    assert_eq!(text(&fixture.ns.get("billing").await, "access_token"), published, "it is suspended");
    fixture.ns.patch::<MailCredential>("billing", json!({"spec": {"suspend": false}})).await;
    let fresh = |secret: &Secret| text(secret, "access_token") != published;
    fixture.ns.until::<Secret>("billing", "another token is published", fresh).await;
    fixture.renew().await;
    assert_eq!((fixture.idp.reuses(), fixture.idp.families_revoked()), (0, 0));
    tried("F08", 1, "nothing");
}

#[tokio::test]
async fn a_refresh_token_is_not_sent_while_its_secret_cannot_be_written() {
    let fixture = RefreshFixture::new().await;
    fixture.guarded().await;
    fixture.issued().await;
    let (kept, sent) = (fixture.kept().await, fixture.idp.token_requests().len());
    fixture.mark(json!({refresh_fixture::SHUT: "true"})).await;
    let asked = fixture.ask().await;
    let failed = fixture.ns.condition::<MailCredential>("billing", "Renewed", "SecretWriteFailed").await;
    assert!(failed.message.contains("billing-grant") && failed.message.contains("it is shut"), "{}", failed.message);
    assert!(fixture.broker.metric("mailtoken_reconcile_errors_total", "write_secret").await.is_some());
    assert_eq!(fixture.idp.token_requests().len(), sent);
    fixture.mark(json!({refresh_fixture::SHUT: null})).await;
    fixture.answered(&asked).await;
    assert_eq!((fixture.idp.token_requests().len(), fixture.idp.presented(&kept)), (sent + 1, 1));
    tried("F08", 1, "nothing");
}

#[tokio::test]
async fn a_response_is_stored_over_a_foreign_write_after_the_claim() {
    let fixture = RefreshFixture::new().await;
    fixture.issued().await;
    let (kept, sent) = (fixture.kept().await, fixture.idp.token_requests().len());
    fixture.idp.next(Fault::Late(REQUEST_TIMEOUT / 2));
    let asked = fixture.ask().await;
    fixture.asked(sent + 1).await;
    // The API server answers the store with 409: the claim's resourceVersion is no longer the last one.
    fixture.mark(json!({"test/other": "kept"})).await;
    fixture.answered(&asked).await;
    let grant = fixture.grant().await;
    assert!(fixture.idp.is_valid(&text(&grant, "refresh_token")));
    assert_eq!(text(&grant, "previous_refresh_token"), kept);
    assert_eq!(grant.metadata.annotations.unwrap()["test/other"], "kept");
    fixture.renew().await;
    assert_eq!((fixture.idp.token_requests().len(), fixture.idp.reuses()), (sent + 2, 0));
    tried("F08", 1, "nothing");
}

#[tokio::test]
async fn a_terminated_broker_runs_until_it_has_stored_its_tokens() {
    // The broker retries a refused write after five seconds, then after ten. The shutdown waits longer than that.
    let mut fixture = RefreshFixture::with(|settings| patient(settings).flag("--leader-elect=false")).await;
    fixture.guarded().await;
    fixture.issued().await;
    let kept = fixture.kept().await;
    fixture.seal().await;
    fixture.ask().await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "SecretWriteFailed").await;
    fixture.broker.signal("TERM");
    holds(Duration::from_secs(2), "it stays", async || {
        fixture.broker.ended().map_or(Ok(()), |status| Err(status.to_string()))
    })
    .await;
    fixture.unseal().await;
    assert!(fixture.broker.terminate().await.success());
    let grant = fixture.grant().await;
    assert_ne!(text(&grant, "refresh_token"), kept);
    assert!(fixture.idp.is_valid(&text(&grant, "refresh_token")));
    fixture.broker.again().await;
    fixture.renew().await;
    assert_eq!(fixture.idp.reuses(), 0);
    tried("F08", 1, "nothing");
}

#[tokio::test]
async fn a_terminated_broker_waits_for_the_response_in_flight() {
    let mut fixture = RefreshFixture::with(patient).await;
    fixture.issued().await;
    let (kept, sent) = (fixture.kept().await, fixture.idp.token_requests().len());
    fixture.idp.next(Fault::Late(Duration::from_secs(2)));
    let asked = fixture.ask().await;
    fixture.asked(sent + 1).await;
    assert!(fixture.broker.terminate().await.success());
    let grant = fixture.grant().await;
    assert!(fixture.idp.is_valid(&text(&grant, "refresh_token")));
    assert_eq!(text(&grant, "previous_refresh_token"), kept);
    // The broker also published the token and wrote the status before it released the lease.
    fixture.answered(&asked).await;
    assert_eq!(fixture.idp.latest("billing@example.org"), Some(text(&fixture.ns.get("billing").await, "access_token")));
    let lease: Lease = fixture.ns.get(lease::NAME).await;
    assert_eq!(lease.spec.unwrap().holder_identity, None);
    tried("F27", 1, "nothing");
}

#[tokio::test]
async fn two_brokers_without_an_election_spend_no_token_twice() {
    let fixture = RefreshFixture::new().await;
    let second = RefreshFixture::settings(&fixture.ns).flag("--leader-elect=false").start().await;
    fixture.issued().await;
    for round in 0..8 {
        // Both brokers reconcile each renewal and each new seed.
        if round % 3 == 0 {
            fixture.seed().await;
        }
        fixture.renew().await;
    }
    assert!(fixture.idp.token_requests().len() >= 9);
    // The other broker may be about to exchange the token again.
    until("the token that is kept is good", async || match fixture.idp.is_valid(&fixture.kept().await) {
        true => Ok(()),
        false => Err(format!("{} requests", fixture.idp.token_requests().len())),
    })
    .await;
    assert_eq!((fixture.idp.reuses(), fixture.idp.families_revoked()), (0, 0));
    let both = [fixture.broker.log(), second.log()].map(|log| log.contains("token obtained"));
    assert!(both.contains(&true));
    tried("F11", 9, "nothing");
}

#[tokio::test]
async fn a_frozen_leader_does_not_overwrite_a_newer_token() {
    let fixture = RefreshFixture::with(|settings| settings).await;
    fixture.idp.grace(1);
    fixture.issued().await;
    let second = RefreshFixture::settings(&fixture.ns).start().await;
    let (kept, sent) = (fixture.kept().await, fixture.idp.token_requests().len());
    fixture.idp.next(Fault::Late(REQUEST_TIMEOUT * 2));
    fixture.ask().await;
    fixture.asked(sent + 1).await;
    fixture.broker.signal("STOP");
    // The response waits in the frozen broker's socket. The other broker leads after the lease and the claim have
    // expired.
    fixture.asked(sent + 2).await;
    let newer = text(&fixture.rotated(&kept).await, "refresh_token");
    fixture.broker.signal("CONT");
    until("it sees that it came too late", async || {
        let log = fixture.broker.log();
        let seen = ["it holds a newer refresh token", "leadership lost"].iter().any(|words| log.contains(words));
        if seen { Ok(()) } else { Err(String::new()) }
    })
    .await;
    holds(Duration::from_secs(4), "the newer token stays", async || match fixture.kept().await {
        now if now == newer => Ok(()),
        now => Err(now),
    })
    .await;
    fixture.renew().await;
    assert!(second.log().contains("token obtained"));
    assert_eq!((fixture.idp.reuses(), fixture.idp.families_revoked()), (0, 0));
    tried("F10", 1, "nothing");
}

#[tokio::test]
async fn a_refresh_token_that_cannot_be_stored_outlives_its_credential_where_the_grant_is_retained() {
    let fixture = RefreshFixture::new().await;
    fixture.guarded().await;
    fixture.seed().await;
    fixture.ns.apply(by_seed("billing").set("spec.secret", json!({"deletionPolicy": "Retain"}))).await;
    fixture.ready().await;
    let kept = fixture.kept().await;
    fixture.seal().await;
    fixture.ask().await;
    until("the broker has given up to store it at once", async || {
        let log = fixture.broker.log();
        log.contains("refresh token not stored").then_some(()).ok_or(log)
    })
    .await;
    fixture.ns.delete::<MailCredential>("billing").await;
    fixture.broker.forgets("billing").await;
    assert_eq!(
        (fixture.kept().await, fixture.broker.metric("mailtoken_refresh_tokens_unstored", "").await),
        (kept.clone(), Some(1.0))
    );
    fixture.unseal().await;
    let stored = fixture.rotated(&kept).await;
    assert!(fixture.idp.is_valid(&text(&stored, "refresh_token")));
    until("nothing is held any more", async || {
        match fixture.broker.metric("mailtoken_refresh_tokens_unstored", "").await {
            Some(0.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(fixture.idp.reuses(), 0);
}
