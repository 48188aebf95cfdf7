//! The choice between a direct connection and the egress proxy.

use std::{net::IpAddr, time::Duration};

use super::{Denied, Direct, EgressPolicy};

/// Time limit of a name resolution before the broker leaves the name to the egress proxy: a resolver without outside access
/// responds late or never.
const PROXIED_LOOKUP: Duration = Duration::from_secs(2);

/// How the broker reaches a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// By a connection of its own.
    Direct,
    /// Through the egress proxy.
    Proxied,
}

impl EgressPolicy {
    /// Chooses the route to a host while there is an egress proxy. The proxy connects to any address of a name, so all
    /// addresses that this resolver knows must be permitted. A name that does not resolve here is left to the proxy: pods
    /// behind a proxy often cannot resolve outside names. The caller judges a `literal` address itself.
    pub(crate) async fn route(
        &self,
        host: &str,
        literal: Option<IpAddr>,
        no_proxy: &[Direct],
    ) -> Result<Route, Denied> {
        if no_proxy.iter().any(|rule| rule.is_host(host)) {
            return Ok(Route::Direct);
        }
        if literal.is_some() {
            return Ok(Route::Proxied);
        }
        let Ok(Ok(resolution)) = tokio::time::timeout(PROXIED_LOOKUP, self.resolve(host)).await else {
            return Ok(Route::Proxied);
        };
        let direct = |found: &IpAddr| no_proxy.iter().any(|rule| rule.holds(*found));
        if !resolution.all.is_empty() && resolution.all.iter().all(direct) {
            return Ok(Route::Direct);
        }
        match resolution.denied {
            Some(denied) => Err(denied),
            None => Ok(Route::Proxied),
        }
    }
}
