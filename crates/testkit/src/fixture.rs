//! The fixture of most tests of the broker: a namespace, a provider, a broker.

use k8s_openapi::api::core::v1::Secret;
use mailtoken_core::api::MailCredential;
use serde_json::Value;

use super::{Broker, Cluster, Idp, Manifest, Namespace, credential, namespace::find, wait::until};

/// A namespace with the provider `idp`, and a broker that watches it.
pub struct Fixture {
    /// The namespace.
    pub ns: Namespace,
    /// The provider's server.
    pub idp: Idp,
    /// The broker, which watches only this namespace.
    pub broker: Broker,
}

impl Fixture {
    /// Creates the fixture in the cluster that all tests share.
    pub async fn new() -> Self {
        let ns = Cluster::shared().namespace().await;
        let idp = Idp::start();
        ns.provider(&idp).await;
        let broker = Broker::start(&ns).await;
        Self { ns, idp, broker }
    }

    /// Applies a credential and waits until it is ready.
    pub async fn issued(&self, manifest: impl Into<Manifest>) -> MailCredential {
        let manifest = manifest.into();
        let name = manifest.0["metadata"]["name"].as_str().unwrap().to_owned();
        self.ns.apply(manifest).await;
        self.ready(&name).await
    }

    /// Waits until a credential is ready in its current generation.
    pub async fn ready(&self, name: &str) -> MailCredential {
        self.ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
        self.ns.get(name).await
    }

    /// Waits until all earlier changes are processed: applies a new credential and waits until it is ready.
    pub async fn mark(&self, name: &str) {
        self.issued(credential(name)).await;
    }

    /// Waits until all earlier changes are processed, while the provider refuses all clients.
    pub async fn mark_refused(&self) {
        self.ns.apply(credential("refused")).await;
        self.ns.condition::<MailCredential>("refused", "Ready", "InvalidClient").await;
    }

    /// Waits until the access token in a Secret differs from `before`.
    pub async fn renewed(&self, secret: &str, before: &str) -> Secret {
        self.ns.until::<Secret>(secret, "it has another token", |secret| text(secret, "access_token") != before).await
    }

    /// Returns the verbs of all successful writes in order, for a resource such as `mailcredentials/status` or
    /// `secrets`.
    pub fn writes(&self, resource: &str, name: &str) -> Vec<String> {
        let written = self.ns.audit().into_iter().filter(|event| {
            event.access.resource == resource
                && event.name == name
                && ["create", "patch", "update", "delete"].contains(&event.access.verb.as_str())
                && event.code < 300
        });
        written.map(|event| event.access.verb).collect()
    }

    /// Waits until [`Self::writes`] returns `verbs`: a write appears in the audit log a moment after its effect.
    pub async fn wrote(&self, resource: &str, name: &str, verbs: &[&str]) {
        until(&format!("writes of {resource} {name}: {verbs:?}"), async || match self.writes(resource, name) {
            written if written == verbs => Ok(()),
            written => Err(format!("{written:?}")),
        })
        .await;
    }
}

/// Returns a key of a Secret; empty if absent.
pub fn text(secret: &Secret, key: &str) -> String {
    let data = secret.data.as_ref().and_then(|data| data.get(key));
    data.map(|value| String::from_utf8(value.0.clone()).unwrap()).unwrap_or_default()
}

/// Returns the reason of a condition; empty if the condition is absent.
pub fn reason(object: &MailCredential, kind: &str) -> String {
    find(object, kind).map(|condition| condition.reason).unwrap_or_default()
}

/// Returns a field of an object by its pointer, such as `/status/token/fingerprint`; null if absent.
pub fn field(object: &impl serde::Serialize, pointer: &str) -> Value {
    serde_json::to_value(object).unwrap().pointer(pointer).cloned().unwrap_or_default()
}
