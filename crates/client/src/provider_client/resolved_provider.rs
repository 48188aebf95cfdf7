//! A provider that is ready for use.

use crate::{idp::IdpClient, oauth::discovery::Endpoints, provider_client::authentication::Authentication};

/// A provider, ready for use.
pub struct ResolvedProvider {
    /// The provider's token endpoint and its other endpoints.
    pub endpoints: Endpoints,
    /// The ways of client authentication, in the order of the spec.
    pub authentication: Vec<Authentication>,
    /// The client that trusts the provider's CA.
    pub client: IdpClient,
}
