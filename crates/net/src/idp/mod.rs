//! The only HTTP client for providers. The client sends credentials to hosts that tenants choose.
//!
//! - The client uses https with TLS 1.2 or newer. No switch turns verification off. The client follows no redirect and
//!   ignores proxies of the environment. The client requests no compression, but reads gzip and deflate up to
//!   [`BODY_LIMIT`].
//! - With `--egress-proxy`, the client sends each request through that proxy, unless `--no-proxy` names the
//!   destination.
//! - The client connects only to addresses that the [`EgressPolicy`] permits; see [`crate::egress`].
//! - A request takes at most `request_timeout`. The client reads at most [`BODY_LIMIT`] bytes of a body, and about as
//!   many bytes of headers.
//! - The client writes a request to a connection once. A refresh token may be valid for one use, so the client never
//!   retries: the caller decides after a failure. (Exception: the client repeats a request of which it wrote nothing
//!   because a pooled connection was closed.)
//! - Admission limits the requests in flight before they reach this client.
//! - Neither bodies nor header values appear in errors, logs or any `Debug`. The client wipes bodies after use.

mod encoding;
mod error;
mod pool;
mod resolver;
mod target;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{AUTHORIZATION, Entry};
use hyper::body::Bytes;
use jiff::Timestamp;
use rustls::RootCertStore;
use sha2::{Digest, Sha256};
use url::Url;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::egress::{Direct, EgressPolicy};
use crate::{fail_point, tls};

pub use self::error::TransportError;
pub use self::pool::BundleHash;
pub use crate::tls::{BUNDLE_LIMIT, BundleError, Skipped, TlsProblem};

use self::{
    pool::{Bundled, Pool},
    target::Target,
};

/// Maximum size of a response body in bytes. A token response has a few thousand bytes. A discovery document or a key
/// set rarely has more than 20,000 bytes.
pub const BODY_LIMIT: usize = 256 * 1024;

/// Number of consecutive requests with different timeouts. Equal to the maximum number of requests in flight to one
/// host.
const SPREAD: usize = 32;

/// Settings of all clients.
#[derive(Clone)]
pub struct Settings {
    /// Time limit of one request: this duration, or up to a tenth less. It covers name resolution, connection, TLS,
    /// headers and body.
    pub request_timeout: Duration,
    /// The addresses to which the client may connect.
    pub egress: EgressPolicy,
    /// The proxy through which the client sends requests by CONNECT. The scheme is `http` or `https`. The URL has user
    /// info if the proxy requires it.
    pub proxy: Option<Url>,
    /// The destinations to which the client connects directly, without the proxy.
    pub no_proxy: Vec<Direct>,
}

/// Why the settings give no working client. The broker reports these errors at its start.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The egress proxy's URL cannot be used.
    #[error("the egress proxy's URL must be http or https and have a host")]
    Proxy,
    /// The HTTP or TLS library refused to start.
    #[error("the http client could not be built")]
    Client(#[source] reqwest::Error),
    /// No TLS version or cipher is available.
    #[error("tls could not be set up")]
    Tls(#[source] rustls::Error),
}

/// The broker's clients: one for each distinct CA bundle, all with the same limits.
#[derive(Clone)]
pub struct IdpClients {
    shared: Arc<Shared>,
    for_cluster: bool,
}

struct Shared {
    settings: Settings,
    policies: Scoped<Arc<EgressPolicy>>,
    clock: Clock,
    /// Number of requests since the start of the process.
    sent: AtomicUsize,
    system_roots: RootCertStore,
    system_clients: Scoped<Arc<Pool>>,
    bundled: Mutex<Bundled>,
}

/// One value for MailProviders and one for ClusterMailProviders, which may be allowed to connect to more addresses.
struct Scoped<T> {
    namespaced: T,
    cluster: T,
}

impl<T> Scoped<T> {
    fn get(&self, for_cluster: bool) -> &T {
        if for_cluster { &self.cluster } else { &self.namespaced }
    }
}

impl IdpClients {
    /// Reads the system's roots and builds the client that trusts only them.
    ///
    /// # Errors
    /// If no request could work: the proxy's URL cannot be used, or the TLS library does not start.
    pub fn new(settings: Settings, clock: Clock) -> Result<Self, SetupError> {
        let policy = Arc::new(settings.egress.clone());
        let system_roots = tls::system_roots();
        let tls = tls_config(system_roots.clone()).map_err(SetupError::Tls)?;
        let client = Arc::new(Pool::new(&settings, &policy, &tls, None)?);
        let mut policies = Scoped { namespaced: policy.clone(), cluster: policy };
        let mut system_clients = Scoped { namespaced: client.clone(), cluster: client };
        if settings.egress.differs_for_cluster() {
            policies.cluster = Arc::new(settings.egress.for_cluster());
            system_clients.cluster = Arc::new(Pool::new(&settings, &policies.cluster, &tls, None)?);
        }
        let shared = Shared {
            settings,
            policies,
            clock,
            sent: AtomicUsize::new(0),
            system_roots,
            system_clients,
            bundled: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared), for_cluster: false })
    }

    /// Returns the clients for ClusterMailProviders, to which `--allow-private-cidr-cluster` applies.
    pub fn for_cluster(&self) -> Self {
        Self { for_cluster: self.shared.settings.egress.differs_for_cluster(), ..self.clone() }
    }

    /// Returns the permitted addresses and the proxy (without its password) as text, for comparisons.
    pub fn reach(&self) -> String {
        let Settings { egress, proxy, no_proxy, .. } = &self.shared.settings;
        let proxy = proxy.as_ref().map(|url| (url.host_str(), url.port_or_known_default()));
        format!("{proxy:?} {no_proxy:?} {}", egress.ranges())
    }

    /// Returns the client that trusts the system's roots and the certificates in `ca_bundle` (PEM).
    pub fn for_trust(&self, ca_bundle: Option<&[u8]>) -> Result<IdpClient, BundleError> {
        let pool = match ca_bundle {
            None => self.shared.system_clients.get(self.for_cluster).clone(),
            Some(bundle) => self.shared.pool_for(bundle, self.for_cluster)?,
        };
        Ok(IdpClient { pool, shared: self.shared.clone() })
    }
}

impl Shared {
    /// Returns the timeout of the next request: the configured timeout, or up to a tenth less. Requests that leave
    /// together and get no response then end at different times. So the broker does not write all their results to
    /// Kubernetes at the same time.
    fn staggered_timeout(&self) -> Duration {
        let place = self.sent.fetch_add(1, Ordering::Relaxed) % SPREAD;
        let limit = self.settings.request_timeout;
        limit - limit.mul_f64(place as f64 / (10 * SPREAD) as f64)
    }

    fn pool_for(&self, bundle: &[u8], for_cluster: bool) -> Result<Arc<Pool>, BundleError> {
        tls::check_size(bundle)?;
        let hash: BundleHash = (Sha256::digest(bundle).into(), for_cluster);
        if let Some(pool) = self.bundled().find(hash) {
            return Ok(pool);
        }
        let mut roots = self.system_roots.clone();
        let skipped = tls::add_bundle(&mut roots, bundle)?;
        let tls = tls_config(roots).map_err(|_| BundleError::Unusable)?;
        let policy = self.policies.get(for_cluster);
        let mut pool = Pool::new(&self.settings, policy, &tls, Some(hash)).map_err(|_| BundleError::Unusable)?;
        pool.skipped = skipped;
        Ok(self.bundled().keep(hash, Arc::new(pool)))
    }

    fn bundled(&self) -> std::sync::MutexGuard<'_, Bundled> {
        self.bundled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tls_config(roots: RootCertStore) -> Result<rustls::ClientConfig, rustls::Error> {
    let mut config = tls::client_config(roots)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Sends requests to providers. Clones are cheap. The caller keeps a client while it has requests to send.
#[derive(Clone)]
pub struct IdpClient {
    pool: Arc<Pool>,
    shared: Arc<Shared>,
}

/// An approved destination: the URL's scheme is https, and the policy permits the address if the URL contains one.
pub struct ApprovedTarget<'a> {
    client: &'a IdpClient,
    target: Target,
}

impl ApprovedTarget<'_> {
    /// Sends `request`, whose URI must be the approved one.
    pub async fn send(self, mut request: http::Request<Vec<u8>>) -> Result<Exchange, TransportError> {
        if let Entry::Occupied(mut values) = request.headers_mut().entry(AUTHORIZATION) {
            values.iter_mut().for_each(|value| value.set_sensitive(true));
        }
        let shared = &*self.client.shared;
        let sent_at = shared.clock.now();
        let limit = shared.settings.request_timeout;
        fail_point::pass("before-request").await;
        let answered =
            tokio::time::timeout(shared.staggered_timeout(), self.client.exchange(request, &self.target)).await;
        fail_point::pass("answer-received").await;
        match answered {
            Ok(answered) => answered.map(|response| Exchange { sent_at, response }),
            Err(_) => Err(TransportError::TimedOut { host: self.target.host, after: limit }),
        }
    }
}

/// A request and its response.
pub struct Exchange {
    /// The time at which the client sent the request. The lifetime of a token counts from this time.
    pub sent_at: Timestamp,
    /// The response, with any status. Header values are marked sensitive. The caller must not log the body.
    pub response: http::Response<Zeroizing<Vec<u8>>>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("sent_at", &self.sent_at)
            .field("status", &self.response.status())
            .field("body_length", &self.response.body().len())
            .finish_non_exhaustive()
    }
}

impl IdpClient {
    /// Returns the blocks of the CA bundle that are not certificates, if any.
    pub fn skipped(&self) -> Option<&Skipped> {
        self.pool.skipped.as_ref()
    }

    /// Returns the CA bundle that the client trusts in addition to the system's roots. The client for each distinct
    /// bundle takes 0.1 to 0.4 MB.
    pub fn bundle(&self) -> Option<BundleHash> {
        self.pool.bundle
    }

    /// Sends `request`, unless `still_allowed` returns false. The client calls `still_allowed` immediately before it
    /// sends.
    ///
    /// A response with any status is a success, including a redirect. Dropping the future cancels the request.
    pub async fn send(
        &self,
        request: http::Request<Vec<u8>>,
        still_allowed: impl FnOnce() -> bool + Send,
    ) -> Result<Exchange, TransportError> {
        let target = self.approve(request.uri())?;
        if still_allowed() { target.send(request).await } else { Err(TransportError::Withheld) }
    }

    /// Checks the destination of a request. The caller can then prepare the request, for example by writing a claim.
    pub fn approve(&self, uri: &http::Uri) -> Result<ApprovedTarget<'_>, TransportError> {
        let target = Target::of(uri)?;
        if let Some(literal) = target.literal {
            self.pool.policy.judge(literal).map_err(|denied| target.denied(denied))?;
        }
        Ok(ApprovedTarget { client: self, target })
    }

    async fn exchange(
        &self,
        request: http::Request<Vec<u8>>,
        target: &Target,
    ) -> Result<http::Response<Zeroizing<Vec<u8>>>, TransportError> {
        let client = self.pool.route(target, &self.shared.settings.no_proxy).await?;
        let (parts, body) = request.into_parts();
        let mut outgoing = reqwest::Request::new(parts.method, target.url.clone());
        *outgoing.headers_mut() = parts.headers;
        *outgoing.body_mut() = Some(Bytes::from_owner(Zeroizing::new(body)).into());

        let failed = |error| self.failure(error, target);
        let mut incoming = client.execute(outgoing).await.map_err(failed)?;
        let body = read_body(&mut incoming, failed).await?;
        let body = encoding::decoded(incoming.headers_mut(), body, BODY_LIMIT).map_err(|flaw| match flaw {
            encoding::Flaw::TooLarge => TransportError::BodyTooLarge { limit: BODY_LIMIT },
            encoding::Flaw::Broken => TransportError::BadEncoding,
        })?;
        let mut response = http::Response::new(body);
        *response.status_mut() = incoming.status();
        *response.version_mut() = incoming.version();
        *response.headers_mut() = std::mem::take(incoming.headers_mut());
        response.headers_mut().values_mut().for_each(|value| value.set_sensitive(true));
        Ok(response)
    }

    fn failure(&self, error: reqwest::Error, target: &Target) -> TransportError {
        error::classify(&error, &target.host, self.shared.settings.request_timeout)
    }
}

async fn read_body(
    response: &mut reqwest::Response,
    failed: impl Fn(reqwest::Error) -> TransportError,
) -> Result<Zeroizing<Vec<u8>>, TransportError> {
    let too_large = || TransportError::BodyTooLarge { limit: BODY_LIMIT };
    let announced = usize::try_from(response.content_length().unwrap_or(0)).unwrap_or(usize::MAX);
    if announced > BODY_LIMIT {
        return Err(too_large());
    }
    let mut body = Zeroizing::new(Vec::with_capacity(announced));
    while let Some(chunk) = response.chunk().await.map_err(&failed)? {
        if body.len() + chunk.len() > BODY_LIMIT {
            return Err(too_large());
        }
        append(&mut body, &chunk);
    }
    Ok(body)
}

/// Appends `chunk`. If the buffer is too small, copies it into a larger buffer and wipes the smaller one, which `Vec`
/// would not wipe.
fn append(body: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    let length = body.len() + chunk.len();
    if length > body.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(length.next_power_of_two()));
        larger.extend_from_slice(body);
        *body = larger;
    }
    body.extend_from_slice(chunk);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn requests_that_go_out_together_do_not_time_out_together() {
        let request_timeout = Duration::from_secs(10);
        let settings = Settings { request_timeout, egress: EgressPolicy::default(), proxy: None, no_proxy: vec![] };
        let clients = IdpClients::new(settings, Clock::system()).unwrap();
        let ends: BTreeSet<_> = (0..SPREAD).map(|_| clients.shared.staggered_timeout()).collect();
        assert_eq!(ends.len(), SPREAD);
        assert_eq!(ends.last(), Some(&request_timeout));
        assert!(*ends.first().unwrap() > request_timeout * 9 / 10);
    }
}
