//! Faults of a cluster's environment: removed CRDs, terminating namespaces, quotas, missing file descriptors and
//! memory, a panic.

use std::{os::unix::process::ExitStatusExt as _, process::Command, time::Duration};

use k8s_openapi::api::core::v1::ResourceQuota;
use mail_token_broker::{admission::PER_HOST_LIMIT, api::MailCredential};
use mailtoken_testkit::{audit::AuditEvent, fault_log::tried, *};
use serde_json::json;

/// The text after the object's name in the panic that a test causes.
const PANIC: &str = "with a secret that must not stand in the log";
/// Time in which no hot loop must show: the first two waits after a failure are 5 and 10 s.
const REST: Duration = Duration::from_secs(8);
/// Time until the broker has recovered from several failures.
const RECOVERY: Duration = Duration::from_secs(75);

async fn on(cluster: &Cluster) -> Fixture {
    let (ns, idp) = (cluster.namespace().await, Idp::start());
    ns.provider(&idp).await;
    let broker = Broker::start(&ns).await;
    Fixture { ns, idp, broker }
}

/// Returns the broker's requests for single objects of the namespace.
fn calls(ns: &Namespace) -> Vec<AuditEvent> {
    let work = |event: &AuditEvent| event.is_work_of_the_broker() && event.is_about_one_object();
    ns.audit().into_iter().filter(work).collect()
}

/// Checks that the broker makes at most `most` calls.
async fn no_hot_loop(ns: &Namespace, most: usize) {
    let before = calls(ns).len();
    holds(REST, "there is no hot loop", async || match calls(ns).split_off(before) {
        calls if calls.len() <= most => Ok(()),
        calls => Err(format!("{calls:#?}")),
    })
    .await;
}

fn crds(cluster: &Cluster, arguments: &[&str]) {
    let crds = process::root().join("crds");
    process::output(cluster.kubectl().args(arguments).arg("-f").arg(&crds));
}

#[tokio::test]
async fn crds_that_are_removed_and_restored_with_their_objects_cost_no_token() {
    let cluster = Cluster::alone(&["control-plane"]);
    let mut fixture = on(&cluster).await;
    let names = ["first", "second", "third"];
    let retained = |name: &str| credential(name).set("spec.secret.deletionPolicy", "Retain");
    for name in names {
        fixture.issued(retained(name)).await;
    }
    let tokens = fixture.idp.issued();
    crds(&cluster, &["delete"]);
    no_hot_loop(&fixture.ns, 0).await;
    assert!(fixture.broker.ended().is_none(), "it never ends");
    crds(&cluster, &["apply", "--server-side"]);
    process::output(cluster.kubectl().args(["wait", "--for=condition=Established", "crd", "--all"]));
    until("the kinds are served", async || {
        for manifest in [provider(&fixture.idp), retained("first")] {
            fixture.ns.try_apply(manifest).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    })
    .await;
    for (name, token) in names.into_iter().zip(tokens) {
        fixture.issued(retained(name)).await;
        assert_eq!(fixture.ns.secret(name).await["access_token"], token, "the Secret is found again");
    }
    fixture.mark("new").await;
    assert_eq!(fixture.idp.token_requests().len(), names.len() + 1);
    tried("F22", names.len(), "nothing");
}

#[tokio::test]
async fn a_status_of_a_newer_version_delays_no_object() {
    let cluster = Cluster::alone(&["control-plane"]);
    let mut fixture = on(&cluster).await;
    for name in ["beside", "newer"] {
        fixture.issued(credential(name)).await;
    }
    // A newer version may leave such a status before a rollback.
    let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/status";
    let patch = json!([{"op": "replace", "path": path, "value": any}]).to_string();
    fixture.ns.kubectl(["patch", "crd", "mailcredentials.mailtoken.dev", "--type=json", "-p", &patch]);
    let when = "2026-01-01T00:00:00Z";
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "NewReason", "message": "", "lastTransitionTime": when});
    let status = json!({"status": {
        "phase": "Dancing", "lastError": {"error": "a_new_error", "time": when, "hint": {"level": 3}},
        "conditions": [condition("Ready", "True"), condition("Renewed", "False"), condition("Enchanted", "Unknown")],
    }})
    .to_string();
    until("the schema is relaxed", async || {
        let reported = ["--subresource=status", "--type=merge", "-o", "jsonpath={.status.phase}", "-p", &status];
        let reported = fixture.ns.kubectl(["patch", "mailcredential", "newer"].into_iter().chain(reported));
        if reported == "Dancing" { Ok(()) } else { Err(reported) }
    })
    .await;
    fixture.broker.terminate().await;
    fixture.broker.again().await;
    for name in ["beside", "newer"] {
        fixture.ns.kubectl(["annotate", "mailcredential", name, "mailtoken.dev/reissue=1"]);
        fixture.ns.condition::<MailCredential>(name, "Renewed", "RenewalSucceeded").await;
        let answered = |found: &MailCredential| field(found, "/status/lastHandledReissue") == "1";
        fixture.ns.until::<MailCredential>(name, "it is issued again", answered).await;
    }
    assert_eq!(fixture.idp.token_requests().len(), 4);
    tried("F22", 1, "nothing");
}

#[tokio::test]
async fn in_a_terminating_namespace_a_token_is_requested_once_and_existing_tokens_are_renewed() {
    let fixture = Fixture::new().await;
    fixture.issued(credential("billing")).await;
    fixture.idp.next(Answer::token(3600).held());
    fixture.ns.apply(credential("late")).await;
    fixture.idp.token_requests_reach(2).await;
    // No controller deletes the namespace's objects, so the namespace stays in `Terminating`.
    fixture.ns.kubectl(["delete", "namespace", &fixture.ns.name, "--wait=false"]);
    fixture.idp.release();
    let reported = fixture.ns.condition::<MailCredential>("late", "Renewed", "SecretWriteFailed").await.message;
    assert!(reported.contains("is being terminated") && reported.contains("The token is kept"), "{reported}");
    fixture.ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    let answered = |found: &MailCredential| field(found, "/status/lastHandledReissue") == "1";
    fixture.ns.until::<MailCredential>("billing", "it is issued again", answered).await;
    // The broker makes an attempt after ten seconds and reports it.
    no_hot_loop(&fixture.ns, 4).await;
    assert_eq!(fixture.idp.token_requests().len(), 3);
    tried("F24", 1, "nothing");
}

#[tokio::test]
async fn a_used_up_quota_is_reported_and_the_unwritten_token_waits_in_memory() {
    let fixture = Fixture::new().await;
    fixture.ns.apply(json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"secrets": "1"}},
    }))
    .await;
    // A controller usually counts this usage, and admission checks it.
    let used = json!({"status": {"hard": {"secrets": "1"}, "used": {"secrets": "1"}}}).to_string();
    fixture.ns.kubectl(["patch", "resourcequota", "few", "--subresource=status", "--type=merge", "-p", &used]);
    let probe = source("probe", "key", "value");
    until("the quota is in force", async || match fixture.ns.try_apply(probe.clone()).await {
        Err(error) if error.to_string().contains("exceeded quota") => Ok(()),
        other => {
            fixture.ns.remove(&probe).await;
            Err(format!("{other:?}"))
        }
    })
    .await;
    fixture.ns.apply(credential("billing")).await;
    let reported = fixture.ns.condition::<MailCredential>("billing", "Ready", "SecretWriteFailed").await.message;
    assert!(reported.contains("exceeded quota: few"), "{reported}");
    no_hot_loop(&fixture.ns, 4).await;
    fixture.ns.delete::<ResourceQuota>("few").await;
    fixture.ready("billing").await;
    assert_eq!(fixture.ns.secret("billing").await["access_token"], fixture.idp.issued()[0]);
    assert_eq!(fixture.idp.token_requests().len(), 1);
    tried("F24", 1, "nothing");
}

#[tokio::test]
async fn without_file_descriptors_requests_wait_and_nothing_ends() {
    const HANGING: usize = 16;
    let mut fixture = Fixture::new().await;
    fixture.mark("before").await;
    let id = fixture.broker.id().to_string();
    let limit = |number: usize| {
        process::output(Command::new("prlimit").args(["--pid", &id, &format!("--nofile={number}:")]));
    };
    limit(std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().count() + HANGING / 2);
    fixture.idp.answer(Answer::token(3600).held());
    let names: Vec<_> = (0..HANGING).map(|number| format!("mailbox-{number}")).collect();
    for name in &names {
        fixture.ns.apply(credential(name)).await;
    }
    let refused = async |name: &String| {
        let found: MailCredential = fixture.ns.get(name).await;
        (reason(&found, "Renewed") == "ProviderUnavailable")
            .then(|| namespace::find(&found, "Renewed").unwrap().message)
    };
    let reported = until("some are refused", async || {
        for name in &names {
            if let Some(message) = refused(name).await {
                return Ok(message);
            }
        }
        Err(String::new())
    })
    .await;
    assert!(reported.contains("open files"), "{reported}");
    fixture.idp.release();
    for name in &names {
        let ready = |found: &MailCredential| reason(found, "Ready") == "TokenValid";
        fixture.ns.until_in::<MailCredential>(RECOVERY, name, "it is ready", ready).await;
    }
    assert!(fixture.broker.ended().is_none(), "it never ends");
    tried("F25", 1, "nothing");
}

#[tokio::test]
async fn a_broker_that_runs_out_of_memory_continues_after_its_restart() {
    const EARLIER: usize = 20;
    const ALL: usize = 420;
    /// Memory that is left for all others, in bytes.
    const LEFT: u64 = 256 << 10;
    let (ns, idp) = (Cluster::shared().namespace().await, Idp::start());
    ns.provider(&idp).await;
    // Otherwise the allocator commits a gigabyte of addresses at its start, which the kernel counts.
    let settings = Broker::settings(&ns).env("MIMALLOC_ARENA_EAGER_COMMIT", "0").env("MIMALLOC_EAGER_COMMIT", "0");
    let mut broker = settings.start().await;
    let names: Vec<_> = (0..ALL).map(|number| format!("mailbox-{number}")).collect();
    let ready = async |names: &[String]| {
        for name in names {
            ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
        }
    };
    for name in &names[..EARLIER] {
        ns.apply(credential(name)).await;
    }
    ready(&names[..EARLIER]).await;

    let id = broker.id().to_string();
    let limit = broker.memory("VmData") + LEFT;
    process::output(Command::new("prlimit").args(["--pid", &id, &format!("--data={limit}:")]));
    for name in &names[EARLIER..] {
        ns.apply(credential(name)).await;
    }
    let ended = until("it has died", async || broker.ended().ok_or_else(String::new)).await;
    assert_eq!(ended.signal(), Some(6), "{ended}");
    assert!(broker.log().contains("memory allocation of"));
    broker.kill();
    broker.again().await;
    ready(&names).await;
    let asked = idp.token_requests().len();
    assert!(asked <= ALL + PER_HOST_LIMIT, "{asked} requests: more than what was under way was asked for again");
    tried("F25", 1, "nothing");
}

#[tokio::test]
async fn a_broker_needs_no_place_to_write() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    ns.provider(&idp).await;
    let broker = Broker::settings(&ns).read_only().start().await;
    let fixture = Fixture { ns, idp, broker };
    fixture.issued(credential("billing")).await;
    fixture.ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    let answered = |found: &MailCredential| field(found, "/status/lastHandledReissue") == "1";
    fixture.ns.until::<MailCredential>("billing", "it is issued again", answered).await;
    tried("F25", 1, "nothing");
}

#[tokio::test]
async fn an_object_that_makes_the_broker_panic_delays_no_other() {
    for step in ["reconcile", "request", "seen"] {
        let ns = Cluster::shared().namespace().await;
        let idp = Idp::start();
        ns.provider(&idp).await;
        let broker = Broker::settings(&ns).env("MAILTOKEN_PANIC_AT", format!("{step}:poison")).start().await;
        let mut fixture = Fixture { ns, idp, broker };
        fixture.ns.apply(credential("poison")).await;
        until("it panicked", async || {
            match fixture.broker.metric("mailtoken_reconcile_errors_total", r#"category="panic""#).await {
                Some(times) if times >= 1.0 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        let panics = async || fixture.broker.metric("mailtoken_reconcile_errors_total", r#"category="panic""#).await;
        fixture.mark("beside").await;
        let before = panics().await.unwrap();
        holds(REST, "there is no hot loop", async || match panics().await {
            Some(times) if times <= before + 2.0 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        let log = fixture.broker.log();
        assert!(log.contains("src/fail_point.rs:"), "it says where: {log}");
        assert!(!log.contains("a secret"), "and nothing of what was at hand: {log}");
        let mut places = leaks::shown(&fixture.ns);
        places.push(("metrics", fixture.broker.metrics().await));
        leaks::assert_absent(&places, &[PANIC.to_owned()]);
        assert_eq!(fixture.idp.token_requests().len(), 1);
        fixture.mark("later").await;
        assert!(fixture.broker.ended().is_none());
    }
    tried("F28", 3, "nothing");
}
