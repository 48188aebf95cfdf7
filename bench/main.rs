//! `make bench`: measures the broker and a raw writer that makes only the same calls, on a real etcd and kube-apiserver.
//! `docs/performance.md` explains the measurements.
//!
//! Environment variables: `ONLY` (names of scenarios), `N` (numbers of credentials, "1000 5000"), `ROUNDS` (3), `QUICK`
//! (1: every scenario once, with small numbers, as a trial).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the benchmark")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time, and the raw writer has its own client")]
#![allow(clippy::print_stdout, reason = "the benchmark prints its results")]

mod burst;
mod cold;
mod create;
mod hanging;
mod idle;
mod lab;
mod machine;
mod memory;
mod paced;
mod plot;
mod probe;
mod provider;
mod raw;
mod renewals;
mod report;
mod restart;
mod scale;
mod share;
mod usage;
mod view;

use std::env;

use futures::{FutureExt as _, future::LocalBoxFuture};

use report::Report;

/// The extent of the measurements.
pub struct Plan {
    /// Numbers of credentials, in ascending order.
    pub sizes: Vec<usize>,
    /// Numbers of credentials of the part `scale`, in ascending order.
    pub many: Vec<usize>,
    /// Number of runs of each kind.
    pub rounds: usize,
    /// Whether this is only a trial, not a measurement.
    pub quick: bool,
}

impl Plan {
    fn from_environment() -> Self {
        let quick = env::var("QUICK").is_ok_and(|value| value == "1");
        let (sizes, many, rounds) = if quick { ("50", "100", 1) } else { ("1000 5000", "10000 50000", 3) };
        let numbers = |usual: &str| {
            let text = env::var("N").unwrap_or_else(|_| usual.to_owned());
            let mut numbers: Vec<usize> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
            numbers.sort_unstable();
            numbers
        };
        let (sizes, many) = (numbers(sizes), numbers(many));
        let rounds = env::var("ROUNDS").map_or(rounds, |rounds| rounds.parse().unwrap());
        assert!(!sizes.is_empty() && rounds > 0, "N and ROUNDS must not be empty");
        Self { sizes, many, rounds, quick }
    }

    /// Returns the largest number of credentials.
    pub fn largest(&self) -> usize {
        *self.sizes.last().unwrap()
    }
}

type Scenario = for<'a> fn(&'a Plan, &'a mut Report) -> LocalBoxFuture<'a, ()>;

const SCENARIOS: [(&str, Scenario); 11] = [
    ("create", |plan, report| create::run(plan, report).boxed_local()),
    ("cold", |plan, report| cold::run(plan, report).boxed_local()),
    ("paced", |plan, report| paced::run(plan, report).boxed_local()),
    ("hanging", |plan, report| hanging::run(plan, report).boxed_local()),
    ("renewals", |plan, report| renewals::run(plan, report).boxed_local()),
    ("idle", |plan, report| idle::run(plan, report).boxed_local()),
    ("restart", |plan, report| restart::run(plan, report).boxed_local()),
    ("memory", |plan, report| memory::run(plan, report).boxed_local()),
    ("probe", |plan, report| probe::run(plan, report).boxed_local()),
    ("share", |plan, report| share::run(plan, report).boxed_local()),
    ("scale", |plan, report| scale::run(plan, report).boxed_local()),
];

#[tokio::main]
async fn main() {
    // Without this hook, the process would continue after a task has failed.
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::exit(1);
    }));
    let plan = Plan::from_environment();
    let only = env::var("ONLY").unwrap_or_default();
    let only: Vec<_> = only.split_whitespace().collect();
    for name in &only {
        let known = SCENARIOS.map(|(name, _)| name);
        assert!(known.contains(name), "ONLY={name}: there are {}", known.join(", "));
    }
    let mut report = Report::default();
    let build =
        if cfg!(debug_assertions) { "debug build: these figures do not show the speed" } else { "release build" };
    report.condition(build);
    machine::machine().into_iter().for_each(|line| report.condition(line));
    for (name, scenario) in SCENARIOS {
        if only.is_empty() || only.contains(&name) {
            println!("\n== {name}");
            scenario(&plan, &mut report).await;
        }
    }
    machine::occupation().into_iter().for_each(|line| report.condition(format!("at the end, {line}")));
    report.finish(&report::folder());
}
