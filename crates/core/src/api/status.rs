//! The status of a `MailCredential`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the broker knows about a credential.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MailCredentialStatus {
    /// The generation that the rest speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// See `docs/reasons.md`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The Secret that holds the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// The Secret's resourceVersion as published: while it is the same, nobody has touched the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_resource_version: Option<String>,
    /// The token in the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenStatus>,
    /// The refresh token that is kept, without itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantStatus>,
    /// Which client authentication is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientStatus>,
    /// The sign-in that is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<AuthorizationStatus>,
    /// Failures since the last success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_attempts: Option<i32>,
    /// When the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure_time: Option<Time>,
    /// When the next attempt will be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_time: Option<Time>,
    /// What the last attempt failed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
    /// Hash of what the last failed attempt was made with: any change of it ends the wait for the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_with: Option<String>,
    /// The value of the annotation `mailtoken.dev/reissue` that was answered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handled_reissue: Option<String>,
}

/// A token, without itself.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TokenStatus {
    /// When it was asked for.
    pub issued_at: Time,
    /// When it ends.
    pub expires_at: Time,
    /// When it will be renewed.
    pub renewal_time: Time,
    /// The scopes that were granted, where the provider said so, else those asked for. The first 64 of at most 512
    /// characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 512)))]
    pub scopes: Vec<String>,
    /// `sha256:` and the first 16 hex digits of the token's SHA-256.
    pub fingerprint: String,
    /// Length in characters. Long tokens do not fit every client's command line (RFC 4954 section 4).
    pub length: i64,
}

/// A refresh token, without itself.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GrantStatus {
    /// When a person signed in, or the seed was taken over.
    pub obtained_at: Time,
    /// When it was last exchanged for an access token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Time>,
    /// When it ends, where the provider said so or is known for an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// How many times the provider has replaced it.
    pub rotations: i64,
}

/// What a person needs to sign in (RFC 8628 section 3.2).
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationStatus {
    /// Where to go.
    #[serde(rename = "verificationURI")]
    #[schemars(length(max = 2048))]
    pub verification_uri: String,
    /// The same, with the code in it.
    #[serde(rename = "verificationURIComplete", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub verification_uri_complete: Option<String>,
    /// What to enter there.
    #[schemars(length(max = 64))]
    pub user_code: String,
    /// Until when.
    pub expires_at: Time,
}

/// A client authentication in use.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClientStatus {
    /// The field in `spec.client.authentication[index]`.
    pub method: String,
    /// Its place in the list, from 0.
    pub index: i32,
    /// When it ends, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
}

/// What the provider said, reduced to what cannot hold a secret.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LastError {
    /// The OAuth error code (RFC 6749 section 5.2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The provider's own code, such as AADSTS7000215.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_code: Option<String>,
    /// The HTTP status of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<i32>,
    /// What the provider's support asks for.
    #[serde(rename = "correlationID", default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// When it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}
