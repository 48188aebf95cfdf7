//! The three mail protocols, the TLS modes of a connection, and the SASL mechanisms that carry an access token.

#[cfg(feature = "schema")]
use schemars::JsonSchema;
#[cfg(feature = "schema")]
use serde::{Deserialize, Serialize};

/// The supported mail protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "schema", derive(Deserialize, Serialize, JsonSchema), serde(rename_all = "UPPERCASE"))]
pub enum Protocol {
    /// Message submission (RFC 6409) with AUTH (RFC 4954).
    Smtp,
    /// IMAP4rev1 (RFC 3501).
    Imap,
    /// POP3 (RFC 1939) with AUTH (RFC 5034).
    Pop3,
}

impl Protocol {
    /// All protocols, in the order in which lists show them.
    pub const ALL: [Self; 3] = [Self::Smtp, Self::Imap, Self::Pop3];

    /// The protocol's name in the API, in logs and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Smtp => "SMTP",
            Self::Imap => "IMAP",
            Self::Pop3 => "POP3",
        }
    }
}

/// TLS modes of a mail connection. Mail without TLS is not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "schema", derive(Deserialize, Serialize, JsonSchema), serde(rename_all = "UPPERCASE"))]
#[cfg_attr(
    feature = "schema",
    schemars(
        description = "security is the TLS mode of the connection. Defaults to TLS on the ports 465, 993 and 995, otherwise STARTTLS."
    )
)]
pub enum Security {
    /// Plain text until STARTTLS or STLS (RFC 3207, RFC 2595). The login continues only if the server offers this
    /// command.
    StartTls,
    /// TLS from the first byte (RFC 8314 section 3).
    Tls,
}

impl Security {
    /// The mode's name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StartTls => "STARTTLS",
            Self::Tls => "TLS",
        }
    }
}

/// A SASL mechanism that carries an OAuth2 access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// Google's and Microsoft's mechanism
    /// (<https://developers.google.com/workspace/gmail/imap/xoauth2-protocol>).
    XOAuth2,
    /// The standard mechanism (RFC 7628).
    OAuthBearer,
}

impl Mechanism {
    /// The mechanism's name in the SASL registry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::XOAuth2 => "XOAUTH2",
            Self::OAuthBearer => "OAUTHBEARER",
        }
    }

    /// The client's answer to the challenge that reports a refused token: an empty line for XOAUTH2, and a single
    /// control character A in base64 for OAUTHBEARER (RFC 7628 section 3.2.3). The server then sends its final reply.
    pub const fn answer_to_refusal(self) -> &'static [u8] {
        match self {
            Self::XOAuth2 => b"\r\n",
            Self::OAuthBearer => b"AQ==\r\n",
        }
    }

    /// Chooses the mechanism among the offered names: XOAUTH2 first, because Microsoft documents no other mechanism. A
    /// client must not send a refused token with the second mechanism, because the server would count two failures.
    pub fn choose<'a>(offered: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut found = None;
        for name in offered {
            if name.eq_ignore_ascii_case(Self::XOAuth2.name()) {
                return Some(Self::XOAuth2);
            }
            if name.eq_ignore_ascii_case(Self::OAuthBearer.name()) {
                found = Some(Self::OAuthBearer);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xoauth2_is_preferred_and_names_ignore_case() {
        for (offered, chosen) in [
            (&["PLAIN", "OAUTHBEARER", "xoauth2"][..], Some(Mechanism::XOAuth2)),
            (&["OAuthBearer", "PLAIN"], Some(Mechanism::OAuthBearer)),
            (&["PLAIN", "LOGIN", "XOAUTH"], None),
            (&[], None),
        ] {
            assert_eq!(Mechanism::choose(offered.iter().copied()), chosen, "{offered:?}");
        }
    }
}
