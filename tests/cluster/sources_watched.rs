//! The objects that a provider refers to: created, labelled, changed, deleted. The broker handles each change
//! immediately.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_testkit::{fault_log::tried, namespace::find, *};
use serde_json::{Value, json};

/// Creates a namespace with a broker and a provider whose Secret and CA bundle do not exist yet.
async fn bare() -> Fixture {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    let broker = Broker::start(&ns).await;
    ns.apply(provider(&idp)).await;
    Fixture { ns, idp, broker }
}

/// Waits until the provider has the reason `provider` with this part of a message, and the credential has the reason
/// `credential`.
async fn refused(fixture: &Fixture, provider: &str, part: &str, credential: &str) {
    let reported = |object: &MailProvider| {
        find(object, "Ready").is_some_and(|reported| reported.reason == provider && reported.message.contains(part))
    };
    fixture.ns.until::<MailProvider>("idp", part, reported).await;
    for kind in ["Ready", "Stalled"] {
        fixture.ns.condition::<MailCredential>("billing", kind, credential).await;
    }
    let object: MailCredential = fixture.ns.get("billing").await;
    assert_eq!(reason(&object, "Renewed"), "");
    assert_eq!(field(&object, "/status/observedGeneration"), json!(1));
}

#[tokio::test]
async fn a_new_source_its_label_and_its_key_are_noticed_immediately() {
    let fixture = bare().await;
    fixture.ns.apply(credential("billing")).await;
    refused(&fixture, "SourceNotFound", "create configmap idp-ca", "ProviderNotReady").await;
    fixture.ns.apply(ca_bundle("idp-ca", &fixture.idp)).await;
    refused(&fixture, "SourceNotFound", "create secret generic idp-client", "SourceNotFound").await;
    let unlabelled = source("idp-client", "other-key", "x").without("metadata.labels");
    fixture.ns.apply(unlabelled).await;
    let command = format!("`kubectl -n {} label secret idp-client mailtoken.dev/source=true", fixture.ns.name);
    refused(&fixture, "SourceNotLabeled", &command, "SourceNotLabeled").await;
    fixture.ns.apply(source("idp-client", "other-key", "x")).await;
    refused(&fixture, "SourceNotFound", "no key client-secret (it has other-key)", "SourceNotFound").await;
    fixture.ns.apply(source("idp-client", "client-secret", "")).await;
    refused(&fixture, "SourceInvalid", "empty", "SourceInvalid").await;
    fixture.ns.apply(source("idp-client", "client-secret", " with a space")).await;
    refused(&fixture, "SourceInvalid", "space", "SourceInvalid").await;
    assert_eq!(fixture.idp.requests().len(), 0);

    fixture.ns.apply(source("idp-client", "client-secret", "right\n")).await;
    fixture.ready("billing").await;
    assert_eq!(fixture.idp.token_requests()[0].form()["client_secret"], "right");
    fixture.ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    let object: MailCredential = fixture.ns.get("billing").await;
    assert_eq!((reason(&object, "Stalled"), reason(&object, "Reconciling")), (String::new(), String::new()));
    tried("F21", 6, "nothing");
}

#[tokio::test]
async fn a_broken_bundle_is_reported_and_its_repair_is_noticed() {
    let fixture = bare().await;
    fixture.ns.apply(source("idp-client", "client-secret", "x")).await;
    fixture.ns.apply(ca_bundle("idp-ca", &fixture.idp).entry("data", "ca.crt", "no certificate")).await;
    fixture.ns.apply(credential("billing")).await;
    refused(&fixture, "SourceInvalid", "PEM", "ProviderNotReady").await;
    fixture.ns.apply(ca_bundle("idp-ca", &Idp::start())).await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "TLSFailed").await;
    fixture.ns.apply(ca_bundle("idp-ca", &fixture.idp)).await;
    fixture.ready("billing").await;
    fixture.ns.delete::<ConfigMap>("idp-ca").await;
    fixture.ns.condition::<MailProvider>("idp", "Ready", "SourceNotFound").await;
    let object: MailCredential = fixture.ns.get("billing").await;
    assert_eq!(reason(&object, "Ready"), "TokenValid");
}

#[tokio::test]
async fn the_good_certificates_of_a_bundle_count_and_a_warning_names_the_other_blocks() {
    let fixture = bare().await;
    fixture.ns.apply(source("idp-client", "client-secret", "x")).await;
    let odd = "-----BEGIN TRUSTED CERTIFICATE-----\nAAAA\n-----END TRUSTED CERTIFICATE-----\n";
    let bundle = format!("{}\n{odd}", fixture.idp.ca());
    fixture.ns.apply(ca_bundle("idp-ca", &fixture.idp).entry("data", "ca.crt", bundle)).await;
    fixture.ns.apply(credential("billing")).await;
    fixture.ready("billing").await;
    let reported = fixture.ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await.message;
    assert!(reported.contains("block 2 (TRUSTED CERTIFICATE)"), "{reported}");
    fixture.ns.event_reasons_include("idp", &["Warning SourceInvalid"]).await;
}

#[tokio::test]
async fn the_brokers_own_secrets_are_never_sources() {
    let fixture = bare().await;
    fixture.ns.apply(ca_bundle("idp-ca", &fixture.idp)).await;
    let own = source("idp-client", "client-secret", "x").entry(
        "metadata.labels",
        "app.kubernetes.io/managed-by",
        "mail-token-broker",
    );
    fixture.ns.apply(credential("billing")).await;
    fixture.ns.apply(own.clone().entry("metadata.labels", "mailtoken.dev/source", "false")).await;
    refused(&fixture, "SourceInvalid", "the broker's own", "SourceInvalid").await;
    fixture.ns.apply(own).await;
    refused(&fixture, "SourceInvalid", "the broker's own", "SourceInvalid").await;
    fixture.ns.delete::<Secret>("idp-client").await;
    fixture.ns.apply(source("idp-client", "client-secret", "x").set("type", "mailtoken.dev/grant")).await;
    refused(&fixture, "SourceInvalid", "the broker's own", "SourceInvalid").await;
    assert_eq!(fixture.idp.requests().len(), 0);
}

#[tokio::test]
async fn a_refused_secret_is_tried_again_as_soon_as_it_is_replaced() {
    let fixture = Fixture::new().await;
    fixture.idp.answer(Answer::error("invalid_client"));
    fixture.ns.apply(credential("billing")).await;
    fixture.ns.condition::<MailCredential>("billing", "Stalled", "InvalidClient").await;
    let object: MailCredential = fixture.ns.get("billing").await;
    assert_eq!(
        (reason(&object, "Ready"), reason(&object, "Renewed")),
        ("InvalidClient".into(), "InvalidClient".into())
    );
    assert_eq!(field(&object, "/status/lastError/error"), "invalid_client");
    assert_eq!(field(&object, "/status/lastError/httpStatus"), 401);
    fixture.mark_refused().await;
    assert_eq!(fixture.idp.token_requests().len(), 2, "no loop");

    fixture.idp.answer(Answer::token(3600));
    fixture.ns.apply(source("idp-client", "client-secret", "the new one")).await;
    let object = fixture.ready("billing").await;
    assert_eq!(fixture.idp.token_requests().last().unwrap().form()["client_secret"], "the new one");
    assert_eq!(field(&object, "/status/failedAttempts"), json!(0));
    assert_eq!(field(&object, "/status/lastError"), Value::Null);
}

#[tokio::test]
async fn a_secret_that_changes_while_a_request_is_in_flight_is_used_immediately() {
    let fixture = Fixture::new().await;
    fixture.idp.next(Answer::error("invalid_client").held());
    fixture.ns.apply(credential("billing")).await;
    fixture.idp.token_requests_reach(1).await;
    fixture.ns.apply(source("idp-client", "client-secret", "the new one")).await;
    // The broker resolves the provider again with the new secret before the old response arrives.
    fixture.ns.apply(provider(&fixture.idp).set("metadata.name", "marker")).await;
    fixture.ns.condition::<MailProvider>("marker", "Ready", "ProviderReady").await;
    fixture.idp.release();
    fixture.ready("billing").await;
    assert_eq!(fixture.idp.token_requests()[1].form()["client_secret"], "the new one");
    tried("F21", 1, "nothing");
}

#[tokio::test]
async fn a_label_that_is_withdrawn_stops_renewal_and_leaves_the_token() {
    let fixture = Fixture::new().await;
    fixture.idp.next(Answer::token(10));
    // The token must not be due before the test removes the label.
    fixture.issued(credential("billing").set("spec.renewal.renewBefore", "1s")).await;
    fixture.ns.apply(source("idp-client", "client-secret", "a client secret").without("metadata.labels")).await;
    fixture.ns.condition::<MailProvider>("idp", "Ready", "SourceNotLabeled").await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "SourceNotLabeled").await;
    let object: MailCredential = fixture.ns.get("billing").await;
    assert_eq!(reason(&object, "Ready"), "TokenValid");
    let expired = fixture.ns.condition::<MailCredential>("billing", "Ready", "Expired").await;
    assert!(expired.message.contains("label secret idp-client"), "{}", expired.message);
    assert_eq!(fixture.idp.token_requests().len(), 1);
    fixture.ns.apply(source("idp-client", "client-secret", "a client secret")).await;
    fixture.ready("billing").await;
}

#[tokio::test]
async fn a_deleted_provider_stops_renewal_and_leaves_the_token() {
    let fixture = Fixture::new().await;
    fixture.issued(credential("billing")).await;
    fixture.ns.delete::<MailProvider>("idp").await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "ProviderNotFound").await;
    fixture.ready("billing").await;

    // Without the provider the broker cannot know whether the token was issued for the current spec.
    let changed = credential("billing").set("spec.scopes", json!(["other"]));
    fixture.ns.apply(changed.clone()).await;
    fixture.ns.condition::<MailCredential>("billing", "Ready", "ProviderNotFound").await;
    fixture.ns.apply(credential("other").set("spec.providerRef.name", "none")).await;
    fixture.ns.condition::<MailCredential>("other", "Ready", "ProviderNotFound").await;
    fixture.ns.annotate::<MailCredential>("billing", "example.org/touch", "x").await;
    fixture.ns.apply(changed.set("spec.renewal.minValidity", "11m")).await;
    fixture.ns.condition::<MailCredential>("billing", "Ready", "ProviderNotFound").await;
    fixture.ns.apply(credential("mark").set("spec.providerRef.name", "none")).await;
    fixture.ns.condition::<MailCredential>("mark", "Ready", "ProviderNotFound").await;
    fixture.ns.condition::<MailCredential>("billing", "Ready", "ProviderNotFound").await;

    fixture.ns.apply(provider(&fixture.idp)).await;
    fixture.ready("billing").await;
    assert_eq!(fixture.idp.token_requests().len(), 2);
    assert_eq!(fixture.idp.token_requests()[1].form()["scope"], "other");
}

#[tokio::test]
async fn a_provider_that_changes_is_used_as_it_is_now() {
    let fixture = Fixture::new().await;
    fixture.issued(credential("billing")).await;
    let servers = provider(&fixture.idp).set("spec.servers.smtp.host", "other.example.org");
    fixture.ns.apply(servers).await;
    fixture
        .ns
        .until::<Secret>("billing", "it names the new server", |secret| {
            text(secret, "smtp_host") == "other.example.org"
        })
        .await;
    assert_eq!(fixture.idp.token_requests().len(), 1, "another server needs no other token");

    fixture.ns.apply(provider(&fixture.idp).set("spec.client.id", "other")).await;
    fixture.idp.token_requests_reach(2).await;
    assert_eq!(fixture.idp.token_requests()[1].form()["client_id"], "other");
    let before = fixture.idp.issued()[0].clone();
    fixture.renewed("billing", &before).await;
    let secret: Secret = fixture.ns.get("billing").await;
    assert_eq!(text(&secret, "smtp_host"), "smtp.example.org");
}

#[tokio::test]
async fn nothing_of_a_provider_deleted_during_its_check_is_watched() {
    let ns = Cluster::shared().namespace().await;
    let (idp, api) = (Idp::start(), ApiProxy::start(&ns.cluster));
    let _broker = Broker::settings(&ns).kubeconfig(&api.kubeconfig()).start().await;
    let document = json!({"issuer": idp.issuer(), "token_endpoint": idp.token_url()});
    idp.next_at(idp::DISCOVERY, Answer::json(200, document).held());
    ns.apply(ca_bundle("idp-ca", &idp)).await;
    ns.apply(source("idp-client", "client-secret", "a client secret")).await;
    ns.apply(provider(&idp).without("spec.oauth2").set("spec.oidc.issuerURL", idp.issuer())).await;
    ns.apply(credential("billing")).await;
    until("the provider is checked", async || match idp.requests().len() {
        1 => Ok(()),
        number => Err(number.to_string()),
    })
    .await;
    ns.delete::<MailProvider>("idp").await;
    ns.apply(credential("marker")).await;
    ns.condition::<MailCredential>("marker", "Ready", "ProviderNotFound").await;
    let followed = || api.asked().iter().filter(|asked| asked.path.contains("/configmaps")).count();
    let before = followed();
    idp.release();
    ns.condition::<MailCredential>("billing", "Ready", "ProviderNotFound").await;
    ns.annotate::<MailCredential>("marker", "mailtoken.dev/reissue", "1").await;
    holds(std::time::Duration::from_secs(2), "the CA bundle is not followed", async || match followed() {
        number if number == before => Ok(()),
        number => Err(format!("{number} after {before}")),
    })
    .await;
    assert_eq!(idp.token_requests().len(), 0);

    // The broker uses another provider with the same name.
    ns.apply(provider(&idp)).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
}
