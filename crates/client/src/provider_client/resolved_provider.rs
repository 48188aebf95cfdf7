//! A provider that is ready for use.

use crate::{idp::IdpClient, oauth::discovery::Endpoints, provider_client::authentication::Authentication};

/// The result of a provider's resolution.
pub struct ResolvedProvider {
    /// The provider's token endpoint and its other endpoints.
    pub endpoints: Endpoints,
    /// The client authentications, in the order of the spec.
    pub authentication: Vec<Authentication>,
    /// The client that trusts the provider's CA bundle.
    pub client: IdpClient,
}
