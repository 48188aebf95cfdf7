//! The login at a POP3 server (RFC 1939, RFC 2449, RFC 2595, RFC 5034).

use super::{
    conversation::{Conversation, failed, says_goodbye},
    step::{Capabilities, Failure, Outcome, Purpose, Step},
};
use crate::{
    answers::{Cause, ServerCode, Stage, cause, pop3_code},
    protocol::Security,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Capa,
    /// The client reads the lines of CAPA's reply.
    CapaLines,
    StartTls,
    Auth,
    Token,
}

#[derive(Debug)]
pub(super) struct Pop3 {
    pub(super) conversation: Conversation,
    state: State,
    offered: Capabilities,
}

impl Pop3 {
    pub(super) fn new(security: Security, purpose: Purpose) -> Self {
        Self {
            conversation: Conversation::new(security, purpose),
            state: State::Greeting,
            offered: Capabilities::default(),
        }
    }

    /// The step after a line. `None`: the reply is not complete.
    pub(super) fn line(&mut self, line: &str) -> Option<Step> {
        if self.state == State::CapaLines {
            if line == "." {
                return Some(self.capabilities());
            }
            self.offered.add(line);
            return None;
        }
        if let Some(challenge) = line.strip_prefix('+').filter(|rest| rest.is_empty() || rest.starts_with(' ')) {
            return Some(match self.state {
                State::Auth => {
                    self.state = State::Token;
                    Step::SendToken(self.conversation.mechanism)
                }
                State::Token => self.conversation.challenged(challenge.trim_start()),
                _ => failed(Cause::Malformed.into()),
            });
        }
        let (status, text) = line.split_once(' ').unwrap_or((line, ""));
        match status.to_ascii_uppercase().as_str() {
            "+OK" => self.succeeded(),
            "-ERR" => Some(self.refused(text)),
            _ => Some(failed(Cause::Malformed.into())),
        }
    }

    fn succeeded(&mut self) -> Option<Step> {
        Some(match self.state {
            State::Greeting => self.ask_capa(),
            State::Capa => {
                self.state = State::CapaLines;
                return None;
            }
            State::StartTls => {
                self.conversation.plain = false;
                self.conversation.pending = Some(self.ask_capa());
                Step::StartTls
            }
            State::Token => {
                let accepted = Outcome::Accepted(std::mem::take(&mut self.offered));
                match self.conversation.purpose {
                    Purpose::Probe => self.conversation.end(accepted, b"QUIT\r\n"),
                    Purpose::Session => Step::Done(accepted),
                }
            }
            State::CapaLines | State::Auth => failed(Cause::Malformed.into()),
        })
    }

    fn ask_capa(&mut self) -> Step {
        (self.state, self.offered) = (State::Capa, Capabilities::default());
        Step::Write(b"CAPA\r\n".to_vec())
    }

    fn capabilities(&mut self) -> Step {
        if self.conversation.plain {
            if !self.offered.offers("STLS") {
                return self.end(Cause::NoStartTls.into());
            }
            self.state = State::StartTls;
            return Step::Write(b"STLS\r\n".to_vec());
        }
        let mechanisms = self.offered.parameters("SASL").unwrap_or_default().split(' ');
        match self.conversation.choose(mechanisms) {
            Err(cause) => self.end(cause.into()),
            Ok(mechanism) => {
                self.state = State::Auth;
                Step::Write(format!("AUTH {}\r\n", mechanism.name()).into_bytes())
            }
        }
    }

    fn refused(&mut self, text: &str) -> Step {
        let stage = match self.state {
            // A server without CAPA announces neither STLS nor a mechanism.
            State::Capa => return self.capabilities(),
            State::Greeting | State::CapaLines | State::StartTls => Stage::Opening,
            State::Auth | State::Token => Stage::Authentication,
        };
        let code = ServerCode::Pop3(pop3_code(text));
        self.end(Failure { cause: cause(code, stage, &text.to_ascii_lowercase()), code: Some(code) })
    }

    fn end(&mut self, failure: Failure) -> Step {
        match says_goodbye(failure.cause) {
            true => self.conversation.end(Outcome::Failed(failure), b"QUIT\r\n"),
            false => failed(failure),
        }
    }
}
