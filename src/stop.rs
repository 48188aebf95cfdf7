//! `stop`: scales a broker's Deployment to 0 and waits until its pods have ended.
//!
//! The chart runs this command as a hook before an uninstall. Helm deletes the broker's rights milliseconds after the
//! broker's Deployment. A broker that refreshes a token at that moment cannot store the new refresh token, and a
//! provider that rotates refresh tokens accepts no older one.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    core::{ParseExpressionError, Selector},
};
use serde_json::json;
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    cli::Stop,
    error::describe,
    kubernetes::{AccessError, Connection},
};

/// Pause between two reads of the pods, and after a failed call: new RBAC rights apply after a moment.
const PAUSE: Duration = Duration::from_millis(500);

/// Reasons why the command could not stop the Deployment.
#[derive(Debug, Error)]
pub enum StopError {
    /// The command has no usable access to Kubernetes.
    #[error("{0}")]
    Kubernetes(#[from] AccessError),
    /// The pods did not end within the time limit.
    #[error(
        "the Deployment {deployment} was not stopped within {seconds} s: {last}. Check \
         `kubectl -n {namespace} get deployment,pods`, then repeat the command; `helm uninstall --no-hooks` uninstalls without this command"
    )]
    Timeout {
        /// Name of the Deployment.
        deployment: String,
        /// Namespace of the Deployment.
        namespace: String,
        /// Time limit of the command, in seconds.
        seconds: u64,
        /// The step that remains, or the last error.
        last: String,
    },
}

/// Scales the Deployment to 0, and returns when its pods have ended. A missing Deployment counts as stopped.
///
/// # Errors
/// If the command cannot reach Kubernetes, or the pods have not ended in time.
pub async fn run(settings: Stop) -> Result<(), StopError> {
    let connection = Connection::find(None, None).await?;
    let namespace = settings.namespace.unwrap_or_else(|| connection.default_namespace().to_owned());
    let client = connection.client().map_err(AccessError::Client)?;
    stop(client, &namespace, &settings.deployment, settings.timeout).await
}

/// Stops the Deployment as [`run`] does, with a given client.
///
/// # Errors
/// If the pods have not ended within `limit`.
#[expect(clippy::disallowed_methods, reason = "limits a user's wait: it decides nothing about tokens")]
pub async fn stop(client: Client, namespace: &str, name: &str, limit: Duration) -> Result<(), StopError> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    let deadline = Instant::now() + limit;
    let mut last = "the API server has not responded".to_owned();
    let mut scaled = false;
    loop {
        match timeout_at(deadline, step(&deployments, &pods, name, &mut scaled)).await {
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(rest))) => note(&mut last, rest),
            Ok(Err(error)) => note(&mut last, error.to_string()),
            Err(_) => {}
        }
        if Instant::now() + PAUSE >= deadline {
            let (deployment, namespace) = (name.to_owned(), namespace.to_owned());
            return Err(StopError::Timeout { deployment, namespace, seconds: limit.as_secs(), last });
        }
        sleep(PAUSE).await;
    }
}

/// Stores the remaining step. Prints the step if it differs from the last one.
fn note(last: &mut String, news: String) {
    if *last != news {
        eprintln!("{news}");
        *last = news;
    }
}

/// An error of a call that the command repeats.
#[derive(Debug, Error)]
enum StepError {
    #[error("reading the Deployment failed: {}", describe(.0))]
    Read(kube::Error),
    #[error("scaling the Deployment to 0 failed: {}", describe(.0))]
    Scale(kube::Error),
    #[error("listing the pods failed: {}", describe(.0))]
    List(kube::Error),
    #[error("the Deployment's selector cannot be used: {0}")]
    Selector(ParseExpressionError),
}

/// Takes the next step, and returns a description of the remaining one; `None` when the pods have ended.
async fn step(
    deployments: &Api<Deployment>,
    pods: &Api<Pod>,
    name: &str,
    scaled: &mut bool,
) -> Result<Option<String>, StepError> {
    let Some(mut deployment) = deployments.get_opt(name).await.map_err(StepError::Read)? else { return Ok(None) };
    if !*scaled {
        let none = Patch::Merge(json!({"spec": {"replicas": 0}}));
        match deployments.patch_scale(name, &PatchParams::default(), &none).await {
            Ok(_) => *scaled = true,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
            Err(error) => return Err(StepError::Scale(error)),
        }
        eprintln!("scaled the Deployment {name} to 0");
        let Some(now) = deployments.get_opt(name).await.map_err(StepError::Read)? else { return Ok(None) };
        deployment = now;
    }
    let selector = deployment.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
    let selector = Selector::try_from(selector).map_err(StepError::Selector)?;
    let pods = pods.list(&ListParams::default().labels_from(&selector)).await.map_err(StepError::List)?;
    Ok(remaining(&deployment, &pods.items))
}

/// Describes what has not ended yet. An empty list of pods is not enough: the controller may create pods until it has
/// seen the new scale.
fn remaining(deployment: &Deployment, pods: &[Pod]) -> Option<String> {
    let status = deployment.status.clone().unwrap_or_default();
    if status.observed_generation < deployment.metadata.generation {
        return Some("waiting for the Deployment's controller".to_owned());
    }
    let ended = |pod: &&Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    let left: Vec<_> = pods.iter().filter(|pod| !ended(pod)).map(ResourceExt::name_any).collect();
    match (left.is_empty(), status.replicas.unwrap_or(0)) {
        (true, 0) => None,
        (true, more) => Some(format!("waiting for {more} replicas")),
        (false, _) => Some(format!("waiting for the end of {}", left.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(generation: i64, observed: i64, replicas: Option<i32>) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "broker", "generation": generation},
            "status": {"observedGeneration": observed, "replicas": replicas},
        }))
        .unwrap()
    }

    fn pod(name: &str, phase: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {"phase": phase}})).unwrap()
    }

    #[test]
    fn the_brokers_have_ended_when_the_controller_knows_and_no_pod_runs() {
        let left_of = |deployment, pods: &[Pod]| remaining(&deployment, pods);
        for (case, left) in [
            (left_of(deployment(2, 2, None), &[]), None),
            (left_of(deployment(2, 2, Some(0)), &[pod("evicted", "Failed"), pod("done", "Succeeded")]), None),
            (left_of(deployment(2, 1, None), &[]), Some("the Deployment's controller")),
            (left_of(deployment(2, 2, Some(1)), &[]), Some("1 replicas")),
            (left_of(deployment(2, 2, None), &[pod("a", "Running"), pod("b", "Pending")]), Some("the end of a, b")),
        ] {
            assert_eq!(case, left.map(|left| format!("waiting for {left}")));
        }
        assert!(
            remaining(&Deployment::default(), &[]).is_none(),
            "a Deployment that no controller has seen has no pods"
        );
    }
}
