//! `revocationPolicy: OnDelete`: the requests to the provider, the Events, and that no deletion waits for long.

use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{fault_log::tried, idp::REVOKE, *};
use serde_json::json;

const FINALIZER: &str = "mailtoken.dev/revoke";

/// Creates a fixture whose provider has a revocation endpoint.
async fn fixture() -> Fixture {
    revocable(Fixture::new().await).await
}

async fn revocable(fixture: Fixture) -> Fixture {
    fixture.ns.apply(provider(&fixture.idp).set("spec.oauth2.revocationURL", fixture.idp.url(REVOKE))).await;
    fixture
}

fn revoking(name: &str) -> Manifest {
    credential(name).set("spec.revocationPolicy", "OnDelete")
}

fn finalizers(credential: &MailCredential) -> Vec<String> {
    credential.metadata.finalizers.clone().unwrap_or_default()
}

/// Returns the `token` and `token_type_hint` of each revocation request.
fn revoked(fixture: &Fixture) -> Vec<(String, String)> {
    let requests = fixture.idp.requests().into_iter().filter(|request| request.path == REVOKE);
    requests.map(|request| (request.form()["token"].clone(), request.form()["token_type_hint"].clone())).collect()
}

#[tokio::test]
async fn without_the_policy_there_is_no_finalizer_and_no_request() {
    let fixture = fixture().await;
    let made = fixture.issued(credential("billing")).await;
    assert_eq!(finalizers(&made), Vec::<String>::new());
    fixture.ns.delete::<MailCredential>("billing").await;
    fixture.mark("mark").await;
    assert_eq!(revoked(&fixture), []);
}

#[tokio::test]
async fn the_tokens_of_a_deleted_credential_are_revoked_the_refresh_token_first() {
    let fixture = fixture().await;
    fixture.idp.answer(Answer::token(3600).rotating());
    fixture.ns.apply(source("seed", "refresh_token", "the-first-one")).await;
    let by_refresh_token = json!({"refreshToken": {"secretRef": {"name": "seed", "key": "refresh_token"}}});
    let made = fixture.issued(revoking("billing").set("spec.grant", by_refresh_token)).await;
    assert_eq!(finalizers(&made), [FINALIZER]);
    let kept = text(&fixture.ns.get::<Secret>("billing-grant").await, "refresh_token");
    let token = text(&fixture.ns.get::<Secret>("billing").await, "access_token");

    fixture.ns.delete::<MailCredential>("billing").await;
    fixture.ns.gone::<MailCredential>("billing").await;
    assert_eq!(revoked(&fixture), [(kept, "refresh_token".to_owned()), (token, "access_token".to_owned())]);
    fixture.ns.event_reasons_include("billing", &["Normal GrantRevoked"]).await;
}

#[tokio::test]
async fn the_finalizer_follows_the_policy() {
    let fixture = fixture().await;
    fixture.issued(credential("billing")).await;
    fixture.ns.apply(revoking("billing")).await;
    let has = |wanted: bool| {
        move |credential: &MailCredential| finalizers(credential).contains(&FINALIZER.to_owned()) == wanted
    };
    fixture.ns.until::<MailCredential>("billing", "it has the finalizer", has(true)).await;
    fixture.ns.apply(credential("billing").set("spec.revocationPolicy", "Never")).await;
    fixture.ns.until::<MailCredential>("billing", "it has no finalizer", has(false)).await;
    assert_eq!(fixture.idp.token_requests().len(), 1, "neither needs a new token");
}

#[tokio::test]
async fn a_provider_without_the_endpoint_is_reported_and_delays_nothing() {
    let fixture = Fixture::new().await;
    fixture.issued(revoking("billing")).await;
    fixture.ns.delete::<MailCredential>("billing").await;
    fixture.ns.gone::<MailCredential>("billing").await;
    fixture.ns.event_reasons_include("billing", &["Warning RevocationNotSupported"]).await;
}

#[tokio::test]
async fn a_passing_trouble_is_tried_again_and_a_refusal_ends_it() {
    let fixture = fixture().await;
    fixture.idp.next_at(REVOKE, Answer::status(503));
    fixture.issued(revoking("billing")).await;
    fixture.ns.delete::<MailCredential>("billing").await;
    fixture.ns.gone::<MailCredential>("billing").await;
    assert_eq!(revoked(&fixture).len(), 2);
    fixture.ns.event_reasons_include("billing", &["Normal GrantRevoked"]).await;

    fixture.idp.next_at(REVOKE, Answer::error("unsupported_token_type"));
    fixture.issued(revoking("refused")).await;
    fixture.ns.delete::<MailCredential>("refused").await;
    fixture.ns.gone::<MailCredential>("refused").await;
    fixture.ns.event_reasons_include("refused", &["Warning RevocationFailed"]).await;
}

#[tokio::test]
async fn a_provider_that_is_gone_does_not_delay_the_deletion() {
    let fixture = fixture().await;
    fixture.issued(revoking("billing")).await;
    fixture.ns.kubectl(["delete", "mailprovider", "idp"]);
    fixture.ns.delete::<MailCredential>("billing").await;
    fixture.ns.gone::<MailCredential>("billing").await;
    fixture.ns.event_reasons_include("billing", &["Warning RevocationFailed"]).await;
}

#[tokio::test]
async fn a_revocation_of_a_killed_broker_is_made_by_the_next() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    ns.provider(&idp).await;
    // Without an election, the next broker does not wait for the lease of the killed broker.
    let broker = Broker::settings(&ns).flag("--leader-elect=false").start().await;
    let mut fixture = revocable(Fixture { ns, idp, broker }).await;
    fixture.issued(revoking("billing")).await;
    fixture.idp.next_at(REVOKE, Answer::hang());
    fixture.ns.remove(&revoking("billing")).await;
    until(
        "the revocation has begun",
        async || {
            if revoked(&fixture).is_empty() { Err("no request".to_owned()) } else { Ok(()) }
        },
    )
    .await;
    fixture.broker.kill();
    let left: MailCredential = fixture.ns.get("billing").await;
    assert_eq!(finalizers(&left), [FINALIZER], "it died over it");
    fixture.broker.again().await;
    fixture.ns.gone::<MailCredential>("billing").await;
    let asked = revoked(&fixture);
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0], asked[1], "the next revokes the same token");
    fixture.ns.event_reasons_include("billing", &["Normal GrantRevoked"]).await;
}

#[tokio::test]
async fn the_deletion_of_a_namespace_ends() {
    let cluster = Cluster::alone(&["control-plane"]);
    cluster.up("controller-manager");
    let ns = cluster.namespace().await;
    let idp = Idp::start();
    ns.provider(&idp).await;
    let fixture = revocable(Fixture { broker: Broker::start(&ns).await, ns, idp }).await;
    for name in ["billing", "orders", "support"] {
        fixture.issued(revoking(name)).await;
    }
    fixture.ns.kubectl(["delete", "namespace", &fixture.ns.name, "--wait=false"]);
    is_gone(&fixture.ns).await;
    tried("F24", 1, "nothing");
}

/// Waits until a deleted namespace no longer exists.
async fn is_gone(ns: &Namespace) {
    until("the namespace is gone", async || {
        let left = ns.kubectl(["get", "namespace", &ns.name, "--ignore-not-found", "-o", "jsonpath={.status}"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

/// Returns the namespace with a client of a team that may use the broker's kinds and may not read Secrets.
async fn without_secrets(fixture: &Fixture) -> Namespace {
    let (ns, user) = (&fixture.ns, "gitops");
    let rule =
        json!({"apiGroups": ["mailtoken.dev"], "resources": ["mailcredentials", "mailproviders"], "verbs": ["*"]});
    ns.apply(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": user}, "rules": [rule],
    }))
    .await;
    ns.apply(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }))
    .await;
    let (name, cluster) = (ns.name.clone(), ns.cluster.clone());
    let team = Namespace { client: cluster.client_of(user).await, name, cluster };
    until("the team has its rights", async || {
        team.api::<MailCredential>().list(&Default::default()).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    assert!(team.api::<Secret>().get("billing").await.is_err(), "it may not read Secrets");
    team
}

/// Creates the credential `billing` with a refresh token and an access token of the honest provider, the attacker's
/// server, which the broker would trust, and the team.
async fn to_be_stolen() -> (Fixture, Idp, Namespace) {
    let fixture = fixture().await;
    let evil = Idp::start();
    let both = format!("{}{}", fixture.idp.ca(), evil.ca());
    fixture.ns.patch::<k8s_openapi::api::core::v1::ConfigMap>("idp-ca", json!({"data": {"ca.crt": both}})).await;
    fixture.idp.answer(Answer::token(3600).rotating());
    fixture.ns.apply(source("seed", "refresh_token", "the-first-one")).await;
    let by_refresh_token = json!({"refreshToken": {"secretRef": {"name": "seed", "key": "refresh_token"}}});
    fixture.issued(credential("billing").set("spec.grant", by_refresh_token)).await;
    fixture.issued(credential("orders")).await;
    let team = without_secrets(&fixture).await;
    (fixture, evil, team)
}

/// Deletes a credential as the team, after the broker has added its finalizer. Checks that the broker sends no request,
/// and that an Event gives the reason.
async fn deleted_without_a_request(fixture: &Fixture, evil: &Idp, team: &Namespace, name: &str) {
    let has = |credential: &MailCredential| finalizers(credential).contains(&FINALIZER.to_owned());
    fixture.ns.until::<MailCredential>(name, "it has the finalizer", has).await;
    team.delete::<MailCredential>(name).await;
    fixture.ns.gone::<MailCredential>(name).await;
    fixture.ns.event_reasons_include(name, &["Warning RevocationFailed"]).await;
    assert_eq!((revoked(fixture), evil.requests_at(REVOKE).len()), (vec![], 0));
    let seen = format!("{:?}", evil.requests());
    for token in fixture.idp.issued() {
        assert!(!seen.contains(&token), "{token} came to the attacker's server");
    }
}

#[tokio::test]
async fn a_token_is_not_revoked_at_another_provider_than_its_issuer() {
    let (fixture, evil, team) = to_be_stolen().await;
    let other = provider(&evil).set("metadata.name", "evil").set("spec.client", json!({"id": "mailer"}));
    team.apply(other.set("spec.oauth2.revocationURL", evil.url(REVOKE))).await;
    let there = json!({"providerRef": {"name": "evil"}, "revocationPolicy": "OnDelete", "suspend": true});
    for name in ["billing", "orders"] {
        team.patch::<MailCredential>(name, json!({"spec": there})).await;
        deleted_without_a_request(&fixture, &evil, &team, name).await;
    }
}

#[tokio::test]
async fn a_token_is_not_revoked_at_an_endpoint_that_was_named_later() {
    let (fixture, evil, team) = to_be_stolen().await;
    team.patch::<mail_token_broker::api::MailProvider>(
        "idp",
        json!({"spec": {"oauth2": {"revocationURL": evil.url(REVOKE)}}}),
    )
    .await;
    for name in ["billing", "orders"] {
        team.patch::<MailCredential>(name, json!({"spec": {"revocationPolicy": "OnDelete"}})).await;
        deleted_without_a_request(&fixture, &evil, &team, name).await;
    }
}

#[tokio::test]
async fn a_refresh_token_is_bound_to_the_revocation_endpoint_that_it_was_obtained_with() {
    let (fixture, evil, team) = to_be_stolen().await;
    let before = text(&fixture.ns.get::<Secret>("billing").await, "access_token");
    team.patch::<mail_token_broker::api::MailProvider>(
        "idp",
        json!({"spec": {"oauth2": {"revocationURL": evil.url(REVOKE)}}}),
    )
    .await;
    // A renewal in between makes no difference: the broker sends neither token to a server that the sign-in did not
    // involve.
    team.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    fixture.renewed("billing", &before).await;
    team.patch::<MailCredential>("billing", json!({"spec": {"revocationPolicy": "OnDelete"}})).await;
    deleted_without_a_request(&fixture, &evil, &team, "billing").await;
}

#[tokio::test]
async fn a_provider_of_the_cluster_that_does_not_allow_the_namespace_revokes_nothing() {
    let (fixture, evil, team) = to_be_stolen().await;
    let of_the_admin = Idp::start();
    let cluster_wide =
        provider(&of_the_admin).set("kind", "ClusterMailProvider").set("metadata.name", fixture.ns.name.as_str());
    let allowed = json!([{"namespaceSelector": {"matchLabels": {"mail": "another"}}, "mailboxes": ["*@example.org"]}]);
    fixture
        .ns
        .apply(
            cluster_wide
                .set("spec.allowed", allowed)
                .set("spec.oauth2.tokenURL", fixture.idp.token_url())
                .set("spec.oauth2.revocationURL", of_the_admin.url(REVOKE)),
        )
        .await;
    let there = json!({"kind": "ClusterMailProvider", "name": fixture.ns.name});
    for name in ["billing", "orders"] {
        team.patch::<MailCredential>(name, json!({"spec": {"providerRef": there, "revocationPolicy": "OnDelete"}}))
            .await;
        deleted_without_a_request(&fixture, &evil, &team, name).await;
    }
    assert_eq!(of_the_admin.requests().len(), 0);
}

#[tokio::test]
async fn a_provider_of_the_cluster_whose_allowance_was_withdrawn_revokes_nothing() {
    let fixture = fixture().await;
    let name = format!("p-{}", fixture.ns.name);
    let allowed = |label: &str| {
        let selector = json!({"matchLabels": {label: fixture.ns.name}});
        let cluster_wide =
            provider(&fixture.idp).set("kind", "ClusterMailProvider").set("metadata.name", name.as_str());
        let cluster_wide = cluster_wide.set("spec.oauth2.revocationURL", fixture.idp.url(REVOKE));
        cluster_wide.set("spec.allowed", json!([{"namespaceSelector": selector, "mailboxes": ["*@example.org"]}]))
    };
    fixture.ns.apply(allowed("kubernetes.io/metadata.name")).await;
    let there = json!({"kind": "ClusterMailProvider", "name": name});
    fixture.issued(revoking("billing").set("spec.providerRef", there)).await;
    fixture.ns.apply(allowed("another")).await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "NotAllowed").await;
    fixture.ns.delete::<MailCredential>("billing").await;
    fixture.ns.gone::<MailCredential>("billing").await;
    fixture.ns.event_reasons_include("billing", &["Warning RevocationFailed"]).await;
    assert_eq!(revoked(&fixture), []);
}

#[tokio::test]
async fn an_assertion_does_not_leave_the_token_endpoints_origin() {
    let fixture = Fixture::new().await;
    let evil = Idp::start();
    let both = format!("{}{}", fixture.idp.ca(), evil.ca());
    fixture.ns.patch::<k8s_openapi::api::core::v1::ConfigMap>("idp-ca", json!({"data": {"ca.crt": both}})).await;
    let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
    fixture.ns.apply(source("app", "tls.key", &pem)).await;
    let key = json!([{"privateKeyJWT": {"keyRef": {"name": "app", "key": "tls.key"}, "algorithm": "EdDSA"}}]);
    let relay = provider(&fixture.idp).set("spec.client.authentication", key);
    let relay = relay.set("spec.oauth2.deviceAuthorizationURL", evil.url("/device"));
    fixture.ns.apply(relay.set("spec.oauth2.revocationURL", evil.url(REVOKE))).await;

    fixture.ns.apply(credential("person").set("spec.grant", json!({"deviceCode": {}}))).await;
    let stalled = fixture.ns.condition::<MailCredential>("person", "Stalled", "InvalidSpec").await;
    assert!(stalled.message.contains("origin"), "{}", stalled.message);

    fixture.issued(revoking("billing")).await;
    fixture.ns.delete::<MailCredential>("billing").await;
    fixture.ns.gone::<MailCredential>("billing").await;
    fixture.ns.event_reasons_include("billing", &["Warning RevocationFailed"]).await;

    // Repeat the attack with a discovery document.
    let issuer = fixture.idp.issuer();
    let document = json!({
        "issuer": issuer, "token_endpoint": fixture.idp.token_url(), "device_authorization_endpoint": evil.url("/device"),
        "revocation_endpoint": evil.url(REVOKE),
    });
    fixture.idp.answer_at(mailtoken_testkit::idp::DISCOVERY, Answer::json(200, document));
    fixture
        .ns
        .patch::<mail_token_broker::api::MailProvider>(
            "idp",
            json!({"spec": {"oauth2": null, "oidc": {"issuerURL": issuer}}}),
        )
        .await;
    fixture.ns.apply(credential("another").set("spec.grant", json!({"deviceCode": {}}))).await;
    fixture.ns.condition::<MailCredential>("another", "Stalled", "InvalidSpec").await;
    fixture.issued(revoking("orders")).await;
    fixture.ns.delete::<MailCredential>("orders").await;
    fixture.ns.gone::<MailCredential>("orders").await;
    fixture.ns.event_reasons_include("orders", &["Warning RevocationFailed"]).await;
    assert_eq!(evil.requests().len(), 0);
}

#[tokio::test]
async fn tokens_whose_secrets_were_deleted_first_are_reported() {
    let fixture = fixture().await;
    fixture.issued(revoking("billing")).await;
    fixture.broker.signal("STOP");
    fixture.ns.remove(&revoking("billing")).await;
    fixture.ns.delete::<Secret>("billing").await;
    fixture.broker.signal("CONT");
    fixture.ns.gone::<MailCredential>("billing").await;
    fixture.ns.event_reasons_include("billing", &["Warning RevocationFailed"]).await;
}

#[tokio::test]
async fn a_label_that_is_set_meanwhile_revokes_nothing_twice() {
    let fixture = fixture().await;
    fixture.issued(revoking("billing").set("metadata.finalizers", json!(["example.org/x"]))).await;
    fixture.idp.answer_at(REVOKE, Answer::text(200, "").held());
    fixture.ns.remove(&revoking("billing")).await;
    until(
        "the revocation has begun",
        async || {
            if revoked(&fixture).is_empty() { Err("no request".to_owned()) } else { Ok(()) }
        },
    )
    .await;
    fixture.ns.patch::<MailCredential>("billing", json!({"metadata": {"labels": {"team": "mail"}}})).await;
    fixture.idp.release();
    let ours = |credential: &MailCredential| !finalizers(credential).contains(&FINALIZER.to_owned());
    fixture.ns.until::<MailCredential>("billing", "the broker's finalizer is gone", ours).await;
    assert_eq!(revoked(&fixture).len(), 1);
    fixture.ns.patch::<MailCredential>("billing", json!({"metadata": {"finalizers": null}})).await;
    fixture.ns.gone::<MailCredential>("billing").await;
    assert_eq!(revoked(&fixture).len(), 1);
    fixture.ns.event_reasons_include("billing", &["Normal GrantRevoked"]).await;
}

/// Runs the command `release-finalizers`. Returns whether it succeeded, and its output.
fn release(kubeconfig: &std::path::Path, arguments: &[&str]) -> (bool, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mail-token-broker"));
    let done = command.arg("release-finalizers").args(arguments).env("KUBECONFIG", kubeconfig).output().unwrap();
    (done.status.success(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
}

#[tokio::test]
async fn without_a_broker_release_finalizers_ends_the_deletion_of_a_namespace() {
    let cluster = Cluster::alone(&["control-plane"]);
    cluster.up("controller-manager");
    let ns = cluster.namespace().await;
    let idp = Idp::start();
    ns.provider(&idp).await;
    let mut fixture = revocable(Fixture { broker: Broker::start(&ns).await, ns, idp }).await;
    fixture.issued(revoking("billing")).await;
    fixture.issued(credential("orders")).await;
    fixture.broker.terminate().await;
    fixture.ns.kubectl(["delete", "namespace", &fixture.ns.name, "--wait=false"]);
    let hangs = |billing: &MailCredential| billing.metadata.deletion_timestamp.is_some();
    fixture.ns.until::<MailCredential>("billing", "it waits for its finalizer", hangs).await;

    let kubeconfig = cluster.kubeconfig();
    let billing = format!("{}/billing: ", fixture.ns.name);
    let (done, reported) = release(&kubeconfig, &["--dry-run"]);
    assert!(
        done && reported.contains(&format!("{billing}would be released")) && !reported.contains("orders"),
        "{reported}"
    );
    assert_eq!(finalizers(&fixture.ns.get("billing").await), [FINALIZER]);
    let (done, reported) = release(&kubeconfig, &["-n", "default"]);
    assert!(done && reported.contains("0 MailCredentials released"), "{reported}");
    let (done, reported) = release(&kubeconfig, &[]);
    assert!(done && reported.contains(&format!("{billing}released; its access token is valid until ")), "{reported}");
    assert!(reported.contains("1 MailCredentials released, 0 not"), "{reported}");
    is_gone(&fixture.ns).await;
    assert_eq!(revoked(&fixture), []);
    tried("F31", 1, "the revocation");

    fixture.ns.kubectl(["delete", "crd", "mailcredentials.mailtoken.dev"]);
    let (done, reported) = release(&kubeconfig, &[]);
    assert!(done && reported.contains("nothing to do"), "{reported}");
    let nowhere = cluster.dir().join("no-such-kubeconfig");
    let (done, reported) = release(&kubeconfig, &["--kubeconfig", nowhere.to_str().unwrap()]);
    assert!(!done && reported.starts_with("error: the kubeconfig cannot be used"), "{reported}");
}

#[tokio::test]
async fn a_credential_that_another_finalizer_keeps_is_not_ready_after_its_token() {
    let fixture = fixture().await;
    fixture.idp.answer(Answer::token(6));
    let kept = credential("billing").set("metadata.finalizers", json!(["example.org/x"]));
    fixture.issued(kept.clone()).await;
    fixture.ns.remove(&kept).await;
    fixture.ns.condition::<MailCredential>("billing", "Ready", "Expired").await;
    fixture.ns.patch::<MailCredential>("billing", json!({"metadata": {"finalizers": null}})).await;
    fixture.ns.gone::<MailCredential>("billing").await;
}

#[tokio::test]
async fn finalizers_of_others_of_any_length_do_not_delay_the_brokers_own() {
    let fixture = fixture().await;
    // The finalizers are longer than those that the broker keeps.
    let others: Vec<_> = (0..300).map(|number| format!("example.org/{number}-{}", "x".repeat(55))).collect();
    fixture.issued(revoking("billing").set("metadata.finalizers", json!(others))).await;
    let keeps = |credential: &MailCredential| {
        let all = finalizers(credential);
        others.iter().all(|other| all.contains(other))
    };
    let has = |credential: &MailCredential| finalizers(credential).iter().any(|name| name == FINALIZER);
    fixture.ns.until::<MailCredential>("billing", "the finalizer is added", |found| keeps(found) && has(found)).await;
    fixture.ns.api::<MailCredential>().delete("billing", &DeleteParams::default()).await.unwrap();
    fixture
        .ns
        .until::<MailCredential>("billing", "the finalizer is removed", |found| keeps(found) && !has(found))
        .await;
    assert_eq!(revoked(&fixture).len(), 1);
    fixture.ns.patch::<MailCredential>("billing", json!({"metadata": {"finalizers": null}})).await;
    fixture.ns.gone::<MailCredential>("billing").await;
}
