//! Listens on the addresses of the settings and accepts connections.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::task::TaskTracker;

use crate::{
    relay::Relay,
    session,
    settings::{Listener, Settings},
};

/// Pause after a failed accept: the process may have no free file descriptor.
const AFTER_FAILURE: Duration = Duration::from_millis(200);
/// Maximum number of connections to which the relay sends a refusal at the same time. It closes further connections
/// without a reply.
const REFUSED: usize = 32;

/// Listens at all addresses.
///
/// # Errors
///
/// A sentence that says why the relay does not start.
pub(crate) async fn bind(settings: &Settings) -> Result<Vec<(Listener, TcpListener)>, String> {
    let mut bound = vec![];
    for listener in &settings.listeners {
        match bind_to(listener.address).await {
            Ok(socket) => bound.push((*listener, socket)),
            // The machine may have no IPv6.
            Err(error)
                if listener.is_default && listener.address.is_ipv6() && error.kind() != io::ErrorKind::AddrInUse =>
            {
                tracing::debug!(address = %listener.address, %error, "address not available");
            }
            Err(error) => {
                let (protocol, address) = (listener.protocol.as_str(), listener.address);
                return Err(format!(
                    "the relay cannot listen on {address} for {protocol}: {error}. Choose another address with --{}",
                    protocol.to_ascii_lowercase()
                ));
            }
        }
    }
    Ok(bound)
}

/// Listens at an address. `[::]` covers IPv4 and IPv6. If the kernel has no IPv6, the relay listens at `0.0.0.0`
/// instead.
pub(crate) async fn bind_to(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if address.is_ipv6() && address.ip().is_unspecified() && error.kind() != io::ErrorKind::AddrInUse =>
        {
            tracing::warn!(%address, %error, "no IPv6 on this machine: listening on 0.0.0.0");
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await.map_err(|_| error)
        }
        bound => bound,
    }
}

/// Accepts connections until the relay stops. A separate task serves each connection.
pub(crate) async fn accept(relay: Arc<Relay>, listener: Listener, socket: TcpListener, sessions: TaskTracker) {
    let refusals = Arc::new(Semaphore::new(REFUSED));
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = relay.stopping.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => match relay.places.take() {
                Some(place) => {
                    sessions.spawn(session::serve(relay.clone(), stream, peer, listener, place));
                }
                None => refuse(&relay, &refusals, stream, peer, listener),
            },
            Err(error) => {
                tracing::warn!(address = %listener.address, %error, "connection not accepted");
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    }
}

fn refuse(relay: &Arc<Relay>, refusals: &Arc<Semaphore>, stream: TcpStream, peer: SocketAddr, listener: Listener) {
    let Ok(permit) = refusals.clone().try_acquire_owned() else { return };
    let relay = relay.clone();
    tokio::spawn(async move {
        session::refuse(relay, stream, peer, listener).await;
        drop(permit);
    });
}
