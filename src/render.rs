//! The content of the Secret that pods mount.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use secrecy::ExposeSecret as _;
use serde_json::json;
use zeroize::Zeroizing;

use crate::{
    api::{
        MailCredential,
        credential::{Format, Protocol},
        names::rfc3339,
        secret_keys::{self, Encoding, RESPONSES, SASL_XOAUTH2, SERVER, TOKEN_JSON, USERNAME},
    },
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
        let wanted = match name.as_str() {
            "xoauth2" => spec.secret.formats.contains(&Format::XOAuth2),
            "oauthbearer" => spec.secret.formats.contains(&Format::OAuthBearer),
            _ => true,
        };
        if wanted {
            data.insert(name.clone(), value.as_str().to_owned());
        }
    }
    data.extend(responses(credential, profile, token));
    data.extend(files(credential, profile, token));
    data.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))).collect()
}

/// Makes the SASL response of a user with a token.
type Response = fn(&str, &str) -> String;

/// The SASL responses of the protocols whose user name is not that of `username`, in the formats that are requested.
fn responses(credential: &MailCredential, profile: &Profile, token: &Token) -> BTreeMap<String, String> {
    let (spec, access_token) = (&credential.spec, token.access_token.expose_secret());
    let first = profile.first_username(credential);
    let mut keys = BTreeMap::new();
    for protocol in &spec.protocols {
        let user = profile.username(credential, *protocol);
        if user == first {
            continue;
        }
        let forms = [(Format::XOAuth2, sasl::xoauth2 as Response), (Format::OAuthBearer, sasl::oauthbearer)];
        for ((format, response), name) in forms.into_iter().zip(RESPONSES) {
            if spec.secret.formats.contains(&format) {
                keys.insert(secret_keys::of(*protocol, name), response(user, access_token));
            }
        }
    }
    keys
}

/// The files that are requested. sasl-xoauth2 belongs to Postfix, which logs in by SMTP.
fn files(credential: &MailCredential, profile: &Profile, token: &Token) -> BTreeMap<String, String> {
    let (spec, access_token) = (&credential.spec, token.access_token.expose_secret());
    let first = profile.first_username(credential);
    let mut keys = BTreeMap::new();
    if spec.secret.formats.contains(&Format::SaslXoauth2) {
        let smtp = spec.protocols.contains(&Protocol::Smtp);
        let user = if smtp { profile.username(credential, Protocol::Smtp) } else { first };
        let file = json!({
            "access_token": access_token, "refresh_token": "", "expiry": token.expires_at.as_second().to_string(),
            "user": user,
        });
        keys.insert(SASL_XOAUTH2.to_owned(), file.to_string());
    }
    if spec.secret.formats.contains(&Format::TokenJson) {
        let file = json!({
            "access_token": access_token, "token_type": token.token_type, "expires_at": rfc3339(token.expires_at),
            "username": first,
        });
        keys.insert(TOKEN_JSON.to_owned(), file.to_string());
    }
    keys
}

/// Texts by the names of their placeholders.
type Values = BTreeMap<String, Zeroizing<String>>;

/// What the placeholders stand for; each is also a key of its own where it is asked for. Some hold the token.
fn values(credential: &MailCredential, profile: &Profile, token: &Token) -> Values {
    let spec = &credential.spec;
    let access_token = token.access_token.expose_secret();
    let first = profile.first_username(credential);
    // In the order of `COMMON`.
    let common = [
        access_token.to_owned(),
        token.token_type.clone(),
        rfc3339(token.expires_at),
        token.expires_at.as_second().to_string(),
        first.to_owned(),
        spec.mailbox.address.clone(),
        sasl::xoauth2(first, access_token),
        sasl::oauthbearer(first, access_token),
    ];
    let names = secret_keys::COMMON.map(str::to_owned);
    let mut values: Values = names.into_iter().zip(common.map(Zeroizing::new)).collect();
    for protocol in &spec.protocols {
        let mut add = |what, value: String| values.insert(secret_keys::of(*protocol, what), Zeroizing::new(value));
        add(USERNAME, profile.username(credential, *protocol).to_owned());
        if let Some(server) = profile.server(*protocol) {
            let facts = [server.host.clone(), server.port.to_string(), server.security().as_str().to_owned()];
            for (what, value) in SERVER.into_iter().zip(facts) {
                add(what, value);
            }
        }
    }
    values
}

/// Puts values into a template. What is put in is not looked at again. The schema has refused unknown placeholders and
/// lone dollars; they stay as they are.
fn fill(template: &str, values: &Values) -> String {
    let mut text = String::with_capacity(template.len());
    for part in parts(template, values) {
        match part {
            Part::Text(plain) => text.push_str(plain),
            Part::Value(value, encoding) => push_encoded(&mut text, value, encoding),
        }
    }
    text
}

/// A part of a template.
enum Part<'a> {
    /// Text as it is.
    Text(&'a str),
    /// A value, and how it is written.
    Value(&'a str, Encoding),
}

/// The parts of a template, in order.
fn parts<'a>(template: &'a str, values: &'a Values) -> Vec<Part<'a>> {
    let (mut parts, mut rest) = (vec![], template);
    while let Some((before, after)) = rest.split_once('$') {
        parts.push(Part::Text(before));
        let placeholder = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let value = placeholder.and_then(|(inside, tail)| {
            let (name, encoding) = Encoding::parse(inside)?;
            Some((Part::Value(values.get(name)?, encoding), tail))
        });
        let (part, tail) = match (after.strip_prefix('$'), value) {
            (Some(tail), _) => (Part::Text("$"), tail),
            (None, Some(value)) => value,
            (None, None) => (Part::Text("$"), after),
        };
        parts.push(part);
        rest = tail;
    }
    parts.push(Part::Text(rest));
    parts
}

/// Writes a value in an encoding. At most six bytes become of one (JSON's `\u0001`).
fn push_encoded(text: &mut String, value: &str, encoding: Encoding) {
    match encoding {
        Encoding::Plain => text.push_str(value),
        // RFC 3986 section 2.3.
        Encoding::Url => {
            for byte in value.bytes() {
                if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                    text.push(char::from(byte));
                } else {
                    let digit = |nibble: u8| char::from(b"0123456789ABCDEF"[usize::from(nibble & 15)]);
                    text.extend(['%', digit(byte >> 4), digit(byte)]);
                }
            }
        }
        Encoding::Json => {
            let quoted = Zeroizing::new(serde_json::Value::from(value).to_string());
            text.push_str(quoted.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;
    use crate::{policy::tests::fixtures, providers};

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
                "smtp_security",
                "smtp_username",
                "token_type",
                "username",
                "xoauth2"
            ]
        );
        assert_eq!(data["expires_at"], "2027-01-15T09:00:00Z");
        assert_eq!(data["expires_at_unix"], "1800003600");
        assert_eq!((data["smtp_host"].as_str(), data["smtp_port"].as_str()), ("smtp.example.org", "587"));
        assert_eq!(
            (data["smtp_security"].as_str(), data["smtp_username"].as_str()),
            ("STARTTLS", "billing@example.org")
        );
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
    fn user_names_and_responses_are_per_protocol_where_they_differ() {
        let data = rendered(|credential| {
            credential.spec.mailbox.usernames = serde_json::from_value(json!({"imap": "office@example.org"})).unwrap();
            credential.spec.protocols = vec![Protocol::Smtp, Protocol::Imap, Protocol::Pop3];
            credential.spec.secret.formats = vec![Format::XOAuth2, Format::OAuthBearer, Format::SaslXoauth2];
        });
        let names = ["username", "smtp_username", "imap_username", "pop3_username"].map(|key| data[key].as_str());
        assert_eq!(names, ["billing@example.org", "billing@example.org", "office@example.org", "billing@example.org"]);
        assert_eq!(data["imap_xoauth2"], sasl::xoauth2("office@example.org", "t0k"));
        assert_eq!(data["imap_oauthbearer"], sasl::oauthbearer("office@example.org", "t0k"));
        for key in ["smtp_xoauth2", "smtp_oauthbearer", "pop3_xoauth2", "pop3_oauthbearer"] {
            assert!(!data.contains_key(key), "{key}");
        }
        assert_eq!(
            ["smtp", "imap", "pop3"].map(|at| data[&format!("{at}_security")].as_str()),
            ["STARTTLS", "TLS", "TLS"]
        );
        assert!(data["sasl-xoauth2.json"].contains(r#""user":"billing@example.org""#));

        let data = rendered(|credential| {
            credential.spec.mailbox.usernames = serde_json::from_value(json!({"imap": "office@example.org"})).unwrap();
            credential.spec.protocols = vec![Protocol::Imap, Protocol::Smtp];
            credential.spec.secret.formats = vec![Format::OAuthBearer, Format::SaslXoauth2, Format::TokenJson];
        });
        assert_eq!(data["username"], "office@example.org");
        assert_eq!(data["smtp_oauthbearer"], sasl::oauthbearer("billing@example.org", "t0k"));
        assert!(!data.contains_key("imap_oauthbearer") && !data.contains_key("smtp_xoauth2"));
        assert!(data["sasl-xoauth2.json"].contains(r#""user":"billing@example.org""#), "Postfix logs in by SMTP");
        assert!(data["token.json"].contains(r#""username":"office@example.org""#));
    }

    #[test]
    fn only_fixed_keys_are_written_beside_those_of_data() {
        let fixed = secret_keys::fixed();
        let data = rendered(|credential| {
            credential.spec.mailbox.usernames = serde_json::from_value(json!({"imap": "a", "pop3": "b"})).unwrap();
            credential.spec.protocols = Protocol::ALL.to_vec();
            credential.spec.secret.formats =
                vec![Format::XOAuth2, Format::OAuthBearer, Format::SaslXoauth2, Format::TokenJson];
        });
        let others: Vec<_> = data.keys().filter(|key| !fixed.contains(key)).collect();
        assert!(others.is_empty(), "{others:?}");
        assert_eq!(data.len(), fixed.len() - 2, "all but smtp_xoauth2 and smtp_oauthbearer");
    }

    #[test]
    fn values_are_encoded_as_the_placeholder_asks() {
        let values = |value: &str| Values::from([("from".to_owned(), Zeroizing::new(value.to_owned()))]);
        for (value, url, json) in [
            ("a+b@x.org", "a%2Bb%40x.org", "a+b@x.org"),
            ("a-b_c.d~e", "a-b_c.d~e", "a-b_c.d~e"),
            ("büro@x.org", "b%C3%BCro%40x.org", "büro@x.org"),
            ("a\"b\\c", "a%22b%5Cc", "a\\\"b\\\\c"),
            ("a b/c=&?#", "a%20b%2Fc%3D%26%3F%23", "a b/c=&?#"),
            ("$${from:url}", "%24%24%7Bfrom%3Aurl%7D", "$${from:url}"),
        ] {
            assert_eq!(fill("${from:url}", &values(value)), url);
            assert_eq!(fill("{\"u\":\"${from:json}\"}", &values(value)), format!("{{\"u\":\"{json}\"}}"));
        }
        assert_eq!(fill("${from:base64}${from:}$${from:url}", &values("x")), "${from:base64}${from:}${from:url}");
    }

    #[test]
    fn every_placeholder_of_the_schema_has_a_value() {
        let data = rendered(|credential| {
            credential.spec.protocols = vec![Protocol::Smtp, Protocol::Imap, Protocol::Pop3];
            credential.spec.secret.data = secret_keys::placeholders()
                .iter()
                .map(|name| (format!("key-of-{name}"), format!("${{{name}}}${{{name}:url}}${{{name}:json}}")))
                .collect();
        });
        let unfilled: Vec<_> = data.iter().filter(|(_, text)| text.contains('$')).collect();
        assert!(unfilled.is_empty(), "{unfilled:?}");
    }

    /// Values that would go on and on, were they looked at again.
    fn mischievous() -> Values {
        let value = |name: &String| Zeroizing::new(format!("{name}: ${{access_token}} $$ ${{{name}}} $"));
        secret_keys::placeholders().into_iter().map(|name| (name.clone(), value(&name))).collect()
    }

    /// A part of a template, and what becomes of it.
    fn part() -> impl Strategy<Value = (String, String)> {
        let placeholder = |name: String| (format!("${{{name}}}"), mischievous()[&name].as_str().to_owned());
        prop_oneof![
            "[{}a-z_]{0,12}|[^$]{0,8}".prop_map(|text| (text.clone(), text)),
            Just(("$$".to_owned(), "$".to_owned())),
            select(secret_keys::placeholders()).prop_map(placeholder),
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
            let filled = fill(&template, &Values::from([("from".to_owned(), Zeroizing::new("$${from}".to_owned()))]));
            if !template.contains('$') {
                prop_assert_eq!(filled, template);
            }
        }
    }
}
