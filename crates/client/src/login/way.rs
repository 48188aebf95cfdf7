//! How the authorization response reaches `login`: at a port of this machine, or as text that the user pastes.

use url::{Host, Url};

use crate::{
    login::{LoginError, browser::Loopback},
    providers::Redirect,
    settings::Login,
};

/// How the authorization response reaches `login`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The provider redirects the browser to a port of this machine.
    Listen {
        /// The host of the redirect URI, which determines the addresses to bind.
        loopback: Loopback,
        /// The port; `None` means any free port.
        port: Option<u16>,
        /// The path and query of the redirect URI.
        path: String,
    },
    /// The provider sends the browser to this redirect URI, and the user pastes the address.
    PasteAddress(String),
    /// The provider's last page shows a code, and the user pastes the code.
    PasteCode(String),
}

impl Way {
    /// Chooses the way from the flags and the provider's preset.
    pub fn choose(settings: &Login, preset: &str, redirect: Redirect) -> Result<Self, LoginError> {
        let Login { redirect_uri, port, paste, .. } = settings;
        match (redirect_uri, redirect) {
            (Some(uri), _) => Self::registered(uri, *port, *paste),
            (None, Redirect::Localhost(path)) if *paste => {
                let port = port.map_or_else(String::new, |port| format!(":{port}"));
                Ok(Self::PasteAddress(format!("http://localhost{port}{path}")))
            }
            (None, Redirect::Localhost(path)) => {
                Ok(Self::Listen { loopback: Loopback::Both, port: *port, path: path.to_owned() })
            }
            (None, Redirect::OutOfBand(_)) if port.is_some() => Err(LoginError(format!(
                "the provider {preset} shows a code to copy, and does not redirect the browser to this machine: leave out \
                 `--port`"
            ))),
            (None, Redirect::OutOfBand(uri)) => Ok(Self::PasteCode(uri.to_owned())),
        }
    }

    fn registered(uri: &str, port: Option<u16>, paste: bool) -> Result<Self, LoginError> {
        let url = Url::parse(uri).ok().filter(Url::has_host);
        let Some(url) = url else { return Ok(Self::PasteCode(uri.to_owned())) };
        if paste {
            return Ok(Self::PasteAddress(uri.to_owned()));
        }
        let loopback = match url.host() {
            Some(Host::Domain("localhost")) => Some(Loopback::Both),
            Some(Host::Ipv4(address)) if address.is_loopback() => Some(Loopback::V4),
            Some(Host::Ipv6(address)) if address.is_loopback() => Some(Loopback::V6),
            _ => None,
        };
        match loopback.filter(|_| url.scheme() == "http") {
            Some(loopback) => {
                let path = url[url::Position::BeforePath..].to_owned();
                Ok(Self::Listen { loopback, port: url.port().or(port), path })
            }
            None => Err(LoginError(format!(
                "login cannot listen at {uri}: add `--paste`, and paste the address at which the browser ends"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::tests::login;

    use super::*;

    fn way(flags: &[&str], redirect: Redirect) -> Result<Way, String> {
        let settings = login("a@b.c", "seed", flags).unwrap();
        Way::choose(&settings, "yahoo", redirect).map_err(|error| error.0)
    }

    fn listen(loopback: Loopback, port: Option<u16>, path: &str) -> Result<Way, String> {
        Ok(Way::Listen { loopback, port, path: path.to_owned() })
    }

    #[test]
    fn flags_and_preset_decide_how_the_response_arrives() {
        let (localhost, oob) = (Redirect::Localhost("/"), Redirect::OutOfBand("oob"));
        let address = |uri: &str| Ok(Way::PasteAddress(uri.to_owned()));
        let code = |uri: &str| Ok(Way::PasteCode(uri.to_owned()));
        for (flags, redirect, expected) in [
            (&[][..], localhost, listen(Loopback::Both, None, "/")),
            (&["--port=8400"], localhost, listen(Loopback::Both, Some(8400), "/")),
            (&["--paste"], localhost, address("http://localhost/")),
            (&["--paste", "--port=8400"], localhost, address("http://localhost:8400/")),
            (&["--redirect-uri=http://localhost:1/cb"], localhost, listen(Loopback::Both, Some(1), "/cb")),
            (&["--redirect-uri=http://127.0.0.1/cb"], localhost, listen(Loopback::V4, None, "/cb")),
            (&["--redirect-uri=http://[::1]:1"], oob, listen(Loopback::V6, Some(1), "/")),
            (&["--redirect-uri=https://localhost", "--paste"], localhost, address("https://localhost")),
            (&["--redirect-uri=https://app.example/cb", "--paste"], oob, address("https://app.example/cb")),
            (&["--redirect-uri=urn:ietf:wg:oauth:2.0:oob"], localhost, code("urn:ietf:wg:oauth:2.0:oob")),
            (&[], oob, code("oob")),
            (&["--paste"], oob, code("oob")),
        ] {
            assert_eq!(way(flags, redirect), expected, "{flags:?}");
        }
        assert!(way(&["--port=1"], oob).unwrap_err().contains("leave out `--port`"));
        for uri in ["https://localhost", "https://app.example/cb", "http://10.0.0.1/"] {
            assert!(way(&["--redirect-uri", uri], localhost).unwrap_err().contains("add `--paste`"), "{uri}");
        }
    }
}
