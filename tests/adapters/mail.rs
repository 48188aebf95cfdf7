//! The login at mail servers, with servers on real sockets that violate protocols.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mail_token_broker::egress::EgressPolicy;
use mail_token_broker::idp::{BundleError, Settings, SetupError, TlsProblem};
use mail_token_broker::mail::{DialError, DialProblem, Limits, MailDialer, MailServer, Phase};
use mailtoken_mail::answers::Cause;
use mailtoken_mail::dialogue::{Failure, Outcome, Purpose};
use mailtoken_mail::protocol::{Mechanism, Protocol, Security};
use mailtoken_mail::sasl;
use mailtoken_testkit::hostile::{Authority, PATIENCE, Validity};
use mailtoken_testkit::hostile_mail::{Act, HostileMail, script};
use rustls::ServerConfig;
use secrecy::SecretString;
use tokio::net::TcpListener;

use crate::tunnels::{PROXYS_OWN, connect_proxy};

const USER: &str = "billing@example.org";
const TOKEN: &str = "token-canary";
/// Time limits for logins that end.
const LONG: Limits = Limits { connect: PATIENCE, total: PATIENCE };
/// Time limits for logins that never end.
const SHORT: Limits = Limits { connect: PATIENCE, total: Duration::from_millis(500) };

type Login = Result<Outcome, DialError>;

fn settings() -> Settings {
    let egress = EgressPolicy::new(["127.0.0.0/8", "::1/128"].map(|range| range.parse().unwrap()).to_vec());
    Settings { request_timeout: PATIENCE, egress, proxy: None, no_proxy: vec![] }
}

fn dialer(settings: &Settings) -> MailDialer {
    MailDialer::new(settings).unwrap().with_limits(LONG)
}

async fn log_in(dialer: &MailDialer, server: MailServer<'_>, authority: &Authority) -> Login {
    let (bundle, token) = (authority.bundle(), TOKEN.into());
    let login = dialer.login(&server, Some(&bundle), Purpose::Probe, USER, &token);
    tokio::time::timeout(2 * PATIENCE, login).await.expect("a login has a deadline of its own")
}

/// Logs in at a server that executes a script. Returns the result, and the lines that the server received.
async fn played(limits: Limits, protocol: Protocol, security: Security, script: Vec<Act>) -> (Login, Vec<String>) {
    let authority = Authority::new();
    let server = HostileMail::start("127.0.0.1", authority.issue(&["localhost"], Validity::Present), script).await;
    let at = MailServer { protocol, security, host: "localhost", port: server.port() };
    let login = log_in(&dialer(&settings()).with_limits(limits), at, &authority).await;
    server.ended(server.connections()).await;
    no_canary(&login);
    (login, server.heard())
}

async fn outcome(protocol: Protocol, security: Security, script: Vec<Act>) -> Login {
    played(LONG, protocol, security, script).await.0
}

/// Checks that an outcome or error shows neither a token nor a server's text. Servers of these tests write `canary`
/// into every text.
#[track_caller]
fn no_canary(login: &Login) {
    let mut shown = format!("{login:?}");
    match login {
        Ok(Outcome::Failed(Failure { code: Some(code), .. })) => write!(shown, "{code}").unwrap(),
        Err(error) => write!(shown, "{error}").unwrap(),
        Ok(_) => {}
    }
    assert!(!shown.contains("canary"), "{shown}");
}

#[track_caller]
fn failed(login: &Login, cause: Cause) {
    assert!(matches!(login, Ok(Outcome::Failed(failure)) if failure.cause == cause), "{login:?} instead of {cause:?}");
}

/// The dialogue with a correct server after TLS, up to the token.
const AFTER_TLS: [(Protocol, &str); 3] = [
    (Protocol::Smtp, "C: EHLO [\nS: 250-canary\nS: 250 AUTH PLAIN XOAUTH2\nC: AUTH XOAUTH2\nS: 334 \n"),
    (
        Protocol::Imap,
        "C: m CAPABILITY\nS: * CAPABILITY IMAP4rev1 AUTH=XOAUTH2 X-CANARY\nS: m OK canary\nC: m AUTHENTICATE XOAUTH2\nS: + \n",
    ),
    (Protocol::Pop3, "C: CAPA\nS: +OK canary\nS: SASL XOAUTH2\nS: X-CANARY\nS: .\nC: AUTH XOAUTH2\nS: + \n"),
];

/// Returns a complete script of a correct server.
fn good(protocol: Protocol, security: Security) -> Vec<Act> {
    let (greeting, start_tls, accepted) = match protocol {
        Protocol::Smtp => (
            "S: 220 canary ESMTP\n",
            "C: EHLO [\nS: 250-canary\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 canary\nTLS\n",
            "S: 235 2.7.0 canary\nC: QUIT\n",
        ),
        Protocol::Imap => (
            "S: * OK canary ready\n",
            "C: m CAPABILITY\nS: * CAPABILITY IMAP4rev1 STARTTLS\nS: m OK canary\nC: m STARTTLS\nS: m OK canary\nTLS\n",
            "S: m OK [CAPABILITY IMAP4rev1 X-CANARY] canary\nC: m EXAMINE INBOX\nS: * 3 EXISTS\nS: m OK [READ-ONLY] canary\nC: m LOGOUT\n",
        ),
        Protocol::Pop3 => (
            "S: +OK canary\n",
            "C: CAPA\nS: +OK canary\nS: STLS\nS: .\nC: STLS\nS: +OK canary\nTLS\n",
            "S: +OK canary\nC: QUIT\n",
        ),
    };
    let opening = match security {
        Security::Tls => format!("TLS\n{greeting}"),
        Security::StartTls => format!("{greeting}{start_tls}"),
    };
    let after_tls = AFTER_TLS.iter().find(|(of, _)| *of == protocol).unwrap().1;
    tagged(&format!("{opening}{after_tls}C: {}\n{accepted}", response()))
}

fn response() -> String {
    sasl::response(Mechanism::XOAuth2, USER, TOKEN).unwrap().to_string()
}

/// Numbers the tags of IMAP: in a command, `m` stands for the next tag; in a reply, for the last tag.
fn tagged(text: &str) -> Vec<Act> {
    let mut tag = 0;
    let line = |line: &str| match line {
        line if line.starts_with("C: m ") => {
            tag += 1;
            line.replacen("C: m", &format!("C: m{tag}"), 1)
        }
        line => line.replacen("S: m ", &format!("S: m{tag} "), 1),
    };
    script(&text.lines().map(line).collect::<Vec<_>>().join("\n"))
}

fn all() -> impl Iterator<Item = (Protocol, Security)> {
    Protocol::ALL
        .into_iter()
        .flat_map(|protocol| [Security::Tls, Security::StartTls].map(|security| (protocol, security)))
}

/// Returns each part of a correct script, up to the server's acceptance, followed by another act.
fn interrupted_by(act: &Act) -> Vec<(Protocol, Security, Vec<Act>)> {
    let mut scripts = vec![];
    for (protocol, security) in all() {
        let script = good(protocol, security);
        let accepted = script.iter().position(|act| matches!(act, Act::Hear(line) if line.len() > 40)).unwrap();
        for length in 0..=accepted + 1 {
            let mut part = script[..length].to_vec();
            part.push(act.clone());
            scripts.push((protocol, security, part));
        }
    }
    assert!(scripts.len() > 50);
    scripts
}

// ---- good servers -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_good_server_accepts_by_every_protocol_security_and_family() {
    for (protocol, security) in all() {
        for (host, address, name) in [
            ("localhost", "127.0.0.1", "[127.0.0.1]"),
            ("127.0.0.1", "127.0.0.1", "[127.0.0.1]"),
            ("::1", "::1", "[IPv6:::1]"),
        ] {
            let authority = Authority::new();
            let tls = authority.issue(&[host], Validity::Present);
            let server = HostileMail::start(address, tls, good(protocol, security)).await;
            let at = MailServer { protocol, security, host, port: server.port() };
            let login = log_in(&dialer(&settings()), at, &authority).await;
            assert!(matches!(&login, Ok(Outcome::Accepted(_))), "{protocol:?} {security:?} {host}: {login:?}");
            server.ended(1).await;
            no_canary(&login);
            let heard = server.heard();
            assert_eq!(heard.iter().filter(|line| **line == response()).count(), 1);
            assert!(protocol != Protocol::Smtp || heard.contains(&format!("EHLO {name}")), "{heard:?}");
            assert!(heard.last().unwrap().ends_with(if protocol == Protocol::Imap { "LOGOUT" } else { "QUIT" }));
        }
    }
}

#[tokio::test]
async fn a_server_that_closes_before_the_goodbye_has_accepted() {
    for (end, protocol) in
        [Act::Close, Act::Reset].into_iter().flat_map(|end| Protocol::ALL.map(|of| (end.clone(), of)))
    {
        let mut script = good(protocol, Security::Tls);
        script.pop();
        script.push(end.clone());
        let login = outcome(protocol, Security::Tls, script).await;
        // A reset may discard the reply before the client reads it.
        let lost = matches!((&end, &login), (Act::Reset, Err(DialError::Closed { .. })));
        assert!(lost || matches!(login, Ok(Outcome::Accepted(_))), "{protocol:?} {end:?}: {login:?}");
    }
}

// ---- servers that end or stay silent ------------------------------------------------------------------------------

#[tokio::test]
async fn a_close_or_reset_in_every_state_is_reported_as_such() {
    for end in [Act::Close, Act::Reset] {
        for (protocol, security, script) in interrupted_by(&end) {
            let shown = format!("{protocol:?} {security:?} {:?}", script.iter().rev().take(2).collect::<Vec<_>>());
            let login = outcome(protocol, security, script).await;
            assert!(
                matches!(&login, Err(DialError::Closed { phase: Phase::Tls | Phase::Login, .. })),
                "{shown}: {login:?}"
            );
            assert_eq!(login.unwrap_err().problem(), DialProblem::Unavailable);
        }
    }
}

#[tokio::test]
async fn a_server_that_never_answers_costs_no_more_than_the_limit() {
    // The server reads the client's bytes, and sends nothing.
    let silent = Act::Hear(String::new());
    let logins = interrupted_by(&silent).into_iter();
    let logins = logins.map(|(protocol, security, script)| played(SHORT, protocol, security, script));
    for (login, _) in futures::future::join_all(logins).await {
        assert!(matches!(login, Err(DialError::TimedOut { .. })), "{login:?}");
        assert_eq!(login.unwrap_err().problem(), DialProblem::Unavailable);
    }
}

#[tokio::test]
async fn a_server_that_sends_one_byte_after_the_other_costs_no_more_than_the_limit() {
    let drip = Act::Drip(b"250-canary ".to_vec(), Duration::from_millis(50));
    let logins = [
        (Protocol::Smtp, Security::StartTls, vec![drip.clone()]),
        (Protocol::Imap, Security::Tls, vec![Act::StartTls, drip.clone()]),
        (Protocol::Pop3, Security::Tls, vec![Act::StartTls, drip]),
    ];
    let logins = logins.map(|(protocol, security, script)| played(SHORT, protocol, security, script));
    for (login, _) in futures::future::join_all(logins).await {
        assert!(matches!(login, Err(DialError::TimedOut { .. })), "{login:?}");
    }
}

#[tokio::test]
async fn a_refused_token_is_refused_though_the_server_closes_after_the_challenge() {
    // The challenge is {"status":"401","schemes":"bearer","scope":"canary"}.
    let challenge = "eyJzdGF0dXMiOiI0MDEiLCJzY2hlbWVzIjoiYmVhcmVyIiwic2NvcGUiOiJjYW5hcnkifQ==";
    for (protocol, security) in all() {
        let mut script = good(protocol, security);
        let token = script.iter().position(|act| matches!(act, Act::Hear(line) if line.len() > 40)).unwrap();
        script.truncate(token + 1);
        let mark = if protocol == Protocol::Smtp { "334" } else { "+" };
        script.extend([Act::Say(format!("{mark} {challenge}\r\n").into_bytes()), Act::Hear(String::new()), Act::Close]);
        failed(&outcome(protocol, security, script).await, Cause::Refused);
    }
}

// ---- too much -----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_endless_reply_is_not_read_to_its_end() {
    let flood = |text: &str| Act::Flood(text.repeat(1024).into_bytes());
    let line_without_end = || flood("canary");
    for (protocol, security) in all() {
        let script = good(protocol, security);
        let endless_lines = match protocol {
            Protocol::Smtp => flood("250-canary\r\n"),
            Protocol::Imap => flood("* OK canary\r\n"),
            Protocol::Pop3 => flood("X-CANARY\r\n"),
        };
        // Replace each reply of the server in turn.
        for (at, act) in script.iter().enumerate() {
            if !matches!(act, Act::Say(_)) {
                continue;
            }
            for endless in [line_without_end(), endless_lines.clone()] {
                let mut script = script[..at].to_vec();
                script.push(endless);
                let login = outcome(protocol, security, script).await;
                failed(&login, Cause::Malformed);
            }
        }
    }
}

#[tokio::test]
async fn a_megabyte_of_capabilities_is_refused() {
    let many = |line: &str| line.repeat((1 << 20) / line.len());
    for (protocol, opening, capabilities) in [
        (Protocol::Smtp, "TLS\nS: 220 canary\nC: EHLO\n", many("250-X-CANARY\r\n")),
        (Protocol::Smtp, "TLS\nS: 220 canary\nC: EHLO\n", format!("250-{}\r\n", many("X-CANARY "))),
        (Protocol::Imap, "TLS\nS: * OK canary\nC: m1 CAPABILITY\n", format!("* CAPABILITY {}\r\n", many("X-CANARY "))),
        (Protocol::Imap, "TLS\n", format!("* OK [CAPABILITY {}] canary\r\n", many("X-CANARY "))),
        (Protocol::Imap, "TLS\nS: * OK canary\nC: m1 CAPABILITY\n", "* X-CANARY {1048576}\r\n".to_owned()),
        (Protocol::Pop3, "TLS\nS: +OK canary\nC: CAPA\n", format!("+OK\r\n{}", many("X-CANARY\r\n"))),
    ] {
        let mut script = script(opening);
        script.push(Act::Say(capabilities.into_bytes()));
        failed(&outcome(protocol, Security::Tls, script).await, Cause::Malformed);
    }
}

#[tokio::test]
async fn a_challenge_without_end_is_refused() {
    for protocol in Protocol::ALL {
        let mark = if protocol == Protocol::Smtp { "334" } else { "+" };
        for (challenge, cause) in [("Y2FuYXJ5", Cause::Malformed), ("eyJzdGF0dXMiOiI0MDEifQ==", Cause::Refused)] {
            let mut script = good(protocol, Security::Tls);
            let token = script.iter().position(|act| matches!(act, Act::Hear(line) if line.len() > 40)).unwrap();
            script.truncate(token + 1);
            script.push(Act::Flood(format!("{mark} {challenge}\r\n").into_bytes()));
            failed(&outcome(protocol, Security::Tls, script).await, cause);
        }
    }
}

// ---- before TLS ---------------------------------------------------------------------------------------------------

#[tokio::test]
async fn bytes_after_starttls_end_the_login() {
    for (protocol, opening, injected) in [
        (Protocol::Smtp, "S: 220 canary\nC: EHLO\nS: 250 STARTTLS\nC: STARTTLS\n", "220 go\r\n250 AUTH XOAUTH2\r\n"),
        (
            Protocol::Imap,
            "S: * OK [CAPABILITY STARTTLS] canary\nC: m1 STARTTLS\n",
            "m1 OK go\r\n* CAPABILITY AUTH=XOAUTH2\r\n",
        ),
        (Protocol::Pop3, "S: +OK canary\nC: CAPA\nS: +OK\nS: STLS\nS: .\nC: STLS\n", "+OK go\r\n+OK canary\r\n"),
    ] {
        let mut script = script(opening);
        script.push(Act::Say(injected.as_bytes().to_vec()));
        let (login, heard) = played(LONG, protocol, Security::StartTls, script).await;
        failed(&login, Cause::BytesAfterStartTls);
        assert_eq!(Cause::BytesAfterStartTls.reason(), "MailServerTLSFailed");
        assert!(!heard.iter().any(|line| line.contains("AUTH")), "{heard:?}");
    }
}

#[tokio::test]
async fn nothing_is_sent_to_a_server_that_offers_too_much_or_too_little() {
    for (protocol, security, server, cause) in [
        (Protocol::Imap, Security::StartTls, "S: * PREAUTH [CAPABILITY STARTTLS] canary", Cause::Preauthenticated),
        (Protocol::Imap, Security::Tls, "TLS\nS: * PREAUTH canary", Cause::Preauthenticated),
        (
            Protocol::Smtp,
            Security::Tls,
            "TLS\nS: 220 canary\nC: EHLO\nS: 250-XCLIENT NAME ADDR\nS: 250 AUTH XOAUTH2\nC: QUIT",
            Cause::OffersXclient,
        ),
        (Protocol::Smtp, Security::StartTls, "S: 220 canary\nC: EHLO\nS: 250 AUTH XOAUTH2\nC: QUIT", Cause::NoStartTls),
        (
            Protocol::Imap,
            Security::StartTls,
            "S: * OK [CAPABILITY AUTH=XOAUTH2] canary\nC: m1 LOGOUT",
            Cause::NoStartTls,
        ),
        (Protocol::Pop3, Security::StartTls, "S: +OK canary\nC: CAPA\nS: -ERR canary\nC: QUIT", Cause::NoStartTls),
        (
            Protocol::Smtp,
            Security::Tls,
            "TLS\nS: 220 canary\nC: EHLO\nS: 250 AUTH PLAIN LOGIN\nC: QUIT",
            Cause::NoMechanism,
        ),
        (Protocol::Smtp, Security::Tls, "TLS\nS: 421 4.3.2 canary", Cause::Throttled),
        (Protocol::Imap, Security::Tls, "TLS\nS: * BYE canary", Cause::Unavailable),
        (Protocol::Pop3, Security::Tls, "TLS\nS: SSH-2.0-canary", Cause::Malformed),
    ] {
        let (login, heard) = played(LONG, protocol, security, script(server)).await;
        failed(&login, cause);
        assert!(!heard.iter().any(|line| line.contains("XOAUTH2")), "{heard:?}");
    }
}

#[tokio::test]
async fn a_token_that_is_too_long_is_not_sent() {
    let server =
        HostileMail::start("127.0.0.1", Authority::new().issue(&["localhost"], Validity::Present), vec![]).await;
    let at = at(Protocol::Smtp, "localhost", server.port());
    let token = SecretString::from("t".repeat(sasl::MAX_TOKEN + 1));
    let login = dialer(&settings()).login(&at, None, Purpose::Probe, USER, &token).await;
    failed(&login, Cause::TokenTooLong);
    assert_eq!(server.connections(), 0);
}

// ---- TLS ----------------------------------------------------------------------------------------------------------

fn at(protocol: Protocol, host: &str, port: u16) -> MailServer<'_> {
    MailServer { protocol, security: Security::Tls, host, port }
}

async fn tls_problem(tls: Arc<ServerConfig>, trusted: &Authority, script: Vec<Act>, security: Security) -> DialError {
    let server = HostileMail::start("127.0.0.1", tls, script).await;
    let at = MailServer { protocol: Protocol::Smtp, security, host: "localhost", port: server.port() };
    let login = log_in(&dialer(&settings()), at, trusted).await;
    assert!(!server.heard().iter().any(|line| line.contains("AUTH")), "{:?}", server.heard());
    let error = login.unwrap_err();
    assert_eq!(error.problem(), DialProblem::Tls, "{error:?}");
    error
}

#[tokio::test]
async fn a_certificate_that_is_not_in_order_is_named_and_no_token_is_sent() {
    for security in [Security::Tls, Security::StartTls] {
        let authority = Authority::new();
        for (tls, trusted, kind, words) in [
            (authority.issue(&["localhost"], Validity::Past), &authority, TlsProblem::Expired, "expired at 2001-01-01"),
            (
                authority.issue(&["localhost"], Validity::Future),
                &authority,
                TlsProblem::Expired,
                "valid only from 2201",
            ),
            (
                authority.issue(&["other.test"], Validity::Present),
                &authority,
                TlsProblem::WrongName,
                "is for other.test",
            ),
            (
                authority.issue(&["localhost"], Validity::Present),
                &Authority::new(),
                TlsProblem::UnknownIssuer,
                "not signed by the trusted authority",
            ),
        ] {
            let error = tls_problem(tls, trusted, good(Protocol::Smtp, security), security).await;
            assert!(matches!(error, DialError::Tls { kind: found, .. } if found == kind), "{error:?}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}

/// RFC 8996: TLS 1.0 and 1.1 must not be used.
#[tokio::test]
async fn a_server_with_an_older_tls_is_refused_in_the_handshake() {
    for (version, security) in [(1, Security::Tls), (2, Security::Tls), (2, Security::StartTls)] {
        // RFC 4346 section 7.4.1.3: version, random, no session, TLS_RSA_WITH_AES_128_CBC_SHA, no compression.
        let body = [vec![3, version], vec![7; 32], vec![0, 0, 0x2f, 0]].concat();
        let length = u8::try_from(body.len()).unwrap();
        let hello = [vec![22, 3, version, 0, length + 4, 2, 0, 0, length], body].concat();
        let mut acts = match security {
            Security::Tls => vec![],
            Security::StartTls => script("S: 220 canary\nC: EHLO\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 canary"),
        };
        acts.extend([Act::Swallow, Act::Say(hello)]);
        let authority = Authority::new();
        let error = tls_problem(authority.issue(&["localhost"], Validity::Present), &authority, acts, security).await;
        assert!(error.to_string().contains("no TLS version"), "{error}");
    }
}

#[tokio::test]
async fn a_server_without_tls_and_a_bundle_without_certificates_are_reported() {
    let authority = Authority::new();
    let tls = authority.issue(&["localhost"], Validity::Present);
    let error = tls_problem(tls, &authority, script("S: 220 canary ESMTP"), Security::Tls).await;
    assert!(error.to_string().ends_with("the server does not speak TLS on this port"), "{error}");

    let at = at(Protocol::Smtp, "localhost", 1);
    let login = dialer(&settings()).login(&at, Some(b"canary"), Purpose::Probe, USER, &TOKEN.into()).await;
    assert_eq!(login, Err(DialError::Bundle(BundleError::NoCertificate)));
    no_canary(&login);
}

// ---- connections --------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_name_or_port_that_does_not_exist_is_reported() {
    let authority = Authority::new();
    let login = log_in(&dialer(&settings()), at(Protocol::Imap, "mail.invalid", 993), &authority).await;
    let error = login.unwrap_err();
    // A resolver without outside access may not respond at all.
    let reported = matches!(
        error,
        DialError::NameNotFound { .. } | DialError::NameNotResolved { .. } | DialError::TimedOut { .. }
    );
    assert!(reported, "{error:?}");
    assert_eq!(error.problem(), DialProblem::Unavailable);

    // A bound port without a listener refuses connections.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = closed.local_addr().unwrap().port();
    let error = log_in(&dialer(&settings()), at(Protocol::Imap, "127.0.0.1", port), &authority).await.unwrap_err();
    assert_eq!(error.to_string(), format!("no connection to 127.0.0.1 on port {port} (connection refused)"));
    assert_eq!(error.problem(), DialProblem::Unavailable);
}

#[tokio::test]
async fn addresses_are_judged_as_those_of_providers_are() {
    let authority = Authority::new();
    let server = HostileMail::start("127.0.0.1", authority.issue(&["localhost"], Validity::Present), vec![]).await;
    let limited = EgressPolicy::default().allow_for_cluster(vec!["127.0.0.0/8".parse().unwrap()]);
    let dialer = dialer(&Settings { egress: limited, ..settings() });
    for (host, range, allowance) in [
        ("localhost", "loopback", None),
        ("127.0.0.1", "loopback", None),
        ("::ffff:127.0.0.1", "loopback", None),
        ("10.1.2.3", "private", Some("10.1.2.3/32")),
    ] {
        let error = log_in(&dialer, at(Protocol::Pop3, host, server.port()), &authority).await.unwrap_err();
        assert!(matches!(&error, DialError::EgressDenied { range: found, .. } if *found == range), "{error:?}");
        assert_eq!((error.problem(), error.allowance().as_deref()), (DialProblem::EgressDenied, allowance));
        assert_eq!(error.to_string(), format!("{host} leads to an address that is denied ({range})"));
    }
    assert_eq!(server.connections(), 0);

    let tls = authority.issue(&["localhost"], Validity::Present);
    let server = HostileMail::start("127.0.0.1", tls, good(Protocol::Pop3, Security::Tls)).await;
    let login = log_in(&dialer.for_cluster(), at(Protocol::Pop3, "localhost", server.port()), &authority).await;
    assert!(matches!(login, Ok(Outcome::Accepted(_))), "{login:?}");
}

// ---- proxy --------------------------------------------------------------------------------------------------------

fn through(proxy: &str, egress: EgressPolicy) -> Settings {
    Settings { proxy: Some(proxy.parse().unwrap()), egress, ..settings() }
}

#[tokio::test]
async fn with_a_proxy_logins_go_through_its_tunnel() {
    for (protocol, security) in all() {
        let authority = Authority::new();
        let tls = authority.issue(&["localhost", PROXYS_OWN], Validity::Present);
        let server = HostileMail::start("127.0.0.1", tls, good(protocol, security)).await;
        let (port, tunnels) = connect_proxy("200 Connection established").await;
        let dialer = dialer(&through(&format!("http://127.0.0.1:{port}"), settings().egress));
        // The proxy resolves a name that does not resolve here.
        for (count, host) in ["localhost", PROXYS_OWN].into_iter().enumerate() {
            let at = MailServer { protocol, security, host, port: server.port() };
            let login = log_in(&dialer, at, &authority).await;
            assert!(matches!(login, Ok(Outcome::Accepted(_))), "{protocol:?} {security:?} {host}: {login:?}");
            assert_eq!((server.connections(), tunnels.load(Ordering::SeqCst)), (count + 1, count + 1));
        }
    }
}

#[tokio::test]
async fn with_a_proxy_addresses_are_judged_beforehand_and_no_proxy_is_obeyed() {
    let authority = Authority::new();
    let tls = authority.issue(&["localhost"], Validity::Present);
    let server = HostileMail::start("127.0.0.1", tls, good(Protocol::Imap, Security::Tls)).await;
    let (port, tunnels) = connect_proxy("200 Connection established").await;
    let proxy = format!("http://127.0.0.1:{port}");
    let guarded = dialer(&through(&proxy, EgressPolicy::default()));
    for host in ["localhost", "127.0.0.1", "10.1.2.3"] {
        let error = log_in(&guarded, at(Protocol::Imap, host, server.port()), &authority).await.unwrap_err();
        assert_eq!(error.problem(), DialProblem::EgressDenied, "{host}: {error:?}");
    }
    for rule in ["localhost", "127.0.0.0/8"] {
        let no_proxy = vec![rule.parse().unwrap(), "::1".parse().unwrap()];
        let direct = dialer(&Settings { no_proxy, ..through(&proxy, settings().egress) });
        let login = log_in(&direct, at(Protocol::Imap, "localhost", server.port()), &authority).await;
        assert!(matches!(login, Ok(Outcome::Accepted(_))), "{rule}: {login:?}");
    }
    assert_eq!((server.connections(), tunnels.load(Ordering::SeqCst)), (2, 0));
}

#[tokio::test]
async fn a_proxy_that_opens_no_tunnel_is_reported_in_fixed_words() {
    for (answer, words) in [
        (Act::Say(b"HTTP/1.1 403 canary\r\n\r\n".to_vec()), "HTTP status 403"),
        (Act::Say(b"HTTP/1.1 407 canary\r\nX: canary\r\n\r\n".to_vec()), "it requires other credentials"),
        (Act::Say(b"canary\r\n\r\n".to_vec()), "its response is not HTTP"),
        (Act::Flood(b"canary\r\n".repeat(512)), "its response is too long"),
        (Act::Close, "it closed the connection"),
    ] {
        let script = vec![Act::Swallow, answer];
        let authority = Authority::new();
        let proxy = HostileMail::start("127.0.0.1", authority.issue(&["localhost"], Validity::Present), script).await;
        let proxy = format!("http://user:canary@127.0.0.1:{}", proxy.port());
        let dialer = dialer(&through(&proxy, settings().egress));
        let login = log_in(&dialer, at(Protocol::Smtp, "8.8.8.8", 587), &authority).await;
        no_canary(&login);
        let error = login.unwrap_err();
        let expected = format!("the egress proxy opened no tunnel to 8.8.8.8 on port 587 ({words})");
        assert_eq!((error.to_string(), error.problem()), (expected, DialProblem::Unavailable));
    }
}

#[tokio::test]
async fn an_https_proxy_and_a_proxy_that_never_answers() {
    let authority = Authority::new();
    let tls = authority.issue(&["localhost"], Validity::Present);
    // The proxy refuses within TLS, after it has received the credentials.
    let script = script(
        "TLS\nC: CONNECT 8.8.8.8:993 HTTP/1.1\nC: Host: 8.8.8.8:993\nC: Proxy-Authorization: Basic dXNlcjpjYW5hcnk=\nC: ",
    );
    let answer = Act::Say(b"HTTP/1.1 502 canary\r\n\r\n".to_vec());
    let proxy = HostileMail::start("127.0.0.1", tls, [script, vec![answer]].concat()).await;
    let dialer = dialer(&through(&format!("https://user:canary@localhost:{}", proxy.port()), settings().egress));
    let login = log_in(&dialer, at(Protocol::Imap, "8.8.8.8", 993), &authority).await;
    assert_eq!(
        login.as_ref().unwrap_err().to_string(),
        "the egress proxy opened no tunnel to 8.8.8.8 on port 993 (HTTP status 502)"
    );
    let login = log_in(&dialer, at(Protocol::Imap, "8.8.8.8", 993), &Authority::new()).await;
    assert!(login.unwrap_err().to_string().contains("(tls with it failed: "));

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("http://127.0.0.1:{}", silent.local_addr().unwrap().port());
    let limits = Limits { connect: Duration::from_millis(300), total: PATIENCE };
    let dialer = self::dialer(&through(&proxy, settings().egress)).with_limits(limits);
    let login = log_in(&dialer, at(Protocol::Imap, "8.8.8.8", 993), &authority).await;
    assert!(matches!(login, Err(DialError::TimedOut { phase: Phase::Connection, .. })), "{login:?}");
}

#[tokio::test]
async fn a_proxy_url_that_cannot_be_used_is_refused_at_the_start() {
    for proxy in ["socks5://127.0.0.1:1080", "ftp://proxy.test/"] {
        let refused = MailDialer::new(&through(proxy, EgressPolicy::default()));
        assert!(matches!(refused.err(), Some(SetupError::Proxy)), "{proxy}");
    }
}
