//! Policy: decides from observations. It is pure and synchronous, and has no clock.

pub mod advice;
mod authorization;
pub mod blocker;
pub mod check_token;
pub mod checks;
pub mod commands;
pub mod decision;
pub mod device_code;
pub mod device_poll;
pub mod expiry;
pub mod grant;
pub mod hash;
pub mod history;
pub mod inputs;
pub mod kstatus;
pub mod notices;
pub mod observed;
pub mod outcome;
pub mod ownership;
pub mod probe;
pub mod provider;
pub mod refresh_response;
pub mod refresh_tokens;
pub mod rejected_write;
pub mod report_time;
pub mod revocation;
pub mod rival;
pub mod schedule;
pub mod secret_metadata;
pub mod spacing;
pub mod status;
pub mod stored;
pub mod sweep;
pub mod token;
pub mod unreadable;
pub mod urgency;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::json;

pub use decision::{Decision, IssueReason, PublishReason, RequestKind, Write};
pub use observed::{Blocker, Observed};

use crate::api::Reason;
use commands::KubectlObject;
use observed::Target;

/// Decides about a credential. The order of the checks is the specification: the first decision applies.
pub fn decide(observed: &Observed, now: Timestamp) -> Decision {
    let checks: [fn(&Observed, Timestamp) -> Option<Decision>; 13] = [
        request_is_in_flight,
        refresh_token_is_unsaved,
        credential_is_suspended,
        grant_is_out_of_sync,
        authorization::keep_alive,
        target_is_contested,
        target_is_foreign,
        token_is_unwritten,
        provider_is_missing,
        provider_is_blocked,
        token_is_needed,
        target_differs,
        renewal_is_ahead,
    ];
    checks.iter().find_map(|check| check(observed, now)).unwrap_or(Decision::Issue(IssueReason::NoToken))
}

/// Time for which the broker does not report a missing provider. Watches show objects that were applied together at
/// slightly different times, so an immediate Warning would soon be wrong.
const WATCH_LAG: SignedDuration = SignedDuration::from_secs(1);

/// Whether the provider of a new credential may exist although no watch has shown it yet.
pub fn provider_may_be_on_its_way(observed: &Observed, now: Timestamp) -> bool {
    let missing = observed.provider.as_ref().is_err_and(|blocker| blocker.reason == Reason::ProviderNotFound);
    let unreported = observed.credential.status.as_ref().is_none_or(|status| status.conditions.is_empty());
    let made = observed.credential.metadata.creation_timestamp.as_ref();
    let age = made.map(|made| now.duration_since(made.0));
    missing && unreported && age.is_some_and(|age| !age.is_negative() && age <= WATCH_LAG)
}

/// Waits for the request in flight, so that the broker stores its result before any other decision. A suspended
/// credential does not wait: its status must report the suspension, which stops all further requests.
fn request_is_in_flight(observed: &Observed, _: Timestamp) -> Option<Decision> {
    let unsaved = observed.grant.as_ref().is_some_and(|grant| grant.unsaved);
    let suspended = observed.credential.spec.suspend && !unsaved;
    (observed.in_flight && !suspended).then_some(Decision::InFlight)
}

/// Writes a new refresh token before any other decision, even if the spec has changed.
fn refresh_token_is_unsaved(observed: &Observed, now: Timestamp) -> Option<Decision> {
    let grant = observed.grant.as_ref().filter(|grant| grant.unsaved)?;
    // The refresh token stays in memory until the foreign Secret is gone.
    let conflict =
        grant.foreign.as_ref().map(|owner| Decision::Stall(authorization::conflict(&observed.credential, owner)));
    Some(conflict.unwrap_or_else(|| grant_write(observed, now)))
}

/// Repairs the labels and the owner of the grant Secret. With a wrong owner, deleting the credential would delete the
/// refresh token.
fn grant_is_out_of_sync(observed: &Observed, now: Timestamp) -> Option<Decision> {
    observed.grant.as_ref().filter(|grant| grant.out_of_sync)?;
    Some(grant_write(observed, now))
}

/// Writes the grant Secret. Backs off only after failed writes.
fn grant_write(observed: &Observed, now: Timestamp) -> Decision {
    match observed.backoff(now) {
        Some(until) if observed.writes_failed() => Decision::BackOff { until },
        _ => Decision::KeepGrant,
    }
}

fn credential_is_suspended(observed: &Observed, _: Timestamp) -> Option<Decision> {
    observed.credential.spec.suspend.then_some(Decision::Suspended)
}

fn target_is_contested(observed: &Observed, _: Timestamp) -> Option<Decision> {
    let rival = observed.rival.as_ref()?;
    Some(Decision::Stall(Blocker::new(
        Reason::SecretConflict,
        format!(
            "the Secret {} is also the target of the MailCredential {rival}, which came first or holds it: choose another \
             name with `{}`",
            observed.target_name(),
            rename(observed)
        ),
    )))
}

fn target_is_foreign(observed: &Observed, _: Timestamp) -> Option<Decision> {
    let Target::Foreign(owner) = &observed.target else { return None };
    let name = observed.target_name();
    Some(Decision::Stall(Blocker::new(
        Reason::SecretConflict,
        format!(
            "the Secret {name} exists and {owner}; the broker does not change it. Choose another name with `{}`, or, if no \
             other object needs that Secret, remove it with `{}`",
            rename(observed),
            KubectlObject::secret(checks::namespace(&observed.credential), &name).command("delete")
        ),
    )))
}

fn rename(observed: &Observed) -> String {
    let fields = json!({"spec": {"secret": {"name": "<another name>"}}});
    KubectlObject::credential(&observed.credential).merge(&fields)
}

/// Writes an obtained token before other decisions, if the token still fits the spec.
fn token_is_unwritten(observed: &Observed, now: Timestamp) -> Option<Decision> {
    let unwritten = observed.unwritten.as_ref()?;
    // The broker keeps an unwritten token in memory while the spec allows no Secret, or the allowance is withdrawn.
    let held_back = |blocker: &Blocker| matches!(blocker.reason, Reason::NotAllowed | Reason::InvalidSpec);
    let wanted = observed.provider.as_ref().is_ok_and(|provider| {
        provider.issued_for == unwritten.issued_for && !provider.blocker.as_ref().is_some_and(held_back)
    });
    if !wanted || now >= unwritten.answer.token.expires_at {
        return None;
    }
    // Back off only after failed writes, not after refused token requests.
    Some(match observed.backoff(now) {
        Some(until) if observed.writes_failed() => Decision::BackOff { until },
        _ => Decision::Store,
    })
}

fn provider_is_missing(observed: &Observed, _: Timestamp) -> Option<Decision> {
    observed.provider.as_ref().err().cloned().map(Decision::Stall)
}

fn provider_is_blocked(observed: &Observed, now: Timestamp) -> Option<Decision> {
    let provider = observed.provider.as_ref().ok()?;
    let blocker = provider.blocker.clone().or_else(|| authorization::seed_blocker(observed))?;
    // While the provider is blocked, the broker repairs a Secret whose layout is unchanged, but never publishes another
    // layout.
    let shaped = observed.target.own().is_some_and(|published| published.layout == provider.layout);
    let serves = why_a_token_is_needed(observed, now).is_none_or(IssueReason::leaves_one_that_serves);
    let repair = if shaped && serves { target_differs(observed, now) } else { None };
    Some(repair.filter(Decision::is_write).unwrap_or(Decision::Stall(blocker)))
}

fn token_is_needed(observed: &Observed, now: Timestamp) -> Option<Decision> {
    let reason = why_a_token_is_needed(observed, now)?;
    if let Some(until) = too_soon(observed, reason, now) {
        return Some(Decision::Wait { until });
    }
    let wait = |until: Option<Timestamp>| until.map(|until| Decision::BackOff { until });
    let wait = match authorization::precondition(observed, now) {
        Some(step) if step.is_request() => wait(observed.sign_in_backoff(now)).or(Some(step)),
        other => other.or_else(|| wait(observed.backoff(now))),
    };
    let Some(wait) = wait else {
        // While a request waits for its permit, repair the Secret of a valid token.
        let shape =
            (observed.queued && reason.leaves_one_that_serves()).then(|| target_differs(observed, now)).flatten();
        let shape = shape.filter(Decision::is_write);
        return Some(shape.unwrap_or(Decision::Issue(reason)));
    };
    // While a renewal waits, repair the Secret of the valid token.
    let shape = if reason.leaves_one_that_serves() { target_differs(observed, now) } else { None };
    Some(shape.unwrap_or(wait))
}

/// Time until which the broker does not renew a token with a lifetime of seconds. Without this limit, a provider could
/// control the broker's write rate.
fn too_soon(observed: &Observed, reason: IssueReason, now: Timestamp) -> Option<Timestamp> {
    let stored = observed.target.own().or(observed.previous.as_ref());
    let token = stored.and_then(|published| published.token.as_ref()).filter(|token| token.issued_at <= now)?;
    Some(observed.soonest(token)).filter(|until| reason == IssueReason::Expired && *until > now)
}

fn why_a_token_is_needed(observed: &Observed, now: Timestamp) -> Option<IssueReason> {
    let stored = observed.target.own().or(observed.previous.as_ref());
    let Some((published, token)) = stored.and_then(|published| Some((published, published.token.as_ref()?))) else {
        return Some(IssueReason::NoToken);
    };
    if !observed.is_for_this_spec(published) {
        return Some(IssueReason::InputsChanged);
    }
    if !token.is_unexpired(now) {
        return Some(IssueReason::Expired);
    }
    if observed.pending_reissue().is_some() {
        return Some(IssueReason::Reissue);
    }
    if observed.grant.as_ref().is_some_and(grant::RefreshGrant::reseeded) {
        return Some(IssueReason::Reseeded);
    }
    if schedule::is_from_the_future(token.issued_at, now) {
        return Some(IssueReason::FromTheFuture);
    }
    (now >= observed.plan(token).second()).then_some(IssueReason::RenewalDue)
}

/// Repairs the target Secret of a valid token. If the target does not exist, publishes the token from the Secret with
/// the former name.
fn target_differs(observed: &Observed, now: Timestamp) -> Option<Decision> {
    let provider = observed.provider.as_ref().ok()?;
    let reason = match &observed.target {
        Target::Absent => PublishReason::Renamed,
        Target::Own(published) if published.must_recreate => PublishReason::Recreate,
        Target::Own(published) if !published.intact => PublishReason::Repair,
        Target::Own(published) if published.layout != provider.layout => PublishReason::Layout,
        Target::Own(_) | Target::Foreign(_) => return None,
    };
    // Back off only after failed writes, not after refused token requests.
    Some(match observed.backoff(now) {
        Some(until) if observed.writes_failed() => Decision::BackOff { until },
        _ => Decision::Publish(reason),
    })
}

fn renewal_is_ahead(observed: &Observed, _: Timestamp) -> Option<Decision> {
    let until = observed.plan(observed.token()?).at;
    Some(Decision::Wait { until })
}

#[cfg(test)]
pub(crate) mod tests;
