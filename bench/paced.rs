//! Five creations a second: the time to Ready without other load.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::{
    Plan,
    burst::waits,
    lab::Lab,
    machine,
    raw::RawWriter,
    report::{Figure, Report, Target, count, quantile},
    view::View,
};

const EVERY: Duration = Duration::from_millis(200);

pub async fn run(plan: &Plan, report: &mut Report) {
    let number = if plan.quick { 10 } else { 200 };
    let mut ours = vec![];
    let mut raw = vec![];
    let mut requests = vec![];
    for round in 0..plan.rounds {
        let mut lab = Lab::start().await;
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                let writer = RawWriter::start(&lab.ns, &lab.provider, 32);
                raw.push(paced(&mut lab, number).await);
                drop(writer);
            } else {
                let mut broker = lab.broker().await;
                lab.provider.reset();
                ours.push(paced(&mut lab, number).await);
                requests.push(count(lab.provider.requests().len()) / count(number));
                broker.terminate().await;
            }
            lab.clear().await;
        }
    }
    for (share, name, above) in [(0.5, "p50", 5.0), (0.99, "p99", 20.0)] {
        let of = |runs: &[Vec<f64>]| runs.iter().map(|waits| quantile(waits, share) * 1_000.0).collect::<Vec<_>>();
        let figure = Figure::new(format!("paced, 5 a second: create → Ready, {name}"), "ms", of(&ours));
        report.add(figure.over(of(&raw)).target(Target::Above(above)));
        report.add(Figure::new(format!("paced, 5 a second: the raw writer, {name}"), "ms", of(&raw)));
    }
    report.add(Figure::new("paced: token requests an issue", "", requests).target(Target::Exactly(1.0)));
    println!("  load {}", machine::load());
}

async fn paced(lab: &mut Lab, number: usize) -> Vec<f64> {
    let view = View::start(lab.ns.api()).await;
    let asked = lab.create_paced("mailbox", number, EVERY).await;
    let ready = view.ready("mailbox", number, Timestamp::UNIX_EPOCH).await;
    waits(&asked, &ready)
}
