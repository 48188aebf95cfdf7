//! The OAuth client on Kubernetes: access to the API server, the resolution of a provider with the objects that it
//! refers to, and the command `login`. This package does not know the broker: it has no watch, no reconcile and no
//! lease.

pub mod error;
pub mod kubernetes;
pub mod login;
pub mod provider_client;
pub mod settings;

use mailtoken_core::{api, oauth, policy, providers};
use mailtoken_net::{clock, egress, idp};
