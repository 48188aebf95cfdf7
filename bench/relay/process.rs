//! Processes of the measured programs: assigns their cores, and reads their CPU and memory from `/proc`.

use std::{
    fs, io,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit},
    thread::{CpuSet, sched_setaffinity},
};

/// Length of a tick in `/proc/PID/stat`: USER_HZ is 100 on every Linux.
const TICK: Duration = Duration::from_millis(10);
/// Time for a program to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(2);

/// The cores of the programs. On a machine with one core, all programs share it.
#[derive(Clone, Copy, Debug)]
pub enum Core {
    /// The core of the load generator.
    Load,
    /// The core of the stand-in mail server. On a machine with two cores, it is the generator's core.
    Server,
    /// The core of the measured program, which no other program uses.
    Measured,
}

impl Core {
    fn number(self) -> usize {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        match self {
            Self::Load => 0,
            Self::Server => usize::from(cores > 2),
            Self::Measured => cores - 1,
        }
    }
}

/// The number of each core, read before this process pins its first process.
#[derive(Clone, Copy)]
pub struct Cores {
    load: usize,
    server: usize,
    measured: usize,
}

impl Cores {
    /// Assigns the cores, and pins this process.
    pub fn assign() -> Self {
        let [load, server, measured] = [Core::Load, Core::Server, Core::Measured].map(Core::number);
        pin(load);
        Self { load, server, measured }
    }

    /// Starts a command on a core. The new process inherits the pin of this thread.
    pub fn spawn(self, core: Core, command: &mut Command) -> io::Result<Child> {
        pin(match core {
            Core::Load => self.load,
            Core::Server => self.server,
            Core::Measured => self.measured,
        });
        let child = command.stdin(Stdio::null()).spawn();
        pin(self.load);
        child
    }
}

fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).unwrap();
}

/// Raises the limit of open files as far as the machine permits, and returns it.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, wanted).unwrap();
    limit.maximum.unwrap_or(1 << 20)
}

/// The processes of one measured program. Dropping this value ends them.
#[derive(Default)]
pub struct Running {
    roots: Vec<Child>,
}

impl Running {
    /// Adds a process, including its later children.
    pub fn add(&mut self, child: Child) {
        self.roots.push(child);
    }

    /// Returns the CPU time since the start, including ended threads and waited-for children.
    pub fn cpu(&self) -> Duration {
        let ticks: u64 = self.processes().into_iter().filter_map(|process| stat(process)?.ticks()).sum();
        TICK * u32::try_from(ticks).unwrap()
    }

    /// Returns resident memory in KiB. Counts shared pages once (PSS), if the kernel shows that.
    pub fn memory(&self) -> f64 {
        self.processes().into_iter().map(resident).sum()
    }

    /// Whether all started processes still run.
    pub fn alive(&mut self) -> bool {
        self.roots.iter_mut().all(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn processes(&self) -> Vec<u32> {
        let parents: Vec<_> = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter_map(|process| Some((process, stat(process)?.parent()?)))
            .collect();
        let mut found: Vec<u32> = self.roots.iter().map(Child::id).collect();
        let mut at = 0;
        while let Some(parent) = found.get(at).copied() {
            found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(process, _)| *process));
            at += 1;
        }
        found
    }
}

impl Drop for Running {
    /// Kills children that outlive their parent, so that they do not disturb the next program.
    fn drop(&mut self) {
        let all = self.processes();
        for child in &self.roots {
            kill_process(Pid::from_child(child), Signal::TERM).unwrap_or_default();
        }
        let begun = Instant::now();
        loop {
            let ended = self.roots.iter_mut().all(|child| !matches!(child.try_wait(), Ok(None)));
            let left: Vec<_> = all.iter().filter(|process| stat(**process).is_some()).collect();
            if ended && left.is_empty() {
                return;
            }
            if begun.elapsed() > PATIENCE {
                for process in left {
                    if let Some(process) = i32::try_from(*process).ok().and_then(Pid::from_raw) {
                        kill_process(process, Signal::KILL).unwrap_or_default();
                    }
                }
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The fields of `/proc/PID/stat` after the name.
struct Stat(Vec<u64>);

impl Stat {
    fn parent(&self) -> Option<u32> {
        self.0.get(1).and_then(|parent| u32::try_from(*parent).ok())
    }

    /// Returns the sum of utime, stime, cutime and cstime.
    fn ticks(&self) -> Option<u64> {
        Some(self.0.get(11..15)?.iter().sum())
    }
}

fn stat(process: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let fields = text.rsplit_once(')')?.1.split_whitespace();
    Some(Stat(fields.map(|field| field.parse().unwrap_or(0)).collect()))
}

/// Returns the resident memory of one process in KiB. A process of another user shows no `smaps_rollup`.
fn resident(process: u32) -> f64 {
    let field = |file: &str, name: &str| -> Option<f64> {
        let text = fs::read_to_string(format!("/proc/{process}/{file}")).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
    };
    field("smaps_rollup", "Pss:").or_else(|| field("status", "VmRSS:")).unwrap_or(0.0)
}

/// Returns the CPU time of this process.
pub fn own_cpu() -> Duration {
    let ticks = stat(std::process::id()).and_then(|stat| stat.ticks()).unwrap();
    TICK * u32::try_from(ticks).unwrap()
}
