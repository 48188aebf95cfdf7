//! The results of earlier attempts to obtain a token. Pure.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use super::{hash::AttemptHash, schedule, token::UnwrittenToken};
use crate::{
    api::{
        ConditionType, Reason, condition,
        provider::ProviderSpec,
        status::{ClientStatus, LastError, MailCredentialStatus},
    },
    oauth::Refusal,
};

/// The results of earlier attempts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Number of failures since the last success.
    pub failed_attempts: u32,
    /// Time of the last failure.
    pub last_failure: Option<Timestamp>,
    /// Time of the next attempt.
    pub next_attempt: Option<Timestamp>,
    /// The error of the last failure.
    pub last_error: Option<LastError>,
    /// Hash of the inputs of the last failed attempt.
    pub failed_with: Option<AttemptHash>,
    /// The generation that the status describes. If the CRD of an older version drops `failedWith`, only the generation
    /// shows that the inputs have changed.
    pub observed_generation: Option<i64>,
    /// Reason and message of the last attempt. `None`: no attempt has ended yet.
    pub last: Option<(Reason, String)>,
    /// The client authentication in use.
    pub client: Option<ClientStatus>,
    /// The last handled value of the annotation `mailtoken.dev/reissue`.
    pub handled_reissue: Option<String>,
}

impl History {
    /// Reads the history from a status.
    pub fn of(status: &MailCredentialStatus) -> Self {
        let renewed = condition::find(&status.conditions, ConditionType::Renewed);
        let failed_attempts = status.failed_attempts.and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        Self {
            failed_attempts,
            last_failure: status.last_failure_time.as_ref().map(|time| time.0),
            next_attempt: status.next_attempt_time.as_ref().map(|time| time.0),
            last_error: status.last_error.clone(),
            failed_with: status.failed_with.as_deref().map(AttemptHash::from),
            observed_generation: status.observed_generation,
            last: match renewed.and_then(|renewed| Some((Reason::parse(&renewed.reason)?, renewed.message.clone()))) {
                // A suspension or a blocker is not an attempt: the last success remains, unless a later attempt failed.
                Some((reason, _)) if reason != Reason::RenewalSucceeded && failed_attempts == 0 => {
                    status.token.as_ref().map(|_| succeeded())
                }
                Some((Reason::Suspended, _)) => None,
                last => last,
            },
            client: status.client.clone(),
            handled_reissue: status.last_handled_reissue.clone(),
        }
    }

    /// Reason and message of the last attempt, if it failed.
    pub fn failure(&self) -> Option<(Reason, &str)> {
        let (reason, message) = self.last.as_ref().filter(|_| self.failed_attempts > 0)?;
        Some((*reason, message))
    }

    /// Records a failure at `now` of an attempt whose inputs have the hash `attempt_hash`.
    pub fn fail(&mut self, refusal: &Refusal, message: String, attempt_hash: &AttemptHash, now: Timestamp) {
        // A change of the inputs or another kind of failure restarts the back-off: a user who corrects the secret after
        // four wrong secrets does not wait for hours.
        let same_kind = self.failure().is_some_and(|(reason, _)| reason.retry() == refusal.reason.retry());
        let unchanged = self.failed_with.as_ref().is_none_or(|with| with == attempt_hash);
        self.failed_attempts = if same_kind && unchanged { self.failed_attempts.saturating_add(1) } else { 1 };
        self.last_failure = Some(now);
        self.next_attempt = Some(schedule::after_refusal(refusal, self.failed_attempts, now));
        self.last_error = Some(LastError {
            error: refusal.error.as_ref().map(|error| error.as_str().to_owned()),
            provider_code: refusal.provider_code.clone(),
            http_status: refusal.http_status.map(i32::from),
            correlation_id: refusal.correlation_id.clone(),
            time: Some(Time(now)),
        });
        self.failed_with = Some(attempt_hash.clone());
        self.last = Some((refusal.reason, message));
    }

    /// Records a successful token request.
    pub fn succeed(&mut self, unwritten: &UnwrittenToken) {
        *self = Self {
            last: Some(succeeded()),
            client: unwritten.client.clone(),
            handled_reissue: unwritten.reissue.clone().or_else(|| self.handled_reissue.take()),
            ..Self::default()
        };
    }

    /// Records a successful step of a sign-in, for a token whose inputs have the hash `attempt_hash`. Forgets earlier failures, except
    /// for a refusal of the refresh token.
    pub fn step(&mut self, client: ClientStatus, attempt_hash: &AttemptHash) {
        if self.failed_attempts > 0 && self.failed_with.as_ref() != Some(attempt_hash) {
            *self = Self { handled_reissue: self.handled_reissue.take(), ..Self::default() };
        }
        self.client = Some(client);
    }

    /// Reads the expiry of the client secret in use from the provider's current spec. A user who replaces the secret
    /// corrects the expiry there, and the next request may be an hour away.
    pub fn client_as_in(&mut self, spec: &ProviderSpec) {
        let Some(client) = &mut self.client else { return };
        let entry = usize::try_from(client.index).ok().and_then(|index| spec.client.authentication.get(index));
        if let Some(secret) = entry.and_then(|entry| entry.client_secret.as_ref()) {
            client.expires_at.clone_from(&secret.expires_at);
        }
    }

    /// Records a successful write of a stored token. Forgets failures of earlier writes.
    pub fn recover(&mut self) {
        if self.failure().is_some_and(|(reason, _)| reason == Reason::SecretWriteFailed) {
            let (client, handled_reissue) = (self.client.take(), self.handled_reissue.take());
            *self = Self { last: Some(succeeded()), client, handled_reissue, ..Self::default() };
        }
    }

    /// Time until which an attempt for this generation of the spec must wait. `attempt_hash` is the hash of the attempt's
    /// inputs. `None`: the attempt need not wait, for example because the clock was set back.
    pub fn backoff(&self, attempt_hash: &AttemptHash, generation: Option<i64>, now: Timestamp) -> Option<Timestamp> {
        let unchanged = match self.failed_with.as_ref() {
            Some(with) => with == attempt_hash,
            None => self.observed_generation == generation,
        };
        let known = self.last_failure.is_none_or(|failed| !schedule::is_from_the_future(failed, now));
        self.next_attempt.filter(|until| unchanged && known && *until > now)
    }
}

/// The reason and message of `Renewed` after a success.
fn succeeded() -> (Reason, String) {
    (Reason::RenewalSucceeded, "the last token request succeeded".to_owned())
}
