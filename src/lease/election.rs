//! Decides whether a replica may take or renew the lease. Pure: the observed lease and the time are inputs.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use tokio::time::Instant;

use super::DURATION;

/// This replica's view of the lease.
pub(super) struct Election {
    identity: String,
    pub(super) seen: Option<Seen>,
}

/// The last version of the lease that this replica read or wrote, and the time at which this replica first saw the
/// version.
pub(super) struct Seen {
    pub(super) lease: Lease,
    since: Instant,
}

/// The next step of the election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// No lease exists: create it.
    Create,
    /// The lease has no holder, or has expired: take it.
    Take,
    /// This replica holds the lease: renew it.
    Renew,
    /// Another replica holds the lease: wait.
    Wait,
}

impl Election {
    pub(super) fn new(identity: String) -> Self {
        Self { identity, seen: None }
    }

    /// Records a lease. Every write to the lease counts as a renewal, regardless of the times in it, even a user's
    /// change of a label. A user's change only delays a take-over, but a missed renewal would lead to two leaders.
    pub(super) fn see(&mut self, lease: Option<Lease>, now: Instant) {
        let since = match (&self.seen, &lease) {
            (Some(seen), Some(lease)) if seen.lease.resource_version() == lease.resource_version() => seen.since,
            _ => now,
        };
        self.seen = lease.map(|lease| Seen { lease, since });
    }

    pub(super) fn step(&self, now: Instant) -> Step {
        let Some(seen) = &self.seen else { return Step::Create };
        match holder(&seen.lease) {
            None => Step::Take,
            Some(holder) if holder == self.identity => Step::Renew,
            Some(_) if now >= seen.since + duration(&seen.lease) => Step::Take,
            Some(_) => Step::Wait,
        }
    }

    /// Returns the lease to write for `step`, with the resourceVersion that was read. `now` is only for readers, but
    /// must differ from the old value: an update without a change gets no new resourceVersion, so other replicas would
    /// not see the renewal.
    pub(super) fn claim(&self, step: Step, name: &str, now: MicroTime) -> Lease {
        let mut lease = match &self.seen {
            Some(seen) => seen.lease.clone(),
            None => Lease {
                metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
                ..Lease::default()
            },
        };
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if step != Step::Renew {
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count.saturating_add(1)));
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(seconds(DURATION));
        let unchanged = spec.renew_time.as_ref() == Some(&now);
        spec.renew_time = Some(if unchanged { MicroTime(now.0 + Duration::from_micros(1)) } else { now });
        lease
    }
}

pub(super) fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

/// Returns the duration in the lease; [`DURATION`] if the lease has none.
fn duration(lease: &Lease) -> Duration {
    let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
    match u64::try_from(seconds) {
        Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
        _ => DURATION,
    }
}

/// Returns the lease without a holder, so that another replica can take it immediately. The API server requires a
/// duration above zero.
pub(super) fn released(mut lease: Lease, now: MicroTime) -> Lease {
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = None;
    spec.lease_duration_seconds = Some(1);
    spec.renew_time = Some(now);
    lease
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::lease::{NAME, monotonic};

    fn lease(holder: Option<&str>, version: &str, renewed: i64) -> Lease {
        let seconds = holder.map(|_| 15);
        let renewed = k8s_openapi::jiff::Timestamp::from_second(renewed).unwrap();
        Lease {
            metadata: ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                lease_duration_seconds: seconds,
                renew_time: Some(MicroTime(renewed)),
                ..LeaseSpec::default()
            }),
        }
    }

    fn election() -> Election {
        Election::new("me".to_owned())
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_missing_lease_is_created_and_a_free_one_is_taken() {
        let now = monotonic();
        let mut election = election();
        assert_eq!(election.step(now), Step::Create);
        for holder in [None, Some("")] {
            election.see(Some(lease(holder, "1", 0)), now);
            assert_eq!(election.step(now), Step::Take);
        }
        election.see(Some(Lease::default()), now);
        assert_eq!(election.step(now), Step::Take);
        election.see(None, now);
        assert_eq!(election.step(now), Step::Create);
    }

    #[test]
    fn a_lease_with_the_replicas_own_name_is_renewed_at_any_age() {
        let now = monotonic();
        let mut election = election();
        election.see(Some(lease(Some("me"), "1", 0)), now);
        assert_eq!(election.step(now + 100 * SECOND), Step::Renew);
    }

    #[test]
    fn another_replicas_lease_expires_one_duration_after_its_last_observed_change() {
        let now = monotonic();
        let mut election = election();
        // The election ignores the renewTime in the lease, which is in 1970.
        election.see(Some(lease(Some("other"), "1", 0)), now);
        assert_eq!(election.step(now), Step::Wait);
        election.see(Some(lease(Some("other"), "1", 0)), now + 14 * SECOND);
        assert_eq!(election.step(now + 15 * SECOND - Duration::from_millis(1)), Step::Wait);
        assert_eq!(election.step(now + 15 * SECOND), Step::Take);
        election.see(Some(lease(Some("other"), "2", 1)), now + 15 * SECOND);
        assert_eq!(election.step(now + 29 * SECOND), Step::Wait);
        assert_eq!(election.step(now + 30 * SECOND), Step::Take);
    }

    #[test]
    fn any_write_to_a_lease_counts_as_a_renewal() {
        let now = monotonic();
        let mut election = election();
        election.see(Some(lease(Some("other"), "1", 0)), now);
        election.see(Some(lease(Some("other"), "2", 0)), now + 14 * SECOND);
        assert_eq!(election.step(now + 28 * SECOND), Step::Wait);
        assert_eq!(election.step(now + 29 * SECOND), Step::Take);
    }

    #[test]
    fn a_lease_has_the_duration_that_it_names() {
        let now = monotonic();
        let mut election = election();
        for (says, lasts) in [(Some(60), 60), (Some(1), 1), (Some(0), 15), (Some(-5), 15), (None, 15)] {
            let mut foreign = lease(Some("other"), "1", lasts);
            foreign.spec.as_mut().unwrap().lease_duration_seconds = says;
            election.see(Some(foreign), now);
            let end = now + Duration::from_secs(lasts.unsigned_abs());
            assert_eq!(election.step(end - Duration::from_millis(1)), Step::Wait, "{says:?}");
            assert_eq!(election.step(end), Step::Take, "{says:?}");
        }
    }

    #[test]
    fn a_claim_names_this_replica_and_counts_the_transition() {
        let mut election = election();
        let now = MicroTime(Clock::system().now());
        let mut foreign = lease(Some("other"), "7", 0);
        foreign.spec.as_mut().unwrap().lease_transitions = Some(3);
        foreign.metadata.labels = Some([("kept".to_owned(), "yes".to_owned())].into());
        election.see(Some(foreign), monotonic());

        let taken = election.claim(Step::Take, NAME, now.clone());
        assert_eq!(taken.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(taken.metadata.labels.as_ref().unwrap()["kept"], "yes");
        let spec = taken.spec.clone().unwrap();
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("me"), Some(4)));
        assert_eq!(
            (spec.acquire_time, spec.renew_time, spec.lease_duration_seconds),
            (Some(now.clone()), Some(now), Some(15))
        );

        election.see(Some(taken.clone()), monotonic());
        assert_ne!(
            election.claim(Step::Renew, NAME, taken.spec.unwrap().renew_time.unwrap()).spec,
            election.seen.as_ref().unwrap().lease.spec
        );
        let later = MicroTime(Clock::system().now() + 2 * SECOND);
        let renewed = election.claim(Step::Renew, NAME, later.clone()).spec.unwrap();
        assert_eq!(renewed.lease_transitions, Some(4));
        assert!(renewed.acquire_time < renewed.renew_time && renewed.renew_time == Some(later));
    }
}
