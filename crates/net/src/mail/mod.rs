//! Dials mail servers and runs the login of [`mailtoken_mail::dialogue`].
//!
//! - [`login()`] takes a connection, starts TLS as the server wants it, and logs in. A caller that has no egress guard makes
//!   the connection with [`connect_unguarded()`].
//! - `MailDialer` (feature `http`) dials as the client for identity providers does: only permitted addresses, and through the
//!   egress proxy.
//! - TLS 1.2 or newer, verified; no switch turns verification off.
//! - A server costs at most the time limits and a few kilobytes. No text of a server and no token is in an error, a log or
//!   any `Debug`.

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

/// Where a mail server is, and how it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MailServer<'a> {
    /// What the server speaks.
    pub protocol: Protocol,
    /// How the connection becomes encrypted.
    pub security: Security,
    /// A host name, or an address without brackets.
    pub host: &'a str,
    /// The TCP port, 1 to 65535.
    pub port: u16,
}
