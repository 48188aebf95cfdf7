//! Leader election against a real API server.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    coordination::v1::{Lease, LeaseSpec},
    rbac::v1::{Role, RoleBinding},
};
use kube::{Client, Config, api::PostParams, config::KubeConfigOptions, config::Kubeconfig};
use mail_token_broker::lease::{self, Candidacy, Leadership};
use mailtoken_testkit::{Cluster, Namespace, fault_log::tried, holds, process, wait::until_in};
use serde_json::{from_value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);

struct Replica {
    leadership: Leadership,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Replica {
    fn start(client: &Client, namespace: &Namespace, identity: &str) -> Self {
        let (leadership, shutdown) = (Leadership::new(), CancellationToken::new());
        let task = tokio::spawn(lease::run(
            client.clone(),
            Candidacy {
                namespace: namespace.name.clone(),
                name: lease::NAME.to_owned(),
                identity: identity.to_owned(),
                serves: ("mailtoken.dev/serves", "*".to_owned()),
            },
            leadership.clone(),
            shutdown.clone(),
        ));
        Self { leadership, shutdown, task }
    }

    async fn becomes(&self, leader: bool) -> Instant {
        let mut changes = self.leadership.changes();
        tokio::time::timeout(DEADLINE, changes.wait_for(|standing| standing.leads == leader)).await.unwrap().unwrap();
        Instant::now()
    }
}

async fn spec(namespace: &Namespace) -> LeaseSpec {
    namespace.get::<Lease>(lease::NAME).await.spec.unwrap()
}

async fn holder(namespace: &Namespace) -> Option<String> {
    spec(namespace).await.holder_identity
}

#[tokio::test]
async fn a_released_lease_is_taken_by_the_standby_within_seconds() {
    let namespace = Cluster::shared().namespace().await;
    let first = Replica::start(&namespace.client, &namespace, "first");
    first.becomes(true).await;
    let second = Replica::start(&namespace.client, &namespace, "second");
    let fresh = spec(&namespace).await;
    assert_eq!((fresh.holder_identity.as_deref(), fresh.lease_duration_seconds), (Some("first"), Some(15)));
    holds(Duration::from_secs(18), "the first leads, through renewals", async || {
        match (first.leadership.is_leader(), second.leadership.is_leader()) {
            (true, false) => Ok(()),
            leaders => Err(format!("{leaders:?}")),
        }
    })
    .await;
    assert!(spec(&namespace).await.renew_time > fresh.renew_time);

    first.shutdown.cancel();
    first.task.await.unwrap();
    let released = Instant::now();
    let taken = second.becomes(true).await;
    assert!(taken - released < Duration::from_secs(8), "{:?}", taken - released);
    let taken = spec(&namespace).await;
    assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("second"), Some(1)));

    second.shutdown.cancel();
    second.task.await.unwrap();
    assert_eq!(holder(&namespace).await, None);
}

#[tokio::test]
async fn a_dead_leaders_lease_is_taken_when_it_has_run_out() {
    let namespace = Cluster::shared().namespace().await;
    let dead = Replica::start(&namespace.client, &namespace, "dead");
    dead.becomes(true).await;
    let standby = Replica::start(&namespace.client, &namespace, "standby");
    dead.task.abort();
    let died = Instant::now();
    let taken = standby.becomes(true).await;
    assert!(!dead.leadership.is_leader());
    let waited = taken - died;
    assert!(waited > Duration::from_secs(10) && waited < Duration::from_secs(25), "{waited:?}");
}

#[tokio::test]
async fn of_many_candidates_one_leads() {
    let namespace = Cluster::shared().namespace().await;
    // No candidate holds the lease: all of them will write to the version that they have read.
    let free: Lease = from_value(json!({"metadata": {"name": lease::NAME}, "spec": {}})).unwrap();
    namespace.api().create(&PostParams::default(), &free).await.unwrap();
    let replicas: Vec<_> =
        (0..8).map(|number| Replica::start(&namespace.client, &namespace, &format!("replica-{number}"))).collect();
    let leaders = || replicas.iter().filter(|replica| replica.leadership.is_leader()).count();
    until_in(DEADLINE, "there is a leader", async || if leaders() > 0 { Ok(()) } else { Err(String::new()) }).await;
    holds(Duration::from_secs(8), "one leads", async || match leaders() {
        1 => Ok(()),
        number => Err(format!("{number} leaders")),
    })
    .await;
}

#[tokio::test]
async fn a_leader_is_none_while_the_api_server_is_away_and_one_again_afterwards() {
    let cluster = Cluster::alone(&["control-plane"]);
    let namespace = cluster.namespace().await;
    let replica = Replica::start(&namespace.client, &namespace, "only");
    replica.becomes(true).await;
    let stopping = cluster.clone();
    tokio::task::spawn_blocking(move || stopping.down("control-plane")).await.unwrap();
    let away = Instant::now();
    let lost = replica.becomes(false).await;
    assert!(lost - away < lease::DURATION, "not before another may lead: {:?}", lost - away);
    assert!(!replica.task.is_finished());
    tokio::task::spawn_blocking(move || cluster.up("control-plane")).await.unwrap();
    replica.becomes(true).await;
    assert_eq!(holder(&namespace).await.as_deref(), Some("only"));
}

#[tokio::test]
async fn get_create_and_update_are_enough() {
    let namespace = Cluster::shared().namespace().await;
    let role: Role = from_value(json!({
        "metadata": {"name": "elect"},
        "rules": [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}],
    }))
    .unwrap();
    let binding: RoleBinding = from_value(json!({
        "metadata": {"name": "elect"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "elect"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "candidate"}],
    }))
    .unwrap();
    let options = KubeConfigOptions::default();
    let kubeconfig = Kubeconfig::read_from(namespace.cluster.kubeconfig()).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    config.auth_info.impersonate = Some("candidate".to_owned());
    let client = Client::try_from(config).unwrap();

    // The API server refuses at first. The candidate then works without a restart.
    let replica = Replica::start(&client, &namespace, "candidate");
    namespace.api().create(&PostParams::default(), &role).await.unwrap();
    namespace.api().create(&PostParams::default(), &binding).await.unwrap();
    replica.becomes(true).await;
    let taken = spec(&namespace).await.renew_time;
    until_in(DEADLINE, "it is renewed", async || match spec(&namespace).await.renew_time {
        renewed if renewed > taken => Ok(()),
        renewed => Err(format!("{renewed:?}")),
    })
    .await;
    replica.shutdown.cancel();
    replica.task.await.unwrap();
    assert_eq!(holder(&namespace).await, None);
}

/// Environment variable with the namespace, for the candidate in a separate process.
const NAMESPACE: &str = "MTB_TEST_LEASE_NAMESPACE";

#[tokio::test]
async fn a_suspended_leader_does_not_lead_when_it_continues() {
    let namespace = Cluster::shared().namespace().await;
    let mut command = process::mortal(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "lease::a_candidate_that_will_be_stopped", "--nocapture"])
        .env("KUBECONFIG", namespace.cluster.kubeconfig())
        .env(NAMESPACE, &namespace.name)
        .stdout(Stdio::piped());
    let mut child = process::spawn(command).unwrap();
    let signal = |name: &str| process::output(Command::new("kill").args(["-s", name, &child.id().to_string()]));
    namespace.until_in(DEADLINE, lease::NAME, "the child leads", |lease: &Lease| lease.spec.is_some()).await;
    let standby = Replica::start(&namespace.client, &namespace, "standby");
    signal("STOP");
    standby.becomes(true).await;
    signal("CONT");

    let output = BufReader::new(child.stdout.take().unwrap());
    let reported = tokio::task::spawn_blocking(move || {
        output.lines().map(Result::unwrap).find(|line| line.contains("goes on")).unwrap_or_default()
    });
    let reported = tokio::time::timeout(DEADLINE, reported).await.unwrap().unwrap();
    assert!(reported.ends_with("goes on; leads: false"), "{reported:?}");
    assert_eq!(holder(&namespace).await.as_deref(), Some("standby"));
    child.kill().unwrap();
    child.wait().unwrap();
    tried("F10", 1, "nothing");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by a_suspended_leader_does_not_lead_when_it_continues, in a process of its own"]
async fn a_candidate_that_will_be_stopped() {
    let client = Client::try_default().await.unwrap();
    let leadership = Leadership::new();
    let (name, namespace) = (lease::NAME.to_owned(), std::env::var(NAMESPACE).unwrap());
    let asked = leadership.clone();
    let asks = std::thread::spawn(move || {
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_secs(5) {
            last = Instant::now();
            std::thread::sleep(Duration::from_millis(1));
        }
        println!("goes on; leads: {}", asked.is_leader());
    });
    let candidacy =
        Candidacy { namespace, name, identity: "stopped".to_owned(), serves: ("mailtoken.dev/serves", "*".to_owned()) };
    tokio::spawn(lease::run(client, candidacy, leadership, CancellationToken::new()));
    tokio::task::spawn_blocking(|| asks.join().unwrap()).await.unwrap();
}
