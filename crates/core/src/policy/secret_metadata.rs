//! Labels, annotations and owner of the Secrets that the broker writes.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Resource as _, ResourceExt as _, core::ObjectMeta};

use crate::api::{MailCredential, credential::DeletionPolicy, names};

/// The labels of the target Secret: the spec's labels and the broker's.
pub fn target_labels(credential: &MailCredential) -> BTreeMap<String, String> {
    credential.spec.secret.labels.clone().into_iter().chain(own_labels(credential)).collect()
}

/// The labels of the grant Secret.
pub fn grant_labels(credential: &MailCredential) -> BTreeMap<String, String> {
    let role = (names::LABEL_ROLE.to_owned(), names::ROLE_GRANT.to_owned());
    own_labels(credential).into_iter().chain([role]).collect()
}

fn own_labels(credential: &MailCredential) -> [(String, String); 2] {
    [
        (names::LABEL_MANAGED_BY.to_owned(), names::MANAGER.to_owned()),
        (names::LABEL_CREDENTIAL.to_owned(), names::label_value(&credential.name_any())),
    ]
}

/// The owner references of the target Secret and the grant Secret. They are empty with `deletionPolicy: Retain`.
pub fn owners(credential: &MailCredential) -> Vec<OwnerReference> {
    match credential.spec.secret.deletion_policy {
        DeletionPolicy::Retain => vec![],
        // With blockOwnerDeletion, the admission plugin OwnerReferencesPermissionEnforcement would require another
        // permission.
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

/// Whether labels, annotations and owner of a target Secret are as the broker writes them. Another check compares the
/// annotations about the token with the data (see [`super::expiry`]).
pub fn target_is_in_sync(meta: &ObjectMeta, credential: &MailCredential) -> bool {
    let owned = meta
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.controller == Some(true) && Some(&owner.uid) == credential.metadata.uid.as_ref());
    contains(meta.labels.as_ref(), &target_labels(credential))
        && contains(meta.annotations.as_ref(), &credential.spec.secret.annotations)
        && owned != owners(credential).is_empty()
}

/// Whether the broker must delete and create a target Secret to change it: the Secret is immutable, or has another type.
/// The API server refuses to change either.
pub fn must_recreate(secret: &Secret) -> bool {
    secret.immutable == Some(true) || secret.type_.as_deref().is_some_and(|kind| kind != names::SECRET_TYPE_TARGET)
}

/// Whether labels and owner of a grant Secret are as the broker writes them.
pub fn grant_is_in_sync(meta: &ObjectMeta, credential: &MailCredential) -> bool {
    let wanted = owners(credential);
    let wanted = wanted.first().map(|owner| &owner.uid);
    contains(meta.labels.as_ref(), &grant_labels(credential)) && controller_of(meta).map(|owner| &owner.uid) == wanted
}

fn contains(map: Option<&BTreeMap<String, String>>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| map.and_then(|map| map.get(key)) == Some(value))
}

/// The owner that controls an object.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The name of the credential that a Secret of the broker belongs to, by its controller or its label. A label holds at most
/// 63 characters of the name.
pub fn credential_of(meta: &ObjectMeta) -> Option<String> {
    match controller_of(meta) {
        Some(owner) => Some(owner.name.clone()),
        None => meta.labels.as_ref()?.get(names::LABEL_CREDENTIAL).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::credential;

    #[test]
    fn a_secret_that_is_immutable_or_has_another_type_is_created_again() {
        for (immutable, kind, expected) in [
            (None, None, false),
            (Some(false), Some(names::SECRET_TYPE_TARGET), false),
            (Some(true), Some(names::SECRET_TYPE_TARGET), true),
            (None, Some("kubernetes.io/tls"), true),
        ] {
            let secret = Secret { immutable, type_: kind.map(str::to_owned), ..Secret::default() };
            assert_eq!(must_recreate(&secret), expected, "{immutable:?} {kind:?}");
        }
    }
    #[test]
    fn a_retained_secret_has_no_owner() {
        let mut credential = credential();
        assert_eq!(owners(&credential)[0].controller, Some(true));
        credential.spec.secret.deletion_policy = DeletionPolicy::Retain;
        assert!(owners(&credential).is_empty());
    }

    #[test]
    fn a_secret_is_in_sync_with_all_labels_and_just_the_owner_that_the_spec_wants() {
        let mut credential = credential();
        credential.metadata.uid = Some("uid".to_owned());
        let owned = owners(&credential);
        let meta = |labels: BTreeMap<String, String>, owners: &[OwnerReference]| ObjectMeta {
            labels: Some(labels),
            owner_references: Some(owners.to_vec()),
            ..ObjectMeta::default()
        };
        let mut more = grant_labels(&credential);
        more.insert("team".to_owned(), "x".to_owned());
        let mut foreign = owned.clone();
        foreign[0].uid = "another".to_owned();
        for (labels, owners, in_sync) in [
            (grant_labels(&credential), &owned, true),
            (more, &owned, true),
            (BTreeMap::new(), &owned, false),
            (grant_labels(&credential), &vec![], false),
            (grant_labels(&credential), &foreign, false),
        ] {
            assert_eq!(grant_is_in_sync(&meta(labels.clone(), owners), &credential), in_sync, "{labels:?} {owners:?}");
            assert_eq!(target_is_in_sync(&meta(labels, owners), &credential), in_sync, "{owners:?}");
        }
        credential.spec.secret.deletion_policy = DeletionPolicy::Retain;
        for (owners, in_sync) in [(&vec![], true), (&owned, false)] {
            assert_eq!(grant_is_in_sync(&meta(grant_labels(&credential), owners), &credential), in_sync);
            assert_eq!(target_is_in_sync(&meta(target_labels(&credential), owners), &credential), in_sync);
        }
    }

    #[test]
    fn a_secret_belongs_to_its_controller_or_to_the_credential_in_its_label() {
        let credential = credential();
        let labels = Some(target_labels(&credential));
        let mut other = owners(&credential);
        other[0].name = "other".to_owned();
        let meta = |owners: Option<Vec<OwnerReference>>| ObjectMeta {
            labels: labels.clone(),
            owner_references: owners,
            ..ObjectMeta::default()
        };
        assert_eq!(credential_of(&meta(Some(other))), Some("other".to_owned()));
        assert_eq!(credential_of(&meta(None)), Some(credential.name_any()));
        assert_eq!(credential_of(&ObjectMeta::default()), None);
    }
}
