//! A proxy that connects all tunnels to ports of this machine, regardless of the requested host. So stand-ins can
//! replace a provider and its mail servers under their real names.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

/// A running proxy. It stops when the process ends.
pub struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts a proxy that connects all tunnels to this port.
    pub fn start(port: u16) -> Self {
        Self::with_mail(port, &[])
    }

    /// Starts a proxy that maps some requested ports, such as 587, to other ports, and connects all other tunnels to
    /// `port`.
    pub fn with_mail(port: u16, others: &[(u16, u16)]) -> Self {
        let others = others.to_vec();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self { address: listener.local_addr().unwrap(), asked: Arc::default() };
        let asked = proxy.asked.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (asked, others) = (asked.clone(), others.clone());
                std::thread::spawn(move || tunnel(client, port, &others, &asked));
            }
        });
        proxy
    }

    /// Returns the URL for `--egress-proxy`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the hosts and ports of all requested tunnels.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// Serves one tunnel. An error closes the tunnel; the client sees nothing more of the error.
fn tunnel(client: TcpStream, port: u16, others: &[(u16, u16)], asked: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let target = line.strip_prefix("CONNECT ")?.split(' ').next()?.to_owned();
    let wanted = target.rsplit_once(':')?.1.parse::<u16>().ok()?;
    let port = others.iter().find(|(from, _)| *from == wanted).map_or(port, |(_, to)| *to);
    asked.lock().unwrap().push(target);
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).ok()?;
    }
    let server = TcpStream::connect(("127.0.0.1", port)).ok()?;
    (&client).write_all(b"HTTP/1.1 200 Connected\r\n\r\n").ok()?;
    let (mut back, mut from) = (client.try_clone().ok()?, server.try_clone().ok()?);
    std::thread::spawn(move || {
        drop(std::io::copy(&mut from, &mut back));
        drop(back.shutdown(Shutdown::Write));
    });
    std::io::copy(&mut reader, &mut (&server)).ok()?;
    server.shutdown(Shutdown::Write).ok()
}
