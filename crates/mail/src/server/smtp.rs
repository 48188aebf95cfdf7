//! The server's side of SMTP submission before login (RFC 5321, RFC 3207, RFC 4954).

use super::{
    MAX_OCTETS,
    announcement::SMTP_ALWAYS,
    input::{Input, Octets},
    sasl::{self, Exchange, Failure, Outcome},
    step::{Accepted, Ending, Identity, Next, Offer, Refusal, TooLong, reply},
};

pub(super) const GREETING: &[u8] = b"220 mail-token-relay ESMTP\r\n";
/// The reply to a command that sends mail before login (RFC 4954 section 6).
const NEEDS_AUTH: &str = "530 5.7.0 Authentication required";
const NEEDS_TLS: &str = "530 5.7.0 Must issue a STARTTLS command first";

#[derive(Debug)]
pub(super) struct Smtp {
    offer: Offer,
    client_name: Option<String>,
    exchange: Option<Exchange>,
    /// The MAIL line that began a login without AUTH. The relay sends the line to the mail server after the login.
    mail: Vec<u8>,
}

impl Smtp {
    pub(super) fn new(offer: Offer) -> Self {
        Self { offer, client_name: None, exchange: None, mail: vec![] }
    }

    pub(super) fn client_name(&self) -> Option<&str> {
        self.client_name.as_deref()
    }

    /// Whether the next line answers a prompt of AUTH.
    pub(super) fn continues(&self) -> bool {
        self.exchange.is_some()
    }

    pub(super) fn tls_started(&mut self) {
        self.client_name = None;
        (self.offer.start_tls, self.offer.needs_tls) = (false, false);
    }

    pub(super) fn accepted(&mut self) -> Accepted {
        let forward = std::mem::take(&mut self.mail);
        let reply = match forward.is_empty() {
            true => b"235 2.7.0 Authentication successful\r\n".to_vec(),
            false => vec![],
        };
        Accepted { reply, forward }
    }

    pub(super) fn line(&mut self, line: Result<Octets, TooLong>, input: &mut Input) -> Next {
        match (self.exchange.take(), line) {
            (Some(_), Err(TooLong)) => reply("500 5.5.6 Authentication exchange line is too long"),
            (None, Err(TooLong)) => reply("500 5.5.2 Line too long"),
            (Some(exchange), Ok(line)) => self.responded(exchange.respond(&line)),
            (None, Ok(line)) => self.command(&line, input),
        }
    }

    fn command(&mut self, line: &[u8], input: &mut Input) -> Next {
        let (verb, argument) = match line.iter().position(|byte| *byte == b' ') {
            Some(space) => (&line[..space], line[space + 1..].trim_ascii()),
            None => (line.trim_ascii(), &[][..]),
        };
        match verb.to_ascii_uppercase().as_slice() {
            b"EHLO" => self.ehlo(argument),
            b"HELO" => {
                self.name(argument);
                reply("250 mail-token-relay")
            }
            b"AUTH" => self.auth(argument),
            b"STARTTLS" => self.start_tls(argument),
            b"NOOP" | b"RSET" => reply("250 2.0.0 OK"),
            b"QUIT" => Next::ReplyAndQuit(b"221 2.0.0 Bye\r\n".to_vec()),
            b"MAIL" => self.mail(line),
            b"RCPT" | b"DATA" if self.offer.without_auth => reply("503 5.5.1 Send MAIL first"),
            b"BDAT" => bdat(argument, input),
            b"RCPT" | b"DATA" | b"VRFY" | b"EXPN" | b"ETRN" | b"HELP" | b"BURL" => self.needs_login(),
            b"" => reply("500 5.5.2 Empty command"),
            _ => reply("500 5.5.1 Command not recognized"),
        }
    }

    fn name(&mut self, argument: &[u8]) {
        let name = argument.split(|byte| *byte == b' ').next().unwrap_or_default();
        let fits = (1..=255).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
        self.client_name = fits.then(|| name.iter().map(|byte| char::from(*byte)).collect());
    }

    fn ehlo(&mut self, argument: &[u8]) -> Next {
        self.name(argument);
        let own = SMTP_ALWAYS.iter().map(|line| (*line).to_owned());
        let auth = (!self.offer.needs_tls).then(|| "AUTH PLAIN LOGIN".to_owned());
        let start_tls = self.offer.start_tls.then(|| "STARTTLS".to_owned());
        let lines = own.chain(self.offer.capabilities.iter().cloned()).chain(start_tls).chain(auth);
        let lines: Vec<_> = std::iter::once("mail-token-relay".to_owned()).chain(lines).collect();
        let last = lines.len() - 1;
        let lines = lines.iter().enumerate();
        let text: String =
            lines.map(|(at, line)| format!("250{}{line}\r\n", if at == last { ' ' } else { '-' })).collect();
        Next::Reply(text.into_bytes())
    }

    fn start_tls(&mut self, argument: &[u8]) -> Next {
        match (self.offer.start_tls, argument.is_empty()) {
            (false, _) => reply("502 5.5.1 STARTTLS is not available"),
            (true, false) => reply("501 5.5.4 STARTTLS has no parameters"),
            (true, true) => Next::StartTls(b"220 2.0.0 Ready to start TLS\r\n".to_vec()),
        }
    }

    fn auth(&mut self, argument: &[u8]) -> Next {
        if self.offer.needs_tls {
            return reply(NEEDS_TLS);
        }
        let mut words = argument.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let Some(mechanism) = words.next() else { return reply("501 5.5.4 AUTH needs a mechanism") };
        match sasl::begin(mechanism, words.next()) {
            None => reply("504 5.5.4 Mechanism not offered: use PLAIN or LOGIN"),
            Some(outcome) => self.responded(outcome),
        }
    }

    fn responded(&mut self, outcome: Outcome) -> Next {
        outcome.next(&mut self.exchange, "334", |failure| match failure {
            Failure::Cancelled => format!("501 5.7.0 {failure}"),
            Failure::Malformed => format!("501 5.5.2 {failure}"),
        })
    }

    fn mail(&mut self, line: &[u8]) -> Next {
        if !self.offer.without_auth || self.offer.needs_tls {
            return self.needs_login();
        }
        self.mail = [line, b"\r\n"].concat();
        Next::LogIn(Identity::WithoutAuth)
    }

    fn needs_login(&self) -> Next {
        reply(if self.offer.needs_tls { NEEDS_TLS } else { NEEDS_AUTH })
    }
}

/// Skips the octets of BDAT, which the client sends without waiting for a reply (RFC 3030 section 2).
fn bdat(argument: &[u8], input: &mut Input) -> Next {
    let size = argument.split(|byte| *byte == b' ').next().unwrap_or_default();
    match std::str::from_utf8(size).ok().and_then(|size| size.parse::<usize>().ok()) {
        None => reply("501 5.5.4 BDAT needs a size"),
        Some(size) if size >= MAX_OCTETS => Next::Close(Ending::TooManyOctets),
        Some(size) => {
            input.skip(size);
            reply(NEEDS_AUTH)
        }
    }
}

/// The reply to a login that failed (RFC 4954 section 6).
pub(super) fn refused(refusal: Refusal) -> Vec<u8> {
    match refusal {
        Refusal::Temporary => {
            "454 4.7.0 Temporary authentication failure: the relay's log has the cause\r\n".to_owned()
        }
        Refusal::Permanent(None) => "535 5.7.8 Authentication failed: the relay's log has the cause\r\n".to_owned(),
        Refusal::Permanent(Some(code)) => format!("535 5.7.8 The mail server refused the token ({code})\r\n"),
    }
    .into_bytes()
}
