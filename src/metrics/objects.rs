//! Metrics of credentials and providers. Each collection reads the objects from the watches' stores. So a series ends
//! with its object, and the metrics store nothing.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use kube::ResourceExt as _;
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::{
    api::{
        ConditionType, MailCredential, Reason, condition,
        provider_object::{ProviderKey, ProviderObject},
        status::{MailCredentialStatus, TokenStatus},
    },
    lease::Leadership,
    providers,
    stores::Stores,
};

/// Failed token requests by provider and reason, for existing providers.
#[derive(Default)]
pub(super) struct ProviderErrors(Mutex<HashMap<ProviderKey, BTreeMap<&'static str, u64>>>);

impl ProviderErrors {
    /// Counts a failed token request.
    pub(super) fn inc(&self, provider: &ProviderKey, reason: Reason) {
        *self.0.lock().entry(provider.clone()).or_default().entry(reason.as_str()).or_default() += 1;
    }
}

/// The sources of the metrics of objects.
pub(super) struct Objects {
    /// The stores of the watches.
    pub(super) stores: Stores,
    /// Whether this broker leads.
    pub(super) leadership: Leadership,
    /// Counts of failed token requests.
    pub(super) errors: Arc<ProviderErrors>,
    /// Counts the refresh tokens that are only in memory.
    pub(super) unstored: Box<dyn Fn() -> usize + Send + Sync>,
}

impl fmt::Debug for Objects {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Objects")
    }
}

impl Collector for Objects {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let providers = self.providers();
        // Keep only these fields of each credential: all objects at the same time would take three times the memory.
        let rows: Vec<_> = self.stores.credentials.all().map(|credential| Row::of(&credential, &providers)).collect();
        self.credentials(&mut encoder, &rows)?;
        self.info(&mut encoder, &rows, &providers)?;
        self.provider_metrics(&mut encoder, &rows, &providers)?;
        let unstored = i64::try_from((self.unstored)()).unwrap_or(i64::MAX);
        let help = "Refresh tokens that are only in memory, because they are not stored yet";
        single(&mut encoder, "refresh_tokens_unstored", help, unstored)?;
        single(&mut encoder, "leader", "Whether this broker leads", i64::from(self.leadership.is_leader()))
    }
}

/// The values of one credential for the metrics.
struct Row {
    namespace: String,
    name: String,
    provider: ProviderKey,
    grant: &'static str,
    suspended: bool,
    /// Whether the credential is ready; `None` without a status.
    ready: Option<bool>,
    /// The reason of a credential that is not ready.
    reason: Option<&'static str>,
    /// Whether the mail servers accept the token; `None` while unknown.
    authorized: Option<bool>,
    /// The expiry of the token. All times here are seconds since 1970.
    expires: Option<i64>,
    renewal: Option<i64>,
    grant_expires: Option<i64>,
    client_expires: Option<i64>,
}

impl Row {
    fn of(credential: &MailCredential, providers: &HashMap<ProviderKey, ProviderObject>) -> Self {
        let key = ProviderKey::of(credential);
        let token = token(credential);
        let grant = status(credential).and_then(|status| status.grant.as_ref()?.expires_at.as_ref());
        Self {
            namespace: credential.namespace().unwrap_or_default(),
            name: credential.name_any(),
            grant: credential.spec.grant.kind().as_str(),
            suspended: credential.spec.suspend,
            ready: credential.status.as_ref().map(is_ready),
            reason: credential.status.as_ref().filter(|status| !is_ready(status)).map(not_ready_reason),
            authorized: credential.status.as_ref().and_then(authorized),
            expires: token.map(|token| token.expires_at.0.as_second()),
            renewal: token.map(|token| token.renewal_time.0.as_second()),
            grant_expires: grant.map(|end| end.0.as_second()),
            client_expires: providers.get(&key).and_then(|provider| client_end(credential, provider)),
            provider: key,
        }
    }

    fn labels(&self) -> [Label; 2] {
        [("namespace", self.namespace.clone()), ("name", self.name.clone())]
    }
}

impl Objects {
    fn providers(&self) -> HashMap<ProviderKey, ProviderObject> {
        self.stores.all_providers().map(|object| (object.key(), object)).collect()
    }

    fn credentials(&self, encoder: &mut DescriptorEncoder<'_>, rows: &[Row]) -> fmt::Result {
        let mut gauge = |name: &str, help: &str, value: &dyn Fn(&Row) -> Option<i64>| {
            let samples = rows.iter().filter_map(|row| Some((row.labels(), value(row)?)));
            gauges(encoder, name, help, samples)
        };
        gauge("credential_ready", "Whether the Secret holds a valid token", &|row| row.ready.map(i64::from))?;
        let help = "Whether the mail servers accept the token; absent while unknown";
        gauge("mailbox_authorized", help, &|row| row.authorized.map(i64::from))?;
        gauge("credential_suspended", "1 while spec.suspend is true", &|row| row.suspended.then_some(1))?;
        let help = "Time at which the token in the Secret expires";
        gauge("token_expiration_timestamp_seconds", help, &|row| row.expires)?;
        let help = "Time at which the broker renews the token in the Secret";
        gauge("token_renewal_timestamp_seconds", help, &|row| row.renewal)?;
        let help = "Time at which the refresh token expires, if known";
        gauge("grant_expiration_timestamp_seconds", help, &|row| row.grant_expires)?;
        let reasons = rows.iter().filter_map(|row| {
            let [namespace, name] = row.labels();
            Some(([namespace, name, ("reason", row.reason?.to_owned())], 1))
        });
        gauges(encoder, "credential_not_ready", "1 while Ready is not True, with its reason", reasons)
    }

    /// Writes the series with the labels that queries join with a credential's other metrics.
    fn info(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        rows: &[Row],
        providers: &HashMap<ProviderKey, ProviderObject>,
    ) -> fmt::Result {
        let preset = |object: &ProviderObject| providers::profile(object.spec()).map_or("", |profile| profile.preset);
        let presets: HashMap<_, _> = providers.iter().map(|(key, object)| (key, preset(object))).collect();
        let samples = rows.iter().map(|row| {
            let preset = presets.get(&row.provider).copied().unwrap_or_default();
            let [namespace, name] = row.labels();
            let about = [
                namespace,
                name,
                ("provider_kind", row.provider.kind.as_str().to_owned()),
                ("provider", row.provider.name.clone()),
                ("preset", preset.to_owned()),
                ("grant", row.grant.to_owned()),
            ];
            (about, 1)
        });
        gauges(encoder, "credential_info", "1, with the provider, preset and grant of a credential", samples)
    }

    fn provider_metrics(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        rows: &[Row],
        providers: &HashMap<ProviderKey, ProviderObject>,
    ) -> fmt::Result {
        let ready = providers.iter().filter_map(|(key, object)| {
            let ready = condition::is_true(&object.status()?.conditions, ConditionType::Ready);
            Some((provider_labels(key, "name"), i64::from(ready)))
        });
        gauges(encoder, "provider_ready", "Whether the provider is ready", ready)?;

        // Use the earliest expiry of the entries in use: one credential may already use the next entry.
        let mut ends: HashMap<&ProviderKey, i64> = HashMap::new();
        for row in rows {
            let Some(end) = row.client_expires else { continue };
            ends.entry(&row.provider).and_modify(|earliest| *earliest = end.min(*earliest)).or_insert(end);
        }
        let ends = ends.iter().map(|(key, end)| (provider_labels(key, "provider"), *end));
        let help = "Time at which the client secret or certificate in use expires, if known";
        gauges(encoder, "client_credential_expiration_timestamp_seconds", help, ends)?;

        let mut errors = self.errors.0.lock();
        errors.retain(|key, _| providers.contains_key(key));
        let help = "Token requests that returned no token, by provider";
        let mut family = encoder.encode_descriptor("token_request_errors", help, None, MetricType::Counter)?;
        for (key, reasons) in errors.iter() {
            for (reason, count) in reasons {
                let [kind, namespace, name] = provider_labels(key, "name");
                let labels = [kind, namespace, name, ("reason", (*reason).to_owned())];
                ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

type Label = (&'static str, String);

fn gauges<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl Iterator<Item = (L, i64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in samples {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn single(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

/// Returns the labels of a provider. A ClusterMailProvider has no namespace; Prometheus treats an empty label as
/// absent.
fn provider_labels(key: &ProviderKey, name: &'static str) -> [Label; 3] {
    [("kind", key.kind.as_str().to_owned()), ("namespace", key.namespace.clone()), (name, key.name.clone())]
}

fn is_ready(status: &MailCredentialStatus) -> bool {
    condition::is_true(&status.conditions, ConditionType::Ready)
}

fn authorized(status: &MailCredentialStatus) -> Option<bool> {
    match condition::find(&status.conditions, ConditionType::MailboxAuthorized)?.status.as_str() {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

/// Returns the reason if it is one of the broker's own. Other writers of the status may use other reasons, but the
/// number of series must be bounded.
fn not_ready_reason(status: &MailCredentialStatus) -> &'static str {
    match condition::find(&status.conditions, ConditionType::Ready) {
        None => Reason::Pending.as_str(),
        Some(ready) => Reason::parse(&ready.reason).map_or("Unknown", Reason::as_str),
    }
}

/// Returns the status of a credential that is not suspended: a suspended credential needs no alert.
fn status(credential: &MailCredential) -> Option<&MailCredentialStatus> {
    credential.status.as_ref().filter(|_| !credential.spec.suspend)
}

fn token(credential: &MailCredential) -> Option<&TokenStatus> {
    status(credential)?.token.as_ref()
}

/// Returns the expiry of a credential's client authentication in seconds: from the provider's current spec, otherwise
/// from the last request (a certificate's expiry is not in the spec).
fn client_end(credential: &MailCredential, provider: &ProviderObject) -> Option<i64> {
    let used = status(credential)?.client.as_ref()?;
    let entries = &provider.spec().client.authentication;
    let entry = usize::try_from(used.index).ok().and_then(|index| entries.get(index))?;
    let end = match &entry.client_secret {
        Some(secret) => secret.expires_at.as_ref(),
        None => used.expires_at.as_ref(),
    };
    Some(end?.0.as_second())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn credential(suspended: bool, status: serde_json::Value) -> MailCredential {
        serde_json::from_value(json!({
            "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailCredential", "metadata": {"name": "billing", "namespace": "shop"},
            "spec": {
                "providerRef": {"name": "idp"}, "mailbox": {"address": "billing@example.org"},
                "grant": {"clientCredentials": {}}, "suspend": suspended,
            },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_reason_that_another_writer_made_up_makes_no_series_of_its_own() {
        let with = |conditions| {
            let credential = credential(false, json!({"conditions": conditions}));
            not_ready_reason(credential.status.as_ref().unwrap())
        };
        let ready = |reason: &str| {
            json!([{
                "type": "Ready", "status": "False", "reason": reason, "message": "", "lastTransitionTime": "2027-01-15T08:00:00Z",
            }])
        };
        assert_eq!(with(json!([])), "Pending");
        assert_eq!(with(ready("InvalidClient")), "InvalidClient");
        assert_eq!(with(ready("M4deUp")), "Unknown");
    }

    #[test]
    fn a_suspended_credential_has_no_times() {
        let status = json!({"token": {
            "issuedAt": "2027-01-15T08:00:00Z", "expiresAt": "2027-01-15T09:00:00Z", "renewalTime": "2027-01-15T08:48:00Z",
            "fingerprint": "x", "length": 1,
        }});
        assert!(token(&credential(false, status.clone())).is_some());
        assert!(token(&credential(true, status)).is_none());
    }

    #[test]
    fn the_end_of_a_client_secret_is_the_specs_and_that_of_a_certificate_the_statuss() {
        let provider = |entries: serde_json::Value| {
            let provider = json!({
                "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailProvider", "metadata": {"name": "idp", "namespace": "shop"},
                "spec": {"oauth2": {"tokenURL": "https://x/t"}, "client": {"id": "c", "authentication": entries}},
            });
            ProviderObject::Namespaced(Arc::new(serde_json::from_value(provider).unwrap()))
        };
        let key = |name: &str| json!({"name": "s", "key": name});
        let secret = |end: &str| json!({"clientSecret": {"secretRef": key("k"), "expiresAt": end}});
        let certificate = json!({"privateKeyJWT": {"keyRef": key("k"), "certificateRef": key("c")}});
        let used = |index: i32| {
            let client = json!({"method": "x", "index": index, "expiresAt": "2027-01-01T00:00:00Z"});
            credential(false, json!({"client": client}))
        };
        let second = |text: &str| Some(text.parse::<k8s_openapi::jiff::Timestamp>().unwrap().as_second());
        let provider = provider(json!([secret("2028-01-01T00:00:00Z"), certificate]));
        assert_eq!(client_end(&used(0), &provider), second("2028-01-01T00:00:00Z"), "it was renewed since");
        assert_eq!(client_end(&used(1), &provider), second("2027-01-01T00:00:00Z"));
        assert_eq!(client_end(&used(2), &provider), None, "the entry was removed");
    }
}
