//! The log of the fault tests for `make faults` and `make soak`: how often a test caused each fault, and the loss.

use std::{fs::OpenOptions, io::Write as _};

/// Environment variable that names the file of [`tried`].
const FILE: &str = "FAULT_LOG";

/// Records how often a test caused a fault of `docs/reliability.md`, and what was lost. Tests call it after all
/// assertions. Writes one line: fault, test, times, loss, with tabs between. Without `FAULT_LOG` writes nothing.
pub fn tried(fault: &str, times: usize, lost: &str) {
    let Some(file) = std::env::var_os(FILE) else { return };
    let binary = std::env::current_exe().unwrap();
    let binary = binary.file_stem().unwrap().to_string_lossy().into_owned();
    let binary = binary.rsplit_once('-').map_or(binary.as_str(), |(name, _hash)| name);
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let mut fault_log = OpenOptions::new().create(true).append(true).open(file).unwrap();
    // A single write, so that parallel tests do not mix their lines.
    fault_log.write_all(format!("{fault}\t{binary}::{test}\t{times}\t{lost}\n").as_bytes()).unwrap();
}
