//! The probe: whether mail servers accept the token, as credentials, Events and metrics report it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Secret;
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{
    hostile::{Authority, Validity},
    hostile_mail::{Act, HostileMail, script},
    namespace::find,
    *,
};
use serde_json::json;

const OPENING: &str = "S: 220 mail\nC: EHLO [\nS: 250-mail\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go on\nTLS\n\
                       C: EHLO [\nS: 250-mail\nS: 250 AUTH XOAUTH2\nC: AUTH XOAUTH2\nS: 334 \nC: \n";

/// Returns the script of a submission server that sends this answer to the token, and then ends the session.
fn submission(answer: &str) -> Vec<Act> {
    script(&format!("{OPENING}S: {answer}\nC: QUIT\nS: 221 bye"))
}

/// Returns the script of a submission server that refuses the token with this answer.
fn refusing(answer: &str) -> Vec<Act> {
    script(&format!("{OPENING}S: {answer}"))
}

/// A broker, a provider, and the provider's submission server.
struct Mail {
    fixture: Fixture,
    server: HostileMail,
}

impl Mail {
    async fn new(script: Vec<Act>) -> Self {
        Self::with(script, |settings| settings).await
    }

    async fn with(script: Vec<Act>, change: impl FnOnce(broker::Settings) -> broker::Settings) -> Self {
        let ns = Cluster::shared().namespace().await;
        let (idp, authority) = (Idp::start(), Authority::new());
        let tls = authority.issue(&["localhost"], Validity::Present);
        let server = HostileMail::start("127.0.0.1", tls, script).await;
        ns.provider(&idp).await;
        let bundle = idp.ca() + &String::from_utf8(authority.bundle()).unwrap();
        ns.apply(ca_bundle("idp-ca", &idp).set("data", json!({"ca.crt": bundle}))).await;
        let smtp = json!({"host": "localhost", "port": server.port(), "security": "STARTTLS"});
        ns.apply(provider(&idp).set("spec.servers", json!({"smtp": smtp}))).await;
        let broker = change(Broker::settings(&ns)).start().await;
        Self { fixture: Fixture { ns, idp, broker }, server }
    }

    async fn reason(&self, name: &str, reason: &str) -> MailCredential {
        self.fixture.ns.condition::<MailCredential>(name, "MailboxAuthorized", reason).await;
        self.fixture.ns.get(name).await
    }
}

fn probed(name: &str) -> Manifest {
    credential(name).set("spec.probe", json!({}))
}

#[tokio::test]
async fn a_mailbox_that_accepts_the_token_is_reported_everywhere_and_not_asked_again() {
    let mut mail = Mail::new(submission("235 2.7.0 welcome")).await;
    mail.fixture.ns.apply(probed("billing")).await;
    let object = mail.reason("billing", "LoginSucceeded").await;
    let reported = find(&object, "MailboxAuthorized").unwrap();
    assert_eq!(reported.status, "True");
    assert_eq!(reported.message, format!("SMTP at localhost:{} accepts the token", mail.server.port()));
    let probe = object.status.unwrap().probe.unwrap();
    let [result] = &probe.results[..] else { panic!("{probe:?}") };
    assert_eq!((result.outcome.as_str(), result.reason.as_str(), &result.code), ("Accepted", "LoginSucceeded", &None));
    let hours = probe.next_time.0.duration_since(probe.last_time.0).as_secs() as f64 / 3600.0;
    assert!((5.4..=6.6).contains(&hours), "{hours}");

    let ns = &mail.fixture.ns;
    let events = ns.event_reasons_include("billing", &["Normal LoginSucceeded"]).await;
    assert_eq!(events, BTreeSet::from(["Normal LoginSucceeded".to_owned()]));
    let labels = format!(r#"namespace="{}",name="billing""#, ns.name);
    until("the metric says so", async || {
        match mail.fixture.broker.metric("mailtoken_mailbox_authorized", &labels).await {
            Some(1.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let logins = r#"protocol="SMTP",outcome="Accepted",reason="LoginSucceeded""#;
    assert_eq!(mail.fixture.broker.metric("mailtoken_probes_total", logins).await, Some(1.0));
    let row = ns.kubectl(["get", "mailcredential", "billing"]);
    let words: Vec<_> = row.lines().map(|line| line.split_whitespace().nth(3).unwrap_or_default()).collect();
    assert_eq!(words, ["LOGIN", "True"], "{row}");

    // Neither a renewal nor a restart starts another probe.
    let before = text(&ns.get("billing").await, "access_token");
    mail.fixture.broker.kill();
    mail.fixture.broker.again().await;
    mail.fixture.ns.annotate::<MailCredential>("billing", "mailtoken.dev/unrelated", "x").await;
    mail.fixture.mark("marker").await;
    assert_eq!(text(&mail.fixture.ns.get("billing").await, "access_token"), before);
    assert_eq!(mail.server.connections(), 1);
    // A user who requests a new token also requests a new probe.
    mail.fixture.ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    mail.server.ended(2).await;
}

#[tokio::test]
async fn dozens_of_mailboxes_are_logged_in_to_once_each_and_not_again_after_a_restart_or_a_renewal() {
    let mut mail = Mail::new(submission("235 2.7.0 welcome")).await;
    let names: Vec<_> = (0..36).map(|number| format!("mailbox-{number}")).collect();
    for name in &names {
        mail.fixture.ns.apply(probed(name)).await;
    }
    for name in &names {
        mail.reason(name, "LoginSucceeded").await;
    }
    assert_eq!(mail.server.connections(), names.len());

    mail.fixture.broker.kill();
    mail.fixture.broker.again().await;
    // The broker creates each Secret again, so it has reconciled each credential and obtained a new token.
    for name in &names {
        mail.fixture.ns.delete::<Secret>(name).await;
    }
    for name in &names {
        mail.fixture.ns.until::<Secret>(name, "the Secret exists again", |_| true).await;
    }
    // This login waits in the queue behind all logins that are due earlier.
    mail.fixture.ns.annotate::<MailCredential>("mailbox-0", "mailtoken.dev/reissue", "1").await;
    mail.server.ended(names.len() + 1).await;
    assert_eq!(mail.server.connections(), names.len() + 1);
    for name in &names {
        mail.reason(name, "LoginSucceeded").await;
    }
}

#[tokio::test]
async fn a_refusal_names_the_command_and_a_new_token_is_tried_immediately() {
    let mail = Mail::new(refusing(
        "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. canary",
    ))
    .await;
    mail.fixture.issued(probed("billing")).await;
    let object = mail.reason("billing", "SMTPAuthDisabled").await;
    let reported = find(&object, "MailboxAuthorized").unwrap();
    assert_eq!(reported.status, "False");
    let command = "`Set-CASMailbox -Identity 'billing@example.org' -SmtpClientAuthenticationDisabled $false`";
    assert!(reported.message.contains(command) && reported.message.contains("535 5.7.139"), "{}", reported.message);
    // The Secret has a token, so pods may start.
    assert_eq!(reason(&object, "Ready"), "TokenValid");
    for absent in ["Stalled", "Reconciling"] {
        assert!(find(&object, absent).is_none(), "{absent}");
    }
    let probe = object.status.as_ref().unwrap().probe.clone().unwrap();
    assert_eq!(probe.next_time.0.duration_since(probe.last_time.0).as_secs(), 300);
    assert_eq!(probe.results[0].code.as_deref(), Some("535 5.7.139"));
    let events = mail.fixture.ns.event_reasons_include("billing", &["Warning SMTPAuthDisabled"]).await;
    assert_eq!(events.len(), 1, "{events:?}");

    mail.server.change(submission("235 2.7.0 welcome"));
    mail.fixture.ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    let object = mail.reason("billing", "LoginSucceeded").await;
    assert_eq!(find(&object, "MailboxAuthorized").unwrap().status, "True");
    mail.fixture.ns.event_reasons_include("billing", &["Warning SMTPAuthDisabled", "Normal LoginSucceeded"]).await;
    let reported = serde_json::to_string(&object).unwrap() + &mail.fixture.broker.log();
    assert!(!reported.contains("canary"), "{reported}");
    let secret = mail.fixture.ns.secret("billing").await;
    assert!(!reported.contains(&secret["access_token"]) && !reported.contains(&secret["xoauth2"]));
}

#[tokio::test]
async fn a_mail_server_that_hangs_delays_no_token_and_is_reported_after_two_misses() {
    // The server accepts the connection, and sends nothing.
    let mail = Mail::new(vec![]).await;
    for name in ["a", "b", "c", "d"] {
        mail.fixture.ns.apply(probed(name)).await;
    }
    for name in ["a", "b", "c", "d"] {
        mail.fixture.ready(name).await;
    }
    let two = |object: &MailCredential| {
        object.status.as_ref().and_then(|status| status.probe.as_ref()).is_some_and(|probe| !probe.results.is_empty())
    };
    mail.fixture.ns.until::<MailCredential>("a", "the miss is shown", two).await;
    let object: MailCredential = mail.fixture.ns.get("a").await;
    let reported = find(&object, "MailboxAuthorized").unwrap();
    assert_eq!((reported.status.as_str(), reported.reason.as_str()), ("Unknown", "ProbePending"));
    assert!(reported.message.contains("did not finish the login"), "{}", reported.message);
    // While the logins hang, the broker obtains a new token and finishes a deletion.
    mail.fixture.mark("marker").await;
    mail.fixture.ns.delete::<MailCredential>("b").await;
    let events = mail.fixture.ns.event_reasons("a").await;
    assert!(events.is_empty(), "{events:?}");
    fault_log::tried("F33", 4, "nothing");
}

#[tokio::test]
async fn a_server_in_a_private_range_is_not_connected_to() {
    let mail = Mail::with(submission("235 2.7.0 welcome"), |settings| settings.flag("--deny-cidr=10.0.0.0/8")).await;
    let smtp = json!({"smtp": {"host": "10.1.2.3", "port": 587, "security": "STARTTLS"}});
    let manifest = provider(&mail.fixture.idp).set("spec.servers", smtp);
    mail.fixture.ns.apply(manifest).await;
    mail.fixture.ns.apply(probed("billing")).await;
    let object = mail.reason("billing", "EgressDenied").await;
    let reported = find(&object, "MailboxAuthorized").unwrap();
    assert_eq!(reported.status, "False");
    assert!(reported.message.contains("SMTP at 10.1.2.3:587"), "{}", reported.message);
    assert_eq!(mail.server.connections(), 0);
}

#[tokio::test]
async fn a_change_of_the_spec_or_the_provider_is_probed_and_a_suspended_credential_is_not() {
    let mail = Mail::new(submission("235 2.7.0 welcome")).await;
    mail.fixture.ns.apply(probed("billing")).await;
    mail.reason("billing", "LoginSucceeded").await;
    mail.fixture.ns.apply(probed("billing").set("spec.secret", json!({"labels": {"team": "billing"}}))).await;
    mail.reason("billing", "LoginSucceeded").await;
    mail.server.ended(2).await;
    mail.fixture.ns.apply(probed("billing").set("spec.suspend", true)).await;
    mail.fixture.ns.condition::<MailCredential>("billing", "Renewed", "Suspended").await;
    let smtp = json!({"host": "localhost", "port": mail.server.port(), "security": "STARTTLS"});
    let manifest = provider(&mail.fixture.idp).set("spec.servers", json!({"smtp": smtp, "imap": smtp}));
    mail.fixture.ns.apply(manifest).await;
    mail.fixture.mark("marker").await;
    assert_eq!(mail.server.connections(), 2);
    mail.fixture.ns.apply(probed("billing")).await;
    mail.reason("billing", "LoginSucceeded").await;
    mail.server.ended(3).await;
}

#[tokio::test]
async fn without_a_probe_in_the_spec_or_with_the_flag_there_is_no_condition_and_no_login() {
    let mut mail = Mail::new(submission("235 2.7.0 welcome")).await;
    mail.fixture.issued(credential("quiet")).await;
    mail.fixture.ns.apply(probed("billing")).await;
    mail.reason("billing", "LoginSucceeded").await;
    let quiet: MailCredential = mail.fixture.ns.get("quiet").await;
    assert!(find(&quiet, "MailboxAuthorized").is_none());

    mail.fixture.broker.kill();
    mail.fixture.broker.set("MTB_PROBE", Some("false"));
    mail.fixture.broker.again().await;
    let gone = |object: &MailCredential| {
        find(object, "MailboxAuthorized").is_none()
            && object.status.as_ref().is_some_and(|status| status.probe.is_none())
    };
    mail.fixture.ns.until::<MailCredential>("billing", "nothing is left of the probe", gone).await;
    until("the metric is gone", async || match mail.fixture.broker.metric("mailtoken_mailbox_authorized", "").await {
        None => Ok(()),
        Some(value) => Err(value.to_string()),
    })
    .await;
    assert_eq!(mail.server.connections(), 1);
}

#[tokio::test]
async fn the_api_server_refuses_a_probe_that_cannot_be() {
    let ns = Cluster::shared().namespace().await;
    for (probe, protocols, part) in [
        (json!({"protocols": ["IMAP"]}), json!(["SMTP"]), "must be among spec.protocols"),
        (json!({}), json!(["POP3"]), "POP3 must be named there"),
        (json!({"interval": "14m"}), json!(["SMTP"]), "must be at least 15m"),
        (json!({"interval": "169h"}), json!(["SMTP"]), "must be at least 15m"),
        (json!({"protocols": ["SMTP", "SMTP"]}), json!(["SMTP"]), "no duplicates"),
        (json!({"protocols": []}), json!(["SMTP"]), "protocols"),
    ] {
        let manifest = credential("billing").set("spec.protocols", protocols).set("spec.probe", probe.clone());
        let refusal = ns.try_apply(manifest).await.unwrap_err().to_string();
        assert!(refusal.contains(part), "{probe}: {refusal}");
    }
    // Without `spec.protocols`, the protocol is SMTP.
    let probes = |protocol: &str| credential("short").set("spec.probe.protocols", json!([protocol]));
    let refusal = ns.try_apply(probes("IMAP")).await.unwrap_err().to_string();
    assert!(refusal.contains("must be among spec.protocols"), "{refusal}");
    ns.apply(probes("SMTP")).await;
    let manifest = credential("billing").set("spec.protocols", json!(["POP3"]));
    ns.apply(manifest.set("spec.probe", json!({"protocols": ["POP3"], "interval": "168h"}))).await;
}
