//! Parts that the tests of the relay share: the built binary as a process, mounted Secrets, clients, and mail servers
//! that a test controls.

mod client;
mod mount;
mod process;
mod server;
mod trust;

pub use self::{
    client::Client,
    mount::{Folder, secret},
    process::Relay,
    server::{Answers, Server, protocol_of},
    trust::Trust,
};

/// Returns a base64 line of SASL PLAIN.
pub fn plain(user: &str, password: &str) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(format!("\0{user}\0{password}"))
}

/// Maximum time that a test waits for an expected event.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
