//! Reads and writes the Secrets of the broker. A Secret is created by a POST and changed by a JSON Patch that is fenced by uid
//! and resourceVersion. The response to a write holds only metadata, except where the caller needs the data.

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

/// Metadata instead of the object: <https://kubernetes.io/docs/reference/using-api/api-concepts/#alternate-representations-of-resources>.
const METADATA: HeaderValue = HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// Reads and writes the Secrets of the broker.
pub struct Secrets {
    client: Client,
    /// The memory for target Secrets that are rendered and written.
    pub(super) writes: MemoryBudget,
    /// The memory for Secrets that are read.
    pub(super) reads: Arc<MemoryBudget>,
}

impl Secrets {
    /// Reads and writes Secrets through `client`. Reads take their memory from `reads`.
    pub fn new(client: Client, reads: Arc<MemoryBudget>) -> Self {
        Self { client, writes: MemoryBudget::default(), reads }
    }

    fn api(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Reads a Secret with its data; `None` if it does not exist. The caller has reserved the memory for it.
    ///
    /// # Errors
    /// [`Error::ReadSecret`].
    pub(super) async fn read(&self, namespace: &str, name: &str) -> Result<Option<Secret>, Error> {
        let read = self.api(namespace).get_opt(name).await;
        read.map_err(|source| Error::ReadSecret { name: format!("{namespace}/{name}"), source })
    }

    /// Creates a Secret. The response is its metadata.
    pub(super) async fn create(&self, secret: &Secret) -> kube::Result<ObjectMeta> {
        let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
        let body = serde_json::to_vec(secret).map_err(kube::Error::SerdeError)?;
        self.post(namespace, body).await
    }

    /// Creates a target Secret. The data is not copied on the way into the body.
    pub(super) async fn create_target(
        &self,
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
        self.post(metadata.namespace.as_deref().unwrap_or_default(), body).await
    }

    async fn post(&self, namespace: &str, body: Vec<u8>) -> kube::Result<ObjectMeta> {
        let url = self.api(namespace).resource_url().to_owned();
        let parameters = PostParams { field_manager: Some(names::MANAGER.to_owned()), ..PostParams::default() };
        let mut request = Request::new(url).create(&parameters, body).map_err(kube::Error::BuildRequest)?;
        request.headers_mut().insert(ACCEPT, METADATA);
        Ok(self.client.request::<PartialObjectMeta<Secret>>(request).await?.metadata)
    }

    /// Changes a Secret. The response has its data.
    pub(super) async fn patch(
        &self,
        namespace: &str,
        name: &str,
        operations: Vec<PatchOperation>,
    ) -> kube::Result<Secret> {
        self.api(namespace).patch(name, &params(), &patch(operations)).await
    }

    /// Changes a Secret. The response is its metadata.
    pub(super) async fn patch_metadata(
        &self,
        namespace: &str,
        name: &str,
        operations: Vec<PatchOperation>,
    ) -> kube::Result<ObjectMeta> {
        let patched = self.api(namespace).patch_metadata(name, &params(), &patch(operations)).await;
        patched.map(|partial| partial.metadata)
    }

    /// Changes a target Secret by the operations, of which one has its `data`.
    pub(super) async fn patch_target(
        &self,
        namespace: &str,
        name: &str,
        operations: &[Operation<'_>],
        data: &BTreeMap<String, ByteString>,
    ) -> kube::Result<ObjectMeta> {
        let url = self.api(namespace).resource_url().to_owned();
        // Its body is replaced below.
        let empty = Patch::Merge(json!({}));
        let request = Request::new(url).patch(name, &params(), &empty);
        let (mut parts, _) = request.map_err(kube::Error::BuildRequest)?.into_parts();
        parts.headers.insert(ACCEPT, METADATA);
        parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json-patch+json"));
        let request = http::Request::from_parts(parts, encoded(&operations, data)?);
        Ok(self.client.request::<PartialObjectMeta<Secret>>(request).await?.metadata)
    }

    /// Deletes a Secret of this uid. A Secret that is gone, or that another one has replaced, is no error.
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

/// One operation of a JSON Patch of a target Secret.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Operation<'a> {
    /// An operation on the metadata.
    Metadata(PatchOperation),
    /// All data, borrowed: a patch of kube's own would copy it.
    Data { op: &'static str, path: &'static str, value: &'a BTreeMap<String, ByteString> },
}

/// JSON in a buffer that need not grow: base64 takes four bytes for three.
fn encoded(what: &impl Serialize, data: &BTreeMap<String, ByteString>) -> kube::Result<Vec<u8>> {
    /// Bytes for the metadata.
    const REST: usize = 8 * 1024;
    let size: usize = data.iter().map(|(key, value)| key.len() + value.0.len() * 4 / 3 + 16).sum();
    let mut body = Vec::with_capacity(size + REST);
    serde_json::to_writer(&mut body, what).map_err(kube::Error::SerdeError)?;
    Ok(body)
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() }
}
