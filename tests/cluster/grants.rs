//! The grants without a sign-in at the broker: a JWT for the mailbox, and the exchange of a user's token.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::*;
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::{Value, json};

fn claims(jwt: &str) -> Value {
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn a_client_with_a_key_vouches_for_the_mailbox() {
    let fixture = Fixture::new().await;
    let pem = KeyPair::generate_for(&PKCS_ED25519).unwrap().serialize_pem();
    fixture.ns.apply(source("key", "tls.key", &pem)).await;
    let jwt = json!([{"privateKeyJWT": {"keyRef": {"name": "key", "key": "tls.key"}, "algorithm": "EdDSA"}}]);
    fixture.ns.apply(provider(&fixture.idp).set("spec.client.authentication", jwt)).await;
    let vouching = credential("billing")
        .set("spec.grant", json!({"jwtBearer": {}}))
        .set("spec.mailbox.authenticateAs", "svc@example.org")
        .set("spec.scopes", json!(["mail"]));
    fixture.issued(vouching).await;

    let form = fixture.idp.token_requests()[0].form();
    assert_eq!(form["grant_type"], "urn:ietf:params:oauth:grant-type:jwt-bearer");
    assert_eq!((form["scope"].as_str(), form["client_id"].as_str()), ("mail", "mailer"));
    let (about, own) = (claims(&form["assertion"]), claims(&form["client_assertion"]));
    assert_eq!((&about["iss"], &about["sub"]), (&json!("mailer"), &json!("svc@example.org")));
    assert_eq!((&own["iss"], &own["sub"]), (&json!("mailer"), &json!("mailer")));
    assert_eq!(about["aud"], json!(fixture.idp.token_url()));
}

#[tokio::test]
async fn without_a_key_nothing_is_sent_and_the_field_is_named() {
    let fixture = Fixture::new().await;
    fixture.ns.apply(credential("billing").set("spec.grant", json!({"jwtBearer": {}}))).await;
    let reported = fixture.ns.condition::<MailCredential>("billing", "Ready", "InvalidSpec").await.message;
    assert!(reported.contains("privateKeyJWT"), "{reported}");
    fixture.mark("mark").await;
    assert_eq!(fixture.idp.token_requests().len(), 1, "that of the mark");
}

/// Returns a credential that exchanges the token in the Secret `subject`.
fn exchanging() -> Manifest {
    let subject = json!({"secretRef": {"name": "subject", "key": "token"}});
    credential("billing").set("spec.grant", json!({"tokenExchange": {"subjectToken": subject, "audience": "mail"}}))
}

#[tokio::test]
async fn a_subject_token_is_read_again_for_each_exchange() {
    let fixture = Fixture::new().await;
    fixture.ns.apply(source("subject", "token", "the-first")).await;
    fixture.issued(exchanging()).await;
    let form = fixture.idp.token_requests()[0].form();
    assert_eq!(form["grant_type"], "urn:ietf:params:oauth:grant-type:token-exchange");
    assert_eq!((form["subject_token"].as_str(), form["audience"].as_str()), ("the-first", "mail"));
    assert_eq!(form["subject_token_type"], "urn:ietf:params:oauth:token-type:access_token");

    fixture.ns.apply(source("subject", "token", "the-second")).await;
    fixture.ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    fixture.idp.token_requests_reach(2).await;
    assert_eq!(fixture.idp.token_requests()[1].form()["subject_token"], "the-second");
}

#[tokio::test]
async fn a_missing_subject_token_is_reported_and_its_creation_ends_the_wait() {
    let fixture = Fixture::new().await;
    fixture.ns.apply(exchanging()).await;
    fixture.ns.condition::<MailCredential>("billing", "Ready", "SourceNotFound").await;
    fixture.ns.apply(source("subject", "token", "it-comes").without("metadata.labels")).await;
    fixture.ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    let reported = fixture.ns.condition::<MailCredential>("billing", "Ready", "SourceNotLabeled").await.message;
    assert!(reported.contains("kubectl") && reported.contains("mailtoken.dev/source=true"), "{reported}");
    assert_eq!(fixture.idp.token_requests().len(), 0);

    fixture.ns.apply(source("subject", "token", "it-comes")).await;
    fixture.ready("billing").await;
    assert_eq!(fixture.idp.token_requests().len(), 1);
}

#[tokio::test]
async fn a_refused_subject_token_is_tried_again_when_it_changes() {
    let fixture = Fixture::new().await;
    fixture.ns.apply(source("subject", "token", "a-stale-one")).await;
    fixture.idp.next(Answer::error("invalid_request"));
    fixture.ns.apply(exchanging()).await;
    fixture.ns.condition::<MailCredential>("billing", "Ready", "RequestRefused").await;
    fixture.ns.apply(source("subject", "token", "a-fresh-one")).await;
    fixture.ready("billing").await;
    assert_eq!(fixture.idp.token_requests().len(), 2);
}
