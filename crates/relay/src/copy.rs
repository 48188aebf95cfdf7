//! Copies bytes between a client and a mail server, in both directions and unchanged.
//!
//! A session that waits holds no buffer of this module. The relay reads a plain connection into a buffer of the thread
//! when the connection is readable. A connection with TLS lends its decrypted bytes. If the other side does not take
//! all bytes immediately, the rest stays in the TLS connection, or in memory that the relay frees after writing. Until
//! then the relay reads no more bytes.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncBufRead, AsyncWrite};

use crate::leg::Leg;

/// Maximum number of bytes of one read: the content of a TLS record (RFC 8446 section 5.1).
const SCRATCH: usize = 16_384;
/// Time for a client to close its side after the mail server has closed the session.
const LINGER: Duration = Duration::from_secs(30);

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The end of a session.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Number of bytes that the mail server received.
    pub(crate) to_server: u64,
    /// Number of bytes that the client received.
    pub(crate) to_client: u64,
    /// The error that ended the session; `None` if both sides ended it.
    pub(crate) error: Option<io::Error>,
}

/// One direction of a session.
struct Direction {
    /// Bytes that the relay has read and not yet written.
    spill: Vec<u8>,
    /// Number of bytes of `spill` that the relay has written.
    written: usize,
    state: State,
    /// Whether the writer may hold back bytes.
    unflushed: bool,
    copied: u64,
    counter: Counter,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Copying,
    /// The reader has closed its side. The relay closes the writer's side.
    Ending,
    Ended,
}

/// Copies until both sides have closed, or one side breaks. `to_server` and `to_client` are the bytes to write first.
pub(crate) async fn both(
    client: &mut Leg,
    server: &mut Leg,
    to_server: (Vec<u8>, Counter),
    to_client: (Vec<u8>, Counter),
) -> Ended {
    let (mut up, mut down) = (Direction::new(to_server), Direction::new(to_client));
    let mut server_is_deaf = None;
    let ended = std::future::poll_fn(|cx| {
        // Poll both directions, regardless of the result of the first.
        let sent = if server_is_deaf.is_none() { up.poll(cx, client, server) } else { Poll::Pending };
        let received = down.poll(cx, server, client);
        match (sent, received) {
            (_, Poll::Ready(Ok(()))) => Poll::Ready(None),
            (Poll::Ready(Err(Broken::Reader(error))), _)
            | (_, Poll::Ready(Err(Broken::Reader(error) | Broken::Writer(error)))) => Poll::Ready(Some(error)),
            // The mail server may have sent a last message before it closed the connection.
            (Poll::Ready(Err(Broken::Writer(error))), Poll::Pending) => {
                server_is_deaf = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            (Poll::Ready(Ok(())) | Poll::Pending, Poll::Pending) => Poll::Pending,
        }
    });
    let mut error = ended.await;
    if error.is_none() && server_is_deaf.is_none() {
        let until_client_ends = std::future::poll_fn(|cx| up.poll(cx, client, server));
        // The mail server has closed the session, so it needs no more bytes. The linger timer is on the heap, because a
        // session in progress has no timer.
        drop(Box::pin(tokio::time::timeout(LINGER, until_client_ends)).await);
    }
    error = error.or(server_is_deaf);
    Ended { to_server: up.copied, to_client: down.copied, error }
}

/// The side of a direction that broke.
enum Broken {
    Reader(io::Error),
    Writer(io::Error),
}

impl Direction {
    fn new((spill, counter): (Vec<u8>, Counter)) -> Self {
        Self { spill, written: 0, state: State::Copying, unflushed: false, copied: 0, counter }
    }

    /// Copies all bytes that the sides can take now. Ready when the reader has closed and the relay has closed the
    /// writer's side.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Leg, to: &mut Leg) -> Poll<Result<(), Broken>> {
        loop {
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    // If the side no longer exists, the error does not matter.
                    drop(ready!(Pin::new(&mut *to).poll_shutdown(cx)));
                    self.state = State::Ended;
                }
                State::Copying => {
                    ready!(self.poll_spill(cx, to)).map_err(Broken::Writer)?;
                    match self.poll_more(cx, from, to) {
                        Poll::Ready(Ok(true)) => {}
                        Poll::Ready(Ok(false)) => self.state = State::Ending,
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => {
                            if self.unflushed {
                                ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Broken::Writer)?;
                                self.unflushed = false;
                            }
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }

    /// Writes the bytes of earlier reads. Frees their memory after the last byte.
    fn poll_spill(&mut self, cx: &mut Context<'_>, to: &mut Leg) -> Poll<io::Result<()>> {
        while self.written < self.spill.len() {
            let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.spill[self.written..]))?;
            self.count(written)?;
            self.written += written;
        }
        if !self.spill.is_empty() {
            (self.spill, self.written) = (vec![], 0);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes the bytes. Returns whether the reader is still open.
    fn poll_more(&mut self, cx: &mut Context<'_>, from: &mut Leg, to: &mut Leg) -> Poll<Result<bool, Broken>> {
        match from {
            Leg::Plain(stream) => loop {
                ready!(stream.poll_read_ready(cx)).map_err(Broken::Reader)?;
                let read = BUFFER.with_borrow_mut(|buffer| {
                    buffer.resize(SCRATCH, 0);
                    match stream.try_read(buffer) {
                        Ok(0) => Ok(Some(false)),
                        Ok(length) => {
                            self.write(cx, &buffer[..length], to).map(|()| Some(true)).map_err(Broken::Writer)
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                        Err(error) => Err(Broken::Reader(error)),
                    }
                });
                if let Some(more) = read? {
                    return Poll::Ready(Ok(more));
                }
            },
            Leg::Client(stream) => self.poll_lent(cx, &mut **stream, to),
            Leg::Server(stream) => self.poll_lent(cx, &mut **stream, to),
        }
    }

    /// Writes bytes of a plain connection, and keeps the bytes that the other side does not take now.
    fn write(&mut self, cx: &mut Context<'_>, bytes: &[u8], to: &mut Leg) -> io::Result<()> {
        let written = match Pin::new(to).poll_write(cx, bytes) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        if written > 0 {
            self.count(written)?;
        }
        if written < bytes.len() {
            self.spill = bytes[written..].to_vec();
        }
        Ok(())
    }

    /// Writes bytes that a connection with TLS has decrypted. The bytes that the other side does not take stay in the
    /// TLS connection.
    fn poll_lent<S>(&mut self, cx: &mut Context<'_>, stream: &mut S, to: &mut Leg) -> Poll<Result<bool, Broken>>
    where
        S: AsyncBufRead + Unpin,
    {
        let lent = match ready!(Pin::new(&mut *stream).poll_fill_buf(cx)) {
            // A peer that closes the connection without close_notify has also closed its side.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => &[],
            lent => lent.map_err(Broken::Reader)?,
        };
        if lent.is_empty() {
            return Poll::Ready(Ok(false));
        }
        let written = ready!(Pin::new(to).poll_write(cx, lent)).map_err(Broken::Writer)?;
        self.count(written).map_err(Broken::Writer)?;
        Pin::new(stream).consume(written);
        Poll::Ready(Ok(true))
    }

    fn count(&mut self, written: usize) -> io::Result<()> {
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.unflushed = true;
        self.copied += written as u64;
        self.counter.inc_by(written as u64);
        Ok(())
    }
}
