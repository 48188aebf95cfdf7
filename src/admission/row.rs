//! The content of a row of the admission, and the budgets.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::bucket::Limit;
use crate::policy::urgency::Class;

/// Maximum number of requests in flight to one host and port.
pub const PER_HOST_LIMIT: usize = 32;

/// Maximum number of requests in flight in total.
pub const TOTAL_LIMIT: usize = 128;

/// Maximum numbers of requests in flight.
#[derive(Clone, Copy, Debug)]
pub struct Budgets {
    /// Maximum number of requests in flight in total.
    pub total: usize,
    /// Maximum number of requests in flight to one host and port.
    pub host: usize,
    /// Number of permits that are reserved for namespaces with less than half of [`Self::total`].
    pub reserve: usize,
}

impl Default for Budgets {
    fn default() -> Self {
        Self { total: TOTAL_LIMIT, host: PER_HOST_LIMIT, reserve: 16 }
    }
}

/// The properties of a request that admission needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The namespace for which the request is made.
    pub namespace: Arc<str>,
    /// The name of the object for which the request is made.
    pub name: Arc<str>,
    /// Host and port of the endpoint.
    pub host: Arc<str>,
    /// The provider whose `rateLimit` applies.
    pub provider: Arc<str>,
    /// The provider's `rateLimit`; `None` without a limit.
    pub limit: Option<Limit>,
    /// The urgency class. A row of a better class is served first.
    pub class: Class,
    /// The due time. Within a class, the row with the earliest due time is served first.
    pub due: Timestamp,
}

/// The state of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The row waits for a permit.
    Queued,
    /// The row has a permit. The row's owner decides again whether to send the request.
    Offered,
    /// The request is in flight.
    Sent,
}
