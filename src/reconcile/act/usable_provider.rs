//! The provider that receives the requests of a credential.

use std::sync::Arc;

use crate::{
    api::{
        MailCredential,
        provider_object::{ProviderKey, ProviderObject},
    },
    error::Error,
    oauth::discovery::Endpoints,
    policy::{Blocker, grant, hash::BindingHash, inputs},
    provider_client::{problem::ProviderProblem, resolved_provider::ResolvedProvider},
    providers::{self, Profile},
    reconcile::{
        act::{activity::Permit, admit::host},
        context::Context,
        observe,
    },
    stores::Stores,
};

/// The provider of a credential that may use the provider.
pub(super) struct UsableProvider {
    /// The provider as the watch shows it.
    pub(super) object: ProviderObject,
    /// The profile of the provider's preset.
    pub(super) profile: Profile,
    /// The scopes to request for a token of the credential.
    pub(super) scopes: Vec<String>,
}

/// Why the requests of a credential cannot go to its provider.
pub(super) enum Unusable {
    /// The provider does not exist, or its spec names no provider that this broker knows.
    Gone,
    /// The credential must not use the provider.
    Forbidden(Blocker),
    /// The broker cannot use the provider. The provider's own status reports the problem.
    Broken(ProviderProblem),
    /// The permit is for another host, because the endpoint was not known when the permit was requested.
    OtherHost,
    /// A step failed in Kubernetes.
    Kubernetes(Error),
}

impl UsableProvider {
    /// Returns the provider of `credential`.
    pub(super) fn of(credential: &MailCredential, stores: &Stores) -> Result<Self, Unusable> {
        let object = stores.provider(&ProviderKey::of(credential)).ok_or(Unusable::Gone)?;
        let profile = providers::profile(object.spec()).ok_or(Unusable::Gone)?;
        let scopes = inputs::scopes(credential, object.spec(), &profile);
        let provider = Self { object, profile, scopes };
        provider.check_permission(credential, stores)?;
        Ok(provider)
    }

    fn check_permission(&self, credential: &MailCredential, stores: &Stores) -> Result<(), Unusable> {
        let blocker = observe::use_blocker(credential, &self.object, &self.profile, &self.scopes, stores);
        blocker.map_or(Ok(()), |blocker| Err(Unusable::Forbidden(blocker)))
    }

    /// Returns the hash of the provider and the client that a refresh token of `credential` is bound to.
    pub(super) fn bound_to(&self, credential: &MailCredential) -> BindingHash {
        grant::bound_to(credential, self.profile.source.identity(), &self.object.spec().client.id)
    }

    /// Returns the endpoints and client authentications, for a request with `permit` to `endpoint`. A discovery takes
    /// time, so this checks the permission of `credential` again afterwards.
    pub(super) async fn resolve(
        &self,
        credential: &MailCredential,
        permit: &Permit,
        endpoint: fn(&Endpoints) -> Option<&str>,
        context: &Context,
    ) -> Result<Arc<ResolvedProvider>, Unusable> {
        let resolved = context.providers.resolve(&self.object, false, Some(permit)).await;
        let resolved = resolved.map_err(Unusable::Kubernetes)?.map_err(Unusable::Broken)?;
        if endpoint(&resolved.endpoints).is_some_and(|url| *host(url) != *permit.host()) {
            return Err(Unusable::OtherHost);
        }
        self.check_permission(credential, &context.stores)?;
        Ok(resolved)
    }
}
