//! Follows one kind into a store, and reports the differences. Lists and single events are handled in the same way: the
//! follower changes the store first, then reports the difference. A list changes the store in place, page by page, so
//! two copies of all objects never exist.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use kube::{core::ObjectMeta, runtime::watcher};

use crate::{
    api::reference::{ObjectKey, key},
    controller::incoming::{Incoming, Read},
    stores::store::{Store, Stored, Writer},
};

/// A difference between the former and the current content of a store.
#[derive(Debug)]
pub(super) enum Change<K> {
    /// The object is new or has changed.
    Applied {
        /// The object as the watch shows it now.
        object: Arc<K>,
        /// The former version of the same object; `None` if the object is new.
        before: Option<Arc<K>>,
    },
    /// The object no longer exists.
    Deleted(Arc<K>),
    /// The object exists but does not parse. The store has removed the former version of the object.
    Unreadable {
        /// The metadata of the object.
        meta: Box<ObjectMeta>,
        /// Why the object does not parse.
        error: String,
    },
    /// An object that did not parse no longer exists.
    Lost {
        /// The namespace and the name of the object.
        key: ObjectKey,
        /// The uid of the object.
        uid: String,
    },
    /// resourceVersions went back, because the API server was restored from a backup.
    Rewound,
}

/// The store of one kind in one scope, and the state of the current list.
pub(super) struct Follower<K> {
    writer: Writer<K>,
    reader: Store<K>,
    /// Whether the first list has ended, so that the store is complete.
    complete: bool,
    /// Keys of the unreadable objects that the current list has shown. Only the end of a later list uses them.
    listed: HashSet<ObjectKey>,
    /// The uids of the unreadable objects, by key.
    unreadable: HashMap<ObjectKey, String>,
    /// Whether the current list has shown an older version of an object than the store had.
    rewound: bool,
}

impl<K: Stored> Follower<K> {
    /// Creates a follower with an empty store. `packs` decides whether the store may pack an object.
    pub(super) fn new(packs: fn(&K) -> bool) -> Self {
        let writer = Writer::new(packs);
        let reader = writer.store();
        Self { writer, reader, complete: false, listed: HashSet::new(), unreadable: HashMap::new(), rewound: false }
    }

    /// Returns the store that this follower fills.
    pub(super) fn store(&self) -> Store<K> {
        self.reader.clone()
    }

    /// Applies an event of the watch to the store. `arriving` gets each object before the store has the object. `seen` gets
    /// each difference after the store has the object.
    pub(super) fn take<S>(
        &mut self,
        event: watcher::Event<Incoming<K, S>>,
        arriving: &impl Fn(&K),
        seen: &impl Fn(Change<K>),
    ) {
        match event {
            watcher::Event::Init => self.begin_list(),
            watcher::Event::InitApply(Incoming(Read::Object(object), _)) if !self.complete => {
                self.unreadable.remove(&key(&object));
                arriving(&object);
                self.writer.apply(object);
            }
            watcher::Event::InitApply(Incoming(read, _)) => {
                if let Read::Unreadable(meta, _) = &read {
                    self.listed.insert(key_of(meta));
                }
                self.apply(read, arriving, seen);
            }
            watcher::Event::InitDone => self.end_list(seen),
            watcher::Event::Apply(Incoming(read, _)) => self.apply(read, arriving, seen),
            watcher::Event::Delete(Incoming(Read::Object(object), _)) => self.delete(object.meta(), seen),
            watcher::Event::Delete(Incoming(Read::Unreadable(meta, _), _)) => self.delete(&meta, seen),
        }
    }

    fn begin_list(&mut self) {
        self.listed = HashSet::new();
        self.writer.begin_list();
        if !self.complete {
            self.unreadable.clear();
            self.writer.clear();
        }
    }

    fn end_list(&mut self, seen: &impl Fn(Change<K>)) {
        if !self.complete {
            self.complete = true;
            self.writer.complete();
            for object in self.reader.all() {
                seen(Change::Applied { object, before: None });
            }
            return;
        }
        for key in self.writer.end_list() {
            self.remove(&key, seen);
        }
        let listed = std::mem::take(&mut self.listed);
        let lost: Vec<ObjectKey> = self.unreadable.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        lost.into_iter().for_each(|key| self.lose(key, seen));
        if std::mem::take(&mut self.rewound) {
            seen(Change::Rewound);
        }
    }

    fn apply(&mut self, read: Read<K>, arriving: &impl Fn(&K), seen: &impl Fn(Change<K>)) {
        match read {
            // The store already has this version: a list repeats unchanged objects.
            Read::Object(object) if self.writer.has(object.meta()) => {}
            Read::Object(object) => {
                let found = key(&object);
                let before = self.reader.get(&found.0, &found.1);
                self.unreadable.remove(&found);
                self.rewound |= before.as_ref().is_some_and(|before| is_older(before.meta(), object.meta()));
                arriving(&object);
                let object = self.writer.apply(object);
                let before = match before {
                    // The name now belongs to another object.
                    Some(replaced) if replaced.meta().uid != object.meta().uid => {
                        seen(Change::Deleted(replaced));
                        None
                    }
                    before => before,
                };
                seen(Change::Applied { object, before });
            }
            Read::Unreadable(meta, error) => {
                let found = key_of(&meta);
                let uid = meta.uid.clone().unwrap_or_default();
                if let Some(object) = self.writer.remove(&found.0, &found.1)
                    && object.meta().uid != meta.uid
                {
                    seen(Change::Deleted(object));
                }
                match self.unreadable.insert(found.clone(), uid.clone()) {
                    Some(former) if former != uid => seen(Change::Lost { key: found, uid: former }),
                    _ => {}
                }
                seen(Change::Unreadable { meta, error });
            }
        }
    }

    fn delete(&mut self, meta: &ObjectMeta, seen: &impl Fn(Change<K>)) {
        let found = key_of(meta);
        match self.reader.get(&found.0, &found.1) {
            Some(object) if object.meta().uid == meta.uid => self.remove(&found, seen),
            Some(_) => {}
            None => self.lose(found, seen),
        }
    }

    fn remove(&self, (namespace, name): &ObjectKey, seen: &impl Fn(Change<K>)) {
        if let Some(object) = self.writer.remove(namespace, name) {
            seen(Change::Deleted(object));
        }
    }

    fn lose(&mut self, key: ObjectKey, seen: &impl Fn(Change<K>)) {
        if let Some(uid) = self.unreadable.remove(&key) {
            seen(Change::Lost { key, uid });
        }
    }
}

/// Returns the namespace and the name of an object.
pub(super) fn key_of(meta: &ObjectMeta) -> ObjectKey {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// Whether `after` has an older version than `before`. resourceVersions are comparable numbers (KEP-5504).
fn is_older(before: &ObjectMeta, after: &ObjectMeta) -> bool {
    let number = |meta: &ObjectMeta| meta.resource_version.as_deref()?.parse::<u64>().ok();
    before.uid == after.uid && number(after).zip(number(before)).is_some_and(|(after, before)| after < before)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use k8s_openapi::api::core::v1::ConfigMap;

    use crate::stores::slim::Source;

    use super::*;

    type Event = watcher::Event<Incoming<ConfigMap, Source>>;

    fn meta(name: &str, uid: &str, version: u64) -> ObjectMeta {
        ObjectMeta {
            namespace: Some("shop".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            resource_version: Some(version.to_string()),
            ..ObjectMeta::default()
        }
    }

    fn map(name: &str, uid: &str, version: u64) -> Incoming<ConfigMap, Source> {
        Incoming::new(Read::Object(ConfigMap { metadata: meta(name, uid, version), ..ConfigMap::default() }))
    }

    fn unreadable(name: &str, uid: &str, version: u64) -> Incoming<ConfigMap, Source> {
        Incoming::new(Read::Unreadable(Box::new(meta(name, uid, version)), "unknown variant".to_owned()))
    }

    struct Case(Follower<ConfigMap>);

    impl Case {
        fn new() -> Self {
            Self(Follower::new(|_| true))
        }

        /// Returns the reported differences as text. At each report, the store must match the report.
        fn take(&mut self, events: impl IntoIterator<Item = Event>) -> Vec<String> {
            let (reported, store) = (RefCell::new(vec![]), self.0.store());
            let shown = |key: &ObjectKey| store.get(&key.0, &key.1);
            let words = |seen: Change<ConfigMap>| {
                let words = match seen {
                    Change::Applied { object, before } => {
                        assert_eq!(shown(&key(&*object)).unwrap().metadata, object.metadata);
                        let verb = if before.is_some() { "changed" } else { "new" };
                        format!(
                            "{verb} {}/{}",
                            object.metadata.name.clone().unwrap(),
                            object.metadata.uid.clone().unwrap()
                        )
                    }
                    Change::Deleted(object) => {
                        format!(
                            "gone {}/{}",
                            object.metadata.name.clone().unwrap(),
                            object.metadata.uid.clone().unwrap()
                        )
                    }
                    Change::Unreadable { meta, .. } => {
                        assert!(shown(&key_of(&meta)).is_none());
                        format!("unreadable {}", meta.name.unwrap())
                    }
                    Change::Lost { key, uid } => format!("lost {}/{uid}", key.1),
                    Change::Rewound => "rewound".to_owned(),
                };
                reported.borrow_mut().push(words);
            };
            for event in events {
                self.0.take(event, &|_| {}, &words);
            }
            let mut reported = reported.into_inner();
            reported.sort();
            reported
        }

        fn list(&mut self, objects: impl IntoIterator<Item = Incoming<ConfigMap, Source>>) -> Vec<String> {
            let objects = objects.into_iter().map(Event::InitApply);
            self.take([Event::Init].into_iter().chain(objects).chain([Event::InitDone]))
        }

        fn names(&self) -> usize {
            self.0.store().names(|_, _| true).len()
        }
    }

    #[test]
    fn a_list_of_any_length_reports_only_the_differences() {
        for length in [1, 100, 101, 400] {
            let mut case = Case::new();
            let all = |changed: u64| {
                (0..length).map(move |number| map(&format!("c{number}"), "a", if number == 0 { changed } else { 1 }))
            };
            assert_eq!(case.list(all(1)).len(), length, "the first list reports all");
            assert_eq!(case.list(all(1)), [""; 0], "nothing has changed");
            let reported = case.list(all(2).skip(usize::from(length > 1)).chain([map("new", "b", 3)]));
            match length {
                1 => assert_eq!(reported, ["changed c0/a", "new new/b"]),
                _ => assert_eq!(reported, ["gone c0/a", "new new/b"]),
            }
        }
    }

    #[test]
    fn a_first_list_that_is_broken_off_reports_nothing_until_another_is_complete() {
        let mut case = Case::new();
        assert_eq!(case.take([Event::Init, Event::InitApply(map("a", "1", 1))]), [""; 0]);
        assert_eq!(case.list([map("b", "1", 1)]), ["new b/1"]);
    }

    #[test]
    fn a_later_list_that_is_broken_off_removes_nothing() {
        let mut case = Case::new();
        case.list([map("a", "1", 1), map("b", "1", 1)]);
        assert_eq!(case.take([Event::Init, Event::InitApply(map("a", "1", 2))]), ["changed a/1"]);
        assert_eq!(case.names(), 2);
        assert_eq!(case.list([map("a", "1", 2), map("b", "1", 1)]), [""; 0]);
        assert_eq!(case.list([map("b", "1", 1)]), ["gone a/1"]);
    }

    #[test]
    fn an_object_that_was_replaced_under_its_name_is_gone_and_new() {
        let mut case = Case::new();
        case.list([map("a", "1", 1)]);
        assert_eq!(case.list([map("a", "2", 5)]), ["gone a/1", "new a/2"]);
        assert_eq!(case.take([Event::Apply(map("a", "3", 6))]), ["gone a/2", "new a/3"]);
        assert_eq!(case.take([Event::Delete(map("a", "2", 7))]), [""; 0], "another object is meant");
        assert_eq!(case.take([Event::Delete(map("a", "3", 8))]), ["gone a/3"]);
        assert_eq!(case.names(), 0);
    }

    #[test]
    fn an_object_that_does_not_parse_any_more_leaves_nothing_of_its_old_spec() {
        let mut case = Case::new();
        case.list([map("a", "1", 1)]);
        assert_eq!(case.take([Event::Apply(unreadable("a", "1", 2))]), ["unreadable a"]);
        assert_eq!(case.names(), 0);
        assert_eq!(case.list([unreadable("a", "1", 2)]), ["unreadable a"]);
        assert_eq!(case.take([Event::Delete(unreadable("a", "1", 3))]), ["lost a/1"]);

        case.take([Event::Apply(map("b", "1", 4))]);
        assert_eq!(case.take([Event::Delete(unreadable("b", "1", 5))]), ["gone b/1"], "by key and uid");

        case.take([Event::Apply(unreadable("c", "1", 6))]);
        assert_eq!(case.take([Event::Apply(map("c", "1", 7))]), ["new c/1"], "it parses again");
        case.take([Event::Apply(unreadable("c", "1", 8))]);
        assert_eq!(case.list([]), ["lost c/1"]);
        let reported = case.list([unreadable("d", "1", 9)]);
        assert_eq!(reported, ["unreadable d"]);
        assert_eq!(case.take([Event::Apply(unreadable("d", "2", 10))]), ["lost d/1", "unreadable d"]);
    }

    #[test]
    fn a_first_list_reports_unreadable_objects() {
        let mut case = Case::new();
        assert_eq!(case.list([map("a", "1", 1), unreadable("b", "1", 1)]), ["new a/1", "unreadable b"]);
    }

    #[test]
    fn versions_that_go_back_are_reported_once_in_a_list() {
        let mut case = Case::new();
        case.list([map("a", "1", 100), map("b", "1", 100)]);
        let reported = case.list([map("a", "1", 50), map("b", "1", 60)]);
        assert_eq!(reported, ["changed a/1", "changed b/1", "rewound"]);
        assert_eq!(case.list([map("a", "1", 51), map("b", "1", 61)]), ["changed a/1", "changed b/1"]);
    }
}
