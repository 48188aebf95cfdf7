//! Refusals as Microsoft Entra ID sends them.
//!
//! Sources: "Microsoft Entra authentication and authorization error codes" (identity platform documentation), and
//! published answers of the service for codes without a text on that page.

use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::{super::server::Response, guid, random};

/// Codes, their OAuth errors and their texts. `{}` is a placeholder for a value of the case.
const CODES: &[(u32, &str, &str)] = &[
    (
        28000,
        "invalid_request",
        "Provided value for the input parameter scope is not valid because it contains more than one resource. Scope {} \
         is not valid.",
    ),
    (
        50011,
        "invalid_request",
        "The redirect URI '{}' specified in the request does not match the redirect URIs configured for the application \
         '{}'.",
    ),
    (50013, "invalid_client", "Assertion failed signature validation. [Reason - {}]"),
    (50027, "invalid_request", "JWT token is invalid or malformed."),
    (
        50076,
        "interaction_required",
        "Due to a configuration change made by your administrator, or because you moved to a new location, you must use \
         multi-factor authentication to access '{}'.",
    ),
    (
        50173,
        "invalid_grant",
        "The provided grant has expired due to it being revoked, a fresh auth token is needed. The user might have \
         changed or reset their password. The grant was issued on '{}' and the TokensValidFrom date (before which \
         tokens are not valid) for this user is '{}'.",
    ),
    (
        50194,
        "invalid_request",
        "Application '{}'(mailer) is not configured as a multi-tenant application. Usage of the /common endpoint is not \
         supported for such apps created after '10/15/2018'. Use a tenant-specific endpoint or configure the \
         application to be multi-tenant.",
    ),
    (
        50196,
        "invalid_grant",
        "The server terminated an operation because it encountered a client request loop. Please contact your app vendor.",
    ),
    (
        53003,
        "invalid_grant",
        "Access has been blocked by Conditional Access policies. The access policy does not allow token issuance.",
    ),
    (
        54005,
        "invalid_grant",
        "OAuth2 Authorization code was already redeemed, please retry with a new valid code or use an existing refresh \
         token.",
    ),
    (
        65001,
        "invalid_grant",
        "The user or administrator has not consented to use the application with ID '{}' named 'mailer'. Send an \
         interactive authorization request for this user and resource.",
    ),
    (65004, "authorization_declined", "User declined to consent to access the app."),
    (70000, "invalid_grant", "The provided value for the input parameter '{}' is not valid."),
    (70003, "unsupported_grant_type", "The app requested an unsupported grant type '{}'."),
    (
        70011,
        "invalid_scope",
        "The provided request must include a 'scope' input parameter. The provided value for the input parameter \
         'scope' is not valid. The scope {} is not valid.",
    ),
    (70016, "authorization_pending", "OAuth 2.0 device flow error. Authorization is pending. Continue polling."),
    (70018, "bad_verification_code", "Invalid verification code."),
    (70019, "expired_token", "Verification code expired. Have the user retry the sign-in."),
    (
        70021,
        "invalid_request",
        "No matching federated identity record found for presented assertion. Assertion Issuer: '{}'. Assertion \
         Subject: '{}'. Assertion Audience: '{}'.",
    ),
    (70025, "invalid_client", "The client '{}'(mailer) has no configured federated identity credentials."),
    (
        70043,
        "invalid_grant",
        "The refresh token has expired or is invalid due to sign-in frequency checks by conditional access. The token \
         was issued on {} and the maximum allowed lifetime for this request is {}.",
    ),
    (90002, "invalid_request", TENANT_NOT_FOUND),
    (
        90014,
        "invalid_request",
        "The required field '{}' is missing from the credential. Ensure that you have all the necessary parameters for \
         the login request.",
    ),
    (90055, "temporarily_unavailable", "There are too many incoming requests."),
    (90120, "invalid_request", "The request was already authorized or declined."),
    (500011, "invalid_resource", RESOURCE_NOT_FOUND),
    (
        500112,
        "invalid_grant",
        "The reply address '{}' does not match the reply address provided when requesting Authorization code.",
    ),
    (
        501481,
        "invalid_grant",
        "The Code_Verifier does not match the code_challenge supplied in the authorization request.",
    ),
    (700016, "unauthorized_client", APPLICATION_NOT_FOUND),
    (
        700021,
        "invalid_client",
        "Client assertion application identifier doesn't match 'client_id' parameter. Review the documentation at \
         https://learn.microsoft.com/entra/identity-platform/certificate-credentials .",
    ),
    (
        700022,
        "invalid_request",
        "Provided value for the input parameter scope is not valid because it contains more than one resource. Scope {} \
         is not valid.",
    ),
    (
        700023,
        "invalid_client",
        "Client assertion audience claim does not match Realm issuer. Review the documentation at \
         https://learn.microsoft.com/entra/identity-platform/certificate-credentials .",
    ),
    (
        700024,
        "invalid_client",
        "Client assertion is not within its valid time range. Current time: {}, assertion valid from {}, expiry time of \
         assertion {}. Review the documentation at \
         https://learn.microsoft.com/entra/identity-platform/certificate-credentials .",
    ),
    (
        700025,
        "invalid_client",
        "Client is public so neither 'client_assertion' nor 'client_secret' should be presented.",
    ),
    (
        700027,
        "invalid_client",
        "Client assertion contains an invalid signature. [Reason - {}, Thumbprint of key used by client: '{}']",
    ),
    (
        700082,
        "invalid_grant",
        "The refresh token has expired due to inactivity. The token was issued on {} and was inactive for {}.",
    ),
    (700211, "invalid_client", NO_ISSUER),
    (700212, "invalid_client", NO_AUDIENCE),
    (700213, "invalid_client", NO_SUBJECT),
    (900144, "invalid_request", "The request body must contain the following parameter: '{}'."),
    (
        1002012,
        "invalid_scope",
        "The provided value for scope {} is not valid. Client credential flows must have a scope value with /.default \
         suffixed to the resource identifier (application ID URI).",
    ),
    (
        7000215,
        "invalid_client",
        "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the \
         client secret ID, for a secret added to app '{}'.",
    ),
    (
        7000218,
        "invalid_client",
        "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.",
    ),
    (
        7000222,
        "invalid_client",
        "The provided client secret keys for app '{}' are expired. Visit the Azure portal to create new keys for your \
         app: https://aka.ms/NewClientSecret, or consider using certificate credentials for added security: \
         https://aka.ms/certCreds.",
    ),
    (
        9001023,
        "invalid_request",
        "The grant type is not supported over the /common or /consumers endpoints. Please use the /organizations or \
         tenant-specific endpoint.",
    ),
];

const TENANT_NOT_FOUND: &str = "Tenant '{}' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud. \
     Check with your subscription administrator, this may happen if there are no active subscriptions for the tenant.";
const RESOURCE_NOT_FOUND: &str = "The resource principal named {} was not found in the tenant named {}. This can happen if the application has not \
     been installed by the administrator of the tenant or consented to by any user in the tenant. You might have sent \
     your authentication request to the wrong tenant.";
const APPLICATION_NOT_FOUND: &str = "Application with identifier '{}' was not found in the directory '{}'. This can happen if the application has not \
     been installed by the administrator of the tenant or consented to by any user in the tenant. You may have sent \
     your authentication request to the wrong tenant.";
const NO_ISSUER: &str = "No matching federated identity record found for presented assertion issuer '{}'. Check your federated identity \
     credential Subject, Audience and Issuer against the presented assertion. \
     https://learn.microsoft.com/entra/workload-id/workload-identity-federation";
const NO_AUDIENCE: &str = "No matching federated identity record found for presented assertion audience '{}'. Check your federated identity \
     credential Subject, Audience and Issuer against the presented assertion. \
     https://learn.microsoft.com/entra/workload-id/workload-identity-federation";
const NO_SUBJECT: &str = "No matching federated identity record found for presented assertion subject '{}'. Check your federated identity \
     credential Subject, Audience and Issuer against the presented assertion. \
     https://learn.microsoft.com/entra/workload-id/workload-identity-federation";

/// A refusal with an AADSTS code.
#[derive(Clone, Debug)]
pub struct Refusal {
    code: u32,
    error: &'static str,
    text: String,
}

impl Refusal {
    /// Creates the refusal with a code of [`CODES`]. `said` fills the placeholders; `x` replaces missing values.
    pub fn new(code: u32, said: &[&str]) -> Self {
        let known = CODES.iter().find(|(known, ..)| *known == code);
        let (_, error, text) = known.unwrap_or_else(|| panic!("AADSTS{code} is not in the table of {}", file!()));
        let text = said.iter().fold((*text).to_owned(), |text, said| text.replacen("{}", said, 1)).replace("{}", "x");
        Self { code, error, text }
    }

    /// Returns the HTTP response: 401 for `invalid_client`, otherwise 400.
    pub fn response(&self, host: &str, now: i64) -> Response {
        let status = if self.error == "invalid_client" { 401 } else { 400 };
        self.response_with(status, host, now)
    }

    /// Returns the HTTP response with another status.
    pub fn response_with(&self, status: u16, host: &str, now: i64) -> Response {
        let Self { code, error, text } = self;
        let (trace, correlation) = (guid(&random(9)), guid(&random(9)));
        let timestamp = time(now);
        let description = format!(
            "AADSTS{code}: {text}\r\nTrace ID: {trace}\r\nCorrelation ID: {correlation}\r\nTimestamp: {timestamp}"
        );
        let body = json!({
            "error": error, "error_description": description, "error_codes": [code], "timestamp": timestamp,
            "trace_id": trace, "correlation_id": correlation, "error_uri": format!("https://{host}/error?code={code}"),
        });
        Response::json(status, &body).header("x-ms-request-id", &trace)
    }

    /// Returns the OAuth error.
    pub fn error(&self) -> &'static str {
        self.error
    }

    /// Returns a page with the code and its text.
    pub fn page(&self) -> Response {
        Response::text(400, &format!("AADSTS{}: {}\n", self.code, self.text))
    }
}

/// Formats a time as `2016-01-09 02:02:12Z`.
pub fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds).unwrap().strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}
