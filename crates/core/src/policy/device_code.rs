//! The request for a device code (RFC 8628 section 3.1): its scopes, the meaning of its refusal, and the sign-in that begins
//! with the code.

use k8s_openapi::jiff::Timestamp;

use super::grant::{RefreshGrant, SignIn};
use crate::{
    api::Reason,
    oauth::{Refusal, device::DeviceAuthorization},
};

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

/// The sign-in with the codes in `authorization`, which the provider issued for `grant`. `before` is the stored sign-in. If the
/// new code replaces a code of the same request, the sign-in keeps its beginning.
pub fn sign_in(
    authorization: &DeviceAuthorization,
    grant: &RefreshGrant,
    before: Option<&SignIn>,
    now: Timestamp,
) -> SignIn {
    let replaced = before.filter(|before| before.asked_by == grant.asked_by && before.ended.is_none());
    SignIn {
        began_at: replaced.map_or(now, |before| before.began_at),
        shown_at: now,
        user_code: authorization.user_code.clone(),
        verification_uri: authorization.verification_uri.clone(),
        verification_uri_complete: authorization.verification_uri_complete.clone(),
        expires_at: authorization.expires_at,
        interval: authorization.interval.as_secs(),
        asked_by: grant.asked_by.clone(),
        asked_for: grant.asked_for.clone().unwrap_or_default(),
        ended: None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::SignedDuration;

    use super::*;
    use crate::{fixtures::at, oauth::refusal::read_refusal};

    #[test]
    fn a_code_continues_the_sign_in_of_the_same_request_until_it_has_ended() {
        let authorization = DeviceAuthorization {
            device_code: "device code".into(),
            user_code: "ABCD".to_owned(),
            verification_uri: "https://idp.example/device".to_owned(),
            verification_uri_complete: None,
            expires_at: at(900),
            interval: SignedDuration::from_secs(5),
        };
        let requested_by = |request: &str| RefreshGrant {
            asked_by: request.into(),
            asked_for: Some("inputs".into()),
            ..RefreshGrant::default()
        };
        let first = sign_in(&authorization, &requested_by("request"), None, at(10));
        assert_eq!((first.began_at, first.shown_at, first.expires_at, first.interval), (at(10), at(10), at(900), 5));
        assert_eq!((first.asked_by.as_str(), first.asked_for.as_str()), ("request", "inputs"));
        let ended = SignIn { ended: Some("denied".to_owned()), ..first.clone() };
        for (before, request, began_at) in
            [(&first, "request", at(10)), (&first, "another", at(70)), (&ended, "request", at(70))]
        {
            let next = sign_in(&authorization, &requested_by(request), Some(before), at(70));
            assert_eq!((next.began_at, next.shown_at, next.ended), (began_at, at(70), None), "{request} {before:?}");
        }
    }

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
