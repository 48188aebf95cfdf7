//! An object as the API server sends it. While the broker parses the object, it drops the metadata that the stores do
//! not keep. So a page of a list never contains the labels and managed fields of all its objects in memory.

use std::{borrow::Cow, collections::BTreeMap, marker::PhantomData};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::{Resource, core::ObjectMeta};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::stores::slim::Slim;

/// Maximum length in characters of the description why an object does not parse.
const ERROR_MAX: usize = 300;

/// An object of a list or a watch, only with the metadata that `S` keeps.
#[derive(Clone, Debug)]
pub(super) struct Incoming<K, S>(pub(super) Read<K>, pub(super) PhantomData<S>);

/// The result of parsing an object.
#[derive(Clone, Debug)]
pub(super) enum Read<K> {
    /// The object parses.
    Object(K),
    /// The object does not parse. Contains the metadata and the error.
    Unreadable(Box<ObjectMeta>, String),
}

/// The parts of any object.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    metadata: Metadata,
    spec: Option<Value>,
    status: Option<Value>,
}

/// The fields of [`ObjectMeta`] that the stores of some kind keep.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    finalizers: Option<Vec<String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

impl<K, S> Incoming<K, S> {
    pub(super) const fn new(read: Read<K>) -> Self {
        Self(read, PhantomData)
    }
}

impl<'de, K: Resource + DeserializeOwned, S: Slim> Deserialize<'de> for Incoming<K, S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Parts { metadata, spec, status } = Parts::deserialize(deserializer)?;
        let mut metadata = ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            generation: metadata.generation,
            creation_timestamp: metadata.creation_timestamp,
            deletion_timestamp: metadata.deletion_timestamp,
            labels: metadata.labels,
            annotations: metadata.annotations,
            finalizers: metadata.finalizers,
            owner_references: metadata.owner_references,
            ..ObjectMeta::default()
        };
        S::slim(&mut metadata);
        let parts = [("metadata", Some(Value::Object(Map::new()))), ("spec", spec), ("status", status)];
        let object: Map<_, _> = parts.into_iter().filter_map(|(name, part)| Some((name.to_owned(), part?))).collect();
        let read = match K::deserialize(Value::Object(object)) {
            Ok(mut object) => {
                *object.meta_mut() = metadata;
                Read::Object(object)
            }
            Err(error) => Read::Unreadable(Box::new(metadata), error.to_string().chars().take(ERROR_MAX).collect()),
        };
        Ok(Self::new(read))
    }
}

impl<K: Resource, S> Resource for Incoming<K, S> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::kind(dynamic)
    }

    fn group(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::group(dynamic)
    }

    fn version(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::version(dynamic)
    }

    fn plural(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::plural(dynamic)
    }

    fn metadata_api() -> bool {
        K::metadata_api()
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Read::Object(object) => object.meta(),
            Read::Unreadable(meta, _) => meta,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Read::Object(object) => object.meta_mut(),
            Read::Unreadable(meta, _) => meta,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Secret;
    use kube::core::PartialObjectMeta;
    use mailtoken_core::fixtures;
    use serde_json::json;

    use crate::{
        api::{MailCredential, names},
        stores::slim,
    };

    use super::*;

    fn read(object: &Value) -> Read<MailCredential> {
        serde_json::from_value::<Incoming<MailCredential, slim::Credential>>(object.clone()).unwrap().0
    }

    #[test]
    fn an_object_is_read_whole_but_for_metadata_that_no_store_keeps() {
        let credential = fixtures::credential();
        let mut object = serde_json::to_value(&credential).unwrap();
        object["metadata"]["labels"] = json!({"team": "mail"});
        object["metadata"]["managedFields"] = json!([{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}]);
        let Read::Object(found) = read(&object) else { panic!("it parses") };
        let mut expected = credential;
        slim::credential(&mut expected.metadata);
        assert_eq!(serde_json::to_value(&found).unwrap(), serde_json::to_value(&expected).unwrap());
    }

    #[test]
    fn an_object_that_does_not_parse_has_its_metadata_and_a_short_error() {
        let mut object = serde_json::to_value(fixtures::credential()).unwrap();
        object["metadata"]["uid"] = json!("u-7");
        object["spec"]["grant"] = json!("x".repeat(10_000));
        let Read::Unreadable(meta, error) = read(&object) else { panic!("it does not parse") };
        assert_eq!(meta.uid.as_deref(), Some("u-7"));
        assert!(error.starts_with("invalid type: string") && error.len() <= ERROR_MAX, "{error}");
    }

    #[test]
    fn a_secret_has_no_more_than_metadata() {
        let object = json!({"metadata": {"name": "a", "labels": {names::LABEL_ROLE: "grant", "team": "mail"}}});
        let incoming = serde_json::from_value::<Incoming<PartialObjectMeta<Secret>, slim::OwnSecret>>(object).unwrap();
        assert_eq!(incoming.meta().labels.as_ref().unwrap().len(), 1);
        assert!(<Incoming<PartialObjectMeta<Secret>, slim::OwnSecret> as Resource>::metadata_api());
    }
}
