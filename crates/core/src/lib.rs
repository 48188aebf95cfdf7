//! The broker's decisions and protocol messages, as pure functions and types. This crate has no clock, no socket and no
//! Kubernetes client.

pub mod api;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod oauth;
pub mod policy;
pub mod providers;
pub mod render;
