//! The queue of the objects to reconcile: one channel for each controller.

use std::{collections::HashMap, sync::Arc};

use kube::{Resource, runtime::reflector::ObjectRef};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::api::{
    ClusterMailProvider, MailCredential, MailProvider, credential::ProviderKind, provider_object::ProviderKey,
    reference::ObjectKey,
};

/// Enqueues objects for their controllers. A controller removes duplicates, and reconciles an object once at a time.
#[derive(Clone)]
pub struct WorkQueue(Arc<Queues>);

struct Queues {
    credentials: Senders<MailCredential>,
    providers: Senders<MailProvider>,
    cluster_providers: Senders<ClusterMailProvider>,
}

/// The receiving ends of a [`WorkQueue`], for the controllers.
pub struct Work {
    /// The MailCredentials to reconcile.
    pub credentials: Receivers<MailCredential>,
    /// The MailProviders to reconcile.
    pub providers: Receivers<MailProvider>,
    /// ClusterMailProviders; empty where the broker may not read them.
    pub cluster_providers: Receivers<ClusterMailProvider>,
}

/// The channel of each controller of one kind, by the namespace that the controller watches; `None` is all namespaces.
pub type Receivers<K> = HashMap<Option<String>, UnboundedReceiver<ObjectRef<K>>>;

impl WorkQueue {
    /// A queue for the controllers of these namespaces; of all namespaces where the list is empty. `cluster`:
    /// ClusterMailProviders are reconciled too.
    pub fn new(namespaces: &[String], cluster: bool) -> (Self, Work) {
        let scopes: Vec<Option<String>> = match namespaces {
            [] => vec![None],
            names => names.iter().cloned().map(Some).collect(),
        };
        let (credentials, credential_work) = channels(&scopes);
        let (providers, provider_work) = channels(&scopes);
        let (cluster_providers, cluster_work) = channels(if cluster { &[None] } else { &[] });
        let queue = Self(Arc::new(Queues { credentials, providers, cluster_providers }));
        let work = Work { credentials: credential_work, providers: provider_work, cluster_providers: cluster_work };
        (queue, work)
    }

    /// Enqueues a credential for the controller of its namespace.
    pub fn enqueue_credential(&self, (namespace, name): ObjectKey) {
        self.0.credentials.send(&namespace, &name);
    }

    /// Enqueues a provider for the controller of its kind.
    pub fn enqueue_provider(&self, ProviderKey { kind, namespace, name }: ProviderKey) {
        match kind {
            ProviderKind::MailProvider => self.0.providers.send(&namespace, &name),
            ProviderKind::ClusterMailProvider => self.0.cluster_providers.send(&namespace, &name),
        }
    }
}

fn channels<K: Resource<DynamicType = ()>>(scopes: &[Option<String>]) -> (Senders<K>, Receivers<K>) {
    let (mut senders, mut receivers) = (HashMap::new(), HashMap::new());
    for scope in scopes {
        let (sender, receiver) = unbounded_channel();
        senders.insert(scope.clone(), sender);
        receivers.insert(scope.clone(), receiver);
    }
    (Senders(senders), receivers)
}

struct Senders<K: Resource>(HashMap<Option<String>, UnboundedSender<ObjectRef<K>>>);

impl<K: Resource<DynamicType = ()>> Senders<K> {
    /// Objects of namespaces that no controller watches are dropped.
    fn send(&self, namespace: &str, name: &str) {
        let object = ObjectRef::new(name);
        let object = if namespace.is_empty() { object } else { object.within(namespace) };
        let sender = self.0.get(&None).or_else(|| self.0.get(&Some(namespace.to_owned())));
        if sender.is_some_and(|sender| sender.send(object).is_err()) {
            tracing::debug!(namespace, name, "not enqueued: the controller has ended");
        }
    }
}

#[cfg(test)]
impl Work {
    /// The next credential in the queue of all namespaces.
    pub(crate) fn next_credential(&mut self) -> Option<ObjectKey> {
        let object = self.credentials.get_mut(&None)?.try_recv().ok()?;
        Some((object.namespace.unwrap_or_default(), object.name))
    }

    /// The next MailProvider in the queue of all namespaces.
    pub(crate) fn next_provider(&mut self) -> Option<ProviderKey> {
        let object = self.providers.get_mut(&None)?.try_recv().ok()?;
        let namespace = object.namespace.unwrap_or_default();
        Some(ProviderKey { kind: ProviderKind::MailProvider, namespace, name: object.name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(kind: ProviderKind, namespace: &str) -> ProviderKey {
        ProviderKey { kind, namespace: namespace.to_owned(), name: "m365".to_owned() }
    }

    #[test]
    fn an_object_is_enqueued_for_the_controller_of_its_namespace() {
        let (queue, mut work) = WorkQueue::new(&["shop".to_owned(), "lab".to_owned()], true);
        for namespace in ["lab", "elsewhere"] {
            queue.enqueue_credential((namespace.to_owned(), "billing".to_owned()));
            queue.enqueue_provider(provider(ProviderKind::MailProvider, namespace));
        }
        queue.enqueue_provider(provider(ProviderKind::ClusterMailProvider, ""));
        let mut credentials = |scope: &str| work.credentials.get_mut(&Some(scope.to_owned())).unwrap().try_recv();
        assert!(credentials("shop").is_err());
        assert_eq!(credentials("lab").unwrap().name, "billing");
        assert!(credentials("lab").is_err(), "nothing of a namespace that is not watched");
        let found = work.providers.get_mut(&Some("lab".to_owned())).unwrap().try_recv().unwrap();
        assert_eq!(found.namespace.as_deref(), Some("lab"));
        let cluster = work.cluster_providers.get_mut(&None).unwrap().try_recv().unwrap();
        assert_eq!((cluster.namespace, cluster.name.as_str()), (None, "m365"));
    }

    #[test]
    fn one_controller_watches_all_namespaces_and_none_the_cluster_where_that_is_not_allowed() {
        let (queue, mut work) = WorkQueue::new(&[], false);
        queue.enqueue_credential(("shop".to_owned(), "billing".to_owned()));
        queue.enqueue_provider(provider(ProviderKind::ClusterMailProvider, ""));
        assert_eq!(work.next_credential(), Some(("shop".to_owned(), "billing".to_owned())));
        assert_eq!(work.next_credential(), None);
        assert!(work.cluster_providers.is_empty() && work.next_provider().is_none());
    }
}
