//! Limits how fast the broker repeats requests to a host that serves none. Pure: the time is an input.

use std::time::Duration;

use super::bucket::{Bucket, Limit};

/// Repeated requests per second to a host whose last response was a failure; also the burst.
const PER_SECOND: u32 = 10;

/// The limit of the repeated requests to one host. If a provider fails for thousands of credentials, each attempt costs
/// the provider a request, and the API server a write of a status. So the credentials retry in turn, not all of them
/// every few minutes. The host's first response without a failure ends the limit.
pub(super) struct RetryLimit {
    /// Whether the host served the last request that ended.
    serves: bool,
    repeated: Bucket,
}

impl Default for RetryLimit {
    fn default() -> Self {
        Self { serves: true, repeated: full() }
    }
}

impl RetryLimit {
    /// Records the end of a request. `served` is true if the host served the request. The limit does not count the
    /// requests that the host got while it served: after an outage, those may be hundreds a second.
    pub(super) fn end(&mut self, served: bool) {
        if self.serves && !served {
            self.repeated = full();
        }
        self.serves = served;
    }

    /// Returns the time at which the broker may send the next repeated request.
    pub(super) fn opens_at(&self) -> Duration {
        if self.serves { Duration::ZERO } else { self.repeated.opens_at() }
    }

    /// Counts a repeated request.
    pub(super) fn charge(&mut self, now: Duration) {
        self.repeated.charge(now);
    }

    /// Refunds a repeated request that the broker did not send.
    pub(super) fn refund(&mut self) {
        self.repeated.refund();
    }
}

fn full() -> Bucket {
    Bucket::new(Limit::new(60 * PER_SECOND, PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_fails_gets_a_burst_and_then_ten_repeated_requests_a_second() {
        let second = Duration::from_secs;
        let mut limit = RetryLimit::default();
        let charge = |limit: &mut RetryLimit| (0..20).for_each(|_| limit.charge(second(100)));
        charge(&mut limit);
        assert_eq!(limit.opens_at(), second(0), "a host that serves has no limit");
        limit.end(false);
        assert!(limit.opens_at() <= second(100), "the requests before the failure do not count");
        charge(&mut limit);
        limit.end(false);
        assert_eq!(limit.opens_at(), second(101) + Duration::from_millis(100));
        limit.refund();
        assert_eq!(limit.opens_at(), second(101));
        limit.end(true);
        assert_eq!(limit.opens_at(), second(0));
    }
}
