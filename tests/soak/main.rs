//! `make soak` kills the broker at random moments during continuous renewals. Then it measures the broker's memory
//! during many renewals. Both use a debug build. The soak test fails in four cases: a sign-in was lost other than by a
//! kill between a request and the store of its response; a credential was ready with a token that its provider did not
//! issue for it; the broker sent a refresh token twice without need; memory grew.
//!
//! Environment variables: `KILLS` (200, over all servers; 0: none), `RENEWALS` (10000; 0: none), `SEED` (of the
//! moments).

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "what fails here ends the soak, in real time")]
#![allow(clippy::print_stdout, reason = "it prints its results")]

mod kills;
mod memory;
mod servers;
mod table;

use std::{env, process::ExitCode, str::FromStr, time::SystemTime};

use kills::Tally;
use mailtoken_testkit::{Cluster, fault_log::tried};
use servers::{Keycloak, Patience, Server};

/// A generator of random numbers with a seed (SplitMix64).
pub struct Chance(u64);

impl Chance {
    /// Returns a number from `low` to below `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        low + (mixed ^ (mixed >> 31)) % (high - low)
    }
}

fn from_environment<T: FromStr>(name: &str, default: T) -> T {
    let read = |text: String| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number"));
    env::var(name).map_or(default, read)
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let wrong = runtime.block_on(soak());
    for one in &wrong {
        println!("WRONG: {one}");
    }
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the soak test, and returns the failures.
async fn soak() -> Vec<String> {
    let (kills, renewals) = (from_environment("KILLS", 200_usize), from_environment("RENEWALS", 10_000_usize));
    let by_time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let seed = from_environment("SEED", by_time);
    println!("{kills} kills at moments of SEED={seed}, then {renewals} renewals; a debug build");
    let components: &[&str] = if kills > 0 { &["control-plane", "keycloak"] } else { &["control-plane"] };
    let cluster = Cluster::alone(components);
    let mut wrong = vec![];
    if kills > 0 {
        let tallies = killed(&cluster, kills, Chance(seed)).await;
        println!("\n{}", table::of(&tallies));
        for tally in &tallies {
            tried("soak", tally.kills, &tally.lost());
        }
        wrong.extend(tallies.into_iter().flat_map(|tally| tally.wrong));
    }
    if renewals > 0 {
        wrong.extend(memory::soak(&cluster, renewals).await.err());
    }
    wrong
}

async fn killed(cluster: &Cluster, kills: usize, mut chance: Chance) -> Vec<Tally> {
    let servers: [Box<dyn Server>; 3] = [
        Box::new(Keycloak::of(cluster)),
        Box::new(Patience::start("strict, grace 1", 1)),
        Box::new(Patience::start("strict, no grace", 0)),
    ];
    let mut tallies = vec![];
    for (number, server) in servers.iter().enumerate() {
        let share = kills / servers.len() + usize::from(number < kills % servers.len());
        tallies.push(kills::soak(cluster, server.as_ref(), share, &mut chance).await);
    }
    tallies
}
