//! Client authentication at the token endpoint (RFC 6749 section 2.3).

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};
use thiserror::Error;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::assertion::{AssertionParams, GrantKey, ServiceAccountKey, SigningError, SigningKey};

/// A client authentication that is ready for use.
#[derive(Clone, Debug)]
pub enum ClientAuth {
    /// A public client, which only sends its id.
    Public,
    /// `client_secret_post`: the secret in the body.
    SecretPost(SecretString),
    /// `client_secret_basic`: the secret in the Authorization header.
    SecretBasic(SecretString),
    /// `private_key_jwt`: a signed assertion in the body.
    PrivateKeyJwt(SigningKey),
    /// An assertion that another party signed, such as a Kubernetes ServiceAccount token.
    Assertion(SecretString),
    /// A Google service account: its key signs the grant itself, and the client needs no further authentication.
    ServiceAccountKey(ServiceAccountKey),
    /// A Google service account without a key: Google signs for the account.
    Impersonation(Impersonation),
}

/// A Kubernetes ServiceAccount's token, with which Google signs for a Google service account.
#[derive(Clone, Debug)]
pub struct Impersonation {
    /// The token of the Kubernetes ServiceAccount.
    pub token: SecretString,
    /// The audience of the token: the workload identity provider.
    pub audience: String,
    /// The address of the Google service account.
    pub account: String,
}

/// The client assertion type of RFC 7521 section 4.2.
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

impl ClientAuth {
    /// Whether a request with this authentication needs a signature by the broker's own key.
    pub fn signs(&self) -> bool {
        matches!(self, Self::PrivateKeyJwt(_) | Self::ServiceAccountKey(_))
    }

    /// Whether a request with this authentication contains an assertion, which a recipient could use at the token endpoint.
    pub fn is_assertion(&self) -> bool {
        matches!(self, Self::PrivateKeyJwt(_) | Self::Assertion(_))
    }

    /// Writes the client's id, and the client's secret or assertion if the method sends it in the body.
    pub(super) fn write_body(
        &self,
        client_id: &str,
        params: AssertionParams<'_>,
        form: &mut form_urlencoded::Serializer<'_, String>,
    ) -> Result<(), SigningError> {
        match self {
            Self::Public => {
                form.append_pair("client_id", client_id);
            }
            Self::SecretPost(secret) => {
                form.append_pair("client_id", client_id);
                form.append_pair("client_secret", secret.expose_secret());
            }
            Self::SecretBasic(_) | Self::ServiceAccountKey(_) | Self::Impersonation(_) => {}
            Self::PrivateKeyJwt(key) => {
                write_assertion(client_id, &key.client_assertion(client_id, params)?, form);
            }
            Self::Assertion(assertion) => write_assertion(client_id, assertion, form),
        }
        Ok(())
    }

    /// The key that signs a JWT about a subject (RFC 7523 section 2.1), if the client has one.
    pub(super) fn grant_key<'a>(&'a self, client_id: &'a str) -> Option<GrantKey<'a>> {
        match self {
            Self::PrivateKeyJwt(key) => Some(GrantKey { key, issuer: client_id, names_scopes: false }),
            Self::ServiceAccountKey(account) => {
                Some(GrantKey { key: &account.key, issuer: &account.email, names_scopes: true })
            }
            Self::Public | Self::SecretPost(_) | Self::SecretBasic(_) | Self::Assertion(_) | Self::Impersonation(_) => {
                None
            }
        }
    }

    /// The Authorization header, if the method needs one. The broker form-encodes id and secret first (RFC 6749 section
    /// 2.3.1), so the header is always valid.
    pub(super) fn header(&self, client_id: &str) -> Option<HeaderValue> {
        let Self::SecretBasic(secret) = self else { return None };
        let encode = |part: &str| -> Zeroizing<String> {
            Zeroizing::new(form_urlencoded::byte_serialize(part.as_bytes()).collect())
        };
        let pair = Zeroizing::new(format!("{}:{}", *encode(client_id), *encode(secret.expose_secret())));
        let credentials = Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())));
        let mut header = HeaderValue::from_str(&credentials).ok()?;
        header.set_sensitive(true);
        Some(header)
    }
}

/// Writes a client assertion into the body (RFC 7521 section 4.2).
fn write_assertion(client_id: &str, assertion: &SecretString, form: &mut form_urlencoded::Serializer<'_, String>) {
    form.append_pair("client_id", client_id);
    form.append_pair("client_assertion_type", JWT_BEARER);
    form.append_pair("client_assertion", assertion.expose_secret());
}

/// Flaws of a client secret that the broker notices before it sends the secret.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SecretFlaw {
    /// The value is empty.
    #[error("is empty")]
    Empty,
    /// The value is not text.
    #[error("is not UTF-8 text")]
    NotText,
    /// The value has spaces or line breaks at an end, usually from `echo` or an editor.
    #[error("has white space at its beginning or end, as an editor or `echo` without -n leaves it")]
    WhiteSpace,
    /// The value has white space inside.
    #[error("has white space inside, as a line that was wrapped where it was copied")]
    Broken,
    /// The value has control characters inside.
    #[error("holds control characters")]
    ControlCharacter,
    /// The value has an invisible character, which editors and shells leave.
    #[error(
        "holds an invisible character: U+{:04X} ({}), as character {place}",
        u32::from(*character),
        invisible(*character).unwrap_or("invisible")
    )]
    Invisible {
        /// The invisible character itself.
        character: char,
        /// The character's position in the text, from 1.
        place: usize,
    },
    /// The value has the form of a secret's ID. Microsoft's portal shows the ID, a GUID, next to the value.
    #[error("has the form of a secret ID (a GUID); the portal shows the ID beside the value: store the value")]
    LooksLikeId,
}

/// Reads a client secret from a Secret, and removes one trailing line break.
///
/// # Errors
/// The flaw, if the value cannot be right. `guid_is_flaw`: whether the provider's secrets are never GUIDs.
pub fn read_secret(raw: &[u8], guid_is_flaw: bool) -> Result<SecretString, SecretFlaw> {
    let text = std::str::from_utf8(raw).map_err(|_| SecretFlaw::NotText)?;
    let text = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if text.is_empty() {
        return Err(SecretFlaw::Empty);
    }
    if let Some((at, character)) = text.chars().enumerate().find(|(_, character)| invisible(*character).is_some()) {
        return Err(SecretFlaw::Invisible { character, place: at + 1 });
    }
    if text.trim() != text {
        return Err(SecretFlaw::WhiteSpace);
    }
    if text.chars().any(char::is_control) {
        return Err(SecretFlaw::ControlCharacter);
    }
    if guid_is_flaw && is_guid(text) {
        return Err(SecretFlaw::LooksLikeId);
    }
    Ok(text.into())
}

/// The name of an invisible character. `None`: the character is visible, or has its own flaw, as ASCII blanks and
/// control characters have.
fn invisible(character: char) -> Option<&'static str> {
    Some(match character {
        '\u{feff}' => "byte order mark",
        '\u{a0}' | '\u{2007}' | '\u{202f}' => "no-break space",
        '\u{ad}' => "soft hyphen",
        '\u{200b}' | '\u{200c}' | '\u{200d}' | '\u{2060}' | '\u{180e}' => "zero width character",
        '\u{200e}' | '\u{200f}' | '\u{61c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            "mark for the direction of text"
        }
        '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{205f}' | '\u{3000}' => "space of a width of its own",
        '\u{85}' | '\u{2028}' | '\u{2029}' => "line separator",
        '\u{2061}'..='\u{2065}' | '\u{206a}'..='\u{206f}' | '\u{34f}' | '\u{fff9}'..='\u{fffb}' => "format character",
        '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' => "filler",
        '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}' => "variation selector",
        '\u{e0000}'..='\u{e007f}' => "tag character",
        _ => return None,
    })
}

fn is_guid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_form_encodes_before_base64() {
        let auth = ClientAuth::SecretBasic("p:ä ~".into());
        let header = auth.header("id+1").unwrap();
        let encoded = header.to_str().unwrap().strip_prefix("Basic ").unwrap().to_owned();
        assert_eq!(BASE64_STANDARD.decode(encoded).unwrap(), b"id%2B1:p%3A%C3%A4+%7E");
        assert!(header.is_sensitive());
    }

    #[test]
    fn a_secret_is_never_shown() {
        assert!(!format!("{:?}", ClientAuth::SecretPost("hunter2".into())).contains("hunter2"));
    }

    #[test]
    fn one_trailing_line_break_is_taken_off() {
        for raw in [&b"s3cret"[..], b"s3cret\n", b"s3cret\r\n"] {
            assert_eq!(read_secret(raw, true).unwrap().expose_secret(), "s3cret");
        }
    }

    #[test]
    fn flaws_are_named() {
        let table: [(&[u8], SecretFlaw); 8] = [
            (b"", SecretFlaw::Empty),
            (b"\n", SecretFlaw::Empty),
            (b"s3cret\n\n", SecretFlaw::WhiteSpace),
            (b" s3cret", SecretFlaw::WhiteSpace),
            (b"s3cret ", SecretFlaw::WhiteSpace),
            (b"s3\x01cret", SecretFlaw::ControlCharacter),
            (b"\xff\xfe", SecretFlaw::NotText),
            (b"1b4e28ba-2fa1-11d2-883f-0016d3cca427", SecretFlaw::LooksLikeId),
        ];
        for (raw, flaw) in table {
            assert_eq!(read_secret(raw, true).unwrap_err(), flaw, "{raw:?}");
        }
        assert!(read_secret(b"1b4e28ba-2fa1-11d2-883f-0016d3cca427", false).is_ok(), "only Microsoft has secret IDs");
    }

    #[test]
    fn an_invisible_character_is_named_with_its_place() {
        for (text, words) in [
            ("\u{feff}s3cret~Value", "U+FEFF (byte order mark), as character 1"),
            ("s3cret\u{200b}", "U+200B (zero width character), as character 7"),
            ("s3\u{a0}cret", "U+00A0 (no-break space), as character 3"),
            ("s3cret\u{a0}\n", "U+00A0 (no-break space), as character 7"),
            ("\u{202e}s3cret", "U+202E (mark for the direction of text), as character 1"),
            ("s3\u{ad}cret", "U+00AD (soft hyphen), as character 3"),
            ("s3\u{2028}cret", "U+2028 (line separator), as character 3"),
            ("s\u{e0041}", "U+E0041 (tag character), as character 2"),
        ] {
            let flaw = read_secret(text.as_bytes(), false).unwrap_err();
            assert_eq!(flaw.to_string(), format!("holds an invisible character: {words}"));
        }
        for text in ["pässwörd", "пароль", "秘密", "a b", "🔑"] {
            assert!(read_secret(text.as_bytes(), false).is_ok(), "{text}");
        }
    }

    #[test]
    fn only_the_very_form_of_an_id_is_taken_for_one() {
        let is_id = |text: &str| matches!(read_secret(text.as_bytes(), true), Err(SecretFlaw::LooksLikeId));
        assert!(is_id("0f8fad5b-d9cb-469f-a165-70867728950e"));
        for secret in ["0f8fad5bd9cb469fa16570867728950e", "0f8fad5b-d9cb-469f-a165-70867728950~", "0f8fad5b-d9cb"] {
            assert!(!is_id(secret), "{secret}");
        }
    }
}
