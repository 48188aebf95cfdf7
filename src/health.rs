//! Supervises the tasks that must always run. If one of them ends, `/livez` fails and Kubernetes restarts the pod.

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
/// Time without a pulse after which the main runtime counts as blocked. Signing and rendering block it for far less
/// time.
const PULSE_MISSED: Duration = Duration::from_secs(60);

/// Supervisor of the tasks that must run as long as the process. Clones are cheap.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Name of the first task that ended.
    failed: OnceLock<String>,
    /// Cancelled when the process, and so its tasks, may end.
    ending: CancellationToken,
    /// Time of the main runtime's first report.
    begun: OnceLock<Instant>,
    /// Seconds from the first to the last report.
    pulse: AtomicU64,
}

impl Health {
    /// Runs `task`, which must not end before the process. If it ends or panics, the broker is unhealthy.
    pub fn supervise(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        self.supervise_on(&Handle::current(), name, task)
    }

    /// Runs `task` as [`Self::supervise`] does, on the runtime of `handle`.
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

    /// Allows tasks to end from now on.
    pub fn end(&self) {
        self.0.ending.cancel();
    }

    /// Returns the name of the first task that ended, if any.
    pub fn failed(&self) -> Option<&str> {
        self.0.failed.get().map(String::as_str)
    }

    /// Reports progress of the current runtime every [`PULSE`]. Never returns.
    pub async fn pulse(self) {
        let begun = self.0.begun.get_or_init(monotonic);
        loop {
            self.0.pulse.store(begun.elapsed().as_secs(), Ordering::Release);
            tokio::time::sleep(PULSE).await;
        }
    }

    /// Returns the time since the main runtime's last pulse, if that time is longer than [`PULSE_MISSED`].
    pub fn stalled(&self) -> Option<Duration> {
        let pulse = Duration::from_secs(self.0.pulse.load(Ordering::Acquire));
        let silent = self.0.begun.get()?.elapsed().saturating_sub(pulse);
        (silent > PULSE_MISSED).then_some(silent)
    }
}

#[expect(clippy::disallowed_methods, reason = "measures progress: it decides nothing about tokens")]
fn monotonic() -> Instant {
    Instant::now()
}

/// Reports the task as failed when dropped, unless the process is ending. A task that ends or panics drops its guard.
struct Guard {
    health: Health,
    name: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Shared { failed, ending, .. } = &*self.health.0;
        if !ending.is_cancelled() && failed.set(self.name.clone()).is_ok() {
            tracing::error!(task = self.name, "required task ended: /livez fails from now on");
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
