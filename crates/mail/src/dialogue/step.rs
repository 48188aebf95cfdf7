//! What a login asks of its caller, and how it ends.

use std::fmt;

use super::lines::{MAX_LINE, MAX_LINES};
use crate::{
    answers::{Cause, ServerCode},
    protocol::Mechanism,
};

/// What the caller does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reads more bytes from the server.
    Read,
    /// Writes these bytes.
    Write(Vec<u8>),
    /// Starts TLS. If the server has sent a byte that [`super::Login::advance`] did not take, the caller ends the login with
    /// [`Cause::BytesAfterStartTls`] instead: an attacker on the path may have injected it (CVE-2011-0411).
    StartTls,
    /// Writes the SASL response of this mechanism and a line end.
    SendToken(Mechanism),
    /// The login has ended. After [`Outcome::Accepted`] of a [`Purpose::Session`], bytes that were not taken belong to the
    /// session.
    Done(Outcome),
}

/// How a login ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server accepted the token.
    Accepted(Capabilities),
    /// The server did not accept the token, or the login failed before it.
    Failed(Failure),
}

/// Why a login failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the failure comes from.
    pub cause: Cause,
    /// The code of the server's answer; `None` if no answer led to the failure.
    pub code: Option<ServerCode>,
}

impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        Self { cause, code: None }
    }
}

/// What the server offers: the lines of EHLO's or CAPA's reply, or IMAP's capabilities, in printable ASCII. For IMAP they are
/// those after login.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Capabilities(Vec<String>);

impl fmt::Debug for Capabilities {
    /// Shows no text of the server.
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

    /// What follows a keyword: the parameters of `AUTH XOAUTH2 PLAIN`, for example. `None` if the keyword is not offered.
    /// ASCII case is ignored.
    pub fn parameters(&self, keyword: &str) -> Option<&str> {
        self.lines().find_map(|line| {
            let (name, rest) = line.split_at_checked(keyword.len())?;
            let matches = name.eq_ignore_ascii_case(keyword) && (rest.is_empty() || rest.starts_with([' ', '=']));
            matches.then(|| rest.get(1..).unwrap_or_default())
        })
    }

    /// Whether the keyword is offered.
    pub fn offers(&self, keyword: &str) -> bool {
        self.parameters(keyword).is_some()
    }

    pub(super) fn add(&mut self, line: &str) {
        if self.0.len() < MAX_LINES && line.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            self.0.push(line.to_owned());
        }
    }

    pub(super) fn add_words(&mut self, words: &str) {
        // A line of MAX_LINE octets has no more words than half of them.
        let printable = |word: &&str| !word.is_empty() && word.bytes().all(|byte| (b'!'..=b'~').contains(&byte));
        self.0.extend(
            words.split(' ').filter(printable).take(MAX_LINE / 2 - self.0.len().min(MAX_LINE / 2)).map(str::to_owned),
        );
    }
}

/// What the login is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To check that the mailbox accepts the token. SMTP and POP3 quit after the reply. IMAP opens INBOX read-only first:
    /// Exchange accepts the AUTH of a mailbox that it then does not open.
    Probe,
    /// To use the session after the login.
    Session,
}
