//! The loopback listener of a sign-in: one port of both loopback addresses, which accepts one authorization response
//! (RFC 8252 section 7.3).
//!
//! All users of a machine can read the arguments of the process that starts the browser. So the argument is a page of
//! this listener, under a path that no user can guess. The page redirects to the provider once. No process has `state`
//! or the PKCE challenge in its arguments.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::{Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use parking_lot::Mutex;
use secrecy::SecretString;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;

use crate::oauth::Refusal;

/// Maximum time to wait until the browser fetches the last page.
const LAST_PAGE: Duration = Duration::from_secs(2);

/// How many free ports `bind` tries to find one that is free on both addresses.
const PORTS: usize = 16;

/// The loopback addresses to which the host of a redirect URI resolves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loopback {
    /// `localhost`: a browser may use either address. Another user could listen at the address that `login` does not
    /// bind.
    Both,
    /// Only the address `127.0.0.1`.
    V4,
    /// Only the address `[::1]`.
    V6,
}

impl Loopback {
    /// Returns the host in the redirect URI, with brackets for IPv6.
    pub fn host(self) -> &'static str {
        match self {
            Self::Both => "localhost",
            Self::V4 => "127.0.0.1",
            Self::V6 => "[::1]",
        }
    }
}

/// A bound port. The listener answers no request before `receive`.
pub(super) struct Listener {
    listeners: Vec<TcpListener>,
    port: u16,
}

/// The authorization response: the code, or the reason for a missing code.
pub(super) type CodeResponse = Result<SecretString, Refusal>;

/// Sends the last page to the browser, with its HTTP status.
type Page = oneshot::Sender<(StatusCode, String)>;

/// The response for which the listener waits, and the page to which the listener redirects the browser.
pub(super) struct Expected<J> {
    /// The path and query of the redirect URI.
    pub path: String,
    /// The path of the local page that redirects to the provider.
    pub start: String,
    /// The authorization request: the provider's page.
    pub url: Url,
    /// Reads a query. `None` if the query is not the response to this sign-in.
    pub accept: J,
}

/// Error: the local page was opened twice. The user's browser opened it once; another user of the machine may have
/// opened it too.
pub(super) struct OpenedTwice;

/// The request with the authorization response. The browser waits for the last page.
pub(super) struct Callback {
    /// The authorization response of the provider.
    pub response: CodeResponse,
    page: Page,
    servers: Vec<JoinHandle<io::Result<()>>>,
    /// Stops the listener when the callback is dropped.
    stop: DropGuard,
}

/// Sends the response to the caller of `receive`.
type ResponseSender = oneshot::Sender<Result<(CodeResponse, Page), OpenedTwice>>;

/// The state of the listener. The listener checks queries until one of them is the response.
struct CallbackListener<J> {
    expected: Expected<J>,
    opened: AtomicBool,
    sender: Mutex<Option<ResponseSender>>,
}

impl Listener {
    /// Binds `port` of the loopback addresses, or any free port. On a machine without IPv6, binds only one address.
    pub async fn bind(loopback: Loopback, port: Option<u16>) -> io::Result<Self> {
        let mut last = None;
        for _ in 0..if port.is_some() { 1 } else { PORTS } {
            match Self::try_bind(loopback, port.unwrap_or(0)).await {
                Ok(listener) => return Ok(listener),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
    }

    async fn try_bind(loopback: Loopback, port: u16) -> io::Result<Self> {
        let mut listeners = vec![];
        let mut bound = port;
        if loopback != Loopback::V6 {
            let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
            bound = listener.local_addr()?.port();
            listeners.push(listener);
        }
        if loopback != Loopback::V4 {
            match TcpListener::bind(SocketAddr::from((Ipv6Addr::LOCALHOST, bound))).await {
                Ok(listener) => {
                    bound = listener.local_addr()?.port();
                    listeners.push(listener);
                }
                // If another process listens at this address, that process would receive the code.
                Err(error) if loopback == Loopback::V6 || error.kind() == io::ErrorKind::AddrInUse => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        Ok(Self { listeners, port: bound })
    }

    /// Returns the port that the listener has bound.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the scheme, address and port at which a browser on this machine reaches this listener.
    pub fn origin(&self) -> String {
        let address = self.listeners.first().and_then(|listener| listener.local_addr().ok());
        address.map_or_else(String::new, |address| format!("http://{address}"))
    }

    /// Waits for the one request that `accept` accepts. All other requests get an error page. Returns `None` if the
    /// listener has stopped.
    pub async fn receive<J>(self, expected: Expected<J>) -> Option<Result<Callback, OpenedTwice>>
    where
        J: Fn(&str) -> Option<CodeResponse> + Send + Sync + 'static,
    {
        let (sender, received) = oneshot::channel();
        let state =
            Arc::new(CallbackListener { expected, opened: AtomicBool::new(false), sender: Mutex::new(Some(sender)) });
        let stop = CancellationToken::new();
        let service = Router::new().fallback(answer).with_state(state);
        let serve = |listener| {
            let served = axum::serve(listener, service.clone());
            tokio::spawn(served.with_graceful_shutdown(stop.clone().cancelled_owned()).into_future())
        };
        let servers = self.listeners.into_iter().map(serve).collect();
        let stop = stop.drop_guard();
        let callback = received.await.ok()?;
        Some(callback.map(|(response, page)| Callback { response, page, servers, stop }))
    }
}

impl Callback {
    /// Sends the last page, and stops the listener.
    pub async fn close(self, status: StatusCode, text: String) {
        // If the browser has closed its connection, the page is not needed.
        drop(self.page.send((status, text)));
        drop(self.stop);
        drop(tokio::time::timeout(LAST_PAGE, futures::future::join_all(self.servers)).await);
    }
}

async fn answer<J>(State(state): State<Arc<CallbackListener<J>>>, request: Request) -> Response
where
    J: Fn(&str) -> Option<CodeResponse>,
{
    let Expected { path, start, url, accept } = &state.expected;
    if request.method() != Method::GET {
        return plain(StatusCode::NOT_FOUND, "There is nothing here.".to_owned());
    }
    if request.uri().path() == start {
        return redirect_once(&state, url);
    }
    if request.uri().path() != path.split('?').next().unwrap_or_default() {
        return plain(StatusCode::NOT_FOUND, "There is nothing here.".to_owned());
    }
    let Some(response) = accept(request.uri().query().unwrap_or_default()) else {
        let text = "This is not the response to the sign-in that mail-token-broker waits for.";
        return plain(StatusCode::BAD_REQUEST, text.to_owned());
    };
    let sender = state.sender.lock().take();
    let (page, shown) = oneshot::channel();
    let Some(Ok(())) = sender.map(|sender| sender.send(Ok((response, page)))) else {
        return plain(StatusCode::CONFLICT, "This sign-in already has its response.".to_owned());
    };
    match shown.await {
        Ok((status, text)) => plain(status, text),
        Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "The sign-in was cancelled.".to_owned()),
    }
}

/// Redirects to the provider, once. A second request for the page ends the sign-in: another user may have opened the
/// page first, and may have begun a sign-in with the same `state`.
fn redirect_once<J>(state: &CallbackListener<J>, url: &Url) -> Response {
    if state.opened.swap(true, Ordering::AcqRel) {
        drop(state.sender.lock().take().map(|sender| sender.send(Err(OpenedTwice))));
        return plain(StatusCode::GONE, "This page was opened before, so the sign-in was cancelled.".to_owned());
    }
    (StatusCode::SEE_OTHER, [(header::LOCATION, url.as_str())], plain(StatusCode::SEE_OTHER, String::new()))
        .into_response()
}

/// Returns a page of plain text, so that the browser interprets no markup. The headers keep the code out of caches and
/// of requests to other sites.
fn plain(status: StatusCode, text: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONNECTION, "close"),
    ];
    (status, headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use crate::oauth::authorization::read_authorization_response;

    use super::*;

    async fn send(port: u16, bytes: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(port: u16, target: &str) -> String {
        send(port, &format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")).await
    }

    type Received = JoinHandle<Option<Result<Callback, OpenedTwice>>>;

    async fn listen() -> (u16, Received) {
        listen_for("/").await
    }

    async fn listen_for(path: &str) -> (u16, Received) {
        let listener = Listener::bind(Loopback::Both, None).await.unwrap();
        let port = listener.port();
        let expected = Expected {
            path: path.to_owned(),
            start: "/begin".to_owned(),
            url: "https://login.example/authorize?state=s1".parse().unwrap(),
            accept: |query: &str| read_authorization_response(query, "s1", None),
        };
        (port, tokio::spawn(listener.receive(expected)))
    }

    async fn received(callback: Received) -> Callback {
        callback.await.unwrap().unwrap().ok().unwrap()
    }

    #[tokio::test]
    async fn the_page_that_redirects_to_the_provider_opens_once() {
        let (port, callback) = listen().await;
        let page = get(port, "/begin").await;
        assert!(page.starts_with("HTTP/1.1 303"), "{page}");
        assert!(page.contains("location: https://login.example/authorize?state=s1"), "{page}");
        assert!(page.contains("no-store"), "{page}");
        let page = get(port, "/begin").await;
        assert!(page.starts_with("HTTP/1.1 410") && !page.contains("state=s1"), "{page}");
        assert!(callback.await.unwrap().unwrap().is_err(), "the sign-in ends");
    }

    #[tokio::test]
    async fn the_listener_binds_both_loopback_addresses_or_none() {
        let (port, callback) = listen_for("/back?app=1").await;
        let browser = tokio::spawn(async move {
            let mut stream = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
            stream.write_all(b"GET /back?app=1&code=c&state=s1 HTTP/1.0\r\n\r\n").await.unwrap();
            let mut page = String::new();
            stream.read_to_string(&mut page).await.unwrap();
            page
        });
        received(callback).await.close(StatusCode::OK, "signed in".to_owned()).await;
        assert!(browser.await.unwrap().ends_with("signed in"));

        let other = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        let taken = other.local_addr().unwrap().port();
        let error = Listener::bind(Loopback::Both, Some(taken)).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        for (loopback, host) in [(Loopback::V4, "127.0.0.1"), (Loopback::V6, "[::1]"), (Loopback::Both, "localhost")] {
            assert_eq!(loopback.host(), host);
            Listener::bind(loopback, None).await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_listener_rejects_junk_and_other_states_and_waits_on() {
        let (port, callback) = listen().await;
        assert!(send(port, "\x16\x03\x01 no http\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        assert!(send(port, "POST /?code=c&state=s1 HTTP/1.0\r\n\r\n").await.contains(" 404 "));
        for (target, status) in [
            ("/favicon.ico", 404),
            ("/other?code=c&state=s1", 404),
            ("/", 400),
            ("/?code=c", 400),
            ("/?code=c&state=s2", 400),
            ("/?state=%3Cscript%3Ealert(1)%3C/script%3E", 400),
        ] {
            let answer = get(port, target).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{target}: {answer}");
            assert!(!answer.contains("script") && answer.contains("text/plain"), "{answer}");
        }
        let browser = tokio::spawn(async move { get(port, "/?code=c0de&state=s1").await });
        let callback = received(callback).await;
        assert_eq!(callback.response.as_ref().unwrap().expose_secret(), "c0de");
        callback.close(StatusCode::OK, "signed in".to_owned()).await;
        let page = browser.await.unwrap();
        assert!(page.starts_with("HTTP/1.1 200") && page.ends_with("signed in"), "{page}");
        assert!(page.contains("no-store") && page.contains("nosniff"), "{page}");
    }

    #[tokio::test]
    async fn a_second_response_is_refused_and_the_listener_stops() {
        let (port, callback) = listen().await;
        let first = tokio::spawn(async move { get(port, "/?error=access_denied&state=s1").await });
        let callback = received(callback).await;
        assert_eq!(callback.response.as_ref().unwrap_err().what, "the provider answered access_denied");
        assert!(get(port, "/?code=c&state=s1").await.starts_with("HTTP/1.1 409"));
        callback.close(StatusCode::BAD_REQUEST, "refused".to_owned()).await;
        assert!(first.await.unwrap().ends_with("refused"));
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err());
    }

    #[tokio::test]
    async fn a_browser_gets_an_error_page_when_the_sign_in_is_cancelled() {
        let (port, callback) = listen().await;
        let browser = tokio::spawn(async move { get(port, "/?code=c&state=s1").await });
        drop(received(callback).await);
        assert!(browser.await.unwrap().starts_with("HTTP/1.1 503"));
    }
}
