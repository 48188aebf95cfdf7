//! The start and the end of the relay.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

use crate::{admin, listeners, open_files, relay::Relay, settings::Settings};

/// Runs the relay until SIGTERM or SIGINT. Then waits until all sessions have ended, or the drain time is over.
///
/// # Errors
///
/// A sentence that says why the relay does not start.
pub async fn run(settings: Settings) -> Result<(), String> {
    let cannot_listen = |error: std::io::Error| format!("signals cannot be received: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_listen)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot_listen)?;
    let relay = Arc::new(Relay::open(settings)?);
    let settings = &relay.settings;
    let bound = listeners::bind(settings).await?;
    if let Some(address) = settings.admin {
        let socket = admin::bind(address).await?;
        if let Ok(address) = socket.local_addr() {
            tracing::info!(%address, "serving /metrics, /livez and /readyz");
        }
        tokio::spawn(admin::serve(relay.clone(), socket));
    }
    announce(&relay);
    if let Err(why) = open_files::raise(settings.max_connections) {
        tracing::warn!("{why}");
    }
    let (accepting, sessions) = (TaskTracker::new(), TaskTracker::new());
    for (listener, socket) in bound {
        if let Ok(address) = socket.local_addr() {
            let (protocol, implicit_tls) = (listener.protocol.as_str(), listener.implicit_tls);
            tracing::info!(protocol, %address, implicit_tls, "listening");
        }
        accepting.spawn(listeners::accept(relay.clone(), listener, socket, sessions.clone()));
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(sessions = sessions.len(), drain = ?settings.drain, "relay stops");
    relay.stopping.cancel();
    accepting.close();
    accepting.wait().await;
    sessions.close();
    if tokio::time::timeout(settings.drain, sessions.wait()).await.is_err() {
        tracing::warn!(sessions = sessions.len(), "sessions cut: the drain time is over");
    }
    Ok(())
}

/// Logs the version and the settings in effect.
fn announce(relay: &Relay) {
    let settings = &relay.settings;
    let logins = relay.logins.as_ref().map(crate::logins::Logins::count);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        mailboxes = relay.mailboxes.all().len(),
        logins,
        without_auth = settings.without_auth.is_some(),
        "mail-token-relay starts"
    );
    if logins == Some(0) {
        tracing::warn!(
            "no login is complete: no client can log in until a Secret in --logins has username and password"
        );
    }
}
