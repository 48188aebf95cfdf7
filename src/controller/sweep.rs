//! Checks all objects in slow rounds, and enqueues objects whose due time has passed and that nothing enqueued. In
//! normal operation it finds none. The metrics count the objects that it finds.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt as _;

use crate::{
    api::{
        MailCredential,
        provider_object::ProviderKey,
        reference::{ObjectKey, key},
    },
    metrics::SWEPT,
    policy::{
        observed::target_name,
        sweep::{Overdue, STEPS, Suspects, overdue, provider_overdue},
    },
    reconcile::context::Context,
};

/// Time between two steps of a round.
const STEP: Duration = Duration::from_secs(10);
/// Maximum time for which the broker keeps the refresh token of a deleted credential if it cannot store the token.
const ORPHANED: SignedDuration = SignedDuration::from_mins(2);

/// Runs the rounds. Never returns. Only the leader checks objects.
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

/// The overdue objects of the last step.
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
            // Thousands of objects that are enqueued at the same time may wait for minutes, for a reconcile or for a
            // permit.
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

        let late = stores.all_providers().filter(|object| {
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
