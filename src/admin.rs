//! `/metrics`, `/livez` and `/readyz`.

use std::{
    collections::VecDeque,
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
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Connections at a time: a kubelet and a few Prometheus need fewer. Each is a file descriptor that renewals cannot
/// have, and may hold an answer of `/metrics`: some 2 MB for 5,000 credentials, of the 128 MiB that the chart gives.
pub const CONNECTIONS: usize = 16;
/// How long a client may take for its header, from the connection's first moment on. It is one packet, and the chart's
/// probes give up after as long.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one connection may last: as long as Prometheus waits if not told otherwise. A shutdown waits for it too,
/// after a drain of some 20 s and within the chart's 45 s.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest header, in bytes: the least that hyper takes, and more than a scrape has.
const HEADER_LIMIT: usize = 8 << 10;

/// What the server tells.
#[derive(Clone)]
pub struct Admin {
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// All watches have shown what there is. A standby is ready too.
    pub ready: Arc<AtomicBool>,
}

/// Listens, and gives the server, which serves until `ended`.
///
/// # Errors
/// If the address cannot be listened at.
pub async fn serve(
    address: SocketAddr,
    admin: Admin,
    ended: CancellationToken,
) -> std::io::Result<impl Future<Output = std::io::Result<()>> + Send + 'static> {
    let listener = bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "serving /metrics, /livez and /readyz");
    Ok(serve_at(listener, admin, ended))
}

/// Listens. `[::]` is every address of both families; where the kernel has no IPv6 at all, `0.0.0.0` takes its place.
async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() => {
            tracing::warn!(%error, "this machine has no IPv6: listening at 0.0.0.0");
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await.map_err(|_| error)
        }
        bound => bound,
    }
}

/// Serves at a listener until `ended`, and what is under way then to its end. One connection is one request, and where
/// [`CONNECTIONS`] are open the oldest makes room for the next: whoever holds many keeps nobody out.
///
/// # Errors
/// None: an accept that fails is tried again.
pub async fn serve_at(mut listener: TcpListener, admin: Admin, ended: CancellationToken) -> std::io::Result<()> {
    let router: Router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(admin);
    let service = TowerToHyperService::new(router);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HEADER_LIMIT).keep_alive(false);
    let graceful = GracefulShutdown::new();
    // The oldest first.
    let mut connections: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let (stream, _) = tokio::select! {
            // axum's, which waits a second where there is no file descriptor left.
            accepted = Listener::accept(&mut listener) => accepted,
            () = ended.cancelled() => break,
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
            // Until its socket is closed: at once.
            drop(oldest.await);
        }
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service.clone()));
        connections.push_back(tokio::spawn(async move {
            // A client that broke off or was too slow knows it: there is nothing to tell.
            drop(tokio::time::timeout(CONNECTION_TIMEOUT, connection).await);
        }));
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    if admin.ready.load(Ordering::Acquire) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the watches have not shown everything yet: are the CRDs installed?\n")
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    match admin.metrics.text() {
        Ok(text) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        ),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], String::new()),
    }
}
