//! The built binary as a process.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
};

use serde_json::Value;

use super::PATIENCE;

/// A relay process. Dropping it kills the process.
pub struct Relay {
    child: Child,
    log: Arc<Mutex<String>>,
    /// The port of each listener, by protocol: `SMTP`, or `SMTP+TLS` if TLS begins with the first byte.
    ports: HashMap<String, u16>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Relay {
    /// Starts a relay for the Secrets in a folder, with one listener for each protocol on a free port.
    pub fn start(mailboxes: &Path, arguments: &[&str]) -> Self {
        let own = ["--smtp", "127.0.0.1:0", "--imap", "127.0.0.1:0", "--pop3", "127.0.0.1:0"];
        let given = |flag: &&str| arguments.contains(flag);
        let own = own.chunks(2).filter(|pair| !given(&pair[0])).flatten().copied().collect::<Vec<_>>();
        let arguments = [&own, arguments].concat();
        Self::start_with(Self::command(mailboxes, &arguments), &arguments)
    }

    /// Starts a relay whose soft and hard limits of open files are `limits`, such as `40:1024`.
    pub fn start_with_open_files(limits: &str, mailboxes: &Path, arguments: &[&str]) -> Self {
        let arguments = [&["--smtp", "127.0.0.1:0", "--imap", "off", "--pop3", "off"], arguments].concat();
        let relay = Self::command(mailboxes, &arguments);
        let mut limited = Command::new("prlimit");
        limited.arg(format!("--nofile={limits}")).arg(relay.get_program()).args(relay.get_args()).stdin(Stdio::null());
        Self::start_with(limited, &arguments)
    }

    fn start_with(mut command: Command, arguments: &[&str]) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let (sender, listening) = mpsc::channel();
        let shared = log.clone();
        let reader = thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
                drop(sender.send(line.clone()));
                shared.lock().unwrap().push_str(&std::mem::take(&mut line));
            }
        });
        let mut relay = Self { child, log, ports: HashMap::new(), reader: Some(reader) };
        let has_value = |flag: &str| {
            arguments.iter().zip(&arguments[1..]).filter(|(name, value)| **name == flag && **value != "off").count()
        };
        let wanted =
            ["--smtp", "--imap", "--pop3", "--smtps", "--imaps", "--pop3s", "--admin"].map(has_value).iter().sum();
        while relay.ports.len() < wanted {
            let line = listening.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no start:\n{}", relay.log()));
            let Ok(line) = serde_json::from_str::<Value>(&line) else { continue };
            let port = |line: &Value| line["address"].as_str()?.rsplit_once(':')?.1.parse::<u16>().ok();
            let name = match line["message"].as_str() {
                Some("listening") if line["implicit_tls"] == true => {
                    format!("{}+TLS", line["protocol"].as_str().unwrap())
                }
                Some("listening") => line["protocol"].as_str().unwrap().to_owned(),
                Some("serving /metrics, /livez and /readyz") => "admin".to_owned(),
                _ => continue,
            };
            relay.ports.insert(name, port(&line).unwrap());
        }
        relay
    }

    /// Returns the relay's command with these arguments.
    pub fn command(mailboxes: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mail-token-relay"));
        command.args(arguments).arg("--mailboxes").arg(mailboxes).stdin(Stdio::null());
        // Variables in the tests' environment must not set the relay's flags.
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MTR_")).for_each(|(name, _)| {
            command.env_remove(name);
        });
        command
    }

    /// Runs a command until it ends.
    pub fn run(mailboxes: &Path, arguments: &[&str]) -> Output {
        Self::command(mailboxes, arguments).output().unwrap()
    }

    /// Returns the port of a listener.
    pub fn port(&self, name: &str) -> u16 {
        self.ports[name]
    }

    /// Returns the log lines so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a log line with this message, and returns the last one.
    pub async fn line(&self, message: &str) -> Value {
        self.line_with(&[("message", message)]).await
    }

    /// Waits for a log line with these fields, and returns the last one.
    pub async fn line_with(&self, fields: &[(&str, &str)]) -> Value {
        let find = || {
            let log = self.log();
            let mut lines = log.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find(|line| fields.iter().all(|(field, value)| line[*field] == *value))
        };
        let waiting = async {
            loop {
                if let Some(line) = find() {
                    return line;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, waiting).await;
        found.unwrap_or_else(|_| panic!("no line {fields:?}:\n{}", self.log()))
    }

    /// Sends SIGTERM to the relay.
    pub fn terminate(&self) {
        let killed = Command::new("kill").args(["-s", "TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
    }

    /// Waits until the process has ended, and returns its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let waiting = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status.code();
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the process ends in time")
    }

    /// Returns a value of `/proc/PID/status`, in KiB.
    pub fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Sends a request to the admin port, and returns the response.
    pub fn admin(&self, path: &str) -> String {
        use std::io::Write as _;
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port("admin"))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(self.reader.take().map(thread::JoinHandle::join));
        if thread::panicking() {
            eprintln!("the relay's log:\n{}", self.log());
        }
    }
}
