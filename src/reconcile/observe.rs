//! Collects the inputs of the decision about one credential. Reads from the API server only data that no watch shows,
//! and only after a change.

use std::sync::Arc;

use kube::{ResourceExt as _, core::ObjectMeta};
use secrecy::ExposeSecret as _;

use crate::{
    api::{
        ConditionType, MailCredential, Reason, condition,
        credential::{DeletionPolicy, ProviderKind},
        provider_object::{ProviderKey, ProviderObject},
    },
    error::Error,
    policy::{
        Blocker, Observed, checks, expiry, grant,
        hash::{LayoutHash, ProviderHash},
        inputs,
        observed::{History, Provider, Published, Target, TokenFacts, target_name},
        outcome::Recorded,
        ownership::Ownership,
        secret_metadata::{must_recreate, target_is_in_sync},
        stored::stored_token,
        unreadable::ObjectKind,
    },
    provider_client::problem::shown_blocker,
    providers,
    reconcile::{
        act::probe,
        context::Context,
        credential_state::{Inspected, newer, newer_credential},
        custody,
        own_sources::{learn_sources, source_versions},
        sized::sized,
    },
    render::{SECRET_MAX, render},
    stores::Stores,
};

/// Returns the newest version of a credential that the broker knows: in the store, or as the broker wrote it. `shown` is the
/// version in the store at an earlier time.
pub(super) fn latest(shown: Arc<MailCredential>, context: &Context) -> Arc<MailCredential> {
    let newer =
        |shown: Arc<MailCredential>| context.cache.with(checks::uid(&shown), |entry| newer_credential(&shown, entry));
    let found = newer(shown.clone());
    if !Arc::ptr_eq(&found, &shown) || context.stores.credentials.has(&shown.metadata) {
        return found;
    }
    // The watch has shown a newer version since, and may have freed the broker's copy.
    let again = context.stores.credentials.get(checks::namespace(&shown), &shown.name_any());
    again.filter(|again| again.metadata.uid == shown.metadata.uid).map_or(found, newer)
}

/// Observes a credential. Returns `None` while the broker has not read the ConfigMap of the provider's CA bundle; the
/// first read enqueues the credential.
pub(super) async fn observe(credential: Arc<MailCredential>, context: &Context) -> Result<Option<Observed>, Error> {
    let uid = credential.uid().unwrap_or_default();
    // Read `in_flight` first. If the request ends during this function, the objects read so far are stale: leave the
    // outcome to the reconcile that the end of the request enqueues.
    let in_flight = context.cache.with(&uid, |entry| entry.attempt.in_flight.is_some());
    let queued = context.requests.is_queued(&uid);
    let object = context.stores.provider(&ProviderKey::of(&credential));
    let Some((provider, hash)) = provider(&credential, object.as_ref(), context) else { return Ok(None) };
    let now = context.clock.now();
    let shown = shown_target(&credential, context);
    let target = target(&credential, shown.clone(), provider.as_ref().ok(), context).await?;
    let previous = previous(&credential, provider.as_ref().ok(), context).await?;
    let grant = custody::observe(&credential, provider.as_ref().ok(), context).await?;
    // Compute this after the read of a new seed. Otherwise a request with the new seed would count as a request with
    // the former one, and its failure would not delay the next request.
    let attempt_hash =
        inputs::attempt_hash(&credential, &hash, &source_versions(&credential, &context.providers.contents));
    // The following statements cannot fail, so no outcome is lost.
    let (outcome, unreported, unwritten) = context.cache.with(&uid, |entry| {
        // Drop an unwritten token that was issued for other inputs or has expired.
        entry.attempt.unwritten = entry.attempt.unwritten.take().filter(|unwritten| {
            let wanted = provider.as_ref().map_or(true, |provider| provider.issued_for == unwritten.issued_for);
            wanted && now < unwritten.answer.token.expires_at
        });
        let outcome = if in_flight { None } else { entry.attempt.outcome.take() };
        (outcome, entry.attempt.unreported.as_deref().cloned(), entry.attempt.unwritten.as_deref().cloned())
    });
    let provider = provider.map(|provider| sized(provider, &credential, &target, unwritten.as_ref()));
    let mut observed = Observed {
        history: unreported.unwrap_or_else(|| credential.status.as_ref().map(History::of).unwrap_or_default()),
        rival: context.stores.rival(&credential, shown.as_deref(), now),
        credential,
        target,
        previous,
        provider,
        grant,
        unwritten,
        in_flight,
        queued,
        attempt_hash,
        probe: None,
    };
    if let Some(object) = &object {
        observed.history.client_as_in(object.spec());
    }
    learn_sources(&observed, context);
    if let Some(outcome) = outcome {
        if observed.record(outcome, now) == Recorded::Superseded {
            tracing::info!("refusal ignored: another replica exchanged the refresh token");
        }
        let (unwritten, unreported) = (observed.unwritten.clone().map(Box::new), Box::new(observed.history.clone()));
        context
            .cache
            .with(&uid, |entry| (entry.attempt.unwritten, entry.attempt.unreported) = (unwritten, Some(unreported)));
    }
    probe::observe(&mut observed, object.as_ref(), &hash, context);
    if observed.is_overtaken() {
        tracing::info!("token dropped: another replica published a newer token");
        observed.unwritten = None;
        context.cache.with(&uid, |entry| entry.attempt.unwritten = None);
    }
    Ok(Some(observed))
}

/// Returns the provider from the cache, and the hash of the provider and its sources.
fn provider(
    credential: &MailCredential,
    object: Option<&ProviderObject>,
    context: &Context,
) -> Option<(Result<Provider, Blocker>, ProviderHash)> {
    let Some(object) = object else {
        return Some((Err(not_found(credential, &context.stores)), ProviderHash::default()));
    };
    let hash = context.providers.hash(object)?;
    let spec = object.spec();
    let Some(profile) = providers::profile(spec) else {
        let blocker = Blocker::new(
            Reason::InvalidSpec,
            format!("the {} names no provider that this broker knows", checks::provider_words(credential)),
        );
        return Some((Err(blocker), hash));
    };
    let scopes = inputs::scopes(credential, spec, &profile);
    let blocker = use_blocker(credential, object, &profile, &scopes, &context.stores).or_else(|| {
        let problem = context.providers.result(&object.key(), &hash)?.err()?;
        Some(shown_blocker(&object.key(), problem))
    });
    let provider = Provider {
        blocker,
        issued_for: inputs::issued_for(credential, spec, &profile, &scopes),
        layout: inputs::layout(credential, &profile),
        bound_to: grant::bound_to(credential, profile.source.identity(), &spec.client.id),
        revocable_at: inputs::revocable_at(credential, &profile, &spec.client.id),
        // `sized` sets the size when the target is known.
        secret_size: 0,
        client_id: spec.client.id.clone(),
        scopes,
        profile,
    };
    Some((Ok(provider), hash))
}

fn not_found(credential: &MailCredential, stores: &Stores) -> Blocker {
    let ProviderKey { kind, namespace, name } = ProviderKey::of(credential);
    let watched = kind == ProviderKind::MailProvider || stores.cluster_providers.is_some();
    let unreadable = stores.unreadable.why(ObjectKind::Provider(kind), &(namespace, name));
    checks::missing_provider(credential, unreadable, watched)
}

/// Returns why the credential must not use the provider, by their specs and the labels of the namespace.
pub(super) fn use_blocker(
    credential: &MailCredential,
    object: &ProviderObject,
    profile: &providers::Profile,
    scopes: &[String],
    stores: &Stores,
) -> Option<Blocker> {
    checks::spec_blocker(credential, object.spec(), profile, scopes)
        .or_else(|| namespace_blocker(credential, object, profile, stores))
}

fn namespace_blocker(
    credential: &MailCredential,
    object: &ProviderObject,
    profile: &providers::Profile,
    stores: &Stores,
) -> Option<Blocker> {
    let allowed = object.allowed()?;
    let spec = object.spec();
    let Some(labels) = stores.namespace_labels(checks::namespace(credential)) else {
        return Some(Blocker::new(
            Reason::NotAllowed,
            "the broker cannot read the namespace's labels, so it cannot check whether the ClusterMailProvider allows it",
        ));
    };
    let own = if spec.scopes.is_empty() {
        (profile.scopes)(spec, credential.spec.grant.kind(), &credential.spec.protocols)
    } else {
        spec.scopes.clone()
    };
    checks::allowance_blocker(credential, allowed, &labels, &own)
}

/// Returns the state of the target Secret. `shown` is its metadata. If no watch shows the Secret, it may still exist:
/// then reads it from the API server.
async fn target(
    credential: &MailCredential,
    shown: Option<Arc<ObjectMeta>>,
    provider: Option<&Provider>,
    context: &Context,
) -> Result<Target, Error> {
    let name = target_name(credential);
    let namespace = checks::namespace(credential);
    let uid = checks::uid(credential);
    let suspect = context.cache.with(uid, |entry| entry.object.conflict);
    let in_status = credential.status.as_ref().is_some_and(|status| {
        let stalled = condition::find(&status.conditions, ConditionType::Stalled);
        status.secret_name.as_deref() == Some(name.as_str())
            || stalled.is_some_and(|stalled| stalled.reason == Reason::SecretConflict.as_str())
    });
    let meta = match shown {
        // No watch shows a Secret without the broker's label: a foreign Secret, or one whose label was removed.
        None if suspect || in_status => {
            let _reservation = context.kubernetes.secrets.reads.reserve(namespace, SECRET_MAX).await;
            let read = context.kubernetes.secrets.read(namespace, &name).await?;
            context.cache.with(uid, |entry| entry.object.conflict = read.is_some());
            match read {
                None => return Ok(Target::Absent),
                Some(secret) => Arc::new(secret.metadata),
            }
        }
        None => return Ok(Target::Absent),
        Some(meta) => meta,
    };
    match context.stores.ownership(&meta, credential, context.clock.now()) {
        Ownership::Own | Ownership::Takeover => Ok(Target::Own(published(credential, provider, &meta, context).await?)),
        Ownership::Foreign(owner) => Ok(Target::Foreign(owner)),
    }
}

/// Returns the newer of the target's metadata in the store and the metadata that the broker wrote. Drops kept metadata of
/// a Secret with another name.
fn shown_target(credential: &MailCredential, context: &Context) -> Option<Arc<ObjectMeta>> {
    let name = target_name(credential);
    let shown = context.stores.own_secrets.get(checks::namespace(credential), &name);
    let shown = shown.map(|secret| Arc::new(secret.metadata.clone()));
    context.cache.with(checks::uid(credential), |entry| {
        let written = entry.object.target.as_ref().is_some_and(|meta| meta.name.as_ref() == Some(&name));
        if !written {
            entry.object.target = None;
        }
        newer(shown, &mut entry.object.target, |meta| meta.resource_version.as_deref())
            .or_else(|| entry.object.target.clone())
    })
}

/// Returns a Secret with a former name of the target: the Secret that the status names, otherwise any other Secret that
/// belongs to the credential. After two renames, of which the status names one, this finds both.
async fn previous(
    credential: &MailCredential,
    provider: Option<&Provider>,
    context: &Context,
) -> Result<Option<Published>, Error> {
    let (namespace, target) = (checks::namespace(credential), target_name(credential));
    let reported = credential.status.as_ref().and_then(|status| status.secret_name.clone());
    let deletes = credential.spec.secret.deletion_policy == DeletionPolicy::Delete;
    let others = match deletes {
        true => context.stores.references.secrets_of(&(namespace.to_owned(), credential.name_any())),
        false => vec![],
    };
    let own_name = Some(credential.name_any()).filter(|_| deletes && credential.spec.secret.name.is_some());
    let candidates = reported.clone().into_iter().chain(others.into_iter().map(|key| key.1)).chain(own_name);
    for name in candidates.filter(|name| *name != target) {
        let Some(secret) = context.stores.own_secrets.get(namespace, &name) else { continue };
        if context.stores.ownership(&secret.metadata, credential, context.clock.now()) != Ownership::Own {
            continue;
        }
        let published = published(credential, provider, &secret.metadata, context).await?;
        // The broker does not delete a copy of the target that another tool made.
        if Some(&name) == reported.as_ref() || published.token.is_some() {
            return Ok(Some(published));
        }
    }
    Ok(None)
}

/// Observes a Secret of the credential. Reads its data only if another writer wrote the Secret last.
async fn published(
    credential: &MailCredential,
    provider: Option<&Provider>,
    meta: &ObjectMeta,
    context: &Context,
) -> Result<Published, Error> {
    let version = meta.resource_version.clone().unwrap_or_default();
    let status = credential.status.as_ref();
    let untouched = status.and_then(|status| status.secret_resource_version.as_ref()) == Some(&version);
    let layout = provider.map(|provider| provider.layout.clone()).unwrap_or_default();
    let known = context.cache.with(checks::uid(credential), |entry| {
        entry
            .object
            .inspected
            .clone()
            .filter(|inspected| inspected.resource_version == version && inspected.layout == layout)
    });
    let inspected = match known {
        Some(inspected) => *inspected,
        None if untouched => Inspected {
            resource_version: version.clone(),
            layout: layout.clone(),
            token: TokenFacts::read(meta),
            intact: true,
            must_recreate: false,
        },
        None => inspect(credential, provider, &layout, meta, context).await?,
    };
    let mut token = inspected.token;
    let agrees = token
        .as_mut()
        .is_none_or(|token| expiry::settle_with_status(token, status.and_then(|status| status.token.as_ref())));
    let (intact, must_recreate) = (inspected.intact && agrees, inspected.must_recreate);
    Ok(Published { token, intact, must_recreate, ..Published::read(meta) })
}

/// Reads a Secret that another writer may have changed, and compares it with the content that the broker writes.
async fn inspect(
    credential: &MailCredential,
    provider: Option<&Provider>,
    layout: &LayoutHash,
    meta: &ObjectMeta,
    context: &Context,
) -> Result<Inspected, Error> {
    let name = meta.name.clone().unwrap_or_default();
    let layout = layout.clone();
    let _reservation = context.kubernetes.secrets.reads.reserve(checks::namespace(credential), SECRET_MAX).await;
    let Some(secret) = context.kubernetes.secrets.read(checks::namespace(credential), &name).await? else {
        // The Secret was deleted since. The watch will show the deletion.
        let version = meta.resource_version.clone().unwrap_or_default();
        return Ok(Inspected { resource_version: version, layout, token: None, intact: false, must_recreate: false });
    };
    // The caller compares the status each time.
    let (token, agrees) = stored_token(&secret, None).map_or((None, true), |(stored, agrees)| (Some(stored), agrees));
    let as_written = provider.zip(token.as_ref()).is_none_or(|(provider, stored)| {
        let same_layout = Published::read(&secret.metadata).layout == provider.layout;
        let data = secret.data.as_ref();
        !same_layout
            || (data == render(credential, &provider.profile, &stored.token).ok().as_ref()
                && target_is_in_sync(&secret.metadata, credential))
    });
    let inspected = Inspected {
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        layout,
        intact: as_written && agrees,
        must_recreate: must_recreate(&secret),
        token: token.as_ref().and_then(|stored| {
            let facts = TokenFacts::read(&secret.metadata)?;
            Some(TokenFacts {
                expires_at: stored.token.expires_at,
                refresh_at: stored.token.refresh_at,
                length: Some(stored.token.access_token.expose_secret().len()),
                ..facts
            })
        }),
    };
    context.cache.with(checks::uid(credential), |entry| entry.object.inspected = Some(Box::new(inspected.clone())));
    Ok(inspected)
}
