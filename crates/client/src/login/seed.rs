//! The Secret that stores the refresh token.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use crate::{
    api::names,
    error::describe,
    login::LoginError,
    policy::commands::KubectlObject,
    provider_client::sources::{is_labelled, is_own},
};

/// Number of tries of `put` if another client writes at the same time, or if the API server fails for a moment. Without
/// tries, the user would have to sign in again.
const TRIES: usize = 5;
/// The pause between two tries.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The Secret and the key to which `grant.refreshToken` refers, or will refer.
pub(super) struct Seed {
    api: Api<Secret>,
    namespace: String,
    name: String,
    key: String,
}

impl Seed {
    pub fn new(client: &Client, namespace: &str, name: &str, key: &str) -> Self {
        let api = Api::namespaced(client.clone(), namespace);
        Self { api, namespace: namespace.to_owned(), name: name.to_owned(), key: key.to_owned() }
    }

    /// Names the key and the Secret, for messages.
    pub fn words(&self) -> String {
        format!("key {} of the Secret {}/{}", self.key, self.namespace, self.name)
    }

    /// Checks with a dry run that `login` can write the Secret, before the user signs in.
    pub async fn dry_run(&self) -> Result<(), LoginError> {
        match self.write(b"dry run", true).await? {
            // Only these codes show that the user may not write. Other codes may come from an admission webhook that
            // refuses every dry run.
            Err(kube::Error::Api(status)) if [401, 403, 404, 422].contains(&status.code) => {
                Err(self.unwritten(&kube::Error::Api(status)))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Writes the refresh token, and retries after a transient error.
    pub async fn put(&self, token: &SecretString) -> Result<(), LoginError> {
        let mut tries = 1;
        loop {
            match self.write(token.expose_secret().as_bytes(), false).await? {
                Ok(()) => return Ok(()),
                Err(error) if tries == TRIES || !is_passing(&error) => return Err(self.unwritten(&error)),
                Err(_) => {}
            }
            tries += 1;
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Creates the Secret, or replaces the key in the existing Secret.
    async fn write(&self, value: &[u8], dry_run: bool) -> Result<kube::Result<()>, LoginError> {
        let value = ByteString(value.to_vec());
        let found = match self.api.get_opt(&self.name).await {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let Some(found) = found else {
            let params = PostParams { dry_run, ..PostParams::default() };
            return Ok(self.api.create(&params, &self.fresh(value)).await.map(drop));
        };
        self.check(&found)?;
        let patch = json!({
            "metadata": {"resourceVersion": found.metadata.resource_version},
            "data": {&self.key: value},
        });
        let params = PatchParams { dry_run, ..PatchParams::default() };
        Ok(self.api.patch(&self.name, &params, &Patch::Merge(patch)).await.map(drop))
    }

    fn fresh(&self, value: ByteString) -> Secret {
        Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(BTreeMap::from([(names::LABEL_SOURCE.to_owned(), "true".to_owned())])),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".to_owned()),
            data: Some(BTreeMap::from([(self.key.clone(), value)])),
            ..Secret::default()
        }
    }

    /// Checks that `login` may change the existing Secret.
    fn check(&self, found: &Secret) -> Result<(), LoginError> {
        let Self { namespace, name, .. } = self;
        let subject = KubectlObject::secret(namespace, name);
        if is_own(found) {
            return Err(LoginError(format!(
                "the Secret {namespace}/{name} is the broker's own and never holds a seed: choose another name with \
                 `--secret`"
            )));
        }
        if !is_labelled(found) {
            return Err(LoginError(format!(
                "the Secret {namespace}/{name} exists, and does not carry the label of a seed, so login does not change \
                 it. Choose another name with `--secret`, or, if the broker may read this Secret, label it with `{} \
                 {}=true --overwrite`",
                subject.command("label"),
                names::LABEL_SOURCE
            )));
        }
        if found.immutable == Some(true) {
            return Err(LoginError(format!(
                "the Secret {namespace}/{name} is immutable: delete it with `{}`",
                subject.command("delete")
            )));
        }
        Ok(())
    }

    fn unwritten(&self, error: &kube::Error) -> LoginError {
        let Self { namespace, .. } = self;
        LoginError(format!(
            "the {} cannot be written: {}. login needs the rights to get, create and patch Secrets: see `kubectl -n \
             {namespace} auth can-i --list`",
            self.words(),
            describe(error)
        ))
    }
}

/// Whether another try may succeed: another client wrote at the same time, or the API server does not respond.
fn is_passing(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 409 || status.code == 429 || status.code >= 500,
        _ => true,
    }
}
