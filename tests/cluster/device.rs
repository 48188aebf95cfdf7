//! Sign-ins by a code (RFC 8628): the code that a user sees, and each possible end of the sign-in.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::api::{core::v1::Secret, events::v1::Event};
use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_testkit::{
    idp::{DEVICE, DISCOVERY},
    namespace::find,
    remedy,
    standin::{Fault, Strict},
    *,
};
use serde_json::{Value, json};

const REISSUE: &str = "mailtoken.dev/reissue";

/// Applies the MailProvider `idp` of a server with a device authorization endpoint.
async fn device_provider(ns: &Namespace, issuer: &str, ca: &str) {
    ns.apply(source("idp-client", "client-secret", "a client secret")).await;
    ns.apply(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "idp-ca"}, "data": {"ca.crt": ca},
    }))
    .await;
    ns.apply(json!({
        "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailProvider", "metadata": {"name": "idp"},
        "spec": {
            "oidc": {"issuerURL": issuer},
            "client": {
                "id": "mailer",
                "authentication": [{"clientSecret": {"secretRef": {"name": "idp-client", "key": "client-secret"}}}],
            },
            "caBundleRef": {"configMap": {"name": "idp-ca", "key": "ca.crt"}},
        },
    }))
    .await;
}

/// Creates a namespace with a strict server, and a broker.
async fn strict() -> (Namespace, Strict, Broker) {
    let ns = Cluster::shared().namespace().await;
    let idp = Strict::start();
    idp.client("mailer", Some("a client secret"));
    device_provider(&ns, &idp.issuer(), &idp.ca()).await;
    let broker = pod(&ns).await;
    (ns, idp, broker)
}

/// Starts a broker that leads immediately after a restart, as a broker in a pod does.
async fn pod(ns: &Namespace) -> Broker {
    Broker::settings(ns).env("POD_UID", "a-pods-uid").start().await
}

/// Creates a namespace with a server whose responses the test decides. No user has signed in yet.
async fn scripted() -> Fixture {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    idp.answer(Answer::error("authorization_pending"));
    device_provider(&ns, &idp.issuer(), &idp.ca()).await;
    let broker = pod(&ns).await;
    Fixture { ns, idp, broker }
}

fn by_code(name: &str) -> Manifest {
    credential(name).set("spec.grant", json!({"deviceCode": {}}))
}

/// Waits until the status shows a code that differs from `before`.
async fn shown(ns: &Namespace, before: &str) -> String {
    let code = |credential: &MailCredential| field(credential, "/status/authorization/userCode");
    let other = |credential: &MailCredential| code(credential).as_str().is_some_and(|code| code != before);
    code(&ns.until("billing", &format!("another code than {before:?} is shown"), other).await)
        .as_str()
        .unwrap()
        .to_owned()
}

/// Returns the sign-in in the annotations of the grant Secret.
async fn sign_in(ns: &Namespace) -> Value {
    let secret: Secret = ns.get("billing-grant").await;
    let annotations = secret.metadata.annotations.unwrap_or_default();
    annotations.get("mailtoken.dev/sign-in").map_or(Value::Null, |text| serde_json::from_str(text).unwrap())
}

/// Waits for an Event with this reason, which follows the status. Returns the types and notes of all such Events.
async fn notes(ns: &Namespace, reason: &str) -> Vec<(String, String)> {
    let of_reason = |event: &Event| event.reason.as_deref() == Some(reason);
    until(&format!("an Event {reason}"), async || {
        let events = ns.events("billing").await;
        let reported: Vec<_> = events.iter().filter(|event| of_reason(event)).cloned().collect();
        if reported.is_empty() { Err(format!("{events:#?}")) } else { Ok(reported) }
    })
    .await
    .into_iter()
    .map(|event| (event.type_.unwrap_or_default(), event.note.unwrap_or_default()))
    .collect()
}

async fn polls_reach(idp: &Strict, number: usize) {
    until(&format!("{number} polls"), async || match idp.token_requests().len() {
        polls if polls >= number => Ok(()),
        polls => Err(polls.to_string()),
    })
    .await;
}

/// Returns the token response after a sign-in of `account`.
fn signed_in(claim: &str, account: &str) -> Answer {
    let claims = BASE64_URL_SAFE_NO_PAD.encode(json!({claim: account}).to_string());
    Answer::token(3600).rotating().field("id_token", format!("e30.{claims}.c2ln"))
}

async fn status_writes(ns: &Namespace) -> usize {
    let audit = ns.audit().into_iter();
    audit.filter(|event| event.access.resource == "mailcredentials/status" && event.access.verb == "update").count()
}

#[tokio::test]
async fn a_person_sees_the_code_everywhere_and_signs_in_once() {
    let (ns, idp, broker) = strict().await;
    ns.apply(by_code("billing")).await;
    let code = shown(&ns, "").await;
    assert_eq!(idp.pending(), std::slice::from_ref(&code));

    let waiting: MailCredential = ns.get("billing").await;
    let uri = format!("{}/sign-in", idp.issuer());
    assert_eq!(field(&waiting, "/status/authorization/verificationURI"), uri);
    assert_eq!(field(&waiting, "/status/authorization/verificationURIComplete"), format!("{uri}?user_code={code}"));
    for (kind, reason) in [("Ready", "AuthorizationRequired"), ("Reconciling", "Progressing")] {
        let reported = find(&waiting, kind).unwrap();
        assert_eq!(reported.reason, reason);
        assert!(reported.message.contains(&code) && reported.message.contains(&uri), "{}", reported.message);
    }

    // No user signs in. The broker polls as often as the server allows, and writes no status. The log contains the last
    // write of the status before the first poll.
    polls_reach(&idp, 1).await;
    let writes = status_writes(&ns).await;
    polls_reach(&idp, 4).await;
    assert!(find(&waiting, "Stalled").is_none(), "a code is on offer");
    let [(normal, note)] = &notes(&ns, "AuthorizationRequired").await[..] else { panic!("one Event") };
    assert!(normal == "Normal" && note.contains(&code) && note.contains(&uri), "{note}");
    assert_eq!(status_writes(&ns).await, writes);
    assert_eq!(sign_in(&ns).await["interval"], 1, "the server has not asked to slow down");

    idp.approve(&code, "billing@example.org");
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    let ready: MailCredential = ns.get("billing").await;
    assert_eq!(field(&ready, "/status/authorization"), Value::Null);
    assert!(find(&ready, "Stalled").is_none());
    assert_eq!(notes(&ns, "AuthorizationRequired").await.len(), 1);
    let grant = ns.secret("billing-grant").await;
    assert!(idp.is_valid(&grant["refresh_token"]) && !grant.contains_key("device_code"), "{:?}", grant.keys());
    let target = ns.secret("billing").await;
    assert!(!target.values().any(|value| value.contains(&grant["refresh_token"])));

    // A renewal requires no user.
    ns.annotate::<MailCredential>("billing", REISSUE, "1").await;
    ns.until::<Secret>("billing", "it has another token", |secret| {
        text(secret, "access_token") != target["access_token"]
    })
    .await;
    assert_eq!((idp.pending(), idp.reuses()), (vec![], 0));
    let [(normal, _)] = &notes(&ns, "TokenValid").await[..] else { panic!("one Event") };
    assert_eq!(normal, "Normal");
    for secret in idp.issued() {
        assert!(!broker.log().contains(&secret), "a secret stands in the log");
    }
}

#[tokio::test]
async fn slow_down_applies_to_all_further_polls_and_after_a_restart() {
    let Fixture { ns, idp, mut broker } = scripted().await;
    idp.next(Answer::error("slow_down"));
    ns.apply(by_code("billing")).await;
    let code = shown(&ns, "").await;
    idp.token_requests_reach(3).await;
    assert_eq!(sign_in(&ns).await["interval"], 6);
    broker.kill();
    let before = idp.token_requests().len();
    broker.again().await;
    let polls = idp.token_requests_reach(before + 1).await;
    for pair in polls.windows(2) {
        assert!(pair[1].at.duration_since(pair[0].at) >= Duration::from_secs(6), "{:?}", pair[1].at - pair[0].at);
    }
    assert_eq!(shown(&ns, "").await, code);
    fault_log::tried("F26", 1, "nothing");
}

#[tokio::test]
async fn a_denied_sign_in_stays_denied_until_a_reissue() {
    let fixture = scripted().await;
    let Fixture { ns, idp, .. } = &fixture;
    ns.apply(by_code("billing")).await;
    let mut reported = String::new();
    for (round, error) in ["access_denied", "authorization_declined", "interaction_required"].into_iter().enumerate() {
        shown(ns, "").await;
        idp.next(Answer::error(error));
        let denied = |credential: &MailCredential| {
            find(credential, "Stalled").is_some_and(|stalled| stalled.message.contains("reissue"))
        };
        let credential: MailCredential = ns.until("billing", error, denied).await;
        assert_eq!((reason(&credential, "Ready"), reason(&credential, "Renewed")), {
            let required = "AuthorizationRequired".to_owned();
            (required.clone(), required)
        });
        assert_eq!(field(&credential, "/status/authorization"), Value::Null);
        let polls = idp.token_requests().len();
        ns.annotate::<MailCredential>("billing", "example.org/looked-at", &round.to_string()).await;
        idp.next(Answer::token(3600));
        fixture.mark(&format!("mark-{round}")).await;
        assert_eq!((idp.requests_at(DEVICE).len(), idp.token_requests().len()), (round + 1, polls + 1), "{error}");

        reported = find(&credential, "Stalled").unwrap().message;
        match round {
            0 => remedy::run(ns, &reported, &[]),
            1 => drop(ns.patch::<MailCredential>("billing", json!({"spec": {"protocols": ["IMAP"]}})).await),
            _ => {}
        }
    }
    assert!(reported.contains("interaction_required"), "{reported}");
    remedy::run(ns, &reported, &[]);
    shown(ns, "").await;
    idp.answer(signed_in("email", "billing@example.org"));
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    fault_log::tried("F26", 1, "nothing");
}

#[tokio::test]
async fn an_ended_code_is_replaced_and_the_new_one_is_reported() {
    let (ns, idp, _broker) = strict().await;
    ns.apply(by_code("billing")).await;
    let first = shown(&ns, "").await;
    idp.expire(&first);
    let second = shown(&ns, &first).await;
    until("an Event of its own shows the other code", async || match notes(&ns, "AuthorizationRequired").await {
        reported if reported.len() == 2 && reported.iter().any(|(_, note)| note.contains(&second)) => Ok(()),
        reported => Err(format!("{reported:?}")),
    })
    .await;

    idp.approve(&second, "billing@example.org");
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    fault_log::tried("F26", 1, "nothing");
}

#[tokio::test]
async fn a_code_outlives_the_broker() {
    let (ns, idp, mut broker) = strict().await;
    ns.apply(by_code("billing")).await;
    let code = shown(&ns, "").await;
    polls_reach(&idp, 1).await;
    broker.kill();
    broker.again().await;
    polls_reach(&idp, 4).await;
    assert_eq!((shown(&ns, "").await, sign_in(&ns).await["interval"].clone()), (code.clone(), json!(1)));
    idp.approve(&code, "billing@example.org");
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    fault_log::tried("F26", 1, "nothing");
}

#[tokio::test]
async fn when_the_answer_to_a_sign_in_is_lost_another_code_is_shown() {
    let (ns, idp, broker) = strict().await;
    ns.apply(by_code("billing")).await;
    let first = shown(&ns, "").await;
    broker.signal("STOP");
    idp.approve(&first, "billing@example.org");
    idp.next(Fault::Lost);
    broker.signal("CONT");
    let second = shown(&ns, &first).await;
    idp.approve(&second, "billing@example.org");
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
}

#[tokio::test]
async fn nothing_is_published_for_another_account() {
    let Fixture { ns, idp, .. } = &scripted().await;
    ns.apply(by_code("billing").set("spec.mailbox.authenticateAs", "svc@example.org")).await;
    shown(ns, "").await;
    idp.next(signed_in("email", "other@example.org"));
    let named = |credential: &MailCredential| {
        find(credential, "Ready").is_some_and(|ready| ready.message.contains("other@example.org"))
    };
    let credential: MailCredential = ns.until("billing", "it says who came", named).await;
    let reported = find(&credential, "Ready").unwrap();
    assert!(
        reported.reason == "AuthorizationRequired" && reported.message.contains("svc@example.org"),
        "{}",
        reported.message
    );
    assert!(ns.api::<Secret>().get_opt("billing").await.unwrap().is_none());
    assert_eq!(ns.secret("billing-grant").await.into_keys().collect::<Vec<_>>(), [""; 0]);

    remedy::run(ns, &reported.message, &[]);
    shown(ns, "").await;
    idp.next(signed_in("email", "other\u{1b}[2J@example.org"));
    // A claim that is not an address does not name an account.
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
}

#[tokio::test]
async fn a_name_that_is_no_address_says_nothing_and_case_does_not_count() {
    let Fixture { ns, idp, broker } = &scripted().await;
    for (claim, account) in [("preferred_username", "Billing Clerk"), ("upn", "BILLING@example.org")] {
        ns.apply(by_code("billing")).await;
        shown(ns, "").await;
        idp.next(signed_in(claim, account));
        ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
        ns.delete::<MailCredential>("billing").await;
        broker.forgets("billing").await;
        for secret in ["billing", "billing-grant"] {
            ns.delete::<Secret>(secret).await;
        }
    }
}

#[tokio::test]
async fn a_plain_account_is_compared_with_the_reported_user_name() {
    let Fixture { ns, idp, .. } = &scripted().await;
    ns.apply(by_code("billing").set("spec.mailbox.authenticateAs", "svc")).await;
    shown(ns, "").await;
    idp.next(signed_in("preferred_username", "anna"));
    let named = |credential: &MailCredential| {
        find(credential, "Ready").is_some_and(|ready| ready.message.contains("anna signed in, and svc was expected"))
    };
    let credential: MailCredential = ns.until("billing", "it says who came", named).await;
    assert!(ns.api::<Secret>().get_opt("billing").await.unwrap().is_none());

    remedy::run(ns, &find(&credential, "Ready").unwrap().message, &[]);
    shown(ns, "").await;
    idp.next(signed_in("preferred_username", "Svc"));
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
}

#[tokio::test]
async fn without_a_refresh_token_the_token_is_published_with_a_warning() {
    let Fixture { ns, idp, .. } = &scripted().await;
    ns.apply(by_code("billing")).await;
    shown(ns, "").await;
    idp.next(Answer::token(3600));
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    let [(warning, note)] = &notes(ns, "TokenUnsuitable").await[..] else { panic!("one Event") };
    assert!(warning == "Warning" && note.contains("offline_access"), "{note}");
    assert!(!ns.secret("billing-grant").await.contains_key("refresh_token"));
}

#[tokio::test]
async fn a_refused_refresh_token_is_kept_during_the_sign_in_and_is_not_sent_again() {
    let Fixture { ns, idp, .. } = &scripted().await;
    ns.apply(by_code("billing")).await;
    shown(ns, "").await;
    idp.next(signed_in("email", "billing@example.org"));
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    let old = ns.secret("billing-grant").await["refresh_token"].clone();
    let token = ns.secret("billing").await["access_token"].clone();

    idp.next(Answer::error("invalid_grant"));
    // The provider cannot begin a sign-in for a while, and a proxy answers a poll.
    for _ in 0..2 {
        idp.next_at(DEVICE, Answer::status(503));
    }
    ns.annotate::<MailCredential>("billing", REISSUE, "1").await;
    shown(ns, "").await;
    let waiting: MailCredential = ns.get("billing").await;
    assert_eq!(reason(&waiting, "Ready"), "TokenValid", "the old token still serves");
    assert_eq!((reason(&waiting, "Stalled"), reason(&waiting, "Reconciling")), (String::new(), String::new()));
    let reported = find(&waiting, "Ready").unwrap().message;
    assert!(reported.contains("has to sign in"), "{reported}");
    let grant = ns.secret("billing-grant").await;
    assert!(grant["refresh_token"] == old && grant.contains_key("device_code"), "{:?}", grant.keys());
    let presented = idp.token_requests().iter().filter(|request| request.form().contains_key("refresh_token")).count();
    assert_eq!(presented, 1);

    idp.next(Answer::status(502));
    idp.next(signed_in("email", "billing@example.org"));
    ns.until::<Secret>("billing", "it has another token", |secret| text(secret, "access_token") != token).await;
    let grant = ns.secret("billing-grant").await;
    assert!(grant["refresh_token"] != old && grant["previous_refresh_token"] == old);
    let ready = ns
        .until::<MailCredential>("billing", "no request is sent", |credential| {
            reason(credential, "Renewed") == "RenewalSucceeded"
        })
        .await;
    assert_eq!(
        (reason(&ready, "Renewed"), field(&ready, "/status/failedAttempts")),
        ("RenewalSucceeded".into(), json!(0))
    );
}

#[tokio::test]
async fn a_provider_without_an_endpoint_for_it_is_an_invalid_spec() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    idp.answer_at(
        DISCOVERY,
        Answer::json(
            200,
            json!({
                "issuer": idp.issuer(), "token_endpoint": idp.token_url(), "authorization_endpoint": idp.url("/authorize"),
                "jwks_uri": idp.url("/jwks"), "response_types_supported": ["code"],
                "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["RS256"],
            }),
        ),
    );
    device_provider(&ns, &idp.issuer(), &idp.ca()).await;
    ns.apply(provider(&idp).set("metadata.name", "plain")).await;
    let _broker = Broker::start(&ns).await;
    ns.apply(by_code("billing")).await;
    ns.apply(by_code("plain").set("spec.providerRef.name", "plain")).await;
    for (name, mends) in [("billing", "mail-token-broker login"), ("plain", "spec.oauth2.deviceAuthorizationURL")] {
        let reported = ns.condition::<MailCredential>(name, "Stalled", "InvalidSpec").await.message;
        assert!(reported.contains(mends), "{reported}");
    }
    assert!(idp.token_requests().is_empty());
}

#[tokio::test]
async fn a_sign_in_that_cannot_begin_has_its_reason_and_is_not_requested_in_a_loop() {
    let fixture = scripted().await;
    let Fixture { ns, idp, .. } = &fixture;
    let began = |field: &str, value: &str| {
        let mut body = json!({
            "device_code": "d", "user_code": "WDJB-MJHT", "expires_in": 600, "verification_uri": "https://example.org/",
        });
        body[field] = value.into();
        Answer::json(200, body)
    };
    let table = [
        ("client", Answer::error("invalid_client"), "InvalidClient"),
        ("grant", Answer::error("invalid_grant"), "RequestRefused"),
        ("flow", Answer::error("unauthorized_client"), "InvalidClient"),
        ("down", Answer::status(500), "ProviderUnavailable"),
        ("busy", Answer::status(429).header("retry-after", "600"), "Throttled"),
        ("garbage", Answer::text(200, "<html>"), "MalformedResponse"),
        ("control", began("user_code", "AB\u{1b}[31m"), "MalformedResponse"),
        ("plain-http", began("verification_uri", "http://example.org/"), "MalformedResponse"),
    ];
    for (name, answer, expected) in table {
        idp.answer_at(DEVICE, answer);
        ns.apply(by_code(name)).await;
        let reported = ns.condition::<MailCredential>(name, "Renewed", expected).await;
        let credential: MailCredential = ns.get(name).await;
        assert!(!field(&credential, "/status/nextAttemptTime").is_null(), "{name}");
        assert_eq!(field(&credential, "/status/authorization"), Value::Null, "{name}");
        if name == "flow" {
            assert!(reported.message.contains("device authorization grant"), "{}", reported.message);
        }
        let asked = idp.requests_at(DEVICE).len();
        idp.next(Answer::token(3600));
        fixture.mark(&format!("after-{name}")).await;
        assert_eq!(idp.requests_at(DEVICE).len(), asked, "{name}");
        ns.delete::<MailCredential>(name).await;
        idp.forget();
    }
}

#[tokio::test]
async fn another_broker_continues_with_the_same_code() {
    let (ns, idp, mut first) = strict().await;
    ns.apply(by_code("billing")).await;
    let code = shown(&ns, "").await;
    let second = Broker::start(&ns).await;
    polls_reach(&idp, 2).await;
    first.terminate().await;
    let before = idp.token_requests().len();
    polls_reach(&idp, before + 3).await;
    assert_eq!(shown(&ns, "").await, code);
    assert_eq!(sign_in(&ns).await["interval"], 1, "both together have not polled too often");
    idp.approve(&code, "billing@example.org");
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    assert_eq!(second.metric("mailtoken_leader", "").await, Some(1.0));
    fault_log::tried("F26", 1, "nothing");
}

#[tokio::test]
async fn a_suspension_stops_the_polls_and_the_code_is_good_after_it() {
    let Fixture { ns, idp, broker } = scripted().await;
    let fixture = Fixture { ns, idp, broker };
    let Fixture { ns, idp, .. } = &fixture;
    ns.apply(by_code("billing")).await;
    shown(ns, "").await;
    ns.patch::<MailCredential>("billing", json!({"spec": {"suspend": true}})).await;
    let suspended = ns.condition::<MailCredential>("billing", "Ready", "Suspended").await;
    assert_eq!(suspended.observed_generation, Some(2));
    assert_eq!(field(&ns.get::<MailCredential>("billing").await, "/status/authorization"), Value::Null);
    let polls = |idp: &Idp| idp.token_requests().iter().filter(|poll| poll.form().contains_key("device_code")).count();
    let before = polls(idp);
    idp.next(Answer::token(3600));
    fixture.mark("mark").await;
    assert_eq!(polls(idp), before);

    ns.patch::<MailCredential>("billing", json!({"spec": {"suspend": false}})).await;
    shown(ns, "").await;
    assert_eq!(idp.requests_at(DEVICE).len(), 1, "it is the same code");

    // Another account signs in by another code.
    ns.patch::<MailCredential>("billing", json!({"spec": {"mailbox": {"authenticateAs": "svc@example.org"}}})).await;
    until("another code", async || match idp.requests_at(DEVICE).len() {
        2 => Ok(()),
        codes => Err(codes.to_string()),
    })
    .await;
    ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    idp.answer(signed_in("email", "svc@example.org"));
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
}

#[tokio::test]
async fn an_unverified_account_is_reported() {
    let Fixture { ns, idp, .. } = &scripted().await;
    idp.next_at(DEVICE, Answer::error("invalid_scope"));
    ns.apply(by_code("billing")).await;
    shown(ns, "").await;
    let scope = |request: &mailtoken_testkit::idp::Request| request.form().get("scope").cloned().unwrap_or_default();
    let asked: Vec<_> = idp.requests_at(DEVICE).iter().map(scope).collect();
    assert!(asked.len() == 2 && asked[0].ends_with("openid email"), "{asked:?}");
    assert!(!asked[1].contains("openid"), "a provider that does not know the scopes is asked without: {asked:?}");
    idp.next(Answer::token(3600).rotating());
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    let [(warning, note)] = &notes(ns, "AccountNotVerified").await[..] else { panic!("one Event") };
    assert!(warning == "Warning" && note.contains("billing@example.org"), "{note}");
}
