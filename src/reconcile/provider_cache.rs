//! The cache of resolved providers with their endpoints, secrets and CA bundles. The broker resolves a provider once
//! after each change of it or of an object to which it refers. The provider's status and all its credentials use the
//! result.

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

/// Returns the hash by which a probe detects another CA bundle: the first 16 hex digits of the SHA-256 `digest`.
pub(crate) fn bundle_hash(digest: &[u8]) -> hash::ProbeHash {
    names::hex16(digest).into()
}

/// The result of the last resolution.
type ResolveResult = Result<Arc<ResolvedProvider>, ProviderProblem>;

/// Maximum number of distinct CA bundles with a client. If there are more, the cache evicts the client of the least
/// recently used provider, and creates it again when it is needed.
const BUNDLES: usize = 32;
/// Time after which the broker resolves a provider with an evicted client again, if nothing needs the provider before.
const GIVEN_UP_FOR: SignedDuration = SignedDuration::from_hours(1);

/// The inputs of all resolutions.
pub struct Resolver {
    /// The client of the API server.
    pub client: Client,
    /// The HTTP clients for providers.
    pub clients: IdpClients,
    /// The sources of ServiceAccount tokens.
    pub identities: Identities,
    /// Whether this replica leads. Only the leader sends requests.
    pub leadership: Leadership,
    /// The clock, in whole seconds.
    pub clock: Clock,
}

/// The resolved providers, by key.
pub struct ProviderCache {
    /// Number of uses so far.
    uses: AtomicU64,
    resolver: Resolver,
    stores: Stores,
    /// The versions of the ConfigMaps with CA bundles.
    pub bundles: Arc<Bundles>,
    /// The versions since which the content of each source Secret is unchanged.
    pub contents: SourceContents,
    /// The permitted addresses and the proxy as text. They are part of the hash, so a restart with other flags resolves
    /// providers again.
    reach: String,
    entries: Mutex<HashMap<ProviderKey, ProviderEntry>>,
}

#[derive(Default)]
struct ProviderEntry {
    /// Allows one task at a time to resolve the provider.
    one_at_a_time: Arc<tokio::sync::Mutex<()>>,
    /// Whether a task resolves the provider. The task enqueues the provider at its end.
    is_resolving: bool,
    /// The step of the last resolution that failed in Kubernetes.
    error: Option<Error>,
    /// The last result, with the inputs of the resolution.
    result: Option<(hash::ProviderHash, ResolveResult)>,
    /// The inputs for which the status from before a restart is valid, and the time until which it is.
    trusted: Option<(hash::ProviderHash, Timestamp)>,
    /// Number of consecutive failed resolutions with the same inputs. `retry_at` is the time of the next one.
    failures: u32,
    failed_with: hash::ProviderHash,
    retry_at: Option<Timestamp>,
    /// The inputs and the problem for which the broker last enqueued the provider's credentials.
    reported: Option<(hash::ProviderHash, Option<ProviderProblem>)>,
    /// The use counter at the last use of the provider.
    used: u64,
    /// The last written status, with its resourceVersion. A watch shows it a moment later.
    written: Option<(u64, ProviderStatus)>,
}

impl ProviderCache {
    /// Creates an empty cache of providers.
    pub fn new(resolver: Resolver, stores: Stores, bundles: Arc<Bundles>, contents: SourceContents) -> Self {
        let (uses, reach) = (AtomicU64::new(0), resolver.clients.reach());
        Self { uses, reach, resolver, stores, bundles, contents, entries: Mutex::default() }
    }

    /// Returns the sources of ServiceAccount tokens.
    pub fn identities(&self) -> &Identities {
        &self.resolver.identities
    }

    /// Returns the hash of a provider, of the versions of all objects to which it refers, and of the permitted
    /// addresses; `None` while the broker has not read a ConfigMap.
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

    /// Returns the hash of the CA bundle that a provider's client trusts; empty without a bundle. `None` while the
    /// provider has not been resolved with these inputs.
    pub fn bundle(&self, object: &ProviderObject, inputs: &hash::ProviderHash) -> Option<hash::ProbeHash> {
        if bundle_config_map(object.spec()).is_none() && bundle_secret(object.spec()).is_none() {
            return Some(hash::ProbeHash::default());
        }
        let resolved = self.result(&object.key(), inputs)?.ok()?;
        resolved.client.bundle().map(|(digest, _)| bundle_hash(&digest))
    }

    /// Returns the result of the last resolution, if it had these inputs.
    pub fn result(&self, key: &ProviderKey, inputs: &hash::ProviderHash) -> Option<ResolveResult> {
        let entries = self.entries.lock();
        let (of, result) = entries.get(key)?.result.as_ref()?;
        (of == inputs).then(|| result.clone())
    }

    /// Returns the endpoints of the last resolution.
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

    /// Invalidates all providers after a clock jump: the broker computed retry times and assertions with the old clock.
    pub fn invalidate_all(&self) {
        for entry in self.entries.lock().values_mut() {
            (entry.result, entry.retry_at, entry.reported) = (None, None, None);
        }
    }

    /// Returns the time until which the status from before a restart is valid. Returns `None` if the provider was
    /// resolved since, or if its inputs have changed since the first call. The first call's `until` counts.
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

    /// Whether the caller must start the resolution, because no other task runs.
    pub fn begin(&self, key: &ProviderKey) -> bool {
        let mut entries = self.entries.lock();
        let entry = entries.entry(key.clone()).or_default();
        !std::mem::replace(&mut entry.is_resolving, true)
    }

    /// Ends a resolution. `error` is the step that failed in Kubernetes.
    pub fn end(&self, key: &ProviderKey, error: Option<Error>) {
        if let Some(entry) = self.entries.lock().get_mut(key) {
            (entry.is_resolving, entry.error) = (false, error);
        }
    }

    /// Returns the error of the last resolution, only once.
    pub fn take_error(&self, key: &ProviderKey) -> Option<Error> {
        self.entries.lock().get_mut(key)?.error.take()
    }

    /// Returns the time of the next resolution of an unusable provider.
    pub fn retry_at(&self, key: &ProviderKey) -> Option<Timestamp> {
        self.entries.lock().get(key)?.retry_at
    }

    /// Records the result of a resolution, and returns the time of the next one.
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
            let at = schedule::provider_retry_at(problem.blocker.reason, entry.failures, problem.retry_after, now);
            entry.retry_at = Some(at);
        }
        entry.retry_at
    }

    /// Whether the broker must enqueue the credentials of a provider for this result: once for each result.
    pub fn is_news(&self, key: &ProviderKey, inputs: &hash::ProviderHash, problem: Option<&ProviderProblem>) -> bool {
        let mut entries = self.entries.lock();
        let entry = entries.entry(key.clone()).or_default();
        // Another Retry-After with the same problem is no news.
        let problem = problem.map(|problem| ProviderProblem { retry_after: None, ..problem.clone() });
        let found = Some((inputs.clone(), problem));
        if entry.reported == found {
            return false;
        }
        entry.reported = found;
        true
    }

    /// Returns the newer of the status in the store and the status that the broker wrote.
    pub fn status(&self, object: &ProviderObject) -> ProviderStatus {
        let shown = version(object.meta());
        let entries = self.entries.lock();
        match entries.get(&object.key()).and_then(|entry| entry.written.as_ref()) {
            Some((at, status)) if *at > shown => status.clone(),
            _ => object.status().cloned().unwrap_or_default(),
        }
    }

    /// Records a status that the broker has written.
    pub fn wrote(&self, key: &ProviderKey, meta: &ObjectMeta, status: ProviderStatus) {
        self.entries.lock().entry(key.clone()).or_default().written = Some((version(meta), status));
    }

    /// Forgets the written statuses: the API server was restored from a backup.
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
        let one_at_a_time = self.entries.lock().entry(key.clone()).or_default().one_at_a_time.clone();
        let _resolving = one_at_a_time.lock().await;
        let exists = || self.stores.provider(&key).is_some_and(|found| found.meta().uid == object.meta().uid);
        if !exists() {
            // The provider was deleted while another task resolved it: leave no entry and follow no CA bundle.
            self.entries.lock().remove(&key);
            let blocker = Blocker::new(Reason::ProviderNotFound, "the provider was deleted");
            return Ok(Err(ProviderProblem::of_the_provider(blocker)));
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
            // The client may have withheld the request, which shows nothing about the provider: keep no result.
            return Ok(found.map(Arc::new));
        }
        let mut entries = self.entries.lock();
        if !exists() {
            // The provider was deleted during the resolution: remove its entry.
            entries.remove(&key);
            self.bundles.release(&key, None);
            return Ok(found.map(Arc::new));
        }
        let entry = entries.entry(key).or_default();
        let result = found.map(Arc::new);
        entry.result = Some((inputs, result.clone()));
        let evicted = evict_clients(&mut entries, BUNDLES, clock.now() + GIVEN_UP_FOR);
        drop(entries);
        // Drop the clients outside of the lock, because dropping the last reference takes time.
        drop(evicted);
        Ok(result)
    }
}

/// Removes the results of the least recently used providers, until at most `bundles` distinct CA bundles are in use.
/// The status of such a provider stays valid until a use of the provider, or `until`.
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

/// Returns the resourceVersion as a number, for comparisons (KEP-5504).
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
