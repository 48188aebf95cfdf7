//! Writes the status if it differs. Emits an Event for each condition that turns bad or recovers.

use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Api, Client, Resource as _, ResourceExt as _, api::PostParams};
use serde_json::json;

use crate::{
    api::{MailCredential, MailCredentialStatus, names},
    error::{Error, STATUS_OVERWRITTEN, describe},
    fail_point,
    metrics::Metrics,
    policy::{
        Decision, Observed,
        checks::{self, credential_words},
        notices::notices,
        report_time::{END_REPORTED_AFTER, Report},
        status::{end_of_ready, ended, reports_an_end, status},
    },
    reconcile::{context::Context, credential_cache::CredentialCache, observe},
    stores::slim,
};

/// Returns when the broker may have to write the status of a credential whose request waits for a permit or is in
/// flight.
pub(super) fn reported_at(
    credential: &MailCredential,
    decision: &Decision,
    cache: &CredentialCache,
    now: Timestamp,
) -> Option<Timestamp> {
    let (waiting, in_flight) =
        cache.with(checks::uid(credential), |entry| (entry.object.waiting_since, entry.attempt.in_flight));
    let waiting = waiting.or(decision.queued_since());
    let none = MailCredentialStatus::default();
    let reported = credential.status.as_ref().unwrap_or(&none);
    Report {
        decision,
        reported,
        uid: checks::uid(credential),
        generation: credential.metadata.generation,
        waiting,
        in_flight,
    }
    .next(now)
}

/// Wait before the next reconcile after the API server has rejected a status because the object had changed. The watch
/// event of the newer object usually enqueues the credential sooner.
const STATUS_RETRY: SignedDuration = SignedDuration::from_secs(5);

/// Writes the status of a credential if it differs, then emits Events. Returns the time of the next reconcile if the broker
/// could not write the status now: the object has changed since the observation, or another writer changes the status after
/// each write.
pub(super) async fn report(
    observed: &Observed,
    decision: &Decision,
    context: &Context,
    now: Timestamp,
) -> Result<Option<Timestamp>, Error> {
    let credential = &observed.credential;
    let before = credential.status.clone().unwrap_or_default();
    let after = status(observed, decision, now);
    let uid = checks::uid(credential);
    let waits = decision.is_under_way() || decision.queued_since().is_some();
    let (waiting, in_flight) = context.cache.with(uid, |entry| {
        entry.object.waiting_since = entry.object.waiting_since.filter(|_| waits);
        (entry.object.waiting_since.or(decision.queued_since()), entry.attempt.in_flight)
    });
    if before == after {
        context.cache.with(uid, |entry| (entry.attempt.unreported, entry.probe.unreported) = (None, None));
        return Ok(None);
    }
    let ends = reports_an_end(&before.conditions, &after.conditions);
    let report =
        Report { decision, reported: &before, uid, generation: credential.metadata.generation, waiting, in_flight };
    if !report.is_due(ends, now) {
        return Ok(None);
    }
    let version = format!("{:?} {}", credential.metadata.generation, observed.attempt_hash);
    if let Some(until) = context.cache.defer_status(uid, &version, now) {
        overwritten(&credential_words(credential), &context.metrics);
        return Ok(Some(until));
    }
    fail_point::pass("before-status").await;
    match put_status(&context.kubernetes.client, credential, &after).await {
        Ok(written) => {
            context.cache.with(uid, |entry| (entry.attempt.unreported, entry.probe.unreported) = (None, None));
            remember(written, context);
        }
        // The object was deleted.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
        Err(kube::Error::Api(status)) if status.code == 409 => return Ok(Some(now + STATUS_RETRY)),
        Err(source) => return Err(Error::WriteStatus { name: credential_words(credential), source }),
    }
    fail_point::pass("status-written").await;
    for notice in notices(&before, &after) {
        context.kubernetes.events.emit(credential, &notice, context.clock.now());
    }
    Ok(None)
}

/// Reports the expiry of the token of a credential that the broker cannot observe, because a watch has not shown an
/// object to which it refers. Waits a moment first: right after a start, one status write then reports both the expiry
/// and the next token.
pub(super) async fn unshown(credential: Arc<MailCredential>, context: &Context) -> Option<Timestamp> {
    let now = context.clock.now();
    let uid = checks::uid(&credential);
    let since = context.cache.with(uid, |entry| *entry.object.waiting_since.get_or_insert(now));
    if now < since + END_REPORTED_AFTER {
        let latest = observe::latest(credential, context);
        return latest.status.as_ref().and_then(end_of_ready).map(|end| end.max(since + END_REPORTED_AFTER));
    }
    unobserved(credential, context).await
}

/// Reports the expiry of the token of a credential whose Secrets the broker could not read. Returns the time at which
/// the report is due.
pub(super) async fn unobserved(credential: Arc<MailCredential>, context: &Context) -> Option<Timestamp> {
    if !context.leadership.is_leader() || credential.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let credential = observe::latest(credential, context);
    let before = credential.status.clone().unwrap_or_default();
    let now = context.clock.now();
    let due = end_of_ready(&before).filter(|end| now < *end);
    let Some(after) = ended(&credential, now) else { return due };
    match put_status(&context.kubernetes.client, &credential, &after).await {
        Ok(written) => {
            remember(written, context);
            for notice in notices(&before, &after) {
                context.kubernetes.events.emit(&credential, &notice, context.clock.now());
            }
            None
        }
        Err(error) => {
            tracing::debug!(why = describe(&error), "status not written: the end of the token");
            Some(now + END_REPORTED_AFTER)
        }
    }
}

/// Keeps the written object until the watch shows it, and returns it. The event of the watch may precede the response to
/// the write.
pub(super) fn remember(mut written: MailCredential, context: &Context) -> Arc<MailCredential> {
    slim::credential(&mut written.metadata);
    let written = Arc::new(written);
    context.cache.with(checks::uid(&written), |entry| entry.object.written = Some(written.clone()));
    if context.stores.credentials.has(&written.metadata) {
        context.cache.shown(&written);
    }
    written
}

/// Replaces the status by a PUT. The API server ignores the rest of the object. It answers 409 if the object has
/// another uid or a newer resourceVersion. Server-side apply would cost the API server a quarter more CPU, because it
/// reads the configuration as YAML and merges it field by field.
async fn put_status(
    client: &Client,
    credential: &MailCredential,
    status: &MailCredentialStatus,
) -> kube::Result<MailCredential> {
    let meta = &credential.metadata;
    let body = json!({
        "apiVersion": MailCredential::api_version(&()),
        "kind": MailCredential::kind(&()),
        "metadata": {
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
        },
        "status": status,
    });
    let api: Api<MailCredential> = Api::namespaced(client.clone(), checks::namespace(credential));
    let parameters = PostParams { field_manager: Some(names::MANAGER.to_owned()), ..PostParams::default() };
    api.replace_subresource("status", &credential.name_any(), &parameters, &body).await
}

/// Logs and counts a status that another writer keeps changing.
pub(super) fn overwritten(name: &str, metrics: &Metrics) {
    metrics.reconcile_error(STATUS_OVERWRITTEN);
    tracing::warn!(
        object = name,
        "status written later: another writer changes it after each write. If two installations of the broker serve the \
         same objects, give each its own namespaces with --namespace"
    );
}
