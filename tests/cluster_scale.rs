//! Five thousand credentials: each costs one token request, one write of its Secret and one of its status, and a restart
//! costs none of them.

#![allow(clippy::unwrap_used, reason = "what fails here is a test's failure")]

mod support;

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, PostParams},
};
use mail_token_broker::api::{ConditionType, MailCredential, condition};
use support::{audit::AuditEvent, wait::until_in, *};

const CREDENTIALS: usize = 5_000;
/// Enough for a machine of two cores that builds something else meanwhile.
const DEADLINE: Duration = Duration::from_secs(600);

fn is_ready(credential: &MailCredential) -> bool {
    credential.status.as_ref().is_some_and(|status| condition::is_true(&status.conditions, ConditionType::Ready))
}

async fn ready(api: &Api<MailCredential>) -> usize {
    api.list(&ListParams::default()).await.unwrap().iter().filter(|credential| is_ready(credential)).count()
}

/// Writes of what belongs to the credentials; the test itself writes none of it.
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

    let audit = cluster.audit();
    assert_eq!(idp.token_requests().len(), CREDENTIALS, "token requests");
    assert_eq!(writes(&audit, "secrets"), CREDENTIALS, "writes of Secrets");
    assert_eq!(writes(&audit, "mailcredentials/status"), CREDENTIALS, "writes of statuses");
    let reads = audit.iter().filter(|event| event.access.verb == "get" && event.name.starts_with("mailbox-")).count();
    assert_eq!(reads, 0, "reads of what the watches show");

    broker.kill();
    broker.again().await;
    // The mark that everything has been looked at: a new credential is served after all that were there.
    ns.apply(credential("marker")).await;
    ns.condition::<MailCredential>("marker", "Ready", "TokenValid").await;
    let audit = cluster.audit();
    assert_eq!(idp.token_requests().len(), CREDENTIALS + 1, "token requests after the restart");
    assert_eq!(writes(&audit, "secrets"), CREDENTIALS + 1, "writes of Secrets after the restart");
    assert_eq!(writes(&audit, "mailcredentials/status"), CREDENTIALS + 1, "writes of statuses after the restart");
}

fn tail(log: &str) -> String {
    log.lines().rev().take(20).collect::<Vec<_>>().join("\n")
}
