//! A server on a real TLS socket of the loopback interface that violates protocols.
//!
//! An [`Authority`] issues valid and invalid certificates. A [`HostileServer`] reads one HTTP/1.1 request after the
//! other and behaves as its [`Behaviour`] says, until it is dropped. It counts connections and requests, keeps the
//! heads of the requests, and lets a test wait for a number of requests instead of sleeping.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::server::TlsStream;

/// Maximum time that a test waits for an event that should happen immediately.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A certificate authority for one test.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// The validity period of an issued certificate.
#[derive(Clone, Copy)]
pub enum Validity {
    /// The certificate is valid now.
    Present,
    /// The certificate expired in 2001.
    Past,
    /// The certificate becomes valid in 2201.
    Future,
}

impl Authority {
    /// Creates a key and a self-signed certificate for it.
    #[allow(clippy::new_without_default, reason = "an authority has no default")]
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "hostile test authority");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Returns the authority's certificate as a CA bundle in PEM.
    pub fn bundle(&self) -> Vec<u8> {
        self.0.pem().into_bytes()
    }

    /// Issues a certificate for `names`, and returns the TLS configuration of a server with it.
    pub fn issue(&self, names: &[&str], validity: Validity) -> Arc<ServerConfig> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        (params.not_before, params.not_after) = match validity {
            Validity::Present => (date_time_ymd(2001, 1, 1), date_time_ymd(2200, 1, 1)),
            Validity::Past => (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1)),
            Validity::Future => (date_time_ymd(2201, 1, 1), date_time_ymd(2202, 1, 1)),
        };
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Arc::new(config)
    }
}

/// The behaviour of a server after it has read a request.
#[derive(Clone)]
pub enum Behaviour {
    /// Writes these bytes and waits for the next request.
    Answer(Vec<u8>),
    /// Writes the first bytes, then repeats the second bytes without end.
    Endless(Vec<u8>, Vec<u8>),
    /// Writes the first bytes, then repeats the second bytes without end, with a pause before each.
    Drip(Vec<u8>, Vec<u8>, Duration),
    /// Writes these bytes, then closes the connection with close_notify.
    Close(Vec<u8>),
    /// Resets the connection.
    Reset,
}

impl Behaviour {
    /// Returns a complete response.
    pub fn answer(status: u16, headers: &str, body: &[u8]) -> Self {
        let head = format!("HTTP/1.1 {status} Status\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
        Self::Answer([head.as_bytes(), body].concat())
    }
}

/// A server that runs until it is dropped.
pub struct HostileServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    behaviour: Behaviour,
    connections: watch::Sender<usize>,
    requests: watch::Sender<usize>,
    heads: Mutex<Vec<String>>,
}

impl HostileServer {
    /// Listens on a free port of 127.0.0.1.
    pub async fn start(tls: Arc<ServerConfig>, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            behaviour,
            connections: watch::Sender::new(0),
            requests: watch::Sender::new(0),
            heads: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, TlsAcceptor::from(tls), shared.clone()));
        Self { address, shared, accepting }
    }

    /// Returns the server's port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns a URL of the server with this host.
    pub fn url(&self, host: &str) -> String {
        format!("https://{host}:{}/token", self.port())
    }

    /// Returns the number of accepted connections.
    pub fn connections(&self) -> usize {
        *self.shared.connections.borrow()
    }

    /// Returns the number of requests read.
    pub fn requests(&self) -> usize {
        *self.shared.requests.borrow()
    }

    /// Returns the heads of all requests read.
    pub fn heads(&self) -> Vec<String> {
        self.shared.heads.lock().unwrap().clone()
    }

    /// Waits until the server has read `number` requests.
    pub async fn requests_reach(&self, number: usize) {
        let mut requests = self.shared.requests.subscribe();
        let reached = tokio::time::timeout(PATIENCE, requests.wait_for(|read| *read >= number)).await;
        reached.unwrap_or_else(|_| panic!("{} of {number} requests came", self.requests())).unwrap();
    }
}

impl Drop for HostileServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    while let Ok((tcp, _)) = listener.accept().await {
        shared.connections.send_modify(|accepted| *accepted += 1);
        let (tls, shared) = (tls.clone(), shared.clone());
        tokio::spawn(async move {
            if let Ok(stream) = tls.accept(tcp).await {
                serve(stream, &shared).await;
            }
        });
    }
}

async fn serve(mut stream: TlsStream<TcpStream>, shared: &Shared) {
    while let Some(head) = read_request(&mut stream).await {
        shared.heads.lock().unwrap().push(head);
        shared.requests.send_modify(|read| *read += 1);
        if behave(&mut stream, shared).await.is_none() {
            return;
        }
    }
}

/// Behaves as the settings say after a request. Returns `None` if the connection must end.
async fn behave(stream: &mut TlsStream<TcpStream>, shared: &Shared) -> Option<()> {
    match &shared.behaviour {
        Behaviour::Answer(bytes) => write(stream, bytes).await,
        Behaviour::Endless(first, more) => {
            write(stream, first).await?;
            loop {
                write(stream, more).await?;
            }
        }
        Behaviour::Drip(first, more, pause) => {
            write(stream, first).await?;
            loop {
                tokio::time::sleep(*pause).await;
                write(stream, more).await?;
            }
        }
        Behaviour::Close(bytes) => {
            write(stream, bytes).await?;
            stream.shutdown().await.ok()?;
            None
        }
        Behaviour::Reset => {
            stream.get_ref().0.set_zero_linger().unwrap();
            None
        }
    }
}

async fn write(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> Option<()> {
    stream.write_all(bytes).await.ok()?;
    stream.flush().await.ok()
}

/// Reads a head, and the body that the head announces; `None` at the end of the connection.
async fn read_request(stream: &mut TlsStream<TcpStream>) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let length = head.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    Some(head)
}
