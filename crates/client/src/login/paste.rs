//! The line that the user pastes: the address at which the browser ended, or the code that the last page shows.

use secrecy::SecretString;
use url::Url;

use crate::{login::browser::CodeResponse, oauth::authorization::read_authorization_response};

/// The meaning of a pasted line.
pub(super) enum Pasted {
    /// A code, or the provider's refusal.
    Response(CodeResponse),
    /// A line that is not a response, with the reason to print.
    Unusable(&'static str),
}

/// Reads the address at which the browser ended. Rejects an address without the `state` of this sign-in: an attacker
/// can make the user paste only an address of another sign-in.
pub(super) fn address(line: &str, state: &str, issuer: Option<&str>) -> Pasted {
    let Ok(url) = Url::parse(line.trim()) else {
        return Pasted::Unusable(
            "that is not an address: copy all of the browser's address bar, which begins with http",
        );
    };
    let query = url.query().or_else(|| url.fragment()).unwrap_or_default();
    // The address of the sign-in page contains the `state` too.
    let is_response = url::form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == "code" || name == "error");
    match read_authorization_response(query, state, issuer).filter(|_| is_response) {
        Some(response) => Pasted::Response(response),
        None => Pasted::Unusable(
            "that is not the address at which this sign-in ended: sign in first, then copy the address of the last page, \
             also if the page shows an error",
        ),
    }
}

/// Reads a code. A code has no `state`; PKCE protects the code instead. The provider rejects the code of another
/// sign-in, because the verifier does not match (RFC 9700 section 2.1).
pub(super) fn code(line: &str, state: &str, issuer: Option<&str>) -> Pasted {
    let line = line.trim();
    if line.starts_with("http://") || line.starts_with("https://") {
        return address(line, state, issuer);
    }
    Pasted::Response(Ok(SecretString::from(line)))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn shown(pasted: Pasted) -> String {
        match pasted {
            Pasted::Response(Ok(code)) => code.expose_secret().to_owned(),
            Pasted::Response(Err(refusal)) => format!("refused: {}", refusal.what),
            Pasted::Unusable(why) => why.split(':').next().unwrap_or_default().to_owned(),
        }
    }

    #[test]
    fn an_address_counts_only_with_the_state_of_this_sign_in() {
        for (line, expected) in [
            (" https://localhost/?code=c%2B1&state=s1 \r", "c+1"),
            ("https://app.example/cb?x=1&code=c&state=s1#", "c"),
            ("https://app.example/cb#code=c&state=s1", "c"),
            ("https://localhost/?error=access_denied&state=s1", "refused: the provider answered access_denied"),
            ("https://localhost/?code=c&state=s2", "that is not the address at which this sign-in ended"),
            ("https://localhost/?code=c", "that is not the address at which this sign-in ended"),
            ("https://login.example/authorize?state=s1", "that is not the address at which this sign-in ended"),
            ("c0de", "that is not an address"),
        ] {
            assert_eq!(shown(address(line, "s1", None)), expected, "{line}");
        }
        assert_eq!(shown(code(" c0de \r", "s1", None)), "c0de");
        assert_eq!(shown(code("https://localhost/?code=c&state=s1", "s1", None)), "c");
    }
}
