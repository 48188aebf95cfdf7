//! Structured logs, with a span for each reconcile and without secrets.

use std::{env, panic::PanicHookInfo};

use tracing::{Level, Metadata, level_filters::LevelFilter};
use tracing_subscriber::{
    filter::{Targets, filter_fn},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::cli::{LogFormat, Settings};

/// Maximum levels of libraries that log whole requests or responses, including Secrets, at finer levels. `RUST_LOG`
/// cannot change these levels. kube-client even logs an undecodable body at WARN.
const PINNED: [(&str, Level); 10] = [
    ("kube_client", Level::ERROR),
    ("kube_runtime", Level::WARN),
    ("hyper", Level::WARN),
    ("hyper_util", Level::WARN),
    ("h2", Level::WARN),
    ("reqwest", Level::WARN),
    ("rustls", Level::WARN),
    ("tower", Level::WARN),
    ("rustls_platform_verifier", Level::WARN),
    ("hyper_rustls", Level::WARN),
];

/// Starts logging to standard error, at the level of `RUST_LOG`, otherwise `info`. Accepts the forms of env_logger
/// without regular expressions: levels and `target=level` directives, separated by commas.
pub fn start(format: LogFormat) {
    let wanted = env::var("RUST_LOG").unwrap_or_default();
    let understood = filter(&wanted);
    let filter = understood.clone().unwrap_or_else(info);
    // Use a separate filter: within one filter, a longer directive such as `kube_client::client=trace` would override
    // PINNED.
    let registry = tracing_subscriber::registry().with(filter).with(filter_fn(is_loggable));
    match format {
        LogFormat::Json => registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).init(),
        LogFormat::Text => registry.with(fmt::layer().with_ansi(false).with_writer(std::io::stderr)).init(),
    }
    std::panic::set_hook(Box::new(log_panic));
    if understood.is_none() {
        tracing::warn!("RUST_LOG not valid: the level is info. Set a level, or target=level, separated by commas");
    }
}

/// Logs the version and the settings in effect. The proxy's URL may contain a password, so the log contains only the
/// proxy's host.
pub fn announce(settings: &Settings) {
    let Settings { metrics_addr, namespaces, leader_elect, concurrency, identity_token_file, access, .. } = settings;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        namespaces = if namespaces.is_empty() { "all".to_owned() } else { namespaces.join(",") },
        broker_namespace = access.broker_namespace(),
        %metrics_addr,
        leader_elect,
        concurrency,
        request_timeout = ?access.request_timeout,
        deny_cidrs = ?access.deny_cidrs,
        allow_private_cidrs = ?access.allow_private_cidrs,
        allow_private_cidrs_cluster = ?access.allow_private_cidrs_cluster,
        egress_proxy = access.egress_proxy.as_ref().and_then(|proxy| proxy.host_str()),
        no_proxy = ?access.no_proxy,
        identity_token_file = identity_token_file.as_ref().map(|path| path.display().to_string()),
        allow_service_account_ref = access.allow_service_account_ref,
        "mail-token-broker starts"
    );
}

/// The target of log lines of the root package.
const BROKER: &str = env!("CARGO_CRATE_NAME");
/// The targets of the log lines of the broker's other packages.
const PACKAGES: [&str; 2] = ["mailtoken_client", "mailtoken_net"];

fn info() -> Targets {
    Targets::new().with_default(LevelFilter::INFO)
}

/// Parses directives; `None` if they are invalid. `Targets` alone reads an empty directive as `error`, and a span's
/// name as a target. A directive for the broker also applies to its other packages.
fn filter(wanted: &str) -> Option<Targets> {
    let parts: Vec<_> = wanted.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Some(info());
    }
    let plain = |sign: char| sign.is_ascii_alphanumeric() || "_:-=".contains(sign);
    let directives = parts.iter().filter_map(|part| part.strip_prefix(BROKER));
    let others = directives.flat_map(|rest| PACKAGES.map(|package| format!("{package}{rest}")));
    let all: Vec<String> = parts.iter().map(|part| (*part).to_owned()).chain(others).collect();
    let targets = all.join(",").parse().ok()?;
    parts.iter().all(|part| part.chars().all(plain)).then_some(targets)
}

/// Logs a panic's location, and its message only if the message is a constant. A formatted message may quote a secret, as
/// the panic of slicing a string inside a character does.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string);
    tracing::error!(place, why = panic.payload().downcast_ref::<&'static str>(), "panicked");
}

fn is_loggable(metadata: &Metadata<'_>) -> bool {
    let of =
        |name: &str| metadata.target().strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    PINNED.iter().all(|(name, level)| metadata.level() <= level || !of(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_may_have_gaps_and_spaces_and_invalid_ones_are_rejected() {
        let broker = |filter: &Targets, level| {
            let [app, login, egress] = ["mail_token_broker::app", "mailtoken_client::login", "mailtoken_net::egress"]
                .map(|target| filter.would_enable(target, &level));
            assert_eq!((app, app), (login, egress), "all packages log at the broker's level");
            app
        };
        for (wanted, level) in [
            ("", Level::INFO),
            (" , ", Level::INFO),
            ("warn", Level::WARN),
            ("info,", Level::INFO),
            ("warn, mail_token_broker=debug", Level::DEBUG),
            ("mail_token_broker=debug,", Level::DEBUG),
        ] {
            let filter = filter(wanted).unwrap();
            assert!(broker(&filter, level), "{wanted:?}");
            assert!(!filter.would_enable("other", &Level::DEBUG), "{wanted:?}");
            let next = if level == Level::DEBUG { Level::TRACE } else { Level::DEBUG };
            assert!(!broker(&filter, next), "{wanted:?}");
        }
        for wanted in ["[reconcile]=debug", "debug x=info", "x=loud", "a=b=c"] {
            assert!(filter(wanted).is_none(), "{wanted:?}");
        }
    }
}
