//! The steps that a login asks of its caller, and the outcome of a login.

use std::fmt;

use super::lines::{MAX_LINE, MAX_LINES};
use crate::{
    answers::{Cause, ServerCode},
    protocol::Mechanism,
};

/// The next step of the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reads more bytes from the server.
    Read,
    /// Writes the bytes.
    Write(Vec<u8>),
    /// Starts TLS. If the server has sent a byte that [`super::Login::advance`] did not take, the caller ends the login with
    /// [`Cause::BytesAfterStartTls`] instead: an attacker on the path may have injected it (CVE-2011-0411).
    StartTls,
    /// Writes the SASL response of the mechanism and a line end.
    SendToken(Mechanism),
    /// The login has ended. After [`Outcome::Accepted`] of a [`Purpose::Session`], bytes that the login did not take
    /// belong to the session.
    Done(Outcome),
}

/// How a login ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server accepted the token.
    Accepted(Capabilities),
    /// The server did not accept the token, or the login failed earlier.
    Failed(Failure),
}

/// Why a login failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The cause of the failure.
    pub cause: Cause,
    /// The code of the server's answer. `None`: no answer led to the failure.
    pub code: Option<ServerCode>,
}

impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        Self { cause, code: None }
    }
}

/// The server's capabilities in printable ASCII: the lines of EHLO's or CAPA's reply, or IMAP's capabilities after the
/// login.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Capabilities(Vec<String>);

impl fmt::Debug for Capabilities {
    /// Shows the number of capabilities, but no text of the server.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capabilities({})", self.0.len())
    }
}

impl Capabilities {
    /// The capabilities, as the server wrote them: at most [`MAX_LINES`] lines of [`MAX_LINE`] octets for SMTP and POP3, and
    /// the words of such lines for IMAP.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The parameters after a keyword, such as `XOAUTH2 PLAIN` after `AUTH`. Ignores ASCII case. `None`: the server
    /// does not offer the keyword.
    pub fn parameters(&self, keyword: &str) -> Option<&str> {
        self.lines().find_map(|line| {
            let (name, rest) = line.split_at_checked(keyword.len())?;
            let matches = name.eq_ignore_ascii_case(keyword) && (rest.is_empty() || rest.starts_with([' ', '=']));
            matches.then(|| rest.get(1..).unwrap_or_default())
        })
    }

    /// Whether the server offers the keyword.
    pub fn offers(&self, keyword: &str) -> bool {
        self.parameters(keyword).is_some()
    }

    pub(super) fn add(&mut self, line: &str) {
        if self.0.len() < MAX_LINES && line.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            self.0.push(line.to_owned());
        }
    }

    pub(super) fn add_words(&mut self, words: &str) {
        // A line of MAX_LINE octets has at most MAX_LINE / 2 words.
        let printable = |word: &&str| !word.is_empty() && word.bytes().all(|byte| (b'!'..=b'~').contains(&byte));
        self.0.extend(
            words.split(' ').filter(printable).take(MAX_LINE / 2 - self.0.len().min(MAX_LINE / 2)).map(str::to_owned),
        );
    }
}

/// The purpose of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A check that the mailbox accepts the token. SMTP and POP3 clients quit after the reply. An IMAP client first
    /// opens INBOX read-only: Exchange accepts AUTH even for a mailbox that it does not open.
    Probe,
    /// A session that the caller uses after the login.
    Session,
}
