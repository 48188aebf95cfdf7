//! The effect of K credentials of a provider that never responds on other credentials.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::{
    Plan,
    burst::waits,
    lab::Lab,
    machine,
    provider::Provider,
    report::{Figure, Report, Target, median, quantile},
    view::View,
};

/// Interval between two creations of other credentials: 20 a second.
const EVERY: Duration = Duration::from_millis(50);
/// Time until the hanging requests are in flight.
const UNDER_WAY: Duration = Duration::from_secs(2);

pub async fn run(plan: &Plan, report: &mut Report) {
    let (hanging, others): (&[usize], usize) = if plan.quick { (&[0, 10], 40) } else { (&[0, 1, 10, 60, 500], 600) };
    let mut runs = vec![vec![]; hanging.len()];
    let mut middles = vec![vec![]; hanging.len()];
    for _ in 0..plan.rounds {
        for (place, number) in hanging.iter().copied().enumerate() {
            // Each number has its own API server, because an API server becomes slower with its content.
            let lab = Lab::start().await;
            let dead = Provider::start();
            lab.serve("dead", &dead, &dead.hanging_url()).await;
            let mut broker = lab.broker().await;
            let view = View::start(lab.ns.api()).await;
            lab.create("hanging", number, |manifest| manifest.set("spec.providerRef.name", "dead")).await;
            tokio::time::sleep(UNDER_WAY).await;
            let asked = lab.create_paced("other", others, EVERY).await;
            let ready = view.ready("other", others, Timestamp::UNIX_EPOCH).await;
            let waits = waits(&asked, &ready);
            let p99 = quantile(&waits, 0.99) * 1_000.0;
            println!("  {number} hang: the others' p99 {p99:.1} ms (load {})", machine::load());
            runs[place].push(p99);
            middles[place].push(median(&waits) * 1_000.0);
            drop(view);
            broker.kill();
        }
    }
    let (floor, middle) = (runs[0].clone(), middles[0].clone());
    for ((number, runs), middles) in hanging.iter().zip(runs).zip(middles) {
        let p99 = Figure::new(format!("{number} hang: the others' p99"), "ms", runs);
        report.add(if *number == 0 { p99 } else { p99.over(floor.clone()).target(Target::Ratio(1.1)) });
        let p50 = Figure::new(format!("{number} hang: the others' p50"), "ms", middles);
        report.add(if *number == 0 { p50 } else { p50.over(middle.clone()) });
    }
}
