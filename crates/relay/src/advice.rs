//! The advice for a user after a failed login: one sentence with the command or the page.

use mailtoken_mail::{
    answers::{Cause, is_usual_account},
    protocol::Protocol,
};

/// Returns the advice for a cause. `user` is the user name at the mail server `host`.
pub(crate) fn advice(cause: Cause, protocol: Protocol, user: &str, host: &str) -> String {
    let mailbox = powershell(user);
    match cause {
        Cause::SmtpAuthDisabledForTenant => format!(
            "SMTP AUTH is off for the whole tenant. Allow it for this mailbox in Exchange Online PowerShell: \
             Set-CASMailbox -Identity {mailbox} -SmtpClientAuthenticationDisabled $false"
        ),
        Cause::SmtpAuthDisabledForMailbox => format!(
            "SMTP AUTH is off for this mailbox. In Exchange Online PowerShell: \
             Set-CASMailbox -Identity {mailbox} -SmtpClientAuthenticationDisabled $false"
        ),
        Cause::PermissionMissing | Cause::NotConnected => format!(
            "the server opens no mailbox for this token. Check that the application has the permission for the protocol, and \
             in Exchange Online PowerShell: Add-MailboxPermission -Identity {mailbox} -User <object id of the Enterprise \
             application> -AccessRights FullAccess. {}Permissions take effect with the next token",
            turn_on(protocol, mailbox)
        ),
        Cause::BlockedByPolicy => {
            "a policy of the tenant blocks the login: check the application's sign-in log, Conditional Access and security \
             defaults"
                .to_owned()
        }
        Cause::BrowserSignInRequired => format!("sign in at Google as {user} with a browser once, then try again"),
        Cause::TokenTooShortLived => {
            "the server refuses a token that ends soon: set spec.renewal.minValidity of the MailCredential to 15m".to_owned()
        }
        Cause::WrongAccountKind => {
            format!("the server does not accept {user}: set spec.mailbox.usernames to the account of this service")
        }
        Cause::PasswordLoginDisabled => {
            format!("{host} took the login for one with a password: check that no other proxy is between the relay and it")
        }
        Cause::Refused => format!(
            "the server refused the token: check that {user} is the mailbox that the token is for, and the scopes of the \
             MailProvider"
        ),
        Cause::NoMechanism => format!(
            "{host} offers neither XOAUTH2 nor OAUTHBEARER: check host and port in spec.servers of the MailProvider"
        ),
        Cause::NoStartTls => format!(
            "{host} does not offer STARTTLS: set security: TLS in spec.servers of the MailProvider if the port begins with \
             TLS"
        ),
        Cause::OffersXclient => format!(
            "{host} offers XCLIENT, so it would take the relay for a trusted front end: name its submission port in \
             spec.servers of the MailProvider"
        ),
        Cause::TokenTooLong => {
            "the token is longer than servers accept: give the application or the user fewer groups".to_owned()
        }
        Cause::Throttled => format!("{host} limits connections or requests of {user}: try again later"),
        Cause::MailboxInUse => format!("another session holds the mailbox {user}: try again later"),
        Cause::Unavailable | Cause::Malformed => format!("{host} is not available: try again later"),
        Cause::Preauthenticated => {
            format!("{host} greets with PREAUTH, so STARTTLS is impossible: check what answers at this address")
        }
        Cause::BytesAfterStartTls => {
            format!("bytes came between STARTTLS and TLS: check what is between the relay and {host}")
        }
    }
}

/// Returns the advice that enables a protocol. Exchange does not distinguish a disabled protocol from a missing
/// permission.
fn turn_on(protocol: Protocol, mailbox: &str) -> String {
    let (name, setting) = match protocol {
        Protocol::Smtp => return String::new(),
        Protocol::Imap => ("IMAP", "ImapEnabled"),
        Protocol::Pop3 => ("POP3", "PopEnabled"),
    };
    format!("If {name} is off for the mailbox: Set-CASMailbox -Identity {mailbox} -{setting} $true. ")
}

/// Formats a user name as an argument in PowerShell without quotation marks. Replaces an unusual name by a placeholder.
/// PowerShell does not read a word that begins with `-` or `@` as a string.
fn powershell(user: &str) -> &str {
    let plain = user.starts_with(char::is_alphanumeric) && is_usual_account(user);
    if plain { user } else { "<mailbox>" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_only_the_user_names_of_usual_addresses() {
        for (user, shown) in [
            ("billing@shop.example", "billing@shop.example"),
            ("müller+mail@shop.example", "müller+mail@shop.example"),
            ("x;Remove-Mailbox", "<mailbox>"),
            ("$(whoami)@shop.example", "<mailbox>"),
            ("x' -Confirm", "<mailbox>"),
            ("-Confirm", "<mailbox>"),
            ("@params", "<mailbox>"),
        ] {
            for cause in [Cause::SmtpAuthDisabledForMailbox, Cause::SmtpAuthDisabledForTenant] {
                let command = format!("Set-CASMailbox -Identity {shown} -SmtpClientAuthenticationDisabled $false");
                assert!(advice(cause, Protocol::Smtp, user, "").ends_with(&command), "{user}");
            }
            let text = advice(Cause::PermissionMissing, Protocol::Imap, user, "");
            assert!(text.contains(&format!("Add-MailboxPermission -Identity {shown} -User ")), "{text}");
            assert!(text.contains(&format!("Set-CASMailbox -Identity {shown} -ImapEnabled $true. ")), "{text}");
            assert!(!advice(Cause::PermissionMissing, Protocol::Smtp, user, "").contains("Set-CASMailbox"));
        }
    }
}
