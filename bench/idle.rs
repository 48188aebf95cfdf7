//! The broker's activity while all credentials are Ready.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::{
    Plan,
    lab::{Lab, by_kind, writes},
    machine,
    report::{Figure, Report, Target, count},
    usage,
    view::View,
};

/// Pause after a burst, for pending watch events and status writes.
const SETTLE: Duration = Duration::from_secs(5);

pub async fn run(plan: &Plan, report: &mut Report) {
    let number = plan.largest();
    let time = if plan.quick { Duration::from_secs(5) } else { Duration::from_secs(60) };
    let mut lab = Lab::start().await;
    let broker = lab.broker().await;
    let view = View::start(lab.ns.api()).await;
    lab.create("mailbox", number, |manifest| manifest).await;
    view.ready("mailbox", number, Timestamp::UNIX_EPOCH).await;
    drop(view);
    tokio::time::sleep(SETTLE).await;

    let (mut shares, mut written, mut requested) = (vec![], vec![], vec![]);
    for _ in 0..plan.rounds {
        lab.asked();
        lab.provider.reset();
        let before = usage::cpu(broker.id());
        tokio::time::sleep(time).await;
        let used = usage::cpu(broker.id()) - before;
        let asked = lab.asked();
        println!("  idle: {used:?} in {time:?}; {} (load {})", by_kind(&asked), machine::load());
        shares.push(100.0 * used.as_secs_f64() / time.as_secs_f64());
        written.push(count(writes(&asked)));
        requested.push(count(lab.provider.requests().len()));
    }
    let name = |what: &str| format!("{what}, {} s idle, N = {number}", time.as_secs());
    report.add(Figure::new(name("CPU"), "% of a core", shares).target(Target::AtMost(0.1)));
    report.add(Figure::new(name("writes but the lease"), "", written).target(Target::Exactly(0.0)));
    report.add(Figure::new(name("token requests"), "", requested).target(Target::Exactly(0.0)));
}
