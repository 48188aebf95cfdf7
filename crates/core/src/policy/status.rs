//! Creates the status of a credential from the observations and the decision. Pure.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::{SignedDuration, Timestamp},
};

use super::{
    Decision, Observed, authorization, checks,
    commands::{self, KubectlObject},
    grant::RefreshGrant,
    kstatus::{Before, Standing},
    observed::{Blocker, Cause, Published, TokenFacts, target_name},
    probe::{self, Verdict},
    schedule,
};
use crate::api::{
    ConditionType, MailCredential, Reason,
    condition::{self, upsert},
    names::rfc3339,
    status::{MailCredentialStatus, TokenStatus},
};

/// The status of a credential after a decision.
pub fn status(observed: &Observed, decision: &Decision, now: Timestamp) -> MailCredentialStatus {
    let before = observed.credential.status.clone().unwrap_or_default();
    let history = &observed.history;
    let own = observed.target.own();
    MailCredentialStatus {
        observed_generation: observed.credential.metadata.generation,
        conditions: conditions(observed, decision, before.conditions.clone(), now),
        secret_name: own
            .map(|published| published.name.clone())
            // Report the old Secret's name until the token has moved, even if the new name is taken.
            .or_else(|| observed.previous.as_ref().map(|published| published.name.clone())),
        secret_resource_version: own.map(|published| published.resource_version.clone()),
        token: own.and_then(|published| token_status(observed, published, before.token.as_ref())),
        grant: observed.grant.as_ref().and_then(RefreshGrant::status),
        client: history.client.clone(),
        authorization: asked(observed, decision).and_then(|grant| grant.authorization(now)),
        probe: observed.probe.as_ref().and_then(|probe| probe.record.clone()),
        failed_attempts: Some(i32::try_from(history.failed_attempts).unwrap_or(i32::MAX)),
        last_failure_time: history.last_failure.map(Time),
        next_attempt_time: history.next_attempt.map(Time),
        last_error: history.last_error.clone(),
        failed_with: history.failed_with.clone().map(String::from),
        last_handled_reissue: observed.handled_reissue().map(str::to_owned),
    }
}

fn token_status(observed: &Observed, published: &Published, before: Option<&TokenStatus>) -> Option<TokenStatus> {
    let token = published.token.as_ref()?;
    let known =
        before.filter(|status| status.fingerprint == token.fingerprint.as_str()).map_or(0, |status| status.length);
    Some(TokenStatus {
        issued_at: Time(token.issued_at),
        expires_at: Time(token.expires_at),
        renewal_time: Time(observed.plan(token).second()),
        scopes: token.scopes.clone(),
        fingerprint: token.fingerprint.to_string(),
        length: token.length.and_then(|length| i64::try_from(length).ok()).unwrap_or(known),
    })
}

fn conditions(
    observed: &Observed,
    decision: &Decision,
    mut conditions: Vec<Condition>,
    now: Timestamp,
) -> Vec<Condition> {
    let generation = observed.credential.metadata.generation.unwrap_or_default();
    let set = |conditions: &mut Vec<Condition>, kind, status, reason, message| {
        upsert(conditions, kind, status, reason, message, generation, now);
    };

    let blocked = blocking(observed, decision, now);
    let (ready, reason, message) = readiness(observed, decision, blocked.as_ref(), now);
    set(&mut conditions, ConditionType::Ready, ready, reason, message);

    match renewed(observed, decision, ready) {
        Some((succeeded, reason, message)) => {
            set(&mut conditions, ConditionType::Renewed, succeeded, reason, message);
        }
        None => condition::remove(&mut conditions, ConditionType::Renewed),
    }

    let works = !ready && *decision != Decision::Suspended;
    let standing = works.then(|| standing(observed, decision, blocked, now));
    before(&observed.credential).set(&mut conditions, standing, now);

    let endings = [
        (ConditionType::GrantExpiringSoon, grant_ending(observed, now)),
        (ConditionType::ClientCredentialExpiringSoon, client_ending(observed, now)),
    ];
    for (kind, ending) in endings {
        match ending {
            Some((reason, message)) => set(&mut conditions, kind, true, reason, message),
            None => condition::remove(&mut conditions, kind),
        }
    }
    match probe::condition(observed, now) {
        Some(Verdict { status, reason, message }) => {
            upsert(&mut conditions, ConditionType::MailboxAuthorized, status, reason, message, generation, now);
        }
        None => condition::remove(&mut conditions, ConditionType::MailboxAuthorized),
    }
    conditions
}

/// The condition `Renewed`: the result of the last attempt, or why the broker makes no attempt.
fn renewed(observed: &Observed, decision: &Decision, ready: bool) -> Option<(bool, Reason, String)> {
    // While the token is valid, only this condition reports what stalls the credential.
    if let Some(blocker) = decision.blocker().filter(|_| ready && observed.history.failure().is_none()) {
        return Some((false, blocker.reason, blocker.message.clone()));
    }
    if *decision == Decision::Suspended {
        return Some((false, Reason::Suspended, "spec.suspend is true: the broker requests no token".to_owned()));
    }
    let last = observed.history.last.as_ref();
    last.map(|(reason, message)| (*reason == Reason::RenewalSucceeded, *reason, message.clone()))
}

/// `Ready` depends on the token in the Secret, never on a failure at the provider.
fn readiness(
    observed: &Observed,
    decision: &Decision,
    blocked: Option<&Blocker>,
    now: Timestamp,
) -> (bool, Reason, String) {
    let name = observed.target_name();
    let token = observed.target.own().and_then(|published| Some((published, published.token.as_ref()?)));
    match token {
        Some((published, token)) if token.is_unexpired(now) && observed.is_for_this_spec(published) => {
            let note = match decision.blocker() {
                Some(blocker) => format!(". It cannot be renewed: {}", blocker.message),
                None => invited(observed, decision, now).map(|words| format!(". {words}")).unwrap_or_default(),
            };
            (true, Reason::TokenValid, valid_message(observed, &name, token) + &note)
        }
        Some((_, token)) if !token.is_unexpired(now) => {
            let why = blocked.map(|blocker| format!(": {}", blocker.message)).unwrap_or_default();
            (
                false,
                Reason::Expired,
                format!("the token in the Secret {name} ended at {}{why}", rfc3339(token.expires_at)),
            )
        }
        Some(_) | None => match blocked {
            Some(Blocker { reason, message, .. }) => (false, *reason, message.clone()),
            None => (false, Reason::Pending, progress(observed, decision)),
        },
    }
}

fn valid_message(observed: &Observed, name: &str, token: &TokenFacts) -> String {
    let plan = observed.plan(token);
    let short = plan.too_short.map(|lifetime| {
        format!(
            ". {}: the provider's tokens live {}, so spec.renewal.minValidity {} cannot be kept: lengthen their life at \
             the provider, or shorten minValidity",
            Reason::LifetimeTooShort.as_str(),
            words(lifetime),
            words(SignedDuration::try_from(std::time::Duration::from(observed.credential.spec.renewal.min_validity)).unwrap_or_default()),
        )
    });
    let reported = [
        short,
        other_scopes(observed, token).map(|words| format!(". {words}")),
        token.unsuitable.as_ref().map(|words| format!(". {words}")),
        token
            .object_id
            .as_ref()
            .map(|id| format!(". The token's object id, which New-ServicePrincipal needs, is {id}")),
    ];
    format!(
        "the Secret {name} holds a token for {} that is valid until {}{}",
        observed.credential.spec.mailbox.user(),
        rfc3339(token.expires_at),
        reported.into_iter().flatten().collect::<String>()
    )
}

/// Scopes that are no permissions (OpenID Connect Core section 5.4 and 11), which many providers omit from their responses.
const NO_PERMISSIONS: [&str; 4] = ["openid", "profile", "email", "offline_access"];

/// How the granted scopes differ from the requested scopes.
fn other_scopes(observed: &Observed, token: &TokenFacts) -> Option<String> {
    let asked = &observed.provider.as_ref().ok()?.scopes;
    let counts = |scope: &&String| !NO_PERMISSIONS.contains(&scope.as_str());
    let lacks = |list: &[String], scope: &str| !list.iter().any(|other| other.eq_ignore_ascii_case(scope));
    // Microsoft's `.default` means all scopes with consent.
    if asked.iter().filter(counts).count() == 0 || asked.iter().any(|scope| scope.ends_with("/.default")) {
        return None;
    }
    let missing: Vec<_> =
        asked.iter().filter(counts).filter(|scope| lacks(&token.scopes, scope)).map(String::as_str).collect();
    // The message names only requested scopes, never the provider's own text.
    let more = token.scopes.iter().filter(counts).filter(|scope| lacks(asked, scope)).count();
    let reported = [
        (!missing.is_empty()).then(|| format!("the provider did not grant {}", missing.join(" "))),
        (more > 0).then(|| {
            let (scopes, them) = if more == 1 { ("scope", "it") } else { ("scopes", "them") };
            format!("the provider granted {more} unrequested {scopes}: status.token.scopes has {them}")
        }),
    ];
    let reported: Vec<_> = reported.into_iter().flatten().collect();
    (!reported.is_empty()).then(|| reported.join(", and "))
}

/// A duration as hours, minutes and seconds, as in a spec.
pub fn words(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let text: String = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// The grant of a sign-in for which the broker polls.
fn asked<'a>(observed: &'a Observed, decision: &Decision) -> Option<&'a RefreshGrant> {
    observed.grant.as_ref().filter(|_| decision.expects_sign_in())
}

/// The message for the user while the broker shows a code.
fn invited(observed: &Observed, decision: &Decision, now: Timestamp) -> Option<String> {
    let sign_in = asked(observed, decision)?.pending(now)?;
    Some(authorization::invitation(&observed.credential, sign_in))
}

/// The blocker that prevents a new token.
fn blocking(observed: &Observed, decision: &Decision, now: Timestamp) -> Option<Blocker> {
    if let Some(words) = invited(observed, decision, now) {
        // The credential waits for the user who enters the shown code. It stalls when the status shows no code any
        // more.
        return Some(Blocker::new(Reason::AuthorizationRequired, words).because(Cause::Transient));
    }
    match decision {
        Decision::Stall(blocker) => Some(blocker.clone()),
        Decision::Suspended => {
            let resume =
                KubectlObject::credential(&observed.credential).merge(&serde_json::json!({"spec": {"suspend": false}}));
            Some(Blocker::new(
                Reason::Suspended,
                format!("spec.suspend is true, so the broker requests no token: `{resume}` resumes it"),
            ))
        }
        Decision::BackOff { .. }
        | Decision::InFlight
        | Decision::Queued { .. }
        | Decision::Issue(_)
        | Decision::SignIn
        | Decision::Poll
        | Decision::AwaitSignIn { .. }
        | Decision::Claimed { .. }
        | Decision::KeepGrant => observed.history.failure().map(|(reason, message)| {
            let fresh = schedule::is_in_grace(reason, observed.history.failed_attempts);
            let blocker = Blocker::new(reason, message);
            if fresh { blocker.because(Cause::Transient) } else { blocker }
        }),
        Decision::Store | Decision::Publish(_) | Decision::Wait { .. } => None,
    }
}

/// The credential's metadata and last status.
fn before(credential: &MailCredential) -> Before<'_> {
    let status = credential.status.as_ref();
    Before {
        meta: &credential.metadata,
        observed_generation: status.and_then(|status| status.observed_generation),
        conditions: status.map_or(&[], |status| &status.conditions),
    }
}

/// A permanent refusal stalls the credential, although the broker slowly retries the request.
fn standing(observed: &Observed, decision: &Decision, blocked: Option<Blocker>, now: Timestamp) -> Standing {
    match blocked {
        Some(blocker) if before(&observed.credential).needs_a_person(&blocker, now) => Standing::Stalled(blocker),
        Some(Blocker { reason: Reason::AuthorizationRequired, message, .. }) => Standing::Reconciling { message },
        Some(_) | None => Standing::Reconciling { message: progress(observed, decision) },
    }
}

fn progress(observed: &Observed, decision: &Decision) -> String {
    match decision {
        Decision::Stall(blocker) => blocker.message.clone(),
        Decision::BackOff { .. } => match observed.history.failure() {
            Some((_, message)) => format!("the next attempt is at status.nextAttemptTime: {message}"),
            None => "waiting for the next attempt".to_owned(),
        },
        Decision::Claimed { until } => {
            format!("another broker is exchanging the refresh token; its claim ends at {}", rfc3339(*until))
        }
        Decision::Queued { since } => format!(
            "the token request has waited since {} for a permit: the provider's spec.rateLimit, the number of requests in \
             flight, or earlier failures of the provider delay it",
            rfc3339(*since)
        ),
        Decision::KeepGrant
        | Decision::Issue(_)
        | Decision::SignIn
        | Decision::Poll
        | Decision::AwaitSignIn { .. }
        | Decision::Store
        | Decision::Publish(_)
        | Decision::InFlight
        | Decision::Wait { .. }
        | Decision::Suspended => "the broker is requesting a token".to_owned(),
    }
}

/// Days before the expiry of a client secret or refresh token at which a condition reports it.
pub const ENDINGS: [(i64, Reason); 3] = [(1, Reason::Within1d), (7, Reason::Within7d), (30, Reason::Within30d)];

fn client_ending(observed: &Observed, now: Timestamp) -> Option<(Reason, String)> {
    let client = observed.history.client.as_ref()?;
    let end = client.expires_at.as_ref()?.0;
    let reason = ending(end, now)?;
    Some((
        reason,
        format!(
            "spec.client.authentication[{}] ({}) of the {} ends at {}: create a new one at the provider, store it in the \
             Secret that the entry names, and set its expiresAt",
            client.index,
            client.method,
            checks::provider_words(&observed.credential),
            rfc3339(end)
        ),
    ))
}

fn grant_ending(observed: &Observed, now: Timestamp) -> Option<(Reason, String)> {
    let end = observed.grant.as_ref()?.end()?;
    let message = format!(
        "the refresh token ends at {}: sign in again before, with `{}`",
        rfc3339(end),
        commands::sign_in(&observed.credential)
    );
    Some((ending(end, now)?, message))
}

/// The reason for the threshold that an expiry has passed. `None`: the expiry is more than 30 days away.
pub fn ending(end: Timestamp, now: Timestamp) -> Option<Reason> {
    let left = end.duration_since(now);
    ENDINGS.iter().find(|(days, _)| left <= SignedDuration::from_hours(days * 24)).map(|(_, reason)| *reason)
}

/// The next time at which the status may change without a change of an object.
pub fn next_turn(observed: &Observed, decision: &Decision, now: Timestamp) -> Option<Timestamp> {
    let expiry = observed.token().map(|token| token.expires_at);
    let client = observed.history.client.as_ref().and_then(|client| client.expires_at.as_ref()).map(|end| end.0);
    let grant = observed.grant.as_ref().and_then(RefreshGrant::end);
    let endings = client.into_iter().chain(grant);
    let endings = endings.flat_map(|end| ENDINGS.map(|(days, _)| end - SignedDuration::from_hours(days * 24)));
    let missing = decision.blocker().is_some_and(|blocker| blocker.cause == Cause::Missing);
    let arrival = before(&observed.credential).arrival_until(now).filter(|_| missing);
    let probe = match probe::next(observed, now) {
        probe::Next::At(at) => Some(at),
        probe::Next::Never | probe::Next::Now(_) => None,
    };
    let turns = expiry.into_iter().chain(endings).chain(authorization::keep_alive_at(observed, now));
    let turns = turns.chain(arrival).chain(probe);
    turns.filter(|at| *at > now).min()
}

/// The expiry of the token, if the status is `Ready`.
pub fn end_of_ready(status: &MailCredentialStatus) -> Option<Timestamp> {
    let token = status.token.as_ref().filter(|_| condition::is_true(&status.conditions, ConditionType::Ready))?;
    Some(token.expires_at.0)
}

/// The status of a credential that the broker cannot observe, after the token of its `Ready` has expired. `None`: the
/// last status is correct.
pub fn ended(credential: &MailCredential, now: Timestamp) -> Option<MailCredentialStatus> {
    let mut after = credential.status.clone()?;
    let end = end_of_ready(&after).filter(|end| *end <= now)?;
    let message = format!(
        "the token in the Secret {} ended at {}. The broker cannot obtain another, because Kubernetes does not let it read \
         an object that the credential refers to: the broker's log has the cause",
        after.secret_name.clone().unwrap_or_else(|| target_name(credential)),
        rfc3339(end)
    );
    let generation = credential.metadata.generation.unwrap_or_default();
    upsert(&mut after.conditions, ConditionType::Ready, false, Reason::Expired, message.clone(), generation, now);
    let standing = (!credential.spec.suspend).then_some(Standing::Reconciling { message });
    before(credential).set(&mut after.conditions, standing, now);
    Some(after)
}

/// Whether a status reports that a token has expired. While a request is in flight, the broker writes only such a
/// status. A credential that gets its token immediately becomes `Ready` in one write.
pub fn reports_an_end(before: &[Condition], after: &[Condition]) -> bool {
    let expired =
        condition::find(after, ConditionType::Ready).is_some_and(|ready| ready.reason == Reason::Expired.as_str());
    expired && condition::is_true(before, ConditionType::Ready)
}
