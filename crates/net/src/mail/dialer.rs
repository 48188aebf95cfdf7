//! Dials mail servers with the restrictions of the HTTP client for providers: the egress policy and the egress proxy.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mailtoken_mail::{
    answers::Cause,
    dialogue::{Outcome, Purpose},
    sasl,
};
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore, client::Resumption, pki_types::ServerName};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::{
    MailServer,
    connect::connect,
    error::{DialError, Phase, io_problem},
    login::{Attempt, Deadline, address_literal, login, timed_out},
    tunnel,
};
use crate::{
    egress::{Denied, EgressPolicy, Route},
    idp::{Settings, SetupError},
    tls::{self, BundleError, tls_problem},
};

/// Number of parsed CA bundles to keep.
const RECENT_BUNDLES: usize = 8;

/// Time limits of one login.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time limit of name resolution and connection, including all addresses and the egress proxy.
    pub connect: Duration,
    /// Time limit of the whole login, including the connection.
    pub total: Duration,
}

impl Default for Limits {
    /// Returns limits of 5 and 15 seconds.
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), total: Duration::from_secs(15) }
    }
}

/// Dials mail servers. Clones are cheap.
#[derive(Clone)]
pub struct MailDialer {
    shared: Arc<Shared>,
    for_cluster: bool,
    limits: Limits,
}

struct Shared {
    settings: Settings,
    /// The addresses that servers of ClusterMailProviders may have.
    cluster_policy: EgressPolicy,
    system_roots: RootCertStore,
    system: Arc<ClientConfig>,
    /// The TLS configurations for the CA bundles that were used last, by the digest of the bundle.
    bundled: Mutex<VecDeque<([u8; 32], Arc<ClientConfig>)>>,
}

/// A connection, direct or through a proxy.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A connection, and the local address of its socket.
type Connected = (Box<dyn Connection>, Option<IpAddr>);

impl MailDialer {
    /// Creates a dialer with the egress policy, the egress proxy and the destinations without the proxy from
    /// `settings`.
    ///
    /// # Errors
    ///
    /// If the proxy's URL cannot be used or TLS does not start.
    pub fn new(settings: &Settings) -> Result<Self, SetupError> {
        if let Some(proxy) = &settings.proxy
            && (!matches!(proxy.scheme(), "http" | "https") || proxy.host().is_none())
        {
            return Err(SetupError::Proxy);
        }
        let system_roots = tls::system_roots();
        let system = Arc::new(tls_config(system_roots.clone()).map_err(SetupError::Tls)?);
        let cluster_policy = settings.egress.for_cluster();
        let settings = settings.clone();
        let shared = Shared { settings, cluster_policy, system_roots, system, bundled: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), for_cluster: false, limits: Limits::default() })
    }

    /// Returns the dialer for servers of ClusterMailProviders, to which `--allow-private-cidr-cluster` applies.
    pub fn for_cluster(&self) -> Self {
        Self { for_cluster: true, ..self.clone() }
    }

    /// Returns a dialer with other time limits.
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Logs in at `server`. The dialer trusts the system's roots and the certificates in `ca_bundle` (PEM).
    ///
    /// # Errors
    ///
    /// If the login ended without an answer of the server.
    pub async fn login(
        &self,
        server: &MailServer<'_>,
        ca_bundle: Option<&[u8]>,
        purpose: Purpose,
        user: &str,
        token: &SecretString,
    ) -> Result<Outcome, DialError> {
        if token.expose_secret().len() > sasl::MAX_TOKEN {
            return Ok(Outcome::Failed(Cause::TokenTooLong.into()));
        }
        let deadline = Deadline::after(self.limits.total);
        let tls = self.trust(ca_bundle)?;
        let connected = tokio::time::timeout(self.limits.connect, self.connect(server, &tls)).await;
        let (stream, local) = connected.map_err(|_| timed_out(server, Phase::Connection, self.limits.connect))??;
        let client_name = local.map(address_literal).unwrap_or_default();
        let attempt = Attempt { server: *server, tls, purpose, client_name: &client_name, user, token, deadline };
        login(stream, &attempt).await.map(|ended| ended.outcome)
    }

    fn trust(&self, ca_bundle: Option<&[u8]>) -> Result<Arc<ClientConfig>, BundleError> {
        let Some(bundle) = ca_bundle else { return Ok(self.shared.system.clone()) };
        tls::check_size(bundle)?;
        let hash = Sha256::digest(bundle).into();
        let mut bundled = self.shared.bundled.lock();
        if let Some((_, known)) = bundled.iter().find(|(other, _)| *other == hash) {
            return Ok(known.clone());
        }
        let mut roots = self.shared.system_roots.clone();
        tls::add_bundle(&mut roots, bundle)?;
        let config = Arc::new(tls_config(roots).map_err(|_| BundleError::Unusable)?);
        bundled.push_front((hash, config.clone()));
        bundled.truncate(RECENT_BUNDLES);
        Ok(config)
    }

    fn policy(&self) -> &EgressPolicy {
        if self.for_cluster { &self.shared.cluster_policy } else { &self.shared.settings.egress }
    }

    async fn connect(&self, server: &MailServer<'_>, tls: &Arc<ClientConfig>) -> Result<Connected, DialError> {
        let Settings { proxy, no_proxy, .. } = &self.shared.settings;
        let literal = server.host.parse::<IpAddr>().ok();
        if let Some(literal) = literal {
            self.policy().judge(literal).map_err(|denied| egress_denied(server.host, denied))?;
        }
        if let Some(proxy) = proxy {
            let route = self.policy().route(server.host, literal, no_proxy).await;
            if route.map_err(|denied| egress_denied(server.host, denied))? == Route::Proxied {
                return self.connect_through(proxy, server, tls).await;
            }
        }
        let addresses = match literal {
            Some(literal) => vec![SocketAddr::new(literal, server.port)],
            None => {
                let found = self.policy().permitted(server.host).await.map_err(DialError::not_resolved)?;
                found.into_iter().map(|found| SocketAddr::new(found.ip(), server.port)).collect()
            }
        };
        let stream = connect(&addresses).await.map_err(|error| DialError::not_connected(server, &error))?;
        let local = stream.local_addr().ok().map(|local| local.ip());
        Ok((Box::new(stream), local))
    }

    async fn connect_through(
        &self,
        proxy: &Url,
        server: &MailServer<'_>,
        tls: &Arc<ClientConfig>,
    ) -> Result<Connected, DialError> {
        let refused = |detail: String| DialError::Proxy { host: server.host.to_owned(), port: server.port, detail };
        let port = proxy.port_or_known_default().unwrap_or_default();
        let (addresses, name) = match proxy.host() {
            Some(Host::Ipv4(address)) => (vec![SocketAddr::new(address.into(), port)], None),
            Some(Host::Ipv6(address)) => (vec![SocketAddr::new(address.into(), port)], None),
            Some(Host::Domain(name)) => {
                let found =
                    self.policy().unjudged(name).await.map_err(|_| refused("its name did not resolve".to_owned()))?;
                (found.into_iter().map(|found| SocketAddr::new(found.ip(), port)).collect(), Some(name))
            }
            None => (vec![], None),
        };
        let stream = connect(&addresses).await.map_err(|error| refused(io_problem(&error)))?;
        let local = stream.local_addr().ok().map(|local| local.ip());
        let mut stream: Box<dyn Connection> = match (proxy.scheme(), addresses.first(), name) {
            ("https", Some(address), name) => {
                let name = match name {
                    Some(name) => {
                        ServerName::try_from(name.to_owned()).map_err(|_| refused("its name is invalid".to_owned()))?
                    }
                    None => ServerName::IpAddress(address.ip().into()),
                };
                let connected = TlsConnector::from(tls.clone()).connect(name, stream).await;
                Box::new(connected.map_err(|error| refused(tls_or_io(&error)))?)
            }
            _ => Box::new(stream),
        };
        tunnel::open(&mut stream, proxy, server.host, server.port).await.map_err(refused)?;
        Ok((stream, local))
    }
}

/// Returns a TLS configuration without session resumption. A resumed session skips the verification of the certificate,
/// so a probe would miss an expired certificate.
fn tls_config(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let mut config = tls::client_config(roots)?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn egress_denied(host: &str, denied: Denied) -> DialError {
    tracing::info!(host, address = %denied.address, range = denied.range, "egress denied");
    DialError::EgressDenied { host: host.to_owned(), address: denied.address, range: denied.range }
}

fn tls_or_io(error: &std::io::Error) -> String {
    let tls = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    tls.map_or_else(|| io_problem(error), |problem| format!("tls with it failed: {}", tls_problem(problem).1))
}
