//! The HTTP server of `/metrics`, `/livez` and `/readyz`: HTTP/1.0 with one request for each connection.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::{listeners, relay::Relay};

/// Maximum number of connections. A kubelet and a few Prometheus servers need fewer.
const CONNECTIONS: usize = 16;
/// Maximum size of a request in octets.
const MAX_REQUEST: usize = 8192;
/// Time limit of one connection.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// Listens at an address.
///
/// # Errors
///
/// A sentence that says why the relay does not start.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    listeners::bind_to(address)
        .await
        .map_err(|error| format!("the relay cannot listen on {address} (--admin): {error}"))
}

/// Serves requests until the process ends.
pub(crate) async fn serve(relay: Arc<Relay>, socket: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match socket.accept().await {
            Ok((stream, _)) => {
                let relay = relay.clone();
                tokio::spawn(async move {
                    drop(tokio::time::timeout(TIMEOUT, answer(&relay, stream)).await);
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(AFTER_FAILURE).await,
        }
    }
}

async fn answer(relay: &Relay, mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = vec![];
    let mut part = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut part).await?;
        if read == 0 || request.len() + read > MAX_REQUEST {
            return Ok(());
        }
        request.extend_from_slice(&part[..read]);
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    const TEXT: &str = "text/plain; charset=utf-8";
    const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let (status, kind, body) = match (method, path) {
        (b"GET", b"/livez") => ("200 OK", TEXT, "ok\n".to_owned()),
        (b"GET", b"/readyz") if relay.stopping.is_cancelled() => {
            ("503 Service Unavailable", TEXT, "the relay stops\n".to_owned())
        }
        (b"GET", b"/readyz") => ("200 OK", TEXT, "ok\n".to_owned()),
        (b"GET", b"/metrics") => match relay.metrics.text(&relay.mailboxes) {
            Ok(text) => ("200 OK", METRICS, text),
            Err(_) => ("500 Internal Server Error", TEXT, String::new()),
        },
        (b"GET", _) => ("404 Not Found", TEXT, "try /metrics, /livez or /readyz\n".to_owned()),
        _ => ("405 Method Not Allowed", TEXT, "only GET\n".to_owned()),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
    stream.shutdown().await
}
