//! Errors of a request to a provider, in words that say how to fix them.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use rustix::io::Errno;

use crate::egress::{Denied, ResolveError};
use crate::tls::{TlsProblem, bounded, tls_problem};

/// Why a request got no response. `Display` is a lower-case fragment without secrets and without parts of a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The host has, or is, an address to which the broker may not connect. The broker sent nothing.
    #[error("{host} leads to an address that is denied ({range})")]
    EgressDenied {
        /// The host of the URL.
        host: String,
        /// The first denied address. Only the log contains the address: a tenant must not learn to which addresses
        /// names resolve.
        address: IpAddr,
        /// The purpose of the denied range.
        range: &'static str,
    },
    /// The broker does not trust the server, or the server has no TLS 1.2 or newer. The broker sent nothing.
    #[error("tls with {host} failed: {detail}")]
    Tls {
        /// The host of the URL.
        host: String,
        /// The kind of the problem, which determines the fix.
        kind: TlsProblem,
        /// A clause in plain words, for messages.
        detail: String,
    },
    /// The host's name does not exist. The broker sent nothing.
    #[error("the name {host} does not exist")]
    NameNotFound {
        /// The name that the broker resolved.
        host: String,
    },
    /// The server sent no complete response in time. It may have handled the request.
    #[error("{host} did not answer within {after:?}")]
    TimedOut {
        /// The host of the URL.
        host: String,
        /// The time limit of the whole request.
        after: Duration,
    },
    /// The connection failed or broke, or the response is not HTTP. The server may have handled the request.
    #[error("the connection to {host} failed: {detail}")]
    Connection {
        /// The host of the URL.
        host: String,
        /// A clause in plain words, for messages.
        detail: String,
        /// Whether the broker was connected, so that it may have sent the request.
        connected: bool,
    },
    /// The response's body exceeds the limit. The server handled the request.
    #[error("the response has more than {limit} bytes")]
    BodyTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The response's body is not compressed as its header says. The server handled the request.
    #[error("the response's body is not encoded as its Content-Encoding says")]
    BadEncoding,
    /// The request was no longer allowed at the moment of sending. The broker sent nothing.
    #[error("the request was withheld: this replica is not the leader any more")]
    Withheld,
    /// The URL's scheme is not https. The broker sent nothing.
    #[error("the url is not https")]
    UnsupportedScheme,
    /// The URL cannot be used. The broker sent nothing.
    #[error("the url is invalid: {detail}")]
    InvalidUrl {
        /// A clause in plain words, for messages.
        detail: String,
    },
}

impl From<ResolveError> for TransportError {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::Denied { host, denied } => {
                Self::EgressDenied { host, address: denied.address, range: denied.range }
            }
            ResolveError::NotFound { host } => Self::NameNotFound { host },
            ResolveError::Failed { host, detail } => {
                let detail = format!("the name could not be resolved ({})", bounded(&detail));
                Self::Connection { host, detail, connected: false }
            }
        }
    }
}

/// Finds the most specific cause. Uses no error text that a server could have written.
pub(super) fn classify(error: &reqwest::Error, host: &str, limit: Duration) -> TransportError {
    let host = host.to_owned();
    if let Some(cause) = find::<ResolveError>(error) {
        return cause.clone().into();
    }
    if let Some(cause) = find::<rustls::Error>(error) {
        let (kind, detail) = tls_problem(cause);
        return TransportError::Tls { host, kind, detail };
    }
    if error.is_timeout() {
        return TransportError::TimedOut { host, after: limit };
    }
    TransportError::Connection { host, detail: connection_problem(error), connected: !error.is_connect() }
}

impl TransportError {
    /// Returns the range that a message may propose to allow for a denied address. The range contains the address only
    /// if the address is the host of the URL.
    pub fn allowance(&self) -> Option<String> {
        let Self::EgressDenied { host, address, range } = self else { return None };
        Denied { address: *address, range }.allowance(host)
    }

    /// Whether the server may have handled the request although the broker got no response.
    pub fn may_have_been_handled(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::BodyTooLarge { .. } | Self::BadEncoding => true,
            Self::Connection { connected, .. } => *connected,
            Self::EgressDenied { .. }
            | Self::Tls { .. }
            | Self::NameNotFound { .. }
            | Self::Withheld
            | Self::UnsupportedScheme
            | Self::InvalidUrl { .. } => false,
        }
    }
}

/// Returns all causes of an error, including a cause inside an `io::Error`: `io::Error::source` skips the wrapped error
/// itself.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map(|inner| inner as &(dyn Error + 'static)).or_else(move || error.source())
    })
}

fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

fn connection_problem(error: &reqwest::Error) -> String {
    // The type of the error for a refused CONNECT is not public. Its texts are constants, such as "proxy authorization
    // required".
    let tunnel = causes(error).find_map(|cause| cause.to_string().strip_prefix("tunnel error: ").map(bounded));
    if let Some(detail) = tunnel {
        return format!("the egress proxy opened no tunnel ({detail})");
    }
    let found = causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>());
    if let Some(cause) = found.filter(|cause| cause.kind() != io::ErrorKind::Other).last() {
        return match cause.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::MFILE | Errno::NFILE) => "the broker has too many open files (ulimit -n)".to_owned(),
            _ => cause.kind().to_string(),
        };
    }
    match find::<hyper::Error>(error) {
        // hyper's own text is a constant. The text of hyper's cause may contain data of an HTTP/2 server.
        Some(cause) => cause.to_string(),
        None if error.is_connect() => "it could not be made".to_owned(),
        None => "it broke off".to_owned(),
    }
}
