//! What a session asks of its caller, and how it ends.

use std::fmt;

use zeroize::Zeroizing;

use crate::{answers::ServerCode, protocol::Protocol};

/// What the caller does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Reads more bytes from the client.
    Read,
    /// Writes these bytes.
    Write(Vec<u8>),
    /// Starts TLS, then calls [`super::Session::tls_started`]. If the client has sent a byte that
    /// [`super::Session::advance`] did not take, the caller closes the connection instead: an attacker on the path may have
    /// injected it (CVE-2011-0411).
    StartTls,
    /// Checks these credentials, logs in at the mail server, and calls [`super::Session::accept`] or
    /// [`super::Session::refuse`].
    LogIn(Identity),
    /// Closes the connection.
    Close(Ending),
}

/// Who the client says that it is.
#[derive(Debug, PartialEq, Eq)]
pub enum Identity {
    /// The client authenticated.
    Password(Credentials),
    /// The client began a mail without AUTH, which [`Offer::without_auth`] allows.
    WithoutAuth,
}

/// What a client authenticated with.
#[derive(PartialEq, Eq)]
pub struct Credentials {
    /// The user name, at most 12,288 octets; octets that are not UTF-8 are replaced.
    pub user: String,
    /// The authorization identity of SASL PLAIN (RFC 4616); `None` if it is empty.
    pub authorization: Option<String>,
    /// The password, which may be empty. The memory is wiped when it is dropped.
    pub password: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// What a session offers to its client.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    /// The client may start TLS. False if TLS is active, or if the server has no certificate.
    pub start_tls: bool,
    /// The client may not authenticate before TLS. Without effect if TLS is active.
    pub needs_tls: bool,
    /// A mail without AUTH is a login, too. SMTP only.
    pub without_auth: bool,
    /// The lines of EHLO's reply, or IMAP's capabilities, that the mail servers offer:
    /// [`super::smtp_capabilities`] and [`super::imap_capabilities`] make this list.
    pub capabilities: Vec<String>,
}

/// Why a login failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The credentials are wrong, or the mail server refused the token, with this code. Trying again does not help.
    Permanent(Option<ServerCode>),
    /// The token or the mail server is not available now.
    Temporary,
}

/// The end of a successful login.
#[derive(Debug, PartialEq, Eq)]
pub struct Accepted {
    /// What the client receives before anything of the mail server; may be empty.
    pub reply: Vec<u8>,
    /// What the mail server receives before anything that the client sends; may be empty.
    pub forward: Vec<u8>,
}

/// Why a connection is closed before login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The client ended the session.
    Quit,
    /// The server refused [`super::MAX_REFUSALS`] logins.
    TooManyRefusals,
    /// The client sent more than [`super::MAX_COMMANDS`] commands.
    TooManyCommands,
    /// The client sent [`super::MAX_OCTETS`] octets.
    TooManyOctets,
    /// The client did not log in within the time limit.
    TooSlow,
    /// Too many clients are connected.
    TooManyConnections,
    /// The server stops.
    ShuttingDown,
    /// The client speaks HTTP.
    Http,
    /// The client sent a PROXY header.
    Proxy,
    /// The client began a TLS handshake on a plain connection.
    Tls,
    /// The client sent bytes between STARTTLS and the handshake.
    BytesAfterStartTls,
}

impl Ending {
    /// The value of the label `reason` of metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quit => "quit",
            Self::TooManyRefusals => "refusals",
            Self::TooManyCommands => "commands",
            Self::TooManyOctets => "octets",
            Self::TooSlow => "login_timeout",
            Self::TooManyConnections => "connections",
            Self::ShuttingDown => "shutdown",
            Self::Http => "http",
            Self::Proxy => "proxy_header",
            Self::Tls => "tls_on_plain_port",
            Self::BytesAfterStartTls => "bytes_after_starttls",
        }
    }

    /// The last reply of the server; empty if the client does not speak the protocol, or has got its reply.
    pub fn reply(self, protocol: Protocol) -> Vec<u8> {
        let (code, text) = match self {
            Self::Quit | Self::Http | Self::Proxy | Self::Tls | Self::BytesAfterStartTls => return vec![],
            Self::TooManyRefusals => ("4.7.0", "Too many refused logins"),
            Self::TooManyCommands => ("4.7.0", "Too many commands before login"),
            Self::TooManyOctets => ("4.7.0", "Too many octets before login"),
            Self::TooSlow => ("4.4.2", "No login within the time limit"),
            Self::TooManyConnections => ("4.3.2", "Too many connections"),
            Self::ShuttingDown => ("4.3.2", "The relay stops"),
        };
        match protocol {
            Protocol::Smtp => format!("421 {code} {text}\r\n"),
            Protocol::Imap => format!("* BYE {text}\r\n"),
            Protocol::Pop3 => format!("-ERR [SYS/TEMP] {text}\r\n"),
        }
        .into_bytes()
    }
}

/// A line exceeds its limit.
#[derive(Debug)]
pub(super) struct TooLong;

/// What a machine does after a line.
#[derive(Debug)]
pub(super) enum Next {
    /// It needs more input.
    More,
    Reply(Vec<u8>),
    ReplyAndQuit(Vec<u8>),
    StartTls(Vec<u8>),
    LogIn(Identity),
    Close(Ending),
}

/// A reply that never changes.
pub(super) fn reply(text: &str) -> Next {
    Next::Reply(format!("{text}\r\n").into_bytes())
}
