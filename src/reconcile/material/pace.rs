//! A provider's `rateLimit`: a token bucket, first come, first served.

use std::{num::NonZeroU32, ptr, time::Duration};

use governor::{DefaultDirectRateLimiter, Quota, clock::Clock as _};
use kube::ResourceExt as _;

use super::{super::Context, Prepared};
use crate::{
    api::{MailCredential, provider::RateLimit},
    policy::checks,
    reconcile::stores::ProviderKey,
};

/// How soon the first in the line notices that it is not wanted any more.
const LOOK: Duration = Duration::from_secs(1);

/// Lets the requests to one provider through.
pub(super) struct Pace {
    /// What it was made for.
    pub(super) limit: RateLimit,
    bucket: DefaultDirectRateLimiter,
    /// The first in the line waits for the bucket, all others for their turn to be the first.
    line: tokio::sync::Mutex<()>,
}

impl Pace {
    pub(super) fn new(limit: RateLimit) -> Self {
        let number = |number: i32| u32::try_from(number).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_minute(number(limit.requests_per_minute)).allow_burst(number(limit.burst));
        Self { limit, bucket: DefaultDirectRateLimiter::direct(quota), line: tokio::sync::Mutex::default() }
    }

    /// Waits until a request may be sent. `false` if it is not `wanted` any more when it is the first in the line.
    async fn turn(&self, wanted: impl Fn() -> bool) -> bool {
        let _first = self.line.lock().await;
        while wanted() {
            match self.bucket.check() {
                Ok(()) => return true,
                Err(later) => tokio::time::sleep(later.wait_time_from(self.bucket.clock().now()).min(LOOK)).await,
            }
        }
        false
    }
}

impl Prepared {
    /// Waits until the provider's `rateLimit` lets one request through, which is to be sent at once. `None` if whoever asks
    /// has to begin anew: while it waited the credential or the provider has changed, or the process is about to end.
    ///
    /// Not for discovery, and not for the one repetition after a lost reply, which has to come at once.
    pub async fn admission(&self, credential: &MailCredential, context: &Context) -> Option<()> {
        let Some(pace) = &self.pace else { return Some(()) };
        let turn =
            pace.turn(|| is_current(credential, context) && self.is_current(&ProviderKey::of(credential), context));
        context.draining.run_until_cancelled(turn).await?.then_some(())
    }

    /// The provider is still as it was when this was made.
    fn is_current(&self, key: &ProviderKey, context: &Context) -> bool {
        let Some(object) = context.stores.provider(key) else { return false };
        context.material.fingerprint(&object, context).is_none_or(|fingerprint| {
            let verdict = context.material.verdict(key, &fingerprint);
            verdict.is_some_and(|verdict| verdict.is_ok_and(|prepared| ptr::eq(&*prepared, self)))
        })
    }
}

fn is_current(credential: &MailCredential, context: &Context) -> bool {
    let shown = context.stores.credentials.get(checks::namespace(credential), &credential.name_any());
    shown.is_some_and(|shown| {
        (&shown.metadata.uid, shown.metadata.generation) == (&credential.metadata.uid, credential.metadata.generation)
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures::FutureExt as _;

    use super::*;

    fn pace(burst: i32) -> Pace {
        Pace::new(RateLimit { requests_per_minute: 1, burst })
    }

    #[tokio::test]
    async fn a_burst_is_let_through_and_what_follows_waits() {
        let pace = pace(2);
        assert!(pace.turn(|| true).await && pace.turn(|| true).await);
        assert_eq!(pace.turn(|| true).now_or_never(), None);
    }

    #[tokio::test]
    async fn who_is_not_wanted_any_more_takes_no_turn_from_others() {
        let pace = pace(1);
        assert!(!pace.turn(|| false).await);
        assert!(pace.turn(|| true).await);
    }

    #[tokio::test]
    async fn the_first_in_the_line_is_the_only_one_that_looks() {
        let (pace, looks) = (pace(1), Cell::new(0));
        assert!(pace.turn(|| true).await);
        let waiting = || {
            pace.turn(|| {
                looks.set(looks.get() + 1);
                true
            })
        };
        let mut line = [Box::pin(waiting()), Box::pin(waiting())];
        assert!(line.iter_mut().all(|turn| turn.now_or_never().is_none()));
        assert_eq!(looks.get(), 1);
    }
}
