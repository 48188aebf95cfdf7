//! The server's side of a login as a state machine without I/O: the relay's replies to a program until the program has
//! authenticated. [`Session::advance`] takes the bytes of the client and returns the next [`Step`]. The steps depend on
//! the bytes alone, not on how reads split them.
//!
//! No reply contains anything that the client sent, except the tag of an IMAP command.
//!
//! ```text
//! greeting → capabilities → [STARTTLS → TLS] → credentials → accepted, the session is the caller's
//!                                                  └─ refused → the next command
//! ```

mod announcement;
mod imap;
mod input;
mod literals;
mod pop3;
mod sasl;
mod smtp;
mod step;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub use self::{
    announcement::{imap_capabilities, smtp_capabilities},
    input::{MAX_CONTINUATION, MAX_LINE},
    literals::MAX_LITERAL,
    step::{Accepted, Credentials, Ending, Identity, Offer, Refusal, Step},
};
use self::{
    input::{Input, Octets, Taken},
    step::Next,
};
use crate::{dialogue::Capabilities, protocol::Protocol};

/// Maximum octets that a client may send before login.
pub const MAX_OCTETS: usize = 65_536;
/// Maximum number of commands that a client may send before login.
pub const MAX_COMMANDS: u32 = 100;
/// Number of refused logins after which the server closes the connection (RFC 4954 section 9 asks for at least three).
pub const MAX_REFUSALS: u32 = 3;
/// The first octet of a TLS record with a handshake message (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// A client's connection before login.
#[derive(Debug)]
pub struct Session {
    machine: Machine,
    input: Input,
    octets: usize,
    commands: u32,
    refusals: u32,
    /// Whether the client waits for [`Session::accept`] or [`Session::refuse`].
    authenticating: bool,
    pending: VecDeque<Step>,
}

#[derive(Debug)]
enum Machine {
    Smtp(smtp::Smtp),
    Imap(imap::Imap),
    Pop3(pop3::Pop3),
}

impl Session {
    /// Creates a session whose first step writes the greeting. With TLS from the first byte, the caller has already
    /// started TLS.
    pub fn new(protocol: Protocol, offer: Offer) -> Self {
        let (machine, greeting) = match protocol {
            Protocol::Smtp => (Machine::Smtp(smtp::Smtp::new(offer)), smtp::GREETING.to_vec()),
            Protocol::Imap => {
                let imap = imap::Imap::new(offer);
                let greeting = imap.greeting();
                (Machine::Imap(imap), greeting)
            }
            Protocol::Pop3 => (Machine::Pop3(pop3::Pop3::new(offer)), pop3::GREETING.to_vec()),
        };
        Self {
            machine,
            input: Input::default(),
            octets: 0,
            commands: 0,
            refusals: 0,
            authenticating: false,
            pending: VecDeque::from([Step::Write(greeting)]),
        }
    }

    /// Takes bytes of the client. Returns the number of bytes that the session took, and the caller's next step. After
    /// the step, the caller calls this function again with the bytes that the session did not take; after
    /// [`Step::Read`], with more bytes.
    pub fn advance(&mut self, input: &[u8]) -> (usize, Step) {
        let mut taken = 0;
        loop {
            if let Some(step) = self.pending.pop_front() {
                return (taken, step);
            }
            let rest = &input[taken..];
            if self.authenticating || rest.is_empty() {
                return (taken, Step::Read);
            }
            if self.octets == 0 && rest[0] == TLS_HANDSHAKE {
                return (taken, Step::Close(Ending::Tls));
            }
            let left = MAX_OCTETS - self.octets;
            let (length, found) = self.input.take(&rest[..left.min(rest.len())], self.line_limit());
            taken += length;
            self.octets += length;
            let next = match found {
                Taken::Incomplete if self.octets == MAX_OCTETS => Next::Close(Ending::TooManyOctets),
                Taken::Incomplete => continue,
                Taken::Octets(octets) => self.octets_arrived(octets),
                Taken::Line { .. } | Taken::TooLong => self.line_arrived(found),
            };
            self.follow(next);
        }
    }

    /// Records that the caller has started TLS. The session forgets the client's earlier input (RFC 3207 section 4.2).
    pub fn tls_started(&mut self) {
        match &mut self.machine {
            Machine::Smtp(smtp) => smtp.tls_started(),
            Machine::Imap(imap) => imap.tls_started(),
            Machine::Pop3(pop3) => pop3.tls_started(),
        }
    }

    /// The name in the client's EHLO or HELO. `None`: the client sent no name of at most 255 printable ASCII
    /// characters, or uses another protocol than SMTP.
    pub fn client_name(&self) -> Option<&str> {
        match &self.machine {
            Machine::Smtp(smtp) => smtp.client_name(),
            Machine::Imap(_) | Machine::Pop3(_) => None,
        }
    }

    /// Records that the mail server has accepted the login and offers the capabilities `offered`. The caller
    /// forwards the client input that the session has not read to the mail server.
    pub fn accept(&mut self, offered: &Capabilities) -> Accepted {
        match &mut self.machine {
            Machine::Smtp(smtp) => smtp.accepted(),
            Machine::Imap(imap) => imap.accepted(offered),
            Machine::Pop3(_) => Accepted { reply: pop3::ACCEPTED.to_vec(), forward: vec![] },
        }
    }

    /// Records that the login failed. The next steps report the failure to the client, and close the connection after
    /// [`MAX_REFUSALS`] refusals.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.authenticating = false;
        let protocol = self.protocol();
        let reply = match &mut self.machine {
            Machine::Smtp(_) => smtp::refused(refusal),
            Machine::Imap(imap) => imap.refused(refusal),
            Machine::Pop3(_) => pop3::refused(refusal),
        };
        self.pending.push_back(Step::Write(reply));
        if matches!(refusal, Refusal::Permanent(_)) {
            self.refusals += 1;
        }
        if self.refusals == MAX_REFUSALS {
            // A POP3 client gets only one status line for a command.
            if protocol != Protocol::Pop3 {
                self.pending.push_back(Step::Write(Ending::TooManyRefusals.reply(protocol)));
            }
            self.pending.push_back(Step::Close(Ending::TooManyRefusals));
        }
    }

    fn protocol(&self) -> Protocol {
        match self.machine {
            Machine::Smtp(_) => Protocol::Smtp,
            Machine::Imap(_) => Protocol::Imap,
            Machine::Pop3(_) => Protocol::Pop3,
        }
    }

    fn line_limit(&self) -> usize {
        let continues = match &self.machine {
            Machine::Smtp(smtp) => smtp.continues(),
            Machine::Imap(imap) => imap.continues(),
            Machine::Pop3(pop3) => pop3.continues(),
        };
        if continues { MAX_CONTINUATION } else { MAX_LINE }
    }

    fn octets_arrived(&mut self, octets: Octets) -> Next {
        match &mut self.machine {
            Machine::Imap(imap) => imap.literal(octets),
            // SMTP skips the octets of BDAT; POP3 has none.
            Machine::Smtp(_) | Machine::Pop3(_) => Next::More,
        }
    }

    fn line_arrived(&mut self, line: Taken) -> Next {
        let begins_command = match &self.machine {
            Machine::Smtp(smtp) => !smtp.continues(),
            Machine::Imap(imap) => imap.begins_command(),
            Machine::Pop3(pop3) => !pop3.continues(),
        };
        if begins_command {
            self.commands += 1;
            if self.commands > MAX_COMMANDS {
                return Next::Close(Ending::TooManyCommands);
            }
            if let Taken::Line { bytes, .. } = &line
                && let Some(ending) = foreign(bytes)
            {
                return Next::Close(ending);
            }
        }
        let (bytes, ends_with_crlf) = match line {
            Taken::Line { bytes, crlf } => (Ok(bytes), crlf),
            _ => (Err(step::TooLong), true),
        };
        match &mut self.machine {
            Machine::Smtp(smtp) => smtp.line(bytes, &mut self.input),
            Machine::Imap(imap) => imap.line(bytes, ends_with_crlf, &mut self.input),
            Machine::Pop3(pop3) => pop3.line(bytes, ends_with_crlf),
        }
    }

    fn follow(&mut self, next: Next) {
        match next {
            Next::More => {}
            Next::Reply(reply) => self.pending.push_back(Step::Write(reply)),
            Next::ReplyAndQuit(reply) => {
                self.pending.extend([Step::Write(reply), Step::Close(Ending::Quit)]);
            }
            Next::StartTls(reply) => self.pending.extend([Step::Write(reply), Step::StartTls]),
            Next::LogIn(identity) => {
                self.authenticating = true;
                self.pending.push_back(Step::LogIn(identity));
            }
            Next::Close(ending) => {
                let reply = ending.reply(self.protocol());
                if !reply.is_empty() {
                    self.pending.push_back(Step::Write(reply));
                }
                self.pending.push_back(Step::Close(ending));
            }
        }
    }
}

/// The ending for a line of a protocol that is no mail protocol. A PROXY header of version 2 contains a line with a
/// single NUL.
fn foreign(line: &[u8]) -> Option<Ending> {
    let http = [" HTTP/1.0", " HTTP/1.1", " HTTP/2.0"].iter().any(|version| line.ends_with(version.as_bytes()));
    if http {
        return Some(Ending::Http);
    }
    (line.starts_with(b"PROXY ") || line == b"\0").then_some(Ending::Proxy)
}
