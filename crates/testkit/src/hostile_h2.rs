//! An HTTP/2 server on a real TLS socket of the loopback interface. A test chooses the size of its responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// A server that supports only HTTP/2. It runs until it is dropped.
pub struct Http2Server {
    port: u16,
    connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Http2Server {
    /// Starts a server that answers each request with `200`, `headers` header fields of 100 bytes and a body of `body`
    /// bytes.
    pub async fn start(tls: Arc<ServerConfig>, headers: usize, body: usize) -> Self {
        let mut tls = (*tls).clone();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let tls = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(tls.clone(), tcp, headers, body));
            }
        });
        Self { port, connections, accepting }
    }

    /// Returns a URL of the server with this host.
    pub fn url(&self, host: &str) -> String {
        format!("https://{host}:{}/token", self.port)
    }

    /// Returns the number of accepted connections.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Http2Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(tls: TlsAcceptor, tcp: TcpStream, headers: usize, body: usize) -> Option<()> {
    let mut connection = h2::server::handshake(tls.accept(tcp).await.ok()?).await.ok()?;
    while let Some(request) = connection.accept().await {
        let (_, mut respond) = request.ok()?;
        let mut response = http::Response::new(());
        for number in 0..headers {
            let name: http::HeaderName = format!("x-{number:05}").parse().unwrap();
            response.headers_mut().insert(name, "x".repeat(93).parse().unwrap());
        }
        let mut stream = respond.send_response(response, false).ok()?;
        // The library buffers the body, and sends it as far as the client's windows allow.
        stream.send_data(vec![b'x'; body].into(), true).ok()?;
    }
    Some(())
}
