//! Leaders that are cut off, frozen or replaced, and two leaders at the same time: no broker overwrites a newer value
//! or requests a token without need.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{
    fault_log::tried,
    refresh_fixture::provider as strict_provider,
    standin::Strict,
    wait::{now, until_in},
    *,
};
use serde_json::{from_value, json};

/// Time until another broker leads: a lease that was not released lasts 15 s.
const TAKEOVER: Duration = Duration::from_secs(45);
/// Time in which the brokers must send no further request.
const REST: Duration = Duration::from_secs(4);

async fn leads(broker: &Broker) {
    until_in(TAKEOVER, "it leads", async || match broker.metric("mailtoken_leader", "").await {
        Some(1.0) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// Requests a new token without waiting for it.
async fn ask(ns: &Namespace, name: &str, value: &str) {
    ns.annotate::<MailCredential>(name, "mailtoken.dev/reissue", value).await;
}

async fn answered(ns: &Namespace, name: &str, value: &str) {
    let handled = |found: &MailCredential| field(found, "/status/lastHandledReissue") == value;
    ns.until_in::<MailCredential>(TAKEOVER, name, "it was issued again", handled).await;
}

async fn token(ns: &Namespace, name: &str) -> String {
    text(&ns.get::<Secret>(name).await, "access_token")
}

/// Waits until no broker has written the credentials and their Secrets for [`REST`].
async fn become_idle(ns: &Namespace, names: &[String]) {
    let versions = async || {
        let mut versions = BTreeSet::new();
        for name in names {
            let (secret, reported) = (ns.get::<Secret>(name).await, ns.get::<MailCredential>(name).await);
            versions.insert((secret.metadata.resource_version, reported.metadata.resource_version));
        }
        versions
    };
    let mut last = (versions().await, Instant::now());
    until("no broker writes any more", async || {
        let now = versions().await;
        if now != last.0 {
            last = (now, Instant::now());
        }
        if last.1.elapsed() > REST { Ok(()) } else { Err(format!("{:#?}", last.0)) }
    })
    .await;
}

#[tokio::test]
async fn a_late_write_of_a_disconnected_leader_is_refused() {
    let ns = Cluster::shared().namespace().await;
    let (idp, api) = (Idp::start(), ApiProxy::start(&ns.cluster));
    ns.provider(&idp).await;
    let first = Broker::settings(&ns).kubeconfig(&api.kubeconfig()).start().await;
    leads(&first).await;
    let second = Broker::start(&ns).await;
    for name in ["reported", "written"] {
        ns.apply(credential(name)).await;
        ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
    }

    api.next(1, "PUT", "/mailcredentials/reported/status", Trouble::Held);
    idp.next(Answer::status(503));
    ask(&ns, "reported", "1").await;
    idp.token_requests_reach(3).await;
    api.next(1, "PATCH", "/secrets/written?", Trouble::Held);
    ask(&ns, "written", "1").await;
    api.done().await;
    api.next(usize::MAX, "PUT", "/leases/", Trouble::status(500));
    leads(&second).await;
    answered(&ns, "reported", "1").await;
    answered(&ns, "written", "1").await;
    let (published, asked) = (token(&ns, "written").await, idp.token_requests().len());
    assert_eq!(asked, 6);

    api.release();
    holds(REST, "what the second has written stays", async || {
        let reported: MailCredential = ns.get("reported").await;
        match (reason(&reported, "Renewed").as_str(), token(&ns, "written").await == published) {
            ("RenewalSucceeded", true) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(idp.token_requests().len(), asked);
    tried("F10", 2, "nothing");
}

#[tokio::test]
async fn a_token_of_a_frozen_leader_replaces_no_newer_one_even_when_it_leads_again() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    ns.provider(&idp).await;
    // With this timeout, the response is still valid when the frozen broker continues.
    let first = Broker::settings(&ns).flag("--request-timeout=60s").start().await;
    leads(&first).await;
    let mut second = Broker::start(&ns).await;
    idp.next(Answer::token(3600).held());
    ns.apply(credential("billing")).await;
    idp.token_requests_reach(1).await;
    first.signal("STOP");
    let ready = |found: &MailCredential| reason(found, "Ready") == "TokenValid";
    ns.until_in::<MailCredential>(TAKEOVER, "billing", "the second serves it", ready).await;
    let versions = async || {
        let (secret, reported) = (ns.get::<Secret>("billing").await, ns.get::<MailCredential>("billing").await);
        (secret.metadata.resource_version, reported.metadata.resource_version)
    };
    let written = versions().await;

    idp.release();
    first.signal("CONT");
    until("the first has its answer", async || match first.log().contains("token obtained") {
        true => Ok(()),
        false => Err(first.log()),
    })
    .await;
    assert!(second.terminate().await.success());
    leads(&first).await;
    ns.apply(credential("mark")).await;
    ns.condition::<MailCredential>("mark", "Ready", "TokenValid").await;
    holds(REST, "the newer token stays", async || {
        let now = versions().await;
        if now == written { Ok(()) } else { Err(format!("{now:?} instead of {written:?}")) }
    })
    .await;
    assert_eq!(idp.token_requests().len(), 3);
    tried("F10", 1, "nothing");
}

#[tokio::test]
async fn two_brokers_without_an_election_send_two_requests_at_most_and_become_idle() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    ns.provider(&idp).await;
    let alone = || Broker::settings(&ns).flag("--leader-elect=false");
    let _both = [alone().start().await, alone().start().await];
    let names: Vec<_> = (0..8).map(|number| format!("mailbox-{number}")).collect();
    for name in &names {
        ns.apply(credential(name)).await;
    }
    for name in &names {
        ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
    }
    become_idle(&ns, &names).await;
    // Each broker sends one request for a new credential, and one for each reissue.
    let (fewest, most) = (names.len(), 2 * names.len());
    let mut before = 0;
    let mut sent = || {
        let all = idp.token_requests().len();
        let since = all - std::mem::replace(&mut before, all);
        assert!((fewest..=most).contains(&since), "{since} requests, {all} in all");
    };
    sent();
    for round in ["1", "2", "3"] {
        for name in &names {
            ask(&ns, name, round).await;
        }
        for name in &names {
            answered(&ns, name, round).await;
        }
        // A late write of one broker would count for the next round.
        become_idle(&ns, &names).await;
        sent();
    }
    for name in &names {
        assert!(idp.issued().contains(&token(&ns, name).await));
        ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
        ns.condition::<MailCredential>(name, "Renewed", "RenewalSucceeded").await;
    }
    tried("F11", 4 * names.len(), "nothing");
}

#[tokio::test]
async fn rolling_updates_under_constant_renewals_lose_no_refresh_token_and_leave_no_gap() {
    const ROLLS: usize = 5;
    let ns = Cluster::shared().namespace().await;
    let idp = Strict::start();
    idp.client("mailer", Some("a client secret"));
    // The broker renews each token within ten seconds.
    idp.lifetime(20);
    ns.apply(source("idp-client", "client-secret", "a client secret")).await;
    strict_provider(&ns, &idp).await;
    let names = ["first", "second", "third"];
    let mut old = Broker::start(&ns).await;
    for name in names {
        let (seed, token) =
            (format!("seed-{name}"), idp.refresh_token("mailer", &format!("{name}@example.org"), "mail"));
        ns.apply(source(&seed, "refresh_token", &token)).await;
        ns.apply(by_seed(name).set("spec.grant.refreshToken.secretRef.name", seed)).await;
        ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
    }

    let roll = async {
        for roll in 0..ROLLS {
            let new = Broker::start(&ns).await;
            for name in names {
                ask(&ns, name, &format!("before {roll}")).await;
            }
            assert!(old.terminate().await.success());
            for name in names {
                ask(&ns, name, &format!("after {roll}")).await;
            }
            for name in names {
                answered(&ns, name, &format!("after {roll}")).await;
            }
            old = new;
        }
    };
    let gap = async {
        loop {
            for name in names {
                let secret: Secret = ns.get(name).await;
                let expires: Timestamp = from_value(json!(text(&secret, "expires_at"))).unwrap();
                if expires <= now() {
                    return format!("{name} had no valid token at {}", now());
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = roll => {}
        gap = gap => panic!("{gap}"),
    }
    assert_eq!((idp.reuses(), idp.families_revoked()), (0, 0));
    for name in names {
        // The broker may be about to exchange the token.
        until(&format!("{name} keeps a good refresh token"), async || {
            let kept = text(&ns.get(&format!("{name}-grant")).await, "refresh_token");
            if idp.is_valid(&kept) { Ok(()) } else { Err(String::new()) }
        })
        .await;
    }
    tried("F10", ROLLS, "nothing");
}

#[tokio::test]
async fn a_leader_with_a_late_write_replaces_no_newer_token_of_another() {
    let ns = Cluster::shared().namespace().await;
    let (idp, api) = (Idp::start(), ApiProxy::start(&ns.cluster));
    ns.provider(&idp).await;
    let alone = |settings: broker::Settings| settings.flag("--leader-elect=false");
    let first = alone(Broker::settings(&ns)).kubeconfig(&api.kubeconfig()).start().await;
    ns.apply(credential("billing")).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    api.next(1, "PATCH", "/secrets/billing", Trouble::Held);
    ask(&ns, "billing", "1").await;
    idp.token_requests_reach(2).await;
    api.done().await;
    // Both brokers lead. The second broker's token is from a later second.
    let asked = now().as_second();
    until("another second", async || if now().as_second() > asked + 1 { Ok(()) } else { Err(String::new()) }).await;
    let _second = alone(Broker::settings(&ns)).start().await;
    answered(&ns, "billing", "1").await;
    let newer = idp.issued()[2].clone();
    assert_eq!(token(&ns, "billing").await, newer);
    api.release();
    until("the first one sees that its token came late", async || {
        let log = first.log();
        log.contains("another replica wrote a newer token").then_some(()).ok_or(log)
    })
    .await;
    holds(REST, "the newer token stays, and no request is sent", async || {
        match (token(&ns, "billing").await == newer, idp.token_requests().len()) {
            (true, 3) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_discovery_withheld_without_a_lease_does_not_change_the_provider() {
    let ns = Cluster::shared().namespace().await;
    let (idp, api) = (Idp::start(), ApiProxy::start(&ns.cluster));
    let broker = Broker::settings(&ns).kubeconfig(&api.kubeconfig()).start().await;
    leads(&broker).await;
    api.next(1, "GET", "/secrets/idp-client", Trouble::Held);
    ns.apply(ca_bundle("idp-ca", &idp)).await;
    ns.apply(source("idp-client", "client-secret", "a client secret")).await;
    ns.apply(provider(&idp).without("spec.oauth2").set("spec.oidc.issuerURL", idp.issuer())).await;
    ns.apply(credential("billing")).await;
    api.done().await;
    // The lease lapses while the broker reads the client secret, before the discovery.
    api.next(usize::MAX, "PUT", "/leases/", Trouble::status(503));
    until_in(TAKEOVER, "it does not lead", async || match broker.metric("mailtoken_leader", "").await {
        Some(0.0) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    api.release();
    holds(REST, "nothing is sent without a lease", async || match idp.requests().len() {
        0 => Ok(()),
        number => Err(number.to_string()),
    })
    .await;
    api.calm();
    leads(&broker).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    for name in ["idp", "billing"] {
        let reported = ns.event_reasons(name).await;
        assert!(reported.iter().all(|event| !event.starts_with("Warning")), "{name}: {reported:?}");
    }
}
