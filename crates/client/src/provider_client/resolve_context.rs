//! The inputs of a provider's resolution.

use kube::Client;

use crate::{
    idp::{Exchange, IdpClients, TransportError},
    provider_client::{federation::Identities, sources::SourceReads},
};

/// The inputs of a provider's resolution.
pub struct ResolveContext<'a> {
    /// The client of the API server.
    pub kubernetes: &'a Client,
    /// Hooks around each read of a Secret; `None` in a command, which does not wait for changes of Secrets.
    pub reads: Option<&'a dyn SourceReads>,
    /// The namespace of the objects that the provider refers to.
    pub home: &'a str,
    /// The HTTP clients for providers.
    pub clients: &'a IdpClients,
    /// The sources of ServiceAccount tokens.
    pub identities: &'a Identities,
    /// Whether the broker may send requests: only the leader sends them.
    pub may_ask: &'a (dyn Fn() -> bool + Send + Sync),
    /// Called with the result of each request to the provider.
    pub ended: &'a (dyn Fn(&Result<Exchange, TransportError>) + Send + Sync),
    /// What happens after a transient failure, for messages: the broker retries, or the user runs the command again.
    pub again: &'static str,
}
