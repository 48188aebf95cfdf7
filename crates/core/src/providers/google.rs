//! Google Workspace and Gmail.
//!
//! Sources: "IMAP, POP, and SMTP" and "OAuth 2.0 Mechanism" for the scopes
//! (<https://developers.google.com/workspace/gmail/imap/xoauth2-protocol>); "Refresh token expiration"
//! (<https://developers.google.com/identity/protocols/oauth2#expiration>).
//!
//! The codes:
//! - of the grant `jwtBearer`: "JWT error codes"
//!   (<https://developers.google.com/identity/protocols/oauth2/service-account#error-codes>): `unauthorized_client`,
//!   `access_denied`, `admin_policy_enforced`, `invalid_client`, `invalid_grant`, `invalid_scope`, `disabled_client`,
//!   `org_internal`;
//! - of a sign-in and of a refresh: "Errors" (<https://developers.google.com/identity/protocols/oauth2/native-app>):
//!   `admin_policy_enforced`, `disallowed_useragent`, `org_internal`, `deleted_client`, `invalid_grant`,
//!   `redirect_uri_mismatch`, `invalid_request`; the page for web apps in a browser adds `origin_mismatch`, and
//!   `disabled_client` is also reported for OAuth clients;
//! - `invalid_rapt` and `rapt_required` (`error_subtype`): `google/oauth2/reauth.py` of google-auth-library-python;
//! - `rate_limit_exceeded`: "OAuth Application Rate Limits" (<https://support.google.com/cloud/answer/9028764>);
//!   `resource_exhausted`: google.rpc.Code.

use k8s_openapi::jiff::SignedDuration;

use super::{
    Profile, RefusalContext, SignIn, TokenSource,
    account::{self, Accounts},
    general, is_throttled, keyless, servers,
};
use crate::{
    api::{
        Reason,
        authentication::ClientAuthentication,
        grant::GrantType,
        provider::{ProviderSpec, Servers},
    },
    oauth::{Refusal, discovery::Endpoints},
};

/// The only scope for SMTP, IMAP and POP3.
const MAIL: &str = "https://mail.google.com/";
/// The scope for IMAP only, for service accounts with domain-wide delegation.
const IMAP_ADMIN: &str = "https://www.googleapis.com/auth/gmail.imap_admin";
/// Lifetime of an unused refresh token: six months.
const IDLE_LIFE: SignedDuration = SignedDuration::from_hours(180 * 24);
/// Lifetime of refresh tokens for an app in the publishing status "Testing": seven days. Renewals are at most an hour
/// apart, so the refusal follows soon after the end.
const TESTING: [SignedDuration; 2] = [SignedDuration::from_hours(6 * 24 + 12), SignedDuration::from_hours(7 * 24 + 12)];

pub(super) fn profile(given: &Servers) -> Profile {
    let source = TokenSource::Known(Endpoints {
        token_url: "https://oauth2.googleapis.com/token".to_owned(),
        // Google's device flow has no scope for mail.
        device_authorization_url: None,
        revocation_url: Some("https://oauth2.googleapis.com/revoke".to_owned()),
        authorization_url: Some("https://accounts.google.com/o/oauth2/v2/auth".to_owned()),
    });
    let servers = servers(given, Some(["smtp.gmail.com", "imap.gmail.com", "pop.gmail.com"]));
    Profile {
        // Without these parameters, Google returns a refresh token only at the first consent.
        sign_in: SignIn {
            scopes: &["openid", "email"],
            parameters: &[("access_type", "offline"), ("prompt", "consent")],
            issuer: Some("https://accounts.google.com"),
            ..SignIn::default()
        },
        accounts: Accounts { canonical: account::google, ..Accounts::default() },
        scopes: |_, _, _| vec![MAIL.to_owned()],
        unsupported,
        refine,
        idle_life: Some(IDLE_LIFE),
        keeps_replaced_tokens: true,
        ..Profile::new("google", source, servers, &[GrantType::RefreshToken, GrantType::JwtBearer])
    }
}

fn unsupported(spec: &ProviderSpec, grant: GrantType, scopes: &[String]) -> Option<String> {
    let entries = &spec.client.authentication;
    let has = |way: fn(&ClientAuthentication) -> bool| entries.iter().any(way);
    let missing = match grant {
        GrantType::JwtBearer
            if !has(|entry| entry.service_account_key.is_some() || entry.service_account_token.is_some()) =>
        {
            Some(
                "the grant jwtBearer needs a service account that signs: add its key file as serviceAccountKey to \
                 spec.client.authentication of the provider, or, without a key, set google.serviceAccount and add a \
                 serviceAccountToken there",
            )
        }
        GrantType::RefreshToken if !entries.is_empty() && !has(|entry| entry.client_secret.is_some()) => Some(
            "the grant refreshToken needs an OAuth client, and a service account is not one: name the client in \
             spec.client.id of the provider, and add its clientSecret to spec.client.authentication",
        ),
        _ => None,
    };
    if let Some(missing) = missing {
        return Some(missing.to_owned());
    }
    let audiences = entries.iter().filter_map(|entry| Some(&entry.service_account_token.as_ref()?.audience));
    if let Some(other) = audiences.into_iter().find(|audience| !audience.starts_with(keyless::AUDIENCE_PREFIX)) {
        return Some(format!(
            "the audience {other} of serviceAccountToken is not that of a workload identity provider: it must be \
             {}<number>/locations/global/workloadIdentityPools/<pool>/providers/<provider>",
            keyless::AUDIENCE_PREFIX
        ));
    }
    (!scopes.iter().any(|scope| [MAIL, IMAP_ADMIN].contains(&scope.as_str()))).then(|| {
        format!("Google accepts only the scope {MAIL} for SMTP, IMAP and POP3: leave scopes empty, or set that scope")
    })
}

/// Refines a refusal by the grant, because Google has few codes.
fn refine(refusal: &mut Refusal, context: &RefusalContext) {
    if is_throttled(refusal) {
        return;
    }
    let outage = refusal.reason == Reason::ProviderUnavailable;
    general(refusal, context);
    if outage || refusal.reason == Reason::ClockSkew {
        return;
    }
    let error = refusal.error.as_ref().map(|error| error.as_str());
    let is_testing = context.grant_age.is_some_and(|age| TESTING[0] <= age && age <= TESTING[1]);
    let meaning = match (error, refusal.provider_code.as_deref(), context.grant) {
        (Some("unauthorized_client" | "access_denied"), _, GrantType::JwtBearer) => {
            (Reason::ConsentRequired, NOT_DELEGATED)
        }
        (Some("invalid_scope"), _, GrantType::JwtBearer) => (Reason::InvalidScope, WRONG_SCOPE),
        (Some("invalid_grant"), _, GrantType::JwtBearer) => (Reason::InvalidGrant, JWT_REFUSED),
        (Some("invalid_grant"), Some("invalid_rapt" | "rapt_required"), _) => {
            (Reason::AuthorizationRequired, SESSION_CONTROL)
        }
        (Some("invalid_grant"), _, GrantType::RefreshToken) if is_testing => (Reason::InvalidGrant, IN_TESTING),
        (Some("invalid_grant"), _, GrantType::RefreshToken) => (Reason::InvalidGrant, TOKEN_ENDED),
        (Some("admin_policy_enforced"), ..) => (Reason::ConsentRequired, BLOCKED_BY_ADMIN),
        (Some("org_internal"), _, GrantType::JwtBearer) => (Reason::ConsentRequired, FOREIGN_ACCOUNT),
        (Some("org_internal"), ..) => (Reason::ConsentRequired, INTERNAL),
        (Some("deleted_client" | "disabled_client" | "invalid_client"), _, GrantType::JwtBearer) => {
            (Reason::InvalidClient, KEY_DISABLED)
        }
        (Some("deleted_client" | "disabled_client"), ..) => (Reason::InvalidClient, CLIENT_GONE),
        (Some("redirect_uri_mismatch" | "origin_mismatch" | "disallowed_useragent"), ..) => {
            (Reason::RequestRefused, REDIRECT)
        }
        // Limits of the whole Google Cloud project, which end within minutes.
        (Some("rate_limit_exceeded" | "quota_exceeded" | "resource_exhausted"), ..) => {
            return refusal.understood(Reason::Throttled, None);
        }
        _ => return,
    };
    let (reason, advice) = meaning;
    refusal.understood(reason, Some(advice));
}

const NOT_DELEGATED: &str = "The service account may not act for mailboxes yet. On \
                             https://admin.google.com/ac/owl/domainwidedelegation a super administrator adds the number \
                             `client_id` of the key file (not its address) as Client ID, with the scope \
                             https://mail.google.com/ (or those in spec.scopes, to the letter). The delegation takes \
                             some minutes, and a day at most";
const JWT_REFUSED: &str = "Google does not accept the JWT for {mailbox}. The mailbox must be a primary address of the \
                           Workspace, not an alias or a group, and not suspended (https://admin.google.com/ac/users). \
                           The service account and its key must exist and be enabled \
                           (https://console.cloud.google.com/iam-admin/serviceaccounts). `{put_file}` stores a new key \
                           file";
const SESSION_CONTROL: &str = "The session control of the Workspace requires the person to sign in again at intervals. \
                               Mark the app as trusted, which exempts it, on \
                               https://admin.google.com/ac/security/reauth/admin-tools, then sign in with `{sign_in}`";
const IN_TESTING: &str = "The sign-in was seven days ago, which is how long it lasts for an app in Testing. Publish the \
                          app, or make it Internal, on https://console.cloud.google.com/auth/audience, then sign in \
                          with `{sign_in}`. A service account with jwtBearer needs no sign-in";
const TOKEN_ENDED: &str = "The refresh token has ended: the person or an administrator revoked it, the password \
                           changed, it was not used for six months, or the account has more than 100 sign-ins with this \
                           client, of which the oldest end. Sign in again with `{sign_in}`";
const BLOCKED_BY_ADMIN: &str = "A policy of the Workspace blocks the app. An administrator trusts it, by its Client ID \
                                {client}, on https://admin.google.com/ac/owl/list?tab=configuredApps";
const WRONG_SCOPE: &str = "Google does not know the scope, or none was asked for. Leave spec.scopes of the credential \
                           and of the provider empty, which asks for https://mail.google.com/";
const INTERNAL: &str = "The app is Internal, and the account {mailbox} is not in its organisation. Sign in as an \
                        account of the organisation with `{sign_in}`, or make the app External on \
                        https://console.cloud.google.com/auth/audience";
const REDIRECT: &str = "The OAuth client does not allow this way to sign in. It must be of the type Desktop app, see \
                        https://console.cloud.google.com/auth/clients; then run `{sign_in}`";
const FOREIGN_ACCOUNT: &str = "The Google Cloud project of the service account is limited to the accounts of its own \
                               organisation. Use a service account of a project in the organisation of {mailbox}";
const KEY_DISABLED: &str = "The service account, or the key that signs, is disabled or deleted. Enable it on \
                            https://console.cloud.google.com/iam-admin/serviceaccounts, or store a new key file with \
                            `{put_file}`";
const CLIENT_GONE: &str = "The OAuth client was deleted or disabled. See https://console.cloud.google.com/auth/clients, \
                           where a deleted client can be restored for 30 days, or name another with `{merge} \
                           '{\"spec\":{\"client\":{\"id\":\"<client id>\"}}}'`";

#[cfg(test)]
mod tests {
    use GrantType::{JwtBearer, RefreshToken};
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::oauth::refusal::read_refusal;

    fn understood(body: &serde_json::Value, grant: GrantType, hours: i64) -> Refusal {
        let response = http::Response::builder().status(400).body(body.to_string()).unwrap();
        let mut refusal = read_refusal(&response, Timestamp::UNIX_EPOCH);
        let grant_age = Some(SignedDuration::from_hours(hours));
        refine(&mut refusal, &RefusalContext { grant, grant_age, assertion: grant == JwtBearer });
        refusal
    }

    #[test]
    fn each_error_has_its_reason_and_its_next_step() {
        let invalid_jwt = "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe.";
        for (body, grant, reason, part) in [
            (json!({"error": "unauthorized_client"}), JwtBearer, Reason::ConsentRequired, "domainwidedelegation"),
            (json!({"error": "unauthorized_client"}), RefreshToken, Reason::InvalidClient, ""),
            (json!({"error": "invalid_grant"}), JwtBearer, Reason::InvalidGrant, "{mailbox}"),
            (json!({"error": "invalid_grant", "error_description": invalid_jwt}), JwtBearer, Reason::ClockSkew, ""),
            (
                json!({"error": "invalid_grant", "error_subtype": "invalid_rapt"}),
                RefreshToken,
                Reason::AuthorizationRequired,
                "session control",
            ),
            (
                json!({"error": "invalid_grant", "error_subtype": "rapt_required"}),
                RefreshToken,
                Reason::AuthorizationRequired,
                "session control",
            ),
            (json!({"error": "invalid_grant"}), RefreshToken, Reason::InvalidGrant, "100 sign-ins"),
            (json!({"error": "admin_policy_enforced"}), RefreshToken, Reason::ConsentRequired, "{client}"),
            (json!({"error": "deleted_client"}), RefreshToken, Reason::InvalidClient, "{merge}"),
            (json!({"error": "invalid_client"}), RefreshToken, Reason::InvalidClient, ""),
            (json!({"error": "server_error"}), JwtBearer, Reason::ProviderUnavailable, ""),
            (json!({"error": "access_denied"}), JwtBearer, Reason::ConsentRequired, "domainwidedelegation"),
            (json!({"error": "access_denied"}), RefreshToken, Reason::AuthorizationRequired, ""),
            (json!({"error": "invalid_scope"}), JwtBearer, Reason::InvalidScope, "mail.google.com"),
            (json!({"error": "org_internal"}), RefreshToken, Reason::ConsentRequired, "External"),
            (json!({"error": "disabled_client"}), RefreshToken, Reason::InvalidClient, "{merge}"),
            (json!({"error": "disabled_client"}), JwtBearer, Reason::InvalidClient, "{put_file}"),
            (json!({"error": "invalid_client"}), JwtBearer, Reason::InvalidClient, "{put_file}"),
            (json!({"error": "org_internal"}), JwtBearer, Reason::ConsentRequired, "organisation of {mailbox}"),
            (json!({"error": "admin_policy_enforced"}), JwtBearer, Reason::ConsentRequired, "{client}"),
            (json!({"error": "redirect_uri_mismatch"}), RefreshToken, Reason::RequestRefused, "Desktop app"),
            (json!({"error_code": "rate_limit_exceeded"}), RefreshToken, Reason::Throttled, ""),
            (json!({"error": "internal_failure"}), JwtBearer, Reason::ProviderUnavailable, ""),
        ] {
            let refusal = understood(&body, grant, 1000);
            assert_eq!(refusal.reason, reason, "{body} {grant:?}");
            match refusal.advice {
                Some(advice) => assert!(!part.is_empty() && advice.contains(part), "{body}: {advice}"),
                None => assert_eq!(part, "", "{body}"),
            }
        }
    }

    #[test]
    fn a_refresh_token_that_ends_after_a_week_is_that_of_an_app_in_testing() {
        let body = json!({"error": "invalid_grant"});
        for (hours, testing) in [(6 * 24, false), (156, true), (7 * 24 + 1, true), (180, true), (181, false)] {
            let advice = understood(&body, RefreshToken, hours).advice.unwrap();
            assert_eq!(advice == IN_TESTING, testing, "{hours} h");
        }
        assert_eq!(understood(&body, JwtBearer, 7 * 24).advice, Some(JWT_REFUSED));
    }
}
