//! The seed: the refresh token in a user's Secret. The broker takes the seed over once.

use kube::ResourceExt as _;
use secrecy::{ExposeSecret as _, SecretString};

use crate::{
    api::{MailCredential, Reason},
    error::Error,
    oauth::client_auth::{SecretFlaw, read_secret},
    policy::{
        Blocker, checks, commands,
        grant::{GrantSecret, Seed},
    },
    provider_client::sources::{SourceReads as _, read_source},
    reconcile::{
        context::Context,
        custody::{data::hash, register::older_with_seeds},
        own_sources::of_a_provider,
    },
};

/// Returns the seed, or the reason why the credential cannot take it over. `None`: the credential has taken the seed
/// over, or has none.
pub(super) async fn seed(
    credential: &MailCredential,
    stored: Option<&GrantSecret>,
    token_url: Option<&str>,
    context: &Context,
) -> Result<Option<Result<Seed, Blocker>>, Error> {
    let Some(reference) = credential.spec.grant.refresh_token.as_ref().map(|grant| &grant.secret_ref) else {
        return Ok(None);
    };
    let shown = context.stores.sources.get(checks::namespace(credential), &reference.name);
    let version = shown.and_then(|secret| secret.resource_version()).unwrap_or_default();
    let begun = stored.filter(|stored| stored.token.is_some()).and_then(|stored| stored.seed.as_ref());
    let uid = checks::uid(credential);
    let seen = |version: &str| context.cache.with(uid, |entry| entry.custody.seed_seen.as_deref() == Some(version));
    if begun.is_some_and(|begun| begun.version == version || seen(&version)) {
        return Ok(None);
    }
    let read = read_seed(credential, token_url, context).await?;
    let same = match (&read, begun) {
        (Ok((_, seed)), Some(begun)) => begun.hash.is(&seed.hash),
        // The broker continues to use a seed that it has taken over, if the seed's Secret is deleted.
        (Err(blocker), Some(_)) => blocker.reason == Reason::SourceNotFound,
        (_, None) => false,
    };
    if same {
        context.cache.with(uid, |entry| entry.custody.seed_seen = Some(version.into()));
        return Ok(None);
    }
    Ok(Some(read.map(|(_, seed)| seed)))
}

/// Reads the seed and checks it. `token_url` is the endpoint that will receive the seed, `None` while it is not known.
pub(super) async fn read_seed(
    credential: &MailCredential,
    token_url: Option<&str>,
    context: &Context,
) -> Result<Result<(SecretString, Seed), Blocker>, Error> {
    let Some(reference) = credential.spec.grant.refresh_token.as_ref().map(|grant| &grant.secret_ref) else {
        return Ok(Err(Blocker::new(Reason::InvalidSpec, "the spec names no seed")));
    };
    let namespace = checks::namespace(credential);
    let contents = &context.providers.contents;
    let _reservation = contents.reserve(namespace).await;
    let read = read_source(reference, namespace, &context.kubernetes.client, Some(contents)).await?;
    Ok(read.and_then(|source| {
        of_a_provider(reference, namespace, &context.stores).map_or(Ok(()), Err)?;
        token_url.map_or(Ok(()), |url| source.reach.allows(url))?;
        let token = read_secret(&source.value, false).and_then(unbroken).map_err(|flaw| {
            let message = format!(
                "the refresh token in key {} of the Secret {namespace}/{} {flaw}: store the right one with `{}`",
                reference.key,
                reference.name,
                commands::sign_in(credential)
            );
            Blocker::new(Reason::SourceInvalid, message)
        })?;
        // Record the version that was read. The watch may not show this version yet.
        let seed = Seed { hash: hash(&token), version: source.version.clone() };
        context.cache.register.note_seed(namespace, reference, &seed);
        Ok((token, seed))
    }))
}

/// Reads the seeds of older credentials that the register does not know yet, so that it knows their hashes.
pub(super) async fn learn_older(credential: &MailCredential, context: &Context) -> Result<(), Error> {
    for older in older_with_seeds(credential, &context.stores) {
        let Some(reference) = older.spec.grant.refresh_token.as_ref().map(|grant| &grant.secret_ref) else { continue };
        let namespace = checks::namespace(&older);
        let shown = context.stores.sources.get(namespace, &reference.name);
        let Some(version) = shown.and_then(|secret| secret.resource_version()) else { continue };
        if !context.cache.register.knows(namespace, reference, &version) {
            read_seed(&older, None, context).await?.map(drop).ok();
        }
    }
    Ok(())
}

/// Refuses a token with white space inside, which comes from a line break in the copied text.
fn unbroken(token: SecretString) -> Result<SecretString, SecretFlaw> {
    match token.expose_secret().contains(char::is_whitespace) {
        true => Err(SecretFlaw::Broken),
        false => Ok(token),
    }
}
