//! The Secrets that a credential refers to, as inputs of its attempts.

use crate::{
    api::{
        MailCredential, Reason,
        credential::ProviderKind,
        names,
        provider_object::{ProviderKey, source_secrets},
        reference::{KeyRef, ObjectKey},
    },
    policy::{Blocker, Observed, checks},
    reconcile::{context::Context, source_contents::SourceContents},
    stores::Stores,
};

/// The Secrets that a credential itself refers to.
fn own_sources(credential: &MailCredential) -> impl Iterator<Item = ObjectKey> {
    let namespace = checks::namespace(credential);
    credential.spec.grant.sources().map(move |source| (namespace.to_owned(), source.name.clone()))
}

/// The versions since which the Secrets that a credential itself refers to have their present content.
pub(super) fn source_versions(credential: &MailCredential, contents: &SourceContents) -> Vec<String> {
    own_sources(credential).map(|source| contents.since(&source)).collect()
}

/// Reads the sources of an attempt that failed before a restart, so that a change of their metadata does not end its
/// back-off.
pub(super) fn learn_sources(observed: &Observed, context: &Context) {
    let failed_with = observed.history.failed_with.as_ref();
    if failed_with.is_none_or(|with| *with != observed.attempt && *with != observed.sign_in_attempt()) {
        return;
    }
    let key = ProviderKey::of(&observed.credential);
    let home = context.stores.home(&key);
    let object = context.stores.provider(&key);
    let secrets = object.iter().flat_map(|object| source_secrets(object.spec()));
    let sources = secrets.map(|name| (home.to_owned(), name.to_owned())).chain(own_sources(&observed.credential));
    sources.for_each(|source| context.providers.contents.learn(&source));
}

/// Why a Secret cannot be a seed or a subject token: a provider of the namespace refers to it, and its keys are the
/// client's, not a person's.
pub(super) fn of_a_provider(reference: &KeyRef, namespace: &str, stores: &Stores) -> Option<Blocker> {
    let name = &reference.name;
    let providers = stores.references.by_secret(&(namespace.to_owned(), name.clone()));
    let provider = providers.iter().find(|key| stores.provider(key).is_some())?;
    // Tenants must not learn the name of a ClusterMailProvider that refers to the Secret.
    let whose = match provider.kind {
        ProviderKind::MailProvider => format!("the MailProvider {}", provider.name),
        ProviderKind::ClusterMailProvider => "a ClusterMailProvider".to_owned(),
    };
    Some(Blocker::new(
        Reason::SourceInvalid,
        format!(
            "the Secret {namespace}/{name} is never sent as a user's token, because {whose} refers to it: store the token \
             in its own Secret with `kubectl -n {namespace} create secret generic <name> --from-literal={}=<token> \
             && kubectl -n {namespace} label secret <name> {}=true`, and refer to that Secret",
            reference.key,
            names::LABEL_SOURCE
        ),
    ))
}
