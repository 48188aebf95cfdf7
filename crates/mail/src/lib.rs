//! What mail servers and mail programs read, as values: SASL responses and the names of the Secret's keys. This package
//! opens no socket, and depends on no other package of the project.

pub mod sasl;
pub mod secret_keys;
