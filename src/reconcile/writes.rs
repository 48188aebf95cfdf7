//! How objects are written. A Secret is made by a POST, changed by a JSON Patch (RFC 6902) that is fenced by uid and
//! resourceVersion, and answered by metadata alone: what was written does not come back. A status is replaced by a PUT.

use http::{HeaderValue, header::ACCEPT};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    core::{ObjectMeta, PartialObjectMeta, Request},
};
use serde_json::{Value, json};

use super::{Context, observe};
use crate::{
    api::{MailCredential, names, status::MailCredentialStatus},
    policy::checks,
};

/// Metadata instead of the object: <https://kubernetes.io/docs/reference/using-api/api-concepts/#alternate-representations-of-resources>.
const METADATA: HeaderValue = HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// Makes a Secret.
pub(super) async fn create(context: &Context, secret: &Secret) -> kube::Result<ObjectMeta> {
    let secrets = observe::secrets(context, secret.metadata.namespace.as_deref().unwrap_or_default());
    let body = serde_json::to_vec(secret).map_err(kube::Error::SerdeError)?;
    let mut request = Request::new(secrets.resource_url()).create(&post(), body).map_err(kube::Error::BuildRequest)?;
    request.headers_mut().insert(ACCEPT, METADATA);
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
