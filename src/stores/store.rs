//! The objects of one kind as their watch shows them. The store keeps the objects that arrived last unpacked and packs
//! the others: a packed object takes a sixth of the memory.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Debug,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    sync::Arc,
};

use kube::{Resource, core::ObjectMeta};
use parking_lot::RwLock;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use crate::stores::packed;

/// Number of objects that the store keeps unpacked. With fewer objects, the store packs none.
const WHOLE: usize = 512;

/// A kind that a store can keep.
pub trait Stored:
    Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl<K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static> Stored
    for K
{
}

/// Read access to a store. Clones share the store.
pub struct Store<K>(Arc<Shared<K>>);

impl<K> Clone for Store<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<K> {
    objects: RwLock<HashMap<Box<str>, Slot<K>>>,
    complete: watch::Sender<bool>,
}

struct Slot<K> {
    form: Form<K>,
    /// Hash of uid and version.
    stamp: u64,
    /// Number of the last list that contained the object.
    list: u32,
}

enum Form<K> {
    /// The unpacked object, and the sequence number of its arrival.
    Whole(Arc<K>, u64),
    /// The object as `packed` packs it.
    Packed(Box<[u8]>),
}

impl<K: Stored> Form<K> {
    fn object(&self) -> Option<Arc<K>> {
        match self {
            Self::Whole(object, _) => Some(object.clone()),
            // `Self::Packed` was made from the same type, so it unpacks.
            Self::Packed(object) => packed::unpack(object),
        }
    }
}

impl<K: Stored> Store<K> {
    /// Returns the object with this name; the namespace of a cluster-scoped object is empty.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.0.objects.read().get(&*joined(namespace, name)).and_then(|slot| slot.form.object())
    }

    /// Whether an object with this name exists.
    pub fn contains(&self, namespace: &str, name: &str) -> bool {
        self.0.objects.read().contains_key(&*joined(namespace, name))
    }

    /// Whether the store has exactly this version of an object.
    pub fn has(&self, meta: &ObjectMeta) -> bool {
        self.0.objects.read().get(&*key(meta)).is_some_and(|slot| slot.stamp == stamp(meta))
    }

    /// Returns the names of all objects that `wanted` accepts by namespace and name.
    pub fn names(&self, wanted: impl Fn(&str, &str) -> bool) -> Vec<(String, String)> {
        let objects = self.0.objects.read();
        let names = objects.keys().filter_map(|key| key.split_once('/'));
        names.filter(|(namespace, name)| wanted(namespace, name)).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
    }

    /// Returns all objects. Unpacks each object when the iterator reaches it, because all unpacked objects at the same
    /// time may take too much memory.
    pub fn all(&self) -> impl Iterator<Item = Arc<K>> {
        self.names(|_, _| true).into_iter().filter_map(|(namespace, name)| self.get(&namespace, &name))
    }

    /// Returns the unpacked objects. They include all objects that must stay unpacked.
    pub fn whole(&self) -> Vec<Arc<K>> {
        let objects = self.0.objects.read();
        let whole = objects.values().filter_map(|slot| match &slot.form {
            Form::Whole(object, _) => Some(object.clone()),
            Form::Packed(_) => None,
        });
        whole.collect()
    }

    /// Waits until the first list is complete.
    pub async fn complete(&self) {
        let mut complete = self.0.complete.subscribe();
        // An error would mean that the sender no longer exists, but `self` holds it.
        let _ended = complete.wait_for(|complete| *complete).await;
    }
}

/// Write access to a store, for the watch.
pub struct Writer<K> {
    shared: Arc<Shared<K>>,
    /// Whether the store may pack an object.
    packs: fn(&K) -> bool,
    /// Keys of the unpacked objects that may be packed, in the order of their arrival. An object that arrived again has
    /// two entries.
    whole: VecDeque<(Box<str>, u64)>,
    /// Number of objects that have arrived.
    arrivals: u64,
    /// Number of the current list.
    list: u32,
}

impl<K: Stored> Writer<K> {
    /// Creates a writer with an empty store. `packs` decides whether the store may pack an object.
    pub fn new(packs: fn(&K) -> bool) -> Self {
        let shared = Shared { objects: RwLock::default(), complete: watch::Sender::new(false) };
        Self { shared: Arc::new(shared), packs, whole: VecDeque::new(), arrivals: 0, list: 0 }
    }

    /// Returns the store that this writer fills.
    pub fn store(&self) -> Store<K> {
        Store(self.shared.clone())
    }

    /// Whether the store has exactly this version of the object. If so, marks the object as part of the current list.
    pub fn has(&self, meta: &ObjectMeta) -> bool {
        let mut objects = self.shared.objects.write();
        let slot = objects.get_mut(&*key(meta)).filter(|slot| slot.stamp == stamp(meta));
        slot.map(|slot| slot.list = self.list).is_some()
    }

    /// Adds an object, or replaces an older version of the object.
    pub fn apply(&mut self, object: K) -> Arc<K> {
        let (key, stamp) = (key(object.meta()), stamp(object.meta()));
        let object = Arc::new(object);
        self.arrivals += 1;
        let form = Form::Whole(object.clone(), self.arrivals);
        self.shared.objects.write().insert(key.clone(), Slot { form, stamp, list: self.list });
        if (self.packs)(&object) {
            self.whole.push_back((key, self.arrivals));
        }
        while self.whole.len() > WHOLE
            && let Some((key, came)) = self.whole.pop_front()
        {
            self.pack(&key, came);
        }
        object
    }

    /// Packs an object, unless a newer version has arrived since.
    fn pack(&self, key: &str, came: u64) {
        let mut objects = self.shared.objects.write();
        let Some(slot) = objects.get_mut(key) else { return };
        if let Form::Whole(object, at) = &slot.form
            && *at == came
            && let Some(packed) = packed::pack(&**object)
        {
            slot.form = Form::Packed(packed);
        }
    }

    /// Removes the object with this name, and returns it.
    pub fn remove(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let mut objects = self.shared.objects.write();
        let slot = objects.remove(&*joined(namespace, name))?;
        // Free the memory after the deletion of thousands of objects.
        if objects.capacity() > 4 * objects.len().max(WHOLE) {
            objects.shrink_to_fit();
        }
        drop(objects);
        slot.form.object()
    }

    /// Begins a list. `end_list` then finds the objects that the list does not contain.
    pub fn begin_list(&mut self) {
        self.list = self.list.wrapping_add(1);
    }

    /// Ends a list, and returns the names of the objects that the list does not contain.
    pub fn end_list(&self) -> Vec<(String, String)> {
        let objects = self.shared.objects.read();
        let unseen =
            objects.iter().filter(|(_, slot)| slot.list != self.list).filter_map(|(key, _)| key.split_once('/'));
        unseen.map(|(namespace, name)| (namespace.to_owned(), name.to_owned())).collect()
    }

    /// Marks the first list as complete.
    pub fn complete(&self) {
        self.shared.complete.send_replace(true);
    }

    /// Removes all objects from the store.
    pub fn clear(&mut self) {
        self.shared.objects.write().clear();
        self.whole.clear();
    }
}

fn key(meta: &ObjectMeta) -> Box<str> {
    joined(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// Joins namespace and name with a slash, which no name contains.
fn joined(namespace: &str, name: &str) -> Box<str> {
    format!("{namespace}/{name}").into_boxed_str()
}

fn stamp(meta: &ObjectMeta) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one((&meta.uid, &meta.resource_version))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn map(name: &str, version: usize) -> ConfigMap {
        let metadata = ObjectMeta {
            namespace: Some("shop".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(format!("uid of {name}")),
            resource_version: Some(version.to_string()),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    fn packed(store: &Store<ConfigMap>) -> usize {
        store.0.objects.read().values().filter(|slot| matches!(slot.form, Form::Packed(_))).count()
    }

    fn filled(number: usize) -> Writer<ConfigMap> {
        let mut writer = Writer::new(|object: &ConfigMap| object.metadata.name.as_deref() != Some("c0"));
        for number in 0..number {
            writer.apply(map(&format!("c{number}"), 1));
        }
        writer
    }

    #[test]
    fn an_object_is_the_same_whether_it_is_packed_or_not() {
        let writer = filled(3 * WHOLE);
        let store = writer.store();
        assert_eq!((store.names(|_, _| true).len(), packed(&store)), (3 * WHOLE, 2 * WHOLE - 1), "c0 is never packed");
        for number in 0..3 * WHOLE {
            let name = format!("c{number}");
            assert_eq!(*store.get("shop", &name).unwrap(), map(&name, 1));
        }
        assert_eq!(store.all().count(), 3 * WHOLE);
        assert!(store.get("shop", "other").is_none() && store.get("other", "c1").is_none());
        assert!(store.contains("shop", "c1") && !store.contains("other", "c1"));
    }

    #[test]
    fn an_object_that_comes_again_is_packed_only_when_it_is_old_again() {
        let mut writer = filled(WHOLE);
        let store = writer.store();
        for version in 2..3 * WHOLE {
            writer.apply(map("c1", version));
        }
        assert_eq!(packed(&store), WHOLE - 2, "all but c0 and c1");
        assert_eq!(*store.get("shop", "c1").unwrap(), map("c1", 3 * WHOLE - 1));
        assert!(writer.whole.len() <= WHOLE);
    }

    #[test]
    fn a_list_finds_what_it_has_not_shown_without_reading_the_rest() {
        let mut writer = filled(2 * WHOLE);
        writer.begin_list();
        for number in 1..2 * WHOLE {
            assert!(writer.has(&map(&format!("c{number}"), 1).metadata));
        }
        assert!(!writer.has(&map("c0", 2).metadata), "another version");
        assert_eq!(writer.end_list(), [("shop".to_owned(), "c0".to_owned())]);
        writer.apply(map("c0", 2));
        assert!(writer.end_list().is_empty());
    }

    #[test]
    fn a_store_whose_objects_are_gone_gives_its_memory_back() {
        let writer = filled(20 * WHOLE);
        let store = writer.store();
        for number in 0..20 * WHOLE {
            assert!(writer.remove("shop", &format!("c{number}")).is_some());
        }
        let objects = store.0.objects.read();
        assert!(objects.is_empty() && objects.capacity() <= 8 * WHOLE);
    }
}
