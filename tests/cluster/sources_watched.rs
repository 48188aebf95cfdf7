//! What a provider refers to: it appears, gets its label, changes, goes. Every change is seen by itself, at once.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_testkit::{fault_log::tried, namespace::find, *};
use serde_json::{Value, json};

/// A namespace with a broker and a provider whose Secret and CA bundle do not exist yet.
async fn bare() -> Stage {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    let broker = Broker::start(&ns).await;
    ns.apply(provider(&idp)).await;
    Stage { ns, idp, broker }
}

/// Waits until the provider tells this reason, with this part of a message, and the credential that one.
async fn refused(stage: &Stage, provider: &str, part: &str, credential: &str) {
    let told = |object: &MailProvider| {
        find(object, "Ready").is_some_and(|told| told.reason == provider && told.message.contains(part))
    };
    stage.ns.until::<MailProvider>("idp", part, told).await;
    for kind in ["Ready", "Stalled"] {
        stage.ns.condition::<MailCredential>("billing", kind, credential).await;
    }
    let object: MailCredential = stage.ns.get("billing").await;
    assert_eq!(reason(&object, "Renewed"), "");
    assert_eq!(field(&object, "/status/observedGeneration"), json!(1));
}

#[tokio::test]
async fn a_source_that_appears_gets_its_label_and_its_key_is_seen_at_once() {
    let stage = bare().await;
    stage.ns.apply(credential("billing")).await;
    refused(&stage, "SourceNotFound", "create configmap idp-ca", "ProviderNotReady").await;
    stage.ns.apply(ca_bundle("idp-ca", &stage.idp)).await;
    refused(&stage, "SourceNotFound", "create secret generic idp-client", "SourceNotFound").await;
    let unlabelled = source("idp-client", "other-key", "x").without("metadata.labels");
    stage.ns.apply(unlabelled).await;
    let command = format!("`kubectl -n {} label secret idp-client mailtoken.dev/source=true", stage.ns.name);
    refused(&stage, "SourceNotLabeled", &command, "SourceNotLabeled").await;
    stage.ns.apply(source("idp-client", "other-key", "x")).await;
    refused(&stage, "SourceNotFound", "no key client-secret (it has other-key)", "SourceNotFound").await;
    stage.ns.apply(source("idp-client", "client-secret", "")).await;
    refused(&stage, "SourceInvalid", "empty", "SourceInvalid").await;
    stage.ns.apply(source("idp-client", "client-secret", " with a space")).await;
    refused(&stage, "SourceInvalid", "space", "SourceInvalid").await;
    assert_eq!(stage.idp.requests().len(), 0);

    stage.ns.apply(source("idp-client", "client-secret", "right\n")).await;
    stage.ready("billing").await;
    assert_eq!(stage.idp.token_requests()[0].form()["client_secret"], "right");
    stage.ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    let object: MailCredential = stage.ns.get("billing").await;
    assert_eq!((reason(&object, "Stalled"), reason(&object, "Reconciling")), (String::new(), String::new()));
    tried("F21", 6, "nothing");
}

#[tokio::test]
async fn a_broken_bundle_is_told_and_its_mending_seen() {
    let stage = bare().await;
    stage.ns.apply(source("idp-client", "client-secret", "x")).await;
    stage.ns.apply(ca_bundle("idp-ca", &stage.idp).entry("data", "ca.crt", "no certificate")).await;
    stage.ns.apply(credential("billing")).await;
    refused(&stage, "SourceInvalid", "PEM", "ProviderNotReady").await;
    stage.ns.apply(ca_bundle("idp-ca", &Idp::start())).await;
    stage.ns.condition::<MailCredential>("billing", "Renewed", "TLSFailed").await;
    stage.ns.apply(ca_bundle("idp-ca", &stage.idp)).await;
    stage.ready("billing").await;
    stage.ns.delete::<ConfigMap>("idp-ca").await;
    stage.ns.condition::<MailProvider>("idp", "Ready", "SourceNotFound").await;
    let object: MailCredential = stage.ns.get("billing").await;
    assert_eq!(reason(&object, "Ready"), "TokenValid");
}

#[tokio::test]
async fn the_good_certificates_of_a_bundle_count_and_a_warning_names_the_other_blocks() {
    let stage = bare().await;
    stage.ns.apply(source("idp-client", "client-secret", "x")).await;
    let odd = "-----BEGIN TRUSTED CERTIFICATE-----\nAAAA\n-----END TRUSTED CERTIFICATE-----\n";
    let bundle = format!("{}\n{odd}", stage.idp.ca());
    stage.ns.apply(ca_bundle("idp-ca", &stage.idp).entry("data", "ca.crt", bundle)).await;
    stage.ns.apply(credential("billing")).await;
    stage.ready("billing").await;
    let told = stage.ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await.message;
    assert!(told.contains("block 2 (TRUSTED CERTIFICATE)"), "{told}");
    stage.ns.tells("idp", &["Warning SourceInvalid"]).await;
}

#[tokio::test]
async fn the_brokers_own_secrets_are_never_sources() {
    let stage = bare().await;
    stage.ns.apply(ca_bundle("idp-ca", &stage.idp)).await;
    let own = source("idp-client", "client-secret", "x").entry(
        "metadata.labels",
        "app.kubernetes.io/managed-by",
        "mail-token-broker",
    );
    stage.ns.apply(credential("billing")).await;
    stage.ns.apply(own.clone().entry("metadata.labels", "mailtoken.dev/source", "false")).await;
    refused(&stage, "SourceInvalid", "the broker's own", "SourceInvalid").await;
    stage.ns.apply(own).await;
    refused(&stage, "SourceInvalid", "the broker's own", "SourceInvalid").await;
    stage.ns.delete::<Secret>("idp-client").await;
    stage.ns.apply(source("idp-client", "client-secret", "x").set("type", "mailtoken.dev/grant")).await;
    refused(&stage, "SourceInvalid", "the broker's own", "SourceInvalid").await;
    assert_eq!(stage.idp.requests().len(), 0);
}

#[tokio::test]
async fn a_refused_secret_is_tried_anew_as_soon_as_it_is_replaced() {
    let stage = Stage::new().await;
    stage.idp.answer(Answer::error("invalid_client"));
    stage.ns.apply(credential("billing")).await;
    stage.ns.condition::<MailCredential>("billing", "Stalled", "InvalidClient").await;
    let object: MailCredential = stage.ns.get("billing").await;
    assert_eq!(
        (reason(&object, "Ready"), reason(&object, "Renewed")),
        ("InvalidClient".into(), "InvalidClient".into())
    );
    assert_eq!(field(&object, "/status/lastError/error"), "invalid_client");
    assert_eq!(field(&object, "/status/lastError/httpStatus"), 401);
    stage.mark_refused().await;
    assert_eq!(stage.idp.token_requests().len(), 2, "no loop");

    stage.idp.answer(Answer::token(3600));
    stage.ns.apply(source("idp-client", "client-secret", "the new one")).await;
    let object = stage.ready("billing").await;
    assert_eq!(stage.idp.token_requests().last().unwrap().form()["client_secret"], "the new one");
    assert_eq!(field(&object, "/status/failedAttempts"), json!(0));
    assert_eq!(field(&object, "/status/lastError"), Value::Null);
}

#[tokio::test]
async fn a_secret_that_changes_while_a_request_is_under_way_is_used_at_once() {
    let stage = Stage::new().await;
    stage.idp.next(Answer::error("invalid_client").held());
    stage.ns.apply(credential("billing")).await;
    stage.idp.token_requests_reach(1).await;
    stage.ns.apply(source("idp-client", "client-secret", "the new one")).await;
    // The provider is looked at again with the new secret before the old answer comes.
    stage.ns.apply(provider(&stage.idp).set("metadata.name", "marker")).await;
    stage.ns.condition::<MailProvider>("marker", "Ready", "ProviderReady").await;
    stage.idp.release();
    stage.ready("billing").await;
    assert_eq!(stage.idp.token_requests()[1].form()["client_secret"], "the new one");
    tried("F21", 1, "nothing");
}

#[tokio::test]
async fn a_label_that_is_withdrawn_stops_renewal_and_leaves_the_token() {
    let stage = Stage::new().await;
    stage.idp.next(Answer::token(10));
    // It is not due before the label is withdrawn.
    stage.issued(credential("billing").set("spec.renewal.renewBefore", "1s")).await;
    stage.ns.apply(source("idp-client", "client-secret", "a client secret").without("metadata.labels")).await;
    stage.ns.condition::<MailProvider>("idp", "Ready", "SourceNotLabeled").await;
    stage.ns.condition::<MailCredential>("billing", "Renewed", "SourceNotLabeled").await;
    let object: MailCredential = stage.ns.get("billing").await;
    assert_eq!(reason(&object, "Ready"), "TokenValid");
    let expired = stage.ns.condition::<MailCredential>("billing", "Ready", "Expired").await;
    assert!(expired.message.contains("label secret idp-client"), "{}", expired.message);
    assert_eq!(stage.idp.token_requests().len(), 1);
    stage.ns.apply(source("idp-client", "client-secret", "a client secret")).await;
    stage.ready("billing").await;
}

#[tokio::test]
async fn a_provider_that_goes_stops_renewal_and_leaves_the_token() {
    let stage = Stage::new().await;
    stage.issued(credential("billing")).await;
    stage.ns.delete::<MailProvider>("idp").await;
    stage.ns.condition::<MailCredential>("billing", "Renewed", "ProviderNotFound").await;
    stage.ready("billing").await;

    // Without the provider nobody can tell whether the token is for a new spec.
    let changed = credential("billing").set("spec.scopes", json!(["other"]));
    stage.ns.apply(changed.clone()).await;
    stage.ns.condition::<MailCredential>("billing", "Ready", "ProviderNotFound").await;
    stage.ns.apply(credential("other").set("spec.providerRef.name", "none")).await;
    stage.ns.condition::<MailCredential>("other", "Ready", "ProviderNotFound").await;
    stage.ns.annotate::<MailCredential>("billing", "example.org/touch", "x").await;
    stage.ns.apply(changed.set("spec.renewal.minValidity", "11m")).await;
    stage.ns.condition::<MailCredential>("billing", "Ready", "ProviderNotFound").await;
    stage.ns.apply(credential("mark").set("spec.providerRef.name", "none")).await;
    stage.ns.condition::<MailCredential>("mark", "Ready", "ProviderNotFound").await;
    stage.ns.condition::<MailCredential>("billing", "Ready", "ProviderNotFound").await;

    stage.ns.apply(provider(&stage.idp)).await;
    stage.ready("billing").await;
    assert_eq!(stage.idp.token_requests().len(), 2);
    assert_eq!(stage.idp.token_requests()[1].form()["scope"], "other");
}

#[tokio::test]
async fn a_provider_that_changes_is_used_as_it_is_now() {
    let stage = Stage::new().await;
    stage.issued(credential("billing")).await;
    let servers = provider(&stage.idp).set("spec.servers.smtp.host", "other.example.org");
    stage.ns.apply(servers).await;
    stage
        .ns
        .until::<Secret>("billing", "it names the new server", |secret| {
            text(secret, "smtp_host") == "other.example.org"
        })
        .await;
    assert_eq!(stage.idp.token_requests().len(), 1, "another server needs no other token");

    stage.ns.apply(provider(&stage.idp).set("spec.client.id", "other")).await;
    stage.idp.token_requests_reach(2).await;
    assert_eq!(stage.idp.token_requests()[1].form()["client_id"], "other");
    let before = stage.idp.issued()[0].clone();
    stage.renewed("billing", &before).await;
    let secret: Secret = stage.ns.get("billing").await;
    assert_eq!(text(&secret, "smtp_host"), "smtp.example.org");
}

#[tokio::test]
async fn of_a_provider_that_is_deleted_while_it_is_looked_at_nothing_is_followed() {
    let ns = Cluster::shared().namespace().await;
    let (idp, api) = (Idp::start(), ApiProxy::start(&ns.cluster));
    let _broker = Broker::settings(&ns).kubeconfig(&api.kubeconfig()).start().await;
    let document = json!({"issuer": idp.issuer(), "token_endpoint": idp.token_url()});
    idp.next_at(idp::DISCOVERY, Answer::json(200, document).held());
    ns.apply(ca_bundle("idp-ca", &idp)).await;
    ns.apply(source("idp-client", "client-secret", "a client secret")).await;
    ns.apply(provider(&idp).without("spec.oauth2").set("spec.oidc.issuerURL", idp.issuer())).await;
    ns.apply(credential("billing")).await;
    until("the provider is looked at", async || match idp.requests().len() {
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

    // Another one of this name is used.
    ns.apply(provider(&idp)).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
}
