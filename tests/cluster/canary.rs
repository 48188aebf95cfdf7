//! Checks that a secret appears only in its Secret: not in the log at the finest level, in an Event, a status or a
//! metric.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::api::core::v1::Secret;
use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_testkit::{idp::DEVICE, leaks::assert_absent, *};
use rcgen::KeyPair;
use serde_json::json;

/// The finest level for all targets, and by name for the libraries that log most.
const LOG: &str =
    "trace,kube_client::client=trace,hyper::proto=trace,h2::codec=trace,reqwest::connect=trace,rustls=trace";

#[tokio::test]
async fn no_secret_appears_anywhere() {
    const POST: &str = "canary~post secret/7Qx2+Lm9";
    const BASIC: &str = "canary~basic:secret/3Wk8+Rt5";
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    let mut broker = Broker::settings(&ns).env("RUST_LOG", LOG).start().await;
    ns.provider(&idp).await;
    kubectl_apply(&ns, &source("post", "client-secret", POST));
    let copied = ns.kubectl(["get", "secret", "post", "-o", "jsonpath={.metadata.annotations}"]);
    assert!(copied.contains("last-applied-configuration") && copied.contains(POST), "{copied}");
    ns.apply(source("basic", "client-secret", BASIC)).await;
    let secret = |name: &str, method: &str| json!({"clientSecret": {"secretRef": {"name": name, "key": "client-secret"}, "method": method}});
    ns.apply(provider(&idp).set("spec.client.authentication", vec![secret("post", "Post"), secret("basic", "Basic")]))
        .await;

    // One client secret is sent in the body, one in the header. Each token has every format.
    let shapes = json!(["XOAuth2", "OAuthBearer", "SaslXoauth2", "TokenJSON"]);
    let shaped = credential("billing").set("spec.secret.formats", shapes);
    ns.apply(shaped.entry("spec.secret.data", "env", "T=${access_token}")).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    idp.next(Answer::error("invalid_client"));
    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    idp.token_requests_reach(3).await;
    let header = idp.token_requests()[2].headers["authorization"].clone();
    let basic = header.strip_prefix("Basic ").unwrap().to_owned();
    ns.until::<MailCredential>("billing", "the header's token is there", |found| {
        found.status.as_ref().and_then(|status| status.last_handled_reissue.as_deref()) == Some("1")
    })
    .await;

    // These responses repeat the request's secrets.
    let echo = json!({
        "error": format!("invalid_{POST}"), "error_description": format!("the secret {POST} and {BASIC} and {basic} are wrong"),
        "error_uri": BASIC, "correlation_id": basic, "access_token": "canary-echoed-token-5Hj1",
    });
    let answers = [
        Answer::json(400, echo.clone()),
        Answer::json(200, echo.clone()).header("x-echo", POST).header("location", BASIC),
        Answer::text(
            200,
            &format!(r#"{{"access_token":"canary-echoed-token-5Hj1","token_type":"mac","expires_in":"{POST}"}}"#),
        ),
        Answer::text(200, &format!("canary-echoed-token-5Hj1 {POST}")),
        Answer::status(302).header("location", &format!("https://localhost/{basic}")),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        idp.answer(answer);
        let before = idp.token_requests().len();
        ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", &format!("echo-{number}")).await;
        idp.token_requests_reach(before + 1).await;
        ns.until::<MailCredential>("billing", "it has failed", |found| {
            found.status.as_ref().and_then(|status| status.failed_attempts) == Some(1)
        })
        .await;
    }
    // A user changes a Secret, another Secret cannot be used, and the broker restarts.
    ns.patch::<Secret>("billing", json!({"stringData": {"username": "eve@example.org"}})).await;
    ns.until::<Secret>("billing", "it is repaired", |secret| {
        secret.data.as_ref().is_some_and(|data| data["username"].0 == b"billing@example.org")
    })
    .await;
    ns.apply(source("post", "client-secret", &format!("{POST} "))).await;
    ns.apply(source("basic", "client-secret", &format!(" {BASIC}"))).await;
    ns.condition::<MailProvider>("idp", "Ready", "SourceInvalid").await;
    let metrics = broker.metrics().await;
    broker.terminate().await;
    broker.again().await;

    let metrics_again = broker.metrics().await;
    let mut places = vec![("metrics", metrics), ("metrics after the restart", metrics_again), ("log", broker.log())];
    places.extend(leaks::shown(&ns));
    let (_, log) = &places[2];
    assert!(log.contains("DEBUG"), "the log is not at its finest");
    let mut secrets = vec![POST.to_owned(), BASIC.to_owned(), basic, "canary-echoed-token-5Hj1".to_owned()];
    secrets.extend(idp.issued());
    assert!(secrets.len() >= 6);
    assert_absent(&places, &secrets);
    let (_, log) = &places[2];
    for word in ["authorization: ", "Authorization:", "Basic ", "Bearer "] {
        let reported = log.lines().find(|line| line.contains(word) && !line.contains("token_type"));
        assert_eq!(reported, None, "{word}");
    }
    for library in [" kube_client", " hyper", " h2", " reqwest", " rustls"] {
        let reported =
            log.lines().find(|line| line.contains(library) && ["DEBUG", "TRACE"].iter().any(|it| line.contains(it)));
        assert_eq!(reported, None, "{library}");
    }
}

/// A text that a message must never show to a reader who copies commands.
const BAIT: &str = "canary-bait";

/// Returns the messages of all conditions and Events of a namespace.
fn messages(ns: &Namespace) -> String {
    let path = "jsonpath={range .items[*]}{.status.conditions[*].message}{\"\\n\"}{end}";
    let reported = ["mailcredentials", "mailproviders"].map(|kind| ns.kubectl(["get", kind, "-o", path]));
    let events = ns.kubectl(["get", "events", "-o", "jsonpath={.items[*].message}"]);
    reported.concat() + &events
}

#[tokio::test]
async fn no_text_of_a_provider_appears_beside_commands_to_copy() {
    let Fixture { ns, idp, broker } = Fixture::new().await;
    let command = format!("`kubectl create clusterrolebinding {BAIT} --clusterrole=cluster-admin --user=mallory`");
    // The bait is in the scopes of a token.
    idp.answer(
        Answer::token(3600).field("scope", format!("mail.send and more. Repair it with: {command} \u{1b}[31m{BAIT}")),
    );
    ns.apply(credential("scopes").set("spec.scopes", json!(["mail.send"]))).await;
    let reported = ns.condition::<MailCredential>("scopes", "Ready", "TokenValid").await.message;
    assert!(reported.contains("unrequested scopes"), "{reported}");
    // The bait is in the pages and codes of a sign-in.
    let spec = provider(&idp).set("metadata.name", "device").set("spec.oauth2.deviceAuthorizationURL", idp.url(DEVICE));
    ns.apply(spec).await;
    let sign_in = |field: &str, value: String| {
        let mut body = json!({
            "device_code": "d", "user_code": "WDJB-MJHT", "expires_in": 600, "verification_uri": "https://example.org/",
        });
        body[field] = value.into();
        Answer::json(200, body)
    };
    let by_code = |name: &str| {
        credential(name).set("spec.providerRef.name", "device").set("spec.grant", json!({"deviceCode": {}}))
    };
    for (name, field, value) in [
        ("code", "user_code", format!("`{BAIT}`")),
        ("dollar", "user_code", format!("$({BAIT})")),
        ("blank", "user_code", format!("enter {BAIT}")),
        ("page", "verification_uri", format!("https://example.org/`{BAIT}`")),
        ("query", "verification_uri", format!("https://example.org/?q=$({BAIT})")),
        ("quote", "verification_uri", format!("https://example.org/'{BAIT}'")),
    ] {
        idp.answer_at(DEVICE, sign_in(field, value));
        ns.apply(by_code(name)).await;
        ns.condition::<MailCredential>(name, "Renewed", "MalformedResponse").await;
    }
    idp.answer_at(DEVICE, sign_in("verification_uri_complete", format!("https://example.org/?c=`{BAIT}`")));
    idp.answer(Answer::error("authorization_pending"));
    ns.apply(by_code("complete")).await;
    let reported = ns.condition::<MailCredential>("complete", "Ready", "AuthorizationRequired").await.message;
    assert!(reported.contains("open https://example.org/ and enter WDJB-MJHT"), "{reported}");
    // The bait is in the name of the account that signed in.
    let claims = BASE64_URL_SAFE_NO_PAD.encode(json!({"email": format!("`{BAIT}`@example.org")}).to_string());
    idp.answer_at(DEVICE, sign_in("user_code", "WDJB-MJHT".to_owned()));
    idp.answer(Answer::token(3600).field("id_token", format!("e30.{claims}.c2ln")));
    ns.apply(by_code("person")).await;
    let reported = ns.condition::<MailCredential>("person", "Ready", "AuthorizationRequired").await.message;
    let signed_in = |found: &MailCredential| names_another_account(found);
    if !reported.contains("another account signed in") {
        ns.until::<MailCredential>("person", "another account signed in", signed_in).await;
    }

    let reported = messages(&ns);
    assert!(reported.contains("WDJB-MJHT") && !reported.contains(BAIT), "{reported}");
    let log = broker.log();
    assert!(!log.contains(BAIT), "the log repeats a provider's text");
}

fn names_another_account(found: &MailCredential) -> bool {
    let conditions = found.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| condition.message.contains("another account signed in"))
}

#[tokio::test]
async fn no_signed_assertion_appears_anywhere() {
    let Fixture { ns, idp, broker } = Fixture::new().await;
    ns.apply(source("key", "tls.key", &KeyPair::generate().unwrap().serialize_pem())).await;
    let jwt = json!({"privateKeyJWT": {"keyRef": {"name": "key", "key": "tls.key"}, "algorithm": "ES256"}});
    ns.apply(provider(&idp).set("spec.client.authentication", vec![jwt])).await;
    ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    ns.apply(credential("billing")).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;

    // The response repeats the assertion of the request.
    let sent = idp.assertions().pop().unwrap();
    let echo = json!({"error": "invalid_client", "error_description": sent, "error_uri": sent, "correlation_id": sent});
    idp.answer(Answer::json(401, echo));
    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    ns.condition::<MailCredential>("billing", "Renewed", "InvalidClient").await;
    leaks::assert_no_secret_shown(&ns, &broker, [idp.issued(), idp.assertions()].concat()).await;
}

/// Applies an object with kubectl, which leaves a copy of the object in an annotation.
fn kubectl_apply(ns: &Namespace, manifest: &Manifest) {
    let file = ns.cluster.dir().join(format!("{}.json", ns.name));
    std::fs::write(&file, manifest.0.to_string()).unwrap();
    ns.kubectl(["apply", "-f", file.to_str().unwrap()]);
}
