//! The steps that a session asks of its caller, and the ends of a session.

use std::fmt;

use zeroize::Zeroizing;

use crate::{answers::ServerCode, protocol::Protocol};

/// The next step of the caller.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Reads more bytes from the client.
    Read,
    /// Writes the bytes.
    Write(Vec<u8>),
    /// Starts TLS, then calls [`super::Session::tls_started`]. If the client has sent a byte that
    /// [`super::Session::advance`] did not take, the caller closes the connection instead: an attacker on the path may have
    /// injected it (CVE-2011-0411).
    StartTls,
    /// Checks the credentials, logs in at the mail server, and calls [`super::Session::accept`] or
    /// [`super::Session::refuse`].
    LogIn(Identity),
    /// Closes the connection.
    Close(Ending),
}

/// The identity that the client claims.
#[derive(Debug, PartialEq, Eq)]
pub enum Identity {
    /// The client authenticated with a user name and a password.
    Password(Credentials),
    /// The client began a mail without AUTH, which [`Offer::without_auth`] allows.
    WithoutAuth,
}

/// The credentials of a client that authenticated.
#[derive(PartialEq, Eq)]
pub struct Credentials {
    /// The user name, at most 12,288 octets. Replacement characters replace octets that are not UTF-8.
    pub user: String,
    /// The authorization identity of SASL PLAIN (RFC 4616). `None`: the client sent none, or an empty identity.
    pub authorization: Option<String>,
    /// The password, which may be empty. Dropping the password wipes its memory.
    pub password: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// The features that a session offers to its client.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    /// Whether the client may start TLS. False if TLS is active, or if the server has no certificate.
    pub start_tls: bool,
    /// Whether the client must start TLS before it authenticates. Without effect if TLS is active.
    pub needs_tls: bool,
    /// Whether a mail without AUTH also starts a login. SMTP only.
    pub without_auth: bool,
    /// The lines of EHLO's reply, or IMAP's capabilities, that the mail servers offer. [`super::smtp_capabilities`] and
    /// [`super::imap_capabilities`] return this list.
    pub capabilities: Vec<String>,
}

/// Why a login failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The credentials are wrong, or the mail server refused the token. The value is the server's code. A retry does
    /// not help.
    Permanent(Option<ServerCode>),
    /// The token or the mail server is not available now.
    Temporary,
}

/// The bytes that end a successful login.
#[derive(Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Bytes for the client before any bytes of the mail server; may be empty.
    pub reply: Vec<u8>,
    /// Bytes for the mail server before any bytes of the client; may be empty.
    pub forward: Vec<u8>,
}

/// Why the server closes a connection before login.
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
    /// The client sent an HTTP request.
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

    /// The last reply of the server. Empty if the client uses another protocol, or already has its reply.
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

/// The action of a state machine after a line.
#[derive(Debug)]
pub(super) enum Next {
    /// The state machine needs more input.
    More,
    Reply(Vec<u8>),
    ReplyAndQuit(Vec<u8>),
    StartTls(Vec<u8>),
    LogIn(Identity),
    Close(Ending),
}

/// Replies with `text` and a line end.
pub(super) fn reply(text: &str) -> Next {
    Next::Reply(format!("{text}\r\n").into_bytes())
}
