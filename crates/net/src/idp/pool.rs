//! Connection pools: one for each trust and egress policy, direct and through the egress proxy.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, header::ACCEPT_ENCODING};
use rustls::ClientConfig;
use url::Url;

use super::{Settings, SetupError, Skipped, TransportError, resolver::GuardedResolver, target::Target};
use crate::egress::{Direct, EgressPolicy, Route};

/// The User-Agent header of requests to providers.
const USER_AGENT: &str = concat!("mail-token-broker/", env!("CARGO_PKG_VERSION"));

/// Time after which the client closes an idle connection: long enough to reuse the connection in a burst, and shorter
/// than the 5 s of common servers. If the client writes a request while the server closes the connection, the request's
/// result is unknown.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum number of idle connections to one host. In a burst, the next request reuses an idle connection immediately.
const POOL_IDLE_PER_HOST: usize = 8;

/// Maximum number of header fields of an HTTP/1.1 response: hyper's default, set explicitly. hyper stops reading a head
/// at 400 KiB.
const HTTP1_HEADERS: usize = 100;

/// Maximum size in bytes of all header fields of an HTTP/2 response: hyper's default, set explicitly.
const HTTP2_HEADER_BYTES: u32 = 16 * 1024;

/// Bytes that an HTTP/2 server may send on a stream before the client reads them: the protocol's default instead of
/// hyper's 2 MiB.
const HTTP2_STREAM_WINDOW: u32 = 64 * 1024;

/// Bytes that an HTTP/2 server may send on all streams of a connection before the client reads them.
const HTTP2_CONNECTION_WINDOW: u32 = 512 * 1024;

/// Interval of pings on an HTTP/2 connection. A ping detects a dead connection, which requests would otherwise reuse
/// until TCP fails.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(5);

/// Number of unused clients for CA bundles to keep. A reconcile requests a client, uses it and drops it. The next
/// reconcile then finds the client's open connections.
const RECENT_CLIENTS: usize = 8;

/// Connection pools with one trust and one egress policy.
pub(super) struct Pool {
    direct: reqwest::Client,
    /// The pool for connections through the egress proxy, if the broker has one.
    proxied: Option<reqwest::Client>,
    pub(super) policy: Arc<EgressPolicy>,
    /// The blocks of the CA bundle that were skipped.
    pub(super) skipped: Option<Skipped>,
    /// The CA bundle that the pool trusts in addition to the system's roots.
    pub(super) bundle: Option<BundleHash>,
}

impl Pool {
    pub(super) fn new(
        settings: &Settings,
        policy: &Arc<EgressPolicy>,
        tls: &ClientConfig,
        bundle: Option<BundleHash>,
    ) -> Result<Self, SetupError> {
        let proxied = settings.proxy.as_ref().map(|proxy| build_client(settings, policy, tls.clone(), Some(proxy)));
        let direct = build_client(settings, policy, tls.clone(), None)?;
        Ok(Self { direct, proxied: proxied.transpose()?, policy: policy.clone(), skipped: None, bundle })
    }

    /// Chooses the direct pool or the pool of the egress proxy.
    pub(super) async fn route(&self, target: &Target, rules: &[Direct]) -> Result<&reqwest::Client, TransportError> {
        let Self { direct, proxied, policy, .. } = self;
        let Some(proxied) = proxied else { return Ok(direct) };
        match policy.route(&target.host, target.literal, rules).await {
            Ok(Route::Direct) => Ok(direct),
            Ok(Route::Proxied) => Ok(proxied),
            Err(denied) => Err(target.denied(denied)),
        }
    }
}

/// The pools for CA bundles: weak references to all pools in use, and the pools that were used last.
#[derive(Default)]
pub(super) struct Bundled {
    in_use: HashMap<BundleHash, Weak<Pool>>,
    recent: VecDeque<(BundleHash, Arc<Pool>)>,
}

/// Digest of a CA bundle, and whether the pool is for ClusterMailProviders.
pub type BundleHash = ([u8; 32], bool);

impl Bundled {
    pub(super) fn find(&mut self, hash: BundleHash) -> Option<Arc<Pool>> {
        let pool = self.in_use.get(&hash)?.upgrade()?;
        Some(self.keep(hash, pool))
    }

    pub(super) fn keep(&mut self, hash: BundleHash, pool: Arc<Pool>) -> Arc<Pool> {
        self.recent.retain(|(other, _)| *other != hash);
        self.recent.push_front((hash, pool.clone()));
        self.recent.truncate(RECENT_CLIENTS);
        self.in_use.retain(|_, other| other.strong_count() > 0);
        self.in_use.insert(hash, Arc::downgrade(&pool));
        pool
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that builds the client")]
fn build_client(
    settings: &Settings,
    policy: &Arc<EgressPolicy>,
    tls: ClientConfig,
    proxy: Option<&Url>,
) -> Result<reqwest::Client, SetupError> {
    let mut resolver = GuardedResolver::new(policy.clone());
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .user_agent(USER_AGENT)
        .default_headers(HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]))
        // hyper continues a cancelled connect in the background, so the connect needs a time limit.
        .connect_timeout(settings.request_timeout)
        .tcp_user_timeout(settings.request_timeout)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .pool_max_idle_per_host(POOL_IDLE_PER_HOST)
        .http1_max_headers(HTTP1_HEADERS)
        .http2_max_header_list_size(HTTP2_HEADER_BYTES)
        .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .http2_keep_alive_interval(HTTP2_PING_INTERVAL)
        .http2_keep_alive_timeout(HTTP2_PING_INTERVAL);
    if let Some(proxy) = proxy {
        let host = proxy.host_str().filter(|_| matches!(proxy.scheme(), "http" | "https"));
        resolver = resolver.exempt(host.ok_or(SetupError::Proxy)?.to_owned());
        builder = builder.proxy(reqwest::Proxy::all(proxy.clone()).map_err(|_| SetupError::Proxy)?);
    }
    builder.dns_resolver(resolver).build().map_err(SetupError::Client)
}
