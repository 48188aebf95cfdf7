//! `MailProvider` and `ClusterMailProvider`: identity providers, and the broker's client registration there.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use mailtoken_mail::protocol::Security;

use super::{authentication::ClientAuthentication, grant::GrantType, reference::KeyRef, schema::*};

/// The desired state of a MailProvider.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[kube(
    group = "mailtoken.dev",
    version = "v1alpha1",
    kind = "MailProvider",
    namespaced,
    status = "ProviderStatus",
    shortname = "mprov",
    category = "mail",
    doc = "An identity provider that issues OAuth2 tokens for mail to the MailCredentials of its namespace.",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Token URL","type":"string","jsonPath":".status.tokenURL","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[x_kube(validation = Rule::new(ONE_PROVIDER_RULE).message(ONE_PROVIDER_MESSAGE))]
#[x_kube(validation = Rule::new(DOD_RULE).message(DOD_MESSAGE))]
#[x_kube(validation = Rule::new(CLIENT_ID_RULE).message(CLIENT_ID_MESSAGE))]
#[x_kube(validation = Rule::new(KEY_FILE_RULE).message(KEY_FILE_MESSAGE))]
#[x_kube(validation = Rule::new(AUDIENCE_RULE).message(AUDIENCE_MESSAGE))]
#[x_kube(validation = Rule::new(KEYLESS_RULE).message(KEYLESS_MESSAGE))]
#[x_kube(validation = Rule::new(OWN_IDENTITY_RULE).message(OWN_IDENTITY_MESSAGE))]
#[schemars(description = "spec is the desired state of the provider.")]
#[serde(rename_all = "camelCase")]
pub struct MailProviderSpec {
    /// The fields of both kinds of providers.
    #[serde(flatten)]
    pub provider: ProviderSpec,
}

/// The desired state of a ClusterMailProvider.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[kube(
    group = "mailtoken.dev",
    version = "v1alpha1",
    kind = "ClusterMailProvider",
    status = "ProviderStatus",
    shortname = "cmprov",
    category = "mail",
    doc = "An identity provider that an administrator offers to chosen namespaces, for chosen mailboxes. Its Secrets \
           are in the broker's namespace.",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Token URL","type":"string","jsonPath":".status.tokenURL","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[x_kube(validation = Rule::new(ONE_PROVIDER_RULE).message(ONE_PROVIDER_MESSAGE))]
#[x_kube(validation = Rule::new(DOD_RULE).message(DOD_MESSAGE))]
#[x_kube(validation = Rule::new(CLIENT_ID_RULE).message(CLIENT_ID_MESSAGE))]
#[x_kube(validation = Rule::new(KEY_FILE_RULE).message(KEY_FILE_MESSAGE))]
#[x_kube(validation = Rule::new(AUDIENCE_RULE).message(AUDIENCE_MESSAGE))]
#[x_kube(validation = Rule::new(KEYLESS_RULE).message(KEYLESS_MESSAGE))]
#[schemars(description = "spec is the desired state of the provider.")]
#[serde(rename_all = "camelCase")]
pub struct ClusterMailProviderSpec {
    /// The fields of both kinds of providers.
    #[serde(flatten)]
    pub provider: ProviderSpec,
    /// allowed lists the namespaces that may use this provider, and the mailboxes. An app-only credential can often send as
    /// any mailbox, so this list is the real boundary.
    #[schemars(length(min = 1, max = 64))]
    pub allowed: Vec<Allowed>,
}

/// The fields that both kinds of providers have.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProviderSpec {
    /// microsoft is Microsoft 365 (Entra ID and Exchange Online).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microsoft: Option<Microsoft>,
    /// google is Google Workspace and Gmail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub google: Option<Google>,
    /// yahoo is Yahoo Mail. AOL has other endpoints and needs `oauth2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yahoo: Option<Yahoo>,
    /// fastmail is the mail service Fastmail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fastmail: Option<Fastmail>,
    /// oidc is an OpenID Connect provider with a discovery document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<Oidc>,
    /// oauth2 is an OAuth 2.0 server with explicit endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth2: Option<OAuth2>,
    /// client is the broker's client registration at the provider.
    pub client: Client,
    /// scopes are the requested scopes, unless the credential has `scopes`. Defaults to the scopes of the preset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512), regex(pattern = SCOPE)))]
    pub scopes: Vec<String>,
    /// servers are the mail servers that accept the tokens. Presets have defaults.
    #[serde(default, skip_serializing_if = "Servers::is_empty")]
    pub servers: Servers,
    /// caBundleRef names certificates in PEM to trust in addition to the system's roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle_ref: Option<CaBundleRef>,
    /// rateLimit limits the requests to the provider, over all credentials. Without it, only the broker's own limits
    /// apply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
}

/// A limit of the requests to a provider.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// requestsPerMinute is the average number of requests a minute.
    #[schemars(range(min = 1, max = 60_000))]
    pub requests_per_minute: i32,
    /// burst is the number of requests that the broker may send immediately after a pause. Defaults to 1.
    #[serde(default = "default_burst")]
    #[schemars(range(min = 1, max = 1_000))]
    pub burst: i32,
}

const fn default_burst() -> i32 {
    1
}

/// Settings of Google Workspace and Gmail.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Google {
    /// serviceAccount is the address of the Google service account that the broker uses without a key, with
    /// `serviceAccountToken` and the grant `jwtBearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 6, max = 254), regex(pattern = SERVICE_ACCOUNT))]
    pub service_account: Option<String>,
}

/// The preset of Yahoo, which has no settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct Yahoo {}

/// The preset of Fastmail, which has no settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct Fastmail {}

/// Settings of Microsoft 365.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Microsoft {
    /// tenantID is the tenant's id or one of its domains.
    #[serde(rename = "tenantID")]
    #[schemars(length(min = 1, max = 253), regex(pattern = TENANT))]
    pub tenant_id: String,
    /// cloud is the tenant's Microsoft cloud. Defaults to Public.
    #[serde(default)]
    pub cloud: Cloud,
}

/// The clouds of Microsoft 365.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum Cloud {
    /// The worldwide service.
    #[default]
    Public,
    /// Microsoft 365 GCC High.
    USGov,
    /// Microsoft 365 DoD.
    USGovDoD,
    /// Microsoft 365 operated by 21Vianet.
    China,
}

/// Settings of an OpenID Connect provider.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
pub struct Oidc {
    /// issuerURL is the issuer, byte for byte as in the provider's discovery document.
    #[serde(rename = "issuerURL")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new(URL_RULE).message(URL_MESSAGE))]
    pub issuer_url: String,
}

/// Endpoints of an OAuth 2.0 server.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
pub struct OAuth2 {
    /// tokenURL is the token endpoint.
    #[serde(rename = "tokenURL")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new(URL_RULE).message(URL_MESSAGE))]
    pub token_url: String,
    /// deviceAuthorizationURL is the device authorization endpoint (RFC 8628). Required for `deviceCode`.
    #[serde(rename = "deviceAuthorizationURL", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new(URL_RULE).message(URL_MESSAGE))]
    pub device_authorization_url: Option<String>,
    /// revocationURL is the revocation endpoint (RFC 7009). Required for `revocationPolicy: OnDelete`.
    #[serde(rename = "revocationURL", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new(URL_RULE).message(URL_MESSAGE))]
    pub revocation_url: Option<String>,
    /// authorizationURL is the authorization endpoint (RFC 6749 section 3.1), the page at which a user signs in. Only
    /// `mail-token-broker login` uses it.
    #[serde(rename = "authorizationURL", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new(URL_RULE).message(URL_MESSAGE))]
    pub authorization_url: Option<String>,
}

/// The broker's client registration at a provider.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Client {
    /// id is the client's identifier (Microsoft: the application id). Optional with a Google service account.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(min = 1, max = 256), regex(pattern = CLIENT_ID))]
    pub id: String,
    /// parameters are more form fields for every token request, such as `audience` or `resource`, and for the request that
    /// begins a sign-in. A field of the request itself has precedence.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "parameters_schema")]
    pub parameters: BTreeMap<String, String>,
    /// authentication lists the client authentications in order of preference. Empty for a public client.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub authentication: Vec<ClientAuthentication>,
}

/// A reference to a CA bundle, with exactly one field.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[x_kube(validation = Rule::new("has(self.configMap) != has(self.secret)")
    .message("name one place: configMap or secret"))]
#[serde(rename_all = "camelCase")]
pub struct CaBundleRef {
    /// configMap names a ConfigMap and its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<KeyRef>,
    /// secret names a labeled Secret and its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<KeyRef>,
}

/// Mail servers, by protocol.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct Servers {
    /// smtp is the server for message submission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smtp: Option<Server>,
    /// imap is the IMAP server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imap: Option<Server>,
    /// pop3 is the POP3 server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pop3: Option<Server>,
}

impl Servers {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A mail server of one protocol.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct Server {
    /// host is the host name of the server.
    #[schemars(length(min = 1, max = 253), regex(pattern = HOST))]
    pub host: String,
    /// port is the TCP port of the server.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// security is the TLS mode of the connection. Defaults to TLS on the ports 465, 993 and 995, otherwise STARTTLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security: Option<Security>,
}

impl Server {
    /// The TLS mode of the connection: the spec's mode, otherwise a mode by the port. The ports of RFC 8314 section 3
    /// use TLS from the first byte, all others STARTTLS.
    pub fn security(&self) -> Security {
        self.security.unwrap_or(if matches!(self.port, 465 | 993 | 995) { Security::Tls } else { Security::StartTls })
    }
}

/// An entry of `spec.allowed`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Allowed {
    /// namespaceSelector selects namespaces by their labels. `{}` selects all.
    pub namespace_selector: LabelSelector,
    /// mailboxes are addresses and plain user names, in which `*` matches any characters except `@`. They must cover
    /// `address`, `authenticateAs` and every entry of `usernames`.
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 254), regex(pattern = MAILBOX_PATTERN)))]
    pub mailboxes: Vec<String>,
    /// grants are the allowed grants. Empty allows all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub grants: Vec<GrantType>,
}

/// The broker's observations of a provider.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema, PartialEq)]
#[schemars(description = "status is the broker's observation of the provider.")]
#[serde(rename_all = "camelCase")]
pub struct ProviderStatus {
    /// observedGeneration is the generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// conditions are `Ready`, `Stalled`, `Reconciling` and `ClientCredentialExpiringSoon`. `docs/reasons.md` explains them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// tokenURL is the token endpoint.
    #[serde(rename = "tokenURL", default, skip_serializing_if = "Option::is_none")]
    pub token_url: Option<String>,
    /// deviceAuthorizationURL is the device authorization endpoint.
    #[serde(rename = "deviceAuthorizationURL", default, skip_serializing_if = "Option::is_none")]
    pub device_authorization_url: Option<String>,
    /// revocationURL is the revocation endpoint.
    #[serde(rename = "revocationURL", default, skip_serializing_if = "Option::is_none")]
    pub revocation_url: Option<String>,
}
