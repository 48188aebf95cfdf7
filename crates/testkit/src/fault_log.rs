//! The log of the fault tests for `make faults` and `make soak`: how often each fault was caused, and what was lost.

use std::{fs::OpenOptions, io::Write as _};

/// Names the file that [`tried`] writes to.
const FILE: &str = "FAULT_LOG";

/// Notes that a fault of `docs/reliability.md` was made so many times and what was lost by it, after all of it was
/// asserted. One line each: fault, test, times, what was lost, with tabs between. Without `FAULT_LOG` nothing is written.
pub fn tried(fault: &str, times: usize, lost: &str) {
    let Some(file) = std::env::var_os(FILE) else { return };
    let binary = std::env::current_exe().unwrap();
    let binary = binary.file_stem().unwrap().to_string_lossy().into_owned();
    let binary = binary.rsplit_once('-').map_or(binary.as_str(), |(name, _hash)| name);
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let mut fault_log = OpenOptions::new().create(true).append(true).open(file).unwrap();
    // One write, so that tests at the same time do not mix their lines.
    fault_log.write_all(format!("{fault}\t{binary}::{test}\t{times}\t{lost}\n").as_bytes()).unwrap();
}
