//! Detects a missing CRD, and names the command that installs it. A watch of a kind fails until its CRD is installed.

use kube::{Resource, runtime::watcher};

/// Returns the name of the CRD if a watch of the kind `K` failed because the API server does not know the kind.
pub(super) fn missing<K: Resource<DynamicType = ()>>(error: &watcher::Error) -> Option<String> {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    let (InitialListFailed(kube::Error::Api(status))
    | WatchStartFailed(kube::Error::Api(status))
    | WatchFailed(kube::Error::Api(status))) = error
    else {
        return None;
    };
    let group = K::group(&());
    (status.code == 404 && !group.is_empty()).then(|| format!("{}.{group}", K::plural(&())))
}

/// Returns the command that installs the CRDs of this version, from the broker's pod in `namespace` if the broker runs
/// in one.
pub(super) fn install(namespace: &str) -> String {
    let program =
        std::env::current_exe().map_or_else(|_| "mail-token-broker".into(), |path| path.display().to_string());
    // The chart sets POD_UID, and Kubernetes sets HOSTNAME to the pod's name.
    let pod = std::env::var("POD_UID").and_then(|_| std::env::var("HOSTNAME")).ok();
    command(namespace, pod.as_deref(), &program)
}

fn command(namespace: &str, pod: Option<&str>, program: &str) -> String {
    let print = match pod {
        Some(pod) => format!("kubectl -n {namespace} exec {pod} -- {program} crds"),
        None => format!("{program} crds"),
    };
    format!("{print} | kubectl apply --server-side -f -")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Secret;
    use kube::core::Status;

    use super::*;
    use crate::api::MailCredential;

    fn refused(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(Status { code, ..Status::default() }))
    }

    #[test]
    fn only_an_unknown_kind_of_a_crd_is_a_missing_crd() {
        let name = Some("mailcredentials.mailtoken.dev".to_owned());
        for error in [watcher::Error::InitialListFailed, watcher::Error::WatchStartFailed, watcher::Error::WatchFailed]
        {
            assert_eq!(missing::<MailCredential>(&error(refused(404))), name);
            assert_eq!(missing::<MailCredential>(&error(refused(403))), None);
            assert_eq!(missing::<Secret>(&error(refused(404))), None);
        }
        assert_eq!(missing::<MailCredential>(&watcher::Error::NoResourceVersion), None);
    }

    #[test]
    fn the_command_prints_the_crds_where_the_broker_runs() {
        for (pod, expected) in [
            (Some("broker-0"), "kubectl -n mail exec broker-0 -- /broker crds | kubectl apply --server-side -f -"),
            (None, "/broker crds | kubectl apply --server-side -f -"),
        ] {
            assert_eq!(command("mail", pod, "/broker"), expected);
        }
    }
}
