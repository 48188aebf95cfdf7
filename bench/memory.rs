//! Memory without credentials, and with many foreign Secrets. `create` measures memory with many credentials.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::api::PostParams;
use serde_json::json;

use crate::{
    Plan,
    lab::Lab,
    report::{Figure, Report, Target},
    usage,
    view::View,
};

/// Pause after a start, until the broker has finished its own work.
const SETTLE: Duration = Duration::from_secs(3);

pub async fn run(plan: &Plan, report: &mut Report) {
    let (number, unrelated) = (plan.largest(), if plan.quick { 500 } else { 30_000 });
    let (mut empty, mut without, mut with) = (vec![], vec![], vec![]);
    let mut lab = Lab::start().await;
    for _ in 0..plan.rounds {
        empty.push(peak(&lab).await);
    }
    let mut broker = lab.broker().await;
    let view = View::start(lab.ns.api()).await;
    lab.create("mailbox", number, |manifest| manifest).await;
    view.ready("mailbox", number, Timestamp::UNIX_EPOCH).await;
    broker.terminate().await;
    for _ in 0..plan.rounds {
        without.push(peak(&lab).await);
    }
    make(&lab, unrelated).await;
    for _ in 0..plan.rounds {
        with.push(peak(&lab).await);
    }
    lab.clear().await;
    report.add(Figure::new("peak memory, N = 0", "MiB", empty).target(Target::AtMost(15.0)));
    let name = format!("peak memory after a start, N = {number}");
    report.add(Figure::new(&name, "MiB", without.clone()));
    let with = Figure::new(format!("{name}, and {unrelated} other Secrets"), "MiB", with);
    report.add(with.over(without).target(Target::Above(5.0)));
}

/// Returns the peak memory of a broker that starts and has no work.
async fn peak(lab: &Lab) -> f64 {
    let mut broker = lab.broker().await;
    tokio::time::sleep(SETTLE).await;
    let peak = usage::peak_memory(&broker);
    println!("  peak memory {peak:.1} MiB");
    broker.terminate().await;
    peak
}

/// Creates foreign Secrets of a usual size.
async fn make(lab: &Lab, number: usize) {
    let one = |number: usize| {
        let api = lab.ns.api::<Secret>();
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": format!("unrelated-{number}")}, "stringData": {"password": "x".repeat(1_000)},
        }))
        .unwrap();
        async move { api.create(&PostParams::default(), &secret).await.map(drop) }
    };
    stream::iter((0..number).map(one)).buffer_unordered(32).try_collect::<()>().await.unwrap();
}
