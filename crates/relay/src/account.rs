//! Reads a mounted Secret: the names of its mailbox, its mail servers, and, at a login, the token.

use std::{io, path::Path};

use mailtoken_mail::{
    protocol::{Protocol, Security},
    sasl::MAX_TOKEN,
};
use secrecy::SecretString;

use crate::mount::{self, Mount};

/// Maximum length of a user name in characters: twice the maximum of RFC 5321 for an address.
const MAX_NAME: usize = 640;
/// Maximum length of a host name in characters (RFC 1035 section 2.3.4).
const MAX_HOST: usize = 255;
/// Number of seconds before a token's expiry in which the relay no longer uses the token.
const MARGIN: i64 = 30;

/// The address of a mail server, its protocol, and the way to encrypt the connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Server {
    pub(crate) protocol: Protocol,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) security: Security,
}

/// The keys of a Secret that are not secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// The key `username`, which names the mailbox in logs and metrics.
    pub(crate) mailbox: String,
    /// The key `from`: the sender's address.
    pub(crate) from: Option<String>,
    /// The user names and servers of the Secret's protocols.
    pub(crate) servers: Vec<(String, Server)>,
}

impl Names {
    /// Whether the name is one of the mailbox's user names. Ignores ASCII case.
    pub(crate) fn has_user(&self, name: &str) -> bool {
        self.users().any(|user| user.eq_ignore_ascii_case(name))
    }

    /// Whether the name is the sender's address. Ignores ASCII case.
    pub(crate) fn has_from(&self, name: &str) -> bool {
        self.from.as_ref().is_some_and(|from| from.eq_ignore_ascii_case(name))
    }

    /// Returns all user names: `username`, and the user names of the protocols.
    pub(crate) fn users(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.mailbox.as_str()).chain(self.servers.iter().map(|(user, _)| user.as_str()))
    }

    /// Returns the user name and the server of a protocol.
    pub(crate) fn at(&self, protocol: Protocol) -> Option<&(String, Server)> {
        self.servers.iter().find(|(_, server)| server.protocol == protocol)
    }
}

/// The data of a login with the token in a Secret.
pub(crate) struct Account {
    pub(crate) server: Server,
    /// The user name at the mail server.
    pub(crate) user: String,
    pub(crate) token: SecretString,
}

/// Why the Secret does not allow a login now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotReady {
    /// The Secret does not exist yet, or has no token.
    NoToken,
    /// The token has expired, or expires within [`MARGIN`] seconds.
    Expired,
    /// The Secret has no server for the protocol.
    NoProtocol,
}

/// Returns the prefix of a protocol's keys in a Secret.
fn prefix(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Smtp => "smtp",
        Protocol::Imap => "imap",
        Protocol::Pop3 => "pop3",
    }
}

/// Reads the names in a Secret. Returns `None` if the broker did not write the Secret.
pub(crate) fn names(mount: &Mount) -> io::Result<Option<Names>> {
    let has_token = mount.read("access_token")?.is_some() && mount.text("expires_at_unix")?.is_some();
    let Some(mailbox) = mount.text("username")?.filter(|name| has_token && is_name(name)) else { return Ok(None) };
    let from = mount.text("from")?.filter(|name| is_name(name));
    let mut servers = vec![];
    for protocol in Protocol::ALL {
        servers.extend(server(mount, protocol, &mailbox)?);
    }
    Ok(Some(Names { mailbox, from, servers }))
}

/// Reads the user name and server of a protocol. A Secret of an earlier version has no keys for the security and the
/// user name.
fn server(mount: &Mount, protocol: Protocol, mailbox: &str) -> io::Result<Option<(String, Server)>> {
    let text = |key: &str| mount.text(&format!("{}_{key}", prefix(protocol)));
    let host = text("host")?.filter(|host| is_host(host));
    let port = text("port")?.and_then(|port| port.parse().ok()).filter(|port| *port > 0);
    let (Some(host), Some(port)) = (host, port) else { return Ok(None) };
    let security = match text("security")?.as_deref() {
        Some("TLS") => Security::Tls,
        Some("STARTTLS") => Security::StartTls,
        _ if [465, 993, 995].contains(&port) => Security::Tls,
        _ => Security::StartTls,
    };
    let user = text("username")?.filter(|name| is_name(name)).unwrap_or_else(|| mailbox.to_owned());
    Ok(Some((user, Server { protocol, host, port, security })))
}

/// Reads the login that a Secret allows, from one generation of the mount. `now` is in seconds since 1970.
pub(crate) fn read(folder: &Path, protocol: Protocol, now: i64) -> io::Result<Result<Account, NotReady>> {
    mount::read(folder, |mount| {
        let (Some(token), Some(expires)) = (mount.read("access_token")?, expires(mount)?) else {
            return Ok(Err(NotReady::NoToken));
        };
        let Some(mailbox) = mount.text("username")?.filter(|name| is_name(name)) else {
            return Ok(Err(NotReady::NoToken));
        };
        let Some((user, server)) = server(mount, protocol, &mailbox)? else { return Ok(Err(NotReady::NoProtocol)) };
        let Some(token) = std::str::from_utf8(&token).ok().map(str::trim_ascii).filter(|token| is_token(token)) else {
            return Ok(Err(NotReady::NoToken));
        };
        if expires <= now + MARGIN {
            return Ok(Err(NotReady::Expired));
        }
        Ok(Ok(Account { server, user, token: token.to_owned().into() }))
    })
}

/// Reads the expiry of the token in seconds since 1970.
pub(crate) fn expires(mount: &Mount) -> io::Result<Option<i64>> {
    Ok(mount.text("expires_at_unix")?.and_then(|text| text.parse().ok()))
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && !name.chars().any(char::is_control)
}

fn is_host(host: &str) -> bool {
    (1..=MAX_HOST).contains(&host.len())
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte))
}

/// Whether the text is visible ASCII, as a token is (RFC 6750 section 2.1). Accepts one character more than the
/// maximum, so that the login can report a token that is too long.
fn is_token(token: &str) -> bool {
    (1..=MAX_TOKEN + 1).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;

    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::mount::tests::{publish, scratch};

    /// Returns the keys of a Secret for one protocol, and the keys in `more`.
    pub(crate) fn keys<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let own = [
            ("access_token", "token-1"),
            ("expires_at_unix", "1000"),
            ("username", "billing@shop.example"),
            ("from", "Billing@shop.example"),
            ("smtp_host", "smtp.shop.example"),
            ("smtp_port", "587"),
        ];
        let kept = own.into_iter().filter(|(key, _)| more.iter().all(|(other, _)| key != other));
        kept.chain(more.iter().copied()).filter(|(_, value)| !value.is_empty()).collect()
    }

    fn secret(name: &str, more: &[(&str, &str)]) -> PathBuf {
        let folder = scratch(name);
        publish(&folder, "..1", &keys(more));
        folder
    }

    #[test]
    fn a_login_is_read_from_the_secret() {
        let folder = secret(
            "account",
            &[("imap_host", "imap.shop.example"), ("imap_port", "993"), ("imap_username", "shared@shop.example")],
        );
        let smtp = read(&folder, Protocol::Smtp, 900).unwrap().ok().unwrap();
        assert_eq!((smtp.user.as_str(), smtp.server.port), ("billing@shop.example", 587));
        assert_eq!((smtp.server.security, smtp.token.expose_secret()), (Security::StartTls, "token-1"));
        let imap = read(&folder, Protocol::Imap, 900).unwrap().ok().unwrap();
        assert_eq!((imap.user.as_str(), imap.server.security), ("shared@shop.example", Security::Tls));
        assert_eq!(read(&folder, Protocol::Pop3, 900).unwrap().err(), Some(NotReady::NoProtocol));
        assert_eq!(read(&folder, Protocol::Smtp, 969).unwrap().err(), None);
        assert_eq!(read(&folder, Protocol::Smtp, 970).unwrap().err(), Some(NotReady::Expired));
    }

    #[test]
    fn the_key_of_the_security_comes_before_the_port() {
        for (port, security, found) in [
            ("465", "STARTTLS", Security::StartTls),
            ("587", "TLS", Security::Tls),
            ("465", "", Security::Tls),
            ("993", "", Security::Tls),
            ("995", "odd", Security::Tls),
            ("25", "", Security::StartTls),
        ] {
            let folder = secret("security", &[("smtp_port", port), ("smtp_security", security)]);
            let names = mount::read(&folder, names).unwrap().unwrap();
            assert_eq!(names.at(Protocol::Smtp).unwrap().1.security, found, "{port} {security}");
        }
    }

    #[test]
    fn what_is_not_valid_is_not_used() {
        for (key, value, why) in [
            ("access_token", "", NotReady::NoToken),
            ("access_token", "a b", NotReady::NoToken),
            ("access_token", "a\r\nb", NotReady::NoToken),
            ("expires_at_unix", "soon", NotReady::NoToken),
            ("username", "a\r\nb", NotReady::NoToken),
            ("smtp_host", "a b", NotReady::NoProtocol),
            ("smtp_port", "0", NotReady::NoProtocol),
            ("smtp_port", "65536", NotReady::NoProtocol),
        ] {
            let folder = secret("invalid", &[(key, value)]);
            assert_eq!(read(&folder, Protocol::Smtp, 0).unwrap().err(), Some(why), "{key} {value:?}");
        }
        let empty = scratch("empty");
        assert_eq!(read(&empty, Protocol::Smtp, 0).unwrap().err(), Some(NotReady::NoToken));
        assert_eq!(mount::read(&empty, names).unwrap(), None);
    }
}
