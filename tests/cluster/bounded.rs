//! Responses that should exhaust the broker: its memory and time stay bounded.

use std::{process::Command, time::Duration};

use mail_token_broker::{admission::TOTAL_LIMIT, api::MailCredential};
use mailtoken_testkit::{
    hostile::{Authority, Behaviour, HostileServer, Validity},
    *,
};
use serde_json::json;

/// Number of credentials of each server. With eleven servers, more send requests at the same time than the broker
/// admits.
const EACH: usize = 12;
/// Maximum memory for all responses at the same time. The servers offer gigabytes.
const MIB: u64 = 64;
/// Number of requests of each credential.
const ROUNDS: usize = 3;

/// Returns the broker's peak memory in MiB.
fn peak(broker: &Broker) -> u64 {
    broker.memory("VmHWM") >> 20
}

/// Returns the servers by name, with the reason that the broker must report.
fn behaviours() -> Vec<(&'static str, Behaviour, &'static str)> {
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{fields}\r\n").into_bytes();
    let chunked = || head("transfer-encoding: chunked\r\n");
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
    let headers: String = (0..100_000).map(|number| format!("x-{number}: {number}\r\n")).collect();
    let bomb = Command::new("sh").args(["-c", "head -c 10485760 /dev/zero | gzip -9"]).output().unwrap().stdout;
    assert!((1..100_000).contains(&bomb.len()));
    let slow = Duration::from_millis(20);
    vec![
        ("endless-body", Behaviour::Endless(chunked(), chunk), "MalformedResponse"),
        ("endless-plain", Behaviour::Endless(head(""), vec![b' '; 0x10000]), "MalformedResponse"),
        (
            "endless-header",
            Behaviour::Endless(b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'x'; 0x1000]),
            "ProviderUnavailable",
        ),
        ("many-headers", Behaviour::answer(200, &headers, b"{}"), "ProviderUnavailable"),
        ("ten-megabytes", Behaviour::answer(200, "", &vec![b' '; 10 << 20]), "MalformedResponse"),
        ("bomb", Behaviour::answer(200, "content-encoding: gzip\r\n", &bomb), "MalformedResponse"),
        (
            "slow-header",
            Behaviour::Drip(b"HTTP/1.1 200 OK\r\n".to_vec(), b"x: y\r\n".to_vec(), slow),
            "ProviderUnavailable",
        ),
        ("slow-body", Behaviour::Drip(head("content-length: 100000\r\n"), b" ".to_vec(), slow), "ProviderUnavailable"),
        (
            "slow-end",
            Behaviour::Drip([head("content-length: 262144\r\n"), vec![b' '; 262_000]].concat(), b" ".to_vec(), slow),
            "ProviderUnavailable",
        ),
        (
            "slow-large-header",
            Behaviour::Drip([b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'x'; 380_000]].concat(), b"x".to_vec(), slow),
            "ProviderUnavailable",
        ),
        ("slow-chunks", Behaviour::Drip(chunked(), b"1\r\n \r\n".to_vec(), slow), "ProviderUnavailable"),
    ]
}

#[tokio::test]
async fn hostile_answers_cost_no_memory() {
    let ns = Cluster::shared().namespace().await;
    let good = Idp::start();
    ns.provider(&good).await;
    let broker = Broker::settings(&ns).flag("--request-timeout=1s").start().await;
    ns.apply(credential("good")).await;
    ns.condition::<MailCredential>("good", "Ready", "TokenValid").await;
    let authority = Authority::new();
    let bundle = String::from_utf8(authority.bundle()).unwrap();
    ns.apply(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hostile"}, "data": {"ca.crt": bundle}}),
    )
    .await;
    let before = peak(&broker);

    let mut servers = vec![];
    for (name, behaviour, reason) in behaviours() {
        let server = HostileServer::start(authority.issue(&["localhost"], Validity::Present), behaviour).await;
        let provider = provider(&good).set("metadata.name", name).set("spec.oauth2.tokenURL", server.url("localhost"));
        ns.apply(provider.set("spec.caBundleRef.configMap.name", "hostile")).await;
        for number in 0..EACH {
            ns.apply(credential(&format!("{name}-{number}")).set("spec.providerRef.name", name)).await;
        }
        servers.push((name, server, reason));
    }
    for round in 1..=ROUNDS {
        for (name, server, reason) in &servers {
            server.requests_reach(round * EACH).await;
            for number in 0..EACH {
                let name = format!("{name}-{number}");
                ns.condition::<MailCredential>(&name, "Ready", reason).await;
                ns.annotate::<MailCredential>(&name, "mailtoken.dev/reissue", &round.to_string()).await;
            }
        }
        let round = round.to_string();
        ns.annotate::<MailCredential>("good", "mailtoken.dev/reissue", &round).await;
        let answered = |found: &MailCredential| field(found, "/status/lastHandledReissue") == round.as_str();
        ns.until::<MailCredential>("good", "it is served as before", answered).await;
    }
    assert!(servers.len() * EACH > TOTAL_LIMIT);
    let grown = peak(&broker) - before;
    assert!(grown <= MIB, "{grown} MiB more than the {before} MiB before");
    fault_log::tried("F14", servers.len() * EACH * ROUNDS, "nothing");
}

/// A Secret has at most 1 MiB, so the broker must not render a larger template.
#[tokio::test]
async fn a_template_that_multiplies_the_token_costs_no_memory_and_no_request() {
    let Fixture { ns, idp, broker } = Fixture::new().await;
    ns.apply(credential("good")).await;
    ns.condition::<MailCredential>("good", "Ready", "TokenValid").await;
    let (before, asked) = (peak(&broker), idp.token_requests().len());

    // The data has the maximum size that the schema accepts.
    let data: serde_json::Map<_, _> =
        (0..16).map(|number| (format!("k{number:02}"), "${xoauth2}".repeat(409).into())).collect();
    for number in 0..8 {
        ns.apply(credential(&format!("greedy-{number}")).set("spec.secret.data", data.clone())).await;
    }
    for number in 0..8 {
        let name = format!("greedy-{number}");
        let reported = ns.condition::<MailCredential>(&name, "Ready", "InvalidSpec").await.message;
        assert!(reported.contains("spec.secret.data[k") && reported.contains("1048576"), "{reported}");
    }
    assert_eq!(idp.token_requests().len(), asked, "nothing was asked for that could not be written");

    // This template fits with a token of the usual length, but not with the token of this response.
    let long = "x".repeat(30 * 1024);
    idp.answer(Answer::token(3600).field("access_token", long.as_str()));
    let template = "${access_token}".repeat(100);
    ns.apply(credential("surprised").entry("spec.secret.data", "all", template)).await;
    let reported = ns.condition::<MailCredential>("surprised", "Ready", "InvalidSpec").await.message;
    assert!(reported.contains("spec.secret.data[all]") && reported.contains("30720"), "{reported}");
    assert_eq!(idp.token_requests().len(), asked + 1);
    let grown = peak(&broker) - before;
    assert!(grown <= 16, "{grown} MiB more than the {before} MiB before");

    // The broker keeps the token in memory, and writes it when the template fits.
    ns.patch::<MailCredential>("surprised", json!({"spec": {"secret": {"data": {"all": "T=${access_token}"}}}})).await;
    ns.condition::<MailCredential>("surprised", "Ready", "TokenValid").await;
    assert_eq!(ns.secret("surprised").await["all"], format!("T={long}"));
    assert_eq!(idp.token_requests().len(), asked + 1, "no other token was asked for");
    idp.answer(Answer::token(3600));
    ns.annotate::<MailCredential>("good", "mailtoken.dev/reissue", "1").await;
    let answered = |found: &MailCredential| field(found, "/status/lastHandledReissue") == "1";
    ns.until::<MailCredential>("good", "it is served as before", answered).await;
    fault_log::tried("F14", 9, "nothing");
}

/// The scopes have a quarter of a megabyte, which the status must not contain.
#[tokio::test]
async fn granted_scopes_are_bounded_in_the_status() {
    let Fixture { ns, idp, broker } = Fixture::new().await;
    ns.apply(credential("good")).await;
    ns.condition::<MailCredential>("good", "Ready", "TokenValid").await;
    let before = peak(&broker);
    idp.answer(Answer::token(3600).field("scope", "a ".repeat(120_000)));
    for number in 0..8 {
        ns.apply(credential(&format!("wide-{number}")).set("spec.scopes", json!(["mail.send"]))).await;
    }
    for number in 0..8 {
        let name = format!("wide-{number}");
        let reported = ns.condition::<MailCredential>(&name, "Ready", "TokenValid").await.message;
        assert!(reported.contains("granted 64 unrequested scopes"), "{reported}");
        let found: MailCredential = ns.get(&name).await;
        assert_eq!(found.status.unwrap().token.unwrap().scopes.len(), 64);
    }
    let grown = peak(&broker) - before;
    assert!(grown <= 16, "{grown} MiB more than the {before} MiB before");
    fault_log::tried("F14", 8, "nothing");
}
