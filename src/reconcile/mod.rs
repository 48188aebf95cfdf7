//! The hands: one file a step, no decisions. Reads are in `observe` and `material`, the request in `act`, writes of
//! Secrets in `publish`, of the status in `report`.

pub mod act;
pub mod bundles;
pub mod context;
pub mod credential_cache;
pub mod custody;
pub mod events;
mod finalizer;
pub mod json_patch;
pub mod observe;
pub mod provider;
pub mod provider_client;
pub mod publish;
pub mod report;
pub mod secrets;
mod sized;
pub mod slots;
mod stored;
pub mod work_queue;

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{ResourceExt as _, runtime::controller::Action};

use crate::{
    api::{ConditionType, MailCredential, Reason, condition, names},
    error::Error,
    oauth::Refusal,
    policy::{self, Decision, Observed, checks, observed::Target, status::next_turn},
    reconcile::{
        act::{
            activity::Activity,
            request_handle::RequestHandle,
            start::{start_request, wants_a_permit},
        },
        context::Context,
        custody::pending::CustodyError,
        publish::PublishError,
        slots::Slots,
    },
};

/// A Secret that somebody else may release, and a source that somebody may label without a watch showing it, are
/// looked at again: every few seconds at first, then every minute.
const RECHECK: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(60)];
/// How soon a provider that may be on its way is looked for again; its watch wakes the credential, too.
const WATCH_LAG_RECHECK: Duration = Duration::from_millis(500);
/// How long "at first" is.
const AT_FIRST_SECONDS: i64 = 30;

/// A status that was made for an older version of the object is made again after this, if no watch shows the newer first.
const STATUS_RETRY: Duration = Duration::from_secs(5);
/// A refresh token that could not be stored by a broker that leads no more is stored again after this.
const GRANT_WRITE_RETRY: Duration = Duration::from_secs(2);
/// A repair that failed while the next token request is waited for is tried again after this.
const REPAIR_RETRY: SignedDuration = SignedDuration::from_secs(30);

/// A provider that answers within this is waited for: to come back to the credential by the queue would take longer. One
/// that hangs keeps others from their turn for no longer than this.
const FAST_REPLY_WAIT: Duration = Duration::from_millis(100);

/// Brings one credential a step further: two, if the provider answers at once.
///
/// # Errors
/// What Kubernetes would not do. Everything else is a condition.
pub async fn reconcile(credential: Arc<MailCredential>, context: Arc<Context>, slots: &Slots) -> Result<Action, Error> {
    let (uid, row) = (checks::uid(&credential).to_owned(), Activity::grant(&credential));
    let (namespace, name) = (checks::namespace(&credential).to_owned(), credential.name_any());
    let Some(slot) = slots.enter(&(namespace.clone(), name.clone())) else {
        return Ok(Action::await_change());
    };
    let mut asked = None;
    let mut done = step(credential.clone(), &context, &mut asked).await;
    drop(slot);
    if done.is_ok()
        && let Some(handle) = asked.take()
        && handle.ends_within(FAST_REPLY_WAIT).await
    {
        let credential = context.stores.credentials.get(&namespace, &name);
        let key = (namespace, name);
        done = match credential.and_then(|credential| Some((credential, slots.enter(&key)?))) {
            Some((credential, _slot)) => step(credential, &context, &mut asked).await,
            None => Ok(Action::await_change()),
        };
    }
    if done.is_err() {
        // A permit that was offered would stay unused until the next try.
        context.requests.admission.decline(&row);
        // When it is due is seen by whoever retries.
        report::unobserved(credential, &context).await;
    }
    context.cache.tidy(&uid);
    done
}

/// When the end of a credential's token is to be reported, by its status, although its reconciles fail.
pub fn end_of_ready(credential: &MailCredential, context: &Context) -> Option<Timestamp> {
    let latest = observe::latest(Arc::new(credential.clone()), context);
    latest.status.as_ref().and_then(policy::status::end_of_ready)
}

/// What goes out to a provider is left in `asked`.
async fn step(
    credential: Arc<MailCredential>,
    context: &Arc<Context>,
    asked: &mut Option<RequestHandle>,
) -> Result<Action, Error> {
    if !context.leadership.is_leader() {
        context.requests.admission.withdraw(&Activity::grant(&credential));
        context.cache.stand_by(checks::uid(&credential));
        return Ok(persist_what_came(&credential, context).await);
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
    let decision = match &decision {
        Decision::Issue(_) | Decision::SignIn | Decision::Poll if !context.requests.draining.is_cancelled() => {
            start_request(&decision, &observed, asked, context)
        }
        Decision::KeepGrant | Decision::Store | Decision::Publish(_) => {
            if let Some(at) = too_soon(&decision, &observed, context, now) {
                return Ok(Action::requeue(context.clock.until(at)));
            }
            let decision = apply(&mut observed, &decision, context).await?;
            if !context.leadership.is_leader() {
                // Whoever leads now tells how things stand.
                return Ok(Action::requeue(GRANT_WRITE_RETRY));
            }
            decision
        }
        _ => decision,
    };
    if !wants_a_permit(&decision) {
        context.requests.admission.withdraw(&row);
    }
    let stuck = matches!(decision, Decision::Stall(_) | Decision::Suspended);
    context.cache.with(checks::uid(&observed.credential), |entry| entry.object.stuck = stuck);
    // The status is written although the former Secret may not be deleted.
    let removed = match decision {
        Decision::Suspended => Ok(()),
        _ => publish::remove_previous(&observed, context).await,
    };
    let now = context.clock.now();
    let reported = report::report(&observed, &decision, context, now).await?;
    removed?;
    match reported {
        true => Ok(next(&observed, &decision, context, now)),
        false => Ok(Action::requeue(STATUS_RETRY)),
    }
}

/// When this write may be made, if another of its kind was made for this credential just now.
fn too_soon(decision: &Decision, observed: &Observed, context: &Context, now: Timestamp) -> Option<Timestamp> {
    let kind = match decision {
        Decision::KeepGrant => "grant",
        Decision::Store => "token",
        _ => "shape",
    };
    context.cache.writes.admit(checks::uid(&observed.credential), kind, now)
}

/// A refresh token that came is stored also by a broker that leads no more: nobody else has it, and the fence keeps it
/// from taking the place of a newer one.
async fn persist_what_came(credential: &MailCredential, context: &Context) -> Action {
    match custody::persist_pending(credential, context).await {
        Ok(()) => Action::await_change(),
        Err(error) => {
            tracing::error!(%error, "a refresh token could not be stored; it is held in memory, and storing it is tried again");
            Action::requeue(GRANT_WRITE_RETRY)
        }
    }
}

/// Writes the Secret and decides anew: what follows is a wait, or a back-off.
async fn apply(observed: &mut Observed, decision: &Decision, context: &Context) -> Result<Decision, Error> {
    let written = match decision {
        Decision::KeepGrant => keep_grant(observed, context).await,
        Decision::Store => publish::store(observed, context).await,
        _ => publish::publish_again(observed, context).await,
    };
    let now = context.clock.now();
    match written {
        Ok(()) => {}
        Err(PublishError::Refused(_)) if !context.leadership.is_leader() => return Ok(decision.clone()),
        Err(PublishError::Kubernetes(error)) => return Err(error),
        Err(PublishError::Overtaken) => {
            // The next look sees the newer token, and drops the one that is held.
            tracing::info!(secret = observed.target_name(), "another broker has written a newer token meanwhile");
            return Ok(decision.clone());
        }
        Err(PublishError::Foreign(owner)) => observed.target = Target::Foreign(owner),
        Err(PublishError::Blocked(blocker)) => {
            if let Ok(provider) = &mut observed.provider {
                provider.blocker = Some(blocker);
            }
        }
        // The wait that the provider's refusal asked for must not be cut short by a failing repair.
        Err(PublishError::Refused(why)) if observed.backoff(now).is_some() => {
            tracing::warn!(secret = observed.target_name(), why, "the Secret could not be written");
            return Ok(Decision::BackOff { until: now + REPAIR_RETRY });
        }
        Err(PublishError::Refused(why)) => {
            let secret = match decision {
                Decision::KeepGrant => names::grant_secret(&observed.credential.name_any()),
                _ => observed.target_name(),
            };
            let what = format!("the Secret {secret} could not be written: {why}");
            let refusal = Refusal::new(Reason::SecretWriteFailed, what);
            let message = format!("{}. The token is kept, and writing it is tried again by itself", refusal.what);
            let attempt = observed.attempt.clone();
            observed.history.fail(&refusal, message, &attempt, now);
        }
    }
    let unreported = observed.history.clone();
    context.cache.with(checks::uid(&observed.credential), |entry| entry.attempt.unreported = Some(unreported));
    Ok(policy::decide(observed, now))
}

/// Writes the refresh token that is held in memory, and puts labels and owner of its Secret right.
async fn keep_grant(observed: &mut Observed, context: &Context) -> Result<(), PublishError> {
    let unsaved = observed.grant.as_ref().is_some_and(|grant| grant.unsaved);
    let stored = observed.grant.as_ref().and_then(|grant| grant.stored.as_ref());
    let written = match stored {
        Some(stored) if !unsaved => custody::sync_metadata(&observed.credential, stored, context).await,
        _ => custody::persist_pending(&observed.credential, context).await,
    };
    match written {
        // Of another's Secret the status tells.
        Ok(()) | Err(CustodyError::Stale | CustodyError::Foreign(_)) => {}
        Err(error) => return Err(PublishError::Refused(error.to_string())),
    }
    observed.grant = custody::observe(&observed.credential, observed.provider.as_ref().ok(), context).await?;
    observed.history.recover();
    Ok(())
}

/// When to look at the credential again.
fn next(observed: &Observed, decision: &Decision, context: &Context, now: Timestamp) -> Action {
    let due = match decision {
        Decision::Wait { until }
        | Decision::BackOff { until }
        | Decision::AwaitSignIn { until }
        | Decision::Claimed { until } => Some(*until),
        // The process is about to end, and begins nothing.
        Decision::Issue(_) | Decision::SignIn | Decision::Poll if context.requests.draining.is_cancelled() => None,
        // What was written has shown more work.
        Decision::Issue(_)
        | Decision::SignIn
        | Decision::Poll
        | Decision::KeepGrant
        | Decision::Store
        | Decision::Publish(_) => Some(now),
        Decision::InFlight => report::end_reported_at(&observed.credential, context).filter(|at| *at > now),
        Decision::Queued { since } => report::queued_reported_at(*since, now),
        Decision::Suspended | Decision::Stall(_) => None,
    };
    let turn = next_turn(observed, decision, now);
    let wake = due.into_iter().chain(turn).min().map(|at| context.clock.until(at));
    let again = match decision {
        Decision::Stall(_) => Some(recheck_after(observed, now)),
        _ => None,
    };
    wake.into_iter().chain(again).min().map_or_else(Action::await_change, Action::requeue)
}

fn recheck_after(observed: &Observed, now: Timestamp) -> Duration {
    let conditions = observed.credential.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let told = [ConditionType::Stalled, ConditionType::Reconciling, ConditionType::Renewed].into_iter();
    let told = told.filter_map(|kind| condition::find(conditions, kind));
    let mut blocked = told.filter(|told| told.type_ != ConditionType::Renewed.as_str() || told.status != "True");
    let since = blocked.next().map_or(now, |told| told.last_transition_time.0);
    let [first, later] = RECHECK;
    if now.as_second() - since.as_second() < AT_FIRST_SECONDS { first } else { later }
}
