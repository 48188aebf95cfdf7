//! Tokens of ServiceAccounts as client assertions: which identity the broker sends to which provider, and to which
//! providers it sends none (KEDA's CVE-2026-77524).

use std::{fs, path::PathBuf};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::api::core::v1::ServiceAccount;
use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_testkit::{namespace::find, *};
use rcgen::{KeyPair, PKCS_RSA_SHA256};
use serde_json::{Value, json};

/// The audience of Microsoft's federation.
const AUDIENCE: &str = "api://AzureADTokenExchange";
const REF: &str = "--allow-service-account-ref";

fn account(name: &str) -> Manifest {
    let account = Manifest(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}));
    account.entry("metadata.annotations", "mailtoken.dev/allowed-audiences", AUDIENCE)
}

fn federated(idp: &Idp, audience: &str, account: Option<&str>) -> Manifest {
    let mut token = json!({"audience": audience});
    if let Some(name) = account {
        token["serviceAccountRef"] = json!({"name": name});
    }
    provider(idp).set("spec.client.authentication", json!([{"serviceAccountToken": token}]))
}

/// Converts a MailProvider to a ClusterMailProvider with the namespace's name.
fn of_cluster(ns: &Namespace, provider: Manifest) -> Manifest {
    let allowed = json!([{"namespaceSelector": {}, "mailboxes": ["*@example.org"]}]);
    let provider = provider.set("kind", "ClusterMailProvider").set("spec.allowed", allowed);
    provider.set("metadata.name", ns.name.as_str())
}

fn asks_cluster(ns: &Namespace, name: &str) -> Manifest {
    credential(name).set("spec.providerRef", json!({"kind": "ClusterMailProvider", "name": ns.name}))
}

/// Requests a token of a ServiceAccount, and writes it to a file as the kubelet does.
fn token_file(ns: &Namespace, account: &str, audience: Option<&str>) -> PathBuf {
    let audience = audience.map(|audience| format!("--audience={audience}"));
    let words = ["create", "token", account].into_iter().chain(audience.as_deref());
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{account}.token", ns.name));
    fs::write(&file, ns.kubectl(words)).unwrap();
    file
}

/// Returns the API server's own audience, from a token for the API server.
fn api_server(ns: &Namespace) -> String {
    let token = ns.kubectl(["create", "token", "mailer"]);
    part(&token, 1)["aud"][0].as_str().unwrap().to_owned()
}

fn part(jwt: &str, at: usize) -> Value {
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(jwt.trim().split('.').nth(at).unwrap()).unwrap()).unwrap()
}

/// Returns the claims of an assertion, after verifying it with the keys that the API server publishes.
fn verified(ns: &Namespace, jwt: &str) -> Value {
    let keys: Value = serde_json::from_str(&ns.kubectl(["get", "--raw", "/openid/v1/jwks"])).unwrap();
    let id = part(jwt, 0)["kid"].clone();
    let key = keys["keys"].as_array().unwrap().iter().find(|key| key["kid"] == id).expect("its key is published");
    let number = |name: &str| BASE64_URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap()).unwrap();
    let point = [vec![4], number("x"), number("y")].concat();
    let (message, signature) = jwt.rsplit_once('.').unwrap();
    let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message.as_bytes(), &signature).unwrap();
    part(jwt, 1)
}

/// Waits until the provider and its credential `billing` report the same reason and message, and checks that the
/// provider received no request.
async fn refused(ns: &Namespace, idp: &Idp, reason: &str, said: &[&str]) {
    until(&format!("{reason} {said:?}"), async || {
        let reported = ns.condition::<MailCredential>("billing", "Stalled", reason).await.message;
        let provider = ns.condition::<MailProvider>("idp", "Ready", reason).await;
        let same = provider.message == reported && said.iter().all(|said| reported.contains(said));
        same.then_some(()).ok_or(format!("{reported}\n{provider:?}"))
    })
    .await;
    assert_eq!(idp.requests().len(), 0);
}

/// Waits as [`refused`] does, for a ClusterMailProvider, whose credentials show only the reason.
async fn refused_by_cluster(ns: &Namespace, idp: &Idp, reason: &str, said: &[&str]) {
    let reported = |credential: &MailCredential| {
        find(credential, "Stalled").is_some_and(|reported| {
            reported.reason == reason
                && reported.message.contains("an administrator finds")
                && reported.message.contains(reason)
        })
    };
    ns.until::<MailCredential>("billing", &format!("{reason} {said:?}"), reported).await;
    let providers: kube::Api<mail_token_broker::api::ClusterMailProvider> = kube::Api::all(ns.client.clone());
    until(&format!("{reason} {said:?}"), async || {
        let provider = providers.get(&ns.name).await.unwrap();
        let reported = find(&provider, "Ready").filter(|reported| reported.reason == reason);
        let all = reported.is_some_and(|reported| said.iter().all(|said| reported.message.contains(said)));
        if all { Ok(()) } else { Err(format!("{provider:?}")) }
    })
    .await;
    assert_eq!(idp.requests().len(), 0);
}

/// Creates a namespace with the objects that a provider refers to, and the ServiceAccount `mailer`.
async fn fixture() -> (Namespace, Idp) {
    let (ns, idp) = (Cluster::shared().namespace().await, Idp::start());
    ns.apply(ca_bundle("idp-ca", &idp)).await;
    ns.apply(source("idp-client", "client-secret", "a client secret")).await;
    ns.apply(account("mailer")).await;
    (ns, idp)
}

#[tokio::test]
async fn the_named_account_vouches_for_the_client() {
    let (ns, idp) = fixture().await;
    let _broker = Broker::settings(&ns).flag(REF).start().await;
    ns.apply(federated(&idp, AUDIENCE, Some("mailer"))).await;
    ns.apply(credential("billing")).await;

    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    let form = idp.token_requests()[0].form();
    assert_eq!(form["client_id"], "mailer");
    assert_eq!(form["client_assertion_type"], "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
    let claims = verified(&ns, &form["client_assertion"]);
    assert_eq!(claims["sub"], format!("system:serviceaccount:{}:mailer", ns.name));
    assert_eq!(claims["aud"], json!([AUDIENCE]));
    let uid = ns.get::<ServiceAccount>("mailer").await.metadata.uid.unwrap();
    assert_eq!(claims["kubernetes.io"]["serviceaccount"]["uid"], uid);
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 600);
    let client = ns.get::<MailCredential>("billing").await.status.unwrap().client.unwrap();
    assert_eq!((client.method.as_str(), client.index), ("serviceAccountToken", 0));

    // The next token request presents the same assertion, which is still valid.
    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    assert_eq!(idp.token_requests_reach(2).await[1].form()["client_assertion"], form["client_assertion"]);
}

#[tokio::test]
async fn without_the_flag_no_account_is_taken_on() {
    let (ns, idp) = fixture().await;
    let _broker = Broker::start(&ns).await;
    ns.apply(federated(&idp, AUDIENCE, Some("mailer"))).await;
    ns.apply(credential("billing")).await;

    refused(&ns, &idp, "NotAllowed", &[REF, "allowServiceAccountRef", "/mailer"]).await;
}

#[tokio::test]
async fn a_service_account_that_does_not_name_the_audience_is_not_used() {
    let (ns, idp) = fixture().await;
    let payments = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "payments"}});
    ns.apply(payments).await;
    let _broker = Broker::settings(&ns).flag(REF).start().await;
    ns.apply(federated(&idp, "sts.amazonaws.com", Some("payments"))).await;
    ns.apply(credential("billing")).await;
    let allow = format!(
        "`kubectl -n {} annotate serviceaccount payments --overwrite mailtoken.dev/allowed-audiences=sts.amazonaws.com`",
        ns.name
    );
    refused(&ns, &idp, "NotAllowed", &[&allow]).await;
    ns.apply(federated(&idp, AUDIENCE, Some("payments"))).await;
    refused(&ns, &idp, "NotAllowed", &[AUDIENCE]).await;
    ns.annotate::<ServiceAccount>("payments", "mailtoken.dev/allowed-audiences", AUDIENCE).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
}

#[tokio::test]
async fn an_account_is_one_of_the_own_namespace() {
    let (ns, idp) = fixture().await;
    let other = ns.cluster.namespace().await;
    other.apply(account("ceo")).await;
    let _broker = Broker::settings(&ns).flag(REF).start().await;
    for name in [format!("{}/ceo", other.name), format!("{}:ceo", other.name), "../x".to_owned()] {
        assert!(ns.try_apply(federated(&idp, AUDIENCE, Some(&name))).await.is_err(), "{name}");
    }
    let elsewhere = json!({"audience": AUDIENCE, "serviceAccountRef": {"name": "ceo", "namespace": other.name}});
    let manifest = provider(&idp).set("spec.client.authentication", json!([{"serviceAccountToken": elsewhere}]));
    assert!(ns.try_apply(manifest).await.unwrap_err().to_string().contains("namespace"));

    ns.apply(federated(&idp, AUDIENCE, Some("ceo"))).await;
    ns.apply(credential("billing")).await;
    let make = format!("`kubectl -n {} create serviceaccount ceo`", ns.name);
    refused(&ns, &idp, "SourceNotFound", &[&make]).await;
}

#[tokio::test]
async fn no_assertion_is_one_that_the_api_server_would_take() {
    let (ns, idp) = fixture().await;
    let _broker = Broker::settings(&ns).flag(REF).start().await;
    let own = api_server(&ns);
    ns.annotate::<ServiceAccount>("mailer", "mailtoken.dev/allowed-audiences", &format!("{own},{AUDIENCE}")).await;
    for audience in [own.as_str(), "https://kubernetes.default.svc", "https://kubernetes.default.svc.cluster.local/"] {
        ns.apply(federated(&idp, audience, Some("mailer"))).await;
        ns.apply(credential("billing")).await;
        refused(&ns, &idp, "NotAllowed", &[audience, "log in to Kubernetes"]).await;
    }

    ns.apply(federated(&idp, AUDIENCE, Some("mailer"))).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
}

#[tokio::test]
async fn namespaces_cannot_use_the_brokers_own_identity() {
    let (ns, idp) = fixture().await;
    let refusal = ns.try_apply(federated(&idp, AUDIENCE, None)).await.unwrap_err().to_string();
    assert!(refusal.contains("only a ClusterMailProvider may use the broker's own identity"), "{refusal}");
}

#[tokio::test]
async fn a_cluster_provider_gets_the_brokers_own_identity_from_its_file() {
    let (ns, idp) = fixture().await;
    let file = token_file(&ns, "mailer", Some(AUDIENCE));
    let _broker = Broker::settings(&ns).flag(format!("--identity-token-file={}", file.display())).start().await;
    ns.apply(of_cluster(&ns, federated(&idp, AUDIENCE, None))).await;
    ns.apply(asks_cluster(&ns, "billing")).await;

    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    let first = idp.token_requests()[0].form()["client_assertion"].clone();
    assert_eq!(first, fs::read_to_string(&file).unwrap().trim());
    assert_eq!(verified(&ns, &first)["sub"], format!("system:serviceaccount:{}:mailer", ns.name));

    // Replace the token file, as the kubelet does before the token expires.
    ns.apply(account("other")).await;
    fs::rename(token_file(&ns, "other", Some(AUDIENCE)), &file).unwrap();
    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    let second = idp.token_requests_reach(2).await[1].form()["client_assertion"].clone();
    assert_eq!(part(&second, 1)["sub"], format!("system:serviceaccount:{}:other", ns.name));
    ns.remove(&of_cluster(&ns, provider(&idp))).await;
}

#[tokio::test]
async fn an_identity_for_another_audience_is_not_presented() {
    let (ns, idp) = fixture().await;
    let file = token_file(&ns, "mailer", Some("api://another"));
    let _broker = Broker::settings(&ns).flag(format!("--identity-token-file={}", file.display())).start().await;
    ns.apply(of_cluster(&ns, federated(&idp, AUDIENCE, None))).await;
    ns.apply(asks_cluster(&ns, "billing")).await;
    refused_by_cluster(&ns, &idp, "InvalidSpec", &[AUDIENCE, "api://another"]).await;

    // The broker refuses the API server's audience even for an administrator's ClusterMailProvider.
    let own = api_server(&ns);
    assert_eq!(token_file(&ns, "mailer", None), file);
    ns.apply(of_cluster(&ns, federated(&idp, &own, None))).await;
    refused_by_cluster(&ns, &idp, "NotAllowed", &[&own, "log in to Kubernetes"]).await;

    fs::write(&file, "no token").unwrap();
    ns.apply(of_cluster(&ns, federated(&idp, "api://another", None))).await;
    refused_by_cluster(&ns, &idp, "SourceInvalid", &["is not a ServiceAccount token"]).await;

    fs::remove_file(&file).unwrap();
    ns.apply(of_cluster(&ns, federated(&idp, AUDIENCE, None))).await;
    refused_by_cluster(&ns, &idp, "SourceNotFound", &["--identity-token-file"]).await;
    ns.remove(&of_cluster(&ns, provider(&idp))).await;
}

#[tokio::test]
async fn a_broker_without_an_identity_says_how_it_gets_one() {
    let (ns, idp) = fixture().await;
    let _broker = Broker::start(&ns).await;
    ns.apply(of_cluster(&ns, federated(&idp, AUDIENCE, None))).await;
    ns.apply(asks_cluster(&ns, "billing")).await;
    refused_by_cluster(&ns, &idp, "InvalidSpec", &["--identity-token-file", "identityToken.audience"]).await;
    ns.remove(&of_cluster(&ns, provider(&idp))).await;
}

#[tokio::test]
async fn after_a_deleted_service_account_the_next_entry_is_used() {
    let (ns, idp) = fixture().await;
    let _broker = Broker::settings(&ns).flag(REF).start().await;
    let secret = json!({"clientSecret": {"secretRef": {"name": "idp-client", "key": "client-secret"}}});
    let token = json!({"serviceAccountToken": {"audience": AUDIENCE, "serviceAccountRef": {"name": "gone"}}});
    ns.apply(provider(&idp).set("spec.client.authentication", json!([token, secret]))).await;
    ns.apply(credential("billing")).await;

    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    assert_eq!(idp.token_requests()[0].form()["client_secret"], "a client secret");
    let reported = ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await.message;
    assert!(reported.contains("spec.client.authentication[0] cannot be used (SourceNotFound)"), "{reported}");
}

#[tokio::test]
async fn a_key_file_of_another_kind_is_reported_and_nothing_is_sent() {
    let (ns, idp) = fixture().await;
    let _broker = Broker::start(&ns).await;
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap().serialize_pem();
    let authentication = json!([{"serviceAccountKey": {"secretRef": {"name": "idp-client", "key": "key.json"}}}]);
    let google = provider(&idp).without("spec.oauth2").without("spec.client.id").set("spec.google", json!({}));
    ns.apply(google.set("spec.client.authentication", authentication)).await;
    ns.apply(credential("billing").set("spec.grant", json!({"jwtBearer": {}}))).await;
    for (file, said) in [
        (json!({"installed": {"client_id": "x"}}), "not a key file of a service account"),
        (
            json!({"type": "external_account", "client_email": "a@b.c", "private_key": key}),
            "only Google's libraries read",
        ),
        (
            json!({"type": "service_account", "client_email": "a@b.c", "private_key": "junk"}),
            "has a private_key that holds",
        ),
        (json!({"type": "service_account", "private_key": key}), "not a key file of a service account"),
    ] {
        ns.apply(source("idp-client", "key.json", &file.to_string())).await;
        refused(&ns, &idp, "SourceInvalid", &[said, "`kubectl -n "]).await;
    }
    let file = json!({"type": "service_account", "client_email": "a@b.c", "private_key": key});
    ns.apply(source("idp-client", "key.json", &file.to_string())).await;
    ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
}
