//! The SASL responses that carry an access token.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use crate::{answers::Cause, protocol::Mechanism};

/// Maximum characters of a token. Servers accept 12,288 octets of base64 in a response (RFC 4954 section 4), which are
/// 9,216 octets of user name, frame and token.
pub const MAX_TOKEN: usize = 9000;

/// The response that a mechanism sends for a token, in base64, without a line end. Dropping the response wipes its
/// memory.
///
/// # Errors
///
/// [`Cause::TokenTooLong`] if the token has more than [`MAX_TOKEN`] characters.
pub fn response(mechanism: Mechanism, user: &str, access_token: &str) -> Result<Zeroizing<String>, Cause> {
    if access_token.len() > MAX_TOKEN {
        return Err(Cause::TokenTooLong);
    }
    let encode = match mechanism {
        Mechanism::XOAuth2 => xoauth2,
        Mechanism::OAuthBearer => oauthbearer,
    };
    Ok(Zeroizing::new(encode(user, access_token)))
}

/// The initial response of XOAUTH2, base64 (Google, "OAuth 2.0 Mechanism").
pub fn xoauth2(user: &str, access_token: &str) -> String {
    let response = Zeroizing::new(format!("user={user}\x01auth=Bearer {access_token}\x01\x01"));
    BASE64_STANDARD.encode(response.as_bytes())
}

/// The initial response of OAUTHBEARER, base64 (RFC 7628 section 3.1), without the optional host and port.
pub fn oauthbearer(user: &str, access_token: &str) -> String {
    // RFC 5801 section 4 requires escapes for "," and "=" in the authorization identity.
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
    fn a_token_has_a_limit() {
        let longest = "t".repeat(MAX_TOKEN);
        assert!(response(Mechanism::XOAuth2, "u", &longest).is_ok_and(|response| response.len() <= 12_288));
        assert_eq!(response(Mechanism::OAuthBearer, "u", &format!("{longest}t")), Err(Cause::TokenTooLong));
    }

    #[test]
    fn oauthbearer_escapes_the_user_and_only_the_user() {
        assert_eq!(decoded(&oauthbearer("a=b,c@d.e", "t=,")), "n,a=a=3Db=2Cc@d.e,\x01auth=Bearer t=,\x01\x01");
    }
}
