//! A test kills or stops a real API server and a real etcd, while tokens are due and refresh tokens are sent.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{
    audit::AuditEvent,
    fault_log::tried,
    part::Part,
    refresh_fixture::provider as strict_provider,
    standin::{Fault, Strict},
    wait::{now, until_in},
    *,
};
use serde_json::{from_value, json};

/// Numbers of credentials: with client credentials and a token that is due during the outage, with refresh tokens, and
/// without a due token.
const DUE: usize = 8;
const DUE_BY_SEED: usize = 3;
const AT_REST: usize = 8;
/// Lifetime in seconds of the tokens that become due. The broker renews them after half of it at the latest.
const SHORT: u64 = 40;
/// Numbers of credentials: of a list with several pages, and created while the API server restarts.
const HUNDREDS: usize = 400;
const NEW: usize = 60;
/// Time for which a component is stopped.
const STILL: Duration = Duration::from_secs(30);
/// Time until the broker has recovered: it cancels a hanging call after 30 s.
const RECOVERY: Duration = Duration::from_secs(60);
/// Time until the API server recovers: it may keep a dead connection to etcd for a minute before it connects again.
const API_SERVER: Duration = Duration::from_secs(120);

/// A separate cluster with a broker and many credentials. One credential is in the middle of an exchange.
struct OutageFixture {
    cluster: Cluster,
    /// The namespace of the credentials with client credentials.
    ns: Namespace,
    idp: Idp,
    /// The namespace of the credentials with refresh tokens.
    seeded: Namespace,
    strict: Strict,
    broker: Broker,
    /// The last time at which a token is due.
    due: Timestamp,
    calls: usize,
}

fn names(kind: &str, number: usize) -> Vec<String> {
    (0..number).map(|number| format!("{kind}-{number}")).collect()
}

impl OutageFixture {
    /// Creates the fixture: all credentials have their first token, and the broker has sent the refresh token of
    /// `under-way`.
    async fn new() -> Self {
        let cluster = Cluster::alone(&["control-plane"]);
        let (ns, seeded) = (cluster.namespace().await, cluster.namespace().await);
        let (idp, strict) = (Idp::start(), Strict::start());
        strict.client("mailer", Some("a client secret"));
        ns.provider(&idp).await;
        seeded.apply(source("idp-client", "client-secret", "a client secret")).await;
        strict_provider(&seeded, &strict).await;
        let broker = Broker::cluster_wide(&cluster).flag(format!("--broker-namespace={}", ns.name)).start().await;
        let mut fixture = Self { cluster, ns, idp, seeded, strict, broker, due: Timestamp::MIN, calls: 0 };

        fixture.issued(&names("at-rest", AT_REST), &["under-way".to_owned()]).await;
        fixture.idp.answer(Answer::token(SHORT));
        fixture.strict.lifetime(SHORT.cast_signed());
        fixture.due = fixture.issued(&names("due", DUE), &names("due", DUE_BY_SEED)).await;
        fixture.idp.answer(Answer::token(3600));
        fixture.strict.lifetime(3600);

        fixture.strict.next(Fault::Late(Duration::from_secs(3)));
        fixture.seeded.annotate::<MailCredential>("under-way", "mailtoken.dev/reissue", "1").await;
        let sent = DUE_BY_SEED + 2;
        until("the refresh token is out", async || match fixture.strict.token_requests().len() {
            number if number == sent => Ok(()),
            number => Err(format!("{number} requests")),
        })
        .await;
        fixture.calls = fixture.audit().len();
        fixture
    }

    /// Issues these tokens, and returns the time at which the last one is due.
    async fn issued(&self, by_client: &[String], by_refresh_token: &[String]) -> Timestamp {
        for name in by_client {
            self.ns.apply(credential(name)).await;
        }
        for name in by_refresh_token {
            let seed = format!("seed-{name}");
            let token = self.strict.refresh_token("mailer", &format!("{name}@example.org"), "mail");
            self.seeded.apply(source(&seed, "refresh_token", &token)).await;
            self.seeded.apply(by_seed(name).set("spec.grant.refreshToken.secretRef.name", seed)).await;
        }
        let mut last = Timestamp::MIN;
        for (ns, names) in [(&self.ns, by_client), (&self.seeded, by_refresh_token)] {
            for name in names {
                ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
                last = last.max(due(&ns.get(name).await));
            }
        }
        last
    }

    async fn all_are_due(&self) {
        until("all are due", async || if now() > self.due { Ok(()) } else { Err(String::new()) }).await;
    }

    /// Checks that the broker renews due tokens once and serves a new credential, and that it sends no other request.
    async fn works_again(&mut self) {
        apply(&self.ns, "new").await;
        for (ns, number) in [(&self.ns, DUE), (&self.seeded, DUE_BY_SEED)] {
            for name in names("due", number) {
                let renewed = |found: &MailCredential| due(found) > self.due && reason(found, "Ready") == "TokenValid";
                ns.until_in::<MailCredential>(RECOVERY, &name, "it is renewed", renewed).await;
            }
        }
        let reported = |found: &MailCredential| field(found, "/status/lastHandledReissue") == "1";
        self.seeded.until_in::<MailCredential>(RECOVERY, "under-way", "the answer is kept", reported).await;
        let ready = |found: &MailCredential| reason(found, "Ready") == "TokenValid";
        self.ns.until_in::<MailCredential>(RECOVERY, "new", "it is served", ready).await;

        assert_eq!(self.idp.token_requests().len(), AT_REST + 2 * DUE + 1, "each was asked for once");
        assert_eq!(self.strict.token_requests().len(), 2 + 2 * DUE_BY_SEED, "each was asked for once");
        assert_eq!((self.strict.reuses(), self.strict.families_revoked()), (0, 0));
        for name in names("due", DUE_BY_SEED).iter().map(String::as_str).chain(["under-way"]) {
            let kept = text(&self.seeded.get(&format!("{name}-grant")).await, "refresh_token");
            assert!(self.strict.is_valid(&kept), "{name}");
        }
        assert!(self.broker.ended().is_none(), "it never ends");
        let after = self.audit().split_off(self.calls);
        let idle: Vec<_> = after.iter().filter(|event| event.name.starts_with("at-rest")).collect();
        assert!(idle.is_empty(), "no credential needed a write: {idle:#?}");
        tried("F09", DUE + DUE_BY_SEED + 2, "nothing");
    }

    /// Returns the broker's requests for single objects.
    fn audit(&self) -> Vec<AuditEvent> {
        let work = |event: &AuditEvent| event.is_work_of_the_broker() && event.is_about_one_object();
        self.cluster.audit_where(work)
    }
}

/// Applies a credential, as soon as the API server serves its kind again.
async fn apply(ns: &Namespace, name: &str) {
    until_in(API_SERVER, "the API server takes a credential", async || {
        let tried = tokio::time::timeout(Duration::from_secs(2), ns.try_apply(credential(name))).await;
        tried.map_err(|late| late.to_string())?.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

fn due(credential: &MailCredential) -> Timestamp {
    from_value(field(credential, "/status/token/renewalTime")).unwrap_or(Timestamp::MIN)
}

#[tokio::test]
async fn after_a_kill_of_the_api_server_the_broker_continues() {
    let mut fixture = OutageFixture::new().await;
    let mut server = Part::of(&fixture.cluster, "kube-apiserver");
    server.signal("KILL");
    fixture.all_are_due().await;
    server.again().await;
    fixture.works_again().await;
}

#[tokio::test]
async fn a_restart_after_a_compaction_loses_no_change_among_hundreds() {
    let cluster = Cluster::alone(&["control-plane"]);
    let (ns, idp) = (cluster.namespace().await, Idp::start());
    ns.provider(&idp).await;
    let broker = Broker::cluster_wide(&cluster).flag(format!("--broker-namespace={}", ns.name)).start().await;
    let (old, new) = (names("mailbox", HUNDREDS), names("new", NEW));
    for name in &old {
        ns.apply(credential(name)).await;
    }
    for name in &old {
        ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
    }
    let mut server = Part::of(&cluster, "kube-apiserver");
    server.signal("KILL");
    Part::of(&cluster, "etcd").compact();
    server.again().await;

    // The broker lists the credentials while the test creates these.
    for (number, name) in new.iter().enumerate() {
        apply(&ns, name).await;
        if number == NEW / 2 {
            ns.patch::<MailCredential>("mailbox-5", json!({"spec": {"suspend": true}})).await;
        }
    }
    for name in &new {
        let ready = |found: &MailCredential| reason(found, "Ready") == "TokenValid";
        ns.until_in::<MailCredential>(RECOVERY, name, "it is served", ready).await;
    }
    let suspended = |found: &MailCredential| reason(found, "Renewed") == "Suspended";
    ns.until_in::<MailCredential>(RECOVERY, "mailbox-5", "its suspension is reported", suspended).await;
    assert_eq!(idp.token_requests().len(), HUNDREDS + NEW);
    let swept = broker.metric("mailtoken_sweep_enqueued_total", "kind=\"credential\"").await;
    assert_eq!(swept, Some(0.0), "the sweep had to enqueue something");
    tried("F09", 1, "nothing");
}

#[tokio::test]
async fn after_a_freeze_of_the_api_server_the_broker_continues() {
    let mut fixture = OutageFixture::new().await;
    let server = Part::of(&fixture.cluster, "kube-apiserver");
    server.signal("STOP");
    tokio::time::sleep(STILL).await;
    server.signal("CONT");
    fixture.works_again().await;
}

#[tokio::test]
async fn an_etcd_that_froze_and_then_died_loses_nothing() {
    let mut fixture = OutageFixture::new().await;
    let mut etcd = Part::of(&fixture.cluster, "etcd");
    etcd.signal("STOP");
    tokio::time::sleep(STILL).await;
    etcd.signal("KILL");
    etcd.again().await;
    fixture.works_again().await;
}
