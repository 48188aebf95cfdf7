//! Typed operations of a JSON Patch (RFC 6902) on the metadata of an object.

use json_patch::{AddOperation, PatchOperation, RemoveOperation, ReplaceOperation, TestOperation, jsonptr::PointerBuf};
use kube::api::Patch;
use serde_json::{Value, json};

/// The name of `metadata.labels`, for the functions that change a map.
pub const LABELS: &str = "labels";
/// The name of `metadata.annotations`, for the functions that change a map.
pub const ANNOTATIONS: &str = "annotations";

/// Makes the API server reject the patch with 409 unless the object has this uid and this resourceVersion.
pub fn fence(uid: &str, resource_version: &str) -> [PatchOperation; 2] {
    [same_uid(uid), replace("resourceVersion", resource_version)]
}

/// Makes the API server reject the patch with 409 unless the object has this uid.
pub fn same_uid(uid: &str) -> PatchOperation {
    replace("uid", uid)
}

fn replace(field: &str, value: &str) -> PatchOperation {
    PatchOperation::Replace(ReplaceOperation { path: metadata([field]), value: value.into() })
}

/// Adds an empty map, [`LABELS`] or [`ANNOTATIONS`]: `set` fails where the map is missing.
pub fn create_map(map: &str) -> PatchOperation {
    add([map], json!({}))
}

/// Sets a label or an annotation in an existing map.
pub fn set(map: &str, key: &str, value: &str) -> PatchOperation {
    add([map, key], value.into())
}

/// Removes a label or an annotation that may be missing. `remove` alone fails if the key is missing, so the key is
/// added first.
pub fn unset(map: &str, key: &str) -> [PatchOperation; 2] {
    [set(map, key, ""), remove([map, key])]
}

/// Adds or replaces a field of the metadata, named by the path below `/metadata`.
pub fn add<'a>(path: impl IntoIterator<Item = &'a str>, value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path: metadata(path), value })
}

/// Removes a field of the metadata, which must exist.
pub fn remove<'a>(path: impl IntoIterator<Item = &'a str>) -> PatchOperation {
    PatchOperation::Remove(RemoveOperation { path: metadata(path) })
}

/// Makes the API server reject the patch with 422 unless the field of the metadata has this value.
pub fn test<'a>(path: impl IntoIterator<Item = &'a str>, value: Value) -> PatchOperation {
    PatchOperation::Test(TestOperation { path: metadata(path), value })
}

/// Wraps the operations as kube's `Patch`.
pub fn patch(operations: impl IntoIterator<Item = PatchOperation>) -> Patch<()> {
    Patch::Json(json_patch::Patch(operations.into_iter().collect()))
}

fn metadata<'a>(path: impl IntoIterator<Item = &'a str>) -> PointerBuf {
    PointerBuf::from_tokens(["metadata"].into_iter().chain(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_encoded_as_in_the_rfc() {
        let operations = fence("u", "7")
            .into_iter()
            .chain([create_map(LABELS), set(LABELS, "team/x", "a")])
            .chain(unset(ANNOTATIONS, "a~b"))
            .chain([test(["finalizers", "0"], "f".into())]);
        let operations: Vec<_> = operations.collect();
        let expected = json!([
            {"op": "replace", "path": "/metadata/uid", "value": "u"},
            {"op": "replace", "path": "/metadata/resourceVersion", "value": "7"},
            {"op": "add", "path": "/metadata/labels", "value": {}},
            {"op": "add", "path": "/metadata/labels/team~1x", "value": "a"},
            {"op": "add", "path": "/metadata/annotations/a~0b", "value": ""},
            {"op": "remove", "path": "/metadata/annotations/a~0b"},
            {"op": "test", "path": "/metadata/finalizers/0", "value": "f"},
        ]);
        assert_eq!(serde_json::to_value(&operations).unwrap(), expected);
        let Patch::Json(patch) = patch(operations) else { panic!("no JSON Patch") };
        assert_eq!(serde_json::to_value(patch).unwrap(), expected);
    }
}
