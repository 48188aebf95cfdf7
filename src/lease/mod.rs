//! Leader election on a `coordination.k8s.io/v1` Lease: which replica may spend refresh tokens.
//!
//! If two replicas refresh one rotating token, the provider may revoke the grant. So at most one replica sends
//! requests. The lease makes collisions rare. The claim on the grant Secret makes collisions harmless.
//!
//! This module implements client-go's algorithm. kube-lease-manager 0.13 is no alternative: it writes by patch without
//! a resourceVersion, trusts other hosts' clocks, and still reports "leader" while it has no connection to the API
//! server.
//! - Every write is an update with the resourceVersion that was read. If two replicas take the lease, one write fails.
//! - A replica treats another replica's lease as expired after it has seen no change of the lease for the lease's
//!   duration. It measures this time with its own monotonic clock. The times in the lease are only for readers.
//! - [`Leadership::is_leader`] compares the end of the term with the clock at each call. A process that was stopped and
//!   continues is therefore not the leader before any other code of the process runs.
//!
//! A replica leads until [`RENEW_DEADLINE`] after the *start* of its last successful renewal. Another replica takes
//! over at the earliest [`DURATION`] after it saw the result of that renewal, which is later than the start. The 5 s in
//! between cover requests in flight, the API server's watch delay, and clock drift. A longer margin gains nothing: a
//! replica that cannot renew the lease cannot publish a token either. (If a machine sleeps and its monotonic clock
//! sleeps with it, only the claim protects the token.)
//!
//! The broker needs the verbs get, create and update on leases in the lease's namespace.

mod election;
mod leadership;

use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::fail_point;

pub use self::leadership::{Leadership, Standing};

use self::election::{Election, Step, holder, released};
use self::leadership::Term;

/// Default name of the Lease, see `--lease-name`.
pub const NAME: &str = "mail-token-broker";

/// Time that other replicas wait after the last change of the Lease that they saw; client-go's default.
pub const DURATION: Duration = Duration::from_secs(15);

/// Time that a replica leads after the start of its last successful renewal; client-go's default.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// Time between two renewals. A replica can repeat a failed renewal before [`RENEW_DEADLINE`].
const RENEW_INTERVAL: Duration = Duration::from_secs(5);

/// Time between two reads by a standby. This time bounds the time without a leader after a release.
const STANDBY_INTERVAL: Duration = Duration::from_secs(2);

/// Time limit of one request to the API server. Two requests and a pause fit between a renewal and [`RENEW_DEADLINE`].
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// First pause after a failure. Each further pause is twice as long, up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);

/// Longest pause after failures: short, so that a replica renews or takes the lease soon after an outage of the API server.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// Time limit for the release of the lease at the end of the process.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// A replica's identity and its Lease.
#[derive(Clone, Debug)]
pub struct Candidacy {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease. Installations that serve different namespaces need different Leases.
    pub name: String,
    /// Unique identity of this replica, for example its pod's name and uid. A replica that finds its identity in the Lease
    /// treats the Lease as its own.
    pub identity: String,
    /// Key and value of the Lease's annotation that names the namespaces of its holder. All replicas of one
    /// installation have the same value.
    pub serves: (&'static str, String),
}

/// Takes part in the election until `shutdown`, then releases the lease. Errors of the API server do not end the
/// election.
pub async fn run(client: Client, candidacy: Candidacy, leadership: Leadership, shutdown: CancellationToken) {
    let Candidacy { namespace, name, identity, serves } = candidacy;
    let mut candidate = Candidate {
        api: Api::namespaced(client, &namespace),
        name,
        serves,
        election: Election::new(identity),
        leadership: leadership.clone(),
        clock: Clock::system(),
        failures: 0,
        complaint: String::new(),
        holder: String::new(),
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        never = candidate.campaign() => match never {},
        never = leadership.announce_ends() => match never {},
    }
    leadership.set(Term::None);
    candidate.release().await;
}

struct Candidate {
    api: Api<Lease>,
    name: String,
    serves: (&'static str, String),
    election: Election,
    leadership: Leadership,
    clock: Clock,
    failures: u32,
    /// The last logged failure; empty without a failure.
    complaint: String,
    /// The last other replica that held the lease.
    holder: String,
}

/// Errors of a request to the API server.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("another client changed the lease")]
    Conflict,
    #[error("the lease, or its namespace, does not exist")]
    Gone,
    #[error("the API server did not respond within {CALL_TIMEOUT:?}")]
    TimedOut,
    #[error("the API server refused the request: {message} ({code})")]
    Refused { message: String, code: u16 },
    #[error("the request to the API server failed")]
    Failed(#[source] kube::Error),
}

impl Candidate {
    async fn campaign(&mut self) -> Infallible {
        loop {
            let pause = match self.attempt().await {
                Ok(()) => self.contented(),
                Err(error) => self.complain(&error),
            };
            sleep(pause).await;
        }
    }

    /// Reads the lease unless this replica holds it. Then creates, takes or renews it. After a conflict, reads the
    /// lease again and retries once, because the step depends on the new holder.
    async fn attempt(&mut self) -> Result<(), CallError> {
        if self.election.step(monotonic()) != Step::Renew {
            self.read().await?;
        }
        match self.act().await {
            Err(CallError::Conflict | CallError::Gone) => {
                self.read().await?;
                self.act().await
            }
            done => done,
        }
    }

    async fn read(&mut self) -> Result<(), CallError> {
        let lease = call(self.api.get_opt(&self.name)).await?;
        self.election.see(lease, monotonic());
        if self.election.step(monotonic()) == Step::Wait {
            self.leadership.set(Term::None);
            self.notice_holder();
        }
        Ok(())
    }

    /// Logs the replica that holds the lease each time that another replica takes it.
    fn notice_holder(&mut self) {
        let Some(lease) = self.election.seen.as_ref().map(|seen| &seen.lease) else { return };
        let Some(holder) = holder(lease).filter(|holder| *holder != self.holder) else { return };
        let serves = lease.metadata.annotations.as_ref().and_then(|map| map.get(self.serves.0));
        if serves.is_some_and(|serves| *serves != self.serves.1) {
            warn!(
                lease = self.name,
                holder,
                "standby: the holder of the lease serves other namespaces. Give each installation its own --lease-name"
            );
        } else {
            info!(lease = self.name, holder, "standby: another replica holds the lease");
        }
        self.holder = holder.to_owned();
    }

    async fn act(&mut self) -> Result<(), CallError> {
        let start = monotonic();
        let step = self.election.step(start);
        if step == Step::Wait {
            return Ok(());
        }
        let mut claim = self.election.claim(step, &self.name, MicroTime(self.clock.now()));
        let (key, serves) = &self.serves;
        claim.metadata.annotations.get_or_insert_default().insert((*key).to_owned(), serves.clone());
        let parameters = PostParams::default();
        let written = match step {
            Step::Create => call(self.api.create(&parameters, &claim)).await?,
            _ => call(self.api.replace(&self.name, &parameters, &claim)).await?,
        };
        fail_point::pass("lease-written").await;
        self.election.see(Some(written), monotonic());
        if step != Step::Renew {
            self.leadership.begin_tenure();
            self.holder.clear();
        }
        self.leadership.set(Term::Until(start + RENEW_DEADLINE));
        Ok(())
    }

    fn contented(&mut self) -> Duration {
        if !self.complaint.is_empty() {
            info!(lease = self.name, "lease available again");
        }
        self.failures = 0;
        self.complaint.clear();
        match self.election.step(monotonic()) {
            Step::Renew => RENEW_INTERVAL,
            _ => jittered(STANDBY_INTERVAL),
        }
    }

    fn complain(&mut self, error: &CallError) -> Duration {
        let complaint = match error {
            CallError::Failed(cause) => format!("{error}: {cause}"),
            _ => error.to_string(),
        };
        if complaint != self.complaint {
            warn!(error = complaint, lease = self.name, "lease request failed");
            self.complaint = complaint;
        }
        let pause = SHORTEST_PAUSE.saturating_mul(2_u32.saturating_pow(self.failures)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        jittered(pause)
    }

    async fn release(&mut self) {
        if let Err(error) = timeout(RELEASE_TIMEOUT, self.try_release()).await.unwrap_or(Err(CallError::TimedOut)) {
            warn!(%error, lease = self.name, "lease not released: it expires automatically");
        }
    }

    /// Releases the lease. Reads the lease first: a renewal may have been interrupted, so its result is unknown.
    async fn try_release(&mut self) -> Result<(), CallError> {
        loop {
            self.read().await?;
            let (Step::Renew, Some(seen)) = (self.election.step(monotonic()), &self.election.seen) else {
                return Ok(());
            };
            let released = released(seen.lease.clone(), MicroTime(self.clock.now()));
            match call(self.api.replace(&self.name, &PostParams::default(), &released)).await {
                Ok(_) => {
                    info!(lease = self.name, "lease released");
                    return Ok(());
                }
                Err(CallError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

async fn call<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
    match timeout(CALL_TIMEOUT, request).await {
        Err(_) => Err(CallError::TimedOut),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(match *status {
            status if status.is_conflict() || status.is_already_exists() => CallError::Conflict,
            status if status.is_not_found() => CallError::Gone,
            status => CallError::Refused { message: status.message, code: status.code },
        }),
        Ok(Err(error)) => Err(CallError::Failed(error)),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a lease is measured by the monotonic clock, because the wall clock may jump"
)]
fn monotonic() -> Instant {
    Instant::now()
}

/// Adds up to a quarter to a pause, so that replicas do not send requests in step. The seed of a hash map is random
/// enough.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() % 1000;
    pause + pause.mul_f64(random as f64 / 4000.0)
}

#[cfg(test)]
mod tests;
