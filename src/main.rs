//! The binary: parse, log, dispatch.

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use mail_token_broker::{
    api, app,
    cli::{Cli, Command},
    login, release, stop, telemetry,
};

/// musl's and glibc's allocators are slow under threads, or keep what was freed.
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
            tracing::error!(error = &*error, "the broker could not run");
            ExitCode::FAILURE
        }
    }
}

/// What is in memory stays there: no core dump, and no look by other processes of the same user.
fn forbid_core_dumps() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        eprintln!("warning: the kernel does not forbid core dumps: {error}");
    }
}

/// One thread does the work: nearly all of it is waiting, and to wake another one costs a fifth more CPU for each token.
#[tokio::main(worker_threads = 1)]
async fn run(settings: mail_token_broker::cli::Settings) -> Result<(), Box<dyn std::error::Error>> {
    Ok(app::run(settings).await?)
}

/// A command for a person, who reads what went wrong, not a log.
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
