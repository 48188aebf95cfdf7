//! The binary: parses the arguments, starts the log, and runs the command.

use std::process::ExitCode;

use clap::Parser as _;
use mailtoken_relay::{
    app, check, log, ready,
    settings::{Cli, Command, Settings},
};

/// mimalloc: glibc's allocator keeps an arena for each thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code for wrong settings.
const WRONG_SETTINGS: u8 = 2;
/// Maximum number of threads that serve connections. More threads cost memory.
const MAX_THREADS: usize = 4;

fn main() -> ExitCode {
    forbid_core_dumps();
    let cli = Cli::parse();
    let settings = match Settings::new(cli.flags) {
        Ok(settings) => settings,
        Err(why) => return wrong(&why),
    };
    let command = cli.command.unwrap_or(Command::Run);
    let threads = match command {
        Command::Run => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_THREADS)),
        Command::Check { .. } | Command::Ready => 1,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return wrong(&format!("the runtime does not start: {error}")),
    };
    runtime.block_on(async {
        match command {
            Command::Check { mailbox, protocol } => match check::run(&settings, mailbox.as_deref(), protocol).await {
                Ok(code) => code.into(),
                Err(why) => wrong(&why),
            },
            Command::Ready => match ready::run(&settings).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(why) => {
                    eprintln!("error: {why}");
                    ExitCode::FAILURE
                }
            },
            Command::Run => {
                log::start(settings.log_format, settings.log_level);
                match app::run(settings).await {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(why) => wrong(&why),
                }
            }
        }
    })
}

/// Prints why the relay does not start, and returns the exit code.
fn wrong(why: &str) -> ExitCode {
    eprintln!("error: {why}");
    WRONG_SETTINGS.into()
}

/// Forbids core dumps, and prevents other processes of the same user from reading the relay's memory.
fn forbid_core_dumps() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        eprintln!("warning: the kernel does not forbid core dumps: {error}");
    }
}
