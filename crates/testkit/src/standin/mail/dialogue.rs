//! The server's side of a login, line by line: the client's line, and the server's answer.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use mailtoken_mail::protocol::Protocol;

/// The result of a login at the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The server accepts the token for the mailbox.
    Accepted,
    /// IMAP: the server accepts the token, but refuses each command on the mailbox.
    NotConnected,
    /// The server refuses the token with this text, without a tag.
    Refused(String),
    /// The server refuses the token with this challenge in JSON. After the client's answer, it sends this text.
    Challenged(&'static str, String),
    /// The server does not answer.
    Hang,
}

/// The texts of a server for one protocol, except refusals.
pub struct Spoken {
    /// The greeting, without a tag.
    pub greeting: &'static str,
    /// The capabilities: keywords of EHLO or CAPA, or one line of IMAP capabilities.
    pub offers: &'static [&'static str],
    /// The answer to an accepted login, without a tag.
    pub accepted: &'static str,
    /// The answer to a throttled login, without a tag.
    pub throttled: &'static str,
    /// The answer to a line that is too long, without a tag.
    pub too_long: &'static str,
}

/// The texts of a service, except refusals.
pub struct Words {
    /// The texts for SMTP. The capabilities are those after STARTTLS.
    pub smtp: Spoken,
    /// The texts for IMAP.
    pub imap: Spoken,
    /// The texts for POP3.
    pub pop3: Spoken,
    /// IMAP capabilities that the server sends, unrequested, before it accepts a login.
    pub imap_unasked: Option<&'static str>,
    /// The end of the answer to CAPABILITY.
    pub imap_completed: &'static str,
}

impl Words {
    /// Returns the texts for a protocol.
    pub fn of(&self, protocol: Protocol) -> &Spoken {
        match protocol {
            Protocol::Smtp => &self.smtp,
            Protocol::Imap => &self.imap,
            Protocol::Pop3 => &self.pop3,
        }
    }
}

/// The next action of a server.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The server sends these lines.
    Say(Vec<String>),
    /// The server sends this line and then accepts the TLS handshake.
    StartTls(String),
    /// The server sends these lines and closes the connection.
    Bye(Vec<String>),
    /// The server sends no more lines.
    Hang,
}

/// The next line that the server expects.
enum Expected {
    Command,
    /// The response of a SASL mechanism.
    Response(String),
    /// The answer to a challenge. The server then sends these lines.
    Answer(Vec<String>),
}

/// The state of one connection.
pub struct Dialogue {
    protocol: Protocol,
    words: &'static Words,
    tls: bool,
    expected: Expected,
    /// The IMAP tag of the command in progress.
    tag: String,
    /// `None` before the server has accepted a login; then whether the login opens the mailbox.
    login: Option<bool>,
}

/// Maximum length of an SMTP command (RFC 5321 section 4.5.3.1.4) and of a POP3 command (RFC 2449 section 4), with the
/// line end.
const COMMAND: [usize; 2] = [512, 255];

impl Dialogue {
    pub fn new(protocol: Protocol, words: &'static Words) -> Self {
        let tls = protocol != Protocol::Smtp;
        Self { protocol, words, tls, expected: Expected::Command, tag: String::new(), login: None }
    }

    pub fn greeting(&self) -> String {
        let greeting = self.spoken().greeting;
        if self.protocol == Protocol::Imap { format!("* {greeting}") } else { greeting.to_owned() }
    }

    /// Records that the TLS handshake has ended.
    pub fn secured(&mut self) {
        self.tls = true;
    }

    fn spoken(&self) -> &'static Spoken {
        self.words.of(self.protocol)
    }

    /// Returns the action after a line of the client. `judge` decides about the user name and token of a login.
    pub fn line(&mut self, line: &str, judge: impl FnOnce(&str, &str) -> Verdict) -> Answer {
        match std::mem::replace(&mut self.expected, Expected::Command) {
            Expected::Answer(lines) => Answer::Say(lines),
            Expected::Response(mechanism) => self.response(&mechanism, line, judge),
            Expected::Command => {
                let longest = match self.protocol {
                    Protocol::Smtp => COMMAND[0],
                    Protocol::Pop3 => COMMAND[1],
                    Protocol::Imap => usize::MAX,
                };
                if line.len() + 2 > longest {
                    return self.say(self.spoken().too_long);
                }
                match self.protocol {
                    Protocol::Smtp => self.smtp(line, judge),
                    Protocol::Imap => self.imap(line, judge),
                    Protocol::Pop3 => self.pop3(line, judge),
                }
            }
        }
    }

    fn smtp(&mut self, line: &str, judge: impl FnOnce(&str, &str) -> Verdict) -> Answer {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (command.to_ascii_uppercase().as_str(), self.login) {
            ("EHLO", _) => {
                let (host, security) = (self.spoken().greeting.split(' ').nth(1).unwrap_or_default(), "STARTTLS");
                let offered = self.spoken().offers.iter().copied().filter(|word| self.tls || !word.starts_with("AUTH"));
                let offered = offered.chain((!self.tls).then_some(security)).map(|word| format!("250-{word}"));
                let mut lines: Vec<_> = [format!("250-{host} Hello {rest}")].into_iter().chain(offered).collect();
                if let Some(last) = lines.last_mut() {
                    last.replace_range(3..4, " ");
                }
                Answer::Say(lines)
            }
            ("STARTTLS", _) if !self.tls => Answer::StartTls("220 2.0.0 SMTP server ready".to_owned()),
            ("NOOP" | "RSET", _) => self.say("250 2.0.0 OK"),
            ("QUIT", _) => Answer::Bye(vec!["221 2.0.0 Service closing transmission channel".to_owned()]),
            ("AUTH", Some(_)) => self.say("503 5.5.1 Already authenticated"),
            ("AUTH", None) if self.tls => self.auth(rest, judge),
            ("MAIL", None) => self.say("530 5.7.57 Client not authenticated to send mail."),
            _ => self.say("500 5.3.3 Unrecognized command"),
        }
    }

    fn imap(&mut self, line: &str, judge: impl FnOnce(&str, &str) -> Verdict) -> Answer {
        let mut words = line.splitn(3, ' ');
        let (tag, command) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let rest = words.next().unwrap_or_default();
        tag.clone_into(&mut self.tag);
        match (command.to_ascii_uppercase().as_str(), self.login) {
            ("CAPABILITY", login) => {
                let unasked = self.words.imap_unasked.filter(|_| login.is_some());
                let offered = unasked.unwrap_or(self.spoken().offers[0]);
                Answer::Say(vec![format!("* CAPABILITY {offered}"), format!("{tag} {}", self.words.imap_completed)])
            }
            ("NOOP", _) => self.say("OK NOOP completed."),
            ("LOGOUT", _) => Answer::Bye(vec!["* BYE LOGOUT Requested".to_owned(), format!("{tag} OK Goodbye")]),
            ("AUTHENTICATE", None) => self.auth(rest, judge),
            ("SELECT" | "EXAMINE", Some(false)) => self.say("BAD User is authenticated but not connected."),
            ("SELECT" | "EXAMINE", Some(true)) => Answer::Say(vec![
                "* FLAGS (\\Seen \\Answered \\Flagged \\Deleted \\Draft $MDNSent)".to_owned(),
                "* 0 EXISTS".to_owned(),
                "* OK [UIDVALIDITY 14] UIDVALIDITY value".to_owned(),
                format!("{tag} OK [READ-ONLY] {command} completed."),
            ]),
            _ => self.say("BAD Command Error. 10"),
        }
    }

    fn pop3(&mut self, line: &str, judge: impl FnOnce(&str, &str) -> Verdict) -> Answer {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (command.to_ascii_uppercase().as_str(), self.login) {
            ("CAPA", _) => {
                let offered = self.spoken().offers.iter().map(|word| (*word).to_owned());
                Answer::Say(["+OK".to_owned()].into_iter().chain(offered).chain([".".to_owned()]).collect())
            }
            ("NOOP", Some(_)) => self.say("+OK"),
            ("STAT", Some(_)) => self.say("+OK 0 0"),
            ("QUIT", _) => Answer::Bye(vec!["+OK signing off.".to_owned()]),
            ("AUTH", None) => self.auth(rest, judge),
            _ => self.say("-ERR Protocol error. 14"),
        }
    }

    /// Handles a mechanism, with or without an initial response.
    fn auth(&mut self, rest: &str, judge: impl FnOnce(&str, &str) -> Verdict) -> Answer {
        let (mechanism, initial) = rest.split_once(' ').unwrap_or((rest, ""));
        let mechanism = mechanism.to_ascii_uppercase();
        let offered = |line: &&&str| line.split([' ', '=']).any(|word| word == mechanism);
        if !matches!(mechanism.as_str(), "XOAUTH2" | "OAUTHBEARER")
            || !self.spoken().offers.iter().any(|line| offered(&line))
        {
            return match self.protocol {
                Protocol::Smtp => self.say("504 5.7.4 Unrecognized authentication type"),
                Protocol::Imap => self.say("NO AUTHENTICATE failed."),
                Protocol::Pop3 => self.say("-ERR Protocol error. 14"),
            };
        }
        if initial.is_empty() {
            self.expected = Expected::Response(mechanism);
            return Answer::Say(vec![self.challenge("")]);
        }
        self.response(&mechanism, initial, judge)
    }

    fn response(&mut self, mechanism: &str, line: &str, judge: impl FnOnce(&str, &str) -> Verdict) -> Answer {
        let Some((user, token)) = credentials(mechanism, line) else {
            return match self.protocol {
                Protocol::Smtp => self.say("501 5.5.124 Invalid XOAUTH2 auth data"),
                Protocol::Imap => self.say("NO AUTHENTICATE failed."),
                Protocol::Pop3 => self.say("-ERR Authentication failure: unknown user name or bad password."),
            };
        };
        match judge(&user, &token) {
            Verdict::Hang => Answer::Hang,
            Verdict::Accepted => self.accepted(true),
            Verdict::NotConnected => self.accepted(false),
            Verdict::Refused(words) => self.say(&words),
            Verdict::Challenged(challenge, words) => {
                self.expected = Expected::Answer(self.tagged(&words));
                Answer::Say(vec![self.challenge(&BASE64_STANDARD.encode(challenge))])
            }
        }
    }

    fn accepted(&mut self, connected: bool) -> Answer {
        self.login = Some(connected);
        let unasked = self.words.imap_unasked.filter(|_| self.protocol == Protocol::Imap);
        let unasked = unasked.map(|capabilities| format!("* CAPABILITY {capabilities}"));
        Answer::Say(unasked.into_iter().chain(self.tagged(self.spoken().accepted)).collect())
    }

    fn challenge(&self, text: &str) -> String {
        if self.protocol == Protocol::Smtp { format!("334 {text}") } else { format!("+ {text}") }
    }

    fn say(&self, words: &str) -> Answer {
        Answer::Say(self.tagged(words))
    }

    /// Returns the lines of an answer, with the tag for IMAP.
    fn tagged(&self, words: &str) -> Vec<String> {
        let tag = if self.protocol == Protocol::Imap { format!("{} ", self.tag) } else { String::new() };
        words.lines().map(|line| format!("{tag}{line}")).collect()
    }
}

/// Parses the user name and the token of a response.
fn credentials(mechanism: &str, response: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(BASE64_STANDARD.decode(response).ok()?).ok()?;
    let fields = decoded.strip_suffix("\x01\x01")?;
    let (user, token) = match mechanism {
        "XOAUTH2" => fields.strip_prefix("user=")?.split_once("\x01auth=Bearer ")?,
        _ => {
            let (header, rest) = fields.strip_prefix("n,a=")?.split_once(",\x01")?;
            (header, rest.split('\x01').find_map(|field| field.strip_prefix("auth=Bearer "))?)
        }
    };
    Some((user.replace("=2C", ",").replace("=3D", "="), token.to_owned()))
}
