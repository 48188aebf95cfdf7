//! The grant Secret `<credential>-grant`, which holds the refresh token. Every write is fenced by uid and
//! resourceVersion. The broker exchanges a refresh token only under a claim that it wrote before, writes the refresh token of
//! the response before it uses the rest of the response, and never deletes a refresh token because of an error.

mod data;
pub mod pending;
pub mod register;
mod secret;
mod seed;
mod sign_in;

use std::{sync::Arc, time::Duration};

use backon::{ExponentialBuilder, Retryable as _};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{ResourceExt as _, core::ObjectMeta};
use secrecy::SecretString;

use crate::{
    api::{MailCredential, Reason, credential::DeletionPolicy, names},
    error::Error,
    oauth::token::Rotated,
    policy::{
        Blocker, checks,
        commands::{self, KubectlObject},
        grant::{self, Claim, GrantSecret, RefreshGrant, TokenNote},
        hash::RefreshTokenHash,
        observed::Provider,
        refresh_response::{Found, Resolution, Response, resolve_conflict},
        secret_metadata::grant_is_in_sync,
    },
    providers::TokenSource,
    reconcile::{
        context::Context,
        credential_state::newer,
        custody::{
            data::{Data, hash, wiped},
            pending::{Claimed, CustodyError, PendingGrantWrite},
            secret::{absent, belongs, read_grant, write, write_claim},
        },
    },
    render::SECRET_MAX,
};

pub(super) use crate::reconcile::custody::{
    pending::SignInEnd,
    secret::sync_metadata,
    sign_in::{begin_sign_in, device_code, end_sign_in, slow_down},
};

/// A claim lasts for the timeouts of two requests plus this time. The broker sends the second request after a lost response.
const CLAIM_MARGIN: SignedDuration = SignedDuration::from_secs(5);
/// Wait before the broker retries to store the refresh token of a deleted credential.
const ORPHAN_RETRY: Duration = Duration::from_secs(5);

/// Observes a credential's refresh token and sign-in. `None`: the credential's grant type needs no user.
pub(super) async fn observe(
    credential: &MailCredential,
    provider: Option<&Provider>,
    context: &Context,
) -> Result<Option<RefreshGrant>, Error> {
    if !credential.spec.grant.kind().is_delegated() {
        return Ok(None);
    }
    let (stored, foreign, out_of_sync) = match meta(credential, context).await? {
        None => (None, None, false),
        Some(meta) => match belongs(&meta, credential) {
            Ok(()) => {
                let now = context.clock.now();
                let later = context.cache.with(checks::uid(credential), |entry| {
                    entry.custody.sync_again.take_if(|at| *at <= now);
                    entry.custody.sync_again.is_some()
                });
                (Some(GrantSecret::read(&meta)), None, !later && !grant_is_in_sync(&meta, credential))
            }
            Err(owner) => (None, Some(owner), false),
        },
    };
    if let Some(stored) = &stored {
        context.cache.register.note(credential, stored);
    }
    let token_url = provider.and_then(|provider| match &provider.profile.source {
        TokenSource::Known(endpoints) => Some(endpoints.token_url.as_str()),
        TokenSource::Discovery { .. } => None,
    });
    let strict = provider.is_none_or(|provider| !provider.profile.keeps_replaced_tokens);
    let seed = match seed::seed(credential, stored.as_ref(), token_url, context).await? {
        Some(Ok(seed)) => match context.cache.register.seed_blocker(credential, &seed.hash, strict, &context.stores) {
            Some(blocker) => Some(Err(blocker)),
            None => Some(Ok(seed)),
        },
        seed => seed,
    };
    let uid = checks::uid(credential);
    let sign_in = stored.as_ref().and_then(|stored| stored.sign_in.as_ref());
    let (unsaved, next_poll, code_over) = context.cache.with(uid, |entry| {
        if let (None, Some(sign_in)) = (entry.sign_in.next_poll, sign_in) {
            // Another replica, or this one before a restart, may have just polled.
            entry.sign_in.next_poll = Some(grant::next_poll(sign_in.interval, context.clock.now()));
        }
        (entry.custody.unsaved.is_some(), entry.sign_in.next_poll, entry.sign_in.code_over.clone())
    });
    Ok(Some(RefreshGrant {
        code_over: code_over.is_some() && code_over.as_deref() == sign_in.map(|sign_in| sign_in.user_code.as_str()),
        stored,
        foreign,
        out_of_sync,
        seed,
        bound_to: provider.map(|provider| provider.bound_to.clone()),
        revocable_at: provider.map(|provider| provider.revocable_at.clone()).unwrap_or_default(),
        asked_by: grant::asked_by(credential),
        asked_for: provider.map(|provider| grant::asked_for(credential, &provider.issued_for)),
        holder: context.requests.holder.clone(),
        unsaved,
        next_poll,
        idle_life: provider.and_then(|provider| provider.profile.idle_life),
    }))
}

/// Returns the metadata of the grant Secret: the newer of the version that the watch shows and the version that the
/// broker wrote.
async fn meta(credential: &MailCredential, context: &Context) -> Result<Option<Arc<ObjectMeta>>, Error> {
    let (namespace, name) = (checks::namespace(credential), names::grant_secret(&credential.name_any()));
    let shown = context.stores.own_secrets.get(namespace, &name).map(|secret| Arc::new(secret.metadata.clone()));
    let known = context.cache.with(checks::uid(credential), |entry| {
        newer(shown, &mut entry.custody.grant, |meta| meta.resource_version.as_deref())
            .or_else(|| entry.custody.grant.clone())
    });
    let reported =
        credential.status.as_ref().is_some_and(|status| status.grant.is_some() || status.authorization.is_some());
    let own = known.as_ref().map(|meta| belongs(meta, credential).is_ok());
    if own == Some(true) || (own.is_none() && !reported) {
        return Ok(known);
    }
    // No watch shows a Secret whose label was removed. A foreign Secret may have been deleted since.
    let _reservation = context.kubernetes.secrets.reads.reserve(namespace, SECRET_MAX).await;
    let read = context.kubernetes.secrets.read(namespace, &name).await?.map(|secret| Arc::new(wiped(secret)));
    context.cache.with(checks::uid(credential), |entry| entry.custody.grant.clone_from(&read));
    Ok(read)
}

/// Claims the refresh token for an exchange by one write of the grant Secret: the stored token, or the seed that `grant` has to
/// take over. `token_url` is the endpoint that will receive the token. `strict`: the provider accepts no token that it has
/// replaced.
pub(super) async fn claim(
    credential: &MailCredential,
    grant: &RefreshGrant,
    token_url: &str,
    strict: bool,
    context: &Context,
) -> Result<Claimed, CustodyError> {
    match (&grant.stored, grant.token(), &grant.seed) {
        (Some(stored), Some(token), None) => claim_stored(credential, grant, stored, &token.hash, context).await,
        _ => claim_seed(credential, grant, token_url, strict, context).await,
    }
}

/// Claims the stored token, whose hash is `token`. The response to the write of the claim holds the token.
async fn claim_stored(
    credential: &MailCredential,
    grant: &RefreshGrant,
    stored: &GrantSecret,
    token: &RefreshTokenHash,
    context: &Context,
) -> Result<Claimed, CustodyError> {
    let claim = new_claim(token, context.clock.now(), context);
    let mut secret = write_claim(credential, stored, &claim, context).await?;
    let data = Data::take(&mut secret);
    let Some(refresh_token) = data.refresh_token.clone() else {
        return Err(CustodyError::Blocked(spoilt(
            credential,
            "holds no refresh token any more: another writer emptied it",
        )));
    };
    if secret.immutable == Some(true) {
        let flaw = "was made immutable, so the broker could not store the next refresh token";
        return Err(CustodyError::Blocked(spoilt(credential, flaw)));
    }
    let mut stored = GrantSecret::read(&secret.metadata);
    if let (Some(token), Some(bound_to)) = (&mut stored.token, &grant.bound_to) {
        // An earlier version of the broker stored a shortened digest. The next write stores the complete digest.
        token.bound_to.clone_from(bound_to);
    }
    Ok(Claimed { stored, data, refresh_token, claim, reseeded: false })
}

/// Takes the seed over: writes it into the grant Secret, together with its claim.
async fn claim_seed(
    credential: &MailCredential,
    grant: &RefreshGrant,
    token_url: &str,
    strict: bool,
    context: &Context,
) -> Result<Claimed, CustodyError> {
    let since = context.clock.now();
    let (refresh_token, seed) =
        seed::read_seed(credential, Some(token_url), context).await?.map_err(CustodyError::Blocked)?;
    seed::learn_older(credential, context).await?;
    if let Some(blocker) = context.cache.register.take_over(credential, &seed.hash, strict, &context.stores) {
        return Err(CustodyError::Blocked(blocker));
    }
    let found = read_grant(credential, context).await?;
    // The decision used a cached Secret. Another replica may have taken over and exchanged this seed since: compare the
    // versions.
    let version = |stored: &GrantSecret| stored.resource_version.clone();
    if found.as_ref().map(|(stored, _)| version(stored)) != grant.stored.as_ref().map(version) {
        return Err(CustodyError::Stale);
    }
    let (mut stored, mut data) = found.unwrap_or_else(|| (absent(credential), Data::default()));
    let reseeded = stored.token.is_some();
    if data.refresh_token.is_some() && !reseeded {
        let flaw =
            "holds a refresh token, and another writer removed the annotations that say which provider it is for";
        return Err(CustodyError::Blocked(spoilt(credential, flaw)));
    }
    data.replace(refresh_token.clone());
    let claim = new_claim(&seed.hash, since, context);
    stored.token = Some(TokenNote {
        hash: seed.hash.clone(),
        bound_to: grant.bound_to.clone().unwrap_or_default(),
        revocable_at: grant.revocable_at.clone(),
        obtained_at: since,
        last_used_at: None,
        expires_at: None,
        rotations: 0,
    });
    (stored.seed, stored.claim) = (Some(seed), Some(claim.clone()));
    let meta = write(credential, &stored, &data, context).await?;
    Ok(Claimed { stored: GrantSecret::read(&meta), data, refresh_token, claim, reseeded })
}

/// A claim of this replica on a refresh token.
fn new_claim(token: &RefreshTokenHash, since: Timestamp, context: &Context) -> Claim {
    let timeout = SignedDuration::try_from(context.requests.timeout).unwrap_or(SignedDuration::MAX);
    let until = since + timeout * 2 + CLAIM_MARGIN;
    Claim { holder: context.requests.holder.clone(), since, until, token: token.clone() }
}

/// Returns the blocker for a grant Secret that a user has edited. The broker never overwrites it, because it may
/// contain the only valid token.
fn spoilt(credential: &MailCredential, flaw: &str) -> Blocker {
    let name = names::grant_secret(&credential.name_any());
    Blocker::new(
        Reason::AuthorizationRequired,
        format!(
            "the Secret {name} {flaw}. Restore its content, or delete it with `{}` and then sign in again with `{}`",
            KubectlObject::secret(checks::namespace(credential), &name).command("delete"),
            commands::sign_in(credential)
        ),
    )
}

/// Writes the refresh token of a response into the grant Secret immediately. If the write fails, the cache holds the token,
/// and a later reconcile writes it.
pub(super) async fn persist(credential: &Arc<MailCredential>, unsaved: PendingGrantWrite, context: &Arc<Context>) {
    // Put the result into the cache first: a shutdown waits for the results in the cache.
    context.cache.with(checks::uid(credential), |entry| entry.custody.unsaved = Some(Box::new(unsaved.clone())));
    let patient = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(1))
        .with_max_times(4);
    // Retry with this copy: the cache forgets a credential that is deleted during the retries, and the grant Secret may
    // outlive the credential.
    let stored = (|| save(credential, &unsaved, context)).retry(patient).sleep(tokio::time::sleep);
    match stored.await {
        Ok(()) => context.cache.with(checks::uid(credential), |entry| entry.custody.unsaved = None),
        Err(error) => {
            tracing::error!(%error, "refresh token not stored: held in memory, retrying");
            // If the credential was deleted, no reconcile writes the token.
            if credential.spec.secret.deletion_policy == DeletionPolicy::Retain {
                persist_orphan(credential.clone(), context.clone());
            }
        }
    }
}

/// Writes the pending refresh token of a deleted credential, whose grant Secret is retained. A task retries until the write
/// succeeds, or until the cache drops the token because of its age.
pub fn persist_orphan(credential: Arc<MailCredential>, context: Arc<Context>) {
    tokio::spawn(async move {
        while context.cache.is_orphaned(checks::uid(&credential)) {
            match persist_pending(&credential, &context).await {
                Ok(()) => return tracing::info!("last refresh token of a deleted credential stored"),
                Err(error) => {
                    tracing::error!(%error, "last refresh token of a deleted credential not stored: retrying");
                }
            }
            tokio::time::sleep(ORPHAN_RETRY).await;
        }
    });
}

/// Makes the pending write of the grant Secret that the cache holds, if any.
pub(super) async fn persist_pending(credential: &MailCredential, context: &Context) -> Result<(), CustodyError> {
    let uid = checks::uid(credential);
    let Some(unsaved) = context.cache.with(uid, |entry| entry.custody.unsaved.clone()) else { return Ok(()) };
    save(credential, &unsaved, context).await?;
    context.cache.with(uid, |entry| entry.custody.unsaved = None);
    Ok(())
}

async fn save(credential: &MailCredential, unsaved: &PendingGrantWrite, context: &Context) -> Result<(), CustodyError> {
    match unsaved.clone() {
        PendingGrantWrite::SignedIn(signed_in) => {
            end_sign_in(credential, SignInEnd::SignedIn(signed_in), context).await
        }
        PendingGrantWrite::Exchanged { claimed, rotated, used_at } => {
            let stored = GrantSecret { claim: None, ..claimed.stored.clone() };
            match write_answer(credential, stored, claimed.data.clone(), rotated.as_ref(), used_at, context).await {
                Err(CustodyError::Stale) => {
                    write_after_conflict(credential, &claimed, rotated.as_ref(), used_at, context).await
                }
                other => other,
            }
        }
    }
}

/// Writes the result of an exchange over `stored`. The claim in `stored` stays.
async fn write_answer(
    credential: &MailCredential,
    mut stored: GrantSecret,
    mut data: Data,
    rotated: Option<&Rotated>,
    used_at: Timestamp,
    context: &Context,
) -> Result<(), CustodyError> {
    if let Some(token) = &mut stored.token {
        token.note_exchange(used_at, rotated.map(|rotated| (hash(&rotated.refresh_token), rotated.expires_at)));
        if let Some(rotated) = rotated {
            data.replace(rotated.refresh_token.clone());
        }
    }
    write(credential, &stored, &data, context).await.map(drop)
}

/// Writes the result of an exchange after another writer has changed the grant Secret; see [`resolve_conflict`].
async fn write_after_conflict(
    credential: &MailCredential,
    claimed: &Claimed,
    rotated: Option<&Rotated>,
    used_at: Timestamp,
    context: &Context,
) -> Result<(), CustodyError> {
    let found = read_grant(credential, context).await?;
    let found_hash = found.as_ref().and_then(|(_, data)| data.refresh_token.as_ref()).map(hash);
    let (spent, replacement) = (hash(&claimed.refresh_token), rotated.map(|rotated| hash(&rotated.refresh_token)));
    let response = Response { claim: &claimed.claim, spent: &spent, rotated: replacement.as_ref() };
    let holds = found.as_ref().map(|(stored, _)| Found { claim: stored.claim.as_ref(), token: found_hash.as_ref() });
    let resolution = resolve_conflict(holds, response);
    let (mut stored, data) = match (resolution, found) {
        (Resolution::Written, _) => {
            tracing::debug!("grant Secret already written: the response to the write was lost");
            return Ok(());
        }
        (Resolution::Superseded, _) => {
            tracing::warn!("grant Secret not written: it holds a newer refresh token");
            return Ok(());
        }
        (Resolution::Write { removes_claim }, Some((stored, data))) => {
            let claim = stored.claim.filter(|_| !removes_claim);
            (GrantSecret { claim, ..stored }, data)
        }
        // The Secret was deleted, so the result exists only in memory.
        (Resolution::Recreate | Resolution::Write { .. }, _) => (absent(credential), claimed.data.clone()),
    };
    stored.token = stored.token.or_else(|| claimed.stored.token.clone());
    stored.seed = stored.seed.or_else(|| claimed.stored.seed.clone());
    write_answer(credential, stored, data, rotated, used_at, context).await
}

/// Returns the stored refresh token and its annotations. The annotations are `None` if another writer removed them.
pub(super) async fn refresh_token(
    credential: &MailCredential,
    context: &Context,
) -> Result<Option<(SecretString, Option<TokenNote>)>, CustodyError> {
    let opened = match read_grant(credential, context).await {
        Err(CustodyError::Foreign(_)) => None,
        opened => opened?,
    };
    Ok(opened.and_then(|(stored, data)| Some((data.refresh_token?, stored.token))))
}

#[cfg(test)]
mod tests {
    use mailtoken_core::lacks;

    use crate::{
        policy::{observed, outcome, stored::Stored},
        provider_client::{
            authentication::{Authentication, ClientCredential},
            resolved_provider::ResolvedProvider,
        },
        reconcile::{
            credential_state::CredentialState,
            custody::pending::{SignInEnd, SignedIn},
        },
    };

    use super::*;

    /// All types that hold a secret on its way from the provider to its Secret.
    macro_rules! secrets_lack {
        ($trait:path) => {
            lacks!($trait: Data, SignInEnd, SignedIn, Stored, Claimed, PendingGrantWrite, outcome::Outcome, CredentialState, observed::UnwrittenToken,
                observed::Observed, Authentication, ClientCredential, ResolvedProvider);
        };
    }
    secrets_lack!(std::fmt::Display);
    secrets_lack!(serde::Serialize);

    #[test]
    fn a_pending_refresh_token_is_not_printed() {
        let secret = || SecretString::from("canary");
        let data = Data { refresh_token: Some(secret()), previous: Some(secret()), device_code: Some(secret()) };
        let at = Timestamp::UNIX_EPOCH;
        let claim = Claim { holder: String::new(), since: at, until: at, token: RefreshTokenHash::default() };
        let claimed = Claimed { stored: GrantSecret::default(), data, refresh_token: secret(), claim, reseeded: false };
        let rotated = Some(Rotated { refresh_token: secret(), expires_at: None });
        let unsaved = PendingGrantWrite::Exchanged { claimed: Box::new(claimed), rotated, used_at: at };
        assert!(!format!("{unsaved:?}").contains("canary"));
    }
}
