//! What earlier attempts to obtain a token came to. Pure.

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

/// What earlier attempts came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Failures since the last success.
    pub failed_attempts: u32,
    /// When the last attempt failed.
    pub last_failure: Option<Timestamp>,
    /// When the next one is due.
    pub next_attempt: Option<Timestamp>,
    /// What the last failure was.
    pub last_error: Option<LastError>,
    /// What the last failed attempt was made with.
    pub failed_with: Option<AttemptHash>,
    /// The generation that the status describes: where the CRD of an older version drops `failedWith`, it alone shows
    /// whether anything has changed.
    pub observed_generation: Option<i64>,
    /// The last attempt: how it ended and in what words. `None` before the first.
    pub last: Option<(Reason, String)>,
    /// The client authentication in use.
    pub client: Option<ClientStatus>,
    /// The reissue value that was answered last.
    pub handled_reissue: Option<String>,
}

impl History {
    /// Reads the history out of a status.
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
                // A suspension, or what keeps attempts from being made, is no attempt: what stands is the success that the
                // token came from, if none failed since.
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

    /// The last attempt's reason, if it failed.
    pub fn failure(&self) -> Option<(Reason, &str)> {
        let (reason, message) = self.last.as_ref().filter(|_| self.failed_attempts > 0)?;
        Some((*reason, message))
    }

    /// Records a failure at `now` of an attempt made with `attempt`.
    pub fn fail(&mut self, refusal: &Refusal, message: String, attempt: &AttemptHash, now: Timestamp) {
        // A change of what the attempt is made with begins anew, as does another kind of failure: nobody who put the
        // right secret in place after four wrong ones waits for hours.
        let same_kind = self.failure().is_some_and(|(reason, _)| reason.retry() == refusal.reason.retry());
        let unchanged = self.failed_with.as_ref().is_none_or(|with| with == attempt);
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
        self.failed_with = Some(attempt.clone());
        self.last = Some((refusal.reason, message));
    }

    /// Records a success.
    pub fn succeed(&mut self, unwritten: &UnwrittenToken) {
        *self = Self {
            last: Some(succeeded()),
            client: unwritten.client.clone(),
            handled_reissue: unwritten.reissue.clone().or_else(|| self.handled_reissue.take()),
            ..Self::default()
        };
    }

    /// Records that a step of a sign-in worked, for a token by `attempt`: of what failed before only a refusal of the
    /// refresh token still counts.
    pub fn step(&mut self, client: ClientStatus, attempt: &AttemptHash) {
        if self.failed_attempts > 0 && self.failed_with.as_ref() != Some(attempt) {
            *self = Self { handled_reissue: self.handled_reissue.take(), ..Self::default() };
        }
        self.client = Some(client);
    }

    /// Takes the end of the client secret in use from the provider's spec as it is now: it is corrected there once the
    /// secret was replaced, and the next request may be an hour away.
    pub fn client_as_in(&mut self, spec: &ProviderSpec) {
        let Some(client) = &mut self.client else { return };
        let entry = usize::try_from(client.index).ok().and_then(|index| spec.client.authentication.get(index));
        if let Some(secret) = entry.and_then(|entry| entry.client_secret.as_ref()) {
            client.expires_at.clone_from(&secret.expires_at);
        }
    }

    /// Records that a stored token was written again, after writes that may have failed.
    pub fn recover(&mut self) {
        if self.failure().is_some_and(|(reason, _)| reason == Reason::SecretWriteFailed) {
            let (client, handled_reissue) = (self.client.take(), self.handled_reissue.take());
            *self = Self { last: Some(succeeded()), client, handled_reissue, ..Self::default() };
        }
    }

    /// Whether an attempt made with `attempt` for this generation of the spec has to wait, and until when. Since the clock
    /// was set back it has waited enough.
    pub fn backoff(&self, attempt: &AttemptHash, generation: Option<i64>, now: Timestamp) -> Option<Timestamp> {
        let unchanged = match self.failed_with.as_ref() {
            Some(with) => with == attempt,
            None => self.observed_generation == generation,
        };
        let known = self.last_failure.is_none_or(|failed| !schedule::is_from_the_future(failed, now));
        self.next_attempt.filter(|until| unchanged && known && *until > now)
    }
}

/// What `Renewed` says after a success.
fn succeeded() -> (Reason, String) {
    (Reason::RenewalSucceeded, "the last token request succeeded".to_owned())
}
