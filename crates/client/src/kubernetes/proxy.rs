//! The proxy variables of the environment, with the rules of Go's `httpproxy`, which kubectl and every controller in Go use.

use std::{fmt, net::IpAddr};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderValue, Uri};
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use thiserror::Error;
use url::Url;

/// The proxy for requests to the API server.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub(super) scheme: Scheme,
    /// Scheme, host and port, without credentials.
    pub(super) uri: Uri,
    pub(super) credentials: Option<(String, String)>,
}

/// The protocol of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
    Socks5,
}

/// Error for a proxy URL that cannot be used. The error does not contain the URL, which may contain a password.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{place} is no URL of a proxy: write http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT")]
pub struct ProxyError {
    place: String,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Proxy").field(&self.uri).finish()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

impl Proxy {
    /// Parses the URL of a proxy; the default scheme is `http`. `place` names the variable or field in an error.
    ///
    /// # Errors
    /// If the URL has no host, or another scheme than http, https, socks5 and socks5h.
    pub fn parse(place: &str, url: &str) -> Result<Self, ProxyError> {
        let error = || ProxyError { place: place.to_owned() };
        let url = url.trim();
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let url = Url::parse(&url).map_err(|_| error())?;
        let (scheme, name, port) = match url.scheme() {
            "http" => (Scheme::Http, "http", 80),
            "https" => (Scheme::Https, "https", 443),
            "socks5" | "socks5h" => (Scheme::Socks5, "socks5", 1080),
            _ => return Err(error()),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(error)?;
        let uri = format!("{name}://{host}:{}", url.port().unwrap_or(port)).parse().map_err(|_| error())?;
        let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let credentials =
            (!url.username().is_empty()).then(|| (plain(url.username()), plain(url.password().unwrap_or_default())));
        Ok(Self { scheme, uri, credentials })
    }

    /// Returns the value of the header `Proxy-Authorization`.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        let (user, password) = self.credentials.as_ref()?;
        let mut value =
            HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// The values of the proxy variables.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment {
    pub(super) https: Option<String>,
    pub(super) http: Option<String>,
    pub(super) no_proxy: String,
}

impl Environment {
    /// Reads `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`. If a variable is empty, reads the variable with the name in
    /// lower case.
    pub(super) fn read() -> Self {
        let read = |name: &str| {
            let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            value(name).or_else(|| value(&name.to_lowercase()))
        };
        Self { https: read("HTTPS_PROXY"), http: read("HTTP_PROXY"), no_proxy: read("NO_PROXY").unwrap_or_default() }
    }

    /// Returns the proxy for a URL; `None` if no proxy is set, `NO_PROXY` exempts the host, or the host is a loopback
    /// address.
    pub(super) fn proxy_for(&self, url: &Uri) -> Result<Option<Proxy>, ProxyError> {
        let (variable, proxy, port) = match url.scheme_str() {
            Some("http") => ("HTTP_PROXY", &self.http, 80),
            _ => ("HTTPS_PROXY", &self.https, 443),
        };
        let (Some(proxy), Some(host)) = (proxy, url.host()) else { return Ok(None) };
        let host = host.trim_matches(['[', ']']).to_lowercase();
        if self.exempts(&host, url.port_u16().unwrap_or(port)) {
            return Ok(None);
        }
        Proxy::parse(&format!("{variable} in the environment"), proxy).map(Some)
    }

    fn exempts(&self, host: &str, port: u16) -> bool {
        let address = host.parse::<IpAddr>().ok();
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        let entries = self.no_proxy.split(',').map(|entry| entry.trim().to_lowercase());
        entries.filter(|entry| !entry.is_empty()).any(|entry| is_exempt_by(&entry, host, address, port))
    }
}

/// Whether one entry of `NO_PROXY` exempts a host: `*`, an address, a CIDR, a name (with its subdomains), `.suffix` or
/// `*.suffix` (only the subdomains). An address or name may have a port.
fn is_exempt_by(entry: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    if let Ok(range) = entry.parse::<IpNet>() {
        return address.is_some_and(|address| range.contains(&address));
    }
    let bare = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    let (name, wanted) = match entry.rsplit_once(':') {
        Some((name, digits)) if bare(entry).is_none() => (name, digits.parse::<u16>().ok()),
        _ => (entry, None),
    };
    if wanted.is_some_and(|wanted| wanted != port) {
        return false;
    }
    if let Some(exempt) = bare(name) {
        return address == Some(exempt);
    }
    let name = name.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(name);
    match name.strip_prefix('.') {
        Some("") | None if name.trim_matches('.').is_empty() => false,
        Some(_) => host.ends_with(name),
        None => host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(url: &str, no_proxy: &str) -> bool {
        let https = Some("proxy.example:3128".to_owned());
        let environment = Environment { https, http: None, no_proxy: no_proxy.to_owned() };
        let proxy = environment.proxy_for(&url.parse().unwrap()).unwrap();
        assert!(proxy.as_ref().is_none_or(|proxy| proxy.uri == "http://proxy.example:3128"));
        proxy.is_some()
    }

    #[test]
    fn no_proxy_is_read_as_kubectl_reads_it() {
        let api = "https://api.k8s.example.org:6443";
        for (url, no_proxy, expected) in [
            (api, "", true),
            (api, "*", false),
            (api, "api.k8s.example.org", false),
            (api, "API.k8s.Example.org", false),
            (api, " other.example, api.k8s.example.org ,", false),
            (api, "example.org", false),
            (api, "ample.org", true),
            (api, ".example.org", false),
            (api, "*.example.org", false),
            (api, ".api.k8s.example.org", true),
            (api, "api.k8s.example.org:6443", false),
            (api, "api.k8s.example.org:443", true),
            ("https://api.example.org", "api.example.org:443", false),
            (api, ",,", true),
            (api, ".", true),
            (api, "10.0.0.0/8", true),
            ("https://10.96.0.1", "10.0.0.0/8", false),
            ("https://10.96.0.1", "10.96.0.1", false),
            ("https://10.96.0.1:6443", "10.96.0.1:6443", false),
            ("https://10.96.0.1:6443", "10.96.0.1:443", true),
            ("https://[fd00::1]:6443", "fd00::/8", false),
            ("https://[fd00::1]:6443", "fd00::1", false),
            ("https://[fd00::1]:6443", "[fd00::1]:6443", false),
            ("https://[fd00::1]:6443", "[fd00::1]:1", true),
            // Loopback never goes through a proxy.
            ("https://localhost:6443", "", false),
            ("https://127.0.0.1:6443", "", false),
            ("https://[::1]:6443", "", false),
            // HTTPS_PROXY does not apply to http.
            ("http://api.example.org", "", false),
        ] {
            assert_eq!(chosen(url, no_proxy), expected, "{url} with NO_PROXY={no_proxy}");
        }
    }

    #[test]
    fn a_proxy_has_a_port_and_its_credentials_are_decoded_and_never_shown() {
        for (url, uri) in [
            ("proxy", "http://proxy:80"),
            ("proxy:3128", "http://proxy:3128"),
            ("http://proxy/", "http://proxy:80"),
            ("https://proxy", "https://proxy:443"),
            ("socks5h://proxy", "socks5://proxy:1080"),
            ("http://[fd00::1]:3128", "http://[fd00::1]:3128"),
        ] {
            assert_eq!(Proxy::parse("X", url).unwrap().uri, uri, "{url}");
        }
        let proxy = Proxy::parse("X", "http://us%40er:p%3Ass@proxy:3128").unwrap();
        assert_eq!(proxy.credentials, Some(("us@er".to_owned(), "p:ss".to_owned())));
        assert!(!format!("{proxy:?} {proxy}").contains("ss@"));
        for url in ["ftp://proxy", "http://", "http://a b"] {
            let error = Proxy::parse("HTTPS_PROXY", url).unwrap_err().to_string();
            assert!(error.starts_with("HTTPS_PROXY is no URL of a proxy"), "{error}");
        }
    }
}
