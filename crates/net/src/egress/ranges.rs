//! The ranges of non-public addresses, by name, and the IPv4 addresses inside IPv6 addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// Name of the range of a cloud's metadata service, which returns the node's credentials.
pub(super) const METADATA: &str = "metadata";

/// Name of every range of `--deny-cidr`.
pub(super) const DENY_CIDR: &str = "in a range of --deny-cidr";

/// Ranges that no message proposes to allow: they expose the broker's pod or node, and no provider has an address in
/// them.
pub(super) const NEVER_PROPOSED: [&str; 7] =
    [METADATA, DENY_CIDR, "loopback", "link-local", "unspecified", "multicast", "broadcast"];

/// Ranges of IANA's IPv4 special-purpose registry, and the metadata services of clouds. The first match names the
/// range.
const DENIED_V4: [(Ipv4Net, &str); 24] = [
    // Instance metadata of AWS, Azure, GCP and others; credentials of ECS tasks; credentials of EKS Pod Identity;
    // metadata of Tencent; Azure's host agent; metadata of Alibaba and of Oracle.
    (v4(169, 254, 169, 254, 32), METADATA),
    (v4(169, 254, 170, 2, 32), METADATA),
    (v4(169, 254, 170, 23, 32), METADATA),
    (v4(169, 254, 0, 23, 32), METADATA),
    (v4(168, 63, 129, 16, 32), METADATA),
    (v4(100, 100, 100, 200, 32), METADATA),
    (v4(192, 0, 0, 192, 32), METADATA),
    (v4(0, 0, 0, 0, 8), "unspecified"),
    (v4(10, 0, 0, 0, 8), "private"),
    (v4(100, 64, 0, 0, 10), "carrier-grade NAT"),
    (v4(127, 0, 0, 0, 8), "loopback"),
    (v4(169, 254, 0, 0, 16), "link-local"),
    (v4(172, 16, 0, 0, 12), "private"),
    (v4(192, 0, 0, 0, 24), "protocol assignments"),
    (v4(192, 0, 2, 0, 24), "documentation"),
    (v4(192, 88, 99, 0, 24), "6to4 relay"),
    (v4(192, 168, 0, 0, 16), "private"),
    (v4(198, 18, 0, 0, 15), "benchmarking"),
    (v4(198, 51, 100, 0, 24), "documentation"),
    (v4(203, 0, 113, 0, 24), "documentation"),
    (v4(192, 31, 196, 0, 24), "AS112 sink"),
    (v4(224, 0, 0, 0, 4), "multicast"),
    (v4(255, 255, 255, 255, 32), "broadcast"),
    (v4(240, 0, 0, 0, 4), "reserved"),
];

/// Ranges of IANA's IPv6 special-purpose registry. Addresses outside of 2000::/3, the only global unicast space, are
/// reserved.
const DENIED_V6: [(Ipv6Net, &str); 19] = [
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "unspecified"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback"),
    // Instance metadata of AWS, GCP and OpenStack; credentials of EKS Pod Identity.
    (v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128), METADATA),
    (v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128), METADATA),
    (v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128), METADATA),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128), METADATA),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), "unique local"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local"),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), "site-local"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "discard"),
    (v6([0x2001, 0x2, 0, 0, 0, 0, 0, 0], 48), "benchmarking"),
    (v6([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28), "ORCHID"),
    (v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28), "ORCHID"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), "protocol assignments"),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), "documentation"),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), "documentation"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 3), "reserved"),
    (v6([0x4000, 0, 0, 0, 0, 0, 0, 0], 2), "reserved"),
];

/// The upper half of the IPv6 space, which contains only ranges that [`DENIED_V6`] names more precisely.
const UPPER_HALF: Ipv6Net = v6([0x8000, 0, 0, 0, 0, 0, 0, 0], 1);

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(s: [u16; 8], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]), prefix)
}

pub(super) fn denied(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => denied_v4(address),
        IpAddr::V6(address) => denied_v6(address),
    }
}

pub(super) fn is_metadata(address: IpAddr) -> bool {
    denied(address) == Some(METADATA)
}

fn denied_v4(address: Ipv4Addr) -> Option<&'static str> {
    DENIED_V4.iter().find(|(range, _)| range.contains(&address)).map(|(_, name)| *name)
}

fn denied_v6(address: Ipv6Addr) -> Option<&'static str> {
    let named = DENIED_V6.iter().find(|(range, _)| range.contains(&address)).map(|(_, name)| *name);
    named.or_else(|| UPPER_HALF.contains(&address).then_some("reserved"))
}

const MAPPED: Ipv6Net = v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96);
const TRANSLATED: Ipv6Net = v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96);
const COMPATIBLE: Ipv6Net = v6([0, 0, 0, 0, 0, 0, 0, 0], 96);
pub(super) const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);
const LOCAL_NAT64: Ipv6Net = v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48);
pub(super) const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16);
const TEREDO: Ipv6Net = v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32);

/// Returns the IPv4 addresses at which a packet to `outer` may arrive; `None` if there are none. The policy must permit
/// each of them.
pub(super) fn embedded_v4(outer: Ipv6Addr) -> Option<Vec<Ipv4Addr>> {
    if outer.is_unspecified() || outer.is_loopback() {
        return None;
    }
    let o = outer.octets();
    let low = Ipv4Addr::new(o[12], o[13], o[14], o[15]);
    if [MAPPED, TRANSLATED, COMPATIBLE, NAT64].iter().any(|range| range.contains(&outer)) {
        return Some(vec![low]);
    }
    if LOCAL_NAT64.contains(&outer) {
        return Some(local_nat64(o, low));
    }
    if SIX_TO_FOUR.contains(&outer) {
        return Some(vec![Ipv4Addr::new(o[2], o[3], o[4], o[5])]);
    }
    if TEREDO.contains(&outer) {
        // Teredo holds the server's address unchanged and the client's address with every bit inverted (RFC 4380,
        // section 4).
        let server = Ipv4Addr::new(o[4], o[5], o[6], o[7]);
        return Some(vec![server, Ipv4Addr::from_bits(!low.to_bits())]);
    }
    None
}

/// Returns the possible IPv4 addresses behind a network's own NAT64 prefix. The prefix may have any length from 48 to
/// 96 bits, so the IPv4 address may be in several places around the unused octet 8 (RFC 6052, section 2.2). Addresses
/// whose first octet is zero do not count, unless no other is left.
fn local_nat64(o: [u8; 16], low: Ipv4Addr) -> Vec<Ipv4Addr> {
    let readings = [
        Ipv4Addr::new(o[6], o[7], o[9], o[10]),
        Ipv4Addr::new(o[7], o[9], o[10], o[11]),
        Ipv4Addr::new(o[9], o[10], o[11], o[12]),
        low,
    ];
    let real: Vec<_> = readings.into_iter().filter(|reading| reading.octets()[0] != 0).collect();
    if real.is_empty() { vec![low] } else { real }
}
