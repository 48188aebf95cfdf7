//! The cache of resolved providers: endpoints discovered, secrets read, CA bundle trusted. A provider is resolved once
//! for each change of it or of an object that it refers to, for its status and for the credentials that use it.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Client, core::ObjectMeta};
use parking_lot::Mutex;

use crate::{
    api::{
        ProviderStatus, Reason, names,
        provider_object::{ProviderKey, ProviderObject, bundle_config_map, bundle_secret, source_secrets},
    },
    clock::Clock,
    error::Error,
    idp::{BundleHash, IdpClients},
    lease::Leadership,
    oauth::discovery::Endpoints,
    policy::{Blocker, advice, hash, schedule},
    provider_client::{
        federation::Identities, problem::ProviderProblem, resolve::resolve, resolve_context::ResolveContext,
        resolved_provider::ResolvedProvider,
    },
    reconcile::{act::activity::Permit, bundles::Bundles, source_contents::SourceContents},
    stores::Stores,
};

/// The hash by which a probe notices another CA bundle: the first 16 hex digits of the SHA-256 `digest`.
pub(crate) fn bundle_hash(digest: &[u8]) -> hash::ProbeHash {
    names::hex16(digest).into()
}

/// The result of the last resolution.
type ResolveResult = Result<Arc<ResolvedProvider>, ProviderProblem>;

/// The largest number of distinct CA bundles with a client. Beyond it the client of the least recently used provider is
/// evicted, and made again when it is needed.
const BUNDLES: usize = 32;
/// A provider whose client was evicted is resolved again after this time, if nothing needs it before.
const GIVEN_UP_FOR: SignedDuration = SignedDuration::from_hours(1);

/// What providers are resolved with.
pub struct Resolver {
    /// The client of the API server.
    pub client: Client,
    /// The HTTP clients towards providers.
    pub clients: IdpClients,
    /// Where ServiceAccount tokens come from.
    pub identities: Identities,
    /// Whether this replica leads: no other sends requests.
    pub leadership: Leadership,
    /// The clock, in whole seconds.
    pub clock: Clock,
}

/// The resolved providers, by key.
pub struct ProviderCache {
    /// Uses so far.
    uses: AtomicU64,
    resolver: Resolver,
    stores: Stores,
    /// The ConfigMaps that hold CA bundles.
    pub bundles: Arc<Bundles>,
    /// Since when source Secrets have their present content.
    pub contents: SourceContents,
    /// Which addresses may be connected to: part of the hash, so that a restart with other flags resolves
    /// providers again.
    reach: String,
    entries: Mutex<HashMap<ProviderKey, ProviderEntry>>,
}

#[derive(Default)]
struct ProviderEntry {
    /// Only one task at a time resolves the provider.
    resolving: Arc<tokio::sync::Mutex<()>>,
    /// A task resolves the provider, and enqueues it at its end.
    handle: bool,
    /// The step of the last resolution that Kubernetes failed.
    error: Option<Error>,
    /// The result, and the inputs that it is about.
    result: Option<(hash::ProviderHash, ResolveResult)>,
    /// The inputs with which the status from before a restart is valid, and until when.
    trusted: Option<(hash::ProviderHash, Timestamp)>,
    /// Failed resolutions in a row with the same inputs, and when the next one is due.
    failures: u32,
    failed_with: hash::ProviderHash,
    retry_at: Option<Timestamp>,
    /// What its credentials were enqueued for last: the inputs, and the problem.
    reported: Option<(hash::ProviderHash, Option<ProviderProblem>)>,
    /// When it was used last: a number that grows with each use of any provider.
    used: u64,
    /// The status that was written last, with its resourceVersion. A watch shows it a moment later.
    written: Option<(u64, ProviderStatus)>,
}

impl ProviderCache {
    /// An empty cache of providers.
    pub fn new(resolver: Resolver, stores: Stores, bundles: Arc<Bundles>, contents: SourceContents) -> Self {
        let (uses, reach) = (AtomicU64::new(0), resolver.clients.reach());
        Self { uses, reach, resolver, stores, bundles, contents, entries: Mutex::default() }
    }

    /// Where ServiceAccount tokens come from.
    pub fn identities(&self) -> &Identities {
        &self.resolver.identities
    }

    /// Hash of a provider, of the versions of everything it refers to, and of what may be connected to; `None` while a ConfigMap has not been read yet.
    pub fn hash(&self, object: &ProviderObject) -> Option<hash::ProviderHash> {
        let key = object.key();
        let home = self.stores.home(&key);
        let mut parts = vec![
            self.reach.clone(),
            object.meta().uid.clone().unwrap_or_default(),
            object.meta().generation.unwrap_or_default().to_string(),
        ];
        for name in source_secrets(object.spec()) {
            parts.push(self.contents.since(&(home.to_owned(), name.to_owned())));
        }
        if let Some(reference) = bundle_config_map(object.spec()) {
            parts.push(self.bundles.version(&key, &(home.to_owned(), reference.name.clone()))?);
        }
        Some(names::short_digest(parts.iter().map(String::as_str)).into())
    }

    /// Hash of the CA bundle that a provider's client trusts; empty without one. `None` while the provider was not resolved
    /// with these inputs.
    pub fn bundle(&self, object: &ProviderObject, inputs: &hash::ProviderHash) -> Option<hash::ProbeHash> {
        if bundle_config_map(object.spec()).is_none() && bundle_secret(object.spec()).is_none() {
            return Some(hash::ProbeHash::default());
        }
        let resolved = self.result(&object.key(), inputs)?.ok()?;
        resolved.client.bundle().map(|(digest, _)| bundle_hash(&digest))
    }

    /// The result of the last resolution, if it was with these inputs.
    pub fn result(&self, key: &ProviderKey, inputs: &hash::ProviderHash) -> Option<ResolveResult> {
        let entries = self.entries.lock();
        let (of, result) = entries.get(key)?.result.as_ref()?;
        (of == inputs).then(|| result.clone())
    }

    /// The endpoints of the last resolution.
    pub fn endpoints(&self, key: &ProviderKey) -> Option<Endpoints> {
        let entries = self.entries.lock();
        let (_, result) = entries.get(key)?.result.as_ref()?;
        result.as_ref().ok().map(|resolved| resolved.endpoints.clone())
    }

    /// Drops the result: the next use resolves the provider again, because its endpoints may have moved.
    pub fn invalidate(&self, key: &ProviderKey) {
        if let Some(entry) = self.entries.lock().get_mut(key) {
            entry.result = None;
        }
    }

    /// Invalidates all providers after a clock jump: retry times and assertions were computed with the old clock.
    pub fn invalidate_all(&self) {
        for entry in self.entries.lock().values_mut() {
            (entry.result, entry.retry_at, entry.reported) = (None, None, None);
        }
    }

    /// Until when the status from before a restart is valid. `None`: it is not, because the provider was resolved
    /// since, or because its inputs have changed since the first call, whose `until` counts.
    pub fn is_still_valid(
        &self,
        key: &ProviderKey,
        inputs: &hash::ProviderHash,
        until: Timestamp,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let mut entries = self.entries.lock();
        let entry = entries.entry(key.clone()).or_default();
        if entry.result.is_some() {
            return None;
        }
        let (trusted, until) = entry.trusted.get_or_insert_with(|| (inputs.clone(), until));
        (trusted == inputs && now < *until).then_some(*until)
    }

    /// Whether the caller must start the resolution: no other task runs.
    pub fn begin(&self, key: &ProviderKey) -> bool {
        let mut entries = self.entries.lock();
        let entry = entries.entry(key.clone()).or_default();
        !std::mem::replace(&mut entry.handle, true)
    }

    /// Ends a resolution, with the step that Kubernetes failed.
    pub fn end(&self, key: &ProviderKey, error: Option<Error>) {
        if let Some(entry) = self.entries.lock().get_mut(key) {
            (entry.handle, entry.error) = (false, error);
        }
    }

    /// The error of the last resolution, returned once.
    pub fn take_error(&self, key: &ProviderKey) -> Option<Error> {
        self.entries.lock().get_mut(key)?.error.take()
    }

    /// When a provider that cannot be used is resolved again.
    pub fn retry_at(&self, key: &ProviderKey) -> Option<Timestamp> {
        self.entries.lock().get(key)?.retry_at
    }

    /// Notes the result of a resolution, and returns when the next one is due.
    pub fn note(
        &self,
        key: &ProviderKey,
        inputs: &hash::ProviderHash,
        problem: Option<&ProviderProblem>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let mut entries = self.entries.lock();
        let entry = entries.entry(key.clone()).or_default();
        let Some(problem) = problem else {
            (entry.failures, entry.retry_at) = (0, None);
            return None;
        };
        if entry.retry_at.is_none_or(|due| due <= now) || &entry.failed_with != inputs {
            entry.failures = if &entry.failed_with == inputs { entry.failures.saturating_add(1) } else { 1 };
            entry.failed_with.clone_from(inputs);
            entry.retry_at = Some(schedule::provider_retry_at(problem.blocker.reason, entry.failures, now));
        }
        entry.retry_at
    }

    /// Whether the credentials of a provider must be enqueued for this result: once for each result.
    pub fn is_news(&self, key: &ProviderKey, inputs: &hash::ProviderHash, problem: Option<&ProviderProblem>) -> bool {
        let mut entries = self.entries.lock();
        let entry = entries.entry(key.clone()).or_default();
        let found = Some((inputs.clone(), problem.cloned()));
        if entry.reported == found {
            return false;
        }
        entry.reported = found;
        true
    }

    /// The current status: as the watch shows it, or as the broker wrote it, whichever is newer.
    pub fn status(&self, object: &ProviderObject) -> ProviderStatus {
        let shown = version(object.meta());
        let entries = self.entries.lock();
        match entries.get(&object.key()).and_then(|entry| entry.written.as_ref()) {
            Some((at, status)) if *at > shown => status.clone(),
            _ => object.status().cloned().unwrap_or_default(),
        }
    }

    /// Notes a status that was written.
    pub fn wrote(&self, key: &ProviderKey, meta: &ObjectMeta, status: ProviderStatus) {
        self.entries.lock().entry(key.clone()).or_default().written = Some((version(meta), status));
    }

    /// Forgets the statuses that were written: the API server was restored from a backup.
    pub fn forget_writes(&self) {
        self.entries.lock().values_mut().for_each(|entry| entry.written = None);
        self.contents.forget_versions();
    }

    /// Forgets a deleted provider.
    pub fn forget(&self, key: &ProviderKey) {
        self.entries.lock().remove(key);
    }

    /// Resolves the provider, or returns the last result. `again` resolves even if the last result is a problem. The results
    /// of requests to the provider are recorded with `permit`.
    ///
    /// # Errors
    /// The step that Kubernetes failed. A problem of the provider is part of the result.
    pub async fn resolve(
        &self,
        object: &ProviderObject,
        again: bool,
        permit: Option<&Permit>,
    ) -> Result<ResolveResult, Error> {
        let key = object.key();
        let resolving = self.entries.lock().entry(key.clone()).or_default().resolving.clone();
        let _one_at_a_time = resolving.lock().await;
        let exists = || self.stores.provider(&key).is_some_and(|found| found.meta().uid == object.meta().uid);
        if !exists() {
            // The provider was deleted while another task resolved it: leave no entry and follow no CA bundle.
            self.entries.lock().remove(&key);
            let blocker = Blocker::new(Reason::ProviderNotFound, "the provider was deleted");
            return Ok(Err(ProviderProblem { blocker, of_the_client: false }));
        }
        let inputs = self.hash(object).unwrap_or_default();
        let used = self.uses.fetch_add(1, Ordering::Relaxed);
        if let Some(entry) = self.entries.lock().get_mut(&key) {
            entry.used = used;
        }
        match self.result(&key, &inputs) {
            Some(Err(_)) if again => {}
            Some(result) => return Ok(result),
            None => {}
        }
        let Resolver { client, clients, identities, leadership, clock } = &self.resolver;
        let context = ResolveContext {
            kubernetes: client,
            reads: Some(&self.contents),
            home: self.stores.home(&key),
            clients,
            identities,
            may_ask: &|| leadership.is_leader(),
            ended: &|result| permit.into_iter().for_each(|permit| permit.record(result)),
            again: advice::AGAIN,
        };
        let found = resolve(object, &context).await?;
        if found.is_err() && !leadership.is_leader() {
            // The request may have been withheld, which says nothing about the provider: keep no result.
            return Ok(found.map(Arc::new));
        }
        let mut entries = self.entries.lock();
        if !exists() {
            // The provider was deleted meanwhile: remove its entry.
            entries.remove(&key);
            self.bundles.release(&key, None);
            return Ok(found.map(Arc::new));
        }
        let entry = entries.entry(key).or_default();
        let result = found.map(Arc::new);
        entry.result = Some((inputs, result.clone()));
        let evicted = evict_clients(&mut entries, BUNDLES, clock.now() + GIVEN_UP_FOR);
        drop(entries);
        // Outside of the lock: dropping the last reference to a client takes time.
        drop(evicted);
        Ok(result)
    }
}

/// Removes the results of the least recently used providers, until no more than `bundles` distinct CA bundles are in
/// use. The status of such a provider stays valid until it is used, or `until`.
fn evict_clients(
    entries: &mut HashMap<ProviderKey, ProviderEntry>,
    bundles: usize,
    until: Timestamp,
) -> Vec<ResolveResult> {
    let bundle = |entry: &ProviderEntry| entry.result.as_ref()?.1.as_ref().ok()?.client.bundle();
    let mut needed: HashMap<BundleHash, u64> = HashMap::new();
    for entry in entries.values() {
        if let Some(bundle) = bundle(entry) {
            let used = needed.entry(bundle).or_default();
            *used = entry.used.max(*used);
        }
    }
    let mut oldest: Vec<_> = needed.into_iter().map(|(bundle, used)| (used, bundle)).collect();
    oldest.sort_unstable();
    let excess = oldest.len().saturating_sub(bundles);
    let evicted: HashSet<_> = oldest.into_iter().take(excess).map(|(_, bundle)| bundle).collect();
    let concerned = entries.values_mut().filter(|entry| bundle(entry).is_some_and(|bundle| evicted.contains(&bundle)));
    let take = |entry: &mut ProviderEntry| {
        let (inputs, result) = entry.result.take()?;
        entry.trusted = Some((inputs, until));
        Some(result)
    };
    concerned.filter_map(take).collect()
}

/// resourceVersions are comparable numbers (KEP-5504).
fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use crate::{api::credential::ProviderKind, clock::Clock, egress::EgressPolicy, idp};

    use super::*;

    #[test]
    fn the_clients_of_the_least_recently_used_providers_are_dropped() {
        let settings = idp::Settings {
            request_timeout: std::time::Duration::from_secs(1),
            egress: EgressPolicy::default(),
            proxy: None,
            no_proxy: vec![],
        };
        let clients = IdpClients::new(settings, Clock::system()).unwrap();
        let bundle = |name: &str| {
            let key = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            clients.for_trust(Some(key.cert.pem().as_bytes())).unwrap()
        };
        let key = |name: &str| ProviderKey {
            kind: ProviderKind::MailProvider,
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        };
        let (a, b, c) = (bundle("a.example"), bundle("b.example"), bundle("c.example"));
        let system = clients.for_trust(None).unwrap();
        let cases = [("a1", &a, 1), ("a2", &a, 9), ("b", &b, 2), ("c", &c, 3), ("plain", &system, 0)];
        let mut entries: HashMap<_, _> = cases
            .into_iter()
            .map(|(name, client, used)| {
                let resolved = ResolvedProvider {
                    endpoints: Endpoints::default(),
                    authentication: vec![],
                    client: client.clone(),
                };
                let result = Some(("print".into(), Ok(Arc::new(resolved))));
                (key(name), ProviderEntry { result, used, ..ProviderEntry::default() })
            })
            .collect();
        let until = Timestamp::UNIX_EPOCH;
        assert!(evict_clients(&mut entries, 3, until).is_empty());
        assert_eq!(evict_clients(&mut entries, 1, until).len(), 2);
        for (name, stored) in [("a1", true), ("a2", true), ("b", false), ("c", false), ("plain", true)] {
            let entry = &entries[&key(name)];
            assert_eq!(entry.result.is_some(), stored, "{name}");
            assert_eq!(entry.trusted, (!stored).then(|| ("print".into(), until)), "{name}");
        }
    }
}
