//! The server's side of POP3 before login (RFC 1939, RFC 2449, RFC 2595, RFC 5034).

use zeroize::Zeroizing;

use super::{
    input::Octets,
    sasl::{self, Exchange, Outcome},
    step::{Credentials, Identity, Next, Offer, Refusal, TooLong, reply},
};

/// The greeting has no timestamp in angle brackets, so it offers no APOP (RFC 1939 section 7).
pub(super) const GREETING: &[u8] = b"+OK mail-token-relay ready\r\n";
pub(super) const ACCEPTED: &[u8] = b"+OK Logged in\r\n";
const NEEDS_TLS: &str = "-ERR Send STLS first";

#[derive(Debug)]
pub(super) struct Pop3 {
    offer: Offer,
    user: Option<String>,
    exchange: Option<Exchange>,
}

impl Pop3 {
    pub(super) fn new(offer: Offer) -> Self {
        Self { offer, user: None, exchange: None }
    }

    /// Whether the next line answers a prompt of AUTH.
    pub(super) fn continues(&self) -> bool {
        self.exchange.is_some()
    }

    pub(super) fn tls_started(&mut self) {
        self.user = None;
        (self.offer.start_tls, self.offer.needs_tls) = (false, false);
    }

    pub(super) fn line(&mut self, line: Result<Octets, TooLong>, crlf: bool) -> Next {
        match (self.exchange.take(), line) {
            (_, Err(TooLong)) => reply("-ERR Line too long"),
            (_, Ok(_)) if !crlf => reply("-ERR A line must end with CRLF"),
            (Some(exchange), Ok(line)) => self.responded(exchange.respond(&line)),
            (None, Ok(line)) => self.command(&line),
        }
    }

    fn command(&mut self, line: &[u8]) -> Next {
        let (verb, argument) = match line.iter().position(|byte| *byte == b' ') {
            Some(space) => (&line[..space], &line[space + 1..]),
            None => (line, &[][..]),
        };
        match verb.to_ascii_uppercase().as_slice() {
            b"CAPA" => self.capa(),
            b"NOOP" => reply("+OK"),
            b"QUIT" => Next::ReplyAndQuit(b"+OK Bye\r\n".to_vec()),
            b"STLS" if self.offer.start_tls => Next::StartTls(b"+OK Begin TLS\r\n".to_vec()),
            b"STLS" => reply("-ERR STLS is not available"),
            b"USER" | b"PASS" | b"AUTH" if self.offer.needs_tls => reply(NEEDS_TLS),
            b"USER" => {
                self.user = Some(String::from_utf8_lossy(argument.trim_ascii()).into_owned());
                reply("+OK")
            }
            b"PASS" => self.pass(argument),
            b"AUTH" => self.auth(argument.trim_ascii()),
            _ => reply("-ERR Command not recognized before login"),
        }
    }

    /// The capabilities that the client may use before and after login (RFC 2449 section 5).
    fn capa(&self) -> Next {
        let password = if self.offer.needs_tls { "" } else { "USER\r\nSASL PLAIN LOGIN\r\n" };
        let start_tls = if self.offer.start_tls { "STLS\r\n" } else { "" };
        reply(&format!("+OK\r\n{password}RESP-CODES\r\nAUTH-RESP-CODE\r\nTOP\r\nUIDL\r\n{start_tls}."))
    }

    /// The password is the rest of the line, with its blanks (RFC 1939 section 7).
    fn pass(&mut self, password: &[u8]) -> Next {
        match self.user.take() {
            None => reply("-ERR Send USER first"),
            Some(user) => Next::LogIn(Identity::Password(Credentials {
                user,
                authorization: None,
                password: Zeroizing::new(password.to_vec()),
            })),
        }
    }

    fn auth(&mut self, argument: &[u8]) -> Next {
        let mut words = argument.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        // AUTH without an argument lists the mechanisms. It is older than RFC 5034, but c-client and Outlook use it.
        let Some(mechanism) = words.next() else { return reply("+OK\r\nPLAIN\r\nLOGIN\r\n.") };
        match sasl::begin(mechanism, words.next()) {
            None => reply("-ERR Mechanism not offered: use PLAIN or LOGIN"),
            Some(outcome) => self.responded(outcome),
        }
    }

    fn responded(&mut self, outcome: Outcome) -> Next {
        outcome.next(&mut self.exchange, "+", |failure| format!("-ERR {failure}"))
    }
}

/// The reply to a login that failed (RFC 3206).
pub(super) fn refused(refusal: Refusal) -> Vec<u8> {
    match refusal {
        Refusal::Temporary => "-ERR [SYS/TEMP] Temporary failure: the relay's log has the cause\r\n".to_owned(),
        Refusal::Permanent(None) => "-ERR [AUTH] Authentication failed: the relay's log has the cause\r\n".to_owned(),
        Refusal::Permanent(Some(code)) => format!("-ERR [AUTH] The mail server refused the token ({code})\r\n"),
    }
    .into_bytes()
}
