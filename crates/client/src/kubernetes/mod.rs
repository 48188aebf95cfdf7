//! The client for the API server: its credentials, its proxy, and the headers and time limits of its requests.
//!
//! The broker builds kube's stack of layers itself, for three reasons:
//! - kube compares `NO_PROXY` with the proxy's address instead of the API server's, and fails to start if `NO_PROXY`
//!   has an empty entry.
//! - Inside a cluster, kube ignores the proxy variables, unlike kubectl and every controller in Go.
//! - kube's tracing layer logs an ERROR for each failed call, without an address: about two lines a second during an
//!   outage of the API server.

mod list_limit;
mod proxy;
mod reachability;

use std::{path::Path, sync::Arc, time::Duration};

use http::header::{HeaderValue, USER_AGENT};
use hyper::rt::{Read, Write};
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::connect::{
        Connection as Connected, HttpConnector,
        proxy::{SocksV5, Tunnel},
    },
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{ClientBuilder, ConfigExt as _, retry::RetryPolicy},
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use secrecy::SecretString;
use thiserror::Error;
use tower::{BoxError, Service, ServiceBuilder, layer::layer_fn, retry::RetryLayer, timeout::TimeoutLayer};

use self::{
    list_limit::ListLimit,
    proxy::{Environment, Scheme},
    reachability::Reachability,
};

pub use self::{
    list_limit::is_too_long,
    proxy::{Proxy, ProxyError},
};

/// User-Agent of the broker's requests, for the audit log and API Priority and Fairness.
pub const AGENT: &str = concat!("mail-token-broker/", env!("CARGO_PKG_VERSION"));

/// Time limit of one API call, including the retries of kube's retry layer, whose back-off grows to minutes. Callers
/// retry.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time without data after which a connection to the API server counts as dead. A watch receives a bookmark each
/// minute.
const SILENCE: Duration = Duration::from_secs(75);
/// Placeholder for a kubeconfig's cluster without `proxy-url`. Without the placeholder, kube would read the environment
/// by its own rules.
const UNSET_PROXY: &str = "http://proxy-url-is-not-set.invalid";

/// Reasons why the broker has no access to Kubernetes.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The kubeconfig, or its context, cannot be used.
    #[error("the kubeconfig cannot be used: {0}")]
    Kubeconfig(#[source] KubeconfigError),
    /// There is neither a kubeconfig nor a ServiceAccount.
    #[error(
        "no access to Kubernetes: neither a kubeconfig ({kubeconfig}) nor a pod's ServiceAccount ({pod}) can be used. Set KUBECONFIG to the file that `kubectl` uses"
    )]
    Nothing {
        /// Why the kubeconfig cannot be used.
        kubeconfig: KubeconfigError,
        /// Why the pod's ServiceAccount cannot be used.
        pod: InClusterError,
    },
    /// A proxy variable of the environment, or `proxy-url` of the kubeconfig, cannot be used.
    #[error("the proxy for the API server cannot be used: {0}")]
    Proxy(#[source] ProxyError),
    /// A client certificate, a token or a CA cannot be used.
    #[error("the client for the API server cannot be created: {}", chain(.0))]
    Client(#[source] kube::Error),
}

/// Returns the text of an error and of all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Address and credentials for the API server. Clones are cheap.
#[derive(Clone)]
pub struct Connection {
    config: Config,
    proxy: Option<Proxy>,
    reachability: Arc<Reachability>,
    /// Maximum size of a page of a list in bytes.
    longest_list: usize,
}

impl Connection {
    /// Finds the connection by kubectl's rules: the kubeconfig of `--kubeconfig`, otherwise of `KUBECONFIG`, otherwise
    /// `~/.kube/config`, otherwise the pod's ServiceAccount. `context` names a context of the kubeconfig.
    ///
    /// # Errors
    /// If none of them can be used, or if the kubeconfig or context that the user named cannot be used.
    pub async fn find(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Self, AccessError> {
        let named = kubeconfig.is_some() || context.is_some();
        let config = match from_kubeconfig(kubeconfig, context).await {
            Ok(config) => config,
            Err(error) if named => return Err(AccessError::Kubeconfig(error)),
            Err(kubeconfig) => Config::incluster().map_err(|pod| AccessError::Nothing { kubeconfig, pod })?,
        };
        let proxy = proxy_of(&config, &Environment::read()).map_err(AccessError::Proxy)?;
        Ok(Self::new(config, proxy))
    }

    /// Creates the connection that `config` describes, through `proxy`.
    pub fn new(mut config: Config, proxy: Option<Proxy>) -> Self {
        config.proxy_url = None;
        config.read_timeout = Some(SILENCE);
        // Without this setting, idle time of a connection counts towards `read_timeout`.
        config.reset_reader_on_write = true;
        config.headers.retain(|(name, _)| name != USER_AGENT);
        config.headers.push((USER_AGENT, HeaderValue::from_static(AGENT)));
        let reachability = Arc::new(Reachability::new(config.cluster_url.to_string(), proxy.as_ref()));
        Self { config, proxy, reachability, longest_list: usize::MAX }
    }

    /// Sets the maximum size of a page of a list in bytes. A longer page is an error: [`is_too_long`].
    pub fn with_longest_list(self, bytes: usize) -> Self {
        Self { longest_list: bytes, ..self }
    }

    /// Returns a connection to the same API server, with this token as its only credential.
    pub fn as_bearer(&self, token: Option<SecretString>) -> Self {
        let mut bearer = self.clone();
        bearer.config.auth_info = kube::config::AuthInfo::default();
        bearer.config.auth_info.token = token;
        bearer
    }

    /// Returns the namespace of the kubeconfig's context, or the pod's namespace.
    pub fn default_namespace(&self) -> &str {
        &self.config.default_namespace
    }

    /// Creates a client. Its connections belong to the runtime of the caller.
    ///
    /// # Errors
    /// If a certificate, key or token cannot be used.
    pub fn client(&self) -> kube::Result<Client> {
        // Two crypto providers are among the dependencies, so rustls does not choose one. An error means that a
        // provider is already installed, which is fine.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let mut direct = HttpConnector::new();
        direct.enforce_http(false);
        let Some(proxy) = &self.proxy else { return self.client_over(direct) };
        match proxy.scheme {
            Scheme::Http => self.client_over(tunnel(proxy, direct)),
            // kubectl does the same: the API server's roots also verify the proxy's certificate.
            Scheme::Https => {
                self.client_over(tunnel(proxy, self.config.rustls_https_connector_with_connector(direct)?))
            }
            Scheme::Socks5 => {
                let socks = SocksV5::new(proxy.uri.clone(), direct);
                match &proxy.credentials {
                    Some((user, password)) => self.client_over(socks.with_auth(user.clone(), password.clone())),
                    None => self.client_over(socks),
                }
            }
        }
    }

    fn client_over<C>(&self, connector: C) -> kube::Result<Client>
    where
        C: Service<http::Uri> + Clone + Send + Sync + 'static,
        C::Response: Connected + Read + Write + Send + Unpin + 'static,
        C::Future: Send + 'static,
        C::Error: Into<BoxError> + Send + Sync + std::error::Error + 'static,
    {
        let config = &self.config;
        let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(connector)?);
        connector.set_connect_timeout(config.connect_timeout);
        connector.set_read_timeout(config.read_timeout);
        connector.set_write_timeout(config.write_timeout);
        connector.set_reset_reader_on_write(config.reset_reader_on_write);
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
        let (reachability, longest) = (self.reachability.clone(), self.longest_list);
        let service = ServiceBuilder::new()
            .layer(layer_fn(|inner| ListLimit { inner, longest }))
            .map_result(move |result: Result<_, BoxError>| {
                reachability.note(result.as_ref().err());
                result
            })
            .layer(TimeoutLayer::new(CALL_TIMEOUT))
            .layer(config.base_uri_layer())
            .layer(RetryLayer::new(RetryPolicy::server_retry()))
            .option_layer(config.auth_layer()?)
            .layer(config.extra_headers_layer()?)
            .map_err(BoxError::from)
            .service(http);
        Ok(ClientBuilder::new(service, config.default_namespace.clone()).build())
    }
}

fn tunnel<C>(proxy: &Proxy, connector: C) -> Tunnel<C> {
    let tunnel = Tunnel::new(proxy.uri.clone(), connector);
    match proxy.authorization() {
        Some(value) => tunnel.with_auth(value),
        None => tunnel,
    }
}

async fn from_kubeconfig(file: Option<&Path>, context: Option<&str>) -> Result<Config, KubeconfigError> {
    let mut kubeconfig = match file {
        Some(file) => Kubeconfig::read_from(file)?,
        None => Kubeconfig::read()?,
    };
    for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        let given = cluster.proxy_url.take().filter(|url| !url.is_empty());
        cluster.proxy_url = Some(given.unwrap_or_else(|| UNSET_PROXY.to_owned()));
    }
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    // A credential plugin receives the cluster, so the cluster must not contain the placeholder.
    if let Some(cluster) = config.auth_info.exec.as_mut().and_then(|exec| exec.cluster.as_mut()) {
        cluster.proxy_url = cluster.proxy_url.take().filter(|url| url != UNSET_PROXY);
    }
    Ok(config)
}

/// Returns the proxy of a configuration: `proxy-url` of the kubeconfig for any host, otherwise the proxy of the
/// environment.
fn proxy_of(config: &Config, environment: &Environment) -> Result<Option<Proxy>, ProxyError> {
    match &config.proxy_url {
        Some(url) if url.host() != UNSET_PROXY.strip_prefix("http://") => {
            Proxy::parse("proxy-url of the kubeconfig", &url.to_string()).map(Some)
        }
        _ => environment.proxy_for(&config.cluster_url),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = r#"
        {apiVersion: v1, kind: Config, current-context: a,
         contexts: [{name: a, context: {cluster: a, namespace: shop, user: plugin}}, {name: b, context: {cluster: b}}],
         clusters: [{name: a, cluster: {server: "https://a.example:6443"}},
                    {name: b, cluster: {server: "https://b.example", proxy-url: "http://u:p%40ss@proxy.example:3128"}}],
         users: [{name: plugin, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: "true",
                                              interactiveMode: Never, provideClusterInfo: true}}}]}
    "#;

    async fn config(context: &str) -> Result<Config, KubeconfigError> {
        static FILES: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = FILES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("mtb-kubeconfig-{}-{number}", std::process::id()));
        std::fs::write(&file, KUBECONFIG).unwrap();
        let config = from_kubeconfig(Some(&file), Some(context)).await;
        std::fs::remove_file(&file).unwrap();
        config
    }

    #[tokio::test]
    async fn a_context_decides_about_server_namespace_and_proxy() {
        let environment = Environment { https: Some("http://env.example".into()), ..Environment::default() };
        let a = config("a").await.unwrap();
        assert_eq!(
            (a.cluster_url.to_string().as_str(), a.default_namespace.as_str()),
            ("https://a.example:6443/", "shop")
        );
        assert_eq!(proxy_of(&a, &environment).unwrap().unwrap().uri, "http://env.example:80");
        assert_eq!(proxy_of(&a, &Environment::default()).unwrap(), None);
        let shown = a.auth_info.exec.as_ref().unwrap().cluster.as_ref().unwrap();
        assert_eq!((shown.server.as_deref(), shown.proxy_url.as_deref()), (Some("https://a.example:6443"), None));
        let b = config("b").await.unwrap();
        let everything = Environment { no_proxy: "*".into(), ..environment };
        let proxy = proxy_of(&b, &everything).unwrap().unwrap();
        assert_eq!(proxy.uri, "http://proxy.example:3128");
        assert_eq!(proxy.authorization().unwrap(), "Basic dTpwQHNz");
        assert!(config("c").await.is_err_and(|error| error.to_string().contains('c')));
    }

    #[tokio::test]
    async fn a_client_is_made_for_each_kind_of_proxy() {
        let config = config("b").await.unwrap();
        for proxy in [None, Some("http://p"), Some("https://p:8443"), Some("socks5://u:p@p")] {
            let proxy = proxy.map(|url| Proxy::parse("test", url).unwrap());
            Connection::new(config.clone(), proxy).client().unwrap();
        }
    }
}
