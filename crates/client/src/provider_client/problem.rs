//! Why the broker cannot use a provider, and the message in a credential's status.

use k8s_openapi::jiff::SignedDuration;

use crate::{
    api::{Reason, credential::ProviderKind, provider_object::ProviderKey},
    policy::{Blocker, commands::KubectlObject, observed::Cause},
};

/// Why the broker cannot use a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderProblem {
    /// The blocker in the words of the provider's own status.
    pub blocker: Blocker,
    /// Whether the problem is a client credential. If so, MailCredentials report the same reason.
    pub of_the_client: bool,
    /// The wait that the provider asks for (`Retry-After`).
    pub retry_after: Option<SignedDuration>,
}

impl ProviderProblem {
    /// Creates a problem of the provider, its sources or its endpoints.
    pub fn of_the_provider(blocker: Blocker) -> Self {
        Self { blocker, of_the_client: false, retry_after: None }
    }

    /// Creates a problem of a client credential.
    pub fn of_the_client(blocker: Blocker) -> Self {
        Self { blocker, of_the_client: true, retry_after: None }
    }

    /// Marks the problem as one that only a user can fix.
    pub(super) fn by_a_person(mut self) -> Self {
        self.blocker.cause = Cause::Person;
        self
    }
}

/// Returns the blocker on credentials. The reason of a client credential's problem stays. Every other problem has the
/// reason `ProviderNotReady`.
pub fn credential_blocker(key: &ProviderKey, problem: ProviderProblem) -> Blocker {
    if problem.of_the_client {
        return problem.blocker;
    }
    let Blocker { reason, message, cause } = problem.blocker;
    Blocker::new(Reason::ProviderNotReady, format!("the {key} is not ready ({}): {message}", reason.as_str()))
        .because(cause)
}

/// Returns the blocker that a credential shows. For a ClusterMailProvider, the blocker shows only the reason: the
/// provider's own status names the administrator's Secrets, keys and hosts.
pub fn shown_blocker(key: &ProviderKey, problem: ProviderProblem) -> Blocker {
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
        KubectlObject::provider(key.kind, &key.namespace, &key.name).command("get")
    );
    Blocker::new(reason, message).because(problem.blocker.cause)
}
