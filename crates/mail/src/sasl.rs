//! The SASL responses of mail clients.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

/// The initial response of XOAUTH2, base64 (Google, "OAuth 2.0 Mechanism").
pub fn xoauth2(user: &str, access_token: &str) -> String {
    let response = Zeroizing::new(format!("user={user}\x01auth=Bearer {access_token}\x01\x01"));
    BASE64_STANDARD.encode(response.as_bytes())
}

/// The initial response of OAUTHBEARER, base64 (RFC 7628 section 3.1), without the optional host and port.
pub fn oauthbearer(user: &str, access_token: &str) -> String {
    // RFC 5801 section 4: "," and "=" are escaped in the authorization identity.
    let user = user.replace('=', "=3D").replace(',', "=2C");
    let response = Zeroizing::new(format!("n,a={user},\x01auth=Bearer {access_token}\x01\x01"));
    BASE64_STANDARD.encode(response.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(response: &str) -> String {
        String::from_utf8(BASE64_STANDARD.decode(response).unwrap()).unwrap()
    }

    #[test]
    fn xoauth2_is_googles_documented_example() {
        assert_eq!(
            xoauth2("someuser@example.com", "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg"),
            "dXNlcj1zb21ldXNlckBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciB5YTI5LnZGOWRmdDRxbVRjMk52YjNSbGNrQmhkSFJoZG1semRHRXVZMjl0Q2cBAQ=="
        );
    }

    #[test]
    fn oauthbearer_is_rfc_7628s_example_without_host_and_port() {
        assert_eq!(
            decoded(&oauthbearer("user@example.com", "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==")),
            "n,a=user@example.com,\x01auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01"
        );
    }

    #[test]
    fn oauthbearer_escapes_the_user_and_only_the_user() {
        assert_eq!(decoded(&oauthbearer("a=b,c@d.e", "t=,")), "n,a=a=3Db=2Cc@d.e,\x01auth=Bearer t=,\x01\x01");
    }
}
