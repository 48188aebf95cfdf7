//! Whether the tasks that the broker cannot do without still run. A pod whose broker lost one of them is restarted.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{runtime::Handle, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

/// The interval at which the broker's main runtime reports that it makes progress.
const PULSE: Duration = Duration::from_secs(5);
/// Without a pulse for this long the main runtime counts as blocked. Signing and rendering block it for far less.
const PULSE_MISSED: Duration = Duration::from_secs(60);

/// Notices when a task ends that must run as long as the process; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// The first task that ended.
    failed: OnceLock<String>,
    /// The process is about to end, and its tasks with it.
    ending: CancellationToken,
    /// When the main runtime began to report progress.
    begun: OnceLock<Instant>,
    /// Seconds from then to its last report.
    pulse: AtomicU64,
}

impl Health {
    /// Runs `task`, which must not end before the process: its end, by a panic too, makes the broker unhealthy.
    pub fn supervise(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        self.supervise_on(&Handle::current(), name, task)
    }

    /// The same on the runtime of `handle`.
    pub fn supervise_on(
        &self,
        handle: &Handle,
        name: impl Into<String>,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let guard = Guard { health: self.clone(), name: name.into() };
        handle.spawn(async move {
            let _guard = guard;
            task.await;
        })
    }

    /// From now on tasks may end.
    pub fn end(&self) {
        self.0.ending.cancel();
    }

    /// The task that ended, if one did.
    pub fn failed(&self) -> Option<&str> {
        self.0.failed.get().map(String::as_str)
    }

    /// Reports every [`PULSE`] that the runtime of this future makes progress. Never returns.
    pub async fn pulse(self) {
        let begun = self.0.begun.get_or_init(monotonic);
        loop {
            self.0.pulse.store(begun.elapsed().as_secs(), Ordering::Release);
            tokio::time::sleep(PULSE).await;
        }
    }

    /// How long the main runtime has made no progress, if that is longer than [`PULSE_MISSED`].
    pub fn stalled(&self) -> Option<Duration> {
        let pulse = Duration::from_secs(self.0.pulse.load(Ordering::Acquire));
        let silent = self.0.begun.get()?.elapsed().saturating_sub(pulse);
        (silent > PULSE_MISSED).then_some(silent)
    }
}

#[expect(clippy::disallowed_methods, reason = "measures progress: nothing is decided about tokens")]
fn monotonic() -> Instant {
    Instant::now()
}

/// Dropped when its task ends, in whatever way.
struct Guard {
    health: Health,
    name: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Shared { failed, ending, .. } = &*self.health.0;
        if !ending.is_cancelled() && failed.set(self.name.clone()).is_ok() {
            tracing::error!(task = self.name, "a task ended that must run: the broker fails its liveness probe");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_or_panics_makes_the_broker_unhealthy() {
        let health = Health::default();
        let running = health.supervise("running", std::future::pending());
        assert_eq!(health.failed(), None);
        assert!(health.supervise("broken", async { panic!("in a test") }).await.is_err());
        assert_eq!(health.failed(), Some("broken"));
        running.abort();

        let health = Health::default();
        health.supervise("ended", async {}).await.unwrap();
        assert_eq!(health.failed(), Some("ended"));
    }

    #[tokio::test]
    async fn at_the_end_of_the_process_tasks_may_end() {
        let health = Health::default();
        health.end();
        health.supervise("ended", async {}).await.unwrap();
        assert_eq!(health.failed(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_main_runtime_that_reports_no_progress_is_stalled() {
        let health = Health::default();
        tokio::time::sleep(2 * PULSE_MISSED).await;
        assert_eq!(health.stalled(), None, "nothing reports yet");
        let pulse = tokio::spawn(health.clone().pulse());
        tokio::time::sleep(2 * PULSE_MISSED).await;
        assert_eq!(health.stalled(), None);
        pulse.abort();
        drop(pulse.await);
        tokio::time::sleep(PULSE_MISSED + 2 * PULSE).await;
        assert!(health.stalled().is_some());
    }
}
