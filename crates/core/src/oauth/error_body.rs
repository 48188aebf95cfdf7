//! The members of an error response that the broker reads. The broker shows only codes of a fixed form. It reads
//! `error_description` only for Microsoft's code at the start, and for Google's text about the times in an assertion.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{
    error_code::OAuthError,
    lenient::{Into, Members, Number, Text, read_members, skip},
};

#[derive(Default)]
pub(super) struct ErrorBody {
    error: ErrorMember,
    /// The members `errorCode`, `error_code` and `code`, in which servers report codes that no RFC defines.
    named: [Option<String>; 3],
    description: Option<String>,
    microsoft: Option<u64>,
    subtype: Option<String>,
    suberror: Option<String>,
    correlation_id: Option<String>,
}

impl ErrorBody {
    /// Reads a body. Unreadable members count as absent.
    pub(super) fn read(json: &[u8]) -> Self {
        let mut body = Self::default();
        read_members(json, &mut body);
        body
    }

    /// Whether the body reports an error in any form.
    pub(super) fn says_error(&self) -> bool {
        self.error.present || self.named.iter().take(2).any(Option::is_some)
    }

    /// The error code, from the first member that has one.
    pub(super) fn code(&self) -> Option<OAuthError> {
        self.error.texts.iter().chain(&self.named).flatten().find_map(|text| OAuthError::parse(text))
    }

    /// Microsoft's code, otherwise the first subtype that is a plain word.
    pub(super) fn provider_code(&self) -> Option<String> {
        let described = || self.description.as_deref().and_then(described_code);
        let word = |text: &Option<String>| Some(OAuthError::parse(text.as_deref()?)?.as_str().to_owned());
        let words = || word(&self.subtype).or_else(|| word(&self.suberror));
        self.microsoft.and_then(shown_code).or_else(described).or_else(words)
    }

    /// Whether the description is Google's text about the times in an assertion. Google has no code for this error:
    /// "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and
    /// exp values in the JWT claim."
    pub(super) fn is_untimely(&self) -> bool {
        let untimely = |text: &String| text.starts_with("Invalid JWT") && text.contains("reasonable timeframe");
        self.description.as_ref().is_some_and(untimely)
    }

    /// The provider's id of the request, for the provider's support.
    pub(super) fn correlation_id(&self) -> Option<String> {
        self.correlation_id.clone().filter(|id| is_correlation_id(id))
    }
}

impl Members for ErrorBody {
    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, members: &mut A) -> Result<(), A::Error> {
        // If a member occurs twice, the first value counts.
        fn first<'de, A: MapAccess<'de>>(slot: &mut Option<String>, members: &mut A) -> Result<(), A::Error> {
            let Text(text) = members.next_value()?;
            *slot = slot.take().or(text);
            Ok(())
        }
        let [error_code, snake, code] = &mut self.named;
        match name {
            "error" => {
                let error: ErrorMember = members.next_value()?;
                if !self.error.present {
                    self.error = error;
                }
            }
            "errorCode" => first(error_code, members)?,
            "error_code" => first(snake, members)?,
            "code" => first(code, members)?,
            "error_description" => first(&mut self.description, members)?,
            "error_codes" => {
                let FirstNumber(number) = members.next_value()?;
                self.microsoft = self.microsoft.or(number);
            }
            "error_subtype" => first(&mut self.subtype, members)?,
            "suberror" => first(&mut self.suberror, members)?,
            "correlation_id" => first(&mut self.correlation_id, members)?,
            _ => skip(members)?,
        }
        Ok(())
    }
}

/// The member `error`: a text, or an object with a text under `code`, `error`, `status` or `type`.
#[derive(Default)]
struct ErrorMember {
    /// Whether the member is present and not null.
    present: bool,
    texts: [Option<String>; 4],
}

impl Members for ErrorMember {
    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, members: &mut A) -> Result<(), A::Error> {
        let place = ["code", "error", "status", "type"].iter().position(|known| *known == name);
        match place.and_then(|place| self.texts.get_mut(place)) {
            Some(slot) => {
                let Text(text) = members.next_value()?;
                *slot = slot.take().or(text);
            }
            None => skip(members)?,
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for ErrorMember {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = ErrorMember;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an error")
            }
            fn visit_str<E>(self, text: &str) -> Result<ErrorMember, E> {
                Ok(ErrorMember { present: true, texts: [Some(text.to_owned()), None, None, None] })
            }
            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<ErrorMember, A::Error> {
                let mut error = ErrorMember { present: true, ..ErrorMember::default() };
                Into { into: &mut error }.visit_map(members)?;
                Ok(error)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<ErrorMember, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(ErrorMember { present: true, ..ErrorMember::default() })
            }
            fn visit_unit<E>(self) -> Result<ErrorMember, E> {
                Ok(ErrorMember::default())
            }
            fn visit_bool<E>(self, truth: bool) -> Result<ErrorMember, E> {
                Ok(ErrorMember { present: truth, ..ErrorMember::default() })
            }
            fn visit_i64<E>(self, _: i64) -> Result<ErrorMember, E> {
                Ok(ErrorMember { present: true, ..ErrorMember::default() })
            }
            fn visit_u64<E>(self, _: u64) -> Result<ErrorMember, E> {
                Ok(ErrorMember { present: true, ..ErrorMember::default() })
            }
            fn visit_f64<E>(self, _: f64) -> Result<ErrorMember, E> {
                Ok(ErrorMember { present: true, ..ErrorMember::default() })
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A whole number, or the first number of a list.
struct FirstNumber(Option<u64>);

impl<'de> Deserialize<'de> for FirstNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        let whole = |number: Number| match number {
            Number::Given(number) if (0.0..1e12).contains(&number) => Some(number as u64),
            _ => None,
        };
        impl<'de> Visitor<'de> for Reader {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("numbers")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Number, A::Error> {
                let first = items.next_element::<Number>()?.unwrap_or_default();
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(first)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Number, A::Error> {
                while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Number::Absent)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Number, E> {
                Ok(Number::Absent)
            }
            fn visit_unit<E>(self) -> Result<Number, E> {
                Ok(Number::Absent)
            }
            fn visit_i64<E>(self, number: i64) -> Result<Number, E> {
                Ok(Number::Given(number as f64))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
                Ok(Number::Given(number as f64))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Number, E> {
                Ok(Number::Given(number))
            }
            fn visit_str<E>(self, text: &str) -> Result<Number, E> {
                Ok(Number::parse(text))
            }
        }
        deserializer.deserialize_any(Reader).map(|number| Self(whole(number)))
    }
}

/// Microsoft's code at the beginning of a description.
pub(super) fn described_code(description: &str) -> Option<String> {
    let text = description.strip_prefix("AADSTS")?;
    shown_code(text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?)
}

fn shown_code(number: u64) -> Option<String> {
    (1_000..=999_999_999).contains(&number).then(|| format!("AADSTS{number}"))
}

fn is_correlation_id(id: &str) -> bool {
    id.len() == 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}
