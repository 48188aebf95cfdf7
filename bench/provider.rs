//! A cheap token endpoint by HTTPS: HTTP/1.1 and HTTP/2 on one port, in its own threads.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use mailtoken_testkit::hostile::{Authority, Validity};

/// Length of Microsoft's tokens for one application.
const TOKEN_LENGTH: usize = 1_400;

/// A server that runs until the process ends.
pub struct Provider {
    authority: Authority,
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    lifetime: AtomicU64,
    fails: AtomicBool,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    requests: Mutex<Vec<Instant>>,
    padding: String,
}

impl Provider {
    /// Starts a server on a free port of the loopback interface.
    pub fn start() -> Self {
        let authority = Authority::new();
        let mut tls = (*authority.issue(&["localhost"], Validity::Present)).clone();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            lifetime: AtomicU64::new(3_600),
            fails: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
            requests: Mutex::default(),
            padding: "x".repeat(TOKEN_LENGTH - 16),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(accept(listener, TlsAcceptor::from(Arc::new(tls)), serving));
        });
        Self { authority, port, shared }
    }

    /// Returns the URL of the endpoint that issues tokens.
    pub fn token_url(&self) -> String {
        format!("https://localhost:{}/token", self.port)
    }

    /// Returns the URL of the endpoint that reads a request and never responds.
    pub fn hanging_url(&self) -> String {
        format!("https://localhost:{}/hang", self.port)
    }

    /// Returns the server's CA certificate in PEM.
    pub fn ca(&self) -> String {
        String::from_utf8(self.authority.bundle()).unwrap()
    }

    /// Sets `expires_in` of new tokens.
    pub fn issue_for(&self, seconds: u64) {
        self.shared.lifetime.store(seconds, Ordering::Relaxed);
    }

    /// Sets whether the server answers every request with 503.
    pub fn fail(&self, fails: bool) {
        self.shared.fails.store(fails, Ordering::Relaxed);
    }

    /// Discards the recorded requests.
    pub fn reset(&self) {
        self.shared.requests.lock().unwrap().clear();
        self.shared.most_in_flight.store(0, Ordering::Relaxed);
    }

    /// Returns the arrival time of each token request.
    pub fn requests(&self) -> Vec<Instant> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Returns the maximum number of concurrent requests.
    pub fn most_in_flight(&self) -> usize {
        self.shared.most_in_flight.load(Ordering::Relaxed)
    }
}

async fn accept(listener: std::net::TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let (tls, shared) = (tls.clone(), shared.clone());
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(tcp).await else { return };
            let service = service_fn(move |request| answer(request, shared.clone()));
            // Ignore a client that disconnects, such as a killed broker.
            drop(auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Full<Bytes>>, Infallible> {
    let _in_flight = InFlight::begin(&shared);
    let hangs = request.uri().path() == "/hang";
    let read = request.into_body().collect().await;
    if hangs || read.is_err() {
        std::future::pending::<()>().await;
    }
    let number = {
        let mut requests = shared.requests.lock().unwrap();
        requests.push(Instant::now());
        requests.len()
    };
    if shared.fails.load(Ordering::Relaxed) {
        return Ok(Response::builder().status(503).body(Full::default()).unwrap());
    }
    let body = format!(
        r#"{{"token_type":"Bearer","expires_in":{},"access_token":"{number:016x}{}"}}"#,
        shared.lifetime.load(Ordering::Relaxed),
        shared.padding
    );
    let response = Response::builder().header("content-type", "application/json");
    Ok(response.body(Full::from(body)).unwrap())
}

/// Counts a request until its response is sent or its connection ends.
struct InFlight<'a>(&'a Shared);

impl<'a> InFlight<'a> {
    fn begin(shared: &'a Shared) -> Self {
        let now = shared.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        shared.most_in_flight.fetch_max(now, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the `spec` of a MailProvider with this token endpoint.
pub fn spec(name: &str, token_url: &str) -> Value {
    let secret = json!({"name": format!("{name}-client"), "key": "client-secret"});
    json!({
        "oauth2": {"tokenURL": token_url},
        "client": {"id": "mailer", "authentication": [{"clientSecret": {"secretRef": secret}}]},
        "scopes": ["https://mail.example.org/.default"],
        "servers": {"smtp": {"host": "smtp.example.org", "port": 587, "security": "STARTTLS"}},
        "caBundleRef": {"configMap": {"name": format!("{name}-ca"), "key": "ca.crt"}},
    })
}
