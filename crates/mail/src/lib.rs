//! Mail protocols without I/O: SASL responses, and the login at SMTP, IMAP and POP3 servers as state machines, from the
//! client's and from the server's side. This package opens no socket, reads no clock, and depends on no other package
//! of the project.

pub mod answers;
pub mod dialogue;
pub mod protocol;
pub mod sasl;
pub mod secret_keys;
pub mod server;
