//! The login of a program at the relay, the relay's login at the mail server, and the bytes between both.

use std::collections::BTreeMap;

use super::support::{Client, Folder, Relay, Server, Trust, plain, protocol_of, secret};

const USER: &str = "billing@shop.example";

/// Starts a mail server and a relay with a Secret for that server.
async fn sidecar(protocol: &'static str) -> (Trust, Server, Folder, Relay) {
    let trust = Trust::new();
    let server = Server::start(protocol, trust.server("localhost"), &["good"]).await;
    let folder = Folder::new();
    folder.publish("mailbox", &secret(USER, "good", &[&server]));
    let relay = Relay::start(&folder.path().join("mailbox"), &["--ca-file", trust.ca_file().to_str().unwrap()]);
    (trust, server, folder, relay)
}

#[tokio::test]
async fn a_program_sends_mail_with_any_password() {
    let (_trust, server, _folder, relay) = sidecar("smtp").await;
    let mut client = Client::connect(relay.port("SMTP")).await;
    assert_eq!(client.line().await, "220 mail-token-relay ESMTP");
    assert_eq!(
        client.ehlo().await,
        ["250-mail-token-relay", "250-PIPELINING", "250-8BITMIME", "250-ENHANCEDSTATUSCODES", "250 AUTH PLAIN LOGIN"]
    );
    client.ask(&format!("AUTH PLAIN {}", plain("FROM-billing@shop.example", "any")), "235 2.7.0").await;
    client.ask("MAIL FROM:<billing@shop.example>", "250").await;
    client.ask("RCPT TO:<you@shop.example>", "250").await;
    client.ask("DATA", "354").await;
    client.ask("Hello\r\n.", "250 2.0.0 queued").await;
    client.ask("QUIT", "221").await;
    assert_eq!(client.rest().await, b"");
    let log = server.log();
    // The relay sends the Secret's user name, and the program's name in EHLO.
    let wanted =
        ["EHLO program.example", "AUTH XOAUTH2", "token billing@shop.example good", "MAIL FROM:<billing@shop.example>"];
    assert_eq!(log[..4], wanted);
    assert_eq!(log[log.len() - 3..], ["Hello", ".", "QUIT"]);
    // The relay offers the next client what the server offers.
    let mut client = Client::connect(relay.port("SMTP")).await;
    client.line().await;
    let offered = client.ehlo().await;
    assert!(
        offered.contains(&"250-SIZE 35882577".to_owned()) && offered.contains(&"250-CHUNKING".to_owned()),
        "{offered:?}"
    );
}

#[tokio::test]
async fn a_program_reads_mail_and_sees_the_servers_capabilities() {
    let (_trust, server, _folder, relay) = sidecar("imap").await;
    let mut client = Client::connect(relay.port("IMAP")).await;
    let greeting = "* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID AUTH=PLAIN AUTH=LOGIN] mail-token-relay ready";
    assert_eq!(client.line().await, greeting);
    // Bytes that the client sends before the login has ended reach the server after the login.
    client.send(&format!("a1 LOGIN {USER} \"any\"\r\na2 SELECT INBOX")).await;
    let accepted = client.line().await;
    assert_eq!(accepted, "a1 OK [CAPABILITY IMAP4rev1 AUTH=XOAUTH2 IDLE MOVE] Logged in");
    assert_eq!(client.line().await, "a2 SELECT INBOX");
    assert_eq!(server.log(), ["m1 CAPABILITY", "m2 AUTHENTICATE XOAUTH2", "token billing@shop.example good"]);
    let mut client = Client::connect(relay.port("IMAP")).await;
    assert!(client.line().await.contains(" IDLE MOVE]"));
}

#[tokio::test]
async fn a_program_fetches_mail_by_pop3() {
    let (_trust, server, _folder, relay) = sidecar("pop3").await;
    let mut client = Client::connect(relay.port("POP3")).await;
    assert_eq!(client.line().await, "+OK mail-token-relay ready");
    client.ask(&format!("USER {USER}"), "+OK").await;
    client.ask("PASS a b", "+OK Logged in").await;
    client.ask("RETR 1", "RETR 1").await;
    assert_eq!(server.log(), ["CAPA", "AUTH XOAUTH2", "token billing@shop.example good"]);
}

#[tokio::test]
async fn bytes_that_the_server_sends_ahead_reach_the_client() {
    let trust = Trust::new();
    let answers = super::support::Answers { after_login: "* 3 EXISTS\r\n", ..protocol_of("imap") };
    let server = Server::start_with("imap", false, trust.server("localhost"), &["good"], answers).await;
    let folder = Folder::new();
    folder.publish("mailbox", &secret(USER, "good", &[&server]));
    let relay = Relay::start(folder.path(), &["--ca-file", trust.ca_file().to_str().unwrap()]);
    let mut client = Client::connect(relay.port("IMAP")).await;
    client.line().await;
    client.ask(&format!("a LOGIN {USER} x"), "a OK").await;
    assert_eq!(client.line().await, "* 3 EXISTS");
}

#[tokio::test]
async fn a_server_with_starttls_gets_the_token_only_after_tls() {
    for protocol in ["smtp", "imap", "pop3"] {
        let trust = Trust::new();
        let server =
            Server::start_with(protocol, true, trust.server("localhost"), &["good"], protocol_of(protocol)).await;
        let folder = Folder::new();
        folder.publish("mailbox", &secret(USER, "good", &[&server]));
        let relay = Relay::start(folder.path(), &["--ca-file", trust.ca_file().to_str().unwrap()]);
        let mut client = Client::connect(relay.port(&protocol.to_uppercase())).await;
        client.line().await;
        match protocol {
            "smtp" => client.ask(&format!("AUTH PLAIN {}", plain(USER, "x")), "235").await,
            "imap" => client.ask(&format!("a AUTHENTICATE PLAIN {}", plain(USER, "x")), "a OK").await,
            _ => client.ask(&format!("AUTH PLAIN {}", plain(USER, "x")), "+OK").await,
        };
        let log = server.log();
        let tls = log.iter().position(|line| line.contains("STARTTLS") || line == "STLS").unwrap();
        assert!(tls < log.iter().position(|line| line.starts_with("token ")).unwrap(), "{log:?}");
    }
}

#[tokio::test]
async fn several_mailboxes_announce_what_all_their_servers_offer() {
    let trust = Trust::new();
    let small = super::support::Answers { offers: vec!["AUTH XOAUTH2", "SIZE 100"], ..protocol_of("smtp") };
    let one = Server::start("smtp", trust.server("localhost"), &["one"]).await;
    let other = Server::start_with("smtp", false, trust.server("localhost"), &["other"], small).await;
    let folder = Folder::new();
    folder.publish("one", &secret("one@shop.example", "one", &[&one]));
    folder.publish("other", &secret("other@shop.example", "other", &[&other]));
    let relay = Relay::start(folder.path(), &["--ca-file", trust.ca_file().to_str().unwrap()]);
    for (user, learned) in [("one@shop.example", false), ("other@shop.example", true)] {
        let mut client = Client::connect(relay.port("SMTP")).await;
        client.line().await;
        client.ask(&format!("AUTH PLAIN {}", plain(user, "")), "235").await;
        let mut client = Client::connect(relay.port("SMTP")).await;
        client.line().await;
        let offered = client.ehlo().await;
        assert_eq!(offered.contains(&"250-SIZE 100".to_owned()), learned, "{offered:?}");
        assert!(!offered.iter().any(|line| line.contains("CHUNKING")));
    }
}

#[tokio::test]
async fn a_refused_token_is_tried_again_if_the_mount_has_a_newer_one() {
    let trust = Trust::new();
    let server = Server::start("smtp", trust.server("localhost"), &["newer"]).await;
    let folder = std::sync::Arc::new(Folder::new());
    folder.publish("mailbox", &secret(USER, "older", &[&server]));
    let relay = Relay::start(folder.path(), &["--ca-file", trust.ca_file().to_str().unwrap()]);
    let newer: BTreeMap<_, _> = secret(USER, "newer", &[&server]);
    let shared = folder.clone();
    server.on_refusal(move || shared.publish("mailbox", &newer));
    let mut client = Client::connect(relay.port("SMTP")).await;
    client.line().await;
    client.ask(&format!("AUTH PLAIN {}", plain(USER, "x")), "235").await;
    let tokens: Vec<_> = server.log().into_iter().filter(|line| line.starts_with("token")).collect();
    assert_eq!(tokens, [format!("token {USER} older"), format!("token {USER} newer")]);
}

#[tokio::test]
async fn a_program_without_auth_is_the_mailbox_of_the_flag() {
    let trust = Trust::new();
    let server = Server::start("smtp", trust.server("localhost"), &["good"]).await;
    let folder = Folder::new();
    folder.publish("mailbox", &secret(USER, "good", &[&server]));
    let ca_file = trust.ca_file();
    let relay = Relay::start(folder.path(), &["--ca-file", ca_file.to_str().unwrap(), "--without-auth", USER]);
    let mut client = Client::connect(relay.port("SMTP")).await;
    client.line().await;
    client.ask("HELO scanner", "250").await;
    client.ask("MAIL FROM:<scanner@shop.example>", "250 ok").await;
    client.ask("QUIT", "221").await;
    let log = server.log();
    assert_eq!(log[log.len() - 3..], ["token billing@shop.example good", "MAIL FROM:<scanner@shop.example>", "QUIT"]);
}
