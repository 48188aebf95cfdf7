//! Resolves a provider: reads the objects to which the provider refers, discovers its endpoints, and prepares its
//! client authentications.

pub mod authentication;
pub mod connection;
pub mod federation;
pub mod problem;
pub mod resolve;
pub mod resolve_context;
pub mod resolved_provider;
pub mod sources;
pub mod try_each;
