//! The contract with users: the three kinds, their conditions, and every name that a user can see.
//!
//! From the rest of the project, this module uses only the names of the Secret's keys and of the mail protocols.

pub mod authentication;
pub mod condition;
pub mod credential;
pub mod grant;
pub mod names;
pub mod probe;
pub mod provider;
pub mod provider_object;
pub mod reference;
mod schema;
pub mod secret_keys;
pub mod status;

pub use condition::{ConditionType, Reason, Retry};
pub use credential::{MailCredential, MailCredentialSpec};
pub use provider::{ClusterMailProvider, MailProvider, ProviderSpec, ProviderStatus};
pub use status::MailCredentialStatus;

/// The API group of all three kinds.
pub const GROUP: &str = "mailtoken.dev";
/// The API version of all three kinds.
pub const VERSION: &str = "v1alpha1";

/// Returns the three CustomResourceDefinitions, as in `crds/`.
pub fn crds() -> Vec<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition> {
    use kube::CustomResourceExt as _;
    let credential = schema::lean(MailCredential::crd());
    [credential, MailProvider::crd(), ClusterMailProvider::crd()].into_iter().map(schema::finish).collect()
}
