//! Random observations for the properties.

use k8s_openapi::jiff::SignedDuration;
use proptest::{option, prelude::*, sample::select};

use super::fixtures::{Case, at, blocker, published, token};
use crate::{
    api::Reason,
    oauth::Refusal,
    policy::{
        grant::Seed,
        observed::{History, Target, TokenFacts},
    },
};

/// Possible states of the target.
#[derive(Clone, Copy, Debug)]
enum Found {
    Nothing,
    Foreign,
    UnderTheFormerName,
    Own { issued_for_this: bool, intact: bool, same_layout: bool, usable: bool },
}

fn found() -> impl Strategy<Value = Found> {
    prop_oneof![
        1 => Just(Found::Nothing),
        1 => Just(Found::Foreign),
        1 => Just(Found::UnderTheFormerName),
        5 => (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(issued_for_this, intact, same_layout, usable)| Found::Own { issued_for_this, intact, same_layout, usable }
        ),
    ]
}

/// A failed attempt: reason, number, time, `Retry-After`, whether it was a sign-in, and whether the inputs changed since.
type Failure = (Reason, u32, i64, Option<i64>, bool, bool);

pub(super) fn failure() -> impl Strategy<Value = Failure> {
    let failing: Vec<_> = Reason::ALL.iter().copied().filter(|reason| reason.stalls() || transient(*reason)).collect();
    (select(failing), 1u32..12, 0i64..4000, option::of(0i64..100_000), prop::bool::weighted(0.2), any::<bool>())
}

fn transient(reason: Reason) -> bool {
    reason.retry() == crate::api::Retry::Transient
}

pub(super) fn passing() -> Vec<Reason> {
    Reason::ALL.iter().copied().filter(|reason| transient(*reason)).collect()
}

/// Values of Retry-After in seconds, below and above the maximum of an hour.
pub(super) fn retry_after() -> impl Strategy<Value = i64> {
    prop_oneof![0i64..3_600, 3_600i64..100_000]
}

fn blocked() -> impl Strategy<Value = Option<Reason>> {
    option::weighted(
        0.2,
        select(vec![Reason::InvalidSpec, Reason::NotAllowed, Reason::SourceNotLabeled, Reason::ProviderNotReady]),
    )
}

/// Possible states of a user's grant.
#[derive(Clone, Debug)]
struct Granted {
    by_code: bool,
    stored: bool,
    token: Option<(bool, Option<i64>, Option<i64>)>,
    claim: Option<(bool, i64)>,
    seed: Option<bool>,
    sign_in: Option<(i64, i64, bool, bool)>,
    foreign: bool,
    unsaved: bool,
    out_of_sync: bool,
    next_poll: Option<i64>,
    code_over: bool,
    idle_days: Option<i64>,
}

prop_compose! {
    fn granted()(
        by_code in any::<bool>(),
        stored in prop::bool::weighted(0.9),
        token in option::weighted(0.8, (prop::bool::weighted(0.8), option::of(-4_000_000i64..4000), option::of(-100i64..4_000_000))),
        claim in option::of((any::<bool>(), -100i64..5000)),
        seed in option::weighted(0.3, any::<bool>()),
        sign_in in option::of((-100_000i64..0, 0i64..5000, prop::bool::weighted(0.8), prop::bool::weighted(0.2))),
        (foreign, unsaved, out_of_sync) in (prop::bool::weighted(0.1), prop::bool::weighted(0.2), prop::bool::weighted(0.1)),
        next_poll in option::of(0i64..5000),
        code_over in prop::bool::weighted(0.2),
        idle_days in option::of(1i64..90),
    ) -> Granted {
        Granted { by_code, stored, token, claim, seed, sign_in, foreign, unsaved, out_of_sync, next_poll, code_over, idle_days }
    }
}

fn grant(case: &mut Case, granted: Granted) {
    if granted.by_code {
        case.by_device_code()
    } else {
        case.by_refresh_token()
    };
    match granted.token {
        None => case.stored().token = None,
        Some((bound, used, end)) => {
            let token = case.stored().token.as_mut().unwrap();
            (token.last_used_at, token.expires_at) = (used.map(at), end.map(at));
            if !bound {
                token.bound_to = "another".into();
            }
        }
    }
    if let Some((mine, until)) = granted.claim {
        case.claimed(if mine { "me" } else { "another" }, until);
    }
    if let Some((began, until, asked, ended)) = granted.sign_in {
        let sign_in = case.signing_in(began, until);
        sign_in.ended = ended.then(|| "denied".to_owned());
        if !asked {
            sign_in.asked_for = "another spec".into();
        }
    }
    let grant = case.grant();
    let seed = Seed { hash: "another".into(), version: "9".into() };
    grant.seed = granted
        .seed
        .filter(|_| !granted.by_code)
        .map(|good| good.then_some(seed).ok_or_else(|| blocker(Reason::SourceNotLabeled)));
    grant.foreign = granted.foreign.then(|| "is not ours".to_owned());
    (grant.unsaved, grant.out_of_sync, grant.code_over) = (granted.unsaved, granted.out_of_sync, granted.code_over);
    grant.next_poll = granted.next_poll.map(at);
    grant.idle_life = granted.idle_days.map(|days| SignedDuration::from_hours(24 * days));
    if !granted.stored || granted.foreign {
        grant.stored = None;
    }
}

prop_compose! {
    pub(super) fn case()(
        found in found(),
        lifetime in 2i64..100_000,
        refresh in option::of(1i64..50_000),
        now in 0i64..4000,
        failure in option::of(failure()),
        blocked in blocked(),
        missing in prop::bool::weighted(0.1),
        (unwritten, in_flight, suspended, rival) in (any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.1), prop::bool::weighted(0.1)),
        reissue in option::of(select(vec!["1", "2"])),
        granted in option::of(granted()),
        reported in any::<bool>(),
    ) -> Case {
        let mut case = Case::ready();
        let refresh_at = refresh.map(at).filter(|refresh_at| *refresh_at < at(lifetime));
        let own = published(TokenFacts { expires_at: at(lifetime), refresh_at, ..token() });
        case.observed.target = match found {
            Found::Nothing => Target::Absent,
            Found::Foreign => Target::Foreign("is not ours".into()),
            Found::UnderTheFormerName => {
                case.observed.previous = Some(own);
                Target::Absent
            }
            Found::Own { issued_for_this, intact, same_layout, usable } => {
                let mut own = own;
                own.intact = intact;
                own.must_recreate = !usable;
                if !issued_for_this { own.issued_for = "another tenant".into(); }
                if !same_layout { own.layout = "another".into(); }
                own.handled_reissue = Some("1".into());
                Target::Own(own)
            }
        };
        if matches!(case.observed.target, Target::Absent) {
            case.observed.history = History::default();
        }
        if reported {
            case.write_status();
        }
        if let Some((reason, times, second, retry_after, signing_in, changed)) = failure {
            let mut refusal = Refusal::new(reason, "what");
            refusal.retry_after = retry_after.map(SignedDuration::from_secs);
            for _ in 0..times {
                case.observed.history.fail(&refusal, "what. What to do.".into(), &"attempt".into(), at(second));
            }
            if signing_in { case.observed.history.failed_with = Some(case.observed.sign_in_attempt_hash()); }
            if changed { case.observed.attempt_hash = "changed".into(); }
        }
        if unwritten { case.hold(); }
        if let Some(reason) = blocked { case.provider().blocker = Some(blocker(reason)); }
        if missing { case.observed.provider = Err(blocker(Reason::ProviderNotFound)); }
        if let Some(granted) = granted { grant(&mut case, granted); }
        if let Some(value) = reissue { case.annotate("mailtoken.dev/reissue", value); }
        case.credential(|credential| credential.spec.suspend = suspended);
        case.observed.in_flight = in_flight;
        case.observed.rival = rival.then(|| "older".to_owned());
        case.now = at(now);
        case
    }
}
