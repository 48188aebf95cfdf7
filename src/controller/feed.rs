//! Gives a controller of kube's the objects to reconcile. The controller has only those whose reconciles run. Those that wait
//! are in the queue, which keeps their order and takes a tenth of the memory that kube's scheduler takes for each.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use futures::Stream;
use kube::{
    Resource,
    core::{ObjectMeta, PartialObjectMeta},
    runtime::{
        reflector::{ObjectRef, Store, store::Writer},
        watcher::Event,
    },
};
use parking_lot::Mutex;

use crate::{api::reference::ObjectKey, reconcile::work_queue::ControllerQueue};

/// What a controller knows of an object: its name.
pub(super) type Named<K> = PartialObjectMeta<K>;

/// Connects a controller and its queue.
pub(super) struct Feed<K: Resource<DynamicType = ()> + Clone + 'static> {
    queue: Arc<ControllerQueue>,
    /// Where the controller looks up the objects whose reconciles run.
    running: Mutex<Writer<Named<K>>>,
    /// Reconciles at the same time.
    concurrency: usize,
}

impl<K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static> Feed<K> {
    /// A feed for a controller that runs `concurrency` reconciles at the same time, with the store to give to that controller.
    pub(super) fn new(queue: Arc<ControllerQueue>, concurrency: u16) -> (Arc<Self>, Store<Named<K>>) {
        let mut running = Writer::default();
        running.apply_watcher_event(&Event::Init);
        running.apply_watcher_event(&Event::InitDone);
        let store = running.as_reader();
        (Arc::new(Self { queue, running: Mutex::new(running), concurrency: usize::from(concurrency) }), store)
    }

    /// The objects to reconcile, each when its reconcile begins.
    pub(super) fn objects(self: Arc<Self>) -> impl Stream<Item = ObjectRef<Named<K>>> + Send {
        futures::stream::unfold(self, |feed| async move {
            let object = named(&feed.queue.next(feed.concurrency).await);
            let reference = ObjectRef::from_obj(&object);
            feed.running.lock().apply_watcher_event(&Event::Apply(object));
            Some((reference, feed))
        })
    }

    /// Ends a reconcile. The object is requeued `after` this time; `None`: when it is enqueued again.
    pub(super) fn done(&self, key: &ObjectKey, after: Option<Duration>) {
        self.running.lock().apply_watcher_event(&Event::Delete(named(key)));
        self.queue.done(key, after);
    }
}

fn named<K: Resource<DynamicType = ()>>((namespace, name): &ObjectKey) -> Named<K> {
    let namespace = Some(namespace.clone()).filter(|namespace| !namespace.is_empty());
    let metadata = ObjectMeta { namespace, name: Some(name.clone()), ..ObjectMeta::default() };
    PartialObjectMeta { types: None, metadata, _phantom: PhantomData }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures::{FutureExt as _, StreamExt as _};
    use k8s_openapi::api::core::v1::ConfigMap;

    use crate::reconcile::work_queue::WorkQueue;

    use super::*;

    struct Case {
        feed: Arc<Feed<ConfigMap>>,
        store: Store<Named<ConfigMap>>,
        queue: WorkQueue,
        objects: Pin<Box<dyn Stream<Item = ObjectRef<Named<ConfigMap>>> + Send>>,
    }

    impl Case {
        fn new(concurrency: u16) -> Self {
            let (queue, work) = WorkQueue::new(&[], true);
            let (feed, store) = Feed::<ConfigMap>::new(work.credentials[&None].clone(), concurrency);
            let objects = feed.clone().objects().boxed();
            Self { feed, store, queue, objects }
        }

        fn enqueue(&self, names: impl IntoIterator<Item = &'static str>) {
            names.into_iter().for_each(|name| self.queue.enqueue_credential(key(name)));
        }

        /// Names of the objects that the controller gets now. It finds each in its store.
        fn given(&mut self) -> Vec<String> {
            let given = std::iter::from_fn(|| self.objects.next().now_or_never().flatten());
            let found = given.map(|object| self.store.get(&object).unwrap().metadata.name.clone().unwrap());
            found.collect()
        }

        fn done(&self, name: &str, again: Option<Duration>) {
            self.feed.done(&key(name), again);
        }
    }

    fn key(name: &str) -> ObjectKey {
        ("shop".to_owned(), name.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn the_controller_has_only_what_it_runs() {
        let mut case = Case::new(2);
        case.enqueue(["a", "b", "c", "a"]);
        assert_eq!(case.given(), ["a", "b"]);
        assert_eq!(case.store.len(), 2);
        case.done("b", None);
        assert_eq!(case.given(), ["c"]);
        case.enqueue(["a"]);
        assert!(case.given().is_empty(), "its reconcile runs");
        case.done("a", Some(Duration::from_secs(60)));
        assert_eq!(case.given(), ["a"], "it was enqueued meanwhile");
        case.done("a", None);
        case.done("c", None);
        assert!(case.given().is_empty() && case.store.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_enqueued_object_the_end_of_a_reconcile_and_a_time_wake_the_controller() {
        let mut case = Case::new(1);
        let (feed, queue) = (case.feed.clone(), case.queue.clone());
        let (next, ()) = futures::join!(case.objects.next(), async { queue.enqueue_credential(key("a")) });
        assert_eq!(next.unwrap().name, "a");
        case.enqueue(["b"]);
        let ends = async { feed.done(&key("a"), Some(Duration::from_secs(30))) };
        let (next, ()) = futures::join!(case.objects.next(), ends);
        assert_eq!(next.unwrap().name, "b");
        case.done("b", None);
        let early = tokio::time::timeout(Duration::from_secs(29), case.objects.next()).await;
        assert!(early.is_err(), "not before its time");
        assert_eq!(case.objects.next().await.unwrap().name, "a");
        case.done("a", Some(Duration::MAX));
        assert!(case.given().is_empty(), "a time that no clock shows is never");
    }

    #[tokio::test]
    async fn an_object_of_the_cluster_is_found_without_a_namespace() {
        let mut case = Case::new(1);
        let object = (String::new(), "m365".to_owned());
        case.queue.enqueue_credential(object.clone());
        assert_eq!(case.given(), ["m365"]);
        case.feed.done(&object, None);
        assert!(case.store.is_empty());
    }
}
