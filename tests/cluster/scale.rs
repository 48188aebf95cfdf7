//! Five thousand credentials: each costs one token request, one write of its Secret and one of its status. A restart
//! costs none of these.

use std::{ops::RangeInclusive, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, PostParams},
};
use mail_token_broker::api::{ConditionType, MailCredential, condition};
use mailtoken_testkit::{audit::AuditEvent, wait::until_in, *};

const CREDENTIALS: usize = 5_000;
/// Maximum number of writes of one status: the broker reports once that a request waits in the queue for 20 to 30 s, and once
/// that it hangs for 3 s. Parallel tests can cause such waits.
const STATUSES: usize = 3;
/// Time limit, long enough for a machine of two cores that runs a build at the same time.
const DEADLINE: Duration = Duration::from_secs(600);

fn is_ready(credential: &MailCredential) -> bool {
    credential.status.as_ref().is_some_and(|status| condition::is_true(&status.conditions, ConditionType::Ready))
}

async fn ready(api: &Api<MailCredential>) -> usize {
    api.list(&ListParams::default()).await.unwrap().iter().filter(|credential| is_ready(credential)).count()
}

/// Counts the broker's writes of a resource of the credentials. The test itself writes none of them.
fn writes(audit: &[AuditEvent], resource: &str) -> usize {
    let written = |event: &&AuditEvent| {
        let verb = event.access.verb.as_str();
        let ours = event.name.starts_with("mailbox-")
            || event.name == "marker"
            || (verb == "create" && event.access.resource == "secrets");
        ours && event.access.resource == resource
            && event.name != "idp-client"
            && ["create", "patch", "update", "delete"].contains(&verb)
    };
    audit.iter().filter(written).count()
}

/// Waits until the audit log has this number of writes of Secrets, and a number of writes of statuses within these
/// bounds. A write takes effect a moment before the log has it.
async fn written(cluster: &Cluster, secrets: usize, statuses: RangeInclusive<usize>) -> Vec<AuditEvent> {
    until("the writes are in the log, and no others", async || {
        let audit = cluster.audit();
        match ["secrets", "mailcredentials/status"].map(|resource| writes(&audit, resource)) {
            [written, reported] if written == secrets && statuses.contains(&reported) => Ok(audit),
            written => Err(format!("{written:?} instead of {secrets} and {statuses:?}")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_credentials_cost_one_request_and_two_writes_each_and_a_restart_costs_none() {
    let cluster = Cluster::alone(&["control-plane"]);
    let ns = cluster.namespace().await;
    let idp = Idp::start();
    idp.answer(Answer::token(86_400));
    let mut broker = Broker::start(&ns).await;
    ns.provider(&idp).await;

    let api = ns.api::<MailCredential>();
    let names = stream::iter((0..CREDENTIALS).map(|number| format!("mailbox-{number:05}")));
    let create = |name: String| {
        let api = api.clone();
        let object: MailCredential = serde_json::from_value(credential(&name).0).unwrap();
        async move { api.create(&PostParams::default(), &object).await.map(|object| object.name_any()) }
    };
    names.map(create).buffer_unordered(16).try_collect::<Vec<_>>().await.unwrap();
    until_in(DEADLINE, "all credentials are ready", async || {
        let ready = ready(&api).await;
        if ready == CREDENTIALS {
            Ok(())
        } else {
            Err(format!("{ready} of {CREDENTIALS} are ready\n{}", tail(&broker.log())))
        }
    })
    .await;

    assert_eq!(idp.token_requests().len(), CREDENTIALS, "token requests");
    let audit = written(&cluster, CREDENTIALS, CREDENTIALS..=STATUSES * CREDENTIALS).await;
    let statuses = writes(&audit, "mailcredentials/status");
    let reads = audit.iter().filter(|event| event.access.verb == "get" && event.name.starts_with("mailbox-")).count();
    assert_eq!(reads, 0, "reads of what the watches show");

    broker.kill();
    broker.relaunch();
    until_in(DEADLINE, "the broker is ready again", async || match broker.get("/readyz").await {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    // The broker serves a new credential after all existing ones. So its token shows that the broker has reconciled
    // them.
    ns.apply(credential("marker")).await;
    ns.until_in::<MailCredential>(DEADLINE, "marker", "it is served", is_ready).await;
    assert_eq!(idp.token_requests().len(), CREDENTIALS + 1, "token requests after the restart");
    written(&cluster, CREDENTIALS + 1, statuses + 1..=statuses + STATUSES).await;
}

fn tail(log: &str) -> String {
    log.lines().rev().take(20).collect::<Vec<_>>().join("\n")
}
