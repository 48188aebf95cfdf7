//! The status of a provider and its Events. Pure.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::core::ObjectMeta;

use super::{
    Blocker,
    kstatus::{Before, Standing},
    notices::{EventNote, turns},
    status::{ENDINGS, ending},
};
use crate::api::{
    ConditionType, ProviderStatus, Reason,
    condition::{self, upsert},
    names::rfc3339,
    provider_object::ProviderObject,
};

/// A provider that is usable.
#[derive(Clone, Debug)]
pub struct Usable<'a> {
    /// The message of `Ready`.
    pub message: String,
    /// The provider's client authentications, in the order of the spec.
    pub clients: Vec<ClientEnd<'a>>,
}

/// A usable client authentication and its expiry.
#[derive(Clone, Debug)]
pub struct ClientEnd<'a> {
    /// Position in `spec.client.authentication`, from 0.
    pub index: usize,
    /// Name of the field in the entry, such as `clientSecret`.
    pub method: &'a str,
    /// Expiry of the secret or certificate, if known.
    pub expires_at: Option<Timestamp>,
}

impl Usable<'_> {
    /// The entry in use: the first entry that has not expired, otherwise the first entry.
    fn serving(&self, now: Timestamp) -> Option<&ClientEnd<'_>> {
        let lives = |entry: &&ClientEnd<'_>| entry.expires_at.is_none_or(|end| now < end);
        self.clients.iter().find(lives).or_else(|| self.clients.first())
    }

    /// The next time at which the status changes without a change of the provider or its sources.
    pub fn next_turn(&self, now: Timestamp) -> Option<Timestamp> {
        next_turn(self.clients.iter().filter_map(|entry| entry.expires_at), now)
    }
}

/// The next time at which one of the expiries `ends` reaches a threshold of `ClientCredentialExpiringSoon`, or passes.
pub fn next_turn(ends: impl Iterator<Item = Timestamp>, now: Timestamp) -> Option<Timestamp> {
    let days = ENDINGS.map(|(days, _)| days).into_iter().chain([0]);
    let turns = ends.flat_map(|end| days.clone().map(move |days| end - SignedDuration::from_hours(days * 24)));
    turns.filter(|turn| *turn > now).min()
}

/// Maximum time for which a good status stays valid after a restart. Afterwards, the broker checks properties that the
/// status does not report, such as the expiry of a certificate.
const TRUSTED_FOR: SignedDuration = SignedDuration::from_hours(6);
/// Seconds over which the provider's uid spreads the end of [`TRUSTED_FOR`].
const SPREAD: i64 = 3600;

/// Whether the status of a provider describes the current generation, and `Ready` is True.
pub fn is_fresh(object: &ProviderObject) -> bool {
    object.status().is_some_and(|status| {
        status.observed_generation == object.meta().generation
            && condition::is_true(&status.conditions, ConditionType::Ready)
    })
}

/// Time until which a status from before a restart stays valid: at most until the next threshold of a client secret's
/// expiry.
pub fn trusted_until(object: &ProviderObject, now: Timestamp) -> Timestamp {
    let spread = object.meta().uid.iter().flat_map(|uid| uid.bytes()).fold(0, |sum: i64, byte| sum + i64::from(byte));
    let secrets = object.spec().client.authentication.iter().filter_map(|entry| entry.client_secret.as_ref());
    let ends = secrets.filter_map(|secret| secret.expires_at.as_ref()).map(|end| end.0);
    let latest = now + TRUSTED_FOR + SignedDuration::from_secs(spread % SPREAD);
    next_turn(ends, now).map_or(latest, |turn| turn.min(latest))
}

/// The status of a provider after a check, without the URLs. `meta`: the provider's metadata. `name`: its name in
/// messages.
pub fn status(
    meta: &ObjectMeta,
    name: &str,
    before: &ProviderStatus,
    found: &Result<Usable<'_>, Blocker>,
    now: Timestamp,
) -> ProviderStatus {
    let generation = meta.generation.unwrap_or_default();
    let known = known(meta, before);
    let mut after = ProviderStatus {
        observed_generation: meta.generation,
        conditions: before.conditions.clone(),
        ..ProviderStatus::default()
    };
    let conditions = &mut after.conditions;
    match found {
        Ok(usable) => {
            let message = usable.message.clone();
            upsert(conditions, ConditionType::Ready, true, Reason::ProviderReady, message, generation, now);
            known.set(conditions, None, now);
        }
        Err(blocker) => {
            let Blocker { reason, message, .. } = blocker.clone();
            upsert(conditions, ConditionType::Ready, false, reason, message.clone(), generation, now);
            let standing = match known.needs_a_person(blocker, now) {
                true => Standing::Stalled(blocker.clone()),
                false => Standing::Reconciling { message },
            };
            known.set(conditions, Some(standing), now);
        }
    }
    match (found, known.is_current()) {
        (Ok(usable), _) => match client_ending(usable, name, now) {
            Some((reason, message)) => {
                let kind = ConditionType::ClientCredentialExpiringSoon;
                upsert(&mut after.conditions, kind, true, reason, message, generation, now);
            }
            None => condition::remove(&mut after.conditions, ConditionType::ClientCredentialExpiringSoon),
        },
        // The result of a check of another generation does not apply.
        (Err(_), false) => condition::remove(&mut after.conditions, ConditionType::ClientCredentialExpiringSoon),
        (Err(_), true) => {}
    }
    after
}

/// Time until which a provider waits for an object that may still arrive. `None`: the wait is over.
pub fn arrival_until(meta: &ObjectMeta, before: &ProviderStatus, now: Timestamp) -> Option<Timestamp> {
    known(meta, before).arrival_until(now)
}

fn known<'a>(meta: &'a ObjectMeta, before: &'a ProviderStatus) -> Before<'a> {
    Before { meta, observed_generation: before.observed_generation, conditions: &before.conditions }
}

fn client_ending(usable: &Usable<'_>, name: &str, now: Timestamp) -> Option<(Reason, String)> {
    let ClientEnd { index, method, expires_at } = usable.serving(now)?;
    let end = (*expires_at)?;
    let message = format!(
        "spec.client.authentication[{index}] ({method}) of the {name} ends at {}: create a new one at the provider, store \
         it in the Secret that the entry names, and set its expiresAt",
        rfc3339(end)
    );
    Some((ending(end, now)?, message))
}

/// The Events for the change from `before` to `after`.
pub fn notices(before: &ProviderStatus, after: &ProviderStatus) -> Vec<EventNote> {
    turns(&before.conditions, &after.conditions, &[ConditionType::Stalled, ConditionType::ClientCredentialExpiringSoon])
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::policy::observed::Cause;

    const DAY: i64 = 24 * 3600;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn meta(generation: i64) -> ObjectMeta {
        ObjectMeta { generation: Some(generation), creation_timestamp: Some(Time(at(0))), ..ObjectMeta::default() }
    }

    /// Client authentications that expire after `ends` days.
    fn usable(ends: &[Option<i64>]) -> Result<Usable<'static>, Blocker> {
        let client = |(index, end): (usize, &Option<i64>)| ClientEnd {
            index,
            method: "clientSecret",
            expires_at: end.map(|days| at(days * DAY)),
        };
        let clients = ends.iter().enumerate().map(client).collect();
        Ok(Usable { message: "tokens come from https://x/t".into(), clients })
    }

    /// The conditions that are True or False, with their reasons.
    fn conditions_of(status: &ProviderStatus) -> Vec<String> {
        let line = |found: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
            format!("{} {} {}", found.type_, found.status, found.reason)
        };
        status.conditions.iter().map(line).collect()
    }

    fn events(before: &ProviderStatus, after: &ProviderStatus) -> Vec<String> {
        let line = |notice: &EventNote| {
            format!("{} {}", if notice.warning { "Warning" } else { "Normal" }, notice.reason.as_str())
        };
        notices(before, after).iter().map(line).collect()
    }

    fn object(uid: &str, ends: &[i64]) -> crate::api::MailProvider {
        let entries: Vec<_> = ends
            .iter()
            .map(|second| {
                let reference = serde_json::json!({"name": "app", "key": "secret"});
                serde_json::json!({"clientSecret": {"secretRef": reference, "expiresAt": rfc3339(at(*second))}})
            })
            .collect();
        serde_json::from_value(serde_json::json!({
            "apiVersion": "mailtoken.dev/v1alpha1",
            "kind": "MailProvider",
            "metadata": {"name": "idp", "namespace": "shop", "uid": uid, "generation": 2},
            "spec": {"oauth2": {"tokenURL": "https://x/t"}, "client": {"id": "c", "authentication": entries}},
        }))
        .unwrap()
    }

    #[test]
    fn a_status_from_before_a_restart_is_trusted_for_hours_but_not_beyond_a_threshold() {
        const HOUR: i64 = 3600;
        let many = "z".repeat(100);
        // The uid, the expiry of each client secret, and the end of the trust.
        let table: [(&str, &[i64], i64); 7] = [
            ("", &[], 6 * HOUR),
            ("a", &[], 6 * HOUR + 97),
            ("ab", &[], 6 * HOUR + 97 + 98),
            // The uid adds 100 times 122 seconds, modulo an hour.
            (&many, &[], 6 * HOUR + 12_200 - 3 * HOUR),
            ("", &[30 * DAY + HOUR], HOUR),
            ("", &[90 * DAY, HOUR], HOUR),
            ("", &[5 * DAY], 6 * HOUR),
        ];
        for (uid, ends, expected) in table {
            let object = ProviderObject::Namespaced(object(uid, ends).into());
            assert_eq!(trusted_until(&object, at(0)), at(expected), "{uid} {ends:?}");
        }
    }

    #[test]
    fn a_status_is_fresh_if_it_is_ready_in_the_current_generation() {
        for (generation, is_ready, fresh) in [(2, true, true), (2, false, false), (1, true, false)] {
            let mut provider = object("", &[]);
            let mut status = ProviderStatus { observed_generation: Some(generation), ..ProviderStatus::default() };
            let (kind, reason) = (ConditionType::Ready, Reason::ProviderReady);
            upsert(&mut status.conditions, kind, is_ready, reason, String::new(), generation, at(0));
            provider.status = Some(status);
            assert_eq!(is_fresh(&ProviderObject::Namespaced(provider.into())), fresh, "{generation} {is_ready}");
        }
        assert!(!is_fresh(&ProviderObject::Namespaced(object("", &[]).into())), "without a status");
    }

    #[test]
    fn a_provider_stalls_only_for_a_problem_that_needs_a_person() {
        let network = Blocker::new(Reason::DiscoveryFailed, "m");
        let table = [
            (Blocker::new(Reason::IssuerMismatch, "m"), 0, "Stalled True IssuerMismatch"),
            (Blocker::new(Reason::InvalidSpec, "m"), 0, "Stalled True InvalidSpec"),
            (Blocker::new(Reason::SourceInvalid, "m"), 0, "Stalled True SourceInvalid"),
            (Blocker::new(Reason::EgressDenied, "m"), 0, "Stalled True EgressDenied"),
            (Blocker::new(Reason::TLSFailed, "m"), 3600, "Reconciling True Progressing"),
            (network.clone(), 3600, "Reconciling True Progressing"),
            (network.because(Cause::Person), 0, "Stalled True DiscoveryFailed"),
            (Blocker::new(Reason::SourceNotFound, "m"), 29, "Reconciling True Progressing"),
            (Blocker::new(Reason::SourceNotFound, "m"), 30, "Stalled True SourceNotFound"),
            (Blocker::new(Reason::SourceNotLabeled, "m"), 29, "Reconciling True Progressing"),
            (Blocker::new(Reason::SourceNotLabeled, "m"), 30, "Stalled True SourceNotLabeled"),
        ];
        for (blocker, second, expected) in table {
            let found = Err(blocker.clone());
            let after = status(&meta(1), "MailProvider shop/idp", &ProviderStatus::default(), &found, at(second));
            assert_eq!(
                conditions_of(&after),
                [format!("Ready False {}", blocker.reason.as_str()), expected.to_owned()]
            );
            let again = status(&meta(1), "MailProvider shop/idp", &after, &found, at(second));
            assert_eq!(again, after, "it is written once");
        }
    }

    #[test]
    fn an_object_that_arrives_in_time_causes_no_event_and_a_late_one_does() {
        let missing = Err(Blocker::new(Reason::SourceNotFound, "m"));
        let ready = usable(&[None]);
        let step = |before: &ProviderStatus, found: &Result<Usable<'_>, Blocker>, second| {
            let after = status(&meta(1), "MailProvider shop/idp", before, found, at(second));
            (events(before, &after), after)
        };
        let (told_first, first) = step(&ProviderStatus::default(), &missing, 0);
        let (told_late, late) = step(&first, &missing, 30);
        let (told_later, _) = step(&late, &missing, 90);
        let (told_ready, _) = step(&late, &ready, 90);
        assert_eq!((told_first, told_late, told_later), (vec![], vec!["Warning SourceNotFound".to_owned()], vec![]));
        assert_eq!(told_ready, ["Normal ProviderReady"]);
        assert_eq!(step(&ProviderStatus::default(), &ready, 0).0, [""; 0]);
    }

    #[test]
    fn the_end_of_the_client_secret_in_use_is_reported_once_for_each_threshold() {
        let after = |before: &ProviderStatus, ends: &[Option<i64>], second| {
            status(&meta(1), "MailProvider shop/idp", before, &usable(ends), at(second))
        };
        let reason = |status: &ProviderStatus| {
            condition::find(&status.conditions, ConditionType::ClientCredentialExpiringSoon)
                .map(|found| found.reason.clone())
        };
        let fresh = ProviderStatus::default();
        // The days until each client authentication expires, in the order of the spec.
        let table: [(&[Option<i64>], Option<&str>); 8] = [
            (&[Some(31)], None),
            (&[Some(30)], Some("Within30d")),
            (&[Some(7)], Some("Within7d")),
            (&[Some(1)], Some("Within1d")),
            (&[Some(-1)], Some("Within1d")),
            (&[None, Some(1)], None),
            (&[Some(60), Some(1)], None),
            (&[Some(-1), Some(60)], None),
        ];
        for (ends, expected) in table {
            assert_eq!(reason(&after(&fresh, ends, 0)).as_deref(), expected, "{ends:?}");
        }
        let month = after(&fresh, &[Some(30)], 0);
        assert_eq!(events(&fresh, &month), ["Warning Within30d"]);
        assert_eq!(events(&month, &after(&month, &[Some(30)], DAY)), [""; 0]);
        assert_eq!(events(&month, &after(&month, &[Some(30)], 23 * DAY)), ["Warning Within7d"]);
        let message = condition::find(&month.conditions, ConditionType::ClientCredentialExpiringSoon).unwrap();
        let what =
            "spec.client.authentication[0] (clientSecret) of the MailProvider shop/idp ends at 2027-02-14T08:00:00Z: ";
        assert!(message.message.starts_with(what), "{}", message.message);

        let failing = Err(Blocker::new(Reason::TLSFailed, "m"));
        let failed = |generation| status(&meta(generation), "MailProvider shop/idp", &month, &failing, at(0));
        assert_eq!(reason(&failed(1)).as_deref(), Some("Within30d"), "a failure says nothing about it");
        assert_eq!(reason(&failed(2)), None, "another spec does");
        let turns = |second| usable(&[Some(31), None]).unwrap().next_turn(at(second));
        let expected = [1, 24, 30, 31].map(|day| Some(at(day * DAY)));
        assert_eq!([0, DAY, 24 * DAY, 30 * DAY].map(turns), expected);
        assert_eq!(turns(31 * DAY), None);
    }
}
