//! Writes Events on credentials and providers.

use std::collections::HashMap;

use k8s_openapi::{
    api::core::v1::ObjectReference,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use parking_lot::Mutex;

use crate::{api::Reason, error::told_by, policy::notices::Notice};

/// Writes Events. kube's recorder takes what has the same reason for a repetition and counts it under the first note; to
/// a person another code, or another account that signed in, is none. So each note has a recorder of its own.
pub struct Events {
    client: Client,
    reporter: Reporter,
    told: Mutex<HashMap<(String, Reason), Told>>,
}

/// The last Event of a reason on an object.
struct Told {
    note: String,
    at: Timestamp,
    recorder: Recorder,
}

/// kube's recorder remembers for six minutes what it has written.
const REMEMBERED: SignedDuration = SignedDuration::from_mins(6);
/// Longest note that the API server takes (`events.k8s.io/v1`).
const NOTE_MAX: usize = 1024;

impl Events {
    /// For this reporter.
    pub fn new(client: Client, reporter: Reporter) -> Self {
        Self { client, reporter, told: Mutex::default() }
    }

    /// Writes an Event at `now`. One that is lost is logged; the status tells the same.
    pub(super) async fn publish(&self, notice: &Notice, object: &ObjectReference, now: Timestamp) {
        let recorder = self.recorder(notice, object, now);
        if let Err(error) = recorder.publish(&event(notice), object).await {
            tracing::warn!(error = told_by(&error), reason = notice.reason.as_str(), "an Event could not be written");
        }
    }

    fn recorder(&self, notice: &Notice, object: &ObjectReference, now: Timestamp) -> Recorder {
        let mut told = self.told.lock();
        told.retain(|_, told| now.duration_since(told.at) < REMEMBERED);
        let key = (object.uid.clone().unwrap_or_default(), notice.reason);
        let known = told.get(&key).filter(|told| told.note == notice.note).map(|told| told.recorder.clone());
        let recorder = known.unwrap_or_else(|| Recorder::new(self.client.clone(), self.reporter.clone()));
        told.insert(key, Told { note: notice.note.clone(), at: now, recorder: recorder.clone() });
        recorder
    }
}

fn event(notice: &Notice) -> Event {
    let note = match notice.note.char_indices().nth(NOTE_MAX - 1) {
        Some((end, _)) => format!("{}…", notice.note.get(..end.saturating_sub(3)).unwrap_or(&notice.note)),
        None => notice.note.clone(),
    };
    Event {
        type_: if notice.warning { EventType::Warning } else { EventType::Normal },
        reason: notice.reason.as_str().to_owned(),
        note: Some(note),
        action: "Reconcile".to_owned(),
        secondary: None,
    }
}
