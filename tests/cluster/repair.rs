//! The broker repairs foreign changes of the Secret, at the lowest cost.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{
    fault_log::tried,
    server::{Handler, LOOPBACK, Request, Response, Server},
    *,
};
use serde_json::{Value, json};

fn customized() -> Manifest {
    credential("billing")
        .set("spec.secret.labels.team", "billing")
        .entry("spec.secret.annotations", "example.org/note", "kept")
        .set("spec.secret.data", json!({"smtp.env": "T=${access_token}"}))
}

/// Returns the parts of a Secret that a repair must restore.
fn shape(secret: &Secret) -> Value {
    let metadata = field(secret, "/metadata");
    let immutable = secret.immutable == Some(true);
    json!([
        secret.data,
        metadata["labels"],
        metadata["annotations"],
        metadata["ownerReferences"],
        secret.type_,
        immutable
    ])
}

async fn repaired(fixture: &Fixture, what: &str, wanted: &Value) -> Secret {
    fixture.ns.until::<Secret>("billing", what, |secret| shape(secret) == *wanted).await
}

#[tokio::test]
async fn foreign_changes_of_the_secret_are_repaired_without_a_request() {
    let fixture = Fixture::new().await;
    fixture.issued(customized()).await;
    let original: Secret = fixture.ns.get("billing").await;
    let wanted = shape(&original);
    let edits = [
        ("a key changed", json!({"stringData": {"username": "somebody"}})),
        ("a ready-made form changed", json!({"data": {"xoauth2": "eA=="}})),
        ("a key of spec.secret.data emptied", json!({"stringData": {"smtp.env": ""}})),
        ("a key removed", json!({"data": {"smtp_host": null}})),
        ("a key added", json!({"stringData": {"more": "x"}})),
        ("a label of the spec changed", json!({"metadata": {"labels": {"team": "other"}}})),
        ("a label of the spec removed", json!({"metadata": {"labels": {"team": null}}})),
        ("our label removed", json!({"metadata": {"labels": {"mailtoken.dev/credential": null}}})),
        ("our label changed", json!({"metadata": {"labels": {"mailtoken.dev/credential": "other"}}})),
        ("the label that we watch removed", json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}})),
        ("the label that we watch changed", json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}})),
        ("all labels removed", json!({"metadata": {"labels": null}})),
        ("an annotation of the spec changed", json!({"metadata": {"annotations": {"example.org/note": "x"}}})),
        ("an annotation of the spec removed", json!({"metadata": {"annotations": {"example.org/note": null}}})),
        ("the layout removed", json!({"metadata": {"annotations": {"mailtoken.dev/layout": null}}})),
        ("the owner removed", json!({"metadata": {"ownerReferences": null}})),
        ("made immutable", json!({"immutable": true})),
    ];
    let number = edits.len();
    for (what, edit) in edits {
        fixture.ns.patch::<Secret>("billing", edit).await;
        repaired(&fixture, what, &wanted).await;
        let object: MailCredential = fixture.ns.get("billing").await;
        assert_eq!(reason(&object, "Ready"), "TokenValid", "{what}");
    }
    assert_eq!(fixture.idp.token_requests().len(), 1);
    let reported = fixture.ns.event_reasons("billing").await;
    assert!(reported.iter().all(|event| !event.starts_with("Warning")), "{reported:?}");
    tried("F19", number, "nothing");
}

#[tokio::test]
async fn a_foreign_change_of_the_expiry_is_repaired_by_a_new_token() {
    let fixture = Fixture::new().await;
    let mut token = fixture.issued(customized()).await.status.unwrap().token.unwrap();
    const LATE: &str = "2035-01-01T00:00:00Z";
    let edits = [
        ("a key", json!({"stringData": {"expires_at": LATE}})),
        ("the other key", json!({"stringData": {"expires_at_unix": "2051222400"}})),
        ("the annotation", json!({"metadata": {"annotations": {"mailtoken.dev/expires-at": LATE}}})),
    ];
    for (number, (what, edit)) in edits.into_iter().enumerate() {
        fixture.ns.patch::<Secret>("billing", edit).await;
        let renewed = |object: &MailCredential| {
            let now = object.status.as_ref().and_then(|status| status.token.as_ref());
            reason(object, "Ready") == "TokenValid" && now.is_some_and(|now| now.fingerprint != token.fingerprint)
        };
        token = fixture.ns.until("billing", what, renewed).await.status.unwrap().token.unwrap();
        let secret: Secret = fixture.ns.get("billing").await;
        let end = token.expires_at.0;
        assert_eq!(text(&secret, "expires_at"), end.to_string(), "{what}");
        assert_eq!(text(&secret, "expires_at_unix"), end.as_second().to_string(), "{what}");
        assert_eq!(field(&secret, "/metadata/annotations/mailtoken.dev~1expires-at"), end.to_string(), "{what}");
        assert_eq!(fixture.idp.token_requests().len(), number + 2, "{what}");
    }
}

#[tokio::test]
async fn additions_of_others_stay() {
    let fixture = Fixture::new().await;
    fixture.issued(customized()).await;
    let add = json!({"metadata": {"labels": {"theirs": "x"}, "annotations": {"theirs": "y"}}});
    fixture.ns.patch::<Secret>("billing", add).await;
    fixture.ns.apply(customized().set("spec.secret.formats", json!(["TokenJSON"]))).await;
    fixture.ready("billing").await;
    let secret =
        fixture.ns.until::<Secret>("billing", "it has token.json", |s| !text(s, "token.json").is_empty()).await;
    assert_eq!(field(&secret, "/metadata/labels/theirs"), "x");
    assert_eq!(field(&secret, "/metadata/annotations/theirs"), "y");
}

#[tokio::test]
async fn a_token_that_was_tampered_with_is_replaced() {
    let fixture = Fixture::new().await;
    fixture.issued(customized()).await;
    let edits = [
        json!({"stringData": {"access_token": "theirs"}}),
        json!({"data": null}),
        json!({"data": {"access_token": null}}),
        json!({"metadata": {"annotations": {"mailtoken.dev/fingerprint": null}}}),
        json!({"metadata": {"annotations": {"mailtoken.dev/issued-for": "x"}}}),
        json!({"metadata": {"annotations": {"mailtoken.dev/expires-at": "tomorrow"}}}),
        json!({"metadata": {"annotations": {"mailtoken.dev/expires-at": "2020-01-01T00:00:00Z"}}}),
        json!({"metadata": {"annotations": null}}),
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        let before = fixture.ns.secret("billing").await["access_token"].clone();
        fixture.ns.patch::<Secret>("billing", edit.clone()).await;
        let fresh = |secret: &Secret| {
            let token = text(secret, "access_token");
            token.starts_with("access-canary") && token != before
        };
        let secret = fixture.ns.until::<Secret>("billing", &edit.to_string(), fresh).await;
        assert_eq!(text(&secret, "smtp.env"), format!("T={}", text(&secret, "access_token")));
        fixture.ready("billing").await;
        assert_eq!(fixture.idp.token_requests().len(), number + 2, "{edit}");
    }
}

#[tokio::test]
async fn a_deleted_secret_is_recreated() {
    let fixture = Fixture::new().await;
    for policy in ["Delete", "Retain"] {
        let name = policy.to_lowercase();
        // The name is longer than the maximum of a label's value.
        let name = format!("{name}-{}", "x".repeat(70));
        fixture
            .issued(credential("c").set("metadata.name", name.as_str()).set("spec.secret.deletionPolicy", policy))
            .await;
        for _ in 0..2 {
            let before: Secret = fixture.ns.get(&name).await;
            fixture.ns.api::<Secret>().delete(&name, &DeleteParams::default()).await.unwrap();
            let other = |secret: &Secret| secret.metadata.uid != before.metadata.uid;
            fixture.ns.until::<Secret>(&name, "it is there again", other).await;
            fixture.ready(&name).await;
        }
    }
    assert_eq!(fixture.idp.token_requests().len(), 6);
    tried("F19", 4, "nothing");
}

#[tokio::test]
async fn an_own_secret_of_another_type_is_recreated() {
    let fixture = Fixture::new().await;
    fixture.issued(customized()).await;
    let original: Secret = fixture.ns.get("billing").await;
    fixture.ns.apply(customized().set("spec.suspend", true)).await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "Suspended").await;
    let mut other = original.clone();
    other.type_ = Some("example.org/other".to_owned());
    other.metadata.resource_version = None;
    other.metadata.uid = None;
    fixture.ns.delete::<Secret>("billing").await;
    let made = fixture.ns.api::<Secret>().create(&PostParams::default(), &other).await.unwrap();
    let version = field(&made, "/metadata/resourceVersion");
    let seen = |billing: &MailCredential| field(billing, "/status/secretResourceVersion") == version;
    fixture.ns.until::<MailCredential>("billing", "the other Secret is seen", seen).await;
    fixture.ns.apply(customized()).await;
    repaired(&fixture, "it is Opaque", &shape(&original)).await;
    fixture.ready("billing").await;
    assert_eq!(fixture.idp.token_requests().len(), 1);
    tried("F19", 1, "nothing");
}

#[tokio::test]
async fn an_own_secret_of_another_type_is_recreated_although_no_watch_shows_it() {
    let fixture = Fixture::new().await;
    fixture.issued(customized()).await;
    let mut other: Secret = fixture.ns.get("billing").await;
    fixture.ns.apply(customized().set("spec.suspend", true)).await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "Suspended").await;
    fixture.ns.delete::<Secret>("billing").await;
    let gone = |billing: &MailCredential| billing.status.as_ref().is_some_and(|status| status.token.is_none());
    fixture.ns.until::<MailCredential>("billing", "its token is gone", gone).await;
    other.type_ = Some("example.org/other".to_owned());
    other.metadata.labels = None;
    (other.metadata.resource_version, other.metadata.uid) = (None, None);
    fixture.ns.api::<Secret>().create(&PostParams::default(), &other).await.unwrap();
    fixture.ns.apply(customized()).await;
    let opaque = |secret: &Secret| secret.type_.as_deref() == Some("Opaque") && secret.metadata.labels.is_some();
    fixture.ns.until::<Secret>("billing", "it is Opaque", opaque).await;
    fixture.ready("billing").await;
    assert_eq!(fixture.idp.token_requests().len(), 2);
    tried("F19", 1, "nothing");
}

#[tokio::test]
async fn a_secret_is_repaired_also_while_the_provider_refuses() {
    let fixture = Fixture::new().await;
    fixture.idp.next(Answer::token(20));
    fixture.idp.answer(Answer::error("invalid_client"));
    fixture.issued(customized()).await;
    let original: Secret = fixture.ns.get("billing").await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "InvalidClient").await;
    let requests = fixture.idp.token_requests().len();
    fixture.ns.patch::<Secret>("billing", json!({"stringData": {"username": "somebody"}})).await;
    repaired(&fixture, "the user is right again", &shape(&original)).await;
    let object: MailCredential = fixture.ns.get("billing").await;
    assert_eq!(reason(&object, "Renewed"), "InvalidClient", "the failure still stands: {object:#?}");
    assert_eq!(fixture.idp.token_requests().len(), requests, "and still waits");
}

#[tokio::test]
async fn a_secret_is_repaired_also_while_the_provider_is_blocked_and_keeps_its_layout() {
    let fixture = Fixture::new().await;
    fixture.issued(customized()).await;
    let original: Secret = fixture.ns.get("billing").await;
    fixture.ns.apply(source("idp-client", "client-secret", "a client secret").without("metadata.labels")).await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "SourceNotLabeled").await;
    fixture.ns.patch::<Secret>("billing", json!({"stringData": {"username": "somebody"}})).await;
    repaired(&fixture, "the user is right again", &shape(&original)).await;
    fixture.ns.apply(customized().set("spec.mailbox.address", "other@example.org")).await;
    fixture.ns.condition::<MailCredential>("billing", "Ready", "SourceNotLabeled").await;
    assert_eq!(fixture.ns.secret("billing").await["from"], "billing@example.org");
    assert_eq!(fixture.idp.token_requests().len(), 1);
}

#[tokio::test]
async fn the_broker_does_not_trust_what_users_write_into_the_status() {
    let fixture = Fixture::new().await;
    let made = fixture.issued(customized()).await;
    let status = json!({"status": {
        "token": {"expiresAt": "2020-01-01T00:00:00Z"}, "secretName": "other", "conditions": [],
        "observedGeneration": 99, "failedAttempts": 7,
    }});
    let params = PatchParams::default();
    let api = fixture.ns.api::<MailCredential>();
    api.patch_status("billing", &params, &Patch::Merge(status)).await.unwrap();
    fixture.ready("billing").await;
    fixture
        .ns
        .until::<MailCredential>("billing", "the status is as it was", |object| {
            let reported = |pointer| field(object, pointer) == field(&made, pointer);
            reported("/status/token") && reported("/status/secretName") && reported("/status/observedGeneration")
        })
        .await;
    assert_eq!(fixture.idp.token_requests().len(), 1);
    api.patch_status("billing", &params, &Patch::Merge(json!({"status": null}))).await.unwrap();
    fixture.ready("billing").await;
    assert_eq!(fixture.idp.token_requests().len(), 1);
}

/// Acts as another writer, which changes a Secret each time that the broker has written it. Returns the number of
/// changes.
async fn reverts(
    ns: &Namespace,
    name: &str,
    time: std::time::Duration,
    ours: impl Fn(&Secret) -> bool,
    edit: Value,
) -> usize {
    let mut reverted = 0;
    holds(time, "the other writer changes it", async || {
        if ours(&ns.get::<Secret>(name).await) {
            ns.patch::<Secret>(name, edit.clone()).await;
            reverted += 1;
        }
        Ok(())
    })
    .await;
    reverted
}

#[tokio::test]
async fn a_controller_that_reverts_each_repair_is_answered_once_a_second_at_most() {
    let fixture = Fixture::new().await;
    fixture.issued(customized()).await;
    let time = std::time::Duration::from_secs(8);
    let labelled = |secret: &Secret| field(secret, "/metadata/labels/team") == "billing";
    let edit = json!({"metadata": {"labels": {"team": "other"}}});
    let reverted = reverts(&fixture.ns, "billing", time, labelled, edit).await;
    assert!((2..=11).contains(&reverted), "{reverted} repairs");
    assert_eq!(fixture.idp.token_requests().len(), 1);
}

/// An admission webhook that removes a label from each Secret.
struct Stripper;

impl Handler for Stripper {
    async fn handle(&self, request: Request) -> Option<Response> {
        let review: Value = serde_json::from_str(&request.body).unwrap();
        let labelled = review.pointer("/request/object/metadata/labels/mailtoken.dev~1role").is_some();
        let patch = json!([{"op": "remove", "path": "/metadata/labels/mailtoken.dev~1role"}]).to_string();
        let mut response = json!({"uid": review["request"]["uid"], "allowed": true});
        if labelled {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = BASE64_STANDARD.encode(patch).into();
        }
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        Some(Response::json(200, &review))
    }
}

#[tokio::test]
async fn labels_that_an_admission_webhook_reverts_are_written_once_a_minute_and_delay_no_renewal() {
    let fixture = RefreshFixture::new().await;
    let webhook = Server::start(LOOPBACK, &["127.0.0.1"], |_| Stripper);
    let rule = json!({
        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["secrets"],
    });
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": fixture.ns.name},
        "webhooks": [{
            "name": "strip.example.org", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Ignore", "rules": [rule],
            "clientConfig": {
                "url": format!("https://127.0.0.1:{}/", webhook.port()), "caBundle": BASE64_STANDARD.encode(webhook.ca()),
            },
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": fixture.ns.name}},
        }],
    });
    fixture.ns.apply(configuration).await;
    until("the webhook is asked", async || {
        fixture.ns.apply(source("probe", "key", &webhook.requests().len().to_string())).await;
        if webhook.requests().is_empty() { Err(String::new()) } else { Ok(()) }
    })
    .await;
    fixture.issued().await;
    fixture.renew().await;
    let writes = || fixture.verbs("secrets", "billing-grant", &["create", "patch", "update"]).len();
    let before = writes();
    holds(std::time::Duration::from_secs(5), "the grant is not written in a loop", async || match writes() - before {
        0..=2 => Ok(()),
        more => Err(more.to_string()),
    })
    .await;
    fixture.renew().await;
    assert_eq!(field(&fixture.grant().await, "/metadata/labels/mailtoken.dev~1role"), Value::Null);
    assert_eq!((fixture.idp.families_revoked(), fixture.idp.reuses()), (0, 0));
}
