//! TLS of clients, other protocols on a port of the relay, and bytes after STARTTLS.

use super::support::{Client, Folder, Relay, Server, Trust, plain, secret};

const USER: &str = "billing@shop.example";

async fn relay(trust: &Trust, more: &[&str]) -> (Server, Folder, Relay) {
    let server = Server::start("smtp", trust.server("localhost"), &["good"]).await;
    let folder = Folder::new();
    folder.publish("mailbox", &secret(USER, "good", &[&server]));
    let (ca_file, (cert, key)) = (trust.ca_file(), trust.files("relay.test"));
    let own = [
        "--ca-file",
        ca_file.to_str().unwrap(),
        "--tls-cert",
        cert.to_str().unwrap(),
        "--tls-key",
        key.to_str().unwrap(),
    ];
    let relay = Relay::start(folder.path(), &[&own, more].concat());
    (server, folder, relay)
}

#[tokio::test]
async fn a_client_may_use_starttls_and_tls_from_the_first_byte() {
    let trust = Trust::new();
    let (_server, _folder, relay) = relay(&trust, &["--smtps", "127.0.0.1:0"]).await;
    let mut client = Client::connect(relay.port("SMTP")).await;
    client.line().await;
    assert!(client.ehlo().await.contains(&"250-STARTTLS".to_owned()));
    client.ask("STARTTLS", "220 2.0.0").await;
    let mut client = client.start_tls(trust.client(None)).await.unwrap();
    assert!(!client.ehlo().await.contains(&"250-STARTTLS".to_owned()));
    client.ask(&format!("AUTH PLAIN {}", plain(USER, "x")), "235").await;
    client.ask("QUIT", "221").await;
    let mut client = Client::connect_tls(relay.port("SMTP+TLS"), trust.client(None)).await.unwrap();
    assert!(client.line().await.starts_with("220"));
    client.ask(&format!("AUTH PLAIN {}", plain(USER, "x")), "235").await;
    for (protocol, command, answer) in [("IMAP", "a STARTTLS", "a OK"), ("POP3", "STLS", "+OK")] {
        let mut client = Client::connect(relay.port(protocol)).await;
        client.line().await;
        client.ask(command, answer).await;
        let mut client = client.start_tls(trust.client(None)).await.unwrap();
        client
            .ask(if protocol == "IMAP" { "b NOOP" } else { "NOOP" }, if protocol == "IMAP" { "b OK" } else { "+OK" })
            .await;
    }
}

#[tokio::test]
async fn a_client_certificate_is_needed_where_the_flag_says_so() {
    let trust = Trust::new();
    let ca_file = trust.ca_file();
    let (server, _folder, relay) =
        relay(&trust, &["--smtps", "127.0.0.1:0", "--tls-client-ca", ca_file.to_str().unwrap()]).await;
    // The relay accepts no password without TLS, even on loopback.
    let mut client = Client::connect(relay.port("SMTP")).await;
    client.line().await;
    assert!(!client.ehlo().await.iter().any(|line| line.contains("AUTH")));
    client.ask(&format!("AUTH PLAIN {}", plain(USER, "x")), "530 5.7.0").await;
    let mut client = Client::connect(relay.port("IMAP")).await;
    assert!(client.line().await.contains("LOGINDISABLED"));
    // In TLS 1.3 the client learns of the refusal after its handshake.
    if let Ok(mut client) = Client::connect_tls(relay.port("SMTP+TLS"), trust.client(None)).await {
        assert_eq!(client.try_line().await, None);
    }
    let mut client = Client::connect_tls(relay.port("SMTP+TLS"), trust.client(Some("program"))).await.unwrap();
    client.line().await;
    client.ask(&format!("AUTH PLAIN {}", plain(USER, "x")), "235").await;
    assert_eq!(server.log().iter().filter(|line| line.starts_with("token")).count(), 1);
}

#[tokio::test]
async fn a_new_certificate_is_used_when_it_matches_its_key() {
    let trust = Trust::new();
    let (_server, _folder, relay) = relay(&trust, &["--smtps", "127.0.0.1:0"]).await;
    let (other, (cert, _)) = (Trust::new(), trust.files("relay.test"));
    let works = async |trust: &Trust| Client::connect_tls(relay.port("SMTP+TLS"), trust.client(None)).await.is_ok();
    assert!(works(&trust).await);
    // Replaces the certificate before its key.
    let (new_cert, new_key) = other.issue("relay.test");
    std::fs::write(&cert, &new_cert).unwrap();
    assert!(works(&trust).await, "the certificate before stays in use");
    std::fs::write(cert.with_extension("key"), &new_key).unwrap();
    assert!(works(&other).await);
    assert!(!works(&trust).await);
}

#[tokio::test]
async fn bytes_behind_starttls_close_the_connection() {
    let trust = Trust::new();
    let (server, _folder, relay) = relay(&trust, &[]).await;
    for (protocol, command) in [("SMTP", "STARTTLS"), ("IMAP", "a STARTTLS"), ("POP3", "STLS")] {
        let mut client = Client::connect(relay.port(protocol)).await;
        client.line().await;
        client.send(&format!("{command}\r\nNOOP injected")).await;
        let rest = String::from_utf8(client.rest().await).unwrap();
        assert!(rest.lines().count() == 1 && !rest.contains("injected"), "{rest}");
    }
    assert_eq!(relay.line("connection ended before login").await["reason"], "bytes_after_starttls");
    assert!(server.log().is_empty());
}

#[tokio::test]
async fn other_protocols_are_closed_with_an_explanation() {
    let trust = Trust::new();
    let (_server, _folder, relay) = relay(&trust, &["--admin", "127.0.0.1:0"]).await;
    for protocol in ["SMTP", "IMAP", "POP3"] {
        for (bytes, reason) in [
            (&b"\x16\x03\x01\x02\x00\x01"[..], "tls_on_plain_port"),
            (b"GET / HTTP/1.1\r\n", "http"),
            (b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n", "proxy_header"),
            (b"\r\n\r\n\0\r\nQUIT\n", "proxy_header"),
        ] {
            let mut client = Client::connect(relay.port(protocol)).await;
            client.line().await;
            client.send_bytes(bytes).await;
            client.rest().await;
            let line = relay.line_with(&[("protocol", protocol), ("reason", reason)]).await;
            assert!(line["why"].as_str().is_some_and(|why| why.contains("the client")), "{line}");
        }
    }
    assert!(relay.admin("/metrics").contains("mailtoken_relay_rejected_total{reason=\"http\"} 3"));
}
