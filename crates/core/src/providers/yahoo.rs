//! Yahoo Mail.
//!
//! Sources: the discovery document of api.login.yahoo.com, and Yahoo's "IMAP and SMTP access" and "Authorization Code
//! Flow for Server-side Apps" for developers; for the codes "OAuth 2.0 Errors"
//! (<https://developer.yahoo.com/oauth2/guide/errors/>) and "Troubleshooting"
//! (<https://developer.yahoo.com/oauth2/guide/openid_connect/troubleshooting.html>). A new refresh token replaces the
//! old refresh token. A password change ends the refresh token.

use super::{Profile, Redirect, RefusalContext, SignIn, TokenSource, general, is_throttled, servers};
use crate::{
    api::{Reason, grant::GrantType, provider::Servers},
    oauth::{Refusal, discovery::Endpoints},
};

pub(super) fn profile(given: &Servers) -> Profile {
    let source = TokenSource::Known(Endpoints {
        token_url: "https://api.login.yahoo.com/oauth2/get_token".to_owned(),
        device_authorization_url: None,
        revocation_url: Some("https://api.login.yahoo.com/oauth2/revoke".to_owned()),
        authorization_url: Some("https://api.login.yahoo.com/oauth2/request_auth".to_owned()),
    });
    let servers = servers(given, Some(["smtp.mail.yahoo.com", "imap.mail.yahoo.com", "pop.mail.yahoo.com"]));
    Profile {
        // A registered redirect URI must be https, and no server listens at such a URI on the user's machine.
        sign_in: SignIn { redirect: Redirect::OutOfBand("oob"), ..SignIn::default() },
        scopes: |_, _, _| vec!["mail-w".to_owned()],
        refine,
        ..Profile::new("yahoo", source, servers, &[GrantType::RefreshToken])
    }
}

/// Yahoo documents its codes in capitals; letter case does not count.
fn refine(refusal: &mut Refusal, context: &RefusalContext) {
    let outage = refusal.reason == Reason::ProviderUnavailable;
    general(refusal, context);
    if outage || is_throttled(refusal) || refusal.reason == Reason::ClockSkew {
        return;
    }
    let (reason, advice) = match refusal.error.as_ref().map(|error| error.as_str()) {
        Some("invalid_refresh_token" | "token_expired" | "invalid_grant" | "token_rejected") => {
            (Reason::InvalidGrant, TOKEN_ENDED)
        }
        Some("account_not_authorized" | "invalid_token" | "expired_token") => {
            (Reason::AuthorizationRequired, NOT_AUTHORIZED)
        }
        Some("underage_user") => (Reason::AuthorizationRequired, UNDERAGE),
        Some("invalid_client_secret") => (Reason::InvalidClient, SECRET),
        Some(
            "invalid_client"
            | "invalid_consumer_key"
            | "deleted_consumer_key"
            | "disabled_consumer_key"
            | "unauthorized_client",
        ) => (Reason::InvalidClient, CLIENT),
        Some("invalid_scope") => (Reason::InvalidScope, SCOPE),
        Some("error_handling_request" | "internal_error") => (Reason::ProviderUnavailable, ""),
        Some(
            "invalid_callback"
            | "invalid_callback_url"
            | "invalid_redirect_uri"
            | "unsupported_redirect_uri"
            | "bad_redirect_uri",
        ) => (Reason::RequestRefused, REDIRECT),
        Some(
            "unsupported_over_http"
            | "version_rejected"
            | "parameter_absent"
            | "parameter_rejected"
            | "invalid_request"
            | "invalid_input"
            | "invalid_param"
            | "unsupported_response_type"
            | "invalid_response_type"
            | "unsupported_grant_type"
            | "params_maxlength_exceeded"
            | "param_too_long",
        ) => (Reason::RequestRefused, REQUEST),
        _ => return,
    };
    refusal.understood(reason, (!advice.is_empty()).then_some(advice));
}

const TOKEN_ENDED: &str = "The refresh token has ended: the person changed the password or revoked the access, or \
                           another program used the token, which Yahoo replaces at each use. Sign in again with \
                           `{sign_in}`";
const NOT_AUTHORIZED: &str =
    "{mailbox} has not allowed the app, or has revoked that. Sign in with `{sign_in}` and accept";
const UNDERAGE: &str = "The account {mailbox} belongs to a minor, who must not allow an app. Use another account";
const SECRET: &str = "The client secret is wrong. Store the Client Secret of the app, from \
                      https://developer.yahoo.com/apps/, with `{put}`";
const CLIENT: &str = "Yahoo does not know the client, or has disabled it. Name the Client ID (Consumer Key) of an app \
                      on https://developer.yahoo.com/apps/ with `{merge} '{\"spec\":{\"client\":{\"id\":\"<client \
                      id>\"}}}'`";
const SCOPE: &str = "The app may not ask for mail. Yahoo grants the scope mail-w on request, see \
                     https://senders.yahooinc.com/developer/developer-access/";
const REDIRECT: &str = "The app is registered with another redirect URI: see it on https://developer.yahoo.com/apps/, \
                        and name it with `--redirect-uri`";
const REQUEST: &str = "Yahoo does not understand the request. Check that spec.client.parameters and spec.scopes contain \
                       nothing foreign with `{get} -o jsonpath='{.spec}'`. If they do not, report this code to the \
                       maintainers of the broker";

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::oauth::refusal::read_refusal;

    fn understood(status: u16, error: &str) -> Refusal {
        let body = serde_json::json!({"error": error, "error_description": "x"}).to_string();
        let mut refusal =
            read_refusal(&http::Response::builder().status(status).body(body).unwrap(), Timestamp::UNIX_EPOCH);
        refine(&mut refusal, &RefusalContext { grant: GrantType::RefreshToken, grant_age: None, assertion: false });
        refusal
    }

    #[test]
    fn every_published_code_has_its_reason_and_its_next_step() {
        for (status, code, reason, part) in [
            (400, "UNSUPPORTED_OVER_HTTP", Reason::RequestRefused, "{get}"),
            (400, "VERSION_REJECTED", Reason::RequestRefused, "{get}"),
            (400, "PARAMETER_ABSENT", Reason::RequestRefused, "{get}"),
            (400, "PARAMETER_REJECTED", Reason::RequestRefused, "{get}"),
            (400, "INVALID_CLIENT", Reason::InvalidClient, "{merge}"),
            (400, "INVALID_REQUEST", Reason::RequestRefused, "{get}"),
            (400, "UNSUPPORTED_RESPONSE_TYPE", Reason::RequestRefused, "{get}"),
            (400, "UNSUPPORTED_GRANT_TYPE", Reason::RequestRefused, "{get}"),
            (400, "INVALID_REDIRECT_URI", Reason::RequestRefused, "redirect URI"),
            (400, "UNSUPPORTED_REDIRECT_URI", Reason::RequestRefused, "redirect URI"),
            (400, "INVALID_PARAM", Reason::RequestRefused, "{get}"),
            (400, "INVALID_INPUT", Reason::RequestRefused, "{get}"),
            (400, "INVALID_REFRESH_TOKEN", Reason::InvalidGrant, "{sign_in}"),
            (401, "TOKEN_EXPIRED", Reason::InvalidGrant, "{sign_in}"),
            (401, "INVALID_CALLBACK", Reason::RequestRefused, "redirect URI"),
            (401, "UNDERAGE_USER", Reason::AuthorizationRequired, "minor"),
            (401, "INVALID_CLIENT_SECRET", Reason::InvalidClient, "{put}"),
            (401, "INVALID_GRANT", Reason::InvalidGrant, "{sign_in}"),
            (403, "ACCOUNT_NOT_AUTHORIZED", Reason::AuthorizationRequired, "{sign_in}"),
            (400, "DISABLED_CONSUMER_KEY", Reason::InvalidClient, "{merge}"),
            (400, "INVALID_SCOPE", Reason::InvalidScope, "mail-w"),
            (400, "ERROR_HANDLING_REQUEST", Reason::ProviderUnavailable, ""),
            (500, "INTERNAL_ERROR", Reason::ProviderUnavailable, ""),
            (500, "INVALID_PARAM", Reason::ProviderUnavailable, ""),
        ] {
            let refusal = understood(status, code);
            assert_eq!((refusal.reason, refusal.unknown_code), (reason, false), "{status} {code}");
            assert!(refusal.advice.unwrap_or_default().contains(part), "{code}: {:?}", refusal.advice);
            assert_eq!(refusal.advice.is_none(), part.is_empty(), "{code}");
        }
        assert!(understood(400, "SOMETHING_NEW").unknown_code);
    }
}
