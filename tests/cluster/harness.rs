//! Tests of the tests' own tools, on which the other tests rely.

use std::{
    panic::AssertUnwindSafe,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{hostile::Validity, idp, *};
use serde_json::json;

fn curl(idp: &Idp, arguments: &[&str], path: &str) -> Result<String, String> {
    let ca = std::env::temp_dir().join(format!("mtb-support-{}.crt", idp.port()));
    std::fs::write(&ca, idp.ca()).unwrap();
    let mut command = Command::new("curl");
    command.args(["-sS", "--noproxy", "*", "--max-time", "5", "--cacert"]).arg(&ca).args(arguments).arg(idp.url(path));
    let answer = process::try_output(&mut command);
    std::fs::remove_file(&ca).unwrap();
    answer
}

#[test]
fn the_provider_issues_tokens_and_keeps_the_requests() {
    let idp = Idp::start();
    let first = curl(&idp, &["-d", "grant_type=client_credentials&scope=a%20b", "-H", "X-One: 1"], idp::TOKEN).unwrap();
    let second = curl(&idp, &["-d", ""], idp::TOKEN).unwrap();

    let tokens = idp.issued();
    assert_ne!(tokens[0], tokens[1]);
    assert!(first.contains(&tokens[0]) && second.contains(&tokens[1]), "{first} {second} {tokens:?}");
    let requests = idp.token_requests();
    assert_eq!(requests[0].form()["scope"], "a b");
    assert_eq!(requests[0].headers["x-one"], "1");
    assert_eq!((requests.len(), idp.connections()), (2, 2));
    let discovery = curl(&idp, &[], idp::DISCOVERY).unwrap();
    assert!(discovery.contains(&format!(r#""issuer":"{}""#, idp.issuer())), "{discovery}");
}

#[test]
fn the_provider_answers_as_configured() {
    let idp = Idp::start();
    idp.answer(Answer::error("invalid_grant"));
    idp.next(Answer::token(7).without("token_type").field("scope", "x").rotating());
    idp.next(Answer::close());
    idp.next(Answer::status(503).header("retry-after", "7"));

    let token = curl(&idp, &[], idp::TOKEN).unwrap();
    assert!(token.contains(r#""expires_in":7"#) && token.contains(&idp.issued()[1]), "{token}");
    assert!(!token.contains("token_type"), "{token}");
    assert!(curl(&idp, &[], idp::TOKEN).is_err());
    let unavailable = curl(&idp, &["-i"], idp::TOKEN).unwrap();
    assert!(unavailable.contains("503") && unavailable.contains("retry-after: 7"), "{unavailable}");
    for _ in 0..2 {
        assert!(curl(&idp, &[], idp::TOKEN).unwrap().contains("invalid_grant"));
    }
    idp.answer(Answer::hang());
    assert!(curl(&idp, &["--max-time", "0.5"], idp::TOKEN).unwrap_err().contains("timed out"));
    idp.answer(Answer::token(1).held());
    assert!(curl(&idp, &["--max-time", "0.5"], idp::TOKEN).unwrap_err().contains("timed out"));
    idp.release();
    curl(&idp, &[], idp::TOKEN).unwrap();
    let start = Instant::now();
    idp.answer(Answer::token(1).after(Duration::from_millis(300)));
    curl(&idp, &[], idp::TOKEN).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[test]
fn the_provider_stops_and_starts_with_another_certificate() {
    let mut idp = Idp::start();
    idp.stop();
    assert!(curl(&idp, &[], idp::TOKEN).unwrap_err().contains("connect"));
    idp.present(&["localhost"], Validity::Past);
    idp.resume();
    assert!(curl(&idp, &[], idp::TOKEN).unwrap_err().contains("expired"));
    idp.present(&["localhost"], Validity::Present);
    curl(&idp, &[], idp::TOKEN).unwrap();
}

#[tokio::test]
async fn a_namespace_takes_complete_and_changed_objects_and_refuses_wrong_ones() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    ns.provider(&idp).await;
    ns.apply(credential("billing").set("spec.renewal.minValidity", "20m").entry("metadata.labels", "a.b/c", "d")).await;

    assert_eq!(ns.secret("idp-client").await["client-secret"], "a client secret");
    let map: ConfigMap = ns.get("idp-ca").await;
    assert_eq!(map.data.unwrap()["ca.crt"], idp.ca());
    let shown = ns.kubectl(["get", "mail", "-o", "name"]);
    assert!(shown.contains("mailcredential.mailtoken.dev/billing"), "{shown}");
    let unknown = ns.try_apply(credential("billing").set("spec.nonsense", true)).await.unwrap_err();
    assert!(unknown.to_string().contains("nonsense"), "{unknown}");
    ns.try_apply(credential("billing").without("spec.grant")).await.unwrap_err();
    ns.delete::<Secret>("idp-client").await;
    let audit = ns.audit();
    assert!(audit.iter().any(|event| event.access.verb == "delete" && event.name == "idp-client"), "{audit:#?}");
}

#[tokio::test]
async fn a_wait_that_fails_shows_the_object() {
    let ns = Cluster::shared().namespace().await;
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"key": "what is there"}});
    ns.apply(map).await;
    let wait = async move {
        let never = |map: &ConfigMap| map.data.is_none();
        ns.until_in::<ConfigMap>(Duration::from_millis(100), "a", "it is empty", never).await
    };
    let panic = AssertUnwindSafe(wait).catch_unwind().await.unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("ConfigMap a: it is empty") && message.contains("key: what is there"), "{message}");
}

#[tokio::test]
async fn a_broker_starts_works_stops_and_starts_again() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    ns.provider(&idp).await;
    let mut broker = Broker::start(&ns).await;
    ns.apply(credential("billing")).await;

    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    assert_eq!(ns.secret("billing").await["access_token"], idp.issued()[0]);
    assert_eq!(broker.metric("mailtoken_leader", "").await, Some(1.0));
    assert!(broker.terminate().await.success(), "{}", broker.log());
    broker.again().await;
    broker.kill();
    assert!(broker.get("/readyz").await.is_err());
}

/// The name of the next test, which the previous test starts in a separate process.
const VICTIM: &str = "harness::a_victim_starts_a_cluster_and_a_broker_and_waits";

#[tokio::test]
async fn a_cluster_and_a_broker_end_with_their_test_also_when_that_is_killed() {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([VICTIM, "--exact", "--ignored", "--nocapture"])
        .env_remove("MTB_TEST_STACK")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(victim.stdout.take().unwrap()));
    let reported =
        lines.find_map(|line| line.unwrap().split_once("VICTIM ").map(|(_, reported)| reported.to_owned())).unwrap();
    let paths: Vec<_> = reported.split(' ').collect();
    let there = |path: &&&str| std::fs::exists(path).unwrap();
    assert!(paths.iter().all(|path| there(&path)), "{paths:?}");

    victim.kill().unwrap();
    victim.wait().unwrap();

    until("all of it is gone", async || match paths.iter().find(there) {
        Some(path) => Err(path.to_string()),
        None => Ok(()),
    })
    .await;
}

#[tokio::test]
#[ignore = "the test above runs it"]
async fn a_victim_starts_a_cluster_and_a_broker_and_waits() {
    let ns = Cluster::shared().namespace().await;
    let broker = Broker::start(&ns).await;
    let dir = ns.cluster.dir();
    let server = std::fs::read_to_string(dir.join("run/kube-apiserver.pid")).unwrap();
    println!("VICTIM {} /proc/{} /proc/{}", dir.display(), server.trim(), broker.id());
    std::thread::sleep(PATIENCE);
}
