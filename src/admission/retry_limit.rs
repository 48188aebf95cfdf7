//! How fast requests are repeated at a host that serves none. Pure: the time is an input.

use std::time::Duration;

use super::bucket::{Bucket, Limit};

/// Repeated requests to a host whose last response was a failure: so many a second on average, and so many at once.
const PER_SECOND: u32 = 10;

/// The limit of the repeated requests to one host. If a provider fails for thousands of credentials, each of them may try
/// again in turn, but not all of them every few minutes: each attempt costs the provider a request, and the API server a
/// write of a status. The first response of the host that is no failure ends the limit.
pub(super) struct RetryLimit {
    /// Whether the host has served the last request that ended.
    serves: bool,
    repeated: Bucket,
}

impl Default for RetryLimit {
    fn default() -> Self {
        Self { serves: true, repeated: Bucket::new(Limit::new(60 * PER_SECOND, PER_SECOND)) }
    }
}

impl RetryLimit {
    /// Records the end of a request: whether the host has served it.
    pub(super) fn end(&mut self, served: bool) {
        self.serves = served;
    }

    /// Time at which the next repeated request may be sent.
    pub(super) fn opens_at(&self) -> Duration {
        if self.serves { Duration::ZERO } else { self.repeated.opens_at() }
    }

    /// Counts a repeated request.
    pub(super) fn charge(&mut self, now: Duration) {
        self.repeated.charge(now);
    }

    /// Refunds a repeated request that was not sent.
    pub(super) fn refund(&mut self) {
        self.repeated.refund();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_fails_gets_a_burst_and_then_ten_repeated_requests_a_second() {
        let second = Duration::from_secs;
        let mut limit = RetryLimit::default();
        for _ in 0..20 {
            limit.charge(second(100));
        }
        assert_eq!(limit.opens_at(), second(0), "a host that serves has no limit");
        limit.end(false);
        assert_eq!(limit.opens_at(), second(101) + Duration::from_millis(100));
        limit.refund();
        assert_eq!(limit.opens_at(), second(101));
        limit.end(true);
        assert_eq!(limit.opens_at(), second(0));
    }
}
