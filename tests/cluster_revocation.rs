//! `revocationPolicy: OnDelete`: what is asked of the provider, what is told, and that no deletion waits for long.

mod support;

use k8s_openapi::api::core::v1::Secret;
use mail_token_broker::api::MailCredential;
use serde_json::json;
use support::{idp::REVOKE, ledger::tried, *};

const FINALIZER: &str = "mailtoken.dev/revoke";

/// A stage whose provider names its revocation endpoint.
async fn stage() -> Stage {
    revocable(Stage::new().await).await
}

async fn revocable(stage: Stage) -> Stage {
    stage.ns.apply(provider(&stage.idp).set("spec.oauth2.revocationURL", stage.idp.url(REVOKE))).await;
    stage
}

fn revoking(name: &str) -> Manifest {
    credential(name).set("spec.revocationPolicy", "OnDelete")
}

fn finalizers(credential: &MailCredential) -> Vec<String> {
    credential.metadata.finalizers.clone().unwrap_or_default()
}

/// The `token` and `token_type_hint` of each revocation request.
fn revoked(stage: &Stage) -> Vec<(String, String)> {
    let requests = stage.idp.requests().into_iter().filter(|request| request.path == REVOKE);
    requests.map(|request| (request.form()["token"].clone(), request.form()["token_type_hint"].clone())).collect()
}

#[tokio::test]
async fn without_the_policy_there_is_no_finalizer_and_no_request() {
    let stage = stage().await;
    let made = stage.issued(credential("billing")).await;
    assert_eq!(finalizers(&made), Vec::<String>::new());
    stage.ns.delete::<MailCredential>("billing").await;
    stage.mark("mark").await;
    assert_eq!(revoked(&stage), []);
}

#[tokio::test]
async fn the_tokens_of_a_deleted_credential_are_revoked_the_refresh_token_first() {
    let stage = stage().await;
    stage.idp.answer(Answer::token(3600).rotating());
    stage.ns.apply(source("seed", "refresh_token", "the-first-one")).await;
    let by_refresh_token = json!({"refreshToken": {"secretRef": {"name": "seed", "key": "refresh_token"}}});
    let made = stage.issued(revoking("billing").set("spec.grant", by_refresh_token)).await;
    assert_eq!(finalizers(&made), [FINALIZER]);
    let kept = text(&stage.ns.get::<Secret>("billing-grant").await, "refresh_token");
    let token = text(&stage.ns.get::<Secret>("billing").await, "access_token");

    stage.ns.delete::<MailCredential>("billing").await;
    stage.ns.gone::<MailCredential>("billing").await;
    assert_eq!(revoked(&stage), [(kept, "refresh_token".to_owned()), (token, "access_token".to_owned())]);
    stage.ns.tells("billing", &["Normal GrantRevoked"]).await;
}

#[tokio::test]
async fn the_finalizer_comes_and_goes_with_the_policy() {
    let stage = stage().await;
    stage.issued(credential("billing")).await;
    stage.ns.apply(revoking("billing")).await;
    let has = |wanted: bool| {
        move |credential: &MailCredential| finalizers(credential).contains(&FINALIZER.to_owned()) == wanted
    };
    stage.ns.until::<MailCredential>("billing", "it has the finalizer", has(true)).await;
    stage.ns.apply(credential("billing").set("spec.revocationPolicy", "Never")).await;
    stage.ns.until::<MailCredential>("billing", "it has no finalizer", has(false)).await;
    assert_eq!(stage.idp.token_requests().len(), 1, "neither needs a new token");
}

#[tokio::test]
async fn a_provider_without_the_endpoint_is_told_of_and_delays_nothing() {
    let stage = Stage::new().await;
    stage.issued(revoking("billing")).await;
    stage.ns.delete::<MailCredential>("billing").await;
    stage.ns.gone::<MailCredential>("billing").await;
    stage.ns.tells("billing", &["Warning RevocationNotSupported"]).await;
}

#[tokio::test]
async fn a_passing_trouble_is_tried_again_and_a_refusal_ends_it() {
    let stage = stage().await;
    stage.idp.next_at(REVOKE, Answer::status(503));
    stage.issued(revoking("billing")).await;
    stage.ns.delete::<MailCredential>("billing").await;
    stage.ns.gone::<MailCredential>("billing").await;
    assert_eq!(revoked(&stage).len(), 2);
    stage.ns.tells("billing", &["Normal GrantRevoked"]).await;

    stage.idp.next_at(REVOKE, Answer::error("unsupported_token_type"));
    stage.issued(revoking("refused")).await;
    stage.ns.delete::<MailCredential>("refused").await;
    stage.ns.gone::<MailCredential>("refused").await;
    stage.ns.tells("refused", &["Warning RevocationFailed"]).await;
}

#[tokio::test]
async fn a_provider_that_is_gone_does_not_hold_up_the_deletion() {
    let stage = stage().await;
    stage.issued(revoking("billing")).await;
    stage.ns.kubectl(["delete", "mailprovider", "idp"]);
    stage.ns.delete::<MailCredential>("billing").await;
    stage.ns.gone::<MailCredential>("billing").await;
    stage.ns.tells("billing", &["Warning RevocationFailed"]).await;
}

#[tokio::test]
async fn a_broker_that_dies_over_it_leaves_it_to_the_next() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    ns.provider(&idp).await;
    // Without an election, the next need not wait for the lease of the one that died.
    let broker = Broker::settings(&ns).flag("--leader-elect=false").start().await;
    let mut stage = revocable(Stage { ns, idp, broker }).await;
    stage.issued(revoking("billing")).await;
    stage.idp.next_at(REVOKE, Answer::hang());
    stage.ns.remove(&revoking("billing")).await;
    until(
        "the revocation has begun",
        async || {
            if revoked(&stage).is_empty() { Err("no request".to_owned()) } else { Ok(()) }
        },
    )
    .await;
    stage.broker.kill();
    let left: MailCredential = stage.ns.get("billing").await;
    assert_eq!(finalizers(&left), [FINALIZER], "it died over it");
    stage.broker.again().await;
    stage.ns.gone::<MailCredential>("billing").await;
    let asked = revoked(&stage);
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0], asked[1], "the next revokes the same token");
    stage.ns.tells("billing", &["Normal GrantRevoked"]).await;
}

#[tokio::test]
async fn the_deletion_of_a_namespace_ends() {
    let cluster = Cluster::alone(&["control-plane"]);
    cluster.up("controller-manager");
    let ns = cluster.namespace().await;
    let idp = Idp::start();
    ns.provider(&idp).await;
    let stage = revocable(Stage { broker: Broker::start(&ns).await, ns, idp }).await;
    for name in ["billing", "orders", "support"] {
        stage.issued(revoking(name)).await;
    }
    stage.ns.kubectl(["delete", "namespace", &stage.ns.name, "--wait=false"]);
    until("the namespace is gone", async || {
        let left =
            stage.ns.kubectl(["get", "namespace", &stage.ns.name, "--ignore-not-found", "-o", "jsonpath={.status}"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    tried("F24", 1, "nothing");
}
