//! The owner of a Secret: the broker changes no Secret of another owner, and loses none of its own.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{fault_log::tried, *};
use serde_json::json;

#[tokio::test]
async fn a_foreign_secret_is_left_as_it_is_until_it_is_released() {
    let fixture = Fixture::new().await;
    let labels = json!({"app.kubernetes.io/managed-by": "mail-token-broker", "mailtoken.dev/credential": "other"});
    let foreign = [
        ("plain", json!({})),
        ("labelled", labels),
        (
            "grant",
            json!({
                "app.kubernetes.io/managed-by": "mail-token-broker", "mailtoken.dev/credential": "grant", "mailtoken.dev/role": "grant",
            }),
        ),
    ];
    for (name, labels) in foreign {
        fixture.ns.apply(source(name, "key", "theirs").set("metadata.labels", labels)).await;
        let before: Secret = fixture.ns.get(name).await;
        fixture.ns.apply(credential(name)).await;
        fixture.ns.condition::<MailCredential>(name, "Ready", "SecretConflict").await;
        let stalled = fixture.ns.condition::<MailCredential>(name, "Stalled", "SecretConflict").await;
        assert!(stalled.message.contains("delete secret"), "{}", stalled.message);
        fixture.mark(&format!("{name}-mark")).await;
        assert_eq!(fixture.ns.get::<Secret>(name).await, before);
        assert_eq!(fixture.ns.event_reasons_include(name, &["Warning SecretConflict"]).await.len(), 1);
        fixture.ns.delete::<Secret>(name).await;
        fixture.ready(name).await;
        assert_eq!(fixture.ns.secret(name).await["username"], format!("{name}@example.org"));
    }
    assert_eq!(fixture.idp.token_requests().len(), 6, "the token that could not be written was kept");
    tried("F19", 3, "nothing");
}

#[tokio::test]
async fn a_token_that_cannot_be_stored_delays_no_shutdown() {
    let mut fixture = Fixture::new().await;
    fixture.ns.apply(source("billing", "key", "theirs")).await;
    fixture.ns.apply(credential("billing")).await;
    fixture.ns.condition::<MailCredential>("billing", "Ready", "SecretConflict").await;
    fixture.idp.next(Answer::token(3600).held());
    fixture.ns.apply(credential("deleted")).await;
    fixture.idp.token_requests_reach(2).await;
    fixture.ns.delete::<MailCredential>("deleted").await;
    fixture.idp.release();
    fixture.mark("mark").await;
    let start = Instant::now();
    assert!(fixture.broker.terminate().await.success());
    assert!(start.elapsed() < Duration::from_secs(15), "it waited for what cannot be stored: {:?}", start.elapsed());
}

/// Waits until new objects are younger than `than`: creationTimestamp has whole seconds.
async fn next_second(than: &MailCredential) {
    let second = than.metadata.creation_timestamp.as_ref().unwrap().0.as_second();
    until("a second has passed", async || match k8s_openapi::jiff::Timestamp::now().as_second() > second {
        true => Ok(()),
        false => Err(String::new()),
    })
    .await;
}

#[tokio::test]
async fn of_two_credentials_with_one_target_the_older_owns_it_and_then_the_younger() {
    let fixture = Fixture::new().await;
    let older = fixture.issued(credential("older").set("spec.secret.name", "token")).await;
    next_second(&older).await;
    fixture.ns.apply(credential("younger").set("spec.secret.name", "token")).await;
    let reported = fixture.ns.condition::<MailCredential>("younger", "Stalled", "SecretConflict").await;
    assert!(reported.message.contains("older"), "{}", reported.message);
    fixture.mark("mark").await;
    assert_eq!(fixture.idp.token_requests().len(), 2, "the younger asks for nothing");
    assert_eq!(fixture.ns.secret("token").await["username"], "older@example.org");
    fixture.ready("older").await;

    fixture.ns.delete::<MailCredential>("older").await;
    fixture.ready("younger").await;
    let secret: Secret = fixture.ns.get("token").await;
    assert_eq!(text(&secret, "username"), "younger@example.org");
    assert_eq!(field(&secret, "/metadata/ownerReferences/0/name"), "younger");
    assert_eq!(field(&secret, "/metadata/labels/mailtoken.dev~1credential"), "younger");
    assert_eq!(fixture.idp.token_requests().len(), 3);
    tried("F20", 1, "nothing");
}

#[tokio::test]
async fn a_secret_in_service_keeps_its_owner_though_an_older_credential_asks_for_it() {
    let fixture = Fixture::new().await;
    let older = fixture.issued(credential("older")).await;
    next_second(&older).await;
    fixture.issued(credential("younger").set("spec.secret.name", "token")).await;
    fixture.ns.apply(credential("older").set("spec.secret.name", "token")).await;
    let reported = fixture.ns.condition::<MailCredential>("older", "Ready", "SecretConflict").await;
    assert!(reported.message.contains("younger"), "{}", reported.message);
    fixture.mark("mark").await;
    fixture.ready("younger").await;
    assert_eq!(fixture.ns.secret("token").await["username"], "younger@example.org");
}

#[tokio::test]
async fn of_two_credentials_of_one_second_the_one_that_has_the_secret_keeps_it() {
    let fixture = Fixture::new().await;
    let mut number = 0;
    loop {
        number += 1;
        assert!(number < 20, "no two were created in one second");
        let [first, second] = ["z-first", "a-second"].map(|name| format!("{name}-{number}"));
        let target = format!("token-{number}");
        let mark = fixture.issued(credential(&format!("mark-{number}"))).await;
        next_second(&mark).await;
        let first_made = fixture.issued(credential(&first).set("spec.secret.name", target.as_str())).await;
        fixture.ns.apply(credential(&second).set("spec.secret.name", target.as_str())).await;
        let second_made: MailCredential = fixture.ns.get(&second).await;
        if first_made.metadata.creation_timestamp != second_made.metadata.creation_timestamp {
            continue;
        }
        let reported = fixture.ns.condition::<MailCredential>(&second, "Stalled", "SecretConflict").await;
        assert!(reported.message.contains(&first), "{}", reported.message);
        fixture.mark("mark").await;
        fixture.ready(&first).await;
        assert_eq!(fixture.ns.secret(&target).await["username"], format!("{first}@example.org"));
        tried("F20", 1, "nothing");
        return;
    }
}

#[tokio::test]
async fn a_retained_secret_outlives_its_credential_and_is_found_again() {
    let fixture = Fixture::new().await;
    let retained = credential("billing").set("spec.secret.deletionPolicy", "Retain");
    fixture.issued(retained.clone()).await;
    let before: Secret = fixture.ns.get("billing").await;
    assert_eq!(before.metadata.owner_references, None);
    fixture.ns.delete::<MailCredential>("billing").await;
    fixture.mark("mark").await;
    assert_eq!(fixture.ns.get::<Secret>("billing").await, before);
    fixture.issued(retained).await;
    assert_eq!(fixture.ns.get::<Secret>("billing").await, before);
    assert_eq!(fixture.idp.token_requests().len(), 2, "one is that of the mark");

    // The deletion policy is part of the layout: the owner changes without a token request.
    for (policy, owners) in [("Delete", 1), ("Retain", 0)] {
        fixture.ns.apply(credential("billing").set("spec.secret.deletionPolicy", policy)).await;
        let owned = |secret: &Secret| secret.metadata.owner_references.as_ref().map_or(0, Vec::len) == owners;
        fixture.ns.until::<Secret>("billing", policy, owned).await;
    }
    assert_eq!(fixture.idp.token_requests().len(), 2);
}

#[tokio::test]
async fn the_garbage_collector_deletes_secrets_by_the_deletion_policy() {
    let cluster = Cluster::alone(&["control-plane"]);
    cluster.up("controller-manager");
    let ns = cluster.namespace().await;
    let idp = Idp::start();
    ns.provider(&idp).await;
    let fixture = Fixture { broker: Broker::start(&ns).await, ns, idp };
    fixture.issued(credential("goes")).await;
    fixture.issued(credential("stays").set("spec.secret.deletionPolicy", "Retain")).await;
    for name in ["goes", "stays"] {
        fixture.ns.delete::<MailCredential>(name).await;
    }
    fixture.ns.gone::<Secret>("goes").await;
    assert_eq!(fixture.ns.secret("stays").await["username"], "stays@example.org");
    // The user creates the credential again while the garbage collector deletes the old Secret. The new credential gets
    // its own Secret.
    for _ in 0..3 {
        let made = fixture.issued(credential("goes")).await;
        let owned = |secret: &Secret| field(secret, "/metadata/ownerReferences/0/uid") == field(&made, "/metadata/uid");
        fixture.ns.until::<Secret>("goes", "it is the new one's", owned).await;
        fixture.ns.delete::<MailCredential>("goes").await;
    }
    fixture.ns.gone::<Secret>("goes").await;
}
