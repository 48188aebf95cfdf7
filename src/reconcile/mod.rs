//! The reconcile of a credential, step by step: `observe` reads, `policy::decide` decides, `act` sends the request,
//! `custody` and `publish` write the Secrets, `report` writes the status and emits Events. Decisions are in `policy`.

pub mod act;
pub mod action;
pub mod bundles;
pub mod context;
pub mod credential_cache;
pub mod credential_state;
pub mod custody;
pub mod events;
mod finalizer;
pub mod json_patch;
pub mod memory_budget;
pub mod observe;
mod own_sources;
pub mod provider;
pub mod provider_cache;
pub mod publish;
mod queue;
pub mod recent_writes;
pub mod report;
pub mod secrets;
mod sized;
pub mod source_contents;
pub mod work_queue;

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;

use crate::{
    api::{ConditionType, MailCredential, Reason, condition, names},
    error::Error,
    oauth::Refusal,
    policy::{self, Decision, Observed, Write, checks, observed::Target, status::next_turn},
    reconcile::{
        act::{
            activity::Activity,
            probe,
            start::{start_request, wants_a_permit},
        },
        action::Action,
        context::Context,
        custody::pending::CustodyError,
        publish::PublishError,
    },
};

/// Intervals at which the broker reconciles a stalled credential: the first value for 30 s, then the second. No watch
/// shows some repairs: a deleted foreign target, a source that gets its label.
const RECHECK: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(60)];
/// Wait before the next reconcile of a new credential whose provider the watch does not show yet. The provider's watch
/// also enqueues the credential.
const WATCH_LAG_RECHECK: Duration = Duration::from_millis(500);
/// Time for which the first value of [`RECHECK`] applies, in seconds.
const AT_FIRST_SECONDS: i64 = 30;

/// Wait before the next reconcile of a replica that lost the leadership during a write of a Secret, or that could not
/// store a refresh token.
const GRANT_WRITE_RETRY: Duration = Duration::from_secs(2);
/// Wait before the next try to repair the target, during the back-off of the next token request.
const REPAIR_RETRY: SignedDuration = SignedDuration::from_secs(30);

/// Reconciles one credential. A request runs in a separate task, which enqueues the credential again at its end.
///
/// # Errors
/// The step that failed in Kubernetes. All other failures become conditions.
pub async fn reconcile(credential: Arc<MailCredential>, context: &Arc<Context>) -> Result<Action, Error> {
    let (uid, row) = (checks::uid(&credential).to_owned(), Activity::grant(&credential));
    let done = credential_step(credential.clone(), context).await;
    if done.is_err() {
        // Otherwise an offered permit would stay unused until the next try.
        context.requests.admission.decline(&row);
        // The caller computes the time of the next try.
        report::unobserved(credential, context).await;
    }
    if !context.cache.tidy(&uid) {
        // The credential was deleted during the reconcile, which may have asked for a permit.
        context.requests.withdraw(&uid);
    }
    done
}

/// Returns the time at which the status must report the expiry of the token although the reconciles of the credential
/// fail; `None` if the status already reports it.
pub fn end_of_ready(credential: Arc<MailCredential>, context: &Context) -> Option<Timestamp> {
    let latest = observe::latest(credential, context);
    latest.status.as_ref().and_then(policy::status::end_of_ready)
}

async fn credential_step(credential: Arc<MailCredential>, context: &Arc<Context>) -> Result<Action, Error> {
    if !context.leadership.is_leader() {
        context.requests.withdraw(checks::uid(&credential));
        context.cache.stand_by(checks::uid(&credential));
        return Ok(persist_pending_grant(&credential, context).await);
    }
    if let Some(deleted) = credential.metadata.deletion_timestamp.clone() {
        return finalizer::cleanup(credential, deleted.0, context).await;
    }
    let credential = observe::latest(credential, context);
    let credential = finalizer::reconcile(credential, context).await?;
    let row = Activity::grant(&credential);
    let Some(mut observed) = observe::observe(credential.clone(), context).await? else {
        context.requests.admission.decline(&row);
        let end = report::unshown(credential, context).await;
        return Ok(end.map_or_else(Action::await_change, |end| Action::requeue(context.clock.until(end))));
    };
    let now = context.clock.now();
    if policy::provider_may_be_on_its_way(&observed, now) {
        context.requests.admission.decline(&row);
        return Ok(Action::requeue(WATCH_LAG_RECHECK));
    }
    let decision = policy::decide(&observed, now);
    tracing::debug!(?decision, "decided");
    let decision = if let Some(write) = decision.write() {
        if let Some(at) = context.cache.writes.defer(checks::uid(&observed.credential), write, now) {
            return Ok(Action::requeue(context.clock.until(at)));
        }
        let decision = apply(&mut observed, &decision, write, context).await?;
        if !context.leadership.is_leader() {
            // The new leader writes the status.
            return Ok(Action::requeue(GRANT_WRITE_RETRY));
        }
        decision
    } else if let Some(kind) = decision.request().filter(|_| !context.requests.draining.is_cancelled()) {
        start_request(kind, &decision, &observed, context)
    } else {
        decision
    };
    if !wants_a_permit(&decision) {
        context.requests.admission.withdraw(&row);
    }
    let stuck = decision.awaits_change();
    context.cache.with(checks::uid(&observed.credential), |entry| entry.object.stuck = stuck);
    // Write the status even if the broker cannot delete the Secret of the former name.
    let removed = if decision == Decision::Suspended {
        Ok(())
    } else {
        publish::remove_previous(&observed, &context.kubernetes.secrets).await
    };
    let now = context.clock.now();
    let not_written = report::report(&observed, &decision, context, now).await?;
    removed?;
    if let Some(at) = not_written {
        return Ok(Action::requeue(context.clock.until(at)));
    }
    let login_retry_at = probe::start(&observed, context);
    Ok(next(&observed, &decision, login_retry_at, context, now))
}

/// Stores a refresh token that exists only in memory, even on a replica that no longer leads: no other replica has the
/// token, and the fence protects a newer one.
async fn persist_pending_grant(credential: &MailCredential, context: &Context) -> Action {
    match custody::persist_pending(credential, context).await {
        Ok(()) => Action::await_change(),
        Err(error) => {
            tracing::error!(%error, "refresh token not stored: held in memory, retrying");
            Action::requeue(GRANT_WRITE_RETRY)
        }
    }
}

/// Writes a Secret and decides again.
async fn apply(
    observed: &mut Observed,
    decision: &Decision,
    write: Write,
    context: &Context,
) -> Result<Decision, Error> {
    let written = match write {
        Write::Grant => keep_grant(observed, context).await,
        Write::Token => publish::store(observed, context).await,
        Write::Shape => publish::publish_again(observed, context).await,
    };
    let now = context.clock.now();
    match written {
        Ok(()) => {}
        Err(PublishError::Refused(_)) if !context.leadership.is_leader() => return Ok(decision.clone()),
        Err(PublishError::Kubernetes(error)) => return Err(error),
        Err(PublishError::Overtaken) => {
            // The next reconcile reads the newer token, and drops the unwritten one.
            tracing::info!(secret = observed.target_name(), "Secret not written: another replica wrote a newer token");
            return Ok(decision.clone());
        }
        Err(PublishError::Foreign(owner)) => observed.target = Target::Foreign(owner),
        Err(PublishError::Blocked(blocker)) => {
            if let Ok(provider) = &mut observed.provider {
                provider.blocker = Some(blocker);
            }
        }
        // A failed repair must not shorten the back-off after a provider's refusal.
        Err(PublishError::Refused(why)) if observed.backoff(now).is_some() => {
            tracing::warn!(secret = observed.target_name(), why, "Secret not written");
            return Ok(Decision::BackOff { until: now + REPAIR_RETRY });
        }
        Err(PublishError::Refused(why)) => {
            let secret = match write {
                Write::Grant => names::grant_secret(&observed.credential.name_any()),
                Write::Token | Write::Shape => observed.target_name(),
            };
            let what = format!("the Secret {secret} could not be written: {why}");
            let refusal = Refusal::new(Reason::SecretWriteFailed, what);
            let message =
                format!("{}. The token is kept, and the broker retries the write automatically", refusal.what);
            let attempt = observed.attempt_hash.clone();
            observed.history.fail(&refusal, message, &attempt, now);
        }
    }
    let unreported = observed.history.clone();
    context
        .cache
        .with(checks::uid(&observed.credential), |entry| entry.attempt.unreported = Some(Box::new(unreported)));
    Ok(policy::decide(observed, now))
}

/// Writes the refresh token that exists only in memory, or repairs labels and owner of the grant Secret.
async fn keep_grant(observed: &mut Observed, context: &Context) -> Result<(), PublishError> {
    let unsaved = observed.grant.as_ref().is_some_and(|grant| grant.unsaved);
    let stored = observed.grant.as_ref().and_then(|grant| grant.stored.as_ref());
    let written = match stored {
        Some(stored) if !unsaved => custody::sync_metadata(&observed.credential, stored, context).await,
        _ => custody::persist_pending(&observed.credential, context).await,
    };
    match written {
        // The status reports a Secret that belongs to another object.
        Ok(()) | Err(CustodyError::Stale | CustodyError::Foreign(_)) => {}
        Err(error) => return Err(PublishError::Refused(error.to_string())),
    }
    observed.grant = custody::observe(&observed.credential, observed.provider.as_ref().ok(), context).await?;
    observed.history.recover();
    Ok(())
}

/// Returns the time of the next reconcile.
fn next(
    observed: &Observed,
    decision: &Decision,
    login_retry_at: Option<Timestamp>,
    context: &Context,
    now: Timestamp,
) -> Action {
    let due = match decision {
        Decision::Wait { until }
        | Decision::BackOff { until }
        | Decision::AwaitSignIn { until }
        | Decision::Claimed { until } => Some(*until),
        // The process is about to end, so it sends no request.
        Decision::Issue(_) | Decision::SignIn | Decision::Poll if context.requests.draining.is_cancelled() => None,
        // The write led to a decision with more work.
        Decision::Issue(_)
        | Decision::SignIn
        | Decision::Poll
        | Decision::KeepGrant
        | Decision::Store
        | Decision::Publish(_) => Some(now),
        Decision::InFlight | Decision::Queued { .. } => {
            report::reported_at(&observed.credential, decision, &context.cache, now)
        }
        Decision::Suspended | Decision::Stall(_) => None,
    };
    let turn = next_turn(observed, decision, now);
    let wake = due.into_iter().chain(turn).chain(login_retry_at).min().map(|at| context.clock.until(at));
    let again = decision.blocker().map(|_| recheck_after(observed, now));
    wake.into_iter().chain(again).min().map_or_else(Action::await_change, Action::requeue)
}

fn recheck_after(observed: &Observed, now: Timestamp) -> Duration {
    let conditions = observed.credential.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let found = [ConditionType::Stalled, ConditionType::Reconciling, ConditionType::Renewed].into_iter();
    let found = found.filter_map(|kind| condition::find(conditions, kind));
    let mut blocked =
        found.filter(|condition| condition.type_ != ConditionType::Renewed.as_str() || condition.status != "True");
    let since = blocked.next().map_or(now, |condition| condition.last_transition_time.0);
    let [first, later] = RECHECK;
    if now.as_second() - since.as_second() < AT_FIRST_SECONDS { first } else { later }
}
