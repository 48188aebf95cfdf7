//! Writes target Secrets. The first write is a POST, every later write is a JSON Patch that is fenced by uid and
//! resourceVersion. So the broker never overwrites a foreign Secret, and a former leader never overwrites a newer token.

mod content;

use std::sync::Arc;

use kube::core::ObjectMeta;
use thiserror::Error as ThisError;

use crate::{
    api::{MailCredential, Reason, credential::DeletionPolicy, names},
    error::{Error, WRITE_SECRET, describe, status_code},
    fail_point,
    oauth::token::TokenFingerprint,
    policy::{
        Blocker, Observed, checks,
        hash::InputsHash,
        notices::{self, EventNote},
        observed::{Published, Target, TokenFacts},
        ownership::Ownership,
        refresh_response::is_overtaken,
        rejected_write::Rejection,
        secret_metadata::must_recreate,
        stored::{Stored, stored_token},
    },
    reconcile::{
        context::Context,
        publish::content::{Content, Existing, content, metadata_patch},
        secrets::Secrets,
    },
    render::SECRET_MAX,
    stores::slim,
};

pub(super) use crate::reconcile::publish::content::too_large;

/// Why the broker did not write a Secret.
#[derive(Debug, ThisError)]
pub enum PublishError {
    /// The Secret with this name belongs to another object.
    #[error("the Secret {0}")]
    Foreign(String),
    /// The API server refuses the write: quota, admission, a terminating namespace, permissions.
    #[error("{0}")]
    Refused(String),
    /// The Secret contains a newer token.
    #[error("another broker has written a newer token")]
    Overtaken,
    /// The Secret that the spec requires would be larger than Kubernetes allows.
    #[error("{}", .0.message)]
    Blocked(Blocker),
    /// Another step failed in Kubernetes.
    #[error(transparent)]
    Kubernetes(#[from] Error),
}

/// Writes the unwritten token into the target Secret, and records the success.
pub(super) async fn store(observed: &mut Observed, context: &Context) -> Result<(), PublishError> {
    let Some(unwritten) = observed.unwritten.clone() else { return Ok(()) };
    let known = observed.token().and_then(|token| token.unsuitable.clone());
    let stored = Stored {
        token: unwritten.answer.token.clone(),
        revocable_at: unwritten.revocable_at.clone(),
        object_id: unwritten.object_id.clone(),
        unsuitable: unwritten.unsuitable.clone(),
    };
    write(observed, &stored, &unwritten.issued_for, unwritten.reissue.as_deref(), context).await?;
    context.cache.with(checks::uid(&observed.credential), |entry| entry.attempt.unwritten = None);
    if let Some(note) = unwritten.unsuitable.clone().filter(|note| Some(note) != known.as_ref()) {
        let notice = EventNote { warning: true, reason: Reason::TokenUnsuitable, note };
        context.kubernetes.events.emit(&observed.credential, &notice, context.clock.now());
    }
    observed.unwritten = None;
    observed.history.succeed(&unwritten);
    for assumption in &unwritten.answer.assumed {
        context.kubernetes.events.emit(&observed.credential, &notices::assumed(*assumption), context.clock.now());
    }
    Ok(())
}

/// Writes the stored token again, in another layout or under another name.
pub(super) async fn publish_again(observed: &mut Observed, context: &Context) -> Result<(), PublishError> {
    let namespace = checks::namespace(&observed.credential).to_owned();
    let Some(from) = observed.target.own().or(observed.previous.as_ref()).cloned() else { return Ok(()) };
    let reported = observed.credential.status.as_ref().and_then(|status| status.token.as_ref());
    let stored = {
        let _reservation = context.kubernetes.secrets.reads.reserve(&namespace, SECRET_MAX).await;
        let secret = context.kubernetes.secrets.read(&namespace, &from.name).await?;
        secret.as_ref().and_then(|secret| stored_token(secret, reported))
    };
    let Some((token, _)) = stored else {
        // Another writer removed the token after the observation. The next reconcile obtains a new token.
        context.cache.with(checks::uid(&observed.credential), |entry| entry.object.inspected = None);
        return Ok(());
    };
    let repaired = !from.intact;
    write(observed, &token, &from.issued_for, from.handled_reissue.as_deref(), context).await?;
    if repaired {
        tracing::info!(secret = from.name, "Secret repaired: another writer changed it");
    }
    observed.history.recover();
    Ok(())
}

/// Deletes the Secret of the former name, if the Secret of the new name contains the token.
pub(super) async fn remove_previous(observed: &Observed, secrets: &Secrets) -> Result<(), Error> {
    let (Some(previous), Some(_)) = (&observed.previous, observed.token()) else { return Ok(()) };
    if observed.credential.spec.secret.deletion_policy == DeletionPolicy::Retain {
        return Ok(());
    }
    secrets.delete(checks::namespace(&observed.credential), &previous.name, &previous.uid).await
}

async fn write(
    observed: &mut Observed,
    stored: &Stored,
    issued_for: &InputsHash,
    reissue: Option<&str>,
    context: &Context,
) -> Result<(), PublishError> {
    let Ok(provider) = &observed.provider else { return Ok(()) };
    let token = &stored.token;
    let namespace = checks::namespace(&observed.credential);
    let _reservation = context.kubernetes.secrets.writes.reserve(namespace, provider.secret_size).await;
    let content = content(&observed.credential, provider, stored, issued_for, reissue)
        .map_err(|error| PublishError::Blocked(too_large(&observed.credential, &error)))?;
    let written = put(observed, &content, context).await;
    if matches!(written, Err(PublishError::Refused(_))) {
        context.metrics.reconcile_error(WRITE_SECRET);
    }
    let mut meta = written?;
    fail_point::pass("target-written").await;
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
            object_id: stored.object_id.clone(),
            unsuitable: stored.unsuitable.clone(),
            length: Some(secrecy::ExposeSecret::expose_secret(&token.access_token).len()),
        }),
        issued_for: issued_for.clone(),
        layout: provider.layout.clone(),
        applied: content.annotations.get(names::ANNOTATION_APPLIED).cloned(),
        has_annotations: true,
        handled_reissue: reissue.map(str::to_owned),
        intact: true,
        must_recreate: false,
    };
    slim::own_secret(&mut meta);
    context.cache.with(&uid, |entry| {
        entry.object.target = Some(Arc::new(meta));
        entry.object.inspected = None;
        entry.object.conflict = false;
    });
    observed.target = Target::Own(published);
    Ok(())
}

/// Writes the content into the target Secret: by a POST if the target does not exist, otherwise by a fenced patch.
async fn put(observed: &Observed, content: &Content, context: &Context) -> Result<ObjectMeta, PublishError> {
    let credential = &observed.credential;
    let (namespace, name) = (checks::namespace(credential), observed.target_name());
    match &observed.target {
        Target::Own(published) if published.must_recreate => {
            context.kubernetes.secrets.delete(namespace, &published.name, &published.uid).await?;
            create(credential, &name, content, context).await
        }
        Target::Own(published) => {
            let existing = Existing {
                uid: &published.uid,
                resource_version: &published.resource_version,
                applied: published.applied.as_deref(),
                // The watch shows the Secret, so it has the broker's labels.
                has_labels: true,
                has_annotations: published.has_annotations,
            };
            patch(credential, &name, &existing, content, context).await
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
    let metadata = ObjectMeta {
        namespace: Some(checks::namespace(credential).to_owned()),
        name: Some(name.to_owned()),
        labels: Some(content.labels.clone()),
        annotations: Some(content.annotations.clone()),
        owner_references: Some(content.owners.clone()).filter(|owners| !owners.is_empty()),
        ..ObjectMeta::default()
    };
    match context.kubernetes.secrets.create(&metadata, names::SECRET_TYPE_TARGET, &content.data).await {
        Ok(meta) => Ok(meta),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            over_existing(credential, name, content, context).await
        }
        Err(error) => Err(PublishError::Refused(describe(&error))),
    }
}

/// After a conflict: reads the Secret, checks its owner, and writes the Secret if it belongs to the credential.
async fn over_existing(
    credential: &MailCredential,
    name: &str,
    content: &Content,
    context: &Context,
) -> Result<ObjectMeta, PublishError> {
    let namespace = checks::namespace(credential);
    if !context.leadership.is_leader() {
        return Err(PublishError::Refused("another broker leads now, and may have written it".to_owned()));
    }
    let Some(secret) = context.kubernetes.secrets.read(namespace, name).await? else {
        return Err(PublishError::Refused("it was removed at the same moment".to_owned()));
    };
    match context.stores.ownership(&secret.metadata, credential, context.clock.now()) {
        Ownership::Own | Ownership::Takeover => {}
        Ownership::Foreign(owner) => {
            context.cache.with(checks::uid(credential), |entry| entry.object.conflict = true);
            return Err(PublishError::Foreign(owner));
        }
    }
    let meta = &secret.metadata;
    let annotation = |name: &str| content.annotations.get(name).map(String::as_str);
    let issued_at = annotation(names::ANNOTATION_ISSUED_AT).and_then(names::time);
    let fingerprint = TokenFingerprint::from(annotation(names::ANNOTATION_FINGERPRINT).unwrap_or_default());
    let stored = stored_token(&secret, None).map(|(stored, _)| (stored.token.issued_at, stored.token.fingerprint()));
    if let (Some((stored_at, stored)), Some(issued_at)) = (stored, issued_at)
        && is_overtaken((stored_at, &stored), (issued_at, &fingerprint))
    {
        context.cache.with(checks::uid(credential), |entry| {
            let mut meta = secret.metadata.clone();
            slim::own_secret(&mut meta);
            (entry.object.target, entry.object.inspected) = (Some(Arc::new(meta)), None);
        });
        return Err(PublishError::Overtaken);
    }
    if must_recreate(&secret) {
        // No watch shows the Secret without its labels: `conflict` makes the next reconcile read, delete and create it.
        context.cache.with(checks::uid(credential), |entry| entry.object.conflict = true);
        return Err(PublishError::Refused("it is immutable or has another type, and is created again".to_owned()));
    }
    let version = meta.resource_version.clone().unwrap_or_default();
    let existing = Existing {
        uid: meta.uid.as_deref().unwrap_or_default(),
        resource_version: &version,
        applied: meta.annotations.as_ref().and_then(|map| map.get(names::ANNOTATION_APPLIED)).map(String::as_str),
        has_labels: meta.labels.is_some(),
        has_annotations: meta.annotations.is_some(),
    };
    let operations = metadata_patch(&existing, content);
    let written = context.kubernetes.secrets.patch(namespace, name, operations, Some(&content.data)).await;
    written.map_err(|error| PublishError::Refused(describe(&error)))
}

async fn patch(
    credential: &MailCredential,
    name: &str,
    existing: &Existing<'_>,
    content: &Content,
    context: &Context,
) -> Result<ObjectMeta, PublishError> {
    let namespace = checks::namespace(credential);
    let operations = metadata_patch(existing, content);
    match context.kubernetes.secrets.patch(namespace, name, operations, Some(&content.data)).await {
        Ok(meta) => Ok(meta),
        Err(error) => match Rejection::of(status_code(&error)) {
            Rejection::Gone => create(credential, name, content, context).await,
            // The resourceVersion is old, the labels were removed, or the Secret is immutable now.
            Rejection::Outdated => over_existing(credential, name, content, context).await,
            Rejection::Refused => Err(PublishError::Refused(describe(&error))),
        },
    }
}
