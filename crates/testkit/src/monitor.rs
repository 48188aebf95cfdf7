//! Observes the Secrets that pods would mount, all the time: the Secret of a ready credential must never contain a
//! wrong token.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _, api::ListParams};
use mailtoken_core::api::MailCredential;
use tokio::{sync::oneshot, task::JoinHandle};

use super::{Namespace, fixture::text, namespace::find};

/// Time between two checks.
const INTERVAL: Duration = Duration::from_millis(50);

/// The access tokens in each credential's Secret while the credential was ready. An empty text means that the Secret
/// had no token.
pub type Seen = BTreeMap<String, BTreeSet<String>>;

/// Checks all credentials of a namespace, and the Secrets of the same names.
pub struct Monitor {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Seen>,
}

impl Monitor {
    /// Starts the monitor.
    pub fn start(ns: &Namespace) -> Self {
        let (credentials, secrets) = (ns.api(), ns.api());
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut seen = Seen::new();
            loop {
                // If the API server does not respond, this check records nothing.
                drop(look(&credentials, &secrets, &mut seen).await);
                if tokio::time::timeout(INTERVAL, &mut stopped).await.is_ok() {
                    drop(look(&credentials, &secrets, &mut seen).await);
                    return seen;
                }
            }
        });
        Self { stop, task }
    }

    /// Checks once more, and returns all tokens seen.
    pub async fn end(self) -> Seen {
        self.stop.send(()).unwrap();
        self.task.await.unwrap()
    }
}

/// Records the tokens of ready credentials. Reads the credentials first, because the broker does not remove a token
/// from a Secret later.
async fn look(credentials: &Api<MailCredential>, secrets: &Api<Secret>, seen: &mut Seen) -> kube::Result<()> {
    let params = ListParams::default();
    let (credentials, secrets) = (credentials.list(&params).await?, secrets.list(&params).await?);
    for credential in credentials {
        if find(&credential, "Ready").is_some_and(|ready| ready.status == "True") {
            let name = credential.name_any();
            let secret = secrets.iter().find(|secret| secret.name_any() == name);
            let token = secret.map(|secret| text(secret, "access_token")).unwrap_or_default();
            seen.entry(name).or_default().insert(token);
        }
    }
    Ok(())
}
