//! Objects that exist but do not parse: the CRDs of another version accepted content that this version does not know.
//! For the broker such an object has no spec, and its status reports the problem.

use std::collections::HashMap;

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{DynamicObject, ObjectMeta},
};
use parking_lot::Mutex;
use serde_json::json;

use crate::{
    api::{names, reference::ObjectKey},
    error::describe,
    policy::unreadable::{ObjectKind, conditions, message},
};

/// Maximum number of statuses that one call of [`Unreadable::report`] writes.
const AT_ONCE: usize = 20;
/// Maximum number of objects to remember. The broker neither uses nor reports further objects.
const REMEMBERED: usize = 1_000;

/// The objects that do not parse.
#[derive(Default)]
pub struct Unreadable(Mutex<HashMap<(ObjectKind, ObjectKey), Record>>);

struct Record {
    uid: String,
    resource_version: String,
    generation: i64,
    error: String,
    /// Whether the status reports the problem, or the API server refuses the status.
    reported: bool,
}

impl Unreadable {
    /// Records an object that does not parse. An event about the same generation only updates the version.
    pub fn note(&self, kind: ObjectKind, key: ObjectKey, meta: &ObjectMeta, error: String) {
        let mut records = self.0.lock();
        let uid = meta.uid.clone().unwrap_or_default();
        let (generation, resource_version) =
            (meta.generation.unwrap_or_default(), meta.resource_version.clone().unwrap_or_default());
        let full = records.len() >= REMEMBERED;
        let known = records.get_mut(&(kind, key.clone()));
        if let Some(known) = known.filter(|known| known.uid == uid && known.generation == generation) {
            known.resource_version = resource_version;
            return;
        }
        let error: String = error.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        tracing::warn!(
            kind = %kind.as_str(),
            namespace = key.0,
            name = key.1,
            "object not used: it does not parse (was it made with another version of the CRDs?): {error}"
        );
        if !full {
            records.insert((kind, key), Record { uid, resource_version, generation, error, reported: false });
        }
    }

    /// Removes an object that now parses or no longer exists.
    pub fn forget(&self, kind: ObjectKind, key: &ObjectKey) {
        let mut records = self.0.lock();
        if !records.is_empty() {
            records.remove(&(kind, key.clone()));
        }
    }

    /// Whether an object with this name exists but does not parse.
    pub fn exists(&self, kind: ObjectKind, key: &ObjectKey) -> bool {
        self.0.lock().contains_key(&(kind, key.clone()))
    }

    /// Returns why an object does not parse and how to fix it; `None` if the object parses or does not exist.
    pub fn why(&self, kind: ObjectKind, key: &ObjectKey) -> Option<String> {
        let records = self.0.lock();
        Some(message(kind, key, &records.get(&(kind, key.clone()))?.error))
    }

    /// Writes the problem into the status of objects that do not parse, once for each generation.
    pub async fn report(&self, client: &Client, now: Timestamp) {
        let due: Vec<_> = {
            let records = self.0.lock();
            let due = records.iter().filter(|(_, record)| !record.reported).take(AT_ONCE);
            due.map(|((kind, key), record)| (*kind, key.clone(), status(*kind, key, record, now))).collect()
        };
        for (kind, key, body) in due {
            let resource = kind.resource();
            let api: Api<DynamicObject> = match key.0.as_str() {
                "" => Api::all_with(client.clone(), &resource),
                namespace => Api::namespaced_with(client.clone(), namespace, &resource),
            };
            // Apply with the field manager of a provider's status, so that the next status of the provider removes
            // these fields.
            let parameters = PatchParams::apply(names::MANAGER).force();
            let settled = match api.patch_status(&key.1, &parameters, &Patch::Apply(&body)).await {
                Ok(_) => true,
                // The object has changed, or the API server is not available. The next call has the newer version.
                Err(kube::Error::Api(status)) if status.code == 409 => false,
                Err(kube::Error::Api(status)) if status.code < 500 => {
                    tracing::warn!(
                        kind = kind.as_str(),
                        namespace = key.0,
                        name = key.1,
                        "status of an object that does not parse not written: {} ({})",
                        status.message,
                        status.code
                    );
                    true
                }
                Err(error) => {
                    tracing::debug!(error = describe(&error), "status not written");
                    false
                }
            };
            if let Some(record) = self.0.lock().get_mut(&(kind, key)) {
                record.reported |= settled;
            }
        }
    }
}

/// Returns the status to apply to the object, with the version that the watch showed.
fn status(kind: ObjectKind, key: &ObjectKey, record: &Record, now: Timestamp) -> serde_json::Value {
    let conditions = conditions(kind, key, &record.error, record.generation, now);
    json!({
        "apiVersion": kind.resource().api_version,
        "kind": kind.as_str(),
        "metadata": {"name": key.1, "uid": record.uid, "resourceVersion": record.resource_version},
        "status": {"observedGeneration": record.generation, "conditions": conditions},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::credential::ProviderKind;

    fn meta(uid: &str, generation: i64, version: &str) -> ObjectMeta {
        ObjectMeta {
            uid: Some(uid.to_owned()),
            generation: Some(generation),
            resource_version: Some(version.to_owned()),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn an_object_is_reported_once_for_each_generation() {
        let (unreadable, kind) = (Unreadable::default(), ObjectKind::Provider(ProviderKind::MailProvider));
        let key: ObjectKey = ("shop".to_owned(), "m365".to_owned());
        let reported = |reported: Option<bool>| {
            let mut records = unreadable.0.lock();
            let record = records.get_mut(&(kind, key.clone())).unwrap();
            record.reported = reported.unwrap_or(record.reported);
            (record.reported, record.resource_version.clone())
        };
        unreadable.note(kind, key.clone(), &meta("a", 1, "10"), "unknown variant `x\ny`".to_owned());
        assert!(!reported(Some(true)).1.is_empty());
        // The watch shows the status that the broker has written.
        unreadable.note(kind, key.clone(), &meta("a", 1, "11"), String::new());
        assert_eq!(reported(None), (true, "11".to_owned()));
        let why = unreadable.why(kind, &key).unwrap();
        assert!(why.contains("`x y`") && why.contains("kubectl -n shop edit mailprovider m365"), "{why}");
        for changed in [meta("a", 2, "12"), meta("b", 2, "13")] {
            unreadable.note(kind, key.clone(), &changed, String::new());
            assert!(!reported(None).0);
            reported(Some(true));
        }
        unreadable.forget(kind, &key);
        assert_eq!(unreadable.why(kind, &key), None);
    }
}
