//! The command `ready`: checks the listeners, for a probe inside the container.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::net::TcpStream;

use crate::settings::Settings;

/// Time limit of one connection to the relay's own listener.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Connects to each listener.
///
/// # Errors
///
/// A sentence that names the listener that does not answer.
pub async fn run(settings: &Settings) -> Result<(), String> {
    for listener in &settings.listeners {
        let address = reachable(listener.address);
        match tokio::time::timeout(TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => {}
            // The machine may have no IPv6. In that case only the default IPv4 listener counts.
            _ if listener.is_default && address.is_ipv6() => {}
            Ok(Err(error)) => return Err(format!("the relay does not listen on {address}: {error}")),
            Err(_) => return Err(format!("the relay does not accept a connection on {address}")),
        }
    }
    Ok(())
}

/// Returns the address at which a process of the same pod reaches a listener.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
