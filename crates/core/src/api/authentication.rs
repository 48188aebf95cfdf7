//! How the broker proves to a provider who it is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{reference::KeyRef, schema::*};

/// One way of client authentication: exactly one field.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[x_kube(validation = Rule::new(ONE_AUTHENTICATION_RULE).message(ONE_AUTHENTICATION_MESSAGE))]
#[serde(rename_all = "camelCase")]
pub struct ClientAuthentication {
    /// A secret shared with the provider (RFC 6749 section 2.3.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<ClientSecret>,
    /// A JWT signed with the client's private key (RFC 7523 section 2.2; OpenID Connect's `private_key_jwt`).
    #[serde(rename = "privateKeyJWT", default, skip_serializing_if = "Option::is_none")]
    pub private_key_jwt: Option<PrivateKeyJwt>,
    /// A token of a Kubernetes ServiceAccount as the assertion (RFC 7523 section 2.2; workload identity federation).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_token: Option<ServiceAccountToken>,
    /// The key file of a Google service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_key: Option<ServiceAccountKey>,
}

/// A token of a Kubernetes ServiceAccount, made for the provider alone.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountToken {
    /// The audience that the provider wants (Microsoft: `api://AzureADTokenExchange`). Never that of the API server.
    #[schemars(length(min = 1, max = 512), regex(pattern = CLIENT_ID))]
    pub audience: String,
    /// A ServiceAccount of the same namespace (of a ClusterMailProvider: the broker's). Without it, a
    /// ClusterMailProvider uses the broker's own identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_ref: Option<ServiceAccountRef>,
}

/// A ServiceAccount of the same namespace.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq, Hash)]
pub struct ServiceAccountRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME))]
    pub name: String,
}

/// The key file of a Google service account, as downloaded; its `token_uri` is ignored.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountKey {
    /// Where the JSON file stands.
    pub secret_ref: KeyRef,
}

/// A private key, and what tells the provider which one it is.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PrivateKeyJwt {
    /// Where the key stands, in PEM: PKCS#8, PKCS#1 (RSA) or SEC 1 (EC).
    pub key_ref: KeyRef,
    /// Where its certificate stands, in PEM. Microsoft wants its thumbprint (`x5t#S256`); its end is told ahead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_ref: Option<KeyRef>,
    /// The key's id at the provider (`kid`).
    #[serde(rename = "keyID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = CLIENT_ID))]
    pub key_id: Option<String>,
    /// The signature algorithm: PS256 unless set.
    #[serde(default)]
    #[schemars(transform = without_default)]
    pub algorithm: SigningAlgorithm,
    /// audience is the `aud` of what the key signs: `TokenURL` (the default), `Issuer` (with `oidc`: the issuer's URL), or an
    /// https URL. It does not change where an assertion is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = AUDIENCE))]
    pub audience: Option<String>,
}

/// The audience that is the token endpoint.
pub const AUDIENCE_TOKEN_URL: &str = "TokenURL";
/// The audience that is the issuer of an OpenID Connect provider.
pub const AUDIENCE_ISSUER: &str = "Issuer";

/// Signature algorithms (RFC 7518 section 3.1, RFC 8037 section 3.1).
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum SigningAlgorithm {
    /// RSASSA-PSS with SHA-256, which Microsoft recommends.
    #[default]
    PS256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
    /// ECDSA with P-256 and SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

/// A client secret.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClientSecret {
    /// Where the secret stands.
    pub secret_ref: KeyRef,
    /// Whether it is sent in the body (Post, unless set) or in the Authorization header (Basic).
    #[serde(default)]
    #[schemars(transform = without_default)]
    pub method: SecretMethod,
    /// When the provider will stop to accept it, as told when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(DATE_RULE).message(DATE_MESSAGE))]
    pub expires_at: Option<Time>,
}

/// RFC 6749 section 2.3.1.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum SecretMethod {
    /// `client_secret_post`.
    #[default]
    Post,
    /// `client_secret_basic`.
    Basic,
}
