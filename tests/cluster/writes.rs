//! A token that Kubernetes does not let the broker write: the broker keeps the token, and writes it later without
//! another request.

use std::time::Duration;

use k8s_openapi::api::{admissionregistration::v1::ValidatingAdmissionPolicyBinding, core::v1::Secret};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{fault_log::tried, *};
use serde_json::{Value, json};

/// An admission policy of this namespace that refuses requests until the test removes it.
struct Refusal<'a, Probe>(&'a Namespace, Probe);

impl<'a, Probe: AsyncFn() -> kube::Result<()>> Refusal<'a, Probe> {
    /// Applies the policy: it checks the requests of `rule`, and accepts those of `expression`. Waits until the API
    /// server refuses `probe`.
    async fn begin(ns: &'a Namespace, rule: Value, expression: &str, probe: Probe) -> Self {
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": ns.name},
            "spec": {
                "failurePolicy": "Fail", "matchConstraints": {"resourceRules": [rule]},
                "validations": [{"expression": expression, "message": "not today"}],
            },
        });
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": ns.name},
            "spec": {
                "policyName": ns.name, "validationActions": ["Deny"],
                "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": ns.name}}},
            },
        });
        for object in [policy, binding] {
            ns.apply(object).await;
        }
        let refusal = Self(ns, probe);
        refusal.until(true).await;
        refusal
    }

    async fn lift(self) {
        let api: Api<ValidatingAdmissionPolicyBinding> = Api::all(self.0.client.clone());
        api.delete(&self.0.name, &DeleteParams::default()).await.unwrap();
        self.until(false).await;
    }

    /// Waits until the API server applies the policy, or no longer applies it.
    async fn until(&self, refused: bool) {
        until("the policy is in force, or lifted", async || match self.1().await {
            Err(error) if refused && error.to_string().contains("not today") => Ok(()),
            Ok(()) if !refused => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
}

/// Refuses Secrets that have the label of the broker's Secrets.
async fn refuse_secrets(ns: &Namespace) -> Refusal<'_, impl AsyncFn() -> kube::Result<()>> {
    let rule =
        json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["secrets"]});
    let unlabelled = "!has(object.metadata.labels) || !('app.kubernetes.io/managed-by' in object.metadata.labels)";
    let probe: Secret = serde_json::from_value(json!({
        "metadata": {"generateName": "probe-", "labels": {"app.kubernetes.io/managed-by": "somebody"}},
    }))
    .unwrap();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let api = ns.api::<Secret>();
    Refusal::begin(ns, rule, unlabelled, async move || api.create(&dry, &probe).await.map(drop)).await
}

/// Refuses the status of MailCredentials. A MailCredential `billing` must exist.
async fn refuse_statuses(ns: &Namespace) -> Refusal<'_, impl AsyncFn() -> kube::Result<()>> {
    let rule = json!({
        "apiGroups": ["mailtoken.dev"], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": ["mailcredentials/status"],
    });
    let dry = PatchParams { dry_run: true, ..PatchParams::default() };
    let api = ns.api::<MailCredential>();
    let patch = Patch::Merge(json!({"status": {"failedAttempts": 7}}));
    Refusal::begin(ns, rule, "false", async move || api.patch_status("billing", &dry, &patch).await.map(drop)).await
}

async fn refuse_deletions(ns: &Namespace) -> Refusal<'_, impl AsyncFn() -> kube::Result<()>> {
    let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["DELETE"], "resources": ["secrets"]});
    ns.apply(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "probe"}})).await;
    let dry = DeleteParams { dry_run: true, ..DeleteParams::default() };
    let api = ns.api::<Secret>();
    Refusal::begin(ns, rule, "false", async move || api.delete("probe", &dry).await.map(drop)).await
}

#[tokio::test]
async fn a_new_name_is_reported_although_the_former_secret_may_not_be_deleted() {
    let Fixture { ns, idp, broker } = Fixture::new().await;
    ns.apply(credential("billing")).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    let refusal = refuse_deletions(&ns).await;

    ns.apply(credential("billing").set("spec.secret.name", "other")).await;
    ns.until::<MailCredential>("billing", "the new name is reported", |found| {
        found.status.as_ref().is_some_and(|status| {
            status.observed_generation == found.metadata.generation && status.secret_name.as_deref() == Some("other")
        })
    })
    .await;
    until("the deletion was refused", async || {
        let refused = broker.metric("mailtoken_reconcile_errors_total", "delete_secret").await;
        refused.filter(|refused| *refused >= 1.0).map(drop).ok_or(format!("{refused:?}"))
    })
    .await;
    refusal.lift().await;
    let former = ns.api::<Secret>();
    until("the former Secret is deleted", async || match former.get_opt("billing").await.unwrap() {
        None => Ok(()),
        Some(_) => Err("it is still there".to_owned()),
    })
    .await;
    assert_eq!(idp.token_requests().len(), 1);
}

#[tokio::test]
async fn a_first_token_whose_write_is_refused_is_held_and_written_later() {
    let Fixture { ns, idp, broker: _broker } = Fixture::new().await;
    let refusal = refuse_secrets(&ns).await;
    ns.apply(credential("billing")).await;

    let reported = ns.condition::<MailCredential>("billing", "Renewed", "SecretWriteFailed").await.message;
    assert!(reported.contains("not today") && reported.contains("The token is kept"), "{reported}");
    ns.condition::<MailCredential>("billing", "Ready", "SecretWriteFailed").await;
    let found: MailCredential = ns.get("billing").await;
    assert!(namespace::find(&found, "Stalled").is_none() && namespace::find(&found, "Reconciling").is_some());
    // The broker tries the write a second time, and sends no second request.
    ns.until::<MailCredential>("billing", "it was tried again", |found| {
        found.status.as_ref().and_then(|status| status.failed_attempts) == Some(2)
    })
    .await;
    refusal.lift().await;

    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    assert_eq!(ns.secret("billing").await["access_token"], idp.issued()[0]);
    assert_eq!(idp.token_requests().len(), 1);
    tried("F24", 1, "nothing");
}

#[tokio::test]
async fn a_renewed_token_whose_write_is_refused_leaves_the_old_one_and_is_written_immediately_after_a_change() {
    let Fixture { ns, idp, broker: _broker } = Fixture::new().await;
    ns.apply(credential("billing")).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    let refusal = refuse_secrets(&ns).await;

    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    ns.condition::<MailCredential>("billing", "Renewed", "SecretWriteFailed").await;
    let found: MailCredential = ns.get("billing").await;
    assert_eq!(namespace::find(&found, "Ready").unwrap().status, "True");
    assert_eq!(found.status.unwrap().last_handled_reissue, None);
    refusal.lift().await;
    ns.patch::<MailCredential>("billing", json!({"spec": {"renewal": {"minValidity": "11m"}}})).await;

    ns.condition::<MailCredential>("billing", "Renewed", "RenewalSucceeded").await;
    assert_eq!(ns.secret("billing").await["access_token"], idp.issued()[1]);
    assert_eq!(idp.token_requests().len(), 2);
    let found: MailCredential = ns.get("billing").await;
    assert_eq!(found.status.unwrap().last_handled_reissue.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_new_shape_that_may_not_be_written_costs_no_token() {
    let Fixture { ns, idp, broker: _broker } = Fixture::new().await;
    ns.apply(credential("billing")).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    let refusal = refuse_secrets(&ns).await;

    ns.patch::<MailCredential>("billing", json!({"spec": {"secret": {"formats": ["TokenJSON"]}}})).await;
    ns.condition::<MailCredential>("billing", "Renewed", "SecretWriteFailed").await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    refusal.lift().await;

    ns.until_in::<Secret>(Duration::from_secs(30), "billing", "it has the new shape", |secret| {
        secret.data.as_ref().is_some_and(|data| data.contains_key("token.json") && !data.contains_key("xoauth2"))
    })
    .await;
    ns.condition::<MailCredential>("billing", "Renewed", "RenewalSucceeded").await;
    assert_eq!(idp.token_requests().len(), 1);
}

#[tokio::test]
async fn a_refused_status_write_causes_no_second_request() {
    let Fixture { ns, idp, broker } = Fixture::new().await;
    idp.answer(Answer::error("invalid_client"));
    ns.apply(credential("billing").set("spec.suspend", true)).await;
    ns.condition::<MailCredential>("billing", "Renewed", "Suspended").await;
    let refusal = refuse_statuses(&ns).await;

    ns.apply(credential("billing").set("spec.suspend", false)).await;
    until("the status was refused three times", async || {
        let refused = broker.metric("mailtoken_reconcile_errors_total", "write_status").await;
        refused.filter(|refused| *refused >= 3.0).map(drop).ok_or(format!("{refused:?}"))
    })
    .await;
    assert_eq!(idp.token_requests().len(), 1);
    refusal.lift().await;

    ns.condition::<MailCredential>("billing", "Stalled", "InvalidClient").await;
    let found: MailCredential = ns.get("billing").await;
    assert_eq!(found.status.unwrap().failed_attempts, Some(1));
    assert_eq!(idp.token_requests().len(), 1);
}

#[tokio::test]
async fn a_token_whose_status_write_is_refused_is_published_and_reported_later() {
    let Fixture { ns, idp, broker } = Fixture::new().await;
    idp.next(Answer::error("invalid_client"));
    ns.apply(credential("billing")).await;
    ns.condition::<MailCredential>("billing", "Ready", "InvalidClient").await;
    let refusal = refuse_statuses(&ns).await;
    // The reissue starts an attempt, which would otherwise wait after `InvalidClient`.
    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;

    until("the status was refused", async || {
        let refused = broker.metric("mailtoken_reconcile_errors_total", "write_status").await;
        refused.filter(|refused| *refused >= 1.0).map(drop).ok_or(format!("{refused:?}"))
    })
    .await;
    assert_eq!(ns.secret("billing").await["access_token"], idp.issued()[0]);
    refusal.lift().await;

    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    ns.condition::<MailCredential>("billing", "Renewed", "RenewalSucceeded").await;
    let found: MailCredential = ns.get("billing").await;
    assert_eq!(found.status.unwrap().failed_attempts, Some(0));
    assert_eq!(idp.token_requests().len(), 2);
}

#[tokio::test]
async fn writes_that_hang_in_one_namespace_delay_no_other_however_large_they_are() {
    let (slow, quick) = (Cluster::shared().namespace().await, Cluster::shared().namespace().await);
    let (idp, api) = (Idp::start(), ApiProxy::start(&slow.cluster));
    for ns in [&slow, &quick] {
        ns.provider(&idp).await;
    }
    // As with an admission webhook that does not respond: each write takes as long as the broker waits.
    api.next(usize::MAX, "POST", &format!("/namespaces/{}/secrets", slow.name), Trouble::Held);
    let settings = Broker::settings(&slow).flag(format!("--namespace={}", quick.name));
    let _broker = settings.kubeconfig(&api.kubeconfig()).start().await;
    const MANY: usize = 80;
    // Each Secret has nearly a megabyte. The reconciles of a slow namespace must not take all of the memory for
    // Secrets.
    idp.answer(Answer::token(3600).field("access_token", "x".repeat(30 * 1024)));
    let large = json!({"large": "${access_token}".repeat(28)});
    for number in 0..MANY {
        slow.apply(credential(&format!("slow-{number}")).set("spec.secret.data", large.clone())).await;
    }
    let hanging = || api.asked().iter().filter(|asked| asked.troubled).count();
    until("writes hang", async || if hanging() >= 2 { Ok(()) } else { Err(hanging().to_string()) }).await;
    for number in 0..3 {
        let (name, start) = (format!("quick-{number}"), std::time::Instant::now());
        quick.apply(credential(&name).set("spec.secret.data", large.clone())).await;
        quick.condition::<MailCredential>(&name, "Ready", "TokenValid").await;
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
    assert!(hanging() >= 2, "they still hang");
    api.release();
}
