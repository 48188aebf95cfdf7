//! Connections to identity providers and mail servers: the HTTP client, the login at mail servers, the addresses that may be
//! connected to, and the clock. Nothing in this package knows Kubernetes or the decisions of the broker.
//!
//! Without the feature `http` the package has no HTTP client.

pub mod clock;
pub mod egress;
pub mod fail_point;
#[cfg(feature = "http")]
pub mod idp;
pub mod mail;
pub mod tls;
