//! The server's side of IMAP before login (RFC 3501, RFC 9051, RFC 4959, RFC 7888).

use zeroize::Zeroizing;

use super::{
    announcement::IMAP_ALWAYS,
    input::{Input, Octets},
    literals::{Announced, Command},
    sasl::{self, Exchange, Outcome},
    step::{Accepted, Credentials, Ending, Identity, Next, Offer, Refusal, TooLong, reply},
};
use crate::dialogue::Capabilities;

#[derive(Debug)]
pub(super) struct Imap {
    offer: Offer,
    command: Command,
    exchange: Option<Exchange>,
    /// The tag of the AUTHENTICATE or LOGIN in progress.
    tag: String,
}

impl Imap {
    pub(super) fn new(offer: Offer) -> Self {
        Self { offer, command: Command::default(), exchange: None, tag: String::new() }
    }

    /// The greeting contains the capabilities, because some clients read them only in the greeting.
    pub(super) fn greeting(&self) -> Vec<u8> {
        format!("* OK [CAPABILITY {}] mail-token-relay ready\r\n", self.capabilities()).into_bytes()
    }

    /// Whether the next line answers a prompt of AUTHENTICATE.
    pub(super) fn continues(&self) -> bool {
        self.exchange.is_some()
    }

    /// Whether the next line is the first of a command.
    pub(super) fn begins_command(&self) -> bool {
        self.exchange.is_none() && self.command.is_empty()
    }

    pub(super) fn tls_started(&mut self) {
        (self.offer.start_tls, self.offer.needs_tls) = (false, false);
    }

    pub(super) fn accepted(&mut self, offered: &Capabilities) -> Accepted {
        // A `]` in a word would end the code.
        let words: Vec<_> = offered.lines().filter(|word| !word.contains(']')).collect();
        let code = if words.is_empty() { String::new() } else { format!("[CAPABILITY {}] ", words.join(" ")) };
        Accepted { reply: format!("{} OK {code}Logged in\r\n", self.tag).into_bytes(), forward: vec![] }
    }

    /// The reply to a login that failed (RFC 5530 section 3).
    pub(super) fn refused(&self, refusal: Refusal) -> Vec<u8> {
        let text = match refusal {
            Refusal::Temporary => "[UNAVAILABLE] Temporary failure: the relay's log has the cause".to_owned(),
            Refusal::Permanent(None) => "[AUTHENTICATIONFAILED] The relay's log has the cause".to_owned(),
            // The text contains no second `[…]`: some clients search for one.
            Refusal::Permanent(Some(_)) => "[AUTHENTICATIONFAILED] The mail server refused the token".to_owned(),
        };
        format!("{} NO {text}\r\n", self.tag).into_bytes()
    }

    pub(super) fn literal(&mut self, octets: Octets) -> Next {
        self.command.add_literal(octets);
        Next::More
    }

    pub(super) fn line(&mut self, line: Result<Octets, TooLong>, crlf: bool, input: &mut Input) -> Next {
        let line = match line {
            Ok(line) if crlf => line,
            Ok(line) => return self.rejected(Some(line), "A line must end with CRLF"),
            Err(TooLong) => return self.rejected(None, "Line too long"),
        };
        if let Some(exchange) = self.exchange.take() {
            return self.responded(exchange.respond(&line));
        }
        match self.command.add_line(line) {
            None => self.complete(),
            Some(announced) => self.announced(announced, input),
        }
    }

    fn announced(&mut self, announced: Announced, input: &mut Input) -> Next {
        let Announced { octets, waits } = announced;
        match (self.command.has_room(octets), waits) {
            // The client has already sent the octets, and the server could read them as commands.
            (false, false) => return Next::Close(Ending::TooManyOctets),
            (false, true) => return self.bad("Literal too long"),
            (true, true) => {
                let verb = self.command.verb();
                let wanted = verb == b"ID" || (verb == b"LOGIN" && !self.offer.needs_tls);
                if !wanted || self.command.tag().is_none() {
                    return self.complete();
                }
            }
            (true, false) => {}
        }
        match octets {
            0 => self.command.add_literal(Zeroizing::default()),
            _ => input.expect_octets(octets),
        }
        if waits { reply("+ OK") } else { Next::More }
    }

    /// Ends the command or the exchange of a line that the server does not accept.
    fn rejected(&mut self, line: Option<Octets>, text: &str) -> Next {
        if self.exchange.take().is_some() {
            return reply(&format!("{} BAD {text}", self.tag));
        }
        if let Some(line) = line {
            self.command.add_line(line);
        }
        self.bad(text)
    }

    fn bad(&mut self, text: &str) -> Next {
        let tag = std::mem::take(&mut self.command).tag();
        reply(&format!("{} BAD {text}", tag.as_deref().unwrap_or("*")))
    }

    fn complete(&mut self) -> Next {
        let command = std::mem::take(&mut self.command);
        let Some(tag) = command.tag() else { return reply("* BAD A command begins with a tag") };
        match command.verb().as_slice() {
            b"CAPABILITY" => reply(&format!("* CAPABILITY {}\r\n{tag} OK Completed", self.capabilities())),
            b"NOOP" => reply(&format!("{tag} OK Completed")),
            b"ID" => reply(&format!("* ID NIL\r\n{tag} OK Completed")),
            b"LOGOUT" => Next::ReplyAndQuit(format!("* BYE Logging out\r\n{tag} OK Completed\r\n").into_bytes()),
            b"STARTTLS" if self.offer.start_tls => {
                Next::StartTls(format!("{tag} OK Begin TLS negotiation\r\n").into_bytes())
            }
            b"STARTTLS" => reply(&format!("{tag} BAD STARTTLS is not available")),
            b"LOGIN" | b"AUTHENTICATE" if self.offer.needs_tls => {
                reply(&format!("{tag} NO [PRIVACYREQUIRED] Send STARTTLS first"))
            }
            b"LOGIN" => self.login(tag, command),
            b"AUTHENTICATE" => self.authenticate(tag, &command),
            _ => reply(&format!("{tag} BAD Command not recognized before login")),
        }
    }

    fn login(&mut self, tag: String, command: Command) -> Next {
        let Some((user, password)) = command.two_strings() else {
            return reply(&format!("{tag} BAD LOGIN needs a user name and a password"));
        };
        self.tag = tag;
        let user = String::from_utf8_lossy(&user).into_owned();
        Next::LogIn(Identity::Password(Credentials { user, authorization: None, password }))
    }

    fn authenticate(&mut self, tag: String, command: &Command) -> Next {
        let mut arguments = command.arguments();
        let Some(mechanism) = arguments.next() else {
            return reply(&format!("{tag} BAD AUTHENTICATE needs a mechanism"));
        };
        match sasl::begin(mechanism, arguments.next()) {
            None => reply(&format!("{tag} NO Mechanism not offered: use PLAIN or LOGIN")),
            Some(outcome) => {
                self.tag = tag;
                self.responded(outcome)
            }
        }
    }

    fn responded(&mut self, outcome: Outcome) -> Next {
        outcome.next(&mut self.exchange, "+", |failure| format!("{} BAD {failure}", self.tag))
    }

    fn capabilities(&self) -> String {
        let passwords: &[&str] = if self.offer.needs_tls { &["LOGINDISABLED"] } else { &["AUTH=PLAIN", "AUTH=LOGIN"] };
        let start_tls: &[&str] = if self.offer.start_tls { &["STARTTLS"] } else { &[] };
        let learned = self.offer.capabilities.iter().map(String::as_str);
        let words = IMAP_ALWAYS.iter().chain(passwords).chain(start_tls).copied().chain(learned);
        words.collect::<Vec<_>>().join(" ")
    }
}
