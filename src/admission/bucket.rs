//! A token bucket: for a provider's `rateLimit`, and for Events. Pure: the time is an input.

use std::time::Duration;

/// A limit, such as the `rateLimit` of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    interval: Duration,
    burst: u32,
}

impl Limit {
    /// Creates a limit of `requests_per_minute` on average, and of `burst` requests immediately after a pause. The
    /// minimum of both is 1.
    pub const fn new(requests_per_minute: u32, burst: u32) -> Self {
        let interval = match Duration::from_secs(60).checked_div(requests_per_minute) {
            Some(interval) => interval,
            None => Duration::from_secs(60),
        };
        Self { interval, burst: if burst == 0 { 1 } else { burst } }
    }
}

/// The used part of a limit, by the generic cell rate algorithm (ITU-T I.371).
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    pub(super) limit: Limit,
    /// Time at which the bucket is full again.
    full_at: Duration,
}

impl Bucket {
    /// Creates a full bucket.
    pub fn new(limit: Limit) -> Self {
        Self { limit, full_at: Duration::ZERO }
    }

    /// Time at which the next request may be sent.
    pub fn opens_at(&self) -> Duration {
        self.full_at.saturating_sub(self.limit.interval.saturating_mul(self.limit.burst - 1))
    }

    /// Counts a request. A request that the broker sends with an empty bucket delays the next requests.
    pub fn charge(&mut self, now: Duration) {
        self.full_at = self.full_at.max(now) + self.limit.interval;
    }

    /// Refunds a request that the broker did not send.
    pub(super) fn refund(&mut self) {
        self.full_at = self.full_at.saturating_sub(self.limit.interval);
    }

    /// Whether the bucket allows the whole burst, as a new bucket does.
    pub fn is_full(&self, now: Duration) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn second(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn charged(times: u32, burst: u32) -> Bucket {
        let mut bucket = Bucket::new(Limit::new(60, burst));
        (0..times).for_each(|_| bucket.charge(second(100)));
        bucket
    }

    #[test]
    fn after_a_burst_one_request_an_interval_may_be_sent() {
        for (times, burst, opens) in [(1, 1, 101), (1, 3, 99), (2, 3, 100), (3, 3, 101), (5, 3, 103)] {
            assert_eq!(charged(times, burst).opens_at(), second(opens), "{times} of {burst}");
        }
        assert_eq!(Bucket::new(Limit::new(60, 1)).opens_at(), second(0));
    }

    #[test]
    fn the_smallest_limit_is_one_request_a_minute() {
        assert_eq!(Limit::new(0, 0), Limit::new(1, 1));
        assert_ne!(Limit::new(1, 1), Limit::new(2, 1));
    }

    #[test]
    fn a_refund_undoes_a_charge() {
        let mut bucket = charged(3, 3);
        bucket.refund();
        assert_eq!(bucket.opens_at(), charged(2, 3).opens_at());
    }

    #[test]
    fn a_bucket_is_equal_to_a_new_one_after_a_pause() {
        assert!(!charged(3, 3).is_full(second(102)));
        assert!(charged(3, 3).is_full(second(103)));
    }
}
