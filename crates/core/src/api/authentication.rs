//! Client authentication: how the broker authenticates at a provider.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{reference::KeyRef, schema::*};

/// An entry of `spec.client.authentication`, with exactly one field.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[x_kube(validation = Rule::new(ONE_AUTHENTICATION_RULE).message(ONE_AUTHENTICATION_MESSAGE))]
#[serde(rename_all = "camelCase")]
pub struct ClientAuthentication {
    /// clientSecret is a secret shared with the provider (RFC 6749 section 2.3.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<ClientSecret>,
    /// privateKeyJWT is a JWT signed with the client's private key (RFC 7523 section 2.2; OpenID Connect's `private_key_jwt`).
    #[serde(rename = "privateKeyJWT", default, skip_serializing_if = "Option::is_none")]
    pub private_key_jwt: Option<PrivateKeyJwt>,
    /// serviceAccountToken is a Kubernetes ServiceAccount's token as assertion (RFC 7523 section 2.2; workload identity federation).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_token: Option<ServiceAccountToken>,
    /// serviceAccountKey is the key file of a Google service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_key: Option<ServiceAccountKey>,
}

/// A token of a Kubernetes ServiceAccount, with the provider as its only audience.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountToken {
    /// audience is the audience that the provider requires (Microsoft: `api://AzureADTokenExchange`), never the API server's.
    #[schemars(length(min = 1, max = 512), regex(pattern = CLIENT_ID))]
    pub audience: String,
    /// serviceAccountRef names a ServiceAccount of the same namespace (for a ClusterMailProvider: the broker's namespace).
    /// Without it, a ClusterMailProvider uses the broker's own identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_ref: Option<ServiceAccountRef>,
}

/// A reference to a ServiceAccount of the same namespace.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq, Hash)]
pub struct ServiceAccountRef {
    /// name is the name of the ServiceAccount.
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME))]
    pub name: String,
}

/// The downloaded key file of a Google service account. The broker ignores its `token_uri`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountKey {
    /// secretRef names the Secret and key with the JSON file.
    pub secret_ref: KeyRef,
}

/// A private key, and the values that identify it at the provider.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PrivateKeyJwt {
    /// keyRef names the Secret and key with the private key in PEM: PKCS#8, PKCS#1 (RSA) or SEC 1 (EC).
    pub key_ref: KeyRef,
    /// certificateRef names the Secret and key with the certificate in PEM. Each assertion then has the certificate's
    /// thumbprint: Microsoft requires the SHA-256 thumbprint (`x5t#S256`), AD FS the SHA-1 thumbprint (`x5t`, sent with
    /// RS256). The broker warns before the certificate expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_ref: Option<KeyRef>,
    /// keyID is the key's id at the provider (`kid`).
    #[serde(rename = "keyID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = CLIENT_ID))]
    pub key_id: Option<String>,
    /// algorithm is the signature algorithm. Defaults to PS256.
    #[serde(default)]
    #[schemars(transform = without_default)]
    pub algorithm: SigningAlgorithm,
    /// audience is the `aud` of the assertion: `TokenURL` (the default), `Issuer` (with `oidc`: the issuer's URL), or an
    /// https URL. The broker sends the assertion to the token endpoint in every case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = AUDIENCE))]
    pub audience: Option<String>,
}

/// The value of `audience` for the token endpoint.
pub const AUDIENCE_TOKEN_URL: &str = "TokenURL";
/// The value of `audience` for the issuer of an OpenID Connect provider.
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
    /// EdDSA with Ed25519.
    EdDSA,
}

/// A client secret and its properties.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClientSecret {
    /// secretRef names the Secret and key with the client secret.
    pub secret_ref: KeyRef,
    /// method is the place of the secret in a request: the body (Post, the default) or the Authorization header (Basic).
    #[serde(default)]
    #[schemars(transform = without_default)]
    pub method: SecretMethod,
    /// expiresAt is the expiry of the client secret, as the provider showed it. The broker warns before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(DATE_RULE).message(DATE_MESSAGE))]
    pub expires_at: Option<Time>,
}

/// Methods that send a client secret (RFC 6749 section 2.3.1).
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum SecretMethod {
    /// The method `client_secret_post`: in the body.
    #[default]
    Post,
    /// The method `client_secret_basic`: in the Authorization header.
    Basic,
}
