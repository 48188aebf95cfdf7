//! Names that resolve to another address the second time: the broker connects only to the address that it judged.

use std::{collections::BTreeMap, net::IpAddr};

use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{dns::Dns, *};

/// These addresses represent public addresses, to which the broker may connect. No server listens there.
const PERMITTED: &str = "127.0.0.2/32,2001:db8::2/128";

/// Hosts, the answers to one question after the other, and the result of the second attempt.
const HOSTS: [(&str, &[&[&str]], &str); 8] = [
    ("turning.example.org", &[&["127.0.0.2"], &["127.0.0.1"]], DENIED),
    ("metadata.example.org", &[&["127.0.0.2"], &["169.254.169.254"]], DENIED),
    ("turning6.example.org", &[&["2001:db8::2"], &["::1"]], DENIED),
    ("mapped.example.org", &[&["2001:db8::2"], &["::ffff:127.0.0.1"]], DENIED),
    ("translated.example.org", &[&["127.0.0.2"], &["64:ff9b::a9fe:a9fe"]], DENIED),
    ("metadata6.example.org", &[&["2001:db8::2"], &["fd00:ec2::254"]], DENIED),
    ("mixed.example.org", &[&["127.0.0.1", "127.0.0.2", "169.254.169.254"]], UNAVAILABLE),
    ("families.example.org", &[&["127.0.0.2", "::1"]], UNAVAILABLE),
];
const DENIED: &str = "EgressDenied";
const UNAVAILABLE: &str = "ProviderUnavailable";

#[tokio::test]
async fn a_name_that_turns_private_after_the_first_answer_is_not_connected_to() {
    let parsed = |answer: &&[&str]| answer.iter().map(|address| address.parse::<IpAddr>().unwrap()).collect();
    let script = HOSTS.iter().map(|(host, answers, _)| (*host, answers.iter().map(parsed).collect()));
    let dns = Dns::start(BTreeMap::from_iter(script));
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    ns.provider(&idp).await;
    let settings = Broker::settings(&ns).without("--allow-private-cidr").resolver(dns.address);
    let _broker = settings.flag(format!("--allow-private-cidr={PERMITTED}")).start().await;
    let name = |host: &'static str| host.trim_end_matches(".example.org");
    for (host, ..) in HOSTS {
        let name = name(host);
        let url = format!("https://{host}:{}/token", idp.port());
        ns.apply(provider(&idp).set("metadata.name", name).set("spec.oauth2.tokenURL", url)).await;
        ns.apply(credential(name).set("spec.providerRef.name", name)).await;
    }
    // The first attempt connects to the permitted address, where no server listens. The second attempt gets the other
    // answer.
    for (host, _, reason) in HOSTS {
        let name = name(host);
        let reported = ns.condition::<MailCredential>(name, "Ready", reason).await.message;
        assert!(reported.contains(host), "{reported}");
        if reason == DENIED {
            ns.condition::<MailCredential>(name, "Stalled", reason).await;
            assert_eq!(dns.asked(host), 2, "one question for each attempt");
        }
    }
    assert_eq!(idp.connections(), 0);
}
