//! The keys of the Secret that pods mount, and the placeholders of `spec.secret.data`. The schema, the checks and the
//! rendering all use these tables.

pub use mailtoken_mail::secret_keys::{COMMON, RESPONSES, SASL_XOAUTH2, SERVER, TOKEN_JSON, USERNAME};

use mailtoken_mail::protocol::Protocol;

/// Returns the name of a protocol's key or placeholder, such as `smtp_host`.
pub fn of(protocol: Protocol, what: &str) -> String {
    format!("{}_{what}", protocol.as_str().to_ascii_lowercase())
}

/// Returns the names of all placeholders, in the order in which messages list them.
pub fn placeholders() -> Vec<String> {
    let common = COMMON.into_iter().map(str::to_owned);
    let each = Protocol::ALL
        .into_iter()
        .flat_map(|protocol| SERVER.into_iter().chain([USERNAME]).map(move |what| of(protocol, what)));
    common.chain(each).collect()
}

/// Returns the keys that the broker writes itself, which `spec.secret.data` must not use.
pub fn fixed() -> Vec<String> {
    let responses =
        Protocol::ALL.into_iter().flat_map(|protocol| RESPONSES.into_iter().map(move |what| of(protocol, what)));
    let files = [SASL_XOAUTH2, TOKEN_JSON].map(str::to_owned);
    placeholders().into_iter().chain(responses).chain(files).collect()
}

/// Encodings of a placeholder's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `${name}`: the value itself.
    Plain,
    /// `${name:url}`: the value in percent-encoding, except for RFC 3986's unreserved characters.
    Url,
    /// `${name:json}`: the value escaped for a JSON string (RFC 8259 section 7), without quotes.
    Json,
}

impl Encoding {
    /// Splits the text inside the braces of a placeholder into the name and the encoding. `None`: no such encoding
    /// exists.
    pub fn parse(placeholder: &str) -> Option<(&str, Self)> {
        match placeholder.split_once(':') {
            None => Some((placeholder, Self::Plain)),
            Some((name, "url")) => Some((name, Self::Url)),
            Some((name, "json")) => Some((name, Self::Json)),
            Some(_) => None,
        }
    }
}

/// CEL rules for `spec.secret.data`, each with its message.
pub(super) fn rules() -> Vec<(String, String)> {
    let (names, keys) = (placeholders(), fixed());
    let listed: Vec<_> = names.iter().map(|name| format!("${{{name}}}")).collect();
    let (last, others) = listed.split_last().map_or(("", &[][..]), |(last, others)| (last.as_str(), others));
    let quoted: Vec<_> = keys.iter().map(|key| format!("'{key}'")).collect();
    vec![
        (
            "self.map(k, size(bytes(self[k]))).sum() <= 65536".to_owned(),
            "the values of spec.secret.data have at most 65536 bytes in all".to_owned(),
        ),
        (
            r"self.all(k, size(k) <= 253 && k.matches('^[-._a-zA-Z0-9]+$') && k != '.' && !k.startsWith('..'))"
                .to_owned(),
            "keys may hold letters, digits, '-', '_' and '.', and do not begin with '..'".to_owned(),
        ),
        (
            format!("!self.exists(k, k in [{}])", quoted.join(", ")),
            "the broker writes this key itself: choose another name for yours".to_owned(),
        ),
        (
            format!(r"self.all(k, self[k].matches('^([^$]|\\$\\$|\\$\\{{({})(:url|:json)?\\}})*$'))", names.join("|")),
            format!(
                "unknown placeholder: use {} or {last}, each also with :url or :json before the brace, and $$ for a dollar",
                others.join(", ")
            ),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoding_follows_a_colon() {
        for (text, parsed) in [
            ("username", Some(("username", Encoding::Plain))),
            ("username:url", Some(("username", Encoding::Url))),
            ("username:json", Some(("username", Encoding::Json))),
            ("username:URL", None),
            ("username:", None),
            ("username:url:json", None),
        ] {
            assert_eq!(Encoding::parse(text), parsed, "{text}");
        }
    }

    #[test]
    fn every_key_of_a_protocol_is_fixed_and_its_responses_are_no_placeholders() {
        assert_eq!((placeholders().len(), fixed().len()), (20, 28));
        assert!(fixed().contains(&"pop3_oauthbearer".to_owned()));
        assert!(!placeholders().contains(&"pop3_oauthbearer".to_owned()));
    }
}
