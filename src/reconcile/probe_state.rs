//! What the broker remembers of a credential's probe: the logins that have ended, and the result that no status reports yet.

use k8s_openapi::jiff::Timestamp;

use crate::{
    api::{probe::ProbeStatus, protocol::Protocol},
    policy::{
        hash::ProbeHash,
        probe::{Login, ProbeInputs, Round, Verdict},
    },
};

/// What is remembered of a credential's probe.
#[derive(Default)]
pub struct ProbeState {
    /// A login is under way.
    pub in_flight: bool,
    /// The inputs of the probe under way.
    inputs: Option<ProbeInputs>,
    /// The logins of the probe under way that have ended.
    logins: Vec<(Protocol, Login)>,
    /// The fingerprint of the token of the last login.
    fingerprint: String,
    /// Hash of the CA bundle of the last login.
    bundle: ProbeHash,
    /// A login could not be made, and is tried again at this time.
    again: Option<Timestamp>,
    /// The result of the last probe, which no status reports yet.
    pub unreported: Option<(ProbeStatus, Verdict)>,
}

/// A login that was made.
pub struct Made {
    /// What the login showed.
    pub login: Login,
    /// The fingerprint of the token that was sent.
    pub fingerprint: String,
    /// Hash of the CA bundle that was trusted; empty without one.
    pub bundle: ProbeHash,
}

impl ProbeState {
    /// Whether the state equals a new one.
    pub(super) fn is_blank(&self) -> bool {
        let Self { in_flight, inputs, logins, fingerprint: _, bundle: _, again, unreported } = self;
        !in_flight && inputs.is_none() && logins.is_empty() && again.is_none() && unreported.is_none()
    }

    /// The protocol of the next login, and when it is made if not now. `None` while a login is under way, and after the last
    /// login. A probe with other inputs begins again with the first login.
    pub fn next_login(
        &mut self,
        wanted: &[Protocol],
        inputs: &ProbeInputs,
        now: Timestamp,
    ) -> Option<(Protocol, Option<Timestamp>)> {
        if self.in_flight {
            return None;
        }
        if self.inputs.as_ref().is_none_or(|known| known.objects != inputs.objects) {
            self.logins.clear();
            self.inputs = Some(inputs.clone());
        }
        let next = wanted.iter().find(|wanted| !self.logins.iter().any(|(of, _)| of == *wanted)).copied();
        next.map(|protocol| (protocol, self.again.filter(|again| now < *again)))
    }

    /// Notes the end of a login; `None` where it could not be made, and is tried again at `again`.
    pub fn end(&mut self, protocol: Protocol, made: Option<Made>, again: Timestamp) {
        self.in_flight = false;
        match made {
            Some(Made { login, fingerprint, bundle }) => {
                self.logins.push((protocol, login));
                (self.fingerprint, self.bundle, self.again) = (fingerprint, bundle, None);
            }
            None => self.again = Some(again),
        }
    }

    /// The probe, if each of the wanted logins has ended.
    pub fn take_round(&mut self, wanted: &[Protocol], now: Timestamp) -> Option<Round> {
        let ended = |wanted: &Protocol| self.logins.iter().any(|(of, _)| of == wanted);
        if self.logins.is_empty() || !wanted.iter().all(ended) {
            return None;
        }
        let logins = std::mem::take(&mut self.logins);
        let ProbeInputs { objects, bundle } = self.inputs.take()?;
        // Where the cache knew a bundle, a newer one that was read since is probed when the cache knows that.
        let bundle = Some(bundle.unwrap_or_else(|| self.bundle.clone()));
        let fingerprint = std::mem::take(&mut self.fingerprint);
        Some(Round { logins, inputs: ProbeInputs { objects, bundle }, fingerprint, at: now })
    }

    /// Drops what another replica that has led since may have changed. A login under way ends.
    pub(super) fn restart(&mut self) {
        *self = Self { in_flight: self.in_flight, ..Self::default() };
    }

    /// Drops a probe that is not wanted any more. A login under way ends.
    pub fn abandon(&mut self) {
        (self.inputs, self.again) = (None, None);
        self.logins.clear();
    }
}
