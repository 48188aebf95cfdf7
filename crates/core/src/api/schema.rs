//! Parts of the CRDs that the derive cannot express, and the patterns that bound every string.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps,
};
use serde_json::json;

/// Pattern of a Kubernetes object name (RFC 1123 subdomain).
pub(super) const OBJECT_NAME: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// Pattern of a label value, which may be empty.
pub(super) const LABEL_VALUE: &str = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";
/// Pattern of a key of a Secret or ConfigMap.
pub(super) const DATA_KEY: &str = r"^[-._a-zA-Z0-9]+$";
/// Pattern of a scope (RFC 6749 appendix A.4).
pub(super) const SCOPE: &str = r"^[\x21\x23-\x5B\x5D-\x7E]+$";
/// Pattern of a client identifier (RFC 6749 appendix A.1), without spaces at its ends.
pub(super) const CLIENT_ID: &str = r"^[\x21-\x7E]([\x20-\x7E]*[\x21-\x7E])?$";
/// Pattern of a token type (RFC 8693 section 3): an absolute URI.
pub(super) const TOKEN_TYPE: &str = r"^[A-Za-z][A-Za-z0-9+.-]*:[\x21-\x7E]+$";
/// Pattern of a host name or address literal.
pub(super) const HOST: &str = r"^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)$";
/// Pattern of a duration of hours, minutes and seconds.
const DURATION: &str = r"^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$";

/// The schema of a duration.
pub(super) fn duration_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "minLength": 2, "maxLength": 18, "pattern": DURATION})
}

/// Pattern of a Microsoft Entra tenant: its id or one of its domains.
pub(super) const TENANT: &str = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$";

/// CEL: `self` is a URL to which the broker may send a secret.
pub(super) const URL_RULE: &str = concat!(
    r"self.matches('^https://([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\\[[0-9A-Fa-f:.]+\\])",
    r"(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?",
    r"(/[A-Za-z0-9._~!$&\'()*+,;=:@%/-]*)?(\\?[A-Za-z0-9._~!$&\'()*+,;=:@%/?-]*)?$')",
);
pub(super) const URL_MESSAGE: &str = "must be an https:// URL with an ASCII host and without user info, spaces or \
                                      fragment, such as https://id.example.org/token";

/// The characters of a local part or user name, for a class in a pattern: any printable character except blanks, quotes,
/// commas and brackets (RFC 5321 dot-strings without the rule for dots, RFC 6531).
macro_rules! local {
    () => {
        r"\p{L}\p{M}\p{N}!#$%&'*+./:;=?\\^_`{|}~-"
    };
}

/// The characters of a local part inside a CEL string in single quotes.
macro_rules! cel_local {
    () => {
        r"[\\p{L}\\p{M}\\p{N}!#$%&\'*+./:;=?\\\\^_`{|}~-]+"
    };
}

/// A domain inside a CEL string, with non-ASCII letters (RFC 6531).
macro_rules! cel_domain {
    () => {
        concat!(
            r"@[\\p{L}\\p{N}]([\\p{L}\\p{M}\\p{N}-]*[\\p{L}\\p{M}\\p{N}])?",
            r"(\\.[\\p{L}\\p{N}]([\\p{L}\\p{M}\\p{N}-]*[\\p{L}\\p{M}\\p{N}])?)*"
        )
    };
}

/// CEL: `self` is an e-mail address.
pub(super) const ADDRESS_RULE: &str = concat!("self.matches('^", cel_local!(), cel_domain!(), "$')");
pub(super) const ADDRESS_MESSAGE: &str = "must be an e-mail address such as billing@example.org";

/// CEL: `self` is an e-mail address or a plain user name.
pub(super) const ACCOUNT_RULE: &str = concat!("self.matches('^", cel_local!(), "(", cel_domain!(), ")?$')");
pub(super) const ACCOUNT_MESSAGE: &str = "must be an e-mail address such as billing@example.org, or, with oidc and \
                                          oauth2, a plain user name without blanks, quotes, commas and brackets";

/// Pattern of an address or user name in which `*` matches any characters except `@`. It is no CEL rule, because 64 lists
/// of 256 entries exceed the API server's CEL budget.
pub(super) const MAILBOX_PATTERN: &str = concat!("^[", local!(), r"]+(@[\p{L}\p{M}\p{N}*.-]+)?$");

/// CEL: `self` is a date that the broker can calculate with, see [`super::names::time`].
pub(super) const DATE_RULE: &str =
    "self >= timestamp('1970-01-01T00:00:00Z') && self < timestamp('9000-01-01T00:00:00Z')";
pub(super) const DATE_MESSAGE: &str = "must be between the years 1970 and 8999";

/// CEL: no item occurs twice. The lists are atomic: server-side apply would merge two managers' items of a set. Most lists
/// have one item, which needs no comparison.
pub(super) const UNIQUE_RULE: &str = "size(self) < 2 || self.all(item, self.exists_one(other, other == item))";
/// CEL: the probe uses only protocols of the credential, and POP3 only if `spec.probe` names POP3.
pub(super) const PROBE_RULE: &str = "!has(self.probe) || (has(self.probe.protocols) \
                                     ? self.probe.protocols.all(p, has(self.protocols) ? p in self.protocols : p == 'SMTP') \
                                     : !has(self.protocols) || self.protocols.exists(p, p != 'POP3'))";
pub(super) const PROBE_MESSAGE: &str =
    "probe.protocols must be among spec.protocols, and POP3 must be named there: its login locks the mailbox";
pub(super) const UNIQUE_MESSAGE: &str = "no duplicates: name each once";

/// CEL: bounds the size of the labels and annotations of one Secret. Kubernetes allows 256 KiB of annotations, and each
/// copy of the object in the broker's memory contains them.
pub(super) const METADATA_SIZE_RULE: &str = "(has(self.labels) ? self.labels.map(k, size(k) + size(self.labels[k])).sum() : 0) \
                                             + (has(self.annotations) ? self.annotations.map(k, size(k) + size(bytes(self.annotations[k]))).sum() : 0) <= 16384";
pub(super) const METADATA_SIZE_MESSAGE: &str =
    "spec.secret.labels and spec.secret.annotations have at most 16384 bytes together";

/// CEL: names of grant Secrets are reserved for the broker. The rule belongs to the field `name`, so the API server
/// evaluates it only if the spec has a name.
pub(super) const TARGET_NAME_RULE: &str = "!self.endsWith('-grant')";
pub(super) const TARGET_NAME_MESSAGE: &str =
    "spec.secret.name must not end in -grant: the broker keeps refresh tokens in Secrets of such names";

/// CEL: the spec names exactly one provider.
pub(super) const ONE_PROVIDER_RULE: &str = "[has(self.microsoft), has(self.google), has(self.yahoo), has(self.fastmail), has(self.oidc), has(self.oauth2)]\
                                            .filter(given, given).size() == 1";
pub(super) const ONE_PROVIDER_MESSAGE: &str =
    "name exactly one provider: microsoft, google, yahoo, fastmail, oidc or oauth2";

/// Pattern of the address of a Google service account. It is strict, because the address becomes a part of a path.
pub(super) const SERVICE_ACCOUNT: &str =
    r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?@[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?\.gserviceaccount\.com$";

/// CEL: at Google, a Kubernetes ServiceAccount's token only obtains a signature of a Google service account.
pub(super) const KEYLESS_RULE: &str = "!has(self.google) || has(self.google.serviceAccount) == (has(self.client.authentication) && self.client.authentication.exists(entry, has(entry.serviceAccountToken)))";
pub(super) const KEYLESS_MESSAGE: &str = "google.serviceAccount and serviceAccountToken go together: name the Google service account, such as mailer@project.iam.gserviceaccount.com, and the token that is exchanged for its signature";

/// CEL: the client has an id, except with a Google service account.
pub(super) const CLIENT_ID_RULE: &str = "has(self.client.id) || (has(self.google) && has(self.google.serviceAccount)) || (has(self.client.authentication) && self.client.authentication.exists(entry, has(entry.serviceAccountKey)))";
pub(super) const CLIENT_ID_MESSAGE: &str =
    "name the client in spec.client.id; only with a serviceAccountKey or google.serviceAccount may it be left out";

/// CEL: only Google has key files of service accounts.
pub(super) const KEY_FILE_RULE: &str = "has(self.google) || !has(self.client.authentication) || !self.client.authentication.exists(entry, has(entry.serviceAccountKey))";
pub(super) const KEY_FILE_MESSAGE: &str = "serviceAccountKey is Google's: use privateKeyJWT with this provider";

/// CEL: a MailProvider cannot use the broker's own identity (KEDA's CVE-2026-77524).
pub(super) const OWN_IDENTITY_RULE: &str = "!has(self.client.authentication) || self.client.authentication.all(entry, !has(entry.serviceAccountToken) || has(entry.serviceAccountToken.serviceAccountRef))";
pub(super) const OWN_IDENTITY_MESSAGE: &str = "name a ServiceAccount of this namespace in serviceAccountToken.serviceAccountRef: only a ClusterMailProvider may use the broker's own identity";

/// Pattern of the `aud` of an assertion: a keyword or a URL.
pub(super) const AUDIENCE: &str = r"^(TokenURL|Issuer|https://[A-Za-z0-9\[][A-Za-z0-9._~!$&'()*+,;=:@%/?\[\]-]*)$";

/// CEL: only an OpenID Connect provider has an issuer.
pub(super) const AUDIENCE_RULE: &str = "has(self.oidc) || !has(self.client.authentication) || !self.client.authentication.exists(entry, has(entry.privateKeyJWT) && has(entry.privateKeyJWT.audience) && entry.privateKeyJWT.audience == 'Issuer')";
pub(super) const AUDIENCE_MESSAGE: &str =
    "the audience Issuer is for oidc: use TokenURL, or write the issuer as an https URL";

/// Names of the form fields that OAuth itself defines.
const OWN_PARAMETERS: &str = "['grant_type', 'client_id', 'client_secret', 'client_assertion', 'client_assertion_type', \
                              'scope', 'refresh_token', 'assertion', 'device_code', 'subject_token', \
                              'subject_token_type', 'code', 'code_verifier', 'redirect_uri', 'username', 'password']";

/// The schema of `spec.client.parameters`.
pub(super) fn parameters_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        // Printable characters: letters, marks, numbers, punctuation, symbols and the blank.
        "additionalProperties": {"type": "string", "maxLength": 1024, "pattern": r"^[ \p{L}\p{M}\p{N}\p{P}\p{S}]*$"},
        "maxProperties": 16,
        "x-kubernetes-validations": [
            {
                "rule": "self.all(name, name.matches('^[A-Za-z0-9_.-]{1,64}$'))",
                "message": "names of parameters have 1 to 64 characters of A-Z, a-z, 0-9, '_', '.' and '-'",
            },
            {
                "rule": format!("!self.exists(name, name in {OWN_PARAMETERS})"),
                "message": "the broker sets this parameter itself: name only others, such as audience or resource",
            },
        ],
    })
}

/// CEL: the spec names exactly one grant.
pub(super) const ONE_GRANT_RULE: &str = "[has(self.clientCredentials), has(self.refreshToken), has(self.deviceCode), has(self.jwtBearer), has(self.tokenExchange)]\
                                         .filter(given, given).size() == 1";
pub(super) const ONE_GRANT_MESSAGE: &str =
    "name exactly one grant: clientCredentials, refreshToken, deviceCode, jwtBearer or tokenExchange";

/// CEL: each entry names exactly one client authentication.
pub(super) const ONE_AUTHENTICATION_RULE: &str = "[has(self.clientSecret), has(self.privateKeyJWT), has(self.serviceAccountToken), has(self.serviceAccountKey)]\
                                                  .filter(given, given).size() == 1";
pub(super) const ONE_AUTHENTICATION_MESSAGE: &str =
    "name one way in each entry: clientSecret, privateKeyJWT, serviceAccountToken or serviceAccountKey";

/// CEL: Microsoft publishes no mail servers for the DoD cloud.
pub(super) const DOD_RULE: &str = "!has(self.microsoft) || !has(self.microsoft.cloud) || self.microsoft.cloud != 'USGovDoD' \
                                   || (has(self.servers) && (has(self.servers.smtp) || has(self.servers.imap) || has(self.servers.pop3)))";
pub(super) const DOD_MESSAGE: &str =
    "the cloud USGovDoD has no published mail servers: name yours in spec.servers, such as smtp: {host: …, port: 587}";

/// Removes the default of a field from the schema. The code still has the default.
///
/// Use this for fields inside lists. Argo CD compares a list as a whole, so a default that the API server adds to an
/// item leaves the object permanently out of sync.
pub(super) fn without_default(schema: &mut schemars::Schema) {
    schema.remove("default");
}

/// Sets properties that no attribute of the derive can set. `status.observedGeneration` is -1 until the broker has
/// reconciled an object, so that kstatus (Flux) waits for the broker. The status is atomic, because only the broker
/// writes it. An owner and a comparison for each field would cost the API server a fifth more for each write
/// (docs/performance.md).
pub(super) fn finish(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let root = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let Some(root) = root else { continue };
        if let Some(status) = property(root, "status") {
            status.default = Some(JSON(json!({"observedGeneration": -1})));
            status.x_kubernetes_map_type = Some("atomic".to_owned());
        }
    }
    crd
}

/// Fields of the spec whose defaults stay in the schema, because expressions of users read them.
const WITH_DEFAULTS: [&str; 2] = ["providerRef", "suspend"];
/// Fields of the spec that name one thing as a whole: server-side apply keeps one owner instead of one for each part.
const ATOMIC: [&str; 2] = ["mailbox", "grant"];

/// Makes each write of a MailCredential cheaper for the API server: it allocates a quarter less (docs/performance.md). A
/// default that the API server adds is stored, read, converted and sent to the watches with each object, so most defaults
/// of the spec are only in the code.
pub(super) fn lean(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let root = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let spec = root.and_then(|root| property(root, "spec")).and_then(|spec| spec.properties.as_mut());
        for (name, property) in spec.into_iter().flatten() {
            if !WITH_DEFAULTS.contains(&name.as_str()) {
                remove_defaults(property);
            }
            if ATOMIC.contains(&name.as_str()) {
                property.x_kubernetes_map_type = Some("atomic".to_owned());
            }
        }
    }
    crd
}

fn remove_defaults(schema: &mut JSONSchemaProps) {
    schema.default = None;
    schema.properties.iter_mut().flat_map(|properties| properties.values_mut()).for_each(remove_defaults);
}

/// The schema of a property, if the property exists.
fn property<'a>(schema: &'a mut JSONSchemaProps, name: &str) -> Option<&'a mut JSONSchemaProps> {
    schema.properties.as_mut()?.get_mut(name)
}
