//! The login at an IMAP server (RFC 3501, RFC 9051).

use super::{
    conversation::{Conversation, failed, says_goodbye},
    step::{Capabilities, Failure, Outcome, Purpose, Step},
};
use crate::{
    answers::{Cause, ImapStatus, ServerCode, Stage, cause, imap_code},
    protocol::Security,
};

/// Maximum octets of a literal in an untagged response. The login needs no literal and skips the octets.
const MAX_LITERAL: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Capability,
    StartTls,
    Authenticate,
    Token,
    /// The client has sent CAPABILITY after the login.
    CapabilityAfterLogin,
    Examine,
}

#[derive(Debug)]
pub(super) struct Imap {
    pub(super) conversation: Conversation,
    state: State,
    /// The number in the tag of the last command.
    tag: u32,
    /// The capabilities that the server has offered since the last change of security or identity.
    offered: Capabilities,
    /// Whether the next line continues a line that ended with a literal.
    continues: bool,
}

impl Imap {
    pub(super) fn new(security: Security, purpose: Purpose) -> Self {
        Self {
            conversation: Conversation::new(security, purpose),
            state: State::Greeting,
            tag: 0,
            offered: Capabilities::default(),
            continues: false,
        }
    }

    /// The step after a line. `None`: the reply is not complete.
    pub(super) fn line(&mut self, line: &str) -> Option<Step> {
        let continued = std::mem::take(&mut self.continues);
        match literal(line) {
            Some(length) if length <= MAX_LITERAL => {
                self.conversation.lines.skip(length);
                self.continues = true;
            }
            Some(_) => return Some(failed(Cause::Malformed.into())),
            None => {}
        }
        if continued {
            return None;
        }
        if let Some(untagged) = line.strip_prefix("* ") {
            return self.untagged(untagged);
        }
        if let Some(challenge) = line.strip_prefix('+') {
            return Some(self.continuation(challenge.trim_start()));
        }
        let Some(rest) = line.strip_prefix(&format!("m{} ", self.tag)).filter(|_| self.tag > 0) else {
            return Some(failed(Cause::Malformed.into()));
        };
        let (status, text) = rest.split_once(' ').unwrap_or((rest, ""));
        Some(match status.to_ascii_uppercase().as_str() {
            "OK" => {
                self.code(text);
                self.succeeded()
            }
            "NO" => self.refused(ImapStatus::No, text),
            "BAD" => self.refused(ImapStatus::Bad, text),
            _ => failed(Cause::Malformed.into()),
        })
    }

    fn untagged(&mut self, line: &str) -> Option<Step> {
        let (kind, text) = line.split_once(' ').unwrap_or((line, ""));
        let greeting = self.state == State::Greeting;
        match kind.to_ascii_uppercase().as_str() {
            "PREAUTH" => Some(failed(Cause::Preauthenticated.into())),
            "BYE" => Some(self.refused(ImapStatus::Bye, text)),
            "OK" if greeting => {
                self.code(text);
                Some(if self.offered == Capabilities::default() { self.ask_capability() } else { self.capabilities() })
            }
            _ if greeting => Some(failed(Cause::Malformed.into())),
            "CAPABILITY" => {
                self.offered = Capabilities::default();
                self.offered.add_words(text);
                None
            }
            _ => None,
        }
    }

    fn continuation(&mut self, challenge: &str) -> Step {
        match self.state {
            State::Authenticate => {
                self.state = State::Token;
                // The capabilities may differ after the login.
                self.offered = Capabilities::default();
                Step::SendToken(self.conversation.mechanism)
            }
            State::Token => self.conversation.challenged(challenge),
            _ => failed(Cause::Malformed.into()),
        }
    }

    /// The step after a successful command.
    fn succeeded(&mut self) -> Step {
        match self.state {
            State::Capability => self.capabilities(),
            State::StartTls => {
                self.conversation.plain = false;
                self.offered = Capabilities::default();
                self.conversation.pending = Some(self.ask_capability());
                Step::StartTls
            }
            State::Token if self.conversation.purpose == Purpose::Probe => {
                self.command(State::Examine, "EXAMINE INBOX")
            }
            State::Token if self.offered == Capabilities::default() => {
                self.command(State::CapabilityAfterLogin, "CAPABILITY")
            }
            State::Token | State::CapabilityAfterLogin => {
                Step::Done(Outcome::Accepted(std::mem::take(&mut self.offered)))
            }
            State::Examine => {
                let accepted = Outcome::Accepted(std::mem::take(&mut self.offered));
                self.log_out(accepted)
            }
            // The server sent OK before the client could send the token.
            State::Greeting | State::Authenticate => failed(Cause::Malformed.into()),
        }
    }

    fn capabilities(&mut self) -> Step {
        if self.conversation.plain {
            return match self.offered.offers("STARTTLS") {
                true => self.command(State::StartTls, "STARTTLS"),
                false => self.end(Cause::NoStartTls.into()),
            };
        }
        let mechanisms = self.offered.lines().filter_map(|word| {
            word.get(..5).filter(|head| head.eq_ignore_ascii_case("AUTH=")).map(|head| &word[head.len()..])
        });
        match self.conversation.choose(mechanisms) {
            Err(cause) => self.end(cause.into()),
            Ok(mechanism) => self.command(State::Authenticate, &format!("AUTHENTICATE {}", mechanism.name())),
        }
    }

    /// Reads the code `[CAPABILITY …]` of an OK, if the OK has this code.
    fn code(&mut self, text: &str) {
        let code = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        if let Some((name, words)) = code.and_then(|(code, _)| code.split_once(' '))
            && name.eq_ignore_ascii_case("CAPABILITY")
        {
            self.offered = Capabilities::default();
            self.offered.add_words(words);
        }
    }

    fn refused(&mut self, status: ImapStatus, text: &str) -> Step {
        let stage = match self.state {
            State::Greeting | State::Capability | State::StartTls => Stage::Opening,
            State::Authenticate | State::Token | State::Examine => Stage::Authentication,
            // The server has accepted the token. The session also works without the list of capabilities.
            State::CapabilityAfterLogin if status != ImapStatus::Bye => {
                return Step::Done(Outcome::Accepted(Capabilities::default()));
            }
            State::CapabilityAfterLogin => Stage::Authentication,
        };
        if self.state == State::StartTls && status == ImapStatus::Bad {
            return self.end(Cause::NoStartTls.into());
        }
        let code = ServerCode::Imap(status, imap_code(text));
        self.end(Failure { cause: cause(code, stage, &text.to_ascii_lowercase()), code: Some(code) })
    }

    fn ask_capability(&mut self) -> Step {
        self.command(State::Capability, "CAPABILITY")
    }

    fn command(&mut self, state: State, command: &str) -> Step {
        self.state = state;
        self.tag += 1;
        Step::Write(format!("m{} {command}\r\n", self.tag).into_bytes())
    }

    fn end(&mut self, failure: Failure) -> Step {
        match says_goodbye(failure.cause) {
            true => self.log_out(Outcome::Failed(failure)),
            false => failed(failure),
        }
    }

    fn log_out(&mut self, outcome: Outcome) -> Step {
        self.tag += 1;
        self.conversation.end(outcome, format!("m{} LOGOUT\r\n", self.tag).as_bytes())
    }
}

/// The length of the literal that a line announces at its end (RFC 9051 section 4.3), or `usize::MAX` if the number is
/// too large.
fn literal(line: &str) -> Option<usize> {
    let (_, digits) = line.strip_suffix('}')?.rsplit_once('{')?;
    let digits = digits.strip_suffix('+').unwrap_or(digits);
    let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    number.then(|| digits.parse().unwrap_or(usize::MAX))
}
