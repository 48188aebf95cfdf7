//! The response of the authorization endpoint, which the browser returns (RFC 6749 section 4.1.2).

use std::collections::BTreeMap;

use secrecy::SecretString;
use url::form_urlencoded;

use super::refusal::{Refusal, read_browser_error};
use crate::api::Reason;

/// Reads the query of a request to the redirect URI: the code, or an error. `None`: the query is not the response to
/// the sign-in with this `state`, and must not end the sign-in (RFC 6749 section 10.12).
///
/// `issuer` is the issuer that the response must come from, if known (RFC 9207).
pub fn read_authorization_response(
    query: &str,
    state: &str,
    issuer: Option<&str>,
) -> Option<Result<SecretString, Refusal>> {
    let mut parameters = BTreeMap::new();
    let mut repeated = false;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        repeated |= parameters.insert(name, value).is_some();
    }
    let parameter = |name: &str| parameters.get(name).map(AsRef::as_ref);
    if repeated || parameter("state") != Some(state) {
        return None;
    }
    if let (Some(wanted), Some(reported)) = (issuer, parameter("iss"))
        && wanted != reported
    {
        return Some(Err(Refusal::new(
            Reason::RequestRefused,
            format!("the browser's answer is not from {wanted}, but names another issuer (RFC 9207)"),
        )));
    }
    Some(match (parameter("error"), parameter("code")) {
        (Some(error), _) => Err(read_browser_error(error, parameter("error_description"))),
        (None, Some(code)) if !code.is_empty() => Ok(code.into()),
        (None, _) => Err(Refusal::new(Reason::MalformedResponse, "the browser brought neither a code nor an error")),
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    const ISSUER: &str = "https://id.example.org";

    fn read(query: &str) -> Option<Result<String, Refusal>> {
        let answer = read_authorization_response(query, "s1", Some(ISSUER))?;
        Some(answer.map(|code| code.expose_secret().to_owned()))
    }

    #[test]
    fn a_code_is_taken_with_the_right_state_alone() {
        assert_eq!(read("code=c%2B1&state=s1"), Some(Ok("c+1".into())));
        for query in
            ["", "code=c", "code=c&state=s2", "code=c&state=", "state=s2&state=s1&code=c", "code=c&code=d&state=s1"]
        {
            assert_eq!(read(query), None, "{query}");
        }
    }

    #[test]
    fn another_issuers_answer_is_refused_and_its_name_is_not_repeated() {
        assert!(read("code=c&state=s1&iss=https%3A%2F%2Fid.example.org").unwrap().is_ok());
        let refusal = read("code=c&state=s1&iss=https%3A%2F%2Fevil.example").unwrap().unwrap_err();
        assert!(refusal.what.contains("RFC 9207") && !refusal.what.contains("evil"), "{refusal:?}");
    }

    #[test]
    fn an_error_is_read_as_that_of_the_token_endpoint_is() {
        let denied =
            read("error=access_denied&error_description=AADSTS65004%3A+declined&state=s1").unwrap().unwrap_err();
        assert_eq!(denied.what, "the provider answered access_denied (AADSTS65004)");
        let scope = read("error=invalid_scope&state=s1&code=c").unwrap().unwrap_err();
        assert_eq!(scope.reason, Reason::InvalidScope);
        let odd = read("error=%3Cscript%3E&error_description=s3cret&state=s1").unwrap().unwrap_err();
        assert!(!format!("{odd:?}").contains("script") && !format!("{odd:?}").contains("s3cret"));
    }

    #[test]
    fn an_answer_without_a_code_is_malformed() {
        for query in ["state=s1", "state=s1&code="] {
            assert_eq!(read(query).unwrap().unwrap_err().reason, Reason::MalformedResponse);
        }
    }
}
