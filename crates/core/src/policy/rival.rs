//! Which of several credentials with one target Secret has it. Pure.

use k8s_openapi::jiff::Timestamp;

/// A credential that wants a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contender {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// When it was created: the API server tells whole seconds.
    pub created: Option<Timestamp>,
}

/// Who holds the Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder<'a> {
    /// The uid of the credential.
    pub uid: &'a str,
    /// The Secret holds an unexpired token, so pods may use it.
    pub in_service: bool,
}

/// The credential that has the Secret: the holder of one that is in service; otherwise the oldest, and of those of one
/// second the holder, otherwise the one whose name comes first. `None`: nobody wants it.
pub fn winner<'a>(contenders: &'a [Contender], holder: Option<Holder<'_>>) -> Option<&'a Contender> {
    let holds = |contender: &Contender| holder.is_some_and(|holder| holder.uid == contender.uid);
    let in_service = holder.is_some_and(|holder| holder.in_service);
    let first = |contender: &&Contender| (contender.created, !holds(contender), contender.name.clone());
    contenders.iter().find(|contender| in_service && holds(contender)).or_else(|| contenders.iter().min_by_key(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(name: &str, second: i64) -> Contender {
        let created = Timestamp::from_second(1_800_000_000 + second).unwrap();
        // The order of the uids is the opposite of that of the names.
        let uid = name.bytes().map(|byte| char::from(b'z' - (byte - b'a'))).collect();
        Contender { name: name.into(), uid, created: Some(created) }
    }

    #[test]
    fn the_holder_keeps_what_serves_and_otherwise_the_oldest_has_it() {
        // The credentials with their second of creation, who holds the Secret, whether it is in service, and who has it.
        type Row<'a> = (&'a [(&'a str, i64)], Option<&'a str>, bool, &'a str);
        let table: [Row<'_>; 11] = [
            (&[("a", 0)], None, false, "a"),
            (&[("a", 1), ("b", 0)], None, false, "b"),
            (&[("a", 0), ("b", 0)], None, false, "a"),
            (&[("b", 0), ("a", 0)], None, false, "a"),
            // Of one second.
            (&[("a", 0), ("b", 0)], Some("b"), false, "b"),
            (&[("a", 0), ("b", 0)], Some("b"), true, "b"),
            (&[("a", 0), ("b", 0), ("c", 0)], Some("c"), false, "c"),
            // The younger holds it.
            (&[("a", 0), ("b", 1)], Some("b"), true, "b"),
            (&[("a", 0), ("b", 1)], Some("b"), false, "a"),
            (&[("a", 0), ("b", 0), ("c", 1)], Some("c"), false, "a"),
            // Another credential does, which does not want it any more.
            (&[("a", 0), ("b", 0)], Some("z"), true, "a"),
        ];
        for (contenders, holder, in_service, expected) in table {
            let list: Vec<_> = contenders.iter().map(|(name, second)| contender(name, *second)).collect();
            let uid = holder.map(|name| contender(name, 0).uid);
            let holder = uid.as_deref().map(|uid| Holder { uid, in_service });
            assert_eq!(winner(&list, holder).unwrap().name, expected, "{contenders:?} {holder:?}");
        }
        assert_eq!(winner(&[], None), None);
    }
}
