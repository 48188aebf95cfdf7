//! Detects overdue work, for a slow sweep over all objects. Only the sweep reveals a lost watch event, a lost timer or
//! a mistake in the queue. Pure.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher, Hash},
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::api::{ConditionType, MailCredential, ProviderStatus, Reason, Retry, condition};

/// Time after which work is overdue. While a request is in flight, the broker reports the expiry of a token at most 30
/// s late.
pub const GRACE: SignedDuration = SignedDuration::from_secs(90);

/// Kinds of overdue work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// The status describes another generation.
    Generation,
    /// The token has expired, and `Ready` is still True.
    Expiry,
    /// The time of the next attempt has passed.
    Attempt,
    /// The renewal time has passed, and no attempt has failed since.
    Renewal,
    /// The sign-in code in the status has expired.
    SignIn,
    /// The Secret of a Ready credential does not exist.
    Secret,
    /// The time of the next probe has passed. The probe may wait for its permit.
    Probe,
}

/// The overdue work of a credential at `now`. `has_target`: whether the broker sees the credential's target Secret. Do
/// not call this function for a credential with a request in flight.
pub fn overdue(credential: &MailCredential, has_target: bool, now: Timestamp) -> Option<Overdue> {
    if credential.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let passed = |at: Timestamp| at.checked_add(GRACE).is_ok_and(|at| at < now);
    let Some(status) = &credential.status else { return Some(Overdue::Generation) };
    if status.observed_generation != credential.metadata.generation {
        return Some(Overdue::Generation);
    }
    let is_ready = condition::is_true(&status.conditions, ConditionType::Ready);
    if is_ready && status.token.as_ref().is_some_and(|token| passed(token.expires_at.0)) {
        return Some(Overdue::Expiry);
    }
    if credential.spec.suspend {
        return None;
    }
    if is_ready && !has_target {
        return Some(Overdue::Secret);
    }
    if let Some(authorization) = &status.authorization {
        return passed(authorization.expires_at.0).then_some(Overdue::SignIn);
    }
    if waits_for_a_change(status.conditions.as_slice()) {
        return None;
    }
    if let Some(next) = &status.next_attempt_time {
        return passed(next.0).then_some(Overdue::Attempt);
    }
    let renewal = status.token.as_ref().map(|token| token.renewal_time.0);
    if renewal.is_some_and(passed) {
        return Some(Overdue::Renewal);
    }
    let works = is_ready && condition::is_true(&status.conditions, ConditionType::Renewed);
    let probe = status.probe.as_ref().filter(|_| works).map(|probe| probe.next_time.0);
    probe.is_some_and(passed).then_some(Overdue::Probe)
}

/// Whether the credential has no work to do until an object changes.
fn waits_for_a_change(conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition]) -> bool {
    let stalled = condition::find(conditions, ConditionType::Stalled).filter(|stalled| stalled.status == "True");
    let reason = stalled.and_then(|stalled| Reason::parse(&stalled.reason));
    reason.is_some_and(|reason| reason.retry() == Retry::OnChange || reason == Reason::AuthorizationRequired)
}

/// Whether a provider's status is overdue, because it describes another generation.
pub fn provider_overdue(generation: Option<i64>, status: Option<&ProviderStatus>) -> bool {
    status.and_then(|status| status.observed_generation) != generation
}

/// Number of steps of a sweep. A step checks one part of all objects.
pub const STEPS: u64 = 30;

/// Objects that were overdue in the last step, with their resourceVersions. The sweep enqueues an object only if it is
/// overdue in two steps, because the broker may have been about to handle the object in the first step.
pub struct Suspects<K>(HashMap<K, String>);

impl<K> Default for Suspects<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Suspects<K> {
    /// Whether the sweep checks an object in this step.
    pub fn concerns(&self, key: &K, step: u64) -> bool {
        part(key) == step || self.0.contains_key(key)
    }

    /// Returns the objects among `late` that were also overdue in the last step, in the same version. Of the other
    /// objects, suspects the objects of this step's part.
    pub fn confirm(&mut self, late: impl Iterator<Item = (K, String)>, step: u64) -> Vec<K> {
        let before = std::mem::take(&mut self.0);
        let mut confirmed = vec![];
        for (key, version) in late {
            match before.get(&key) {
                Some(known) if *known == version => confirmed.push(key),
                Some(_) => {}
                None if part(&key) == step => {
                    self.0.insert(key, version);
                }
                None => {}
            }
        }
        confirmed
    }
}

/// The step in which the sweep checks an object.
fn part(key: &impl Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(key) % STEPS
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::{
        api::probe::ProbeStatus,
        api::status::{AuthorizationStatus, MailCredentialStatus, TokenStatus},
        fixtures,
    };

    const NOW: i64 = 1_000_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(NOW + second).unwrap()
    }

    /// A Ready credential with a renewal in 10 minutes.
    fn at_rest() -> MailCredential {
        let mut credential = fixtures::credential();
        credential.metadata.generation = Some(3);
        let mut status = MailCredentialStatus {
            observed_generation: Some(3),
            token: Some(TokenStatus {
                issued_at: Time(at(-600)),
                expires_at: Time(at(1200)),
                renewal_time: Time(at(600)),
                scopes: vec![],
                fingerprint: String::new(),
                length: 1,
            }),
            ..MailCredentialStatus::default()
        };
        let message = String::new();
        condition::upsert(&mut status.conditions, ConditionType::Ready, true, Reason::TokenValid, message, 3, at(0));
        credential.status = Some(status);
        credential
    }

    fn stalled(status: &mut MailCredentialStatus, reason: Reason) {
        condition::upsert(&mut status.conditions, ConditionType::Stalled, true, reason, String::new(), 3, at(0));
    }

    #[test]
    fn only_overdue_objects_are_found() {
        type Change = fn(&mut MailCredential, &mut MailCredentialStatus);
        let cases: [(&str, Change, Option<Overdue>); 19] = [
            ("at rest", |_, _| {}, None),
            ("a new generation", |credential, _| credential.metadata.generation = Some(4), Some(Overdue::Generation)),
            ("just created", |_, status| status.observed_generation = Some(-1), Some(Overdue::Generation)),
            ("expired, Ready", |_, status| set_end(status, -91), Some(Overdue::Expiry)),
            ("expired just now", |_, status| set_end(status, -60), None),
            (
                "expired while suspended",
                |credential, status| {
                    credential.spec.suspend = true;
                    set_end(status, -91);
                },
                Some(Overdue::Expiry),
            ),
            ("to be renewed", |_, status| set_renewal(status, -91), Some(Overdue::Renewal)),
            ("to be renewed just now", |_, status| set_renewal(status, -60), None),
            (
                "suspended",
                |credential, status| {
                    credential.spec.suspend = true;
                    set_renewal(status, -91);
                },
                None,
            ),
            (
                "backs off",
                |_, status| {
                    set_renewal(status, -91);
                    status.next_attempt_time = Some(Time(at(10)));
                },
                None,
            ),
            ("has backed off", |_, status| status.next_attempt_time = Some(Time(at(-91))), Some(Overdue::Attempt)),
            (
                "waits for its provider",
                |_, status| {
                    status.next_attempt_time = Some(Time(at(-91)));
                    stalled(status, Reason::ProviderNotFound);
                },
                None,
            ),
            (
                "was refused",
                |_, status| {
                    status.next_attempt_time = Some(Time(at(-91)));
                    stalled(status, Reason::InvalidClient);
                },
                Some(Overdue::Attempt),
            ),
            ("waits for a person", |_, status| status.authorization = Some(sign_in(10)), None),
            ("a sign-in that ended", |_, status| status.authorization = Some(sign_in(-91)), Some(Overdue::SignIn)),
            ("to be probed", |_, status| set_probe(status, -91, true), Some(Overdue::Probe)),
            ("to be probed just now", |_, status| set_probe(status, -60, true), None),
            ("to be probed, but its provider is not usable", |_, status| set_probe(status, -91, false), None),
            (
                "is deleted",
                |credential, status| {
                    credential.metadata.deletion_timestamp = Some(Time(at(0)));
                    set_end(status, -91);
                },
                None,
            ),
        ];
        for (name, change, expected) in cases {
            let mut credential = at_rest();
            let mut status = credential.status.take().unwrap();
            change(&mut credential, &mut status);
            credential.status = Some(status);
            assert_eq!(overdue(&credential, true, at(0)), expected, "{name}");
        }
        assert_eq!(overdue(&at_rest(), false, at(0)), Some(Overdue::Secret));
        let never_seen = MailCredential { status: None, ..at_rest() };
        assert_eq!(overdue(&never_seen, false, at(0)), Some(Overdue::Generation));
    }

    fn set_end(status: &mut MailCredentialStatus, second: i64) {
        status.token.as_mut().unwrap().expires_at = Time(at(second));
    }

    fn set_probe(status: &mut MailCredentialStatus, next: i64, renewed: bool) {
        status.probe = Some(ProbeStatus {
            last_time: Time(at(-20_000)),
            next_time: Time(at(next)),
            results: vec![],
            failures: None,
            probed_with: String::new(),
            fingerprint: String::new(),
        });
        let reason = Reason::RenewalSucceeded;
        condition::upsert(&mut status.conditions, ConditionType::Renewed, renewed, reason, String::new(), 3, at(0));
    }

    fn set_renewal(status: &mut MailCredentialStatus, second: i64) {
        status.token.as_mut().unwrap().renewal_time = Time(at(second));
    }

    fn sign_in(end: i64) -> AuthorizationStatus {
        AuthorizationStatus {
            verification_uri: String::new(),
            verification_uri_complete: None,
            user_code: String::new(),
            expires_at: Time(at(end)),
        }
    }

    #[test]
    fn a_provider_is_late_while_its_status_is_of_another_generation() {
        let status = ProviderStatus { observed_generation: Some(2), ..ProviderStatus::default() };
        assert!(!provider_overdue(Some(2), Some(&status)));
        assert!(provider_overdue(Some(3), Some(&status)) && provider_overdue(Some(1), None));
    }

    fn late(objects: &[(&'static str, u32)]) -> impl Iterator<Item = (&'static str, String)> {
        objects.iter().map(|&(key, version)| (key, version.to_string()))
    }

    #[test]
    fn an_object_is_enqueued_once_when_it_is_late_in_two_steps() {
        let mut suspects = Suspects::default();
        let step = part(&"a");
        assert!(suspects.concerns(&"a", step) && !suspects.concerns(&"a", step + 1));
        assert!(suspects.confirm(late(&[("a", 1)]), step).is_empty());
        assert!(suspects.concerns(&"a", step + 1), "a suspect is checked in the next step");
        assert_eq!(suspects.confirm(late(&[("a", 1)]), step + 1), ["a"]);
        assert!(suspects.confirm(late(&[("a", 1)]), step + 2).is_empty(), "not again before the next walk");
    }

    #[test]
    fn an_object_that_changed_or_was_handled_meanwhile_is_left_alone() {
        let mut suspects = Suspects::default();
        let step = part(&"a");
        suspects.confirm(late(&[("a", 1)]), step);
        assert!(suspects.confirm(late(&[("a", 2)]), step + 1).is_empty());
        suspects.confirm(late(&[("a", 1)]), step);
        assert!(suspects.confirm(late(&[]), step + 1).is_empty());
        assert!(suspects.confirm(late(&[("a", 1)]), step + 1).is_empty());
    }

    #[test]
    fn one_walk_checks_every_object_in_steps_of_a_similar_size() {
        let names: Vec<_> = (0..1_000).map(|number| format!("credential-{number}")).collect();
        let mut suspects = Suspects::default();
        let mut found = 0;
        for step in 0..STEPS {
            suspects.confirm(names.iter().map(|name| (name.clone(), String::new())), step);
            assert!((1..100).contains(&suspects.0.len()), "step {step} suspects {}", suspects.0.len());
            found += suspects.0.len();
        }
        assert!(found >= 900, "{found}");
    }
}
