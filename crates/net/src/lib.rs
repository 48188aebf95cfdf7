//! Connections to identity providers: the HTTP client, the addresses that it may connect to, and the clock. Nothing in this
//! package knows Kubernetes or the decisions of the broker.

pub mod clock;
pub mod egress;
pub mod fail_point;
pub mod idp;
