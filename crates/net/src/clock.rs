//! The only reader of the wall clock. All other code receives the time as an argument.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

/// Delay after a due time. After this delay, the clock is past the due time.
const JUST_AFTER: Duration = Duration::from_millis(20);

/// A clock with whole seconds. `metav1.Time` is serialized in whole seconds, so a fraction would make every comparison
/// with a stored time differ.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// Returns the system's wall clock.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that may ask")]
    pub fn system() -> Self {
        Self(Arc::new(Timestamp::now))
    }

    /// Returns a clock with the time of `now`, for tests.
    pub fn from_fn(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Returns the current time, truncated to the second.
    pub fn now(&self) -> Timestamp {
        let now = (self.0)();
        Timestamp::from_second(now.as_second()).unwrap_or(now)
    }

    /// Returns the time until just after `at`, and counts the fraction of the current second. A wait computed from
    /// [`Self::now`] would end up to a second late.
    pub fn until(&self, at: Timestamp) -> Duration {
        Duration::try_from(at.duration_since((self.0)())).unwrap_or_default() + JUST_AFTER
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn a_wait_ends_just_after_its_time_although_the_clock_has_whole_seconds() {
        let second = Timestamp::from_second(1_800_000_000).unwrap();
        let clock = Clock::from_fn(move || second + SignedDuration::from_millis(900));
        assert_eq!(clock.now(), second);
        assert_eq!(clock.until(second + SignedDuration::from_secs(1)), Duration::from_millis(100) + JUST_AFTER);
        assert_eq!(clock.until(second), JUST_AFTER);
    }
}
