//! A slow walk over all objects, which enqueues what should have been handled and was not. In normal operation it finds
//! nothing: what it finds is counted.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt as _;

use crate::{
    api::{
        MailCredential,
        provider_object::{ProviderKey, ProviderObject},
        reference::{ObjectKey, key},
    },
    metrics::SWEPT,
    policy::{
        observed::target_name,
        sweep::{Overdue, overdue, provider_overdue},
    },
    reconcile::context::Context,
};

/// How far apart the steps of the walk are.
const STEP: Duration = Duration::from_secs(10);
/// Steps of one walk: each takes that part of all objects.
const STEPS: u64 = 30;
/// How long a refresh token is held in memory whose credential is gone and which cannot be stored.
const ORPHANED: SignedDuration = SignedDuration::from_mins(2);

/// Walks for ever. Only the leader does anything.
pub async fn sweep(context: Arc<Context>) {
    let mut sweeper = Sweeper::default();
    for step in (0..STEPS).cycle() {
        tokio::time::sleep(STEP).await;
        let now = context.clock.now();
        let dropped = context.cache.forget_orphans(now - ORPHANED);
        if dropped > 0 {
            tracing::error!(count = dropped, "refresh tokens of deleted credentials dropped: not stored");
        }
        context.cache.forget_statuses(now);
        if !context.leadership.is_leader() {
            sweeper = Sweeper::default();
            continue;
        }
        context.stores.unreadable.report(&context.kubernetes.client, now).await;
        sweeper.step(step, &context);
    }
}

/// What was late in the step before, with its version. Only what is still late in the next step is enqueued: it may have
/// been about to be handled.
#[derive(Default)]
struct Sweeper {
    credentials: Suspects<ObjectKey>,
    providers: Suspects<ProviderKey>,
}

impl Sweeper {
    fn step(&mut self, step: u64, context: &Context) {
        let now = context.clock.now();
        let stores = &context.stores;
        let is_late = |credential: &MailCredential| {
            let namespace = credential.metadata.namespace.as_deref().unwrap_or_default();
            let has_target = stores.own_secrets.contains(namespace, &target_name(credential));
            let uid = credential.metadata.uid.as_deref().unwrap_or_default();
            // Thousands that are enqueued at the same time may wait for minutes: for their turn, or for a permit.
            let is_enqueued = || context.queue.has_credential(&key(credential)) || context.requests.is_queued(uid);
            let waits = |overdue| overdue == Overdue::Probe && context.requests.is_probing(uid);
            let overdue = overdue(credential, has_target, now).filter(|overdue| !waits(*overdue));
            overdue.is_some() && !context.cache.is_under_way(uid) && !is_enqueued()
        };
        let suspects = &self.credentials;
        let concerned = stores
            .credentials
            .names(|namespace, name| suspects.concerns(&(namespace.to_owned(), name.to_owned()), step));
        let concerned = concerned.into_iter().filter_map(|key| Some((stores.credentials.get(&key.0, &key.1)?, key)));
        let late = concerned.filter(|(credential, _)| is_late(credential)).map(|(credential, key)| (key, credential));
        let late = late.map(|(key, credential)| (key, credential.resource_version().unwrap_or_default()));
        for key in self.credentials.confirm(late, step) {
            tracing::warn!(
                namespace = key.0,
                name = key.1,
                "credential enqueued by the sweep: no event or timer enqueued it"
            );
            context.metrics.swept(SWEPT[0]);
            context.queue.enqueue_credential(key);
        }

        let cluster = stores.cluster_providers.iter().flat_map(|mirror| mirror.all()).map(ProviderObject::Cluster);
        let providers = stores.providers.all().map(ProviderObject::Namespaced).chain(cluster);
        let late = providers.filter(|object| {
            let ignored = object.allowed().is_some()
                && !stores.credentials.is_complete()
                && !context.stores.references.is_used(&object.key());
            let meta = object.meta();
            !ignored && meta.deletion_timestamp.is_none() && provider_overdue(meta.generation, object.status())
        });
        let late = late.map(|object| (object.key(), object.meta().resource_version.clone().unwrap_or_default()));
        for key in self.providers.confirm(late, step) {
            tracing::warn!(
                namespace = key.namespace,
                name = key.name,
                "provider enqueued by the sweep: no event or timer enqueued it"
            );
            context.metrics.swept(SWEPT[1]);
            context.queue.enqueue_provider(key);
        }
    }
}

/// Objects that were late in the step before, by version.
struct Suspects<K>(HashMap<K, String>);

impl<K> Default for Suspects<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Clone + Eq + std::hash::Hash> Suspects<K> {
    /// Whether an object is checked in this step.
    fn concerns(&self, key: &K, step: u64) -> bool {
        part(key) == step || self.0.contains_key(key)
    }

    /// Those of `late` that were late in the same version in the step before. Of the others, this step's part is
    /// suspected.
    fn confirm(&mut self, late: impl Iterator<Item = (K, String)>, step: u64) -> Vec<K> {
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

/// The step of a walk in which an object is checked.
fn part(key: &impl std::hash::Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(key) % STEPS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late(objects: &[(&'static str, u32)]) -> impl Iterator<Item = (&'static str, String)> {
        objects.iter().map(|&(key, version)| (key, version.to_string()))
    }

    #[test]
    fn an_object_is_enqueued_once_when_it_is_late_in_two_steps() {
        let mut suspects = Suspects::default();
        let step = part(&"a");
        assert!(suspects.confirm(late(&[("a", 1)]), step).is_empty());
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
    fn one_walk_checks_every_object() {
        let names: Vec<_> = (0..1_000).map(|number| format!("credential-{number}")).collect();
        let mut suspects = Suspects::default();
        let mut found = 0;
        for step in 0..STEPS {
            suspects.confirm(names.iter().map(|name| (name.clone(), String::new())), step);
            found += suspects.0.len();
        }
        assert!(found >= 900, "{found}");
    }
}
