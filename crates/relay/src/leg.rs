//! One side of a session: a plain connection, or a connection with TLS.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{client, server};

/// A connection to a client or to a mail server.
pub(crate) enum Leg {
    /// A connection to a client without TLS.
    Plain(TcpStream),
    /// A connection to a client with TLS.
    Client(Box<server::TlsStream<TcpStream>>),
    /// A connection to a mail server with TLS.
    Server(Box<client::TlsStream<TcpStream>>),
}

/// Maximum number of bytes that TLS buffers for a peer that does not read: the content of a record (RFC 8446 section
/// 5.1).
const KEPT: usize = 16_384;

impl Leg {
    /// Bounds the bytes that TLS buffers for a peer that does not read.
    pub(crate) fn limit_buffers(&mut self) {
        match self {
            Self::Plain(_) => {}
            Self::Client(stream) => stream.get_mut().1.set_buffer_limit(Some(KEPT)),
            Self::Server(stream) => stream.get_mut().1.set_buffer_limit(Some(KEPT)),
        }
    }
}

impl AsyncRead for Leg {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Client(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Server(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Leg {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Client(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Server(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Client(stream) => Pin::new(stream).poll_flush(cx),
            Self::Server(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Client(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Server(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
