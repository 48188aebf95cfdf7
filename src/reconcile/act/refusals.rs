//! Turns failures before and after a request into refusals.

use kube::ResourceExt as _;

use crate::{
    api::{MailCredential, Reason, credential::ProviderKind, names, provider_object::ProviderObject},
    error::{Error, describe_step},
    metrics::Metrics,
    oauth::{Refusal, token_request::RequestError},
    policy::{
        advice::{self, AdviceContext},
        checks,
        commands::{self, KubectlObject},
        outcome::Refused,
    },
    provider_client::authentication::Authentication,
    reconcile::custody::pending::CustodyError,
};

/// Returns the refusal for a request that the broker cannot build.
pub(super) fn request_refusal(error: &RequestError) -> Refusal {
    let reason = match error {
        RequestError::NoKey | RequestError::OtherOrigin { .. } => Reason::InvalidSpec,
        RequestError::Url(_) | RequestError::Signing(_) => Reason::RequestRefused,
    };
    Refusal::new(reason, error.to_string())
}

/// Returns the refusal for a failed write of the grant Secret. `None`: the next reconcile decides again.
pub(super) fn write_refusal(error: CustodyError, credential: &MailCredential) -> Option<Refusal> {
    match error {
        // The next reconcile finds the foreign Secret, and the status reports it.
        CustodyError::Stale | CustodyError::Foreign(_) => None,
        CustodyError::Blocked(blocker) => Some(Refusal::new(blocker.reason, blocker.message)),
        CustodyError::Refused(why) => Some(Refusal::new(
            Reason::SecretWriteFailed,
            format!(
                "the Secret {}, which keeps the refresh token, could not be written: {why}. The broker retries it \
                 automatically",
                names::grant_secret(&credential.name_any())
            ),
        )),
    }
}

/// Returns the refusal for a step that failed in Kubernetes.
pub(super) fn unavailable(error: &Error, credential: &MailCredential, metrics: &Metrics) -> Box<Refused> {
    metrics.reconcile_error(error.category());
    let refusal = Refusal::new(Reason::ProviderUnavailable, describe_step(error));
    Box::new(Refused { refusal, context: advice_context(credential, None, None), client: None, spent: None })
}

/// Returns the names that the advice about a refusal contains: objects, client, mailbox and commands.
pub(in crate::reconcile) fn advice_context(
    credential: &MailCredential,
    object: Option<&ProviderObject>,
    entry: Option<&Authentication>,
) -> AdviceContext {
    let subject = KubectlObject::provider_of(credential);
    AdviceContext {
        provider: checks::provider_words(credential),
        scopes: if credential.spec.scopes.is_empty() { subject.clone() } else { KubectlObject::credential(credential) },
        subject,
        client_id: entry
            .and_then(|entry| entry.client_id.clone())
            .or_else(|| object.map(|object| object.spec().client.id.clone()))
            .unwrap_or_else(|| "<client id>".to_owned()),
        // Tenants must not learn the names of the Secrets that a ClusterMailProvider refers to.
        secret: entry
            .filter(|_| credential.spec.provider_ref.kind == ProviderKind::MailProvider)
            .and_then(|entry| entry.source.clone()),
        basic: object.zip(entry).is_some_and(|(object, entry)| entry.is_basic(object.spec())),
        grant: credential.spec.grant.kind(),
        credential: KubectlObject::credential(credential),
        mailbox: credential.spec.mailbox.user().to_owned(),
        sign_in: commands::sign_in(credential),
        federated: entry.and_then(|entry| entry.federated.clone()),
        again: advice::AGAIN,
    }
}
