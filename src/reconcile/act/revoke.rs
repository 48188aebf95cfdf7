//! Revokes the tokens of a credential that is being deleted (RFC 7009).
//!
//! The broker sends a token to the revocation endpoint only if the provider, its endpoints, the client and the allowance are
//! those with which the broker obtained the token. Otherwise a user who may edit a MailCredential or a MailProvider could
//! make the broker send the token to another server.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use secrecy::SecretString;

use crate::{
    api::{MailCredential, Reason, Retry, names, provider_object::ProviderKey},
    error::describe_step,
    oauth::{
        ClientAuth, Refusal,
        assertion::AssertionParams,
        revocation::{TokenKind, read_revocation, revocation_request},
    },
    policy::{
        Blocker, checks,
        hash::{BindingHash, InputsHash, RevocationHash},
        inputs,
        observed::target_name,
        ownership::Ownership,
        revocation::Revocation,
        stored::stored_token,
    },
    provider_client::{
        problem::{ProviderProblem, shown_blocker},
        try_each::TryEach,
    },
    reconcile::{
        act::{
            activity::Permit,
            attempt::{Attempt, unique},
            sign::signed,
            usable_provider::{Unusable, UsableProvider},
        },
        context::Context,
        custody::{self, pending::CustodyError},
    },
};

/// A stored token that may have to be revoked, and the hashes of the inputs with which the broker obtained it.
struct Found {
    token: SecretString,
    kind: TokenKind,
    /// See [`inputs::revocable_at`].
    revocable_at: RevocationHash,
    obtained_for: ObtainedFor,
}

/// The hash of the inputs with which the broker obtained a token.
enum ObtainedFor {
    /// A refresh token: see [`crate::policy::grant::bound_to`].
    Binding(BindingHash),
    /// The inputs of an access token: see [`inputs::issued_for`].
    Inputs(InputsHash),
}

/// Revokes the stored refresh token, then the access token in the target Secret. The broker reads both after the permit was
/// granted.
pub(in crate::reconcile) async fn revoke(
    credential: &Arc<MailCredential>,
    permit: Permit,
    context: &Arc<Context>,
) -> Revocation {
    match attempt(credential, permit, context).await {
        Ok(revocation) => revocation,
        Err((why, retry)) => Revocation::Failed(why, retry),
    }
}

async fn attempt(
    credential: &Arc<MailCredential>,
    permit: Permit,
    context: &Arc<Context>,
) -> Result<Revocation, (String, Retry)> {
    let read = tokens(credential, context).await;
    let found = read.map_err(|error| (error.to_string(), Retry::Transient))?;
    if found.is_empty() {
        return Ok(Revocation::Nothing);
    }
    let failed = |unusable: Unusable| match unusable {
        Unusable::Gone => (format!("the {} is gone", checks::provider_words(credential)), Retry::Permanent),
        Unusable::Forbidden(blocker) => (format!("nothing was sent, because {}", blocker.message), Retry::Permanent),
        Unusable::Broken(problem) => (shown_blocker(&ProviderKey::of(credential), problem).message, Retry::Transient),
        Unusable::OtherHost => {
            ("the provider's revocation endpoint has just become known".to_owned(), Retry::Transient)
        }
        Unusable::Kubernetes(error) => (describe_step(&error), Retry::Transient),
    };
    let provider = UsableProvider::of(credential, &context.stores).map_err(failed)?;
    let UsableProvider { object, profile, scopes } = &provider;
    let revocable_at = inputs::revocable_at(credential, profile, &object.spec().client.id);
    let bound_to = provider.bound_to(credential);
    let issued_for = inputs::issued_for(credential, object.spec(), profile, scopes);
    let is_of_here = |found: &Found| {
        let is_unchanged = match &found.obtained_for {
            ObtainedFor::Binding(stored) => stored.is(&bound_to),
            ObtainedFor::Inputs(stored) => stored.is(&issued_for),
        };
        found.revocable_at == revocable_at && is_unchanged
    };
    let all = found.len();
    let elsewhere = || {
        let message = format!(
            "nothing was sent to the {}: its URLs, its client or the credential's spec differ from those with which the \
             tokens were obtained",
            checks::provider_words(credential)
        );
        (message, Retry::Permanent)
    };
    // The access token was issued for the refresh token. If the broker must not send the refresh token, it sends neither.
    if found.iter().any(|found| found.kind == TokenKind::RefreshToken && !is_of_here(found)) {
        return Err(elsewhere());
    }
    let tokens: Vec<Found> = found.into_iter().filter(is_of_here).collect();
    if tokens.is_empty() {
        return Err(elsewhere());
    }
    let resolved = provider
        .resolve(credential, &permit, |endpoints| endpoints.revocation_url.as_deref(), context)
        .await
        .map_err(failed)?;
    if resolved.endpoints.revocation_url.is_none() {
        return Ok(Revocation::NotSupported);
    }
    let UsableProvider { object, profile, scopes } = provider;
    let (credential, context) = (credential.clone(), context.clone());
    let revoked = tokens.len();
    let attempt =
        Attempt { permit, credential, grant: None, published: None, object, profile, resolved, scopes, context };
    for found in &tokens {
        attempt.revoke(&found.token, found.kind).await?;
    }
    if revoked < all {
        let message = "the refresh token is revoked, and the access token was not sent: it was issued for another spec";
        return Err((message.to_owned(), Retry::Permanent));
    }
    Ok(Revocation::Revoked)
}

/// Returns the tokens to revoke. The refresh token is first: after its revocation, no client can exchange it for
/// further tokens.
async fn tokens(credential: &MailCredential, context: &Context) -> Result<Vec<Found>, CustodyError> {
    let mut tokens = vec![];
    if credential.spec.grant.kind().is_delegated()
        && let Some((token, note)) = custody::refresh_token(credential, context).await?
    {
        let (revocable_at, obtained_for) = note.map(|note| (note.revocable_at, note.bound_to)).unwrap_or_default();
        let obtained_for = ObtainedFor::Binding(obtained_for);
        tokens.push(Found { token, kind: TokenKind::RefreshToken, revocable_at, obtained_for });
    }
    let target = context.kubernetes.secrets.read(checks::namespace(credential), &target_name(credential)).await?;
    let is_own =
        |secret: &Secret| context.stores.ownership(&secret.metadata, credential, context.clock.now()) == Ownership::Own;
    let owned = target.filter(is_own);
    let issued_for = |secret: &Secret| secret.annotations().get(names::ANNOTATION_ISSUED_FOR).cloned();
    let stored = owned.as_ref().and_then(|secret| stored_token(secret, None)).map(|(stored, _)| stored);
    if let (Some(secret), Some(stored)) = (&owned, stored)
        && context.clock.now() < stored.token.expires_at
    {
        tokens.push(Found {
            token: stored.token.access_token,
            kind: TokenKind::AccessToken,
            revocable_at: stored.revocable_at,
            obtained_for: ObtainedFor::Inputs(issued_for(secret).unwrap_or_default().into()),
        });
    }
    Ok(tokens)
}

impl Attempt {
    async fn revoke(&self, token: &SecretString, kind: TokenKind) -> Result<(), (String, Retry)> {
        let url = self.resolved.endpoints.revocation_url.as_deref().unwrap_or_default();
        let mut each = TryEach::new(&self.resolved.authentication, 0);
        while let Some(entry) = each.next_entry() {
            if let Err(blocker) = entry.may_go_to(url) {
                let problem = ProviderProblem::of_the_client(blocker);
                let Blocker { reason, message, .. } = shown_blocker(&self.object.key(), problem);
                each.unusable(entry, Refusal::new(reason, message));
                continue;
            }
            let auth = match self.proof(entry).await {
                Ok(Some(auth)) => auth,
                Ok(None) => continue,
                Err(error) => return Err((describe_step(&error), Retry::Transient)),
            };
            match self.ask_to_revoke(&auth, token, kind).await {
                Ok(()) => return Ok(()),
                Err(refusal) => each.refused(entry, refusal),
            }
        }
        Err(match each.into_refusal() {
            Some((refusal, _)) => (refusal.what, refusal.reason.retry()),
            None => ("the provider's client authentication cannot be used".to_owned(), Retry::Permanent),
        })
    }

    async fn ask_to_revoke(&self, auth: &ClientAuth, token: &SecretString, kind: TokenKind) -> Result<(), Refusal> {
        let Self { context, resolved, object, .. } = self;
        let url = resolved.endpoints.revocation_url.as_deref().unwrap_or_default();
        let wire = signed(auth, || {
            let unique = unique();
            let token_url = &resolved.endpoints.token_url;
            let params = AssertionParams { audience: token_url, token_url, unique: &unique, now: context.clock.now() };
            revocation_request(url, &object.spec().client.id, auth, token, kind, params)
        });
        let leads_no_more = || Refusal::new(Reason::ProviderUnavailable, "another broker leads now");
        let exchange = self.send(url, wire).await.map_err(|refusal| refusal.unwrap_or_else(leads_no_more))?;
        read_revocation(&exchange.response, exchange.sent_at).map_err(|refusal| self.refined(refusal, auth))
    }
}
