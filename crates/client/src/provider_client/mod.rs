//! A provider made ready for use: the objects that it refers to are read, its endpoints are discovered, and its client
//! authentications are prepared.

pub mod authentication;
pub mod connection;
pub mod federation;
pub mod problem;
pub mod resolve;
pub mod resolve_context;
pub mod resolved_provider;
pub mod sources;
pub mod try_each;
