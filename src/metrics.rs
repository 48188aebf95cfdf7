//! The broker's counters, and the metrics of each credential. The broker computes the latter at each scrape.

mod objects;
mod process;

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, histogram::Histogram, info::Info},
    registry::Registry,
};
use tokio::time::Instant;

use crate::{
    api::{Reason, credential::Protocol, grant::GrantType, probe::ProbeOutcome, provider_object::ProviderKey},
    lease::Leadership,
    metrics::{
        objects::{Objects, ProviderErrors},
        process::Process,
    },
    stores::Stores,
};

/// Bucket bounds in seconds: a token endpoint responds in tens of milliseconds to seconds. The default timeout of
/// requests is 10 s.
const DURATION_BUCKETS: [f64; 9] = [0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The prefix of the broker's own metrics. The metrics of the process have no prefix.
const PREFIX: &str = "mailtoken";

/// The kinds that the sweep checks, in `mailtoken_sweep_enqueued_total`.
pub const SWEPT: [&str; 2] = ["credential", "provider"];

/// All metrics. The number of series is bounded: labels are constants, or names of existing objects.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<Labels<3>, Counter>,
    durations: Family<Labels<1>, Histogram>,
    errors: Family<Labels<1>, Counter>,
    provider_errors: Arc<ProviderErrors>,
    swept: Family<Labels<1>, Counter>,
    events_dropped: Counter,
    probes: Family<Labels<3>, Counter>,
    probe_durations: Family<Labels<1>, Histogram>,
}

/// Labels of a series: constants, which bound the number of series.
type Labels<const N: usize> = [(&'static str, &'static str); N];

impl Metrics {
    /// Creates metrics with all counts at zero.
    pub fn new() -> Self {
        let mut root = Registry::default();
        root.register_collector(Box::new(Process));
        let registry = root.sub_registry_with_prefix(PREFIX);
        let requests = Family::default();
        registry.register(
            "token_requests",
            "Token requests, by preset of the provider, grant and outcome",
            requests.clone(),
        );
        let durations =
            Family::<_, _>::new_with_constructor((|| Histogram::new(DURATION_BUCKETS)) as fn() -> Histogram);
        registry.register("token_request_duration_seconds", "Duration of token requests", durations.clone());
        let errors = Family::default();
        registry.register("reconcile_errors", "Failed calls of the Kubernetes API, by category", errors.clone());
        let swept = Family::<Labels<1>, Counter>::default();
        registry.register(
            "sweep_enqueued",
            "Objects that only the sweep over all objects enqueued: 0 in normal operation",
            swept.clone(),
        );
        for kind in SWEPT {
            drop(swept.get_or_create(&[("kind", kind)]));
        }
        let events_dropped = Counter::default();
        registry.register(
            "events_dropped",
            "Events that the broker did not write, because their namespace had too many",
            events_dropped.clone(),
        );
        let probes = Family::default();
        registry.register(
            "probes",
            "Logins at mail servers, by protocol, outcome and reason of MailboxAuthorized",
            probes.clone(),
        );
        let probe_durations =
            Family::<_, _>::new_with_constructor((|| Histogram::new(DURATION_BUCKETS)) as fn() -> Histogram);
        registry.register("probe_duration_seconds", "Duration of logins at mail servers", probe_durations.clone());
        registry.register("build", "The running version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let provider_errors = Arc::default();
        Self {
            registry: Mutex::new(root),
            requests,
            durations,
            errors,
            provider_errors,
            swept,
            events_dropped,
            probes,
            probe_durations,
        }
    }

    /// Starts to export the metrics of all credentials and providers, the leadership, and the number of refresh tokens
    /// that exist only in memory. `unstored` returns this number.
    pub fn watch(&self, stores: Stores, leadership: Leadership, unstored: impl Fn() -> usize + Send + Sync + 'static) {
        let errors = self.provider_errors.clone();
        let objects = Objects { stores, leadership, errors, unstored: Box::new(unstored) };
        self.registry.lock().sub_registry_with_prefix(PREFIX).register_collector(Box::new(objects));
    }

    /// Counts a token request of a provider that returned no token.
    pub fn token_request_error(&self, provider: &ProviderKey, reason: Reason) {
        self.provider_errors.inc(provider, reason);
    }

    /// Counts a failed step by the category of its error.
    pub fn reconcile_error(&self, category: &'static str) {
        self.errors.get_or_create(&[("category", category)]).inc();
    }

    /// Counts an object that only the sweep enqueued.
    pub fn swept(&self, kind: &'static str) {
        self.swept.get_or_create(&[("kind", kind)]).inc();
    }

    /// Counts a dropped Event.
    pub fn event_dropped(&self) {
        self.events_dropped.inc();
    }

    /// Returns the timer of a token request. The timer starts at [`RequestTimer::sent`].
    pub fn token_request(&self, preset: &'static str) -> RequestTimer<'_> {
        RequestTimer { metrics: self, preset, since: OnceLock::new() }
    }

    /// Returns the timer of a login at a mail server. The timer has started.
    #[expect(clippy::disallowed_methods, reason = "a duration, not a date: nothing is decided by it")]
    pub fn login(&self, protocol: Protocol) -> LoginTimer<'_> {
        LoginTimer { metrics: self, protocol: protocol.as_str(), since: Instant::now() }
    }

    /// Renders the OpenMetrics text.
    ///
    /// # Errors
    /// Never, because a write to a `String` cannot fail.
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

/// The timer of a token request.
pub struct RequestTimer<'a> {
    metrics: &'a Metrics,
    preset: &'static str,
    since: OnceLock<Instant>,
}

impl RequestTimer<'_> {
    /// Starts the timer. Earlier waiting does not count as the provider's time.
    #[expect(clippy::disallowed_methods, reason = "a duration, not a date: nothing is decided by it")]
    pub fn sent(&self) {
        self.since.get_or_init(Instant::now);
    }

    /// Counts the request with its outcome.
    pub fn observe(self, grant: GrantType, outcome: Reason) {
        let outcome = if outcome == Reason::RenewalSucceeded { "success" } else { outcome.as_str() };
        let labels = [("preset", self.preset), ("grant", grant.as_str()), ("outcome", outcome)];
        self.metrics.requests.get_or_create(&labels).inc();
        if let Some(since) = self.since.get() {
            let elapsed = since.elapsed().as_secs_f64();
            self.metrics.durations.get_or_create(&[("preset", self.preset)]).observe(elapsed);
        }
    }
}

/// The timer of a login at a mail server.
pub struct LoginTimer<'a> {
    metrics: &'a Metrics,
    protocol: &'static str,
    since: Instant,
}

impl LoginTimer<'_> {
    /// Counts the login with its outcome.
    pub fn observe(self, outcome: ProbeOutcome, reason: Reason) {
        let Self { metrics, protocol, since } = self;
        let labels = [("protocol", protocol), ("outcome", outcome.as_str()), ("reason", reason.as_str())];
        metrics.probes.get_or_create(&labels).inc();
        let elapsed = since.elapsed().as_secs_f64();
        metrics.probe_durations.get_or_create(&[("protocol", protocol)]).observe(elapsed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_presets_name_and_the_time_from_their_sending() {
        let metrics = Metrics::new();
        metrics.token_request("oauth2").observe(GrantType::ClientCredentials, Reason::EgressDenied);
        let sent = metrics.token_request("google");
        sent.sent();
        sent.observe(GrantType::JwtBearer, Reason::RenewalSucceeded);
        let text = metrics.text().unwrap();
        for line in [
            r#"mailtoken_token_requests_total{preset="oauth2",grant="clientCredentials",outcome="EgressDenied"} 1"#,
            r#"mailtoken_token_requests_total{preset="google",grant="jwtBearer",outcome="success"} 1"#,
            r#"mailtoken_token_request_duration_seconds_count{preset="google"} 1"#,
            "# TYPE process_resident_memory_bytes gauge",
            "# TYPE process_cpu_seconds counter",
        ] {
            assert!(text.lines().any(|reported| reported == line), "{line}\n{text}");
        }
        assert!(!text.contains(r#"duration_seconds_count{preset="oauth2"}"#), "it was never sent: {text}");
    }
}
