//! The content of a target Secret, and the patch that writes its metadata.

use std::collections::BTreeMap;

use ::json_patch::PatchOperation;
use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::OwnerReference};
use serde_json::json;

use crate::{
    api::{
        MailCredential, Reason,
        names::{self, rfc3339},
    },
    policy::{Blocker, commands::KubectlObject, hash::InputsHash, observed::Provider, secret_metadata, stored::Stored},
    reconcile::json_patch::{self, ANNOTATIONS, LABELS, create_map, set, unset},
    render::{TooLarge, render},
};

/// The content of a target Secret.
pub(super) struct Content {
    pub(super) data: BTreeMap<String, ByteString>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) owners: Vec<OwnerReference>,
}

/// The Secret that a patch changes, as the broker observed it.
pub(super) struct Existing<'a> {
    pub(super) uid: &'a str,
    pub(super) resource_version: &'a str,
    /// The annotation with the keys that the broker took from `spec.secret` before.
    pub(super) applied: Option<&'a str>,
    pub(super) has_labels: bool,
    pub(super) has_annotations: bool,
}

/// Returns the operations that write the metadata of the content. They fail if the Secret has changed meanwhile.
pub(super) fn metadata_patch(existing: &Existing<'_>, content: &Content) -> Vec<PatchOperation> {
    let mut operations = json_patch::fence(existing.uid, existing.resource_version).to_vec();
    operations.push(json_patch::add(["ownerReferences"], json!(content.owners)));
    let applied = Applied::read(existing.applied);
    let maps = [
        (LABELS, &content.labels, applied.labels, existing.has_labels),
        (ANNOTATIONS, &content.annotations, applied.annotations, existing.has_annotations),
    ];
    for (map, wanted, before, exists) in maps {
        if !exists {
            operations.push(create_map(map));
        }
        let ours = optional_annotations().filter(|_| map == ANNOTATIONS).map(str::to_owned);
        let gone = before.into_iter().chain(ours).filter(|key| !wanted.contains_key(key));
        operations.extend(gone.flat_map(|key| unset(map, &key)));
        operations.extend(wanted.iter().map(|(key, value)| set(map, key, value)));
    }
    operations
}

/// Returns the broker's annotations that a target Secret may lack.
fn optional_annotations() -> impl Iterator<Item = &'static str> {
    [
        names::ANNOTATION_REFRESH_AT,
        names::ANNOTATION_REVOCABLE_AT,
        names::ANNOTATION_SCOPES,
        names::ANNOTATION_HANDLED_REISSUE,
        names::ANNOTATION_OBJECT_ID,
        names::ANNOTATION_WARNING,
        names::ANNOTATION_APPLIED,
    ]
    .into_iter()
}

/// The keys of the labels and annotations that come from `spec.secret`.
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

pub(super) fn content(
    credential: &MailCredential,
    provider: &Provider,
    stored: &Stored,
    issued_for: &InputsHash,
    reissue: Option<&str>,
) -> Result<Content, TooLarge> {
    let template = &credential.spec.secret;
    let token = &stored.token;
    let mut annotations = template.annotations.clone();
    let mut note = |name: &str, value: Option<String>| value.map(|value| annotations.insert(name.to_owned(), value));
    note(names::ANNOTATION_ISSUED_AT, Some(rfc3339(token.issued_at)));
    note(names::ANNOTATION_EXPIRES_AT, Some(rfc3339(token.expires_at)));
    note(names::ANNOTATION_REFRESH_AT, token.refresh_at.map(rfc3339));
    note(names::ANNOTATION_FINGERPRINT, Some(token.fingerprint().to_string()));
    note(names::ANNOTATION_ISSUED_FOR, Some(issued_for.to_string()));
    note(names::ANNOTATION_REVOCABLE_AT, Some(stored.revocable_at.to_string()).filter(|at| !at.is_empty()));
    note(names::ANNOTATION_LAYOUT, Some(provider.layout.to_string()));
    note(names::ANNOTATION_SCOPES, Some(token.scopes.join(" ")).filter(|scopes| !scopes.is_empty()));
    note(names::ANNOTATION_HANDLED_REISSUE, reissue.map(str::to_owned));
    note(names::ANNOTATION_OBJECT_ID, stored.object_id.clone());
    note(names::ANNOTATION_WARNING, stored.unsuitable.clone());
    note(names::ANNOTATION_APPLIED, Applied::of(credential));
    Ok(Content {
        data: render(credential, &provider.profile, token)?,
        labels: secret_metadata::target_labels(credential),
        annotations,
        owners: secret_metadata::owners(credential),
    })
}

/// Returns the blocker for a Secret that would be larger than Kubernetes allows.
pub(in crate::reconcile) fn too_large(credential: &MailCredential, error: &TooLarge) -> Blocker {
    let edit = KubectlObject::credential(credential).command("edit");
    let message = format!("{error}: use the token less often in spec.secret.data[{}], with `{edit}`", error.key);
    Blocker::new(Reason::InvalidSpec, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_were_dropped_from_the_spec_are_removed_and_others_stay() {
        let content = Content {
            data: BTreeMap::new(),
            labels: BTreeMap::from([("team/x".into(), "a".into())]),
            annotations: BTreeMap::new(),
            owners: vec![],
        };
        let existing = Existing {
            uid: "u",
            resource_version: "7",
            applied: Some(r#"{"labels":["old"],"annotations":[]}"#),
            has_labels: true,
            has_annotations: false,
        };
        let text = serde_json::to_string(&metadata_patch(&existing, &content)).unwrap();
        assert!(text.contains(r#"{"op":"remove","path":"/metadata/labels/old"}"#));
        assert!(text.contains(r#"{"op":"add","path":"/metadata/labels/team~1x","value":"a"}"#));
        assert!(text.contains(r#"{"op":"replace","path":"/metadata/resourceVersion","value":"7"}"#));
        assert!(text.contains(r#"{"op":"add","path":"/metadata/annotations","value":{}}"#));
    }
}
