//! Why a provider cannot be used, and what a credential's status says about it.

use crate::{
    api::{Reason, credential::ProviderKind, provider_object::ProviderKey},
    policy::{Blocker, commands::Subject, observed::Cause},
};

/// Why a provider cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderProblem {
    /// As the provider's own status tells it.
    pub blocker: Blocker,
    /// Whether it lies with the client's material, and is told on credentials with the same reason.
    pub of_the_client: bool,
}

impl ProviderProblem {
    /// The same problem where only a person can remove it.
    pub(super) fn by_a_person(mut self) -> Self {
        self.blocker.cause = Cause::Person;
        self
    }
}

/// Client material is told on credentials with the same reason; what concerns the provider as such is
/// `ProviderNotReady` there.
pub(crate) fn credential_blocker(key: &ProviderKey, problem: ProviderProblem) -> Blocker {
    if problem.of_the_client {
        return problem.blocker;
    }
    let Blocker { reason, message, cause } = problem.blocker;
    Blocker::new(Reason::ProviderNotReady, format!("the {key} is not ready ({}): {message}", reason.as_str()))
        .because(cause)
}

/// What a credential is told of its provider. Of a ClusterMailProvider a namespace learns the reason alone: the provider's
/// own status names the administrator's Secrets, keys and hosts.
pub(crate) fn shown_blocker(key: &ProviderKey, problem: ProviderProblem) -> Blocker {
    if key.kind == ProviderKind::MailProvider {
        return credential_blocker(key, problem);
    }
    let found = problem.blocker.reason;
    let (reason, what) = match problem.of_the_client {
        true => (found, format!("the client authentication of the ClusterMailProvider {} cannot be used", key.name)),
        false => (Reason::ProviderNotReady, format!("the ClusterMailProvider {} is not ready", key.name)),
    };
    let message = format!(
        "{what} ({}): an administrator finds what is wrong, and the command that repairs it, with `{} -o yaml`",
        found.as_str(),
        Subject::provider(key.kind, &key.namespace, &key.name).command("get")
    );
    Blocker::new(reason, message).because(problem.blocker.cause)
}
