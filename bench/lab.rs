//! The environment of a run: one API server with one provider.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::api::{DeleteParams, ListParams, PostParams};
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{
    Broker, Cluster, Manifest, Namespace,
    audit::{AuditEvent, AuditLog},
    broker::Settings,
    credential, source, until,
};
use serde_json::json;

use crate::{
    provider::{self, Provider},
    raw::RawWriter,
    view::View,
};

/// Number of concurrent creates, the same for all servers.
const CREATORS: usize = 16;
/// The namespace of all objects.
pub const NAMESPACE: &str = "bench";

/// A fresh API server, and the state that its runs share.
pub struct Lab {
    /// The namespace with the provider `idp`.
    pub ns: Namespace,
    /// The token endpoint of the provider.
    pub provider: Provider,
    audit: AuditLog,
}

impl Lab {
    /// Starts the environment, without the broker or the raw writer, and warms up the API server.
    pub async fn start() -> Self {
        let cluster = Cluster::alone(&["control-plane"]);
        let client = cluster.client().await;
        let ns = Namespace { name: NAMESPACE.to_owned(), cluster, client };
        ns.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})).await;
        let provider = Provider::start();
        let audit = AuditLog::new(Path::new(&ns.cluster.env("AUDIT_LOG")));
        let mut lab = Self { ns, provider, audit };
        lab.serve("idp", &lab.provider, &lab.provider.token_url()).await;
        lab.warm_up().await;
        lab
    }

    /// Creates a MailProvider for this endpoint, and its sources.
    pub async fn serve(&self, name: &str, provider: &Provider, token_url: &str) {
        let bundle = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("{name}-ca")},
            "data": {"ca.crt": provider.ca()},
        });
        let object = json!({
            "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailProvider", "metadata": {"name": name},
            "spec": provider::spec(name, token_url),
        });
        self.ns.apply(bundle).await;
        self.ns.apply(source(&format!("{name}-client"), "client-secret", "a client secret")).await;
        self.ns.apply(object).await;
    }

    /// Warms up the API server: its first hundreds of requests are slower than later ones.
    async fn warm_up(&mut self) {
        let writer = RawWriter::start(&self.ns, &self.provider, 32);
        let view = View::start(self.ns.api()).await;
        self.create("warm", 200, |manifest| manifest).await;
        view.ready("warm", 200, Timestamp::UNIX_EPOCH).await;
        drop(writer);
        self.clear().await;
    }

    /// Starts a broker for all namespaces, only with the flags that this machine needs, and waits until it leads.
    pub async fn broker(&self) -> Broker {
        let broker = self.launch().start().await;
        leads(&broker).await;
        broker
    }

    /// Returns the settings of this broker.
    pub fn launch(&self) -> Settings {
        Broker::bare(&self.ns.cluster.kubeconfig())
            .flag("--allow-private-cidr=127.0.0.0/8")
            .flag(format!("--broker-namespace={NAMESPACE}"))
            // As in the chart, a restarted container keeps its identity.
            .env("POD_UID", NAMESPACE)
            .env("RUST_LOG", "info")
    }

    /// Creates this number of credentials, `CREATORS` at a time. Returns the time of each create.
    pub async fn create(
        &self,
        prefix: &str,
        number: usize,
        edit: impl Fn(Manifest) -> Manifest,
    ) -> BTreeMap<String, Instant> {
        let create = |name: String| {
            let api = self.ns.api::<MailCredential>();
            let object: MailCredential = serde_json::from_value(edit(credential(&name)).0).unwrap();
            async move {
                let begun = Instant::now();
                api.create(&PostParams::default(), &object).await.map(|_| (name, begun))
            }
        };
        let names = (0..number).map(|number| format!("{prefix}-{number:05}"));
        stream::iter(names.map(create)).buffer_unordered(CREATORS).try_collect().await.unwrap()
    }

    /// Creates credentials at a fixed rate, even if the API server is slower. Returns the due time of each create.
    pub async fn create_paced(&self, prefix: &str, number: usize, every: Duration) -> BTreeMap<String, Instant> {
        let mut due = tokio::time::interval(every);
        let mut made = BTreeMap::new();
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..number {
            let at = due.tick().await.into_std();
            let name = format!("{prefix}-{number:05}");
            let object: MailCredential = serde_json::from_value(short_lived(credential(&name)).0).unwrap();
            let api = self.ns.api::<MailCredential>();
            tasks.spawn(async move { api.create(&PostParams::default(), &object).await.map(drop).unwrap() });
            made.insert(name, at);
        }
        tasks.join_all().await;
        made
    }

    /// Deletes all credentials and their Secrets. Stop the broker or the raw writer first.
    pub async fn clear(&mut self) {
        let (params, all) = (DeleteParams::default(), ListParams::default());
        self.ns.api::<MailCredential>().delete_collection(&params, &all).await.unwrap();
        let ours = ListParams::default().labels("app.kubernetes.io/managed-by=mail-token-broker");
        self.ns.api::<Secret>().delete_collection(&params, &ours).await.unwrap();
        self.provider.reset();
        self.asked();
    }

    /// Returns the API server's process id.
    pub fn api_server(&self) -> u32 {
        let process = fs::read_to_string(self.ns.cluster.dir().join("run/kube-apiserver.pid")).unwrap();
        process.trim().parse().unwrap()
    }

    /// Returns the broker's API server requests since the last call, without requests for its lease.
    pub fn asked(&mut self) -> Vec<AuditEvent> {
        self.audit.more().into_iter().filter(AuditEvent::is_work_of_the_broker).collect()
    }
}

/// Waits until a broker has the lease.
pub async fn leads(broker: &Broker) {
    until("the broker leads", async || match broker.metric("mailtoken_leader", "").await {
        Some(1.0) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// `minValidity` for tokens of a minute, to avoid the Warning `LifetimeTooShort`.
pub fn short_lived(manifest: Manifest) -> Manifest {
    manifest.set("spec.renewal.minValidity", "10s")
}

/// Counts the requests that write.
pub fn writes(asked: &[AuditEvent]) -> usize {
    asked.iter().filter(|event| event.is_write()).count()
}

/// Returns counts of requests as text: `create secrets 1000, update mailcredentials/status 1000`.
pub fn by_kind(asked: &[AuditEvent]) -> String {
    let mut counts = BTreeMap::<_, usize>::new();
    for event in asked {
        let failed = if event.code < 400 { String::new() } else { format!(" ({})", event.code) };
        *counts.entry(format!("{} {}{failed}", event.access.verb, event.access.resource)).or_default() += 1;
    }
    counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
}
