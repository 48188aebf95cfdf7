//! The Secrets to which a credential refers, as inputs of its attempts.

use crate::{
    api::{
        MailCredential,
        provider_object::{ProviderKey, source_secrets},
        reference::{KeyRef, ObjectKey},
    },
    policy::{Blocker, Observed, checks},
    reconcile::{context::Context, source_contents::SourceContents},
    stores::Stores,
};

/// Returns the Secrets to which a credential itself refers.
fn own_sources(credential: &MailCredential) -> impl Iterator<Item = ObjectKey> {
    let namespace = checks::namespace(credential);
    credential.spec.grant.sources().map(move |source| (namespace.to_owned(), source.name.clone()))
}

/// Returns, for each Secret to which a credential itself refers, the version since which its content is unchanged.
pub(super) fn source_versions(credential: &MailCredential, contents: &SourceContents) -> Vec<String> {
    own_sources(credential).map(|source| contents.since(&source)).collect()
}

/// Reads the sources of an attempt that failed before a restart. A change of their metadata then does not end the
/// back-off.
pub(super) fn learn_sources(observed: &Observed, context: &Context) {
    let failed_with = observed.history.failed_with.as_ref();
    if failed_with.is_none_or(|with| *with != observed.attempt_hash && *with != observed.sign_in_attempt_hash()) {
        return;
    }
    let key = ProviderKey::of(&observed.credential);
    let home = context.stores.home(&key);
    let object = context.stores.provider(&key);
    let secrets = object.iter().flat_map(|object| source_secrets(object.spec()));
    let sources = secrets.map(|name| (home.to_owned(), name.to_owned())).chain(own_sources(&observed.credential));
    sources.for_each(|source| context.providers.contents.learn(&source));
}

/// Returns why a Secret cannot contain a seed or a subject token: a provider refers to it.
pub(super) fn of_a_provider(reference: &KeyRef, namespace: &str, stores: &Stores) -> Option<Blocker> {
    let providers = stores.references.by_secret(&(namespace.to_owned(), reference.name.clone()));
    let provider = providers.iter().find(|key| stores.provider(key).is_some())?;
    Some(checks::secret_of_a_provider(reference, namespace, provider))
}
