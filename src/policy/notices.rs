//! The Events that tell of the turns of a status. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::api::{
    ConditionType, Reason, condition,
    status::{ClientStatus, MailCredentialStatus},
};

/// Something to tell on the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// A Warning, or Normal.
    pub warning: bool,
    /// The reason.
    pub reason: Reason,
    /// What happened.
    pub note: String,
}

/// The Events for the turn from `before` to `after`: a Warning when a condition turns bad, Normal when it recovers, one
/// for each reason, and Normal when another client authentication works now. An uneventful issue or renewal has none.
pub fn notices(before: &MailCredentialStatus, after: &MailCredentialStatus) -> Vec<Notice> {
    let mut notices = turns(&before.conditions, &after.conditions);
    notices.extend(takeover(before, after));
    notices.extend(another_code(before, after));
    notices
}

/// A code that took another's place: nothing else tells, since the conditions stay as they were.
fn another_code(before: &MailCredentialStatus, after: &MailCredentialStatus) -> Option<Notice> {
    let (old, new) = (before.authorization.as_ref()?, after.authorization.as_ref()?);
    let stalled = condition::find(&after.conditions, ConditionType::Stalled)?;
    (old.user_code != new.user_code).then(|| Notice {
        warning: true,
        reason: Reason::AuthorizationRequired,
        note: stalled.message.clone(),
    })
}

fn takeover(before: &MailCredentialStatus, after: &MailCredentialStatus) -> Option<Notice> {
    let (old, new) = (before.client.as_ref()?, after.client.as_ref()?);
    let works = condition::is_true(&after.conditions, ConditionType::Renewed);
    let entry = |client: &ClientStatus| format!("spec.client.authentication[{}] ({})", client.index, client.method);
    (works && entry(old) != entry(new)).then(|| Notice {
        warning: false,
        reason: Reason::ClientAuthenticationChanged,
        note: format!("{} of the provider is in use now, instead of {}", entry(new), entry(old)),
    })
}

fn turns(before: &[Condition], after: &[Condition]) -> Vec<Notice> {
    let mut notices: Vec<Notice> = vec![];
    let mut add = |warning, condition: &Condition| {
        let Some(reason) = Reason::parse(&condition.reason) else { return };
        if !notices.iter().any(|notice| notice.reason == reason) {
            notices.push(Notice { warning, reason, note: condition.message.clone() });
        }
    };
    let bad = [ConditionType::Stalled, ConditionType::GrantExpiringSoon, ConditionType::ClientCredentialExpiringSoon];
    for kind in bad {
        let (old, new) = (condition::find(before, kind), condition::find(after, kind));
        if let Some(new) = new.filter(|new| old.is_none_or(|old| old.reason != new.reason)) {
            add(true, new);
        }
    }
    for kind in [ConditionType::Renewed, ConditionType::Ready] {
        let (old, new) = (condition::find(before, kind), condition::find(after, kind));
        let Some(new) = new else { continue };
        let was_bad = old.is_some_and(|old| old.status != "True");
        let quiet = [Reason::Pending.as_str(), Reason::Suspended.as_str()];
        match (was_bad, new.status == "True") {
            (true, true) if !quiet.contains(&old.map_or("", |old| old.reason.as_str())) => add(false, new),
            (false, false) if !quiet.contains(&new.reason.as_str()) => add(true, new),
            _ => {}
        }
    }
    let short = |conditions: &[Condition]| {
        condition::find(conditions, ConditionType::Ready)
            .filter(|ready| ready.message.contains(Reason::LifetimeTooShort.as_str()))
            .map(|ready| ready.message.clone())
    };
    if let (None, Some(note)) = (short(before), short(after)) {
        notices.push(Notice { warning: true, reason: Reason::LifetimeTooShort, note });
    }
    notices
}
