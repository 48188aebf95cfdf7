//! The server of `/metrics`, `/livez` and `/readyz` while clients hold connections open.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use futures::future::join_all;
use mail_token_broker::{
    admin::{self, Admin, HALF_OPEN, HEADER_TIMEOUT, RENDERED_FOR},
    health::Health,
    metrics::Metrics,
};
use mailtoken_testkit::fault_log::tried;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Maximum time that a test waits for an event that should happen immediately, or after the time limit of a connection.
const PATIENCE: Duration = Duration::from_secs(30);
/// Number of connections. If the server waited for the time limit of each, it would take longer than [`PATIENCE`].
const CROWD: usize = 3 * HALF_OPEN;
const HALF_A_HEADER: &str = "GET /livez HTTP/1.1\r\nhost: bro";

/// A server at its own address.
struct Server {
    address: SocketAddr,
    ended: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start(metrics: Metrics) -> Self {
        Self::start_with(metrics, Health::default()).await
    }

    async fn start_with(metrics: Metrics, health: Health) -> Self {
        Self::start_shared(Arc::new(metrics), health).await
    }

    async fn start_shared(metrics: Arc<Metrics>, health: Health) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let admin = Admin::new(metrics, Arc::new(AtomicBool::new(true)), health);
        let ended = CancellationToken::new();
        let task = tokio::spawn(admin::serve_at(listener, admin, ended.clone()));
        Self { address, ended, task }
    }

    /// Connects and sends `words`.
    async fn say(&self, words: &str) -> TcpStream {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        connection.write_all(words.as_bytes()).await.unwrap();
        connection
    }

    /// Connects, requests a path, and waits until the response has begun.
    async fn ask(&self, path: &str) -> TcpStream {
        let connection = self.say(&format!("GET {path} HTTP/1.1\r\nhost: broker\r\n\r\n")).await;
        assert_eq!(timeout(PATIENCE, connection.peek(&mut [0])).await.expect("an answer").unwrap(), 1);
        connection
    }
}

/// Reads until the server closes or resets the connection.
async fn rest(mut connection: TcpStream) -> String {
    let mut rest = vec![];
    drop(timeout(PATIENCE, connection.read_to_end(&mut rest)).await.expect("the server closes it"));
    String::from_utf8(rest).unwrap()
}

#[tokio::test]
async fn many_half_open_connections_block_no_client() {
    let server = Server::start(Metrics::new()).await;
    let mut oldest = vec![];
    for _ in 0..CROWD {
        oldest.push(server.say(HALF_A_HEADER).await);
    }
    let begun = Instant::now();
    let answer = rest(server.ask("/livez").await).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok\n"), "{answer}");
    // The server evicted these connections for later ones. The last client sent a complete request.
    let youngest = oldest.split_off(CROWD + 1 - HALF_OPEN);
    join_all(oldest.into_iter().map(rest)).await;
    assert!(begun.elapsed() < HEADER_TIMEOUT / 2, "after {:?}: by their time, not by their number", begun.elapsed());
    join_all(youngest.into_iter().map(rest)).await;
}

#[tokio::test]
async fn a_probe_is_answered_beside_a_hundred_idle_connections_and_evicts_no_answer_in_flight() {
    let metrics = Metrics::new();
    metrics.reconcile_error("x".repeat(16 << 20).leak());
    let server = Server::start(metrics).await;
    let answered = server.ask("/metrics").await;
    let mut idle = vec![];
    for _ in 0..100 {
        idle.push(server.say("").await);
    }
    let begun = Instant::now();
    for path in ["/livez", "/readyz"] {
        assert!(rest(server.ask(path).await).await.ends_with("\r\n\r\nok\n"));
    }
    assert!(begun.elapsed() < HEADER_TIMEOUT / 2, "{:?}", begun.elapsed());
    assert!(rest(answered).await.ends_with("# EOF\n"), "the response under way was cut off");
}

#[tokio::test]
async fn a_rendering_of_the_metrics_is_shared_for_a_second() {
    let metrics = Arc::new(Metrics::new());
    let server = Server::start_shared(metrics.clone(), Health::default()).await;
    let count = async || rest(server.ask("/metrics").await).await.matches("category=").count();
    metrics.reconcile_error("first");
    assert_eq!(count().await, 1);
    metrics.reconcile_error("second");
    let all = join_all((0..10).map(|_| count())).await;
    assert!(all.iter().all(|count| *count == 1), "rendered again within a second: {all:?}");
    tokio::time::sleep(RENDERED_FOR + Duration::from_millis(200)).await;
    assert_eq!(count().await, 2);
}

#[tokio::test]
async fn livez_fails_once_a_supervised_task_has_ended() {
    let health = Health::default();
    let server = Server::start_with(Metrics::new(), health.clone()).await;
    assert!(rest(server.ask("/livez").await).await.starts_with("HTTP/1.1 200"));
    drop(health.supervise("forget", async { panic!("a bug") }).await);
    let answer = rest(server.ask("/livez").await).await;
    assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("a task has ended: forget"), "{answer}");
    assert!(rest(server.ask("/readyz").await).await.starts_with("HTTP/1.1 200"));
    tried("F32", 1, "nothing");
}

#[tokio::test]
async fn a_header_that_does_not_come_or_does_not_end_is_not_waited_for() {
    let server = Server::start(Metrics::new()).await;
    for connection in [server.say("").await, server.say("GET").await, server.say(HALF_A_HEADER).await] {
        assert_eq!(rest(connection).await, "");
    }
}

#[tokio::test]
async fn a_shutdown_ends_requests_in_flight_and_waits_a_limited_time() {
    let metrics = Metrics::new();
    // This response does not fit into the buffers of both sockets, so it is in flight until the client reads.
    metrics.reconcile_error("x".repeat(16 << 20).leak());
    let server = Server::start(metrics).await;
    let half_open = server.say(HALF_A_HEADER).await;
    let never_reads = server.ask("/metrics").await;
    let reads = server.ask("/metrics").await;
    server.ended.cancel();
    assert!(rest(reads).await.ends_with("# EOF\n"), "it was cut off");
    timeout(PATIENCE, server.task).await.expect("the server ends").unwrap().unwrap();
    TcpStream::connect(server.address).await.expect_err("nobody listens");
    drop((half_open, never_reads));
}
