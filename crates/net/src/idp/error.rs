//! Why there is no answer, in words that say how to get one.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rustix::io::Errno;
use rustls::CertificateError;
use rustls::pki_types::UnixTime;

use crate::egress::{Denied, ResolveError};

/// Names of a certificate that are listed when none of them is the right one.
const LISTED_NAMES: usize = 3;

/// Characters of a text that a library made up from what a server sent.
const FOREIGN_TEXT: usize = 200;

/// Why a request got no answer. `Display` is a lower-case fragment with no secret and nothing of a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The host has, or is, an address that may not be connected to. Nothing was sent.
    #[error("{host} leads to an address that is denied ({range})")]
    EgressDenied {
        /// The host of the URL.
        host: String,
        /// The first address that is denied. Only the log names it: a tenant must not learn what names resolve to.
        address: IpAddr,
        /// What its range is for.
        range: &'static str,
    },
    /// The server could not be trusted or does not speak TLS 1.2 or newer. Nothing was sent.
    #[error("tls with {host} failed: {detail}")]
    Tls {
        /// The host of the URL.
        host: String,
        /// What to do about it depends on this.
        kind: TlsProblem,
        /// A clause in plain words.
        detail: String,
    },
    /// The host's name does not exist. Nothing was sent.
    #[error("the name {host} does not exist")]
    NameNotFound {
        /// The name that was asked for.
        host: String,
    },
    /// There was no complete answer in time. The request may have been handled.
    #[error("{host} did not answer within {after:?}")]
    TimedOut {
        /// The host of the URL.
        host: String,
        /// The time that a request has in total.
        after: Duration,
    },
    /// The connection could not be made, or broke, or what came is no HTTP. The request may have been handled.
    #[error("the connection to {host} failed: {detail}")]
    Connection {
        /// The host of the URL.
        host: String,
        /// A clause in plain words.
        detail: String,
        /// Whether there was a connection, over which the request may have gone.
        connected: bool,
    },
    /// The answer's body was larger than what is read. The request was handled.
    #[error("the response has more than {limit} bytes")]
    BodyTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The answer's body is not compressed in the way that its header says. The request was handled.
    #[error("the response's body is not encoded as its Content-Encoding says")]
    BadEncoding,
    /// The request was no longer allowed when it could be sent. Nothing was sent.
    #[error("the request was withheld: this replica is not the leader any more")]
    Withheld,
    /// The URL's scheme is not https. Nothing was sent.
    #[error("the url is not https")]
    UnsupportedScheme,
    /// The URL cannot be used. Nothing was sent.
    #[error("the url is invalid: {detail}")]
    InvalidUrl {
        /// A clause in plain words.
        detail: String,
    },
}

/// What is wrong with a server's TLS, by what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsProblem {
    /// Nobody who is trusted vouches for the certificate: a CA bundle is missing, or is the wrong one.
    UnknownIssuer,
    /// The certificate is past its end or before its beginning: it needs renewing, or a clock is wrong.
    Expired,
    /// The certificate is for other names: the URL or the certificate must change.
    WrongName,
    /// Anything else, such as a server without TLS on this port.
    Other,
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

/// Finds the cause that says most. The errors' own texts are not taken over where a server could have written them.
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
    /// The range that would have to be allowed for an address that is denied: what a message may propose. The address is
    /// named only where it is the host of the URL.
    pub fn allowance(&self) -> Option<String> {
        let Self::EgressDenied { host, address, range } = self else { return None };
        if !(Denied { address: *address, range }).is_proposed() {
            return None;
        }
        let length = if address.is_ipv4() { 32 } else { 128 };
        match host.parse::<IpAddr>() {
            Ok(literal) => Some(format!("{literal}/{length}")),
            Err(_) => Some(format!("<its address>/{length}")),
        }
    }

    /// Whether the server may have handled the request although no answer came.
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

/// All causes, also those inside an `io::Error`, which as a `source` gives only the cause of what it wraps.
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
    // The type of a refused CONNECT is not public; its texts are constants: "proxy authorization required" and the like.
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
        // Its own text is a constant; that of its cause may hold what an HTTP/2 server sent.
        Some(cause) => cause.to_string(),
        None if error.is_connect() => "it could not be made".to_owned(),
        None => "it broke off".to_owned(),
    }
}

fn tls_problem(error: &rustls::Error) -> (TlsProblem, String) {
    let other = |detail: String| (TlsProblem::Other, detail);
    match error {
        rustls::Error::InvalidCertificate(problem) => certificate_problem(problem),
        rustls::Error::AlertReceived(alert) => other(format!("the server broke off the handshake ({alert:?})")),
        rustls::Error::PeerIncompatible(problem) => {
            other(format!("the server has no TLS version or cipher in common with the broker ({problem:?})"))
        }
        rustls::Error::InvalidMessage(_) => other("the server does not speak TLS on this port".to_owned()),
        problem => other(bounded(&problem.to_string())),
    }
}

fn certificate_problem(problem: &CertificateError) -> (TlsProblem, String) {
    match problem {
        CertificateError::UnknownIssuer => {
            let detail = "the server's certificate was issued by no authority that is trusted here";
            (TlsProblem::UnknownIssuer, detail.to_owned())
        }
        CertificateError::BadSignature => {
            let detail = "the server's certificate was not signed by the trusted authority whose name it gives";
            (TlsProblem::UnknownIssuer, detail.to_owned())
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            (TlsProblem::Expired, format!("the server's certificate expired at {}", moment(*not_after)))
        }
        CertificateError::Expired => (TlsProblem::Expired, "the server's certificate has expired".to_owned()),
        CertificateError::NotValidYetContext { not_before, .. } => {
            (TlsProblem::Expired, format!("the server's certificate is valid only from {}", moment(*not_before)))
        }
        CertificateError::NotValidYet => (TlsProblem::Expired, "the server's certificate is not valid yet".to_owned()),
        CertificateError::NotValidForNameContext { presented, .. } => {
            (TlsProblem::WrongName, format!("the server's certificate is for {}", names(presented)))
        }
        CertificateError::NotValidForName => {
            (TlsProblem::WrongName, "the server's certificate is for other names".to_owned())
        }
        CertificateError::Other(cause) if cause.to_string().contains("CaUsedAsEndEntity") => {
            (TlsProblem::Other, "the server uses the certificate of an authority as its own".to_owned())
        }
        problem => {
            (TlsProblem::Other, format!("the server's certificate was refused ({})", bounded(&problem.to_string())))
        }
    }
}

fn moment(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| "an impossible time".to_owned(), |time| time.to_string())
}

/// The names of a certificate that a trusted authority has issued; rustls hands them on in their `Debug` form.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inside = name.split_once('(').map_or(name.as_str(), |(_, rest)| rest.trim_end_matches(')'));
        bounded(inside.trim_matches('"'))
    };
    let mut listed: Vec<_> = presented.iter().take(LISTED_NAMES).map(bare).collect();
    match presented.len() {
        0 => return "no name at all".to_owned(),
        more if more > LISTED_NAMES => listed.push(format!("{} more", more - LISTED_NAMES)),
        _ => {}
    }
    listed.join(", ")
}

fn bounded(text: &str) -> String {
    // What could mislead a reader beside a command to copy is left out.
    let plain = |character: &char| !character.is_control() && !matches!(character, '`' | '$' | '"' | '\'' | '\\');
    text.chars().filter(plain).take(FOREIGN_TEXT).collect()
}
