//! Decides from a Secret's metadata which object the Secret belongs to. The broker writes only Secrets that belong to
//! the credential. It must never overwrite the Secret of another controller or user, and never store a refresh token in
//! a Secret that pods mount.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource as _, ResourceExt as _, core::ObjectMeta};

use super::secret_metadata::controller_of;
use crate::api::{MailCredential, names};

/// The object that a Secret belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// The Secret belongs to the credential.
    Own,
    /// The Secret belongs to another credential that was deleted, or that must leave the Secret to this credential.
    /// This credential may take the Secret over.
    Takeover,
    /// The Secret belongs to another object. The text completes the sentence "the Secret x …".
    Foreign(String),
}

/// The state of the MailCredential that controls a Secret, from the stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerState {
    /// The credential exists.
    Exists {
        /// Whether the controlling credential wants the same target, but another credential has the better right to the
        /// target (see [`super::rival`]).
        gives_way: bool,
    },
    /// The credential exists, but this version of the broker cannot parse it.
    Unreadable,
    /// No credential of this name and uid exists.
    Gone,
}

/// Decides which object a target Secret belongs to. `state` returns the state of the MailCredential that controls the
/// Secret.
pub fn of_target(
    meta: &ObjectMeta,
    credential: &MailCredential,
    state: impl FnOnce(&OwnerReference) -> OwnerState,
) -> Ownership {
    if label(meta, names::LABEL_ROLE) == Some(names::ROLE_GRANT) {
        return Ownership::Foreign("keeps a refresh token".to_owned());
    }
    match controller_of(meta) {
        Some(owner) if Some(&owner.uid) == credential.metadata.uid.as_ref() => Ownership::Own,
        Some(owner) if is_credential(owner) => match state(owner) {
            OwnerState::Exists { gives_way: true } | OwnerState::Gone => Ownership::Takeover,
            OwnerState::Exists { gives_way: false } => {
                Ownership::Foreign(format!("belongs to the MailCredential {}", owner.name))
            }
            OwnerState::Unreadable => Ownership::Foreign(format!(
                "belongs to the MailCredential {}, which this version of the broker cannot read",
                owner.name
            )),
        },
        Some(owner) => Ownership::Foreign(format!("belongs to the {} {}", owner.kind, owner.name)),
        None if label(meta, names::LABEL_MANAGED_BY) == Some(names::MANAGER) && is_labelled_for(meta, credential) => {
            Ownership::Own
        }
        None => Ownership::Foreign(stranger(meta)),
    }
}

/// Decides which object a Secret with the grant Secret's name belongs to. The result is never a takeover: the grant
/// Secret of a deleted credential holds the refresh token of that credential.
pub fn of_grant(meta: &ObjectMeta, credential: &MailCredential) -> Ownership {
    // Only a target Secret has this annotation, and pods mount target Secrets.
    if meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(names::ANNOTATION_LAYOUT)) {
        return Ownership::Foreign("is a Secret that pods mount".to_owned());
    }
    match controller_of(meta) {
        Some(owner) if Some(&owner.uid) == credential.metadata.uid.as_ref() => Ownership::Own,
        Some(owner) if owner.kind == MailCredential::kind(&()) && owner.name == credential.name_any() => {
            Ownership::Foreign(
                "belongs to a MailCredential of this name that was deleted, and will be deleted with it".to_owned(),
            )
        }
        Some(owner) => Ownership::Foreign(format!("belongs to the {} {}", owner.kind, owner.name)),
        None if label(meta, names::LABEL_ROLE) == Some(names::ROLE_GRANT) && is_labelled_for(meta, credential) => {
            Ownership::Own
        }
        None => Ownership::Foreign(stranger(meta)),
    }
}

/// Describes a Secret that neither an owner nor the labels connect with the credential.
fn stranger(meta: &ObjectMeta) -> String {
    match label(meta, names::LABEL_MANAGED_BY) {
        Some(tool) if tool != names::MANAGER => format!("is managed by {tool} (label {})", names::LABEL_MANAGED_BY),
        _ => "was not made by this MailCredential".to_owned(),
    }
}

fn is_credential(owner: &OwnerReference) -> bool {
    owner.kind == MailCredential::kind(&()) && owner.api_version == MailCredential::api_version(&())
}

fn is_labelled_for(meta: &ObjectMeta, credential: &MailCredential) -> bool {
    label(meta, names::LABEL_CREDENTIAL) == Some(names::label_value(&credential.name_any()).as_str())
}

fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    let labels: &BTreeMap<_, _> = meta.labels.as_ref()?;
    labels.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::credential;
    use crate::policy::secret_metadata::{grant_labels, owners, target_labels};

    fn credential_with_uid() -> MailCredential {
        let mut credential = credential();
        credential.metadata.uid = Some("uid".to_owned());
        credential
    }

    /// A controller: kind, apiVersion, name, uid.
    fn owner(kind: &str, api_version: &str, name: &str, uid: &str) -> Vec<OwnerReference> {
        let reference = OwnerReference {
            kind: kind.to_owned(),
            api_version: api_version.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            controller: Some(true),
            block_owner_deletion: None,
        };
        vec![reference]
    }

    fn meta(labels: BTreeMap<String, String>, owners: Vec<OwnerReference>, annotations: &[&str]) -> ObjectMeta {
        let annotations = annotations.iter().map(|key| ((*key).to_owned(), String::new())).collect();
        ObjectMeta {
            labels: Some(labels),
            owner_references: Some(owners),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }
    }

    /// The text about a foreign owner, otherwise `own` or `takeover`.
    fn words(ownership: Ownership) -> String {
        match ownership {
            Ownership::Own => "own".to_owned(),
            Ownership::Takeover => "takeover".to_owned(),
            Ownership::Foreign(words) => words,
        }
    }

    #[test]
    fn a_target_belongs_to_its_controller_and_without_one_to_the_credential_in_its_labels() {
        use OwnerState::{Exists, Gone, Unreadable};
        let credential = credential_with_uid();
        let name = credential.name_any();
        let labels = || target_labels(&credential);
        let version = MailCredential::api_version(&()).into_owned();
        let other = || owner("MailCredential", &version, "other", "uid of other");
        let mut of_another = labels();
        of_another.insert(names::LABEL_CREDENTIAL.to_owned(), "other".to_owned());
        let mut not_managed = labels();
        not_managed.remove(names::LABEL_MANAGED_BY);
        let not_controlling = || {
            let mut owners = owner("Deployment", "apps/v1", "app", "uid of app");
            owners[0].controller = None;
            owners
        };
        let of_helm = || BTreeMap::from([(names::LABEL_MANAGED_BY.to_owned(), "Helm".to_owned())]);
        let managed = "is managed by Helm (label app.kubernetes.io/managed-by)";
        let foreign = "was not made by this MailCredential";
        for (labels, owners, state, expected) in [
            (labels(), owners(&credential), Gone, "own"),
            (BTreeMap::new(), owners(&credential), Gone, "own"),
            (labels(), vec![], Gone, "own"),
            (labels(), not_controlling(), Gone, "own"),
            (BTreeMap::new(), vec![], Gone, foreign),
            (of_another, vec![], Gone, foreign),
            (not_managed, vec![], Gone, foreign),
            (of_helm(), vec![], Gone, managed),
            (of_helm(), not_controlling(), Gone, managed),
            (of_helm(), owners(&credential), Gone, "own"),
            (labels(), other(), Gone, "takeover"),
            (labels(), other(), Exists { gives_way: true }, "takeover"),
            (labels(), other(), Exists { gives_way: false }, "belongs to the MailCredential other"),
            (
                labels(),
                other(),
                Unreadable,
                "belongs to the MailCredential other, which this version of the broker cannot read",
            ),
            // An earlier credential of this name, with another uid.
            (labels(), owner("MailCredential", &version, &name, "uid before"), Gone, "takeover"),
            // A forged owner, or the kind of another group, never allows a takeover.
            (
                labels(),
                owner("MailCredential", "example.org/v1", "other", "x"),
                Gone,
                "belongs to the MailCredential other",
            ),
            (labels(), owner("Certificate", "cert-manager.io/v1", "tls", "x"), Gone, "belongs to the Certificate tls"),
            (grant_labels(&credential), owners(&credential), Gone, "keeps a refresh token"),
            (grant_labels(&credential), vec![], Gone, "keeps a refresh token"),
        ] {
            let meta = meta(labels, owners, &[]);
            assert_eq!(words(of_target(&meta, &credential, |_| state)), expected, "{meta:?} {state:?}");
        }
        assert_eq!(words(of_target(&ObjectMeta::default(), &credential, |_| Gone)), foreign);
    }

    #[test]
    fn a_grant_secret_is_never_taken_over() {
        let credential = credential_with_uid();
        let name = credential.name_any();
        let labels = || grant_labels(&credential);
        let version = MailCredential::api_version(&()).into_owned();
        let foreign = "was not made by this MailCredential";
        for (labels, owners, annotations, expected) in [
            (labels(), owners(&credential), &[][..], "own"),
            (BTreeMap::new(), owners(&credential), &[], "own"),
            (labels(), vec![], &[], "own"),
            (BTreeMap::new(), vec![], &[], foreign),
            // The labels of a target.
            (target_labels(&credential), vec![], &[], foreign),
            (
                labels(),
                owner("MailCredential", &version, &name, "uid before"),
                &[],
                "belongs to a MailCredential of this name that was deleted, and will be deleted with it",
            ),
            (labels(), owner("MailCredential", &version, "other", "x"), &[], "belongs to the MailCredential other"),
            (labels(), owner("Certificate", "cert-manager.io/v1", "tls", "x"), &[], "belongs to the Certificate tls"),
        ] {
            let meta = meta(labels, owners, annotations);
            assert_eq!(words(of_grant(&meta, &credential)), expected, "{meta:?}");
        }
    }

    #[test]
    fn a_refresh_token_is_never_kept_in_a_secret_that_pods_mount() {
        let credential = credential_with_uid();
        for owners in [owners(&credential), vec![]] {
            let meta = meta(grant_labels(&credential), owners, &[names::ANNOTATION_LAYOUT]);
            assert_eq!(words(of_grant(&meta, &credential)), "is a Secret that pods mount", "{meta:?}");
        }
    }
}
