//! Which addresses a provider's host may have, and the resolver that lets no other through.
//!
//! Whoever may write a `MailProvider` names a host that the broker then sends credentials to. Without a guard such a
//! host reaches what the broker can reach and its author cannot: the node's metadata service, the API server, other
//! teams' Services. So only public unicast addresses are permitted, and what `--allow-private-cidr` names. The names
//! are judged after they are resolved and the connection goes to the very address that was judged, so a name that
//! answers differently the second time gains nothing.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, WeakShared};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Judges addresses: public unicast ones are permitted, and those that the administrator allowed.
#[derive(Clone, Debug, Default)]
pub struct EgressPolicy {
    allowed: Vec<IpNet>,
    lookups: Arc<Lookups>,
}

impl EgressPolicy {
    /// A policy that also permits addresses inside `allowed_private`.
    ///
    /// An IPv4 range applies to the IPv4 address inside a translated IPv6 one too.
    pub fn new(allowed_private: Vec<IpNet>) -> Self {
        Self { allowed: allowed_private, lookups: Arc::default() }
    }

    /// The ranges that are permitted although they are private.
    pub fn allowed(&self) -> &[IpNet] {
        &self.allowed
    }

    /// Permits `address` or says which range it is denied for.
    pub fn judge(&self, address: IpAddr) -> Result<(), Denied> {
        if self.is_allowed(address) {
            return Ok(());
        }
        let range = match address {
            IpAddr::V4(address) => denied_v4(address),
            IpAddr::V6(outer) => match embedded_v4(outer) {
                Some(inside) => self.first_denied(&inside),
                None => denied_v6(outer),
            },
        };
        match range {
            Some(range) => Err(Denied { address, range }),
            None => Ok(()),
        }
    }

    fn is_allowed(&self, address: IpAddr) -> bool {
        self.allowed.iter().any(|range| range.contains(&address))
    }

    fn first_denied(&self, inside: &[Ipv4Addr]) -> Option<&'static str> {
        inside.iter().filter(|address| !self.is_allowed(IpAddr::V4(**address))).find_map(|address| denied_v4(*address))
    }

    /// Asks the system's resolver (so `/etc/hosts`, and with it `hostAliases`, counts) and judges every answer.
    pub async fn resolve(&self, host: &str) -> Result<Resolution, ResolveError> {
        let answers = self.lookups.answers(host, lookup).await?;
        let mut resolution = Resolution::default();
        for answer in answers {
            match self.judge(answer.ip()) {
                Ok(()) => resolution.permitted.push(answer),
                Err(denied) => resolution.denied = resolution.denied.or(Some(denied)),
            }
        }
        Ok(resolution)
    }
}

/// Why an address may not be connected to; displayed as `127.0.0.1 (loopback)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The address as it was written or resolved, also where the IPv4 address inside it was judged.
    pub address: IpAddr,
    /// What the range is for, in plain words.
    pub range: &'static str,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address, self.range)
    }
}

/// The addresses of a host, judged.
#[derive(Clone, Debug, Default)]
pub struct Resolution {
    /// Those that may be connected to, in the resolver's order; port 0.
    pub permitted: Vec<SocketAddr>,
    /// The first of those that may not.
    pub denied: Option<Denied>,
}

/// Why a name led to no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The name has addresses, none of which is permitted.
    #[error("{host} resolves to {denied}, which is denied")]
    Denied {
        /// The name that was asked for.
        host: String,
        /// The first of its addresses.
        denied: Denied,
    },
    /// The resolver's final word: there is no such name, or it has no address (`NXDOMAIN`, `NODATA`).
    #[error("{host} does not exist")]
    NotFound {
        /// The name that was asked for.
        host: String,
    },
    /// The resolver could not say.
    #[error("{host} could not be resolved: {detail}")]
    Failed {
        /// The name that was asked for.
        host: String,
        /// The resolver's words.
        detail: String,
    },
}

/// The resolver that the client towards providers is built with: it yields permitted addresses only.
///
/// An address written in the URL never comes here; whoever takes the URL judges it.
#[derive(Clone, Debug)]
pub struct GuardedResolver {
    policy: Arc<EgressPolicy>,
    exempt: Option<String>,
}

impl GuardedResolver {
    /// A resolver that yields what `policy` permits.
    pub fn new(policy: Arc<EgressPolicy>) -> Self {
        Self { policy, exempt: None }
    }

    /// Leaves one name unjudged: that of the egress proxy, which the administrator chose and which is rarely public.
    pub fn exempt(self, host: String) -> Self {
        Self { exempt: Some(host), ..self }
    }

    async fn addresses(self, host: String) -> Answers {
        if self.exempt.as_deref() == Some(host.as_str()) {
            return self.policy.lookups.answers(&host, lookup).await;
        }
        let resolution = self.policy.resolve(&host).await?;
        match resolution.denied {
            Some(denied) if resolution.permitted.is_empty() => Err(ResolveError::Denied { host, denied }),
            _ => Ok(resolution.permitted),
        }
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let addresses = self.clone().addresses(name.as_str().to_owned());
        Box::pin(async move { Ok(Box::new(addresses.await?.into_iter()) as Addrs) })
    }
}

type Answers = Result<Vec<SocketAddr>, ResolveError>;

/// Lookups under way: who asks for a name that is being asked for waits for the same answer, since each lookup occupies a
/// thread, and many requests to one provider begin together. All of them then wait for a name server that hangs, each as
/// long as its own time-out lets it.
#[derive(Default)]
struct Lookups(Mutex<HashMap<String, WeakShared<BoxFuture<'static, Answers>>>>);

impl Lookups {
    async fn answers<F>(&self, host: &str, lookup: impl FnOnce(String) -> F) -> Answers
    where
        F: Future<Output = Answers> + Send + 'static,
    {
        let answers = {
            let mut under_way = self.0.lock();
            under_way.retain(|_, other| other.upgrade().is_some());
            match under_way.get(host).and_then(WeakShared::upgrade) {
                Some(known) => known,
                None => {
                    let fresh = lookup(host.to_owned()).boxed().shared();
                    under_way.extend(fresh.downgrade().map(|weak| (host.to_owned(), weak)));
                    fresh
                }
            }
        };
        answers.await
    }
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups").finish_non_exhaustive()
    }
}

async fn lookup(host: String) -> Answers {
    let answers: Vec<SocketAddr> = match tokio::net::lookup_host((host.as_str(), 0)).await {
        Ok(answers) => answers.collect(),
        Err(error) => return Err(resolver_failure(&host, &error.to_string())),
    };
    if answers.is_empty() {
        return Err(ResolveError::NotFound { host });
    }
    Ok(answers)
}

/// What `getaddrinfo` says of `EAI_NONAME` and `EAI_NODATA`: glibc, musl, macOS. The standard library hands on the
/// words only, not the code.
const NOT_FOUND_WORDS: [&str; 6] = [
    "Name or service not known",
    "No address associated with hostname",
    "Name does not resolve",
    "Name has no usable address",
    "nodename nor servname provided, or not known",
    "No address associated with name",
];

fn resolver_failure(host: &str, words: &str) -> ResolveError {
    let host = host.to_owned();
    if NOT_FOUND_WORDS.iter().any(|not_found| words.contains(not_found)) {
        return ResolveError::NotFound { host };
    }
    let detail = words.trim_start_matches("failed to lookup address information: ").to_owned();
    ResolveError::Failed { host, detail }
}

// ---- ranges -------------------------------------------------------------------------------------------------------

/// IANA's IPv4 special-purpose registry, and the metadata services of clouds; the first match names the range.
const DENIED_V4: [(Ipv4Net, &str); 21] = [
    // Instance metadata of AWS, Azure, GCP and others; Azure's host agent; Alibaba's; Oracle's.
    (v4(169, 254, 169, 254, 32), "metadata"),
    (v4(168, 63, 129, 16, 32), "metadata"),
    (v4(100, 100, 100, 200, 32), "metadata"),
    (v4(192, 0, 0, 192, 32), "metadata"),
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

/// IANA's IPv6 special-purpose registry; what is not in 2000::/3, the only global unicast space, is reserved.
const DENIED_V6: [(Ipv6Net, &str); 18] = [
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "unspecified"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback"),
    // Instance metadata of AWS and GCP, credentials of EKS Pod Identity.
    (v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128), "metadata"),
    (v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128), "metadata"),
    (v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128), "metadata"),
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

/// The upper half of the IPv6 space, which holds nothing but what [`DENIED_V6`] names more precisely.
const UPPER_HALF: Ipv6Net = v6([0x8000, 0, 0, 0, 0, 0, 0, 0], 1);

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(s: [u16; 8], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]), prefix)
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
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);
const LOCAL_NAT64: Ipv6Net = v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48);
const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16);
const TEREDO: Ipv6Net = v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32);

/// The IPv4 addresses that a packet to `outer` may end at: every one must be permitted. `None` where there is none.
fn embedded_v4(outer: Ipv6Addr) -> Option<Vec<Ipv4Addr>> {
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
        // The server in clear, the client with every bit flipped (RFC 4380, section 4).
        let server = Ipv4Addr::new(o[4], o[5], o[6], o[7]);
        return Some(vec![server, Ipv4Addr::from_bits(!low.to_bits())]);
    }
    None
}

/// A network's own NAT64 prefix may have any length from 48 to 96 bits, and the IPv4 address then stands elsewhere
/// (RFC 6052, section 2.2), around the unused octet 8. All readings count, but for those that are mere zeros.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
            ("169.254.170.2", "link-local"),
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
            // 10.1.2.3 behind a prefix of 48, 56 and 64 bits, with a public address as suffix.
            ("64:ff9b:1:a01:2:300:808:808", "private"),
            ("64:ff9b:1:a:1:203:808:808", "private"),
            ("64:ff9b:1:0:a:102:308:808", "private"),
            ("64:ff9b:1::", "unspecified"),
            ("2002:7f00:1::1", "loopback"),
            ("2002:808:808::1", "permitted"),
            // Teredo: the server, then the client with its bits flipped (f5ff:fffe is 10.0.0.1).
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
    fn a_denied_address_is_displayed_with_its_range() {
        let denied = EgressPolicy::default().judge("127.0.0.1".parse().unwrap()).unwrap_err();
        assert_eq!(denied.to_string(), "127.0.0.1 (loopback)");
        let denied = EgressPolicy::default().judge("::ffff:127.0.0.1".parse().unwrap()).unwrap_err();
        assert_eq!(denied.to_string(), "::ffff:127.0.0.1 (loopback)");
    }

    #[test]
    fn a_missing_name_is_told_from_a_resolver_that_could_not_say() {
        let glibc = resolver_failure("a.invalid", "failed to lookup address information: Name or service not known");
        assert_eq!(glibc, ResolveError::NotFound { host: "a.invalid".to_owned() });
        let again = "failed to lookup address information: Temporary failure in name resolution";
        let detail = "Temporary failure in name resolution".to_owned();
        assert_eq!(resolver_failure("b", again), ResolveError::Failed { host: "b".to_owned(), detail });
    }

    #[tokio::test]
    async fn a_name_that_only_has_denied_addresses_yields_none() {
        let guarded = GuardedResolver::new(Arc::new(EgressPolicy::default()));
        let error = guarded.addresses("localhost".to_owned()).await.unwrap_err();
        let ResolveError::Denied { host, denied } = error else { panic!("{error}") };
        assert_eq!((host.as_str(), denied.range), ("localhost", "loopback"));
    }

    #[tokio::test]
    async fn a_name_whose_addresses_are_allowed_yields_them() {
        let policy = Arc::new(allowing(&["127.0.0.0/8"]));
        let addresses = GuardedResolver::new(policy).addresses("localhost".to_owned()).await.unwrap();
        assert!(!addresses.is_empty() && addresses.iter().all(|address| address.ip().to_string() == "127.0.0.1"));
    }

    #[tokio::test]
    async fn only_the_exempt_name_goes_unjudged() {
        let guarded = GuardedResolver::new(Arc::new(EgressPolicy::default()));
        assert!(guarded.clone().exempt("localhost".to_owned()).addresses("localhost".to_owned()).await.is_ok());
        assert!(guarded.exempt("proxy.test".to_owned()).addresses("localhost".to_owned()).await.is_err());
    }

    #[tokio::test]
    async fn a_name_that_is_being_asked_for_is_not_asked_for_again() {
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
        fn whatever_lies_in_an_allowed_range_is_permitted(bits: u128, prefix in 0_u8..=128) {
            let address = Ipv6Addr::from_bits(bits);
            let policy = EgressPolicy::new(vec![Ipv6Net::new(address, prefix).unwrap().into()]);
            prop_assert_eq!(policy.judge(address.into()), Ok(()));
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
}
