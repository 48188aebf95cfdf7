//! A Kubernetes ServiceAccount's token as the client's assertion, at a real Keycloak. Keycloak verifies the token with
//! the API server's keys.

use mail_token_broker::api::MailCredential;
use mailtoken_testkit::*;
use serde_json::json;

#[tokio::test]
async fn a_service_account_needs_no_secret_at_keycloak() {
    let ns = Cluster::complete().namespace().await;
    let issuer = ns.cluster.env("KEYCLOAK_ISSUER");
    let ca = std::fs::read_to_string(ns.cluster.env("CA_CERT")).unwrap();
    ns.apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca.crt": ca}}))
        .await;
    let client = format!("federated-{}", ns.name);
    realm::federate(&ns, &client, "mailer").await;
    let broker = Broker::settings(&ns).flag("--allow-service-account-ref").start().await;
    let provider = |account: &str| {
        let token = json!({"audience": issuer, "serviceAccountRef": {"name": account}});
        json!({
            "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailProvider", "metadata": {"name": "idp"},
            "spec": {
                "oidc": {"issuerURL": issuer},
                // Keycloak 26.4 requires that the client ID is the token's subject.
                "client": {
                    "id": format!("system:serviceaccount:{}:{account}", ns.name),
                    "authentication": [{"serviceAccountToken": token}],
                },
                "caBundleRef": {"configMap": {"name": "ca", "key": "ca.crt"}},
            },
        })
    };
    ns.apply(provider("mailer")).await;
    ns.apply(credential("billing").set("spec.secret.formats", json!(["XOAuth2", "OAuthBearer"]))).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    let made: MailCredential = ns.get("billing").await;
    assert_eq!(field(&made, "/status/client"), json!({"method": "serviceAccountToken", "index": 0}));

    // Another ServiceAccount of the namespace is another identity.
    let other = Manifest(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "other"}}));
    ns.apply(other.entry("metadata.annotations", "mailtoken.dev/allowed-audiences", issuer.as_str())).await;
    ns.apply(provider("other")).await;
    ns.apply(credential("refused")).await;
    let reported = ns.condition::<MailCredential>("refused", "Ready", "InvalidClient").await.message;
    assert!(reported.contains("invalid_client"), "{reported}");
    leaks::assert_no_secret_shown(&ns, &broker, vec![]).await;
}
