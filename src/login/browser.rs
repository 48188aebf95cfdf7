//! Where the browser begins and comes back to: one port of both loopback addresses, one answer (RFC 8252 section 7.3).
//!
//! What is handed to the browser's starter is readable by all users of the machine. So that is a page of this listener,
//! under a path that cannot be guessed, which leads to the provider once: `state` and challenge are in no other process's
//! arguments.

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

/// How long the browser may take to fetch the last page.
const LAST_PAGE: Duration = Duration::from_secs(2);

/// How many free ports are tried until one is free on both addresses.
const PORTS: usize = 16;

/// The loopback addresses that a redirect URI's host stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loopback {
    /// `localhost`: a browser may take either address, and another user could listen at the one that is left free.
    Both,
    /// `127.0.0.1`
    V4,
    /// `[::1]`
    V6,
}

impl Loopback {
    /// The host of the redirect URI.
    pub fn host(self) -> &'static str {
        match self {
            Self::Both => "localhost",
            Self::V4 => "127.0.0.1",
            Self::V6 => "[::1]",
        }
    }
}

/// A port that is listened at; no request is answered yet.
pub(super) struct Listener {
    listeners: Vec<TcpListener>,
    port: u16,
}

/// What a browser brought: a code, or why there is none.
pub(super) type Brought = Result<SecretString, Refusal>;

/// The last page, on its way to the browser.
type Page = oneshot::Sender<(StatusCode, String)>;

/// What the listener waits for, and what it leads to.
pub(super) struct Expected<J> {
    /// The path and query of the redirect URI.
    pub path: String,
    /// The path of the page that leads to the provider.
    pub start: String,
    /// The provider's page.
    pub url: Url,
    /// Takes a query for the answer, or not.
    pub accept: J,
}

/// The page that leads to the provider was opened twice: by the person's browser, and by who else?
pub(super) struct OpenedTwice;

/// A browser that brought the answer, and waits for a page.
pub(super) struct Callback {
    /// What it brought.
    pub brought: Brought,
    page: Page,
    servers: Vec<JoinHandle<io::Result<()>>>,
    /// Stops to listen when dropped.
    stop: DropGuard,
}

/// Who waits for the answer.
type Visitor = oneshot::Sender<Result<(Brought, Page), OpenedTwice>>;

/// Judges queries until one is the answer.
struct CallbackListener<J> {
    expected: Expected<J>,
    opened: AtomicBool,
    visitor: Mutex<Option<Visitor>>,
}

impl Listener {
    /// Listens at `port` of the loopback addresses, or at any that is free. A machine without IPv6 has only one of them.
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
                // Somebody else listens there, and would be brought the code.
                Err(error) if loopback == Loopback::V6 || error.kind() == io::ErrorKind::AddrInUse => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        Ok(Self { listeners, port: bound })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The scheme, address and port of this listener, as a browser on this machine reaches it.
    pub fn origin(&self) -> String {
        let address = self.listeners.first().and_then(|listener| listener.local_addr().ok());
        address.map_or_else(String::new, |address| format!("http://{address}"))
    }

    /// Waits for the one request that is taken for the answer. Others are told that they are not. `None` if nothing can
    /// come any more.
    pub async fn visit<J>(self, expected: Expected<J>) -> Option<Result<Callback, OpenedTwice>>
    where
        J: Fn(&str) -> Option<Brought> + Send + Sync + 'static,
    {
        let (visitor, visited) = oneshot::channel();
        let desk =
            Arc::new(CallbackListener { expected, opened: AtomicBool::new(false), visitor: Mutex::new(Some(visitor)) });
        let stop = CancellationToken::new();
        let service = Router::new().fallback(answer).with_state(desk);
        let serve = |listener| {
            let served = axum::serve(listener, service.clone());
            tokio::spawn(served.with_graceful_shutdown(stop.clone().cancelled_owned()).into_future())
        };
        let servers = self.listeners.into_iter().map(serve).collect();
        let stop = stop.drop_guard();
        let visit = visited.await.ok()?;
        Some(visit.map(|(brought, page)| Callback { brought, page, servers, stop }))
    }
}

impl Callback {
    /// Shows the last page, and stops to listen.
    pub async fn close(self, status: StatusCode, text: String) {
        // A browser that has gone away needs no page.
        drop(self.page.send((status, text)));
        drop(self.stop);
        drop(tokio::time::timeout(LAST_PAGE, futures::future::join_all(self.servers)).await);
    }
}

async fn answer<J>(State(desk): State<Arc<CallbackListener<J>>>, request: Request) -> Response
where
    J: Fn(&str) -> Option<Brought>,
{
    let Expected { path, start, url, accept } = &desk.expected;
    if request.method() != Method::GET {
        return plain(StatusCode::NOT_FOUND, "There is nothing here.".to_owned());
    }
    if request.uri().path() == start {
        return begin(&desk, url);
    }
    if request.uri().path() != path.split('?').next().unwrap_or_default() {
        return plain(StatusCode::NOT_FOUND, "There is nothing here.".to_owned());
    }
    let Some(brought) = accept(request.uri().query().unwrap_or_default()) else {
        let text = "This is not the answer to the sign-in that mail-token-broker waits for.";
        return plain(StatusCode::BAD_REQUEST, text.to_owned());
    };
    let visitor = desk.visitor.lock().take();
    let (page, shown) = oneshot::channel();
    let Some(Ok(())) = visitor.map(|visitor| visitor.send(Ok((brought, page)))) else {
        return plain(StatusCode::CONFLICT, "This sign-in has had its answer already.".to_owned());
    };
    match shown.await {
        Ok((status, text)) => plain(status, text),
        Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "The sign-in was broken off.".to_owned()),
    }
}

/// Leads to the provider, once. Who opens the page a second time learns that somebody else has opened it, and may have
/// begun a sign-in of their own with its `state`: this one ends.
fn begin<J>(desk: &CallbackListener<J>, url: &Url) -> Response {
    if desk.opened.swap(true, Ordering::AcqRel) {
        drop(desk.visitor.lock().take().map(|visitor| visitor.send(Err(OpenedTwice))));
        return plain(StatusCode::GONE, "This page was opened before, so the sign-in was broken off.".to_owned());
    }
    (StatusCode::SEE_OTHER, [(header::LOCATION, url.as_str())], plain(StatusCode::SEE_OTHER, String::new()))
        .into_response()
}

/// Plain text, so that nothing in it is ever markup; and no trace of the code in a cache or at another site.
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

    type Visited = JoinHandle<Option<Result<Callback, OpenedTwice>>>;

    async fn listen() -> (u16, Visited) {
        listen_for("/").await
    }

    async fn listen_for(path: &str) -> (u16, Visited) {
        let listener = Listener::bind(Loopback::Both, None).await.unwrap();
        let port = listener.port();
        let expected = Expected {
            path: path.to_owned(),
            start: "/begin".to_owned(),
            url: "https://login.example/authorize?state=s1".parse().unwrap(),
            accept: |query: &str| read_authorization_response(query, "s1", None),
        };
        (port, tokio::spawn(listener.visit(expected)))
    }

    async fn visited(visit: Visited) -> Callback {
        visit.await.unwrap().unwrap().ok().unwrap()
    }

    #[tokio::test]
    async fn the_page_that_leads_to_the_provider_is_opened_once() {
        let (port, visit) = listen().await;
        let page = get(port, "/begin").await;
        assert!(page.starts_with("HTTP/1.1 303"), "{page}");
        assert!(page.contains("location: https://login.example/authorize?state=s1"), "{page}");
        assert!(page.contains("no-store"), "{page}");
        let page = get(port, "/begin").await;
        assert!(page.starts_with("HTTP/1.1 410") && !page.contains("state=s1"), "{page}");
        assert!(visit.await.unwrap().unwrap().is_err(), "the sign-in ends");
    }

    #[tokio::test]
    async fn both_loopback_addresses_are_listened_at_and_an_occupied_one_is_not_left_to_another() {
        let (port, visit) = listen_for("/back?app=1").await;
        let browser = tokio::spawn(async move {
            let mut stream = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
            stream.write_all(b"GET /back?app=1&code=c&state=s1 HTTP/1.0\r\n\r\n").await.unwrap();
            let mut page = String::new();
            stream.read_to_string(&mut page).await.unwrap();
            page
        });
        visited(visit).await.close(StatusCode::OK, "signed in".to_owned()).await;
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
    async fn junk_and_other_states_are_turned_away_and_the_answer_is_still_waited_for() {
        let (port, visit) = listen().await;
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
        let visit = visited(visit).await;
        assert_eq!(visit.brought.as_ref().unwrap().expose_secret(), "c0de");
        visit.close(StatusCode::OK, "signed in".to_owned()).await;
        let page = browser.await.unwrap();
        assert!(page.starts_with("HTTP/1.1 200") && page.ends_with("signed in"), "{page}");
        assert!(page.contains("no-store") && page.contains("nosniff"), "{page}");
    }

    #[tokio::test]
    async fn a_second_answer_is_refused_and_nobody_listens_afterwards() {
        let (port, visit) = listen().await;
        let first = tokio::spawn(async move { get(port, "/?error=access_denied&state=s1").await });
        let visit = visited(visit).await;
        assert_eq!(visit.brought.as_ref().unwrap_err().what, "the provider answered access_denied");
        assert!(get(port, "/?code=c&state=s1").await.starts_with("HTTP/1.1 409"));
        visit.close(StatusCode::BAD_REQUEST, "refused".to_owned()).await;
        assert!(first.await.unwrap().ends_with("refused"));
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err());
    }

    #[tokio::test]
    async fn a_browser_is_told_when_the_sign_in_is_broken_off() {
        let (port, visit) = listen().await;
        let browser = tokio::spawn(async move { get(port, "/?code=c&state=s1").await });
        drop(visited(visit).await);
        assert!(browser.await.unwrap().starts_with("HTTP/1.1 503"));
    }
}
