//! A proxy that supports CONNECT.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A name that only the proxy resolves.
pub const PROXYS_OWN: &str = "provider.invalid";

/// Starts a proxy that supports CONNECT to addresses of this machine. Returns its port and the number of requested
/// tunnels.
pub async fn connect_proxy(answer: &'static str) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tunnels = Arc::new(AtomicUsize::new(0));
    let counted = tunnels.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(tunnel(stream, answer));
        }
    });
    (port, tunnels)
}

async fn tunnel(stream: TcpStream, answer: &'static str) {
    let mut client = BufReader::new(stream);
    let mut request = String::new();
    while !request.ends_with("\r\n\r\n") {
        client.read_line(&mut request).await.unwrap();
    }
    let target = request.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
    client.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes()).await.unwrap();
    if answer.starts_with("200") {
        let address = target.replace("localhost", "127.0.0.1").replace(PROXYS_OWN, "127.0.0.1");
        let mut server = TcpStream::connect(address).await.unwrap();
        tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
    }
}
