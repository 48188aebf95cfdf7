//! Logins at the mail servers of the stack.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use super::{Namespace, process};

/// Logs in by a protocol, or by `all`, with the keys of a Secret as files. Returns the output of `tools/mail-login`.
pub fn login(ns: &Namespace, protocol: &str, secret: &BTreeMap<String, String>) -> Result<String, String> {
    let folder: PathBuf = process::output(Command::new("mktemp").arg("-d")).trim_end().into();
    for (key, value) in secret {
        fs::write(folder.join(key), value).unwrap();
    }
    let mut command = Command::new(process::tool("mail-login"));
    let reported = process::try_output(command.arg(ns.cluster.dir()).arg("--secret").arg(&folder).arg(protocol));
    fs::remove_dir_all(folder).unwrap();
    reported
}
