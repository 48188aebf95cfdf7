//! Starts with N credentials without a token. Then starts with all tokens expired; the raw writer then overwrites its
//! own objects.

use std::{
    fmt,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::{
    Plan,
    lab::{Lab, by_kind},
    machine,
    raw::RawWriter,
    report::{Figure, Report, Target, count},
    usage,
    view::View,
};
use mailtoken_testkit::until;

/// Lifetime in seconds of the tokens that expire, in addition to the time in which all of them are issued.
const LIFETIME: u64 = 10;

/// The cost until the last credential was Ready.
#[derive(Clone, Copy)]
struct Took {
    seconds: f64,
    /// The API server's CPU for each credential, ms.
    cpu: f64,
}

#[derive(Default)]
struct Runs {
    raw: Vec<Took>,
    raw_again: Vec<Took>,
    cold: Vec<Took>,
    expired: Vec<Took>,
    in_flight: Vec<f64>,
    requests: Vec<f64>,
    calls: Vec<f64>,
}

pub async fn run(plan: &Plan, report: &mut Report) {
    for &number in &plan.sizes {
        let mut runs = Runs::default();
        for round in 0..plan.rounds {
            let mut lab = Lab::start().await;
            // Alternate which server is first.
            if round % 2 == 0 {
                raw(&mut lab, number, &mut runs).await;
            }
            broker(&mut lab, number, &mut runs, report).await;
            if round % 2 == 1 {
                raw(&mut lab, number, &mut runs).await;
            }
        }
        let name = |what: &str| format!("{what}, N = {number}");
        let seconds = |runs: &[Took]| runs.iter().map(|took| took.seconds).collect::<Vec<_>>();
        let cpu = |runs: &[Took]| runs.iter().map(|took| took.cpu).collect::<Vec<_>>();
        let cold = Figure::new(name("cold start → all Ready"), "s", seconds(&runs.cold));
        report.add(cold.over(seconds(&runs.raw)).target(Target::Ratio(1.25)));
        report.add(Figure::new(name("the raw writer on existing objects"), "s", seconds(&runs.raw)));
        let expired = || Figure::new(name("start, all expired → all Ready"), "s", seconds(&runs.expired));
        report.add(expired().over(seconds(&runs.cold)).target(Target::Ratio(1.1)));
        report.add(Figure::new(name("the raw writer over its own objects"), "s", seconds(&runs.raw_again)));
        let beside = Figure::new(name("all expired, beside the raw writer that does it"), "s", seconds(&runs.expired));
        report.add(beside.over(seconds(&runs.raw_again)));
        let server = Figure::new(name("the API server's CPU a credential, cold start"), "ms", cpu(&runs.cold));
        report.add(server.over(cpu(&runs.raw)));
        let server = Figure::new(name("the API server's CPU a credential, all expired"), "ms", cpu(&runs.expired));
        report.add(server.over(cpu(&runs.raw_again)));
        report.add(
            Figure::new(name("token requests a renewal, all expired"), "", runs.requests).target(Target::Exactly(1.0)),
        );
        report.add(Figure::new(name("API calls a renewal, all expired"), "", runs.calls).target(Target::AtMost(2.1)));
        report.add(
            Figure::new(name("token requests in flight, all expired"), "", runs.in_flight).target(Target::AtMost(32.0)),
        );
    }
}

/// Measures the raw writer with 32 and with 64 workers, and keeps the better result.
async fn raw(lab: &mut Lab, number: usize, runs: &mut Runs) {
    let mut best: [Option<Took>; 2] = [None; 2];
    for workers in [32, 64] {
        lab.create("mailbox", number, |manifest| manifest).await;
        let view = View::start(lab.ns.api()).await;
        for (best, times) in best.iter_mut().zip(["", ", once more"]) {
            let since = second_after_the_last(&view).await;
            let start = Start::now(lab);
            let writer = RawWriter::renew(&lab.ns, &lab.provider, workers, since);
            let took = start.until_ready(&view, number, since).await;
            println!("  {number}, raw writer, {workers}{times}: {took}");
            drop(writer);
            if best.is_none_or(|best| took.seconds < best.seconds) {
                *best = Some(took);
            }
        }
        drop(view);
        lab.clear().await;
    }
    runs.raw.extend(best[0]);
    runs.raw_again.extend(best[1]);
}

/// Waits until tokens issued now differ, in whole seconds, from all existing ones.
async fn second_after_the_last(view: &View) -> Timestamp {
    let last = view.seen().values().map(|seen| seen.issued_at).max();
    let Some(since) = last.map(|last| last + SignedDuration::from_secs(1)) else { return Timestamp::UNIX_EPOCH };
    until("the next second begins", async || {
        let now = Timestamp::now();
        if now >= since { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    since
}

async fn broker(lab: &mut Lab, number: usize, runs: &mut Runs, report: &mut Report) {
    let lifetime = LIFETIME + u64::try_from(number / 80).unwrap();
    lab.provider.issue_for(lifetime);
    lab.create("mailbox", number, crate::lab::short_lived).await;
    let view = View::start(lab.ns.api()).await;
    let start = Start::now(lab);
    let mut broker = lab.launch().launch();
    let cold = start.until_ready(&view, number, Timestamp::UNIX_EPOCH).await;
    println!("  {number}, broker, cold: {cold}");
    broker.terminate().await;

    tokio::time::sleep(Duration::from_secs(lifetime)).await;
    lab.provider.issue_for(3_600);
    lab.provider.reset();
    lab.asked();
    let (start, since) = (Start::now(lab), Timestamp::now());
    let mut broker = lab.launch().launch();
    let whole_second = Timestamp::from_second(since.as_second()).unwrap();
    let expired = start.until_ready(&view, number, whole_second).await;
    println!("  {number}, broker, all expired: {expired}");
    let asked = lab.asked();
    report.note(format!("API calls of a start with {number} expired: {}", by_kind(&asked)));
    runs.cold.push(cold);
    runs.expired.push(expired);
    runs.in_flight.push(count(lab.provider.most_in_flight()));
    runs.requests.push(count(lab.provider.requests().len()) / count(number));
    runs.calls.push(count(asked.len()) / count(number));
    broker.terminate().await;
    drop(view);
    lab.clear().await;
}

struct Start {
    at: Instant,
    api_server: u32,
    cpu: Duration,
}

impl Start {
    fn now(lab: &Lab) -> Self {
        let api_server = lab.api_server();
        Self { at: Instant::now(), api_server, cpu: usage::cpu(api_server) }
    }

    /// Waits until all credentials have a token that was requested at `since` or later.
    async fn until_ready(self, view: &View, number: usize, since: Timestamp) -> Took {
        let ready = view.ready("mailbox", number, since).await;
        let cpu = usage::cpu(self.api_server).saturating_sub(self.cpu);
        let seconds = ready.values().max().unwrap().saturating_duration_since(self.at).as_secs_f64();
        Took { seconds, cpu: cpu.as_secs_f64() * 1_000.0 / count(number) }
    }
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} s, {:.2} ms of the API server's CPU each (load {})", self.seconds, self.cpu, machine::load())
    }
}
