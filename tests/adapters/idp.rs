//! The client for providers, with servers on real TLS sockets that violate protocols.

use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mail_token_broker::admission::PER_HOST_LIMIT;
use mail_token_broker::clock::Clock;
use mail_token_broker::egress::EgressPolicy;
use mail_token_broker::idp::{
    BODY_LIMIT, BUNDLE_LIMIT, BundleError, Exchange, IdpClient, IdpClients, Settings, SetupError, TlsProblem,
    TransportError,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use mailtoken_testkit::hostile::{Authority, Behaviour, HostileServer, PATIENCE, Validity};
use mailtoken_testkit::hostile_h2::Http2Server;

use crate::tunnels::{PROXYS_OWN, connect_proxy};

const SHORT: Duration = Duration::from_millis(300);

fn settings() -> Settings {
    let egress = EgressPolicy::new(vec!["127.0.0.0/8".parse().unwrap()]);
    Settings { request_timeout: PATIENCE, egress, proxy: None, no_proxy: vec![] }
}

fn client_with(settings: Settings, authority: &Authority) -> IdpClient {
    let clients = IdpClients::new(settings, Clock::system()).unwrap();
    clients.for_trust(Some(&authority.bundle())).unwrap()
}

fn post(url: &str) -> http::Request<Vec<u8>> {
    http::Request::post(url).header("authorization", "Basic canary").body(b"grant_type=canary".to_vec()).unwrap()
}

async fn send(client: &IdpClient, url: &str) -> Result<Exchange, TransportError> {
    tokio::time::timeout(2 * PATIENCE, client.send(post(url), || true)).await.expect("send has a deadline of its own")
}

/// Returns the result of one request to a server with this behaviour and a valid certificate.
async fn outcome_within(timeout: Duration, behaviour: Behaviour) -> Result<Exchange, TransportError> {
    let authority = Authority::new();
    let server = HostileServer::start(authority.issue(&["localhost"], Validity::Present), behaviour).await;
    let client = client_with(Settings { request_timeout: timeout, ..settings() }, &authority);
    send(&client, &server.url("localhost")).await
}

async fn outcome(behaviour: Behaviour) -> Result<Exchange, TransportError> {
    outcome_within(PATIENCE, behaviour).await
}

// ---- answers ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_good_answer_arrives_whole() {
    let authority = Authority::new();
    let tls = authority.issue(&["localhost"], Validity::Present);
    let server = HostileServer::start(tls, Behaviour::answer(400, "x-request-id: 7\r\n", b"{\"error\":\"x\"}")).await;
    let client = client_with(settings(), &authority);

    let before = Clock::system().now();
    let exchange = send(&client, &server.url("localhost")).await.unwrap();

    assert!(exchange.sent_at >= before && exchange.sent_at <= Clock::system().now());
    assert_eq!(exchange.response.status(), 400);
    assert_eq!(exchange.response.headers()["x-request-id"], "7");
    assert_eq!(exchange.response.body().as_slice(), b"{\"error\":\"x\"}");
    let head = &server.heads()[0];
    assert!(head.starts_with("POST /token HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("user-agent: mail-token-broker/{}\r\n", env!("CARGO_PKG_VERSION"))), "{head}");
    assert!(head.contains("authorization: Basic canary\r\n"), "{head}");
    assert!(head.contains("accept-encoding: identity\r\n"), "{head}");
}

#[tokio::test]
async fn connections_are_used_again() {
    let authority = Authority::new();
    let tls = authority.issue(&["localhost"], Validity::Present);
    let server = HostileServer::start(tls, Behaviour::answer(200, "", b"{}")).await;
    let clients = IdpClients::new(settings(), Clock::system()).unwrap();
    for _ in 0..3 {
        // Use a new client for each request, as one reconcile after the other does.
        let client = clients.for_trust(Some(&authority.bundle())).unwrap();
        send(&client, &server.url("localhost")).await.unwrap();
    }
    assert_eq!((server.connections(), server.requests()), (1, 3));
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let authority = Authority::new();
    let tls = authority.issue(&["localhost"], Validity::Present);
    let elsewhere = HostileServer::start(tls.clone(), Behaviour::answer(200, "", b"stolen")).await;
    let location = format!("location: {}\r\n", elsewhere.url("localhost"));
    for status in [301, 302, 303, 307, 308] {
        let server = HostileServer::start(tls.clone(), Behaviour::answer(status, &location, b"")).await;
        let exchange = send(&client_with(settings(), &authority), &server.url("localhost")).await.unwrap();
        assert_eq!(exchange.response.status(), status);
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn nothing_of_an_exchange_is_shown_by_debug() {
    let exchange = outcome(Behaviour::answer(200, "set-cookie: canary\r\n", b"canary")).await.unwrap();
    assert_eq!(exchange.response.headers()["set-cookie"], "canary");
    let shown = format!("{exchange:?} {:?}", exchange.response.headers());
    assert!(!shown.contains("canary"), "{shown}");
    assert!(shown.contains("body_length: 6"), "{shown}");
}

#[tokio::test]
async fn proxies_in_the_environment_are_ignored() {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command.args(["--exact", "idp::a_good_answer_arrives_whole"]);
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(name, "http://127.0.0.1:9");
    }
    let output = command.env_remove("NO_PROXY").env_remove("no_proxy").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

// ---- too much, too slow -------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_body_of_the_largest_size_is_read() {
    let exchange = outcome(Behaviour::answer(200, "", &vec![b'x'; BODY_LIMIT])).await.unwrap();
    assert_eq!(exchange.response.body().len(), BODY_LIMIT);
}

#[tokio::test]
async fn a_body_that_is_announced_too_large_is_not_waited_for() {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 10 << 20);
    let error = outcome(Behaviour::Answer(head.into_bytes())).await.unwrap_err();
    assert_eq!(error, TransportError::BodyTooLarge { limit: BODY_LIMIT });
}

#[tokio::test]
async fn a_body_of_ten_megabytes_is_refused() {
    let error = outcome(Behaviour::answer(200, "", &vec![b'x'; 10 << 20])).await.unwrap_err();
    assert_eq!(error, TransportError::BodyTooLarge { limit: BODY_LIMIT });
}

#[tokio::test]
async fn one_byte_too_many_is_refused_also_when_no_length_is_announced() {
    let response = |length| {
        let chunk = format!("{length:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(length));
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunk}").into_bytes()
    };
    let exchange = outcome(Behaviour::Answer(response(BODY_LIMIT))).await.unwrap();
    assert_eq!(exchange.response.body().len(), BODY_LIMIT);
    let error = outcome(Behaviour::Answer(response(BODY_LIMIT + 1))).await.unwrap_err();
    assert_eq!(error, TransportError::BodyTooLarge { limit: BODY_LIMIT });
}

/// Returns the output of a command that compresses data.
fn packed(command: &str) -> Vec<u8> {
    let packed = Command::new("sh").args(["-c", command]).output().unwrap().stdout;
    assert!(!packed.is_empty());
    packed
}

#[tokio::test]
async fn an_unrequested_compressed_body_is_read_within_the_limit() {
    let body = packed("printf '{\"error\":\"x\"}' | gzip");
    let exchange = outcome(Behaviour::answer(400, "content-encoding: gzip\r\n", &body)).await.unwrap();
    assert_eq!(exchange.response.body().as_slice(), b"{\"error\":\"x\"}");
    assert!(!exchange.response.headers().contains_key("content-encoding"));

    let bomb = packed("head -c 104857600 /dev/zero | gzip -9");
    assert!(bomb.len() < BODY_LIMIT);
    let error = outcome(Behaviour::answer(200, "content-encoding: gzip\r\n", &bomb)).await.unwrap_err();
    assert_eq!(error, TransportError::BodyTooLarge { limit: BODY_LIMIT });
    assert!(error.may_have_been_handled());

    let error = outcome(Behaviour::answer(200, "content-encoding: gzip\r\n", b"\x1f\x8bnonsense")).await.unwrap_err();
    assert_eq!(error, TransportError::BadEncoding);
}

#[tokio::test]
async fn an_endless_body_is_cut_off() {
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    let chunk = [b"1000\r\n".as_slice(), &[b'x'; 0x1000], b"\r\n"].concat();
    let error = outcome(Behaviour::Endless(head, chunk)).await.unwrap_err();
    assert_eq!(error, TransportError::BodyTooLarge { limit: BODY_LIMIT });
}

#[tokio::test]
async fn a_body_until_the_end_of_the_connection_is_cut_off_as_well() {
    let error = outcome(Behaviour::Endless(b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 4096])).await.unwrap_err();
    assert_eq!(error, TransportError::BodyTooLarge { limit: BODY_LIMIT });
}

#[tokio::test]
async fn too_many_headers_are_refused() {
    let headers: String = (0..100_000).map(|number| format!("x-{number}: {number}\r\n")).collect();
    let error = outcome(Behaviour::answer(200, &headers, b"{}")).await.unwrap_err();
    let TransportError::Connection { detail, .. } = error else { panic!("{error}") };
    assert_eq!(detail, "message head is too large");
}

#[tokio::test]
async fn an_endless_header_is_refused() {
    let error = outcome(Behaviour::Endless(b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'x'; 4096])).await.unwrap_err();
    let TransportError::Connection { detail, .. } = error else { panic!("{error}") };
    assert_eq!(detail, "message head is too large");
}

#[tokio::test]
async fn headers_that_drip_end_with_the_deadline() {
    let drip = Behaviour::Drip(b"HTTP/1.1 200 OK\r\n".to_vec(), b"x: y\r\n".to_vec(), SHORT / 10);
    let error = outcome_within(SHORT, drip).await.unwrap_err();
    assert_eq!(error, TransportError::TimedOut { host: "localhost".to_owned(), after: SHORT });
}

#[tokio::test]
async fn a_body_that_drips_ends_with_the_deadline() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n".to_vec();
    let error = outcome_within(SHORT, Behaviour::Drip(head, b"x".to_vec(), SHORT / 10)).await.unwrap_err();
    assert_eq!(error, TransportError::TimedOut { host: "localhost".to_owned(), after: SHORT });
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_ends_with_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    let client = client_with(Settings { request_timeout: SHORT, ..settings() }, &Authority::new());
    let error = send(&client, &url).await.unwrap_err();
    assert_eq!(error, TransportError::TimedOut { host: "localhost".to_owned(), after: SHORT });
}

// ---- http/2 -------------------------------------------------------------------------------------------------------

async fn http2(headers: usize, body: usize) -> (Http2Server, IdpClient) {
    let authority = Authority::new();
    let server = Http2Server::start(authority.issue(&["localhost"], Validity::Present), headers, body).await;
    (server, client_with(settings(), &authority))
}

#[tokio::test]
async fn over_http2_many_requests_share_one_connection() {
    let (server, client) = http2(10, BODY_LIMIT).await;
    let url = server.url("localhost");
    let first = send(&client, &url).await.unwrap();
    assert_eq!(first.response.version(), http::Version::HTTP_2);
    assert_eq!(first.response.body().len(), BODY_LIMIT);
    let more = futures::future::join_all((0..PER_HOST_LIMIT).map(|_| send(&client, &url))).await;
    assert!(more.iter().all(Result::is_ok), "{more:?}");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn over_http2_a_large_body_is_cut_off() {
    let (server, client) = http2(0, 10 << 20).await;
    let error = send(&client, &server.url("localhost")).await.unwrap_err();
    assert_eq!(error, TransportError::BodyTooLarge { limit: BODY_LIMIT });
}

#[tokio::test]
async fn over_http2_too_many_headers_are_refused() {
    for headers in [200, 20_000] {
        let (server, client) = http2(headers, 0).await;
        let error = send(&client, &server.url("localhost")).await.unwrap_err();
        assert!(matches!(error, TransportError::Connection { .. }), "{headers}: {error:?}");
    }
}

// ---- broken -------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_reset_connection_is_reported_and_the_request_is_not_repeated() {
    let authority = Authority::new();
    let server = HostileServer::start(authority.issue(&["localhost"], Validity::Present), Behaviour::Reset).await;
    let error = send(&client_with(settings(), &authority), &server.url("localhost")).await.unwrap_err();
    let TransportError::Connection { host, detail, .. } = error else { panic!("{error}") };
    assert_eq!((host.as_str(), detail.as_str()), ("localhost", "connection reset"));
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_answer() {
    for start in ["", "HTTP/1.1 200 OK\r\nx: ", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"] {
        let error = outcome(Behaviour::Close(start.as_bytes().to_vec())).await.unwrap_err();
        assert!(matches!(error, TransportError::Connection { .. }), "{start:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_response_that_is_not_http_is_reported_without_a_quote() {
    let error = outcome(Behaviour::Answer(b"canary canary canary\r\n\r\n".to_vec())).await.unwrap_err();
    assert!(matches!(error, TransportError::Connection { .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
}

#[tokio::test]
async fn a_closed_port_is_reported() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    drop(listener);
    let error = send(&client_with(settings(), &Authority::new()), &url).await.unwrap_err();
    let detail = "connection refused".to_owned();
    assert_eq!(error, TransportError::Connection { host: "127.0.0.1".to_owned(), detail, connected: false });
}

// ---- trust --------------------------------------------------------------------------------------------------------

/// Returns the problem and its text, for a server with this certificate and a client that trusts `trusted`.
async fn tls_failure(
    authority: &Authority,
    names: &[&str],
    validity: Validity,
    trusted: &Authority,
) -> (TlsProblem, String) {
    let server = HostileServer::start(authority.issue(names, validity), Behaviour::answer(200, "", b"")).await;
    let error = send(&client_with(settings(), trusted), &server.url("localhost")).await.unwrap_err();
    assert_eq!(server.requests(), 0);
    let TransportError::Tls { host, kind, detail } = error else { panic!("{error:?}") };
    assert_eq!(host, "localhost");
    (kind, detail)
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let (kind, detail) = tls_failure(&Authority::new(), &["localhost"], Validity::Present, &Authority::new()).await;
    assert_eq!(kind, TlsProblem::UnknownIssuer, "{detail}");
}

#[tokio::test]
async fn the_systems_roots_do_not_cover_a_private_authority() {
    let authority = Authority::new();
    let tls = authority.issue(&["localhost"], Validity::Present);
    let server = HostileServer::start(tls, Behaviour::answer(200, "", b"")).await;
    let clients = IdpClients::new(settings(), Clock::system()).unwrap();
    let error = send(&clients.for_trust(None).unwrap(), &server.url("localhost")).await.unwrap_err();
    let TransportError::Tls { kind, detail, .. } = error else { panic!("{error:?}") };
    assert_eq!(kind, TlsProblem::UnknownIssuer);
    assert_eq!(detail, "the server's certificate was issued by no authority that is trusted here");
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let authority = Authority::new();
    let (kind, detail) = tls_failure(&authority, &["localhost"], Validity::Past, &authority).await;
    assert_eq!(kind, TlsProblem::Expired);
    assert_eq!(detail, "the server's certificate expired at 2001-01-01T00:00:00Z");
}

#[tokio::test]
async fn a_certificate_of_the_future_is_refused() {
    let authority = Authority::new();
    let (kind, detail) = tls_failure(&authority, &["localhost"], Validity::Future, &authority).await;
    assert_eq!(kind, TlsProblem::Expired);
    assert_eq!(detail, "the server's certificate is valid only from 2201-01-01T00:00:00Z");
}

#[tokio::test]
async fn a_certificate_for_other_names_is_refused() {
    let authority = Authority::new();
    let names = ["a.test", "*.b.test", "127.0.0.1", "c.test"];
    let (kind, detail) = tls_failure(&authority, &names, Validity::Present, &authority).await;
    assert_eq!(kind, TlsProblem::WrongName);
    assert_eq!(detail, "the server's certificate is for a.test, *.b.test, 127.0.0.1, 1 more");
}

#[tokio::test]
async fn a_server_without_tls_is_reported() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        std::future::pending::<()>().await;
    });
    let error = send(&client_with(settings(), &Authority::new()), &url).await.unwrap_err();
    let TransportError::Tls { kind, detail, .. } = error else { panic!("{error:?}") };
    assert_eq!((kind, detail.as_str()), (TlsProblem::Other, "the server does not speak TLS on this port"));
}

/// RFC 8996: TLS 1.0 and 1.1 must not be used.
#[tokio::test]
async fn a_server_with_an_older_tls_is_refused_in_the_handshake() {
    // RFC 4346 section 7.4.1.3: version, random, no session, TLS_RSA_WITH_AES_128_CBC_SHA, no compression.
    let hello = |version: u8| {
        let body = [vec![3, version], vec![7; 32], vec![0, 0, 0x2f, 0]].concat();
        let length = u8::try_from(body.len()).unwrap();
        [vec![22, 3, version, 0, length + 4, 2, 0, 0, length], body].concat()
    };
    for version in [1, 2] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/token", listener.local_addr().unwrap().port());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = vec![0; 16_384];
            assert_ne!(stream.read(&mut seen).await.unwrap(), 0);
            stream.write_all(&hello(version)).await.unwrap();
            let length = stream.read(&mut seen).await.unwrap();
            seen.truncate(length);
            seen
        });
        let error = send(&client_with(settings(), &Authority::new()), &url).await.unwrap_err();
        assert!(matches!(error, TransportError::Tls { kind: TlsProblem::Other, .. }), "{error:?}");
        assert!(error.to_string().contains("no TLS version"), "{error}");
        // A fatal alert, protocol_version (RFC 8446 section 6).
        assert_eq!(server.await.unwrap()[5..], [2, 70]);
    }
}

#[tokio::test]
async fn a_bundle_that_cannot_be_used_makes_no_client() {
    let clients = IdpClients::new(settings(), Clock::system()).unwrap();
    let refused = |bundle: &[u8]| clients.for_trust(Some(bundle)).err();
    assert_eq!(refused(b"junk"), Some(BundleError::NoCertificate));
    let size = BUNDLE_LIMIT + 1;
    assert_eq!(refused(&vec![b'x'; size]), Some(BundleError::TooLarge { size, limit: BUNDLE_LIMIT }));
}

// ---- egress -------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn loopback_is_denied_however_it_is_written() {
    let authority = Authority::new();
    let tls = authority.issue(&["localhost", "127.0.0.1"], Validity::Present);
    let server = HostileServer::start(tls, Behaviour::answer(200, "", b"")).await;
    let client = client_with(Settings { egress: EgressPolicy::default(), ..settings() }, &authority);
    let spellings = [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[::1]",
        "localhost",
        "LOCALHOST",
        "127.0.0.2",
        "0.0.0.0",
        "0",
    ];
    for spelling in spellings {
        let error = send(&client, &server.url(spelling)).await.unwrap_err();
        assert!(matches!(error, TransportError::EgressDenied { .. }), "{spelling}: {error:?}");
    }
    // Resolvers differ in whether they know this name.
    send(&client, &server.url("localhost.")).await.unwrap_err();
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_denied_host_is_named_with_its_range() {
    let client = client_with(Settings { egress: EgressPolicy::default(), ..settings() }, &Authority::new());
    let error = send(&client, "https://localhost/").await.unwrap_err();
    let TransportError::EgressDenied { host, address, range } = error else { panic!("{error:?}") };
    assert!(address.is_loopback());
    assert_eq!((host.as_str(), range), ("localhost", "loopback"));

    let error = send(&client, "https://0xa9fea9fe/latest/meta-data").await.unwrap_err();
    assert_eq!(error.to_string(), "169.254.169.254 leads to an address that is denied (metadata)");
    assert_eq!(error.allowance(), None);
    let address: IpAddr = "169.254.169.254".parse().unwrap();
    assert_eq!(error, TransportError::EgressDenied { host: address.to_string(), address, range: "metadata" });
}

#[tokio::test]
async fn only_https_urls_without_user_information_are_sent_to() {
    let authority = Authority::new();
    let tls = authority.issue(&["localhost"], Validity::Present);
    let server = HostileServer::start(tls, Behaviour::answer(200, "", b"")).await;
    let client = client_with(settings(), &authority);
    let plain = server.url("localhost").replace("https", "http");
    for url in [plain.as_str(), "ftp://localhost/", "/token", "localhost:443"] {
        assert_eq!(send(&client, url).await.unwrap_err(), TransportError::UnsupportedScheme, "{url}");
    }
    for host in ["user:canary@localhost", "user@localhost"] {
        let error = send(&client, &server.url(host)).await.unwrap_err();
        assert_eq!(error.to_string(), "the url is invalid: user information is not allowed");
    }
    assert_eq!(server.connections(), 0);
}

// ---- proxy --------------------------------------------------------------------------------------------------------

fn through(proxy: &str, egress: EgressPolicy) -> Settings {
    Settings { proxy: Some(proxy.parse().unwrap()), egress, ..settings() }
}

#[tokio::test]
async fn with_a_proxy_requests_go_through_its_tunnel() {
    let authority = Authority::new();
    let tls = authority.issue(&["localhost", "127.0.0.1"], Validity::Present);
    let server = HostileServer::start(tls, Behaviour::answer(200, "", b"{}")).await;
    let (port, tunnels) = connect_proxy("200 Connection established").await;
    // The resolver may also return ::1. Behind a proxy the policy must permit every address.
    let loopback = EgressPolicy::new(vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
    let client = client_with(through(&format!("http://127.0.0.1:{port}"), loopback), &authority);
    for (count, host) in ["localhost", "127.0.0.1"].into_iter().enumerate() {
        send(&client, &server.url(host)).await.unwrap();
        assert_eq!((server.connections(), tunnels.load(Ordering::SeqCst)), (count + 1, count + 1));
    }
}

#[tokio::test]
async fn with_a_proxy_names_and_literals_are_judged_beforehand() {
    let (port, tunnels) = connect_proxy("200 Connection established").await;
    let settings = through(&format!("http://localhost:{port}"), EgressPolicy::default());
    let client = client_with(settings, &Authority::new());
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let error = send(&client, &format!("https://{host}/")).await.unwrap_err();
        assert!(matches!(error, TransportError::EgressDenied { .. }), "{host}: {error:?}");
    }
    assert_eq!(tunnels.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_name_that_does_not_resolve_here_is_left_to_the_proxy() {
    let authority = Authority::new();
    let tls = authority.issue(&[PROXYS_OWN], Validity::Present);
    let server = HostileServer::start(tls, Behaviour::answer(200, "", b"{}")).await;
    let (port, tunnels) = connect_proxy("200 Connection established").await;
    let client = client_with(through(&format!("http://127.0.0.1:{port}"), EgressPolicy::default()), &authority);
    send(&client, &server.url(PROXYS_OWN)).await.unwrap();
    assert_eq!((server.connections(), tunnels.load(Ordering::SeqCst)), (1, 1));
    let direct = client_with(settings(), &authority);
    let error = send(&direct, &server.url(PROXYS_OWN)).await.unwrap_err();
    assert_eq!(error, TransportError::NameNotFound { host: PROXYS_OWN.to_owned() });
}

#[tokio::test]
async fn hosts_of_no_proxy_are_connected_to_directly_and_checked() {
    let authority = Authority::new();
    let tls = authority.issue(&["localhost", "127.0.0.1"], Validity::Present);
    let server = HostileServer::start(tls, Behaviour::answer(200, "", b"{}")).await;
    let (port, tunnels) = connect_proxy("200 Connection established").await;
    let loopback = || EgressPolicy::new(vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
    let with = |rules: &[&str], egress| {
        let no_proxy = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        client_with(Settings { no_proxy, ..through(&format!("http://127.0.0.1:{port}"), egress) }, &authority)
    };
    for (rules, host) in [
        (&["localhost"][..], "localhost"),
        (&["127.0.0.0/8"], "127.0.0.1"),
        // The rules contain all addresses of the name.
        (&["127.0.0.0/8", "::1"], "localhost"),
    ] {
        send(&with(rules, loopback()), &server.url(host)).await.unwrap();
        assert_eq!(tunnels.load(Ordering::SeqCst), 0, "{rules:?} {host}");
        let error = send(&with(rules, EgressPolicy::default()), &server.url(host)).await.unwrap_err();
        assert!(matches!(error, TransportError::EgressDenied { .. }), "{rules:?} {host}: {error:?}");
    }
    assert_eq!(server.connections(), 3);
    send(&with(&["other.example.org", ".localhost"], loopback()), &server.url("localhost")).await.unwrap();
    assert_eq!((server.connections(), tunnels.load(Ordering::SeqCst)), (4, 1));
}

#[tokio::test]
async fn an_address_that_is_allowed_for_the_cluster_alone_is_denied_to_others() {
    let authority = Authority::new();
    let tls = authority.issue(&["127.0.0.1"], Validity::Present);
    let server = HostileServer::start(tls, Behaviour::answer(200, "", b"{}")).await;
    let egress = EgressPolicy::default().allow_for_cluster(vec!["127.0.0.0/8".parse().unwrap()]);
    let clients = IdpClients::new(Settings { egress, ..settings() }, Clock::system()).unwrap();
    let bundle = authority.bundle();
    // Clients with the same bundle but different policies must not share connections.
    for _ in 0..2 {
        send(&clients.for_cluster().for_trust(Some(&bundle)).unwrap(), &server.url("127.0.0.1")).await.unwrap();
        let error = send(&clients.for_trust(Some(&bundle)).unwrap(), &server.url("127.0.0.1")).await.unwrap_err();
        assert!(matches!(error, TransportError::EgressDenied { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn the_proxy_itself_may_have_a_private_address() {
    let (port, tunnels) = connect_proxy("403 Forbidden").await;
    let settings = through(&format!("http://user:canary@localhost:{port}"), EgressPolicy::default());
    // The address is public, so it is permitted. The client sends nothing to it, because the proxy refuses.
    let error = send(&client_with(settings, &Authority::new()), "https://8.8.8.8/").await.unwrap_err();
    assert_eq!(error.to_string(), "the connection to 8.8.8.8 failed: the egress proxy opened no tunnel (unsuccessful)");
    assert_eq!(tunnels.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_proxy_url_that_cannot_be_used_is_refused_at_the_start() {
    for proxy in ["socks5://127.0.0.1:1080", "ftp://proxy.test/"] {
        let refused = IdpClients::new(through(proxy, EgressPolicy::default()), Clock::system());
        assert!(matches!(refused.err(), Some(SetupError::Proxy)), "{proxy}");
    }
}

// ---- leave -----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_request_that_is_no_longer_allowed_is_withheld() {
    let authority = Authority::new();
    let tls = authority.issue(&["localhost"], Validity::Present);
    let server = HostileServer::start(tls, Behaviour::answer(200, "", b"")).await;
    let client = client_with(settings(), &authority);
    let outcome = client.send(post(&server.url("localhost")), || false).await;
    assert_eq!(outcome.unwrap_err(), TransportError::Withheld);
    assert_eq!(server.connections(), 0);
}
