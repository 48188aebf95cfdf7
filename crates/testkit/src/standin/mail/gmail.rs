//! A stand-in of Gmail's mail servers. It accepts the tokens of a [`Google`].
//!
//! Sources: "OAuth 2.0 Mechanism" and "IMAP, POP, and SMTP" (Google Workspace), and published answers of the service.

use std::{collections::BTreeMap, net::IpAddr};

use mailtoken_mail::protocol::Protocol;

use super::{
    super::google::{Google, Tokens},
    MailStandIn, Service,
    dialogue::{Spoken, Verdict, Words},
};

/// The scope that opens a mailbox by all protocols.
const SCOPE: &str = "https://mail.google.com/";
/// The challenges for a refused token: for an unknown or expired token, and for a token without the scope.
const CHALLENGES: [&str; 2] = [
    r#"{"status":"401","schemes":"Bearer","scope":"https://mail.google.com/"}"#,
    r#"{"status":"400","schemes":"Bearer","scope":"https://mail.google.com/"}"#,
];

/// A running stand-in of Gmail.
pub type Gmail = MailStandIn<Mailboxes>;

/// The state of the stand-in: the valid tokens and the mailboxes.
pub struct Mailboxes {
    tokens: Tokens,
    /// The changed settings of each mailbox.
    settings: BTreeMap<String, Settings>,
}

/// The settings of a mailbox.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Whether IMAP is enabled.
    pub imap: bool,
    /// Whether POP is enabled.
    pub pop: bool,
    /// Whether Google requires a sign-in with a browser before the next login.
    pub browser_sign_in: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { imap: true, pop: true, browser_sign_in: false }
    }
}

impl Gmail {
    /// Starts a stand-in on free ports. It accepts the tokens of `google`. Each account has a mailbox.
    pub fn beside(google: &Google) -> Self {
        Self::beside_at(google, [127, 0, 0, 1].into(), [0; 3])
    }

    /// Starts a stand-in at this address, on these ports for SMTP, IMAP and POP3.
    pub fn beside_at(google: &Google, address: IpAddr, ports: [u16; 3]) -> Self {
        let tls = google.issue(&["smtp.gmail.com", "imap.gmail.com", "pop.gmail.com", "localhost"]);
        Self::serve(address, ports, tls, Mailboxes { tokens: google.tokens(), settings: BTreeMap::new() })
    }

    /// Changes the settings of a mailbox.
    pub fn settings(&self, address: &str, settings: Settings) {
        self.service().settings.insert(address.to_ascii_lowercase(), settings);
    }
}

/// Returns a refusal without a challenge, with the text for the protocol.
fn refused(protocol: Protocol, words: [&str; 3]) -> Verdict {
    Verdict::Refused(words[protocol as usize].to_owned())
}

impl Service for Mailboxes {
    const WORDS: Words = Words {
        smtp: Spoken {
            greeting: "220 smtp.gmail.com ESMTP ffacd0b85a97d-gsmtp",
            offers: &[
                "SIZE 35882577",
                "8BITMIME",
                "AUTH LOGIN PLAIN XOAUTH2 PLAIN-CLIENTTOKEN OAUTHBEARER XOAUTH",
                "ENHANCEDSTATUSCODES",
                "PIPELINING",
                "CHUNKING",
                "SMTPUTF8",
            ],
            accepted: "235 2.7.0 Accepted",
            throttled: "454 4.7.0 Too many login attempts, please try again later. ffacd0b85a97d-gsmtp",
            too_long: "555 5.5.2 Syntax error, goodbye. ffacd0b85a97d-gsmtp",
        },
        imap: Spoken {
            greeting: "OK Gimap ready for requests from 127.0.0.1 ffacd0b85a97d",
            offers: &[
                "IMAP4rev1 UNSELECT IDLE NAMESPACE QUOTA ID XLIST CHILDREN X-GM-EXT-1 XYZZY SASL-IR AUTH=XOAUTH2 AUTH=PLAIN \
                 AUTH=PLAIN-CLIENTTOKEN AUTH=OAUTHBEARER",
            ],
            accepted: "OK authenticated (Success)",
            throttled: "NO [ALERT] Too many simultaneous connections. (Failure)",
            too_long: "BAD Could not parse command",
        },
        pop3: Spoken {
            greeting: "+OK Gpop ready for requests from 127.0.0.1 ffacd0b85a97d",
            offers: &[
                "USER",
                "RESP-CODES",
                "EXPIRE 0",
                "LOGIN-DELAY 300",
                "TOP",
                "UIDL",
                "X-GOOGLE-RICO",
                "SASL PLAIN XOAUTH2 OAUTHBEARER",
            ],
            accepted: "+OK Welcome.",
            throttled: "-ERR [SYS/TEMP] Temporary system problem. Please try again later.",
            too_long: "-ERR bad command ffacd0b85a97d",
        },
        imap_unasked: Some(
            "IMAP4rev1 UNSELECT IDLE NAMESPACE QUOTA ID XLIST CHILDREN X-GM-EXT-1 UIDPLUS COMPRESS=DEFLATE ENABLE MOVE \
             CONDSTORE ESEARCH UTF8=ACCEPT LIST-EXTENDED LIST-STATUS LITERAL- SPECIAL-USE APPENDLIMIT=35651584",
        ),
        imap_completed: "OK Thats all she wrote! ffacd0b85a97d",
    };

    fn judge(&mut self, protocol: Protocol, user: &str, token: &str, now: i64) -> Verdict {
        let address = user.to_ascii_lowercase();
        let settings = self.settings.get(&address).copied().unwrap_or_default();
        let refusal = match protocol {
            Protocol::Smtp => {
                "535-5.7.8 Username and Password not accepted. For more information, go to\n\
                 535 5.7.8  https://support.google.com/mail/?p=BadCredentials ffacd0b85a97d-gsmtp"
            }
            Protocol::Imap => "NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)",
            Protocol::Pop3 => "-ERR [AUTH] Username and password not accepted.",
        };
        let known = self.tokens.find(token, now).filter(|access| access.account.eq_ignore_ascii_case(&address));
        let Some(access) = known else { return Verdict::Challenged(CHALLENGES[0], refusal.to_owned()) };
        if !access.scopes.iter().any(|scope| scope == SCOPE) {
            return Verdict::Challenged(CHALLENGES[1], refusal.to_owned());
        }
        if settings.browser_sign_in {
            let smtp = "534-5.7.9 Please log in with your web browser and then try again. For more\n\
                        534-5.7.9 information, go to\n\
                        534 5.7.9  https://support.google.com/mail/?p=WebLoginRequired ffacd0b85a97d-gsmtp";
            let imap = "NO [ALERT] Please log in via your web browser: https://support.google.com/mail/accounts/answer/78754 \
                        (Failure)";
            return refused(protocol, [smtp, imap, "-ERR [AUTH] Web login required."]);
        }
        match protocol {
            Protocol::Imap if !settings.imap => Verdict::Refused(
                "NO [ALERT] Your account is not enabled for IMAP use. Please visit your Gmail settings page and enable your \
                 account for IMAP access. (Failure)"
                    .to_owned(),
            ),
            Protocol::Pop3 if !settings.pop => Verdict::Refused(
                "-ERR [SYS/PERM] Your account is not enabled for POP access. Please visit your Gmail settings page and enable \
                 your account for POP access."
                    .to_owned(),
            ),
            _ => Verdict::Accepted,
        }
    }
}
