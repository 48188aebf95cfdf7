//! What a row of the admission holds, and the budgets.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::bucket::Limit;
use crate::policy::urgency::Class;

/// Maximum number of requests in flight to one host and port.
pub const PER_HOST_LIMIT: usize = 32;

/// Maximum number of requests in flight in total.
pub const TOTAL_LIMIT: usize = 128;

/// Limits of the requests in flight.
#[derive(Clone, Copy, Debug)]
pub struct Budgets {
    /// Maximum number in total.
    pub total: usize,
    /// Maximum number to one host and port.
    pub host: usize,
    /// Permits of [`Self::total`] that a namespace with half of the total never gets.
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
    /// The urgency class: better classes are served first.
    pub class: Class,
    /// The due time: earlier rows of a class are served first.
    pub due: Timestamp,
}

/// The state of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The row waits for a permit.
    Queued,
    /// The row has a permit, and its owner decides again whether to send the request.
    Offered,
    /// The request is in flight.
    Sent,
}
