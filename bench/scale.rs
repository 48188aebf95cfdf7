//! Tens of thousands of credentials: their issue, a start, a list of all after a 410, an outage of the provider for
//! all, and the deletion of all. Measures the broker's cost for each credential, and whether the broker forgets a
//! credential.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Secret},
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::watcher::{self, Event, watcher},
};
use mail_token_broker::api::{ConditionType, MailCredential, MailProvider, Reason, condition};
use mailtoken_testkit::{Broker, credential, part::Part, until, wait::until_in};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::{
    Plan,
    lab::{Lab, NAMESPACE},
    machine,
    report::{Figure, Report, Target, count},
    usage,
};

/// Number of concurrent creates, changes and deletions.
const CONCURRENT: usize = 64;
/// Pause after a phase, until memory has settled.
const SETTLE: Duration = Duration::from_secs(10);
/// Time of the measurement of the idle CPU.
const IDLE: Duration = Duration::from_secs(30);
/// Time limit of a phase. A credential that is not in the expected state by then counts as lost.
const PATIENCE: Duration = Duration::from_secs(2_400);
/// Time limit for the API server to start with all objects.
const API_SERVER: Duration = Duration::from_secs(120);
/// Interval between two checks whether a phase has ended.
const CHECK: Duration = Duration::from_millis(100);
/// Lifetime of the tokens in seconds, so long that the broker renews none during the run.
const LIFETIME: u64 = 7 * 86_400;
/// Average number of seconds from the issue of a one-hour token to its renewal: four fifths of its lifetime, less a
/// jitter of up to a tenth.
const PERIOD: f64 = 2_700.0;
/// While the broker lists, one in this number of credentials is suspended, one deleted and one created.
const CHANGED: usize = 200;
/// Phases with their own figures.
const ISSUED: &str = "all are issued";
const START: &str = "a start";
const RELIST: &str = "a list of all after a 410";

pub async fn run(plan: &Plan, report: &mut Report) {
    for &number in &plan.many {
        let run = one_run(number, plan.quick).await;
        report_run(number, &run, report);
    }
}

/// One phase of a run.
struct Phase {
    name: &'static str,
    /// Seconds until the watch shows the end of the phase.
    seconds: f64,
    /// The broker's CPU time during the phase, in seconds.
    cpu: f64,
    /// Peak resident memory from the start of the phase until memory has settled, in MiB.
    peak: f64,
    /// Resident memory after it has settled, in MiB.
    rest: f64,
    /// Number of credentials that are not in the expected state.
    lost: usize,
}

struct Run {
    /// Resident memory without credentials, in MiB.
    empty: f64,
    phases: Vec<Phase>,
    /// The broker's CPU for one renewal, milliseconds.
    renewal: f64,
    /// CPU of the idle broker, in percent of a core.
    idle: f64,
    /// Number of credentials that only the sweep enqueued.
    swept: f64,
    /// How often another replica took over the lease.
    transitions: i32,
}

async fn one_run(number: usize, quick: bool) -> Run {
    let (settle, idle) = if quick { (Duration::from_secs(2), Duration::from_secs(5)) } else { (SETTLE, IDLE) };
    let lab = Lab::start().await;
    let mut server = Part::of(&lab.ns.cluster, "kube-apiserver").without("--audit");
    server.signal("KILL");
    server.again().await;
    serves(&lab).await;
    lab.provider.issue_for(LIFETIME);
    let mut broker = lab.launch().start().await;
    holds_lease(&lab).await;
    tokio::time::sleep(settle).await;
    let empty = usage::memory(&broker);
    let crowd = Crowd::start(lab.ns.api()).await;
    let mut phases = vec![];
    let names: Vec<_> = (0..number).map(|number| format!("mailbox-{number:05}")).collect();

    let meter = Meter::start(ISSUED, &broker);
    each(names.clone(), |name| create(&lab, name)).await;
    let lost = crowd.until(|seen| number - seen.values().filter(|seen| seen.ready).count()).await;
    phases.push(meter.end(&broker, settle, lost).await);

    let (before, begun) = (usage::cpu(broker.id()), Instant::now());
    tokio::time::sleep(idle).await;
    let idle = 100.0 * (usage::cpu(broker.id()) - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    let meter = Meter::start("a collection of all metrics", &broker);
    let metrics = broker.metrics().await.len();
    println!("  {number}: the metrics have {metrics} bytes");
    phases.push(meter.end(&broker, settle, 0).await);

    broker.terminate().await;
    let begun = Instant::now();
    broker.relaunch();
    let mut meter = Meter::start(START, &broker);
    meter.begun = begun;
    create(&lab, "zz-started".to_owned()).await;
    let lost = crowd.until(|seen| usize::from(seen.get("zz-started").is_none_or(|seen| !seen.ready))).await;
    phases.push(meter.end(&broker, settle, lost).await);
    let transitions = transitions(&lab).await;

    phases.push(listed_again(&lab, &mut server, &broker, &crowd, &names, settle).await);

    let meter = Meter::start("the provider fails for all", &broker);
    lab.provider.fail(true);
    let providers = lab.ns.api::<MailProvider>();
    let scopes = json!({"spec": {"scopes": ["https://mail.example.org/another"]}});
    providers.patch("idp", &PatchParams::default(), &Patch::Merge(scopes)).await.unwrap();
    // Each credential reports a failure or a wait in the queue: a failing host gets few repeated requests.
    let lost = crowd.until(|seen| seen.values().filter(|seen| !seen.suspended && seen.ready).count()).await;
    phases.push(meter.end(&broker, settle, lost).await);

    let meter = Meter::start("the provider is back for all", &broker);
    let back = Timestamp::now();
    lab.provider.fail(false);
    let old = |seen: &&Seen| !seen.suspended && seen.issued_at.is_none_or(|at| at.as_second() < back.as_second());
    let lost = crowd.until(|seen| seen.values().filter(old).count()).await;
    let renewed = meter.end(&broker, settle, lost).await;
    let renewal = renewed.cpu * 1_000.0 / count(number);
    phases.push(renewed);

    let meter = Meter::start("all are deleted", &broker);
    let all: Vec<_> = crowd.seen().keys().cloned().collect();
    each(all, |name| delete(&lab, name)).await;
    let lost = crowd.until(HashMap::len).await;
    // Delete the Secrets as Kubernetes' garbage collector does, which does not run here.
    let ours = ListParams::default().labels("app.kubernetes.io/managed-by=mail-token-broker");
    let secrets = lab.ns.api::<Secret>();
    let ours: Vec<_> =
        secrets.list_metadata(&ours).await.unwrap().into_iter().map(|secret| secret.name_any()).collect();
    each(ours, |name| {
        let secrets = secrets.clone();
        async move { insist(404, async || secrets.delete(&name, &DeleteParams::default()).await.map(drop)).await }
    })
    .await;
    phases.push(meter.end(&broker, settle, lost).await);

    let swept = broker.metric("mailtoken_sweep_enqueued_total", "kind=\"credential\"").await.unwrap_or_default();
    let known = broker.metrics().await.matches("mailtoken_credential_ready{").count();
    if let Some(deleted) = phases.last_mut() {
        deleted.lost += known;
    }
    let transitions = self::transitions(&lab).await - transitions;
    Run { empty, phases, renewal, idle, swept, transitions }
}

/// Kills the API server and deletes the history of etcd. While the broker lists, some credentials are suspended, some
/// deleted, and some created.
async fn listed_again(
    lab: &Lab,
    server: &mut Part,
    broker: &Broker,
    crowd: &Crowd,
    names: &[String],
    settle: Duration,
) -> Phase {
    let meter = Meter::start(RELIST, broker);
    server.signal("KILL");
    Part::of(&lab.ns.cluster, "etcd").compact();
    server.again().await;
    serves(lab).await;
    let some = (names.len() / CHANGED).max(1);
    let (suspended, deleted) = (&names[..some], &names[some..2 * some]);
    let new: Vec<_> = (0..some).map(|number| format!("new-{number:05}")).collect();
    each(new.clone(), |name| create(lab, name)).await;
    each(suspended.to_vec(), |name| suspend(lab, name)).await;
    each(deleted.to_vec(), |name| delete(lab, name)).await;
    let lost = crowd
        .until(|seen| {
            let ready = |name: &&String| seen.get(*name).is_none_or(|seen| !seen.ready);
            let reported = |name: &&String| seen.get(*name).is_none_or(|seen| !seen.suspended);
            let there = |name: &&String| seen.contains_key(*name);
            new.iter().filter(ready).count()
                + suspended.iter().filter(reported).count()
                + deleted.iter().filter(there).count()
        })
        .await;
    meter.end(broker, settle, lost).await
}

fn report_run(number: usize, run: &Run, report: &mut Report) {
    let figure = |what: &str, unit: &'static str, value: f64| {
        Figure::new(format!("{number} credentials: {what}"), unit, [value])
    };
    report.add(figure("memory without any", "MiB", run.empty));
    let mut before = run.empty;
    for phase in &run.phases {
        let with = |what: &str| format!("{}, {what}", phase.name);
        let seconds = figure(phase.name, "s", phase.seconds);
        report.add(if phase.name == START { seconds.target(Target::AtMost(15.0)) } else { seconds });
        report.add(figure(&with("CPU"), "s", phase.cpu));
        report.add(figure(&with("peak memory"), "MiB", phase.peak).target(Target::AtMost(256.0)));
        if phase.name == RELIST {
            let peak = figure(&with("peak memory beside that at rest before"), "MiB", phase.peak);
            report.add(peak.over([before]).target(Target::Ratio(1.3)));
        }
        report.add(figure(&with("memory at rest"), "MiB", phase.rest));
        let each = (phase.rest - run.empty) * 1_024.0 / count(number);
        if phase.name == ISSUED {
            report.add(figure(&with("memory of one at rest"), "KiB", each));
        } else if phase.name == START {
            report.add(figure(&with("memory of one at rest"), "KiB", each).target(Target::AtMost(3.0)));
        }
        report.add(figure(&with("not as they should be"), "", count(phase.lost)).target(Target::Exactly(0.0)));
        before = phase.rest;
    }
    report.add(figure("CPU at rest", "% of a core", run.idle));
    report.add(figure("CPU of a renewal", "ms", run.renewal));
    let hourly = run.renewal / 10.0 * count(number) / PERIOD;
    report.add(figure("CPU, tokens of an hour, calculated", "% of a core", hourly).target(Target::AtMost(10.0)));
    report.add(figure("enqueued by the sweep alone", "", run.swept).target(Target::Exactly(0.0)));
    report.add(figure("another leader took over", "", f64::from(run.transitions)).target(Target::Exactly(0.0)));
}

struct Meter {
    name: &'static str,
    begun: Instant,
    cpu: Duration,
}

impl Meter {
    fn start(name: &'static str, broker: &Broker) -> Self {
        usage::begin_peak(broker);
        Self { name, begun: Instant::now(), cpu: usage::cpu(broker.id()) }
    }

    async fn end(self, broker: &Broker, settle: Duration, lost: usize) -> Phase {
        let seconds = self.begun.elapsed().as_secs_f64();
        let cpu = (usage::cpu(broker.id()) - self.cpu).as_secs_f64();
        tokio::time::sleep(settle).await;
        let (peak, rest) = (usage::peak_memory(broker), usage::memory(broker));
        println!(
            "  {}: {seconds:.1} s, {cpu:.1} s CPU, peak {peak:.1} MiB, rest {rest:.1} MiB, {lost} not as they should be (load {})",
            self.name,
            machine::load()
        );
        Phase { name: self.name, seconds, cpu, peak, rest, lost }
    }
}

/// Calls `work` with each name, `CONCURRENT` at a time.
async fn each<F: Future<Output = ()>>(names: Vec<String>, work: impl Fn(String) -> F) {
    stream::iter(names).map(work).buffer_unordered(CONCURRENT).for_each(|()| std::future::ready(())).await;
}

async fn create(lab: &Lab, name: String) {
    let object: MailCredential = serde_json::from_value(credential(&name).0).unwrap();
    let api = lab.ns.api::<MailCredential>();
    insist(409, async || api.create(&PostParams::default(), &object).await.map(drop)).await;
}

async fn suspend(lab: &Lab, name: String) {
    let patch = Patch::Merge(json!({"spec": {"suspend": true}}));
    let api = lab.ns.api::<MailCredential>();
    insist(404, async || api.patch(&name, &PatchParams::default(), &patch).await.map(drop)).await;
}

async fn delete(lab: &Lab, name: String) {
    let api = lab.ns.api::<MailCredential>();
    insist(404, async || api.delete(&name, &DeleteParams::default()).await.map(drop)).await;
}

/// Repeats a call until the API server, which was killed some seconds ago, responds. `done` is the status code that
/// shows the success of an earlier call whose response was lost.
async fn insist(done: u16, call: impl AsyncFn() -> kube::Result<()>) {
    let begun = Instant::now();
    loop {
        match call().await {
            Ok(()) => return,
            Err(kube::Error::Api(status)) if status.code == done => return,
            Err(error) => assert!(begun.elapsed() < API_SERVER, "{error}"),
        }
        tokio::time::sleep(CHECK).await;
    }
}

/// Waits until the API server serves credentials.
async fn serves(lab: &Lab) {
    until_in(API_SERVER, "the API server serves credentials", async || {
        let one = ListParams::default().limit(1);
        let list = lab.ns.api::<MailCredential>().list_metadata(&one).await;
        list.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

async fn holds_lease(lab: &Lab) {
    until("the broker leads", async || match lease(lab).await {
        Some(lease)
            if lease
                .spec
                .as_ref()
                .and_then(|spec| spec.holder_identity.as_ref())
                .is_some_and(|name| !name.is_empty()) =>
        {
            Ok(())
        }
        other => Err(format!("{:?}", other.map(|lease| lease.metadata.name))),
    })
    .await;
}

async fn lease(lab: &Lab) -> Option<Lease> {
    let leases: Api<Lease> = Api::namespaced(lab.ns.client.clone(), NAMESPACE);
    leases.list(&ListParams::default()).await.ok()?.items.into_iter().next()
}

async fn transitions(lab: &Lab) -> i32 {
    lease(lab).await.and_then(|lease| lease.spec?.lease_transitions).unwrap_or_default()
}

/// The state of a credential, as the watch shows it.
#[derive(Default)]
struct Seen {
    ready: bool,
    suspended: bool,
    issued_at: Option<Timestamp>,
}

impl Seen {
    fn of(credential: &MailCredential) -> Self {
        let Some(status) = &credential.status else { return Self::default() };
        let renewed = condition::find(&status.conditions, ConditionType::Renewed);
        Self {
            ready: condition::is_true(&status.conditions, ConditionType::Ready),
            suspended: renewed.is_some_and(|renewed| renewed.reason == Reason::Suspended.as_str()),
            issued_at: status.token.as_ref().map(|token| token.issued_at.0),
        }
    }
}

type All = HashMap<String, Seen>;

/// A watch of all credentials, until it is dropped.
struct Crowd {
    seen: Arc<Mutex<All>>,
    task: JoinHandle<()>,
}

impl Crowd {
    async fn start(api: Api<MailCredential>) -> Self {
        let seen = Arc::<Mutex<All>>::default();
        let writer = seen.clone();
        let task = tokio::spawn(async move {
            let mut listed = None;
            let events = watcher(api, watcher::Config::default());
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::Init) => listed = Some(All::new()),
                    Ok(Event::InitApply(credential)) => {
                        if let Some(listed) = &mut listed {
                            listed.insert(credential.name_any(), Seen::of(&credential));
                        }
                    }
                    Ok(Event::InitDone) => *writer.lock().unwrap() = listed.take().unwrap_or_default(),
                    Ok(Event::Apply(credential)) => {
                        writer.lock().unwrap().insert(credential.name_any(), Seen::of(&credential));
                    }
                    Ok(Event::Delete(credential)) => drop(writer.lock().unwrap().remove(&credential.name_any())),
                    // The API server does not respond.
                    Err(_) => tokio::time::sleep(CHECK).await,
                }
            }
        });
        Self { seen, task }
    }

    fn seen(&self) -> MutexGuard<'_, All> {
        self.seen.lock().unwrap()
    }

    /// Waits until `missing` returns 0. After the time limit, returns the number of missing credentials.
    async fn until(&self, missing: impl Fn(&All) -> usize) -> usize {
        let begun = Instant::now();
        loop {
            let number = missing(&self.seen());
            if number == 0 || begun.elapsed() > PATIENCE {
                return number;
            }
            tokio::time::sleep(CHECK).await;
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.task.abort();
    }
}
