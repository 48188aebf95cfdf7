//! Where the browser comes back to: one port of localhost, one answer (RFC 8252 section 7.3).

use std::{io, net::Ipv4Addr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{Method, StatusCode, header},
    response::IntoResponse,
};
use parking_lot::Mutex;
use secrecy::SecretString;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::oauth::Refusal;

/// How long the browser may take to fetch the last page.
const LAST_PAGE: Duration = Duration::from_secs(2);

/// A port that is listened at, and nobody is answered yet.
pub(super) struct Listener {
    listener: TcpListener,
    port: u16,
}

/// What a browser brought: a code, or why there is none.
pub(super) type Brought = Result<SecretString, Refusal>;

/// The last page, on its way to the browser.
type Page = oneshot::Sender<(StatusCode, String)>;

/// A browser that brought the answer, and waits for a page.
pub(super) struct Visit {
    /// What it brought.
    pub brought: Brought,
    page: Page,
    server: JoinHandle<io::Result<()>>,
    /// Stops to listen when dropped.
    stop: DropGuard,
}

/// Judges queries until one is the answer.
struct Desk<J> {
    judge: J,
    visitor: Mutex<Option<oneshot::Sender<(Brought, Page)>>>,
}

impl Listener {
    /// Listens at `port` of 127.0.0.1, or at any that is free.
    pub async fn bind(port: Option<u16>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.unwrap_or(0))).await?;
        let port = listener.local_addr()?.port();
        Ok(Self { listener, port })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits for the one request whose query `judge` takes for the answer. Others are told that they are not.
    pub async fn visit(self, judge: impl Fn(&str) -> Option<Brought> + Send + Sync + 'static) -> Option<Visit> {
        let (visitor, visited) = oneshot::channel();
        let desk = Arc::new(Desk { judge, visitor: Mutex::new(Some(visitor)) });
        let stop = CancellationToken::new();
        let service = Router::new().fallback(answer).with_state(desk);
        let served = axum::serve(self.listener, service).with_graceful_shutdown(stop.clone().cancelled_owned());
        let server = tokio::spawn(served.into_future());
        let stop = stop.drop_guard();
        let (brought, page) = visited.await.ok()?;
        Some(Visit { brought, page, server, stop })
    }
}

impl Visit {
    /// Shows the last page, and stops to listen.
    pub async fn close(self, status: StatusCode, text: String) {
        // A browser that has gone away needs no page.
        drop(self.page.send((status, text)));
        drop(self.stop);
        drop(tokio::time::timeout(LAST_PAGE, self.server).await);
    }
}

async fn answer<J>(State(desk): State<Arc<Desk<J>>>, request: Request) -> impl IntoResponse
where
    J: Fn(&str) -> Option<Brought>,
{
    if request.method() != Method::GET || request.uri().path() != "/" {
        return plain(StatusCode::NOT_FOUND, "There is nothing here.".to_owned());
    }
    let Some(brought) = (desk.judge)(request.uri().query().unwrap_or_default()) else {
        let text = "This is not the answer to the sign-in that mail-token-broker waits for.";
        return plain(StatusCode::BAD_REQUEST, text.to_owned());
    };
    let visitor = desk.visitor.lock().take();
    let (page, shown) = oneshot::channel();
    let Some(Ok(())) = visitor.map(|visitor| visitor.send((brought, page))) else {
        return plain(StatusCode::CONFLICT, "This sign-in has had its answer already.".to_owned());
    };
    match shown.await {
        Ok((status, text)) => plain(status, text),
        Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "The sign-in was broken off.".to_owned()),
    }
}

/// Plain text, so that nothing in it is ever markup; and no trace of the code in a cache or at another site.
fn plain(status: StatusCode, text: String) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONNECTION, "close"),
    ];
    (status, headers, text)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;
    use crate::oauth::authorization::read_authorization_response;

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

    async fn listen() -> (u16, JoinHandle<Option<Visit>>) {
        let listener = Listener::bind(None).await.unwrap();
        let port = listener.port();
        (port, tokio::spawn(listener.visit(|query| read_authorization_response(query, "s1", None))))
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
        let visit = visit.await.unwrap().unwrap();
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
        let visit = visit.await.unwrap().unwrap();
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
        drop(visit.await.unwrap().unwrap());
        assert!(browser.await.unwrap().starts_with("HTTP/1.1 503"));
    }
}
