//! The time from create to Ready for all credentials, compared with the raw writer; also calls, token requests, CPU and
//! memory.

use crate::{
    Plan,
    burst::{Burst, Server, broker, burst, floor},
    lab::Lab,
    machine,
    plot::{self, Line},
    report::{Figure, Report, Target, count, median, quantile, sorted},
};

/// Peak resident memory with a number of credentials, MiB.
const MEMORY: [(usize, f64); 2] = [(1_000, 25.0), (5_000, 50.0)];

pub async fn run(plan: &Plan, report: &mut Report) {
    for &number in &plan.sizes {
        let mut rounds = vec![];
        for round in 0..plan.rounds {
            let mut lab = Lab::start().await;
            let mut bursts = vec![];
            for server in Server::in_turn(round) {
                let burst = burst(&mut lab, server, number).await;
                println!("  {number}, {}: {:.2} s (load {})", server.name(), burst.seconds, machine::load());
                bursts.push(burst);
            }
            rounds.push(bursts);
        }
        add_figures(number, &rounds, report);
        draw(number, &rounds);
    }
}

fn add_figures(number: usize, rounds: &[Vec<Burst>], report: &mut Report) {
    let cost = |value: fn(&crate::burst::Cost) -> f64| broker(rounds, |burst| burst.cost.as_ref().map_or(0.0, value));
    let name = |what: &str| format!("{what}, N = {number}");
    let p99 = |burst: &Burst| quantile(&burst.waits, 0.99);
    let seconds = Figure::new(name("create → all Ready"), "s", broker(rounds, |burst| burst.seconds));
    report.add(seconds.over(floor(rounds, |burst| burst.seconds)).target(Target::Ratio(1.25)));
    report.add(Figure::new(name("the raw writer"), "s", floor(rounds, |burst| burst.seconds)));
    report.add(Figure::new(name("create → Ready, p99"), "s", broker(rounds, p99)).over(floor(rounds, p99)));
    report.add(Figure::new(name("API calls an issue"), "", cost(|cost| cost.calls)).target(Target::AtMost(2.1)));
    report
        .add(Figure::new(name("refused API calls"), "", cost(|cost| count(cost.refused))).target(Target::Exactly(0.0)));
    let requests = broker(rounds, |burst| count(burst.requests) / count(number));
    report.add(Figure::new(name("token requests an issue"), "", requests).target(Target::Exactly(1.0)));
    let most = broker(rounds, |burst| count(burst.most_in_flight));
    report.add(Figure::new(name("token requests in flight"), "", most).target(Target::AtMost(32.0)));
    report.add(Figure::new(name("the broker's CPU an issue"), "ms", cost(|cost| cost.cpu)).target(Target::AtMost(1.0)));
    let limit = MEMORY.iter().find(|(size, _)| *size == number).map_or(Target::None, |(_, most)| Target::AtMost(*most));
    report.add(Figure::new(name("peak memory"), "MiB", cost(|cost| cost.memory)).target(limit));
    for kinds in
        broker(rounds, |burst| burst.cost.as_ref().map(|cost| cost.by_kind.clone())).into_iter().flatten().take(1)
    {
        report.note(format!("API calls, N = {number}: {kinds}"));
    }
}

/// Draws the median run of each server.
fn draw(number: usize, rounds: &[Vec<Burst>]) {
    let middle = |server: Server| {
        let of: Vec<_> = rounds.iter().flatten().filter(|burst| burst.server == server).collect();
        let middle = median(&of.iter().map(|burst| burst.seconds).collect::<Vec<_>>());
        of.into_iter().min_by(|a, b| (a.seconds - middle).abs().total_cmp(&(b.seconds - middle).abs())).unwrap()
    };
    let distribution = |server: Server| {
        let waits = sorted(&middle(server).waits);
        let share = |(rank, wait): (usize, &f64)| (*wait, 100.0 * count(rank + 1) / count(waits.len()));
        Line { name: server.name(), points: waits.iter().enumerate().map(share).collect() }
    };
    let lines = [Server::Broker, Server::Raw(32), Server::Raw(64)].map(distribution);
    let title = format!("Create → Ready, {number} at once");
    plot::write(&format!("ready-{number}"), &title, ["seconds", "% of the credentials are Ready"], &lines);

    let renewals = histogram(&middle(Server::Broker).renewals, 10.0);
    let line = Line { name: "renewals planned".to_owned(), points: renewals };
    let title = format!("When the tokens of {number} that were made at once will be renewed");
    plot::write(&format!("jitter-{number}"), &title, ["seconds after the first create", "in 10 s"], &[line]);
}

/// Returns the number of values in each bin.
pub fn histogram(values: &[f64], width: f64) -> Vec<(f64, f64)> {
    let sorted = sorted(values);
    let last = sorted.last().copied().unwrap_or_default();
    let mut bins = vec![];
    let mut start = 0.0;
    while start <= last {
        let inside = sorted.iter().filter(|value| (start..start + width).contains(*value)).count();
        bins.push((start, count(inside)));
        start += width;
    }
    bins
}
