//! Obtains a Google service account's signature without the account's key. Google's Security Token Service exchanges a
//! Kubernetes ServiceAccount's token. With the returned token, the IAM Credentials API signs the JWT of the grant
//! `jwtBearer`.
//!
//! Sources: "Workload Identity Federation with other identity providers" and "Method: v1.token" (Security Token Service),
//! "Method: projects.serviceAccounts.signJwt" (IAM Service Account Credentials API), "Errors" (Google API design guide,
//! AIP-193), RFC 8693.

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use k8s_openapi::jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::json;
use url::form_urlencoded::Serializer;
use zeroize::Zeroizing;

use crate::{
    api::Reason,
    oauth::{
        Impersonation, Refusal,
        assertion::{AssertionParams, delegation_claims},
        refusal::read_refusal,
        token_request::RequestError,
    },
};

/// Host of the Security Token Service.
pub const STS_HOST: &str = "sts.googleapis.com";
/// Host of the IAM Service Account Credentials API.
pub const CREDENTIALS_HOST: &str = "iamcredentials.googleapis.com";
/// Beginning of the audience of every workload identity provider.
pub const AUDIENCE_PREFIX: &str = "//iam.googleapis.com/projects/";
/// The only scope with which the IAM Credentials API signs.
const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";
/// Maximum size of a token or JWT in bytes (the limit of access tokens).
const TOKEN_MAX: usize = 32 * 1024;
/// Maximum length of a shown code of an API error.
const CODE_MAX: usize = 48;

/// Builds the first request: the exchange of the ServiceAccount's token for Google's token (RFC 8693 section 2.1).
///
/// # Errors
/// The fixed URL causes no error. The type of the error is the same as for other requests.
pub fn exchange_request(account: &Impersonation) -> Result<Request<Vec<u8>>, RequestError> {
    let mut form = Serializer::new(String::new());
    form.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
        .append_pair("audience", &account.audience)
        .append_pair("scope", CLOUD_PLATFORM)
        .append_pair("requested_token_type", "urn:ietf:params:oauth:token-type:access_token")
        .append_pair("subject_token_type", "urn:ietf:params:oauth:token-type:jwt")
        .append_pair("subject_token", account.token.expose_secret());
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("https://{STS_HOST}/v1/token"))
        .header(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))
        .header(header::ACCEPT, HeaderValue::from_static("application/json"))
        .body(form.finish().into_bytes())?;
    Ok(request)
}

/// Reads Google's token in the response to the first request, which the broker sent at `sent_at`.
///
/// # Errors
/// Google's refusal, with the fix.
pub fn read_exchanged(response: &Response<impl AsRef<[u8]>>, sent_at: Timestamp) -> Result<SecretString, Refusal> {
    #[derive(Deserialize)]
    struct Wire {
        access_token: SecretString,
    }
    if !response.status().is_success() {
        return Err(exchange_refused(response, sent_at));
    }
    let wire: Option<Wire> = serde_json::from_slice(response.body().as_ref()).ok();
    usable(wire.map(|wire| wire.access_token), STS_HOST, "access_token", response.status())
}

/// Builds the second request: the signature of a JWT about `subject`. `bearer` is Google's token.
///
/// # Errors
/// If the account's address or the token is not valid in a request.
pub fn sign_request(
    account: &Impersonation,
    bearer: &SecretString,
    subject: &str,
    scopes: &[String],
    params: AssertionParams<'_>,
) -> Result<Request<Vec<u8>>, RequestError> {
    let payload = delegation_claims(&account.account, subject, params, scopes).to_string();
    let authorization = Zeroizing::new(format!("Bearer {}", bearer.expose_secret()));
    let mut authorization = HeaderValue::from_str(&authorization).map_err(http::Error::from)?;
    authorization.set_sensitive(true);
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("https://{CREDENTIALS_HOST}/v1/projects/-/serviceAccounts/{}:signJwt", account.account))
        .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header(header::ACCEPT, HeaderValue::from_static("application/json"))
        .header(header::AUTHORIZATION, authorization)
        .body(json!({"payload": payload}).to_string().into_bytes())?;
    Ok(request)
}

/// Reads the signed JWT in the response to the second request, which the broker sent at `sent_at`.
///
/// # Errors
/// Google's refusal, with the fix.
pub fn read_signed(response: &Response<impl AsRef<[u8]>>, sent_at: Timestamp) -> Result<SecretString, Refusal> {
    #[derive(Deserialize)]
    struct Wire {
        #[serde(rename = "signedJwt")]
        signed_jwt: SecretString,
    }
    if !response.status().is_success() {
        return Err(signature_refused(response, sent_at));
    }
    let wire: Option<Wire> = serde_json::from_slice(response.body().as_ref()).ok();
    usable(wire.map(|wire| wire.signed_jwt), CREDENTIALS_HOST, "signedJwt", response.status())
}

/// Refines a refusal of the third request, by the token endpoint. The advice for key files does not apply here.
pub fn refine_token(refusal: &mut Refusal) {
    let code = refusal.error.as_ref().map(|error| error.as_str().to_owned());
    refusal.advice = match (code.as_deref(), refusal.reason) {
        (Some("unauthorized_client" | "access_denied"), Reason::ConsentRequired) => Some(NOT_DELEGATED),
        (Some("invalid_grant"), Reason::InvalidGrant) => Some(JWT_REFUSED),
        (Some("disabled_client" | "deleted_client" | "invalid_client"), Reason::InvalidClient) => Some(NO_ACCOUNT),
        _ => refusal.advice,
    };
}

/// Returns a value of a response if the next request can contain it.
fn usable(found: Option<SecretString>, host: &str, member: &str, status: StatusCode) -> Result<SecretString, Refusal> {
    let fits = |text: &SecretString| {
        let text = text.expose_secret();
        !text.is_empty() && text.len() <= TOKEN_MAX && text.bytes().all(|byte| (0x21..=0x7e).contains(&byte))
    };
    found.filter(fits).ok_or_else(|| {
        let what = format!("the response of {host} holds no {member} that can be used (HTTP {})", status.as_u16());
        let mut refusal = Refusal::new(Reason::MalformedResponse, what);
        refusal.http_status = Some(status.as_u16());
        refusal
    })
}

/// The status and the reason in an error of Google's APIs, if they have the form of Google's codes.
fn api_error(response: &Response<impl AsRef<[u8]>>) -> Option<(String, Option<String>)> {
    #[derive(Deserialize)]
    struct Body {
        error: Error,
    }
    #[derive(Deserialize)]
    struct Error {
        status: Option<String>,
        #[serde(default)]
        details: Vec<Detail>,
    }
    #[derive(Deserialize)]
    struct Detail {
        reason: Option<String>,
    }
    let code = |text: &String| {
        let plain = text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
        plain && !text.is_empty() && text.len() <= CODE_MAX
    };
    let Body { error } = serde_json::from_slice(response.body().as_ref()).ok()?;
    let reason = error.details.into_iter().find_map(|detail| detail.reason).filter(code);
    Some((error.status.filter(code)?, reason))
}

fn exchange_refused(response: &Response<impl AsRef<[u8]>>, sent_at: Timestamp) -> Refusal {
    let mut refusal = read_refusal(response, sent_at);
    if let Some((status, reason)) = api_error(response) {
        return api_refused(refusal, STS_HOST, &status, reason.as_deref());
    }
    let http = refusal.http_status.unwrap_or_default();
    let Some(error) = refusal.error.as_ref().map(|error| error.as_str().to_owned()) else {
        refusal.what = format!("{STS_HOST} answered HTTP {http} without an OAuth error");
        return refusal;
    };
    refusal.what = format!("{STS_HOST} answered {error} (HTTP {http})");
    if http == 429 || refusal.reason == Reason::ProviderUnavailable {
        return refusal;
    }
    let untimely = refusal.untimely || refusal.skew.is_some();
    let (reason, advice) = match error.as_str() {
        "invalid_target" | "invalid_request" => (Reason::FederationMismatch, NO_POOL),
        "unauthorized_client" | "access_denied" => (Reason::FederationMismatch, CONDITION),
        "invalid_grant" if untimely => (Reason::ClockSkew, CLOCK),
        "invalid_grant" => (Reason::FederationMismatch, NOT_TRUSTED),
        _ => return refusal,
    };
    (refusal.reason, refusal.advice) = (reason, Some(advice));
    refusal
}

fn signature_refused(response: &Response<impl AsRef<[u8]>>, sent_at: Timestamp) -> Refusal {
    let mut refusal = read_refusal(response, sent_at);
    match api_error(response) {
        Some((status, reason)) => api_refused(refusal, CREDENTIALS_HOST, &status, reason.as_deref()),
        None => {
            let http = refusal.http_status.unwrap_or_default();
            refusal.what = format!("{CREDENTIALS_HOST} answered HTTP {http} without an error that can be read");
            refusal
        }
    }
}

/// A refusal for an error in the common form of Google's APIs.
fn api_refused(refusal: Refusal, host: &str, status: &str, reason: Option<&str>) -> Refusal {
    let http = refusal.http_status.unwrap_or_default();
    let code = reason.map_or_else(|| status.to_owned(), |reason| format!("{status}, {reason}"));
    let signs = host == CREDENTIALS_HOST;
    let (meaning, advice) = match (status, reason) {
        _ if http == 429 => (Reason::Throttled, None),
        ("RESOURCE_EXHAUSTED", _) => (Reason::Throttled, None),
        ("UNAVAILABLE" | "INTERNAL" | "DEADLINE_EXCEEDED" | "ABORTED" | "UNKNOWN", _) => {
            (Reason::ProviderUnavailable, None)
        }
        (_, Some("SERVICE_DISABLED" | "API_KEY_SERVICE_BLOCKED")) => (Reason::ConsentRequired, Some(API_OFF)),
        ("PERMISSION_DENIED", _) if signs => (Reason::ConsentRequired, Some(MAY_NOT_SIGN)),
        ("NOT_FOUND", _) if signs => (Reason::InvalidClient, Some(NO_ACCOUNT)),
        ("FAILED_PRECONDITION", _) if signs => (Reason::InvalidClient, Some(NO_ACCOUNT)),
        ("UNAUTHENTICATED", _) => (Reason::FederationMismatch, Some(NOT_TRUSTED)),
        ("PERMISSION_DENIED", _) => (Reason::FederationMismatch, Some(CONDITION)),
        ("NOT_FOUND" | "INVALID_ARGUMENT", _) if !signs => (Reason::FederationMismatch, Some(NO_POOL)),
        _ => (Reason::RequestRefused, None),
    };
    Refusal {
        reason: meaning,
        advice,
        what: format!("{host} answered {code} (HTTP {http})"),
        provider_code: Some(reason.unwrap_or(status).to_owned()),
        ..refusal
    }
}

const NO_POOL: &str = "Google knows no workload identity pool and provider {pool_provider}, or one of them is disabled or \
     deleted. See it with `gcloud iam workload-identity-pools providers describe {pool_provider}`; correct the audience of \
     serviceAccountToken to `//iam.googleapis.com/` and the provider's full name";
const CONDITION: &str = "The attribute condition of the workload identity provider rejects the ServiceAccount (subject \
     {subject}). See the condition with `gcloud iam workload-identity-pools providers describe {pool_provider} \
     --format='value(attributeCondition)'`, and change it with `gcloud iam workload-identity-pools providers update-oidc \
     {pool_provider} --attribute-condition='<condition>'`";
const NOT_TRUSTED: &str = "The workload identity provider does not accept the ServiceAccount's token. It must trust the \
     issuer {issuer}, with that issuer's keys, and allow the audience {audience}. Compare with `gcloud iam \
     workload-identity-pools providers describe {pool_provider}`; after a change of the cluster's keys upload them with \
     `kubectl get --raw /openid/v1/jwks > jwks.json && gcloud iam workload-identity-pools providers update-oidc \
     {pool_provider} --jwk-json-path=jwks.json`";
const CLOCK: &str = "Google finds the ServiceAccount's token too old or too new. Set the clocks of the cluster's nodes by \
     NTP; the broker retries";
const API_OFF: &str = "An API is switched off in the Google Cloud project: `gcloud services enable sts.googleapis.com \
     iamcredentials.googleapis.com --project <project>`";
const MAY_NOT_SIGN: &str = "The ServiceAccount (subject {subject}) may not sign as {client}, or that Google service account \
     does not exist. Grant it roles/iam.serviceAccountTokenCreator with `gcloud iam service-accounts \
     add-iam-policy-binding {client} --role=roles/iam.serviceAccountTokenCreator --member='{principal}'`. A grant may take \
     some minutes";
const NO_ACCOUNT: &str = "The Google service account {client} does not exist or is disabled: see `gcloud iam \
     service-accounts describe {client}`, and enable it with `gcloud iam service-accounts enable {client}`, or correct \
     google.serviceAccount with `{merge} '{\"spec\":{\"google\":{\"serviceAccount\":\"<address>\"}}}'`";
const NOT_DELEGATED: &str = "Domain-wide delegation is missing. On https://admin.google.com/ac/owl/domainwidedelegation \
                             a super administrator adds the number that `gcloud iam service-accounts describe {client} \
                             --format='value(uniqueId)'` shows as Client ID, with the scope https://mail.google.com/ \
                             (or those in spec.scopes, to the letter). The delegation takes some minutes, and a day at \
                             most";
const JWT_REFUSED: &str = "Google does not accept the JWT for {mailbox}. The mailbox must be a primary address of the \
                           Workspace, not an alias or a group, and not suspended (https://admin.google.com/ac/users). \
                           The service account must exist and be enabled: `gcloud iam service-accounts describe \
                           {client}`";

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn account() -> Impersonation {
        Impersonation {
            token: "the.service.account".into(),
            audience: "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/c".into(),
            account: "mailer@mail-project.iam.gserviceaccount.com".into(),
        }
    }

    fn response(status: u16, body: &Value) -> Response<String> {
        Response::builder().status(status).body(body.to_string()).unwrap()
    }

    #[test]
    fn the_token_is_exchanged_for_the_audience_and_the_one_scope_that_signs() {
        let wire = exchange_request(&account()).unwrap();
        assert_eq!(wire.uri(), "https://sts.googleapis.com/v1/token");
        let form: Vec<(String, String)> = url::form_urlencoded::parse(wire.body()).into_owned().collect();
        let value = |name: &str| form.iter().find(|(key, _)| key == name).unwrap().1.clone();
        assert_eq!(value("grant_type"), "urn:ietf:params:oauth:grant-type:token-exchange");
        assert_eq!(value("audience"), account().audience);
        assert_eq!(value("subject_token"), "the.service.account");
        assert_eq!(value("scope"), "https://www.googleapis.com/auth/cloud-platform");
        assert!(!wire.headers().contains_key(header::AUTHORIZATION));
    }

    #[test]
    fn the_jwt_to_be_signed_is_that_of_domain_wide_delegation() {
        let params = AssertionParams {
            audience: "https://oauth2.googleapis.com/token",
            token_url: "https://oauth2.googleapis.com/token",
            unique: "j1",
            now: Timestamp::from_second(1_800_000_000).unwrap(),
        };
        let scopes = ["https://mail.google.com/".to_owned()];
        let wire = sign_request(&account(), &"ya29.x".into(), "billing@contoso.com", &scopes, params).unwrap();
        assert_eq!(
            wire.uri(),
            "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/\
             mailer@mail-project.iam.gserviceaccount.com:signJwt"
        );
        assert!(wire.headers()[header::AUTHORIZATION].is_sensitive());
        let body: Value = serde_json::from_slice(wire.body()).unwrap();
        let claims: Value = serde_json::from_str(body["payload"].as_str().unwrap()).unwrap();
        assert_eq!(claims["iss"], "mailer@mail-project.iam.gserviceaccount.com");
        assert_eq!(
            (&claims["sub"], &claims["scope"]),
            (&json!("billing@contoso.com"), &json!("https://mail.google.com/"))
        );
        assert_eq!(claims["aud"], "https://oauth2.googleapis.com/token");
    }

    #[test]
    fn a_response_is_bounded_and_fits_into_a_header() {
        let exchanged =
            |token: Value| read_exchanged(&response(200, &json!({"access_token": token})), Timestamp::UNIX_EPOCH);
        assert_eq!(exchanged(json!("ya29.x")).unwrap().expose_secret(), "ya29.x");
        for bad in [json!(""), json!("a b"), json!("a\r\nx: y"), json!("ü"), json!(7), json!("x".repeat(TOKEN_MAX + 1))]
        {
            assert_eq!(exchanged(bad).unwrap_err().reason, Reason::MalformedResponse);
        }
        let signed = |body: Value| read_signed(&response(200, &body), Timestamp::UNIX_EPOCH);
        assert_eq!(signed(json!({"keyId": "k", "signedJwt": "a.b.c"})).unwrap().expose_secret(), "a.b.c");
        assert_eq!(signed(json!({"keyId": "k"})).unwrap_err().reason, Reason::MalformedResponse);
    }

    fn api(code: u16, status: &str, reason: &str) -> Value {
        let info = json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason});
        json!({"error": {"code": code, "message": "words", "status": status, "details": [info]}})
    }

    #[test]
    fn each_refusal_has_its_reason_and_its_remedy() {
        let exchange =
            |status, body: Value| read_exchanged(&response(status, &body), Timestamp::UNIX_EPOCH).unwrap_err();
        let sign = |status, body: Value| read_signed(&response(status, &body), Timestamp::UNIX_EPOCH).unwrap_err();
        let oauth = |error: &str| json!({"error": error, "error_description": "words of theirs"});
        for (refusal, reason, advice, said) in [
            (exchange(400, oauth("invalid_target")), Reason::FederationMismatch, Some(NO_POOL), "invalid_target"),
            (exchange(400, oauth("invalid_request")), Reason::FederationMismatch, Some(NO_POOL), "invalid_request"),
            (exchange(400, oauth("unauthorized_client")), Reason::FederationMismatch, Some(CONDITION), "unauthorized"),
            (exchange(400, oauth("invalid_grant")), Reason::FederationMismatch, Some(NOT_TRUSTED), "invalid_grant"),
            (exchange(503, oauth("server_error")), Reason::ProviderUnavailable, None, "server_error"),
            (exchange(429, oauth("invalid_target")), Reason::Throttled, None, "429"),
            (exchange(502, json!("gateway")), Reason::ProviderUnavailable, None, "HTTP 502"),
            (
                exchange(403, api(403, "PERMISSION_DENIED", "SERVICE_DISABLED")),
                Reason::ConsentRequired,
                Some(API_OFF),
                "SERVICE_DISABLED",
            ),
            (
                sign(403, api(403, "PERMISSION_DENIED", "IAM_PERMISSION_DENIED")),
                Reason::ConsentRequired,
                Some(MAY_NOT_SIGN),
                "PERMISSION_DENIED, IAM_PERMISSION_DENIED (HTTP 403)",
            ),
            (
                sign(403, api(403, "PERMISSION_DENIED", "SERVICE_DISABLED")),
                Reason::ConsentRequired,
                Some(API_OFF),
                "SERVICE_DISABLED",
            ),
            (sign(404, api(404, "NOT_FOUND", "x")), Reason::InvalidClient, Some(NO_ACCOUNT), "NOT_FOUND (HTTP 404)"),
            (
                sign(401, api(401, "UNAUTHENTICATED", "ACCESS_TOKEN_EXPIRED")),
                Reason::FederationMismatch,
                Some(NOT_TRUSTED),
                "UNAUTHENTICATED",
            ),
            (sign(429, api(429, "RESOURCE_EXHAUSTED", "x")), Reason::Throttled, None, "RESOURCE_EXHAUSTED"),
            (sign(503, api(503, "UNAVAILABLE", "x")), Reason::ProviderUnavailable, None, "UNAVAILABLE"),
            (sign(400, api(400, "INVALID_ARGUMENT", "x")), Reason::RequestRefused, None, "INVALID_ARGUMENT"),
            (sign(502, json!("gateway")), Reason::ProviderUnavailable, None, "HTTP 502"),
        ] {
            assert_eq!((refusal.reason, refusal.advice), (reason, advice), "{}", refusal.what);
            assert!(refusal.what.contains(said) && !refusal.what.contains("words"), "{}", refusal.what);
        }
    }

    #[test]
    fn a_code_of_another_form_is_not_shown() {
        let body = json!({"error": {"status": "PERMISSION_DENIED <script>", "details": [{"reason": "x"}]}});
        let refusal = read_signed(&response(403, &body), Timestamp::UNIX_EPOCH).unwrap_err();
        assert!(!refusal.what.contains("script"), "{}", refusal.what);
    }

    #[test]
    fn the_token_endpoints_refusal_names_no_key_file() {
        for (error, reason, advice) in [
            ("unauthorized_client", Reason::ConsentRequired, NOT_DELEGATED),
            ("access_denied", Reason::ConsentRequired, NOT_DELEGATED),
            ("invalid_grant", Reason::InvalidGrant, JWT_REFUSED),
            ("disabled_client", Reason::InvalidClient, NO_ACCOUNT),
        ] {
            let mut refusal = read_refusal(&response(401, &json!({"error": error})), Timestamp::UNIX_EPOCH);
            refusal.reason = reason;
            refine_token(&mut refusal);
            assert_eq!(refusal.advice, Some(advice));
        }
    }
}
