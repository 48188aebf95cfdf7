//! Lines that the user types.

use tokio::sync::oneshot;

/// Reads the next line of standard input. Returns an empty line at the end of the input, and `None` only if the reading
/// thread fails.
pub(super) async fn line() -> Option<String> {
    let (typed, waiting) = oneshot::channel();
    // A plain thread, not `spawn_blocking`: on shutdown the runtime would wait for the task, and Ctrl-C would hang until
    // the user presses Enter.
    std::thread::spawn(move || {
        let line = std::io::stdin().lines().next().and_then(Result::ok);
        drop(typed.send(line.unwrap_or_default()));
    });
    waiting.await.ok()
}
