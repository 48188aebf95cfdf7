//! Renders the content of the Secret that pods mount.

use std::{cell::OnceCell, collections::BTreeMap};

use k8s_openapi::{ByteString, jiff::Timestamp};
use mailtoken_mail::sasl;
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
};

/// Maximum size of a Secret's data in bytes (`MaxSecretSize` of Kubernetes: the sum of the values' lengths).
pub const SECRET_MAX: usize = 1024 * 1024;
/// Assumed length of an access token before the first token is known: Entra ID's tokens, the longest of the presets, have
/// 1,500 to 3,000 bytes.
pub const USUAL_TOKEN: usize = 4096;
/// A time with as many digits in seconds as those between 2001 and 2286.
const TEN_DIGITS: i64 = 1_800_000_000;

/// The Secret would be larger than Kubernetes allows. No value was rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "spec.secret.data[{key}] would have {bytes} bytes with an access token of {token} bytes, and the whole Secret {total}, \
     where {SECRET_MAX} are the limit"
)]
pub struct TooLarge {
    /// The largest key of `spec.secret.data`.
    pub key: String,
    /// Size of that key's value in bytes.
    pub bytes: usize,
    /// Size of all values in bytes.
    pub total: usize,
    /// Length of the access token in bytes.
    pub token: usize,
}

/// Renders all keys of the Secret for `token`. Computes the size before it renders `spec.secret.data`, and renders each
/// value once.
///
/// # Errors
/// If the Secret would be larger than [`SECRET_MAX`].
pub fn render(
    credential: &MailCredential,
    profile: &Profile,
    token: &Token,
) -> Result<BTreeMap<String, ByteString>, TooLarge> {
    let values = values(credential, profile, token);
    let mut data = fixed(credential, profile, token, &values);
    let lengths = lengths(credential, &values);
    check(token.access_token.expose_secret().len(), &data, &lengths)?;
    for ((key, template), (_, length)) in credential.spec.secret.data.iter().zip(&lengths) {
        data.insert(key.clone(), fill(template, &values, *length));
    }
    Ok(data.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))).collect())
}

/// Computes the size of the Secret's values in bytes with an access token of `length` bytes, without rendering
/// `spec.secret.data`.
///
/// # Errors
/// If the Secret would be larger than [`SECRET_MAX`].
pub fn size(credential: &MailCredential, profile: &Profile, length: usize) -> Result<usize, TooLarge> {
    let token = Token {
        // Only the token's length matters.
        access_token: "x".repeat(length).into(),
        token_type: "Bearer".to_owned(),
        issued_at: Timestamp::UNIX_EPOCH,
        expires_at: Timestamp::from_second(TEN_DIGITS).unwrap_or_default(),
        refresh_at: None,
        scopes: vec![],
    };
    let values = values(credential, profile, &token);
    check(length, &fixed(credential, profile, &token, &values), &lengths(credential, &values))
}

/// The fixed keys of the Secret. Their number is fixed, and each contains the token at most once, so they are bounded.
fn fixed(credential: &MailCredential, profile: &Profile, token: &Token, values: &Values) -> BTreeMap<String, String> {
    let formats = &credential.spec.secret.formats;
    let wanted = |name: &str| match name {
        "xoauth2" => formats.contains(&Format::XOAuth2),
        "oauthbearer" => formats.contains(&Format::OAuthBearer),
        _ => true,
    };
    let named = values.iter().filter(|(name, _)| wanted(name));
    let mut data: BTreeMap<_, _> = named.map(|(name, value)| (name.clone(), value.text.as_str().to_owned())).collect();
    data.extend(responses(credential, profile, token));
    data.extend(files(credential, profile, token));
    data
}

/// The length of each value of `spec.secret.data`, in the order of its keys.
fn lengths<'a>(credential: &'a MailCredential, values: &Values) -> Vec<(&'a str, usize)> {
    let length = |template: &str| {
        let lengths = parts(template, values).into_iter().map(|part| match part {
            Part::Text(plain) => plain.len(),
            Part::Value(value, encoding) => value.length(encoding),
        });
        lengths.fold(0_usize, usize::saturating_add)
    };
    credential.spec.secret.data.iter().map(|(key, template)| (key.as_str(), length(template))).collect()
}

/// The sum of the lengths, if a Secret can hold it.
fn check(token: usize, fixed: &BTreeMap<String, String>, lengths: &[(&str, usize)]) -> Result<usize, TooLarge> {
    let all = fixed.values().map(String::len).chain(lengths.iter().map(|(_, length)| *length));
    let total = all.fold(0_usize, usize::saturating_add);
    let largest = lengths.iter().max_by_key(|(_, length)| *length);
    match largest.filter(|_| total > SECRET_MAX) {
        Some((key, bytes)) => Err(TooLarge { key: (*key).to_owned(), bytes: *bytes, total, token }),
        None => Ok(total),
    }
}

/// A function from a user and a token to a SASL response.
type Response = fn(&str, &str) -> String;

/// The SASL responses of the protocols whose user name differs from `username`, in the requested formats.
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

/// The requested files. sasl-xoauth2 belongs to Postfix, which logs in over SMTP.
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

/// Values by the names of their placeholders.
type Values = BTreeMap<String, Value>;

/// The value of a placeholder.
struct Value {
    text: Zeroizing<String>,
    /// The value's lengths in the encodings, computed once when needed: a template may have thousands of placeholders.
    url: OnceCell<usize>,
    json: OnceCell<usize>,
}

impl Value {
    fn new(text: String) -> Self {
        Self { text: Zeroizing::new(text), url: OnceCell::new(), json: OnceCell::new() }
    }

    fn length(&self, encoding: Encoding) -> usize {
        let count = || {
            let mut encoded = Zeroizing::new(String::new());
            push_encoded(&mut encoded, &self.text, encoding);
            encoded.len()
        };
        match encoding {
            Encoding::Plain => self.text.len(),
            Encoding::Url => *self.url.get_or_init(count),
            Encoding::Json => *self.json.get_or_init(count),
        }
    }
}

/// The values of the placeholders. Each is also a key of the Secret if requested. Some contain the token.
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
    let mut values: Values = names.into_iter().zip(common.map(Value::new)).collect();
    for protocol in &spec.protocols {
        let mut add = |what, value: String| values.insert(secret_keys::of(*protocol, what), Value::new(value));
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

/// Replaces the placeholders of a template, for a text of this length. Inserted values are not expanded again. The schema
/// has rejected unknown placeholders and lone dollars; they stay unchanged.
fn fill(template: &str, values: &Values, length: usize) -> String {
    let mut text = String::with_capacity(length);
    for part in parts(template, values) {
        match part {
            Part::Text(plain) => text.push_str(plain),
            Part::Value(value, encoding) => push_encoded(&mut text, &value.text, encoding),
        }
    }
    text
}

/// A part of a template.
enum Part<'a> {
    /// Unchanged text of the template.
    Text(&'a str),
    /// A value and its encoding.
    Value(&'a Value, Encoding),
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

/// Writes a value in an encoding. One byte becomes at most six (JSON's `\u0001`).
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
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;
    use crate::{fixtures, providers};

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
            .unwrap()
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
        let values = |value: &str| Values::from([("from".to_owned(), Value::new(value.to_owned()))]);
        let fill = |template: &str, values: &Values| fill(template, values, 0);
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

    fn oauth2() -> Profile {
        let spec = json!({"oauth2": {"tokenURL": "https://x/t"}, "client": {"id": "c"}});
        providers::profile(&serde_json::from_value(spec).unwrap()).unwrap()
    }

    fn token(length: usize) -> Token {
        Token {
            access_token: "x".repeat(length).into(),
            token_type: "Bearer".into(),
            issued_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::from_second(TEN_DIGITS).unwrap(),
            refresh_at: None,
            scopes: vec![],
        }
    }

    #[test]
    fn a_template_that_multiplies_the_token_beyond_a_secret_is_refused_before_a_byte_is_made() {
        let mut credential = fixtures::credential();
        credential.spec.secret.data = (0..32).map(|n| (format!("k{n:02}"), "${xoauth2}".repeat(204))).collect();
        credential.spec.secret.data.insert("most".into(), "${xoauth2}".repeat(409));
        for length in [200, 1_400, USUAL_TOKEN, 32 * 1024] {
            let error = size(&credential, &oauth2(), length).unwrap_err();
            assert_eq!(render(&credential, &oauth2(), &token(length)), Err(error.clone()));
            assert_eq!((error.key.as_str(), error.token), ("most", length));
            assert!(error.bytes > 409 * length && error.total > SECRET_MAX, "{error}");
            let reported = error.to_string();
            assert!(reported.contains("spec.secret.data[most]") && reported.contains("1048576"), "{reported}");
        }
    }

    #[test]
    fn a_secret_of_just_the_limit_is_made_and_of_one_byte_more_is_not() {
        let mut credential = fixtures::credential();
        let bare = size(&credential, &oauth2(), 0).unwrap();
        // 256 tokens of 4,000 bytes, and other letters up to the limit.
        let literal = SECRET_MAX
            - bare
            - 4_000
            - (sasl::xoauth2("billing@example.org", &"x".repeat(4_000)).len()
                - sasl::xoauth2("billing@example.org", "").len());
        let (tokens, rest) = (literal / 4_000, literal % 4_000);
        let template = |more: usize| "${access_token}".repeat(tokens) + &"y".repeat(rest + more);
        credential.spec.secret.data.insert("all".into(), template(0));
        assert_eq!(size(&credential, &oauth2(), 4_000), Ok(SECRET_MAX));
        let data = render(&credential, &oauth2(), &token(4_000)).unwrap();
        assert_eq!(data.values().map(|value| value.0.len()).sum::<usize>(), SECRET_MAX);
        credential.spec.secret.data.insert("all".into(), template(1));
        assert_eq!(size(&credential, &oauth2(), 4_000).unwrap_err().total, SECRET_MAX + 1);
    }

    #[test]
    fn the_computed_size_is_the_size_of_the_secret_with_every_format() {
        let mut credential = fixtures::credential();
        credential.spec.secret.formats =
            vec![Format::XOAuth2, Format::OAuthBearer, Format::SaslXoauth2, Format::TokenJson];
        credential.spec.secret.data = secret_keys::placeholders()
            .iter()
            .map(|name| {
                (format!("key-of-{name}"), format!("$${{{name}}} ${{{name}}}$$ ${{{name}:url}}${{{name}:json}}"))
            })
            .collect();
        for length in [1, 2, 3, 1_400, 32 * 1024] {
            let made = render(&credential, &oauth2(), &token(length)).unwrap();
            let sum: usize = made.values().map(|value| value.0.len()).sum();
            assert_eq!(size(&credential, &oauth2(), length), Ok(sum));
            let of_templates = made.iter().filter(|(key, _)| key.starts_with("key-of-"));
            assert!(of_templates.clone().all(|(_, value)| value.0.capacity() == value.0.len()), "made in one piece");
        }
        assert!(size(&credential, &oauth2(), 32 * 1024).unwrap() < SECRET_MAX);
    }

    /// Values that would expand endlessly if they were expanded again.
    fn mischievous() -> Values {
        let value = |name: &String| Value::new(format!("{name}: ${{access_token}} $$ ${{{name}}} $"));
        secret_keys::placeholders().into_iter().map(|name| (name.clone(), value(&name))).collect()
    }

    /// A part of a template, and its result.
    fn part() -> impl Strategy<Value = (String, String)> {
        let placeholder = |name: String| (format!("${{{name}}}"), mischievous()[&name].text.as_str().to_owned());
        prop_oneof![
            "[{}a-z_]{0,12}|[^$]{0,8}".prop_map(|text| (text.clone(), text)),
            Just(("$$".to_owned(), "$".to_owned())),
            select(secret_keys::placeholders()).prop_map(placeholder),
        ]
    }

    proptest! {
        #[test]
        fn a_template_becomes_its_parts_and_inserted_values_are_not_parsed_again(parts in vec(part(), 0..12)) {
            let (template, wanted): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
            let (template, wanted) = (template.concat(), wanted.concat());
            prop_assert_eq!(fill(&template, &mischievous(), wanted.len()), wanted);
        }

        #[test]
        fn no_template_panics_and_text_without_dollars_stays(template in ".{0,80}") {
            let filled = fill(&template, &Values::from([("from".to_owned(), Value::new("$${from}".to_owned()))]), 0);
            if !template.contains('$') {
                prop_assert_eq!(filled, template);
            }
        }
    }
}
