//! Rows of the table of answers in `docs/relay.md` that other files do not test for each protocol.

use std::collections::BTreeMap;

use super::support::{Client, Folder, Relay, Server, Trust, plain, secret};

const USER: &str = "billing@shop.example";

/// Each protocol, with its answer to a login that a user must fix.
const PERMANENT: [(&str, &str); 3] =
    [("SMTP", "535 5.7.8"), ("IMAP", "a NO [AUTHENTICATIONFAILED]"), ("POP3", "-ERR [AUTH]")];

/// Returns the command that logs in.
fn login(protocol: &str, user: &str, password: &str) -> String {
    match protocol {
        "IMAP" => format!("a LOGIN {user} {password}"),
        _ => format!("AUTH PLAIN {}", plain(user, password)),
    }
}

async fn connect(relay: &Relay, protocol: &str) -> Client {
    let mut client = Client::connect(relay.port(protocol)).await;
    client.line().await;
    client
}

#[tokio::test]
async fn a_wrong_name_or_password_and_a_missing_protocol_are_permanent_failures() {
    let (mailboxes, logins) = (Folder::new(), Folder::new());
    // This Secret has no servers.
    mailboxes.publish("billing", &secret(USER, "good", &[]));
    let login_keys = [("username", "app"), ("password", "s3cret"), ("mailbox", USER)];
    logins.publish("app", &BTreeMap::from(login_keys.map(|(key, value)| (key.to_owned(), value.to_owned()))));
    let relay = Relay::start(mailboxes.path(), &[]);
    let with_logins = Relay::start(mailboxes.path(), &["--logins", logins.path().to_str().unwrap()]);
    let refused = async |relay: &Relay, (protocol, answer), user, password, outcome| {
        let mut client = connect(relay, protocol).await;
        client.ask(&login(protocol, user, password), answer).await;
        relay.line_with(&[("protocol", protocol), ("outcome", outcome)]).await;
    };
    for row in PERMANENT {
        tokio::join!(
            refused(&relay, row, "other@shop.example", "x", "unknown_user"),
            refused(&relay, row, USER, "x", "protocol"),
            refused(&with_logins, row, "app", "guess", "bad_password"),
            refused(&with_logins, row, USER, "s3cret", "unknown_user"),
        );
    }
}

#[tokio::test]
async fn three_refused_logins_close_the_connection() {
    let trust = Trust::new();
    for (row, last) in PERMANENT.into_iter().zip([Some("421"), Some("* BYE"), None]) {
        let (protocol, answer) = row;
        let prefix = ["smtp", "imap", "pop3"].into_iter().find(|prefix| prefix.to_uppercase() == protocol).unwrap();
        let server = Server::start(prefix, trust.server("localhost"), &[]).await;
        let folder = Folder::new();
        folder.publish("mailbox", &secret(USER, "refused", &[&server]));
        let relay = Relay::start(folder.path(), &["--ca-file", trust.ca_file().to_str().unwrap()]);
        let mut client = connect(&relay, protocol).await;
        for _ in 0..3 {
            client.ask(&login(protocol, USER, "x"), answer).await;
        }
        if let Some(last) = last {
            assert!(client.line().await.starts_with(last), "{protocol}");
        }
        assert_eq!(client.try_line().await, None, "{protocol}");
        let line = relay.line("connection ended before login").await;
        assert!(line["why"].as_str().unwrap().contains("three logins were refused"), "{line}");
    }
}

#[tokio::test]
async fn tls_without_a_certificate_is_refused_and_the_session_continues() {
    let folder = Folder::new();
    folder.publish("mailbox", &secret(USER, "good", &[]));
    let relay = Relay::start(folder.path(), &[]);
    for (protocol, command, answer, noop, ok) in [
        ("SMTP", "STARTTLS", "502 5.5.1", "NOOP", "250"),
        ("IMAP", "a STARTTLS", "a BAD", "b NOOP", "b OK"),
        ("POP3", "STLS", "-ERR", "NOOP", "+OK"),
    ] {
        let mut client = connect(&relay, protocol).await;
        client.ask(command, answer).await;
        client.ask(noop, ok).await;
    }
}

#[tokio::test]
async fn an_smtp_login_without_a_place_at_its_mailbox_is_a_temporary_failure() {
    let trust = Trust::new();
    let server = Server::start("smtp", trust.server("localhost"), &["good"]).await;
    let folder = Folder::new();
    folder.publish("mailbox", &secret(USER, "good", &[&server]));
    let ca_file = trust.ca_file();
    let relay = Relay::start(folder.path(), &["--ca-file", ca_file.to_str().unwrap(), "--max-smtp-per-mailbox", "1"]);
    let mut first = connect(&relay, "SMTP").await;
    first.ask(&login("SMTP", USER, "x"), "235").await;
    // The relay waits 30 s for a permit before it answers.
    let mut second = connect(&relay, "SMTP").await;
    second.ask(&login("SMTP", USER, "x"), "454 4.7.0").await;
    let line = relay.line("login failed").await;
    assert_eq!(line["outcome"], "unavailable");
    assert!(line["why"].as_str().unwrap().contains("--max-smtp-per-mailbox"), "{line}");
    first.ask("NOOP", "250").await;
}
