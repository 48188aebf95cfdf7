use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use k8s_openapi::api::coordination::v1::LeaseSpec;
use kube::ResourceExt;
use kube::client::Body;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

// Candidates in paused time, with a minimal API server.

#[derive(Default)]
struct Server {
    lease: Mutex<Option<Lease>>,
    version: AtomicU64,
}

/// The state of a candidate's connection to the server.
#[derive(Default)]
struct Link {
    cut: AtomicBool,
    refused: AtomicBool,
    calls: AtomicU64,
}

impl Server {
    fn client(self: &Arc<Self>, link: &Arc<Link>) -> Client {
        let (server, link) = (self.clone(), link.clone());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (server, link) = (server.clone(), link.clone());
            async move {
                link.calls.fetch_add(1, Ordering::SeqCst);
                if link.cut.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                if link.refused.load(Ordering::SeqCst) {
                    return Ok(failure(403, "Forbidden"));
                }
                let (parts, body) = request.into_parts();
                let sent = serde_json::from_slice(&body.collect_bytes().await?).ok();
                Ok::<_, kube::Error>(server.handle(&parts.method, sent))
            }
        });
        Client::new(service, "default")
    }

    fn handle(&self, method: &Method, sent: Option<Lease>) -> Response<Body> {
        let mut stored = self.lease.lock().unwrap();
        match (method, stored.as_ref(), sent) {
            (&Method::GET, Some(lease), _) => success(lease),
            (&Method::POST, Some(_), _) => failure(409, "AlreadyExists"),
            (&Method::PUT, Some(lease), Some(sent)) if sent.resource_version() != lease.resource_version() => {
                failure(409, "Conflict")
            }
            // The real API server does the same: an unchanged object keeps its version.
            (&Method::PUT, Some(lease), Some(sent)) if sent.spec == lease.spec => success(lease),
            (&Method::POST, None, Some(mut sent)) | (&Method::PUT, Some(_), Some(mut sent)) => {
                let version = self.version.fetch_add(1, Ordering::SeqCst).to_string();
                sent.metadata.resource_version = Some(version);
                success(stored.insert(sent))
            }
            _ => failure(404, "NotFound"),
        }
    }

    fn holder(&self) -> Option<String> {
        self.lease.lock().unwrap().as_ref().and_then(holder).map(str::to_owned)
    }
}

fn success(lease: &Lease) -> Response<Body> {
    Response::new(serde_json::to_vec(lease).unwrap().into())
}

fn failure(code: u16, reason: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason});
    let mut response = Response::new(Body::from(status.to_string().into_bytes()));
    *response.status_mut() = code.try_into().unwrap();
    response
}

struct Replica {
    leadership: Leadership,
    link: Arc<Link>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Replica {
    fn start(server: &Arc<Server>, identity: &str) -> Self {
        let (leadership, link, shutdown) = (Leadership::new(), Arc::new(Link::default()), CancellationToken::new());
        let task = tokio::spawn(run(
            server.client(&link),
            Candidacy {
                namespace: "default".to_owned(),
                name: NAME.to_owned(),
                identity: identity.to_owned(),
                serves: ("serves", String::new()),
            },
            leadership.clone(),
            shutdown.clone(),
        ));
        Self { leadership, link, shutdown, task }
    }

    async fn becomes(&self, leader: bool) -> Instant {
        let mut changes = self.leadership.changes();
        timeout(120 * SECOND, changes.wait_for(|standing| standing.leads == leader)).await.unwrap().unwrap();
        assert_eq!(self.leadership.is_leader(), leader);
        monotonic()
    }
}

async fn leader_and_standby(server: &Arc<Server>) -> (Replica, Replica) {
    let leader = Replica::start(server, "a");
    leader.becomes(true).await;
    let standby = Replica::start(server, "b");
    sleep(20 * SECOND).await;
    assert!(leader.leadership.is_leader() && !standby.leadership.is_leader());
    (leader, standby)
}

#[tokio::test(start_paused = true)]
async fn a_released_lease_is_taken_within_seconds() {
    let server = Arc::default();
    let (leader, standby) = leader_and_standby(&server).await;
    let start = monotonic();
    leader.shutdown.cancel();
    leader.task.await.unwrap();
    assert!(!leader.leadership.is_leader());
    assert_eq!(server.holder(), None);
    let taken = standby.becomes(true).await;
    assert!(taken - start <= 3 * SECOND, "{:?}", taken - start);
}

#[tokio::test(start_paused = true)]
async fn a_dead_leaders_lease_is_taken_when_it_has_run_out() {
    let server = Arc::default();
    let (leader, standby) = leader_and_standby(&server).await;
    let last = monotonic();
    leader.task.abort();
    let taken = standby.becomes(true).await;
    let waited = taken - last;
    assert!(waited >= DURATION - RENEW_INTERVAL && waited <= DURATION + 3 * SECOND, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_before_another_starts() {
    let server = Arc::default();
    let (leader, standby) = leader_and_standby(&server).await;
    let start = monotonic();
    leader.link.cut.store(true, Ordering::SeqCst);
    let stopped = leader.becomes(false).await;
    let started = standby.becomes(true).await;
    assert!(stopped - start <= RENEW_DEADLINE, "{:?}", stopped - start);
    assert!(started - stopped >= DURATION - RENEW_DEADLINE, "{:?}", started - stopped);

    // The stopped replica continues. Another replica has taken its lease.
    leader.link.cut.store(false, Ordering::SeqCst);
    for _ in 0..600 {
        sleep(SECOND / 10).await;
        assert!(standby.leadership.is_leader() && !leader.leadership.is_leader());
    }
    assert_eq!(server.holder().as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn there_is_never_more_than_one_leader_and_soon_one_again_whatever_is_cut() {
    let server = Arc::default();
    let replicas = [Replica::start(&server, "a"), Replica::start(&server, "b"), Replica::start(&server, "c")];
    let mut without = Duration::ZERO;
    for tick in 0..20_000_u64 {
        sleep(SECOND / 10).await;
        let leaders = replicas.iter().filter(|replica| replica.leadership.is_leader()).count();
        assert!(leaders <= 1, "{leaders} leaders at tick {tick}");
        without = if leaders == 0 { without + SECOND / 10 } else { Duration::ZERO };
        assert!(without < 40 * SECOND, "no leader for {without:?}");
        for (number, replica) in replicas.iter().enumerate() {
            // Each link fails with its own period; the last one never fails.
            let period = 230 + 170 * number as u64;
            replica.link.cut.store(number != 2 && tick / period % 2 == 1, Ordering::SeqCst);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_stays_leader_through_one_failed_renewal() {
    let server = Arc::default();
    let leader = Replica::start(&server, "a");
    leader.becomes(true).await;
    for _ in 0..10 {
        leader.link.cut.store(true, Ordering::SeqCst);
        let calls = leader.link.calls.load(Ordering::SeqCst);
        while leader.link.calls.load(Ordering::SeqCst) == calls {
            sleep(SECOND / 20).await;
            assert!(leader.leadership.is_leader());
        }
        leader.link.cut.store(false, Ordering::SeqCst);
        for _ in 0..80 {
            sleep(SECOND / 20).await;
            assert!(leader.leadership.is_leader());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_lease_is_recreated_by_its_leader() {
    let server: Arc<Server> = Arc::default();
    let leader = Replica::start(&server, "a");
    leader.becomes(true).await;
    *server.lease.lock().unwrap() = None;
    sleep(RENEW_INTERVAL + SECOND).await;
    assert_eq!(server.holder().as_deref(), Some("a"));
    assert!(leader.leadership.is_leader());
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_lease_was_given_to_another_stops_at_its_next_renewal() {
    let server: Arc<Server> = Arc::default();
    let leader = Replica::start(&server, "a");
    leader.becomes(true).await;
    let start = monotonic();
    *server.lease.lock().unwrap() = Some(Lease {
        spec: Some(LeaseSpec { holder_identity: Some("other".to_owned()), ..LeaseSpec::default() }),
        ..Lease::default()
    });
    let stopped = leader.becomes(false).await;
    assert!(stopped - start <= RENEW_INTERVAL + SECOND);
    assert_eq!(server.holder().as_deref(), Some("other"));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_ends_nothing() {
    let server = Arc::default();
    let replica = Replica::start(&server, "a");
    replica.link.refused.store(true, Ordering::SeqCst);
    sleep(300 * SECOND).await;
    assert!(!replica.task.is_finished() && !replica.leadership.is_leader());
    let calls = replica.link.calls.load(Ordering::SeqCst);
    assert!((50..300).contains(&calls), "{calls}");
    replica.link.refused.store(false, Ordering::SeqCst);
    let start = monotonic();
    let led = replica.becomes(true).await;
    assert!(led - start <= 2 * LONGEST_PAUSE);
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_also_when_the_server_does_not_answer() {
    let server = Arc::default();
    let replica = Replica::start(&server, "a");
    replica.becomes(true).await;
    replica.link.cut.store(true, Ordering::SeqCst);
    let start = monotonic();
    replica.shutdown.cancel();
    replica.task.await.unwrap();
    assert!(monotonic() - start <= RELEASE_TIMEOUT);
    assert!(!replica.leadership.is_leader());
}
