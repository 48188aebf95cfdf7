//! A stand-in mail server in a separate process: IMAP and SMTP, TLS from the first byte. It accepts every login. Over
//! HTTP it also serves access tokens and the number of its TLS handshakes.

use std::{
    io::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::HandshakeKind;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::authority;

/// Size in bytes of the message that FETCH returns and APPEND stores.
pub const MESSAGE: usize = 25_000_000;
/// Length of the access token in characters.
pub const TOKEN: usize = 1_400;
/// Maximum number of bytes of one write.
const CHUNK: usize = 65_536;
/// Maximum length of a command line in bytes.
const LINE: u64 = 16_384;

const CAPABILITIES: &str =
    "CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN AUTH=XOAUTH2 ID IDLE UIDPLUS MOVE NAMESPACE UNSELECT";

/// Numbers of all handshakes and of handshakes that resumed a session.
#[derive(Default)]
struct Handshakes {
    all: AtomicU64,
    resumed: AtomicU64,
}

/// Serves until the process is killed. Prints the ports of IMAP, SMTP and HTTP on one line.
pub async fn serve(root_file: &Path) {
    let acceptor = TlsAcceptor::from(authority::server(root_file));
    let handshakes = Arc::new(Handshakes::default());
    let mut ports = vec![];
    for protocol in [Protocol::Imap, Protocol::Smtp] {
        let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = v4.local_addr().unwrap().port();
        ports.push(port.to_string());
        // `localhost` may also resolve to ::1.
        let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await;
        for listener in [Ok(v4), v6].into_iter().flatten() {
            tokio::spawn(accept(protocol, listener, acceptor.clone(), handshakes.clone()));
        }
    }
    let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    ports.push(http.local_addr().unwrap().port().to_string());
    let mut out = io::stdout();
    writeln!(out, "{}", ports.join(" ")).unwrap();
    out.flush().unwrap();
    loop {
        let (stream, _) = http.accept().await.unwrap();
        let handshakes = handshakes.clone();
        tokio::spawn(async move { answer_http(stream, &handshakes).await.ok() });
    }
}

#[derive(Clone, Copy)]
enum Protocol {
    Imap,
    Smtp,
}

async fn accept(protocol: Protocol, listener: TcpListener, acceptor: TlsAcceptor, handshakes: Arc<Handshakes>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, handshakes) = (acceptor.clone(), handshakes.clone());
        tokio::spawn(async move {
            stream.set_nodelay(true)?;
            let stream = acceptor.accept(stream).await?;
            handshakes.all.fetch_add(1, Ordering::Relaxed);
            if stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
                handshakes.resumed.fetch_add(1, Ordering::Relaxed);
            }
            let peer = Peer { stream: BufReader::with_capacity(CHUNK, stream) };
            match protocol {
                Protocol::Imap => imap(peer).await,
                Protocol::Smtp => smtp(peer).await,
            }
        });
    }
}

/// A connection to a client.
struct Peer<S> {
    stream: BufReader<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// Reads a line without its end. Returns `None` at the end of the connection.
    async fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        (&mut self.stream).take(LINE).read_line(&mut line).await?;
        Ok(line.ends_with('\n').then(|| line.trim_end().to_owned()))
    }

    async fn say(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(text.as_bytes()).await?;
        self.stream.flush().await
    }

    /// Reads and drops this number of bytes.
    async fn skip(&mut self, mut bytes: usize) -> io::Result<()> {
        while bytes > 0 {
            let read = self.stream.fill_buf().await?.len().min(bytes);
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.stream.consume(read);
            bytes -= read;
        }
        Ok(())
    }
}

/// Parses the length of a literal at the end of a line.
fn literal(line: &str) -> Option<usize> {
    line.strip_suffix('}')?.rsplit_once('{')?.1.parse().ok()
}

async fn imap<S: AsyncRead + AsyncWrite + Unpin>(mut peer: Peer<S>) -> io::Result<()> {
    let text: Vec<u8> =
        b"The quick brown fox jumps over the lazy dog, and the message goes on and on.\r\n".repeat(1_000);
    let text = &text[..CHUNK];
    peer.say(&format!("* OK [{CAPABILITIES}] ready\r\n")).await?;
    while let Some(line) = peer.line().await? {
        let (tag, command) = line.split_once(' ').unwrap_or((&line, ""));
        let (verb, arguments) = command.split_once(' ').unwrap_or((command, ""));
        match verb.to_ascii_uppercase().as_str() {
            "CAPABILITY" => peer.say(&format!("* {CAPABILITIES}\r\n{tag} OK done\r\n")).await?,
            "ID" => peer.say(&format!("* ID NIL\r\n{tag} OK done\r\n")).await?,
            "AUTHENTICATE" => {
                if !arguments.contains(' ') {
                    peer.say("+ \r\n").await?;
                    peer.line().await?;
                }
                peer.say(&format!("{tag} OK [{CAPABILITIES}] logged in\r\n")).await?;
            }
            "LOGIN" => {
                let mut rest = literal(arguments);
                while let Some(length) = rest {
                    peer.say("+ go on\r\n").await?;
                    peer.skip(length).await?;
                    rest = peer.line().await?.as_deref().and_then(literal);
                }
                peer.say(&format!("{tag} OK [{CAPABILITIES}] logged in\r\n")).await?;
            }
            "IDLE" => {
                peer.say("+ idling\r\n").await?;
                peer.line().await?;
                peer.say(&format!("{tag} OK done\r\n")).await?;
            }
            "FETCH" => {
                peer.stream.write_all(format!("* 1 FETCH (BODY[] {{{MESSAGE}}}\r\n").as_bytes()).await?;
                let mut left = MESSAGE;
                while left > 0 {
                    let length = left.min(text.len());
                    peer.stream.write_all(&text[..length]).await?;
                    left -= length;
                }
                peer.say(&format!(")\r\n{tag} OK done\r\n")).await?;
            }
            "APPEND" => {
                peer.say("+ go on\r\n").await?;
                peer.skip(literal(arguments).unwrap_or(0)).await?;
                peer.line().await?;
                peer.say(&format!("{tag} OK done\r\n")).await?;
            }
            "LOGOUT" => {
                peer.say(&format!("* BYE\r\n{tag} OK bye\r\n")).await?;
                return peer.stream.shutdown().await;
            }
            _ => peer.say(&format!("{tag} OK done\r\n")).await?,
        }
    }
    Ok(())
}

async fn smtp<S: AsyncRead + AsyncWrite + Unpin>(mut peer: Peer<S>) -> io::Result<()> {
    peer.say("220 stand-in ESMTP\r\n").await?;
    while let Some(line) = peer.line().await? {
        let (verb, arguments) = line.split_once(' ').unwrap_or((&line, ""));
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" => {
                peer.say("250-stand-in\r\n250-SIZE 36700160\r\n250-8BITMIME\r\n250 AUTH PLAIN XOAUTH2\r\n").await?
            }
            "AUTH" => {
                if !arguments.contains(' ') {
                    peer.say("334 \r\n").await?;
                    peer.line().await?;
                }
                peer.say("235 2.7.0 accepted\r\n").await?;
            }
            "DATA" => {
                peer.say("354 go on\r\n").await?;
                while peer.line().await?.is_some_and(|line| line != ".") {}
                peer.say("250 2.0.0 queued\r\n").await?;
            }
            "QUIT" => {
                peer.say("221 2.0.0 bye\r\n").await?;
                return peer.stream.shutdown().await;
            }
            _ => peer.say("250 2.0.0 ok\r\n").await?,
        }
    }
    Ok(())
}

/// Answers `GET /handshakes` with both numbers, and every other request with a token.
async fn answer_http(stream: TcpStream, handshakes: &Handshakes) -> io::Result<()> {
    let mut peer = Peer { stream: BufReader::new(stream) };
    let mut first = String::new();
    let mut length = 0;
    while let Some(line) = peer.line().await?.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or(0);
        }
        if first.is_empty() {
            first = line;
        }
    }
    peer.skip(length).await?;
    let body = match first.contains("/handshakes") {
        true => format!("{} {}", handshakes.all.load(Ordering::Relaxed), handshakes.resumed.load(Ordering::Relaxed)),
        false => {
            format!(r#"{{"access_token": "{}", "token_type": "Bearer", "expires_in": 3600}}"#, token())
        }
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    peer.say(&(head + &body)).await?;
    peer.stream.shutdown().await
}

/// Returns an access token.
pub fn token() -> String {
    "eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9".chars().cycle().take(TOKEN).collect()
}
