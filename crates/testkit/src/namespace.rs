//! A separate namespace for each test, and the operations of tests in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use k8s_openapi::{
    NamespaceResourceScope, api::core::v1 as core, api::events::v1::Event, apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, TypeMeta, ValidationDirective},
    core::GroupVersionKind,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    Cluster, Idp, Manifest, PATIENCE,
    audit::AuditEvent,
    ca_bundle, process, provider, source,
    wait::{until, until_in},
};

/// Cluster-scoped kinds.
const CLUSTER_KINDS: [&str; 8] = [
    "ClusterMailProvider",
    "CustomResourceDefinition",
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

/// A namespaced kind whose objects tests read, write and show.
pub trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned
{
}

impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned
{
}

/// A namespace, and an administrator's client.
pub struct Namespace {
    /// The namespace's name: the test's shortened name and a number.
    pub name: String,
    /// The cluster of the namespace.
    pub cluster: Cluster,
    /// An administrator's client, for operations that this type does not have.
    pub client: Client,
}

impl Cluster {
    /// Creates a namespace with a name like the test's.
    pub async fn namespace(&self) -> Namespace {
        Namespace::create(self.clone(), BTreeMap::new()).await
    }
}

impl Namespace {
    /// Creates a namespace with these labels.
    pub async fn create(cluster: Cluster, labels: BTreeMap<&str, &str>) -> Self {
        let (name, client) = (unused_name(), cluster.client().await);
        let namespace = Self { name, cluster, client };
        let manifest = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace.name, "labels": labels},
        });
        namespace.apply(manifest).await;
        namespace
    }

    /// Returns the API for the objects of one kind.
    pub fn api<K: Object>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Returns the API server's audit events of this namespace.
    pub fn audit(&self) -> Vec<AuditEvent> {
        self.cluster.audit_where(|event| event.namespace == self.name)
    }

    /// Runs kubectl in this namespace, and returns the output.
    pub fn kubectl<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> String {
        process::output(self.cluster.kubectl().args(["-n", &self.name]).args(arguments))
    }

    /// Applies the MailProvider `idp` for this server, and the objects to which it refers.
    pub async fn provider(&self, idp: &Idp) {
        self.apply(ca_bundle("idp-ca", idp)).await;
        self.apply(source("idp-client", "client-secret", "a client secret")).await;
        self.apply(provider(idp)).await;
    }

    /// Applies an object: removes fields that an earlier apply set. The API server rejects unknown fields.
    pub async fn apply(&self, manifest: impl Into<Manifest>) -> DynamicObject {
        let manifest = manifest.into();
        let shown = manifest.clone();
        self.try_apply(manifest).await.unwrap_or_else(|error| panic!("{error}\n{}", show(&shown.0)))
    }

    /// Applies an object, and returns the API server's error if it refuses.
    pub async fn try_apply(&self, manifest: impl Into<Manifest>) -> kube::Result<DynamicObject> {
        let object: DynamicObject = serde_json::from_value(manifest.into().0).unwrap();
        let name = object.metadata.name.clone().unwrap();
        let params = PatchParams {
            field_manager: Some("test".to_owned()),
            force: true,
            field_validation: Some(ValidationDirective::Strict),
            ..PatchParams::default()
        };
        self.dynamic(object.types.as_ref().unwrap()).patch(&name, &params, &Patch::Apply(&object)).await
    }

    /// Deletes an object if it exists, without waiting.
    pub async fn remove(&self, manifest: &Manifest) {
        let object: DynamicObject = serde_json::from_value(manifest.0.clone()).unwrap();
        let api = self.dynamic(object.types.as_ref().unwrap());
        drop(api.delete(&object.metadata.name.unwrap(), &DeleteParams::default()).await);
    }

    /// Changes fields of an object by a merge patch.
    pub async fn patch<K: Object>(&self, name: &str, patch: Value) -> K {
        self.api().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
    }

    /// Sets an annotation.
    pub async fn annotate<K: Object>(&self, name: &str, key: &str, value: &str) {
        self.patch::<K>(name, json!({"metadata": {"annotations": {key: value}}})).await;
    }

    /// Returns an object, which must exist.
    pub async fn get<K: Object>(&self, name: &str) -> K {
        self.api().get(name).await.unwrap()
    }

    /// Deletes an object, and waits until it no longer exists. A new object may have the same name immediately.
    pub async fn delete<K: Object>(&self, name: &str) {
        let api = self.api::<K>();
        let uid = self.get::<K>(name).await.meta().uid.clone();
        api.delete(name, &DeleteParams::default()).await.unwrap();
        until("the object is gone", async || match api.get_opt(name).await {
            Ok(None) => Ok(()),
            Ok(Some(other)) if other.meta().uid != uid => Ok(()),
            other => Err(format!("{other:#?}")),
        })
        .await;
    }

    /// Waits until an object no longer exists.
    pub async fn gone<K: Object>(&self, name: &str) {
        until("the object is gone", async || match self.api::<K>().get_opt(name).await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:#?}")),
        })
        .await;
    }

    /// Waits until an object exists and `good` accepts it. On failure shows the object and its Events.
    pub async fn until<K: Object>(&self, name: &str, what: &str, good: impl Fn(&K) -> bool) -> K {
        self.until_in(PATIENCE, name, what, good).await
    }

    /// Waits as [`Self::until`] does, with another deadline.
    pub async fn until_in<K: Object>(
        &self,
        deadline: Duration,
        name: &str,
        what: &str,
        good: impl Fn(&K) -> bool,
    ) -> K {
        until_in(deadline, &format!("{} {name}: {what}", K::kind(&())), async || {
            match self.api::<K>().get_opt(name).await {
                Ok(Some(object)) if good(&object) => Ok(object),
                Ok(Some(object)) => Err(format!("{}\n{}", show(&object), self.event_lines(name).await)),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    /// Waits until a condition has this reason for the object's current generation.
    pub async fn condition<K: Object>(&self, name: &str, kind: &str, reason: &str) -> Condition {
        let fits = |object: &K| {
            let generation = object.meta().generation;
            find(object, kind).is_some_and(|found| found.reason == reason && found.observed_generation == generation)
        };
        // If the missing object may still arrive, the broker sets Stalled only after 30 s.
        let arrives = ["ProviderNotFound", "ProviderNotReady", "SourceNotFound", "SourceNotLabeled"].contains(&reason);
        let deadline = if kind == "Stalled" && arrives { 2 * PATIENCE + Duration::from_secs(5) } else { PATIENCE };
        let object = self.until_in(deadline, name, &format!("{kind} has the reason {reason}"), fits).await;
        find(&object, kind).unwrap()
    }

    /// Returns the keys and values of a Secret, which must exist.
    pub async fn secret(&self, name: &str) -> BTreeMap<String, String> {
        let secret: core::Secret = self.get(name).await;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, text(value.0))).collect()
    }

    /// Returns the Events on objects of this name.
    pub async fn events(&self, name: &str) -> Vec<Event> {
        self.try_events(name).await.unwrap()
    }

    async fn try_events(&self, name: &str) -> kube::Result<Vec<Event>> {
        let events = self.api::<Event>().list(&Default::default()).await?;
        let about = |event: &Event| event.regarding.as_ref().is_some_and(|object| object.name.as_deref() == Some(name));
        Ok(events.items.into_iter().filter(about).collect())
    }

    /// Returns the types and reasons of the Events on objects of this name, such as `Warning Expired`.
    pub async fn event_reasons(&self, name: &str) -> BTreeSet<String> {
        let word = |text: Option<String>| text.unwrap_or_default();
        let events = self.events(name).await;
        events.into_iter().map(|event| format!("{} {}", word(event.type_), word(event.reason))).collect()
    }

    /// Waits until all of these Events exist, because the broker sends an Event after the status. Returns all Events.
    pub async fn event_reasons_include(&self, name: &str, wanted: &[&str]) -> BTreeSet<String> {
        until(&format!("Events on {name}: {wanted:?}"), async || {
            let reported = self.event_reasons(name).await;
            match wanted.iter().all(|event| reported.contains(*event)) {
                true => Ok(reported),
                false => Err(format!("{reported:?}")),
            }
        })
        .await
    }

    /// Returns the Events as text, for a failed test. Also works if the API server does not respond.
    async fn event_lines(&self, name: &str) -> String {
        let line = |event: Event| {
            format!(
                "Event: {} {}: {}\n",
                event.type_.unwrap_or_default(),
                event.reason.unwrap_or_default(),
                event.note.unwrap_or_default()
            )
        };
        match self.try_events(name).await {
            Ok(events) => events.into_iter().map(line).collect(),
            Err(error) => format!("Events: {error}\n"),
        }
    }

    fn dynamic(&self, types: &TypeMeta) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(types).unwrap());
        match CLUSTER_KINDS.contains(&types.kind.as_str()) {
            true => Api::all_with(self.client.clone(), &resource),
            false => Api::namespaced_with(self.client.clone(), &self.name, &resource),
        }
    }
}

/// Returns the condition of this type in the status of any object.
pub fn find(object: &impl Serialize, kind: &str) -> Option<Condition> {
    let object = serde_json::to_value(object).unwrap();
    let conditions = object.pointer("/status/conditions")?.as_array()?.clone();
    let found = conditions.into_iter().find(|condition| condition["type"] == kind)?;
    Some(serde_json::from_value(found).unwrap())
}

/// Returns an object as YAML, without fields that only the API server uses.
pub fn show(object: &impl Serialize) -> String {
    let mut object = serde_json::to_value(object).unwrap();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    serde_yaml::to_string(&object).unwrap()
}

fn unused_name() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let thread = std::thread::current();
    let test = thread.name().and_then(|name| name.rsplit("::").next()).unwrap_or_default().replace('_', "-");
    let short: String = test.chars().take(40).collect();
    format!("{}-{}-{}", short.trim_end_matches('-'), std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
