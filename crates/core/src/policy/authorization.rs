//! Decisions about the refresh token or the sign-in of a credential: whether the broker may send a token request, and
//! what a person must do first.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;

use super::{
    Blocker, Decision, IssueReason, Observed,
    commands::{self, KubectlObject},
    grant::{RefreshGrant, SignIn},
};
use crate::api::{
    MailCredential, Reason,
    grant::GrantType,
    names::{self, rfc3339},
};

/// Time in which the broker replaces expired codes. Afterwards, a user must request a new code.
const SIGN_IN_FOR: SignedDuration = SignedDuration::from_hours(24);
/// Minimum time between two codes, for a provider that ends each code immediately.
const REPLACED_SOONEST: SignedDuration = SignedDuration::from_secs(10);

/// The decision that must come before a token request. `None`: the broker may send the request.
pub(super) fn precondition(observed: &Observed, now: Timestamp) -> Option<Decision> {
    let grant = observed.grant.as_ref()?;
    if let Some(owner) = &grant.foreign {
        return Some(Decision::Stall(conflict(&observed.credential, owner)));
    }
    if let Some(blocker) = seed_blocker(observed) {
        return Some(Decision::Stall(blocker));
    }
    let claimed = grant.stored.as_ref().and_then(|stored| stored.claim.as_ref());
    if let Some(claim) = claimed.filter(|claim| claim.holder != grant.holder && now < claim.until) {
        return Some(Decision::Claimed { until: claim.until });
    }
    match observed.credential.spec.grant.kind() {
        GrantType::DeviceCode => sign_in(observed, grant, now),
        _ => (grant.token().is_none() && grant.seed.is_none()).then(|| Decision::Stall(bound_elsewhere(observed))),
    }
}

/// The next step of a sign-in. `None`: the credential has a refresh token that the provider has not refused.
fn sign_in(observed: &Observed, grant: &RefreshGrant, now: Timestamp) -> Option<Decision> {
    let Some(sign_in) = grant.sign_in() else {
        let begin = grant.token().is_none() || observed.wants_a_sign_in();
        return begin.then_some(Decision::SignIn);
    };
    if let Some(how) = &sign_in.ended {
        return Some(Decision::Stall(not_signed_in(&observed.credential, how)));
    }
    if grant.code_over || now >= sign_in.expires_at {
        let replaceable = sign_in.shown_at + REPLACED_SOONEST;
        let asked_anew = sign_in.asked_by != grant.asked_by;
        return Some(match now.duration_since(sign_in.began_at) < SIGN_IN_FOR || asked_anew {
            true if now < replaceable => Decision::AwaitSignIn { until: replaceable },
            true => Decision::SignIn,
            false => Decision::Stall(not_signed_in(&observed.credential, "no user signed in for a day")),
        });
    }
    let until = grant.next_poll.unwrap_or(now).min(sign_in.expires_at);
    Some(if now < until { Decision::AwaitSignIn { until } } else { Decision::Poll })
}

/// Why the broker cannot copy the seed into the grant Secret, or cannot use the seed any more.
pub(super) fn seed_blocker(observed: &Observed) -> Option<Blocker> {
    observed.grant.as_ref()?.seed.as_ref()?.as_ref().err().cloned()
}

/// The decision to use a refresh token before it expires from disuse, even without the need for an access token.
pub(super) fn keep_alive(observed: &Observed, now: Timestamp) -> Option<Decision> {
    let grant = observed.grant.as_ref()?;
    let due = grant.token()?.keep_alive(grant.idle_life);
    let usable = observed.provider.as_ref().is_ok_and(|provider| provider.blocker.is_none())
        && observed.backoff(now).is_none()
        && precondition(observed, now).is_none();
    (usable && now >= due).then_some(Decision::Issue(IssueReason::KeepAlive))
}

/// The next time at which the broker uses the refresh token only to keep it alive.
pub(super) fn keep_alive_at(observed: &Observed, now: Timestamp) -> Option<Timestamp> {
    let grant = observed.grant.as_ref()?;
    let due = grant.token()?.keep_alive(grant.idle_life);
    Some(observed.backoff(now).map_or(due, |until| due.max(until)))
}

/// The blocker for a foreign Secret with the grant Secret's name.
pub(super) fn conflict(credential: &MailCredential, owner: &str) -> Blocker {
    let name = names::grant_secret(&credential.name_any());
    Blocker::new(
        Reason::SecretConflict,
        format!(
            "the refresh token must be kept in the Secret {name}, which exists and {owner}; the broker does not \
             change it. If no other object needs that Secret, remove it with `{}`",
            KubectlObject::secret(credential.namespace_str(), &name).command("delete")
        ),
    )
}

fn bound_elsewhere(observed: &Observed) -> Blocker {
    Blocker::new(
        Reason::AuthorizationRequired,
        format!(
            "the stored refresh token was obtained from another provider or by another client, and is sent only there: \
             sign in again with `{}`",
            commands::sign_in(&observed.credential)
        ),
    )
}

fn not_signed_in(credential: &MailCredential, how: &str) -> Blocker {
    Blocker::new(Reason::AuthorizationRequired, format!("{how}: `{}` shows a new code", commands::sign_in(credential)))
}

/// The message for a user who must sign in.
pub(super) fn invitation(credential: &MailCredential, sign_in: &SignIn) -> String {
    let page = match &sign_in.verification_uri_complete {
        Some(complete) => format!("open {complete} (or {} and enter {})", sign_in.verification_uri, sign_in.user_code),
        None => format!("open {} and enter {}", sign_in.verification_uri, sign_in.user_code),
    };
    format!("{} has to sign in: {page} before {}", credential.spec.mailbox.user(), rfc3339(sign_in.expires_at))
}
