//! The probe: when the broker checks that a mailbox accepts its token, and what the results of the logins mean. Pure.

mod advice;
pub mod state;
#[cfg(test)]
mod tests;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt as _;
use mailtoken_mail::answers::{Cause, ServerCode, Verdict as Shows};

use super::{Observed, Reason, checks, grant::RefreshGrant, hash::ProbeHash, schedule, urgency::Class};
use crate::{
    api::{
        ConditionType, MailCredential,
        condition::{self, ConditionStatus},
        credential::Protocol,
        names,
        probe::{ProbeOutcome, ProbeResult, ProbeStatus},
    },
    oauth::token::TokenFingerprint,
};

/// Waits after consecutive refusals. The probes start 5, 15, 30 and 60 minutes after the first refusal, then hourly.
/// Exchange needs up to an hour until a permission takes effect.
const AFTER_REFUSED: [SignedDuration; 5] = [
    SignedDuration::from_mins(5),
    SignedDuration::from_mins(10),
    SignedDuration::from_mins(15),
    SignedDuration::from_mins(30),
    SignedDuration::from_mins(60),
];
/// Waits after consecutive probes without a result.
const AFTER_UNKNOWN: [SignedDuration; 4] = [
    SignedDuration::from_mins(1),
    SignedDuration::from_mins(2),
    SignedDuration::from_mins(5),
    SignedDuration::from_mins(15),
];
/// Minimum time between two probes of a credential. It prevents a tenant who changes the spec again and again from
/// using the broker to flood a mail server with logins.
const DISTANCE: SignedDuration = SignedDuration::from_secs(5);
/// Number of consecutive probes without a result after which the condition reports that there is no result.
const MISSES: i32 = 2;

/// The state of the probe of a credential with `spec.probe`.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// The result of the last probe, which the status has or will have.
    pub record: Option<ProbeStatus>,
    /// The verdict of a probe that no status reports yet.
    pub verdict: Option<Verdict>,
    /// The inputs of the next probe.
    pub inputs: ProbeInputs,
}

/// The content of the condition `MailboxAuthorized`.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The status of the condition.
    pub status: ConditionStatus,
    /// The reason of the condition.
    pub reason: Reason,
    /// The message of the condition.
    pub message: String,
}

/// The inputs of a probe. A change starts a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeInputs {
    /// Hash of the spec, the provider's spec, the grant and the last handled reissue.
    pub objects: ProbeHash,
    /// Hash of the provider's CA bundle; empty without a bundle. `None`: the broker has not read the bundle since its
    /// start, and assumes that the bundle is unchanged.
    pub bundle: Option<ProbeHash>,
}

impl ProbeInputs {
    /// Creates the inputs for a credential. `provider`: the provider's uid and generation. `bundle`: see
    /// [`Self::bundle`].
    pub fn new(
        credential: &MailCredential,
        provider: [&str; 2],
        grant: Option<&RefreshGrant>,
        reissue: Option<&str>,
        bundle: Option<ProbeHash>,
    ) -> Self {
        let generation = credential.metadata.generation.unwrap_or_default().to_string();
        let obtained = grant.and_then(RefreshGrant::status).map(|grant| names::rfc3339(grant.obtained_at.0));
        let [uid, version] = provider;
        let parts = [&generation, uid, version, obtained.as_deref().unwrap_or_default(), reissue.unwrap_or_default()];
        Self { objects: names::short_digest(parts).into(), bundle }
    }

    /// The text in `status.probe.probedWith`.
    fn text(&self) -> String {
        format!("{}-{}", self.objects, self.bundle.clone().unwrap_or_default())
    }

    /// Whether the inputs differ from `recorded`, the inputs of the last probe.
    fn differ_from(&self, recorded: &str) -> bool {
        let (objects, bundle) = recorded.split_once('-').unwrap_or((recorded, ""));
        objects != self.objects.as_str() || self.bundle.as_ref().is_some_and(|now| now.as_str() != bundle)
    }
}

/// The result of one login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// The server accepted the token.
    Accepted,
    /// The server answered, but did not accept the token.
    Answered {
        /// The cause of the failure.
        cause: Cause,
        /// The code of the server's answer.
        code: Option<ServerCode>,
    },
    /// The broker could not establish a secure connection to the server.
    NotConnected {
        /// `EgressDenied`, `MailServerUnavailable` or `MailServerTLSFailed`.
        reason: Reason,
        /// What is wrong and what to do, in the broker's own words.
        words: String,
    },
}

impl Login {
    /// The condition's reason for this login.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Accepted => Reason::LoginSucceeded,
            Self::Answered { cause, .. } => Reason::parse(cause.reason()).unwrap_or(Reason::LoginRefused),
            Self::NotConnected { reason, .. } => *reason,
        }
    }

    /// What the login shows about the token.
    pub fn outcome(&self) -> ProbeOutcome {
        match self {
            Self::Accepted => ProbeOutcome::Accepted,
            Self::Answered { cause, .. } => match cause.verdict() {
                Shows::Refused => ProbeOutcome::Refused,
                Shows::Unknown => ProbeOutcome::Unknown,
            },
            Self::NotConnected { reason: Reason::EgressDenied, .. } => ProbeOutcome::Refused,
            Self::NotConnected { .. } => ProbeOutcome::Unknown,
        }
    }

    fn code(&self) -> Option<String> {
        match self {
            Self::Answered { code, .. } => code.map(|code| code.to_string()),
            Self::Accepted | Self::NotConnected { .. } => None,
        }
    }
}

/// A probe after all its logins have ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// The logins by protocol.
    pub logins: Vec<(Protocol, Login)>,
    /// The inputs of the probe.
    pub inputs: ProbeInputs,
    /// The fingerprint of the token that the broker sent.
    pub fingerprint: TokenFingerprint,
    /// Time at which the last login ended.
    pub at: Timestamp,
}

/// The next probe of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// No probe until an object changes.
    Never,
    /// A probe at this time.
    At(Timestamp),
    /// A probe now, with its urgency.
    Now(Class),
}

/// The protocols that the probe of a credential uses.
pub fn protocols(credential: &MailCredential) -> Vec<Protocol> {
    let Some(probe) = &credential.spec.probe else { return vec![] };
    let used = |protocol: &Protocol| credential.spec.protocols.contains(protocol);
    match &probe.protocols {
        Some(named) => named.iter().copied().filter(used).collect(),
        None => [Protocol::Smtp, Protocol::Imap].into_iter().filter(used).collect(),
    }
}

/// When the broker probes a credential next. A probe needs an unexpired token for the current spec in the Secret.
pub fn next(observed: &Observed, now: Timestamp) -> Next {
    let Some(probe) = &observed.probe else { return Next::Never };
    if unable(observed, now).is_some() {
        return Next::Never;
    }
    let Some(record) = &probe.record else { return Next::Now(Class::Person) };
    let another = observed.token().is_some_and(|token| token.fingerprint.as_str() != record.fingerprint);
    let outcome = outcome_of(record);
    // After a clock change, the recorded time may be too far in the future.
    let jumped = schedule::is_from_the_future(record.last_time.0, now);
    if probe.inputs.differ_from(&record.probed_with) || (outcome == ProbeOutcome::Refused && another) || jumped {
        let soonest = record.last_time.0 + DISTANCE;
        return if jumped || soonest <= now { Next::Now(Class::Person) } else { Next::At(soonest) };
    }
    match (record.next_time.0 <= now, outcome) {
        (false, _) => Next::At(record.next_time.0),
        (true, ProbeOutcome::Accepted) => Next::Now(Class::Renewal),
        (true, ProbeOutcome::Refused | ProbeOutcome::Unknown) => Next::Now(Class::Retry),
    }
}

/// Why the broker cannot probe a credential now. `None`: the broker can.
fn unable(observed: &Observed, now: Timestamp) -> Option<String> {
    let credential = &observed.credential;
    if credential.spec.suspend {
        return Some("spec.suspend is true: the broker does not log in".to_owned());
    }
    let Ok(provider) = &observed.provider else {
        return Some(format!("the broker logs in when the {} exists", checks::provider_words(credential)));
    };
    let held_back = |reason| matches!(reason, Reason::NotAllowed | Reason::InvalidSpec);
    if provider.blocker.as_ref().is_some_and(|blocker| held_back(blocker.reason)) {
        return Some("the broker does not log in: the condition Renewed says what is wrong with the spec".to_owned());
    }
    let protocols = protocols(credential);
    if let Some(missing) = protocols.iter().find(|protocol| provider.profile.server(**protocol).is_none()) {
        let name = missing.as_str();
        return Some(format!(
            "the {} names no {name} server: set spec.servers.{} there, or leave {name} out of spec.probe.protocols",
            checks::provider_words(credential),
            name.to_lowercase()
        ));
    }
    let serves = observed.target.own().is_some_and(|published| {
        published.token.as_ref().is_some_and(|token| token.is_unexpired(now))
            && observed.is_for_this_spec(published)
            && published.layout == provider.layout
    });
    (!serves || protocols.is_empty())
        .then(|| format!("the broker logs in when the Secret {} holds a valid token", observed.target_name()))
}

/// The outcome of a probe: refused if a login was refused, otherwise unknown if the outcome of a login is unknown.
fn worst(outcomes: impl Iterator<Item = ProbeOutcome>) -> ProbeOutcome {
    let rank = |outcome: &ProbeOutcome| match outcome {
        ProbeOutcome::Refused => 2,
        ProbeOutcome::Unknown => 1,
        ProbeOutcome::Accepted => 0,
    };
    outcomes.max_by_key(rank).unwrap_or(ProbeOutcome::Accepted)
}

fn outcome_of(record: &ProbeStatus) -> ProbeOutcome {
    worst(record.results.iter().map(|result| result.outcome))
}

/// The condition `MailboxAuthorized` of a credential. `None`: the credential has no probe.
pub fn condition(observed: &Observed, now: Timestamp) -> Option<Verdict> {
    let probe = observed.probe.as_ref()?;
    if let Some(verdict) = &probe.verdict {
        return Some(verdict.clone());
    }
    let unable = unable(observed, now);
    // The last probe had the current inputs, but no result, and no earlier probe had a result.
    let missed = probe.record.as_ref().is_some_and(|record| !probe.inputs.differ_from(&record.probed_with));
    let stays = |told: &Verdict| told.reason != Reason::ProbePending || (missed && unable.is_none());
    Some(reported(observed).filter(stays).unwrap_or_else(|| Verdict {
        status: ConditionStatus::Unknown,
        reason: Reason::ProbePending,
        message: unable.clone().unwrap_or_else(|| "the broker is about to log in".to_owned()),
    }))
}

/// The condition in the status, if the status describes the current spec.
fn reported(observed: &Observed) -> Option<Verdict> {
    let credential = &observed.credential;
    let told = condition::find(&credential.status.as_ref()?.conditions, ConditionType::MailboxAuthorized)?;
    let status = [ConditionStatus::True, ConditionStatus::False, ConditionStatus::Unknown];
    let status = status.into_iter().find(|status| status.as_str() == told.status)?;
    let current = told.observed_generation == credential.metadata.generation;
    current
        .then(|| Some(Verdict { status, reason: Reason::parse(&told.reason)?, message: told.message.clone() }))
        .flatten()
}

impl Observed {
    /// Records a completed probe. Drops a probe whose inputs have changed since its start.
    pub fn conclude(&mut self, round: &Round) {
        let Some(probe) = &self.probe else { return };
        if probe.inputs.objects != round.inputs.objects {
            return;
        }
        let before = probe.record.as_ref().filter(|record| !round.inputs.differ_from(&record.probed_with));
        let outcome = worst(round.logins.iter().map(|(_, login)| login.outcome()));
        let alike = before.filter(|record| outcome_of(record) == outcome);
        let failures = (outcome != ProbeOutcome::Accepted)
            .then(|| alike.and_then(|record| record.failures).unwrap_or_default().saturating_add(1));
        let verdict = verdict(self, round, outcome, failures);
        let result = |(protocol, login): &(Protocol, Login)| ProbeResult {
            protocol: *protocol,
            outcome: login.outcome(),
            reason: login.reason().as_str().to_owned(),
            code: login.code(),
        };
        let record = ProbeStatus {
            last_time: Time(round.at),
            next_time: Time(next_time(&self.credential, round.at, outcome, failures)),
            results: round.logins.iter().map(result).collect(),
            failures,
            probed_with: round.inputs.text(),
            fingerprint: round.fingerprint.to_string(),
        };
        if let Some(probe) = &mut self.probe {
            (probe.record, probe.verdict) = (Some(record), Some(verdict));
        }
    }
}

fn verdict(observed: &Observed, round: &Round, outcome: ProbeOutcome, failures: Option<i32>) -> Verdict {
    let deciding = round.logins.iter().find(|(_, login)| login.outcome() == outcome);
    let reason = deciding.map_or(Reason::LoginSucceeded, |(_, login)| login.reason());
    let message = advice::message(observed, &round.logins);
    match outcome {
        ProbeOutcome::Accepted => Verdict { status: ConditionStatus::True, reason, message },
        ProbeOutcome::Refused => Verdict { status: ConditionStatus::False, reason, message },
        ProbeOutcome::Unknown if failures >= Some(MISSES) => {
            Verdict { status: ConditionStatus::Unknown, reason, message }
        }
        // A single probe without a result changes nothing: mail servers restart.
        ProbeOutcome::Unknown => reported(observed)
            .filter(|told| told.reason != Reason::ProbePending)
            .unwrap_or(Verdict { status: ConditionStatus::Unknown, reason: Reason::ProbePending, message }),
    }
}

/// The time of the next probe, in whole seconds as the status stores it.
fn next_time(credential: &MailCredential, at: Timestamp, outcome: ProbeOutcome, failures: Option<i32>) -> Timestamp {
    let step = |waits: &[SignedDuration]| {
        let number = usize::try_from(failures.unwrap_or(1)).unwrap_or(1).saturating_sub(1).min(waits.len() - 1);
        waits.get(number).copied().unwrap_or(SignedDuration::from_hours(1))
    };
    let wait = match outcome {
        ProbeOutcome::Refused => step(&AFTER_REFUSED),
        ProbeOutcome::Unknown => step(&AFTER_UNKNOWN),
        ProbeOutcome::Accepted => {
            let interval = credential.spec.probe.as_ref().map(|probe| std::time::Duration::from(probe.interval));
            let interval = interval.and_then(|interval| SignedDuration::try_from(interval).ok()).unwrap_or_default();
            let seed = format!("{} {}", credential.uid().unwrap_or_default(), at.as_second());
            interval - interval / 10 + schedule::spread(&seed, interval / 5)
        }
    };
    let at = at + wait;
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
