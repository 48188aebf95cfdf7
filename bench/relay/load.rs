//! The load: mail programs that connect to a measured program on loopback, without TLS.

use std::{
    io,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::JoinSet,
};

use crate::stand_in::MESSAGE;

/// The user name of all logins.
pub const USER: &str = "billing@shop.example";
/// The password of all logins.
pub const PASSWORD: &str = "a-local-password";
/// User name and password as SASL PLAIN, in Base64.
const PLAIN: &str = "AGJpbGxpbmdAc2hvcC5leGFtcGxlAGEtbG9jYWwtcGFzc3dvcmQ=";
/// Number of concurrent logins.
pub const AT_ONCE: usize = 16;
/// Maximum number of bytes of one read or write.
const CHUNK: usize = 262_144;
/// Time limit of one answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A mail program with one IMAP or SMTP session.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    async fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::with_capacity(2048, stream) })
    }

    /// Connects and logs in by IMAP.
    pub async fn imap(port: u16) -> io::Result<Self> {
        let mut client = Self::connect(port).await?;
        client.until("* OK").await?;
        client.ask(&format!("LOGIN {USER} {PASSWORD}")).await?;
        Ok(client)
    }

    /// Logs in by SMTP, and quits. Returns the time from the connection to the login.
    pub async fn smtp(port: u16) -> io::Result<Duration> {
        let begun = Instant::now();
        let mut client = Self::connect(port).await?;
        client.until("220 ").await?;
        client.send(b"EHLO program\r\n").await?;
        client.until("250 ").await?;
        client.send(format!("AUTH PLAIN {PLAIN}\r\n").as_bytes()).await?;
        client.until("235 ").await?;
        let time = begun.elapsed();
        client.send(b"QUIT\r\n").await?;
        client.until("221 ").await?;
        Ok(time)
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes).await
    }

    /// Reads lines until a line begins with `start`, and returns that line.
    async fn until(&mut self, start: &str) -> io::Result<String> {
        loop {
            let mut line = String::new();
            let read = tokio::time::timeout(PATIENCE, self.stream.read_line(&mut line));
            if read.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if line.starts_with(start) {
                return Ok(line);
            }
            let refused = ["a NO", "a BAD", "4", "5", "* BYE"];
            if start != "* BYE" && refused.iter().any(|refusal| line.starts_with(refusal)) {
                return Err(io::Error::other(line));
            }
        }
    }

    /// Sends a command and waits for its OK.
    pub async fn ask(&mut self, command: &str) -> io::Result<()> {
        self.send(format!("a {command}\r\n").as_bytes()).await?;
        self.until("a OK").await.map(drop)
    }

    /// Sends IDLE: the session waits for new mail.
    pub async fn idle(&mut self) -> io::Result<()> {
        self.send(b"a IDLE\r\n").await?;
        self.until("+ ").await.map(drop)
    }

    /// Ends IDLE.
    pub async fn done(&mut self) -> io::Result<()> {
        self.send(b"DONE\r\n").await?;
        self.until("a OK").await.map(drop)
    }

    /// Ends the session by LOGOUT.
    pub async fn log_out(mut self) -> io::Result<()> {
        self.send(b"a LOGOUT\r\n").await?;
        self.until("* BYE").await.map(drop)
    }

    /// Reads a message.
    pub async fn fetch(&mut self, chunk: &mut Vec<u8>) -> io::Result<()> {
        self.send(b"a FETCH 1 BODY[]\r\n").await?;
        self.until("* 1 FETCH").await?;
        chunk.resize(CHUNK, 0);
        let mut left = MESSAGE;
        while left > 0 {
            let length = left.min(CHUNK);
            let read = self.stream.read(&mut chunk[..length]);
            let read =
                tokio::time::timeout(PATIENCE, read).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= read;
        }
        self.until("a OK").await.map(drop)
    }

    /// Stores a message.
    pub async fn append(&mut self, chunk: &mut Vec<u8>) -> io::Result<()> {
        self.send(format!("a APPEND INBOX {{{MESSAGE}}}\r\n").as_bytes()).await?;
        self.until("+ ").await?;
        chunk.resize(CHUNK, b'x');
        let mut left = MESSAGE;
        while left > 0 {
            let length = left.min(CHUNK);
            self.send(&chunk[..length]).await?;
            left -= length;
        }
        self.send(b"\r\n").await?;
        self.until("a OK").await.map(drop)
    }
}

/// Logs in and out with [`AT_ONCE`] clients for some time, and returns the number of logins.
pub async fn logins(port: u16, time: Duration) -> io::Result<usize> {
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..AT_ONCE {
        clients.spawn(async move {
            let mut count = 0;
            while begun.elapsed() < time {
                Client::imap(port).await?.log_out().await?;
                count += 1;
            }
            Ok::<_, io::Error>(count)
        });
    }
    clients.join_all().await.into_iter().sum()
}

/// Logs in one client after the other, until `number` or `time` is reached. Returns the milliseconds from the
/// connection to the login of each.
pub async fn one_at_a_time(port: u16, number: usize, time: Duration) -> io::Result<Vec<f64>> {
    let (mut times, limit) = (vec![], Instant::now());
    while times.len() < number && limit.elapsed() < time {
        let begun = Instant::now();
        let client = Client::imap(port).await?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        client.log_out().await?;
    }
    Ok(times)
}

/// Opens sessions, [`AT_ONCE`] at a time. Each session then waits for new mail.
pub async fn hold(port: u16, number: usize) -> io::Result<Vec<Client>> {
    let mut clients = JoinSet::new();
    for at in 0..AT_ONCE {
        clients.spawn(async move {
            let mut held = vec![];
            for _ in (at..number).step_by(AT_ONCE) {
                let mut client = Client::imap(port).await?;
                client.idle().await?;
                held.push(client);
            }
            Ok::<_, io::Error>(held)
        });
    }
    let held: io::Result<Vec<_>> = clients.join_all().await.into_iter().collect();
    Ok(held?.into_iter().flatten().collect())
}

/// Returns the milliseconds of each NOOP in one session, while `streams` other sessions continuously read messages.
pub async fn noop_beside(port: u16, streams: usize, time: Duration) -> io::Result<Vec<f64>> {
    /// Pause between two NOOP commands.
    const PAUSE: Duration = Duration::from_millis(2);
    let mut readers = JoinSet::new();
    for _ in 0..streams {
        let mut client = Client::imap(port).await?;
        readers.spawn(async move {
            let mut chunk = vec![];
            while client.fetch(&mut chunk).await.is_ok() {}
        });
    }
    let mut client = Client::imap(port).await?;
    let (mut times, limit) = (vec![], Instant::now());
    while limit.elapsed() < time {
        let begun = Instant::now();
        client.ask("NOOP").await?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(PAUSE).await;
    }
    assert_eq!(readers.len(), streams);
    if let Some(ended) = readers.try_join_next() {
        ended?;
        return Err(io::Error::other("a stream broke"));
    }
    Ok(times)
}
