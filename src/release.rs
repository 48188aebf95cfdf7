//! `release-finalizers`: removes the broker's finalizer from MailCredentials. Otherwise a deletion, or the deletion of
//! a namespace, waits for a broker that no longer runs.
//!
//! The command revokes no token. It names each credential whose tokens stay valid.

use std::io::{self, Write as _};

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
};
use serde_json::json;
use thiserror::Error;

use crate::{
    api::{MailCredential, names},
    cli::Release,
    error::describe,
    kubernetes::{AccessError, Connection},
};

/// Maximum number of objects in one page of a list.
const PAGE: u32 = 200;
/// Maximum number of tries for one object, because other clients may change the object at the same time.
const TRIES: usize = 5;

/// Reasons why the command did not release all MailCredentials.
#[derive(Debug, Error)]
pub enum ReleaseError {
    /// The command has no access to Kubernetes.
    #[error("{0}")]
    Access(#[from] AccessError),
    /// The command cannot list the MailCredentials.
    #[error(
        "the MailCredentials cannot be listed: {0}. The command needs the rights to list and patch MailCredentials"
    )]
    List(String),
    /// The command could not remove some finalizers.
    #[error("{0} finalizers could not be removed: see above, and run the command again")]
    Left(usize),
    /// The command cannot write to standard output.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

/// Removes the finalizers and prints one line for each credential.
///
/// # Errors
/// If some finalizers could not be removed. A cluster without the CRD is not an error.
pub async fn run(settings: Release) -> Result<(), ReleaseError> {
    let access = &settings.kubernetes;
    let connection = Connection::find(access.kubeconfig.as_deref(), access.context.as_deref()).await?;
    let client = connection.client().map_err(AccessError::Client)?;
    let mut out = io::stdout().lock();
    let Some(found) = with_finalizer(&client, settings.namespace.as_deref()).await? else {
        writeln!(out, "nothing to do: the API server knows no MailCredentials")?;
        return Ok(());
    };
    let (mut released, mut left) = (0, 0);
    for object in found {
        let name = format!("{}/{}", namespace(&object), object.metadata.name.as_deref().unwrap_or_default());
        if settings.dry_run {
            writeln!(out, "{name}: would be released; {}", tokens(&object))?;
            released += 1;
            continue;
        }
        match release(&client, &object).await {
            Ok(true) => {
                writeln!(out, "{name}: released; {}", tokens(&object))?;
                released += 1;
            }
            Ok(false) => writeln!(out, "{name}: nothing to release any more")?,
            Err(error) => {
                writeln!(out, "{name}: not released: {}", describe(&error))?;
                left += 1;
            }
        }
    }
    let verb = if settings.dry_run { "would be released" } else { "released" };
    writeln!(out, "{released} MailCredentials {verb}, {left} not")?;
    if released > 0 {
        writeln!(
            out,
            "A running broker adds the finalizer again to credentials that are not being deleted: stop the broker first."
        )?;
    }
    if left > 0 { Err(ReleaseError::Left(left)) } else { Ok(()) }
}

/// Lists the MailCredentials with the finalizer; `None` if the API server does not know the kind. The command reads the
/// objects without a schema, so that an object of an older or newer version does not block its namespace.
async fn with_finalizer(client: &Client, namespace: Option<&str>) -> Result<Option<Vec<DynamicObject>>, ReleaseError> {
    let api = api(client, namespace);
    let (mut found, mut params) = (vec![], ListParams::default().limit(PAGE));
    loop {
        let page = match api.list(&params).await {
            Ok(page) => page,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
            Err(error) => return Err(ReleaseError::List(describe(&error))),
        };
        found.extend(page.items.into_iter().filter(has_finalizer));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(Some(found)),
        }
    }
}

fn api(client: &Client, namespace: Option<&str>) -> Api<DynamicObject> {
    let kind = ApiResource::erase::<MailCredential>(&());
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
        None => Api::all_with(client.clone(), &kind),
    }
}

fn has_finalizer(object: &DynamicObject) -> bool {
    object.metadata.finalizers.iter().flatten().any(|name| name == names::FINALIZER_REVOKE)
}

fn namespace(object: &DynamicObject) -> &str {
    object.metadata.namespace.as_deref().unwrap_or_default()
}

/// Removes the finalizer from exactly this object, by its uid: a new object of the same name has another uid. Returns false
/// if the object no longer exists, or no longer has the broker's finalizer.
async fn release(client: &Client, object: &DynamicObject) -> kube::Result<bool> {
    let api = api(client, Some(namespace(object)));
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let mut object = object.clone();
    let mut tries = 1;
    loop {
        let finalizers: Vec<_> = object.metadata.finalizers.take().unwrap_or_default();
        let others: Vec<_> = finalizers.into_iter().filter(|name| name != names::FINALIZER_REVOKE).collect();
        let metadata = json!({
            "uid": object.metadata.uid, "resourceVersion": object.metadata.resource_version, "finalizers": others,
        });
        match api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(json!({"metadata": metadata}))).await {
            Ok(_) => return Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(false),
            Err(kube::Error::Api(status)) if status.code == 409 && tries < TRIES => {
                let now = api.get_opt(name).await?;
                let same = now.filter(|now| now.metadata.uid == object.metadata.uid && has_finalizer(now));
                let Some(now) = same else { return Ok(false) };
                object = now;
                tries += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Describes the tokens that stay valid, from the status.
fn tokens(object: &DynamicObject) -> String {
    let text = |pointer: &str| object.data.pointer(pointer).and_then(serde_json::Value::as_str);
    let access = text("/status/token/expiresAt").map(|end| format!("its access token is valid until {}", shown(end)));
    let refresh = object.data.pointer("/status/grant/obtainedAt").map(|_| {
        let end = text("/status/grant/expiresAt").map_or_else(String::new, |end| format!(" until {}", shown(end)));
        format!("its refresh token is not revoked and stays valid{end}: revoke it in the provider's console")
    });
    match (access, refresh) {
        (None, None) => "its status names no token".to_owned(),
        (access, refresh) => access.into_iter().chain(refresh).collect::<Vec<_>>().join(", and "),
    }
}

/// Makes a time from a status safe for a terminal: a tenant may have written the status.
fn shown(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic()).take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(status: serde_json::Value) -> DynamicObject {
        let kind = ApiResource::erase::<MailCredential>(&());
        DynamicObject::new("billing", &kind).data(json!({"status": status}))
    }

    #[test]
    fn the_tokens_that_stay_valid_are_named() {
        assert_eq!(tokens(&object(json!({}))), "its status names no token");
        let token = json!({"expiresAt": "2026-01-01T00:00:00Z\u{1b}[2J"});
        let access = tokens(&object(json!({"token": token})));
        assert_eq!(access, "its access token is valid until 2026-01-01T00:00:00Z[2J");
        let both = tokens(&object(json!({"token": token, "grant": {"obtainedAt": "x", "expiresAt": "2026-03-01"}})));
        assert!(both.contains(", and its refresh token is not revoked and stays valid until 2026-03-01: "), "{both}");
    }
}
