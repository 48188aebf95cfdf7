//! Revokes the tokens of a credential that is being deleted (RFC 7009).

use std::{sync::Arc, time::Duration};

use kube::ResourceExt as _;
use secrecy::SecretString;

use super::{Attempt, sign::signed, unique};
use crate::{
    api::{MailCredential, Reason, Retry, names},
    oauth::{
        ClientAuth, Refusal,
        client_auth::Occasion,
        revocation::{TokenKind, read_revocation, revocation_request},
    },
    policy::{checks, observed::target_name},
    providers,
    reconcile::{Context, custody, material, observe, publish, stores::ProviderKey},
};

/// How long a request waits for the provider's `rateLimit`: a deletion waits for a minute in all.
const IN_LINE: Duration = Duration::from_secs(30);

/// How a revocation came out.
#[derive(Debug)]
pub(in crate::reconcile) enum Revocation {
    /// There was nothing to revoke.
    Nothing,
    /// The tokens are revoked.
    Revoked,
    /// The provider has no revocation endpoint.
    NotSupported,
    /// They are not; why, in words, and whether another attempt may help.
    Failed(String, Retry),
}

/// Revokes the refresh token that is kept, then the access token in the target.
pub(in crate::reconcile) async fn revoke(credential: &Arc<MailCredential>, context: &Arc<Context>) -> Revocation {
    match attempt(credential, context).await {
        Ok(revocation) => revocation,
        Err((why, retry)) => Revocation::Failed(why, retry),
    }
}

async fn attempt(credential: &Arc<MailCredential>, context: &Arc<Context>) -> Result<Revocation, (String, Retry)> {
    let read = tokens(credential, context).await;
    let tokens = read.map_err(|error| (material::told(&error), Retry::Transient))?;
    if tokens.is_empty() {
        return Ok(Revocation::Nothing);
    }
    let gone = || (format!("the {} is gone", checks::provider_words(credential)), Retry::Permanent);
    let object = context.stores.provider(&ProviderKey::of(credential)).ok_or_else(gone)?;
    let profile = providers::profile(object.spec()).ok_or_else(gone)?;
    let prepared = match context.material.prepare(&object, false, context).await {
        Ok(Ok(prepared)) => prepared,
        Ok(Err(problem)) => return Err((problem.blocker.message, Retry::Transient)),
        Err(error) => return Err((material::told(&error), Retry::Transient)),
    };
    if prepared.endpoints.revocation_url.is_none() {
        return Ok(Revocation::NotSupported);
    }
    let (credential, context) = (credential.clone(), context.clone());
    let attempt =
        Attempt { credential, grant: None, published: None, object, profile, prepared, scopes: vec![], context };
    for (token, kind) in tokens {
        attempt.revoke(&token, kind).await?;
    }
    Ok(Revocation::Revoked)
}

/// What there is to revoke. A refresh token goes first: with it go the tokens that it would still bring.
async fn tokens(
    credential: &MailCredential,
    context: &Context,
) -> Result<Vec<(SecretString, TokenKind)>, crate::error::Error> {
    let mut tokens = vec![];
    if credential.spec.grant.kind().is_delegated() {
        tokens.extend(custody::refresh_token(credential, context).await?.map(|token| (token, TokenKind::RefreshToken)));
    }
    let target = publish::read(context, checks::namespace(credential), &target_name(credential)).await?;
    let owned = target.filter(|secret| {
        let label = secret.labels().get(names::LABEL_CREDENTIAL);
        label == Some(&names::label_value(&credential.name_any()))
    });
    let stored = owned.as_ref().and_then(observe::stored_token);
    tokens.extend(
        stored
            .filter(|stored| context.clock.now() < stored.token.expires_at)
            .map(|stored| (stored.token.access_token, TokenKind::AccessToken)),
    );
    Ok(tokens)
}

impl Attempt {
    async fn revoke(&self, token: &SecretString, kind: TokenKind) -> Result<(), (String, Retry)> {
        let mut last = ("the provider's client authentication cannot be used".to_owned(), Retry::Permanent);
        for entry in &self.prepared.authentication {
            let auth = match tokio::time::timeout(IN_LINE, self.proof(entry)).await {
                Ok(Some(Ok(Some(auth)))) => auth,
                Ok(Some(Ok(None))) => continue,
                Ok(Some(Err(error))) => return Err((material::told(&error), Retry::Transient)),
                Ok(None) => return Err(("the provider has changed meanwhile".to_owned(), Retry::Transient)),
                Err(_) => {
                    return Err(("too many requests wait for the provider's rateLimit".to_owned(), Retry::Transient));
                }
            };
            match self.ask_to_revoke(&auth, token, kind).await {
                Ok(()) => return Ok(()),
                Err(refusal) => {
                    let next = matches!(refusal.reason, Reason::InvalidClient | Reason::ClientSecretExpired);
                    last = (refusal.what, refusal.reason.retry());
                    if !next {
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    async fn ask_to_revoke(&self, auth: &ClientAuth, token: &SecretString, kind: TokenKind) -> Result<(), Refusal> {
        let Self { context, prepared, object, .. } = self;
        let url = prepared.endpoints.revocation_url.as_deref().unwrap_or_default();
        let wire = signed(auth, || {
            let unique = unique();
            let audience = &prepared.endpoints.token_url;
            let occasion = Occasion { audience, unique: &unique, now: context.clock.now() };
            revocation_request(url, &object.spec().client.id, auth, token, kind, occasion)
        });
        let leads_no_more = || Refusal::new(Reason::ProviderUnavailable, "another broker leads now");
        let exchange = self.send(url, wire).await.ok_or_else(leads_no_more)??;
        read_revocation(&exchange.response, exchange.sent_at).map_err(|refusal| self.refined(refusal, auth))
    }
}
