//! The log: one line for each login and one line for the end of each session, without secrets.

use std::panic::PanicHookInfo;

use tracing::{Level, Metadata};
use tracing_subscriber::{
    filter::{LevelFilter, filter_fn},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::settings::{LogFormat, LogLevel};

/// Starts logging to standard error.
pub fn start(format: LogFormat, level: LogLevel) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let registry = tracing_subscriber::registry().with(level).with(filter_fn(is_loggable));
    match format {
        LogFormat::Json => registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).init(),
        LogFormat::Text => registry.with(fmt::layer().with_ansi(false).with_writer(std::io::stderr)).init(),
    }
    std::panic::set_hook(Box::new(log_panic));
}

/// Excludes the finer levels of libraries: rustls logs the data of peers at these levels.
fn is_loggable(metadata: &Metadata<'_>) -> bool {
    let is_own = metadata.target().starts_with("mailtoken_") || metadata.target().starts_with("mail_token_");
    is_own || metadata.level() <= &Level::WARN
}

/// Logs a panic's location, and its message only if the message is a constant. A formatted message may quote a secret.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string);
    tracing::error!(place, why = panic.payload().downcast_ref::<&'static str>(), "panicked");
}
