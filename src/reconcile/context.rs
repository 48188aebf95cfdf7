//! The shared state of all reconciles.

use std::{sync::Arc, time::Duration};

use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::State,
    clock::Clock,
    lease::Leadership,
    metrics::Metrics,
    reconcile::{
        act::{
            activity::{Activity, Admission},
            mail_logins::Probes,
        },
        credential_cache::CredentialCache,
        events::Events,
        provider_cache::ProviderCache,
        secrets::Secrets,
        work_queue::WorkQueue,
    },
    stores::Stores,
};

/// The shared state of all reconciles. Functions that a step calls get only the fields that they need.
pub struct Context {
    /// The clock, in whole seconds.
    pub clock: Clock,
    /// Whether this replica leads. A replica that does not lead sends no request, and writes only refresh tokens that
    /// it holds.
    pub leadership: Leadership,
    /// The metrics that the reconcile counts.
    pub metrics: Arc<Metrics>,
    /// The stores of the watches.
    pub stores: Stores,
    /// The broker's knowledge of each credential that the watches do not show.
    pub cache: CredentialCache,
    /// Providers with their endpoints and client authentications.
    pub providers: ProviderCache,
    /// The clients for Secrets, Events and other objects.
    pub kubernetes: Kubernetes,
    /// The clients and limits of requests to providers.
    pub requests: Requests,
    /// Enqueues credentials and providers.
    pub queue: WorkQueue,
}

/// The clients for reads and writes in Kubernetes.
pub struct Kubernetes {
    /// The client for the API server.
    pub client: Client,
    /// Reads and writes the broker's Secrets.
    pub secrets: Secrets,
    /// Emits Events on credentials and providers.
    pub events: Events,
}

/// The clients and limits of requests to providers.
pub struct Requests {
    /// Limits the requests to providers.
    pub admission: Admission,
    /// Logs in at mail servers; `None` with `--probe=false`.
    pub probes: Option<Probes>,
    /// Time limit of one request.
    pub timeout: Duration,
    /// The name of this replica in claims on refresh tokens.
    pub holder: String,
    /// Cancelled when the process is about to end: the broker then sends no new request.
    pub draining: CancellationToken,
}

impl Requests {
    /// Whether a request of the credential with this uid waits for a permit.
    pub fn is_queued(&self, uid: &str) -> bool {
        self.admission.state(&Activity::Grant(uid.into())) == Some(State::Queued)
    }

    /// Whether a login of the credential with this uid waits for a permit or is in progress.
    pub fn is_probing(&self, uid: &str) -> bool {
        self.probes.as_ref().is_some_and(|probes| probes.admission.state(&Activity::Probe(uid.into())).is_some())
    }

    /// Withdraws the waiting requests of the credential with this uid. A request in flight continues.
    pub fn withdraw(&self, uid: &str) {
        self.admission.withdraw(&Activity::Grant(uid.into()));
        if let Some(probes) = &self.probes {
            probes.admission.withdraw(&Activity::Probe(uid.into()));
        }
    }
}
