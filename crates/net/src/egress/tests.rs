use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use super::{
    ranges::{NAT64, SIX_TO_FOUR},
    *,
};

fn judged(policy: &EgressPolicy, address: &str) -> String {
    match policy.judge(address.parse().unwrap()) {
        Ok(()) => "permitted".to_owned(),
        Err(denied) => denied.range.to_owned(),
    }
}

fn allowing(ranges: &[&str]) -> EgressPolicy {
    EgressPolicy::new(ranges.iter().map(|range| range.parse().unwrap()).collect())
}

#[test]
fn every_special_range_is_denied_by_its_name_and_its_neighbours_are_permitted() {
    let table = [
        ("8.8.8.8", "permitted"),
        ("0.0.0.0", "unspecified"),
        ("0.255.255.255", "unspecified"),
        ("1.0.0.0", "permitted"),
        ("9.255.255.255", "permitted"),
        ("10.0.0.0", "private"),
        ("10.255.255.255", "private"),
        ("11.0.0.0", "permitted"),
        ("100.63.255.255", "permitted"),
        ("100.64.0.0", "carrier-grade NAT"),
        ("100.127.255.255", "carrier-grade NAT"),
        ("100.128.0.0", "permitted"),
        ("100.100.100.200", "metadata"),
        ("126.255.255.255", "permitted"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.255", "loopback"),
        ("128.0.0.0", "permitted"),
        ("168.63.129.16", "metadata"),
        ("168.63.129.17", "permitted"),
        ("169.253.255.255", "permitted"),
        ("169.254.169.254", "metadata"),
        ("169.254.170.2", "metadata"),
        ("169.254.170.23", "metadata"),
        ("169.254.170.3", "link-local"),
        ("169.255.0.0", "permitted"),
        ("172.15.255.255", "permitted"),
        ("172.16.0.0", "private"),
        ("172.31.255.255", "private"),
        ("172.32.0.0", "permitted"),
        ("192.0.0.1", "protocol assignments"),
        ("192.0.0.192", "metadata"),
        ("192.0.1.0", "permitted"),
        ("192.0.2.1", "documentation"),
        ("192.88.99.1", "6to4 relay"),
        ("192.168.255.255", "private"),
        ("192.169.0.0", "permitted"),
        ("198.17.255.255", "permitted"),
        ("198.18.0.0", "benchmarking"),
        ("198.19.255.255", "benchmarking"),
        ("198.20.0.0", "permitted"),
        ("198.51.100.7", "documentation"),
        ("203.0.113.7", "documentation"),
        ("223.255.255.255", "permitted"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.254", "reserved"),
        ("255.255.255.255", "broadcast"),
        ("2606:4700::1111", "permitted"),
        ("2001:200::1", "permitted"),
        ("3fff:1000::1", "permitted"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("fc00::1", "unique local"),
        ("fdff::1", "unique local"),
        ("fd00:ec2::254", "metadata"),
        ("fd00:ec2::23", "metadata"),
        ("fd20:ce::254", "metadata"),
        ("fe80::1", "link-local"),
        ("fe80::a9fe:a9fe", "metadata"),
        ("febf::1", "link-local"),
        ("fec0::1", "site-local"),
        ("ff02::1", "multicast"),
        ("100::1", "discard"),
        ("2001:2::1", "benchmarking"),
        ("2001:10::1", "ORCHID"),
        ("2001:2f:ffff::1", "ORCHID"),
        ("2001:1::1", "protocol assignments"),
        ("2001:db8::1", "documentation"),
        ("3fff::1", "documentation"),
        ("64:ff9a::1", "reserved"),
        ("4000::1", "reserved"),
        ("5f00::1", "reserved"),
        ("8000::1", "reserved"),
        ("fe00::1", "reserved"),
    ];
    for (address, expected) in table {
        assert_eq!(judged(&EgressPolicy::default(), address), expected, "{address}");
    }
}

#[test]
fn a_translated_address_is_judged_by_the_ipv4_address_inside() {
    let table = [
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:8.8.8.8", "permitted"),
        ("::ffff:0:10.0.0.1", "private"),
        ("::127.0.0.1", "loopback"),
        ("::10.0.0.1", "private"),
        ("::2", "unspecified"),
        ("64:ff9b::169.254.169.254", "metadata"),
        ("64:ff9b::8.8.8.8", "permitted"),
        ("64:ff9b:1::10.0.0.1", "private"),
        ("64:ff9b:1::8.8.8.8", "permitted"),
        // The address 10.1.2.3 behind a prefix of 48, 56 and 64 bits, with a public address as suffix.
        ("64:ff9b:1:a01:2:300:808:808", "private"),
        ("64:ff9b:1:a:1:203:808:808", "private"),
        ("64:ff9b:1:0:a:102:308:808", "private"),
        ("64:ff9b:1::", "unspecified"),
        ("2002:7f00:1::1", "loopback"),
        ("2002:808:808::1", "permitted"),
        // Teredo: the server, then the client with inverted bits (f5ff:fffe is 10.0.0.1).
        ("2001:0:a00:1:0:0:f7f7:f7f7", "private"),
        ("2001:0:808:808:0:0:f5ff:fffe", "private"),
        ("2001:0:808:808:0:0:f7f7:f7f7", "permitted"),
    ];
    for (address, expected) in table {
        assert_eq!(judged(&EgressPolicy::default(), address), expected, "{address}");
    }
}

#[test]
fn an_allowed_ipv4_range_applies_to_the_address_inside_a_translated_one() {
    let policy = allowing(&["10.96.0.0/12"]);
    assert_eq!(judged(&policy, "10.96.0.10"), "permitted");
    assert_eq!(judged(&policy, "::ffff:10.96.0.10"), "permitted");
    assert_eq!(judged(&policy, "64:ff9b::10.96.0.10"), "permitted");
    assert_eq!(judged(&policy, "10.95.255.255"), "private");
    assert_eq!(judged(&policy, "::ffff:10.95.255.255"), "private");
}

#[test]
fn an_allowed_ipv6_range_permits_what_is_inside_only() {
    let policy = allowing(&["fd12:3456::/32"]);
    assert_eq!(judged(&policy, "fd12:3456::1"), "permitted");
    assert_eq!(judged(&policy, "fd12:3457::1"), "unique local");
}

#[test]
fn a_range_of_deny_cidr_is_denied_even_if_it_is_also_allowed() {
    let range = |range: &str| vec![range.parse().unwrap()];
    let policy = EgressPolicy::default().deny(range("2600:1f00::/24"));
    assert_eq!(judged(&policy, "2600:1f14::1"), "in a range of --deny-cidr");
    assert_eq!(judged(&policy, "2600:2000::1"), "permitted");
    let policy = allowing(&["30.0.0.0/8"]).deny(range("30.0.0.0/16"));
    for address in ["30.0.0.1", "::ffff:30.0.0.1", "64:ff9b::30.0.0.1", "2002:1e00:1::1"] {
        assert_eq!(judged(&policy, address), "in a range of --deny-cidr", "{address}");
    }
    assert_eq!(judged(&policy, "30.1.0.1"), "permitted");
    // The policy also judges the outer address.
    assert_eq!(
        judged(&EgressPolicy::default().deny(range("64:ff9b::/96")), "64:ff9b::8.8.8.8"),
        "in a range of --deny-cidr"
    );
    assert_eq!(
        judged(&allowing(&["169.254.169.254/32"]).deny(range("169.254.0.0/16")), "169.254.169.254"),
        "in a range of --deny-cidr"
    );
}

#[test]
fn a_metadata_address_is_allowed_by_its_own_range_alone() {
    for (ranges, address, expected) in [
        (&["100.64.0.0/10"][..], "100.100.100.200", "metadata"),
        (&["100.64.0.0/10"], "100.100.100.201", "permitted"),
        (&["100.64.0.0/10", "100.100.100.200/32"], "100.100.100.200", "permitted"),
        (&["169.254.0.0/16"], "169.254.169.254", "metadata"),
        (&["169.254.169.254/31"], "169.254.169.254", "metadata"),
        (&["169.254.169.254/32"], "::ffff:169.254.169.254", "permitted"),
        (&["0.0.0.0/0", "::/0"], "64:ff9b::169.254.169.254", "metadata"),
        (&["64:ff9b::a9fe:a9fe/128"], "64:ff9b::169.254.169.254", "permitted"),
        (&["fd00::/8"], "fd00:ec2::254", "metadata"),
        (&["fd00:ec2::254/128"], "fd00:ec2::254", "permitted"),
    ] {
        assert_eq!(judged(&allowing(ranges), address), expected, "{address} with {ranges:?}");
    }
}

#[test]
fn a_range_that_is_allowed_for_the_cluster_is_denied_to_others() {
    let policy = allowing(&["10.1.0.0/16"]).allow_for_cluster(vec!["10.2.0.0/16".parse().unwrap()]);
    assert!(policy.differs_for_cluster());
    assert_eq!((judged(&policy, "10.1.0.1"), judged(&policy, "10.2.0.1")), ("permitted".into(), "private".into()));
    let cluster = policy.for_cluster();
    assert_eq!((judged(&cluster, "10.1.0.1"), judged(&cluster, "10.2.0.1")), ("permitted".into(), "permitted".into()));
    assert_eq!(judged(&cluster, "10.3.0.1"), "private");
}

#[test]
fn a_denied_address_is_displayed_with_its_range() {
    let denied = EgressPolicy::default().judge("127.0.0.1".parse().unwrap()).unwrap_err();
    assert_eq!(denied.to_string(), "127.0.0.1 (loopback)");
    let denied = EgressPolicy::default().judge("::ffff:127.0.0.1".parse().unwrap()).unwrap_err();
    assert_eq!(denied.to_string(), "::ffff:127.0.0.1 (loopback)");
}

#[test]
fn a_missing_name_differs_from_a_failed_resolver() {
    let glibc = resolver_failure("a.invalid", "failed to lookup address information: Name or service not known");
    assert_eq!(glibc, ResolveError::NotFound { host: "a.invalid".to_owned() });
    let again = "failed to lookup address information: Temporary failure in name resolution";
    let detail = "Temporary failure in name resolution".to_owned();
    assert_eq!(resolver_failure("b", again), ResolveError::Failed { host: "b".to_owned(), detail });
}

#[tokio::test]
async fn a_name_that_only_has_denied_addresses_yields_none() {
    let error = EgressPolicy::default().permitted("localhost").await.unwrap_err();
    let ResolveError::Denied { host, denied } = error else { panic!("{error}") };
    assert_eq!((host.as_str(), denied.range), ("localhost", "loopback"));
}

#[tokio::test]
async fn a_name_whose_addresses_are_allowed_yields_them() {
    let addresses = allowing(&["127.0.0.0/8"]).permitted("localhost").await.unwrap();
    assert!(!addresses.is_empty() && addresses.iter().all(|address| address.ip().to_string() == "127.0.0.1"));
}

#[tokio::test]
async fn a_name_that_is_being_requested_is_not_requested_again() {
    let lookups = Lookups::default();
    let asked = std::cell::Cell::new(0);
    let answer: Answers = Ok(vec!["192.0.2.1:0".parse().unwrap()]);
    let ask = |name| {
        lookups.answers(name, |_| {
            asked.set(asked.get() + 1);
            let answer = answer.clone();
            async {
                tokio::task::yield_now().await;
                answer
            }
        })
    };
    let answers = futures::future::join_all(["a.test", "b.test", "a.test", "a.test"].map(ask)).await;
    assert!(answers.iter().all(|other| *other == answer));
    assert_eq!(asked.get(), 2);
    assert_eq!((ask("a.test").await, asked.get()), (answer.clone(), 3), "an answer is not kept");
}

proptest! {
    #[test]
    fn a_mapped_or_nat64_address_is_judged_like_the_one_inside(bits: u32, allowed: u32, prefix in 0_u8..=32) {
        let policy = EgressPolicy::new(vec![Ipv4Net::new(allowed.into(), prefix).unwrap().into()]);
        let inside = Ipv4Addr::from_bits(bits);
        let range = policy.judge(inside.into()).map_err(|denied| denied.range);
        for outer in [
            inside.to_ipv6_mapped(),
            Ipv6Addr::from_bits(NAT64.addr().to_bits() | u128::from(bits)),
            Ipv6Addr::from_bits(SIX_TO_FOUR.addr().to_bits() | (u128::from(bits) << 80)),
        ] {
            prop_assert_eq!(policy.judge(outer.into()).map_err(|denied| denied.range), range, "{}", outer);
        }
    }

    #[test]
    fn every_address_in_an_allowed_range_is_permitted(bits: u128, prefix in 0_u8..=128) {
        let address = Ipv6Addr::from_bits(bits);
        let policy = EgressPolicy::new(vec![Ipv6Net::new(address, prefix).unwrap().into()]);
        let inside = embedded_v4(address).unwrap_or_default();
        let metadata = prefix < 128 && inside.into_iter().map(IpAddr::V4).chain([address.into()]).any(is_metadata);
        prop_assert_eq!(policy.judge(address.into()).is_ok(), !metadata);
    }

    #[test]
    fn nothing_the_standard_library_calls_private_is_permitted(bits: u32) {
        let address = Ipv4Addr::from_bits(bits);
        let special = address.is_private() || address.is_loopback() || address.is_link_local()
            || address.is_multicast() || address.is_broadcast() || address.is_documentation()
            || address.is_unspecified();
        prop_assert!(!special || EgressPolicy::default().judge(address.into()).is_err());
    }

    #[test]
    fn a_permitted_ipv6_address_is_global_unicast_or_translated(bits: u128) {
        let address = Ipv6Addr::from_bits(bits);
        let permitted = EgressPolicy::default().judge(address.into()).is_ok();
        prop_assert!(!permitted || bits >> 125 == 0b001 || embedded_v4(address).is_some());
    }
}
