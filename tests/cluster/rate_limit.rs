//! Requests that wait for a permit, because of a provider's `rateLimit` or because a provider hangs. They delay no
//! other work, and changes of their credentials take effect during the wait.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use kube::{Api, ResourceExt as _, api::ListParams};
use mail_token_broker::{
    admission::PER_HOST_LIMIT,
    api::{MailCredential, MailProvider},
};
use mailtoken_testkit::{
    idp::{DISCOVERY, REVOKE},
    wait::{self, holds, until_in},
    *,
};
use serde_json::json;

/// Number of credentials: far more than the requests that may be in flight to one host.
const MANY: usize = 200;
/// Number of concurrent creates.
const CONCURRENCY: usize = 16;
/// The time limit for changes that must take effect within seconds, on a machine that also runs a build.
const SECONDS: Duration = Duration::from_secs(25);

/// Applies the manifest of each of [`MANY`] credentials.
async fn each(ns: &Namespace, manifest: impl Fn(&str) -> Manifest) {
    let manifests = (0..MANY).map(|number| manifest(&format!("mailbox-{number}")));
    stream::iter(manifests)
        .map(|manifest| ns.apply(manifest))
        .buffer_unordered(CONCURRENCY)
        .for_each(async |_| ())
        .await;
}

/// Waits until `good` accepts the list of all credentials.
async fn all(ns: &Namespace, deadline: Duration, what: &str, good: impl Fn(&[MailCredential]) -> Result<(), String>) {
    let api: Api<MailCredential> = ns.api();
    until_in(deadline, what, async || good(&api.list(&ListParams::default()).await.unwrap().items)).await;
}

fn count(of: &[MailCredential], good: impl Fn(&MailCredential) -> bool) -> usize {
    of.iter().filter(|credential| good(credential)).count()
}

#[tokio::test]
async fn requests_over_the_limit_wait_and_delay_no_other_provider() {
    let Fixture { ns, idp, mut broker } = Fixture::new().await;
    let slow = Idp::start();
    ns.apply(ca_bundle("slow-ca", &slow)).await;
    let limited = provider(&slow)
        .set("metadata.name", "slow")
        .set("spec.caBundleRef.configMap.name", "slow-ca")
        .set("spec.rateLimit", json!({"requestsPerMinute": 1, "burst": 1}));
    ns.apply(limited.clone()).await;
    let of_slow = |name: &str| credential(name).set("spec.providerRef.name", "slow");
    let names = ["slow-1", "slow-2", "slow-3"];
    for name in names {
        ns.apply(of_slow(name)).await;
    }
    slow.token_requests_reach(1).await;

    // Far more credentials than concurrent reconciles: waiting must not occupy a reconcile.
    for number in 0..100 {
        ns.apply(credential(&format!("quick-{number}"))).await;
    }
    idp.token_requests_reach(100).await;
    assert_eq!(slow.token_requests().len(), 1);

    // The user changes another field. The limit stays, and the waiting requests use the new spec.
    ns.apply(limited.clone().set("spec.client.id", "another")).await;
    ns.condition::<MailProvider>("slow", "Ready", "ProviderReady").await;
    ns.apply(credential("quick-last")).await;
    idp.token_requests_reach(101).await;
    assert_eq!(slow.token_requests().len(), 1);

    // Without a limit no request waits, not even a request that already waited.
    ns.apply(limited.without("spec.rateLimit").set("spec.client.id", "another")).await;
    for name in names {
        ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
    }
    let sent: Vec<_> = slow.token_requests().iter().map(|request| request.form()["client_id"].clone()).collect();
    assert_eq!(sent.iter().filter(|id| *id == "mailer").count(), 1, "{sent:?}");
    assert!(broker.terminate().await.success());
}

#[tokio::test]
async fn a_request_that_waits_for_a_permit_does_not_delay_the_shutdown() {
    let Fixture { ns, idp, mut broker } = Fixture::new().await;
    ns.apply(provider(&idp).set("spec.rateLimit", json!({"requestsPerMinute": 1}))).await;
    ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    for name in ["first", "second"] {
        ns.apply(credential(name)).await;
    }
    idp.token_requests_reach(1).await;
    assert!(broker.terminate().await.success());
    assert_eq!(idp.token_requests().len(), 1);
    assert!(!broker.log().contains("not stored in time"), "the end waited for the turn");
}

#[tokio::test]
async fn a_credential_that_waits_for_a_hanging_provider_is_suspended_immediately_and_sends_nothing() {
    let Fixture { ns, idp, broker } = Fixture::new().await;
    ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    idp.answer(Answer::hang());
    each(&ns, credential).await;
    idp.token_requests_reach(PER_HOST_LIMIT).await;
    // The status reports a changed spec, although most requests have not been sent.
    each(&ns, |name| credential(name).set("spec.renewal.minValidity", "5m")).await;
    all(&ns, SECONDS, "the changed spec is reported", |all| {
        let reported = count(all, |it| field(it, "/status/observedGeneration") == 2);
        if reported >= MANY - 2 * PER_HOST_LIMIT { Ok(()) } else { Err(format!("{reported} of {MANY}")) }
    })
    .await;

    each(&ns, |name| credential(name).set("spec.suspend", true)).await;
    all(&ns, SECONDS, "the suspension is reported", |all| {
        let reported = count(all, |it| reason(it, "Renewed") == "Suspended");
        if reported == MANY { Ok(()) } else { Err(format!("{reported} of {MANY}")) }
    })
    .await;
    let sent = idp.token_requests().len();
    holds(Duration::from_secs(12), "no request is sent for what is suspended", async || {
        let now = idp.token_requests().len();
        if now == sent { Ok(()) } else { Err(format!("{now} instead of {sent}")) }
    })
    .await;

    // The broker serves a resumed credential.
    idp.answer(Answer::token(3600));
    each(&ns, |name| credential(name).set("spec.suspend", false)).await;
    all(&ns, Duration::from_secs(60), "all are served", |all| {
        let ready = count(all, |it| reason(it, "Ready") == "TokenValid");
        if ready == MANY { Ok(()) } else { Err(format!("{ready} of {MANY}")) }
    })
    .await;
    drop(broker);
}

#[tokio::test]
async fn credentials_that_are_deleted_beside_a_provider_that_hangs_are_gone_within_a_minute() {
    let Fixture { ns, idp, mut broker } = Fixture::new().await;
    ns.apply(provider(&idp).set("spec.oauth2.revocationURL", idp.url(REVOKE))).await;
    idp.answer_at(REVOKE, Answer::hang());
    each(&ns, |name| credential(name).set("spec.revocationPolicy", "OnDelete")).await;
    all(&ns, Duration::from_secs(60), "all are served", |all| {
        let ready = count(all, |it| reason(it, "Ready") == "TokenValid");
        if ready == MANY { Ok(()) } else { Err(format!("{ready} of {MANY}")) }
    })
    .await;
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", broker.id())).unwrap().count();
    let before = descriptors();

    let api: Api<MailCredential> = ns.api();
    let began = wait::now();
    api.delete_collection(&kube::api::DeleteParams::default(), &ListParams::default()).await.unwrap();
    let mut most = 0;
    until_in(Duration::from_secs(90), "all are gone", async || {
        most = most.max(descriptors());
        let left = api.list(&ListParams::default()).await.unwrap().items;
        if left.is_empty() { Ok(()) } else { Err(format!("{} are left, such as {}", left.len(), left[0].name_any())) }
    })
    .await;
    assert!(wait::now().duration_since(began).as_secs() >= 50, "it was tried for a minute");
    assert!(most - before <= 3 * PER_HOST_LIMIT, "{most} descriptors instead of {before}");
    let sent = idp.requests_at(REVOKE).len();
    // Each request takes nine or ten seconds, at most `PER_HOST_LIMIT` are in flight, and the wait above ends after 90
    // s. So there are ten rounds, and an eleventh has begun.
    assert!((PER_HOST_LIMIT..=11 * PER_HOST_LIMIT).contains(&sent), "{sent} requests");
    // A namespace can have 100 Events in a burst, so not every credential has its own Event.
    until("Events report the failure", async || {
        match ns.kubectl(["get", "events", "--field-selector=reason=RevocationFailed", "-o", "name"]) {
            none if none.is_empty() => Err(String::new()),
            _ => Ok(()),
        }
    })
    .await;
    assert!(broker.terminate().await.success());
}

/// Whether the host served the requests that have ended, in their order, as the admission learned it.
async fn served(broker: &Broker, expected: &[bool]) {
    until(&format!("the admission learns {expected:?}"), async || {
        let log = broker.log();
        let ends = log.lines().filter(|line| line.contains("request ended"));
        let served: Vec<_> = ends.map(|line| line.contains("served=true")).collect();
        if served == expected { Ok(()) } else { Err(format!("{served:?}")) }
    })
    .await;
}

#[tokio::test]
async fn the_limit_of_a_host_that_serves_no_request_learns_of_every_kind_of_request() {
    let Fixture { ns, idp, broker } = Fixture::new().await;
    ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    served(&broker, &[]).await;

    idp.next_at(DISCOVERY, Answer::status(503));
    ns.apply(provider(&idp).without("spec.oauth2").set("spec.oidc.issuerURL", idp.issuer())).await;
    served(&broker, &[false, true]).await;

    // The answer asks for a later request, so the broker does not repeat the refresh token immediately.
    let unavailable = || Answer::status(503).header("retry-after", "1");
    idp.next(unavailable());
    ns.apply(credential("by-client")).await;
    served(&broker, &[false, true, false, true]).await;

    idp.next(unavailable());
    ns.apply(source("seed", "refresh_token", "a-refresh-token")).await;
    ns.apply(by_seed("by-refresh-token")).await;
    served(&broker, &[false, true, false, true, false, true]).await;
    assert_eq!(idp.requests().len(), 6);
}

#[tokio::test]
async fn a_quiet_namespace_is_served_beside_one_that_floods_the_same_rate_limit() {
    let (ns, quiet) = (Cluster::shared().namespace().await, Cluster::shared().namespace().await);
    let idp = Idp::start();
    ns.provider(&idp).await;
    let name = format!("shared-{}", ns.name);
    let of_all = json!([{"namespaceSelector": {}, "mailboxes": ["*@example.org"]}]);
    let shared = provider(&idp)
        .set("kind", "ClusterMailProvider")
        .set("metadata.name", name.as_str())
        .set("spec.scopes", json!(["mail.send"]))
        .set("spec.rateLimit", json!({"requestsPerMinute": 60, "burst": 1}))
        .set("spec.allowed", of_all);
    ns.apply(shared).await;
    let broker = Broker::settings(&ns).flag(format!("--namespace={}", quiet.name)).start().await;
    let of = |name_of: &str| {
        credential(name_of).set("spec.providerRef", json!({"kind": "ClusterMailProvider", "name": name}))
    };
    for number in 0..60 {
        ns.apply(of(&format!("flood-{number}"))).await;
    }
    idp.token_requests_reach(2).await;
    quiet.apply(of("quiet")).await;
    let ready = |it: &MailCredential| reason(it, "Ready") == "TokenValid";
    quiet.until_in::<MailCredential>(Duration::from_secs(10), "quiet", "it is served in its turn", ready).await;
    assert!(idp.token_requests().len() < 40, "the flood was over before");
    drop(broker);
}
