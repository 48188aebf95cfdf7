//! The first Secret, its renewal, its expiry, and a restart.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_testkit::*;
use serde_json::{Value, json};

#[tokio::test]
async fn a_credential_becomes_ready_with_one_request_and_two_writes_and_no_event() {
    let fixture = Fixture::new().await;
    let made = fixture.issued(credential("billing")).await;
    fixture.mark("mark").await;
    assert_eq!(fixture.idp.token_requests().len(), 2, "one for each credential");
    fixture.wrote("secrets", "billing", &["create"]).await;
    fixture.wrote("mailcredentials/status", "billing", &["update"]).await;
    fixture.wrote("mailproviders/status", "idp", &["patch"]).await;
    assert!(fixture.ns.event_reasons("billing").await.is_empty());
    assert!(fixture.ns.event_reasons("idp").await.is_empty());

    let request = &fixture.idp.token_requests()[0];
    let form = request.form();
    assert_eq!(form["grant_type"], "client_credentials");
    assert_eq!((form["client_id"].as_str(), form["client_secret"].as_str()), ("mailer", "a client secret"));

    assert_eq!(field(&made, "/status/observedGeneration"), json!(1));
    assert_eq!(field(&made, "/status/secretName"), "billing");
    assert_eq!(field(&made, "/status/failedAttempts"), json!(0));
    assert_eq!(field(&made, "/status/client"), json!({"method": "clientSecret", "index": 0}));
    let types: Vec<_> = made.status.unwrap().conditions.into_iter().map(|condition| condition.type_).collect();
    assert_eq!(types, ["Ready", "Renewed"]);
}

#[tokio::test]
async fn the_secret_has_all_that_was_requested() {
    let fixture = Fixture::new().await;
    let servers = json!({
        "smtp": {"host": "smtp.example.org", "port": 587}, "imap": {"host": "imap.example.org", "port": 993},
        "pop3": {"host": "pop.example.org", "port": 995},
    });
    fixture.ns.apply(provider(&fixture.idp).set("spec.servers", servers)).await;
    fixture.ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    let manifest = credential("billing")
        .set("spec.mailbox.authenticateAs", "svc@example.org")
        .set("spec.protocols", json!(["SMTP", "IMAP"]))
        .set("spec.secret", json!({
            "name": "token", "labels": {"team": "billing"}, "annotations": {"example.org/note": "any text"},
            "formats": ["XOAuth2", "OAuthBearer", "SaslXoauth2", "TokenJSON"],
            "data": {"smtp.env": "U=${username}\nF=${from}\nT=${access_token}\nH=${smtp_host}:${smtp_port} $$${imap_host}\n"},
        }));
    let made = fixture.issued(manifest).await;
    let token = fixture.idp.issued()[0].clone();
    let data = fixture.ns.secret("token").await;
    let keys: Vec<_> = data.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "access_token",
            "expires_at",
            "expires_at_unix",
            "from",
            "imap_host",
            "imap_port",
            "imap_security",
            "imap_username",
            "oauthbearer",
            "sasl-xoauth2.json",
            "smtp.env",
            "smtp_host",
            "smtp_port",
            "smtp_security",
            "smtp_username",
            "token.json",
            "token_type",
            "username",
            "xoauth2",
        ]
    );
    assert_eq!(data["access_token"], token);
    assert_eq!(data["token_type"], "Bearer");
    assert_eq!((data["username"].as_str(), data["from"].as_str()), ("svc@example.org", "billing@example.org"));
    assert_eq!((data["imap_host"].as_str(), data["imap_port"].as_str()), ("imap.example.org", "993"));
    let decoded = |key: &str| String::from_utf8(BASE64_STANDARD.decode(&data[key]).unwrap()).unwrap();
    assert_eq!(decoded("xoauth2"), format!("user=svc@example.org\u{1}auth=Bearer {token}\u{1}\u{1}"));
    assert_eq!(decoded("oauthbearer"), format!("n,a=svc@example.org,\u{1}auth=Bearer {token}\u{1}\u{1}"));
    let expires_at: Timestamp = data["expires_at"].parse().unwrap();
    assert_eq!(data["expires_at_unix"], expires_at.as_second().to_string());
    let sasl: Value = serde_json::from_str(&data["sasl-xoauth2.json"]).unwrap();
    let expiry = &data["expires_at_unix"];
    let wanted = json!({"access_token": token, "refresh_token": "", "expiry": expiry, "user": "svc@example.org"});
    assert_eq!(sasl, wanted);
    let env =
        format!("U=svc@example.org\nF=billing@example.org\nT={token}\nH=smtp.example.org:587 $imap.example.org\n");
    assert_eq!(data["smtp.env"], env);

    let secret: Secret = fixture.ns.get("token").await;
    assert_eq!(secret.type_.as_deref(), Some("Opaque"));
    let metadata = field(&secret, "/metadata");
    assert_eq!(
        metadata["labels"],
        json!({"app.kubernetes.io/managed-by": "mail-token-broker", "mailtoken.dev/credential": "billing", "team": "billing"})
    );
    let annotations = &metadata["annotations"];
    assert_eq!(annotations["mailtoken.dev/expires-at"], data["expires_at"]);
    assert_eq!(annotations["mailtoken.dev/issued-at"], field(&made, "/status/token/issuedAt"));
    assert_eq!(annotations["mailtoken.dev/fingerprint"], field(&made, "/status/token/fingerprint"));
    assert!(annotations["mailtoken.dev/issued-for"].is_string());
    assert_eq!(annotations["example.org/note"], "any text");
    let owner = &metadata["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["name"], &owner["controller"]),
        (&json!("MailCredential"), &json!("billing"), &json!(true))
    );
    assert_eq!(owner["uid"], field(&made, "/metadata/uid"));
    assert_eq!(field(&made, "/status/token/length"), json!(token.len()));
    assert_eq!(field(&made, "/status/token/expiresAt"), data["expires_at"]);
}

#[tokio::test]
async fn a_token_is_renewed_by_itself_without_an_event() {
    let fixture = Fixture::new().await;
    fixture.idp.answer(Answer::token(12));
    fixture.issued(credential("billing").set("spec.renewal", json!({"minValidity": "0s", "renewBefore": "6s"}))).await;
    let before = fixture.ns.secret("billing").await["access_token"].clone();
    fixture.renewed("billing", &before).await;
    fixture.idp.token_requests_reach(3).await;
    fixture
        .ns
        .until::<MailCredential>("billing", "it shows the third token", |object| {
            object.status.as_ref().is_some_and(|status| status.token.is_some())
        })
        .await;
    let requests = fixture.idp.token_requests();
    let gap = requests[1].at - requests[0].at;
    assert!(gap >= Duration::from_secs(3) && gap < Duration::from_secs(12), "renewed after {gap:?}");
    let reported = fixture.ns.event_reasons("billing").await;
    assert!(reported.is_empty(), "{reported:?}");
    let writes = fixture.writes("mailcredentials/status", "billing").len();
    assert!(writes <= fixture.idp.token_requests().len(), "{writes} status writes for {} tokens", requests.len());
}

#[tokio::test]
async fn ready_outlives_failing_renewals_and_ends_with_the_token_by_the_brokers_own_timer() {
    let fixture = Fixture::new().await;
    fixture.idp.next(Answer::token(8));
    fixture.idp.answer(Answer::status(503));
    fixture.issued(credential("billing")).await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "ProviderUnavailable").await;
    let object: MailCredential = fixture.ns.get("billing").await;
    assert_eq!(reason(&object, "Ready"), "TokenValid", "{object:#?}");
    assert_eq!(reason(&object, "Stalled"), "");
    assert_eq!(field(&object, "/status/failedAttempts"), json!(1));
    assert_eq!(field(&object, "/status/lastError/httpStatus"), json!(503));
    assert_eq!(field(&object, "/status/lastError/error"), Value::Null);

    let expired = fixture.ns.condition::<MailCredential>("billing", "Ready", "Expired").await;
    assert_eq!(expired.status, "False");
    let object: MailCredential = fixture.ns.get("billing").await;
    let end: Timestamp = field(&object, "/status/token/expiresAt").as_str().unwrap().parse().unwrap();
    let late = expired.last_transition_time.0.as_second() - end.as_second();
    assert!((0..=4).contains(&late), "{late} s after the end");

    fixture.idp.answer(Answer::token(3600));
    fixture.ready("billing").await;
    let reported = until("all Events exist", async || match fixture.ns.event_reasons("billing").await {
        reported if reported.len() >= 5 => Ok(reported),
        reported => Err(format!("{reported:?}")),
    })
    .await;
    let wanted = [
        "Normal RenewalSucceeded",
        "Normal TokenValid",
        "Warning Expired",
        "Warning LifetimeTooShort",
        "Warning ProviderUnavailable",
    ];
    assert_eq!(reported.iter().map(String::as_str).collect::<Vec<_>>(), wanted);
}

#[tokio::test]
async fn ready_ends_with_the_token_although_requests_hang() {
    let fixture = Fixture::new().await;
    fixture.idp.next(Answer::token(8));
    // Each renewal hangs for the whole request timeout, until after the token has expired.
    fixture.idp.answer(Answer::hang());
    fixture.issued(credential("billing")).await;
    let expired = fixture.ns.condition::<MailCredential>("billing", "Ready", "Expired").await;
    let object: MailCredential = fixture.ns.get("billing").await;
    let end: Timestamp = field(&object, "/status/token/expiresAt").as_str().unwrap().parse().unwrap();
    let late = expired.last_transition_time.0.as_second() - end.as_second();
    assert!((0..=5).contains(&late), "{late} s after the end");
    assert_eq!(fixture.idp.token_requests().len(), 2, "one request hangs");
    fault_log::tried("F30", 1, "nothing");
}

#[tokio::test]
async fn a_token_ends_also_while_its_credential_is_suspended() {
    let fixture = Fixture::new().await;
    fixture.idp.next(Answer::token(10));
    // The token must not be due before the test suspends the credential.
    let late = || credential("billing").set("spec.renewal.renewBefore", "1s");
    fixture.issued(late()).await;
    fixture.ns.apply(late().set("spec.suspend", true)).await;
    let renewed = fixture.ns.condition::<MailCredential>("billing", "Renewed", "Suspended").await;
    assert_eq!(renewed.status, "False");
    let object: MailCredential = fixture.ns.get("billing").await;
    assert_eq!(reason(&object, "Ready"), "TokenValid");
    assert_eq!(reason(&object, "Stalled"), "");
    assert_eq!(field(&object, "/status/observedGeneration"), json!(2));
    fixture.ns.condition::<MailCredential>("billing", "Ready", "Expired").await;
    assert_eq!(fixture.idp.token_requests().len(), 1);
    fixture.ns.apply(late()).await;
    fixture.ready("billing").await;
    let object: MailCredential = fixture.ns.get("billing").await;
    assert_eq!(reason(&object, "Renewed"), "RenewalSucceeded");
}

#[tokio::test]
async fn a_restart_with_unexpired_tokens_asks_no_provider_and_writes_nothing() {
    let mut fixture = Fixture::new().await;
    let names = ["a", "b", "c"];
    for name in names {
        fixture.issued(credential(name).set("spec.secret.labels.team", "x")).await;
    }
    fixture.issued(credential("kept").set("spec.secret.deletionPolicy", "Retain")).await;
    let requests = fixture.idp.requests().len();
    let before: Vec<_> = names.iter().map(|name| fixture.writes("mailcredentials/status", name)).collect();
    for round in 0..2 {
        match round {
            0 => assert!(fixture.broker.terminate().await.success()),
            _ => fixture.broker.kill(),
        }
        fixture.broker.again().await;
        fixture.mark(&format!("mark-{round}")).await;
        assert_eq!(fixture.idp.requests().len(), requests + 1 + round, "only that of the mark");
        for (name, before) in names.iter().zip(&before) {
            assert_eq!(fixture.writes("mailcredentials/status", name), *before);
        }
        assert_eq!(fixture.writes("secrets", "a"), ["create"]);
        assert_eq!(fixture.writes("mailproviders/status", "idp"), ["patch"]);
    }
}

#[tokio::test]
async fn a_missing_lifetime_counts_as_an_hour_with_a_warning() {
    let fixture = Fixture::new().await;
    fixture.idp.answer(Answer::token(0).without("expires_in"));
    let made = fixture.issued(credential("billing")).await;
    let time = |pointer: &str| field(&made, pointer).as_str().unwrap().parse::<Timestamp>().unwrap().as_second();
    assert_eq!(time("/status/token/expiresAt") - time("/status/token/issuedAt"), 3600);
    fixture.ns.event_reasons_include("billing", &["Warning LifetimeUnknown"]).await;
    fixture.idp.answer(Answer::token(0).field("expires_in", "7200"));
    let made = fixture.issued(credential("digits")).await;
    let time = |pointer: &str| field(&made, pointer).as_str().unwrap().parse::<Timestamp>().unwrap().as_second();
    assert_eq!(time("/status/token/expiresAt") - time("/status/token/issuedAt"), 7200);
}

#[tokio::test]
async fn a_provider_shows_its_token_endpoint() {
    let fixture = Fixture::new().await;
    fixture.ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    let oidc = provider(&fixture.idp)
        .set("metadata.name", "discovered")
        .without("spec.oauth2")
        .set("spec.oidc.issuerURL", fixture.idp.issuer());
    fixture.ns.apply(oidc).await;
    fixture.ns.condition::<MailProvider>("discovered", "Ready", "ProviderReady").await;
    let object: MailProvider = fixture.ns.get("discovered").await;
    assert_eq!(field(&object, "/status/tokenURL"), fixture.idp.token_url());
    assert_eq!(field(&object, "/status/deviceAuthorizationURL"), fixture.idp.url(idp::DEVICE));
    assert_eq!(field(&object, "/status/revocationURL"), fixture.idp.url(idp::REVOKE));
    fixture.issued(credential("billing").set("spec.providerRef.name", "discovered")).await;
    assert_eq!(fixture.idp.requests_at(idp::DISCOVERY).len(), 1);
}
