//! A provider's `rateLimit`: what is over it waits, and holds up nobody else.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use mail_token_broker::api::{MailCredential, MailProvider};
use serde_json::json;
use support::*;

#[tokio::test]
async fn what_is_over_the_limit_waits_and_holds_up_no_other_provider() {
    let Stage { ns, idp, mut broker } = Stage::new().await;
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

    // Far more than reconcile at once, if waiting held a place.
    for number in 0..100 {
        ns.apply(credential(&format!("quick-{number}"))).await;
    }
    idp.token_requests_reach(100).await;
    assert_eq!(slow.token_requests().len(), 1);

    // Another field changes: the limit goes on, and the requests that waited carry what is so now.
    ns.apply(limited.clone().set("spec.client.id", "another")).await;
    ns.condition::<MailProvider>("slow", "Ready", "ProviderReady").await;
    ns.apply(credential("quick-last")).await;
    idp.token_requests_reach(101).await;
    assert_eq!(slow.token_requests().len(), 1);

    // Without a limit nobody waits, not even those that did.
    ns.apply(limited.without("spec.rateLimit").set("spec.client.id", "another")).await;
    for name in names {
        ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
    }
    let sent: Vec<_> = slow.token_requests().iter().map(|request| request.form()["client_id"].clone()).collect();
    assert_eq!(sent.iter().filter(|id| *id == "mailer").count(), 1, "{sent:?}");
    assert!(broker.terminate().await.success());
}

#[tokio::test]
async fn who_waits_for_a_turn_does_not_hold_up_the_end() {
    let Stage { ns, idp, mut broker } = Stage::new().await;
    ns.apply(provider(&idp).set("spec.rateLimit", json!({"requestsPerMinute": 1}))).await;
    ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    for name in ["first", "second"] {
        ns.apply(credential(name)).await;
    }
    idp.token_requests_reach(1).await;
    assert!(broker.terminate().await.success());
    assert_eq!(idp.token_requests().len(), 1);
    assert!(!broker.log().contains("could not be stored in time"), "the end waited for the turn");
}
