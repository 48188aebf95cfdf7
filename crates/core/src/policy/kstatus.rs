//! The conditions `Stalled` and `Reconciling` of kstatus (Flux, `kubectl apply --prune`, Argo CD with a health check).
//! They show whether a person or the broker must act on an object that is not ready. The rules are the same for
//! credentials and providers. Pure.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Condition,
    jiff::{SignedDuration, Timestamp},
};
use kube::core::ObjectMeta;

use super::{Blocker, observed::Cause, schedule};
use crate::api::{
    ConditionType, Reason,
    condition::{self, upsert},
};

/// Time for which the broker waits for a missing object that a user applies together with this object. GitOps tools and
/// External Secrets take seconds.
const ARRIVAL_GRACE: SignedDuration = SignedDuration::from_secs(30);

/// Why an object is not ready, by the party that must act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A person must act: kstatus reports Failed.
    Stalled(Blocker),
    /// The broker is working, or waits for a change that needs no person: kstatus reports InProgress.
    Reconciling {
        /// The broker's current work, or the change that the broker waits for.
        message: String,
    },
}

/// An object with its last status.
#[derive(Clone, Copy)]
pub struct Before<'a> {
    /// Current metadata of the object.
    pub meta: &'a ObjectMeta,
    /// The value of the field `status.observedGeneration`.
    pub observed_generation: Option<i64>,
    /// The value of the field `status.conditions`.
    pub conditions: &'a [Condition],
}

impl Before<'_> {
    /// Whether the status describes the current spec.
    pub fn is_current(&self) -> bool {
        self.observed_generation.is_some() && self.observed_generation == self.meta.generation
    }

    /// Time until which the broker waits for missing objects: 30 s after the creation, or after the last change of the
    /// spec. `None`: the wait is over. Kubernetes does not record the time of a spec change. The wait therefore begins
    /// with the first status that reports the change: at the transition time of its `Reconciling`.
    pub fn arrival_until(&self, now: Timestamp) -> Option<Timestamp> {
        let created = self.meta.creation_timestamp.as_ref().map(|time| time.0);
        let never_changed = self.meta.generation.is_none_or(|generation| generation <= 1);
        let changed = match condition::find(self.conditions, ConditionType::Reconciling) {
            _ if !self.is_current() => Some(now).filter(|_| created.is_none() || !never_changed),
            Some(reconciling) => Some(reconciling.last_transition_time.0),
            None => None,
        };
        let starts = created.into_iter().chain(changed).filter(|at| !schedule::is_from_the_future(*at, now));
        starts.max().map(|start| start + ARRIVAL_GRACE).filter(|until| now < *until)
    }

    /// Whether only a person can remove the blocker.
    pub fn needs_a_person(&self, blocker: &Blocker, now: Timestamp) -> bool {
        match blocker.cause {
            Cause::Transient => false,
            Cause::Missing => self.arrival_until(now).is_none(),
            Cause::Person => true,
        }
    }

    /// Sets or removes `Stalled` and `Reconciling`. `None`: the object is ready or suspended, so both conditions are
    /// removed.
    pub fn set(&self, conditions: &mut Vec<Condition>, standing: Option<Standing>, now: Timestamp) {
        let generation = self.meta.generation.unwrap_or_default();
        if !matches!(standing, Some(Standing::Stalled(_))) {
            condition::remove(conditions, ConditionType::Stalled);
        }
        if !self.is_current() || !matches!(standing, Some(Standing::Reconciling { .. })) {
            condition::remove(conditions, ConditionType::Reconciling);
        }
        let (kind, reason, message) = match standing {
            None => return,
            Some(Standing::Stalled(Blocker { reason, message, .. })) => (ConditionType::Stalled, reason, message),
            Some(Standing::Reconciling { message }) => (ConditionType::Reconciling, Reason::Progressing, message),
        };
        upsert(conditions, kind, true, reason, message, generation, now);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn meta(generation: i64, created: Option<i64>) -> ObjectMeta {
        ObjectMeta {
            generation: Some(generation),
            creation_timestamp: created.map(|second| Time(at(second))),
            ..ObjectMeta::default()
        }
    }

    /// A condition `Reconciling` since the second `since`.
    fn reconciling(since: Option<i64>) -> Vec<Condition> {
        let mut conditions = vec![];
        if let Some(since) = since {
            let message = "m".to_owned();
            upsert(&mut conditions, ConditionType::Reconciling, true, Reason::Progressing, message, 1, at(since));
        }
        conditions
    }

    #[test]
    fn a_missing_object_may_arrive_within_thirty_seconds_of_creation_or_change() {
        // generation, created, observed, Reconciling since, now, end of the wait
        let table = [
            (1, Some(0), None, None, 0, Some(30)),
            (1, Some(0), Some(-1), None, 29, Some(30)),
            (1, Some(0), Some(-1), None, 30, None),
            (1, Some(0), Some(1), None, 29, Some(30)),
            (1, Some(0), Some(1), Some(2), 29, Some(32)),
            (1, Some(0), Some(1), None, 3600, None),
            (2, Some(0), Some(1), None, 3600, Some(3630)),
            (2, Some(0), Some(1), Some(5), 3600, Some(3630)),
            (2, Some(0), Some(2), Some(3600), 3629, Some(3630)),
            (2, Some(0), Some(2), Some(3600), 3630, None),
            (2, Some(0), Some(2), None, 3610, None),
            // The broker sees this object for the first time. A generation above 1 shows a change, but not the time of
            // the change.
            (3, Some(0), Some(-1), None, 3600, Some(3630)),
            // The API server's clock is ahead, or the broker's was set back.
            (1, Some(3), Some(-1), None, 0, Some(33)),
            (1, Some(3600), Some(1), None, 0, None),
            (1, None, None, None, 0, Some(30)),
        ];
        for (generation, created, observed_generation, since, now, until) in table {
            let (meta, conditions) = (meta(generation, created), reconciling(since));
            let before = Before { meta: &meta, observed_generation, conditions: &conditions };
            let case = (generation, created, observed_generation, since, now);
            assert_eq!(before.arrival_until(at(now)), until.map(at), "{case:?}");
        }
    }

    #[test]
    fn only_a_blocker_that_needs_a_person_stalls() {
        let meta = meta(1, Some(0));
        let before = Before { meta: &meta, observed_generation: Some(1), conditions: &[] };
        let stalls = |reason, passes, second| {
            let blocker = Blocker::new(reason, "m");
            let blocker = if passes { blocker.because(Cause::Transient) } else { blocker };
            before.needs_a_person(&blocker, at(second))
        };
        for reason in Reason::ALL {
            let arrives =
                matches!(reason, Reason::ProviderNotFound | Reason::SourceNotFound | Reason::SourceNotLabeled);
            assert_eq!(stalls(*reason, false, 0), reason.stalls() && !arrives, "{reason:?}");
            assert_eq!(stalls(*reason, false, 30), reason.stalls(), "{reason:?}");
            assert!(!stalls(*reason, true, 30), "{reason:?}");
        }
    }

    #[test]
    fn reconciling_begins_with_each_generation() {
        let (old, mut conditions) = (meta(1, Some(0)), vec![]);
        let standing = || Some(Standing::Reconciling { message: "m".to_owned() });
        let since = |conditions: &[Condition]| {
            condition::find(conditions, ConditionType::Reconciling).map(|found| found.last_transition_time.0)
        };
        let set = |meta: &ObjectMeta, observed_generation, conditions: &mut Vec<Condition>, standing, second| {
            let known = conditions.clone();
            Before { meta, observed_generation, conditions: &known }.set(conditions, standing, at(second));
        };
        set(&old, Some(-1), &mut conditions, standing(), 0);
        set(&old, Some(1), &mut conditions, standing(), 10);
        assert_eq!(since(&conditions), Some(at(0)));
        set(&meta(2, Some(0)), Some(1), &mut conditions, standing(), 20);
        assert_eq!(since(&conditions), Some(at(20)));
        let stalled = Standing::Stalled(Blocker::new(Reason::InvalidSpec, "m"));
        set(&meta(2, Some(0)), Some(2), &mut conditions, Some(stalled), 21);
        assert_eq!((since(&conditions), conditions.len()), (None, 1));
        set(&meta(2, Some(0)), Some(2), &mut conditions, None, 22);
        assert_eq!(conditions, []);
    }
}
