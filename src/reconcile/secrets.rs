//! Reads and writes the Secrets of the broker. The broker creates a Secret by a POST, and changes it by a JSON Patch that is
//! fenced by uid and resourceVersion. The response to a write holds only metadata, except if the caller needs the data.

use std::{collections::BTreeMap, sync::Arc};

use http::{
    HeaderValue,
    header::{ACCEPT, CONTENT_TYPE},
};
use json_patch::PatchOperation;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::{ObjectMeta, PartialObjectMeta, Request},
};
use serde::Serialize;
use serde_json::json;

use crate::{
    api::names,
    error::Error,
    reconcile::{json_patch::patch, memory_budget::MemoryBudget},
};

/// The media type that requests metadata instead of the object: <https://kubernetes.io/docs/reference/using-api/api-concepts/#alternate-representations-of-resources>.
const METADATA: HeaderValue = HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// Reads and writes the broker's Secrets.
pub struct Secrets {
    client: Client,
    /// Bounds the memory of target Secrets while the broker renders and writes them.
    pub(super) writes: MemoryBudget,
    /// Bounds the memory of Secrets that the broker reads.
    pub(super) reads: Arc<MemoryBudget>,
}

impl Secrets {
    /// Creates a client for Secrets from `client`. `reads` bounds the memory of Secrets that the broker reads.
    pub fn new(client: Client, reads: Arc<MemoryBudget>) -> Self {
        Self { client, writes: MemoryBudget::default(), reads }
    }

    fn api(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Reads a Secret with its data; `None` if it does not exist. The caller has reserved the memory for the Secret.
    ///
    /// # Errors
    /// [`Error::ReadSecret`].
    pub(super) async fn read(&self, namespace: &str, name: &str) -> Result<Option<Secret>, Error> {
        let read = self.api(namespace).get_opt(name).await;
        read.map_err(|source| Error::ReadSecret { name: format!("{namespace}/{name}"), source })
    }

    /// Creates a Secret of the type `type_`. The response is its metadata.
    pub(super) async fn create(
        &self,
        metadata: &ObjectMeta,
        type_: &str,
        data: &BTreeMap<String, ByteString>,
    ) -> kube::Result<ObjectMeta> {
        #[derive(Serialize)]
        struct Created<'a> {
            #[serde(rename = "apiVersion")]
            api_version: &'static str,
            kind: &'static str,
            metadata: &'a ObjectMeta,
            #[serde(rename = "type")]
            type_: &'a str,
            data: &'a BTreeMap<String, ByteString>,
        }
        let body = encoded(&Created { api_version: "v1", kind: "Secret", metadata, type_, data }, Some(data))?;
        let url = self.api(metadata.namespace.as_deref().unwrap_or_default()).resource_url().to_owned();
        let parameters = PostParams { field_manager: Some(names::MANAGER.to_owned()), ..PostParams::default() };
        let mut request = Request::new(url).create(&parameters, body).map_err(kube::Error::BuildRequest)?;
        request.headers_mut().insert(ACCEPT, METADATA);
        Ok(self.client.request::<PartialObjectMeta<Secret>>(request).await?.metadata)
    }

    /// Changes the metadata of a Secret by `operations`, and replaces its data if `data` is given. The response is its
    /// metadata.
    pub(super) async fn patch(
        &self,
        namespace: &str,
        name: &str,
        operations: Vec<PatchOperation>,
        data: Option<&BTreeMap<String, ByteString>>,
    ) -> kube::Result<ObjectMeta> {
        let url = self.api(namespace).resource_url().to_owned();
        // The code below replaces the body of this request.
        let empty = Patch::Merge(json!({}));
        let request = Request::new(url).patch(name, &params(), &empty);
        let (mut parts, _) = request.map_err(kube::Error::BuildRequest)?.into_parts();
        parts.headers.insert(ACCEPT, METADATA);
        parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json-patch+json"));
        let request = http::Request::from_parts(parts, patch_body(operations, data)?);
        Ok(self.client.request::<PartialObjectMeta<Secret>>(request).await?.metadata)
    }

    /// Changes the metadata of a Secret by `operations`. The response is the whole Secret.
    pub(super) async fn patch_and_read(
        &self,
        namespace: &str,
        name: &str,
        operations: Vec<PatchOperation>,
    ) -> kube::Result<Secret> {
        self.api(namespace).patch(name, &params(), &patch(operations)).await
    }

    /// Deletes the Secret with this uid. It is not an error if the Secret no longer exists or has another uid now.
    ///
    /// # Errors
    /// [`Error::DeleteSecret`].
    pub(super) async fn delete(&self, namespace: &str, name: &str, uid: &str) -> Result<(), Error> {
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        match self.api(namespace).delete(name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            Err(source) => Err(Error::DeleteSecret { name: format!("{namespace}/{name}"), source }),
        }
    }
}

/// Returns the body of a JSON Patch. Borrows the data, because kube's `Patch` would copy it into a JSON value that no
/// code wipes.
fn patch_body(operations: Vec<PatchOperation>, data: Option<&BTreeMap<String, ByteString>>) -> kube::Result<Vec<u8>> {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Operation<'a> {
        Metadata(PatchOperation),
        Data { op: &'static str, path: &'static str, value: &'a BTreeMap<String, ByteString> },
    }
    let replace_data = data.map(|value| Operation::Data { op: "add", path: "/data", value });
    let operations: Vec<_> = operations.into_iter().map(Operation::Metadata).chain(replace_data).collect();
    encoded(&operations, data)
}

/// Encodes `what`, which contains `data`, as JSON in a buffer that does not grow. Base64 takes four bytes for three.
fn encoded(what: &impl Serialize, data: Option<&BTreeMap<String, ByteString>>) -> kube::Result<Vec<u8>> {
    /// Space in the buffer for everything except the data, in bytes.
    const REST: usize = 8 * 1024;
    let size: usize = data.into_iter().flatten().map(|(key, value)| key.len() + value.0.len() * 4 / 3 + 16).sum();
    let mut body = Vec::with_capacity(size + REST);
    serde_json::to_writer(&mut body, what).map_err(kube::Error::SerdeError)?;
    Ok(body)
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() }
}

#[cfg(test)]
mod tests {
    use crate::reconcile::json_patch::fence;

    use super::*;

    #[test]
    fn a_patch_checks_the_fence_first_and_replaces_the_data_last() {
        let data = BTreeMap::from([("key".to_owned(), ByteString(b"value".to_vec()))]);
        let body = |data| String::from_utf8(patch_body(fence("u", "7").to_vec(), data).unwrap()).unwrap();
        let fence = r#"{"op":"replace","path":"/metadata/uid","value":"u"},{"op":"replace","path":"/metadata/resourceVersion","value":"7"}"#;
        assert_eq!(body(None), format!("[{fence}]"));
        let replaced = r#"{"op":"add","path":"/data","value":{"key":"dmFsdWU="}}"#;
        assert_eq!(body(Some(&data)), format!("[{fence},{replaced}]"));
    }
}
