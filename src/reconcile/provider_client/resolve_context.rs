//! What the resolution of a provider uses.

use kube::Client;

use crate::{idp::IdpClients, reconcile::provider_client::federation::Identities};

/// With what a provider is looked at.
pub(crate) struct ResolveContext<'a> {
    /// Kubernetes.
    pub kubernetes: &'a Client,
    /// Where the objects that the provider refers to stand.
    pub home: &'a str,
    /// The clients towards providers.
    pub clients: &'a IdpClients,
    /// Where ServiceAccount tokens come from.
    pub identities: &'a Identities,
    /// Whether the provider may be asked: only the broker that leads does.
    pub may_ask: &'a (dyn Fn() -> bool + Send + Sync),
    /// What is done about a failure that may pass.
    pub again: &'static str,
}
