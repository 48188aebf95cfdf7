//! The Events for the changes of a status. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::status::words;
use crate::{
    api::{
        ConditionType, Reason, condition,
        status::{ClientStatus, MailCredentialStatus},
    },
    oauth::token::{Assumption, DEFAULT_LIFETIME, LifetimeSource},
};

/// An Event about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventNote {
    /// Whether the Event is a Warning; otherwise Normal.
    pub warning: bool,
    /// The reason of the Event.
    pub reason: Reason,
    /// The text of the Event.
    pub note: String,
}

/// The Events for the change from `before` to `after`. A condition that turns bad gives a Warning, and its recovery a
/// Normal Event. Each reason has at most one Event. A change to another client authentication gives a Normal Event. A
/// renewal without a problem gives no Event.
pub fn notices(before: &MailCredentialStatus, after: &MailCredentialStatus) -> Vec<EventNote> {
    // The provider has the Event for the expiry of a client secret, because it may have hundreds of credentials.
    let bad = [ConditionType::Stalled, ConditionType::GrantExpiringSoon];
    let mut notices = turns(&before.conditions, &after.conditions, &bad);
    notices.extend(mailbox(before, after));
    notices.extend(short_lifetime(before, after));
    notices.extend(takeover(before, after));
    notices.extend(another_code(before, after));
    notices
}

/// The Warning about a property of the token for which the broker had to assume a value.
pub fn assumed(assumption: Assumption) -> EventNote {
    let (reason, note) = match assumption {
        Assumption::Lifetime { flaw, taken } => {
            let taken = match taken {
                LifetimeSource::ExpClaim => "the broker uses the exp claim of the token as its expiry".to_owned(),
                LifetimeSource::ExpiresIn => "the broker uses its expires_in as the lifetime".to_owned(),
                LifetimeSource::Default => format!("the broker assumes a lifetime of {}", words(DEFAULT_LIFETIME)),
            };
            let fix = "Make the provider state the lifetime in seconds, or renew early enough with \
                        spec.renewal.renewBefore";
            (Reason::LifetimeUnknown, format!("the token response {flaw}: {taken}. {fix}"))
        }
        Assumption::TokenType => (
            Reason::TokenTypeUnknown,
            "the token response has no token_type: the broker assumes Bearer, the only type that mail servers accept. No \
             action is needed while they accept the token"
                .to_owned(),
        ),
    };
    EventNote { warning: true, reason, note }
}

/// The Warning about a sign-in for which the provider did not report the account. `user`: the expected user name.
pub fn account_not_verified(user: &str) -> EventNote {
    let note = format!(
        "the provider did not say who signed in, so the broker could not verify that it was {user}: check at the provider \
         which account signed in. Providers report the account in an ID token, for the scopes openid and email (for a user \
         name without @: profile)"
    );
    EventNote { warning: true, reason: Reason::AccountNotVerified, note }
}

/// The Warning about a sign-in after which the provider returned no refresh token.
pub fn no_refresh_token() -> EventNote {
    let note = "the sign-in returned no refresh token, so a user must sign in for each token: add the scope offline_access, \
                and allow it for the client at the provider";
    EventNote { warning: true, reason: Reason::TokenUnsuitable, note: note.to_owned() }
}

/// The Event about a new refresh token in the seed's Secret, which the broker now uses.
pub fn grant_reseeded() -> EventNote {
    let note =
        "the seed's Secret has a new refresh token: the broker uses it from now on, and keeps the former one beside it";
    EventNote { warning: false, reason: Reason::GrantReseeded, note: note.to_owned() }
}

/// The Event for a new code that a user must enter, the first code or a replacement. The Event is Normal, because a
/// pending sign-in is no failure.
fn another_code(before: &MailCredentialStatus, after: &MailCredentialStatus) -> Option<EventNote> {
    let (old, new) = (before.authorization.as_ref(), after.authorization.as_ref()?);
    let shown = condition::find(&after.conditions, ConditionType::Reconciling)
        .or_else(|| condition::find(&after.conditions, ConditionType::Ready))?;
    old.is_none_or(|old| old.user_code != new.user_code).then(|| EventNote {
        warning: false,
        reason: Reason::AuthorizationRequired,
        note: shown.message.clone(),
    })
}

/// The Event for a probe that changed the condition `MailboxAuthorized`. A probe that is still due gives no Event.
fn mailbox(before: &MailCredentialStatus, after: &MailCredentialStatus) -> Option<EventNote> {
    let find = |status| {
        let found = condition::find(status, ConditionType::MailboxAuthorized);
        found.filter(|found| found.reason != Reason::ProbePending.as_str())
    };
    let new = find(&after.conditions)?;
    let same = find(&before.conditions).is_some_and(|old| (&old.status, &old.reason) == (&new.status, &new.reason));
    (!same).then_some(EventNote {
        warning: new.status != "True",
        reason: Reason::parse(&new.reason)?,
        note: new.message.clone(),
    })
}

fn takeover(before: &MailCredentialStatus, after: &MailCredentialStatus) -> Option<EventNote> {
    let (old, new) = (before.client.as_ref()?, after.client.as_ref()?);
    let works = condition::is_true(&after.conditions, ConditionType::Renewed);
    let entry = |client: &ClientStatus| format!("spec.client.authentication[{}] ({})", client.index, client.method);
    (works && entry(old) != entry(new)).then(|| EventNote {
        warning: false,
        reason: Reason::ClientAuthenticationChanged,
        note: format!("{} of the provider is in use now, instead of {}", entry(new), entry(old)),
    })
}

fn short_lifetime(before: &MailCredentialStatus, after: &MailCredentialStatus) -> Option<EventNote> {
    let short = |status: &MailCredentialStatus| {
        condition::find(&status.conditions, ConditionType::Ready)
            .filter(|ready| ready.message.contains(Reason::LifetimeTooShort.as_str()))
            .map(|ready| ready.message.clone())
    };
    let note = short(after).filter(|_| short(before).is_none())?;
    Some(EventNote { warning: true, reason: Reason::LifetimeTooShort, note })
}

/// The Events for the change from one list of conditions to the next. `bad`: types that are problems while True.
pub(super) fn turns(before: &[Condition], after: &[Condition], bad: &[ConditionType]) -> Vec<EventNote> {
    let mut notices: Vec<EventNote> = vec![];
    let mut add = |warning, condition: &Condition| {
        let Some(reason) = Reason::parse(&condition.reason) else { return };
        if !notices.iter().any(|notice| notice.reason == reason) {
            notices.push(EventNote { warning, reason, note: condition.message.clone() });
        }
    };
    for kind in bad.iter().copied() {
        let (old, new) = (condition::find(before, kind), condition::find(after, kind));
        let reported = |reason: &String| {
            let renewed = condition::find(before, ConditionType::Renewed);
            old.is_some_and(|old| old.reason == *reason) || renewed.is_some_and(|renewed| renewed.reason == *reason)
        };
        if let Some(new) = new.filter(|new| !reported(&new.reason)) {
            add(true, new);
        }
    }
    for kind in [ConditionType::Renewed, ConditionType::Ready] {
        let (old, new) = (condition::find(before, kind), condition::find(after, kind));
        let Some(new) = new else { continue };
        let was_bad = old.is_some_and(|old| old.status != "True");
        let quiet = [Reason::Pending.as_str(), Reason::Suspended.as_str()];
        let reason = Reason::parse(&new.reason);
        // A missing object that may still arrive is no problem yet, and neither is a shown sign-in code.
        let waits = condition::find(after, ConditionType::Reconciling).is_some()
            && reason.is_some_and(|reason| reason.may_arrive() || reason == Reason::AuthorizationRequired);
        // While the token is valid, only `Renewed` shows that a failure is no longer transient and needs a person.
        let worse = kind == ConditionType::Renewed
            && reason.is_some_and(Reason::stalls)
            && old.is_some_and(|old| old.reason != new.reason);
        match (was_bad, new.status == "True") {
            (true, true) if !quiet.contains(&old.map_or("", |old| old.reason.as_str())) => add(false, new),
            (false, false) if !waits && !quiet.contains(&new.reason.as_str()) => add(true, new),
            (true, false) if worse && !waits => add(true, new),
            _ => {}
        }
    }
    notices
}
