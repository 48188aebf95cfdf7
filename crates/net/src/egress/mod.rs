//! Decides which addresses the host of a provider or of a mail server may have.
//!
//! A user who may write a `MailProvider` names a host to which the broker sends credentials. Without a guard, the host
//! could have an address that the broker can reach and the user cannot: the node's metadata service, the API server,
//! other teams' Services. So the broker permits only public unicast addresses and the ranges of `--allow-private-cidr`.
//! For a ClusterMailProvider it also permits the ranges of `--allow-private-cidr-cluster`. `--deny-cidr` overrides both
//! flags. The broker judges the addresses after it has resolved the name, and connects to the address that it judged. A
//! name that resolves differently the second time therefore gains nothing.

mod direct;
mod ranges;
#[cfg(feature = "http")]
mod route;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, WeakShared};
use ipnet::IpNet;
use parking_lot::Mutex;

pub use self::direct::Direct;
#[cfg(feature = "http")]
pub(crate) use self::route::Route;

use self::ranges::{DENY_CIDR, METADATA, NEVER_PROPOSED, denied, embedded_v4, is_metadata};

/// Judges addresses: permits public unicast addresses, and addresses that the administrator allowed.
#[derive(Clone, Debug, Default)]
pub struct EgressPolicy {
    allowed: Vec<IpNet>,
    allowed_for_cluster: Vec<IpNet>,
    denied: Vec<IpNet>,
    lookups: Arc<Lookups>,
}

impl EgressPolicy {
    /// Creates a policy that also permits addresses inside `allowed_private`.
    ///
    /// An IPv4 range also applies to the IPv4 address inside a translated IPv6 address.
    pub fn new(allowed_private: Vec<IpNet>) -> Self {
        Self { allowed: allowed_private, ..Self::default() }
    }

    /// Denies addresses inside `denied`, even if another range allows them.
    pub fn deny(self, denied: Vec<IpNet>) -> Self {
        Self { denied, ..self }
    }

    /// Adds ranges that only the policy of [`Self::for_cluster`] permits.
    pub fn allow_for_cluster(self, allowed_for_cluster: Vec<IpNet>) -> Self {
        Self { allowed_for_cluster, ..self }
    }

    /// Returns the policy for ClusterMailProviders, which also permits the ranges of [`Self::allow_for_cluster`].
    pub fn for_cluster(&self) -> Self {
        let allowed = self.allowed.iter().chain(&self.allowed_for_cluster).copied().collect();
        Self { allowed, allowed_for_cluster: vec![], ..self.clone() }
    }

    /// Whether ClusterMailProviders may connect to more addresses than MailProviders.
    pub fn differs_for_cluster(&self) -> bool {
        !self.allowed_for_cluster.is_empty()
    }

    /// Returns all ranges as text, for comparisons.
    pub fn ranges(&self) -> String {
        format!("{:?} {:?} {:?}", self.allowed, self.allowed_for_cluster, self.denied)
    }

    /// Permits `address`, or returns the denied range that contains it.
    pub fn judge(&self, address: IpAddr) -> Result<(), Denied> {
        match self.denied_range(address) {
            Some(range) => Err(Denied { address, range }),
            None => Ok(()),
        }
    }

    fn denied_range(&self, address: IpAddr) -> Option<&'static str> {
        let inside: Option<Vec<IpAddr>> = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(outer) => embedded_v4(outer).map(|inside| inside.into_iter().map(IpAddr::V4).collect()),
        };
        let all = || std::iter::once(&address).chain(inside.iter().flatten());
        if all().any(|address| self.denied.iter().any(|range| range.contains(address))) {
            return Some(DENY_CIDR);
        }
        // Even if the administrator allowed this range, it must not expose the node's credentials.
        if all().any(|found| is_metadata(*found) && !self.is_named(*found) && !self.is_named(address)) {
            return Some(METADATA);
        }
        if self.is_allowed(address) {
            return None;
        }
        match (address, &inside) {
            (_, Some(inside)) => {
                inside.iter().filter(|found| !self.is_allowed(**found)).find_map(|found| denied(*found))
            }
            (address, None) => denied(address),
        }
    }

    fn is_allowed(&self, address: IpAddr) -> bool {
        self.allowed.iter().any(|range| range.contains(&address))
    }

    /// Whether the administrator allowed this single address, as a /32 or /128.
    fn is_named(&self, address: IpAddr) -> bool {
        self.allowed.contains(&IpNet::from(address))
    }

    /// Resolves a name with the system's resolver (including `/etc/hosts` and `hostAliases`) and judges every address.
    pub async fn resolve(&self, host: &str) -> Result<Resolution, ResolveError> {
        let answers = self.lookups.addresses(host).await?;
        let mut resolution = Resolution::default();
        for answer in answers {
            resolution.all.push(answer.ip());
            match self.judge(answer.ip()) {
                Ok(()) => resolution.permitted.push(answer),
                Err(denied) => resolution.denied = resolution.denied.or(Some(denied)),
            }
        }
        Ok(resolution)
    }

    /// Returns the permitted addresses of a name, with port 0.
    ///
    /// # Errors
    /// If the name does not resolve, or no address is permitted.
    pub async fn permitted(&self, host: &str) -> Result<Vec<SocketAddr>, ResolveError> {
        let resolution = self.resolve(host).await?;
        match resolution.denied {
            Some(denied) if resolution.permitted.is_empty() => {
                tracing::info!(host, address = %denied.address, range = denied.range, "egress denied");
                Err(ResolveError::Denied { host: host.to_owned(), denied })
            }
            _ => Ok(resolution.permitted),
        }
    }

    /// Returns all addresses of a name without judging them. For the name of the egress proxy: the administrator chose
    /// it, and its address is rarely public.
    ///
    /// # Errors
    /// If the name does not resolve.
    pub async fn unjudged(&self, host: &str) -> Result<Vec<SocketAddr>, ResolveError> {
        self.lookups.addresses(host).await
    }
}

/// Why the broker may not connect to an address; displayed as `127.0.0.1 (loopback)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The address as written or resolved, even if the policy denied an IPv4 address inside it.
    pub address: IpAddr,
    /// The purpose of the denied range, in plain words.
    pub range: &'static str,
}

impl Denied {
    /// Whether a message may propose to allow the denied range.
    pub fn is_proposed(&self) -> bool {
        !NEVER_PROPOSED.contains(&self.range)
    }

    /// Returns the range that a message may propose to allow. The range contains the address only if the user wrote the
    /// address as `host`.
    pub fn allowance(&self, host: &str) -> Option<String> {
        if !self.is_proposed() {
            return None;
        }
        let length = if self.address.is_ipv4() { 32 } else { 128 };
        match host.parse::<IpAddr>() {
            Ok(literal) => Some(format!("{literal}/{length}")),
            Err(_) => Some(format!("<its address>/{length}")),
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address, self.range)
    }
}

/// The judged addresses of a host.
#[derive(Clone, Debug, Default)]
pub struct Resolution {
    /// The permitted addresses, in the resolver's order, with port 0.
    pub permitted: Vec<SocketAddr>,
    /// The first denied address, if any.
    pub denied: Option<Denied>,
    /// All addresses of the host, permitted or denied.
    pub all: Vec<IpAddr>,
}

/// Why a name has no permitted address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The name has addresses, but none is permitted.
    #[error("{host} resolves to {denied}, which is denied")]
    Denied {
        /// The name that the broker resolved.
        host: String,
        /// The first denied address of the name.
        denied: Denied,
    },
    /// The resolver's final result: the name does not exist or has no address (`NXDOMAIN`, `NODATA`).
    #[error("{host} does not exist")]
    NotFound {
        /// The name that the broker resolved.
        host: String,
    },
    /// The resolver returned no result.
    #[error("{host} could not be resolved: {detail}")]
    Failed {
        /// The name that the broker resolved.
        host: String,
        /// The resolver's error text.
        detail: String,
    },
}

type Answers = Result<Vec<SocketAddr>, ResolveError>;

/// Lookups in flight. Concurrent lookups of one name share one result, because each lookup occupies a thread, and many
/// requests to one provider start together. If the name server hangs, each caller waits until its own time-out.
#[derive(Default)]
pub struct Lookups(Mutex<HashMap<String, WeakShared<BoxFuture<'static, Answers>>>>);

impl Lookups {
    /// Returns all addresses of a name, with port 0.
    ///
    /// # Errors
    ///
    /// If the name does not resolve.
    pub async fn addresses(&self, host: &str) -> Result<Vec<SocketAddr>, ResolveError> {
        self.answers(host, lookup).await
    }

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

/// Returns all addresses of a name, with port 0.
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

/// The texts of `getaddrinfo` for `EAI_NONAME` and `EAI_NODATA` (glibc, musl, macOS). The standard library returns the
/// text without the code.
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

#[cfg(test)]
mod tests;
