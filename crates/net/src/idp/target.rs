//! The destination of a request, from its URL.

use std::net::IpAddr;

use http::uri::Scheme;
use url::{Host, Url};

use super::TransportError;
use crate::egress::Denied;

/// The destination of a request.
pub(super) struct Target {
    pub(super) url: Url,
    pub(super) host: String,
    /// The address, if the host is an address. `Url` has already parsed decimal, octal, hexadecimal and short
    /// spellings.
    pub(super) literal: Option<IpAddr>,
}

impl Target {
    pub(super) fn of(uri: &http::Uri) -> Result<Self, TransportError> {
        if uri.scheme() != Some(&Scheme::HTTPS) {
            return Err(TransportError::UnsupportedScheme);
        }
        let invalid = |detail: &str| TransportError::InvalidUrl { detail: detail.to_owned() };
        let url = Url::parse(&uri.to_string()).map_err(|error| invalid(&error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("user information is not allowed"));
        }
        let (host, literal) = match url.host() {
            Some(Host::Domain(name)) => (name.to_owned(), None),
            Some(Host::Ipv4(address)) => (address.to_string(), Some(IpAddr::V4(address))),
            Some(Host::Ipv6(address)) => (address.to_string(), Some(IpAddr::V6(address))),
            None => return Err(invalid("there is no host")),
        };
        Ok(Self { url, host, literal })
    }

    pub(super) fn denied(&self, denied: Denied) -> TransportError {
        tracing::info!(host = self.host, address = %denied.address, range = denied.range, "egress denied");
        TransportError::EgressDenied { host: self.host.clone(), address: denied.address, range: denied.range }
    }
}
