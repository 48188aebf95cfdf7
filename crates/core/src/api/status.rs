//! The status of a `MailCredential`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::probe::ProbeStatus;

/// The broker's observations of a credential.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema, PartialEq)]
#[schemars(description = "status is the broker's observation of the credential.")]
#[serde(rename_all = "camelCase")]
pub struct MailCredentialStatus {
    /// observedGeneration is the generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// conditions are the conditions of the credential. `docs/reasons.md` explains their reasons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// secretName is the name of the Secret that holds the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// secretResourceVersion is the resourceVersion of the Secret after the broker's last write. While it is the same, no
    /// other client has changed the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_resource_version: Option<String>,
    /// token describes the token in the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenStatus>,
    /// grant describes the stored refresh token, without the token itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantStatus>,
    /// client is the client authentication in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientStatus>,
    /// authorization is the pending sign-in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<AuthorizationStatus>,
    /// probe is the result of the last check that the mailbox accepts the token. Absent without `spec.probe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeStatus>,
    /// failedAttempts is the number of failures since the last success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_attempts: Option<i32>,
    /// lastFailureTime is the time of the last failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure_time: Option<Time>,
    /// nextAttemptTime is the time of the next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_time: Option<Time>,
    /// lastError is the error of the last failed attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
    /// failedWith is a hash of the inputs of the last failed attempt. A change of the inputs ends the back-off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_with: Option<String>,
    /// lastHandledReissue is the last handled value of the annotation `mailtoken.dev/reissue`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handled_reissue: Option<String>,
}

/// Properties of an access token, without the token itself.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TokenStatus {
    /// issuedAt is the time at which the broker sent the token request.
    pub issued_at: Time,
    /// expiresAt is the time at which the token expires.
    pub expires_at: Time,
    /// renewalTime is the time at which the broker renews the token.
    pub renewal_time: Time,
    /// scopes are the granted scopes, or the requested scopes if the provider named none. At most 64 of at most 512
    /// characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 512)))]
    pub scopes: Vec<String>,
    /// fingerprint is `sha256:` and the first 16 hex digits of the token's SHA-256.
    pub fingerprint: String,
    /// length is the token's length in characters. Long tokens do not fit every client's command line (RFC 4954 section 4).
    pub length: i64,
}

/// Properties of a refresh token, without the token itself.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GrantStatus {
    /// obtainedAt is the time at which the user signed in, or the broker copied the seed.
    pub obtained_at: Time,
    /// lastUsedAt is the time of the last exchange for an access token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Time>,
    /// expiresAt is the expiry of the refresh token, if the provider reports or documents one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// rotations is the number of times that the provider has replaced the refresh token.
    pub rotations: i64,
}

/// The data that a user needs for a sign-in (RFC 8628 section 3.2).
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationStatus {
    /// verificationURI is the page at which the user enters the code.
    #[serde(rename = "verificationURI")]
    #[schemars(length(max = 2048))]
    pub verification_uri: String,
    /// verificationURIComplete is the same page with the code in its address.
    #[serde(rename = "verificationURIComplete", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub verification_uri_complete: Option<String>,
    /// userCode is the code that the user enters.
    #[schemars(length(max = 64))]
    pub user_code: String,
    /// expiresAt is the expiry of the code.
    pub expires_at: Time,
}

/// The client authentication in use.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClientStatus {
    /// method is the name of the field in `spec.client.authentication[index]`.
    pub method: String,
    /// index is the position in `spec.client.authentication`, from 0.
    pub index: i32,
    /// expiresAt is the expiry of the client secret or certificate, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
}

/// The parts of a provider's error response that cannot contain a secret.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LastError {
    /// error is the OAuth error code (RFC 6749 section 5.2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// providerCode is the provider's own error code, such as AADSTS7000215.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_code: Option<String>,
    /// httpStatus is the HTTP status of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<i32>,
    /// correlationID is the provider's id of the request, for its support and its logs.
    #[serde(rename = "correlationID", default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// time is the time of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}
