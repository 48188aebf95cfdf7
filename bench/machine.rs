//! Describes the machine of a measurement, and its other load.

use std::{fs, thread, time::Duration};

/// Describes the machine: its processor, its load, and other busy processes.
pub fn machine() -> Vec<String> {
    let first = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_start_matches([' ', '\t', ':']).to_owned()))
    };
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let mut reported = vec![
        format!("{cores} cores: {}", first("/proc/cpuinfo", "model name").unwrap_or_default()),
        format!("memory: {}", first("/proc/meminfo", "MemTotal").unwrap_or_default()),
        format!("Linux {}", fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim()),
    ];
    reported.extend(occupation());
    reported
}

/// Returns the load, and the processes that cause it.
pub fn occupation() -> Vec<String> {
    const LOOK: Duration = Duration::from_secs(2);
    let before = processes();
    thread::sleep(LOOK);
    let used = |(process, name, ticks): &(u32, String, u64)| {
        let was = before.iter().find(|(other, ..)| other == process).map_or(*ticks, |(.., ticks)| *ticks);
        // A tick is 10 ms: USER_HZ is 100 on every Linux.
        let share = ticks.saturating_sub(was) * 1_000 / u64::try_from(LOOK.as_millis()).unwrap_or(1);
        (share >= 5 && *process != std::process::id()).then(|| format!("{name} {share} %"))
    };
    let busy: Vec<_> = processes().iter().filter_map(used).collect();
    let busy = if busy.is_empty() { "nothing".to_owned() } else { busy.join(", ") };
    vec![format!("load average: {}", load()), format!("busy besides: {busy}")]
}

/// Returns the load averages of 1, 5 and 15 minutes.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Returns process id, name and used CPU ticks of all processes.
fn processes() -> Vec<(u32, String, u64)> {
    let one = |entry: fs::DirEntry| {
        let process = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (head, rest) = stat.rsplit_once(')')?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        let ticks = |field: usize| fields.get(field)?.parse::<u64>().ok();
        Some((process, head.split_once('(')?.1.to_owned(), ticks(11)? + ticks(12)?))
    };
    fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter_map(one).collect()
}
