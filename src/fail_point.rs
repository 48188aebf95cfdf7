//! Points of a refresh at which a test stops the process, to kill it right there. A debug build alone has them.

/// Names a point, and after a colon at which passing of it to stop: `answer-received`, `answer-received:2`.
#[cfg(debug_assertions)]
const STOP_AT: &str = "MAILTOKEN_STOP_AT";

/// Goes no further, if this is the point where the process is to stop. Whatever else it does goes on.
#[cfg(debug_assertions)]
pub async fn pass(point: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    };
    static CHOSEN: LazyLock<Option<(String, usize)>> = LazyLock::new(|| {
        let chosen = std::env::var(STOP_AT).ok()?;
        let (point, passing) = chosen.split_once(':').unwrap_or((&chosen, "1"));
        Some((point.to_owned(), passing.parse().ok()?))
    });
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    let Some((chosen, passing)) = &*CHOSEN else { return };
    if chosen == point && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *passing {
        tracing::warn!("stopped at {point}");
        std::future::pending().await
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub async fn pass(_: &str) {}
