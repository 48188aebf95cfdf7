//! A restart after kill -9, with all tokens valid.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

use crate::{
    Plan,
    lab::{Lab, by_kind, leads, writes},
    machine,
    report::{Figure, Report, Target, count},
    usage,
    view::View,
};
use mailtoken_testkit::audit::AuditEvent;

/// Time after the start of leadership in which the broker must become idle.
const WATCHED: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Runs {
    lead: Vec<f64>,
    calls: Vec<f64>,
    writes: Vec<f64>,
    requests: Vec<f64>,
    quiet: Vec<f64>,
    memory: Vec<f64>,
    from_start: Vec<f64>,
    leading: Vec<f64>,
}

pub async fn run(plan: &Plan, report: &mut Report) {
    let number = plan.largest();
    let mut lab = Lab::start().await;
    let mut broker = lab.broker().await;
    let view = View::start(lab.ns.api()).await;
    lab.create("mailbox", number, |manifest| manifest).await;
    view.ready("mailbox", number, Timestamp::UNIX_EPOCH).await;

    let mut runs = Runs::default();
    for round in 0..plan.rounds {
        broker.kill();
        lab.asked();
        lab.provider.reset();
        let begun = Instant::now();
        broker.again().await;
        // Create a credential when the broker is ready: the broker may have to wait for the killed broker's lease.
        let early = one(&lab, &view, &format!("early-{round}")).await;
        runs.from_start.push(early.1.duration_since(early.0).as_secs_f64());
        leads(&broker).await;
        runs.lead.push(early.1.duration_since(begun).as_secs_f64());

        broker.kill();
        lab.asked();
        lab.provider.reset();
        broker.again().await;
        let (mut asked, mut last) = (lab.asked(), Instant::now());
        let led = loop {
            asked.extend(lab.asked());
            if broker.metric("mailtoken_leader", "").await == Some(1.0) {
                break Instant::now();
            }
            tokio::time::sleep(LOOK).await;
        };
        while led.elapsed() < WATCHED {
            let more = lab.asked();
            if !more.is_empty() {
                last = Instant::now();
            }
            asked.extend(more);
            tokio::time::sleep(LOOK).await;
        }
        asked.retain(AuditEvent::is_about_one_object);
        println!("  restart: {} (load {})", by_kind(&asked), machine::load());
        runs.calls.push(count(asked.len()));
        runs.writes.push(count(writes(&asked)));
        runs.requests.push(count(lab.provider.requests().len()));
        runs.quiet.push(last.saturating_duration_since(led).as_secs_f64());
        runs.memory.push(usage::peak_memory(&broker));
        let late = one(&lab, &view, &format!("late-{round}")).await;
        runs.leading.push(late.1.duration_since(late.0).as_secs_f64());
    }
    add_figures(number, runs, report);
}

/// Creates one credential. Returns the times of its creation and of its Ready.
async fn one(lab: &Lab, view: &View, prefix: &str) -> (Instant, Instant) {
    let asked = lab.create(prefix, 1, |manifest| manifest).await;
    let ready = view.ready(prefix, 1, Timestamp::UNIX_EPOCH).await;
    (*asked.values().next().unwrap(), *ready.values().next().unwrap())
}

fn add_figures(number: usize, runs: Runs, report: &mut Report) {
    let name = |what: &str| format!("kill -9 and start, {number} valid: {what}");
    report.add(Figure::new(name("token requests"), "", runs.requests).target(Target::Exactly(0.0)));
    report.add(Figure::new(name("writes"), "", runs.writes).target(Target::Exactly(0.0)));
    report.add(Figure::new(name("API calls, lists and watches aside"), "", runs.calls).target(Target::AtMost(12.0)));
    report.add(Figure::new(name("from leading to quiet"), "s", runs.quiet).target(Target::AtMost(1.0)));
    report.add(Figure::new(name("a new one → Ready, leading"), "s", runs.leading).target(Target::AtMost(0.5)));
    report
        .add(Figure::new(name("a new one → Ready, from /readyz on"), "s", runs.from_start).target(Target::AtMost(0.5)));
    report.add(Figure::new(name("start → serves"), "s", runs.lead));
    report.add(Figure::new(name("peak memory"), "MiB", runs.memory));
}
