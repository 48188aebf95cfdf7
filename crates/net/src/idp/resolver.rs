//! The resolver of the client for providers.

use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::egress::EgressPolicy;

/// A resolver that returns only permitted addresses.
///
/// An address in a URL does not reach the resolver; [`EgressPolicy::judge`] must judge it.
#[derive(Clone, Debug)]
pub(super) struct GuardedResolver {
    policy: Arc<EgressPolicy>,
    exempt: Option<String>,
}

impl GuardedResolver {
    /// Creates a resolver that returns the addresses that `policy` permits.
    pub(super) fn new(policy: Arc<EgressPolicy>) -> Self {
        Self { policy, exempt: None }
    }

    /// Exempts one name from the policy: the name of the egress proxy. The administrator chose the proxy, and its
    /// address is rarely public.
    pub(super) fn exempt(self, host: String) -> Self {
        Self { exempt: Some(host), ..self }
    }

    fn is_exempt(&self, host: &str) -> bool {
        self.exempt.as_deref() == Some(host)
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let (policy, host) = (&resolver.policy, name.as_str());
            let addresses =
                if resolver.is_exempt(host) { policy.unjudged(host).await } else { policy.permitted(host).await };
            Ok(Box::new(addresses?.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_exempt_name_is_not_checked() {
        let guarded = GuardedResolver::new(Arc::new(EgressPolicy::default()));
        let localhost = || "localhost".parse::<Name>().unwrap();
        assert!(guarded.clone().exempt("localhost".to_owned()).resolve(localhost()).await.is_ok());
        assert!(guarded.exempt("proxy.test".to_owned()).resolve(localhost()).await.is_err());
    }
}
