//! `MailProvider` and `ClusterMailProvider`: who issues tokens, and how the broker proves to them who it is.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{authentication::ClientAuthentication, grant::GrantType, reference::KeyRef, schema::*};

/// An identity provider that the pods of its namespace may get tokens from.
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
#[serde(rename_all = "camelCase")]
pub struct MailProviderSpec {
    /// What both kinds have in common.
    #[serde(flatten)]
    pub provider: ProviderSpec,
}

/// An identity provider that an administrator offers to chosen namespaces.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[kube(
    group = "mailtoken.dev",
    version = "v1alpha1",
    kind = "ClusterMailProvider",
    status = "ProviderStatus",
    shortname = "cmprov",
    category = "mail",
    doc = "An identity provider that an administrator offers to chosen namespaces, for chosen mailboxes. Its Secrets \
           live in the broker's namespace.",
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
#[serde(rename_all = "camelCase")]
pub struct ClusterMailProviderSpec {
    /// What both kinds have in common.
    #[serde(flatten)]
    pub provider: ProviderSpec,
    /// Which namespaces may use this provider for which mailboxes. An app-only credential can often send as any
    /// mailbox, so this list is the real boundary.
    #[schemars(length(min = 1, max = 64))]
    pub allowed: Vec<Allowed>,
}

/// What both kinds of provider have in common.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProviderSpec {
    /// Microsoft 365 (Entra ID and Exchange Online).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microsoft: Option<Microsoft>,
    /// Google Workspace and Gmail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub google: Option<Google>,
    /// Yahoo Mail. AOL has other endpoints and needs `oauth2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yahoo: Option<Yahoo>,
    /// Fastmail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fastmail: Option<Fastmail>,
    /// Any OpenID Connect provider, by discovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<Oidc>,
    /// Any OAuth 2.0 server, by its endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth2: Option<OAuth2>,
    /// Who the broker is to the provider.
    pub client: Client,
    /// Scopes to ask for. Empty: those of the preset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512), regex(pattern = SCOPE)))]
    pub scopes: Vec<String>,
    /// The mail servers that the tokens are for; presets know theirs.
    #[serde(default, skip_serializing_if = "Servers::is_empty")]
    pub servers: Servers,
    /// Certificates to trust beside the system's roots, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle_ref: Option<CaBundleRef>,
    /// How many requests the provider is sent at most, over all credentials. Without it: as many as the broker's own
    /// limits let through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
}

/// A limit to the requests that are sent to a provider.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Requests a minute, in the long run.
    #[schemars(range(min = 1, max = 60_000))]
    pub requests_per_minute: i32,
    /// Requests that may be sent at once, after a rest.
    #[serde(default = "default_burst")]
    #[schemars(range(min = 1, max = 1_000))]
    pub burst: i32,
}

const fn default_burst() -> i32 {
    1
}

/// Google Workspace and Gmail.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Google {
    /// serviceAccount is the address of the Google service account in whose name the broker acts without a key: with
    /// `serviceAccountToken` and the grant `jwtBearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 6, max = 254), regex(pattern = SERVICE_ACCOUNT))]
    pub service_account: Option<String>,
}

/// Yahoo has no settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct Yahoo {}

/// Fastmail has no settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct Fastmail {}

/// Microsoft 365.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Microsoft {
    /// The tenant's id or one of its domains.
    #[serde(rename = "tenantID")]
    #[schemars(length(min = 1, max = 253), regex(pattern = TENANT))]
    pub tenant_id: String,
    /// Which of Microsoft's clouds the tenant is in.
    #[serde(default)]
    pub cloud: Cloud,
}

/// Microsoft's national clouds.
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

/// An OpenID Connect provider.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
pub struct Oidc {
    /// The issuer, byte for byte as in the provider's discovery document.
    #[serde(rename = "issuerURL")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new(URL_RULE).message(URL_MESSAGE))]
    pub issuer_url: String,
}

/// An OAuth 2.0 server.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
pub struct OAuth2 {
    /// The token endpoint.
    #[serde(rename = "tokenURL")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new(URL_RULE).message(URL_MESSAGE))]
    pub token_url: String,
    /// The device authorization endpoint (RFC 8628), if there is one.
    #[serde(rename = "deviceAuthorizationURL", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new(URL_RULE).message(URL_MESSAGE))]
    pub device_authorization_url: Option<String>,
    /// The revocation endpoint (RFC 7009), if there is one.
    #[serde(rename = "revocationURL", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new(URL_RULE).message(URL_MESSAGE))]
    pub revocation_url: Option<String>,
    /// authorizationURL is the authorization endpoint (RFC 6749 section 3.1), the page at which a person signs in. Only
    /// `mail-token-broker login` uses it.
    #[serde(rename = "authorizationURL", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new(URL_RULE).message(URL_MESSAGE))]
    pub authorization_url: Option<String>,
}

/// The broker's registration at the provider.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Client {
    /// The client's identifier (Microsoft: the application id). A Google service account makes it unnecessary.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(min = 1, max = 256), regex(pattern = CLIENT_ID))]
    pub id: String,
    /// parameters are more form fields for every token request, such as `audience` or `resource`. A field that the grant
    /// itself sends is not sent twice.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "parameters_schema")]
    pub parameters: BTreeMap<String, String>,
    /// How the client proves who it is, in the order of preference. Empty: a public client.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub authentication: Vec<ClientAuthentication>,
}

/// Where a CA bundle stands: exactly one field.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[x_kube(validation = Rule::new("has(self.configMap) != has(self.secret)")
    .message("name one place: configMap or secret"))]
#[serde(rename_all = "camelCase")]
pub struct CaBundleRef {
    /// A key of a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<KeyRef>,
    /// A key of a labelled Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<KeyRef>,
}

/// Mail servers, by protocol.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct Servers {
    /// Message submission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smtp: Option<Server>,
    /// IMAP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imap: Option<Server>,
    /// POP3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pop3: Option<Server>,
}

impl Servers {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One mail server.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct Server {
    /// Host name.
    #[schemars(length(min = 1, max = 253), regex(pattern = HOST))]
    pub host: String,
    /// TCP port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// How the connection is secured. Mail without TLS is not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security: Option<Security>,
}

impl Server {
    /// How the connection is secured: as the spec says, otherwise by the port. The ports of RFC 8314 section 3 speak TLS
    /// from the first byte, all others STARTTLS.
    pub fn security(&self) -> Security {
        self.security.unwrap_or(if matches!(self.port, 465 | 993 | 995) { Security::Tls } else { Security::StartTls })
    }
}

/// How a mail connection is secured.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum Security {
    /// Upgraded by STARTTLS.
    #[serde(rename = "STARTTLS")]
    StartTls,
    /// TLS from the first byte.
    #[serde(rename = "TLS")]
    Tls,
}

impl Security {
    /// The name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StartTls => "STARTTLS",
            Self::Tls => "TLS",
        }
    }
}

/// One permission that a ClusterMailProvider grants.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Allowed {
    /// Namespaces by their labels; `{}` selects all.
    pub namespace_selector: LabelSelector,
    /// Addresses and plain user names, where `*` stands for any characters but `@`. They must cover `address`,
    /// `authenticateAs` and every entry of `usernames`.
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 254), regex(pattern = MAILBOX_PATTERN)))]
    pub mailboxes: Vec<String>,
    /// Grants that may be used. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub grants: Vec<GrantType>,
}

/// What the broker found out about a provider.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProviderStatus {
    /// The generation that the rest speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Stalled`, `Reconciling`, `ClientCredentialExpiringSoon`. See `docs/reasons.md`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The token endpoint.
    #[serde(rename = "tokenURL", default, skip_serializing_if = "Option::is_none")]
    pub token_url: Option<String>,
    /// The device authorization endpoint.
    #[serde(rename = "deviceAuthorizationURL", default, skip_serializing_if = "Option::is_none")]
    pub device_authorization_url: Option<String>,
    /// The revocation endpoint.
    #[serde(rename = "revocationURL", default, skip_serializing_if = "Option::is_none")]
    pub revocation_url: Option<String>,
}
