//! Points of a refresh at which a test stops the process to kill it, and steps that panic for one object. Only debug
//! builds have them.

/// Environment variable that names a point. A number after a colon selects the nth time that the process passes the
/// point: `answer-received`, `answer-received:2`.
#[cfg(debug_assertions)]
const STOP_AT: &str = "MAILTOKEN_STOP_AT";

/// Stops this task at the point that the environment names. Other tasks continue.
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

/// Does nothing: this is a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub async fn pass(_: &str) {}

/// Environment variable that names a step and the object for which the step panics: `reconcile:poison`.
#[cfg(debug_assertions)]
const PANIC_AT: &str = "MAILTOKEN_PANIC_AT";

/// Panics if the environment names this step and this object.
#[cfg(debug_assertions)]
#[expect(clippy::panic, reason = "a test wants to see what becomes of it")]
pub fn panic_at(step: &str, name: &str) {
    if std::env::var(PANIC_AT).is_ok_and(|chosen| chosen.split_once(':') == Some((step, name))) {
        panic!("{name} with a secret that must not stand in the log");
    }
}

/// Does nothing: this is a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn panic_at(_: &str, _: &str) {}
