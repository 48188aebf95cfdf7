//! Logins at Dovecot and Postfix with tokens of Keycloak, by every protocol and security.

use std::time::Duration;

use mail_token_broker::egress::EgressPolicy;
use mail_token_broker::idp::{Settings, TlsProblem};
use mail_token_broker::mail::{DialError, Limits, MailDialer, MailServer};
use mailtoken_mail::answers::Cause;
use mailtoken_mail::dialogue::{Failure, Outcome, Purpose};
use mailtoken_mail::protocol::{Protocol, Security};
use mailtoken_testkit::*;
use secrecy::SecretString;

/// The servers of a stack, with the variables of their ports.
const SERVERS: [(Protocol, Security, &str); 8] = [
    (Protocol::Smtp, Security::StartTls, "SUBMISSION_PORT"),
    (Protocol::Smtp, Security::Tls, "SUBMISSIONS_PORT"),
    (Protocol::Smtp, Security::StartTls, "DOVECOT_SUBMISSION_PORT"),
    (Protocol::Smtp, Security::Tls, "DOVECOT_SUBMISSIONS_PORT"),
    (Protocol::Imap, Security::Tls, "IMAP_PORT"),
    (Protocol::Imap, Security::StartTls, "IMAP_STARTTLS_PORT"),
    (Protocol::Pop3, Security::Tls, "POP3_PORT"),
    (Protocol::Pop3, Security::StartTls, "POP3_STARTTLS_PORT"),
];

/// A client of the stack's servers.
struct Mail {
    cluster: Cluster,
    dialer: MailDialer,
}

impl Mail {
    fn new() -> Self {
        let egress = EgressPolicy::new(vec!["127.0.0.0/8".parse().unwrap()]);
        let settings = Settings { request_timeout: PATIENCE, egress, proxy: None, no_proxy: vec![] };
        // One of these servers starts a process for each login.
        let limits = Limits { connect: PATIENCE, total: 2 * PATIENCE };
        let dialer = MailDialer::new(&settings).unwrap().with_limits(limits);
        Self { cluster: Cluster::complete(), dialer }
    }

    async fn log_in(
        &self,
        (protocol, security, port): (Protocol, Security, &str),
        user: &str,
        token: &SecretString,
    ) -> Result<Outcome, DialError> {
        let server =
            MailServer { protocol, security, host: "localhost", port: self.cluster.env(port).parse().unwrap() };
        let ca = std::fs::read(self.cluster.env("CA_CERT")).unwrap();
        self.dialer.login(&server, Some(&ca), Purpose::Probe, user, token).await
    }

    fn token(&self, account: &str) -> SecretString {
        realm::tokens(&self.cluster, account, "openid email offline_access").0.into()
    }
}

#[tokio::test]
async fn real_servers_accept_a_users_token_by_every_protocol_and_security() {
    let mail = Mail::new();
    let person = mail.cluster.env("PERSON_USER");
    let token = mail.token(&person);
    for server in SERVERS {
        let login = mail.log_in(server, &person, &token).await;
        assert!(matches!(login, Ok(Outcome::Accepted(_))), "{server:?}: {login:?}");
    }
}

#[tokio::test]
async fn real_servers_refuse_another_mailbox_and_a_string_that_is_no_token() {
    let mail = Mail::new();
    let (person, other) = (mail.cluster.env("PERSON_USER"), mail.cluster.env("OTHER_USER"));
    let token = mail.token(&person);
    for server in SERVERS {
        for (user, token) in [(&other, &token), (&person, &"garbage".into())] {
            let login = mail.log_in(server, user, token).await;
            let Ok(Outcome::Failed(Failure { cause: Cause::Refused, code })) = login else {
                panic!("{server:?} {user}: {login:?}");
            };
            let code = code.map(|code| code.to_string()).unwrap_or_default();
            let expected = match server.0 {
                Protocol::Smtp => "535 5.7.8",
                Protocol::Imap => "NO [AUTHENTICATIONFAILED]",
                Protocol::Pop3 => "-ERR [AUTH]",
            };
            assert_eq!(code, expected, "{server:?} {user}");
        }
    }
}

#[tokio::test]
async fn a_wrong_security_or_an_unknown_authority_is_reported_and_no_token_is_sent() {
    let mail = Mail::new();
    let token = SecretString::from("garbage");
    for (protocol, security, port) in SERVERS {
        if security == Security::StartTls {
            let login = mail.log_in((protocol, Security::Tls, port), "u@shop.example", &token).await;
            assert!(matches!(login, Err(DialError::Tls { kind: TlsProblem::Other, .. })), "{port}: {login:?}");
        }
        let server =
            MailServer { protocol, security, host: "localhost", port: mail.cluster.env(port).parse().unwrap() };
        let login = mail.dialer.login(&server, None, Purpose::Probe, "u@shop.example", &token).await;
        assert!(matches!(login, Err(DialError::Tls { kind: TlsProblem::UnknownIssuer, .. })), "{port}: {login:?}");
    }
    // A server that waits for the TLS handshake sends nothing, so a client without TLS waits in vain.
    let limits = Limits { connect: PATIENCE, total: Duration::from_secs(1) };
    let dialer = mail.dialer.clone().with_limits(limits);
    let port = mail.cluster.env("IMAP_PORT").parse().unwrap();
    let server = MailServer { protocol: Protocol::Imap, security: Security::StartTls, host: "localhost", port };
    let login = dialer.login(&server, None, Purpose::Probe, "u@shop.example", &token).await;
    assert!(matches!(login, Err(DialError::TimedOut { .. } | DialError::Closed { .. })), "{login:?}");
}
