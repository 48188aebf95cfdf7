//! A start with everything to do: N credentials without a token; then a start with all tokens expired, where the raw
//! writer writes over what it wrote before.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::{
    Plan,
    lab::{Lab, by_kind},
    raw::RawWriter,
    report::{Figure, Report, Target, count},
    support::until,
    usage,
    view::View,
};

/// Seconds that a token lives that is to expire, besides the time for making all of them.
const LIFETIME: u64 = 10;

#[derive(Default)]
struct Runs {
    raw: Vec<f64>,
    raw_again: Vec<f64>,
    cold: Vec<f64>,
    expired: Vec<f64>,
    in_flight: Vec<f64>,
    requests: Vec<f64>,
    calls: Vec<f64>,
}

pub async fn run(plan: &Plan, report: &mut Report) {
    for &number in &plan.sizes {
        let mut runs = Runs::default();
        for round in 0..plan.rounds {
            let mut lab = Lab::start().await;
            // Each round begins with the other one.
            if round % 2 == 0 {
                raw(&mut lab, number, &mut runs).await;
            }
            broker(&mut lab, number, &mut runs, report).await;
            if round % 2 == 1 {
                raw(&mut lab, number, &mut runs).await;
            }
        }
        let name = |what: &str| format!("{what}, N = {number}");
        let cold = Figure::new(name("cold start → all Ready"), "s", runs.cold.clone());
        report.add(cold.over(runs.raw.clone()).target(Target::Ratio(1.25)));
        report.add(Figure::new(name("the raw writer on what is there"), "s", runs.raw));
        let expired = Figure::new(name("start, all expired → all Ready"), "s", runs.expired.clone());
        report.add(expired.over(runs.cold).target(Target::Ratio(1.1)));
        let expired = Figure::new(name("the same, beside the raw writer that does it"), "s", runs.expired);
        report.add(expired.over(runs.raw_again.clone()));
        report.add(Figure::new(name("the raw writer over what it wrote"), "s", runs.raw_again));
        report.add(
            Figure::new(name("token requests a renewal, all expired"), "", runs.requests).target(Target::Exactly(1.0)),
        );
        report.add(Figure::new(name("API calls a renewal, all expired"), "", runs.calls).target(Target::AtMost(2.1)));
        report.add(
            Figure::new(name("token requests in flight, all expired"), "", runs.in_flight).target(Target::AtMost(32.0)),
        );
    }
}

/// The better of 32 and 64 workers.
async fn raw(lab: &mut Lab, number: usize, runs: &mut Runs) {
    let mut best = [f64::MAX; 2];
    for workers in [32, 64] {
        lab.create("mailbox", number, |manifest| manifest).await;
        let view = View::start(lab.ns.api()).await;
        for (best, times) in best.iter_mut().zip(["", ", once more"]) {
            let since = second_after_the_last(&view).await;
            let begun = Instant::now();
            let writer = RawWriter::renew(lab, workers, since);
            let seconds = last(&view, number, since, begun).await;
            println!("  {number}, raw writer, {workers}{times}: {seconds:.2} s (load {})", usage::load());
            *best = best.min(seconds);
            drop(writer);
        }
        drop(view);
        lab.clear().await;
    }
    runs.raw.push(best[0]);
    runs.raw_again.push(best[1]);
}

/// Waits until tokens that are issued now differ, in whole seconds, from all that there are.
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
    let begun = Instant::now();
    let mut broker = lab.launch().launch();
    let cold = last(&view, number, Timestamp::UNIX_EPOCH, begun).await;
    println!("  {number}, broker, cold: {cold:.2} s (load {})", usage::load());
    broker.terminate().await;

    tokio::time::sleep(Duration::from_secs(lifetime)).await;
    lab.provider.issue_for(3_600);
    lab.provider.reset();
    lab.asked();
    let (begun, since) = (Instant::now(), Timestamp::now());
    let mut broker = lab.launch().launch();
    let whole_second = Timestamp::from_second(since.as_second()).unwrap();
    let expired = last(&view, number, whole_second, begun).await;
    println!("  {number}, broker, all expired: {expired:.2} s (load {})", usage::load());
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

/// Seconds until the last is Ready.
async fn last(view: &View, number: usize, since: Timestamp, begun: Instant) -> f64 {
    let ready = view.ready("mailbox", number, since).await;
    ready.values().max().unwrap().saturating_duration_since(begun).as_secs_f64()
}
