//! The login at an SMTP submission server (RFC 5321, RFC 3207, RFC 4954).

use super::{
    conversation::{Conversation, failed, says_goodbye},
    step::{Capabilities, Failure, Outcome, Purpose, Step},
};
use crate::{
    answers::{Cause, ServerCode, Stage, cause},
    protocol::Security,
};

/// Maximum octets of a reply's text that the client keeps to search for phrases.
const MAX_TEXT: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Ehlo,
    StartTls,
    Auth,
    Token,
}

/// A reply that is not complete yet (RFC 5321 section 4.2.1).
#[derive(Debug, Default)]
struct Reply {
    code: Option<u16>,
    enhanced: Option<(u8, u16, u16)>,
    /// The text of all lines in lower case.
    text: String,
    /// The text after the code in each line.
    lines: Capabilities,
}

#[derive(Debug)]
pub(super) struct Smtp {
    pub(super) conversation: Conversation,
    name: String,
    state: State,
    reply: Reply,
    offered: Capabilities,
}

impl Smtp {
    pub(super) fn new(security: Security, purpose: Purpose, name: &str) -> Self {
        let fits = (1..=255).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
        Self {
            conversation: Conversation::new(security, purpose),
            name: if fits { name } else { "[127.0.0.1]" }.to_owned(),
            state: State::Greeting,
            reply: Reply::default(),
            offered: Capabilities::default(),
        }
    }

    /// The step after a line. `None`: the reply is not complete.
    pub(super) fn line(&mut self, line: &str) -> Option<Step> {
        match self.reply.add(line) {
            None => Some(failed(Cause::Malformed.into())),
            Some(false) => None,
            Some(true) => {
                let reply = std::mem::take(&mut self.reply);
                Some(self.replied(reply))
            }
        }
    }

    fn replied(&mut self, reply: Reply) -> Step {
        let code = reply.code.unwrap_or_default();
        match (self.state, code) {
            (State::Greeting, 220) => self.ehlo(),
            (State::Ehlo, 250) => self.capabilities(reply.lines),
            (State::Ehlo, 500..) => self.end(Cause::NoMechanism.into()),
            (State::StartTls, 220) => {
                (self.conversation.plain, self.state) = (false, State::Ehlo);
                self.conversation.pending = Some(self.ehlo());
                Step::StartTls
            }
            (State::StartTls, 500..) => self.end(Cause::NoStartTls.into()),
            (State::Auth, 334) => {
                self.state = State::Token;
                Step::SendToken(self.conversation.mechanism)
            }
            (State::Token, 334) => self.conversation.challenged(&reply.text_as_sent()),
            (State::Token, 235) => {
                let accepted = Outcome::Accepted(std::mem::take(&mut self.offered));
                match self.conversation.purpose {
                    Purpose::Probe => self.conversation.end(accepted, b"QUIT\r\n"),
                    Purpose::Session => Step::Done(accepted),
                }
            }
            (_, 400..) => {
                let stage = match self.state {
                    State::Greeting | State::Ehlo | State::StartTls => Stage::Opening,
                    State::Auth | State::Token => Stage::Authentication,
                };
                let code = ServerCode::Smtp(code, reply.enhanced);
                self.end(Failure { cause: cause(code, stage, &reply.text), code: Some(code) })
            }
            // A positive reply that does not fit the state.
            (_, _) => failed(Cause::Malformed.into()),
        }
    }

    fn ehlo(&mut self) -> Step {
        self.state = State::Ehlo;
        Step::Write(format!("EHLO {}\r\n", self.name).into_bytes())
    }

    fn capabilities(&mut self, offered: Capabilities) -> Step {
        if self.conversation.plain {
            if !offered.offers("STARTTLS") {
                return self.end(Cause::NoStartTls.into());
            }
            self.state = State::StartTls;
            return Step::Write(b"STARTTLS\r\n".to_vec());
        }
        if offered.offers("XCLIENT") {
            return self.end(Cause::OffersXclient.into());
        }
        // A server may have both `AUTH X Y` and the older `AUTH=X Y`.
        let auth = |line: &str| {
            line.get(..5).is_some_and(|head| ["AUTH ", "AUTH="].iter().any(|auth| head.eq_ignore_ascii_case(auth)))
        };
        let mechanisms = offered.lines().filter(|line| auth(line)).flat_map(|line| line[5..].split(' '));
        match self.conversation.choose(mechanisms) {
            Err(cause) => self.end(cause.into()),
            Ok(mechanism) => {
                (self.offered, self.state) = (offered, State::Auth);
                Step::Write(format!("AUTH {}\r\n", mechanism.name()).into_bytes())
            }
        }
    }

    fn end(&mut self, failure: Failure) -> Step {
        match says_goodbye(failure.cause) {
            true => self.conversation.end(Outcome::Failed(failure), b"QUIT\r\n"),
            false => failed(failure),
        }
    }
}

impl Reply {
    /// Adds a line, and returns whether the reply is complete. `None`: the line is no line of a reply, or has another
    /// code.
    fn add(&mut self, line: &str) -> Option<bool> {
        let (digits, rest) = line.split_at_checked(3)?;
        let code: u16 = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
        if !(200..600).contains(&code) || *self.code.get_or_insert(code) != code {
            return None;
        }
        let complete = match rest.as_bytes().first() {
            None | Some(b' ') => true,
            Some(b'-') => false,
            Some(_) => return None,
        };
        let text = rest.get(1..).unwrap_or_default();
        self.enhanced = self.enhanced.or_else(|| enhanced(code, text));
        if self.text.len() + text.len() < MAX_TEXT {
            self.text.push_str(&text.to_ascii_lowercase());
            self.text.push(' ');
        }
        self.lines.add(text);
        Some(complete)
    }

    /// The text of the first line, with its case.
    fn text_as_sent(&self) -> String {
        self.lines.lines().next().unwrap_or_default().to_owned()
    }
}

/// The enhanced status code at the beginning of a reply's text (RFC 2034 section 4).
fn enhanced(code: u16, text: &str) -> Option<(u8, u16, u16)> {
    let mut numbers = text.split(' ').next()?.splitn(3, '.');
    let mut number = |most: usize| {
        let digits = numbers.next()?;
        (1..=most).contains(&digits.len()).then_some(())?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u16>().ok())?
    };
    let (class, subject, detail) = (number(1)?, number(3)?, number(3)?);
    (class == code / 100).then_some((u8::try_from(class).ok()?, subject, detail))
}
