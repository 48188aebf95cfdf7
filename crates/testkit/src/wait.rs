//! Waiting for what will happen, and seeing what does not.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

/// How long a test waits for something that should happen at once, on two cores that four tests share and a build keeps busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(25);

/// Waits until `look` succeeds, at most [`PATIENCE`]. Fails with what it last said, which should show the object.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Result<T, String>) -> T {
    until_in(PATIENCE, what, look).await
}

/// [`until`] with another deadline.
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

/// Sees that `look` succeeds now and for all of the time.
pub async fn holds(time: Duration, what: &str, mut look: impl AsyncFnMut() -> Result<(), String>) {
    let start = Instant::now();
    while start.elapsed() < time {
        if let Err(said) = look().await {
            panic!("after {:?} it was no longer so: {what}\n{said}", start.elapsed());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The time, as Kubernetes writes it.
pub fn now() -> Timestamp {
    Timestamp::now()
}
