//! Providers with failed connections, unknown authorities or unknown names: conditions report them, they delay no other
//! provider, and they recover automatically.

use std::time::Duration;

use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_testkit::{
    hostile::{Authority, Behaviour, HostileServer, Validity},
    idp::{DEVICE, DISCOVERY, REVOKE, TOKEN},
    *,
};
use serde_json::json;

/// Applies a MailProvider, its CA bundle, and a MailCredential, all with this name.
async fn apply(ns: &Namespace, name: &str, provider: Manifest, idp: &Idp) {
    ns.apply(source("idp-client", "client-secret", "a client secret")).await;
    let bundle = format!("{name}-ca");
    ns.apply(ca_bundle(&bundle, idp)).await;
    ns.apply(provider.set("metadata.name", name).set("spec.caBundleRef.configMap.name", bundle)).await;
    ns.apply(credential(name).set("spec.providerRef.name", name)).await;
}

fn oidc(idp: &Idp) -> Manifest {
    provider(idp).without("spec.oauth2").set("spec.oidc", json!({"issuerURL": idp.issuer()}))
}

async fn ready_message(ns: &Namespace, name: &str, reason: &str) -> String {
    ns.condition::<MailCredential>(name, "Ready", reason).await.message
}

#[tokio::test]
async fn expired_certificates_and_those_for_other_names_are_refused_until_they_are_fixed() {
    let ns = Cluster::shared().namespace().await;
    let _broker = Broker::start(&ns).await;
    let (past, future, other) = (Idp::start(), Idp::start(), Idp::start());
    past.present(&["localhost"], Validity::Past);
    future.present(&["localhost"], Validity::Future);
    other.present(&["id.example.org"], Validity::Present);
    let cases = [("past", &past, "expired"), ("future", &future, "only from"), ("other", &other, "id.example.org")];
    for (name, idp, _) in cases {
        apply(&ns, name, provider(idp), idp).await;
    }
    for (name, idp, said) in cases {
        let reported = ready_message(&ns, name, "TLSFailed").await;
        assert!(reported.contains(said), "{reported}");
        assert_eq!(idp.requests().len(), 0, "nothing was sent");
        idp.present(&["localhost"], Validity::Present);
    }
    for (name, ..) in cases {
        ready_message(&ns, name, "TokenValid").await;
    }
    fault_log::tried("F13", cases.len(), "nothing");
}

#[tokio::test]
async fn addresses_that_are_denied_are_never_connected_to() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    let settings = Broker::settings(&ns).without("--allow-private-cidr").host("internal.example.org");
    let _broker = settings.start().await;
    let port = idp.port();
    let hosts = [
        ("name", format!("internal.example.org:{port}")),
        ("literal", format!("127.0.0.1:{port}")),
        ("decimal", format!("2130706433:{port}")),
        ("octal", format!("0177.0.0.1:{port}")),
        ("bracketed", format!("[::1]:{port}")),
        ("mapped", format!("[::ffff:127.0.0.1]:{port}")),
        ("metadata", "169.254.169.254".to_owned()),
        ("private", "10.255.255.1".to_owned()),
    ];
    for (name, host) in &hosts {
        let provider = provider(&idp).set("spec.oauth2.tokenURL", format!("https://{host}/token"));
        apply(&ns, name, provider, &idp).await;
    }
    let discovery = format!("https://internal.example.org:{port}");
    apply(&ns, "discovery", oidc(&idp).set("spec.oidc.issuerURL", discovery), &idp).await;

    for (name, _) in &hosts {
        let reported = ready_message(&ns, name, "EgressDenied").await;
        // No message proposes to allow loopback or metadata addresses, or shows the address of a name.
        let proposed = reported.contains("`--allow-private-cidr=10.255.255.1/32`");
        assert_eq!(
            (proposed, reported.contains("--allow-private-cidr")),
            (*name == "private", *name == "private"),
            "{reported}"
        );
        assert!(*name != "name" || (reported.contains("(loopback)") && !reported.contains("127.")), "{reported}");
        ns.condition::<MailCredential>(name, "Stalled", "EgressDenied").await;
        ns.condition::<MailProvider>(name, "Ready", "ProviderReady").await;
    }
    ns.condition::<MailProvider>("discovery", "Ready", "EgressDenied").await;
    ns.condition::<MailCredential>("discovery", "Ready", "ProviderNotReady").await;
    assert_eq!(idp.connections(), 0);
}

#[tokio::test]
async fn an_address_that_is_allowed_for_the_cluster_alone_serves_no_other_provider() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    let settings = Broker::settings(&ns).without("--allow-private-cidr");
    let _broker = settings.flag("--allow-private-cidr-cluster=127.0.0.0/8").start().await;
    ns.provider(&idp).await;
    let cluster = format!("p-{}", ns.name);
    let everybody = json!([{"namespaceSelector": {}, "mailboxes": ["*@example.org"]}]);
    let shared = provider(&idp).set("kind", "ClusterMailProvider").set("metadata.name", cluster.as_str());
    ns.apply(shared.set("spec.allowed", everybody)).await;
    let reference = json!({"kind": "ClusterMailProvider", "name": cluster});
    ns.apply(credential("shared").set("spec.providerRef", reference)).await;
    ns.apply(credential("own")).await;

    ready_message(&ns, "shared", "TokenValid").await;
    ns.condition::<MailCredential>("own", "Stalled", "EgressDenied").await;
    assert_eq!(idp.token_requests().len(), 1);
}

#[tokio::test]
async fn a_denied_range_is_never_connected_to_even_if_it_is_also_allowed() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    let _broker = Broker::settings(&ns).flag("--deny-cidr=127.0.0.0/8,::1/128").start().await;
    ns.provider(&idp).await;
    ns.apply(credential("billing")).await;
    let reported = ns.condition::<MailCredential>("billing", "Stalled", "EgressDenied").await.message;
    assert!(reported.contains("--deny-cidr") && !reported.contains("--allow-private-cidr"), "{reported}");
    assert_eq!(idp.connections(), 0);
}

#[tokio::test]
async fn no_endpoint_of_a_permitted_provider_leads_to_an_address_that_is_denied() {
    let ns = Cluster::shared().namespace().await;
    let settings = Broker::settings(&ns).without("--allow-private-cidr").flag("--allow-private-cidr=127.0.0.1/32");
    let _broker = settings.start().await;
    let (known, discovered) = (Idp::start(), Idp::start());
    let inside = |path: &str| format!("https://127.0.0.2:{}{path}", known.port());
    let document = json!({
        "issuer": discovered.issuer(), "token_endpoint": inside(TOKEN), "device_authorization_endpoint": inside(DEVICE),
    });
    discovered.answer_at(DISCOVERY, Answer::json(200, document));
    let named = provider(&known)
        .set("spec.oauth2.deviceAuthorizationURL", inside(DEVICE))
        .set("spec.oauth2.revocationURL", inside(REVOKE));
    let by_code = |name: &str, provider: &str| {
        credential(name).set("spec.providerRef.name", provider).set("spec.grant", json!({"deviceCode": {}}))
    };
    apply(&ns, "discovered", oidc(&discovered), &discovered).await;
    ns.apply(by_code("discovered-code", "discovered")).await;
    apply(&ns, "named", named, &known).await;
    ns.apply(by_code("named-code", "named")).await;
    ns.apply(credential("named").set("spec.providerRef.name", "named").set("spec.revocationPolicy", "OnDelete")).await;

    for name in ["discovered", "discovered-code", "named-code"] {
        let discovered = ns.condition::<MailCredential>(name, "Stalled", "EgressDenied").await.message;
        assert!(discovered.contains("127.0.0.2 leads to an address that is denied (loopback)"), "{discovered}");
    }
    ready_message(&ns, "named", "TokenValid").await;
    ns.delete::<MailCredential>("named").await;
    ns.gone::<MailCredential>("named").await;
    ns.event_reasons_include("named", &["Warning RevocationFailed"]).await;
    let sent: Vec<_> =
        [&known, &discovered].map(|idp| idp.requests()).concat().into_iter().map(|sent| sent.path).collect();
    assert_eq!(sent.iter().filter(|path| *path != TOKEN && *path != DISCOVERY).count(), 0, "{sent:?}");
}

#[tokio::test]
async fn servers_that_refuse_reset_drip_or_flood_are_unavailable_or_malformed() {
    let ns = Cluster::shared().namespace().await;
    let _broker = Broker::settings(&ns).flag("--request-timeout=1s").start().await;
    let mut refusing = Idp::start();
    let authority = Authority::new();
    let tls = || authority.issue(&["localhost"], Validity::Present);
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    let drip = Behaviour::Drip(head.clone(), b"1\r\n \r\n".to_vec(), Duration::from_millis(50));
    let flood = Behaviour::Endless(head, [b"1000\r\n".to_vec(), vec![b' '; 0x1000], b"\r\n".to_vec()].concat());
    let servers = [
        ("reset", HostileServer::start(tls(), Behaviour::Reset).await, "ProviderUnavailable"),
        ("drip", HostileServer::start(tls(), drip).await, "ProviderUnavailable"),
        ("flood", HostileServer::start(tls(), flood).await, "MalformedResponse"),
        (
            "nonsense",
            HostileServer::start(tls(), Behaviour::Close(b"nonsense\r\n\r\n".to_vec())).await,
            "ProviderUnavailable",
        ),
    ];
    for (name, server, _) in &servers {
        apply(&ns, name, provider(&refusing).set("spec.oauth2.tokenURL", server.url("localhost")), &refusing).await;
        let bundle = json!({"data": {"ca.crt": String::from_utf8(authority.bundle()).unwrap()}});
        ns.patch::<k8s_openapi::api::core::v1::ConfigMap>(&format!("{name}-ca"), bundle).await;
    }
    refusing.stop();
    apply(&ns, "refused", provider(&refusing), &refusing).await;
    let absent = provider(&refusing).set("spec.oauth2.tokenURL", "https://no-such-host.invalid/token");
    apply(&ns, "absent", absent, &refusing).await;

    for (name, _, reason) in &servers {
        ready_message(&ns, name, reason).await;
    }
    ready_message(&ns, "refused", "ProviderUnavailable").await;
    assert!(ready_message(&ns, "absent", "ProviderUnavailable").await.contains("no-such-host.invalid"));
    refusing.resume();
    ready_message(&ns, "refused", "TokenValid").await;
    fault_log::tried("F13", servers.len() + 2, "nothing");
}

#[tokio::test]
async fn a_provider_that_hangs_delays_no_other_even_with_one_reconcile_at_a_time() {
    let ns = Cluster::shared().namespace().await;
    let _broker = Broker::settings(&ns).flag("--concurrency=1").flag("--request-timeout=60s").start().await;
    let (hanging, mute, good) = (Idp::start(), Idp::start(), Idp::start());
    hanging.answer(Answer::hang());
    mute.answer_at(DISCOVERY, Answer::hang());
    apply(&ns, "hanging", provider(&hanging), &hanging).await;
    apply(&ns, "mute", oidc(&mute), &mute).await;
    hanging.token_requests_reach(1).await;
    until("the discovery hangs", async || (!mute.requests().is_empty()).then_some(()).ok_or_else(String::new)).await;
    for number in 0..50 {
        let name = format!("waiting-{number}");
        ns.apply(credential(&name).set("spec.providerRef.name", "hanging")).await;
    }

    apply(&ns, "good", oidc(&good), &good).await;

    ready_message(&ns, "good", "TokenValid").await;
    ns.condition::<MailProvider>("good", "Ready", "ProviderReady").await;
    // The hanging requests are still in flight, at most 32 to one host.
    assert!(hanging.token_requests().len() <= 32, "{}", hanging.token_requests().len());
    let waiting: MailCredential = ns.get("hanging").await;
    assert!(namespace::find(&waiting, "Ready").is_none(), "{}", namespace::show(&waiting));
    fault_log::tried("F13", 2, "nothing");
}

#[tokio::test]
async fn a_discovery_that_recovers_wakes_the_credentials() {
    let ns = Cluster::shared().namespace().await;
    let _broker = Broker::start(&ns).await;
    let idp = Idp::start();
    idp.answer_at(DISCOVERY, Answer::status(503));
    apply(&ns, "down", oidc(&idp), &idp).await;

    let reported = ns.condition::<MailProvider>("down", "Ready", "DiscoveryFailed").await.message;
    assert!(reported.contains("HTTP 503") && reported.contains("The broker tries again"), "{reported}");
    assert!(ready_message(&ns, "down", "ProviderNotReady").await.contains(&reported));
    let document = json!({"issuer": idp.issuer(), "token_endpoint": idp.token_url()});
    idp.answer_at(DISCOVERY, Answer::json(200, document));

    ready_message(&ns, "down", "TokenValid").await;
    assert_eq!(idp.token_requests().len(), 1);
    ns.condition::<MailProvider>("down", "Ready", "ProviderReady").await;
    let provider: MailProvider = ns.get("down").await;
    assert_eq!(provider.status.unwrap().token_url, Some(idp.token_url()));
}

#[tokio::test]
async fn a_discovery_waits_as_long_as_the_provider_asks() {
    let ns = Cluster::shared().namespace().await;
    let _broker = Broker::start(&ns).await;
    let (asks, other) = (Idp::start(), Idp::start());
    asks.answer_at(DISCOVERY, Answer::status(429).header("retry-after", "300"));
    other.answer_at(DISCOVERY, Answer::status(429));
    apply(&ns, "asks", oidc(&asks), &asks).await;
    ns.condition::<MailProvider>("asks", "Ready", "DiscoveryFailed").await;
    apply(&ns, "other", oidc(&other), &other).await;

    let discoveries = |idp: &Idp| idp.requests_at(DISCOVERY).len();
    until("two retries", async || (discoveries(&other) >= 3).then_some(()).ok_or_else(String::new)).await;

    assert_eq!(discoveries(&asks), 1);
    fault_log::tried("F12", 1, "nothing");
}

#[tokio::test]
async fn a_discovery_document_that_leads_elsewhere_or_nowhere_is_refused() {
    let ns = Cluster::shared().namespace().await;
    let _broker = Broker::start(&ns).await;
    let idps: Vec<_> = (0..4).map(|_| Idp::start()).collect();
    let document = |idp: &Idp, token: &str| json!({"issuer": idp.issuer(), "token_endpoint": token});
    let answers = [
        ("plain", Answer::json(200, document(&idps[0], "http://localhost/token")), "not an https URL"),
        ("missing", Answer::status(404), "HTTP 404"),
        ("page", Answer::status(200), "not a discovery document"),
        ("moved", Answer::status(302).header("location", "/elsewhere"), "HTTP 302"),
    ];
    for ((name, answer, _), idp) in answers.iter().zip(&idps) {
        idp.answer_at(DISCOVERY, answer.clone());
        apply(&ns, name, oidc(idp), idp).await;
    }
    for ((name, _, said), idp) in answers.iter().zip(&idps) {
        let reported = ns.condition::<MailProvider>(name, "Ready", "DiscoveryFailed").await.message;
        assert!(reported.contains(said), "{reported}");
        ready_message(&ns, name, "ProviderNotReady").await;
        assert_eq!((idp.token_requests().len(), idp.requests_at("/elsewhere").len()), (0, 0));
    }
}
