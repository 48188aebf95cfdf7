//! The login at a mail server as a state machine without I/O. [`Login::advance`] takes the bytes that the server sent and
//! returns the next [`Step`]. The steps depend on the bytes alone, not on how reads split them.
//!
//! The token is not part of the state machine: [`Step::SendToken`] asks the caller to write [`crate::sasl::response`], which
//! is the only function that touches the token.
//!
//! ```text
//! greeting → capabilities → [STARTTLS → TLS → capabilities] → AUTH → token → reply → [EXAMINE] → done
//! ```

mod conversation;
mod imap;
mod lines;
mod pop3;
mod smtp;
mod step;
#[cfg(test)]
mod tests;

use self::{
    conversation::{Conversation, failed},
    lines::Taken,
};
pub use self::{
    lines::{MAX_LINE, MAX_LINES},
    step::{Capabilities, Failure, Outcome, Purpose, Step},
};
use crate::{
    answers::Cause,
    protocol::{Protocol, Security},
};

/// A login in progress.
#[derive(Debug)]
pub struct Login {
    machine: Machine,
    /// The outcome of an ended login, which every further call of [`Login::advance`] returns.
    ended: Option<Outcome>,
}

#[derive(Debug)]
enum Machine {
    Smtp(smtp::Smtp),
    Imap(imap::Imap),
    Pop3(pop3::Pop3),
}

impl Login {
    /// Creates a login that has not begun. With [`Security::Tls`], the caller starts TLS before it reads the first
    /// byte. `client_name`: the name in SMTP's EHLO, a domain or an address literal of at most 255 printable ASCII
    /// characters. `[127.0.0.1]` replaces every other name.
    pub fn new(protocol: Protocol, security: Security, purpose: Purpose, client_name: &str) -> Self {
        let machine = match protocol {
            Protocol::Smtp => Machine::Smtp(smtp::Smtp::new(security, purpose, client_name)),
            Protocol::Imap => Machine::Imap(imap::Imap::new(security, purpose)),
            Protocol::Pop3 => Machine::Pop3(pop3::Pop3::new(security, purpose)),
        };
        Self { machine, ended: None }
    }

    /// Takes bytes of the server. Returns the number of bytes that the login took, and the caller's next step. After
    /// the step, the caller calls this function again with the bytes that the login did not take; after [`Step::Read`],
    /// with more bytes.
    pub fn advance(&mut self, input: &[u8]) -> (usize, Step) {
        if let Some(outcome) = &self.ended {
            return (0, Step::Done(outcome.clone()));
        }
        let mut taken = 0;
        let step = loop {
            let conversation = self.machine.conversation_mut();
            if let Some(step) = conversation.pending.take() {
                break step;
            }
            let (length, line) = conversation.lines.take(&input[taken..]);
            taken += length;
            let step = match line {
                Taken::Incomplete => break Step::Read,
                Taken::TooLong => break failed(Cause::Malformed.into()),
                Taken::Line(line) => self.machine.line(&line),
            };
            if let Some(step) = step {
                self.machine.conversation_mut().lines.begin_reply();
                break step;
            }
        };
        if let Step::Done(outcome) = &step {
            self.ended = Some(outcome.clone());
        }
        (taken, step)
    }

    /// The failure if the server now closes the connection or stays silent. A server that has sent the challenge of a
    /// refusal has refused the token.
    pub fn interrupted(&self) -> Failure {
        match &self.ended {
            Some(Outcome::Failed(failure)) => *failure,
            _ if self.machine.conversation().refused => Cause::Refused.into(),
            _ => Cause::Unavailable.into(),
        }
    }
}

impl Machine {
    /// The step after a line. `None`: the reply is not complete.
    fn line(&mut self, line: &str) -> Option<Step> {
        match self {
            Self::Smtp(smtp) => smtp.line(line),
            Self::Imap(imap) => imap.line(line),
            Self::Pop3(pop3) => pop3.line(line),
        }
    }

    fn conversation(&self) -> &Conversation {
        match self {
            Self::Smtp(smtp) => &smtp.conversation,
            Self::Imap(imap) => &imap.conversation,
            Self::Pop3(pop3) => &pop3.conversation,
        }
    }

    fn conversation_mut(&mut self) -> &mut Conversation {
        match self {
            Self::Smtp(smtp) => &mut smtp.conversation,
            Self::Imap(imap) => &mut imap.conversation,
            Self::Pop3(pop3) => &mut pop3.conversation,
        }
    }
}
