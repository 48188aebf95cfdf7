//! The runtime of the lease and the probes, which must never be late.

use std::io;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A current-thread runtime on its own thread, for the lease and the probes. Work on the main runtime (signing,
/// rendering, a burst of reconciles) delays neither of them. Dropping this value ends the thread and drops the tasks
/// that still run on it.
pub struct SideRuntime {
    handle: Handle,
    _stop: DropGuard,
}

impl SideRuntime {
    /// Starts the thread and its runtime.
    ///
    /// # Errors
    /// If the operating system cannot start a thread or create an event queue.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        std::thread::Builder::new().name("lease-and-probes".to_owned()).spawn(move || {
            runtime.block_on(stopped.cancelled());
            // A rendering may still run on a blocking thread. The end of the process does not wait for the rendering.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _stop: stop.drop_guard() })
    }

    /// Returns the handle to spawn tasks on this runtime.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_side_runtime_continues_while_the_main_one_is_blocked() {
        let side = SideRuntime::start().unwrap();
        let main = Builder::new_current_thread().build().unwrap();
        let (done, finished) = std::sync::mpsc::channel();
        side.handle().spawn(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            done.send(()).unwrap();
        });
        main.block_on(async { finished.recv_timeout(Duration::from_secs(10)).unwrap() });
    }
}
