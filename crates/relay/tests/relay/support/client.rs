//! A mail program that a test controls line by line.

use std::sync::Arc;

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::PATIENCE;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection to the relay.
pub struct Client {
    stream: Box<dyn Stream>,
    unread: Vec<u8>,
}

impl Client {
    /// Connects, and does not read the greeting.
    pub async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        Self { stream: Box::new(stream), unread: vec![] }
    }

    /// Connects with TLS from the first byte.
    pub async fn connect_tls(port: u16, config: Arc<ClientConfig>) -> std::io::Result<Self> {
        Self::connect(port).await.start_tls(config).await
    }

    /// Starts TLS for the name `relay.test`.
    pub async fn start_tls(self, config: Arc<ClientConfig>) -> std::io::Result<Self> {
        let name = ServerName::try_from("relay.test").unwrap();
        let stream = TlsConnector::from(config).connect(name, self.stream).await?;
        Ok(Self { stream: Box::new(stream), unread: vec![] })
    }

    /// Sends a line with a line end.
    pub async fn send(&mut self, line: &str) {
        self.send_bytes(format!("{line}\r\n").as_bytes()).await;
    }

    /// Sends bytes.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Reads a line; `None` at the end of the connection.
    pub async fn try_line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Some(String::from_utf8(line).unwrap().trim_end().to_owned());
            }
            let mut part = [0; 4096];
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut part)).await.expect("a line in time");
            match read {
                Ok(read) if read > 0 => self.unread.extend_from_slice(&part[..read]),
                _ => return None,
            }
        }
    }

    /// Reads a line.
    pub async fn line(&mut self) -> String {
        self.try_line().await.expect("a line, not the end of the connection")
    }

    /// Reads the lines of an SMTP reply, without the hyphens.
    pub async fn reply(&mut self) -> Vec<String> {
        let mut lines = vec![];
        loop {
            let line = self.line().await;
            let is_last = line.as_bytes().get(3) != Some(&b'-');
            lines.push(line);
            if is_last {
                return lines;
            }
        }
    }

    /// Sends a line, and reads a line that must begin with `begins`.
    #[track_caller]
    pub fn ask<'a>(&'a mut self, line: &'a str, begins: &'a str) -> impl Future<Output = String> + 'a {
        let place = std::panic::Location::caller();
        async move {
            self.send(line).await;
            let answer = self.line().await;
            assert!(answer.starts_with(begins), "{place}: {line:?} was answered with {answer:?}, not {begins:?}");
            answer
        }
    }

    /// Sends EHLO and reads its reply.
    pub async fn ehlo(&mut self) -> Vec<String> {
        self.send("EHLO program.example").await;
        self.reply().await
    }

    /// Reads to the end of the connection.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.unread);
        drop(tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await.expect("the end in time"));
        rest
    }

    /// Reads exactly `length` bytes.
    pub async fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.unread);
        while bytes.len() < length {
            let mut part = vec![0; 65536];
            let read =
                tokio::time::timeout(PATIENCE, self.stream.read(&mut part)).await.expect("bytes in time").unwrap();
            assert!(read > 0, "the end after {} bytes", bytes.len());
            bytes.extend_from_slice(&part[..read]);
        }
        self.unread = bytes.split_off(length);
        bytes
    }

    /// Writes `bytes` and reads to the end of the connection at the same time. Returns the bytes that it read.
    pub async fn exchange(self, bytes: Vec<u8>) -> Vec<u8> {
        let (mut reader, mut writer) = tokio::io::split(self.stream);
        let sent = tokio::spawn(async move {
            writer.write_all(&bytes).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let mut received = self.unread;
        let read = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut received)).await;
        read.expect("all bytes in time").unwrap();
        sent.await.unwrap();
        received
    }
}
