//! The process: its start, commands, metrics and end.

use std::collections::BTreeMap;

use super::support::{Answers, Client, Folder, PATIENCE, Relay, Server, Trust, plain, protocol_of, secret};

const USER: &str = "billing@shop.example";

#[test]
fn the_relay_does_not_start_where_it_would_be_open() {
    let folder = Folder::new();
    folder.publish("one", &secret(USER, "t", &[]));
    folder.publish("two", &secret("BILLING@shop.example", "t", &[]));
    let foreign = Folder::new();
    foreign.publish("foreign", &BTreeMap::from([("password".to_owned(), "x".to_owned())]));
    for (mailboxes, arguments, why) in [
        (folder.path(), &["--smtp", "0.0.0.0:0"][..], "not a loopback address"),
        (folder.path(), &[], "the same user name billing@shop.example"),
        (foreign.path(), &[], "not a Secret of a MailCredential"),
        (std::path::Path::new("/nonexistent"), &[], "cannot be read"),
        (&folder.path().join("one"), &["--ca-file", "/nonexistent"], "--ca-file"),
    ] {
        let ended = Relay::run(mailboxes, arguments);
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert!(said.starts_with("error: ") && said.contains(why), "{said}");
    }
}

#[tokio::test]
async fn sigterm_ends_clients_before_login_and_leaves_sessions_to_the_drain_time() {
    let trust = Trust::new();
    let server = Server::start("smtp", trust.server("localhost"), &["good"]).await;
    let folder = Folder::new();
    folder.publish("mailbox", &secret(USER, "good", &[&server]));
    let ca_file = trust.ca_file();
    let arguments = ["--ca-file", ca_file.to_str().unwrap(), "--drain", "60s", "--admin", "127.0.0.1:0"];
    let mut relay = Relay::start(folder.path(), &arguments);
    let mut session = Client::connect(relay.port("SMTP")).await;
    session.line().await;
    session.ask(&format!("AUTH PLAIN {}", plain(USER, "x")), "235").await;
    let mut waiting = vec![];
    for (protocol, answer) in [("SMTP", "421 4.3.2"), ("IMAP", "* BYE"), ("POP3", "-ERR")] {
        let mut client = Client::connect(relay.port(protocol)).await;
        client.line().await;
        waiting.push((client, answer));
    }
    assert!(relay.admin("/readyz").starts_with("HTTP/1.0 200"));
    relay.terminate();
    for (mut client, answer) in waiting {
        assert!(client.line().await.starts_with(answer));
        assert_eq!(client.rest().await, b"");
    }
    assert!(relay.admin("/readyz").starts_with("HTTP/1.0 503"));
    // The relay accepts no new connections.
    let refused = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", relay.port("SMTP"))).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    session.ask("MAIL FROM:<billing@shop.example>", "250").await;
    session.ask("QUIT", "221").await;
    drop(session);
    assert_eq!(relay.ended().await, Some(0));
}

#[tokio::test]
async fn sessions_are_cut_when_the_drain_time_is_over() {
    let trust = Trust::new();
    let server = Server::start("smtp", trust.server("localhost"), &["good"]).await;
    let folder = Folder::new();
    folder.publish("mailbox", &secret(USER, "good", &[&server]));
    let ca_file = trust.ca_file();
    let mut relay = Relay::start(folder.path(), &["--ca-file", ca_file.to_str().unwrap(), "--drain", "100ms"]);
    let mut session = Client::connect(relay.port("SMTP")).await;
    session.line().await;
    session.ask(&format!("AUTH PLAIN {}", plain(USER, "x")), "235").await;
    relay.terminate();
    assert_eq!(relay.ended().await, Some(0));
    assert_eq!(session.rest().await, b"");
}

#[tokio::test]
async fn check_prints_each_result_and_what_fixes_it() {
    let trust = Trust::new();
    let ca_file = trust.ca_file();
    let good = Server::start("imap", trust.server("localhost"), &["good"]).await;
    let refusing = Server::start("smtp", trust.server("localhost"), &[]).await;
    let throttled = Answers { refusal: "432 4.3.2 limit", ..protocol_of("smtp") };
    let throttled = Server::start_with("smtp", false, trust.server("localhost"), &[], throttled).await;
    let folder = Folder::new();
    let (ca, path) = (ca_file.to_str().unwrap().to_owned(), folder.path().to_owned());
    let check = async |more: &'static [&'static str]| {
        let (ca, path) = (ca.clone(), path.clone());
        let run = move || Relay::run(&path, &[&["check", "--ca-file", &ca], more].concat());
        let ended = tokio::task::spawn_blocking(run).await.unwrap();
        (ended.status.code(), String::from_utf8(ended.stdout).unwrap(), String::from_utf8(ended.stderr).unwrap())
    };
    folder.publish("mailbox", &secret(USER, "good", &[&good]));
    assert_eq!(check(&[]).await.1, format!("IMAP {USER}  accepted by localhost\n"));
    folder.publish("mailbox", &secret(USER, "good", &[&good, &refusing]));
    let (code, text, _) = check(&[]).await;
    assert_eq!(code, Some(1));
    let fix = "Set-CASMailbox -Identity billing@shop.example -SmtpClientAuthenticationDisabled $false";
    assert!(text.contains("refused: 535 5.7.139") && text.contains(fix), "{text}");
    assert_eq!(check(&["--protocol", "IMAP"]).await.0, Some(0));
    folder.publish("mailbox", &secret(USER, "good", &[&good, &throttled]));
    assert_eq!(check(&[]).await.0, Some(3));
    let (code, _, error) = check(&["--mailbox", "other@shop.example"]).await;
    assert_eq!(code, Some(2));
    assert!(error.contains("no mounted Secret has this mailbox"), "{error}");
}

#[tokio::test]
async fn ready_reports_whether_the_relay_listens() {
    let folder = Folder::new();
    folder.publish("mailbox", &secret(USER, "t", &[]));
    let relay = Relay::start(folder.path(), &["--imap", "off", "--pop3", "off"]);
    let ready = |port: u16| {
        let address = format!("127.0.0.1:{port}");
        Relay::run(folder.path(), &["ready", "--smtp", &address, "--imap", "off", "--pop3", "off"]).status.code()
    };
    let port = relay.port("SMTP");
    assert_eq!(ready(port), Some(0));
    // A bound port without a listener refuses connections.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    assert_eq!(ready(closed.local_addr().unwrap().port()), Some(1));
}

#[tokio::test]
async fn metrics_count_connections_and_show_the_tokens_end() {
    let trust = Trust::new();
    let server = Server::start("smtp", trust.server("localhost"), &["s3cret-token"]).await;
    let folder = Folder::new();
    let mut keys = secret(USER, "s3cret-token", &[&server]);
    keys.insert("expires_at_unix".to_owned(), "4000000000".to_owned());
    folder.publish("mailbox", &keys);
    let ca_file = trust.ca_file();
    let relay = Relay::start(folder.path(), &["--ca-file", ca_file.to_str().unwrap(), "--admin", "127.0.0.1:0"]);
    let mut client = Client::connect(relay.port("SMTP")).await;
    client.line().await;
    let metrics = relay.admin("/metrics");
    for line in [
        "mailtoken_relay_connections{protocol=\"SMTP\",state=\"login\"} 1".to_owned(),
        format!("mailtoken_relay_token_expiration_timestamp_seconds{{mailbox=\"{USER}\"}} 4000000000"),
    ] {
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    client.ask(&format!("AUTH PLAIN {}", plain(USER, "pa55word")), "235").await;
    let metrics = relay.admin("/metrics");
    for line in [
        "mailtoken_relay_connections{protocol=\"SMTP\",state=\"session\"} 1",
        "mailtoken_relay_login_duration_seconds_count{protocol=\"SMTP\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert!(relay.admin("/livez").starts_with("HTTP/1.0 200"));
    assert!(relay.admin("/other").starts_with("HTTP/1.0 404"));
    for text in [relay.log(), metrics] {
        assert!(!text.contains("s3cret-token") && !text.contains("pa55word"), "{text}");
    }
}
