//! The Secrets that a provider refers to: the content that the broker rejects, and several client authentications.

use std::time::Duration;

use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_testkit::{idp::TOKEN, *};
use serde_json::{Value, json};

/// Waits until the MailProvider and the MailCredential `billing` have this reason and this part of the message.
async fn refused(ns: &Namespace, reason: &str, said: &str) {
    until(&format!("{reason} {said}"), async || {
        let reported = ns.condition::<MailCredential>("billing", "Stalled", reason).await.message;
        let provider = ns.condition::<MailProvider>("idp", "Ready", reason).await;
        let same = provider.status == "False" && provider.message == reported && reported.contains(said);
        same.then_some(()).ok_or(format!("{reported}\n{provider:?}"))
    })
    .await;
}

async fn ready(ns: &Namespace) {
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
}

#[tokio::test]
async fn white_space_around_a_client_secret_is_refused_before_it_is_sent() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    ns.apply(ca_bundle("idp-ca", &idp)).await;
    ns.apply(source("idp-client", "client-secret", "s3cret ")).await;
    ns.apply(provider(&idp)).await;
    ns.apply(credential("billing")).await;

    for (raw, said) in
        [("s3cret ", "white space"), ("s3cret\n\n", "white space"), ("", "empty"), ("a\u{7}b", "control")]
    {
        ns.apply(source("idp-client", "client-secret", raw)).await;
        refused(&ns, "SourceInvalid", said).await;
        refused(&ns, "SourceInvalid", "`kubectl -n ").await;
    }
    assert_eq!(idp.token_requests().len(), 0);

    ns.apply(source("idp-client", "client-secret", "s3cret\n")).await;
    ready(&ns).await;
    assert_eq!(idp.token_requests()[0].form()["client_secret"], "s3cret");
}

#[tokio::test]
async fn the_id_of_a_secret_is_not_taken_for_its_value_at_microsoft() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    ns.provider(&idp).await;
    ns.apply(source("idp-client", "client-secret", "1b4e28ba-2fa1-11d2-883f-0016d3cca427")).await;
    let microsoft = provider(&idp).without("spec.oauth2").set("spec.microsoft", json!({"tenantID": "contoso.com"}));
    ns.apply(microsoft).await;
    ns.apply(credential("billing")).await;

    refused(&ns, "SourceInvalid", "the form of a secret ID").await;

    ns.apply(provider(&idp)).await;
    ready(&ns).await;
}

#[tokio::test]
async fn the_brokers_own_secrets_are_never_a_source_whatever_their_labels() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    ns.apply(ca_bundle("idp-ca", &idp)).await;
    let with_source = [("unlabelled", false), ("labelled", true)];
    for (name, labelled) in with_source {
        let label = if labelled { json!({"mailtoken.dev/source": "true"}) } else { json!({}) };
        let grant = source(&format!("{name}-grant"), "client-secret", "x").set("type", "mailtoken.dev/grant");
        ns.apply(grant.set("metadata.labels", label.clone())).await;
        let managed = source(&format!("{name}-managed"), "client-secret", "x").set("metadata.labels", label);
        ns.apply(managed.entry("metadata.labels", "app.kubernetes.io/managed-by", "mail-token-broker")).await;
    }
    let reference = |name: &str| {
        let entry = json!([{"clientSecret": {"secretRef": {"name": name, "key": "client-secret"}}}]);
        provider(&idp).set("spec.client.authentication", entry)
    };
    ns.apply(reference("labelled-grant")).await;
    ns.apply(credential("billing")).await;
    for name in ["labelled-grant", "unlabelled-grant", "labelled-managed", "unlabelled-managed"] {
        ns.apply(reference(name)).await;
        refused(&ns, "SourceInvalid", &format!("/{name} is the broker's own")).await;
    }
    assert_eq!(idp.token_requests().len(), 0);
}

/// Applies client secrets, each in its own Secret, and a provider with them in this order.
async fn secrets(ns: &Namespace, idp: &Idp, names: &[&str]) {
    ns.apply(ca_bundle("idp-ca", idp)).await;
    for name in names {
        ns.apply(source(name, "client-secret", name)).await;
    }
    let entry = |name: &&str| json!({"clientSecret": {"secretRef": {"name": name, "key": "client-secret"}}});
    let entries: Vec<Value> = names.iter().map(entry).collect();
    ns.apply(provider(idp).set("spec.client.authentication", entries)).await;
    ns.apply(credential("billing")).await;
}

/// Returns the client secrets that the broker has sent so far.
fn sent(idp: &Idp) -> Vec<String> {
    idp.requests_at(TOKEN).iter().map(|request| request.form()["client_secret"].clone()).collect()
}

async fn in_use(ns: &Namespace) -> i32 {
    let found: MailCredential = ns.get("billing").await;
    let client = found.status.and_then(|status| status.client).unwrap();
    assert_eq!(client.method, "clientSecret");
    client.index
}

#[tokio::test]
async fn after_invalid_client_the_next_secret_is_tried_in_the_same_attempt_and_kept() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    idp.next(Answer::token(3600));
    secrets(&ns, &idp, &["first", "second", "third"]).await;
    ready(&ns).await;
    assert_eq!(in_use(&ns).await, 0);

    idp.next(Answer::error("invalid_client"));
    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    ns.until::<MailCredential>("billing", "the second is in use", |found| {
        found.status.as_ref().and_then(|status| status.client.as_ref()).is_some_and(|client| client.index == 1)
    })
    .await;
    let found: MailCredential = ns.get("billing").await;
    assert_eq!(found.status.unwrap().failed_attempts, Some(0));
    until("the take-over is reported", async || {
        let reported = |event: &k8s_openapi::api::events::v1::Event| {
            event.reason.as_deref() == Some("ClientAuthenticationChanged")
        };
        let events = ns.events("billing").await;
        events.iter().any(reported).then_some(()).ok_or(format!("{events:#?}"))
    })
    .await;

    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "2").await;
    idp.token_requests_reach(4).await;
    // After a transient failure, the broker does not try another client authentication.
    ns.until::<MailCredential>("billing", "2 is handled", |found| {
        found.status.as_ref().and_then(|status| status.last_handled_reissue.as_deref()) == Some("2")
    })
    .await;
    idp.next(Answer::status(503));
    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "3").await;
    ns.condition::<MailCredential>("billing", "Renewed", "ProviderUnavailable").await;
    assert_eq!(sent(&idp), ["first", "first", "second", "second", "second"]);
    assert_eq!(in_use(&ns).await, 1);
}

#[tokio::test]
async fn where_all_secrets_are_refused_each_is_tried_once() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    idp.answer(Answer::error("invalid_client"));
    secrets(&ns, &idp, &["first", "second", "third"]).await;

    ns.condition::<MailCredential>("billing", "Stalled", "InvalidClient").await;
    holds(Duration::from_secs(1), "each once", async || match sent(&idp) {
        sent if sent == ["first", "second", "third"] => Ok(()),
        sent => Err(format!("{sent:?}")),
    })
    .await;
    let found: MailCredential = ns.get("billing").await;
    assert_eq!(found.status.unwrap().failed_attempts, Some(1));

    idp.answer(Answer::token(3600));
    ns.apply(source("first", "client-secret", "mended")).await;
    ready(&ns).await;
}

#[tokio::test]
async fn a_secret_that_is_missing_or_invalid_is_passed_over() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    ns.apply(source("first", "client-secret", " ")).await;
    secrets(&ns, &idp, &["first", "second"]).await;
    ns.apply(source("first", "client-secret", "white space ")).await;
    ready(&ns).await;

    ns.until::<MailProvider>("idp", "it reports the first", |provider| {
        let ready = namespace::find(provider, "Ready");
        ready.is_some_and(|ready| {
            ready.status == "True" && ready.message.contains("authentication[0] cannot be used (SourceInvalid)")
        })
    })
    .await;
    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    ns.until::<MailCredential>("billing", "the second is in use", |found| {
        found.status.as_ref().and_then(|status| status.client.as_ref()).is_some_and(|client| client.index == 1)
    })
    .await;
}
