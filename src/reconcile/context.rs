//! What every step of a reconcile uses.

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

/// What every step of a reconcile uses. What a step calls gets only the fields that it needs.
pub struct Context {
    /// The clock, in whole seconds.
    pub clock: Clock,
    /// Whether this replica leads. A replica that does not lead sends nothing and writes nothing but refresh tokens that it
    /// holds.
    pub leadership: Leadership,
    /// The metrics that the reconcile counts.
    pub metrics: Arc<Metrics>,
    /// What the watches show.
    pub stores: Stores,
    /// What is known of each credential beyond what the watches show.
    pub cache: Arc<CredentialCache>,
    /// Providers with their endpoints and client authentications.
    pub providers: ProviderCache,
    /// The client, the Secrets and the Events.
    pub kubernetes: Kubernetes,
    /// What a request to a provider needs.
    pub requests: Requests,
    /// Enqueues credentials and providers.
    pub queue: WorkQueue,
}

/// What reads from Kubernetes and writes into it.
pub struct Kubernetes {
    /// The client of the API server.
    pub client: Client,
    /// The Secrets of the broker.
    pub secrets: Secrets,
    /// Emits Events on credentials and providers.
    pub events: Events,
}

/// What a request to a provider needs.
pub struct Requests {
    /// Decides when a request may be sent.
    pub admission: Admission,
    /// Logs in at mail servers; `None` with `--probe=false`.
    pub probes: Option<Probes>,
    /// Time for one request, in all.
    pub timeout: Duration,
    /// The name of this replica in claims on refresh tokens.
    pub holder: String,
    /// Cancelled when the process is about to end: no new request is sent.
    pub draining: CancellationToken,
}

impl Requests {
    /// Whether a request of the credential with this uid waits for its permit.
    pub fn is_queued(&self, uid: &str) -> bool {
        self.admission.state(&Activity::Grant(uid.into())) == Some(State::Queued)
    }

    /// Whether a login of the credential with this uid waits for a permit or is under way.
    pub fn is_probing(&self, uid: &str) -> bool {
        self.probes.as_ref().is_some_and(|probes| probes.admission.state(&Activity::Probe(uid.into())).is_some())
    }

    /// Removes what waits for a permit for the credential with this uid. What is in flight continues.
    pub fn withdraw(&self, uid: &str) {
        self.admission.withdraw(&Activity::Grant(uid.into()));
        if let Some(probes) = &self.probes {
            probes.admission.withdraw(&Activity::Probe(uid.into()));
        }
    }
}
