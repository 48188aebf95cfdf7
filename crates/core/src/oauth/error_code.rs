//! OAuth error codes and their meanings.

use crate::api::Reason;

/// An OAuth error code in lower case: a known code, or a plain word in which no secret can hide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OAuthError(String);

/// A code with its meaning.
struct Known {
    code: &'static str,
    reason: Reason,
    /// Whether the code is from RFC 6749, 6750, 8628 or 8693. Only an authorization server returns these codes.
    standard: bool,
}

const fn standard(code: &'static str, reason: Reason) -> Known {
    Known { code, reason, standard: true }
}

const fn other(code: &'static str, reason: Reason) -> Known {
    Known { code, reason, standard: false }
}

const KNOWN: &[Known] = &[
    // RFC 6749 sections 4.1.2.1 and 5.2.
    standard("invalid_request", Reason::RequestRefused),
    standard("invalid_client", Reason::InvalidClient),
    standard("invalid_grant", Reason::InvalidGrant),
    standard("unauthorized_client", Reason::InvalidClient),
    standard("unsupported_grant_type", Reason::RequestRefused),
    standard("unsupported_response_type", Reason::RequestRefused),
    standard("invalid_scope", Reason::InvalidScope),
    standard("access_denied", Reason::AuthorizationRequired),
    standard("server_error", Reason::ProviderUnavailable),
    standard("temporarily_unavailable", Reason::ProviderUnavailable),
    // RFC 6750 section 3.1. Cloud Foundry's UAA returns `invalid_token` for a refresh token.
    standard("invalid_token", Reason::InvalidGrant),
    standard("insufficient_scope", Reason::InvalidScope),
    // RFC 8628 section 3.5.
    standard("authorization_pending", Reason::AuthorizationRequired),
    standard("slow_down", Reason::Throttled),
    standard("expired_token", Reason::AuthorizationRequired),
    // RFC 8693 section 2.2.2, RFC 8707 section 2.
    standard("invalid_target", Reason::InvalidScope),
    // OpenID Connect Core section 3.1.2.6, RFC 9470 section 3.
    other("interaction_required", Reason::AuthorizationRequired),
    other("login_required", Reason::AuthorizationRequired),
    other("account_selection_required", Reason::AuthorizationRequired),
    other("insufficient_user_authentication", Reason::AuthorizationRequired),
    other("consent_required", Reason::ConsentRequired),
    // RFC 9449 section 5, RFC 7009 section 2.2.1.
    other("invalid_dpop_proof", Reason::RequestRefused),
    other("use_dpop_nonce", Reason::RequestRefused),
    other("unsupported_token_type", Reason::RequestRefused),
    // Microsoft's names for access_denied, for a device code of another tenant, and for a scope of an unknown resource.
    other("authorization_declined", Reason::AuthorizationRequired),
    other("bad_verification_code", Reason::AuthorizationRequired),
    other("invalid_resource", Reason::InvalidScope),
    // A web framework's names of the status 401, and servers' codes for a client that the server rejects.
    other("unauthorized", Reason::InvalidClient),
    other("unauthenticated", Reason::InvalidClient),
    other("invalid_client_id", Reason::InvalidClient),
    other("invalid_client_secret", Reason::InvalidClient),
    other("invalid_client_credentials", Reason::InvalidClient),
    other("incorrect_client_credentials", Reason::InvalidClient),
    // The code of Google's other services (google.rpc.Code).
    other("permission_denied", Reason::ConsentRequired),
    // Servers' codes for a refresh token that the server rejects.
    other("invalid_refresh_token", Reason::InvalidGrant),
    other("bad_refresh_token", Reason::InvalidGrant),
    other("expired_refresh_token", Reason::InvalidGrant),
    other("refresh_token_expired", Reason::InvalidGrant),
    other("refresh_token_revoked", Reason::InvalidGrant),
    other("token_expired", Reason::InvalidGrant),
    other("token_revoked", Reason::InvalidGrant),
    other("invalid_code", Reason::InvalidGrant),
    // Codes for an outage, with any HTTP status.
    other("internal_server_error", Reason::ProviderUnavailable),
    other("internal_error", Reason::ProviderUnavailable),
    other("internal_failure", Reason::ProviderUnavailable),
    other("backend_error", Reason::ProviderUnavailable),
    other("service_unavailable", Reason::ProviderUnavailable),
    other("bad_gateway", Reason::ProviderUnavailable),
    other("gateway_timeout", Reason::ProviderUnavailable),
];

impl OAuthError {
    /// Maximum length of a shown code. The longest registered code has 36 characters.
    const MAX: usize = 40;

    /// Parses a code. Ignores letter case and separators of a known code. Accepts an unknown code only if it consists
    /// of letters of one case and underscores: letters of both cases may be a secret.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() || text.len() > Self::MAX {
            return None;
        }
        if let Some(known) = KNOWN.iter().find(|known| words(known.code).eq(words(text))) {
            return Some(Self(known.code.to_owned()));
        }
        let plain = text.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        let mixed =
            text.bytes().any(|byte| byte.is_ascii_lowercase()) && text.bytes().any(|byte| byte.is_ascii_uppercase());
        (plain && !mixed).then(|| Self(text.to_ascii_lowercase()))
    }

    /// The code as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the code is from RFC 6749, 6750, 8628 or 8693, which only an authorization server returns.
    pub fn is_standard(&self) -> bool {
        self.known().is_some_and(|known| known.standard)
    }

    /// Whether the meaning of the code is known.
    pub(super) fn is_known(&self) -> bool {
        self.known().is_some()
    }

    /// The meaning of the code without knowledge of the provider.
    pub(super) fn reason(&self) -> Reason {
        self.known().map_or(Reason::RequestRefused, |known| known.reason)
    }

    fn known(&self) -> Option<&'static Known> {
        KNOWN.iter().find(|known| known.code == self.0)
    }
}

/// The letters of a code, without separators.
fn words(code: &str) -> impl Iterator<Item = char> {
    code.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).map(|c| c.to_ascii_lowercase())
}
