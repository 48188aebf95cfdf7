//! The allowed rate of status writes for one object. Pure.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// Number of writes that may follow each other immediately.
const BURST: i64 = 5;
/// Seconds until the broker may make one more write. The period doubles each time that a write must wait.
const PERIOD_SECONDS: i64 = 1;
/// Maximum number of times that the period doubles, to `2^6` s.
const DOUBLINGS: u32 = 6;

/// The latest status writes of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spacing {
    version: u64,
    /// Number of writes that may follow immediately.
    left: i64,
    /// Time at which `left` last increased.
    since: Timestamp,
    doublings: u32,
    deferred: bool,
}

impl Spacing {
    /// Creates the state before the first write. `version` identifies the content: the generation and the sources.
    pub const fn new(version: u64, now: Timestamp) -> Self {
        Self { version, left: BURST, since: now, doublings: 0, deferred: false }
    }

    /// Records a write at `now`. If the write must wait, returns the time at which the broker may make it.
    pub fn defer(&mut self, version: u64, now: Timestamp) -> Option<Timestamp> {
        if self.version != version || self.is_forgotten(now) {
            *self = Self::new(version, now);
        }
        let more = now.duration_since(self.since).as_secs() / self.period();
        if more > 0 {
            (self.left, self.since) = ((self.left + more).min(BURST), now);
        }
        if self.left == 0 {
            self.deferred = true;
            return Some(self.since + SignedDuration::from_secs(self.period()));
        }
        if std::mem::take(&mut self.deferred) {
            self.doublings = (self.doublings + 1).min(DOUBLINGS);
        }
        self.left -= 1;
        None
    }

    /// Whether the last write was so long ago that it does not matter, or is in the future after the clock was set back.
    pub fn is_forgotten(&self, now: Timestamp) -> bool {
        now < self.since || now.duration_since(self.since).as_secs() >= BURST * self.period()
    }

    const fn period(&self) -> i64 {
        PERIOD_SECONDS << self.doublings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    #[test]
    fn one_that_is_overwritten_each_time_is_written_ever_less_often() {
        let (mut now, mut spacing, mut writes) = (start(), Spacing::new(1, start()), vec![]);
        while now < start() + SignedDuration::from_secs(300) {
            match spacing.defer(1, now) {
                None => writes.push(now.as_second() - start().as_second()),
                Some(due) => {
                    assert!(due > now);
                    now = due;
                }
            }
        }
        assert_eq!(writes, [0, 0, 0, 0, 0, 1, 3, 7, 15, 31, 63, 127, 191, 255]);
    }

    #[test]
    fn one_that_changes_every_few_seconds_is_never_deferred() {
        let mut spacing = Spacing::new(1, start());
        for second in (0..1_000).step_by(2) {
            assert_eq!(spacing.defer(1, start() + SignedDuration::from_secs(second)), None, "{second}");
        }
    }

    #[test]
    fn another_generation_is_written_immediately_and_so_is_one_after_a_rest() {
        let mut spacing = Spacing::new(1, start());
        while spacing.defer(1, start()).is_none() {}
        assert_eq!(spacing.defer(2, start()), None);
        while spacing.defer(2, start()).is_none() {}
        let later = start() + SignedDuration::from_secs(5);
        assert!(spacing.is_forgotten(later));
        assert_eq!(spacing.defer(2, later), None);
        while spacing.defer(2, later).is_none() {}
        assert_eq!(spacing.defer(2, start()), None, "the clock was set back");
    }
}
