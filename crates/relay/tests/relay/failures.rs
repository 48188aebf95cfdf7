//! Failed logins: the client's answer and the log line.

use std::collections::BTreeMap;

use super::support::{Answers, Client, Folder, Relay, Server, Trust, plain, protocol_of, secret};

const USER: &str = "billing@shop.example";

/// Returns the command that logs in, and the answers to a temporary and to a permanent failure.
fn login(protocol: &str) -> (String, &'static str, &'static str) {
    let response = plain(USER, "x");
    match protocol {
        "smtp" => (format!("AUTH PLAIN {response}"), "454 4.7.0", "535 5.7.8"),
        "imap" => (format!("a AUTHENTICATE PLAIN {response}"), "a NO [UNAVAILABLE]", "a NO [AUTHENTICATIONFAILED]"),
        _ => (format!("AUTH PLAIN {response}"), "-ERR [SYS/TEMP]", "-ERR [AUTH]"),
    }
}

/// Logs in with a Secret, and checks the client's answer, and the outcome and a part of the explanation in the log.
/// Returns the log line.
#[track_caller]
fn fails<'a>(
    protocol: &'a str,
    keys: &'a BTreeMap<String, String>,
    trust: &'a Trust,
    temporary: bool,
    outcome: &'a str,
    why: &'a str,
) -> impl Future<Output = ()> + 'a {
    let place = std::panic::Location::caller();
    async move {
        let folder = Folder::new();
        folder.publish("mailbox", keys);
        let ca_file = trust.ca_file();
        let relay = Relay::start(&folder.path().join("mailbox"), &["--ca-file", ca_file.to_str().unwrap()]);
        let mut client = Client::connect(relay.port(&protocol.to_uppercase())).await;
        client.line().await;
        let (command, for_now, for_good) = login(protocol);
        client.send(&command).await;
        let answer = client.line().await;
        assert!(answer.starts_with(if temporary { for_now } else { for_good }), "{place}: {answer}");
        let line = relay.line("login failed").await;
        assert_eq!(line["outcome"], outcome, "{place}: {line}");
        assert!(line["why"].as_str().unwrap().contains(why), "{place}: {line}");
        // The session continues.
        let (noop, ok) = match protocol {
            "smtp" => ("NOOP", "250"),
            "imap" => ("b NOOP", "b OK"),
            _ => ("NOOP", "+OK"),
        };
        client.ask(noop, ok).await;
        assert!(!relay.log().contains("s3cret-token"), "{place}");
    }
}

#[tokio::test]
async fn a_secret_without_a_valid_token_is_a_temporary_failure() {
    let trust = Trust::new();
    for protocol in ["smtp", "imap", "pop3"] {
        let server = Server::start(protocol, trust.server("localhost"), &[]).await;
        let mut expired = secret(USER, "s3cret-token", &[&server]);
        expired.insert("expires_at_unix".to_owned(), "1000000000".to_owned());
        fails(protocol, &expired, &trust, true, "expired", "has expired").await;
        fails(protocol, &BTreeMap::new(), &trust, true, "no_token", "does not exist yet").await;
        assert_eq!(server.log(), Vec::<String>::new(), "no connection without a valid token");
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_used_is_a_temporary_failure() {
    let (trust, other) = (Trust::new(), Trust::new());
    for protocol in ["smtp", "imap", "pop3"] {
        // A bound port without a listener refuses connections.
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let server = Server::start(protocol, trust.server("localhost"), &["s3cret-token"]).await;
        let mut unreachable = secret(USER, "s3cret-token", &[&server]);
        unreachable.insert(format!("{protocol}_port"), closed.local_addr().unwrap().port().to_string());
        fails(protocol, &unreachable, &trust, true, "unavailable", "no connection to localhost").await;
        let good = secret(USER, "s3cret-token", &[&server]);
        fails(protocol, &good, &other, true, "tls", "tls with localhost").await;
        let wrong_name = Server::start(protocol, trust.server("other.example"), &["s3cret-token"]).await;
        fails(protocol, &secret(USER, "s3cret-token", &[&wrong_name]), &trust, true, "tls", "tls with localhost").await;
        assert!(server.log().is_empty() && wrong_name.log().is_empty(), "no command before TLS is verified");
    }
}

#[tokio::test]
async fn a_server_that_must_not_be_trusted_gets_no_token() {
    let trust = Trust::new();
    let start = |protocol: &'static str, start_tls, answers| {
        Server::start_with(protocol, start_tls, trust.server("localhost"), &["s3cret-token"], answers)
    };
    let xclient = Answers { offers: vec!["AUTH XOAUTH2", "XCLIENT NAME"], ..protocol_of("smtp") };
    let preauth = Answers { greeting: "* PREAUTH hello", ..protocol_of("imap") };
    for (server, why) in [
        (start("smtp", false, xclient).await, "offers XCLIENT"),
        (start("imap", false, preauth.clone()).await, "PREAUTH"),
        (start("imap", true, preauth).await, "PREAUTH"),
        (start("smtp", true, Answers { after_start_tls: "250 injected\r\n", ..protocol_of("smtp") }).await, ""),
        (start("imap", true, Answers { after_start_tls: "* OK injected\r\n", ..protocol_of("imap") }).await, ""),
        (start("pop3", true, Answers { after_start_tls: "+OK injected\r\n", ..protocol_of("pop3") }).await, ""),
    ] {
        let keys = secret(USER, "s3cret-token", &[&server]);
        let outcome = if why.is_empty() { None } else { Some("unavailable") };
        match outcome {
            Some(outcome) => fails(server.prefix(), &keys, &trust, true, outcome, why).await,
            // The injected bytes arrive with the answer, or with the handshake.
            None => {
                let folder = Folder::new();
                folder.publish("mailbox", &keys);
                let relay = Relay::start(folder.path(), &["--ca-file", trust.ca_file().to_str().unwrap()]);
                let mut client = Client::connect(relay.port(&server.prefix().to_uppercase())).await;
                client.line().await;
                let (command, for_now, _) = login(server.prefix());
                client.ask(&command, for_now).await;
            }
        }
        assert!(!server.log().iter().any(|line| line.contains("token")), "{:?}", server.log());
    }
}

#[tokio::test]
async fn a_server_without_starttls_is_never_used_in_plain_text() {
    let trust = Trust::new();
    for protocol in ["smtp", "imap", "pop3"] {
        // A server without TLS that offers AUTH but no STARTTLS.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = tokio::spawn(async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let (mut stream, _) = listener.accept().await.unwrap();
            let answers = match protocol {
                "smtp" => ["220 x\r\n", "250-x\r\n250 AUTH XOAUTH2\r\n"],
                "imap" => ["* OK [CAPABILITY IMAP4rev1 AUTH=XOAUTH2] x\r\n", ""],
                _ => ["+OK\r\n", "+OK\r\nSASL XOAUTH2\r\n.\r\n"],
            };
            let mut seen = vec![];
            stream.write_all(answers[0].as_bytes()).await.unwrap();
            let mut part = [0; 512];
            loop {
                let read = stream.read(&mut part).await.unwrap_or(0);
                if read == 0 {
                    return String::from_utf8(seen).unwrap();
                }
                seen.extend_from_slice(&part[..read]);
                stream.write_all(answers[1].as_bytes()).await.unwrap_or_default();
            }
        });
        let server = Server::start_with(protocol, true, trust.server("localhost"), &[], protocol_of(protocol)).await;
        let mut keys = secret(USER, "s3cret-token", &[&server]);
        keys.insert(format!("{protocol}_port"), port.to_string());
        fails(protocol, &keys, &trust, true, "unavailable", "does not offer STARTTLS").await;
        let seen = seen.await.unwrap();
        assert!(!seen.contains("AUTH"), "{seen}");
    }
}

#[tokio::test]
async fn a_refused_token_is_a_permanent_failure_with_the_command_that_fixes_it() {
    let trust = Trust::new();
    for (protocol, why) in [
        (
            "smtp",
            "535 5.7.139: SMTP AUTH is off for this mailbox. In Exchange Online PowerShell: Set-CASMailbox -Identity billing@shop.example",
        ),
        ("imap", "NO [AUTHENTICATIONFAILED]: the server refused the token"),
        ("pop3", "-ERR [AUTH]: the server refused the token"),
    ] {
        let server = Server::start(protocol, trust.server("localhost"), &[]).await;
        fails(protocol, &secret(USER, "s3cret-token", &[&server]), &trust, false, "refused", why).await;
    }
    for (protocol, offers) in
        [("smtp", vec!["AUTH PLAIN"]), ("imap", vec!["IMAP4rev1", "AUTH=PLAIN"]), ("pop3", vec!["SASL PLAIN"])]
    {
        let answers = Answers { offers, ..protocol_of(protocol) };
        let server = Server::start_with(protocol, false, trust.server("localhost"), &[], answers).await;
        let keys = secret(USER, "s3cret-token", &[&server]);
        fails(protocol, &keys, &trust, false, "refused", "neither XOAUTH2 nor OAUTHBEARER").await;
    }
    let throttled = Answers { refusal: "432 4.3.2 Concurrent connections limit exceeded", ..protocol_of("smtp") };
    let server = Server::start_with("smtp", false, trust.server("localhost"), &[], throttled).await;
    fails("smtp", &secret(USER, "s3cret-token", &[&server]), &trust, true, "unavailable", "432 4.3.2").await;
}

#[tokio::test]
async fn a_name_that_no_mailbox_has_is_refused_and_not_logged() {
    let trust = Trust::new();
    let server = Server::start("smtp", trust.server("localhost"), &["good"]).await;
    let folder = Folder::new();
    folder.publish("mailbox", &secret(USER, "good", &[&server]));
    let relay = Relay::start(folder.path(), &["--ca-file", trust.ca_file().to_str().unwrap()]);
    for response in [plain("victim@shop.example", "x"), {
        use base64::Engine as _;
        base64::prelude::BASE64_STANDARD.encode(format!("victim@shop.example\0{USER}\0x"))
    }] {
        let mut client = Client::connect(relay.port("SMTP")).await;
        client.line().await;
        let begun = std::time::Instant::now();
        client.ask(&format!("AUTH PLAIN {response}"), "535 5.7.8").await;
        assert!(begun.elapsed() >= std::time::Duration::from_secs(1), "guessing must be slow");
        client.ask("MAIL FROM:<victim@shop.example>", "530 5.7.0").await;
    }
    let mut client = Client::connect(relay.port("IMAP")).await;
    client.line().await;
    client.ask(&format!("a LOGIN {USER} x"), "a NO [AUTHENTICATIONFAILED]").await;
    let line = relay.line("login failed").await;
    assert_eq!((&line["outcome"], &line["mailbox"]), (&"protocol".into(), &USER.into()));
    assert!(!relay.log().contains("victim"), "{}", relay.log());
    assert!(server.log().is_empty());
}

#[tokio::test]
async fn smtp_falls_back_to_the_second_folder_before_the_client_is_answered() {
    let trust = Trust::new();
    let (first, second) = (
        Server::start("smtp", trust.server("localhost"), &[]).await,
        Server::start("smtp", trust.server("localhost"), &["second"]).await,
    );
    let folder = Folder::new();
    folder.publish("first", &secret(USER, "first", &[&first]));
    folder.publish("second", &secret(USER, "second", &[&second]));
    let ca_file = trust.ca_file();
    let arguments =
        ["--ca-file", ca_file.to_str().unwrap(), "--smtp-fallback", "first=second", "--admin", "127.0.0.1:0"];
    let relay = Relay::start(folder.path(), &arguments);
    let mut client = Client::connect(relay.port("SMTP")).await;
    client.line().await;
    client.ask(&format!("AUTH PLAIN {}", plain(USER, "x")), "235").await;
    assert!(relay.line("second folder used").await["why"].as_str().unwrap().contains("535 5.7.139"));
    assert!(relay.admin("/metrics").contains(&format!("mailtoken_relay_fallbacks_total{{mailbox=\"{USER}\"}} 1")));
    // The failure of one of the two folders is temporary.
    let mut expired = secret(USER, "second", &[&second]);
    expired.insert("expires_at_unix".to_owned(), "1".to_owned());
    folder.publish("second", &expired);
    let mut client = Client::connect(relay.port("SMTP")).await;
    client.line().await;
    client.ask(&format!("AUTH PLAIN {}", plain(USER, "x")), "454 4.7.0").await;
}
