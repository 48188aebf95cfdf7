//! Renewals at a steady rate: tokens with a lifetime of a minute, issued one after the other.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

use crate::{
    Plan,
    create::histogram,
    lab::Lab,
    machine,
    plot::{self, Line},
    report::{Figure, Report, Target, count},
    usage,
    view::View,
};

/// Renewals a second, a token's lifetime in seconds, and the seconds in which renewals are counted.
struct Pace {
    rate: u64,
    lifetime: u64,
    measured: u64,
}

impl Pace {
    /// Returns the seconds from one renewal to the next: half the lifetime, less a jitter of up to a tenth.
    fn period(&self) -> u64 {
        self.lifetime * 9 / 20
    }
}

/// Tolerance in seconds: a status has whole seconds, so a renewal at the end of one second may be requested in the next.
const LATE: i64 = 1;

pub async fn run(plan: &Plan, report: &mut Report) {
    let pace = match plan.quick {
        true => Pace { rate: 10, lifetime: 20, measured: 10 },
        false => Pace { rate: 100, lifetime: 60, measured: 60 },
    };
    let Pace { rate, lifetime, measured } = pace;
    let number = usize::try_from(rate * pace.period()).unwrap();
    let (mut shares, mut rates, mut late, mut lapsed, mut calls) = (vec![], vec![], vec![], vec![], vec![]);
    let mut lines = vec![];
    for round in 0..plan.rounds {
        let mut lab = Lab::start().await;
        lab.provider.issue_for(lifetime);
        let mut broker = lab.broker().await;
        let view = View::start(lab.ns.api()).await;
        lab.create_paced("mailbox", number, Duration::from_secs(1) / u32::try_from(rate).unwrap()).await;
        view.ready("mailbox", number, Timestamp::UNIX_EPOCH).await;
        tokio::time::sleep(Duration::from_secs(pace.period())).await;

        lab.provider.reset();
        lab.asked();
        view.seen().values_mut().for_each(|seen| seen.late.clear());
        let (before, begun) = (usage::cpu(broker.id()), Instant::now());
        tokio::time::sleep(Duration::from_secs(measured)).await;
        let elapsed = begun.elapsed().as_secs_f64();
        let used = usage::cpu(broker.id()) - before;
        let requests = lab.provider.requests();
        let asked = lab.asked();
        shares.push(100.0 * used.as_secs_f64() / elapsed);
        rates.push(count(requests.len()) / elapsed);
        calls.push(count(asked.len()) / count(requests.len()));
        {
            let seen = view.seen();
            late.push(count(seen.values().flat_map(|seen| &seen.late).filter(|late| **late > LATE).count()));
            lapsed.push(count(seen.values().filter(|seen| seen.lapsed).count()));
        }
        println!("  {:.1} renewals a second, {used:?} CPU (load {})", rates[round], machine::load());
        let at: Vec<_> = requests.iter().map(|at| at.duration_since(begun).as_secs_f64()).collect();
        lines.push(Line { name: format!("run {}", round + 1), points: histogram(&at, 1.0) });
        drop(view);
        broker.terminate().await;
    }
    // Drop the incomplete last second.
    for line in &mut lines {
        line.points.pop();
    }
    let title = format!("Renewals of {number} tokens that live for {lifetime} s");
    plot::write("renewals", &title, ["seconds", "token requests in each second"], &lines);

    let name = |what: &str| format!("{rate} renewals a second: {what}");
    report.add(Figure::new(name("renewals"), "a second", rates));
    report.add(Figure::new(name("the broker's CPU"), "% of a core", shares).target(Target::AtMost(25.0)));
    report.add(Figure::new(name("late by more than 1 s"), "", late).target(Target::Exactly(0.0)));
    report.add(Figure::new(name("were not Ready"), "", lapsed).target(Target::Exactly(0.0)));
    report.add(Figure::new(name("API calls a renewal"), "", calls).target(Target::AtMost(2.1)));
}
