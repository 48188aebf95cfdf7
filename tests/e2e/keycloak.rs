//! End-to-end tests with the objects of the demo: the built broker, Keycloak, and logins at Dovecot and Postfix that
//! use only the content of the Secret.

use std::{collections::BTreeMap, process::Command};

use mail_token_broker::api::{MailCredential, MailProvider, names, status::TokenStatus};
use mailtoken_testkit::{remedy, *};
use sha2::{Digest as _, Sha256};
use tokio::sync::RwLock;

/// Lock of the lifetime of the demo client's tokens, which is one setting for all tests of this binary. A test that
/// sets it to seconds holds the lock for writing. A test that logs in with a token holds it for reading.
pub(super) static LIFETIME: RwLock<()> = RwLock::const_new(());

/// The name of the target Secret of the demo's credential.
pub(super) const TARGET: &str = "billing-mail-token";

#[tokio::test]
async fn a_pod_logs_in_with_the_secret_and_again_with_the_renewed_one() {
    let ns = demo().await;
    let broker = Broker::start(&ns).await;

    ns.condition::<MailProvider>("keycloak", "Ready", "ProviderReady").await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    let first = ns.secret(TARGET).await;
    let reported = mail::login(&ns, "all", &first).unwrap();
    assert_eq!(
        reported.lines().map(|line| line.split(':').next().unwrap()).collect::<Vec<_>>(),
        ["smtp", "imap", "pop3"]
    );
    let mut forged = first.clone();
    forged.insert("xoauth2".to_owned(), forged["xoauth2"].replacen(|letter| letter != 'A', "A", 1));
    assert!(mail::login(&ns, "all", &forged).unwrap_err().contains("refused"));

    // New tokens are now valid for 10 seconds: the test requests the first one, and the broker renews it.
    let alone = LIFETIME.write().await;
    let lifetime = |seconds| realm::token_lifetime(&ns.cluster, &ns.cluster.env("KEYCLOAK_CLIENT_ID"), seconds);
    lifetime(10);
    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    let short = other_token(&ns, &fingerprint(&first)).await;
    // Keycloak and the broker round down to seconds, each at its own time.
    let lifetime_of = |token: &TokenStatus| token.expires_at.0.as_second() - token.issued_at.0.as_second();
    assert!((1..=10).contains(&lifetime_of(&short)), "{short:?}");
    let issued = ns.secret(TARGET).await;
    let renewed = other_token(&ns, &short.fingerprint).await;
    lifetime(300);
    drop(alone);
    assert!(renewed.issued_at.0 < short.expires_at.0, "before the end of the other: {renewed:?} {short:?}");
    // A login takes several seconds, so it needs a token with a long lifetime.
    let long = |token: &TokenStatus| lifetime_of(token) > 10;
    token_that(&ns, "its token lives longer again", long).await;
    mail::login(&ns, "all", &ns.secret(TARGET).await).unwrap();
    until("the mail server refuses the token that was replaced", async || match mail::login(&ns, "all", &issued) {
        Ok(reported) => Err(reported),
        Err(_) => Ok(()),
    })
    .await;
    let seen = [&first, &issued].map(|secret| secret["access_token"].clone());
    leaks::assert_no_secret_shown(&ns, &broker, seen.to_vec()).await;
}

#[tokio::test]
async fn real_mail_servers_accept_the_token_and_refuse_it_for_another_mailbox() {
    let _usual = LIFETIME.read().await;
    let ns = demo().await;
    let broker = Broker::start(&ns).await;
    let all = serde_json::json!({"spec": {"probe": {"protocols": ["SMTP", "IMAP", "POP3"]}}});
    ns.patch::<MailCredential>("billing", all).await;
    let reported = ns.condition::<MailCredential>("billing", "MailboxAuthorized", "LoginSucceeded").await;
    assert_eq!(reported.status, "True");
    for protocol in ["SMTP at ", "IMAP at ", "POP3 at "] {
        assert!(reported.message.contains(protocol), "{}", reported.message);
    }

    let other = serde_json::json!({"spec": {"mailbox": {"usernames": {"imap": "somebody@example.org"}}}});
    ns.patch::<MailCredential>("billing", other).await;
    let reported = ns.condition::<MailCredential>("billing", "MailboxAuthorized", "LoginRefused").await;
    assert_eq!(reported.status, "False");
    let refused = reported.message.split(". ").next().unwrap();
    assert!(refused.starts_with("IMAP at ") && reported.message.contains("accept the token"), "{}", reported.message);
    let secret = ns.secret(TARGET).await;
    leaks::assert_no_secret_shown(&ns, &broker, vec![secret["access_token"].clone()]).await;
}

#[tokio::test]
async fn the_command_in_the_message_fixes_a_wrong_client_secret() {
    let _usual = LIFETIME.read().await;
    let ns = demo().await;
    ns.kubectl(["patch", "secret", "keycloak-client", "-p", r#"{"stringData": {"client-secret": "wrong"}}"#]);
    let _broker = Broker::start(&ns).await;

    let reported = ns.condition::<MailCredential>("billing", "Ready", "InvalidClient").await.message;
    remedy::run(&ns, &reported, &[&ns.cluster.env("KEYCLOAK_CLIENT_SECRET")]);

    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    mail::login(&ns, "all", &ns.secret(TARGET).await).unwrap();
}

#[tokio::test]
async fn the_command_in_the_message_fixes_a_secret_without_the_label() {
    let ns = demo().await;
    ns.kubectl(["label", "secret", "keycloak-client", "mailtoken.dev/source-"]);
    let _broker = Broker::start(&ns).await;

    let reported = ns.condition::<MailCredential>("billing", "Ready", "SourceNotLabeled").await.message;
    remedy::run(&ns, &reported, &[]);

    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
}

#[tokio::test]
async fn the_command_in_the_message_fixes_a_missing_ca() {
    let ns = demo().await;
    ns.kubectl(["delete", "configmap", "private-ca"]);
    let _broker = Broker::start(&ns).await;

    let reported = ns.condition::<MailProvider>("keycloak", "Ready", "SourceNotFound").await.message;
    ns.condition::<MailCredential>("billing", "Ready", "ProviderNotReady").await;
    remedy::run(&ns, &reported, &[&ns.cluster.env("CA_CERT")]);

    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
}

#[tokio::test]
async fn the_command_in_the_message_fixes_a_provider_without_a_ca() {
    let ns = demo().await;
    ns.kubectl([
        "patch",
        "mailprovider",
        "keycloak",
        "--type=json",
        "-p",
        r#"[{"op": "remove", "path": "/spec/caBundleRef"}]"#,
    ]);
    let _broker = Broker::start(&ns).await;

    let reported = ns.condition::<MailProvider>("keycloak", "Ready", "TLSFailed").await.message;
    ns.condition::<MailCredential>("billing", "Ready", "ProviderNotReady").await;
    remedy::run(&ns, &reported, &[&ns.cluster.env("CA_CERT")]);

    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
}

/// Applies the demo's objects in a namespace of the complete stack. No broker runs yet.
pub(super) async fn demo() -> Namespace {
    let ns = Cluster::complete().namespace().await;
    process::output(Command::new(process::tool("demo-apply")).arg(ns.cluster.dir()).arg(&ns.name));
    ns
}

pub(super) fn fingerprint(secret: &BTreeMap<String, String>) -> String {
    format!("sha256:{}", names::hex16(&Sha256::digest(secret["access_token"].as_bytes())))
}

/// Waits until the status shows another token than this one.
pub(super) async fn other_token(ns: &Namespace, fingerprint: &str) -> TokenStatus {
    token_that(ns, "it has another token", |token| token.fingerprint != fingerprint).await
}

/// Waits until the status shows a token that `good` accepts.
async fn token_that(ns: &Namespace, what: &str, good: impl Fn(&TokenStatus) -> bool) -> TokenStatus {
    let token = |credential: &MailCredential| credential.status.clone().and_then(|status| status.token);
    let fits = |credential: &MailCredential| token(credential).is_some_and(|token| good(&token));
    let credential = ns.until("billing", what, fits).await;
    token(&credential).unwrap()
}
