//! What the resolution of a provider uses.

use kube::Client;

use crate::{
    idp::IdpClients,
    provider_client::{federation::Identities, sources::SourceReads},
};

/// What the resolution of a provider uses.
pub struct ResolveContext<'a> {
    /// The client of the API server.
    pub kubernetes: &'a Client,
    /// What is done around each read of a Secret; `None` where nothing waits for a change of it.
    pub reads: Option<&'a dyn SourceReads>,
    /// The namespace of the objects that the provider refers to.
    pub home: &'a str,
    /// The clients towards providers.
    pub clients: &'a IdpClients,
    /// Where ServiceAccount tokens come from.
    pub identities: &'a Identities,
    /// Whether requests may be sent: only the leader sends them.
    pub may_ask: &'a (dyn Fn() -> bool + Send + Sync),
    /// What is done about a transient failure, in words.
    pub again: &'static str,
}
