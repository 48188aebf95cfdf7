//! Tenants in one cluster under one broker. One of them is an attacker.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use mailtoken_core::api::MailCredential;
use serde_json::{Value, json};

use super::{
    Broker, Cluster, Idp, Manifest, Namespace, broker::Settings, ca_bundle, credential, process, provider, source,
};

/// The client secret of the administrator's ClusterMailProvider.
pub const OF_THE_ADMIN: &str = "canary-client-secret-of-the-admin";
/// The client secret of the shop's MailProvider.
pub const OF_THE_SHOP: &str = "canary-client-secret-of-the-shop";

/// A broker of three namespaces: its own with the administrator's objects, a shop's, and an attacker's.
pub struct Tenants {
    /// The broker's namespace.
    pub home: Namespace,
    /// The victim's namespace, whose credential `billing` is ready.
    pub shop: Namespace,
    /// The attacker's namespace, with the administrator's client.
    pub hostile_ns: Namespace,
    /// The attacker's namespace, with a client that has the attacker's rights: Kubernetes' role for editors, and the
    /// chart's.
    pub attacker: Namespace,
    /// The server that the administrator and the shop trust.
    pub idp: Idp,
    /// The attacker's server.
    pub evil: Idp,
    /// The broker. It may read and write all three namespaces, because the tests check the broker's own checks.
    pub broker: Broker,
    untouched: Secret,
}

impl Tenants {
    /// Creates the namespaces. The administrator allows the shop all mailboxes, and the attacker `billing` and
    /// mailboxes that begin with `team-`.
    pub async fn new(change: impl FnOnce(Settings) -> Settings) -> Self {
        let cluster = Cluster::shared();
        let (home, shop, hostile_ns) =
            (cluster.namespace().await, cluster.namespace().await, cluster.namespace().await);
        let (idp, evil) = (Idp::start(), Idp::start());
        let settings = Broker::settings(&home).flag(format!("--namespace={},{}", shop.name, hostile_ns.name));
        let broker = change(settings).start().await;
        let attacker = editor(&hostile_ns).await;
        for (ns, secret) in [(&home, OF_THE_ADMIN), (&shop, OF_THE_SHOP)] {
            ns.apply(ca_bundle("idp-ca", &idp)).await;
            ns.apply(source("idp-client", "client-secret", secret)).await;
        }
        hostile_ns.apply(ca_bundle("evil-ca", &evil)).await;
        let allowed = json!([
            {"namespaceSelector": {"matchLabels": named(&shop)}, "mailboxes": ["*@example.org"]},
            {"namespaceSelector": {"matchLabels": named(&hostile_ns)}, "mailboxes": ["billing@example.org", "team-*@example.org"]},
        ]);
        let offered = provider(&idp).set("kind", "ClusterMailProvider").set("metadata.name", home.name.as_str());
        home.apply(offered.set("spec.allowed", allowed).set("spec.scopes", json!(["mail.send"]))).await;
        shop.apply(provider(&idp)).await;
        shop.apply(credential("billing")).await;
        shop.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
        let untouched = shop.get("billing").await;
        Self { home, shop, hostile_ns, attacker, idp, evil, broker, untouched }
    }

    /// Returns a MailProvider of the attacker with the attacker's server.
    pub fn provider(&self, name: &str) -> Manifest {
        let provider = provider(&self.evil).set("metadata.name", name);
        provider.set("spec.caBundleRef.configMap.name", "evil-ca").set("spec.client.authentication", json!([]))
    }

    /// Returns a credential of the attacker that uses the administrator's provider.
    pub fn by_the_admins(&self, name: &str) -> Manifest {
        credential(name).set("spec.providerRef", json!({"kind": "ClusterMailProvider", "name": self.home.name}))
    }

    /// Checks that the attacker's server has received only the attacker's own data, that the shop's Secret is
    /// unchanged, and that the broker continues its work.
    pub async fn unharmed(&mut self) {
        let seen = format!("{:?}", self.evil.requests());
        let others = [OF_THE_ADMIN, OF_THE_SHOP].into_iter().map(str::to_owned).chain(self.idp.issued());
        for secret in others {
            assert!(!seen.contains(&secret), "{secret} came to the attacker's server: {seen}");
        }
        assert_eq!(self.shop.get::<Secret>("billing").await, self.untouched);
        assert_eq!(self.broker.ended(), None);
        self.shop.apply(credential("later")).await;
        self.shop.condition::<MailCredential>("later", "Ready", "TokenValid").await;
    }
}

fn named(ns: &Namespace) -> BTreeMap<&str, &str> {
    BTreeMap::from([("kubernetes.io/metadata.name", ns.name.as_str())])
}

/// Returns the namespace with a client of a user who has only the rights of an editor there.
async fn editor(ns: &Namespace) -> Namespace {
    const USER: &str = "mallory";
    let chart = process::root().join("charts/mail-token-broker");
    let mut helm = ns.cluster.command("helm");
    let roles =
        process::output(helm.args(["template", "tenants"]).arg(chart).args(["-s", "templates/rbac-users.yaml"]));
    let mut names = vec!["system:aggregate-to-edit".to_owned(), "system:aggregate-to-view".to_owned()];
    for role in serde_yaml::Deserializer::from_str(&roles) {
        let role: Value = serde::Deserialize::deserialize(role).unwrap();
        names.push(role["metadata"]["name"].as_str().unwrap().to_owned());
        ns.apply(role).await;
    }
    for name in names {
        ns.apply(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name.replace(':', "-")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}],
        }))
        .await;
    }
    let (name, cluster) = (ns.name.clone(), ns.cluster.clone());
    Namespace { client: cluster.client_of(USER).await, name, cluster }
}
