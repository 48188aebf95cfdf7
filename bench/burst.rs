//! Many credentials at the same time, served by the broker or by the raw writer.

use std::{collections::BTreeMap, time::Instant};

use k8s_openapi::jiff::Timestamp;

use crate::{
    lab::{Lab, by_kind},
    raw::RawWriter,
    report::count,
    usage,
    view::View,
};

/// The program that serves the credentials of a burst.
#[derive(Clone, Copy, PartialEq)]
pub enum Server {
    Broker,
    /// The raw writer, with this number of workers.
    Raw(usize),
}

impl Server {
    /// Returns all three servers. Each round begins with another server, so that the order favours none.
    pub fn in_turn(round: usize) -> [Self; 3] {
        let mut all = [Self::Raw(32), Self::Broker, Self::Raw(64)];
        all.rotate_left(round % 3);
        all
    }

    /// Returns the name in the legend.
    pub fn name(self) -> String {
        match self {
            Self::Broker => "broker".to_owned(),
            Self::Raw(workers) => format!("raw writer, {workers}"),
        }
    }
}

/// The measurements of a burst.
pub struct Burst {
    /// The server of the burst.
    pub server: Server,
    /// Seconds from the first create to the last Ready.
    pub seconds: f64,
    /// Seconds from each create to Ready.
    pub waits: Vec<f64>,
    /// Number of token requests.
    pub requests: usize,
    /// Maximum number of concurrent token requests.
    pub most_in_flight: usize,
    /// Measurements of the broker; `None` for the raw writer.
    pub cost: Option<Cost>,
    /// Renewal times in seconds after the first create.
    pub renewals: Vec<f64>,
}

/// The broker's cost of a burst.
pub struct Cost {
    /// API server requests for one credential.
    pub calls: f64,
    /// API server requests by verb and resource.
    pub by_kind: String,
    /// Refused API server requests.
    pub refused: usize,
    /// CPU for one credential, milliseconds.
    pub cpu: f64,
    /// Peak resident memory, MiB.
    pub memory: f64,
}

/// Creates this number of credentials and waits until all are Ready.
pub async fn burst(lab: &mut Lab, server: Server, number: usize) -> Burst {
    let mut broker = None;
    let mut writer = None;
    match server {
        Server::Broker => broker = Some(lab.broker().await),
        Server::Raw(workers) => writer = Some(RawWriter::start(&lab.ns, &lab.provider, workers)),
    }
    let view = View::start(lab.ns.api()).await;
    lab.provider.reset();
    lab.asked();
    let before = broker.as_ref().map(|broker| usage::cpu(broker.id()));

    let (begun, clock) = (Instant::now(), Timestamp::now());
    let created = lab.create("mailbox", number, |manifest| manifest).await;
    let ready = view.ready("mailbox", number, Timestamp::UNIX_EPOCH).await;

    let cost = broker.as_ref().zip(before).map(|(broker, before)| {
        let asked = lab.asked();
        Cost {
            calls: count(asked.len()) / count(number),
            by_kind: by_kind(&asked),
            refused: asked.iter().filter(|event| event.code >= 400).count(),
            cpu: (usage::cpu(broker.id()) - before).as_secs_f64() * 1_000.0 / count(number),
            memory: usage::peak_memory(broker),
        }
    });
    let renewals = view.seen().values().map(|seen| seen.renewal.duration_since(clock).as_secs_f64()).collect();
    let burst = Burst {
        server,
        seconds: ready.values().max().unwrap().duration_since(begun).as_secs_f64(),
        waits: waits(&created, &ready),
        requests: lab.provider.requests().len(),
        most_in_flight: lab.provider.most_in_flight(),
        cost,
        renewals,
    };
    drop((view, writer));
    if let Some(mut broker) = broker {
        broker.terminate().await;
    }
    lab.clear().await;
    burst
}

/// Returns the seconds from create to Ready of each credential.
pub fn waits(asked: &BTreeMap<String, Instant>, ready: &BTreeMap<String, Instant>) -> Vec<f64> {
    asked.iter().map(|(name, at)| ready[name].saturating_duration_since(*at).as_secs_f64()).collect()
}

/// Returns the better value of the two raw writers in each round.
pub fn floor(rounds: &[Vec<Burst>], value: impl Fn(&Burst) -> f64 + Copy) -> Vec<f64> {
    let raw = |round: &Vec<Burst>| {
        round.iter().filter(|burst| burst.server != Server::Broker).map(value).fold(f64::MAX, f64::min)
    };
    rounds.iter().map(raw).collect()
}

/// Returns the broker's value in each round.
pub fn broker<T>(rounds: &[Vec<Burst>], value: impl Fn(&Burst) -> T) -> Vec<T> {
    rounds.iter().flatten().filter(|burst| burst.server == Server::Broker).map(value).collect()
}
