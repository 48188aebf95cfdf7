//! Reads and writes the grant Secret. Uid and resourceVersion fence each write.

use std::sync::Arc;

use json_patch::PatchOperation;
use k8s_openapi::{api::core::v1::Secret, jiff::SignedDuration};
use kube::{ResourceExt as _, core::ObjectMeta};
use serde::Serialize;
use serde_json::json;

use crate::{
    api::{
        MailCredential,
        names::{self, rfc3339},
    },
    error::{WRITE_SECRET, describe, status_code},
    fail_point,
    policy::{
        checks,
        grant::{Claim, GrantSecret},
        ownership::{self, Ownership},
        rejected_write::{self, GrantRejection, Rejection},
        secret_metadata::{grant_is_in_sync, grant_labels, owners},
    },
    reconcile::{
        context::Context,
        credential_cache::CredentialCache,
        custody::{
            data::{Data, wiped},
            pending::CustodyError,
        },
        json_patch::{ANNOTATIONS, LABELS, add, create_map, fence, set, unset},
        memory_budget::USUAL_SECRET,
    },
    stores::slim,
};

/// Wait before the broker writes labels and owner again, after another writer has reverted them.
const SYNC_AGAIN: SignedDuration = SignedDuration::from_mins(1);

/// Checks that a Secret with the grant Secret's name belongs to the credential.
///
/// # Errors
/// A description of the object that owns the Secret.
pub(super) fn belongs(meta: &ObjectMeta, credential: &MailCredential) -> Result<(), String> {
    match ownership::of_grant(meta, credential) {
        Ownership::Foreign(owner) => Err(owner),
        Ownership::Own | Ownership::Takeover => Ok(()),
    }
}

/// Reads the grant Secret with its data.
///
/// # Errors
/// [`CustodyError::Foreign`] if the Secret with that name belongs to another object.
pub(super) async fn read_grant(
    credential: &MailCredential,
    context: &Context,
) -> Result<Option<(GrantSecret, Data)>, CustodyError> {
    let name = names::grant_secret(&credential.name_any());
    let namespace = checks::namespace(credential);
    let _reservation = context.kubernetes.secrets.reads.reserve(namespace, USUAL_SECRET).await;
    let Some(mut secret) = context.kubernetes.secrets.read(namespace, &name).await? else {
        context.cache.with(checks::uid(credential), |entry| entry.custody.grant = None);
        return Ok(None);
    };
    let data = Data::take(&mut secret);
    if let Err(owner) = belongs(&secret.metadata, credential) {
        remember(credential, secret.metadata, &context.cache);
        return Err(CustodyError::Foreign(owner));
    }
    let stored = GrantSecret::read(&secret.metadata);
    remember(credential, secret.metadata, &context.cache);
    Ok(Some((stored, data)))
}

fn remember(credential: &MailCredential, mut meta: ObjectMeta, cache: &CredentialCache) {
    slim::own_secret(&mut meta);
    cache.with(checks::uid(credential), |entry| entry.custody.grant = Some(Arc::new(meta)));
}

/// Returns an empty grant Secret, for a Secret that does not exist yet.
pub(super) fn absent(credential: &MailCredential) -> GrantSecret {
    GrantSecret { name: names::grant_secret(&credential.name_any()), ..GrantSecret::default() }
}

/// Writes only the claim. Returns the Secret with its data from the response.
pub(super) async fn write_claim(
    credential: &MailCredential,
    stored: &GrantSecret,
    claim: &Claim,
    context: &Context,
) -> Result<Secret, CustodyError> {
    let operations = fence(&stored.uid, &stored.resource_version)
        .into_iter()
        .chain(annotate(stored, [(names::ANNOTATION_CLAIM, Some(encoded(claim)?))]))
        .collect();
    let namespace = checks::namespace(credential);
    let _reservation = context.kubernetes.secrets.reads.reserve(namespace, USUAL_SECRET).await;
    let written = context.kubernetes.secrets.patch_and_read(namespace, &stored.name, operations).await;
    let secret = take(written, stored, credential, context).await?;
    remember(credential, secret.metadata.clone(), &context.cache);
    Ok(secret)
}

/// Writes data, labels, owner and annotations.
pub(super) async fn write(
    credential: &MailCredential,
    stored: &GrantSecret,
    data: &Data,
    context: &Context,
) -> Result<ObjectMeta, CustodyError> {
    let (namespace, secrets) = (checks::namespace(credential), &context.kubernetes.secrets);
    let entries = data.entries();
    let annotations = annotations(stored)?;
    let written = if stored.uid.is_empty() {
        let owners = owners(credential);
        let annotations = annotations.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        let metadata = ObjectMeta {
            namespace: Some(namespace.to_owned()),
            name: Some(stored.name.clone()),
            labels: Some(grant_labels(credential)),
            annotations: Some(annotations.collect()),
            owner_references: Some(owners).filter(|owners| !owners.is_empty()),
            ..ObjectMeta::default()
        };
        secrets.create(&metadata, names::SECRET_TYPE_GRANT, &entries).await
    } else {
        let operations = fence(&stored.uid, &stored.resource_version)
            .into_iter()
            .chain(metadata_operations(stored, credential))
            .chain(annotate(stored, annotations))
            .collect();
        secrets.patch(namespace, &stored.name, operations, Some(&entries)).await
    };
    drop(entries);
    let meta = take(written, stored, credential, context).await?;
    fail_point::pass("grant-written").await;
    remember(credential, meta.clone(), &context.cache);
    Ok(meta)
}

/// Writes only labels and owner.
pub(in crate::reconcile) async fn sync_metadata(
    credential: &MailCredential,
    stored: &GrantSecret,
    context: &Context,
) -> Result<(), CustodyError> {
    let operations = fence(&stored.uid, &stored.resource_version)
        .into_iter()
        .chain(metadata_operations(stored, credential))
        .collect();
    let written = context.kubernetes.secrets.patch(checks::namespace(credential), &stored.name, operations, None).await;
    let meta = take(written, stored, credential, context).await?;
    if !grant_is_in_sync(&meta, credential) {
        // An admission webhook or another controller reverted the write. No other write waits for the retry.
        tracing::warn!("labels or owner of the grant Secret reverted by another writer: retrying later");
        let again = context.clock.now() + SYNC_AGAIN;
        context.cache.with(checks::uid(credential), |entry| entry.custody.sync_again = Some(again));
    }
    remember(credential, meta, &context.cache);
    Ok(())
}

fn metadata_operations(stored: &GrantSecret, credential: &MailCredential) -> Vec<PatchOperation> {
    let map = (!stored.has_labels).then(|| create_map(LABELS));
    let owners = add(["ownerReferences"], json!(owners(credential)));
    let labels = grant_labels(credential);
    let labels = labels.iter().map(|(key, value)| set(LABELS, key, value));
    map.into_iter().chain([owners]).chain(labels).collect()
}

/// Checks the result of a write. After 404, 409 or 422 reads the Secret again, because admission may answer with these
/// codes too.
async fn take<T>(
    written: kube::Result<T>,
    stored: &GrantSecret,
    credential: &MailCredential,
    context: &Context,
) -> Result<T, CustodyError> {
    let error = match written {
        Ok(written) => return Ok(written),
        Err(error) => error,
    };
    if Rejection::of(status_code(&error)) != Rejection::Refused {
        let name = names::grant_secret(&credential.name_any());
        let read = context.kubernetes.secrets.read(checks::namespace(credential), &name).await?;
        let meta = read.map(wiped);
        let found = meta
            .as_ref()
            .map(|meta| (meta.resource_version.as_deref().unwrap_or_default(), ownership::of_grant(meta, credential)));
        let rejection = rejected_write::of_grant_write(&stored.resource_version, found);
        match meta {
            Some(meta) => remember(credential, meta, &context.cache),
            None => context.cache.with(checks::uid(credential), |entry| entry.custody.grant = None),
        }
        match rejection {
            GrantRejection::Foreign(owner) => return Err(CustodyError::Foreign(owner)),
            GrantRejection::Stale => return Err(CustodyError::Stale),
            GrantRejection::Refused => {}
        }
    }
    context.metrics.reconcile_error(WRITE_SECRET);
    Err(CustodyError::Refused(describe(&error)))
}

/// Returns the operations that set annotations, and remove annotations without a value.
fn annotate<'a>(
    stored: &GrantSecret,
    annotations: impl IntoIterator<Item = (&'a str, Option<String>)>,
) -> impl Iterator<Item = PatchOperation> {
    let map = (!stored.has_annotations).then(|| create_map(ANNOTATIONS));
    let each = annotations.into_iter().flat_map(|(key, value)| match value {
        Some(value) => vec![set(ANNOTATIONS, key, &value)],
        None => unset(ANNOTATIONS, key).to_vec(),
    });
    map.into_iter().chain(each)
}

/// Returns the annotations that [`GrantSecret::read`] reads. A write removes those with `None`.
fn annotations(stored: &GrantSecret) -> Result<[(&'static str, Option<String>); 10], CustodyError> {
    let token = stored.token.as_ref();
    Ok([
        (names::ANNOTATION_FINGERPRINT, token.map(|token| token.hash.to_string())),
        (names::ANNOTATION_ISSUED_FOR, token.map(|token| token.bound_to.to_string())),
        (
            names::ANNOTATION_REVOCABLE_AT,
            token.map(|token| token.revocable_at.to_string()).filter(|revocable_at| !revocable_at.is_empty()),
        ),
        (names::ANNOTATION_OBTAINED_AT, token.map(|token| rfc3339(token.obtained_at))),
        (names::ANNOTATION_LAST_USED_AT, token.and_then(|token| token.last_used_at).map(rfc3339)),
        (names::ANNOTATION_EXPIRES_AT, token.and_then(|token| token.expires_at).map(rfc3339)),
        (names::ANNOTATION_ROTATIONS, token.map(|token| token.rotations.to_string())),
        (names::ANNOTATION_SEED, stored.seed.as_ref().map(encoded).transpose()?),
        (names::ANNOTATION_CLAIM, stored.claim.as_ref().map(encoded).transpose()?),
        (names::ANNOTATION_SIGN_IN, stored.sign_in.as_ref().map(encoded).transpose()?),
    ])
}

/// Encodes the value of an annotation as JSON. An encoding error fails the write. Otherwise the write would remove
/// the claim, and another replica could send the refresh token.
fn encoded(value: &impl Serialize) -> Result<String, CustodyError> {
    serde_json::to_string(value)
        .map_err(|error| CustodyError::Refused(format!("an annotation cannot be encoded: {error}")))
}
