//! Times of renewals and of attempts after failures.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use super::token::TokenFacts;
use crate::{
    api::{Reason, Retry, credential::Renewal},
    oauth::Refusal,
};

/// Time until a new Secret reaches a pod's file system: the kubelet's sync period and its cache. Measured: 33 s at the
/// median, 72 s at most (docs/reliability.md).
const PROPAGATION: SignedDuration = SignedDuration::from_mins(2);
/// First and longest back-off after transient failures. The back-off doubles each time.
const TRANSIENT: [SignedDuration; 2] = [SignedDuration::from_secs(5), SignedDuration::from_secs(300)];
/// First and longest back-off after permanent refusals. The back-off doubles each time.
const PERMANENT: [SignedDuration; 2] = [SignedDuration::from_mins(15), SignedDuration::from_hours(6)];
/// The first two waits after a refusal with an unknown code, which may be transient.
const UNKNOWN: [SignedDuration; 2] = [SignedDuration::from_mins(1), SignedDuration::from_mins(5)];
/// Number of refusals of a new federated identity that count as transient. The waits after them are 5, 10, 20, 40, 80,
/// 160 and 300 seconds, ten minutes together.
const GRACE: u32 = 7;
/// Longest wait that the broker accepts from a provider's `Retry-After`.
const RETRY_AFTER_MAX: SignedDuration = SignedDuration::from_hours(1);

/// Resolution of the clock: whole seconds.
const CLOCK_RESOLUTION: SignedDuration = SignedDuration::from_secs(1);
/// Minimum time from a credential's last token to its renewal, regardless of the token's lifetime.
const MIN_RENEWAL_DELAY: SignedDuration = SignedDuration::from_secs(5);
/// Maximum bytes per second that one credential writes. Each renewal writes the whole Secret, and short lifetimes must
/// not fill etcd. The broker renews a Secret of a megabyte at most every 65 seconds.
const BYTES_A_SECOND: usize = 16 * 1024;

/// Tolerated clock skew between replicas, and tolerated clock adjustments.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_mins(5);

/// Whether the clock was set back since `at` was recorded.
pub fn is_from_the_future(at: Timestamp, now: Timestamp) -> bool {
    at > now + CLOCKS_DIFFER
}

/// The renewal time of a token, and whether `minValidity` remains at that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenewalPlan {
    /// Time of the renewal. The fraction of the second spreads renewals that are due in the same second.
    pub at: Timestamp,
    /// The token's lifetime, if even a renewal after half of the lifetime leaves less than `minValidity`.
    pub too_short: Option<SignedDuration>,
}

impl RenewalPlan {
    /// The second from which the renewal is due, as in the status: the clock has whole seconds.
    pub fn second(&self) -> Timestamp {
        Timestamp::from_second(self.at.as_second()).unwrap_or(self.at)
    }
}

/// Plans the renewal of `token` of the credential `uid`.
pub fn renewal(token: &TokenFacts, renewal: &Renewal, uid: &str) -> RenewalPlan {
    let lifetime = token.expires_at.duration_since(token.issued_at);
    let min_validity = signed(renewal.min_validity.into());
    let wanted = match renewal.renew_before {
        Some(renew_before) => signed(renew_before.into()),
        None => (min_validity + PROPAGATION).max(lifetime / 5),
    };
    let half = lifetime / 2;
    let at = token.expires_at - wanted.min(half) - jitter(uid, lifetime);
    let at = token.refresh_at.map_or(at, |refresh_at| refresh_at.min(at));
    RenewalPlan {
        at: at.max(soonest(token.issued_at, 0)),
        too_short: (wanted > half && half < min_validity).then_some(lifetime),
    }
}

/// The earliest renewal of a token that was issued at `issued_at` and is in a Secret of `bytes`. The stored `issued_at`
/// is truncated to the second, so the result adds a second.
pub fn soonest(issued_at: Timestamp, bytes: usize) -> Timestamp {
    let seconds = i64::try_from(bytes.div_ceil(BYTES_A_SECOND)).unwrap_or(i64::MAX);
    let issued_at = Timestamp::from_second(issued_at.as_second()).unwrap_or(issued_at);
    let distance = MIN_RENEWAL_DELAY.max(SignedDuration::from_secs(seconds.min(3_600)));
    issued_at + CLOCK_RESOLUTION + distance
}

/// Spreads the renewals of credentials that were created together over a tenth of the token's lifetime. The value is
/// the same after a restart.
fn jitter(uid: &str, lifetime: SignedDuration) -> SignedDuration {
    spread(uid, lifetime / 10)
}

/// A duration from zero to less than `range`, in milliseconds. It depends on `seed` alone.
pub(super) fn spread(seed: &str, range: SignedDuration) -> SignedDuration {
    let range = u64::try_from(range.as_millis()).unwrap_or(0);
    let hash = Sha256::digest(seed.as_bytes());
    let number = hash.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    SignedDuration::from_millis(number.checked_rem(range).unwrap_or(0).cast_signed())
}

/// Time of the next attempt after `refusal`, the `attempts`-th consecutive failure (from 1), at `failed_at`.
pub fn after_refusal(refusal: &Refusal, attempts: u32, failed_at: Timestamp) -> Timestamp {
    let asked = refusal.retry_after;
    let early = usize::try_from(attempts).ok().and_then(|number| UNKNOWN.get(number.checked_sub(1)?));
    match early {
        Some(wait) if refusal.unknown_code => at(failed_at, *wait, asked),
        None if refusal.unknown_code => {
            next_attempt(refusal.reason, attempts.saturating_sub(UNKNOWN.len() as u32), failed_at, asked)
        }
        _ => next_attempt(refusal.reason, attempts, failed_at, asked),
    }
}

/// Time of the next attempt after the `attempts`-th consecutive failure (from 1), with `reason`, at `failed_at`. The
/// result is rounded up to the second, as the status stores it.
pub fn next_attempt(
    reason: Reason,
    attempts: u32,
    failed_at: Timestamp,
    retry_after: Option<SignedDuration>,
) -> Timestamp {
    let ([first, last], attempts) = match reason.retry() {
        Retry::Permanent if is_in_grace(reason, attempts) => (TRANSIENT, attempts),
        Retry::Permanent if reason == Reason::FederationMismatch => (PERMANENT, attempts - GRACE),
        Retry::Permanent | Retry::OnChange => (PERMANENT, attempts),
        Retry::Transient | Retry::None => (TRANSIENT, attempts),
    };
    let doubled = first.checked_mul(1_i32 << attempts.saturating_sub(1).min(16)).unwrap_or(last).min(last);
    at(failed_at, doubled, retry_after)
}

/// The time `wait` after the failure, or after the provider's Retry-After, up to an hour, if that is longer.
fn at(failed_at: Timestamp, wait: SignedDuration, retry_after: Option<SignedDuration>) -> Timestamp {
    // The clock has whole seconds, so the failure was up to a second later.
    let asked = retry_after
        .map_or(SignedDuration::ZERO, |asked| asked.min(RETRY_AFTER_MAX - CLOCK_RESOLUTION) + CLOCK_RESOLUTION);
    let at = failed_at + wait.max(asked);
    if at.subsec_nanosecond() == 0 { at } else { Timestamp::from_second(at.as_second() + 1).unwrap_or(at) }
}

/// Whether a refusal of a federated identity still counts as transient: providers trust a new federated credential only
/// after minutes (Microsoft, "Workload identity federation").
pub fn is_in_grace(reason: Reason, attempts: u32) -> bool {
    reason == Reason::FederationMismatch && attempts <= GRACE
}

fn signed(duration: std::time::Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// When the broker resolves an unusable provider again: soon after a transient problem, and every minute while a person
/// must act. No watch shows every repair, such as a new label on a source Secret. A discovery follows the provider's
/// `retry_after`, up to the longest wait after transient problems: no annotation ends this wait.
pub fn provider_retry_at(
    reason: Reason,
    failures: u32,
    retry_after: Option<SignedDuration>,
    now: Timestamp,
) -> Timestamp {
    match reason.retry() {
        Retry::OnChange => {
            let ceiling = now + SignedDuration::from_mins(1);
            next_attempt(Reason::ProviderUnavailable, failures, now, None).min(ceiling)
        }
        Retry::Permanent => next_attempt(Reason::ProviderUnavailable, failures, now, None),
        Retry::Transient | Retry::None => {
            let [_, longest] = TRANSIENT;
            next_attempt(reason, failures, now, retry_after.map(|asked| asked.min(longest)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::oauth::token::TokenFingerprint;

    const ISSUED: i64 = 1_800_000_000;

    fn token(lifetime: i64) -> TokenFacts {
        TokenFacts {
            issued_at: Timestamp::from_second(ISSUED).unwrap(),
            expires_at: Timestamp::from_second(ISSUED + lifetime).unwrap(),
            refresh_at: None,
            scopes: vec![],
            fingerprint: TokenFingerprint::default(),
            object_id: None,
            unsuitable: None,
            length: None,
        }
    }

    fn minutes(min_validity: u64, renew_before: Option<u64>) -> Renewal {
        let of = |minutes: u64| Duration::from_secs(minutes * 60).into();
        Renewal { min_validity: of(min_validity), renew_before: renew_before.map(of) }
    }

    /// Seconds from issue to renewal, without the jitter.
    fn after(lifetime: i64, renewal: &Renewal) -> i64 {
        let plan = super::renewal(&token(lifetime), renewal, "uid");
        (plan.at + jitter("uid", SignedDuration::from_secs(lifetime))).as_second() - ISSUED
    }

    #[test]
    fn an_hour_is_renewed_twelve_minutes_before_its_end() {
        assert_eq!(after(3600, &minutes(10, None)), 48 * 60);
    }

    #[test]
    fn a_day_is_renewed_a_fifth_before_its_end() {
        assert_eq!(after(86_400, &minutes(10, None)), 86_400 * 4 / 5);
    }

    #[test]
    fn a_pod_that_reads_late_still_finds_a_token_that_is_valid_long_enough() {
        assert_eq!(after(3600, &minutes(20, None)), (60 - 20 - 2) * 60);
    }

    #[test]
    fn renew_before_wins_over_min_validity() {
        assert_eq!(after(3600, &minutes(10, Some(5))), 55 * 60);
    }

    #[test]
    fn no_token_is_renewed_before_half_of_its_life_and_a_short_one_says_so() {
        let plan = renewal(&token(900), &minutes(10, None), "uid");
        assert_eq!(after(900, &minutes(10, None)), 450);
        assert_eq!(plan.too_short, Some(SignedDuration::from_secs(900)));
        // A lifetime of an hour is long enough if half an hour is enough, or if the spec sets the renewal time.
        for enough in [
            minutes(10, None),
            minutes(30, None),
            minutes(10, Some(1)),
            minutes(40, Some(1)),
            minutes(40, Some(30)),
            minutes(10, Some(40)),
        ] {
            assert_eq!(renewal(&token(3600), &enough, "uid").too_short, None, "{enough:?}");
        }
    }

    #[test]
    fn no_token_is_renewed_sooner_than_five_seconds_after_its_issue() {
        // The result is a second later, because the issue time is truncated to the second.
        assert_eq!(
            renewal(&token(1), &minutes(10, None), "uid").at,
            token(1).issued_at + MIN_RENEWAL_DELAY + CLOCK_RESOLUTION
        );
        let at_once = TokenFacts { refresh_at: Some(token(3600).issued_at), ..token(3600) };
        assert_eq!(
            renewal(&at_once, &minutes(10, None), "uid").at,
            at_once.issued_at + MIN_RENEWAL_DELAY + CLOCK_RESOLUTION
        );
        let late = TokenFacts { issued_at: token(1).issued_at + SignedDuration::from_millis(999), ..token(3600) };
        assert_eq!(soonest(late.issued_at, 0), token(1).issued_at + MIN_RENEWAL_DELAY + CLOCK_RESOLUTION);
    }

    #[test]
    fn a_large_secret_is_renewed_less_often() {
        let after = |bytes| soonest(token(1).issued_at, bytes).as_second() - ISSUED;
        assert_eq!([0, 1, 80 << 10, 81 << 10, 1 << 20, usize::MAX].map(after), [6, 6, 6, 7, 65, 3601]);
    }

    #[test]
    fn a_refusal_that_is_not_known_is_tried_again_after_1_and_5_minutes_and_then_as_one_for_a_person() {
        let failed_at = Timestamp::from_second(ISSUED).unwrap();
        let mut refusal = Refusal::new(Reason::RequestRefused, "x");
        let wait = |refusal: &Refusal, attempts| after_refusal(refusal, attempts, failed_at).as_second() - ISSUED;
        assert_eq!([1, 2, 3].map(|attempts| wait(&refusal, attempts)), [900, 1800, 3600]);
        refusal.unknown_code = true;
        let waits = [1, 2, 3, 4, 5, 99].map(|attempts| wait(&refusal, attempts));
        assert_eq!(waits, [60, 300, 900, 1800, 3600, 21_600]);
        refusal.retry_after = Some(SignedDuration::from_secs(120));
        assert_eq!([1, 2].map(|attempts| wait(&refusal, attempts)), [121, 300]);
    }

    #[test]
    fn renewals_are_spread_evenly_over_a_tenth_of_a_lifetime() {
        let lifetime = SignedDuration::from_hours(1);
        let mut tenths = [0; 10];
        for number in 0..1000 {
            let jitter = jitter(&format!("uid {number}"), lifetime);
            let tenth = jitter.as_secs() / 36;
            tenths[usize::try_from(tenth).unwrap()] += 1;
        }
        assert!(tenths.iter().all(|count| (60..140).contains(count)), "{tenths:?}");
    }

    #[test]
    fn the_provider_may_ask_for_an_earlier_renewal_and_not_for_a_later_one() {
        let with = |refresh: i64| {
            let token =
                TokenFacts { refresh_at: Some(Timestamp::from_second(ISSUED + refresh).unwrap()), ..token(86_400) };
            renewal(&token, &minutes(10, None), "uid").at.as_second() - ISSUED
        };
        assert_eq!(with(43_200), 43_200);
        assert!(with(86_000) < 86_400 * 4 / 5 + 1);
    }

    #[test]
    fn transient_failures_wait_5_10_20_to_300_seconds() {
        let failed_at = Timestamp::from_second(ISSUED).unwrap();
        let wait = |attempts| next_attempt(Reason::ProviderUnavailable, attempts, failed_at, None).as_second() - ISSUED;
        assert_eq!([1, 2, 3, 4, 5, 6, 7, 8, 1_000_000].map(wait), [5, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn permanent_refusals_wait_15_minutes_to_6_hours() {
        let failed_at = Timestamp::from_second(ISSUED).unwrap();
        let wait = |attempts| next_attempt(Reason::InvalidClient, attempts, failed_at, None).as_second() - ISSUED;
        assert_eq!([1, 2, 3, 4, 5, 6, 99].map(wait), [900, 1800, 3600, 7200, 14_400, 21_600, 21_600]);
    }

    #[test]
    fn retry_after_is_obeyed_and_capped_at_an_hour() {
        let failed_at = Timestamp::from_second(ISSUED).unwrap();
        let wait = |seconds| {
            next_attempt(Reason::Throttled, 1, failed_at, Some(SignedDuration::from_secs(seconds))).as_second() - ISSUED
        };
        assert_eq!([0, 3, 60, 3599, 1_000_000_000].map(wait), [5, 5, 61, 3600, 3600]);
    }

    #[test]
    fn a_fresh_federation_has_ten_minutes_of_grace_and_then_waits_for_a_person() {
        let mut at = Timestamp::from_second(ISSUED).unwrap();
        let mut waits = vec![];
        for attempts in 1..=10 {
            let next = next_attempt(Reason::FederationMismatch, attempts, at, None);
            waits.push(next.as_second() - at.as_second());
            at = next;
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 900, 1800, 3600]);
        assert!(is_in_grace(Reason::FederationMismatch, 7) && !is_in_grace(Reason::FederationMismatch, 8));
        assert!(!is_in_grace(Reason::InvalidClient, 1));
    }

    proptest! {
        #[test]
        fn a_renewal_is_after_the_issue_and_before_the_end(
            lifetime in 1i64..40_000_000, min_validity in 0u64..1440, renew_before in proptest::option::of(1u64..1440), uid in "[a-f0-9-]{36}",
        ) {
            let token = token(lifetime);
            let plan = renewal(&token, &minutes(min_validity, renew_before), &uid);
            prop_assert!(plan.at > token.issued_at);
            prop_assert!(plan.at <= token.expires_at.max(soonest(token.issued_at, 0)));
            prop_assert!(plan.at >= token.issued_at + (token.expires_at.duration_since(token.issued_at) * 2) / 5);
        }

        #[test]
        fn the_next_attempt_is_in_the_future_and_within_six_hours(attempts in 1u32.., retry_after in proptest::option::of(0i64..i64::MAX / 2)) {
            let failed_at = Timestamp::from_second(ISSUED).unwrap();
            for reason in Reason::ALL {
                let at = next_attempt(*reason, attempts, failed_at, retry_after.map(SignedDuration::from_secs));
                prop_assert!(at > failed_at && at.as_second() - ISSUED <= 6 * 3600);
            }
        }
    }

    #[test]
    fn a_provider_that_a_person_repairs_is_resolved_at_least_every_minute() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let wait =
            |reason: Reason, failures| provider_retry_at(reason, failures, None, now).duration_since(now).as_secs();
        for failures in [1, 5, 50] {
            let transient = wait(Reason::ProviderUnavailable, failures);
            // No watch shows the label that repairs SourceNotLabeled. DiscoveryFailed is transient.
            assert_eq!(wait(Reason::SourceNotLabeled, failures), transient.min(60), "{failures}");
            assert_eq!(wait(Reason::DiscoveryFailed, failures), transient, "{failures}");
        }
        assert_eq!(wait(Reason::SourceNotLabeled, 50), 60);
    }

    #[test]
    fn a_discovery_follows_the_wait_that_the_provider_asks_for() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        for (asked, expected) in [(1, 5), (90, 91), (86_400, 301)] {
            let asked = Some(SignedDuration::from_secs(asked));
            let at = provider_retry_at(Reason::DiscoveryFailed, 1, asked, now);
            assert_eq!(at.duration_since(now).as_secs(), expected);
        }
    }
}
