//! Refresh tokens: taken over from a seed, exchanged under a claim, kept, and never lost.

mod support;

use k8s_openapi::api::core::v1::Secret;
use mail_token_broker::api::MailCredential;
use serde_json::json;
use support::{namespace::show, standin::Strict, *};

/// A namespace with the provider `idp`, a server that revokes what comes twice, and a broker.
struct Custody {
    ns: Namespace,
    idp: Strict,
    broker: Broker,
}

impl Custody {
    async fn new() -> Self {
        let ns = Cluster::shared().namespace().await;
        let idp = Strict::start();
        idp.client("mailer", Some("a client secret"));
        ns.apply(source("idp-client", "client-secret", "a client secret")).await;
        ns.apply(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "idp-ca"}, "data": {"ca.crt": idp.ca()},
        }))
        .await;
        ns.apply(json!({
            "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailProvider", "metadata": {"name": "idp"},
            "spec": {
                "oidc": {"issuerURL": idp.issuer()},
                "client": {
                    "id": "mailer",
                    "authentication": [{"clientSecret": {"secretRef": {"name": "idp-client", "key": "client-secret"}}}],
                },
                "caBundleRef": {"configMap": {"name": "idp-ca", "key": "ca.crt"}},
            },
        }))
        .await;
        let broker = Broker::start(&ns).await;
        Self { ns, idp, broker }
    }

    /// Applies the seed of a new sign-in.
    async fn seed(&self) -> String {
        let token = self.idp.refresh_token("mailer", "billing@example.org", "mail");
        self.ns.apply(source("seed", "refresh_token", &token)).await;
        token
    }

    fn credential(&self) -> Manifest {
        credential("billing")
            .set("spec.grant", json!({"refreshToken": {"secretRef": {"name": "seed", "key": "refresh_token"}}}))
    }
}

#[tokio::test]
async fn a_seed_is_taken_over_and_each_token_that_follows_is_kept() {
    let custody = Custody::new().await;
    let seed = custody.seed().await;
    custody.ns.apply(custody.credential()).await;
    let made = custody.ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    println!("{}", show(&made));
    let grant: Secret = custody.ns.get("billing-grant").await;
    println!("{}", show(&grant));
    assert_eq!(custody.idp.presented(&seed), 1);
    assert_ne!(text(&grant, "refresh_token"), seed);
    assert_eq!(text(&grant, "previous_refresh_token"), seed);
    println!("{}", custody.broker.log());
}
