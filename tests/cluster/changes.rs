//! Changes by users: another spec, a new token, a suspension, another Secret.

use k8s_openapi::api::core::v1::Secret;
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::*;
use serde_json::json;

const REISSUE: &str = "mailtoken.dev/reissue";

/// Waits until the status is for the current generation.
async fn observed(fixture: &Fixture, name: &str) -> MailCredential {
    let of_now =
        |object: &MailCredential| field(object, "/status/observedGeneration") == field(object, "/metadata/generation");
    fixture.ns.until::<MailCredential>(name, "the generation is observed", of_now).await
}

#[tokio::test]
async fn a_change_that_needs_no_new_token_is_only_published() {
    let fixture = Fixture::new().await;
    let labelled = credential("billing")
        .set("spec.mailbox.authenticateAs", "billing@example.org")
        .set("spec.secret.labels", json!({"team": "billing", "tier": "gold"}))
        .set("spec.secret.annotations", json!({"note": "x"}));
    fixture.issued(labelled.clone()).await;
    let made: Secret = fixture.ns.get("billing").await;

    let changed = labelled
        .set("spec.mailbox.address", "invoices@example.org")
        .set("spec.secret.formats", json!(["TokenJSON"]))
        .set("spec.secret.labels", json!({"team": "sales"}))
        .without("spec.secret.annotations")
        .set("spec.secret.data", json!({"from.txt": "${from}"}))
        .set("spec.mailbox.usernames", json!({"smtp": "box@example.org"}))
        .set("spec.renewal.renewBefore", "20m");
    fixture.ns.apply(changed).await;
    fixture.ready("billing").await;
    let secret: Secret = fixture.ns.get("billing").await;
    assert_eq!(secret.metadata.uid, made.metadata.uid);
    assert_eq!(text(&secret, "access_token"), text(&made, "access_token"));
    assert_eq!((text(&secret, "from").as_str(), text(&secret, "xoauth2").as_str()), ("invoices@example.org", ""));
    assert_eq!(text(&secret, "from.txt"), "invoices@example.org");
    assert!(!text(&secret, "token.json").is_empty());
    assert_eq!(
        (text(&secret, "username").as_str(), text(&secret, "smtp_username").as_str()),
        ("box@example.org", "box@example.org")
    );
    let labels = field(&secret, "/metadata/labels");
    let own = json!({"app.kubernetes.io/managed-by": "mail-token-broker", "mailtoken.dev/credential": "billing", "team": "sales"});
    assert_eq!(labels, own);
    assert_eq!(field(&secret, "/metadata/annotations/note"), json!(null));
    assert_eq!(fixture.idp.token_requests().len(), 1);
    fixture.wrote("secrets", "billing", &["create", "patch"]).await;
    assert!(fixture.ns.event_reasons("billing").await.is_empty());
}

#[tokio::test]
async fn a_secret_of_an_earlier_version_gets_the_new_keys_without_a_token_request() {
    let mut fixture = Fixture::new().await;
    fixture.issued(credential("billing")).await;
    let made: Secret = fixture.ns.get("billing").await;
    fixture.broker.terminate().await;
    let before = json!({
        "metadata": {"annotations": {"mailtoken.dev/layout": "that of an earlier version"}},
        "data": {"smtp_security": null, "smtp_username": null},
    });
    fixture.ns.patch::<Secret>("billing", before).await;
    fixture.broker.again().await;
    let whole = |secret: &Secret| {
        secret.data == made.data && field(secret, "/metadata/annotations") == field(&made, "/metadata/annotations")
    };
    fixture.ns.until::<Secret>("billing", "it has the new keys", whole).await;
    assert_eq!(
        (text(&made, "smtp_security").as_str(), text(&made, "smtp_username").as_str()),
        ("STARTTLS", "billing@example.org")
    );
    fixture.ready("billing").await;
    assert_eq!(fixture.idp.token_requests().len(), 1);
}

#[tokio::test]
async fn parameters_are_sent_and_a_change_of_them_obtains_a_new_token() {
    let fixture = Fixture::new().await;
    fixture.issued(credential("billing")).await;
    for (number, audience) in ["https://mail.example/a", "https://mail.example/b"].into_iter().enumerate() {
        let before = fixture.ns.secret("billing").await["access_token"].clone();
        fixture.ns.apply(provider(&fixture.idp).entry("spec.client.parameters", "audience", audience)).await;
        fixture.renewed("billing", &before).await;
        let asked = fixture.idp.token_requests();
        assert_eq!(asked.len(), 2 + number);
        assert_eq!(asked.last().unwrap().form()["audience"], audience);
    }
}

#[tokio::test]
async fn a_change_of_the_tokens_inputs_obtains_a_new_token_and_keeps_the_old_one_meanwhile() {
    let fixture = Fixture::new().await;
    fixture.issued(credential("billing")).await;
    let changes = [
        credential("billing").set("spec.scopes", json!(["mail.send"])),
        credential("billing").set("spec.mailbox.authenticateAs", "svc@example.org"),
        credential("billing"),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let before = fixture.ns.secret("billing").await["access_token"].clone();
        fixture.idp.next(Answer::error("invalid_scope"));
        fixture.ns.apply(change).await;
        let ready = fixture.ns.condition::<MailCredential>("billing", "Ready", "InvalidScope").await;
        assert_eq!(ready.status, "False");
        assert_eq!(
            fixture.ns.secret("billing").await["access_token"],
            before,
            "the old one stays until it is replaced"
        );
        fixture.ns.annotate::<MailCredential>("billing", REISSUE, &number.to_string()).await;
        fixture.ready("billing").await;
        assert_ne!(fixture.ns.secret("billing").await["access_token"], before);
        assert_eq!(fixture.idp.token_requests().len(), 1 + 2 * (number + 1));
    }
}

#[tokio::test]
async fn reissue_obtains_a_token_immediately_and_once() {
    let mut fixture = Fixture::new().await;
    fixture.issued(credential("billing").entry("metadata.annotations", REISSUE, "from the start")).await;
    let handled =
        |value: &'static str| move |object: &MailCredential| field(object, "/status/lastHandledReissue") == value;
    let ns = &fixture.ns;
    ns.until::<MailCredential>("billing", "the first token answers it", handled("from the start")).await;
    assert_eq!(fixture.idp.token_requests().len(), 1);

    ns.annotate::<MailCredential>("billing", REISSUE, "2").await;
    ns.until::<MailCredential>("billing", "it is answered", handled("2")).await;
    let secret: Secret = ns.get("billing").await;
    assert_eq!(secret.metadata.annotations.unwrap()["mailtoken.dev/handled-reissue"], "2");
    assert_eq!(text(&ns.get("billing").await, "access_token"), fixture.idp.issued()[1]);

    // The first attempt fails. The broker retries until the reissue is handled, and then stops.
    fixture.idp.next(Answer::status(503));
    ns.annotate::<MailCredential>("billing", REISSUE, "3").await;
    ns.condition::<MailCredential>("billing", "Renewed", "ProviderUnavailable").await;
    let object: MailCredential = ns.get("billing").await;
    assert_eq!(reason(&object, "Ready"), "TokenValid");
    assert_eq!(field(&object, "/status/lastHandledReissue"), "2");
    ns.until::<MailCredential>("billing", "it is answered", handled("3")).await;
    assert_eq!(fixture.idp.token_requests().len(), 4);

    fixture.broker.kill();
    // Even without a status, the Secret records that the broker has handled the reissue.
    let status = kube::api::Patch::Merge(json!({"status": null}));
    fixture.ns.api::<MailCredential>().patch_status("billing", &Default::default(), &status).await.unwrap();
    fixture.broker.again().await;
    fixture.mark("mark").await;
    fixture.ready("billing").await;
    assert_eq!(fixture.idp.token_requests().len(), 5, "that of the mark");
}

#[tokio::test]
async fn a_suspended_credential_asks_for_nothing_and_writes_nothing() {
    let fixture = Fixture::new().await;
    fixture.issued(credential("billing")).await;
    let suspended = credential("billing").set("spec.suspend", true);
    fixture.ns.apply(suspended.clone()).await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "Suspended").await;

    fixture.ns.patch::<Secret>("billing", json!({"stringData": {"username": "somebody"}})).await;
    fixture.ns.annotate::<MailCredential>("billing", REISSUE, "1").await;
    fixture.ns.apply(suspended.clone().set("spec.secret.formats", json!(["TokenJSON"]))).await;
    observed(&fixture, "billing").await;
    fixture.ns.apply(suspended.set("spec.secret.name", "other").set("spec.scopes", json!(["x"]))).await;
    let object = observed(&fixture, "billing").await;
    assert_eq!((reason(&object, "Renewed"), reason(&object, "Stalled")), ("Suspended".into(), String::new()));
    assert_eq!(reason(&object, "Reconciling"), "");
    fixture.mark("mark").await;
    assert_eq!(fixture.ns.secret("billing").await["username"], "somebody");
    assert_eq!(fixture.idp.token_requests().len(), 2, "one is that of the mark");

    fixture.ns.apply(credential("new").set("spec.suspend", true)).await;
    fixture.ns.condition::<MailCredential>("new", "Ready", "Suspended").await;
    let reported = fixture.ns.event_reasons("new").await;
    assert!(reported.is_empty(), "{reported:?}");
    fixture.ns.apply(credential("new")).await;
    fixture.ready("new").await;

    fixture.ns.apply(credential("billing").set("spec.suspend", false)).await;
    fixture.ready("billing").await;
    assert_eq!(fixture.ns.secret("billing").await["username"], "billing@example.org");
    let reported = fixture.ns.event_reasons("billing").await;
    assert!(reported.is_empty(), "{reported:?}");
}

#[tokio::test]
async fn a_new_name_moves_the_secret_and_deletes_or_keeps_the_old_one() {
    let fixture = Fixture::new().await;
    for (policy, requests) in [("Delete", 1), ("Retain", 2)] {
        let name = policy.to_lowercase();
        let named =
            |secret: &str| credential(&name).set("spec.secret.deletionPolicy", policy).set("spec.secret.name", secret);
        let (first, second) = (format!("{name}-1"), format!("{name}-2"));
        fixture.issued(named(&first)).await;
        let token = fixture.ns.secret(&first).await["access_token"].clone();
        fixture.ns.apply(named(&second)).await;
        let moved = |object: &MailCredential| field(object, "/status/secretName") == second.as_str();
        fixture.ns.until::<MailCredential>(&name, "it has moved", moved).await;
        fixture.ready(&name).await;
        assert_eq!(fixture.ns.secret(&second).await["access_token"], token);
        match policy {
            "Delete" => fixture.ns.gone::<Secret>(&first).await,
            _ => assert_eq!(fixture.ns.secret(&first).await["access_token"], token),
        }
        assert_eq!(fixture.idp.token_requests().len(), requests, "it is the same token");
    }
}

#[tokio::test]
async fn a_name_that_is_taken_loses_neither_the_old_secret_nor_its_trace() {
    let fixture = Fixture::new().await;
    fixture.issued(credential("billing").set("spec.secret.name", "first")).await;
    let token = fixture.ns.secret("first").await["access_token"].clone();
    fixture.ns.apply(source("taken", "key", "theirs")).await;
    fixture.ns.apply(credential("billing").set("spec.secret.name", "taken")).await;
    fixture.ns.condition::<MailCredential>("billing", "Ready", "SecretConflict").await;
    assert_eq!(fixture.ns.secret("taken").await["key"], "theirs");
    assert_eq!(fixture.ns.secret("first").await["access_token"], token);
    fixture.ns.apply(credential("billing").set("spec.secret.name", "third")).await;
    fixture.ready("billing").await;
    assert_eq!(fixture.ns.secret("third").await["access_token"], token);
    fixture.ns.gone::<Secret>("first").await;
    assert_eq!(fixture.idp.token_requests().len(), 1);
}

#[tokio::test]
async fn every_generation_is_observed_also_when_stalled_or_backing_off() {
    let fixture = Fixture::new().await;
    fixture.idp.answer(Answer::error("invalid_client"));
    fixture.ns.apply(credential("stalled").set("spec.providerRef.name", "none")).await;
    fixture.ns.apply(credential("refused")).await;
    fixture.ns.condition::<MailCredential>("stalled", "Stalled", "ProviderNotFound").await;
    fixture.ns.condition::<MailCredential>("refused", "Stalled", "InvalidClient").await;
    for (number, validity) in ["11m", "12m"].into_iter().enumerate() {
        let changed = |name: &str| credential(name).set("spec.renewal.minValidity", validity);
        fixture.ns.apply(changed("stalled").set("spec.providerRef.name", "none")).await;
        fixture.ns.apply(changed("refused")).await;
        for name in ["stalled", "refused"] {
            let object = observed(&fixture, name).await;
            for condition in object.status.unwrap().conditions {
                assert_eq!(condition.observed_generation, object.metadata.generation, "{condition:?}");
            }
        }
        assert_eq!(fixture.idp.token_requests().len(), 2 + number, "a change of the spec ends the wait at once");
    }
}

#[tokio::test]
async fn a_spec_that_changes_while_a_request_is_in_flight_is_served_immediately() {
    let fixture = Fixture::new().await;
    fixture.idp.next(Answer::token(3600).held());
    fixture.ns.apply(credential("billing")).await;
    fixture.idp.token_requests_reach(1).await;
    fixture.ns.apply(credential("billing").set("spec.scopes", json!(["other"]))).await;
    fixture.mark("mark").await;
    fixture.idp.release();
    fixture.ready("billing").await;
    let requests = fixture.idp.token_requests();
    assert_eq!(requests.len(), 3);
    assert_eq!(requests[2].form()["scope"], "other");
    assert_eq!(fixture.ns.secret("billing").await["access_token"], fixture.idp.issued()[2]);
}
