//! Enqueues all objects when this replica begins to lead, and after a clock jump.

use std::{sync::Arc, time::Duration};

use crate::{lease::Leadership, reconcile::context::Context};

/// Difference in seconds between the wall clock and the monotonic clock that counts as a jump: the clock was set, or
/// the machine slept.
const CLOCK_JUMP_SECONDS: i64 = 5;
/// Interval at which the broker compares the clocks.
const CLOCK_CHECK: Duration = Duration::from_secs(10);

/// Enqueues all objects when this replica begins to lead. A standby only keeps its stores in sync.
pub async fn enqueue_all_when_leading(leadership: Leadership, context: Arc<Context>) {
    let mut changes = leadership.changes();
    loop {
        if changes.borrow_and_update().leads {
            tracing::info!("leading: all objects enqueued");
            enqueue_all(&context);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Enqueues all objects after a clock jump: timers count elapsed time, but tokens expire at a date.
#[expect(clippy::disallowed_methods, reason = "compares the two clocks")]
pub async fn enqueue_all_when_the_clock_jumps(context: Arc<Context>) {
    let mut before = (context.clock.now(), tokio::time::Instant::now());
    loop {
        tokio::time::sleep(CLOCK_CHECK).await;
        let now = (context.clock.now(), tokio::time::Instant::now());
        let passed = i64::try_from(now.1.duration_since(before.1).as_secs()).unwrap_or(i64::MAX);
        let drift = now.0.as_second() - before.0.as_second() - passed;
        if drift.abs() > CLOCK_JUMP_SECONDS {
            tracing::warn!(seconds = drift, "clock jump: all objects enqueued");
            context.providers.invalidate_all();
            context.cache.poll_soon();
            enqueue_all(&context);
        }
        before = now;
    }
}

fn enqueue_all(context: &Context) {
    let stores = &context.stores;
    for provider in stores.all_providers() {
        context.queue.enqueue_provider(provider.key());
    }
    for credential in stores.credentials.names(|_, _| true) {
        context.queue.enqueue_credential(credential);
    }
}
