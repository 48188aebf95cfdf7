//! A TCP connection to one of a host's addresses.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::net::TcpStream;

use super::{MailServer, error::DialError};
use crate::egress::Lookups;

/// Time between the attempts to connect to two addresses (RFC 8305 section 8, "Connection Attempt Delay").
const HEAD_START: Duration = Duration::from_millis(250);

/// Maximum number of addresses of one host to try: a name that a tenant chooses may have thousands.
const ADDRESSES: usize = 16;

/// Connects to a server at any of its addresses, without the egress policy. For programs whose user also chooses the
/// server. The broker uses `MailDialer`, because tenants choose the server. The caller sets a time limit.
///
/// # Errors
///
/// If the name does not resolve, or no address accepts a connection.
pub async fn connect_unguarded(server: &MailServer<'_>, lookups: &Lookups) -> Result<TcpStream, DialError> {
    let found = match server.host.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => {
            let found = lookups.addresses(server.host).await.map_err(DialError::not_resolved)?;
            found.iter().map(SocketAddr::ip).collect()
        }
    };
    let addresses: Vec<_> = found.into_iter().map(|address| SocketAddr::new(address, server.port)).collect();
    connect(&addresses).await.map_err(|error| DialError::not_connected(server, &error))
}

/// Connects to the first address that accepts a connection, as RFC 8305 describes: IPv6 and IPv4 addresses alternate,
/// and an attempt starts 250 ms after the previous one. The caller sets a time limit.
///
/// # Errors
///
/// The error of the last address that failed.
pub async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut left = in_turn(addresses).into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        let more = match left.next() {
            Some(address) => {
                attempts.push(TcpStream::connect(address));
                left.len() > 0
            }
            None if attempts.is_empty() => return Err(error),
            None => false,
        };
        let next_is_due = async {
            match more {
                true => tokio::time::sleep(HEAD_START).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(ended) = attempts.next() => match ended {
                Ok(stream) => return Ok(stream),
                Err(failed) => error = failed,
            },
            () = next_is_due => {}
        }
    }
}

/// Alternates the addresses of both families. Begins with the family of the first address, which the resolver prefers
/// (RFC 8305 section 4).
fn in_turn(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut second) = (vec![], vec![]);
    for address in addresses {
        let family = if address.is_ipv6() == first_is_v6 { &mut first } else { &mut second };
        if !family.contains(address) {
            family.push(*address);
        }
    }
    let mut second = second.into_iter();
    let mut ordered = vec![];
    for address in first {
        ordered.push(address);
        ordered.extend(second.next());
    }
    ordered.extend(second);
    ordered.truncate(ADDRESSES);
    ordered
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn the_families_take_turns_and_duplicates_are_dropped() {
        for (resolved, tried) in [
            (
                &["[2001:db8::1]:1", "[2001:db8::2]:1", "192.0.2.1:1"][..],
                &["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1"][..],
            ),
            (&["192.0.2.1:1", "192.0.2.2:1", "[2001:db8::1]:1"], &["192.0.2.1:1", "[2001:db8::1]:1", "192.0.2.2:1"]),
            (&["192.0.2.1:1", "192.0.2.1:1", "192.0.2.2:1"], &["192.0.2.1:1", "192.0.2.2:1"]),
            (&["[2001:db8::1]:1"], &["[2001:db8::1]:1"]),
            (&[], &[]),
        ] {
            assert_eq!(in_turn(&addresses(resolved)), addresses(tried));
        }
        let many: Vec<SocketAddr> = (0..1000).map(|port| ([192, 0, 2, 1], port).into()).collect();
        assert_eq!(in_turn(&many), many[..ADDRESSES]);
    }

    #[tokio::test]
    async fn an_address_that_refuses_leaves_the_turn_to_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        // A bound port without a listener refuses connections.
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let closed = closed.local_addr().unwrap();
        assert_eq!(connect(&[closed, open]).await.unwrap().peer_addr().unwrap(), open);
        assert_eq!(connect(&[closed]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(connect(&[]).await.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    }
}
