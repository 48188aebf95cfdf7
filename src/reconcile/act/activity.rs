//! The activities of credentials and providers: the admission gives each activity one permit at a time.

use std::sync::Arc;

use http::StatusCode;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::{self, Ask, Budgets},
    api::{MailCredential, provider_object::ProviderKey},
    idp::{Exchange, TransportError},
    policy::checks,
    reconcile::work_queue::WorkQueue,
};

/// The key of a row of the admission. The states of an activity are idle (no row), queued, offered and sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Activity {
    /// The token request, the sign-in (its start and its polls), or the revocation of the credential with this uid. These
    /// three use the credential's grant and exclude each other, so they share a row.
    Grant(Arc<str>),
    /// The logins at the mail servers of the credential with this uid, one after the other.
    Probe(Arc<str>),
    /// The discovery of a provider's endpoints.
    Discovery(Box<ProviderKey>),
}

/// The admission for the requests of all activities.
pub type Admission = admission::Admission<Activity>;
/// The right to have one request of an activity in flight.
pub type Permit = admission::Permit<Activity>;

/// The admission of requests to providers. It grants no permit after `draining` is cancelled, and enqueues the owners of
/// free permits in `queue`.
pub fn admission(queue: &WorkQueue, draining: &CancellationToken) -> Admission {
    within(Budgets::default(), queue, draining)
}

/// The admission of logins at mail servers. It has budgets of its own, so that a mail server that hangs delays no token.
pub fn probe_admission(queue: &WorkQueue, draining: &CancellationToken) -> Admission {
    within(Budgets { total: 16, host: 2, reserve: 4 }, queue, draining)
}

fn within(budgets: Budgets, queue: &WorkQueue, draining: &CancellationToken) -> Admission {
    let queue = queue.clone();
    let offer = move |activity: &Activity, ask: &Ask| activity.enqueue(ask, &queue);
    Admission::new(budgets, draining.clone(), offer)
}

impl Permit {
    /// Records the result of a request with this permit. While the last request to a host was not served, admission limits
    /// repeated requests to this host.
    pub fn record(&self, result: &Result<Exchange, TransportError>) {
        match result {
            Ok(exchange) => self.ended(serves(exchange.response.status())),
            // The client sent no request.
            Err(TransportError::Withheld) => {}
            Err(_) => self.ended(false),
        }
    }
}

/// Whether a response with this status shows that the host serves requests now.
fn serves(status: StatusCode) -> bool {
    status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error()
}

impl Activity {
    /// Returns the activity of a credential's grant.
    pub fn grant(credential: &MailCredential) -> Self {
        Self::Grant(checks::uid(credential).into())
    }

    /// Returns the activity of a credential's probe.
    pub fn probe(credential: &MailCredential) -> Self {
        Self::Probe(checks::uid(credential).into())
    }

    /// Enqueues the object of the activity.
    pub fn enqueue(&self, ask: &Ask, queue: &WorkQueue) {
        match self {
            Self::Grant(_) | Self::Probe(_) => {
                queue.enqueue_credential((ask.namespace.to_string(), ask.name.to_string()))
            }
            Self::Discovery(key) => queue.enqueue_provider((**key).clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_serves_requests_unless_it_responds_that_it_cannot() {
        for (status, expected) in
            [(200, true), (302, true), (400, true), (401, true), (404, true), (429, false), (500, false), (503, false)]
        {
            assert_eq!(serves(StatusCode::from_u16(status).unwrap()), expected, "{status}");
        }
    }
}
