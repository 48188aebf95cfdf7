//! The binary: parses the arguments, starts the log, and runs the command.

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use mail_token_broker::{
    api, app,
    cli::{Cli, Command},
    login, release, stop, telemetry,
};

/// mimalloc: the allocators of musl and glibc are slow with threads, or keep freed memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    forbid_core_dumps();
    let ended = match Cli::parse().command {
        Command::Crds => print_crds(),
        Command::Login(settings) => return by_hand(login::run(*settings)),
        Command::ReleaseFinalizers(settings) => return by_hand(release::run(*settings)),
        Command::Stop(settings) => return by_hand(stop::run(settings)),
        Command::Run(settings) => {
            telemetry::start(settings.log_format);
            telemetry::announce(&settings);
            run(*settings)
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = &*error, "start failed");
            ExitCode::FAILURE
        }
    }
}

/// Forbids core dumps, and prevents other processes of the same user from reading the broker's memory.
fn forbid_core_dumps() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        eprintln!("warning: the kernel does not forbid core dumps: {error}");
    }
}

/// Runs the broker on one worker thread. The broker mostly waits. With a second thread, a token costs a fifth more CPU,
/// because the kernel must wake the thread.
#[tokio::main(worker_threads = 1)]
async fn run(settings: mail_token_broker::cli::Settings) -> Result<(), Box<dyn std::error::Error>> {
    Ok(app::run(settings).await?)
}

/// Runs a command for a user, who reads an error text on the terminal instead of a log.
#[tokio::main(flavor = "current_thread")]
async fn by_hand<E: std::fmt::Display>(command: impl Future<Output = Result<(), E>>) -> ExitCode {
    match command.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_crds() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    for crd in api::crds() {
        write!(out, "---\n{}", serde_yaml::to_string(&crd)?)?;
    }
    Ok(())
}
