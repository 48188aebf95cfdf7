//! The end of a credential. With `revocationPolicy: OnDelete` a finalizer keeps it until its tokens are revoked, or until
//! that has been tried for a minute: nobody's deletion, not that of a namespace either, waits longer.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Api, ResourceExt as _, api::PatchParams, runtime::controller::Action};
use serde_json::json;

use super::{
    Context,
    act::{Revocation, revoke},
    custody, full_name, observe, report, slim,
    writes::{fence, patch},
};
use crate::{
    api::{MailCredential, Reason, Retry, credential::RevocationPolicy, names},
    error::{Error, told_by},
    policy::{Decision, checks, notices::Notice, status::next_turn},
};

/// How long revocation is tried, from the deletion on.
const PATIENCE: SignedDuration = SignedDuration::from_mins(1);
/// How far apart attempts are.
const AGAIN: Duration = Duration::from_secs(5);
/// How often the removal of the finalizer is tried before all begins anew, and how much longer each wait is.
const REMOVALS: u32 = 20;
const REMOVED_AGAIN: Duration = Duration::from_millis(200);

/// Sees to it that a credential has the finalizer just if its policy wants it. Most have none, and cost nothing.
pub(super) async fn finalizer(
    credential: Arc<MailCredential>,
    context: &Context,
) -> Result<Arc<MailCredential>, Error> {
    let has = credential.finalizers().iter().any(|name| name == names::FINALIZER_REVOKE);
    let wants = credential.spec.revocation_policy == RevocationPolicy::OnDelete;
    if has == wants {
        return Ok(credential);
    }
    let written = match set(&credential, wants, context).await {
        // Another writer was faster: the watch shows the newer object, which wakes the credential.
        Err(Error::WriteFinalizer { source: kube::Error::Api(status), .. }) if matches!(status.code, 409 | 422) => None,
        written => written?,
    };
    let Some(mut written) = written else { return Ok(credential) };
    slim::credential(&mut written.metadata);
    let written = Arc::new(written);
    context.memory.with(checks::uid(&credential), |entry| entry.written = Some(written.clone()));
    Ok(written)
}

/// Adds the finalizer, or takes it away; `None` if the credential is gone.
async fn set(credential: &MailCredential, wanted: bool, context: &Context) -> Result<Option<MailCredential>, Error> {
    let names = credential.finalizers();
    let own = names.iter().position(|name| name == names::FINALIZER_REVOKE);
    let uid = credential.metadata.uid.as_deref().unwrap_or_default();
    let version = credential.metadata.resource_version.as_deref().unwrap_or_default();
    let same_uid = || json!({"op": "replace", "path": "/metadata/uid", "value": uid});
    let operations = match (wanted, own) {
        (true, Some(_)) | (false, None) => return Ok(Some(credential.clone())),
        (true, None) if names.is_empty() => {
            let finalizers = json!({"op": "add", "path": "/metadata/finalizers", "value": [names::FINALIZER_REVOKE]});
            fence(uid, version).into_iter().chain([finalizers]).collect()
        }
        (true, None) => {
            vec![same_uid(), json!({"op": "add", "path": "/metadata/finalizers/-", "value": names::FINALIZER_REVOKE})]
        }
        // Without the resourceVersion: a label that was set meanwhile does not matter.
        (false, Some(index)) => {
            let path = format!("/metadata/finalizers/{index}");
            let test = json!({"op": "test", "path": path, "value": names::FINALIZER_REVOKE});
            vec![same_uid(), test, json!({"op": "remove", "path": path})]
        }
    };
    let api: Api<MailCredential> = Api::namespaced(context.client.clone(), checks::namespace(credential));
    match api.patch(&credential.name_any(), &PatchParams::default(), &patch(operations)).await {
        Ok(written) => Ok(Some(written)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(source) => Err(Error::WriteFinalizer { name: full_name(credential), source }),
    }
}

/// Takes leave of a credential that is being deleted.
pub(super) async fn farewell(
    credential: Arc<MailCredential>,
    deleted: Timestamp,
    context: &Arc<Context>,
) -> Result<Action, Error> {
    let uid = checks::uid(&credential).to_owned();
    if !credential.finalizers().iter().any(|name| name == names::FINALIZER_REVOKE) {
        return linger(credential, context).await;
    }
    // A request that is under way may bring one more token: its end wakes the credential.
    let now = context.clock.now();
    let busy = context.memory.with(&uid, |entry| entry.in_flight.replace(now).is_some());
    if !busy {
        let context = context.clone();
        tokio::spawn(async move {
            // Until a watch shows that the finalizer has gone, this stays under way, or all would be revoked once more.
            let Err(error) = take_leave(&credential, deleted, &context).await else { return };
            let why = std::error::Error::source(&error).and_then(|source| source.downcast_ref()).map(told_by);
            tracing::warn!(why, "{error} failed; it is tried again");
            context.metrics.reconcile_error(error.category());
            tokio::time::sleep(AGAIN).await;
            context.memory.finish(&uid, None);
            context.waker.credential((checks::namespace(&credential).to_owned(), credential.name_any()));
        });
    }
    Ok(Action::await_change())
}

/// The finalizers of others keep the credential: its status still follows its token. A refresh token that is not stored
/// yet is stored before the credential is forgotten, since the grant Secret may outlive it.
async fn linger(credential: Arc<MailCredential>, context: &Arc<Context>) -> Result<Action, Error> {
    if let Err(error) = custody::keep_unsaved(&credential, context).await {
        tracing::error!(%error, "the last refresh token of a deleted credential could not be stored; it is tried again");
        return Ok(Action::requeue(AGAIN));
    }
    if credential.finalizers().is_empty() {
        context.memory.forget(checks::uid(&credential));
        return Ok(Action::await_change());
    }
    let credential = observe::latest(credential, context);
    let Some(observed) = observe::observe(credential, context).await? else { return Ok(Action::await_change()) };
    let now = context.clock.now();
    let decision = Decision::Wait { until: now };
    if !report::report(&observed, &decision, context, now).await? {
        return Ok(Action::requeue(AGAIN));
    }
    let turn = next_turn(&observed, &decision, now).map(|at| context.clock.until(at));
    Ok(turn.map_or_else(Action::await_change, Action::requeue))
}

async fn take_leave(credential: &Arc<MailCredential>, deleted: Timestamp, context: &Arc<Context>) -> Result<(), Error> {
    if let Err(error) = custody::keep_unsaved(credential, context).await {
        tracing::warn!(%error, "the last refresh token of a deleted credential was not stored, so it is not revoked");
    }
    let revocation = loop {
        let revocation = revoke(credential, context).await;
        let out_of_time = context.clock.now().duration_since(deleted) >= PATIENCE;
        match &revocation {
            Revocation::Failed(why, Retry::Transient) if !out_of_time => {
                tracing::warn!(why, "tokens could not be revoked yet; it is tried again");
                tokio::time::sleep(AGAIN).await;
            }
            _ => break revocation,
        }
    };
    if let Some(notice) = notice(&revocation, credential, context.clock.now()) {
        report::tell(credential, &notice, context).await;
    }
    let mut attempts = 0;
    loop {
        let shown = context.stores.credentials.get(checks::namespace(credential), &credential.name_any());
        let newest = shown.filter(|shown| shown.metadata.uid == credential.metadata.uid);
        match set(newest.as_ref().unwrap_or(credential), false, context).await {
            // What was revoked is not revoked again because the finalizer could not be removed.
            Err(error) if attempts < REMOVALS && context.leadership.is_leader() => {
                tracing::warn!(%error, "the finalizer could not be removed; it is tried again");
                attempts += 1;
                tokio::time::sleep(REMOVED_AGAIN * attempts).await;
            }
            other => return other.map(drop),
        }
    }
}

fn notice(revocation: &Revocation, credential: &MailCredential, now: Timestamp) -> Option<Notice> {
    let status = credential.status.as_ref();
    let had_tokens = status.is_some_and(|status| {
        status.grant.is_some() || status.token.as_ref().is_some_and(|token| now < token.expires_at.0)
    });
    let (warning, reason, note) = match revocation {
        Revocation::Nothing if !had_tokens => return None,
        // With a namespace Kubernetes deletes its Secrets in any order.
        Revocation::Nothing => (
            true,
            Reason::RevocationFailed,
            "the tokens are not revoked: the Secrets that held them were deleted before. Revoke them in the provider's own \
             console"
                .to_owned(),
        ),
        Revocation::Revoked => (false, Reason::GrantRevoked, "the provider has revoked the tokens".to_owned()),
        Revocation::NotSupported => (
            true,
            Reason::RevocationNotSupported,
            "the provider has no way to revoke tokens: the access token ends by itself, and a refresh token has to be \
             revoked in the provider's own console"
                .to_owned(),
        ),
        Revocation::Failed(why, _) => (
            true,
            Reason::RevocationFailed,
            format!("the tokens are not revoked: {why}. Revoke them in the provider's own console"),
        ),
    };
    Some(Notice { warning, reason, note })
}
