//! Names that lead elsewhere the second time: what was judged is what is connected to.

mod support;

use std::{collections::BTreeMap, net::Ipv4Addr};

use mail_token_broker::api::MailCredential;
use support::{dns::Dns, *};

/// Stands for a public address: the one that the broker may connect to. Nobody listens there.
const PERMITTED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

#[tokio::test]
async fn a_name_that_turns_private_after_the_first_answer_is_not_connected_to() {
    const TURNING: &str = "turning.example.org";
    const TO_METADATA: &str = "metadata.example.org";
    const MIXED: &str = "mixed.example.org";
    let dns = Dns::start(BTreeMap::from([
        (TURNING, vec![vec![PERMITTED], vec![LOOPBACK]]),
        (TO_METADATA, vec![vec![PERMITTED], vec![METADATA]]),
        (MIXED, vec![vec![LOOPBACK, PERMITTED, METADATA]]),
    ]));
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    ns.provider(&idp).await;
    let settings = Broker::settings(&ns).without("--allow-private-cidr").resolver(dns.address);
    let _broker = settings.flag(format!("--allow-private-cidr={PERMITTED}/32")).start().await;
    for (name, host) in [("turning", TURNING), ("metadata", TO_METADATA), ("mixed", MIXED)] {
        let url = format!("https://{host}:{}/token", idp.port());
        ns.apply(provider(&idp).set("metadata.name", name).set("spec.oauth2.tokenURL", url)).await;
        ns.apply(credential(name).set("spec.providerRef.name", name)).await;
    }
    // The first attempt goes to the permitted address, where nobody is. The second finds the other answer.
    for (name, host) in [("turning", TURNING), ("metadata", TO_METADATA)] {
        let told = ns.condition::<MailCredential>(name, "Stalled", "EgressDenied").await.message;
        assert!(told.contains(host), "{told}");
        assert_eq!(dns.asked(host), 2, "one question for each attempt");
    }
    let told = ns.condition::<MailCredential>("mixed", "Ready", "ProviderUnavailable").await.message;
    assert!(told.contains(MIXED), "{told}");
    assert_eq!(idp.connections(), 0);
}
