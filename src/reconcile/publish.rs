//! Writes Secrets. The first write is a POST, every later one a JSON Patch fenced by uid and resourceVersion, so that
//! nothing of anybody else's is ever overwritten, and nothing of ours by a broker that no longer leads.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Resource as _, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::ObjectMeta,
};
use serde_json::{Value, json};
use thiserror::Error as ThisError;

use super::{Context, observe};
use crate::{
    api::{MailCredential, Reason, credential::DeletionPolicy, names},
    error::{Error, told_by},
    oauth::{Token, token::DEFAULT_LIFETIME},
    policy::{
        Observed, checks,
        inputs::rfc3339,
        observed::{Published, Target, TokenFacts, target_name},
        status::{Notice, words},
    },
    render::render,
};

/// Why a Secret was not written.
#[derive(Debug, ThisError)]
pub enum PublishError {
    /// The name is somebody else's.
    #[error("the Secret {0}")]
    Foreign(String),
    /// The API server refuses it: quota, admission, a terminating namespace, permissions.
    #[error("{0}")]
    Refused(String),
    /// Another step failed.
    #[error(transparent)]
    Kubernetes(#[from] Error),
}

/// Whose a Secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// The credential's.
    Own,
    /// Another credential's, which is gone or has to give way to this older one.
    Takeover,
    /// Somebody else's; who, in words.
    Foreign(String),
}

/// Whose the Secret with this metadata is.
pub(super) fn ownership(meta: &ObjectMeta, credential: &MailCredential, context: &Context) -> Ownership {
    let labels = meta.labels.clone().unwrap_or_default();
    let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    if labels.get(names::LABEL_ROLE).is_some_and(|role| role == names::ROLE_GRANT) {
        return Ownership::Foreign("keeps a refresh token".to_owned());
    }
    match owner {
        Some(owner) if Some(&owner.uid) == credential.metadata.uid.as_ref() => Ownership::Own,
        Some(owner)
            if owner.kind == MailCredential::kind(&()) && owner.api_version == MailCredential::api_version(&()) =>
        {
            match context.stores.credentials.get(checks::namespace(credential), &owner.name) {
                Some(other) if other.uid().as_ref() == Some(&owner.uid) => {
                    let gives_way = target_name(&other) == target_name(credential)
                        && context.stores.rival(&other, &context.links).is_some();
                    if gives_way {
                        Ownership::Takeover
                    } else {
                        Ownership::Foreign(format!("belongs to the MailCredential {}", owner.name))
                    }
                }
                _ => Ownership::Takeover,
            }
        }
        Some(owner) => Ownership::Foreign(format!("belongs to the {} {}", owner.kind, owner.name)),
        None if is_labelled_for(&labels, credential) => Ownership::Own,
        None => Ownership::Foreign("was not made by this MailCredential".to_owned()),
    }
}

fn is_labelled_for(labels: &BTreeMap<String, String>, credential: &MailCredential) -> bool {
    labels.get(names::LABEL_MANAGED_BY).is_some_and(|by| by == names::MANAGER)
        && labels.get(names::LABEL_CREDENTIAL) == Some(&names::label_value(&credential.name_any()))
}

/// A Secret with its data.
pub(super) async fn read(context: &Context, namespace: &str, name: &str) -> Result<Option<Secret>, Error> {
    let read = observe::secrets(context, namespace).get_opt(name).await;
    read.map_err(|source| Error::ReadSecret { name: format!("{namespace}/{name}"), source })
}

/// Writes the token that is held, and records the success.
pub(super) async fn store(observed: &mut Observed, context: &Context) -> Result<(), PublishError> {
    let Some(held) = observed.held.clone() else { return Ok(()) };
    write(observed, &held.answer.token, &held.issued_for, held.reissue.as_deref(), context).await?;
    context.memory.with(checks::uid(&observed.credential), |entry| entry.held = None);
    observed.held = None;
    observed.history.succeed(&held);
    if held.answer.lifetime_unknown {
        let notice = Notice {
            warning: true,
            reason: Reason::LifetimeUnknown,
            note: format!(
                "the token response has no expires_in: {} are assumed. Make the provider tell the lifetime, or renew early \
                 enough with spec.renewal.renewBefore",
                words(DEFAULT_LIFETIME)
            ),
        };
        super::report::tell(&observed.credential, &notice, context).await;
    }
    Ok(())
}

/// Writes the token that is stored already, in another shape or under another name.
pub(super) async fn publish_again(observed: &mut Observed, context: &Context) -> Result<(), PublishError> {
    let namespace = checks::namespace(&observed.credential).to_owned();
    let Some(from) = observed.target.own().or(observed.previous.as_ref()).cloned() else { return Ok(()) };
    let secret = read(context, &namespace, &from.name).await?;
    let Some(token) = secret.as_ref().and_then(observe::stored_token) else {
        // It went away between the look and the act: the next reconcile sees that and obtains a new one.
        context.memory.with(checks::uid(&observed.credential), |entry| entry.inspected = None);
        return Ok(());
    };
    let repaired = !from.intact;
    write(observed, &token, &from.issued_for, from.handled_reissue.as_deref(), context).await?;
    if repaired {
        tracing::info!(secret = from.name, "put right what somebody else had changed");
    }
    observed.history.failed_attempts = 0;
    observed.history.next_attempt = None;
    observed.history.failed_with = None;
    if observed.history.last.as_ref().is_some_and(|(reason, _)| *reason == Reason::SecretWriteFailed) {
        observed.history.last = Some((Reason::RenewalSucceeded, "the last token request succeeded".to_owned()));
        observed.history.last_error = None;
        observed.history.last_failure = None;
    }
    Ok(())
}

/// Deletes the Secret under the former name, once the token stands under the new one.
pub(super) async fn remove_previous(observed: &Observed, context: &Context) -> Result<(), Error> {
    let (Some(previous), Some(_)) = (&observed.previous, observed.token()) else { return Ok(()) };
    if observed.credential.spec.secret.deletion_policy == DeletionPolicy::Retain {
        return Ok(());
    }
    delete(previous, checks::namespace(&observed.credential), context).await
}

async fn delete(published: &Published, namespace: &str, context: &Context) -> Result<(), Error> {
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: Some(published.uid.clone()), resource_version: None }),
        ..DeleteParams::default()
    };
    match observe::secrets(context, namespace).delete(&published.name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(source) => Err(Error::DeleteSecret { name: format!("{namespace}/{}", published.name), source }),
    }
}

/// Everything that goes into the Secret.
struct Content {
    data: BTreeMap<String, ByteString>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    owners: Vec<OwnerReference>,
}

async fn write(
    observed: &mut Observed,
    token: &Token,
    issued_for: &str,
    reissue: Option<&str>,
    context: &Context,
) -> Result<(), PublishError> {
    let Ok(provider) = &observed.provider else { return Ok(()) };
    let content = content(&observed.credential, provider, token, issued_for, reissue);
    let meta = put(observed, &content, context).await?;
    let uid = checks::uid(&observed.credential).to_owned();
    let published = Published {
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        token: Some(TokenFacts {
            issued_at: token.issued_at,
            expires_at: token.expires_at,
            refresh_at: token.refresh_at,
            scopes: token.scopes.clone(),
            fingerprint: token.fingerprint(),
            length: Some(secrecy::ExposeSecret::expose_secret(&token.access_token).len()),
        }),
        issued_for: issued_for.to_owned(),
        layout: provider.layout.clone(),
        applied: content.annotations.get(names::ANNOTATION_APPLIED).cloned(),
        has_annotations: true,
        handled_reissue: reissue.map(str::to_owned),
        intact: true,
        must_recreate: false,
    };
    context.memory.with(&uid, |entry| {
        entry.target = Some(Arc::new(meta));
        entry.inspected = None;
        entry.conflict = false;
    });
    observed.target = Target::Own(published);
    Ok(())
}

/// Puts the content into the target: where there is none by a POST, else by a fenced patch.
async fn put(observed: &Observed, content: &Content, context: &Context) -> Result<ObjectMeta, PublishError> {
    let credential = &observed.credential;
    let (namespace, name) = (checks::namespace(credential), observed.target_name());
    match &observed.target {
        Target::Own(published) if published.must_recreate => {
            delete(published, namespace, context).await?;
            create(credential, &name, content, context).await
        }
        Target::Own(published) => {
            let fence = Fence {
                uid: &published.uid,
                resource_version: &published.resource_version,
                applied: published.applied.as_deref(),
                has_annotations: published.has_annotations,
            };
            patch(credential, &name, &fence, content, context).await
        }
        Target::Absent | Target::Foreign(_) => create(credential, &name, content, context).await,
    }
}

async fn create(
    credential: &MailCredential,
    name: &str,
    content: &Content,
    context: &Context,
) -> Result<ObjectMeta, PublishError> {
    let namespace = checks::namespace(credential);
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(content.labels.clone()),
            annotations: Some(content.annotations.clone()),
            owner_references: Some(content.owners.clone()).filter(|owners| !owners.is_empty()),
            ..ObjectMeta::default()
        },
        type_: Some(names::SECRET_TYPE_TARGET.to_owned()),
        data: Some(content.data.clone()),
        ..Secret::default()
    };
    let params = PostParams { field_manager: Some(names::MANAGER.to_owned()), ..PostParams::default() };
    match observe::secrets(context, namespace).create(&params, &secret).await {
        Ok(made) => Ok(made.metadata),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            over_existing(credential, name, content, context).await
        }
        Err(error) => Err(PublishError::Refused(told_by(&error))),
    }
}

/// The name is taken, or somebody wrote it meanwhile: looks whose it is, and writes it if it is the credential's.
async fn over_existing(
    credential: &MailCredential,
    name: &str,
    content: &Content,
    context: &Context,
) -> Result<ObjectMeta, PublishError> {
    let namespace = checks::namespace(credential);
    let Some(secret) = read(context, namespace, name).await? else {
        return Err(PublishError::Refused("it was removed at the same moment".to_owned()));
    };
    match ownership(&secret.metadata, credential, context) {
        Ownership::Own | Ownership::Takeover => {}
        Ownership::Foreign(owner) => {
            context.memory.with(checks::uid(credential), |entry| entry.conflict = true);
            return Err(PublishError::Foreign(owner));
        }
    }
    let meta = &secret.metadata;
    if secret.immutable == Some(true) || secret.type_.as_deref().is_some_and(|kind| kind != names::SECRET_TYPE_TARGET) {
        return Err(PublishError::Refused("it became immutable; it will be made again".to_owned()));
    }
    let version = meta.resource_version.clone().unwrap_or_default();
    let fence = Fence {
        uid: meta.uid.as_deref().unwrap_or_default(),
        resource_version: &version,
        applied: meta.annotations.as_ref().and_then(|map| map.get(names::ANNOTATION_APPLIED)).map(String::as_str),
        has_annotations: meta.annotations.is_some(),
    };
    let params = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
    let written = observe::secrets(context, namespace)
        .patch_metadata(name, &params, &json_patch(&fence, content, meta.labels.is_some()))
        .await;
    written.map(|partial| partial.metadata).map_err(|error| PublishError::Refused(told_by(&error)))
}

/// The Secret that a patch was made for.
struct Fence<'a> {
    uid: &'a str,
    resource_version: &'a str,
    applied: Option<&'a str>,
    has_annotations: bool,
}

async fn patch(
    credential: &MailCredential,
    name: &str,
    fence: &Fence<'_>,
    content: &Content,
    context: &Context,
) -> Result<ObjectMeta, PublishError> {
    let namespace = checks::namespace(credential);
    let params = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
    let patch = json_patch(fence, content, true);
    match observe::secrets(context, namespace).patch_metadata(name, &params, &patch).await {
        Ok(partial) => Ok(partial.metadata),
        Err(kube::Error::Api(status)) if status.code == 404 => create(credential, name, content, context).await,
        // Stale, or its labels went away, or it became immutable: look at it, then decide.
        Err(kube::Error::Api(status)) if status.code == 409 || status.code == 422 => {
            over_existing(credential, name, content, context).await
        }
        Err(error) => Err(PublishError::Refused(told_by(&error))),
    }
}

/// RFC 6902. `replace` of uid and resourceVersion makes the API server refuse a stale write with 409.
fn json_patch(fence: &Fence<'_>, content: &Content, has_labels: bool) -> Patch<()> {
    let mut operations = vec![
        json!({"op": "replace", "path": "/metadata/uid", "value": fence.uid}),
        json!({"op": "replace", "path": "/metadata/resourceVersion", "value": fence.resource_version}),
        json!({"op": "add", "path": "/data", "value": content.data}),
        json!({"op": "add", "path": "/metadata/ownerReferences", "value": content.owners}),
    ];
    let applied = Applied::read(fence.applied);
    let maps = [
        ("labels", &content.labels, applied.labels, has_labels),
        ("annotations", &content.annotations, applied.annotations, fence.has_annotations),
    ];
    for (map, wanted, before, exists) in maps {
        if !exists {
            operations.push(json!({"op": "add", "path": format!("/metadata/{map}"), "value": {}}));
        }
        let path = |key: &str| format!("/metadata/{map}/{}", key.replace('~', "~0").replace('/', "~1"));
        let ours = optional_annotations().filter(|_| map == "annotations").map(str::to_owned);
        for gone in before.into_iter().chain(ours).filter(|key| !wanted.contains_key(key)) {
            // `remove` of what is not there is an error; what has just been added is there.
            operations.push(json!({"op": "add", "path": path(&gone), "value": ""}));
            operations.push(json!({"op": "remove", "path": path(&gone)}));
        }
        operations.extend(wanted.iter().map(|(key, value)| json!({"op": "add", "path": path(key), "value": value})));
    }
    let patch = serde_json::from_value(Value::Array(operations)).unwrap_or_default();
    Patch::Json(patch)
}

/// Annotations of ours that not every Secret has.
fn optional_annotations() -> impl Iterator<Item = &'static str> {
    [
        names::ANNOTATION_REFRESH_AT,
        names::ANNOTATION_SCOPES,
        names::ANNOTATION_HANDLED_REISSUE,
        names::ANNOTATION_APPLIED,
    ]
    .into_iter()
}

/// Which labels and annotations came from the spec.
#[derive(Default, serde::Deserialize, serde::Serialize)]
struct Applied {
    labels: Vec<String>,
    annotations: Vec<String>,
}

impl Applied {
    fn read(annotation: Option<&str>) -> Self {
        annotation.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    fn of(credential: &MailCredential) -> Option<String> {
        let template = &credential.spec.secret;
        let applied = Self {
            labels: template.labels.keys().cloned().collect(),
            annotations: template.annotations.keys().cloned().collect(),
        };
        let any = !applied.labels.is_empty() || !applied.annotations.is_empty();
        any.then(|| serde_json::to_string(&applied).unwrap_or_default())
    }
}

fn content(
    credential: &MailCredential,
    provider: &crate::policy::observed::Provider,
    token: &Token,
    issued_for: &str,
    reissue: Option<&str>,
) -> Content {
    let template = &credential.spec.secret;
    let mut annotations = template.annotations.clone();
    let mut note = |name: &str, value: Option<String>| value.map(|value| annotations.insert(name.to_owned(), value));
    note(names::ANNOTATION_ISSUED_AT, Some(rfc3339(token.issued_at)));
    note(names::ANNOTATION_EXPIRES_AT, Some(rfc3339(token.expires_at)));
    note(names::ANNOTATION_REFRESH_AT, token.refresh_at.map(rfc3339));
    note(names::ANNOTATION_FINGERPRINT, Some(token.fingerprint()));
    note(names::ANNOTATION_ISSUED_FOR, Some(issued_for.to_owned()));
    note(names::ANNOTATION_LAYOUT, Some(provider.layout.clone()));
    note(names::ANNOTATION_SCOPES, Some(token.scopes.join(" ")).filter(|scopes| !scopes.is_empty()));
    note(names::ANNOTATION_HANDLED_REISSUE, reissue.map(str::to_owned));
    note(names::ANNOTATION_APPLIED, Applied::of(credential));
    Content {
        data: render(credential, &provider.profile, token),
        labels: labels(credential),
        annotations,
        owners: owners(credential),
    }
}

fn labels(credential: &MailCredential) -> BTreeMap<String, String> {
    let own = [
        (names::LABEL_MANAGED_BY.to_owned(), names::MANAGER.to_owned()),
        (names::LABEL_CREDENTIAL.to_owned(), names::label_value(&credential.name_any())),
    ];
    credential.spec.secret.labels.clone().into_iter().chain(own).collect()
}

fn owners(credential: &MailCredential) -> Vec<OwnerReference> {
    match credential.spec.secret.deletion_policy {
        DeletionPolicy::Retain => vec![],
        // Without blockOwnerDeletion, which would need another permission where OwnerReferencesPermissionEnforcement is on.
        DeletionPolicy::Delete => vec![OwnerReference {
            api_version: MailCredential::api_version(&()).into_owned(),
            kind: MailCredential::kind(&()).into_owned(),
            name: credential.name_any(),
            uid: credential.uid().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: None,
        }],
    }
}

/// Whether a Secret's labels, annotations and owners are as the broker writes them. Annotations about the token are
/// compared with its data elsewhere.
pub(super) fn dressed(meta: &ObjectMeta, credential: &MailCredential) -> bool {
    let has = |map: &Option<BTreeMap<String, String>>, wanted: &BTreeMap<String, String>| {
        wanted.iter().all(|(key, value)| map.as_ref().and_then(|map| map.get(key)) == Some(value))
    };
    let owners = owners(credential);
    let owned = meta
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.controller == Some(true) && Some(&owner.uid) == credential.metadata.uid.as_ref());
    has(&meta.labels, &labels(credential))
        && has(&meta.annotations, &credential.spec.secret.annotations)
        && owned != owners.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::fixtures::credential;

    #[test]
    fn labels_that_were_dropped_from_the_spec_are_removed_and_others_stay() {
        let content = Content {
            data: BTreeMap::new(),
            labels: BTreeMap::from([("team/x".into(), "a".into())]),
            annotations: BTreeMap::new(),
            owners: vec![],
        };
        let fence = Fence {
            uid: "u",
            resource_version: "7",
            applied: Some(r#"{"labels":["old"],"annotations":[]}"#),
            has_annotations: false,
        };
        let Patch::Json(patch) = json_patch(&fence, &content, true) else { panic!("no JSON Patch") };
        let text = serde_json::to_string(&patch).unwrap();
        assert!(text.contains(r#"{"op":"remove","path":"/metadata/labels/old"}"#));
        assert!(text.contains(r#"{"op":"add","path":"/metadata/labels/team~1x","value":"a"}"#));
        assert!(text.contains(r#"{"op":"replace","path":"/metadata/resourceVersion","value":"7"}"#));
        assert!(text.contains(r#"{"op":"add","path":"/metadata/annotations","value":{}}"#));
    }

    #[test]
    fn a_retained_secret_has_no_owner() {
        let mut credential = credential();
        assert_eq!(owners(&credential)[0].controller, Some(true));
        credential.spec.secret.deletion_policy = DeletionPolicy::Retain;
        assert!(owners(&credential).is_empty());
    }
}
