//! The resources that the broker uses, from `/proc`.

use std::{fs, time::Duration};

use mailtoken_testkit::Broker;

/// Returns the CPU time of a process' current threads. The broker's threads live as long as its process.
pub fn cpu(process: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap().filter_map(Result::ok);
    let nanoseconds = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(threads.filter_map(nanoseconds).sum())
}

/// Returns the peak resident memory of a broker in MiB.
pub fn peak_memory(broker: &Broker) -> f64 {
    broker.memory("VmHWM") as f64 / f64::from(1 << 20)
}

/// Returns the resident memory of a broker in MiB.
pub fn memory(broker: &Broker) -> f64 {
    broker.memory("VmRSS") as f64 / f64::from(1 << 20)
}

/// Resets the value of [`peak_memory`] to the current resident memory (proc_pid_clear_refs(5)).
pub fn begin_peak(broker: &Broker) {
    fs::write(format!("/proc/{}/clear_refs", broker.id()), "5").unwrap();
}
