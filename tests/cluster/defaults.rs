//! The defaults that the API server adds to objects, and the columns with which it shows them.

use mail_token_broker::api::MailCredential;
use mailtoken_testkit::*;
use serde_json::{Value, json};

#[tokio::test]
async fn a_short_credential_is_completed() {
    let ns = Cluster::shared().namespace().await;
    let made = value(&ns.apply(credential("billing")).await);
    assert_eq!(
        made["spec"],
        json!({
            "providerRef": {"kind": "MailProvider", "name": "idp"},
            "mailbox": {"address": "billing@example.org"},
            "grant": {"clientCredentials": {}},
            "suspend": false,
        })
    );
}

/// The schema has no default of these fields, so the code must have it.
#[tokio::test]
async fn a_short_credential_and_one_with_all_defaults_mean_the_same() {
    let ns = Cluster::shared().namespace().await;
    let short: MailCredential = as_stored(&ns, credential("short").set("spec.probe", json!({}))).await;
    let complete = credential("complete")
        .set("spec.mailbox.address", "short@example.org")
        .set("spec.protocols", json!(["SMTP"]))
        .set("spec.secret", json!({"formats": ["XOAuth2"], "deletionPolicy": "Delete"}))
        .set("spec.renewal.minValidity", "10m")
        .set("spec.probe.interval", "6h")
        .set("spec.revocationPolicy", "Never");
    assert_eq!(short.spec, as_stored(&ns, complete).await.spec);
}

async fn as_stored(ns: &Namespace, manifest: Manifest) -> MailCredential {
    serde_json::from_value(value(&ns.apply(manifest).await)).unwrap()
}

#[tokio::test]
async fn a_short_provider_is_completed() {
    let ns = Cluster::shared().namespace().await;
    let reference = json!({"name": "app", "key": "client-secret"});
    let provider = json!({
        "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailProvider", "metadata": {"name": "m365"},
        "spec": {
            "microsoft": {"tenantID": "contoso.onmicrosoft.com"},
            "client": {"id": "mailer", "authentication": [{"clientSecret": {"secretRef": reference}}]},
        },
    });
    let made = value(&ns.apply(provider).await);
    assert_eq!(
        made["spec"],
        json!({
            "microsoft": {"tenantID": "contoso.onmicrosoft.com", "cloud": "Public"},
            "client": {"id": "mailer", "authentication": [{"clientSecret": {"secretRef": reference}}]},
        })
    );
}

/// kstatus (Flux) treats an object without a status as ready.
#[tokio::test]
async fn a_new_object_of_any_kind_has_not_been_observed() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    let cluster = cluster_provider(&ns.name, &idp);
    for manifest in [credential("billing"), provider(&idp), cluster.clone()] {
        let made = value(&ns.apply(manifest).await);
        assert_eq!(made["status"], json!({"observedGeneration": -1}), "{made}");
    }
    ns.remove(&cluster).await;
}

#[tokio::test]
async fn a_change_of_the_status_by_users_is_no_change_of_the_status() {
    let ns = Cluster::shared().namespace().await;
    let made = ns.apply(credential("billing").set("status.observedGeneration", 7)).await;
    assert_eq!(value(&made)["status"], json!({"observedGeneration": -1}));
}

#[tokio::test]
async fn kubectl_shows_the_columns_and_knows_short_names_and_the_category() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    let cluster = cluster_provider(&ns.name, &idp);
    for manifest in [credential("billing"), provider(&idp), cluster.clone()] {
        ns.apply(manifest).await;
    }
    let status = json!({"status": {
        "observedGeneration": 1, "secretName": "billing-token", "failedAttempts": 3,
        "token": {
            "issuedAt": "2035-01-01T00:00:00Z", "expiresAt": "2035-01-01T01:00:00Z", "length": 9,
            "renewalTime": "2035-01-01T00:45:00Z", "fingerprint": "sha256:0123456789abcdef",
        },
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "TokenValid", "message": "", "observedGeneration": 1,
            "lastTransitionTime": "2035-01-01T00:00:00Z",
        }, {
            "type": "MailboxAuthorized", "status": "False", "reason": "LoginRefused", "message": "", "observedGeneration": 1,
            "lastTransitionTime": "2035-01-01T00:00:00Z",
        }],
    }});
    ns.kubectl(["patch", "mcred", "billing", "--subresource=status", "--type=merge", "-p", &status.to_string()]);

    let shown = table(&ns.kubectl(["get", "mcred"]));
    assert_eq!(shown[0], ["NAME", "READY", "REASON", "LOGIN", "MAILBOX", "PROVIDER", "SECRET", "EXPIRES", "AGE"]);
    let row = [
        "billing",
        "True",
        "TokenValid",
        "False",
        "billing@example.org",
        "idp",
        "billing-token",
        "2035-01-01T01:00:00Z",
    ];
    assert_eq!(shown[1][..8], row);
    let wide = table(&ns.kubectl(["get", "mailcredentials", "-o", "wide"]));
    let last = ["EXPIRES", "RENEWAL", "FAILURES", "AGE"];
    assert_eq!(wide[0][7..], last);
    assert_eq!(wide[1][7..10], ["2035-01-01T01:00:00Z", "2035-01-01T00:45:00Z", "3"]);

    assert_eq!(table(&ns.kubectl(["get", "mprov"]))[0], ["NAME", "READY", "REASON", "AGE"]);
    let shown = ns.kubectl(["get", "cmprov", &format!("shared-{}", ns.name)]);
    assert!(shown.contains("READY"), "{shown}");
    let all = ns.kubectl(["get", "mail", "-o", "name"]);
    for name in ["mailcredential.mailtoken.dev/billing", "mailprovider.mailtoken.dev/idp", "clustermailprovider"] {
        assert!(all.contains(name), "{all}");
    }
    ns.remove(&cluster).await;
}

#[tokio::test]
async fn credentials_are_selected_by_provider_and_mailbox() {
    let ns = Cluster::shared().namespace().await;
    for name in ["a", "b"] {
        ns.apply(credential(name).set("spec.providerRef.name", format!("idp-{name}"))).await;
    }
    let select = |field: &str| ns.kubectl(["get", "mcred", "-o", "name", "--field-selector", field]);
    assert_eq!(select("spec.providerRef.name=idp-a"), "mailcredential.mailtoken.dev/a\n");
    assert_eq!(select("spec.mailbox.address=b@example.org"), "mailcredential.mailtoken.dev/b\n");
}

fn cluster_provider(namespace: &str, idp: &Idp) -> Manifest {
    provider(idp)
        .set("kind", "ClusterMailProvider")
        .set("metadata.name", format!("shared-{namespace}"))
        .set("spec.allowed", json!([{"namespaceSelector": {}, "mailboxes": ["*@example.org"]}]))
}

fn table(shown: &str) -> Vec<Vec<String>> {
    shown.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

fn value(object: &impl serde::Serialize) -> Value {
    serde_json::to_value(object).unwrap()
}
