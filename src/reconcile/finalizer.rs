//! The finalizer of a credential. With `revocationPolicy: OnDelete`, it keeps the credential until the broker has
//! revoked the tokens, for a minute at most. No deletion waits longer, not even the deletion of a namespace.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt as _;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Api, Client, ResourceExt as _, api::PatchParams};
use serde_json::json;

use crate::{
    admission::Answer,
    api::{MailCredential, Retry, credential::RevocationPolicy, names, reference::key},
    error::{Error, PANIC},
    policy::{
        Decision,
        checks::{self, credential_words},
        revocation::{self, Revocation},
        status::next_turn,
        urgency::Class,
    },
    reconcile::{
        act::{
            activity::{Activity, Permit},
            admit::ask_for_request,
            revoke::revoke,
        },
        action::Action,
        context::Context,
        credential_state::Revoking,
        custody,
        json_patch::{add, fence, patch, remove, same_uid, test},
        observe, report,
    },
    stores::slim,
};

/// Time after the deletion in which the broker tries the revocation.
const REVOCATION_TIMEOUT: SignedDuration = SignedDuration::from_mins(1);
/// Wait between two attempts of a revocation.
const REVOCATION_RETRY: SignedDuration = SignedDuration::from_secs(5);
/// Wait before the next try to store a refresh token of a credential that other finalizers keep.
const LINGER_RETRY: Duration = Duration::from_secs(5);
/// Wait before the next try to remove the finalizer from an object that has changed: the watch shows the newer object
/// within this time.
const FINALIZER_RETRY: Duration = Duration::from_millis(200);

/// Adds or removes the finalizer to match `revocationPolicy`. A credential without the policy costs no call.
pub(super) async fn reconcile(
    credential: Arc<MailCredential>,
    context: &Context,
) -> Result<Arc<MailCredential>, Error> {
    let has = credential.finalizers().iter().any(|name| name == names::FINALIZER_REVOKE);
    let wants = credential.spec.revocation_policy == RevocationPolicy::OnDelete;
    if has == wants {
        return Ok(credential);
    }
    let written = match set(&credential, wants, &context.kubernetes.client).await {
        // Another writer changed the object. The watch event of the newer object enqueues the credential.
        Err(Error::WriteFinalizer { source: kube::Error::Api(status), .. }) if matches!(status.code, 409 | 422) => None,
        written => written?,
    };
    Ok(written.map_or(credential, |written| report::remember(written, context)))
}

/// Adds or removes the finalizer. Returns `None` if the credential no longer exists.
async fn set(credential: &MailCredential, wanted: bool, client: &Client) -> Result<Option<MailCredential>, Error> {
    let api: Api<MailCredential> = Api::namespaced(client.clone(), checks::namespace(credential));
    let failed = |source| Error::WriteFinalizer { name: credential_words(credential), source };
    let complete = match credential.finalizers().iter().any(|name| name == slim::OTHER_FINALIZERS) {
        // The store has not kept all finalizers, and the patch needs the index of the broker's finalizer.
        true => match api.get_metadata_opt(&credential.name_any()).await.map_err(failed)? {
            Some(found) => Some(found.metadata),
            None => return Ok(None),
        },
        false => None,
    };
    let meta = complete.as_ref().unwrap_or(&credential.metadata);
    let names = meta.finalizers.as_deref().unwrap_or_default();
    let own = names.iter().position(|name| name == names::FINALIZER_REVOKE);
    let uid = credential.metadata.uid.as_deref().unwrap_or_default();
    let version = meta.resource_version.as_deref().unwrap_or_default();
    let operations: Vec<_> = match (wanted, own) {
        (true, Some(_)) | (false, None) => return Ok(Some(credential.clone())),
        (true, None) if names.is_empty() => {
            let finalizers = add(["finalizers"], json!([names::FINALIZER_REVOKE]));
            fence(uid, version).into_iter().chain([finalizers]).collect()
        }
        (true, None) => vec![same_uid(uid), add(["finalizers", "-"], names::FINALIZER_REVOKE.into())],
        // Do not fence by resourceVersion: a concurrent change of a label does not matter.
        (false, Some(index)) => {
            let path = ["finalizers", &index.to_string()];
            vec![same_uid(uid), test(path, names::FINALIZER_REVOKE.into()), remove(path)]
        }
    };
    match api.patch(&credential.name_any(), &PatchParams::default(), &patch(operations)).await {
        Ok(written) => Ok(Some(written)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(source) => Err(failed(source)),
    }
}

/// Cleans up a deleted credential: revokes its tokens when the request is admitted, then removes the finalizer. At the
/// deadline, removes the finalizer in any case.
///
/// # Errors
/// The removal of the finalizer failed.
pub(super) async fn cleanup(
    credential: Arc<MailCredential>,
    deleted: Timestamp,
    context: &Arc<Context>,
) -> Result<Action, Error> {
    let (uid, row) = (checks::uid(&credential), Activity::grant(&credential));
    if !credential.finalizers().iter().any(|name| name == names::FINALIZER_REVOKE) {
        context.requests.withdraw(uid);
        return linger(credential, context).await;
    }
    let (now, deadline) = (context.clock.now(), deleted + REVOCATION_TIMEOUT);
    let wait_until = |at: Timestamp| Ok(Action::requeue(context.clock.until(at)));
    let (in_flight, revoking) =
        context.cache.with(uid, |entry| (entry.attempt.in_flight.is_some(), entry.attempt.revoking.clone()));
    if in_flight {
        // The end of the request enqueues the credential. A request that began before the deletion may return one more
        // token.
        return Ok(Action::await_change());
    }
    let (revocation, reported) = match revoking {
        Some(Revoking::Released) => return Ok(Action::await_change()),
        Some(Revoking::Over { revocation, reported }) => (revocation, reported),
        Some(Revoking::Again { why, .. }) if now >= deadline => (Revocation::Failed(why, Retry::Transient), false),
        _ if now >= deadline => (too_late("other requests to the provider came first for a minute"), false),
        Some(Revoking::Again { at, .. }) if now < at => return wait_until(at.min(deadline)),
        _ => {
            let ask =
                ask_for_request(&credential, |at| at.revocation_url.as_deref(), (Class::Person, deleted), context);
            if let Answer::Admitted(permit) = context.requests.admission.ask(&row, ask) {
                start_revocation(credential, permit, deadline, context);
                return Ok(Action::await_change());
            }
            return wait_until(deadline);
        }
    };
    context.requests.admission.withdraw(&row);
    if !reported && let Some(notice) = revocation::notice(&revocation, &credential, now) {
        context.kubernetes.events.emit(&credential, &notice, now);
    }
    let keep = |step| context.cache.with(uid, |entry| entry.attempt.revoking = Some(step));
    keep(Revoking::Over { revocation, reported: true });
    match set(&credential, false, &context.kubernetes.client).await {
        Ok(_) => {
            keep(Revoking::Released);
            Ok(Action::await_change())
        }
        // Repeat only the write of the finalizer, not the revocation.
        Err(Error::WriteFinalizer { source: kube::Error::Api(status), .. }) if matches!(status.code, 409 | 422) => {
            Ok(Action::requeue(FINALIZER_RETRY))
        }
        Err(error) => Err(error),
    }
}

/// Reconciles a deleted credential that other finalizers keep: its status still follows its token. Stores a pending
/// refresh token before the cache forgets the credential, because the grant Secret may outlive the credential.
async fn linger(credential: Arc<MailCredential>, context: &Arc<Context>) -> Result<Action, Error> {
    if let Err(error) = custody::persist_pending(&credential, context).await {
        tracing::error!(%error, "last refresh token of a deleted credential not stored: retrying");
        return Ok(Action::requeue(LINGER_RETRY));
    }
    if credential.finalizers().is_empty() {
        context.cache.forget(checks::uid(&credential), false);
        return Ok(Action::await_change());
    }
    let credential = observe::latest(credential, context);
    let Some(observed) = observe::observe(credential, context).await? else { return Ok(Action::await_change()) };
    let now = context.clock.now();
    let decision = Decision::Wait { until: now };
    if let Some(at) = report::report(&observed, &decision, context, now).await? {
        return Ok(Action::requeue(context.clock.until(at)));
    }
    let turn = next_turn(&observed, &decision, now).map(|at| context.clock.until(at));
    Ok(turn.map_or_else(Action::await_change, Action::requeue))
}

fn too_late(why: &str) -> Revocation {
    Revocation::Failed(why.to_owned(), Retry::Transient)
}

/// Starts the revocation in its own task, which holds the permit and ends at the deadline.
fn start_revocation(credential: Arc<MailCredential>, permit: Permit, deadline: Timestamp, context: &Arc<Context>) {
    let context = context.clone();
    context.cache.with(checks::uid(&credential), |entry| entry.attempt.in_flight = Some(context.clock.now()));
    tokio::spawn(async move {
        let revoked = AssertUnwindSafe(revoke_until(&credential, permit, deadline, &context)).catch_unwind().await;
        let revocation = revoked.unwrap_or_else(|_| {
            context.metrics.reconcile_error(PANIC);
            too_late("the broker failed: see its log")
        });
        let step = match revocation {
            Revocation::Failed(why, Retry::Transient) if context.clock.now() < deadline => {
                tracing::warn!(why, "tokens not revoked: retrying");
                Revoking::Again { at: context.clock.now() + REVOCATION_RETRY, why }
            }
            revocation => Revoking::Over { revocation, reported: false },
        };
        context.cache.with(checks::uid(&credential), |entry| entry.attempt.revoking = Some(step));
        context.cache.finish(checks::uid(&credential), None);
        context.queue.enqueue_credential(key(&*credential));
    });
}

async fn revoke_until(
    credential: &Arc<MailCredential>,
    permit: Permit,
    deadline: Timestamp,
    context: &Arc<Context>,
) -> Revocation {
    if let Err(error) = custody::persist_pending(credential, context).await {
        tracing::warn!(%error, "last refresh token of a deleted credential not revoked: not stored");
    }
    let revoked = tokio::time::timeout(context.clock.until(deadline), revoke(credential, permit, context)).await;
    revoked.unwrap_or_else(|_| too_late("the provider did not answer within a minute"))
}
