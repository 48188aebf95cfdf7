//! An HTTPS server on one address of this machine. A [`Handler`] decides its responses.
//!
//! The server reads HTTP/1.1, one request after the other on a connection, in its own thread, so that a test may block.
//! It keeps every request, and stops when dropped.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};

use super::hostile::{Authority, Validity};

/// Any free port of the loopback interface.
pub const LOOPBACK: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// Decides the responses of a server.
pub trait Handler: Send + Sync + 'static {
    /// Returns the response, or `None` to close the connection without a response.
    fn handle(&self, request: Request) -> impl Future<Output = Option<Response>> + Send;
}

/// A completely received request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The HTTP method, such as `POST`.
    pub method: String,
    /// The path with the query, if there is one.
    pub path: String,
    /// The header fields, with names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body, unchanged.
    pub body: String,
    /// The time at which the server read the request.
    pub at: Instant,
}

impl Request {
    /// Returns the fields of an `application/x-www-form-urlencoded` body.
    pub fn form(&self) -> BTreeMap<String, String> {
        url::form_urlencoded::parse(self.body.as_bytes()).into_owned().collect()
    }

    /// Returns the signed assertions in the form (RFC 7521 section 4, RFC 7523 section 2).
    pub fn assertions(&self) -> Vec<String> {
        let mut form = self.form();
        ["client_assertion", "assertion", "subject_token"].into_iter().filter_map(|field| form.remove(field)).collect()
    }

    /// Returns the fields of the query.
    pub fn query(&self) -> BTreeMap<String, String> {
        let query = self.path.split_once('?').map_or("", |(_, query)| query);
        url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()
    }

    /// Returns the path without the query.
    pub fn route(&self) -> &str {
        self.path.split('?').next().unwrap_or(&self.path)
    }
}

/// A response of the server.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status, 100 to 599.
    pub status: u16,
    /// The header fields besides `content-length`. With `content-encoding: gzip` or `deflate`, the server compresses
    /// the body.
    pub headers: Vec<(String, String)>,
    /// The body, uncompressed.
    pub body: String,
}

impl Response {
    /// Returns a response with this body.
    pub fn text(status: u16, body: &str) -> Self {
        Self { status, headers: vec![], body: body.to_owned() }
    }

    /// Returns a response with this JSON.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::text(status, &body.to_string()).header("content-type", "application/json; charset=utf-8")
    }

    /// Adds a header field.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A server with a handler of the type `H`.
pub struct Server<H> {
    authority: Authority,
    address: SocketAddr,
    shared: Arc<Shared<H>>,
    running: Option<Running>,
}

struct Running {
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

struct Shared<H> {
    handler: H,
    tls: Mutex<Arc<ServerConfig>>,
    requests: Mutex<Vec<Request>>,
    connections: AtomicUsize,
}

impl<H: Handler> Server<H> {
    /// Starts with a certificate for `names` from the server's own CA. `handler` receives the port.
    pub fn start(address: impl Into<SocketAddr>, names: &[&str], handler: impl FnOnce(u16) -> H) -> Self {
        let listener = std::net::TcpListener::bind(address.into()).unwrap();
        let address = listener.local_addr().unwrap();
        let authority = Authority::new();
        let shared = Arc::new(Shared {
            handler: handler(address.port()),
            tls: Mutex::new(authority.issue(names, Validity::Present)),
            requests: Mutex::default(),
            connections: AtomicUsize::new(0),
        });
        let mut server = Self { authority, address, shared, running: None };
        server.serve(listener);
        server
    }

    /// Listens again on the same port after [`Self::stop`].
    pub fn resume(&mut self) {
        assert!(self.running.is_none(), "it runs");
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        self.serve(listener);
    }

    fn serve(&mut self, listener: std::net::TcpListener) {
        let (stop, stopped) = watch::channel(false);
        let shared = self.shared.clone();
        listener.set_nonblocking(true).unwrap();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { accept(TcpListener::from_std(listener).unwrap(), shared, stopped).await });
        });
        self.running = Some(Running { stop, thread });
    }
}

impl<H> Server<H> {
    /// Closes all connections and refuses new ones.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop.send_replace(true);
            drop(running.thread.join());
        }
    }

    /// Returns the handler.
    pub fn handler(&self) -> &H {
        &self.shared.handler
    }

    /// Returns the server's port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns the CA's certificate in PEM.
    pub fn ca(&self) -> String {
        String::from_utf8(self.authority.bundle()).unwrap()
    }

    /// Issues a certificate of the CA for other names.
    pub fn issue(&self, names: &[&str]) -> Arc<ServerConfig> {
        self.authority.issue(names, Validity::Present)
    }

    /// Presents another certificate of the same CA to new connections: for other names, or an expired certificate.
    pub fn present(&self, names: &[&str], validity: Validity) {
        *self.shared.tls.lock().unwrap() = self.authority.issue(names, validity);
    }

    /// Returns all requests, in the order of their arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Returns the requests to one path.
    pub fn requests_at(&self, path: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.route() == path).collect()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.shared.requests.lock().unwrap().clear();
    }

    /// Returns the number of connections so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl<H> Drop for Server<H> {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn accept<H: Handler>(listener: TcpListener, shared: Arc<Shared<H>>, mut stopped: watch::Receiver<bool>) {
    loop {
        let tcp = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            _ = stopped.wait_for(|stop| *stop) => return, // the runtime ends, and so do all its connections
        };
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let shared = shared.clone();
        tokio::spawn(async move {
            let tls = TlsAcceptor::from(shared.tls.lock().unwrap().clone());
            if let Ok(mut stream) = tls.accept(tcp).await {
                while serve_one(&mut stream, &shared).await.is_some() {}
            }
        });
    }
}

/// Serves one request. Returns `None` if the connection has ended.
async fn serve_one<H: Handler>(stream: &mut TlsStream<TcpStream>, shared: &Shared<H>) -> Option<()> {
    let request = read_request(stream).await?;
    shared.requests.lock().unwrap().push(request.clone());
    let Response { status, headers, body } = shared.handler.handle(request).await?;
    let encoding = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-encoding"));
    let body = compressed(encoding.map_or("", |(_, encoding)| encoding), body);
    let mut head = format!("HTTP/1.1 {status} Status\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in &headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(&[format!("{head}\r\n").into_bytes(), body].concat()).await.ok()?;
    stream.flush().await.ok()
}

/// Compresses a body with this encoding. Returns the body unchanged for any other encoding.
fn compressed(encoding: &str, body: String) -> Vec<u8> {
    use std::io::Write as _;

    use flate2::{Compression, write};
    let level = Compression::default();
    match encoding {
        "gzip" => {
            let mut encoder = write::GzEncoder::new(vec![], level);
            encoder.write_all(body.as_bytes()).unwrap();
            encoder.finish().unwrap()
        }
        "deflate" => {
            let mut encoder = write::ZlibEncoder::new(vec![], level);
            encoder.write_all(body.as_bytes()).unwrap();
            encoder.finish().unwrap()
        }
        _ => body.into_bytes(),
    }
}

async fn read_request(stream: &mut TlsStream<TcpStream>) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let mut start = lines.next()?.split(' ');
    let (method, path) = (start.next()?.to_owned(), start.next()?.to_owned());
    let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    let headers: BTreeMap<_, _> = lines.filter_map(header).collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { method, path, headers, body: String::from_utf8(body).ok()?, at: Instant::now() })
}
