//! Whose a Secret is, by its metadata.

use std::collections::BTreeMap;

use kube::{Resource as _, ResourceExt as _, core::ObjectMeta};

use crate::{
    api::{MailCredential, names},
    policy::{checks, observed::target_name},
    reconcile::Context,
    stores::{controller_of, unreadable::ObjectKind},
};

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
pub(in crate::reconcile) fn ownership(meta: &ObjectMeta, credential: &MailCredential, context: &Context) -> Ownership {
    let labels = meta.labels.clone().unwrap_or_default();
    let owner = controller_of(meta);
    if labels.get(names::LABEL_ROLE).is_some_and(|role| role == names::ROLE_GRANT) {
        return Ownership::Foreign("keeps a refresh token".to_owned());
    }
    match owner {
        Some(owner) if Some(&owner.uid) == credential.metadata.uid.as_ref() => Ownership::Own,
        Some(owner)
            if owner.kind == MailCredential::kind(&()) && owner.api_version == MailCredential::api_version(&()) =>
        {
            let namespace = checks::namespace(credential).to_owned();
            match context.stores.credentials.get(&namespace, &owner.name) {
                Some(other) if other.uid().as_ref() == Some(&owner.uid) => {
                    let gives_way = target_name(&other) == target_name(credential)
                        && context.stores.rival(&other, Some(meta), &context.links, context.clock.now()).is_some();
                    if gives_way {
                        Ownership::Takeover
                    } else {
                        Ownership::Foreign(format!("belongs to the MailCredential {}", owner.name))
                    }
                }
                _ if context.stores.unreadable.exists(ObjectKind::Credential, &(namespace, owner.name.clone())) => {
                    Ownership::Foreign(format!(
                        "belongs to the MailCredential {}, which this version of the broker cannot read",
                        owner.name
                    ))
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
