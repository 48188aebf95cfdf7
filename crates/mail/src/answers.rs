//! The meaning of a mail server's answer: a table from answers to causes, and the shown form of an answer's code. A row
//! matches a code and a fixed phrase. No text of a server leaves this module.
//!
//! Sources: RFC 4954 section 6, RFC 5530 section 3, RFC 2449 section 8, RFC 3206; Microsoft, "Authenticate an IMAP, POP or
//! SMTP connection using OAuth" and "SMTP submission improvements"; Google, "OAuth 2.0 Mechanism".

use std::fmt;

use crate::protocol::Protocol;

/// Why a login did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Exchange: authenticated SMTP submission is off for the whole tenant.
    SmtpAuthDisabledForTenant,
    /// Exchange: authenticated SMTP submission is off for this mailbox.
    SmtpAuthDisabledForMailbox,
    /// Exchange: the application or the user has no permission for this mailbox.
    PermissionMissing,
    /// Exchange accepted the token, but does not open the mailbox.
    NotConnected,
    /// A policy of the tenant blocks the login.
    BlockedByPolicy,
    /// Google requires the user to sign in with a browser first.
    BrowserSignInRequired,
    /// High Volume Email refuses a token that expires within ten minutes.
    TokenTooShortLived,
    /// High Volume Email does not accept the user name in the SASL response.
    WrongAccountKind,
    /// The server treated the login as a login with a password.
    PasswordLoginDisabled,
    /// The server refused the token for another reason.
    Refused,
    /// After TLS the server offers neither XOAUTH2 nor OAUTHBEARER.
    NoMechanism,
    /// The server does not offer STARTTLS.
    NoStartTls,
    /// The server offers XCLIENT, so it would treat this client as a trusted front end.
    OffersXclient,
    /// The token is longer than [`crate::sasl::MAX_TOKEN`].
    TokenTooLong,
    /// The server limits connections or requests.
    Throttled,
    /// Another session has locked the mailbox (POP3).
    MailboxInUse,
    /// The server is not available, or closed the connection.
    Unavailable,
    /// The server's reply does not follow the protocol, or exceeds a limit of [`crate::dialogue`].
    Malformed,
    /// The server greets with PREAUTH: STARTTLS is not possible any more (RFC 9051 section 7.1.4).
    Preauthenticated,
    /// Bytes arrived between the reply to STARTTLS and the TLS handshake (CVE-2011-0411).
    BytesAfterStartTls,
}

/// The meaning of a cause for the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The server does not accept this login. A person must act.
    Refused,
    /// The login shows nothing about the token. A later login may show more.
    Unknown,
}

impl Cause {
    /// The reason of the condition `MailboxAuthorized` for this cause.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::SmtpAuthDisabledForTenant | Self::SmtpAuthDisabledForMailbox => "SMTPAuthDisabled",
            Self::PermissionMissing | Self::NotConnected => "MailboxPermissionMissing",
            Self::BlockedByPolicy | Self::BrowserSignInRequired => "LoginBlockedByPolicy",
            Self::TokenTooShortLived => "TokenTooShortLived",
            Self::WrongAccountKind | Self::PasswordLoginDisabled | Self::Refused => "LoginRefused",
            Self::NoMechanism | Self::NoStartTls | Self::OffersXclient | Self::TokenTooLong => "MailServerUnsupported",
            Self::Throttled => "MailServerThrottled",
            Self::MailboxInUse | Self::Unavailable | Self::Malformed => "MailServerUnavailable",
            Self::Preauthenticated | Self::BytesAfterStartTls => "MailServerTLSFailed",
        }
    }

    /// Whether the cause is a refusal, or shows nothing about the token.
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::SmtpAuthDisabledForTenant
            | Self::SmtpAuthDisabledForMailbox
            | Self::PermissionMissing
            | Self::NotConnected
            | Self::BlockedByPolicy
            | Self::BrowserSignInRequired
            | Self::TokenTooShortLived
            | Self::WrongAccountKind
            | Self::PasswordLoginDisabled
            | Self::Refused
            | Self::NoMechanism
            | Self::NoStartTls
            | Self::OffersXclient
            | Self::TokenTooLong => Verdict::Refused,
            Self::Throttled
            | Self::MailboxInUse
            | Self::Unavailable
            | Self::Malformed
            | Self::Preauthenticated
            | Self::BytesAfterStartTls => Verdict::Unknown,
        }
    }
}

/// The status of an IMAP response (RFC 9051 section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImapStatus {
    /// The command failed.
    No,
    /// The server did not understand the command.
    Bad,
    /// The server closes the connection.
    Bye,
}

/// The code of a server's answer. The form is fixed: three digits and an enhanced status code, or a status and a
/// response code that a standard defines. [`fmt::Display`] writes `535 5.7.139`, `NO [AUTHENTICATIONFAILED]` or
/// `-ERR [SYS/TEMP]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerCode {
    /// An SMTP reply code (RFC 5321 section 4.2), 200 to 599, and its enhanced status code (RFC 2034).
    Smtp(u16, Option<(u8, u16, u16)>),
    /// An IMAP status and the response code in brackets, if a standard defines it.
    Imap(ImapStatus, Option<&'static str>),
    /// A POP3 `-ERR` and the response code in brackets, if a standard defines it.
    Pop3(Option<&'static str>),
}

impl fmt::Display for ServerCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (status, code) = match self {
            Self::Smtp(code, None) => return write!(f, "{code}"),
            Self::Smtp(code, Some((class, subject, detail))) => return write!(f, "{code} {class}.{subject}.{detail}"),
            Self::Imap(ImapStatus::No, code) => ("NO", code),
            Self::Imap(ImapStatus::Bad, code) => ("BAD", code),
            Self::Imap(ImapStatus::Bye, code) => ("BYE", code),
            Self::Pop3(code) => ("-ERR", code),
        };
        f.write_str(status)?;
        code.map_or(Ok(()), |code| write!(f, " [{code}]"))
    }
}

/// IMAP response codes that a message may show (RFC 9051 section 7.1, RFC 5530 section 3, RFC 9208).
const IMAP_CODES: [&str; 17] = [
    "ALERT",
    "AUTHENTICATIONFAILED",
    "AUTHORIZATIONFAILED",
    "CANNOT",
    "CLIENTBUG",
    "CONTACTADMIN",
    "CORRUPTION",
    "EXPIRED",
    "INUSE",
    "LIMIT",
    "NONEXISTENT",
    "NOPERM",
    "OVERQUOTA",
    "PRIVACYREQUIRED",
    "SERVERBUG",
    "UNAVAILABLE",
    "UIDNOTSTICKY",
];
/// POP3 response codes that a message may show (RFC 2449 section 8, RFC 3206).
const POP3_CODES: [&str; 5] = ["AUTH", "IN-USE", "LOGIN-DELAY", "SYS/PERM", "SYS/TEMP"];

/// The response code at the beginning of an IMAP response's text, if a standard defines it.
pub(crate) fn imap_code(text: &str) -> Option<&'static str> {
    bracketed(text, &IMAP_CODES)
}

/// The response code at the beginning of a POP3 response's text, if a standard defines it.
pub(crate) fn pop3_code(text: &str) -> Option<&'static str> {
    bracketed(text, &POP3_CODES)
}

fn bracketed(text: &str, known: &[&'static str]) -> Option<&'static str> {
    let (code, _) = text.strip_prefix('[')?.split_once(']')?;
    let name = code.split(' ').next()?;
    known.iter().find(|known| known.eq_ignore_ascii_case(name)).copied()
}

/// Stages of a login in which a server gives an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Before the client begins to authenticate.
    Opening,
    /// From the command that begins authentication to the server's final reply, and the first command after this reply.
    Authentication,
}

/// A row of the table: the conditions on an answer, and its cause.
struct Row {
    protocol: Option<Protocol>,
    stage: Option<Stage>,
    /// The beginning of the [`ServerCode`] as text. It matches only whole numbers and names.
    code: &'static str,
    /// A phrase of the answer in lower case. Empty: the code is enough.
    phrase: &'static str,
    cause: Cause,
}

const fn row(protocol: Protocol, code: &'static str, phrase: &'static str, cause: Cause) -> Row {
    Row { protocol: Some(protocol), stage: None, code, phrase, cause }
}

const fn any(phrase: &'static str, cause: Cause) -> Row {
    Row { protocol: None, stage: None, code: "", phrase, cause }
}

const fn while_opening(protocol: Protocol, cause: Cause) -> Row {
    Row { protocol: Some(protocol), stage: Some(Stage::Opening), code: "", phrase: "", cause }
}

/// The table of causes. The first row that matches gives the cause.
const ROWS: [Row; 36] = {
    use Cause as C;
    use Protocol::{Imap, Pop3, Smtp};
    [
        row(Smtp, "535 5.7.139", "smtpclientauthentication is disabled for the tenant", C::SmtpAuthDisabledForTenant),
        row(Smtp, "535 5.7.139", "smtpclientauthentication is disabled", C::SmtpAuthDisabledForMailbox),
        row(Smtp, "535 5.7.139", "basic authentication is disabled", C::PasswordLoginDisabled),
        row(Smtp, "535 5.7.139", "did not meet the criteria", C::BlockedByPolicy),
        row(Smtp, "535 5.7.139", "security defaults", C::BlockedByPolicy),
        row(Smtp, "535 5.7.139", "conditional access", C::BlockedByPolicy),
        row(Smtp, "535 5.7.3", "", C::PermissionMissing),
        row(Smtp, "501 5.5.127", "", C::TokenTooShortLived),
        row(Smtp, "501 5.5.124", "", C::WrongAccountKind),
        row(Smtp, "534 5.7.9", "", C::BrowserSignInRequired),
        row(Smtp, "534 5.7.14", "", C::BrowserSignInRequired),
        row(Smtp, "535 5.7.14", "", C::BrowserSignInRequired),
        row(Smtp, "432", "", C::Throttled),
        row(Smtp, "421 4.3.2", "", C::Throttled),
        row(Smtp, "454 4.7.0", "", C::Throttled),
        any("too many simultaneous connections", C::Throttled),
        any("too many connections", C::Throttled),
        any("concurrent connections limit", C::Throttled),
        any("request is throttled", C::Throttled),
        row(Imap, "NO [LIMIT]", "", C::Throttled),
        row(Imap, "NO [INUSE]", "", C::Throttled),
        row(Imap, "BYE [LIMIT]", "", C::Throttled),
        row(Imap, "BYE", "", C::Unavailable),
        row(Imap, "NO [UNAVAILABLE]", "", C::Unavailable),
        any("server unavailable", C::Unavailable),
        row(Imap, "", "user is authenticated but not connected", C::NotConnected),
        row(Imap, "NO [AUTHENTICATIONFAILED]", "", C::Refused),
        row(Imap, "NO", "authenticate failed.", C::PermissionMissing),
        row(Pop3, "-ERR [AUTH]", "", C::Refused),
        row(Pop3, "", "unknown user name or bad password", C::PermissionMissing),
        row(Pop3, "-ERR [IN-USE]", "", C::MailboxInUse),
        row(Pop3, "", "unable to lock", C::MailboxInUse),
        row(Pop3, "-ERR [LOGIN-DELAY]", "", C::Throttled),
        row(Pop3, "-ERR [SYS/TEMP]", "", C::Unavailable),
        while_opening(Imap, C::Unavailable),
        while_opening(Pop3, C::Unavailable),
    ]
};

/// The cause for an answer that the client does not expect. `text` is the server's text in lower case.
pub(crate) fn cause(code: ServerCode, stage: Stage, text: &str) -> Cause {
    let protocol = match code {
        ServerCode::Smtp(..) => Protocol::Smtp,
        ServerCode::Imap(..) => Protocol::Imap,
        ServerCode::Pop3(..) => Protocol::Pop3,
    };
    let shown = code.to_string();
    let begins = |wanted: &str| match shown.strip_prefix(wanted) {
        Some(rest) => wanted.is_empty() || rest.is_empty() || rest.starts_with(' '),
        None => false,
    };
    let matches = |row: &&Row| {
        row.protocol.is_none_or(|wanted| wanted == protocol)
            && row.stage.is_none_or(|wanted| wanted == stage)
            && begins(row.code)
            && text.contains(row.phrase)
    };
    match (ROWS.iter().find(matches), code, stage) {
        (Some(row), ..) => row.cause,
        (None, ServerCode::Smtp(400..500, _), Stage::Authentication) => Cause::Throttled,
        (None, ServerCode::Smtp(..), Stage::Opening) => Cause::Unavailable,
        (None, _, Stage::Authentication | Stage::Opening) => Cause::Refused,
    }
}

/// Whether the command that fixes a cause may contain an account's name: the name has only characters of usual
/// addresses. A tenant chose the name, and an administrator runs the command. PowerShell ends a string at five
/// different quotation marks.
pub fn is_usual_account(name: &str) -> bool {
    name.chars().all(|letter| letter.is_alphanumeric() || "@._+-".contains(letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_a_reason_of_the_contract() {
        for (cause, reason) in [
            (Cause::SmtpAuthDisabledForTenant, "SMTPAuthDisabled"),
            (Cause::SmtpAuthDisabledForMailbox, "SMTPAuthDisabled"),
            (Cause::PermissionMissing, "MailboxPermissionMissing"),
            (Cause::BrowserSignInRequired, "LoginBlockedByPolicy"),
            (Cause::TokenTooShortLived, "TokenTooShortLived"),
            (Cause::Refused, "LoginRefused"),
            (Cause::NoStartTls, "MailServerUnsupported"),
            (Cause::Throttled, "MailServerThrottled"),
            (Cause::Unavailable, "MailServerUnavailable"),
            (Cause::BytesAfterStartTls, "MailServerTLSFailed"),
        ] {
            assert_eq!(cause.reason(), reason, "{cause:?}");
        }
    }
}
