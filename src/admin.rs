//! The HTTP server of `/metrics`, `/livez` and `/readyz`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router, extract::State, http::StatusCode, http::header, response::IntoResponse, routing::get, serve::Listener,
};
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{net::TcpListener, sync::Mutex, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::{health::Health, metrics::Metrics};

/// Maximum number of connections without a complete header. Each connection needs a file descriptor and a few KiB. A
/// new connection evicts the oldest.
pub const HALF_OPEN: usize = 64;
/// Maximum number of connections with a request. A kubelet and a few Prometheus servers need fewer. A new connection
/// evicts the oldest.
pub const ANSWERED: usize = 16;
/// Time limit for the header, from the start of the connection. The header fits into one packet. The chart's probes
/// have the same timeout.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of one connection: Prometheus' default scrape timeout. A shutdown waits for open connections too, after a
/// drain of about 20 s and within the chart's 45 s.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of a header in bytes: hyper's minimum, and more than a scrape needs.
const HEADER_LIMIT: usize = 8 << 10;

/// Time for which all requests share one rendering of `/metrics`.
pub const RENDERED_FOR: Duration = Duration::from_secs(1);

/// The state that the server reports. Clones share it.
#[derive(Clone)]
pub struct Admin {
    metrics: Arc<Metrics>,
    ready: Arc<AtomicBool>,
    health: Health,
    rendered: Arc<Mutex<Option<Bytes>>>,
}

impl Admin {
    /// Creates the state. `ready` is true if all watches have synced (a standby is ready too). `health` determines
    /// `/livez`.
    pub fn new(metrics: Arc<Metrics>, ready: Arc<AtomicBool>, health: Health) -> Self {
        Self { metrics, ready, health, rendered: Arc::default() }
    }

    /// Returns the text of `/metrics`. Renders at most once in [`RENDERED_FOR`], on a blocking thread, so that other
    /// tasks do not wait. Callers that arrive during a rendering share the result.
    async fn text(&self) -> Option<Bytes> {
        let (metrics, shared) = (self.metrics.clone(), self.rendered.clone());
        // Render in a separate task: a client that disconnects must not cancel the rendering.
        let render = async move {
            let mut rendered = shared.clone().lock_owned().await;
            if let Some(text) = &*rendered {
                return Some(text.clone());
            }
            let text = tokio::task::spawn_blocking(move || metrics.text()).await.ok()?.ok()?;
            let text = Bytes::from(text);
            *rendered = Some(text.clone());
            tokio::spawn(async move {
                tokio::time::sleep(RENDERED_FOR).await;
                *shared.lock().await = None;
            });
            Some(text)
        };
        tokio::spawn(render).await.ok()?
    }
}

/// The connection of one client.
struct Connection {
    task: JoinHandle<()>,
    /// Whether the header of the request has arrived.
    answered: Arc<AtomicBool>,
}

/// All connections, the oldest first.
#[derive(Default)]
struct Connections(Vec<Connection>);

impl Connections {
    /// Makes room for one more connection. A connection without a header evicts only connections without a header. A
    /// connection with a request evicts only connections with a request. So a client with many connections of one kind
    /// evicts none of the other kind.
    async fn make_room(&mut self) {
        self.0.retain(|connection| !connection.task.is_finished());
        for (answered, limit) in [(false, HALF_OPEN), (true, ANSWERED)] {
            let is_of_kind = |connection: &Connection| connection.answered.load(Ordering::Acquire) == answered;
            while self.0.iter().filter(|connection| is_of_kind(connection)).count() >= limit
                && let Some(oldest) = self.0.iter().position(is_of_kind)
            {
                let Connection { task, .. } = self.0.remove(oldest);
                task.abort();
                // Wait until the task has closed the socket, which it does immediately.
                drop(task.await);
            }
        }
    }
}

/// Listens on the address and returns the server. The server runs until `ended`.
///
/// # Errors
/// If the broker cannot listen on the address.
pub async fn serve(
    address: SocketAddr,
    admin: Admin,
    ended: CancellationToken,
) -> std::io::Result<impl Future<Output = std::io::Result<()>> + Send + 'static> {
    let listener = bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "serving /metrics, /livez and /readyz");
    Ok(serve_at(listener, admin, ended))
}

/// Listens on the address. `[::]` covers IPv4 and IPv6. If the kernel has no IPv6, the server listens on `0.0.0.0`
/// instead.
async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() => {
            tracing::warn!(%error, "IPv6 not available: listening on 0.0.0.0");
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await.map_err(|_| error)
        }
        bound => bound,
    }
}

/// Serves on a listener until `ended`, then finishes the responses in flight. Each connection serves one request. If
/// too many connections of a kind exist ([`HALF_OPEN`], [`ANSWERED`]), a new connection evicts the oldest.
///
/// # Errors
/// Never: the server retries a failed accept.
pub async fn serve_at(mut listener: TcpListener, admin: Admin, ended: CancellationToken) -> std::io::Result<()> {
    let router: Router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(admin);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HEADER_LIMIT).keep_alive(false);
    let graceful = GracefulShutdown::new();
    let mut connections = Connections::default();
    loop {
        let (stream, _) = tokio::select! {
            // axum's accept waits a second if the process has no free file descriptor.
            accepted = Listener::accept(&mut listener) => accepted,
            () = ended.cancelled() => break,
        };
        connections.make_room().await;
        let answered = Arc::new(AtomicBool::new(false));
        let (router, has_header) = (router.clone(), answered.clone());
        let service = service_fn(move |request| {
            has_header.store(true, Ordering::Release);
            router.clone().oneshot(request)
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        let task = tokio::spawn(async move {
            // Ignore a client that disconnected or was too slow.
            drop(tokio::time::timeout(CONNECTION_TIMEOUT, connection).await);
        });
        connections.0.push(Connection { task, answered });
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

async fn livez(State(admin): State<Admin>) -> (StatusCode, String) {
    let failed = admin.health.failed().map(|task| format!("a task has ended: {task}"));
    let stalled = || admin.health.stalled().map(|time| format!("no progress for {} s", time.as_secs()));
    match failed.or_else(stalled) {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
    }
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    if admin.ready.load(Ordering::Acquire) {
        (StatusCode::OK, "ok\n")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "the watches have not synced yet: the broker's log names them, and the command that installs missing CRDs\n",
        )
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    match admin.text().await {
        Some(text) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        ),
        None => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], Bytes::new()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    /// Probes reach the chart's default address by IPv4 or IPv6. If the kernel has no IPv6, probes use IPv4.
    #[tokio::test]
    async fn every_address_is_of_both_families() {
        let listener = bind("[::]:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).await.unwrap();
        if address.is_ipv6() {
            TcpStream::connect((std::net::Ipv6Addr::LOCALHOST, address.port())).await.unwrap();
        }
        let taken = bind(address).await.unwrap_err();
        assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    }
}
