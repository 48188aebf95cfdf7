//! Accounts at a provider: the user name at its mail servers, and whether two names mean one account.

use super::Profile;
use crate::api::{MailCredential, credential::Protocol};

/// A provider's rules for users' accounts.
#[derive(Clone, Copy, Debug)]
pub struct Accounts {
    /// Whether a user's token opens a shared mailbox over IMAP and POP3 under the mailbox's own name. Under the user's
    /// name, the token opens the user's own mail, without any error.
    pub shared_by_address: bool,
    /// Whether accounts may be plain user names without a domain.
    pub plain_names: bool,
    /// Returns the form that all spellings of one account share.
    pub canonical: fn(&str) -> String,
}

impl Default for Accounts {
    fn default() -> Self {
        Self { shared_by_address: false, plain_names: false, canonical: fold }
    }
}

impl Profile {
    /// The user name at the mail server of `protocol`: the spec's user name, otherwise the account that the token is
    /// for. At some providers, a user's token opens a shared mailbox under the mailbox's name.
    pub fn username<'a>(&self, credential: &'a MailCredential, protocol: Protocol) -> &'a str {
        let mailbox = &credential.spec.mailbox;
        let shared = self.accounts.shared_by_address
            && credential.spec.grant.kind().is_delegated()
            && matches!(protocol, Protocol::Imap | Protocol::Pop3);
        mailbox.username(protocol).unwrap_or(if shared { &mailbox.address } else { mailbox.user() })
    }

    /// The user name at the server of the first protocol in the spec.
    pub fn first_username<'a>(&self, credential: &'a MailCredential) -> &'a str {
        let first = credential.spec.protocols.first().copied().unwrap_or(Protocol::Smtp);
        self.username(credential, first)
    }

    /// Whether the [`comparable`] names in a response show that another account than `expected` signed in.
    pub fn is_another_account(&self, expected: &str, names: &[String]) -> bool {
        let wanted = (self.accounts.canonical)(expected);
        let mut names = comparable(expected, names).peekable();
        names.peek().is_some() && !names.any(|name| (self.accounts.canonical)(name) == wanted)
    }
}

/// The names in a response that can be compared with `expected`: addresses with an address, plain user names with a
/// plain user name. One account may have names of both kinds, so names of the other kind prove nothing.
pub fn comparable<'a>(expected: &str, came: &'a [String]) -> impl Iterator<Item = &'a str> {
    let is_address = expected.contains('@');
    came.iter().map(String::as_str).filter(move |name| name.contains('@') == is_address)
}

/// The name in lower case. A non-ASCII letter never becomes an ASCII letter (the Kelvin sign is not `k`), so no look-alike
/// equals an ASCII name.
pub fn fold(name: &str) -> String {
    let mut folded = String::with_capacity(name.len());
    for letter in name.chars() {
        if letter.is_ascii() {
            folded.push(letter.to_ascii_lowercase());
        } else if letter.to_lowercase().any(|small| small.is_ascii()) {
            folded.push(letter);
        } else {
            folded.extend(letter.to_lowercase());
        }
    }
    folded
}

/// Google's rules for equal addresses: a `+tag` does not count, `googlemail.com` is `gmail.com`, and in these two
/// domains dots before the `@` do not count. In the domain of an organisation, dots do count, so `anna.muster` and
/// `annamuster` are two people ("Dots don't matter in Gmail addresses",
/// <https://support.google.com/mail/answer/7436150>).
pub(super) fn google(name: &str) -> String {
    let name = fold(name);
    let Some((local, domain)) = name.rsplit_once('@') else { return name };
    let local = local.split_once('+').map_or(local, |(before, _)| before);
    match domain {
        "gmail.com" | "googlemail.com" => format!("{}@gmail.com", local.replace('.', "")),
        _ => format!("{local}@{domain}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{fixtures::credential, providers::profile};

    fn of(provider: serde_json::Value) -> Profile {
        let mut spec = json!({"client": {"id": "c"}});
        spec.as_object_mut().unwrap().extend(provider.as_object().unwrap().clone());
        profile(&serde_json::from_value(spec).unwrap()).unwrap()
    }

    fn microsoft() -> Profile {
        of(json!({"microsoft": {"tenantID": "contoso.com"}}))
    }

    fn google_profile() -> Profile {
        of(json!({"google": {}}))
    }

    fn oauth2() -> Profile {
        of(json!({"oauth2": {"tokenURL": "https://x/t"}}))
    }

    #[test]
    fn a_users_token_opens_a_shared_mailbox_under_the_mailboxes_name_at_imap_and_pop3() {
        let refresh = json!({"refreshToken": {"secretRef": {"name": "s", "key": "k"}}});
        let table = [
            (microsoft(), json!({"deviceCode": {}}), ["anna@x.org", "office@x.org", "office@x.org"]),
            (microsoft(), refresh.clone(), ["anna@x.org", "office@x.org", "office@x.org"]),
            (microsoft(), json!({"clientCredentials": {}}), ["anna@x.org"; 3]),
            (google_profile(), refresh.clone(), ["anna@x.org"; 3]),
            (oauth2(), refresh, ["anna@x.org"; 3]),
        ];
        for (profile, grant, names) in table {
            let mut credential = credential();
            credential.spec.grant = serde_json::from_value(grant).unwrap();
            credential.spec.mailbox.address = "office@x.org".into();
            credential.spec.mailbox.authenticate_as = Some("anna@x.org".into());
            let kind = credential.spec.grant.kind();
            assert_eq!(Protocol::ALL.map(|at| profile.username(&credential, at)), names, "{} {kind:?}", profile.preset);
            credential.spec.mailbox.usernames = serde_json::from_value(json!({"imap": "other"})).unwrap();
            assert_eq!(profile.username(&credential, Protocol::Imap), "other");
            credential.spec.protocols = vec![Protocol::Imap, Protocol::Smtp];
            assert_eq!(profile.first_username(&credential), "other");
        }
    }

    #[test]
    fn accounts_are_compared_as_the_provider_compares_them() {
        let table: [(Profile, &str, &[&str], bool); 25] = [
            (oauth2(), "info@contoso.com", &["INFO@Contoso.com"], false),
            (oauth2(), "info@contoso.com", &["anna@contoso.com"], true),
            (oauth2(), "info@contoso.com", &["anna@contoso.com", "info@contoso.com"], false),
            (oauth2(), "info@contoso.com", &[], false),
            (oauth2(), "info@contoso.com", &["info"], false),
            (oauth2(), "BÜRO@example.org", &["büro@example.org"], false),
            (oauth2(), "admin@kontoso.com", &["admin@\u{212a}ontoso.com"], true),
            (oauth2(), "i.n.fo@contoso.com", &["info@contoso.com"], true),
            (oauth2(), "info@gmail.com", &["info+x@gmail.com"], true),
            (oauth2(), "svc", &["SVC", "anna@example.org"], false),
            (oauth2(), "svc", &["anna", "svc@example.org"], true),
            (oauth2(), "svc", &["anna@example.org"], false),
            (microsoft(), "info@googlemail.com", &["info@gmail.com"], true),
            (google_profile(), "anna.muster@gmail.com", &["AnnaMuster@gmail.com"], false),
            (google_profile(), "annamuster+shop@gmail.com", &["annamuster@gmail.com"], false),
            (google_profile(), "annamuster@googlemail.com", &["anna.muster@gmail.com"], false),
            (google_profile(), "annamuster@gmail.com", &["annamuster@example.org"], true),
            // In the domain of an organisation dots are a part of the name.
            (google_profile(), "anna.muster@example.org", &["annamuster@example.org"], true),
            (google_profile(), "annamuster@example.org", &["Anna.Muster@example.org"], true),
            (google_profile(), "anna.muster@example.org", &["Anna.Muster@Example.org"], false),
            (google_profile(), "anna+shop@example.org", &["anna@example.org"], false),
            (google_profile(), "anna.muster@gmail.com.example.org", &["annamuster@gmail.com.example.org"], true),
            (google_profile(), "a.m+x.y@googlemail.com", &["AM@gmail.com"], false),
            (google_profile(), "a.m@gmail.com", &["am@googlemail.com", "am@example.org"], false),
            (google_profile(), "annamuster@gmail.com", &["anna@gmail.com"], true),
        ];
        for (profile, expected, came, another) in table {
            let names: Vec<_> = came.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(profile.is_another_account(expected, &names), another, "{} {expected} {came:?}", profile.preset);
        }
    }
}
