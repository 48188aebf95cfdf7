//! A real etcd and kube-apiserver, with more components if a test needs them.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use http::header::{HeaderName, HeaderValue, USER_AGENT};
use kube::{Client, Config, config::KubeConfigOptions, config::Kubeconfig};

use super::{
    audit::{self, AuditEvent, AuditLog},
    process,
};

/// Environment variable that names a running stack. Tests use this stack and do not stop it, which saves its start
/// while you write tests.
const KEPT_STACK: &str = "MTB_TEST_STACK";

/// A stack of `tools/stack`, with the CRDs. Clones share the stack. It stops when the last clone is dropped.
#[derive(Clone)]
pub struct Cluster(Arc<Stack>);

struct Stack {
    dir: PathBuf,
    guard: Mutex<Child>,
    audit: Mutex<Audit>,
}

/// The audit log, and the events read so far.
struct Audit {
    log: AuditLog,
    events: Vec<AuditEvent>,
}

impl Cluster {
    /// Returns the cluster that all tests of this process share: a control plane without controllers. It stops when the
    /// process ends, in any way.
    pub fn shared() -> Self {
        static SHARED: OnceLock<Result<Cluster, String>> = OnceLock::new();
        Self::once(&SHARED, &["control-plane"])
    }

    /// Returns the cluster with all components that all tests of this process share.
    pub fn complete() -> Self {
        static COMPLETE: OnceLock<Result<Cluster, String>> = OnceLock::new();
        Self::once(&COMPLETE, &["control-plane", "keycloak", "oidc-provider", "mail"])
    }

    /// Starts a cluster for this test alone. For tests that would disturb others: a broker of the whole cluster, a
    /// restart of a component.
    pub fn alone(components: &[&str]) -> Self {
        Self::start(components).unwrap_or_else(|why| panic!("{why}"))
    }

    fn once(cell: &'static OnceLock<Result<Cluster, String>>, components: &[&str]) -> Self {
        match cell.get_or_init(|| Self::start(components)) {
            Ok(cluster) => cluster.clone(),
            Err(why) => panic!("{why}"),
        }
    }

    fn start(components: &[&str]) -> Result<Self, String> {
        let kept = std::env::var_os(KEPT_STACK).map(PathBuf::from);
        let dir = match &kept {
            Some(dir) => dir.clone(),
            None => process::output(Command::new("mktemp").args(["-d", "-t", "mtb-test.XXXXXX"])).trim_end().into(),
        };
        let guard = guard(&dir, components, kept.is_some())?;
        let audit = Audit { log: AuditLog::new(&dir.join("logs/audit.log")), events: vec![] };
        let cluster = Self(Arc::new(Stack { dir, guard: Mutex::new(guard), audit: Mutex::new(audit) }));
        let crds = process::root().join("crds");
        process::try_output(cluster.kubectl().args(["apply", "--server-side", "-f"]).arg(crds))?;
        process::try_output(cluster.kubectl().args(["wait", "--for=condition=Established", "crd", "--all"]))?;
        // kubectl caches the list of kinds for hours.
        fs::remove_dir_all(cluster.kubectl_cache()).map_err(|error| error.to_string())?;
        Ok(cluster)
    }

    /// Starts more components, or those that [`Self::down`] has stopped. Start the garbage collector
    /// (`controller-manager`) after the CRDs exist: it knows only the kinds that exist at its start.
    pub fn up(&self, component: &str) {
        process::output(Command::new(process::tool("stack")).arg("up").arg(self.dir()).arg(component));
    }

    /// Stops a component. Its ports and data stay.
    pub fn down(&self, component: &str) {
        process::output(Command::new(process::tool("stack")).arg("down").arg(self.dir()).arg(component));
    }

    /// Signs a user in at a provider of the stack as a browser does, with `tools/sign-in`, which lists its options.
    pub fn sign_in(&self, url: &str, options: &[&str]) -> Result<String, String> {
        process::try_output(Command::new(process::tool("sign-in")).arg(self.dir()).arg(url).args(options))
    }

    /// Returns the folder with the stack's state.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Returns a variable of the stack's `env` file, which `tools/README.md` lists.
    pub fn env(&self, name: &str) -> String {
        let mut variables = self.variables();
        variables.remove(name).unwrap_or_else(|| panic!("the stack has no {name}, but {:?}", variables.keys()))
    }

    fn variables(&self) -> BTreeMap<String, String> {
        let file = fs::read_to_string(self.dir().join("env")).unwrap();
        let pair = |line: &str| {
            let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
            Some((name.to_owned(), value.trim_matches('\'').replace("'\\''", "'")))
        };
        file.lines().filter_map(pair).collect()
    }

    /// Returns the administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// Returns a kubectl command with the administrator's kubeconfig.
    pub fn kubectl(&self) -> Command {
        self.command("kubectl")
    }

    /// Returns a command of `tools/setup` with the administrator's kubeconfig.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.dir().join("bin").join(name));
        command.env("KUBECONFIG", self.kubeconfig()).env("KUBECACHEDIR", self.kubectl_cache());
        command
    }

    fn kubectl_cache(&self) -> PathBuf {
        self.dir().join("kubectl-cache")
    }

    /// Creates an administrator's client for the current runtime. Its User-Agent distinguishes it from the broker in
    /// the audit log.
    pub async fn client(&self) -> Client {
        self.client_with([]).await
    }

    /// Creates a client of the user with this name, who has the rights of their roles.
    pub async fn client_of(&self, user: &str) -> Client {
        self.client_with([(HeaderName::from_static("impersonate-user"), HeaderValue::from_str(user).unwrap())]).await
    }

    async fn client_with(&self, headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.headers.push((USER_AGENT, HeaderValue::from_static(audit::TEST)));
        config.headers.extend(headers);
        Client::try_from(config).unwrap()
    }

    /// Returns all requests that the API server has answered since its start. In a shared cluster use
    /// [`Namespace::audit`], because there are many.
    pub fn audit(&self) -> Vec<AuditEvent> {
        self.audit_where(|_| true)
    }

    /// Returns the events of [`Self::audit`] that `fits` accepts.
    pub fn audit_where(&self, fits: impl Fn(&AuditEvent) -> bool) -> Vec<AuditEvent> {
        let mut audit = self.0.audit.lock().unwrap_or_else(PoisonError::into_inner);
        let more = audit.log.more();
        audit.events.extend(more);
        audit.events.iter().filter(|event| fits(event)).cloned().collect()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let mut guard = self.guard.lock().unwrap();
        drop(guard.stdin.take());
        drop(guard.wait());
    }
}

/// Starts a stack under a shell in its own session, which receives no signals for the test. When the pipe from this
/// process breaks, for any reason, the shell stops the stack and removes its folder.
fn guard(dir: &Path, components: &[&str], kept: bool) -> Result<Child, String> {
    const SCRIPT: &str = r#"
        stack=$1 dir=$2 kept=$3
        "$stack" up "$dir" "${@:4}" && echo up
        exec >&-
        read -r
        [[ $kept == true ]] || { "$stack" down "$dir"; rm -rf "$dir"; }
    "#;
    let log = dir.with_extension("guard.log");
    let file = fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
    let mut command = Command::new("setsid");
    command.args(["bash", "-c", SCRIPT, "guard"]).arg(process::tool("stack")).arg(dir).arg(kept.to_string());
    command.args(components).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
    let mut guard = command.spawn().map_err(|error| format!("setsid: {error}"))?;

    let mut answer = String::new();
    guard.stdout.take().unwrap().read_to_string(&mut answer).map_err(|error| error.to_string())?;
    let complaints = fs::read_to_string(&log).unwrap_or_default();
    drop(fs::remove_file(&log));
    match answer.trim() {
        "up" => Ok(guard),
        _ => Err(format!("the stack did not start (has tools/setup been run?):\n{complaints}")),
    }
}
