//! The reconcile of a provider: resolves the provider after a change of it or of an object to which it refers, and
//! reports in its status whether the broker can use it.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Resource,
    api::{Patch, PatchParams},
    core::ObjectMeta,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tracing::Instrument as _;

use crate::{
    admission::Answer,
    api::{
        ClusterMailProvider, ConditionType, MailProvider, ProviderStatus, Reason, condition,
        credential::ProviderKind,
        names,
        provider_object::{ProviderKey, ProviderObject, bundle_config_map},
    },
    error::Error,
    policy::{
        hash::ProviderHash,
        notices::EventNote,
        provider::{self as policy, ClientEnd, Usable},
    },
    provider_client::{problem::ProviderProblem, resolved_provider::ResolvedProvider},
    reconcile::{
        act::{
            activity::{Activity, Permit},
            admit::ask_for_discovery,
        },
        action::Action,
        context::Context,
        report::overwritten,
    },
};

/// Reconciles one provider.
///
/// # Errors
/// The step that failed in Kubernetes. All other failures become conditions.
pub async fn reconcile(key: &ProviderKey, context: &Arc<Context>) -> Result<Action, Error> {
    let done = provider_step(key, context).await;
    if !matches!(done, Ok(None)) {
        context.requests.admission.withdraw(&Activity::Discovery(key.clone().into()));
    }
    done.map(|action| action.unwrap_or_else(Action::await_change))
}

/// Takes one step. Returns `None` if a resolution runs or waits for its permit.
async fn provider_step(key: &ProviderKey, context: &Arc<Context>) -> Result<Option<Action>, Error> {
    let Some(object) = context.stores.provider(key) else { return Ok(Some(Action::await_change())) };
    if key.kind == ProviderKind::ClusterMailProvider
        && !context.stores.credentials.is_complete()
        && !context.stores.references.is_used(key)
    {
        // A broker with `--namespace` ignores ClusterMailProviders that no credential in its namespaces uses.
        return Ok(Some(Action::await_change()));
    }
    let home = context.stores.home(key).to_owned();
    let map = bundle_config_map(object.spec()).map(|reference| (home, reference.name.clone()));
    context.providers.bundles.release(key, map.as_ref());
    if !context.leadership.is_leader() || object.meta().deletion_timestamp.is_some() {
        return Ok(Some(Action::await_change()));
    }
    let Some(inputs) = context.providers.hash(&object) else { return Ok(Some(Action::await_change())) };
    let known = context.providers.result(key, &inputs);
    if known.is_none() && policy::is_fresh(&object) {
        // After a restart, the former result stays valid until a credential needs the provider.
        let now = context.clock.now();
        if let Some(until) = context.providers.is_still_valid(key, &inputs, policy::trusted_until(&object, now), now) {
            if context.providers.is_news(key, &inputs, None) {
                context.queue.enqueue_credentials(context.stores.references.by_provider(key));
            }
            return Ok(Some(Action::requeue(context.clock.until(until))));
        }
    }
    let due = context.providers.retry_at(key);
    let now = context.clock.now();
    let again = due.is_some_and(|due| due <= now);
    if let Some(error) = context.providers.take_error(key) {
        return Err(error);
    }
    let result = match known {
        Some(result) if !again => result,
        _ => {
            match ask_for_discovery(&object, again, now, &context.stores) {
                None => start_resolution(object, inputs, again, None, context),
                Some(ask) => match context.requests.admission.ask(&Activity::Discovery(key.clone().into()), ask) {
                    Answer::Admitted(permit) => start_resolution(object, inputs, again, Some(permit), context),
                    // The admission enqueues the provider when a permit is free.
                    Answer::Queued(_) => {}
                },
            }
            return Ok(None);
        }
    };
    let next = context.providers.note(key, &inputs, result.as_ref().err(), now);
    let (turn, wrote) = write_status(&object, &inputs, result.as_ref().map(Arc::as_ref), context, now).await?;
    if context.providers.is_news(key, &inputs, result.as_ref().err()) || wrote {
        context.queue.enqueue_credentials(context.stores.references.by_provider(key));
    }
    let next = next.into_iter().chain(turn).min();
    Ok(Some(next.map_or_else(Action::await_change, |at| Action::requeue(context.clock.until(at)))))
}

/// Resolves a provider in a separate task, which enqueues the provider at its end. So a provider that hangs delays no
/// other provider. The discovery of endpoints needs a permit.
fn start_resolution(
    object: ProviderObject,
    inputs: ProviderHash,
    again: bool,
    permit: Option<Permit>,
    context: &Arc<Context>,
) {
    let key = object.key();
    if !context.providers.begin(&key) {
        return;
    }
    let context = context.clone();
    let span = tracing::info_span!("resolve", kind = ?key.kind, namespace = key.namespace, name = key.name);
    let task = async move {
        let resolved =
            AssertUnwindSafe(context.providers.resolve(&object, again, permit.as_ref())).catch_unwind().await;
        let exists = context.stores.provider(&key).is_some_and(|found| found.meta().uid == object.meta().uid);
        if !exists {
            // The provider was deleted during the resolution: remove the state that this task has left.
            context.providers.forget(&key);
            context.providers.bundles.release(&key, None);
            return context.queue.enqueue_provider(key);
        }
        let error = match resolved {
            Ok(Ok(result)) => {
                context.providers.note(&key, &inputs, result.as_ref().err(), context.clock.now());
                None
            }
            Ok(Err(error)) => Some(error),
            Err(_) => Some(Error::Panicked { name: key.to_string() }),
        };
        drop(permit);
        context.providers.end(&key, error);
        context.queue.enqueue_provider(key);
    };
    tokio::spawn(task.instrument(span));
}

/// Writes the status of a provider if it differs. Returns the time at which the status changes only because of the
/// clock, and whether this call wrote it. If another writer changes the status each time, delays the write: two
/// installations with different results must not write as fast as they can.
async fn write_status(
    object: &ProviderObject,
    inputs: &ProviderHash,
    result: Result<&ResolvedProvider, &ProviderProblem>,
    context: &Context,
    now: Timestamp,
) -> Result<(Option<Timestamp>, bool), Error> {
    let before = context.providers.status(object);
    let found = result.map(usable).map_err(|problem| problem.blocker.clone());
    let mut after = policy::status(object.meta(), &object.key().to_string(), &before, &found, now);
    if let Ok(resolved) = result {
        after.token_url = Some(resolved.endpoints.token_url.clone());
        after.device_authorization_url = resolved.endpoints.device_authorization_url.clone();
        after.revocation_url = resolved.endpoints.revocation_url.clone();
    }
    let turn = match &found {
        Ok(usable) => usable.next_turn(now),
        Err(_) => policy::arrival_until(object.meta(), &after, now),
    };
    if before == after {
        return Ok((turn, false));
    }
    let uid = object.meta().uid.as_deref().unwrap_or_default();
    let version = format!("{:?} {inputs}", object.meta().generation);
    if let Some(until) = context.cache.defer_status(uid, &version, now) {
        overwritten(&object.key().to_string(), &context.metrics);
        return Ok((Some(until), false));
    }
    let written = match object {
        ProviderObject::Namespaced(provider) => {
            let api = Api::<MailProvider>::namespaced(context.kubernetes.client.clone(), &object.key().namespace);
            patch_status(&api, provider, &after).await?
        }
        ProviderObject::Cluster(provider) => {
            patch_status(&Api::<ClusterMailProvider>::all(context.kubernetes.client.clone()), provider, &after).await?
        }
    };
    let Some(meta) = written else { return Ok((None, false)) };
    context.providers.wrote(&object.key(), &meta, after.clone());
    if let Some(words) = result.ok().and_then(skipped_words)
        && condition::find(&before.conditions, ConditionType::Ready)
            .is_none_or(|reported| !reported.message.contains(&words))
    {
        let notice = EventNote { warning: true, reason: Reason::SourceInvalid, note: words };
        emit(object, &notice, context);
    }
    for notice in policy::notices(&before, &after) {
        emit(object, &notice, context);
    }
    Ok((turn, true))
}

/// Returns the facts that the status of a usable provider reports.
fn usable(resolved: &ResolvedProvider) -> Usable<'_> {
    let clients = resolved.authentication.iter().filter(|entry| entry.client_credential.is_ok()).map(|entry| {
        ClientEnd { index: entry.index, method: entry.method, expires_at: entry.expires_at.as_ref().map(|end| end.0) }
    });
    Usable { message: ready_words(resolved), clients: clients.collect() }
}

fn ready_words(resolved: &ResolvedProvider) -> String {
    let unusable =
        resolved.authentication.iter().filter_map(|entry| Some((entry.index, entry.client_credential.as_ref().err()?)));
    let notes: String = unusable
        .map(|(index, blocker)| {
            format!(
                "; spec.client.authentication[{index}] cannot be used ({}): {}",
                blocker.reason.as_str(),
                blocker.message
            )
        })
        .collect();
    let bundle = skipped_words(resolved).map(|words| format!("; {words}")).unwrap_or_default();
    format!("tokens come from {}{notes}{bundle}", resolved.endpoints.token_url)
}

/// Describes the skipped blocks of the CA bundle.
fn skipped_words(resolved: &ResolvedProvider) -> Option<String> {
    let skipped = resolved.client.skipped()?;
    Some(format!("the CA bundle holds more than certificates, and only its certificates are used: {skipped}"))
}

/// Applies the status. Returns the metadata of the written object; `None` if the object no longer exists.
async fn patch_status<K>(api: &Api<K>, object: &Arc<K>, status: &ProviderStatus) -> Result<Option<ObjectMeta>, Error>
where
    K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let name = object.meta().name.clone().unwrap_or_default();
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name, "uid": object.meta().uid},
        "status": status,
    });
    match api.patch_status(&name, &PatchParams::apply(names::MANAGER).force(), &Patch::Apply(&patch)).await {
        Ok(written) => Ok(Some(written.meta().clone())),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(source) => Err(Error::WriteStatus { name: format!("{} {name}", K::kind(&())), source }),
    }
}

fn emit(object: &ProviderObject, notice: &EventNote, context: &Context) {
    let reference = match object {
        ProviderObject::Namespaced(provider) => provider.object_ref(&()),
        ProviderObject::Cluster(provider) => {
            // Events of cluster-scoped objects belong to the namespace `default`, in which many brokers may not write.
            let mut reference = provider.object_ref(&());
            reference.namespace = None;
            reference
        }
    };
    context.kubernetes.events.publish(notice, &reference, context.clock.now());
}
