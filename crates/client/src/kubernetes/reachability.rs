//! Logs the start and the end of an outage of the API server, instead of each failed call.

use std::{error::Error, io, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use tower::{BoxError, timeout::error::Elapsed};

use super::Proxy;

/// Time from the first log line about an outage to the second. Each further pause is twice as long.
const FIRST_REMINDER: Duration = Duration::from_secs(30);
/// Longest time between two log lines about one outage.
const LONGEST_REMINDER: Duration = Duration::from_secs(600);

/// The known state of the API server. All clients of one [`Connection`](super::Connection) share it.
pub(super) struct Reachability {
    /// The address of the API server and the address of its proxy, for the log.
    address: String,
    outage: Mutex<Option<Outage>>,
}

struct Outage {
    since: Instant,
    /// Number of failed calls during the outage.
    calls: u64,
    reminder: Duration,
    due: Instant,
}

impl Reachability {
    pub(super) fn new(server: String, proxy: Option<&Proxy>) -> Self {
        let address = match proxy {
            Some(proxy) => format!("{server} through the proxy {proxy}"),
            None => server,
        };
        Self { address, outage: Mutex::default() }
    }

    /// Records the end of a call: an error, or `None` if the API server responded.
    pub(super) fn note(&self, error: Option<&BoxError>) {
        let Some(error) = error else { return self.answered() };
        let now = monotonic();
        let mut outage = self.outage.lock();
        let (seconds, calls) = match &mut *outage {
            None => {
                let due = now + FIRST_REMINDER;
                *outage = Some(Outage { since: now, calls: 1, reminder: FIRST_REMINDER, due });
                (0, 1)
            }
            Some(known) => {
                known.calls += 1;
                if now < known.due {
                    return;
                }
                known.reminder = (known.reminder * 2).min(LONGEST_REMINDER);
                known.due = now + known.reminder;
                (now.duration_since(known.since).as_secs(), known.calls)
            }
        };
        drop(outage);
        let (address, error) = (&self.address, cause(error.as_ref()));
        tracing::warn!(address, error, seconds, calls, "API server not reachable: retrying");
    }

    fn answered(&self) {
        if let Some(outage) = self.outage.lock().take() {
            let seconds = monotonic().duration_since(outage.since).as_secs();
            tracing::info!(address = self.address, seconds, calls = outage.calls, "API server reachable again");
        }
    }
}

/// Returns the most specific cause, in a text that cannot contain a token or a response.
fn cause(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| {
        // `io::Error::source` skips the wrapped error itself.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map(|inner| inner as &(dyn Error + 'static)).or_else(move || error.source())
    });
    let mut found = "the call failed before a response".to_owned();
    for cause in causes {
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return format!("TLS failed: {tls}");
        }
        if cause.is::<Elapsed>() {
            return "no response in time".to_owned();
        }
        let text = cause.to_string();
        if text.starts_with("tunnel error: ") || text.starts_with("SOCKS error: ") {
            found = format!("the proxy opened no tunnel ({text})");
        } else if let Some(io) = cause.downcast_ref::<io::Error>() {
            found = io.kind().to_string();
        }
    }
    found
}

#[expect(clippy::disallowed_methods, reason = "measures an outage: it decides nothing")]
fn monotonic() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(reachability: &Reachability) -> Option<(u64, Duration)> {
        reachability.outage.lock().as_ref().map(|outage| (outage.calls, outage.reminder))
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_reported_immediately_then_less_and_less_often() {
        let reachability = Reachability::new("https://api".to_owned(), None);
        let refused: BoxError = Box::new(io::Error::from(io::ErrorKind::ConnectionRefused));
        reachability.note(None);
        assert_eq!(lines(&reachability), None);
        for _ in 0..100 {
            reachability.note(Some(&refused));
        }
        assert_eq!(lines(&reachability), Some((100, FIRST_REMINDER)));
        tokio::time::sleep(FIRST_REMINDER).await;
        reachability.note(Some(&refused));
        assert_eq!(lines(&reachability), Some((101, 2 * FIRST_REMINDER)));
        tokio::time::sleep(FIRST_REMINDER).await;
        reachability.note(Some(&refused));
        assert_eq!(lines(&reachability), Some((102, 2 * FIRST_REMINDER)));
        reachability.note(None);
        assert_eq!(lines(&reachability), None);
    }

    #[test]
    fn a_cause_is_found_inside_io_errors() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::other(tls));
        assert!(cause(&wrapped).starts_with("TLS failed: invalid peer certificate"));
        assert_eq!(cause(&io::Error::from(io::ErrorKind::ConnectionRefused)), "connection refused");
    }
}
