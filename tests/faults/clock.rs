//! The wall clock of a broker is set, and its machine sleeps: the broker renews expired tokens once, and has no other
//! effect.

use std::{fs, path::PathBuf, process::Command, sync::OnceLock, time::Duration};

use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{
    audit::AuditEvent,
    fault_log::tried,
    refresh_fixture::provider as strict_provider,
    standin::Strict,
    wait::{now, until_in},
    *,
};
use serde_json::{from_value, json};

const HOUR: i64 = 3600;
/// Time limit for the broker to notice a changed clock, which it checks every ten seconds.
const NOTICED: Duration = Duration::from_secs(45);
/// Time in which the broker must send no further request: longer than the shortest wait between two attempts.
const REST: Duration = Duration::from_secs(8);
/// Maximum time after which the audit log contains a call.
const LOGGED: Duration = Duration::from_secs(1);
const CREDENTIALS: usize = 4;

/// A broker whose wall clock a test sets, with credentials of both kinds that have their first token.
struct Watch {
    ns: Namespace,
    idp: Idp,
    seeded: Namespace,
    strict: Strict,
    broker: Broker,
    seeded_broker: Broker,
    jump: PathBuf,
}

/// Compiles the library that changes a process' clock, once.
fn library() -> PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    let compile = || {
        let library = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("clock_jump.so");
        let source = process::root().join("crates/testkit/src/clock_jump.c");
        let mut command = Command::new("cc");
        process::output(command.args(["-shared", "-fPIC", "-O2", "-Wall", "-o"]).arg(&library).arg(source));
        library
    };
    LIBRARY.get_or_init(compile).clone()
}

impl Watch {
    async fn new() -> Self {
        let (ns, seeded) = (Cluster::shared().namespace().await, Cluster::shared().namespace().await);
        let (idp, strict) = (Idp::start(), Strict::start());
        let jump = ns.cluster.dir().join(format!("{}.jump", ns.name));
        fs::write(&jump, "0").unwrap();
        let start = async |ns: &Namespace| {
            Broker::settings(ns).env("LD_PRELOAD", library()).env("CLOCK_JUMP", &jump).start().await
        };
        ns.provider(&idp).await;
        strict.client("mailer", Some("a client secret"));
        seeded.apply(source("idp-client", "client-secret", "a client secret")).await;
        strict_provider(&seeded, &strict).await;
        let (broker, seeded_broker) = (start(&ns).await, start(&seeded).await);
        let watch = Self { ns, idp, seeded, strict, broker, seeded_broker, jump };
        for number in 0..CREDENTIALS {
            let (name, seed) = (format!("mailbox-{number}"), format!("seed-{number}"));
            let token = watch.strict.refresh_token("mailer", &format!("{name}@example.org"), "mail");
            watch.seeded.apply(source(&seed, "refresh_token", &token)).await;
            watch.ns.apply(credential(&name)).await;
            watch.seeded.apply(by_seed(&name).set("spec.grant.refreshToken.secretRef.name", seed)).await;
        }
        for ns in [&watch.ns, &watch.seeded] {
            for number in 0..CREDENTIALS {
                ns.condition::<MailCredential>(&format!("mailbox-{number}"), "Ready", "TokenValid").await;
            }
        }
        watch
    }

    /// Sets the clock this number of seconds ahead of the true time.
    fn ahead(&self, seconds: i64) {
        let next = self.jump.with_extension("next");
        fs::write(&next, seconds.to_string()).unwrap();
        fs::rename(next, &self.jump).unwrap();
    }

    /// Waits until the broker has requested `times` tokens for each credential, and checks that it requests no more.
    async fn asked(&self, times: usize) {
        let each = CREDENTIALS * times;
        until_in(NOTICED, "each was renewed", async || {
            let asked = [self.idp.token_requests().len(), self.strict.token_requests().len()];
            if asked.iter().all(|asked| *asked >= each) { Ok(()) } else { Err(format!("{asked:?} of {each}")) }
        })
        .await;
        for (ns, number) in [&self.ns, &self.seeded].into_iter().flat_map(|ns| (0..CREDENTIALS).map(move |n| (ns, n))) {
            let name = format!("mailbox-{number}");
            ns.condition::<MailCredential>(&name, "Ready", "TokenValid").await;
            ns.condition::<MailCredential>(&name, "Renewed", "RenewalSucceeded").await;
        }
        self.rests(each).await;
        assert_eq!((self.strict.reuses(), self.strict.families_revoked()), (0, 0));
    }

    /// Checks that no provider gets a request.
    async fn rests(&self, each: usize) {
        let mut calls = self.calls().len();
        // The API server writes the log a moment after its response.
        until("the log has come to an end", async || {
            tokio::time::sleep(LOGGED).await;
            let before = std::mem::replace(&mut calls, self.calls().len());
            if before == calls { Ok(()) } else { Err(format!("{calls} calls, and {before} before")) }
        })
        .await;
        holds(REST, "all is at rest", async || {
            let asked = [self.idp.token_requests().len(), self.strict.token_requests().len()];
            let calls = self.calls().split_off(calls);
            if asked == [each, each] && calls.is_empty() { Ok(()) } else { Err(format!("{asked:?}: {calls:#?}")) }
        })
        .await;
    }

    fn calls(&self) -> Vec<AuditEvent> {
        let ours = |event: &AuditEvent| {
            [&self.ns, &self.seeded].iter().any(|ns| ns.name == event.namespace)
                && event.is_work_of_the_broker()
                && event.is_about_one_object()
        };
        self.ns.cluster.audit_where(ours)
    }

    /// Checks that no Secret has a later expiry of its token than the true one.
    async fn ends_no_token_too_late(&self) {
        for ns in [&self.ns, &self.seeded] {
            for number in 0..CREDENTIALS {
                let secret: Secret = ns.get(&format!("mailbox-{number}")).await;
                let ends: Timestamp = from_value(json!(text(&secret, "expires_at"))).unwrap();
                assert!(ends.as_second() <= now().as_second() + HOUR, "{ends}");
            }
        }
    }
}

#[tokio::test]
async fn after_a_jump_ahead_and_back_each_token_is_renewed_once_and_none_is_believed_for_too_long() {
    let watch = Watch::new().await;
    watch.ends_no_token_too_late().await;
    // By the broker's clock, all tokens have expired.
    watch.ahead(2 * HOUR);
    watch.asked(2).await;
    // By the true clock, the tokens that the broker issued under the wrong clock have an expiry in three hours.
    watch.ahead(0);
    watch.asked(3).await;
    watch.ends_no_token_too_late().await;
    tried("F18", 2 * 2 * CREDENTIALS, "nothing");
}

#[tokio::test]
async fn after_a_jump_back_and_ahead_nothing_is_lost_and_no_provider_is_asked_in_a_loop() {
    let watch = Watch::new().await;
    watch.ahead(-2 * HOUR);
    watch.asked(2).await;
    watch.ahead(0);
    watch.asked(3).await;
    watch.ends_no_token_too_late().await;
    tried("F18", 2 * 2 * CREDENTIALS, "nothing");
}

#[tokio::test]
async fn a_failure_before_the_clock_was_set_back_delays_the_next_attempt_by_no_hours() {
    let watch = Watch::new().await;
    watch.ahead(2 * HOUR);
    watch.asked(2).await;
    watch.idp.answer(Answer::status(503));
    watch.ns.apply(credential("late")).await;
    watch.ns.condition::<MailCredential>("late", "Ready", "ProviderUnavailable").await;
    watch.ahead(0);
    watch.idp.answer(Answer::token(3600));
    let ready = |found: &MailCredential| reason(found, "Ready") == "TokenValid";
    watch.ns.until_in::<MailCredential>(NOTICED, "late", "it is tried again", ready).await;
    tried("F18", 1, "nothing");
}

#[tokio::test]
async fn after_a_sleep_each_token_is_renewed_once() {
    let mut watch = Watch::new().await;
    for broker in [&watch.broker, &watch.seeded_broker] {
        broker.signal("STOP");
    }
    watch.ahead(2 * HOUR);
    // Connections and leases expire during this time.
    tokio::time::sleep(Duration::from_secs(20)).await;
    for broker in [&watch.broker, &watch.seeded_broker] {
        broker.signal("CONT");
    }
    watch.asked(2).await;
    assert!(watch.broker.ended().is_none() && watch.seeded_broker.ended().is_none());
    tried("F18", 2 * CREDENTIALS, "nothing");
}
