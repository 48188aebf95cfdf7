//! A watch of the MailCredentials, with the time of each event.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, ResourceExt as _,
    runtime::watcher::{self, Event, watcher},
};
use mail_token_broker::api::{ConditionType, MailCredential, condition};
use tokio::task::JoinHandle;

/// Time limit of each wait in a run.
const PATIENCE: Duration = Duration::from_secs(900);
/// Interval between two checks. The measured times are the times of the events.
const LOOK: Duration = Duration::from_millis(10);

/// One credential, from its first Ready on.
#[derive(Clone)]
pub struct Seen {
    /// The time at which the broker requested the current token in the Secret.
    pub issued_at: Timestamp,
    /// The time at which the watch first showed this token.
    pub at: Instant,
    /// The renewal time in the status.
    pub renewal: Timestamp,
    /// Seconds by which each renewal was late. Times in a status are whole seconds.
    pub late: Vec<i64>,
    /// Whether the credential was not Ready after it had been Ready.
    pub lapsed: bool,
}

/// A watch that runs until it is dropped.
pub struct View {
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    task: JoinHandle<()>,
}

impl View {
    /// Starts the watch, and returns when it has shown all existing objects.
    pub async fn start(api: Api<MailCredential>) -> Self {
        let seen = Arc::<Mutex<BTreeMap<_, _>>>::default();
        let (complete, completed) = tokio::sync::oneshot::channel();
        let (writer, mut complete) = (seen.clone(), Some(complete));
        let task = tokio::spawn(async move {
            let mut events = watcher(api, watcher::Config::default()).boxed();
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::InitApply(credential) | Event::Apply(credential)) => {
                        note(&mut writer.lock().unwrap(), &credential);
                    }
                    Ok(Event::InitDone) => drop(complete.take().map(|complete| complete.send(()))),
                    Ok(Event::Init | Event::Delete(_)) => {}
                    Err(error) => eprintln!("the watch failed and restarts: {error}"),
                }
            }
        });
        completed.await.unwrap();
        Self { seen, task }
    }

    /// Returns all credentials that were ever Ready, by name.
    pub fn seen(&self) -> MutexGuard<'_, BTreeMap<String, Seen>> {
        self.seen.lock().unwrap()
    }

    /// Waits until this number of credentials with a prefix have a token requested at `since` or later. Returns the times of the events.
    pub async fn ready(&self, prefix: &str, number: usize, since: Timestamp) -> BTreeMap<String, Instant> {
        let begun = Instant::now();
        loop {
            let ready: BTreeMap<_, _> = {
                let seen = self.seen();
                let fresh = seen.iter().filter(|(name, seen)| name.starts_with(prefix) && seen.issued_at >= since);
                fresh.map(|(name, seen)| (name.clone(), seen.at)).collect()
            };
            if ready.len() >= number {
                return ready;
            }
            assert!(begun.elapsed() < PATIENCE, "{} of {number} {prefix}* are Ready", ready.len());
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn note(all: &mut BTreeMap<String, Seen>, credential: &MailCredential) {
    let name = credential.name_any();
    let Some(status) = &credential.status else { return };
    if !condition::is_true(&status.conditions, ConditionType::Ready) {
        if let Some(seen) = all.get_mut(&name) {
            seen.lapsed = true;
        }
        return;
    }
    let Some(token) = &status.token else { return };
    let (issued_at, renewal) = (token.issued_at.0, token.renewal_time.0);
    let new = Seen { issued_at, at: Instant::now(), renewal, late: vec![], lapsed: false };
    let seen = all.entry(name).or_insert_with(|| new.clone());
    if seen.issued_at != issued_at {
        let mut late = std::mem::take(&mut seen.late);
        late.push(issued_at.as_second() - seen.renewal.as_second());
        *seen = Seen { late, lapsed: seen.lapsed, ..new };
    }
}
