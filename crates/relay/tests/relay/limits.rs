//! Limits: connections, sessions of a mailbox, time and input before login.

use super::support::{Client, Folder, Relay, Server, Trust, plain, secret};

const USER: &str = "billing@shop.example";

async fn relay(more: &[&str]) -> (Server, Folder, Relay) {
    let trust = Trust::new();
    let server = Server::start("smtp", trust.server("localhost"), &["good"]).await;
    let folder = Folder::new();
    folder.publish("mailbox", &secret(USER, "good", &[&server]));
    let ca_file = trust.ca_file();
    let relay = Relay::start(folder.path(), &[&["--ca-file", ca_file.to_str().unwrap()], more].concat());
    (server, folder, relay)
}

#[tokio::test]
async fn half_of_the_connections_may_wait_for_a_login() {
    let (_server, _folder, relay) = relay(&["--max-connections", "2"]).await;
    let mut client = Client::connect(relay.port("SMTP")).await;
    client.line().await;
    for (protocol, answer) in [("SMTP", "421 4.3.2"), ("IMAP", "* BYE"), ("POP3", "-ERR [SYS/TEMP]")] {
        let mut refused = Client::connect(relay.port(protocol)).await;
        assert!(refused.line().await.starts_with(answer));
        assert_eq!(refused.rest().await, b"");
    }
    // A client that has logged in frees the permit for a client before login.
    client.ask(&format!("AUTH PLAIN {}", plain(USER, "x")), "235").await;
    let mut second = Client::connect(relay.port("SMTP")).await;
    assert!(second.line().await.starts_with("220"));
}

#[tokio::test]
async fn the_limit_of_open_files_is_raised_for_the_connections() {
    let folder = Folder::new();
    folder.publish("mailbox", &secret(USER, "good", &[]));
    let relay = Relay::start_with_open_files("40:4096", folder.path(), &["--max-connections", "128"]);
    let mut clients = vec![];
    for _ in 0..64 {
        let mut client = Client::connect(relay.port("SMTP")).await;
        assert!(client.line().await.starts_with("220"));
        clients.push(client);
    }
    let advice = "raise the container's limit (ulimit -n), or lower --max-connections";
    assert!(!relay.log().contains(advice));
    let few = Relay::start_with_open_files("40:200", folder.path(), &["--max-connections", "128"]);
    assert!(few.log().contains(&format!("the hard limit allows about 34 connections: {advice}")), "{}", few.log());
}

#[tokio::test]
async fn an_smtp_session_waits_for_its_turn_at_the_mailbox() {
    let (server, _folder, relay) = relay(&["--max-smtp-per-mailbox", "1"]).await;
    let mut first = Client::connect(relay.port("SMTP")).await;
    first.line().await;
    first.ask(&format!("AUTH PLAIN {}", plain(USER, "x")), "235").await;
    let mut second = Client::connect(relay.port("SMTP")).await;
    second.line().await;
    second.send(&format!("AUTH PLAIN {}", plain(USER, "x"))).await;
    first.ask("NOOP", "250").await;
    assert_eq!(server.log().iter().filter(|line| line.starts_with("token")).count(), 1);
    first.ask("QUIT", "221").await;
    assert_eq!(first.rest().await, b"");
    drop(first);
    assert!(second.line().await.starts_with("235"));
}

#[tokio::test]
async fn a_client_that_does_not_log_in_is_cut_off() {
    let (_server, _folder, relay) = relay(&["--login-timeout", "100ms"]).await;
    for (protocol, answer) in [("SMTP", "421 4.4.2"), ("IMAP", "* BYE"), ("POP3", "-ERR")] {
        let mut client = Client::connect(relay.port(protocol)).await;
        client.line().await;
        assert!(client.line().await.starts_with(answer));
        assert_eq!(client.rest().await, b"");
    }
}

#[tokio::test]
async fn a_client_that_sends_too_much_is_cut_off() {
    let (server, _folder, relay) = relay(&[]).await;
    for (protocol, line, answer) in [("SMTP", "NOOP", "421"), ("IMAP", "a NOOP", "* BYE"), ("POP3", "NOOP", "-ERR")] {
        let mut client = Client::connect(relay.port(protocol)).await;
        client.line().await;
        client.send(&[line; 101].join("\r\n")).await;
        for _ in 0..100 {
            client.line().await;
        }
        assert!(client.line().await.starts_with(answer), "{protocol}");
        assert_eq!(client.try_line().await, None);
    }
    assert!(server.log().is_empty());
}
