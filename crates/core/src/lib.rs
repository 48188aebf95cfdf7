//! What the broker decides and what it says on the wire, as pure functions and types: no clock, no socket, no Kubernetes
//! client.

pub mod api;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod oauth;
pub mod policy;
pub mod providers;
pub mod render;
