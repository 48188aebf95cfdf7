//! Lenient readers for members of a provider's JSON. A member of an unexpected type counts as absent, and the reader
//! goes on with the next member. All collections are bounded.

use std::fmt;

use secrecy::SecretString;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use zeroize::Zeroizing;

/// The body of a response without the byte order mark that some servers put before their JSON (RFC 8259 section 8.1 allows
/// readers to ignore it).
pub(super) fn body<T: AsRef<[u8]>>(response: &http::Response<T>) -> &[u8] {
    let body = response.body().as_ref();
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

/// Reads an object. `None`: the JSON is not an object, or has a member twice.
pub(super) fn object<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    // serde would read a list as the members of the object.
    let is_list = json.trim_ascii_start().first() == Some(&b'[');
    let finite = finite(json);
    if is_list { None } else { serde_json::from_slice(finite.as_deref().map_or(json, Vec::as_slice)).ok() }
}

/// Replaces numbers that no 64-bit float holds (`1e999`, `NaN`, `Infinity`) by `true`. One such number makes the parser
/// reject the whole text, whereas readers treat `true` like any value that is not a number. `None`: the JSON has no
/// such number.
fn finite(json: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut out: Option<Zeroizing<Vec<u8>>> = None;
    let (mut at, mut copied) = (0, 0);
    while let Some(byte) = json.get(at) {
        let end = match byte {
            b'"' => at + text_length(&json[at..]),
            b'-' | b'0'..=b'9' | b'N' | b'I' => at + number_length(&json[at..]),
            _ => at + 1,
        };
        if is_infinite(&json[at..end]) {
            let out = out.get_or_insert_with(|| Vec::with_capacity(json.len()).into());
            out.extend_from_slice(&json[copied..at]);
            out.extend_from_slice(b"true");
            copied = end;
        }
        at = end;
    }
    if let Some(out) = &mut out {
        out.extend_from_slice(&json[copied..]);
    }
    out
}

/// The length of the text in quotes that `json` begins with.
fn text_length(json: &[u8]) -> usize {
    let mut escaped = false;
    let end = json.iter().skip(1).position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    });
    end.map_or(json.len(), |end| end + 2)
}

/// The length of the number at the beginning of `json`, or of a word such as `NaN`.
fn number_length(json: &[u8]) -> usize {
    let belongs = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    json.iter().position(|byte| !belongs(byte)).unwrap_or(json.len()).max(1)
}

fn is_infinite(number: &[u8]) -> bool {
    if matches!(number, b"NaN" | b"Infinity" | b"-Infinity") {
        return true;
    }
    let is_number = number.iter().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(byte));
    let text = std::str::from_utf8(number).ok().filter(|_| is_number);
    text.and_then(|text| text.parse::<f64>().ok()).is_some_and(f64::is_infinite)
}

/// Implements the visits of a [`Visitor`] for all unexpected types.
macro_rules! otherwise {
    ($value:expr; $($visit:ident),*) => {
        $(otherwise!(@ $visit $value);)*
    };
    (@ bool $value:expr) => { fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> { Ok($value) } };
    (@ i64 $value:expr) => { fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> { Ok($value) } };
    (@ u64 $value:expr) => { fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> { Ok($value) } };
    (@ f64 $value:expr) => { fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> { Ok($value) } };
    (@ str $value:expr) => { fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> { Ok($value) } };
    (@ unit $value:expr) => { fn visit_unit<E>(self) -> Result<Self::Value, E> { Ok($value) } };
    (@ seq $value:expr) => {
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            while items.next_element::<IgnoredAny>()?.is_some() {}
            Ok($value)
        }
    };
    (@ map $value:expr) => {
        fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
            while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok($value)
        }
    };
}

/// A text. `None`: the member has another type.
#[derive(Default)]
pub(super) struct Text(pub(super) Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(Some(text.to_owned())))
            }
            otherwise!(Text(None); bool, i64, u64, f64, unit, seq, map);
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A secret text. `None`: the member has another type.
#[derive(Default)]
pub(super) struct SecretText(pub(super) Option<SecretString>);

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = SecretText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_str<E>(self, text: &str) -> Result<SecretText, E> {
                Ok(SecretText(Some(SecretString::from(text))))
            }
            otherwise!(SecretText(None); bool, i64, u64, f64, unit, seq, map);
        }
        deserializer.deserialize_any(Reader)
    }
}

/// The words of a text, separated by white space, or of a list of texts. Empty for a member of another type.
pub(super) struct Words<const MAX: usize>(pub(super) Vec<String>);

impl<const MAX: usize> Default for Words<MAX> {
    fn default() -> Self {
        Self(vec![])
    }
}

impl<const MAX: usize> Words<MAX> {
    /// Adds the words of `text`, up to `MAX` words.
    fn add(&mut self, text: &str) {
        let left = MAX.saturating_sub(self.0.len());
        self.0.extend(text.split_whitespace().take(left).map(str::to_owned));
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Words<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<const MAX: usize>;
        impl<'de, const MAX: usize> Visitor<'de> for Reader<MAX> {
            type Value = Words<MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("words")
            }
            fn visit_str<E>(self, text: &str) -> Result<Words<MAX>, E> {
                let mut words = Words::default();
                words.add(text);
                Ok(words)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Words<MAX>, A::Error> {
                let mut words = Words::default();
                while let Some(Text(item)) = items.next_element()? {
                    words.add(&item.unwrap_or_default());
                }
                Ok(words)
            }
            otherwise!(Words::default(); bool, i64, u64, f64, unit, map);
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A number, or a text that contains a number (`"3600"`, `3600.0`).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Number {
    /// The member is absent or null.
    #[default]
    Absent,
    /// The member is not a number.
    Unreadable,
    /// A finite number.
    Given(f64),
}

impl Number {
    fn of(number: f64) -> Self {
        if number.is_finite() { Self::Given(number) } else { Self::Unreadable }
    }

    /// Parses a number in a text: digits with an optional sign, fraction and exponent.
    pub(super) fn parse(text: &str) -> Self {
        let text = text.trim();
        let plain = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
        // No number of seconds has more than 32 characters.
        text.parse().ok().filter(|_| plain && text.len() <= 32).map_or(Self::Unreadable, Self::of)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }
            fn visit_i64<E>(self, number: i64) -> Result<Number, E> {
                Ok(Number::of(number as f64))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
                Ok(Number::of(number as f64))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Number, E> {
                Ok(Number::of(number))
            }
            fn visit_str<E>(self, text: &str) -> Result<Number, E> {
                Ok(Number::parse(text))
            }
            fn visit_unit<E>(self) -> Result<Number, E> {
                Ok(Number::Absent)
            }
            otherwise!(Number::Unreadable; bool, seq, map);
        }
        deserializer.deserialize_any(Reader)
    }
}

/// Whether a member has content. Null, false, 0, and an empty text, list or object are no content.
#[derive(Default)]
pub(super) struct Said(pub(super) bool);

impl<'de> Deserialize<'de> for Said {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Said;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_bool<E>(self, truth: bool) -> Result<Said, E> {
                Ok(Said(truth))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Said, E> {
                Ok(Said(number != 0))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Said, E> {
                Ok(Said(number != 0))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Said, E> {
                Ok(Said(number != 0.0))
            }
            fn visit_str<E>(self, text: &str) -> Result<Said, E> {
                Ok(Said(!text.trim().is_empty()))
            }
            fn visit_unit<E>(self) -> Result<Said, E> {
                Ok(Said(false))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Said, A::Error> {
                let mut said = false;
                while items.next_element::<IgnoredAny>()?.is_some() {
                    said = true;
                }
                Ok(Said(said))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Said, A::Error> {
                let mut said = false;
                while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    said = true;
                }
                Ok(Said(said))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A reader for the members of an object.
pub(super) trait Members {
    /// Reads the value of the member `name`, or skips it with [`skip`].
    ///
    /// # Errors
    /// If the value is not JSON.
    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, members: &mut A) -> Result<(), A::Error>;
}

/// Skips a member's value.
///
/// # Errors
/// If the value is not JSON.
pub(super) fn skip<'de, A: MapAccess<'de>>(members: &mut A) -> Result<(), A::Error> {
    members.next_value::<IgnoredAny>().map(drop)
}

/// Reads the members of the object in `json`, or of the first object in a list, into `into`. If a member occurs twice,
/// reads both values. If the JSON is truncated, keeps the members before the end.
pub(super) fn read_members(json: &[u8], into: &mut impl Members) {
    let finite = finite(json);
    let mut deserializer = serde_json::Deserializer::from_slice(finite.as_deref().map_or(json, Vec::as_slice));
    // Truncated JSON is not an error here: a complete member before the end is still valuable.
    let _ = Into { into }.deserialize(&mut deserializer);
}

/// Reads the members of an object into `into`, which stays unchanged for a value of another type.
pub(super) struct Into<'a, M> {
    pub(super) into: &'a mut M,
}

impl<'de, M: Members> DeserializeSeed<'de> for Into<'_, M> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, M: Members> Visitor<'de> for Into<'_, M> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(name) = members.next_key::<String>()? {
            self.into.read(&name, &mut members)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        // Salesforce responds with a list of one object.
        items.next_element_seed(Into { into: self.into })?;
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    otherwise!((); bool, i64, u64, f64, str, unit);
}

#[cfg(test)]
mod tests {
    use super::finite;

    #[test]
    fn only_numbers_that_no_float_holds_are_replaced() {
        let read = |json: &str| finite(json.as_bytes()).map(|json| String::from_utf8(json.to_vec()).unwrap());
        for (json, replaced) in [
            (r#"{"a":1e999}"#, r#"{"a":true}"#),
            (r#"[-1e999,1,NaN,"x",Infinity,-Infinity]"#, r#"[true,1,true,"x",true,true]"#),
            (r#"{"1e999":"1e999 \" NaN \\","b":1e999}"#, r#"{"1e999":"1e999 \" NaN \\","b":true}"#),
            ("1e999", "true"),
        ] {
            assert_eq!(read(json).as_deref(), Some(replaced));
        }
        for json in [
            "",
            "{}",
            r#"{"a":1e308,"b":"NaN","c":-0.0,"d":1e-999}"#,
            r#"{"a":"1e999"#,
            r#"["\"1e999"]"#,
            "N",
            "-",
            "nan",
        ] {
            assert_eq!(read(json), None, "{json}");
        }
    }
}
