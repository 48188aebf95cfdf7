//! The composition root: builds and starts all parts, and ends them in the right order.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, Admin},
    api::{GROUP, names},
    cli::Settings,
    clock::Clock,
    controller::{self, Watches},
    error::describe,
    health::Health,
    idp::{self, IdpClients},
    kubernetes::{AccessError, Connection},
    lease::{self, Candidacy, Leadership},
    mail::MailDialer,
    metrics::Metrics,
    provider_client::federation::Identities,
    reconcile::{
        act::{
            activity::{admission, probe_admission},
            mail_logins::Probes,
        },
        bundles::Bundles,
        context::{Context, Kubernetes, Requests},
        credential_cache::CredentialCache,
        events::Events,
        memory_budget::MemoryBudget,
        provider_cache::{ProviderCache, Resolver},
        secrets::Secrets,
        source_contents::SourceContents,
        work_queue::WorkQueue,
    },
    side::SideRuntime,
};

/// Reasons why the broker did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The broker has no usable access to Kubernetes.
    #[error("{0}")]
    Kubernetes(#[source] AccessError),
    /// The broker cannot start the thread for the lease and the probes.
    #[error("the thread for the lease and the probes cannot be started")]
    Thread(#[source] std::io::Error),
    /// The broker cannot create the client for providers.
    #[error("the client for providers cannot be created")]
    Providers(#[source] idp::SetupError),
    /// The broker cannot listen on the address of `--metrics-addr`.
    #[error("cannot listen on --metrics-addr")]
    Admin(#[source] std::io::Error),
    /// The broker cannot receive signals.
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
}

/// Time that a shutdown waits in addition to the timeout of requests in flight, for the writes that follow.
const DRAIN_MARGIN: Duration = Duration::from_secs(10);
/// Pause before the broker checks its own rights again after a failure.
const ACCESS_RETRY: Duration = Duration::from_secs(2);
/// Interval at which a shutdown checks whether all tokens are stored.
const DRAIN_CHECK: Duration = Duration::from_millis(50);
/// Environment variable with the pod's uid (downward API). Kubernetes restarts a container only after the former one
/// has ended, so only one process at a time has this uid.
const POD_UID: &str = "POD_UID";
/// Maximum length in bytes of the list of namespaces in the Lease. A longer list is hashed.
const SERVES_MAX: usize = 1024;

/// Runs the broker until SIGTERM or SIGINT.
///
/// # Errors
/// If the broker cannot start. Once it runs, only a signal ends it.
pub async fn run(settings: Settings) -> Result<(), StartError> {
    let stop = stop_signal()?;
    let connection =
        Connection::find(settings.kubernetes.kubeconfig.as_deref(), settings.kubernetes.context.as_deref());
    let connection = connection.await.map_err(StartError::Kubernetes)?.with_longest_list(controller::LONGEST_LIST);
    let made =
        |client: kube::Result<Client>| client.map_err(|error| StartError::Kubernetes(AccessError::Client(error)));
    let client = made(connection.client())?;
    let side = SideRuntime::start().map_err(StartError::Thread)?;
    // Create a separate client: the main runtime drives the connections of the main client.
    let lease_client = {
        let _entered = side.handle().enter();
        made(connection.client())?
    };
    let clock = Clock::system();
    let identities = Identities::new(
        client.clone(),
        &connection,
        clock.clone(),
        settings.identity_token_file.clone(),
        settings.access.allow_service_account_ref,
    );
    let broker_namespace = settings.access.broker_namespace();
    let clients = IdpClients::new(settings.access.idp(), clock.clone()).map_err(StartError::Providers)?;
    let dialer = settings.probe.then(|| MailDialer::new(&settings.access.idp())).transpose();
    let dialer = dialer.map_err(StartError::Providers)?;

    let ended = CancellationToken::new();
    let metrics = Arc::new(Metrics::new());
    let ready = Arc::new(AtomicBool::new(false));
    let health = Health::default();
    let admin = Admin::new(metrics.clone(), ready.clone(), health.clone());
    let listening = side.handle().spawn(admin::serve(settings.metrics_addr, admin, ended.clone()));
    let server = listening.await.map_err(|error| StartError::Admin(error.into()))?.map_err(StartError::Admin)?;
    let server = side.handle().spawn(server);
    health.supervise("pulse", health.clone().pulse());

    let work = Work {
        client,
        lease_client,
        side: side.handle().clone(),
        health: health.clone(),
        clock,
        broker_namespace,
        clients,
        dialer,
        identities,
        metrics,
        ready,
        settings,
    };
    tokio::select! {
        // Before the watches have synced, no request is in flight: a signal ends the process immediately.
        () = stop.cancelled() => {}
        (context, lease, controllers) = work.start(&ended) => {
            stop.cancelled().await;
            tracing::info!("stopping: waiting for requests in flight");
            drain(&context).await;
            health.end();
            ended.cancel();
            for task in [controllers, lease] {
                if let Err(error) = task.await {
                    tracing::warn!(%error, "task failed while the broker stopped");
                }
            }
        }
    }
    health.end();
    ended.cancel();
    if let Ok(Err(error)) = server.await {
        tracing::warn!(%error, "metrics server failed");
    }
    tracing::info!("stopped");
    Ok(())
}

/// The inputs of the broker's start.
struct Work {
    client: Client,
    lease_client: Client,
    side: tokio::runtime::Handle,
    health: Health,
    clock: Clock,
    broker_namespace: String,
    clients: IdpClients,
    dialer: Option<MailDialer>,
    identities: Identities,
    metrics: Arc<Metrics>,
    ready: Arc<AtomicBool>,
    settings: Settings,
}

type Task = tokio::task::JoinHandle<()>;

impl Work {
    /// Starts all parts. Returns when the watches have synced and the controllers run.
    async fn start(self, ended: &CancellationToken) -> (Arc<Context>, Task, Task) {
        let Self { client, clock, broker_namespace, health, metrics, settings, .. } = self;
        let cluster = settings.namespaces.is_empty() || may_read_cluster(&client).await;
        let queue = WorkQueue::new(settings.concurrency);
        let leadership = if settings.leader_elect { Leadership::new() } else { Leadership::always() };
        let watches = Watches::new(&client, &settings.namespaces, &broker_namespace, cluster);
        let stores = watches.stores();
        let identity = identity();
        let (events, writer) = Events::new(client.clone(), identity.clone(), metrics.clone());
        health.supervise("events", writer.run());
        let draining = CancellationToken::new();
        let admission = admission(&queue, &draining);
        health.supervise("admission", admission.clone().run());
        let probes = self.dialer.map(|dialer| {
            let admission = probe_admission(&queue, &draining);
            health.supervise("probe admission", admission.clone().run());
            Probes::new(admission, dialer)
        });
        let reads = Arc::<MemoryBudget>::default();
        let secrets = Secrets::new(client.clone(), reads.clone());
        let contents = SourceContents::new(client.clone(), stores.clone(), queue.clone(), reads);
        let bundles = Arc::new(Bundles::new(client.clone(), queue.clone(), stores.references.clone()));
        let resolver = Resolver {
            client: client.clone(),
            clients: self.clients,
            identities: self.identities,
            leadership: leadership.clone(),
            clock: clock.clone(),
        };
        let context = Arc::new(Context {
            clock,
            leadership: leadership.clone(),
            metrics,
            providers: ProviderCache::new(resolver, stores.clone(), bundles.clone(), contents),
            stores,
            cache: CredentialCache::new(leadership.clone()),
            kubernetes: Kubernetes { secrets, events, client },
            requests: Requests {
                admission,
                probes,
                timeout: settings.access.request_timeout,
                holder: identity,
                draining,
            },
            queue,
        });
        tracing::info!("waiting for the watches to sync");
        watches.run(&context, &health).await;

        // Join the election only after all watches have synced.
        let candidacy = settings.leader_elect.then(|| Candidacy {
            namespace: broker_namespace,
            name: settings.lease_name,
            identity: context.requests.holder.clone(),
            serves: (names::ANNOTATION_SERVES, serves(&settings.namespaces)),
        });
        let election = campaign(self.lease_client, candidacy, leadership.clone(), ended);
        let lease = health.supervise_on(&self.side, "election", election);
        let known = Arc::downgrade(&context);
        let unstored = move || known.upgrade().map_or(0, |context| context.cache.unstored());
        context.metrics.watch(context.stores.clone(), leadership.clone(), unstored);
        health.supervise("lead", controller::enqueue_all_when_leading(leadership, context.clone()));
        health.supervise("clock", controller::enqueue_all_when_the_clock_jumps(context.clone()));
        health.supervise("bundles", async move { bundles.poll().await });
        health.supervise("sweep", controller::sweep(context.clone()));
        let controllers = controller::run(context.clone(), ended.clone());
        let controllers = health.supervise("controllers", controllers);
        self.ready.store(true, Ordering::Release);
        tracing::info!("ready");
        (context, lease, controllers)
    }
}

/// Returns the election, for the side runtime. Without an election, the future waits for `ended`.
fn campaign(
    client: Client,
    candidacy: Option<Candidacy>,
    leadership: Leadership,
    ended: &CancellationToken,
) -> futures::future::BoxFuture<'static, ()> {
    match candidacy {
        Some(candidacy) => Box::pin(lease::run(client, candidacy, leadership, ended.clone())),
        None => Box::pin(ended.clone().cancelled_owned()),
    }
}

/// Returns the namespaces that this installation serves, for its Lease. The text is the same in all replicas,
/// regardless of the order.
fn serves(namespaces: &[String]) -> String {
    let sorted: BTreeSet<&str> = namespaces.iter().map(String::as_str).collect();
    let list = sorted.into_iter().collect::<Vec<_>>().join(",");
    match list.len() {
        0 => "*".to_owned(),
        length if length > SERVES_MAX => names::digest([list.as_str()]),
        _ => list,
    }
}

/// Whether a broker with `--namespace` may read ClusterMailProviders and namespaces.
async fn may_read_cluster(client: &Client) -> bool {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    for (group, resource) in [(GROUP, "clustermailproviders"), ("", "namespaces")] {
        let attributes = ResourceAttributes {
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            verb: Some("list".to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let allowed = loop {
            match reviews.create(&PostParams::default(), &review).await {
                Ok(review) => break review.status.is_some_and(|status| status.allowed),
                Err(error) => {
                    tracing::warn!(resource, why = describe(&error), "access review failed: retrying");
                    tokio::time::sleep(ACCESS_RETRY).await;
                }
            }
        };
        if !allowed {
            tracing::info!(resource, "ClusterMailProviders not served: no right to read them");
            return false;
        }
    }
    true
}

/// Returns this broker's identity in the lease, in claims and in Events. With [`POD_UID`], the identity is the pod: a
/// restarted container recognizes its own lease and claims, and continues without waiting until they expire. Without
/// [`POD_UID`], each process has its own identity.
fn identity() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "mail-token-broker".to_owned());
    let own = std::env::var(POD_UID).unwrap_or_else(|_| {
        let random = std::collections::hash_map::RandomState::new();
        format!("{:016x}", std::hash::BuildHasher::hash_one(&random, std::process::id()))
    });
    format!("{host}_{own}")
}

/// Waits until the broker has stored all tokens and written all Events. Stops waiting [`DRAIN_MARGIN`] after the
/// timeout of requests.
async fn drain(context: &Context) {
    context.requests.draining.cancel();
    let stored = async {
        while context.cache.is_busy(context.leadership.is_leader()) {
            tokio::time::sleep(DRAIN_CHECK).await;
        }
    };
    if tokio::time::timeout(context.requests.timeout + DRAIN_MARGIN, stored).await.is_err() {
        tracing::warn!("last tokens not stored in time");
    }
    context.kubernetes.events.flush().await;
}

/// Returns a token that the first SIGTERM or SIGINT cancels.
fn stop_signal() -> Result<CancellationToken, StartError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopped.cancel();
    });
    Ok(stop)
}
