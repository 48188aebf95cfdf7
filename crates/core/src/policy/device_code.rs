//! The request for a device code (RFC 8628 section 3.1): its scopes, and the meaning of its refusal.

use crate::{api::Reason, oauth::Refusal};

/// The scopes for which a provider reports who signed in (OpenID Connect Core section 5.4).
const IDENTITY: [&str; 2] = ["openid", "email"];
/// The scope for which a provider also reports a user name that is not an address.
const USER_NAME: &str = "profile";

/// The scopes of the request: `scopes`, and the scopes for which the token response reports who signed in. The broker
/// must check this account, because everyone who may read the status could enter the code. `user`: the expected user
/// name.
pub fn scopes_with_identity(scopes: &[String], user: &str) -> Vec<String> {
    let identity = IDENTITY.iter().chain((!user.contains('@')).then_some(&USER_NAME));
    let missing = identity.filter(|scope| !scopes.iter().any(|requested| requested == *scope));
    scopes.iter().cloned().chain(missing.map(|scope| (*scope).to_owned())).collect()
}

/// Returns the refusal with its meaning for a request for a device code. No user has signed in yet, so each error is
/// about the client or the request.
pub fn code_refusal(mut refusal: Refusal) -> Refusal {
    if refusal.advice.is_none() && refusal.error.as_ref().is_some_and(|error| error.as_str() == "unauthorized_client") {
        refusal.advice = Some("Allow the client {client} the device authorization grant at the provider");
    }
    if matches!(refusal.reason, Reason::InvalidGrant | Reason::AuthorizationRequired) {
        refusal.reason = Reason::RequestRefused;
    }
    refusal
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::oauth::refusal::read_refusal;

    #[test]
    fn a_code_is_requested_with_the_scopes_that_identify_the_user() {
        for (scopes, user, expected) in [
            ("mail", "billing@example.org", "mail openid email"),
            ("", "billing@example.org", "openid email"),
            ("email mail", "billing@example.org", "email mail openid"),
            ("mail", "billing", "mail openid email profile"),
            ("profile openid email", "billing", "profile openid email"),
        ] {
            let scopes: Vec<_> = scopes.split_whitespace().map(str::to_owned).collect();
            assert_eq!(scopes_with_identity(&scopes, user).join(" "), expected, "{scopes:?} {user}");
        }
    }

    #[test]
    fn a_refused_code_is_a_problem_of_the_client_or_the_request() {
        let refused = |code: &str| {
            let body = format!(r#"{{"error": "{code}"}}"#).into_bytes();
            let response = http::Response::builder().status(400).body(body).unwrap();
            code_refusal(read_refusal(&response, Timestamp::UNIX_EPOCH))
        };
        for (code, reason) in [
            ("invalid_grant", Reason::RequestRefused),
            ("interaction_required", Reason::RequestRefused),
            ("invalid_client", Reason::InvalidClient),
            ("invalid_scope", Reason::InvalidScope),
        ] {
            let refusal = refused(code);
            assert_eq!((refusal.reason, refusal.advice), (reason, None), "{code}");
        }
        assert!(refused("unauthorized_client").advice.unwrap().contains("device authorization grant"));
        let mut known = refused("unauthorized_client");
        known.advice = Some("known");
        assert_eq!(code_refusal(known).advice, Some("known"), "a provider's own advice stays");
    }
}
