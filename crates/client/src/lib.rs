//! The OAuth client on Kubernetes: access to the API server, a provider made ready for use with what it refers to, and the
//! command `login`. Nothing in this package knows the broker: no watch, no reconcile, no lease.

pub mod error;
pub mod kubernetes;
pub mod login;
pub mod provider_client;
pub mod settings;

use mailtoken_core::{api, oauth, policy, providers};
use mailtoken_net::{clock, egress, idp};
