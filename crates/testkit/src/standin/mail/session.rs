//! The connections of a mail server.

use std::{net, sync::Arc, time::Duration};

use mailtoken_mail::protocol::Protocol;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use super::{
    IDLE, Service, Shared,
    dialogue::{Answer, Dialogue},
};

/// Maximum length of a line in bytes.
const LINE: usize = 16_384;

/// Serves connections until the stand-in stops.
pub(super) fn run<S: Service>(
    listeners: [net::TcpListener; 3],
    shared: Arc<Shared<S>>,
    mut stopped: watch::Receiver<bool>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for (listener, protocol) in listeners.into_iter().zip(Protocol::ALL) {
            listener.set_nonblocking(true).unwrap();
            tokio::spawn(accept(TcpListener::from_std(listener).unwrap(), protocol, shared.clone()));
        }
        drop(stopped.wait_for(|stop| *stop).await);
    });
}

async fn accept<S: Service>(listener: TcpListener, protocol: Protocol, shared: Arc<Shared<S>>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move { serve(tcp, protocol, &shared).await });
    }
}

/// Serves one connection. Returns `None` at its end.
async fn serve<S: Service>(mut tcp: TcpStream, protocol: Protocol, shared: &Shared<S>) -> Option<()> {
    let mut dialogue = Dialogue::new(protocol, const { &S::WORDS });
    let tls = TlsAcceptor::from(shared.tls.clone());
    if protocol == Protocol::Smtp {
        say(&mut tcp, &[dialogue.greeting()]).await?;
        talk(&mut tcp, &mut dialogue, protocol, shared).await?;
        let mut stream = tls.accept(tcp).await.ok()?;
        dialogue.secured();
        return talk(&mut stream, &mut dialogue, protocol, shared).await;
    }
    let mut stream = tls.accept(tcp).await.ok()?;
    say(&mut stream, &[dialogue.greeting()]).await?;
    talk(&mut stream, &mut dialogue, protocol, shared).await
}

/// Exchanges lines until TLS must start. Returns `None` at the end of the connection.
async fn talk<T, S>(stream: &mut T, dialogue: &mut Dialogue, protocol: Protocol, shared: &Shared<S>) -> Option<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service,
{
    loop {
        let line = tokio::time::timeout(IDLE, read_line(stream)).await.ok()??;
        match dialogue.line(&line, |user, token| shared.judge(protocol, user, token)) {
            Answer::Say(lines) => say(stream, &lines).await?,
            Answer::StartTls(line) => return say(stream, &[line]).await,
            Answer::Bye(lines) => {
                say(stream, &lines).await?;
                stream.shutdown().await.ok()?;
                return None;
            }
            Answer::Hang => tokio::time::sleep(Duration::MAX).await,
        }
    }
}

async fn say<T: AsyncWrite + Unpin>(stream: &mut T, lines: &[String]) -> Option<()> {
    let text: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    stream.write_all(text.as_bytes()).await.ok()?;
    stream.flush().await.ok()
}

async fn read_line<T: AsyncRead + Unpin>(stream: &mut T) -> Option<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        (line.len() < LINE).then_some(())?;
        line.push(stream.read_u8().await.ok()?);
    }
    line.truncate(line.len() - 2);
    String::from_utf8(line).ok()
}
