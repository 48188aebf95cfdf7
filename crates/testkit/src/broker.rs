//! The built broker as a process.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    Cluster, Namespace, mark, process,
    wait::{PATIENCE, until, until_in},
};

/// Maximum time for a broker to stop after SIGTERM: longer than one request to a provider and a write.
const LEAVING: Duration = Duration::from_secs(30);
/// Number of log lines that a failed test shows.
const SHOWN_LINES: usize = 80;

/// A running broker with the finest log level. Dropping it kills the process. If the test fails, it then shows the log.
/// Otherwise it searches the log for secrets and removes the log.
pub struct Broker {
    settings: Settings,
    address: SocketAddr,
    log: PathBuf,
    child: Option<Child>,
}

/// The arguments and environment of a broker to start.
#[derive(Clone)]
pub struct Settings {
    kubeconfig: PathBuf,
    flags: Vec<String>,
    environment: Vec<(String, OsString)>,
    hosts: Vec<String>,
    resolver: Option<Ipv4Addr>,
    read_only: bool,
}

impl Settings {
    /// Adds one flag.
    pub fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Removes the flags with this name.
    pub fn without(mut self, name: &str) -> Self {
        self.flags.retain(|flag| flag.split('=').next() != Some(name));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Resolves a host name to this machine, only for this broker, as `hostAliases` does.
    pub fn host(mut self, name: &str) -> Self {
        self.hosts.push(name.to_owned());
        self
    }

    /// Makes the broker use only the name server at this address.
    pub fn resolver(mut self, server: Ipv4Addr) -> Self {
        self.resolver = Some(server);
        self
    }

    /// Makes the file system read-only for the broker, except for its log.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Uses another kubeconfig than the administrator's.
    pub fn kubeconfig(mut self, file: &Path) -> Self {
        self.kubeconfig = file.to_owned();
        self
    }

    /// Starts the broker, and waits until it is ready.
    pub async fn start(self) -> Broker {
        let mut broker = self.launch();
        broker.ready().await;
        broker
    }

    /// Starts the broker without waiting.
    pub fn launch(self) -> Broker {
        let address = SocketAddr::from(([127, 0, 0, 1], unused_port()));
        let log = log_file(address.port());
        let mut broker = Broker { settings: self, address, log, child: None };
        broker.launch();
        broker
    }
}

impl Broker {
    /// Starts a broker that watches only this namespace and has its lease there. So brokers of several tests do not
    /// disturb each other.
    pub async fn start(namespace: &Namespace) -> Self {
        Self::settings(namespace).start().await
    }

    /// Returns the settings of [`Self::start`], for changes.
    pub fn settings(namespace: &Namespace) -> Settings {
        Self::cluster_wide(&namespace.cluster)
            .flag(format!("--namespace={}", namespace.name))
            .flag(format!("--broker-namespace={}", namespace.name))
    }

    /// Returns the settings of a broker that watches all namespaces: for a cluster that no other test uses.
    pub fn cluster_wide(cluster: &Cluster) -> Settings {
        let settings = Self::bare(&cluster.kubeconfig());
        settings.flag("--allow-private-cidr=127.0.0.0/8").flag("--log-format=text")
    }

    /// Returns the settings of a broker whose only flag is the address of its metrics.
    pub fn bare(kubeconfig: &Path) -> Settings {
        Settings {
            kubeconfig: kubeconfig.to_owned(),
            flags: vec![],
            environment: vec![],
            hosts: vec![],
            resolver: None,
            read_only: false,
        }
    }

    fn launch(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let mut command = self.command();
        command
            .arg("run")
            .arg(format!("--metrics-addr={}", self.address))
            .args(&self.settings.flags)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "PATH" || name == "RUST_BACKTRACE"))
            .env("KUBECONFIG", &self.settings.kubeconfig)
            .env("RUST_LOG", "trace")
            .envs(self.settings.environment.iter().cloned())
            .current_dir(self.folder())
            .env("HOME", self.folder())
            .env("TMPDIR", self.folder())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(process::spawn(command).unwrap());
    }

    /// Creates the broker's working folder. The broker must not write to it.
    fn folder(&self) -> PathBuf {
        let folder = self.log.with_extension("folder");
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// Returns the command of the binary, with its own hosts file or name server if the settings have one.
    fn command(&self) -> Command {
        let binary = process::binary("mail-token-broker");
        if let Some(server) = self.settings.resolver {
            return process::mortal_with_resolver(binary, server, &self.log.with_extension("resolv"));
        }
        match self.settings.hosts.is_empty() {
            true if self.settings.read_only => process::mortal_read_only(binary),
            true => process::mortal(binary),
            false => process::mortal_with_hosts(binary, &self.settings.hosts, &self.log.with_extension("hosts")),
        }
    }

    /// Waits until `/readyz` returns 200. Fails immediately if the process ends.
    pub async fn ready(&mut self) {
        until("the broker is ready", async || {
            if let Some(status) = self.ended() {
                panic!("the broker ended: {status}");
            }
            match self.get("/readyz").await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Returns the exit status if the process has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().unwrap()
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Returns a memory value of the process, such as `VmRSS`, in bytes (proc_pid_status(5)).
    pub fn memory(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let size =
            |line: &str| line.strip_prefix(what)?.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
        status.lines().find_map(size).unwrap() * 1024
    }

    /// Sends a signal by its name, such as `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        process::output(Command::new("kill").args(["-s", name, &self.id().to_string()]));
    }

    /// Kills the process, as the kernel does if memory is short.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends SIGTERM, as the kubelet does, and waits until the process has ended.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        let status = until_in(LEAVING, "the broker leaves", async || self.ended().ok_or_else(String::new)).await;
        self.child = None;
        status
    }

    /// Starts the broker again after [`Self::kill`] or [`Self::terminate`], with the same flags, address and log. Waits
    /// until it is ready.
    pub async fn again(&mut self) {
        self.relaunch();
        self.ready().await;
    }

    /// Starts the broker as [`Self::again`] does, without waiting.
    pub fn relaunch(&mut self) {
        assert!(self.child.is_none(), "it runs");
        self.launch();
    }

    /// Sets an environment variable for the next start; `None` removes the variable.
    pub fn set(&mut self, name: &str, value: Option<&str>) {
        let environment = &mut self.settings.environment;
        environment.retain(|(known, _)| known != name);
        environment.extend(value.map(|value| (name.to_owned(), value.into())));
    }

    /// Returns the log of all starts of this broker.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Returns all metrics in the text format.
    pub async fn metrics(&self) -> String {
        let (status, body) = self.get("/metrics").await.unwrap();
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Returns the value of one sample, by its name and a part of its labels: `metric("mailtoken_leader", "")`.
    pub async fn metric(&self, name: &str, labels: &str) -> Option<f64> {
        let metrics = self.metrics().await;
        let sample = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(labels)
        };
        metrics.lines().find(sample)?.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until the broker's store has no credential with this name. The broker then notices every later deletion.
    pub async fn forgets(&self, name: &str) {
        let label = format!("name=\"{name}\"");
        until(&format!("the broker knows no {name}"), async || {
            match self.metric("mailtoken_credential_ready", &label).await {
                None => Ok(()),
                ready => Err(format!("{ready:?}")),
            }
        })
        .await;
    }

    /// Sends one request to the broker's own HTTP server. Returns the status and the body.
    pub async fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: broker\r\n\r\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer: String = tokio::time::timeout(PATIENCE, exchange).await??;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        Ok((status, body.to_owned()))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let shown = lines.get(lines.len().saturating_sub(SHOWN_LINES)..).unwrap_or_default().join("\n");
            eprintln!("--- the end of the broker's log, {}:\n{shown}\n---", self.log.display());
        } else {
            mark::assert_unmarked("the broker's log", &self.log());
            let written: Vec<_> = fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(written.is_empty(), "the broker wrote to disk: {written:?}");
            drop(fs::remove_dir(self.folder()));
            drop(fs::remove_file(&self.log));
        }
    }
}

fn log_file(port: u16) -> PathBuf {
    let file = process::scratch("brokers").join(format!("{port}.log"));
    drop(fs::remove_file(&file));
    file
}

/// Returns a port that this process has not used before. It is below the ports that the kernel uses for outgoing
/// connections and `tools/stack` uses.
fn unused_port() -> u16 {
    static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut taken = TAKEN.lock().unwrap();
    let first = 10_000 + u16::try_from(std::process::id() % 8_000).unwrap();
    let free = |port: &u16| !taken.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = (first..20_000).find(free).expect("a free port");
    taken.insert(port);
    port
}
