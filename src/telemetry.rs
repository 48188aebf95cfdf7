//! Logs: structured, with a span for each reconcile, and never a secret in them.

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::cli::LogFormat;

/// Libraries that log whole requests or answers at finer levels, Secrets among them: pinned, whatever `RUST_LOG` says.
/// kube-client even logs a body at WARN when it cannot decode it.
const PINNED: [&str; 10] = [
    "kube_client=error",
    "kube_runtime=warn",
    "hyper=warn",
    "hyper_util=warn",
    "h2=warn",
    "reqwest=warn",
    "rustls=warn",
    "tower=warn",
    "rustls_platform_verifier=warn",
    "hyper_rustls=warn",
];

/// Starts logging to standard error, at the level of `RUST_LOG`, else `info`.
pub fn start(format: LogFormat) {
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    for directive in PINNED {
        if let Ok(directive) = directive.parse() {
            filter = filter.add_directive(directive);
        }
    }
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Json => registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).init(),
        LogFormat::Text => registry.with(fmt::layer().with_ansi(false).with_writer(std::io::stderr)).init(),
    }
}
