//! The relay's counters, and the expiry of each token, which the relay reads at a scrape.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use mailtoken_mail::{answers::Cause, protocol::Protocol, server::Ending};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{account, mailboxes::Mailboxes, mount};

/// Bucket bounds in seconds: a login takes tens of milliseconds to seconds, and may wait 30 s for a permit.
const DURATION_BUCKETS: [f64; 10] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// How a login ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoginOutcome {
    Accepted,
    UnknownUser,
    BadPassword,
    NoToken,
    Expired,
    Refused,
    Unavailable,
    Tls,
    Protocol,
}

impl LoginOutcome {
    /// Returns the value of the label `outcome`, which is also the field in the log.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::UnknownUser => "unknown_user",
            Self::BadPassword => "bad_password",
            Self::NoToken => "no_token",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
        }
    }
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct StateLabels {
    protocol: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct LoginLabels {
    protocol: &'static str,
    mailbox: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ProtocolLabels {
    protocol: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RefusalLabels {
    protocol: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct DirectionLabels {
    protocol: &'static str,
    direction: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct MailboxLabels {
    mailbox: String,
}

/// All metrics. Labels are constants or user names of mounted mailboxes, so the number of series is bounded.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    connections: Family<StateLabels, Gauge>,
    logins: Family<LoginLabels, Counter>,
    durations: Family<ProtocolLabels, Histogram>,
    refusals: Family<RefusalLabels, Counter>,
    bytes: Family<DirectionLabels, Counter>,
    rejected: Family<ReasonLabels, Counter>,
    fallbacks: Family<MailboxLabels, Counter>,
    expirations: Family<MailboxLabels, Gauge<f64, AtomicU64>>,
}

impl Metrics {
    /// Creates metrics with all counts at zero.
    pub(crate) fn new() -> Arc<Self> {
        let mut root = Registry::default();
        let registry = root.sub_registry_with_prefix("mailtoken_relay");
        let connections = Family::<StateLabels, Gauge>::default();
        registry.register("connections", "Connections of clients, before login and in a session", connections.clone());
        let logins = Family::<LoginLabels, Counter>::default();
        registry.register(
            "logins",
            "Logins of clients. The mailbox is empty where no mounted mailbox was meant",
            logins.clone(),
        );
        let durations = Family::<ProtocolLabels, Histogram>::new_with_constructor(login_durations);
        registry.register(
            "login_duration_seconds",
            "Time from a client's credentials to the end of the login",
            durations.clone(),
        );
        let refusals = Family::<RefusalLabels, Counter>::default();
        registry.register("upstream_refusals", "Logins that mail servers did not accept", refusals.clone());
        let bytes = Family::<DirectionLabels, Counter>::default();
        registry.register("bytes", "Bytes copied in sessions, to the client and to the server", bytes.clone());
        let rejected = Family::<ReasonLabels, Counter>::default();
        registry.register("rejected", "Connections that the relay closed before login", rejected.clone());
        let fallbacks = Family::<MailboxLabels, Counter>::default();
        registry.register("fallbacks", "SMTP logins with the second folder of a pair", fallbacks.clone());
        let expirations = Family::<MailboxLabels, Gauge<f64, AtomicU64>>::default();
        registry.register("token_expiration_timestamp_seconds", "When the mounted token expires", expirations.clone());
        for protocol in Protocol::ALL.map(Protocol::as_str) {
            for state in [BEFORE_LOGIN, IN_SESSION] {
                let _zero = connections.get_or_create(&StateLabels { protocol, state });
            }
            for direction in [TO_CLIENT, TO_SERVER] {
                let _zero = bytes.get_or_create(&DirectionLabels { protocol, direction });
            }
        }
        let registry = Mutex::new(root);
        Arc::new(Self { registry, connections, logins, durations, refusals, bytes, rejected, fallbacks, expirations })
    }

    /// Counts a connection until the guard is dropped.
    pub(crate) fn connected(self: &Arc<Self>, protocol: Protocol) -> Connected {
        let connected = Connected { metrics: self.clone(), protocol, state: BEFORE_LOGIN };
        connected.gauge().inc();
        connected
    }

    /// Counts a login.
    pub(crate) fn login(&self, protocol: Protocol, mailbox: &str, outcome: LoginOutcome, duration: Duration) {
        let (protocol, outcome) = (protocol.as_str(), outcome.name());
        let labels = LoginLabels { protocol, mailbox: mailbox.to_owned(), outcome };
        self.logins.get_or_create(&labels).inc();
        self.durations.get_or_create(&ProtocolLabels { protocol }).observe(duration.as_secs_f64());
    }

    /// Counts a login that a mail server did not accept, by cause.
    pub(crate) fn refused_upstream(&self, protocol: Protocol, cause: Cause) {
        let labels = RefusalLabels { protocol: protocol.as_str(), reason: cause.reason() };
        self.refusals.get_or_create(&labels).inc();
    }

    /// Counts a connection that ended before login, unless the client sent QUIT.
    pub(crate) fn rejected(&self, ending: Ending) {
        if ending != Ending::Quit {
            self.rejected.get_or_create(&ReasonLabels { reason: ending.name() }).inc();
        }
    }

    /// Counts a login that used the second folder of a pair.
    pub(crate) fn fell_back(&self, mailbox: &str) {
        self.fallbacks.get_or_create(&MailboxLabels { mailbox: mailbox.to_owned() }).inc();
    }

    /// Returns the counters of bytes to the server and to the client.
    pub(crate) fn bytes(&self, protocol: Protocol) -> (Counter, Counter) {
        let counter = |direction| {
            let labels = DirectionLabels { protocol: protocol.as_str(), direction };
            self.bytes.get_or_create(&labels).clone()
        };
        (counter(TO_SERVER), counter(TO_CLIENT))
    }

    /// Returns the text of `/metrics`.
    ///
    /// # Errors
    ///
    /// If the text cannot be written, which does not happen in memory.
    pub(crate) fn text(&self, mailboxes: &Mailboxes) -> Result<String, fmt::Error> {
        self.expirations.clear();
        for (mailbox, folder) in mailboxes.all() {
            if let Ok(Some(expires)) = mount::read(&folder, account::expires) {
                #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 have 31 bits")]
                self.expirations.get_or_create(&MailboxLabels { mailbox }).set(expires as f64);
            }
        }
        let mut text = String::new();
        encode(&mut text, &self.registry.lock())?;
        Ok(text)
    }
}

fn login_durations() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

const BEFORE_LOGIN: &str = "login";
const IN_SESSION: &str = "session";
const TO_CLIENT: &str = "to_client";
const TO_SERVER: &str = "to_server";

/// A counted connection. Dropping it ends the count.
pub(crate) struct Connected {
    metrics: Arc<Metrics>,
    protocol: Protocol,
    state: &'static str,
}

impl Connected {
    fn gauge(&self) -> Gauge {
        let labels = StateLabels { protocol: self.protocol.as_str(), state: self.state };
        self.metrics.connections.get_or_create(&labels).clone()
    }

    /// Records that the client has logged in.
    pub(crate) fn logged_in(&mut self) {
        self.gauge().dec();
        self.state = IN_SESSION;
        self.gauge().inc();
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.gauge().dec();
    }
}
