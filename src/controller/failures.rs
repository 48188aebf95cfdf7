//! Limits how often the broker reconciles an object after failures in Kubernetes, and how often it logs them: a missing
//! right in a namespace with thousands of objects must not cause thousands of calls and log lines a minute.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::api::reference::ObjectKey;

/// The first wait. Each further consecutive failure doubles it.
const FIRST: Duration = Duration::from_secs(5);
/// Maximum wait after a failure that may end at any moment: the API server is unreachable or busy.
const PASSING: Duration = Duration::from_secs(10);
/// Maximum wait after a refusal that stays until a user changes something: a missing right, an admission policy.
const REFUSED: Duration = Duration::from_secs(300);
/// Time after which a continuing series is logged again.
const LOGGED_AGAIN: SignedDuration = SignedDuration::from_hours(1);
/// Time since the last failure of an object after which the broker drops the series: the object may have been deleted.
const FORGOTTEN: SignedDuration = SignedDuration::from_mins(15);

/// Series of consecutive failures, by object.
#[derive(Default)]
pub(super) struct Failures(Mutex<HashMap<Object, Series>>);

/// The kind and the key of an object.
pub(super) type Object = (&'static str, ObjectKey);

struct Series {
    times: u32,
    last: Timestamp,
    logged: Timestamp,
}

/// The consequences of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Next {
    /// Time until the next reconcile of the object.
    pub(super) after: Duration,
    /// Whether the broker logs the failure. It logs the first failure of a series, then one an hour.
    pub(super) logged: bool,
}

impl Failures {
    /// Ends the series of an object.
    pub(super) fn succeeded(&self, object: &Object) {
        self.0.lock().remove(object);
    }

    /// Records a failure at `now`.
    pub(super) fn failed(&self, object: Object, refused: bool, now: Timestamp) -> Next {
        let mut all = self.0.lock();
        if !all.contains_key(&object) && all.len() % 64 == 63 {
            all.retain(|_, series| now.duration_since(series.last) < FORGOTTEN);
        }
        let series = all.entry(object).or_insert(Series { times: 0, last: now, logged: now });
        series.times = series.times.saturating_add(1);
        series.last = now;
        let logged = series.times == 1 || now.duration_since(series.logged) >= LOGGED_AGAIN;
        if logged {
            series.logged = now;
        }
        let longest = if refused { REFUSED } else { PASSING };
        Next { after: (FIRST * (1 << (series.times - 1).min(16))).min(longest), logged }
    }
}

/// Whether the API server refused the step, so that only a user's change helps.
pub(super) fn is_refusal(error: &crate::error::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<kube::Error>());
    matches!(source, Some(kube::Error::Api(status)) if (400..500).contains(&status.code) && ![409, 429].contains(&status.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn object(number: usize) -> Object {
        ("MailCredential", ("shop".to_owned(), number.to_string()))
    }

    #[test]
    fn a_series_backs_off_and_only_its_first_failure_is_logged() {
        let failures = Failures::default();
        let wait = |refused, second| failures.failed(object(0), refused, at(second)).after.as_secs();
        assert_eq!(
            [0, 5, 15, 35, 75, 155, 315, 615].map(|second| wait(true, second)),
            [5, 10, 20, 40, 80, 160, 300, 300]
        );
        failures.succeeded(&object(0));
        assert_eq!([0, 5, 15, 35, 55].map(|second| wait(false, second)), [5, 10, 10, 10, 10]);
        failures.succeeded(&object(0));
        let logged = |second| failures.failed(object(0), true, at(second)).logged;
        assert_eq!([0, 5, 15, 3599, 3600, 3900, 7200].map(logged), [true, false, false, false, true, false, true]);
        assert!(failures.failed(object(1), true, at(0)).logged, "another object");
    }

    #[test]
    fn objects_that_are_gone_are_forgotten() {
        let failures = Failures::default();
        for number in 0..10_000 {
            failures.failed(object(number), true, at(i64::try_from(number).unwrap() * 60));
        }
        assert!(failures.0.lock().len() < 128);
    }
}
