//! Failed attempts: the time of the next attempt, the changes that end the wait, and the changes that do not.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::Secret,
    jiff::{SignedDuration, fmt::rfc2822},
};
use mail_token_broker::api::{MailCredential, MailProvider, status::MailCredentialStatus};
use mailtoken_testkit::*;
use serde_json::json;

/// Waits until `attempts` attempts have failed, and returns the status.
async fn failed(ns: &Namespace, attempts: i32) -> MailCredentialStatus {
    let fits =
        |found: &MailCredential| found.status.as_ref().is_some_and(|status| status.failed_attempts == Some(attempts));
    let found = ns.until::<MailCredential>("billing", &format!("{attempts} attempts have failed"), fits).await;
    found.status.unwrap()
}

/// Returns the seconds from the last failure to the next attempt.
fn pause(status: &MailCredentialStatus) -> i64 {
    let (next, last) = (status.next_attempt_time.as_ref().unwrap(), status.last_failure_time.as_ref().unwrap());
    next.0.duration_since(last.0).as_secs()
}

async fn ready(ns: &Namespace) {
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
}

#[tokio::test]
async fn transient_failures_wait_5_then_10_seconds_and_the_status_says_so() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    idp.answer(Answer::status(503));
    ns.provider(&idp).await;
    ns.apply(credential("billing")).await;

    assert_eq!(pause(&failed(&ns, 1).await), 5);
    assert_eq!(pause(&failed(&ns, 2).await), 10);
    let status = failed(&ns, 3).await;
    assert_eq!(pause(&status), 20);
    let error = status.last_error.unwrap();
    assert_eq!((error.error, error.http_status), (None, Some(503)));
    let requests = idp.token_requests();
    let pauses: Vec<_> = requests.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    for (pause, least) in pauses.iter().zip([4, 9]) {
        assert!(*pause >= Duration::from_secs(least), "{pauses:?}");
    }
    assert_eq!(requests.len(), 3);
    fault_log::tried("F13", 3, "nothing");
}

#[tokio::test]
async fn retry_after_is_obeyed_in_both_forms_up_to_an_hour() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    ns.provider(&idp).await;
    let in_two_minutes = rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&(wait::now() + SignedDuration::from_secs(120)))
        .unwrap();
    let throttled = |value: &str| match value {
        "" => Answer::status(429),
        value => Answer::status(429).header("retry-after", value),
    };
    idp.answer(throttled("90"));
    ns.apply(credential("billing")).await;

    for (number, (value, least, most)) in [
        ("90", 91, 91),
        (in_two_minutes.as_str(), 61, 122),
        ("1000000000", 3600, 3600),
        ("1", 5, 5),
        ("nonsense", 5, 5),
        ("", 5, 5),
    ]
    .into_iter()
    .enumerate()
    {
        idp.answer(throttled(value));
        ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", &number.to_string()).await;
        ns.until::<MailCredential>("billing", &format!("{value} is obeyed"), |found| {
            let status = found.status.as_ref().unwrap();
            status.next_attempt_time.is_some() && (least..=most).contains(&pause(status))
        })
        .await;
    }
    fault_log::tried("F12", 6, "nothing");
}

#[tokio::test]
async fn any_change_of_spec_provider_or_source_ends_the_wait_immediately() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    idp.answer(Answer::error("invalid_client"));
    ns.provider(&idp).await;
    ns.apply(credential("billing")).await;
    idp.token_requests_reach(1).await;
    failed(&ns, 1).await;

    ns.patch::<MailCredential>("billing", json!({"spec": {"renewal": {"minValidity": "11m"}}})).await;
    idp.token_requests_reach(2).await;
    ns.patch::<MailProvider>("idp", json!({"spec": {"client": {"id": "another"}}})).await;
    assert_eq!(idp.token_requests_reach(3).await[2].form()["client_id"], "another");
    ns.apply(source("idp-client", "client-secret", "another secret")).await;
    assert_eq!(idp.token_requests_reach(4).await[3].form()["client_secret"], "another secret");
    ns.apply(ca_bundle("idp-ca", &idp).entry("data", "note", "changed")).await;
    idp.token_requests_reach(5).await;
    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    idp.token_requests_reach(6).await;
    assert_eq!(pause(&failed(&ns, 1).await), 15 * 60, "a change begins again");

    // Changes that do not affect an attempt do not end the wait.
    ns.annotate::<MailCredential>("billing", "team", "a").await;
    ns.patch::<MailProvider>("idp", json!({"metadata": {"labels": {"team": "a"}}})).await;
    holds(Duration::from_secs(2), "nobody asks", async || match idp.token_requests().len() {
        6 => Ok(()),
        number => Err(number.to_string()),
    })
    .await;
    fault_log::tried("F17", 6, "nothing");
}

#[tokio::test]
async fn a_change_while_a_request_is_in_flight_is_not_lost() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    idp.next(Answer::error("invalid_client").held());
    ns.provider(&idp).await;
    ns.apply(credential("billing")).await;
    idp.token_requests_reach(1).await;

    ns.apply(source("idp-client", "client-secret", "the right one")).await;
    ns.patch::<MailCredential>("billing", json!({"spec": {"renewal": {"minValidity": "11m"}}})).await;
    // Another credential of the same provider gets its token with the new secret. So the broker has seen the change.
    let mut markers = 0;
    until("a marker is served with the new secret", async || {
        markers += 1;
        let marker = format!("marker-{markers}");
        ns.apply(credential(&marker)).await;
        ns.condition::<MailCredential>(&marker, "Ready", "TokenValid").await;
        match idp.token_requests()[markers].form()["client_secret"].as_str() {
            "the right one" => Ok(()),
            secret => Err(secret.to_owned()),
        }
    })
    .await;
    idp.release();

    ready(&ns).await;
    assert_eq!(idp.token_requests().len(), 2 + markers);
}

#[tokio::test]
async fn a_restart_keeps_the_wait_and_sends_no_request() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    let mut broker = Broker::start(&ns).await;
    idp.answer(Answer::error("invalid_client"));
    ns.provider(&idp).await;
    ns.apply(credential("billing")).await;
    let before = failed(&ns, 1).await;

    broker.kill();
    broker.again().await;
    // Another credential's attempt shows that the new broker works.
    ns.apply(credential("marker")).await;
    ns.condition::<MailCredential>("marker", "Stalled", "InvalidClient").await;

    assert_eq!(failed(&ns, 1).await, before);
    assert_eq!(idp.token_requests().len(), 2);
}

#[tokio::test]
async fn a_renewal_that_fails_leaves_ready_true_until_the_token_ends() {
    let ns = Cluster::shared().namespace().await;
    let (idp, _broker) = (Idp::start(), Broker::start(&ns).await);
    idp.next(Answer::token(12));
    idp.answer(Answer::error("invalid_grant"));
    ns.provider(&idp).await;
    ns.apply(credential("billing")).await;
    ready(&ns).await;

    ns.condition::<MailCredential>("billing", "Renewed", "InvalidGrant").await;
    let found: MailCredential = ns.get("billing").await;
    let shown = namespace::show(&found);
    assert_eq!(namespace::find(&found, "Ready").unwrap().reason, "TokenValid", "{shown}");
    let end = found.status.unwrap().token.unwrap().expires_at.0;
    ns.condition::<MailCredential>("billing", "Ready", "Expired").await;
    assert!(wait::now() >= end);
    let token = ns.secret("billing").await["access_token"].clone();
    assert_eq!(token, idp.issued()[0], "the old token is not taken away");
    assert_eq!(idp.token_requests().len(), 2);
    fault_log::tried("F17", 1, "nothing");
}

/// Returns how often the broker has read a Secret.
fn reads(ns: &Namespace, secret: &str) -> usize {
    let audit = ns.cluster.audit().into_iter();
    audit
        .filter(|event| event.namespace == ns.name && event.name == secret && event.agent != audit::TEST)
        .filter(|event| event.access.resource == "secrets" && event.access.verb == "get")
        .count()
}

/// Waits until the broker has read each of the Secrets since `before`.
async fn read_again(ns: &Namespace, secrets: &[&str], before: &[usize]) -> Vec<usize> {
    let mut now = vec![];
    for (secret, before) in secrets.iter().zip(before) {
        let what = format!("{secret} is read");
        let read = until(&what, async || match reads(ns, secret) {
            number if number > *before => Ok(number),
            number => Err(number.to_string()),
        });
        now.push(read.await);
    }
    now
}

fn all_reads(ns: &Namespace, secrets: &[&str]) -> Vec<usize> {
    secrets.iter().map(|secret| reads(ns, secret)).collect()
}

/// Changes the metadata of the Secrets of an attempt, and waits until the broker has compared their content.
async fn touch(ns: &Namespace, secrets: &[&str]) {
    const TOUCHES: usize = 5;
    let before = all_reads(ns, secrets);
    for number in 0..TOUCHES {
        for secret in secrets {
            let note = json!({"annotations": {"note": number.to_string()}, "labels": {"touched": number.to_string()}});
            ns.patch::<Secret>(secret, json!({"metadata": note})).await;
        }
    }
    let now = read_again(ns, secrets, &before).await;
    for (now, before) in now.iter().zip(&before) {
        assert!(*now <= before + TOUCHES, "{now} reads after {before}");
    }
}

#[tokio::test]
async fn a_change_of_a_sources_metadata_ends_no_wait_and_one_of_its_content_does() {
    let ns = Cluster::shared().namespace().await;
    let (idp, mut broker) = (Idp::start(), Broker::start(&ns).await);
    idp.answer(Answer::error("invalid_client"));
    ns.provider(&idp).await;
    ns.apply(source("subject", "token", "somebodys-token")).await;
    let subject = json!({"secretRef": {"name": "subject", "key": "token"}});
    ns.apply(credential("billing").set("spec.grant", json!({"tokenExchange": {"subjectToken": subject}}))).await;
    let mut last = failed(&ns, 1).await.last_failure_time;

    // The restarted broker reads once the Secrets of the last attempt.
    let sources = ["idp-client", "subject"];
    broker.kill();
    let before = all_reads(&ns, &sources);
    broker.again().await;
    read_again(&ns, &sources, &before).await;
    let mut requests = 1;
    for (secret, key) in [("subject", "token"), ("idp-client", "client-secret")] {
        touch(&ns, &sources).await;
        holds(Duration::from_secs(2), "nobody asks", async || match idp.token_requests().len() {
            number if number == requests => Ok(()),
            number => Err(number.to_string()),
        })
        .await;
        ns.apply(source(secret, key, "another")).await;
        requests += 1;
        idp.token_requests_reach(requests).await;
        let later = |found: &MailCredential| found.status.as_ref().unwrap().last_failure_time > last;
        let found = ns.until::<MailCredential>("billing", "it has failed again", later).await;
        last = found.status.unwrap().last_failure_time;
    }
    assert_eq!(idp.token_requests().len(), requests);
}
