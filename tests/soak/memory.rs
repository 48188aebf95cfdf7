//! Checks that resident memory does not grow during many renewals.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use mail_token_broker::api::MailCredential;

use mailtoken_testkit::{Answer, Broker, Cluster, Idp, credential, fault_log::tried, wait::until_in};

const CREDENTIALS: usize = 500;
/// Lifetime of access tokens in seconds. The broker renews a token after half of it.
const LIFETIME: u64 = 30;
/// Time between two readings of the memory.
const INTERVAL: Duration = Duration::from_millis(500);
/// Maximum growth in MiB from the second tenth to the last tenth of the renewals: the allocator's variation.
const TOLERANCE: f64 = 4.0;
/// Delay of a renewal after which the broker counts as too slow.
const STANDSTILL: Duration = Duration::from_secs(60);

/// Makes the broker renew `renewals` tokens, and checks its memory.
pub async fn soak(cluster: &Cluster, renewals: usize) -> Result<(), String> {
    let ns = cluster.namespace().await;
    let idp = Idp::start();
    idp.answer(Answer::token(LIFETIME));
    ns.provider(&idp).await;
    let mut broker = Broker::settings(&ns).env("RUST_LOG", "info").start().await;
    println!("\nmemory: {CREDENTIALS} credentials, tokens for {LIFETIME} s; {:.1} MiB before", resident(&broker));
    let ns = &ns;
    let apply = |number: usize| async move { ns.apply(credential(&format!("mailbox-{number}"))).await };
    stream::iter(0..CREDENTIALS).map(apply).buffer_unordered(8).for_each(async |_| ()).await;
    until_in(STANDSTILL * 2, "all have a token", async || {
        let all = ns.api::<MailCredential>().list(&Default::default()).await.unwrap();
        let ready = |one: &&MailCredential| one.status.as_ref().is_some_and(|status| status.token.is_some());
        match all.iter().filter(ready).count() {
            CREDENTIALS => Ok(()),
            number => Err(format!("{number} have")),
        }
    })
    .await;
    let first = idp.issued().len();
    let start = resident(&broker);
    let (mut tenths, mut done, mut moved) = (vec![vec![]; 10], 0, Instant::now());
    while done < renewals {
        tokio::time::sleep(INTERVAL).await;
        let now = idp.issued().len() - first;
        if now > done {
            moved = Instant::now();
        }
        let (before, after) = (done * 10 / renewals, (now * 10 / renewals).min(10));
        tenths[after.min(9)].push(resident(&broker));
        done = now;
        if after > before {
            println!("memory: {done} of {renewals} renewals, {:.1} MiB", resident(&broker));
        }
        if moved.elapsed() > STANDSTILL {
            return Err(format!("no token was renewed for {STANDSTILL:?}, after {done}"));
        }
    }
    let end = resident(&broker);
    let medians: Vec<_> = tenths.into_iter().map(median).collect();
    let shown: Vec<_> = medians.iter().map(|value| format!("{value:.1}")).collect();
    println!(
        "\nresident memory, MiB, of the debug build with {CREDENTIALS} credentials over {done} renewals\n  all ready {start:.1}, \
         median of each tenth {}, end {end:.1}",
        shown.join(" ")
    );
    assert!(broker.terminate().await.success());
    let (early, late) = (medians[1], medians[9]);
    if late > early + TOLERANCE {
        return Err(format!("memory grew from {early:.1} to {late:.1} MiB"));
    }
    tried("memory", done, "nothing");
    Ok(())
}

/// Returns the resident memory in MiB.
fn resident(broker: &Broker) -> f64 {
    broker.memory("VmRSS") as f64 / f64::from(1 << 20)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
