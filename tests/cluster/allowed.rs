//! The namespaces and mailboxes that a ClusterMailProvider allows.

use std::collections::BTreeMap;

use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_testkit::{namespace::find, *};
use serde_json::{Value, json};

/// A broker, and a ClusterMailProvider with the namespace's name. The provider's Secrets are in the broker's namespace.
struct Shared {
    fixture: Fixture,
    name: String,
}

impl Shared {
    async fn new(allowed: Value) -> Self {
        let shared = Self::start(|settings| settings).await;
        shared.allow(allowed).await;
        shared
    }

    /// Starts the broker. The ClusterMailProvider does not exist yet.
    async fn start(change: impl FnOnce(broker::Settings) -> broker::Settings) -> Self {
        let ns = Namespace::create(Cluster::shared(), BTreeMap::from([("mail", "yes")])).await;
        let idp = Idp::start();
        ns.provider(&idp).await;
        let broker = change(Broker::settings(&ns)).start().await;
        Self { name: format!("p-{}", ns.name), fixture: Fixture { ns, idp, broker } }
    }

    async fn allow(&self, allowed: Value) {
        let manifest = provider(&self.fixture.idp)
            .set("kind", "ClusterMailProvider")
            .set("metadata.name", self.name.as_str())
            .set("spec.scopes", json!(["mail.send", "mail.read"]))
            .set("spec.allowed", allowed);
        self.fixture.ns.apply(manifest).await;
    }

    fn credential(&self, name: &str) -> Manifest {
        credential(name).set("spec.providerRef", json!({"kind": "ClusterMailProvider", "name": self.name}))
    }

    /// Waits until a credential has the reason `NotAllowed`, with this part of the message.
    async fn denied(&self, name: &str, part: &str) {
        let denied = |object: &MailCredential| {
            find(object, "Ready")
                .is_some_and(|reported| reported.reason == "NotAllowed" && reported.message.contains(part))
        };
        self.fixture.ns.until::<MailCredential>(name, part, denied).await;
    }
}

fn entry(mailboxes: &[&str]) -> Value {
    json!({"namespaceSelector": {"matchLabels": {"mail": "yes"}}, "mailboxes": mailboxes})
}

#[tokio::test]
async fn address_account_and_scopes_must_be_allowed_together() {
    let shared = Shared::new(json!([entry(&["*@example.org"]), entry(&["svc@example.com", "ceo@example.com"])])).await;
    let ns = &shared.fixture.ns;
    let other = |name: &str, field: &str, value: Value| shared.credential(name).set(field, value);
    ns.apply(other("address", "spec.mailbox.address", json!("billing@example.net"))).await;
    ns.apply(other("subdomain", "spec.mailbox.address", json!("billing@sub.example.org"))).await;
    ns.apply(other("account", "spec.mailbox.authenticateAs", json!("svc@example.com"))).await;
    ns.apply(other("scope", "spec.scopes", json!(["mail.send", "admin"]))).await;
    shared.denied("address", "billing@example.net").await;
    shared.denied("subdomain", "billing@sub.example.org").await;
    shared.denied("account", "svc@example.com").await;
    shared.denied("scope", "admin").await;
    assert_eq!(shared.fixture.idp.requests().len(), 0);
    let reported = shared.fixture.ns.event_reasons_include("address", &["Warning NotAllowed"]).await;
    assert_eq!(reported.into_iter().collect::<Vec<_>>(), ["Warning NotAllowed"]);

    shared.fixture.issued(shared.credential("billing")).await;
    shared.fixture.issued(other("upper", "spec.mailbox.address", json!("Billing@EXAMPLE.org"))).await;
    shared.fixture.issued(other("less", "spec.scopes", json!(["mail.send"]))).await;
    let both = other("both", "spec.mailbox.address", json!("ceo@example.com"));
    shared.fixture.issued(both.set("spec.mailbox.authenticateAs", "svc@example.com")).await;
}

#[tokio::test]
async fn a_namespace_is_allowed_by_its_labels_as_they_are_now() {
    let selector = json!({"matchLabels": {"team": "billing"}});
    let shared = Shared::new(json!([{"namespaceSelector": selector, "mailboxes": ["*@example.org"]}])).await;
    let ns = &shared.fixture.ns;
    ns.apply(shared.credential("billing")).await;
    shared.denied("billing", "selects the namespace").await;
    ns.kubectl(["label", "namespace", &ns.name, "team=billing"]);
    shared.fixture.ready("billing").await;
    ns.kubectl(["label", "namespace", &ns.name, "team-"]);
    ns.condition::<MailCredential>("billing", "Renewed", "NotAllowed").await;
    let object: MailCredential = ns.get("billing").await;
    assert_eq!(reason(&object, "Ready"), "TokenValid");
}

#[tokio::test]
async fn an_allowance_that_is_withdrawn_stops_renewal_and_leaves_the_token() {
    let shared = Shared::new(json!([entry(&["*@example.org"])])).await;
    let Shared { fixture, .. } = &shared;
    fixture.idp.next(Answer::token(10));
    // The token must not be due before the test removes the allowance.
    fixture.issued(shared.credential("billing").set("spec.renewal.renewBefore", "1s")).await;
    shared.allow(json!([entry(&["*@example.com"])])).await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "NotAllowed").await;
    let object: MailCredential = fixture.ns.get("billing").await;
    assert_eq!(reason(&object, "Ready"), "TokenValid");
    fixture.ns.condition::<MailCredential>("billing", "Ready", "Expired").await;
    assert_eq!(fixture.idp.token_requests().len(), 1);
    shared.allow(json!([entry(&["*@example.org"])])).await;
    fixture.ready("billing").await;
    assert_eq!(fixture.idp.token_requests().len(), 2);
}

#[tokio::test]
async fn a_provider_of_the_cluster_does_not_stand_in_for_one_of_the_namespace() {
    let shared = Shared::new(json!([entry(&["*@example.org"])])).await;
    let fixture = &shared.fixture;
    fixture.ns.apply(credential("billing").set("spec.providerRef.name", shared.name.as_str())).await;
    fixture.ns.condition::<MailCredential>("billing", "Ready", "ProviderNotFound").await;
    fixture.ns.apply(shared.credential("other").set("spec.providerRef.name", "idp")).await;
    fixture.ns.condition::<MailCredential>("other", "Ready", "ProviderNotFound").await;
}

#[tokio::test]
async fn an_allowance_that_is_withdrawn_before_a_request_is_sent_withholds_it() {
    let api = ApiProxy::start(&Cluster::shared());
    let shared = Shared::start(|settings| settings.kubeconfig(&api.kubeconfig())).await;
    let ns = &shared.fixture.ns;
    // The other provider has already read the client secret, so the late read is the ClusterMailProvider's.
    ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    api.next(1, "GET", "/secrets/idp-client", Trouble::Late);
    shared.allow(json!([entry(&["*@example.org"])])).await;
    // The attempt has its permit, and waits for the client secret.
    ns.apply(shared.credential("billing")).await;
    api.late(1).await;
    ns.kubectl(["label", "namespace", &ns.name, "mail-"]);
    // The marker shows that the broker has seen the changed label.
    ns.apply(shared.credential("marker")).await;
    shared.denied("marker", "selects the namespace").await;
    api.release();
    shared.denied("billing", "selects the namespace").await;
    assert_eq!(shared.fixture.idp.requests().len(), 0);

    ns.kubectl(["label", "namespace", &ns.name, "mail=yes"]);
    shared.fixture.ready("billing").await;
}
