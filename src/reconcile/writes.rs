//! How objects are written. A Secret is made by a POST, changed by a JSON Patch (RFC 6902) that is fenced by uid and
//! resourceVersion, and answered by metadata alone: what was written does not come back. A status is replaced by a PUT.

use std::collections::BTreeMap;

use http::{
    HeaderValue,
    header::{ACCEPT, CONTENT_TYPE},
};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    core::{ObjectMeta, PartialObjectMeta, Request},
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    api::{MailCredential, names, status::MailCredentialStatus},
    policy::checks,
    reconcile::{Context, observe},
    render::SECRET_MAX,
};

/// Metadata instead of the object: <https://kubernetes.io/docs/reference/using-api/api-concepts/#alternate-representations-of-resources>.
const METADATA: HeaderValue = HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// What target Secrets may take while they are rendered and written: many at a time where they are small, and a few where
/// each is a megabyte, which is then as much as one tenant's large ones can take.
pub struct Room(Semaphore);

/// Bytes that all of them together may take.
const ROOM: usize = 16 * 1024 * 1024;
/// A place in the room.
const PLACE: usize = 4 * 1024;

impl Default for Room {
    fn default() -> Self {
        Self(Semaphore::new(ROOM / PLACE))
    }
}

impl Room {
    /// Waits for room for a Secret whose data has `bytes`: itself, and the body of the request, which has it in base64.
    pub(super) async fn enter(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        let places = (3 * bytes.min(SECRET_MAX)).div_ceil(PLACE).max(1);
        self.0.acquire_many(u32::try_from(places).unwrap_or(1)).await.ok()
    }
}

/// Makes a Secret.
pub(super) async fn create(context: &Context, secret: &Secret) -> kube::Result<ObjectMeta> {
    let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
    let body = serde_json::to_vec(secret).map_err(kube::Error::SerdeError)?;
    post_secret(context, namespace, body).await
}

/// Makes a target Secret. Its data is not copied on the way into the body.
pub(super) async fn create_target(
    context: &Context,
    metadata: &ObjectMeta,
    data: &BTreeMap<String, ByteString>,
) -> kube::Result<ObjectMeta> {
    #[derive(Serialize)]
    struct Target<'a> {
        #[serde(rename = "apiVersion")]
        api_version: &'static str,
        kind: &'static str,
        metadata: &'a ObjectMeta,
        #[serde(rename = "type")]
        type_: &'static str,
        data: &'a BTreeMap<String, ByteString>,
    }
    let secret = Target { api_version: "v1", kind: "Secret", metadata, type_: names::SECRET_TYPE_TARGET, data };
    let body = encoded(&secret, data)?;
    post_secret(context, metadata.namespace.as_deref().unwrap_or_default(), body).await
}

/// JSON in a buffer that need not grow: base64 takes four bytes for three.
fn encoded(what: &impl Serialize, data: &BTreeMap<String, ByteString>) -> kube::Result<Vec<u8>> {
    /// For the metadata.
    const REST: usize = 8 * 1024;
    let size: usize = data.iter().map(|(key, value)| key.len() + value.0.len() * 4 / 3 + 16).sum();
    let mut body = Vec::with_capacity(size + REST);
    serde_json::to_writer(&mut body, what).map_err(kube::Error::SerdeError)?;
    Ok(body)
}

async fn post_secret(context: &Context, namespace: &str, body: Vec<u8>) -> kube::Result<ObjectMeta> {
    let secrets = observe::secrets(context, namespace);
    let mut request = Request::new(secrets.resource_url()).create(&post(), body).map_err(kube::Error::BuildRequest)?;
    request.headers_mut().insert(ACCEPT, METADATA);
    Ok(context.client.request::<PartialObjectMeta<Secret>>(request).await?.metadata)
}

/// One operation of a JSON Patch.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Operation<'a> {
    /// Of the metadata.
    Small(Value),
    /// All data of a Secret, borrowed: a patch of kube's own would copy it.
    Data { op: &'static str, path: &'static str, value: &'a BTreeMap<String, ByteString> },
}

/// Changes a target Secret by the operations, of which one has its `data`.
pub(super) async fn patch_target(
    context: &Context,
    namespace: &str,
    name: &str,
    operations: &[Operation<'_>],
    data: &BTreeMap<String, ByteString>,
) -> kube::Result<ObjectMeta> {
    let secrets = observe::secrets(context, namespace);
    let empty = Patch::Merge(json!({}));
    let request = Request::new(secrets.resource_url()).patch(name, &params(), &empty);
    let (mut parts, _) = request.map_err(kube::Error::BuildRequest)?.into_parts();
    parts.headers.insert(ACCEPT, METADATA);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json-patch+json"));
    let request = http::Request::from_parts(parts, encoded(&operations, data)?);
    Ok(context.client.request::<PartialObjectMeta<Secret>>(request).await?.metadata)
}

/// Replaces the status: the API server takes nothing else from this PUT, and refuses with 409 what was made for another
/// object, or for an older one. It reads an applied configuration as YAML and merges it field by field, for a quarter more of
/// its CPU in all.
pub(super) async fn status(
    context: &Context,
    credential: &MailCredential,
    status: &MailCredentialStatus,
) -> kube::Result<MailCredential> {
    let meta = &credential.metadata;
    let body = json!({
        "apiVersion": MailCredential::api_version(&()),
        "kind": MailCredential::kind(&()),
        "metadata": {
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
        },
        "status": status,
    });
    let api: Api<MailCredential> = Api::namespaced(context.client.clone(), checks::namespace(credential));
    api.replace_subresource("status", &credential.name_any(), &post(), &body).await
}

/// Lets the API server refuse a write with 409 that was made for another object, or for an older one.
pub(super) fn fence(uid: &str, resource_version: &str) -> [Value; 2] {
    [
        json!({"op": "replace", "path": "/metadata/uid", "value": uid}),
        json!({"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version}),
    ]
}

/// Makes `labels` or `annotations`, where there is no such map yet.
pub(super) fn make(map: &str) -> Value {
    json!({"op": "add", "path": format!("/metadata/{map}"), "value": {}})
}

/// Sets a label or an annotation.
pub(super) fn set(map: &str, key: &str, value: &str) -> Value {
    json!({"op": "add", "path": path(map, key), "value": value})
}

/// Removes a label or an annotation, whether it is there or not: `remove` of what is not there is an error, and what has
/// just been added is there.
pub(super) fn unset(map: &str, key: &str) -> [Value; 2] {
    [set(map, key, ""), json!({"op": "remove", "path": path(map, key)})]
}

fn path(map: &str, key: &str) -> String {
    format!("/metadata/{map}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// The operations as a patch.
pub(super) fn patch(operations: Vec<Value>) -> Patch<()> {
    Patch::Json(serde_json::from_value(Value::Array(operations)).unwrap_or_default())
}

/// In whose name it is written.
pub(super) fn params() -> PatchParams {
    PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() }
}

fn post() -> PostParams {
    PostParams { field_manager: Some(names::MANAGER.to_owned()), ..PostParams::default() }
}
