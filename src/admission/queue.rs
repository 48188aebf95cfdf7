//! Decides which request the broker sends next. Pure: the rows, the permits in use and the time are inputs.
//!
//! Namespaces with less than half of the permits precede the others. Among equal namespaces, a free permit goes to the
//! row of the best class, then to the namespace with the fewest permits at the host, then to the namespace whose turn
//! it is, and there to the row with the earliest due time. Every second permit of a host ignores the class, and goes to
//! the namespace's oldest row if that row has waited for a minute. So no class, no namespace and no row starves.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;

use super::{
    bucket::{Bucket, Limit},
    retry_limit::RetryLimit,
    row::{Ask, Budgets, State},
};
use crate::policy::urgency::Class;

/// A row that has waited for this time precedes better classes, on every second permit.
const LONG_WAIT: Duration = Duration::from_secs(60);

struct Row {
    ask: Ask,
    state: State,
    /// Time at which the row entered this state.
    since: Duration,
    /// Time at which the owner requested the permit.
    asked: Duration,
    /// Sequence number of the row's arrival.
    number: u64,
}

/// Key of the waiting rows of one provider and one namespace at a host.
type FlowKey = (Arc<str>, Arc<str>);

struct Flow<K> {
    limit: Option<Limit>,
    /// Waiting rows by class and due time.
    by_need: BTreeMap<(Class, Timestamp, u64), K>,
    /// Waiting rows in the order of their arrival.
    by_age: BTreeMap<u64, K>,
}

impl<K> Flow<K> {
    /// Whether a request waits whose last attempt failed. Such a request has the worst class, so it is the last one.
    fn repeats(&self) -> bool {
        self.by_need.last_key_value().is_some_and(|(need, _)| need.0 == Class::Retry)
    }
}

struct Host<K> {
    used: usize,
    /// Number of permits that the host has granted so far.
    given: u64,
    /// The limit of repeated requests to this host after a failure.
    retry_limit: RetryLimit,
    /// Waiting rows by provider and namespace.
    flows: HashMap<FlowKey, Flow<K>>,
    namespaces: HashMap<Arc<str>, Share>,
}

/// A namespace's share of a host.
#[derive(Default)]
struct Share {
    used: usize,
    waiting: usize,
    /// Sequence number of the namespace's last permit; 0 before the first.
    served: u64,
}

/// The waiting rows and the rows with a permit, by key.
pub struct Queue<K> {
    budgets: Budgets,
    rows: HashMap<K, Row>,
    hosts: HashMap<Arc<str>, Host<K>>,
    /// Number of permits in use by namespace.
    namespaces: HashMap<Arc<str>, usize>,
    used: usize,
    buckets: HashMap<Arc<str>, Bucket>,
    /// The last sequence number that a row or permit got.
    last: u64,
}

/// The best row of a flow and its rank. The row with the lowest rank is next.
type Candidate<'a, K> = ((bool, Class, usize, usize, u64, Timestamp, u64), &'a K);

impl<K: Clone + Eq + Hash> Queue<K> {
    /// Creates an empty queue with these budgets.
    pub fn new(budgets: Budgets) -> Self {
        Self {
            budgets,
            rows: HashMap::new(),
            hosts: HashMap::new(),
            namespaces: HashMap::new(),
            used: 0,
            buckets: HashMap::new(),
            last: 0,
        }
    }

    /// Returns the state of a row, and the time at which the row entered this state.
    pub fn state(&self, key: &K) -> Option<(State, Duration)> {
        self.rows.get(key).map(|row| (row.state, row.since))
    }

    /// Adds a row, or changes the request of a waiting row, which keeps its age. A row with a permit keeps the permit
    /// if the permit fits the new request.
    pub fn ask(&mut self, key: &K, mut ask: Ask, now: Duration) {
        let mut age = None;
        match self.rows.get(key) {
            Some(row) if row.state == State::Sent => return,
            Some(row) if row.state == State::Offered && same_permit(&row.ask, &ask) => return,
            Some(row) if row.state == State::Queued && row.ask == ask => return,
            Some(row) => {
                age = (row.state == State::Queued).then_some((row.since, row.number));
                self.withdraw(key);
            }
            None => {}
        }
        self.share_names(&mut ask);
        let (since, number) = age.unwrap_or_else(|| (now, self.next_number()));
        let host = self.hosts.entry(ask.host.clone()).or_insert_with(|| Host {
            used: 0,
            given: 0,
            retry_limit: RetryLimit::default(),
            flows: HashMap::new(),
            namespaces: HashMap::new(),
        });
        host.namespaces.entry(ask.namespace.clone()).or_default().waiting += 1;
        let flow = host.flows.entry((ask.provider.clone(), ask.namespace.clone())).or_insert_with(|| Flow {
            limit: ask.limit,
            by_need: BTreeMap::new(),
            by_age: BTreeMap::new(),
        });
        flow.limit = ask.limit;
        flow.by_need.insert((ask.class, ask.due, number), key.clone());
        flow.by_age.insert(number, key.clone());
        self.rows.insert(key.clone(), Row { ask, state: State::Queued, since, asked: since, number });
    }

    /// Removes a row that the owner no longer needs, frees its permit and refunds its charge. A request in flight
    /// continues.
    pub fn withdraw(&mut self, key: &K) {
        match self.rows.get(key).map(|row| row.state) {
            None | Some(State::Sent) => {}
            Some(State::Queued) => {
                let Some(row) = self.rows.remove(key) else { return };
                self.unqueue(&row);
                self.tidy(&row.ask);
            }
            Some(State::Offered) => {
                if let Some(Row { ask, .. }) = self.rows.get(key) {
                    if let Some(bucket) = self.buckets.get_mut(&ask.provider) {
                        bucket.refund();
                    }
                    if let Some(host) = self.hosts.get_mut(&ask.host).filter(|_| ask.class == Class::Retry) {
                        host.retry_limit.refund();
                    }
                }
                self.free(key);
            }
        }
    }

    /// Marks a row with an offered permit as in flight, and returns how long the row has waited. `None` if the row has
    /// no permit.
    pub fn send(&mut self, key: &K, now: Duration) -> Option<Duration> {
        let row = self.rows.get_mut(key).filter(|row| row.state == State::Offered)?;
        (row.state, row.since) = (State::Sent, now);
        Some(now.saturating_sub(row.asked))
    }

    /// Removes a row and frees its permit.
    pub fn free(&mut self, key: &K) {
        let Some(row) = self.rows.remove(key) else { return };
        if row.state == State::Queued {
            self.unqueue(&row);
        } else {
            self.used -= 1;
            if let Some(used) = self.namespaces.get_mut(&row.ask.namespace) {
                *used -= 1;
                if *used == 0 {
                    self.namespaces.remove(&row.ask.namespace);
                }
            }
            if let Some(host) = self.hosts.get_mut(&row.ask.host) {
                host.used -= 1;
                if let Some(share) = host.namespaces.get_mut(&row.ask.namespace) {
                    share.used -= 1;
                }
            }
        }
        self.tidy(&row.ask);
    }

    /// Records the end of a request to `host`. `served` is true if the host served the request.
    pub fn end(&mut self, host: &str, served: bool) {
        if let Some(host) = self.hosts.get_mut(host) {
            host.retry_limit.end(served);
        }
    }

    /// Counts a further request of a row in flight against the `rateLimit` of its provider.
    pub fn charge(&mut self, key: &K, now: Duration) {
        let Some(Row { ask: Ask { provider, limit: Some(limit), .. }, .. }) = self.rows.get(key) else { return };
        bucket(&mut self.buckets, provider, *limit).charge(now);
    }

    /// Grants free permits to rows until no row can get one, and returns the keys of these rows.
    pub fn admit(&mut self, now: Duration) -> Vec<K> {
        let mut admitted = vec![];
        while self.used < self.budgets.total {
            let Some(key) = self.best(now) else { break };
            self.offer(&key, now);
            admitted.push(key);
        }
        admitted
    }

    /// Returns the next time after `now` at which a `rateLimit` or the limit of a host allows a row.
    pub fn opens_after(&self, now: Duration) -> Option<Duration> {
        let hosts = self.hosts.values().filter(|host| host.used < self.budgets.host);
        let flows = hosts.flat_map(|host| host.flows.iter().map(move |(key, flow)| (host, key, flow)));
        let opens = flows.flat_map(|(host, (provider, _), flow)| {
            let limit = self.bucket_of(provider, flow.limit).map(|bucket| bucket.opens_at());
            limit.into_iter().chain(flow.repeats().then(|| host.retry_limit.opens_at()))
        });
        opens.filter(|at| *at > now).min()
    }

    /// Returns the rows whose permit was offered before `before` and is unused.
    pub fn unused_since(&self, before: Duration) -> Vec<K> {
        let unused = |row: &Row| row.state == State::Offered && row.since < before;
        self.rows.iter().filter(|(_, row)| unused(row)).map(|(key, _)| key.clone()).collect()
    }

    /// Removes all waiting rows, when the broker stops.
    pub fn clear(&mut self) {
        let waiting = self.rows.iter().filter(|(_, row)| row.state != State::Sent).map(|(key, _)| key.clone());
        waiting.collect::<Vec<_>>().iter().for_each(|key| self.withdraw(key));
    }

    /// Returns the request of a row.
    pub fn asked(&self, key: &K) -> Option<&Ask> {
        self.rows.get(key).map(|row| &row.ask)
    }

    /// Replaces the names in `ask` by the shared names of the rows that wait at the same host: tens of thousands of
    /// rows may wait.
    fn share_names(&self, ask: &mut Ask) {
        let Some((name, host)) = self.hosts.get_key_value(&ask.host) else { return };
        ask.host = name.clone();
        let flow = host.flows.get_key_value(&(ask.provider.clone(), ask.namespace.clone()));
        if let Some(((provider, namespace), _)) = flow {
            (ask.provider, ask.namespace) = (provider.clone(), namespace.clone());
        }
    }

    fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn unqueue(&mut self, row: &Row) {
        let Some(host) = self.hosts.get_mut(&row.ask.host) else { return };
        let key = (row.ask.provider.clone(), row.ask.namespace.clone());
        if let Some(flow) = host.flows.get_mut(&key) {
            flow.by_need.remove(&(row.ask.class, row.ask.due, row.number));
            flow.by_age.remove(&row.number);
            if flow.by_age.is_empty() {
                host.flows.remove(&key);
            }
        }
        if let Some(share) = host.namespaces.get_mut(&row.ask.namespace) {
            share.waiting -= 1;
        }
    }

    /// Removes the namespace and the host of `ask` if they have neither rows nor permits.
    fn tidy(&mut self, ask: &Ask) {
        if let Some(host) = self.hosts.get_mut(&ask.host) {
            if host.namespaces.get(&ask.namespace).is_some_and(|share| share.used == 0 && share.waiting == 0) {
                host.namespaces.remove(&ask.namespace);
            }
            if host.namespaces.is_empty() {
                self.hosts.remove(&ask.host);
            }
        }
    }

    fn bucket_of(&self, provider: &Arc<str>, limit: Option<Limit>) -> Option<Bucket> {
        let limit = limit?;
        let known = self.buckets.get(provider).filter(|bucket| bucket.limit == limit).copied();
        Some(known.unwrap_or_else(|| Bucket::new(limit)))
    }

    /// Returns the row that gets the next permit.
    fn best(&self, now: Duration) -> Option<K> {
        // If only reserved permits are free, the namespace's total of permits counts before its permits at the host.
        let tight = self.used + self.budgets.reserve >= self.budgets.total;
        let open = self.hosts.values().filter(|host| host.used < self.budgets.host && !host.flows.is_empty());
        let candidates = open.flat_map(|host| {
            let by_age = host.given % 2 == 1;
            host.flows.iter().filter_map(move |(key, flow)| self.candidate(host, key, flow, by_age, tight, now))
        });
        candidates.min_by(|one, other| one.0.cmp(&other.0)).map(|(_, key)| key.clone())
    }

    fn candidate<'a>(
        &self,
        host: &Host<K>,
        (provider, namespace): &FlowKey,
        flow: &'a Flow<K>,
        by_age: bool,
        tight: bool,
        now: Duration,
    ) -> Option<Candidate<'a, K>> {
        if self.bucket_of(provider, flow.limit).is_some_and(|bucket| bucket.opens_at() > now) {
            return None;
        }
        let in_all = self.namespaces.get(namespace).copied().unwrap_or_default();
        let share = host.namespaces.get(namespace)?;
        let much = in_all >= self.budgets.total / 2;
        if tight && much {
            return None;
        }
        let limited = host.retry_limit.opens_at() > now;
        let oldest = flow.by_age.first_key_value().filter(|(_, key)| {
            let waits =
                |row: &Row| now.saturating_sub(row.since) >= LONG_WAIT && !(limited && row.ask.class == Class::Retry);
            by_age && self.rows.get(key).is_some_and(waits)
        });
        let (need, best) = flow.by_need.first_key_value()?;
        if limited && need.0 == Class::Retry {
            return None;
        }
        let key = oldest.map_or(best, |(_, key)| key);
        let class = if by_age { Class::Person } else { need.0 };
        let more_than_half = much || share.used >= self.budgets.host / 2;
        let held = if tight { in_all } else { 0 };
        Some(((more_than_half, class, held, share.used, share.served, need.1, need.2), key))
    }

    fn offer(&mut self, key: &K, now: Duration) {
        let number = self.next_number();
        let Some(mut row) = self.rows.remove(key) else { return };
        self.unqueue(&row);
        let Ask { namespace, host, provider, limit, .. } = &row.ask;
        self.used += 1;
        *self.namespaces.entry(namespace.clone()).or_default() += 1;
        if let Some(host) = self.hosts.get_mut(host) {
            host.used += 1;
            host.given += 1;
            if row.ask.class == Class::Retry {
                host.retry_limit.charge(now);
            }
            let share = host.namespaces.entry(namespace.clone()).or_default();
            share.used += 1;
            share.served = number;
        }
        self.buckets.retain(|_, bucket| !bucket.is_full(now));
        if let Some(limit) = limit {
            bucket(&mut self.buckets, provider, *limit).charge(now);
        }
        (row.state, row.since) = (State::Offered, now);
        self.rows.insert(key.clone(), row);
    }
}

/// Returns the bucket of a provider. Replaces a bucket that has another limit.
fn bucket<'a>(buckets: &'a mut HashMap<Arc<str>, Bucket>, provider: &Arc<str>, limit: Limit) -> &'a mut Bucket {
    let bucket = buckets.entry(provider.clone()).or_insert_with(|| Bucket::new(limit));
    if bucket.limit != limit {
        *bucket = Bucket::new(limit);
    }
    bucket
}

/// Whether a permit for one request also fits the other request.
fn same_permit(one: &Ask, other: &Ask) -> bool {
    (&one.namespace, &one.host, &one.provider, one.limit)
        == (&other.namespace, &other.host, &other.provider, other.limit)
}

#[cfg(test)]
mod tests;
