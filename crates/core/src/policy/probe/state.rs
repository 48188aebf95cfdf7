//! The state of a credential's probe: the logins that have ended, and the result that no status reports yet. Pure.

use k8s_openapi::jiff::Timestamp;

use super::{Login, ProbeInputs, Round, Verdict};
use crate::{
    api::{credential::Protocol, probe::ProbeStatus},
    oauth::token::TokenFingerprint,
    policy::hash::ProbeHash,
};

/// The state of a credential's probe.
#[derive(Default)]
pub struct ProbeState {
    /// Whether a login is in progress.
    pub in_flight: bool,
    /// The inputs of the probe in progress.
    inputs: Option<ProbeInputs>,
    /// The ended logins of the probe in progress.
    logins: Vec<(Protocol, Login)>,
    /// The fingerprint of the token of the last login.
    fingerprint: TokenFingerprint,
    /// Hash of the CA bundle of the last login.
    bundle: ProbeHash,
    /// Time of the next try, after the broker could not make a login.
    again: Option<Timestamp>,
    /// The result of the last probe while no status reports it.
    pub unreported: Option<Box<(ProbeStatus, Verdict)>>,
}

/// The result of one login.
pub struct Made {
    /// The server's answer, or the failure.
    pub login: Login,
    /// The fingerprint of the token in the login.
    pub fingerprint: TokenFingerprint,
    /// Hash of the CA bundle for the login; empty without a bundle.
    pub bundle: ProbeHash,
}

impl ProbeState {
    /// Whether the state equals a new one.
    pub fn is_blank(&self) -> bool {
        let Self { in_flight, inputs, logins, fingerprint: _, bundle: _, again, unreported } = self;
        !in_flight && inputs.is_none() && logins.is_empty() && again.is_none() && unreported.is_none()
    }

    /// Returns the protocol of the next login, and the time of the login if it is not due now. Returns `None` during a
    /// login, and after the last login. A probe with other inputs begins again with the first login.
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

    /// Records the end of a login. `None`: the broker could not make the login, and tries again at `again`.
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

    /// Returns the probe if all wanted logins have ended. `None`: a wanted login has not ended.
    pub fn take_round(&mut self, wanted: &[Protocol], now: Timestamp) -> Option<Round> {
        let ended = |wanted: &Protocol| self.logins.iter().any(|(of, _)| of == wanted);
        if self.logins.is_empty() || !wanted.iter().all(ended) {
            return None;
        }
        let logins = std::mem::take(&mut self.logins);
        let ProbeInputs { objects, bundle } = self.inputs.take()?;
        // If the cache had another bundle at the start, the next probe uses the newer bundle when the cache has it.
        let bundle = Some(bundle.unwrap_or_else(|| self.bundle.clone()));
        let fingerprint = std::mem::take(&mut self.fingerprint);
        Some(Round { logins, inputs: ProbeInputs { objects, bundle }, fingerprint, at: now })
    }

    /// Drops values that another replica may have changed in its term. A login in progress continues to its end.
    pub fn restart(&mut self) {
        *self = Self { in_flight: self.in_flight, ..Self::default() };
    }

    /// Drops a probe that is no longer wanted. A login in progress continues to its end.
    pub fn abandon(&mut self) {
        (self.inputs, self.again) = (None, None);
        self.logins.clear();
    }
}

#[cfg(test)]
mod tests {
    use Protocol::{Imap, Smtp};

    use super::*;

    /// Returns the time `second` seconds after the epoch.
    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    const BOTH: [Protocol; 2] = [Smtp, Imap];

    fn inputs(objects: &str, bundle: Option<&str>) -> ProbeInputs {
        ProbeInputs { objects: objects.into(), bundle: bundle.map(Into::into) }
    }

    fn made(fingerprint: &str) -> Option<Made> {
        Some(Made { login: Login::Accepted, fingerprint: fingerprint.into(), bundle: "read".into() })
    }

    /// Begins the next login, whose protocol must be `expected`.
    fn begin(state: &mut ProbeState, objects: &str, expected: Protocol) {
        assert_eq!(state.next_login(&BOTH, &inputs(objects, None), at(0)), Some((expected, None)));
        state.in_flight = true;
    }

    #[test]
    fn the_logins_of_a_probe_follow_each_other_and_end_in_one_result() {
        let mut state = ProbeState::default();
        for (protocol, fingerprint) in [(Smtp, "first"), (Imap, "second")] {
            assert_eq!(state.take_round(&BOTH, at(1)), None);
            begin(&mut state, "a", protocol);
            assert_eq!(state.next_login(&BOTH, &inputs("a", None), at(0)), None, "a login is under way");
            assert!(!state.is_blank());
            state.end(protocol, made(fingerprint), at(5));
        }
        assert_eq!(state.next_login(&BOTH, &inputs("a", None), at(0)), None, "each login has ended");
        let logins = vec![(Smtp, Login::Accepted), (Imap, Login::Accepted)];
        let inputs = inputs("a", Some("read"));
        let round = Round { logins, inputs, fingerprint: "second".into(), at: at(1) };
        assert_eq!(state.take_round(&BOTH, at(1)), Some(round));
        assert!(state.is_blank() && state.take_round(&BOTH, at(1)).is_none(), "a result is taken once");
    }

    #[test]
    fn a_login_that_could_not_be_made_is_made_at_its_time() {
        let mut state = ProbeState::default();
        begin(&mut state, "a", Smtp);
        state.end(Smtp, None, at(5));
        let mut next = |second| state.next_login(&BOTH, &inputs("a", None), at(second));
        assert_eq!(next(4), Some((Smtp, Some(at(5)))));
        assert_eq!(next(5), Some((Smtp, None)));
        assert!(!state.is_blank(), "the time is kept");
        state.in_flight = true;
        state.end(Smtp, made(""), at(9));
        assert_eq!(state.next_login(&BOTH, &inputs("a", None), at(5)), Some((Imap, None)));
    }

    #[test]
    fn logins_with_former_inputs_are_no_part_of_a_later_probe() {
        // The change happens between two logins, or during a login.
        for during in [false, true] {
            let mut state = ProbeState::default();
            begin(&mut state, "former", Smtp);
            if during {
                assert_eq!(state.next_login(&BOTH, &inputs("later", None), at(0)), None);
            }
            state.end(Smtp, made("former"), at(5));
            for protocol in BOTH {
                begin(&mut state, "later", protocol);
                state.end(protocol, made("later"), at(5));
            }
            let round = state.take_round(&BOTH, at(1)).unwrap();
            assert_eq!((round.logins.len(), round.inputs.objects.as_str()), (2, "later"), "{during}");
        }
    }

    #[test]
    fn the_last_login_with_former_inputs_gives_a_result_that_shows_them() {
        let mut state = ProbeState::default();
        begin(&mut state, "former", Smtp);
        state.end(Smtp, made("former"), at(5));
        // `Observed::conclude` drops a result whose inputs differ from the current inputs.
        assert_eq!(state.take_round(&[Smtp], at(1)).unwrap().inputs.objects.as_str(), "former");
    }

    #[test]
    fn a_bundle_that_was_known_before_the_login_is_the_one_of_the_result() {
        for (known, expected) in [(Some("known"), "known"), (Some(""), ""), (None, "read")] {
            let mut state = ProbeState::default();
            assert_eq!(state.next_login(&[Smtp], &inputs("a", known), at(0)), Some((Smtp, None)));
            state.end(Smtp, made(""), at(5));
            let round = state.take_round(&[Smtp], at(1)).unwrap();
            assert_eq!(round.inputs.bundle, Some(expected.into()), "{known:?}");
        }
    }

    #[test]
    fn a_login_of_an_abandoned_probe_leaves_nothing_behind() {
        type End = fn(&mut ProbeState);
        let ends: [(&str, End); 2] =
            [("not wanted", ProbeState::abandon), ("another term of leadership", ProbeState::restart)];
        for (what, end) in ends {
            let mut state = ProbeState::default();
            begin(&mut state, "a", Smtp);
            end(&mut state);
            assert!(!state.is_blank(), "{what}: the login under way has not ended");
            assert_eq!(state.next_login(&BOTH, &inputs("a", None), at(0)), None, "{what}");
            state.end(Smtp, made(""), at(5));
            assert_eq!(state.take_round(&[Smtp], at(1)), None, "{what}");
            begin(&mut state, "a", Smtp);
        }
    }

    #[test]
    fn another_term_of_leadership_drops_a_result_that_no_status_reports() {
        let record = serde_json::from_value(serde_json::json!({
            "lastTime": "2026-01-01T00:00:00Z", "nextTime": "2026-01-01T06:00:00Z",
        }));
        let verdict = Verdict {
            status: crate::api::condition::ConditionStatus::True,
            reason: crate::api::Reason::LoginSucceeded,
            message: String::new(),
        };
        let mut state = ProbeState { unreported: Some(Box::new((record.unwrap(), verdict))), ..ProbeState::default() };
        state.abandon();
        assert!(state.unreported.is_some(), "the status still has to report the result");
        state.restart();
        assert!(state.is_blank());
    }
}
