//! Writes Events on credentials and providers. No reconcile waits for an Event: Events go through a bounded queue. Each
//! namespace and each object has a budget.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, Resource as _,
    api::{Patch, PatchParams, PostParams},
    core::ObjectMeta,
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    admission::{Bucket, Limit},
    api::{MailCredential, Reason, names},
    error::describe,
    metrics::Metrics,
    policy::notices::EventNote,
};

/// Time within which a repeated Event counts in the series of the first.
const REMEMBERED: SignedDuration = SignedDuration::from_mins(6);
/// Maximum number of Events to remember, each with about 300 bytes.
const SERIES: usize = 10_000;
/// Maximum length of a note in bytes (`events.k8s.io/v1`).
const NOTE_MAX: usize = 1024;
/// Maximum length of the object's name in an Event's name: 253 less a point and 17 digits.
const NAME_MAX: usize = 235;
/// Maximum number of Events that wait for their write.
const WAITING: usize = 1_000;
/// Maximum number of Events in a namespace: a burst of 100, then 30 a minute.
const OF_A_NAMESPACE: Limit = Limit::new(30, 100);
/// Maximum number of Events on one object: a burst of 25, then one a minute. After 25 Events, the user knows that the
/// object's condition changes every few seconds.
const OF_AN_OBJECT: Limit = Limit::new(1, 25);
/// The namespace of the Events of cluster-scoped objects.
const CLUSTER_NAMESPACE: &str = "default";
/// Maximum time for which a shutdown waits for unwritten Events.
const FLUSH: Duration = Duration::from_secs(2);
/// Interval at which a shutdown checks for unwritten Events.
const FLUSH_CHECK: Duration = Duration::from_millis(20);

/// The queue of Events.
pub struct Events {
    /// The identity of this replica, as the Events name it.
    instance: String,
    reported: Mutex<SentEvents>,
    queue: mpsc::Sender<Event>,
    /// Number of Events that are not written yet.
    pending: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
    began: Instant,
}

/// Writes the queued Events, in a task of its own.
pub struct EventWriter {
    client: Client,
    queue: mpsc::Receiver<Event>,
    pending: Arc<AtomicUsize>,
}

impl Events {
    /// Creates the queue of a replica with the identity `instance`, and the writer to run.
    #[expect(clippy::disallowed_methods, reason = "the budgets count elapsed time, because the wall clock may jump")]
    pub fn new(client: Client, instance: String, metrics: Arc<Metrics>) -> (Self, EventWriter) {
        let (sender, queue) = mpsc::channel(WAITING);
        let pending = Arc::<AtomicUsize>::default();
        let reported = Mutex::default();
        let events =
            Self { instance, reported, queue: sender, pending: pending.clone(), metrics, began: Instant::now() };
        (events, EventWriter { client, queue, pending })
    }

    /// Emits an Event on a credential.
    pub(super) fn emit(&self, credential: &MailCredential, notice: &EventNote, now: Timestamp) {
        self.publish(notice, &credential.object_ref(&()), now);
    }

    /// Queues an Event. Counts an Event that it drops; the status reports the same.
    pub(super) fn publish(&self, notice: &EventNote, object: &ObjectReference, now: Timestamp) {
        let event = self.reported.lock().event(notice, object, &self.instance, now, self.began.elapsed());
        let Some(event) = event else { return self.metrics.event_dropped() };
        self.pending.fetch_add(1, Ordering::AcqRel);
        if self.queue.try_send(event).is_err() {
            self.pending.fetch_sub(1, Ordering::AcqRel);
            self.metrics.event_dropped();
        }
    }

    /// Waits for unwritten Events, at most for [`FLUSH`].
    pub async fn flush(&self) {
        let written = async {
            while self.pending.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(FLUSH_CHECK).await;
            }
        };
        if tokio::time::timeout(FLUSH, written).await.is_err() {
            tracing::warn!("last Events not written in time");
        }
    }
}

impl EventWriter {
    /// Writes Events until all senders are dropped.
    pub async fn run(mut self) {
        while let Some(event) = self.queue.recv().await {
            if let Err(error) = self.write(&event).await {
                let why = describe(&error);
                tracing::warn!(error = why, reason = event.reason, "Event not written");
            }
            self.pending.fetch_sub(1, Ordering::AcqRel);
        }
    }

    async fn write(&self, event: &Event) -> kube::Result<()> {
        let namespace = event.metadata.namespace.as_deref().unwrap_or(CLUSTER_NAMESPACE);
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let name = event.metadata.name.as_deref().unwrap_or_default();
        if let Some(series) = &event.series {
            let parameters = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
            match api.patch(name, &parameters, &Patch::Merge(json!({"series": series}))).await {
                // The first Event of the series was not written, or was removed.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                written => return written.map(drop),
            }
        }
        api.create(&PostParams::default(), event).await.map(drop)
    }
}

type SeriesKey = (String, Reason);

/// The Events of the last minutes.
#[derive(Default)]
struct SentEvents {
    series: HashMap<SeriesKey, Series>,
    /// Keys in the order of their Events. A key with a later Event occurs again.
    order: VecDeque<(SeriesKey, Timestamp)>,
    budgets: HashMap<Owner, Bucket>,
    /// Number of budgets above which the broker forgets the full ones.
    budgets_max: usize,
    /// Number of Events so far, which distinguishes the names of Events of one moment.
    count: u32,
}

/// Events with the same reason and note on one object.
struct Series {
    name: String,
    note: String,
    first: Timestamp,
    last: Timestamp,
    count: i32,
}

impl SentEvents {
    /// The Event to write at `now`; `None` if the budget of its namespace or object is empty. The budgets count `elapsed`, the
    /// time since the start.
    fn event(
        &mut self,
        notice: &EventNote,
        object: &ObjectReference,
        instance: &str,
        now: Timestamp,
        elapsed: Duration,
    ) -> Option<Event> {
        self.forget(now, elapsed);
        let namespace = object.namespace.clone().unwrap_or_else(|| CLUSTER_NAMESPACE.to_owned());
        let uid = object.uid.clone().unwrap_or_default();
        // Do not remember an object without an Event: thousands of objects may fail at the same time.
        let of_namespace = self.budgets.get(&Owner::Namespace(namespace.clone()));
        if of_namespace.is_some_and(|budget| budget.opens_at() > elapsed) {
            return None;
        }
        // Check the object first, so that an object with too many Events does not use the budget of its namespace.
        for (owner, limit) in
            [(Owner::Object(uid), OF_AN_OBJECT), (Owner::Namespace(namespace.clone()), OF_A_NAMESPACE)]
        {
            let budget = self.budgets.entry(owner).or_insert_with(|| Bucket::new(limit));
            if budget.opens_at() > elapsed {
                return None;
            }
            budget.charge(elapsed);
        }
        let note = note(&notice.note);
        let digest = names::digest([note.as_str()]);
        let key = (object.uid.clone().unwrap_or_default(), notice.reason);
        self.count = self.count.wrapping_add(1);
        // A changed note reports something new to the user: another code to enter, or another account.
        let series = self.series.entry(key.clone()).or_insert_with(|| Series::new(object, &digest, now, self.count));
        if series.note == digest {
            series.count = series.count.saturating_add(1);
        } else {
            *series = Series { count: 1, ..Series::new(object, &digest, now, self.count) };
        }
        series.last = now;
        let event = Event {
            metadata: ObjectMeta {
                namespace: Some(namespace),
                name: Some(series.name.clone()),
                ..ObjectMeta::default()
            },
            action: Some("Reconcile".to_owned()),
            reason: Some(notice.reason.as_str().to_owned()),
            note: Some(note),
            type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_owned()),
            event_time: Some(MicroTime(series.first)),
            regarding: Some(object.clone()),
            reporting_controller: Some(names::MANAGER.to_owned()),
            reporting_instance: Some(instance.to_owned()),
            series: (series.count > 1)
                .then_some(EventSeries { count: series.count, last_observed_time: MicroTime(now) }),
            ..Event::default()
        };
        self.order.push_back((key, now));
        Some(event)
    }

    fn forget(&mut self, now: Timestamp, elapsed: Duration) {
        while let Some((key, at)) = self.order.front() {
            if now.duration_since(*at) < REMEMBERED && self.order.len() <= SERIES {
                break;
            }
            if self.series.get(key).is_some_and(|series| series.last == *at) {
                self.series.remove(key);
            }
            self.order.pop_front();
        }
        if self.budgets.len() > self.budgets_max.max(SERIES) {
            self.budgets.retain(|_, budget| !budget.is_full(elapsed));
            // Otherwise, if many objects had Events in the last minute, the next pass would run at each Event.
            self.budgets_max = 2 * self.budgets.len();
        }
    }
}

impl Series {
    fn new(object: &ObjectReference, note: &str, now: Timestamp, count: u32) -> Self {
        Self { name: name(object, now, count), note: note.to_owned(), first: now, last: now, count: 0 }
    }
}

/// The owner of a budget: a namespace by its name, an object by its uid.
#[derive(PartialEq, Eq, Hash)]
enum Owner {
    Namespace(String),
    Object(String),
}

/// Returns the name of an Event: the object's name, cut to [`NAME_MAX`], and a number that differs for each Event.
fn name(object: &ObjectReference, now: Timestamp, count: u32) -> String {
    let name = object.name.as_deref().unwrap_or(names::MANAGER);
    let head: String = name.chars().take(NAME_MAX).collect();
    format!("{}.{:x}", head.trim_end_matches(['.', '-']), now.as_nanosecond() + i128::from(count))
}

fn note(note: &str) -> String {
    const CUT: char = '…';
    match note.len() {
        0..=NOTE_MAX => note.to_owned(),
        _ => format!("{}{CUT}", &note[..note.floor_char_boundary(NOTE_MAX - CUT.len_utf8())]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn publish(reported: &mut SentEvents, uid: &str, text: &str, second: u64) -> Option<Event> {
        publish_at(reported, uid, text, i64::try_from(second).unwrap(), second)
    }

    /// Publishes at `at(second)` by the wall clock, `elapsed` seconds after the start.
    fn publish_at(reported: &mut SentEvents, uid: &str, text: &str, second: i64, elapsed: u64) -> Option<Event> {
        let notice = EventNote { warning: true, reason: Reason::InvalidClient, note: text.to_owned() };
        let object = ObjectReference {
            namespace: Some("shop".to_owned()),
            name: Some("billing".to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        reported.event(&notice, &object, "replica", at(second), Duration::from_secs(elapsed))
    }

    #[test]
    fn a_repetition_counts_in_the_series_of_the_first_and_another_note_is_none() {
        let mut reported = SentEvents::default();
        let first = publish(&mut reported, "a", "one", 0).unwrap();
        assert_eq!(first.series, None);
        let second = publish(&mut reported, "a", "one", 10).unwrap();
        assert_eq!(second.metadata.name, first.metadata.name);
        assert_eq!(second.series.map(|series| series.count), Some(2));
        let another = publish(&mut reported, "a", "two", 20).unwrap();
        assert_ne!(another.metadata.name, first.metadata.name);
        assert_eq!(another.series, None);
        let other_object = publish(&mut reported, "b", "two", 20).unwrap();
        assert_ne!(other_object.metadata.name, another.metadata.name);
        let later = publish(&mut reported, "a", "two", 20 + REMEMBERED.as_secs().unsigned_abs()).unwrap();
        assert_eq!(later.series, None, "the series has ended");
    }

    #[test]
    fn the_record_of_events_is_bounded_and_evicted_in_the_order_of_time() {
        let mut reported = SentEvents::default();
        for number in 0..SERIES as u64 + 500 {
            publish(&mut reported, &number.to_string(), "one", number / 50);
            reported.budgets.clear();
        }
        assert!(reported.series.len() <= SERIES + 1 && reported.order.len() <= SERIES + 1);
        publish(&mut reported, "last", "one", 1_000_000);
        assert_eq!((reported.series.len(), reported.order.len()), (1, 1));
    }

    #[test]
    fn a_namespace_with_too_many_events_gets_one_now_and_then() {
        let mut reported = SentEvents::default();
        let of = |reported: &mut SentEvents, second, elapsed| {
            let published = |number: &i32| publish_at(reported, &number.to_string(), "one", second, elapsed).is_some();
            (0..1_000).filter(published).count()
        };
        assert_eq!(of(&mut reported, 0, 0), 100);
        assert_eq!(of(&mut reported, 10, 10), 5);
        assert_eq!(of(&mut reported, -100_000, 10), 0, "the clock was set back");
        assert_eq!(of(&mut reported, -99_990, 20), 5, "a clock that was set back stops no Events");
        assert_eq!(of(&mut reported, 100_000, 20), 0, "a clock that was set forward allows none");
        assert_eq!(of(&mut reported, 100_000, 100_000), 100);
    }

    #[test]
    fn an_object_whose_condition_turns_all_the_time_gets_one_event_a_minute() {
        let mut reported = SentEvents::default();
        let texts = ["the token has ended", "the token is good"];
        let written = |reported: &mut SentEvents, seconds: std::ops::Range<u64>| {
            seconds
                .step_by(3)
                .filter(|second| publish(reported, "a", texts[(second % 2) as usize], *second).is_some())
                .count()
        };
        assert_eq!(written(&mut reported, 0..60), 20);
        assert_eq!(written(&mut reported, 60..600), 14, "what is left, and one a minute");
        assert!(publish(&mut reported, "b", "one", 600).is_some(), "another object of the namespace");
    }

    #[test]
    fn the_name_of_an_event_is_valid_whatever_the_name_of_its_object() {
        for object in ["a".repeat(253), format!("{}-{}", "a".repeat(234), "b".repeat(18)), "billing".to_owned()] {
            let reference = ObjectReference { name: Some(object), ..ObjectReference::default() };
            let name = name(&reference, at(0), u32::MAX);
            assert!(name.len() <= 253 && !name.contains("-."), "{name}");
        }
    }

    #[test]
    fn a_note_is_as_long_as_the_api_server_takes() {
        assert_eq!(note("short"), "short");
        let long = note(&"é".repeat(2_000));
        assert!((NOTE_MAX - 2..=NOTE_MAX).contains(&long.len()) && long.ends_with('…'));
    }
}
