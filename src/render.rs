//! The content of the Secret that pods mount.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use secrecy::ExposeSecret as _;
use serde_json::json;
use zeroize::Zeroizing;

use crate::{
    api::{MailCredential, credential::Format, names::rfc3339},
    oauth::Token,
    providers::Profile,
    sasl,
};

/// All keys of the Secret for `token`.
pub fn render(credential: &MailCredential, profile: &Profile, token: &Token) -> BTreeMap<String, ByteString> {
    let spec = &credential.spec;
    let values = values(credential, profile, token);
    let mut data: BTreeMap<String, String> =
        spec.secret.data.iter().map(|(key, template)| (key.clone(), fill(template, &values))).collect();
    for (name, value) in &values {
        let wanted = match *name {
            "xoauth2" => spec.secret.formats.contains(&Format::XOAuth2),
            "oauthbearer" => spec.secret.formats.contains(&Format::OAuthBearer),
            _ => true,
        };
        if wanted {
            data.insert((*name).to_owned(), value.as_str().to_owned());
        }
    }
    let access_token = token.access_token.expose_secret();
    let expires = token.expires_at.as_second();
    if spec.secret.formats.contains(&Format::SaslXoauth2) {
        let file = json!({
            "access_token": access_token, "refresh_token": "", "expiry": expires.to_string(), "user": spec.mailbox.user(),
        });
        data.insert("sasl-xoauth2.json".to_owned(), file.to_string());
    }
    if spec.secret.formats.contains(&Format::TokenJson) {
        let file = json!({
            "access_token": access_token, "token_type": token.token_type, "expires_at": rfc3339(token.expires_at),
            "username": spec.mailbox.user(),
        });
        data.insert("token.json".to_owned(), file.to_string());
    }
    data.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))).collect()
}

/// Texts by the names of their placeholders.
type Values = BTreeMap<&'static str, Zeroizing<String>>;

/// What the placeholders stand for; each is also a key of its own where it is asked for. Some hold the token.
fn values(credential: &MailCredential, profile: &Profile, token: &Token) -> Values {
    let spec = &credential.spec;
    let access_token = token.access_token.expose_secret();
    let wiped = |(name, value): (&'static str, String)| (name, Zeroizing::new(value));
    let values = [
        ("access_token", access_token.to_owned()),
        ("token_type", token.token_type.clone()),
        ("expires_at", rfc3339(token.expires_at)),
        ("expires_at_unix", token.expires_at.as_second().to_string()),
        ("username", spec.mailbox.user().to_owned()),
        ("from", spec.mailbox.address.clone()),
        ("xoauth2", sasl::xoauth2(spec.mailbox.user(), access_token)),
        ("oauthbearer", sasl::oauthbearer(spec.mailbox.user(), access_token)),
    ];
    let mut values = BTreeMap::from(values.map(wiped));
    for protocol in &spec.protocols {
        use crate::api::credential::Protocol;
        let (host, port) = match protocol {
            Protocol::Smtp => ("smtp_host", "smtp_port"),
            Protocol::Imap => ("imap_host", "imap_port"),
            Protocol::Pop3 => ("pop3_host", "pop3_port"),
        };
        if let Some(server) = profile.server(*protocol) {
            values.extend([(host, server.host.clone()), (port, server.port.to_string())].map(wiped));
        }
    }
    values
}

/// Puts values into a template. What is put in is not looked at again. The schema has refused unknown placeholders and
/// lone dollars; they stay as they are.
fn fill(template: &str, values: &Values) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        let placeholder = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let value = placeholder.and_then(|(name, tail)| Some((values.get(name)?, tail)));
        (rest, _) = match (after.strip_prefix('$'), value) {
            (Some(tail), _) => (tail, text.push('$')),
            (None, Some((value, tail))) => (tail, text.push_str(value)),
            (None, None) => (after, text.push('$')),
        };
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;
    use crate::{policy::tests::fixtures, providers};

    /// All that the schema knows.
    const PLACEHOLDERS: [&str; 14] = [
        "access_token",
        "token_type",
        "expires_at",
        "expires_at_unix",
        "username",
        "from",
        "xoauth2",
        "oauthbearer",
        "smtp_host",
        "smtp_port",
        "imap_host",
        "imap_port",
        "pop3_host",
        "pop3_port",
    ];

    fn rendered(edit: impl FnOnce(&mut MailCredential)) -> BTreeMap<String, String> {
        let mut credential = fixtures::credential();
        edit(&mut credential);
        let provider = serde_json::from_value(json!({
            "oauth2": {"tokenURL": "https://x/t"}, "client": {"id": "c"},
            "servers": {
                "smtp": {"host": "smtp.example.org", "port": 587}, "imap": {"host": "imap.example.org", "port": 993},
                "pop3": {"host": "pop3.example.org", "port": 995},
            },
        }))
        .unwrap();
        let token = Token {
            access_token: "t0k".into(),
            token_type: "Bearer".into(),
            issued_at: Timestamp::from_second(1_800_000_000).unwrap(),
            expires_at: Timestamp::from_second(1_800_003_600).unwrap(),
            refresh_at: None,
            scopes: vec![],
        };
        render(&credential, &providers::profile(&provider).unwrap(), &token)
            .into_iter()
            .map(|(key, value)| (key, String::from_utf8(value.0).unwrap()))
            .collect()
    }

    #[test]
    fn the_default_secret_has_exactly_the_keys_of_the_contract() {
        let data = rendered(|_| ());
        let keys: Vec<_> = data.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "access_token",
                "expires_at",
                "expires_at_unix",
                "from",
                "smtp_host",
                "smtp_port",
                "token_type",
                "username",
                "xoauth2"
            ]
        );
        assert_eq!(data["expires_at"], "2027-01-15T09:00:00Z");
        assert_eq!(data["expires_at_unix"], "1800003600");
        assert_eq!((data["smtp_host"].as_str(), data["smtp_port"].as_str()), ("smtp.example.org", "587"));
    }

    #[test]
    fn all_formats_are_as_their_readers_want_them() {
        let data = rendered(|credential| {
            credential.spec.mailbox.authenticate_as = Some("svc@example.org".into());
            credential.spec.secret.formats = vec![Format::OAuthBearer, Format::SaslXoauth2, Format::TokenJson];
        });
        let sasl: serde_json::Value = serde_json::from_str(&data["sasl-xoauth2.json"]).unwrap();
        assert_eq!(
            sasl,
            json!({"access_token": "t0k", "refresh_token": "", "expiry": "1800003600", "user": "svc@example.org"})
        );
        let token: serde_json::Value = serde_json::from_str(&data["token.json"]).unwrap();
        assert_eq!(
            token,
            json!({"access_token": "t0k", "token_type": "Bearer", "expires_at": "2027-01-15T09:00:00Z", "username": "svc@example.org"})
        );
        assert!(data.contains_key("oauthbearer") && !data.contains_key("xoauth2"));
        assert_eq!((data["username"].as_str(), data["from"].as_str()), ("svc@example.org", "billing@example.org"));
    }

    #[test]
    fn placeholders_are_filled_once_and_a_double_dollar_is_one() {
        let data = rendered(|credential| {
            let template = "U=${username}\nT=${access_token}\nH=${smtp_host}:${smtp_port} $$${token_type}$${from}";
            credential.spec.secret.data.insert("smtp.env".into(), template.into());
        });
        assert_eq!(data["smtp.env"], "U=billing@example.org\nT=t0k\nH=smtp.example.org:587 $Bearer${from}");
    }

    #[test]
    fn every_placeholder_of_the_schema_has_a_value() {
        let data = rendered(|credential| {
            use crate::api::credential::Protocol;
            credential.spec.protocols = vec![Protocol::Smtp, Protocol::Imap, Protocol::Pop3];
            credential.spec.secret.data =
                PLACEHOLDERS.iter().map(|name| (format!("key-of-{name}"), format!("${{{name}}}"))).collect();
        });
        let unfilled: Vec<_> = data.iter().filter(|(_, text)| text.contains('$')).collect();
        assert!(unfilled.is_empty(), "{unfilled:?}");
    }

    /// Values that would go on and on, were they looked at again.
    fn mischievous() -> Values {
        PLACEHOLDERS.map(|name| (name, Zeroizing::new(format!("{name}: ${{access_token}} $$ ${{{name}}} $")))).into()
    }

    /// A part of a template, and what becomes of it.
    fn part() -> impl Strategy<Value = (String, String)> {
        let placeholder = |name: &'static str| (format!("${{{name}}}"), mischievous()[name].as_str().to_owned());
        prop_oneof![
            "[{}a-z_]{0,12}|[^$]{0,8}".prop_map(|text| (text.clone(), text)),
            Just(("$$".to_owned(), "$".to_owned())),
            select(PLACEHOLDERS.to_vec()).prop_map(placeholder),
        ]
    }

    proptest! {
        #[test]
        fn a_template_becomes_its_parts_and_what_is_put_in_is_not_looked_at_again(parts in vec(part(), 0..12)) {
            let (template, wanted): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
            prop_assert_eq!(fill(&template.concat(), &mischievous()), wanted.concat());
        }

        #[test]
        fn no_template_panics_and_text_without_dollars_stays(template in ".{0,80}") {
            let filled = fill(&template, &Values::from([("from", Zeroizing::new("$${from}".to_owned()))]));
            if !template.contains('$') {
                prop_assert_eq!(filled, template);
            }
        }
    }
}
