//! Errors of a login that ended without an answer of the mail server, in words that say how to fix them.

use std::{fmt, io, net::IpAddr, time::Duration};

use rustix::io::Errno;

use super::MailServer;
use crate::{
    egress::{Denied, ResolveError},
    tls::{BundleError, TlsProblem, bounded, tls_problem},
};

/// Why a login ended without an answer of the mail server. `Display` is a lower-case fragment in fixed words, without
/// text of the server and without secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The host has, or is, an address to which the broker may not connect. The dialer sent nothing.
    #[error("{host} leads to an address that is denied ({range})")]
    EgressDenied {
        /// The server's host.
        host: String,
        /// The first denied address. Only the log contains the address: a tenant must not learn to which addresses
        /// names resolve.
        address: IpAddr,
        /// The purpose of the denied range.
        range: &'static str,
    },
    /// The host's name does not exist.
    #[error("the name {host} does not exist")]
    NameNotFound {
        /// The server's host.
        host: String,
    },
    /// The resolver returned no result.
    #[error("the name {host} could not be resolved ({detail})")]
    NameNotResolved {
        /// The server's host.
        host: String,
        /// The resolver's error text.
        detail: String,
    },
    /// No address accepted a connection.
    #[error("no connection to {host} on port {port} ({detail})")]
    NotConnected {
        /// The server's host.
        host: String,
        /// The server's port.
        port: u16,
        /// A clause in plain words, for messages.
        detail: String,
    },
    /// The egress proxy opened no tunnel.
    #[error("the egress proxy opened no tunnel to {host} on port {port} ({detail})")]
    Proxy {
        /// The server's host.
        host: String,
        /// The server's port.
        port: u16,
        /// A clause in plain words, for messages.
        detail: String,
    },
    /// The time limit passed.
    #[error("{host} did not finish the {phase} on port {port} within {after:?}")]
    TimedOut {
        /// The server's host.
        host: String,
        /// The server's port.
        port: u16,
        /// The phase in which the time limit passed.
        phase: Phase,
        /// The time limit.
        after: Duration,
    },
    /// The connection was closed or reset.
    #[error("{host} closed the connection on port {port} during the {phase}")]
    Closed {
        /// The server's host.
        host: String,
        /// The server's port.
        port: u16,
        /// The phase in which the connection ended.
        phase: Phase,
    },
    /// The dialer does not trust the server, or the server has no TLS 1.2 or newer. The dialer sent no token.
    #[error("tls with {host} on port {port} failed: {detail}")]
    Tls {
        /// The server's host.
        host: String,
        /// The server's port.
        port: u16,
        /// The kind of the problem, which determines the fix.
        kind: TlsProblem,
        /// A clause in plain words, for messages.
        detail: String,
    },
    /// The provider's CA bundle cannot be used. The dialer sent nothing.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

/// The phase of a login in which the time limit passed or the connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Name resolution, connection, and the tunnel through the egress proxy.
    Connection,
    /// The TLS handshake.
    Tls,
    /// The login.
    Login,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "connection",
            Self::Tls => "TLS handshake",
            Self::Login => "login",
        })
    }
}

/// The three kinds of failure. Each has its own reason in the condition `MailboxAuthorized`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialProblem {
    /// The egress policy denies the address: an administrator must act.
    EgressDenied,
    /// The dialer could not connect, the connection broke, or the time limit passed.
    Unavailable,
    /// The TLS handshake failed, or TLS failed later.
    Tls,
}

impl DialError {
    /// Returns the kind of the failure.
    pub fn problem(&self) -> DialProblem {
        match self {
            Self::EgressDenied { .. } => DialProblem::EgressDenied,
            Self::NameNotFound { .. }
            | Self::NameNotResolved { .. }
            | Self::NotConnected { .. }
            | Self::Proxy { .. }
            | Self::TimedOut { .. }
            | Self::Closed { .. } => DialProblem::Unavailable,
            Self::Tls { .. } | Self::Bundle(_) => DialProblem::Tls,
        }
    }

    /// Returns the range that a message may propose to allow for a denied address. The range contains the address only
    /// if the address is the host that the user wrote.
    pub fn allowance(&self) -> Option<String> {
        let Self::EgressDenied { host, address, range } = self else { return None };
        Denied { address: *address, range }.allowance(host)
    }

    pub(super) fn not_resolved(error: ResolveError) -> Self {
        match error {
            ResolveError::Denied { host, denied } => {
                Self::EgressDenied { host, address: denied.address, range: denied.range }
            }
            ResolveError::NotFound { host } => Self::NameNotFound { host },
            ResolveError::Failed { host, detail } => Self::NameNotResolved { host, detail: bounded(&detail) },
        }
    }

    pub(super) fn not_connected(server: &MailServer<'_>, error: &io::Error) -> Self {
        Self::NotConnected { host: server.host.to_owned(), port: server.port, detail: io_problem(error) }
    }

    /// Returns the error for a failed handshake or read.
    pub(super) fn broken(server: &MailServer<'_>, phase: Phase, error: Option<&io::Error>) -> Self {
        let (host, port) = (server.host.to_owned(), server.port);
        let tls = error.and_then(io::Error::get_ref).and_then(|cause| cause.downcast_ref::<rustls::Error>());
        match tls.map(tls_problem) {
            Some((kind, detail)) => Self::Tls { host, port, kind, detail },
            None => Self::Closed { host, port, phase },
        }
    }
}

/// Describes an error of the operating system in fixed words.
pub(super) fn io_problem(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE | Errno::NFILE) => "too many open files (ulimit -n)".to_owned(),
        _ => error.kind().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_denied_address_that_an_administrator_may_allow_is_proposed() {
        let denied = |host: &str, address: &str, range| DialError::EgressDenied {
            host: host.to_owned(),
            address: address.parse().unwrap(),
            range,
        };
        for (error, proposed) in [
            (denied("10.1.2.3", "10.1.2.3", "private"), Some("10.1.2.3/32")),
            (denied("mail.test", "10.1.2.3", "private"), Some("<its address>/32")),
            (denied("mail.test", "fd00::1", "unique local"), Some("<its address>/128")),
            (denied("mail.test", "127.0.0.1", "loopback"), None),
            (DialError::NameNotFound { host: "mail.test".to_owned() }, None),
        ] {
            assert_eq!(error.allowance().as_deref(), proposed, "{error}");
            assert!(!error.to_string().contains("10.1.2.3") || error.to_string().starts_with("10.1.2.3"), "{error}");
        }
    }
}
