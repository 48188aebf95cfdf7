//! A mail server that a test controls. It accepts some tokens. After the login it echoes every byte (IMAP, POP3) or
//! accepts mail (SMTP).

use std::{
    collections::HashSet,
    io,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// The answers of a server that differ between tests.
#[derive(Clone, Debug)]
pub struct Answers {
    /// The greeting.
    pub greeting: &'static str,
    /// The lines of the reply to EHLO or CAPA, or the words of IMAP's capabilities.
    pub offers: Vec<&'static str>,
    /// The answer to a token that the server does not accept.
    pub refusal: &'static str,
    /// Bytes that the server sends after the answer to STARTTLS, before the handshake.
    pub after_start_tls: &'static str,
    /// Bytes that the server sends after the answer to the login.
    pub after_login: &'static str,
}

/// A running server.
pub struct Server {
    port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    protocol: &'static str,
    start_tls: bool,
    answers: Answers,
    tls: Arc<ServerConfig>,
    tokens: Mutex<HashSet<String>>,
    log: Mutex<Vec<String>>,
    on_refusal: Mutex<Option<Box<dyn Fn() + Send>>>,
}

/// Returns the usual answers of a protocol: `smtp`, `imap` or `pop3`.
pub fn protocol_of(protocol: &str) -> Answers {
    let (greeting, offers, refusal) = match protocol {
        "smtp" => (
            "220 mail.example ESMTP",
            vec!["AUTH XOAUTH2 PLAIN", "SIZE 35882577", "8BITMIME", "PIPELINING", "ENHANCEDSTATUSCODES", "CHUNKING"],
            "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox.",
        ),
        "imap" => ("* OK ready", vec!["IMAP4rev1", "AUTH=XOAUTH2", "IDLE", "MOVE"], "NO [AUTHENTICATIONFAILED] no"),
        _ => ("+OK ready", vec!["SASL XOAUTH2", "TOP", "UIDL"], "-ERR [AUTH] no"),
    };
    Answers { greeting, offers, refusal, after_start_tls: "", after_login: "" }
}

impl Server {
    /// Starts a server with TLS from the first byte.
    pub async fn start(protocol: &'static str, tls: Arc<ServerConfig>, tokens: &[&str]) -> Self {
        Self::start_with(protocol, false, tls, tokens, protocol_of(protocol)).await
    }

    /// Starts a server with other answers, or a server that requires STARTTLS.
    pub async fn start_with(
        protocol: &'static str,
        start_tls: bool,
        tls: Arc<ServerConfig>,
        tokens: &[&str],
        answers: Answers,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tokens = Mutex::new(tokens.iter().map(|token| (*token).to_owned()).collect());
        let (log, on_refusal) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { protocol, start_tls, answers, tls, tokens, log, on_refusal });
        let serving = shared.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let serving = serving.clone();
                tokio::spawn(async move { drop(serving.connection(stream).await) });
            }
        });
        Self { port, shared, task }
    }

    /// Returns the port of the server on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the prefix of the server's keys in a Secret.
    pub fn prefix(&self) -> &'static str {
        self.shared.protocol
    }

    /// Returns the value of the server's key for the security.
    pub fn security(&self) -> &'static str {
        if self.shared.start_tls { "STARTTLS" } else { "TLS" }
    }

    /// Returns the lines that clients have sent so far, and the tokens as `token USER TOKEN`.
    pub fn log(&self) -> Vec<String> {
        self.shared.log.lock().unwrap().clone()
    }

    /// Calls `run` before each answer that refuses a token.
    pub fn on_refusal(&self, run: impl Fn() + Send + 'static) {
        *self.shared.on_refusal.lock().unwrap() = Some(Box::new(run));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn note(&self, line: String) {
        self.log.lock().unwrap().push(line);
    }

    async fn connection(&self, stream: TcpStream) -> io::Result<()> {
        let acceptor = TlsAcceptor::from(self.tls.clone());
        if !self.start_tls {
            return self.talk(BufReader::new(acceptor.accept(stream).await?), true).await;
        }
        let mut stream = BufReader::new(stream);
        self.opening(&mut stream, &["STARTTLS", "STLS"]).await?;
        stream.write_all(self.answers.after_start_tls.as_bytes()).await?;
        let stream = acceptor.accept(stream.into_inner()).await?;
        self.talk(BufReader::new(stream), self.protocol == "none").await
    }

    async fn line<S: AsyncRead + Unpin>(&self, stream: &mut BufReader<S>) -> io::Result<String> {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Runs the dialogue before TLS.
    async fn opening<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut BufReader<S>,
        more: &[&str],
    ) -> io::Result<()> {
        self.write(stream, &format!("{}\r\n", self.answers.greeting)).await?;
        loop {
            let line = self.line(stream).await?;
            self.note(line.clone());
            let command =
                if self.protocol == "imap" { line.split_once(' ').map_or("", |(_, rest)| rest) } else { &line };
            if more.contains(&command) {
                let tag = line.split(' ').next().unwrap_or_default();
                let answer = match self.protocol {
                    "smtp" => "220 go\r\n".to_owned(),
                    "imap" => format!("{tag} OK go\r\n"),
                    _ => "+OK go\r\n".to_owned(),
                };
                return self.write(stream, &answer).await;
            }
            self.capabilities(stream, &line, Some(more[usize::from(self.protocol == "pop3")])).await?;
        }
    }

    async fn write<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut BufReader<S>, text: &str) -> io::Result<()> {
        stream.write_all(text.as_bytes()).await?;
        stream.flush().await
    }

    /// Answers a command that is not a login.
    async fn capabilities<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut BufReader<S>,
        line: &str,
        more: Option<&str>,
    ) -> io::Result<()> {
        let offers: Vec<_> = self.answers.offers.iter().copied().chain(more).collect();
        let (tag, command) = line.split_once(' ').unwrap_or((line, ""));
        let answer = match (self.protocol, tag, command) {
            ("smtp", "EHLO", _) => {
                let lines = offers.iter().map(|line| format!("250-{line}\r\n")).collect::<String>();
                format!("250-mail.example\r\n{lines}250 HELP\r\n")
            }
            ("smtp", "QUIT", _) => "221 bye\r\n".to_owned(),
            ("smtp", ..) => "250 ok\r\n".to_owned(),
            ("imap", _, "CAPABILITY") => format!("* CAPABILITY {}\r\n{tag} OK done\r\n", offers.join(" ")),
            ("imap", _, "LOGOUT") => format!("* BYE\r\n{tag} OK done\r\n"),
            ("imap", ..) => format!("{tag} OK done\r\n"),
            (_, "CAPA", _) => format!("+OK\r\n{}\r\n.\r\n", offers.join("\r\n")),
            _ => "+OK\r\n".to_owned(),
        };
        self.write(stream, &answer).await
    }

    async fn talk<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: BufReader<S>, greets: bool) -> io::Result<()> {
        // After STARTTLS the server sends no second greeting.
        if greets {
            self.write(&mut stream, &format!("{}\r\n", self.answers.greeting)).await?;
        }
        loop {
            let line = self.line(&mut stream).await?;
            self.note(line.clone());
            let (first, rest) = line.split_once(' ').unwrap_or((&line, ""));
            if rest != "AUTHENTICATE XOAUTH2" && line != "AUTH XOAUTH2" {
                self.capabilities(&mut stream, &line, None).await?;
                continue;
            }
            self.write(&mut stream, if self.protocol == "smtp" { "334 \r\n" } else { "+ \r\n" }).await?;
            let response = self.line(&mut stream).await?;
            let response = String::from_utf8(BASE64_STANDARD.decode(response).unwrap()).unwrap();
            let (user, token) = response.split_once("\u{1}auth=Bearer ").unwrap();
            let (user, token) = (user.strip_prefix("user=").unwrap(), token.trim_end_matches('\u{1}'));
            self.note(format!("token {user} {token}"));
            let tag = if self.protocol == "imap" { format!("{first} ") } else { String::new() };
            if !self.tokens.lock().unwrap().contains(token) {
                if let Some(run) = &*self.on_refusal.lock().unwrap() {
                    run();
                }
                self.write(&mut stream, &format!("{tag}{}\r\n", self.answers.refusal)).await?;
                continue;
            }
            let accepted = match self.protocol {
                "smtp" => "235 2.7.0 ok".to_owned(),
                "imap" => format!("{tag}OK [CAPABILITY {}] done", self.answers.offers.join(" ")),
                _ => "+OK done".to_owned(),
            };
            self.write(&mut stream, &format!("{accepted}\r\n{}", self.answers.after_login)).await?;
            return match self.protocol {
                "smtp" => self.take_mail(stream).await,
                _ => self.return_bytes(stream).await,
            };
        }
    }

    /// Echoes every byte until the client closes its side.
    async fn return_bytes<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: BufReader<S>) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut buffer = vec![0; 65536];
        loop {
            let read = reader.read(&mut buffer).await?;
            let text = String::from_utf8_lossy(&buffer[..read]);
            if let Some(tag) = text.strip_suffix(" EXAMINE INBOX\r\n") {
                writer.write_all(format!("{tag} OK [READ-ONLY] done\r\n").as_bytes()).await?;
                writer.flush().await?;
                continue;
            }
            if read == 0 {
                writer.write_all(b"the end\r\n").await?;
                return writer.shutdown().await;
            }
            writer.write_all(&buffer[..read]).await?;
            writer.flush().await?;
        }
    }

    async fn take_mail<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: BufReader<S>) -> io::Result<()> {
        let mut is_data = false;
        loop {
            let line = self.line(&mut stream).await?;
            self.note(line.clone());
            let answer = match (is_data, line.as_str()) {
                (true, ".") => "250 2.0.0 queued\r\n",
                (true, _) => continue,
                (false, "DATA") => "354 go\r\n",
                (false, "QUIT") => {
                    self.write(&mut stream, "221 bye\r\n").await?;
                    return stream.shutdown().await;
                }
                (false, "RESET") => return Err(io::ErrorKind::ConnectionReset.into()),
                (false, _) => "250 ok\r\n",
            };
            is_data = line == "DATA";
            self.write(&mut stream, answer).await?;
        }
    }
}
