//! Answers that no provider should give: told in conditions, with the old token in place, and asked for again in good time.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use mail_token_broker::api::MailCredential;
use serde_json::json;
use support::{idp::TOKEN, *};

/// The server, the MailProvider and the MailCredential of one case, all of this name.
struct Case {
    name: &'static str,
    idp: Idp,
    reason: &'static str,
    said: &'static str,
}

impl Case {
    async fn begin(ns: &Namespace, name: &'static str, reason: &'static str, said: &'static str) -> Self {
        let idp = Idp::start();
        let bundle = format!("{name}-ca");
        ns.apply(ca_bundle(&bundle, &idp)).await;
        let provider = provider(&idp).set("metadata.name", name).set("spec.caBundleRef.configMap.name", bundle);
        ns.apply(provider).await;
        ns.apply(credential(name).set("spec.providerRef.name", name)).await;
        Self { name, idp, reason, said }
    }

    async fn get(&self, ns: &Namespace) -> MailCredential {
        ns.get(self.name).await
    }
}

/// What a provider may answer, what that is called, and a part of what is said about it.
fn answers() -> Vec<(&'static str, Answer, &'static str, &'static str)> {
    let token = || Answer::token(3600);
    let redirect = |status: u16, to: &str| Answer::status(status).header("location", to);
    vec![
        ("invalid-request", Answer::error("invalid_request"), "RequestRefused", "invalid_request"),
        ("invalid-client", Answer::error("invalid_client"), "InvalidClient", "invalid_client"),
        ("unauthorized-client", Answer::error("unauthorized_client"), "InvalidClient", "unauthorized_client"),
        ("invalid-grant", Answer::error("invalid_grant"), "InvalidGrant", "invalid_grant"),
        ("invalid-scope", Answer::error("invalid_scope"), "InvalidScope", "invalid_scope"),
        ("interaction", Answer::error("interaction_required"), "AuthorizationRequired", "interaction_required"),
        ("consent", Answer::error("consent_required"), "ConsentRequired", "consent_required"),
        ("unknown-error", Answer::error("never_heard_of"), "RequestRefused", "never_heard_of"),
        ("limit-400", Answer::error("rate_limit_exceeded"), "RequestRefused", "rate_limit_exceeded"),
        ("unavailable", Answer::error("temporarily_unavailable"), "ProviderUnavailable", "temporarily_unavailable"),
        ("error-in-500", Answer::json(500, json!({"error": "invalid_grant"})), "InvalidGrant", "invalid_grant"),
        ("error-in-200", Answer::json(200, json!({"error": "invalid_grant"})), "InvalidGrant", "invalid_grant"),
        ("page-500", Answer::status(500), "ProviderUnavailable", "HTTP 500"),
        ("page-503", Answer::status(503), "ProviderUnavailable", "HTTP 503"),
        ("page-429", Answer::status(429), "Throttled", "HTTP 429"),
        ("grant-429", Answer::json(429, json!({"error": "invalid_grant"})), "Throttled", "status.nextAttemptTime"),
        ("page-200", Answer::status(200), "MalformedResponse", "no token response"),
        ("page-404", Answer::status(404), "MalformedResponse", "HTTP 404"),
        ("empty", Answer::text(200, ""), "MalformedResponse", "empty"),
        (
            "truncated",
            Answer::text(200, r#"{"access_token":"canary-trunc","#),
            "MalformedResponse",
            "no token response",
        ),
        (
            "twice",
            Answer::text(200, r#"{"access_token":"canary-a","access_token":"canary-b","token_type":"Bearer"}"#),
            "MalformedResponse",
            "no token response",
        ),
        ("huge", Answer::text(200, &" ".repeat(300 * 1024)), "MalformedResponse", "262144"),
        ("redirect", redirect(302, "/elsewhere"), "MalformedResponse", "redirect"),
        ("redirect-301", redirect(301, "/elsewhere"), "MalformedResponse", "redirect"),
        ("redirect-307", redirect(307, "/elsewhere"), "MalformedResponse", "redirect"),
        ("redirect-host", redirect(308, "https://id.example.org/elsewhere"), "MalformedResponse", "redirect"),
        ("redirect-http", redirect(302, "http://169.254.169.254/"), "MalformedResponse", "never followed"),
        ("expires-0", token().field("expires_in", 0), "MalformedResponse", "expires_in"),
        ("expires-minus", token().field("expires_in", -5), "MalformedResponse", "expires_in"),
        ("expires-float", token().field("expires_in", 0.5), "MalformedResponse", "expires_in"),
        ("expires-word", token().field("expires_in", "soon"), "MalformedResponse", "expires_in"),
        ("expires-never", token().field("expires_in", 1_000_000_000_000_u64), "MalformedResponse", "expires_in"),
        ("mac", token().field("token_type", "mac"), "MalformedResponse", "Bearer"),
        ("no-type", token().without("token_type"), "MalformedResponse", "Bearer"),
        ("no-token", Answer::json(200, json!({"token_type": "Bearer"})), "MalformedResponse", "access_token"),
        ("line-break", token().field("access_token", "a\r\nb"), "MalformedResponse", "characters"),
        ("nul", token().field("access_token", "a\0b"), "MalformedResponse", "characters"),
        ("close", Answer::close(), "ProviderUnavailable", "connection"),
        ("hang", Answer::hang(), "ProviderUnavailable", "did not answer within 1s"),
        ("late", token().after(Duration::from_secs(3)), "ProviderUnavailable", "did not answer within 1s"),
    ]
}

#[tokio::test]
async fn every_bad_answer_is_told_and_the_old_token_stays() {
    let ns = Cluster::shared().namespace().await;
    let broker = Broker::settings(&ns).flag("--request-timeout=1s").start().await;
    ns.apply(source("idp-client", "client-secret", "a client secret")).await;
    let mut cases = vec![];
    for (name, _, reason, said) in answers() {
        cases.push(Case::begin(&ns, name, reason, said).await);
    }
    let mut before = vec![];
    for case in &cases {
        ns.condition::<MailCredential>(case.name, "Ready", "TokenValid").await;
        let secret: Secret = ns.get(case.name).await;
        before.push(secret.metadata.resource_version);
    }

    for (case, (_, answer, ..)) in cases.iter().zip(answers()) {
        case.idp.forget();
        case.idp.answer(answer);
        ns.annotate::<MailCredential>(case.name, "mailtoken.dev/reissue", "1").await;
    }

    for (case, version) in cases.iter().zip(before) {
        let renewed = ns.condition::<MailCredential>(case.name, "Renewed", case.reason).await;
        assert!(renewed.message.contains(case.said), "{}: {}", case.name, renewed.message);
        let found = case.get(&ns).await;
        let shown = namespace::show(&found);
        let ready = namespace::find(&found, "Ready").unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("True", "TokenValid"), "{shown}");
        let transient = ["ProviderUnavailable", "Throttled", "MalformedResponse"].contains(&case.reason);
        assert_eq!(namespace::find(&found, "Stalled").is_none(), transient, "{shown}");
        let status = found.status.unwrap();
        // On a slow machine the second attempt may have been made already.
        let attempts = status.failed_attempts.unwrap();
        let wait = status.next_attempt_time.unwrap().0.duration_since(status.last_failure_time.unwrap().0);
        assert_eq!(wait.as_secs(), if transient { 5 } else { 15 * 60 } << (attempts - 1), "{shown}");
        let secret: Secret = ns.get(case.name).await;
        assert_eq!(secret.metadata.resource_version, version, "{}: the Secret was written", case.name);
        // The Event follows the status.
        until(&format!("{} is told by an Event", case.name), async || {
            let events = ns.events(case.name).await;
            let told = events.iter().any(|event| event.reason.as_deref() == Some(case.reason));
            told.then_some(()).ok_or(format!("{events:#?}"))
        })
        .await;
        assert_eq!(case.idp.requests_at("/elsewhere").len(), 0);
    }
    // All have failed by now; those that are retried after 5 s may have been once.
    holds(Duration::from_secs(2), "nobody is asked again and again", async || {
        let hot = cases.iter().find(|case| case.idp.requests_at(TOKEN).len() > 3);
        hot.map_or(Ok(()), |case| Err(format!("{}: {}", case.name, case.idp.requests_at(TOKEN).len())))
    })
    .await;

    for case in &cases {
        case.idp.answer(Answer::token(3600));
        ns.annotate::<MailCredential>(case.name, "mailtoken.dev/reissue", "2").await;
    }
    for case in &cases {
        let found = ns
            .until::<MailCredential>(case.name, "it has recovered", |found| {
                found.status.as_ref().and_then(|status| status.last_handled_reissue.as_deref()) == Some("2")
            })
            .await;
        assert_eq!(namespace::find(&found, "Renewed").unwrap().reason, "RenewalSucceeded");
        assert_eq!(found.status.unwrap().failed_attempts, Some(0));
    }
    for canary in ["canary-trunc", "canary-a", "canary-b"] {
        assert!(!broker.log().contains(canary));
    }
    let fault = |case: &Case| match case.reason {
        "Throttled" => "F12",
        "ProviderUnavailable" => "F13",
        "MalformedResponse" if case.name.starts_with("redirect") => "F16",
        "MalformedResponse" => "F15",
        _ => "F17",
    };
    for number in ["F12", "F13", "F15", "F16", "F17"] {
        ledger::tried(number, cases.iter().filter(|case| fault(case) == number).count(), "nothing");
    }
}

#[tokio::test]
async fn a_lifetime_in_a_string_is_a_lifetime_and_none_is_an_hour_with_a_warning() {
    let ns = Cluster::shared().namespace().await;
    let _broker = Broker::start(&ns).await;
    let (text, none) = (Idp::start(), Idp::start());
    text.answer(Answer::token(0).field("expires_in", "7200"));
    none.answer(Answer::token(0).without("expires_in"));
    for (name, idp) in [("text", &text), ("none", &none)] {
        ns.provider(idp).await;
        ns.apply(ca_bundle(&format!("{name}-ca"), idp)).await;
        let provider = provider(idp).set("metadata.name", name);
        ns.apply(provider.set("spec.caBundleRef.configMap.name", format!("{name}-ca"))).await;
        ns.apply(credential(name).set("spec.providerRef.name", name)).await;
    }

    for (name, lifetime, warnings) in [("text", 7200, 0), ("none", 3600, 1)] {
        ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
        let found: MailCredential = ns.get(name).await;
        let token = found.status.unwrap().token.unwrap();
        assert_eq!(token.expires_at.0.duration_since(token.issued_at.0).as_secs(), lifetime);
        let unix: i64 = ns.secret(name).await["expires_at_unix"].parse().unwrap();
        assert_eq!(unix, token.expires_at.0.as_second());
        until("the Events are those", async || {
            let events = ns.events(name).await;
            let told = events.iter().filter(|event| event.type_.as_deref() == Some("Warning")).count();
            (told == warnings).then_some(()).ok_or(format!("{events:#?}"))
        })
        .await;
    }
    ledger::tried("F15", 2, "nothing");
}
