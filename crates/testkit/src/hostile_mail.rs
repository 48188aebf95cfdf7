//! A mail server on a real socket of the loopback interface that follows a script, with valid or invalid answers.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use super::hostile::PATIENCE;

/// One action of a server.
#[derive(Clone, Debug)]
pub enum Act {
    /// Writes these bytes.
    Say(Vec<u8>),
    /// Reads a line, which must begin with this text.
    Hear(String),
    /// Reads any bytes once.
    Swallow,
    /// Accepts the client's TLS handshake.
    StartTls,
    /// Writes these bytes without end.
    Flood(Vec<u8>),
    /// Writes one of these bytes after the other, with a pause before each. Starts over after the last byte.
    Drip(Vec<u8>, Duration),
    /// Closes the connection with close_notify.
    Close,
    /// Resets the connection.
    Reset,
}

/// Parses a script in lines: the server sends the rest of an `S: …` line, expects a line that begins with the rest of a
/// `C: …` line, and starts TLS at `TLS`.
pub fn script(text: &str) -> Vec<Act> {
    let act = |line: &str| match (line, line.split_at_checked(2)) {
        ("TLS", _) => Act::StartTls,
        (_, Some(("S:", said))) => Act::Say(format!("{}\r\n", said.trim_start()).into_bytes()),
        (_, Some(("C:", heard))) => Act::Hear(heard.trim_start().to_owned()),
        _ => panic!("{line} is no line of a script"),
    };
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(act).collect()
}

/// A server that executes its script for each client, and then leaves the connection open. It runs until it is dropped.
pub struct HostileMail {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    tls: TlsAcceptor,
    script: Mutex<Vec<Act>>,
    heard: Mutex<Vec<String>>,
    /// Numbers of accepted connections and of ended connections.
    connections: watch::Sender<(usize, usize)>,
}

impl HostileMail {
    /// Listens on a free port of this address.
    pub async fn start(address: &str, tls: Arc<ServerConfig>, script: Vec<Act>) -> Self {
        let listener = TcpListener::bind((address.parse::<IpAddr>().unwrap(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, connections) = (Mutex::default(), watch::Sender::default());
        let shared = Arc::new(Shared { tls: tls.into(), script: Mutex::new(script), heard, connections });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Self { address, shared, accepting }
    }

    /// Returns the server's port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Sets another script for the clients that connect later.
    pub fn change(&self, script: Vec<Act>) {
        *self.shared.script.lock().unwrap() = script;
    }

    /// Returns the number of accepted connections.
    pub fn connections(&self) -> usize {
        self.shared.connections.borrow().0
    }

    /// Returns the lines that clients have sent.
    pub fn heard(&self) -> Vec<String> {
        self.shared.heard.lock().unwrap().clone()
    }

    /// Waits until `number` connections have ended. The server itself ends a connection only by [`Act::Reset`].
    pub async fn ended(&self, number: usize) {
        let mut connections = self.shared.connections.subscribe();
        let ended = tokio::time::timeout(PATIENCE, connections.wait_for(|(_, ended)| *ended >= number)).await;
        ended.expect("the client keeps the connection").unwrap();
    }
}

impl Drop for HostileMail {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((tcp, _)) = listener.accept().await {
        shared.connections.send_modify(|(accepted, _)| *accepted += 1);
        let shared = shared.clone();
        tokio::spawn(async move {
            let _ended = Ending(&shared.connections);
            serve(tcp, &shared).await
        });
    }
}

/// Counts the end of a connection, even if a client's line differs from the script.
struct Ending<'a>(&'a watch::Sender<(usize, usize)>);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|(_, ended)| *ended += 1);
    }
}

/// Executes the script for one client. Returns `None` if the client has closed the connection.
async fn serve(mut tcp: TcpStream, shared: &Shared) -> Option<()> {
    let script = shared.script.lock().unwrap().clone();
    let mut script = script.iter();
    loop {
        match script.next() {
            Some(Act::StartTls) => {
                let mut tls = shared.tls.accept(tcp).await.ok()?;
                for act in script {
                    if matches!(act, Act::Reset) {
                        tls.get_ref().0.set_zero_linger().unwrap();
                        return Some(());
                    }
                    play(&mut tls, act, shared).await?;
                }
                return stay(&mut tls).await;
            }
            Some(Act::Reset) => {
                tcp.set_zero_linger().unwrap();
                return Some(());
            }
            Some(act) => play(&mut tcp, act, shared).await?,
            None => return stay(&mut tcp).await,
        }
    }
}

async fn play<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, act: &Act, shared: &Shared) -> Option<()> {
    match act {
        Act::Say(bytes) => write(stream, bytes).await,
        Act::Hear(beginning) => {
            let line = read_line(stream).await?;
            shared.heard.lock().unwrap().push(line.clone());
            assert!(line.starts_with(beginning.as_str()), "{line} instead of {beginning}");
            Some(())
        }
        Act::Swallow => {
            let mut bytes = [0; 4096];
            stream.read(&mut bytes).await.ok().filter(|read| *read > 0).map(drop)
        }
        Act::Flood(bytes) => loop {
            write(stream, bytes).await?;
        },
        Act::Drip(bytes, pause) => loop {
            for byte in bytes {
                tokio::time::sleep(*pause).await;
                write(stream, &[*byte]).await?;
            }
        },
        Act::Close => {
            stream.shutdown().await.ok()?;
            stay(stream).await
        }
        Act::StartTls | Act::Reset => panic!("{act:?} within TLS"),
    }
}

/// Reads until the client closes the connection.
async fn stay<S: AsyncRead + Unpin>(stream: &mut S) -> Option<()> {
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes).await.ok()? > 0 {}
    None
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Option<()> {
    stream.write_all(bytes).await.ok()?;
    stream.flush().await.ok()
}

async fn read_line<S: AsyncRead + Unpin>(stream: &mut S) -> Option<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.ok()?);
    }
    line.truncate(line.len() - 2);
    String::from_utf8(line).ok()
}
