//! Client authentication by private_key_jwt at a real Keycloak, which verifies signature, audience and claims. The
//! tests cover each algorithm, each form of key file, and the errors that the broker finds before it sends a request.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_testkit::*;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256, SignatureAlgorithm};
use serde_json::json;

/// Converts a key file to the traditional form of `openssl`: PKCS#1 for RSA, SEC 1 for EC.
fn traditional(pem: &str) -> String {
    let mut child = Command::new("openssl")
        .args(["pkey", "-traditional"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(pem.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn certificate(pair: &KeyPair) -> String {
    CertificateParams::new(vec!["mailer".to_owned()]).unwrap().self_signed(pair).unwrap().pem()
}

/// Registers a client at Keycloak with this certificate, and configures the broker with its key.
async fn register(ns: &Namespace, client: &str, algorithm: &str, key: &str, certificate: &str, named: bool) {
    let body: String = certificate.lines().filter(|line| !line.starts_with("-----")).collect();
    let registration = json!({
        "clientId": client,
        "serviceAccountsEnabled": true,
        "standardFlowEnabled": false,
        "publicClient": false,
        "clientAuthenticatorType": "client-jwt",
        "attributes": {"jwt.credential.certificate": body, "token.endpoint.auth.signing.alg": algorithm},
    });
    let mut command = Command::new(process::tool("keycloak-admin"));
    process::output(command.arg(ns.cluster.dir()).args(["POST", "/realms/mail/clients", &registration.to_string()]));

    let files = format!("{client}-key");
    let mut jwt = json!({"keyRef": {"name": files, "key": "tls.key"}, "algorithm": algorithm});
    if named {
        jwt["certificateRef"] = json!({"name": files, "key": "tls.crt"});
    }
    ns.apply(source(&files, "tls.key", key).set("stringData", json!({"tls.key": key, "tls.crt": certificate}))).await;
    ns.apply(Manifest(json!({
        "apiVersion": "mailtoken.dev/v1alpha1",
        "kind": "MailProvider",
        "metadata": {"name": client},
        "spec": {
            "oidc": {"issuerURL": ns.cluster.env("KEYCLOAK_ISSUER")},
            "client": {"id": client, "authentication": [{"privateKeyJWT": jwt}]},
            "caBundleRef": {"configMap": {"name": "ca", "key": "ca.crt"}},
        },
    })))
    .await;
    ns.apply(credential(client).set("spec.providerRef.name", client)).await;
}

async fn with_ca(cluster: Cluster) -> Namespace {
    let ns = cluster.namespace().await;
    let ca = std::fs::read_to_string(ns.cluster.env("CA_CERT")).unwrap();
    ns.apply(Manifest(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca.crt": ca}}),
    ))
    .await;
    ns
}

#[tokio::test]
async fn keycloak_accepts_every_algorithm_and_every_form_of_key() {
    let ns = with_ca(Cluster::complete()).await;
    let broker = Broker::start(&ns).await;
    let table: [(&str, &'static SignatureAlgorithm, bool); 6] = [
        ("PS256", &PKCS_RSA_SHA256, false),
        ("PS256", &PKCS_RSA_SHA256, true),
        ("RS256", &PKCS_RSA_SHA256, true),
        ("ES256", &PKCS_ECDSA_P256_SHA256, false),
        ("ES256", &PKCS_ECDSA_P256_SHA256, true),
        ("EdDSA", &PKCS_ED25519, false),
    ];
    for (number, (algorithm, kind, old_form)) in table.into_iter().enumerate() {
        let pair = KeyPair::generate_for(kind).unwrap();
        let key = if old_form { traditional(&pair.serialize_pem()) } else { pair.serialize_pem() };
        let client = format!("{}-{number}-{}", algorithm.to_lowercase(), ns.name);
        register(&ns, &client, algorithm, &key, &certificate(&pair), number % 2 == 0).await;
        ns.condition::<MailCredential>(&client, "Ready", "TokenValid").await;
        let status = ns.get::<MailCredential>(&client).await.status.unwrap();
        let in_use = status.client.unwrap();
        assert_eq!((in_use.method.as_str(), in_use.index), ("privateKeyJWT", 0));
        assert_eq!(in_use.expires_at.is_some(), number % 2 == 0, "the end of a named certificate is reported");
    }
    leaks::assert_no_secret_shown(&ns, &broker, vec![]).await;
}

#[tokio::test]
async fn a_certificate_of_another_key_is_refused_before_anything_is_sent_and_fixed_by_the_right_one() {
    let ns = with_ca(Cluster::complete()).await;
    let broker = Broker::start(&ns).await;
    let (pair, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let client = format!("mismatch-{}", ns.name);
    register(&ns, &client, "ES256", &pair.serialize_pem(), &certificate(&other), true).await;

    let reported = ns.condition::<MailProvider>(&client, "Ready", "SourceInvalid").await.message;
    assert!(reported.contains("tls.crt") && reported.contains("another key"), "{reported}");
    ns.condition::<MailCredential>(&client, "Ready", "SourceInvalid").await;

    // The key did not match the certificate. The new Secret has a matching key, and Keycloak knows the certificate.
    ns.apply(
        source(&format!("{client}-key"), "tls.key", "")
            .set("stringData", json!({"tls.key": other.serialize_pem(), "tls.crt": certificate(&other)})),
    )
    .await;
    let provider = ns.condition::<MailProvider>(&client, "Ready", "ProviderReady").await;
    assert_eq!(provider.status, "True");
    leaks::assert_no_secret_shown(&ns, &broker, leaks::lines(&pair.serialize_pem())).await;
}

#[tokio::test]
async fn after_an_unknown_key_the_next_entry_is_used_in_the_same_attempt() {
    let ns = with_ca(Cluster::complete()).await;
    let broker = Broker::start(&ns).await;
    let (known, unknown) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let client = format!("next-{}", ns.name);
    ns.apply(source("unknown", "tls.key", &unknown.serialize_pem())).await;
    register(&ns, &client, "ES256", &known.serialize_pem(), &certificate(&known), false).await;
    let entry =
        |name: &str| json!({"privateKeyJWT": {"keyRef": {"name": name, "key": "tls.key"}, "algorithm": "ES256"}});
    let authentication =
        json!({"spec": {"client": {"authentication": [entry("unknown"), entry(&format!("{client}-key"))]}}});
    ns.patch::<MailProvider>(&client, authentication).await;
    ns.condition::<MailProvider>(&client, "Ready", "ProviderReady").await;
    ns.annotate::<MailCredential>(&client, "mailtoken.dev/reissue", "1").await;

    let second = |credential: &MailCredential| {
        let status = credential.status.as_ref();
        let index = status.and_then(|status| status.client.as_ref()).map(|client| client.index);
        let handled = status.and_then(|status| status.last_handled_reissue.as_deref());
        (index, handled) == (Some(1), Some("1"))
    };
    ns.until::<MailCredential>(&client, "the second entry is in use", second).await;
    leaks::assert_no_secret_shown(&ns, &broker, vec![]).await;
}
