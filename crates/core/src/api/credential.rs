//! `MailCredential`: a mailbox for which the broker keeps a Secret with a valid token.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use mailtoken_mail::protocol::Protocol;

use super::{grant::Grant, probe::Probe, schema::*, secret_keys, status::MailCredentialStatus};

/// The desired state of a MailCredential.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[kube(
    group = "mailtoken.dev",
    version = "v1alpha1",
    kind = "MailCredential",
    namespaced,
    status = "MailCredentialStatus",
    shortname = "mcred",
    category = "mail",
    selectable = ".spec.providerRef.name",
    selectable = ".spec.mailbox.address",
    doc = "A mailbox for which the broker keeps a Secret with a valid OAuth2 access token.",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Login","type":"string","jsonPath":".status.conditions[?(@.type==\"MailboxAuthorized\")].status"}"#,
    printcolumn = r#"{"name":"Mailbox","type":"string","jsonPath":".spec.mailbox.address"}"#,
    printcolumn = r#"{"name":"Provider","type":"string","jsonPath":".spec.providerRef.name"}"#,
    printcolumn = r#"{"name":"Secret","type":"string","jsonPath":".status.secretName"}"#,
    printcolumn = r#"{"name":"Expires","type":"string","jsonPath":".status.token.expiresAt"}"#,
    printcolumn = r#"{"name":"Renewal","type":"string","jsonPath":".status.token.renewalTime","priority":1}"#,
    printcolumn = r#"{"name":"Failures","type":"integer","jsonPath":".status.failedAttempts","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[schemars(description = "spec is the desired state of the credential.")]
#[x_kube(validation = Rule::new(PROBE_RULE).message(PROBE_MESSAGE))]
#[serde(rename_all = "camelCase")]
pub struct MailCredentialSpec {
    /// providerRef names the provider that issues the token.
    pub provider_ref: ProviderRef,
    /// mailbox is the mailbox and the account that the token is for.
    pub mailbox: Mailbox,
    /// protocols are the mail protocols that the token is used for. Defaults to SMTP.
    #[serde(default = "default_protocols")]
    #[schemars(length(min = 1, max = 3))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic, validation = Rule::new(UNIQUE_RULE).message(UNIQUE_MESSAGE))]
    pub protocols: Vec<Protocol>,
    /// grant is the OAuth grant by which the broker obtains the token.
    pub grant: Grant,
    /// scopes are the requested scopes. Defaults to the provider's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512), regex(pattern = SCOPE)))]
    pub scopes: Vec<String>,
    /// secret describes the Secret that pods mount.
    #[serde(default)]
    pub secret: SecretTemplate,
    /// renewal determines when the broker renews the token.
    #[serde(default)]
    pub renewal: Renewal,
    /// probe makes the broker check that the mailbox accepts the token: `{}` is enough. Absent by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// revocationPolicy determines whether the broker revokes the tokens when the credential is deleted (RFC 7009).
    /// Defaults to Never.
    #[serde(default)]
    pub revocation_policy: RevocationPolicy,
    /// suspend stops all requests to the provider and all writes of the Secret.
    #[serde(default)]
    pub suspend: bool,
}

impl MailCredential {
    /// The namespace of the object, which the API server guarantees.
    pub fn namespace_str(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The uid of the object, which the API server guarantees.
    pub fn uid_str(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }
}

/// A reference to a MailProvider of the same namespace, or to a ClusterMailProvider.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq, Hash)]
pub struct ProviderRef {
    /// kind is the kind of the provider. Defaults to MailProvider.
    #[serde(default)]
    pub kind: ProviderKind,
    /// name is the name of the provider.
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME))]
    pub name: String,
}

/// The two kinds of providers.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum ProviderKind {
    /// A MailProvider in the credential's namespace.
    #[default]
    MailProvider,
    /// A ClusterMailProvider, which has no namespace.
    ClusterMailProvider,
}

impl ProviderKind {
    /// The kind in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MailProvider => "MailProvider",
            Self::ClusterMailProvider => "ClusterMailProvider",
        }
    }
}

/// The mailbox of a credential, and its accounts.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Mailbox {
    /// address is the mailbox, and the sender address of mail.
    #[schemars(length(min = 3, max = 254))]
    #[x_kube(validation = Rule::new(ADDRESS_RULE).message(ADDRESS_MESSAGE))]
    pub address: String,
    /// authenticateAs is the account that the token is for: the account that signs in, or the subject of `jwtBearer`.
    /// Defaults to `address`. With `oidc` and `oauth2` a plain user name is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 254))]
    #[x_kube(validation = Rule::new(ACCOUNT_RULE).message(ACCOUNT_MESSAGE))]
    pub authenticate_as: Option<String>,
    /// usernames are the user names at the mail servers, by protocol. A protocol without an entry uses `authenticateAs`.
    /// With `microsoft` and the grant `refreshToken` or `deviceCode`, IMAP and POP3 use `address` instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usernames: Option<Usernames>,
}

impl Mailbox {
    /// The account that the token is for.
    pub fn user(&self) -> &str {
        self.authenticate_as.as_deref().unwrap_or(&self.address)
    }

    /// The user name that the spec sets for `protocol`.
    pub fn username(&self, protocol: Protocol) -> Option<&str> {
        let names = self.usernames.as_ref()?;
        match protocol {
            Protocol::Smtp => names.smtp.as_deref(),
            Protocol::Imap => names.imap.as_deref(),
            Protocol::Pop3 => names.pop3.as_deref(),
        }
    }

    /// Every account that the spec names, each once: `address`, `authenticateAs` and the entries of `usernames`.
    pub fn names(&self) -> Vec<&str> {
        let usernames = Protocol::ALL.into_iter().filter_map(|protocol| self.username(protocol));
        let mut names = vec![self.address.as_str()];
        for name in [self.user()].into_iter().chain(usernames) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

/// User names at the mail servers, by protocol.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
pub struct Usernames {
    /// smtp is the user name at the SMTP server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 254))]
    #[x_kube(validation = Rule::new(ACCOUNT_RULE).message(ACCOUNT_MESSAGE))]
    pub smtp: Option<String>,
    /// imap is the user name at the IMAP server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 254))]
    #[x_kube(validation = Rule::new(ACCOUNT_RULE).message(ACCOUNT_MESSAGE))]
    pub imap: Option<String>,
    /// pop3 is the user name at the POP3 server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 254))]
    #[x_kube(validation = Rule::new(ACCOUNT_RULE).message(ACCOUNT_MESSAGE))]
    pub pop3: Option<String>,
}

fn default_protocols() -> Vec<Protocol> {
    vec![Protocol::Smtp]
}

/// Policies for the tokens of a deleted credential.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum RevocationPolicy {
    /// The broker revokes no token.
    #[default]
    Never,
    /// The broker revokes the tokens at the provider, within a minute at most.
    OnDelete,
}

/// Template of the Secret that pods mount.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[x_kube(validation = Rule::new(METADATA_SIZE_RULE).message(METADATA_SIZE_MESSAGE))]
#[serde(rename_all = "camelCase")]
pub struct SecretTemplate {
    /// name is the name of the Secret. Defaults to the credential's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME))]
    #[x_kube(validation = Rule::new(TARGET_NAME_RULE).message(TARGET_NAME_MESSAGE))]
    pub name: Option<String>,
    /// labels are more labels of the Secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 32))]
    #[schemars(schema_with = "labels_schema")]
    pub labels: BTreeMap<String, String>,
    /// annotations are more annotations of the Secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "annotations_schema")]
    pub annotations: BTreeMap<String, String>,
    /// formats are the token's formats to add as further keys. Defaults to XOAuth2.
    #[serde(default = "default_formats")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic, validation = Rule::new(UNIQUE_RULE).message(UNIQUE_MESSAGE))]
    pub formats: Vec<Format>,
    /// data are further keys, with `${placeholders}`. `$$` is a dollar. `${name:url}` is percent-encoded, `${name:json}` is
    /// escaped for a JSON string.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "data_schema")]
    pub data: BTreeMap<String, String>,
    /// deletionPolicy determines whether the Secret is deleted with the credential. Defaults to Delete.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

impl Default for SecretTemplate {
    fn default() -> Self {
        Self {
            name: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            formats: default_formats(),
            data: BTreeMap::new(),
            deletion_policy: DeletionPolicy::default(),
        }
    }
}

fn default_formats() -> Vec<Format> {
    vec![Format::XOAuth2]
}

fn labels_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let mut schema = map_schema(32, 63, &metadata_rules());
    schema.insert(
        "additionalProperties".to_owned(),
        serde_json::json!({"type": "string", "maxLength": 63, "pattern": LABEL_VALUE}),
    );
    schema
}

fn annotations_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    map_schema(32, 4096, &metadata_rules())
}

fn data_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    map_schema(32, 4096, &secret_keys::rules())
}

fn map_schema(entries: usize, value: usize, rules: &[(String, String)]) -> schemars::Schema {
    let rules: Vec<_> =
        rules.iter().map(|(rule, message)| serde_json::json!({"rule": rule, "message": message})).collect();
    schemars::json_schema!({
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": value},
        "maxProperties": entries,
        "x-kubernetes-validations": rules,
    })
}

fn metadata_rules() -> Vec<(String, String)> {
    METADATA_RULES.iter().map(|(rule, message)| ((*rule).to_owned(), (*message).to_owned())).collect()
}

const METADATA_RULES: &[(&str, &str)] = &[
    (
        "!self.exists(k, k == 'app.kubernetes.io/managed-by' || k.startsWith('mailtoken.dev/'))",
        "app.kubernetes.io/managed-by and mailtoken.dev/ belong to the broker: choose another key",
    ),
    (
        r"self.all(k, size(k) <= 317 && k.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))",
        "keys must be label or annotation keys such as team or example.org/team",
    ),
];

/// Formats of the token in the Secret.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// `xoauth2`: the initial response of Google's and Microsoft's SASL mechanism.
    XOAuth2,
    /// `oauthbearer`: the initial response of RFC 7628.
    OAuthBearer,
    /// `sasl-xoauth2.json`: the token file of Postfix's sasl-xoauth2.
    SaslXoauth2,
    /// `token.json`: the token and its expiry.
    #[serde(rename = "TokenJSON")]
    TokenJson,
}

/// Policies for the Secret of a deleted credential.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// Kubernetes deletes the Secret, by its owner reference.
    #[default]
    Delete,
    /// The Secret stays.
    Retain,
}

/// Settings for the renewal time of a token.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Renewal {
    /// minValidity is the minimum validity of a token that a pod reads. Defaults to 10m. Some servers refuse tokens that
    /// expire soon (Microsoft's High Volume Email: 501 5.5.127).
    #[serde(default = "default_min_validity")]
    #[schemars(schema_with = "duration_schema")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')").message("must be at most 24h"))]
    pub min_validity: Duration,
    /// renewBefore is the time before the expiry at which the broker renews, at most half the lifetime. Overrides `minValidity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration_schema")]
    #[x_kube(validation = Rule::new("duration(self) > duration('0s') && duration(self) <= duration('24h')")
        .message("must be more than 0s and at most 24h"))]
    pub renew_before: Option<Duration>,
}

impl Default for Renewal {
    fn default() -> Self {
        Self { min_validity: default_min_validity(), renew_before: None }
    }
}

/// Ten minutes, the requirement of Microsoft's High Volume Email.
fn default_min_validity() -> Duration {
    std::time::Duration::from_secs(600).into()
}
