//! Counts the requests to the API server and to the provider for many credentials: for an issue, a renewal, a restart,
//! and while idle.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use mail_token_broker::api::{MailCredential, MailProvider, names};
use mailtoken_testkit::{audit::AuditEvent, *};

const CREDENTIALS: usize = 100;
/// Number of credentials, enough to see the cost of each.
const FEW: usize = 10;
/// Number of credentials that the test creates at the same time, including those that wait for the broker.
const CONCURRENCY: usize = 16;
/// Time in which the broker must send no request.
const REST: Duration = Duration::from_secs(2);
/// Maximum number of calls of a start that are neither lists nor watches: for the client credentials of a provider, and
/// for one new credential.
const START: usize = 12;

/// Creates `number` credentials, and waits until all are ready.
async fn make(fixture: &Fixture, prefix: &str, number: usize) {
    let one = async |number| drop(fixture.issued(credential(&format!("{prefix}-{number}"))).await);
    stream::iter(0..number).map(one).buffer_unordered(CONCURRENCY).collect::<()>().await;
}

/// Counts the broker's requests by verb and resource.
fn kinds(asked: &[AuditEvent]) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for event in asked {
        *kinds.entry(format!("{} {} {}", event.access.verb, event.access.resource, event.code)).or_default() += 1;
    }
    kinds
}

/// Returns the broker's requests in this namespace after the first `before` events, without those for its lease.
fn asked(fixture: &Fixture, before: usize) -> Vec<AuditEvent> {
    fixture.ns.audit().into_iter().filter(AuditEvent::is_work_of_the_broker).skip(before).collect()
}

/// Creates one more credential, and waits until the log shows its last write. The broker has then reconciled all
/// earlier credentials.
async fn end(fixture: &Fixture, name: &str) {
    fixture.mark(name).await;
    until("the log has the last write", async || {
        let reported = |event: &AuditEvent| event.name == name && event.access.resource == "mailcredentials/status";
        asked(fixture, 0).iter().any(reported).then_some(()).ok_or_else(String::new)
    })
    .await;
}

/// Waits until the audit log has exactly these calls. The API server writes the log after the response.
async fn calls(fixture: &Fixture, before: usize, wanted: [(&str, usize); 2]) {
    let wanted: BTreeMap<_, _> = wanted.map(|(kind, number)| (kind.to_owned(), number)).into();
    until("the broker has made these calls", async || match kinds(&asked(fixture, before)) {
        kinds if kinds == wanted => Ok(()),
        kinds => Err(format!("{kinds:?} instead of {wanted:?}")),
    })
    .await;
}

#[tokio::test]
async fn an_issue_and_a_renewal_are_one_token_request_and_two_calls_each_and_rest_is_none() {
    let fixture = Fixture::new().await;
    fixture.ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    // For the first credential, the broker reads the provider's client secret and watches its CA bundle. Later
    // credentials share both.
    end(&fixture, "first").await;
    until("the broker watches the CA bundle", async || {
        let watch = |event: &AuditEvent| event.access.verb == "watch" && event.access.resource == "configmaps";
        asked(&fixture, 0).iter().any(watch).then_some(()).ok_or_else(String::new)
    })
    .await;
    let (before, requests) = (asked(&fixture, 0).len(), fixture.idp.token_requests().len());

    make(&fixture, "mailbox", CREDENTIALS).await;
    calls(&fixture, before, [("create secrets 201", CREDENTIALS), ("update mailcredentials/status 200", CREDENTIALS)])
        .await;
    assert_eq!(fixture.idp.token_requests().len(), requests + CREDENTIALS);

    let before = asked(&fixture, 0).len();
    let renew = async |number| {
        let name = format!("mailbox-{number}");
        fixture.ns.annotate::<MailCredential>(&name, "mailtoken.dev/reissue", "1").await;
        let handled = |found: &MailCredential| field(found, "/status/lastHandledReissue") == "1";
        fixture.ns.until::<MailCredential>(&name, "it was issued again", handled).await;
    };
    stream::iter(0..CREDENTIALS).map(renew).buffer_unordered(CONCURRENCY).collect::<()>().await;
    calls(&fixture, before, [("patch secrets 200", CREDENTIALS), ("update mailcredentials/status 200", CREDENTIALS)])
        .await;
    assert_eq!(fixture.idp.token_requests().len(), requests + 2 * CREDENTIALS);

    let before = asked(&fixture, 0).len();
    holds(REST, "nothing is asked for", async || match kinds(&asked(&fixture, before)) {
        kinds if kinds.is_empty() => Ok(()),
        kinds => Err(format!("{kinds:?}")),
    })
    .await;
}

#[tokio::test]
async fn the_calls_of_a_restart_do_not_grow_with_the_number_of_credentials() {
    let cluster = Cluster::alone(&["control-plane"]);
    let (ns, idp) = (cluster.namespace().await, Idp::start());
    ns.provider(&idp).await;
    let broker = Broker::cluster_wide(&cluster).flag(format!("--broker-namespace={}", ns.name)).start().await;
    let mut fixture = Fixture { ns, idp, broker };
    let work = |fixture: &Fixture| -> Vec<_> {
        fixture.ns.cluster.audit_where(|event| event.is_work_of_the_broker() && event.is_about_one_object())
    };
    let mut counted = vec![];
    for (round, number) in [10, CREDENTIALS].into_iter().enumerate() {
        make(&fixture, &format!("round-{round}"), number).await;
        fixture.broker.terminate().await;
        let (calls, requests) = (work(&fixture).len(), fixture.idp.token_requests().len());
        fixture.broker.again().await;
        let mark = format!("mark-{round}");
        end(&fixture, &mark).await;
        let work = work(&fixture).split_off(calls);
        assert!(work.len() <= START, "{:#?}", kinds(&work));
        assert_eq!(fixture.idp.token_requests().len(), requests + 1, "that of the mark");
        counted.push(kinds(&work));
    }
    assert_eq!(counted[0], counted[1]);
}

#[tokio::test]
async fn a_start_with_tokens_that_have_ended_costs_as_much_as_a_first_issue() {
    let mut fixture = Fixture::new().await;
    fixture.idp.answer(Answer::token(4));
    make(&fixture, "mailbox", FEW).await;
    fixture.broker.kill();
    let ends = |found: MailCredential| found.status.unwrap().token.unwrap().expires_at.0;
    let mut last = wait::now();
    for number in 0..FEW {
        last = last.max(ends(fixture.ns.get(&format!("mailbox-{number}")).await));
    }
    until("all tokens have ended", async || (wait::now() > last).then_some(()).ok_or_else(|| last.to_string())).await;
    let (before, requests) = (asked(&fixture, 0).len(), fixture.idp.token_requests().len());
    fixture.idp.answer(Answer::token(3600));

    fixture.broker.again().await;
    for number in 0..FEW {
        let renewed = |found: &MailCredential| ends(found.clone()) > last;
        fixture.ns.until::<MailCredential>(&format!("mailbox-{number}"), "it has another token", renewed).await;
    }
    end(&fixture, "last").await;
    let changes = |kind: &str| ["patch", "update"].iter().any(|verb| kind.starts_with(verb));
    let writes = kinds(&asked(&fixture, before)).into_iter().filter(|(kind, _)| changes(kind));
    let wanted = [("patch secrets 200", FEW), ("update mailcredentials/status 200", FEW + 1)];
    assert_eq!(writes.collect::<Vec<_>>(), wanted.map(|(kind, number)| (kind.to_owned(), number)));
    assert_eq!(fixture.idp.token_requests().len(), requests + FEW + 1);
}

#[tokio::test]
async fn secrets_are_listed_and_watched_by_two_labels_alone_and_without_their_data() {
    let ns = Cluster::shared().namespace().await;
    let (idp, api) = (Idp::start(), ApiProxy::start(&ns.cluster));
    ns.provider(&idp).await;
    let broker = Broker::settings(&ns).kubeconfig(&api.kubeconfig()).start().await;
    let mut fixture = Fixture { ns, idp, broker };
    fixture.issued(credential("billing")).await;
    // At the first start the broker had no Secret of its own; at the second start it has one.
    assert!(fixture.broker.terminate().await.success());
    fixture.broker.again().await;
    end(&fixture, "last").await;

    let own = format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGER);
    let sources = format!("{}=true", names::LABEL_SOURCE);
    let looks = ["list", "watch"].map(|verb| [&own, &sources].map(|labels| (verb.to_owned(), labels.clone())));
    let wanted: BTreeSet<_> = looks.into_iter().flatten().collect();
    let looks_for_secrets = |event: &AuditEvent| {
        event.access.resource == "secrets" && event.is_work_of_the_broker() && !event.is_about_one_object()
    };
    until("Secrets are looked for by these labels, and not otherwise", async || {
        let looks = fixture.ns.audit().into_iter().filter(looks_for_secrets);
        let seen: BTreeSet<_> = looks.map(|event| (event.access.verb, event.selector)).collect();
        if seen == wanted { Ok(()) } else { Err(format!("{seen:?} instead of {wanted:?}")) }
    })
    .await;
    // The audit log does not show the requested representation, and contains requests of other tests' brokers. The
    // proxy has only this broker's requests.
    let asked = api.asked();
    let elsewhere: Vec<_> = asked
        .iter()
        .filter(|asked| asked.path.contains("/secrets") && !asked.path.contains(&fixture.ns.name))
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:#?}");
    let looks: Vec<_> =
        asked.iter().filter(|asked| asked.method == "GET" && asked.path.contains("/secrets?")).collect();
    assert!(looks.len() >= wanted.len(), "{asked:#?}");
    let whole: Vec<_> = looks.into_iter().filter(|asked| !asked.accept.contains("as=PartialObjectMetadata")).collect();
    assert!(whole.is_empty(), "{whole:#?}");
}
