//! Connections to identity providers and mail servers: the HTTP client, the login at mail servers, the permitted
//! addresses, and the clock. This package knows neither Kubernetes nor the broker's decisions.
//!
//! Without the feature `http` the package has no HTTP client.

pub mod clock;
pub mod egress;
pub mod fail_point;
#[cfg(feature = "http")]
pub mod idp;
pub mod mail;
pub mod tls;
