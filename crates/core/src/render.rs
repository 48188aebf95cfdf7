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
/// A time with ten digits in seconds, as all times between 2001 and 2286 have.
const TEN_DIGITS: i64 = 1_800_000_000;

/// The Secret would be larger than Kubernetes allows. The broker has rendered no value.
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

/// The fixed keys of the Secret. Their number is fixed, and each contains the token at most once, so their size is
/// bounded.
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
    /// The value's lengths in the two encodings, computed at the first use. A template may have thousands of
    /// placeholders.
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

/// The values of the placeholders. A value is also a key of the Secret if the spec requests it. Some values contain the
/// token.
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

/// Replaces the placeholders of a template. `length`: the length of the result. Does not expand inserted values again.
/// Unknown placeholders and single dollars, which the schema rejects, stay unchanged.
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

/// Writes a value in an encoding. One byte becomes at most six bytes (JSON's `\u0001`).
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
mod tests;
