//! The failures that a new user sees first. Each message has the command that fixes the failure. The test runs the
//! command unchanged.

use std::{fs, path::Path, time::Duration};

use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_testkit::{
    hostile::Validity,
    idp,
    proxy::Proxy,
    remedy::{self, ca_file, quoted},
    table::accepted,
    *,
};
use serde::Deserialize as _;
use serde_json::{Value, json};

async fn message(ns: &Namespace, kind: &str, reason: &str) -> String {
    ns.condition::<MailCredential>("billing", kind, reason).await.message
}

async fn ready(ns: &Namespace) {
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    let credential: MailCredential = ns.get("billing").await;
    assert!(namespace::find(&credential, "Stalled").is_none(), "{}", namespace::show(&credential));
}

#[tokio::test]
async fn a_secret_without_the_label() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    ns.apply(ca_bundle("idp-ca", &idp)).await;
    ns.apply(source("idp-client", "client-secret", "s3cret").without("metadata.labels")).await;
    ns.apply(provider(&idp)).await;
    ns.apply(credential("billing")).await;

    let reported = message(&ns, "Ready", "SourceNotLabeled").await;
    assert_eq!(ns.condition::<MailProvider>("idp", "Ready", "SourceNotLabeled").await.message, reported);
    remedy::run(&ns, &reported, &[]);

    ready(&ns).await;
    assert_eq!(idp.token_requests().len(), 1);
}

#[tokio::test]
async fn a_secret_that_is_not_there() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    ns.apply(ca_bundle("idp-ca", &idp)).await;
    ns.apply(provider(&idp)).await;
    ns.apply(credential("billing")).await;

    remedy::run(&ns, &message(&ns, "Stalled", "SourceNotFound").await, &["s3cret"]);

    ready(&ns).await;
    assert_eq!(idp.token_requests()[0].form()["client_secret"], "s3cret");
}

#[tokio::test]
async fn a_key_that_is_not_there() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    ns.apply(ca_bundle("idp-ca", &idp)).await;
    ns.apply(source("idp-client", "password", "s3cret")).await;
    ns.apply(provider(&idp)).await;
    ns.apply(credential("billing")).await;

    let reported = message(&ns, "Ready", "SourceNotFound").await;
    assert!(reported.contains("it has password"), "{reported}");
    remedy::run(&ns, &reported, &["the value"]);

    ready(&ns).await;
    assert_eq!(idp.token_requests()[0].form()["client_secret"], "the value");
}

#[tokio::test]
async fn a_wrong_client_secret() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    idp.next(Answer::error("invalid_client"));
    ns.provider(&idp).await;
    ns.apply(credential("billing")).await;

    let reported = message(&ns, "Ready", "InvalidClient").await;
    assert_eq!(message(&ns, "Stalled", "InvalidClient").await, reported);
    remedy::run(&ns, &reported, &["the right one"]);

    ready(&ns).await;
    let requests = idp.token_requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].form()["client_secret"], "the right one");
}

#[tokio::test]
async fn a_wrong_tenant_at_microsoft() {
    const RIGHT: &str = "/contoso.onmicrosoft.com/oauth2/v2.0/token";
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    let proxy = Proxy::start(idp.port());
    idp.present(&["login.microsoftonline.com"], Validity::Present);
    let unknown = json!({
        "error": "invalid_request", "error_codes": [90002], "correlation_id": "5e1b2c3d-0000-4000-8000-00000000abcd",
        "error_description": "AADSTS90002: Tenant 'contosso.onmicrosoft.com' not found. Check to make sure you have the correct tenant ID",
    });
    idp.answer_at("/contosso.onmicrosoft.com/oauth2/v2.0/token", Answer::json(400, unknown));
    idp.answer_at(RIGHT, Answer::token(3599).field("ext_expires_in", 3599));
    let settings = Broker::settings(&ns).host("login.microsoftonline.com");
    let _broker = settings.flag(format!("--egress-proxy={}", proxy.url())).start().await;
    ns.provider(&idp).await;
    let microsoft = json!({"tenantID": "contosso.onmicrosoft.com"});
    ns.apply(provider(&idp).without("spec.oauth2").without("spec.servers").set("spec.microsoft", microsoft)).await;
    ns.apply(credential("billing")).await;

    let reported = message(&ns, "Ready", "RequestRefused").await;
    assert!(reported.contains("AADSTS90002") && !reported.contains("contosso"), "{reported}");
    remedy::run(&ns, &reported, &["contoso.onmicrosoft.com"]);

    ready(&ns).await;
    assert_eq!(idp.requests_at(RIGHT)[0].form()["scope"], "https://outlook.office365.com/.default");
    assert_eq!(ns.secret("billing").await["smtp_host"], "smtp.office365.com");
    assert!(proxy.asked().iter().all(|host| host == "login.microsoftonline.com:443"), "{:?}", proxy.asked());
}

#[tokio::test]
async fn an_unknown_authority() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    ns.apply(source("idp-client", "client-secret", "s3cret")).await;
    ns.apply(provider(&idp).without("spec.caBundleRef")).await;
    ns.apply(credential("billing")).await;

    let reported = message(&ns, "Ready", "TLSFailed").await;
    remedy::run(&ns, &reported, &[&ca_file(&ns, &idp)]);

    ready(&ns).await;
}

#[tokio::test]
async fn a_bundle_with_another_authority() {
    let ns = Cluster::shared().namespace().await;
    let (idp, other, _broker) = (Idp::start(), Idp::start(), Broker::start(&ns).await);
    ns.apply(ca_bundle("idp-ca", &other)).await;
    ns.apply(source("idp-client", "client-secret", "s3cret")).await;
    ns.apply(provider(&idp)).await;
    ns.apply(credential("billing")).await;

    let reported = message(&ns, "Ready", "TLSFailed").await;
    remedy::run(&ns, &reported, &[&ca_file(&ns, &idp)]);

    ready(&ns).await;
}

#[tokio::test]
async fn a_private_address() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    let closed = Broker::settings(&ns).without("--allow-private-cidr").flag("--request-timeout=1s");
    let mut broker = closed.clone().start().await;
    ns.provider(&idp).await;
    ns.apply(provider(&idp).set("spec.oauth2.tokenURL", "https://10.255.255.1/token")).await;
    ns.apply(credential("billing")).await;

    let reported = message(&ns, "Ready", "EgressDenied").await;
    assert!(broker.terminate().await.success());
    let flag = quoted(&reported)
        .into_iter()
        .find(|text| text.starts_with("--"))
        .unwrap_or_else(|| panic!("no flag: {reported}"));
    assert_eq!(flag, "--allow-private-cidr=10.255.255.1/32");
    let _open = closed.flag(flag).start().await;

    // The broker now tries to connect. The result depends on the network of this machine.
    let tried = |billing: &MailCredential| reason(billing, "Ready") != "EgressDenied";
    ns.until::<MailCredential>("billing", "the address is not denied any more", tried).await;
}

#[tokio::test]
async fn another_secret_name_resolves_a_conflict_with_a_foreign_secret() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    ns.provider(&idp).await;
    let labels = json!({"app.kubernetes.io/managed-by": "Helm"});
    let metadata = json!({"name": "billing", "labels": labels});
    ns.apply(json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"a": "b"}})).await;
    ns.apply(credential("billing")).await;

    let reported = message(&ns, "Ready", "SecretConflict").await;
    assert!(reported.contains("Secret billing exists and is managed by Helm "), "{reported}");
    remedy::run(&ns, &reported, &["billing-mail-token"]);

    ready(&ns).await;
    assert_eq!(ns.secret("billing").await["a"], "b");
    assert_eq!(ns.secret("billing-mail-token").await["access_token"], idp.issued()[0]);
    assert_eq!(idp.token_requests().len(), 1, "the token that was obtained is written, and no other asked for");
}

#[tokio::test]
async fn the_deletion_of_an_unneeded_foreign_secret_resolves_the_conflict() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    ns.provider(&idp).await;
    ns.apply(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "billing"}})).await;
    ns.apply(credential("billing")).await;

    let reported = message(&ns, "Ready", "SecretConflict").await;
    let delete =
        quoted(&reported).into_iter().find(|text| text.contains(" delete ")).unwrap_or_else(|| panic!("{reported}"));
    remedy::run(&ns, &format!("`{delete}`"), &[]);

    ready(&ns).await;
    assert_eq!(idp.token_requests().len(), 1);
}

/// Returns a ClusterMailProvider with a name that no other test uses.
fn cluster_provider(ns: &Namespace, idp: &Idp, allowed: Value) -> Manifest {
    provider(idp).set("kind", "ClusterMailProvider").set("metadata.name", ns.name.as_str()).set("spec.allowed", allowed)
}

fn of_the_cluster(ns: &Namespace) -> Manifest {
    credential("billing").set("spec.providerRef", json!({"kind": "ClusterMailProvider", "name": ns.name}))
}

#[tokio::test]
async fn a_mailbox_that_is_not_allowed() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    ns.provider(&idp).await;
    let allowed = json!([
        {"namespaceSelector": {"matchLabels": {"mail": "no"}}, "mailboxes": ["billing@example.org"]},
        {"namespaceSelector": {}, "mailboxes": ["*@example.com"]},
    ]);
    ns.apply(cluster_provider(&ns, &idp, allowed)).await;
    ns.apply(of_the_cluster(&ns)).await;

    let reported = message(&ns, "Stalled", "NotAllowed").await;
    assert_eq!(idp.token_requests().len(), 0);
    remedy::run(&ns, &reported, &[]);

    ready(&ns).await;
}

#[tokio::test]
async fn a_namespace_that_is_not_allowed() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    ns.provider(&idp).await;
    let allowed = json!([{"namespaceSelector": {"matchLabels": {"mail": "yes"}}, "mailboxes": ["*@example.org"]}]);
    ns.apply(cluster_provider(&ns, &idp, allowed)).await;
    ns.apply(of_the_cluster(&ns)).await;

    let reported = message(&ns, "Stalled", "NotAllowed").await;
    // A tenant does not learn which labels the administrator selects.
    assert!(!reported.contains("yes"), "{reported}");
    remedy::run(&ns, &reported, &[]);
    let label = quoted(&reported)[1].replace("<label>=<value>", "mail=yes");
    remedy::run(&ns, &format!("`{label}`"), &[]);

    ready(&ns).await;
}

#[tokio::test]
async fn an_issuer_that_differs_by_one_character() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    ns.apply(ca_bundle("idp-ca", &idp)).await;
    ns.apply(source("idp-client", "client-secret", "s3cret")).await;
    let oidc = json!({"issuerURL": format!("{}/", idp.issuer())});
    ns.apply(provider(&idp).without("spec.oauth2").set("spec.oidc", oidc)).await;
    ns.apply(credential("billing")).await;

    let reported = ns.condition::<MailProvider>("idp", "Ready", "IssuerMismatch").await.message;
    assert!(message(&ns, "Stalled", "ProviderNotReady").await.contains(&reported));
    remedy::run(&ns, &reported, &[]);

    ready(&ns).await;
    ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
}

#[tokio::test]
async fn too_many_requests() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    idp.next(Answer::status(429).header("retry-after", "7"));
    ns.provider(&idp).await;
    ns.apply(credential("billing")).await;

    let reported = message(&ns, "Ready", "Throttled").await;
    assert!(reported.contains("no action is needed") && quoted(&reported).is_empty(), "{reported}");
    let credential: MailCredential = ns.get("billing").await;
    assert!(namespace::find(&credential, "Stalled").is_none(), "{}", namespace::show(&credential));

    ready(&ns).await;
    let requests = idp.token_requests();
    assert_eq!(requests.len(), 2);
    let pause = requests[1].at - requests[0].at;
    assert!(pause >= Duration::from_secs(7), "{pause:?}");
}

#[tokio::test]
async fn a_provider_of_another_name() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    ns.provider(&idp).await;
    ns.apply(credential("billing").set("spec.providerRef.name", "ipd")).await;

    remedy::run(&ns, &message(&ns, "Stalled", "ProviderNotFound").await, &["idp"]);

    ready(&ns).await;
    assert_eq!(idp.requests_at(idp::TOKEN).len(), 1);
}

/// Returns the objects of the broker's kinds in the documentation, with their places.
fn examples() -> Vec<(String, Manifest)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["", "docs", "docs/providers", "charts/mail-token-broker", "tools"];
    let entries = folders.iter().flat_map(|folder| fs::read_dir(root.join(folder)).unwrap());
    let mut examples = vec![];
    for path in entries.map(|entry| entry.unwrap().path()) {
        let blocks: Vec<String> = match path.extension().and_then(|extension| extension.to_str()) {
            Some("yaml") => vec![fs::read_to_string(&path).unwrap()],
            // Every second part is a fenced block. Its first line is the language.
            Some("md") => {
                let text = fs::read_to_string(&path).unwrap();
                let blocks = text.split("\n```").skip(1).step_by(2);
                let heredoc = |block: &str| block.split("<<'EOF'\n").nth(1)?.split("\nEOF").next().map(str::to_owned);
                blocks
                    .filter_map(|block| block.strip_prefix("yaml\n").map(str::to_owned).or_else(|| heredoc(block)))
                    .collect()
            }
            _ => vec![],
        };
        for document in blocks.iter().flat_map(|block| serde_yaml::Deserializer::from_str(block)) {
            let Ok(value) = Value::deserialize(document) else { continue };
            if value["apiVersion"].as_str().is_some_and(|version| version.starts_with("mailtoken.dev/")) {
                let case = format!("{}: {} {}", path.display(), value["kind"], value["metadata"]["name"]);
                let manifest = Manifest(value).without("metadata.namespace");
                let name = format!("example-{}", examples.len());
                examples.push((case, manifest.set("metadata.name", name)));
            }
        }
    }
    examples
}

#[tokio::test]
async fn every_example_of_the_documentation() {
    let examples = examples();
    for kind in ["MailProvider", "MailCredential", "ClusterMailProvider"] {
        assert!(examples.iter().any(|(_, manifest)| manifest.0["kind"] == kind), "{kind}");
    }
    assert!(examples.len() >= 30, "only {} objects found", examples.len());
    accepted(examples.iter().map(|(case, manifest)| (case.as_str(), manifest.clone()))).await;
}
