//! The message of a probe's condition: the protocol, the server, the cause, and the command or page that fixes the
//! cause. The broker writes all texts itself. From a server's answer, the message contains only the code.

use mailtoken_mail::answers::{Cause, is_usual_account};
use serde_json::json;

use super::Login;
use crate::{
    api::{credential::Protocol, provider::Security},
    policy::{
        Observed,
        commands::{self, KubectlObject},
    },
};

/// The message about the logins: the failures first, one sentence for each cause.
pub(super) fn message(observed: &Observed, logins: &[(Protocol, Login)]) -> String {
    let mut causes: Vec<(&Login, Vec<Protocol>)> = vec![];
    for (protocol, login) in logins {
        match causes.iter_mut().find(|(known, _)| same_cause(known, login)) {
            Some((_, protocols)) => protocols.push(*protocol),
            None => causes.push((login, vec![*protocol])),
        }
    }
    let (accepted, failed): (Vec<_>, Vec<_>) = causes.into_iter().partition(|(login, _)| **login == Login::Accepted);
    let failed = failed.into_iter().map(|(login, protocols)| failure(observed, login, &protocols, logins));
    let accepted = accepted.into_iter().map(|(_, protocols)| {
        let accept = if protocols.len() == 1 { "accepts" } else { "accept" };
        format!("{} {accept} the token", list(observed, &protocols, None))
    });
    failed.chain(accepted).collect::<Vec<_>>().join(". ")
}

/// Causes that a user removes with the same permission.
const PERMISSION: [Cause; 2] = [Cause::PermissionMissing, Cause::NotConnected];

/// Whether two logins need the same action.
fn same_cause(one: &Login, other: &Login) -> bool {
    match (one, other) {
        (Login::Answered { cause: one, .. }, Login::Answered { cause: other, .. }) => {
            one == other || [one, other].into_iter().all(|cause| PERMISSION.contains(cause))
        }
        (one, other) => one == other,
    }
}

fn failure(observed: &Observed, login: &Login, protocols: &[Protocol], logins: &[(Protocol, Login)]) -> String {
    let servers = list(observed, protocols, Some(logins));
    match login {
        Login::NotConnected { words, .. } => format!("{servers}: {words}"),
        Login::Answered { cause, .. } => {
            let Advice { what, fix } = Situation { observed, protocols }.advice(*cause);
            format!("{servers}: {what}: {fix}")
        }
        Login::Accepted => servers,
    }
}

/// Lists the protocols with their servers. With `logins`, the list also has the codes of the servers' answers.
fn list(observed: &Observed, protocols: &[Protocol], logins: Option<&[(Protocol, Login)]>) -> String {
    let profile = observed.provider.as_ref().ok().map(|provider| &provider.profile);
    let words = protocols.iter().map(|protocol| {
        let server = profile.and_then(|profile| profile.server(*protocol));
        let server = server.map(|server| format!(" at {}:{}", server.host, server.port)).unwrap_or_default();
        let code = logins.and_then(|logins| logins.iter().find(|(of, _)| of == protocol)?.1.code());
        let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
        format!("{}{server}{code}", protocol.as_str())
    });
    words.collect::<Vec<_>>().join(" and ")
}

struct Advice {
    what: String,
    fix: String,
}

fn advice(what: &str, fix: impl Into<String>) -> Advice {
    Advice { what: what.to_owned(), fix: fix.into() }
}

/// The inputs of the advice.
struct Situation<'a> {
    observed: &'a Observed,
    /// The protocols whose logins failed with the cause.
    protocols: &'a [Protocol],
}

impl Situation<'_> {
    fn advice(&self, cause: Cause) -> Advice {
        let again = "the broker probes again at status.probe.nextTime";
        match cause {
            Cause::SmtpAuthDisabledForTenant => advice(
                "SMTP AUTH is off for the whole tenant",
                format!(
                    "an Exchange administrator turns it on for this mailbox with `{}`, or for all mailboxes with \
                     `Set-TransportConfig -SmtpClientAuthenticationDisabled $false`. Security defaults of the tenant keep it off",
                    self.smtp_auth_on()
                ),
            ),
            Cause::SmtpAuthDisabledForMailbox => advice(
                "SMTP AUTH is off for this mailbox",
                format!("an Exchange administrator turns it on with `{}`", self.smtp_auth_on()),
            ),
            Cause::PermissionMissing => {
                advice("the token has no permission for the mailbox", self.permission("the protocol is off"))
            }
            Cause::NotConnected => advice(
                "the server accepts the token, but does not open the mailbox. If the address is an alias, a group, or has no licence, \
                 name the mailbox in spec.mailbox.address. Otherwise the token has no permission",
                self.permission("the protocol is off"),
            ),
            Cause::BlockedByPolicy => advice(
                "a policy of the tenant blocks the login",
                "Conditional Access, the security defaults or an authentication policy. The sign-in logs at \
                 https://entra.microsoft.com name the policy; an administrator exempts the application or the mailbox",
            ),
            Cause::BrowserSignInRequired => advice(
                "Google wants the account to sign in with a browser first",
                format!(
                    "sign in at https://accounts.google.com as {}, confirm what the page asks, and sign in again with `{}`",
                    self.observed.credential.spec.mailbox.user(),
                    commands::sign_in(&self.observed.credential)
                ),
            ),
            Cause::TokenTooShortLived => advice(
                "the server refuses tokens that end soon",
                format!("renew earlier with `{}`", self.patch(&json!({"spec": {"renewal": {"minValidity": "20m"}}}))),
            ),
            Cause::WrongAccountKind => advice(
                "High Volume Email does not accept this user name",
                format!(
                    "the user name must be the HVE account: `{}`",
                    self.patch(&json!({"spec": {"mailbox": {"usernames": {"smtp": "<the HVE account>"}}}}))
                ),
            ),
            Cause::PasswordLoginDisabled => advice(
                "the server took the login for one with a password",
                "something between the broker and the server changes the login: a gateway, or a proxy that reads mail",
            ),
            Cause::Refused => advice("the server refuses the token", self.refused()),
            Cause::NoMechanism => advice(
                "the server offers neither XOAUTH2 nor OAUTHBEARER",
                format!("check host and port in the provider: {}", self.server()),
            ),
            Cause::NoStartTls => advice(
                "the server does not offer STARTTLS on this port, and the broker sends no token without TLS",
                format!("if the port expects TLS from the first byte: {}", self.server()),
            ),
            Cause::OffersXclient => advice(
                "the server offers XCLIENT, because it takes the broker for a trusted front end",
                "the broker sends it no token. Remove the broker's address from the server's list of trusted clients \
                 (Postfix: smtpd_authorized_xclient_hosts)",
            ),
            Cause::TokenTooLong => advice(
                "the token has more than 9,000 characters, which servers do not take in a login",
                "reduce the claims of the token at the provider, such as the groups of the account",
            ),
            Cause::Throttled => advice("the server limits connections or requests", again),
            Cause::MailboxInUse => advice("another session has the mailbox open", again),
            Cause::Unavailable => advice("the server does not answer, or closes the connection", again),
            Cause::Malformed => advice(
                "the server's reply does not follow the protocol",
                format!("check host and port in the provider: {}", self.server()),
            ),
            Cause::Preauthenticated => advice(
                "the server greets with PREAUTH, so the connection cannot be encrypted any more",
                format!("use the port with TLS from the first byte: {}", self.server()),
            ),
            Cause::BytesAfterStartTls => advice(
                "bytes arrived before the TLS handshake, as from an attacker on the path",
                format!("use the port with TLS from the first byte: {}", self.server()),
            ),
        }
    }

    fn smtp_auth_on(&self) -> String {
        format!("Set-CASMailbox -Identity {} -SmtpClientAuthenticationDisabled $false", self.mailbox())
    }

    /// Explains how to give a token the permission for the mailbox in Exchange Online. `or` names further causes.
    fn permission(&self, or: &str) -> String {
        let credential = &self.observed.credential;
        let token = self.observed.token();
        let delegated = credential.spec.grant.kind().is_delegated();
        let grants = if delegated {
            let user = powershell(credential.spec.mailbox.user());
            format!(
                "an Exchange administrator runs `Add-MailboxPermission -Identity {} -User {user} -AccessRights FullAccess`",
                self.mailbox()
            )
        } else {
            let object_id = token.and_then(|token| token.object_id.as_deref()).filter(|id| is_guid(id));
            let object_id = object_id.unwrap_or("<object id of the enterprise application>");
            let client = self.observed.provider.as_ref().ok().map(|provider| provider.client_id.as_str());
            let client = client.filter(|id| is_guid(id)).unwrap_or("<application id>");
            let scopes: Vec<_> = self.protocols.iter().map(|protocol| application_role(*protocol)).collect();
            format!(
                "an Exchange administrator runs `New-ServicePrincipal -AppId {client} -ObjectId {object_id}` (once for each \
                 application) and `Add-MailboxPermission -Identity {} -User {object_id} -AccessRights FullAccess`, and an Entra administrator \
                 consents to {}",
                self.mailbox(),
                scopes.join(" and ")
            )
        };
        let enable: Vec<_> = self.protocols.iter().filter_map(|protocol| enabled(*protocol)).collect();
        let enable = match enable.is_empty() {
            true => String::new(),
            false => format!(
                ". If {or}: `Set-CASMailbox -Identity {} {}`",
                self.mailbox(),
                enable.iter().map(|setting| format!("{setting} $true")).collect::<Vec<_>>().join(" ")
            ),
        };
        format!(
            "{grants}{enable}. Permissions are written into the token: the next probe comes with the next token, or \
             immediately after `{}`",
            commands::reissue(credential)
        )
    }

    /// Explains what to check when a server gives no cause for its refusal.
    fn refused(&self) -> String {
        let mailbox = &self.observed.credential.spec.mailbox;
        let preset = self.observed.provider.as_ref().map_or("", |provider| provider.profile.preset);
        let delegated = self.observed.credential.spec.grant.kind().is_delegated();
        match (preset, delegated) {
            ("google", false) => format!(
                "at https://admin.google.com/ac/owl/domainwidedelegation an administrator allows the service account the scope \
                 https://mail.google.com/, and the account {} must exist and use Gmail",
                mailbox.user()
            ),
            ("google", true) => format!(
                "the account {} must have granted the scope https://mail.google.com/, and an administrator must allow IMAP \
                 and POP (https://admin.google.com, Apps, Gmail, End User Access). Sign in again with `{}`",
                mailbox.user(),
                commands::sign_in(&self.observed.credential)
            ),
            ("microsoft", _) => self.permission("the protocol is off"),
            _ => format!(
                "check that the server knows the user name {}, and accepts the issuer, the audience and the scopes of the \
                 token; the server's log has the cause",
                mailbox.user()
            ),
        }
    }

    /// The command that changes the server in the provider.
    fn server(&self) -> String {
        let protocol = self.protocols.first().copied().unwrap_or(Protocol::Smtp);
        let (port, security) = match protocol {
            Protocol::Smtp => (465, Security::Tls),
            Protocol::Imap => (993, Security::Tls),
            Protocol::Pop3 => (995, Security::Tls),
        };
        let server = json!({"host": "<host>", "port": port, "security": security.as_str()});
        let fields = json!({"spec": {"servers": {protocol.as_str().to_lowercase(): server}}});
        format!("`{}`", KubectlObject::provider_of(&self.observed.credential).merge(&fields))
    }

    fn patch(&self, fields: &serde_json::Value) -> String {
        KubectlObject::credential(&self.observed.credential).merge(fields)
    }

    fn mailbox(&self) -> String {
        powershell(&self.observed.credential.spec.mailbox.address)
    }
}

/// The application role with which a token opens mailboxes of Exchange Online (Microsoft, "Authenticate an IMAP, POP or
/// SMTP connection using OAuth").
const fn application_role(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Smtp => "SMTP.SendAsApp",
        Protocol::Imap => "IMAP.AccessAsApp",
        Protocol::Pop3 => "POP.AccessAsApp",
    }
}

/// The parameter of `Set-CASMailbox` that turns a protocol on. `None`: SMTP has no such parameter.
const fn enabled(protocol: Protocol) -> Option<&'static str> {
    match protocol {
        Protocol::Smtp => None,
        Protocol::Imap => Some("-ImapEnabled"),
        Protocol::Pop3 => Some("-PopEnabled"),
    }
}

fn is_guid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// Returns the account in single quotes for PowerShell, or `<mailbox>` if a character of the account could end the quotes.
fn powershell(account: &str) -> String {
    if is_usual_account(account) { format!("'{account}'") } else { "<mailbox>".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_argument() {
        assert_eq!(powershell("billing+eu@example.org"), "'billing+eu@example.org'");
        for name in ["a'b@x.org", "a\u{2019}; Remove-Mailbox b@x.org", "a`b@x.org", "a$(b)@x.org", "a b@x.org"] {
            assert_eq!(powershell(name), "<mailbox>", "{name}");
        }
    }
}
