//! The common part of the logins at SMTP, IMAP and POP3 servers.

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::{
    lines::Lines,
    step::{Failure, Outcome, Purpose, Step},
};
use crate::{
    answers::{Cause, Verdict},
    protocol::{Mechanism, Security},
};

#[derive(Debug)]
pub(super) struct Conversation {
    /// Unfinished input.
    pub(super) lines: Lines,
    pub(super) purpose: Purpose,
    /// Whether the client must still start TLS before AUTH.
    pub(super) plain: bool,
    pub(super) mechanism: Mechanism,
    /// Whether the server has sent a challenge that reports a refused token.
    pub(super) refused: bool,
    /// Whether the client has answered the challenge.
    pub(super) answered: bool,
    /// A step to return before the login reads more input.
    pub(super) pending: Option<Step>,
}

impl Conversation {
    pub(super) fn new(security: Security, purpose: Purpose) -> Self {
        Self {
            lines: Lines::default(),
            purpose,
            plain: security == Security::StartTls,
            mechanism: Mechanism::XOAuth2,
            refused: false,
            answered: false,
            pending: None,
        }
    }

    /// Chooses the mechanism among the offered names.
    pub(super) fn choose<'a>(&mut self, offered: impl Iterator<Item = &'a str>) -> Result<Mechanism, Cause> {
        self.mechanism = Mechanism::choose(offered).ok_or(Cause::NoMechanism)?;
        Ok(self.mechanism)
    }

    /// Answers a challenge that the server sent instead of its final reply. XOAUTH2 and OAUTHBEARER report a refusal in
    /// this way. The client answers only the first challenge; a second challenge ends the login.
    pub(super) fn challenged(&mut self, challenge: &str) -> Step {
        if std::mem::replace(&mut self.answered, true) {
            return failed(Failure::from(if self.refused { Cause::Refused } else { Cause::Malformed }));
        }
        self.refused = is_refusal(challenge);
        Step::Write(self.mechanism.answer_to_refusal().to_vec())
    }

    /// Ends a login with a last command, whose reply the client does not read.
    pub(super) fn end(&mut self, outcome: Outcome, last_command: &[u8]) -> Step {
        self.pending = Some(Step::Done(outcome));
        Step::Write(last_command.to_vec())
    }
}

pub(super) fn failed(failure: Failure) -> Step {
    Step::Done(Outcome::Failed(failure))
}

/// Whether a challenge reports status 400 or 401 (Google, "OAuth 2.0 Mechanism", error response; RFC 7628 section 3.2.2 has
/// `invalid_token` in the same place).
fn is_refusal(challenge: &str) -> bool {
    let Ok(decoded) = BASE64_STANDARD.decode(challenge.trim()) else { return false };
    let text: String =
        decoded.iter().filter(|byte| !byte.is_ascii_whitespace()).map(|byte| char::from(*byte)).collect();
    ["400", "401", "invalid_token"].iter().any(|status| text.contains(&format!("\"status\":\"{status}\"")))
}

/// Whether the client ends the session with a command. A server that is not available gets no command.
pub(super) fn says_goodbye(cause: Cause) -> bool {
    cause.verdict() == Verdict::Refused
}
