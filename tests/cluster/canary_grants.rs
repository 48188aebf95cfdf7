//! Checks that a refresh token or device code appears only in the Secret that stores it.

use k8s_openapi::api::core::v1::Secret;
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{
    leaks::{self, assert_absent},
    standin::{Fault, Strict},
    *,
};
use serde_json::json;

#[tokio::test]
async fn what_a_user_granted_appears_nowhere() {
    const CLIENT_SECRET: &str = "canary~client secret/9Zt4+Qe1";
    let ns = Cluster::shared().namespace().await;
    let idp = Strict::start();
    idp.client("mailer", Some(CLIENT_SECRET));
    let broker = Broker::settings(&ns).env("RUST_LOG", "trace").start().await;
    ns.apply(source("idp-client", "client-secret", CLIENT_SECRET)).await;
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

    // A seed, a lost response, another seed, and a token that the provider refuses.
    let seed = |account: &str| idp.refresh_token("mailer", account, "mail");
    let seeds = [seed("billing@example.org"), seed("billing@example.org"), "canary-no-refresh-token-6Yw3".to_owned()];
    let by_seed = json!({"refreshToken": {"secretRef": {"name": "seed", "key": "refresh_token"}}});
    ns.apply(source("seed", "refresh_token", &seeds[0])).await;
    ns.apply(credential("billing").set("spec.grant", by_seed).set("spec.revocationPolicy", "OnDelete")).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    idp.grace(1);
    idp.next(Fault::bad_gateway());
    ns.apply(source("seed", "refresh_token", &seeds[1])).await;
    ns.until::<Secret>("billing-grant", "the second seed was taken over", |secret| {
        text(secret, "previous_refresh_token") == seeds[1]
    })
    .await;
    ns.apply(source("seed", "refresh_token", &seeds[2])).await;
    ns.condition::<MailCredential>("billing", "Renewed", "InvalidGrant").await;

    // One user signs in, another does not.
    for name in ["person", "absent"] {
        ns.apply(credential(name).set("spec.grant", json!({"deviceCode": {}}))).await;
        ns.condition::<MailCredential>(name, "Ready", "AuthorizationRequired").await;
        if name == "person" {
            idp.approve(&idp.pending()[0], "person@example.org");
            ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
        }
    }
    ns.delete::<MailCredential>("billing").await;
    ns.gone::<MailCredential>("billing").await;

    let mut places = vec![("metrics", broker.metrics().await), ("log", broker.log())];
    places.extend(leaks::shown(&ns));
    let mut secrets = idp.issued();
    assert!(secrets.len() >= 8, "{} secrets only", secrets.len());
    secrets.extend(seeds);
    secrets.push(CLIENT_SECRET.to_owned());
    assert_absent(&places, &secrets);

    // Pods mount this Secret. It contains a token, and nothing with which a pod could request another token.
    let kept = text(&ns.get::<Secret>("person-grant").await, "refresh_token");
    let mounted = ns.secret("person").await.into_values().collect::<Vec<_>>().join(" ");
    assert_absent(&[("the mounted Secret", mounted)], &[kept, CLIENT_SECRET.to_owned()]);
}
