//! The server's side of SASL PLAIN (RFC 4616) and LOGIN, which SMTP, IMAP and POP3 carry in base64.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use super::step::{Credentials, Identity, Next, reply};

/// The prompts of LOGIN: `Username:` and `Password:` in base64. Clients compare the prompts with exactly these values
/// (draft-murchison-sasl-login-00).
const USERNAME_PROMPT: &str = "VXNlcm5hbWU6";
const PASSWORD_PROMPT: &str = "UGFzc3dvcmQ6";

/// An exchange that waits for a response of the client.
#[derive(Debug)]
pub(super) enum Exchange {
    Plain,
    LoginUser,
    LoginPassword { user: String },
}

/// The result of a response.
pub(super) enum Outcome {
    /// The server sends the prompt and waits for the next response.
    Prompt(Exchange, &'static str),
    Credentials(Credentials),
    Failed(Failure),
}

/// Why an exchange ended without credentials. `Display` shows the text for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The client cancelled the exchange (RFC 4954 section 4).
    Cancelled,
    /// The response is not base64, or does not have the form that the mechanism defines.
    Malformed,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cancelled => "Authentication cancelled",
            Self::Malformed => "Cannot decode the response",
        })
    }
}

impl Outcome {
    /// Returns the server's next action. `prompt` precedes a prompt. `failed` makes the reply to a failure. `waiting`
    /// holds the exchange until the response to the prompt arrives.
    pub(super) fn next(
        self,
        waiting: &mut Option<Exchange>,
        prompt: &str,
        failed: impl FnOnce(Failure) -> String,
    ) -> Next {
        match self {
            Self::Prompt(exchange, text) => {
                *waiting = Some(exchange);
                reply(&format!("{prompt} {text}"))
            }
            Self::Credentials(credentials) => Next::LogIn(Identity::Password(credentials)),
            Self::Failed(failure) => reply(&failed(failure)),
        }
    }
}

/// Begins an exchange with a mechanism and perhaps an initial response. `None`: the server does not offer the
/// mechanism.
pub(super) fn begin(mechanism: &[u8], initial: Option<&[u8]>) -> Option<Outcome> {
    let exchange = match mechanism {
        _ if mechanism.eq_ignore_ascii_case(b"PLAIN") => Exchange::Plain,
        _ if mechanism.eq_ignore_ascii_case(b"LOGIN") => Exchange::LoginUser,
        _ => return None,
    };
    Some(match (initial, exchange) {
        (None, Exchange::LoginUser) => Outcome::Prompt(Exchange::LoginUser, USERNAME_PROMPT),
        (None, exchange) => Outcome::Prompt(exchange, ""),
        // An empty initial response is a single equals sign (RFC 4954 section 4).
        (Some(b"="), exchange) => exchange.respond(b""),
        (Some(initial), exchange) => exchange.respond(initial),
    })
}

impl Exchange {
    pub(super) fn respond(self, response: &[u8]) -> Outcome {
        let response = response.trim_ascii();
        if response == b"*" {
            return Outcome::Failed(Failure::Cancelled);
        }
        let Ok(decoded) = BASE64_STANDARD.decode(response).map(Zeroizing::new) else {
            return Outcome::Failed(Failure::Malformed);
        };
        match self {
            Self::Plain => plain(&decoded).map_or(Outcome::Failed(Failure::Malformed), Outcome::Credentials),
            Self::LoginUser => {
                let user = String::from_utf8_lossy(&decoded).into_owned();
                Outcome::Prompt(Self::LoginPassword { user }, PASSWORD_PROMPT)
            }
            Self::LoginPassword { user } => {
                Outcome::Credentials(Credentials { user, authorization: None, password: decoded })
            }
        }
    }
}

/// The message of PLAIN: authorization identity, NUL, user name, NUL, password.
fn plain(message: &[u8]) -> Option<Credentials> {
    let mut parts = message.split(|byte| *byte == 0);
    let (authorization, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Some(Credentials {
        user: text(user),
        authorization: (!authorization.is_empty()).then(|| text(authorization)),
        password: Zeroizing::new(password.to_vec()),
    })
}
