//! The process metrics of every Prometheus client (`process_*`), from Linux' `/proc`. On other systems these metrics
//! are absent.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// Collector that reads `/proc` at each collection.
#[derive(Debug)]
pub(super) struct Process;

/// Values from `/proc`; `None` if unreadable.
#[derive(Debug, Default, PartialEq)]
struct Usage {
    cpu_seconds: Option<f64>,
    start_seconds: Option<f64>,
    resident_bytes: Option<i64>,
    virtual_bytes: Option<i64>,
    threads: Option<i64>,
    open_fds: Option<i64>,
    max_fds: Option<i64>,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Usage { cpu_seconds, start_seconds, resident_bytes, virtual_bytes, threads, open_fds, max_fds } = usage();
        if let Some(seconds) = cpu_seconds {
            let help = "User and system CPU time spent in seconds";
            let descriptor = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(descriptor)?;
        }
        if let Some(seconds) = start_seconds {
            let help = "Start time of the process since the Unix epoch in seconds";
            let descriptor = encoder.encode_descriptor("process_start_time_seconds", help, None, MetricType::Gauge)?;
            ConstGauge::new(seconds).encode(descriptor)?;
        }
        let gauges = [
            ("process_resident_memory_bytes", "Resident memory size in bytes", resident_bytes),
            ("process_virtual_memory_bytes", "Virtual memory size in bytes", virtual_bytes),
            ("process_threads", "Number of OS threads", threads),
            ("process_open_fds", "Number of open file descriptors", open_fds),
            ("process_max_fds", "Maximum number of open file descriptors", max_fds),
        ];
        for (name, help, value) in gauges {
            let Some(value) = value else { continue };
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}

fn usage() -> Usage {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    // The open directory `/proc/self/fd` itself counts as one descriptor.
    let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1));
    Usage {
        open_fds: open.and_then(|count| i64::try_from(count).ok()),
        ..parse(
            &read("/proc/self/stat"),
            &read("/proc/self/status"),
            &read("/proc/self/limits"),
            &read("/proc/stat"),
            ticks_per_second(),
        )
    }
}

/// Parses the files of proc(5): `stat`, `status` and `limits` of the process, and `stat` of the system.
fn parse(stat: &str, status: &str, limits: &str, system: &str, ticks: Option<f64>) -> Usage {
    // The program's name, in brackets, may contain any character. The third field follows it.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace().collect()).unwrap_or_default();
    let seconds = |field: usize| Some(fields.get(field - 3)?.parse::<f64>().ok()? / ticks?);
    let of_status = |key: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        value.split_ascii_whitespace().next()?.parse::<i64>().ok()
    };
    let boot = system.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_ascii_whitespace().next());
    Usage {
        cpu_seconds: seconds(14).zip(seconds(15)).map(|(user, system)| user + system),
        start_seconds: boot.zip(seconds(22)).map(|(boot, after)| boot + after),
        resident_bytes: of_status("VmRSS").map(|kib| kib * 1024),
        virtual_bytes: of_status("VmSize").map(|kib| kib * 1024),
        threads: of_status("Threads"),
        open_fds: None,
        max_fds: soft.and_then(|soft| soft.parse().ok()),
    }
}

#[cfg(target_os = "linux")]
fn ticks_per_second() -> Option<f64> {
    Some(rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(not(target_os = "linux"))]
fn ticks_per_second() -> Option<f64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_read_and_nonsense_is_nothing() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 4 0 1000 1 1 1";
        let status = "Name:\tx\nVmSize:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t4\n";
        let limits = "Limit   Soft Limit  Hard Limit  Units\nMax open files            1024                 4096                 files\n";
        let usage = parse(stat, status, limits, "cpu 1 2\nbtime 1800000000\n", Some(100.0));
        let expected = Usage {
            cpu_seconds: Some(2.0),
            start_seconds: Some(1_800_000_010.0),
            resident_bytes: Some(1 << 20),
            virtual_bytes: Some(2 << 20),
            threads: Some(4),
            open_fds: None,
            max_fds: Some(1024),
        };
        assert_eq!(usage, expected);
        assert_eq!(parse("", "", "", "", None), Usage::default());
        assert_eq!(parse("(x) S", "VmRSS:", "Max open files unlimited", "btime x", Some(100.0)), Usage::default());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_measured() {
        let usage = usage();
        assert!(usage.resident_bytes.is_some_and(|bytes| bytes > 1 << 20), "{usage:?}");
        assert!(usage.open_fds.is_some_and(|count| count > 0) && usage.max_fds.is_some(), "{usage:?}");
        assert!(usage.cpu_seconds.is_some() && usage.start_seconds.is_some_and(|start| start > 1.0e9), "{usage:?}");
    }
}
