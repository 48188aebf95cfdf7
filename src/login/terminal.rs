//! What a person types.

use tokio::sync::oneshot;

/// The next line of standard input; empty at its end. `None` only if nothing reads it any more.
pub(super) async fn line() -> Option<String> {
    let (typed, waiting) = oneshot::channel();
    // At its end the process waits for tasks of the runtime, but not for this: Ctrl-C does not need a line after it.
    std::thread::spawn(move || {
        let line = std::io::stdin().lines().next().and_then(Result::ok);
        drop(typed.send(line.unwrap_or_default()));
    });
    waiting.await.ok()
}
