//! The times of the last writes of Secrets, for each credential.

use std::collections::HashMap;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::policy::Write;

/// Minimum time between two writes of one kind for one credential.
const WRITES_APART: SignedDuration = SignedDuration::from_secs(1);
/// Number of remembered writes at which old ones are removed.
const WRITES_REMEMBERED: usize = 1_024;

/// The last write of a Secret for each credential. Without the limit of one write in a second, the broker would repeat
/// a write as fast as a webhook or another controller reverts it.
#[derive(Default)]
pub struct RecentWrites(Mutex<HashMap<String, (Write, Timestamp)>>);

impl RecentWrites {
    /// Records a write of this kind at `now`, or returns the time at which it is allowed.
    pub fn defer(&self, uid: &str, kind: Write, now: Timestamp) -> Option<Timestamp> {
        let mut last = self.0.lock();
        // A clock that was set back must not delay writes.
        let recent = |at: Timestamp| at <= now && now < at + WRITES_APART;
        if let Some((_, at)) = last.get(uid).filter(|(before, at)| *before == kind && recent(*at)) {
            return Some(*at + WRITES_APART);
        }
        if last.len() >= WRITES_REMEMBERED {
            last.retain(|_, (_, at)| recent(*at));
        }
        last.insert(uid.to_owned(), (kind, now));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_follows_one_of_its_kind_no_sooner_than_after_a_second() {
        let writes = RecentWrites::default();
        let at = |millisecond: i64| Timestamp::from_millisecond(1_800_000_000_000 + millisecond).unwrap();
        assert_eq!(writes.defer("a", Write::Grant, at(0)), None);
        assert_eq!(writes.defer("a", Write::Grant, at(10)), Some(at(1_000)));
        assert_eq!(writes.defer("b", Write::Grant, at(10)), None, "another credential");
        assert_eq!(writes.defer("a", Write::Token, at(20)), None, "another kind");
        assert_eq!(writes.defer("a", Write::Token, at(-60_000)), None, "the clock was set back");
        assert_eq!(writes.defer("b", Write::Grant, at(1_010)), None);
        for number in 0..2 * WRITES_REMEMBERED {
            assert_eq!(writes.defer(&number.to_string(), Write::Token, at(3_000 + 2_000 * number as i64)), None);
        }
        assert!(writes.0.lock().len() <= WRITES_REMEMBERED);
    }
}
