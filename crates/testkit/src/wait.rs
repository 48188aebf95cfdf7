//! Waits for expected events, and checks that other events do not happen.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

/// Maximum time that a test waits for an event that should happen immediately: four tests and a build share two cores.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two checks.
const INTERVAL: Duration = Duration::from_millis(25);

/// Waits until `look` succeeds, at most [`PATIENCE`]. Fails with the last error of `look`, which should show the
/// object.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Result<T, String>) -> T {
    until_in(PATIENCE, what, look).await
}

/// Waits as [`until`] does, with another deadline.
pub async fn until_in<T>(deadline: Duration, what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        let said = match look().await {
            Ok(found) => return found,
            Err(said) => said,
        };
        assert!(start.elapsed() < deadline, "waited {deadline:?} for: {what}\n{said}");
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Checks that `look` succeeds now and during the whole `time`.
pub async fn holds(time: Duration, what: &str, mut look: impl AsyncFnMut() -> Result<(), String>) {
    let start = Instant::now();
    while start.elapsed() < time {
        if let Err(said) = look().await {
            panic!("after {:?} it was no longer so: {what}\n{said}", start.elapsed());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Returns the current time, as Kubernetes writes it.
pub fn now() -> Timestamp {
    Timestamp::now()
}
