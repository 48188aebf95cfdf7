//! What the broker counts, and what it tells of each credential when it is asked.

use std::{fmt, time::Duration};

use kube::ResourceExt as _;
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text::encode},
    metrics::{MetricType, counter::Counter, family::Family, gauge::ConstGauge, histogram::Histogram, info::Info},
    registry::Registry,
};
use tokio::time::Instant;

use crate::{
    api::{ConditionType, MailCredential, Reason, condition, grant::GrantType},
    lease::Leadership,
    reconcile::stores::Mirror,
};

/// Seconds: a token endpoint answers in tens of milliseconds to seconds; the request time-out is 10 s by default.
const DURATION_BUCKETS: [f64; 9] = [0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// All metrics, with the prefix `mailtoken_`.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<ProviderLabels, Histogram>,
    errors: Family<ErrorLabels, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    provider: &'static str,
    grant: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ProviderLabels {
    provider: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ErrorLabels {
    category: &'static str,
}

impl Metrics {
    /// Metrics that have counted nothing.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("mailtoken");
        let requests = Family::default();
        registry.register(
            "token_requests",
            "Token requests, by preset of the provider, grant and outcome",
            requests.clone(),
        );
        let durations =
            Family::<_, _>::new_with_constructor((|| Histogram::new(DURATION_BUCKETS)) as fn() -> Histogram);
        registry.register("token_request_duration_seconds", "How long token requests took", durations.clone());
        let errors = Family::default();
        registry.register("reconcile_errors", "Steps that failed between the broker and Kubernetes", errors.clone());
        registry.register("build", "The running version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self { registry: Mutex::new(registry), requests, durations, errors }
    }

    /// From now on tells of each credential, and whether this broker leads.
    pub fn watch(&self, credentials: Mirror<MailCredential>, leadership: Leadership) {
        self.registry.lock().register_collector(Box::new(Credentials { credentials, leadership }));
    }

    /// Counts a failed step.
    pub fn reconcile_error(&self, category: &'static str) {
        self.errors.get_or_create(&ErrorLabels { category }).inc();
    }

    /// Begins to time a token request.
    #[expect(clippy::disallowed_methods, reason = "a duration, not a date: nothing is decided by it")]
    pub fn token_request(&self, preset: &'static str) -> RequestTimer<'_> {
        RequestTimer { metrics: self, preset, since: Instant::now() }
    }

    /// The OpenMetrics text.
    ///
    /// # Errors
    /// None that writing to a `String` can have.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock())?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// A token request that is being timed.
pub struct RequestTimer<'a> {
    metrics: &'a Metrics,
    preset: &'static str,
    since: Instant,
}

impl RequestTimer<'_> {
    /// Counts the request with how it ended.
    pub fn observe(self, grant: GrantType, outcome: Reason) {
        let elapsed: Duration = self.since.elapsed();
        let outcome = if outcome == Reason::RenewalSucceeded { "success" } else { outcome.as_str() };
        self.metrics
            .requests
            .get_or_create(&RequestLabels { provider: self.preset, grant: grant.as_str(), outcome })
            .inc();
        self.metrics.durations.get_or_create(&ProviderLabels { provider: self.preset }).observe(elapsed.as_secs_f64());
    }
}

/// Reads the credentials as the watch shows them when somebody asks: nothing is kept, nothing has to be forgotten.
struct Credentials {
    credentials: Mirror<MailCredential>,
    leadership: Leadership,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Credentials")
    }
}

impl Collector for Credentials {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let credentials = self.credentials.all();
        let mut gauge = |name: &str, help: &str, value: &dyn Fn(&MailCredential) -> Option<i64>| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (credential, value) in
                credentials.iter().filter_map(|credential| Some((credential, value(credential)?)))
            {
                let labels =
                    [("namespace", credential.namespace().unwrap_or_default()), ("name", credential.name_any())];
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
            Ok(())
        };
        gauge("credential_ready", "Whether the Secret holds a valid token", &|credential| {
            let status = credential.status.as_ref()?;
            Some(i64::from(condition::is_true(&status.conditions, ConditionType::Ready)))
        })?;
        gauge("token_expiration_timestamp_seconds", "When the token in the Secret ends", &|credential| {
            Some(credential.status.as_ref()?.token.as_ref()?.expires_at.0.as_second())
        })?;
        gauge("token_renewal_timestamp_seconds", "When the token in the Secret will be renewed", &|credential| {
            let token = credential.status.as_ref()?.token.as_ref()?;
            (!credential.spec.suspend).then(|| token.renewal_time.0.as_second())
        })?;
        gauge("grant_expiration_timestamp_seconds", "When the refresh token ends", &|credential| {
            Some(credential.status.as_ref()?.grant.as_ref()?.expires_at.as_ref()?.0.as_second())
        })?;
        gauge("client_credential_expiration_timestamp_seconds", "When the client secret in use ends", &|credential| {
            Some(credential.status.as_ref()?.client.as_ref()?.expires_at.as_ref()?.0.as_second())
        })?;
        let leader = encoder.encode_descriptor("leader", "Whether this broker leads", None, MetricType::Gauge)?;
        ConstGauge::new(i64::from(self.leadership.is_leader())).encode(leader)
    }
}
