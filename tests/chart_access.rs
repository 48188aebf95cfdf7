//! The chart, installed, and the broker with the account it makes: it may do what it does, and nothing that it does not.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a test's failure")]

mod support;

use std::{collections::BTreeSet, fs, path::PathBuf};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use mail_token_broker::api::{MailCredential, MailProvider};
use serde_json::{Value, json};
use support::{
    audit::{Access, AuditEvent},
    *,
};

/// Where the chart is installed.
const HOME: &str = "mail";
/// The ServiceAccount of a release with the chart's own name.
const ACCOUNT: &str = "mail-token-broker";

#[tokio::test]
async fn a_broker_of_all_namespaces_may_do_what_it_does_and_nothing_else() {
    let cluster = Cluster::alone(&["control-plane"]);
    let ns = cluster.namespace().await;
    let release = Release::install(&ns, &[]).await;
    let idp = Idp::start();
    let mut broker = release.broker().start().await;

    whole_life(&ns, &idp).await;
    cluster_provider(&ns, &idp).await;
    broker.terminate().await;

    release.compare();
}

#[tokio::test]
async fn a_broker_of_one_namespace_may_do_what_it_does_and_nothing_else() {
    let cluster = Cluster::alone(&["control-plane"]);
    let (ns, other) = (cluster.namespace().await, cluster.namespace().await);
    let settings = [&format!("namespaces={{{}}}", ns.name), "allowServiceAccountRef=true"];
    let release = Release::install(&ns, &settings).await;
    let idp = Idp::start();
    let mut broker = release.broker().start().await;
    other.provider(&idp).await;
    other.apply(credential("elsewhere")).await;

    whole_life(&ns, &idp).await;
    federated(&ns, &idp).await;
    broker.terminate().await;

    release.compare();
    let asked = release.events().into_iter().filter(|event| event.namespace == other.name).collect::<Vec<_>>();
    assert!(asked.is_empty(), "{asked:#?}");
}

/// An installed chart.
struct Release {
    cluster: Cluster,
    kubeconfig: PathBuf,
    flags: Vec<String>,
}

impl Release {
    async fn install(ns: &Namespace, settings: &[&str]) -> Self {
        let cluster = ns.cluster.clone();
        ns.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOME}})).await;
        let chart = process::root().join("charts/mail-token-broker");
        let mut helm = cluster.command("helm");
        helm.args(["install", ACCOUNT, "--namespace", HOME, "--set", "allowPrivateCIDRs={127.0.0.0/8}"]).arg(chart);
        // The CRDs are there already, as they are where somebody has applied them.
        process::output(helm.arg("--take-ownership").args(settings.iter().flat_map(|setting| ["--set", setting])));

        let token = process::output(cluster.kubectl().args(["-n", HOME, "create", "token", ACCOUNT]));
        let kubeconfig = cluster.dir().join("broker.kubeconfig");
        fs::copy(cluster.kubeconfig(), &kubeconfig).unwrap();
        let credentials =
            ["config", "set-credentials", "broker", &format!("--token={}", token.trim())].map(str::to_owned);
        let context = ["config", "set-context", "--current", "--user=broker"].map(str::to_owned);
        for words in [credentials.as_slice(), &context] {
            let mut kubectl = cluster.kubectl();
            process::output(kubectl.env("KUBECONFIG", &kubeconfig).args(words));
        }

        let query =
            ["-n", HOME, "get", "deployment", ACCOUNT, "-o", "jsonpath={.spec.template.spec.containers[0].args}"];
        let arguments: Vec<String> = serde_json::from_str(&process::output(cluster.kubectl().args(query))).unwrap();
        assert_eq!(arguments[0], "run");
        Self { cluster, kubeconfig, flags: arguments[1..].to_vec() }
    }

    /// The broker as the pod runs it, where its namespace is in a file.
    fn broker(&self) -> broker::Settings {
        let settings = Broker::bare(&self.kubeconfig).flag(format!("--broker-namespace={HOME}"));
        self.flags.iter().fold(settings, |settings, flag| settings.flag(flag))
    }

    /// What the broker has asked for.
    fn events(&self) -> Vec<AuditEvent> {
        let user = format!("system:serviceaccount:{HOME}:{ACCOUNT}");
        self.cluster.audit().into_iter().filter(|event| event.user == user).collect()
    }

    /// Nothing was refused, and everything granted was used.
    fn compare(&self) {
        let events = self.events();
        let refused: Vec<_> = events.iter().filter(|event| event.code == 401 || event.code == 403).collect();
        assert!(refused.is_empty(), "{refused:#?}");
        // Everybody may ask what he may do.
        let used = events.into_iter().filter(|event| event.access.group != "authorization.k8s.io");
        let used: BTreeSet<_> = used.map(|event| event.access).collect();
        let granted = self.granted();
        let excess: Vec<_> = granted.difference(&used).collect();
        assert!(excess.is_empty(), "granted, but not used: {excess:#?}");
        let missing: Vec<_> = used.difference(&granted).collect();
        assert!(missing.is_empty(), "used, but granted by others than the chart: {missing:#?}");
    }

    /// What the roles of the release say, those for people left out.
    fn granted(&self) -> BTreeSet<Access> {
        let selector = format!("app.kubernetes.io/instance={ACCOUNT}");
        let roles = ["get", "clusterroles,roles", "--all-namespaces", "-o", "json", "-l", &selector].map(str::to_owned);
        let roles: Value = serde_json::from_str(&process::output(self.cluster.kubectl().args(roles))).unwrap();
        let for_people =
            |role: &Value| role.pointer("/metadata/labels/rbac.authorization.k8s.io~1aggregate-to-admin").is_some();
        let words = |rule: &Value, field: &str| -> Vec<String> { serde_json::from_value(rule[field].clone()).unwrap() };
        let mut granted = BTreeSet::new();
        for role in roles["items"].as_array().unwrap().iter().filter(|role| !for_people(role)) {
            for rule in role["rules"].as_array().unwrap() {
                for group in words(rule, "apiGroups") {
                    for resource in words(rule, "resources") {
                        for verb in words(rule, "verbs") {
                            granted.insert(Access { group: group.clone(), resource: resource.clone(), verb });
                        }
                    }
                }
            }
        }
        granted
    }
}

/// Everything that the broker does for a credential and its provider in one namespace.
async fn whole_life(ns: &Namespace, idp: &Idp) {
    // Issue, and renewal by itself.
    idp.next(Answer::token(4));
    ns.provider(idp).await;
    ns.apply(credential("billing")).await;
    ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    holds_token(ns, idp, 2).await;

    // Repair of the Secret.
    ns.patch::<Secret>("billing", json!({"stringData": {"access_token": "wrong"}})).await;
    holds_token(ns, idp, 3).await;
    let uid = ns.get::<Secret>("billing").await.metadata.uid;
    ns.api::<Secret>().delete("billing", &Default::default()).await.unwrap();
    ns.until::<Secret>("billing", "it is made again", |secret| secret.metadata.uid != uid).await;

    // Twice the same Warning, which is one Event with a count, and its end.
    for round in ["1", "2"] {
        for (answer, reason) in
            [(Answer::error("invalid_client"), "InvalidClient"), (Answer::token(3600), "RenewalSucceeded")]
        {
            idp.answer(answer);
            ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", &format!("{round} {reason}")).await;
            ns.condition::<MailCredential>("billing", "Renewed", reason).await;
        }
    }

    // Another client, another CA bundle, another name of the Secret.
    idp.forget();
    ns.apply(provider(idp).set("spec.client.id", "another")).await;
    assert_eq!(idp.token_requests_reach(1).await[0].form()["client_id"], "another");
    let bundle: ConfigMap = ns.get("idp-ca").await;
    let twice = bundle.data.unwrap()["ca.crt"].repeat(2);
    ns.patch::<ConfigMap>("idp-ca", json!({"data": {"ca.crt": twice}})).await;
    let last = credential("billing").set("spec.secret.name", "elsewhere").set("spec.revocationPolicy", "OnDelete");
    ns.apply(last).await;
    ns.until::<Secret>("elsewhere", "it holds a token", |secret| secret.data.is_some()).await;
    ns.gone::<Secret>("billing").await;

    ns.delete::<MailCredential>("billing").await;
    ns.delete::<MailProvider>("idp").await;
}

/// Waits until the Secret holds the token that was issued as this one.
async fn holds_token(ns: &Namespace, idp: &Idp, number: usize) {
    let issued = async || idp.issued().get(number - 1).cloned().ok_or_else(String::new);
    let token = until(&format!("{number} tokens are issued"), issued).await;
    let holds = |secret: &Secret| secret.data.as_ref().is_some_and(|data| data["access_token"].0 == token.as_bytes());
    ns.until::<Secret>("billing", &format!("it holds {token}"), holds).await;
}

/// A provider to which a ServiceAccount vouches for the client.
async fn federated(ns: &Namespace, idp: &Idp) {
    ns.apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "mailer"}})).await;
    let token = json!({"audience": "api://AzureADTokenExchange", "serviceAccountRef": {"name": "mailer"}});
    ns.apply(provider(idp).set("spec.client.authentication", json!([{"serviceAccountToken": token}]))).await;
    ns.apply(credential("vouched")).await;
    ns.condition::<MailCredential>("vouched", "Ready", "TokenValid").await;
}

/// A provider of the cluster, whose objects stand in the broker's namespace.
async fn cluster_provider(ns: &Namespace, idp: &Idp) {
    let mut kubectl = ns.cluster.kubectl();
    process::output(kubectl.args(["label", "namespace", &ns.name, "mail=yes"]));
    let home = Namespace { name: HOME.to_owned(), cluster: ns.cluster.clone(), client: ns.client.clone() };
    home.apply(ca_bundle("idp-ca", idp)).await;
    home.apply(source("idp-client", "client-secret", "a client secret")).await;
    let allowed = json!([{"namespaceSelector": {"matchLabels": {"mail": "yes"}}, "mailboxes": ["*@example.org"]}]);
    home.apply(provider(idp).set("kind", "ClusterMailProvider").set("spec.allowed", allowed)).await;
    ns.apply(credential("shared").set("spec.providerRef.kind", "ClusterMailProvider")).await;
    ns.condition::<MailCredential>("shared", "Ready", "TokenValid").await;
}
