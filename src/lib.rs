//! The broker as a library: rooms through which data flows one way.

pub mod api;
pub mod clock;
pub mod egress;
pub mod error;
pub mod idp;
pub mod oauth;
pub mod policy;
pub mod providers;
pub mod render;
pub mod sasl;
