//! Looks at providers when they or what they refer to change, and tells in their status whether they can be used.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Resource,
    api::{Patch, PatchParams},
    core::ObjectMeta,
    runtime::controller::Action,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tracing::Instrument as _;

use super::{
    Context,
    material::{Prepared, ProviderProblem},
    stores::{ProviderKey, ProviderObject, bundle_config_map},
};
use crate::{
    api::{
        ClusterMailProvider, ConditionType, MailProvider, ProviderStatus, Reason, Retry, condition,
        credential::ProviderKind, names,
    },
    error::Error,
    policy::{Blocker, notices::Notice, schedule},
};

/// Brings one provider a step further.
///
/// # Errors
/// What Kubernetes would not do. Everything else is a condition.
pub async fn reconcile(key: &ProviderKey, context: &Arc<Context>) -> Result<Action, Error> {
    let Some(object) = context.stores.provider(key) else { return Ok(Action::await_change()) };
    if key.kind == ProviderKind::ClusterMailProvider
        && !context.stores.credentials.is_complete()
        && !context.links.is_used(key)
    {
        // A broker of single namespaces leaves the providers of the cluster that nobody there uses to other brokers.
        return Ok(Action::await_change());
    }
    let home = context.stores.home(key).to_owned();
    let map = bundle_config_map(object.spec()).map(|reference| (home, reference.name.clone()));
    context.bundles.release(key, map.as_ref());
    if !context.leadership.is_leader() || object.meta().deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let Some(fingerprint) = context.material.fingerprint(&object, context) else { return Ok(Action::await_change()) };
    let known = context.material.verdict(key, &fingerprint);
    if known.is_none() && is_fresh(&object) && context.material.trusts(key, &fingerprint) {
        // After a restart: what was found before stands until somebody needs the provider.
        wake_credentials(key, context);
        return Ok(Action::await_change());
    }
    let due = context.material.retry_at(key);
    let again = due.is_some_and(|due| due <= context.clock.now());
    if let Some(error) = context.material.take_error(key) {
        return Err(error);
    }
    let verdict = match known {
        Some(verdict) if !again => verdict,
        _ => {
            look(object, fingerprint, again, context);
            return Ok(Action::await_change());
        }
    };
    let now = context.clock.now();
    let next = context.material.note(key, &fingerprint, verdict.as_ref().err(), now);
    write_status(&object, verdict.as_ref().map(Arc::as_ref), context, now).await?;
    wake_credentials(key, context);
    Ok(next.map_or_else(Action::await_change, |at| Action::requeue(context.clock.until(at))))
}

/// Looks at a provider in a task of its own, which wakes it in the end: one that hangs holds up no other.
fn look(object: ProviderObject, fingerprint: String, again: bool, context: &Arc<Context>) {
    let key = object.key();
    if !context.material.begin(&key) {
        return;
    }
    let context = context.clone();
    let span = tracing::info_span!("look", kind = ?key.kind, namespace = key.namespace, name = key.name);
    let task = async move {
        let looked = AssertUnwindSafe(context.material.prepare(&object, again, &context)).catch_unwind().await;
        let error = match looked {
            Ok(Ok(verdict)) => {
                context.material.note(&key, &fingerprint, verdict.as_ref().err(), context.clock.now());
                None
            }
            Ok(Err(error)) => Some(error),
            Err(_) => Some(Error::Panicked { name: full_name(&key) }),
        };
        context.material.end(&key, error);
        context.waker.provider(key);
    };
    tokio::spawn(task.instrument(span));
}

/// The status is of this generation and good.
fn is_fresh(object: &ProviderObject) -> bool {
    object.status().is_some_and(|status| {
        status.observed_generation == object.meta().generation
            && condition::is_true(&status.conditions, ConditionType::Ready)
    })
}

fn wake_credentials(key: &ProviderKey, context: &Context) {
    context.links.by_provider(key).into_iter().for_each(|credential| context.waker.credential(credential));
}

/// When a broken provider is looked at again: transient problems soon, those that a person mends every minute, in case
/// that no watch shows the mending (a Secret without the label).
pub(super) fn look_again(problem: &ProviderProblem, failures: u32, now: Timestamp) -> Timestamp {
    let reason = match problem.blocker.reason.retry() {
        Retry::Permanent | Retry::OnChange => Reason::ProviderUnavailable,
        Retry::Transient | Retry::None => problem.blocker.reason,
    };
    let ceiling = now + k8s_openapi::jiff::SignedDuration::from_mins(1);
    match problem.blocker.reason.retry() {
        Retry::OnChange => schedule::next_attempt(reason, failures, now, None).min(ceiling),
        _ => schedule::next_attempt(reason, failures, now, None),
    }
}

async fn write_status(
    object: &ProviderObject,
    verdict: Result<&Prepared, &ProviderProblem>,
    context: &Context,
    now: Timestamp,
) -> Result<(), Error> {
    let before = context.material.status(object);
    let generation = object.meta().generation;
    let mut after = ProviderStatus {
        observed_generation: generation,
        conditions: before.conditions.clone(),
        ..ProviderStatus::default()
    };
    let (ready, Blocker { reason, message }) = match verdict {
        Ok(prepared) => {
            after.token_url = Some(prepared.endpoints.token_url.clone());
            after.device_authorization_url = prepared.endpoints.device_authorization_url.clone();
            after.revocation_url = prepared.endpoints.revocation_url.clone();
            (true, ready_words(prepared))
        }
        Err(problem) => (false, problem.blocker.clone()),
    };
    condition::upsert(
        &mut after.conditions,
        ConditionType::Ready,
        ready,
        reason,
        message,
        generation.unwrap_or_default(),
        now,
    );
    if before == after {
        return Ok(());
    }
    let written = match object {
        ProviderObject::Namespaced(provider) => {
            let api = Api::<MailProvider>::namespaced(context.client.clone(), &object.key().namespace);
            patch_status(&api, provider, &after).await?
        }
        ProviderObject::Cluster(provider) => {
            patch_status(&Api::<ClusterMailProvider>::all(context.client.clone()), provider, &after).await?
        }
    };
    let Some(meta) = written else { return Ok(()) };
    context.material.wrote(&object.key(), &meta, after.clone());
    if let Some(words) = verdict.ok().and_then(skipped_words)
        && condition::find(&before.conditions, ConditionType::Ready).is_none_or(|told| !told.message.contains(&words))
    {
        let notice = Notice { warning: true, reason: Reason::SourceInvalid, note: words };
        publish(object, &notice, context).await;
    }
    let turned = condition::find(&before.conditions, ConditionType::Ready).map(|ready| ready.status == "True");
    if turned == Some(!ready) || (turned.is_none() && !ready) {
        tell(object, ready, &after, context).await;
    }
    Ok(())
}

fn ready_words(prepared: &Prepared) -> Blocker {
    let unusable =
        prepared.authentication.iter().filter_map(|entry| Some((entry.index, entry.material.as_ref().err()?)));
    let notes: String = unusable
        .map(|(index, blocker)| {
            format!(
                "; spec.client.authentication[{index}] cannot be used ({}): {}",
                blocker.reason.as_str(),
                blocker.message
            )
        })
        .collect();
    let bundle = skipped_words(prepared).map(|words| format!("; {words}")).unwrap_or_default();
    Blocker::new(Reason::ProviderReady, format!("tokens come from {}{notes}{bundle}", prepared.endpoints.token_url))
}

/// What was passed over in the CA bundle.
fn skipped_words(prepared: &Prepared) -> Option<String> {
    let skipped = prepared.client.skipped()?;
    Some(format!("the CA bundle holds more than certificates, and only its certificates are used: {skipped}"))
}

/// The metadata as written; `None` where the object is gone.
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

async fn tell(object: &ProviderObject, ready: bool, status: &ProviderStatus, context: &Context) {
    let Some(condition) = condition::find(&status.conditions, ConditionType::Ready) else { return };
    let Some(reason) = Reason::parse(&condition.reason) else { return };
    let notice = Notice { warning: !ready, reason, note: condition.message.clone() };
    publish(object, &notice, context).await;
}

async fn publish(object: &ProviderObject, notice: &Notice, context: &Context) {
    let reference = match object {
        ProviderObject::Namespaced(provider) => provider.object_ref(&()),
        ProviderObject::Cluster(provider) => {
            // Events of cluster-scoped objects stand in the namespace `default`, where many may not write.
            let mut reference = provider.object_ref(&());
            reference.namespace = None;
            reference
        }
    };
    context.events.publish(notice, &reference, context.clock.now()).await;
}

/// What a provider is called in errors and logs.
pub fn full_name(key: &ProviderKey) -> String {
    match key.kind {
        ProviderKind::MailProvider => format!("MailProvider {}/{}", key.namespace, key.name),
        ProviderKind::ClusterMailProvider => format!("ClusterMailProvider {}", key.name),
    }
}
