//! One API server with one provider: what a run happens in.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::api::{DeleteParams, ListParams, PostParams};
use mail_token_broker::api::MailCredential;
use serde_json::{Value, json};

use crate::{
    provider::Provider,
    support::{
        Broker, Cluster, Manifest, Namespace,
        audit::{self, AuditEvent},
        broker::Settings,
        credential, source, until,
    },
    view::View,
};

/// Objects that are created at a time, whoever serves them.
const CREATORS: usize = 16;
/// The namespace of all.
const NAMESPACE: &str = "bench";

/// A fresh API server, and what all runs in it share.
pub struct Lab {
    /// With the provider `idp`.
    pub ns: Namespace,
    /// Its token endpoint.
    pub provider: Provider,
    read: u64,
}

impl Lab {
    /// Starts everything but who is measured, and makes the API server warm.
    pub async fn start() -> Self {
        let cluster = Cluster::alone(&["control-plane"]);
        let client = cluster.client().await;
        let ns = Namespace { name: NAMESPACE.to_owned(), cluster, client };
        ns.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})).await;
        let provider = Provider::start();
        let mut lab = Self { ns, provider, read: 0 };
        lab.serve("idp", &lab.provider, &lab.provider.token_url()).await;
        lab.warm_up().await;
        lab
    }

    /// The `spec` of the provider `idp`.
    pub fn provider_spec(&self) -> Value {
        provider_spec("idp", &self.provider.token_url())
    }

    /// A MailProvider for this endpoint, and its sources.
    pub async fn serve(&self, name: &str, provider: &Provider, token_url: &str) {
        let bundle = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("{name}-ca")},
            "data": {"ca.crt": provider.ca()},
        });
        let object = json!({
            "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailProvider", "metadata": {"name": name},
            "spec": provider_spec(name, token_url),
        });
        self.ns.apply(bundle).await;
        self.ns.apply(source(&format!("{name}-client"), "client-secret", "a client secret")).await;
        self.ns.apply(object).await;
    }

    /// The first hundreds of requests to an API server that has just started are slower than those that follow.
    async fn warm_up(&mut self) {
        let writer = crate::raw::RawWriter::start(self, 32);
        let view = View::start(self.ns.api()).await;
        self.create("warm", 200, |manifest| manifest).await;
        view.ready("warm", 200, Timestamp::UNIX_EPOCH).await;
        drop(writer);
        self.clear().await;
    }

    /// A broker of all namespaces with no flag but those that this machine needs, once it leads.
    pub async fn broker(&self) -> Broker {
        let broker = self.launch().start().await;
        leads(&broker).await;
        broker
    }

    /// The same, to be started.
    pub fn launch(&self) -> Settings {
        Broker::bare(&self.ns.cluster.kubeconfig())
            .flag("--allow-private-cidr=127.0.0.0/8")
            .flag(format!("--broker-namespace={NAMESPACE}"))
            // As the chart sets it: a container that starts again is the same broker.
            .env("POD_UID", NAMESPACE)
            .env("RUST_LOG", "info")
    }

    /// Creates so many credentials, `CREATORS` at a time; when each was asked for.
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

    /// Creates credentials at a steady pace, whether the API server keeps up or not; when each was due.
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

    /// Deletes all credentials and their Secrets. Whoever served them must have been stopped.
    pub async fn clear(&mut self) {
        let (params, all) = (DeleteParams::default(), ListParams::default());
        self.ns.api::<MailCredential>().delete_collection(&params, &all).await.unwrap();
        let ours = ListParams::default().labels("app.kubernetes.io/managed-by=mail-token-broker");
        self.ns.api::<Secret>().delete_collection(&params, &ours).await.unwrap();
        self.provider.reset();
        self.asked();
    }

    /// The process of the API server.
    pub fn api_server(&self) -> u32 {
        let process = fs::read_to_string(self.ns.cluster.dir().join("run/kube-apiserver.pid")).unwrap();
        process.trim().parse().unwrap()
    }

    /// What the broker has asked the API server for since the last call, without its lease.
    pub fn asked(&mut self) -> Vec<AuditEvent> {
        let mut log = File::open(self.ns.cluster.env("AUDIT_LOG")).unwrap();
        log.seek(SeekFrom::Start(self.read)).unwrap();
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        self.read += u64::try_from(complete).unwrap();
        audit::parse_lines(text.get(..complete).unwrap()).filter(AuditEvent::is_work_of_the_broker).collect()
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

/// For tokens that live for a minute: without the Warning that this is less than most pods need.
pub fn short_lived(manifest: Manifest) -> Manifest {
    manifest.set("spec.renewal.minValidity", "10s")
}

/// Those that are no reads.
pub fn writes(asked: &[AuditEvent]) -> usize {
    asked.iter().filter(|event| event.is_write()).count()
}

/// `create secrets 1000, update mailcredentials/status 1000`.
pub fn by_kind(asked: &[AuditEvent]) -> String {
    let mut counts = BTreeMap::<_, usize>::new();
    for event in asked {
        let failed = if event.code < 400 { String::new() } else { format!(" ({})", event.code) };
        *counts.entry(format!("{} {}{failed}", event.access.verb, event.access.resource)).or_default() += 1;
    }
    counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
}

fn provider_spec(name: &str, token_url: &str) -> Value {
    let secret = json!({"name": format!("{name}-client"), "key": "client-secret"});
    json!({
        "oauth2": {"tokenURL": token_url},
        "client": {"id": "mailer", "authentication": [{"clientSecret": {"secretRef": secret}}]},
        "scopes": ["https://mail.example.org/.default"],
        "servers": {"smtp": {"host": "smtp.example.org", "port": 587, "security": "STARTTLS"}},
        "caBundleRef": {"configMap": {"name": format!("{name}-ca"), "key": "ca.crt"}},
    })
}
