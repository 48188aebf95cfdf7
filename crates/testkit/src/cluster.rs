//! A real etcd and kube-apiserver, with more parts where a test wants them.

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

/// Names a stack that runs already, to save its start while writing tests: it is used by all, and left alone.
const KEPT_STACK: &str = "MTB_TEST_STACK";

/// A stack of `tools/stack`, with the CRDs. Clones are the same one; it stops with the last of them.
#[derive(Clone)]
pub struct Cluster(Arc<Stack>);

struct Stack {
    dir: PathBuf,
    guard: Mutex<Child>,
    audit: Mutex<Audit>,
}

/// The audit log, as far as it was read.
struct Audit {
    log: AuditLog,
    events: Vec<AuditEvent>,
}

impl Cluster {
    /// The cluster that all tests of this process share: a control plane, without controllers. It stops when the
    /// process ends, however it ends.
    pub fn shared() -> Self {
        static SHARED: OnceLock<Result<Cluster, String>> = OnceLock::new();
        Self::once(&SHARED, &["control-plane"])
    }

    /// Another one that all tests of this process share: with all parts.
    pub fn complete() -> Self {
        static COMPLETE: OnceLock<Result<Cluster, String>> = OnceLock::new();
        Self::once(&COMPLETE, &["control-plane", "keycloak", "oidc-provider", "mail"])
    }

    /// One for this test alone, for what would disturb others: a broker of the whole cluster, a restart of a part.
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
        // kubectl remembers for hours which kinds there are.
        fs::remove_dir_all(cluster.kubectl_cache()).map_err(|error| error.to_string())?;
        Ok(cluster)
    }

    /// Starts more parts, or those that [`Self::down`] has stopped. The garbage collector (`controller-manager`)
    /// knows kinds that are there when it starts, so it comes after the CRDs.
    pub fn up(&self, component: &str) {
        process::output(Command::new(process::tool("stack")).arg("up").arg(self.dir()).arg(component));
    }

    /// Stops a part; its ports and data stay.
    pub fn down(&self, component: &str) {
        process::output(Command::new(process::tool("stack")).arg("down").arg(self.dir()).arg(component));
    }

    /// Signs a person in at a provider of the stack as a browser does: `tools/sign-in`, which lists its options.
    pub fn sign_in(&self, url: &str, options: &[&str]) -> Result<String, String> {
        process::try_output(Command::new(process::tool("sign-in")).arg(self.dir()).arg(url).args(options))
    }

    /// The folder with its state.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// A variable of its `env` file, which `tools/README.md` lists.
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

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// The administrator's kubectl.
    pub fn kubectl(&self) -> Command {
        self.command("kubectl")
    }

    /// A command of `tools/setup`, with the administrator's kubeconfig.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.dir().join("bin").join(name));
        command.env("KUBECONFIG", self.kubeconfig()).env("KUBECACHEDIR", self.kubectl_cache());
        command
    }

    fn kubectl_cache(&self) -> PathBuf {
        self.dir().join("kubectl-cache")
    }

    /// An administrator's client for the current runtime. The audit log distinguishes it from the broker's.
    pub async fn client(&self) -> Client {
        self.client_with([]).await
    }

    /// A client of the user with this name, who has the rights of their roles.
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

    /// Who has asked the API server for what, since it was started. Of a shared cluster this is long:
    /// [`Namespace::audit`].
    pub fn audit(&self) -> Vec<AuditEvent> {
        self.audit_where(|_| true)
    }

    /// Those of [`Self::audit`] that fit.
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

/// Starts a stack under the eyes of a shell in a session of its own, which no signal for the test reaches. When
/// the pipe from this process breaks, for whatever reason, the shell stops the stack and removes its folder.
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
