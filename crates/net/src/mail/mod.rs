//! Dials mail servers and runs the login of [`mailtoken_mail::dialogue`].
//!
//! - [`login()`] takes a connection, starts TLS as the server requires, and logs in. A caller without an egress policy
//!   makes the connection with [`connect_unguarded()`].
//! - `MailDialer` (feature `http`) dials with the restrictions of the HTTP client for providers: only permitted
//!   addresses, through the egress proxy.
//! - TLS is 1.2 or newer and verified. No switch turns verification off.
//! - A login takes at most the time limits and a few kilobytes. No error, log or `Debug` contains a server's text or a
//!   token.

mod connect;
#[cfg(feature = "http")]
mod dialer;
mod error;
mod login;
#[cfg(feature = "http")]
mod tunnel;

use mailtoken_mail::protocol::{Protocol, Security};

#[cfg(feature = "http")]
pub use self::dialer::{Limits, MailDialer};
pub use self::{
    connect::{connect, connect_unguarded},
    error::{DialError, DialProblem, Phase},
    login::{Attempt, Deadline, Ended, Session, address_literal, login},
};

pub use crate::egress::Lookups;

/// The address of a mail server, its protocol, and the way to encrypt the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MailServer<'a> {
    /// The server's mail protocol.
    pub protocol: Protocol,
    /// When TLS starts: with the connection or by STARTTLS.
    pub security: Security,
    /// A host name, or an address without brackets.
    pub host: &'a str,
    /// The TCP port, 1 to 65535.
    pub port: u16,
}
