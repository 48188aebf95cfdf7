//! A proxy between a broker and the API server that causes the faults that a test requests.
//!
//! The proxy serves plain HTTP on the loopback interface, and sends requests to the API server as the administrator. It
//! forwards every request unchanged, unless a rule matches:
//!
//! ```ignore
//! let api = ApiProxy::start(&cluster);
//! let broker = Broker::settings(&ns).kubeconfig(&api.kubeconfig()).start().await;
//! api.next(3, "PATCH", "/secrets/billing", Trouble::status(429).retry_after(1));
//! api.end_watches(Ending::Gone);
//! ```

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{FutureExt as _, StreamExt as _};
use http::{Request, Response, header::ACCEPT};
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{Client, Config, client::Body, config::KubeConfigOptions, config::Kubeconfig};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

use super::{Cluster, wait::until};

type AnswerBody = UnsyncBoxBody<Bytes, io::Error>;

/// The fault that the proxy causes for one request.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// The proxy does not forward the request, and responds with this status.
    Refused {
        /// The HTTP status.
        status: u16,
        /// `Retry-After` in seconds, if the response has one.
        retry_after: Option<u32>,
    },
    /// The proxy forwards the request without a fault. For one request between others with faults.
    None,
    /// The proxy forwards the request and waits for the response. Then it closes the connection without a response.
    Lost,
    /// The proxy neither forwards the request nor responds.
    Silence,
    /// The proxy forwards the request after [`ApiProxy::release`].
    Held,
    /// The proxy forwards the request immediately, and returns the response after [`ApiProxy::release`].
    Late,
}

impl Trouble {
    /// Returns a refusal with this status.
    pub const fn status(status: u16) -> Self {
        Self::Refused { status, retry_after: None }
    }

    /// Returns a refusal with status 429 and `Retry-After` in seconds.
    pub const fn throttled(seconds: u32) -> Self {
        Self::Refused { status: 429, retry_after: Some(seconds) }
    }
}

/// The way in which a watch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The proxy closes the connection in the middle of the stream.
    Cut,
    /// The proxy sends the event that the resourceVersion is too old.
    Gone,
    /// The proxy keeps the connection open and sends no more events.
    Silence,
}

/// A running proxy. It stops when the process ends.
pub struct ApiProxy {
    address: SocketAddr,
    cluster: Cluster,
    shared: Arc<Shared>,
}

struct Shared {
    rules: Mutex<Vec<Rule>>,
    asked: Mutex<Vec<Asked>>,
    gate: watch::Sender<bool>,
    /// Number of requests with [`Trouble::Late`] that the API server has answered.
    late: AtomicUsize,
    /// The last call of [`ApiProxy::end_watches_of`]: a part of the paths, and the ending.
    watches: watch::Sender<Option<(String, Ending)>>,
}

struct Rule {
    times: usize,
    method: String,
    path: String,
    trouble: Trouble,
}

/// A request that the proxy received.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The HTTP method, such as `PATCH`.
    pub method: String,
    /// The path with the query.
    pub path: String,
    /// The header `Accept`; empty if absent.
    pub accept: String,
    /// Whether a rule matched the request.
    pub troubled: bool,
}

impl ApiProxy {
    /// Starts a proxy for this cluster, in its own thread.
    pub fn start(cluster: &Cluster) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared {
            rules: Mutex::default(),
            asked: Mutex::default(),
            gate: watch::Sender::new(false),
            late: AtomicUsize::new(0),
            watches: watch::Sender::new(None),
        });
        let proxy = Self { address: listener.local_addr().unwrap(), cluster: cluster.clone(), shared: shared.clone() };
        let kubeconfig = cluster.kubeconfig();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
                let options = KubeConfigOptions::default();
                let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
                config.default_retry = false;
                accept(TcpListener::from_std(listener).unwrap(), Client::try_from(config).unwrap(), shared).await;
            });
        });
        proxy
    }

    /// Writes a kubeconfig with the proxy's address, and returns the file.
    pub fn kubeconfig(&self) -> PathBuf {
        let file = self.cluster.dir().join(format!("proxy-{}.kubeconfig", self.address.port()));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": format!("http://{}", self.address)}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
            "users": [{"name": "proxy", "user": {}}],
        });
        std::fs::write(&file, config.to_string()).unwrap();
        file
    }

    /// Applies `trouble` to the next `times` requests with this method whose path and query contain `path`.
    pub fn next(&self, times: usize, method: &str, path: &str, trouble: Trouble) {
        if times == 0 {
            return;
        }
        let rule = Rule { times, method: method.to_owned(), path: path.to_owned(), trouble };
        self.shared.rules.lock().unwrap().push(rule);
    }

    /// Waits until the proxy has used all rules.
    pub async fn done(&self) {
        until("all trouble was made", async || {
            let rules = self.shared.rules.lock().unwrap();
            let left: Vec<_> =
                rules.iter().map(|rule| format!("{} {} {}", rule.times, rule.method, rule.path)).collect();
            if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
        })
        .await;
    }

    /// Removes all rules.
    pub fn calm(&self) {
        self.shared.rules.lock().unwrap().clear();
    }

    /// Waits until the API server has answered `number` requests with [`Trouble::Late`]. Returns their number.
    pub async fn late(&self, number: usize) -> usize {
        until(&format!("{number} answers are held"), async || match self.shared.late.load(Ordering::Relaxed) {
            late if late >= number => Ok(late),
            late => Err(late.to_string()),
        })
        .await
    }

    /// Releases the requests and responses of [`Trouble::Held`] and [`Trouble::Late`], including later ones.
    pub fn release(&self) {
        self.shared.gate.send_replace(true);
    }

    /// Ends all current watches.
    pub fn end_watches(&self, ending: Ending) {
        self.end_watches_of("", ending);
    }

    /// Ends the current watches whose path and query contain `path`.
    pub fn end_watches_of(&self, path: &str, ending: Ending) {
        self.shared.watches.send_replace(Some((path.to_owned(), ending)));
    }

    /// Returns all requests so far, except requests for the lease.
    pub fn asked(&self) -> Vec<Asked> {
        let asked = self.shared.asked.lock().unwrap().clone();
        asked.into_iter().filter(|asked| !asked.path.contains("/leases")).collect()
    }
}

async fn accept(listener: TcpListener, client: Client, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (client, shared) = (client.clone(), shared.clone());
        let service = service_fn(move |request| {
            let (client, shared) = (client.clone(), shared.clone());
            async move { shared.answer(request, &client).await }
        });
        // An error ends the connection. The broker sees only the closed connection.
        tokio::spawn(async move { drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await) });
    }
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>, client: &Client) -> io::Result<Response<AnswerBody>> {
        let path = request.uri().to_string();
        let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let trouble =
            self.trouble(Asked { method: request.method().to_string(), path: path.clone(), accept, troubled: false });
        match &trouble {
            Some(Trouble::Refused { status, retry_after }) => return Ok(refusal(*status, *retry_after)),
            Some(Trouble::Silence) => std::future::pending().await,
            Some(Trouble::Held) => drop(self.gate.subscribe().wait_for(|open| *open).await.map_err(io::Error::other)?),
            Some(Trouble::Lost | Trouble::Late | Trouble::None) | None => {}
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let answer = client.send(Request::from_parts(head, Body::from(body))).await.map_err(io::Error::other)?;
        if matches!(trouble, Some(Trouble::Lost)) {
            return Err(io::Error::other("the answer is lost"));
        }
        if path.contains("watch=true") {
            let watches = self.watches.subscribe();
            return Ok(answer.map(|body| endable(body, path, watches)));
        }
        if !matches!(trouble, Some(Trouble::Late)) {
            return Ok(answer.map(|body| body.map_err(io::Error::other).boxed_unsync()));
        }
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        self.late.fetch_add(1, Ordering::Relaxed);
        drop(self.gate.subscribe().wait_for(|open| *open).await.map_err(io::Error::other)?);
        Ok(Response::from_parts(head, Full::from(body).map_err(|never| match never {}).boxed_unsync()))
    }

    /// Records a request, and returns its fault.
    fn trouble(&self, asked: Asked) -> Option<Trouble> {
        let mut rules = self.rules.lock().unwrap();
        let found = rules.iter_mut().find(|rule| rule.method == asked.method && asked.path.contains(&rule.path));
        let trouble = found.map(|rule| {
            rule.times -= 1;
            rule.trouble.clone()
        });
        rules.retain(|rule| rule.times > 0);
        self.asked.lock().unwrap().push(Asked { troubled: trouble.is_some(), ..asked });
        trouble
    }
}

/// Returns a Status object as the API server sends it.
fn status(code: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": code, "message": "trouble",
        "reason": match code { 409 => "Conflict", 410 => "Expired", 429 => "TooManyRequests", _ => "InternalError" },
    })
}

fn refusal(code: u16, retry_after: Option<u32>) -> Response<AnswerBody> {
    let mut answer = Response::builder().status(code).header("content-type", "application/json");
    if let Some(seconds) = retry_after {
        answer = answer.header("retry-after", seconds);
    }
    let body = Full::from(status(code).to_string()).map_err(|never| match never {});
    answer.body(body.boxed_unsync()).unwrap()
}

/// Returns the body of a watch, which a test can end.
fn endable(body: Body, path: String, mut watches: watch::Receiver<Option<(String, Ending)>>) -> AnswerBody {
    let ended = async move {
        loop {
            watches.changed().await.ok()?;
            let concerned = watches.borrow().clone().filter(|(part, _)| path.contains(part));
            if let Some((_, ending)) = concerned {
                return Some(ending);
            }
        }
    }
    .shared();
    let events = BodyStream::new(body).map(|frame| frame.map_err(io::Error::other)).take_until(ended.clone());
    let last = async move {
        match ended.now_or_never().flatten() {
            Some(Ending::Silence) => std::future::pending().await,
            Some(Ending::Gone) => {
                let event = json!({"type": "ERROR", "object": status(410)});
                Some(Ok(Frame::data(Bytes::from(format!("{event}\n")))))
            }
            Some(Ending::Cut) => Some(Err(io::Error::other("the watch is cut"))),
            None => None,
        }
    };
    let last = futures::stream::once(last).filter_map(std::future::ready);
    UnsyncBoxBody::new(StreamBody::new(events.chain(last)))
}
