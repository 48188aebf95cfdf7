//! Sees what pods would have mounted, all the time: a credential that says it is ready must never stand for a wrong token.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _, api::ListParams};
use mailtoken_core::api::MailCredential;
use tokio::{sync::oneshot, task::JoinHandle};

use super::{Namespace, fixture::text, namespace::find};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(50);

/// The access tokens, by credential, that stood in its Secret while it said that it was ready; an empty one where
/// nothing stood there.
pub type Seen = BTreeMap<String, BTreeSet<String>>;

/// Checks all credentials of a namespace, and the Secrets of their names.
pub struct Monitor {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Seen>,
}

impl Monitor {
    /// Begins now.
    pub fn start(ns: &Namespace) -> Self {
        let (credentials, secrets) = (ns.api(), ns.api());
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut seen = Seen::new();
            loop {
                // An API server that does not answer shows nothing.
                drop(look(&credentials, &secrets, &mut seen).await);
                if tokio::time::timeout(INTERVAL, &mut stopped).await.is_ok() {
                    drop(look(&credentials, &secrets, &mut seen).await);
                    return seen;
                }
            }
        });
        Self { stop, task }
    }

    /// What was seen, to this very moment.
    pub async fn end(self) -> Seen {
        self.stop.send(()).unwrap();
        self.task.await.unwrap()
    }
}

/// The credentials first: a Secret is not emptied afterwards.
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
