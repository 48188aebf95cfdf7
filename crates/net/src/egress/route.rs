//! The choice between a direct connection and the egress proxy.

use std::{net::IpAddr, time::Duration};

use super::{Denied, Direct, EgressPolicy};

/// Time limit of a name resolution. After it, the broker leaves the name to the egress proxy: a resolver without
/// outside access responds late or never.
const PROXIED_LOOKUP: Duration = Duration::from_secs(2);

/// How the broker reaches a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The broker connects to the destination directly.
    Direct,
    /// The broker connects through the egress proxy.
    Proxied,
}

impl EgressPolicy {
    /// Chooses the route to a host if the broker has an egress proxy. The proxy may connect to any address of a name,
    /// so the policy must permit all addresses that this resolver knows. The proxy resolves a name that does not
    /// resolve here: pods behind a proxy often cannot resolve outside names. The caller judges a `literal` address.
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
