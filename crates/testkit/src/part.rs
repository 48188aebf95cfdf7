//! One process of a stack, for operations that `tools/stack` does not have.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use super::{Cluster, process, wait::until};

/// A process such as `etcd`, with its command.
pub struct Part {
    pid: u32,
    command: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Part {
    /// Finds the process of this name, which must run.
    pub fn of(cluster: &Cluster, name: &str) -> Self {
        let file = cluster.dir().join(format!("run/{name}.pid"));
        let pid = fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        let command = command.trim_end_matches('\0').split('\0').map(str::to_owned).collect();
        Self { pid, command, log: cluster.dir().join(format!("logs/{name}.log")), child: None }
    }

    /// Returns the value of an argument `--name=value` or `--name value`.
    pub fn argument(&self, name: &str) -> &str {
        let mut arguments = self.command.iter();
        let found = arguments.find_map(|argument| match argument.strip_prefix(name)? {
            "" => Some(None),
            value => Some(Some(value.strip_prefix('=')?)),
        });
        match found {
            Some(Some(value)) => value,
            Some(None) => arguments.next().unwrap(),
            None => panic!("no {name} in {:?}", self.command),
        }
    }

    /// Sends a signal by its name, such as `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        process::output(Command::new("kill").args(["-s", name, &self.pid.to_string()]));
    }

    /// Removes the arguments whose names begin with `prefix`, with their values, from the next start.
    pub fn without(mut self, prefix: &str) -> Self {
        let mut value = false;
        self.command.retain(|argument| {
            let named = argument.starts_with(prefix);
            let dropped = named || std::mem::take(&mut value);
            value = named && !argument.contains('=');
            !dropped
        });
        self
    }

    /// Deletes the history of this etcd: an older watch then needs a new list.
    pub fn compact(&self) {
        let post = |path: &str, body: Value| -> Value {
            let url = format!("{}/v3/kv/{path}", self.argument("--listen-client-urls"));
            let body = body.to_string();
            let answer = process::output(Command::new("curl").args(["-sSf", "--noproxy", "*", "-d", &body, &url]));
            serde_json::from_str(&answer).unwrap()
        };
        let revision = post("range", json!({"key": "AA=="}))["header"]["revision"].clone();
        post("compaction", json!({"revision": revision, "physical": true}));
    }

    /// Starts the process again with the same command, after `KILL` has ended it and freed its port. The process is
    /// killed when this value is dropped.
    pub async fn again(&mut self) {
        until("the killed process has ended", async || match self.has_ended() {
            true => Ok(()),
            false => Err(format!("process {} runs", self.pid)),
        })
        .await;
        let log = fs::OpenOptions::new().append(true).open(&self.log).unwrap();
        let mut command = process::mortal(&self.command[0]);
        command.args(&self.command[1..]).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = process::spawn(command).unwrap();
        self.pid = child.id();
        self.child = Some(child);
    }
}

impl Part {
    /// Whether the process no longer exists, or is a zombie that its parent has not collected. The first thread may be
    /// a zombie while other threads still hold the port.
    fn has_ended(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).map_or(0, Iterator::count);
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        threads <= 1 && stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['Z', 'X']))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
