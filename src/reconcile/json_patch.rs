//! Writes of Secrets as JSON Patch (RFC 6902), fenced by uid and resourceVersion.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::api::names;

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
