//! Local logins: `--logins`.

use std::collections::BTreeMap;

use super::support::{Client, Folder, Relay, Server, Trust, plain, secret};

const USER: &str = "billing@shop.example";

fn basic_auth(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn only_local_logins_are_accepted_where_they_are_given() {
    let trust = Trust::new();
    let server = Server::start("smtp", trust.server("localhost"), &["good"]).await;
    let (mailboxes, logins) = (Folder::new(), Folder::new());
    mailboxes.publish("billing", &secret(USER, "good", &[&server]));
    logins.publish("app", &basic_auth(&[("username", "app"), ("password", "s3cret"), ("mailbox", USER)]));
    let (ca_file, folder) = (trust.ca_file(), logins.path().to_owned());
    let arguments =
        ["--ca-file", ca_file.to_str().unwrap(), "--logins", folder.to_str().unwrap(), "--admin", "127.0.0.1:0"];
    let relay = Relay::start(mailboxes.path(), &arguments);
    for (user, password, answer) in [
        ("app", "s3cret", "235"),
        ("app", "guess", "535 5.7.8"),
        ("app", "", "535 5.7.8"),
        (USER, "s3cret", "535 5.7.8"),
    ] {
        let mut client = Client::connect(relay.port("SMTP")).await;
        client.line().await;
        client.ask(&format!("AUTH PLAIN {}", plain(user, password)), answer).await;
    }
    assert!(server.log().contains(&format!("token {USER} good")));
    logins.publish("app", &basic_auth(&[("username", "app"), ("password", "changed"), ("mailbox", USER)]));
    let mut client = Client::connect(relay.port("SMTP")).await;
    client.line().await;
    client.ask(&format!("AUTH PLAIN {}", plain("app", "changed")), "235").await;
    let metrics = relay.admin("/metrics");
    for (outcome, mailbox, count) in [("accepted", USER, 2), ("bad_password", "", 2), ("unknown_user", "", 1)] {
        let line = format!(
            "mailtoken_relay_logins_total{{protocol=\"SMTP\",mailbox=\"{mailbox}\",outcome=\"{outcome}\"}} {count}"
        );
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    for text in [relay.log(), metrics] {
        assert!(!["s3cret", "guess", "changed", "good"].iter().any(|word| text.contains(word)), "{text}");
    }
}
