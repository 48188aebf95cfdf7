//! Processes that end with the test that starts them, even if the test is killed.

use std::{
    ffi::OsStr,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{OnceLock, mpsc},
};

/// Returns the root of the repository.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Returns the binary of this name, which Cargo builds for the tests and benchmarks of its package before it runs them.
pub fn binary(name: &str) -> PathBuf {
    let variable = format!("CARGO_BIN_EXE_{name}");
    let path = std::env::var_os(&variable);
    path.unwrap_or_else(|| {
        panic!("{variable} is not set: start this with `cargo test`, `cargo bench` or that variable")
    })
    .into()
}

/// Creates a folder for files of tests, below Cargo's target folder.
pub fn scratch(name: &str) -> PathBuf {
    let folder = root().join("target/tests").join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Returns the path of a script in `tools/`.
pub fn tool(name: &str) -> PathBuf {
    root().join("tools").join(name)
}

/// Returns a command that the kernel kills when the process of [`spawn`] ends.
pub fn mortal(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Returns a command as [`mortal`] does, with its own hosts file: `names` resolve to this machine, only for this
/// command.
pub fn mortal_with_hosts(program: impl AsRef<OsStr>, names: &[String], file: &Path) -> Command {
    let lines: String = names.iter().map(|name| format!("127.0.0.1 {name}\n")).collect();
    fs::write(file, format!("127.0.0.1 localhost\n{lines}")).unwrap();
    mortal_with_mounted(program, file, "/etc/hosts")
}

/// Returns a command as [`mortal`] does, with its own name server, which listens at port 53.
pub fn mortal_with_resolver(program: impl AsRef<OsStr>, server: Ipv4Addr, file: &Path) -> Command {
    fs::write(file, format!("nameserver {server}\noptions timeout:2 attempts:1\n")).unwrap();
    mortal_with_mounted(program, file, "/etc/resolv.conf")
}

fn mortal_with_mounted(program: impl AsRef<OsStr>, file: &Path, over: &str) -> Command {
    let script = r#"mount --bind "$0" "$1" && shift && exec setpriv --pdeathsig KILL -- "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script]).arg(file).arg(over).arg(program);
    command
}

/// Returns a command as [`mortal`] does, in the folder `/` and with a read-only file system.
pub fn mortal_read_only(program: impl AsRef<OsStr>) -> Command {
    let script = r#"
        cd /
        for place in / /tmp /var/tmp /dev/shm "${1%/*}"; do
            mount -o remount,bind,ro "$(findmnt --noheadings --output TARGET --target "$place" | tail -n 1)"
            if touch "$place/written" 2>/dev/null; then echo "$place can be written" >&2; exit 1; fi
        done
        exec setpriv --pdeathsig KILL -- "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(program);
    command
}

/// Starts a command. The kernel sends the kill signal when the *thread* that started the command ends. So one thread,
/// which ends with the process, starts all commands.
pub fn spawn(command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, reply) in queue {
                drop(reply.send(command.spawn()));
            }
        });
        jobs
    });
    let (reply, started) = mpsc::channel();
    spawner.send((command, reply)).unwrap();
    started.recv().unwrap()
}

/// Runs a command and returns its output. Panics with the output if the command fails.
pub fn output(command: &mut Command) -> String {
    match try_output(command) {
        Ok(printed) => printed,
        Err(printed) => panic!("{command:?} failed:\n{printed}"),
    }
}

/// Runs a command and returns its output. If the command fails, returns its output and its errors.
pub fn try_output(command: &mut Command) -> Result<String, String> {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = String::from_utf8_lossy(&done.stdout).into_owned();
    match done.status.success() {
        true => Ok(printed),
        false => Err(format!("{}{printed}{}", String::from_utf8_lossy(&done.stderr), done.status)),
    }
}
