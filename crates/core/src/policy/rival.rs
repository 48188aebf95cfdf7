//! Decides which of several credentials with the same target Secret holds this Secret. Pure.

use k8s_openapi::jiff::Timestamp;

/// A credential that wants a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contender {
    /// Name of the credential.
    pub name: String,
    /// Uid of the credential.
    pub uid: String,
    /// Creation time, in whole seconds.
    pub created: Option<Timestamp>,
}

/// The holder of the Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder<'a> {
    /// Uid of the credential that holds the Secret.
    pub uid: &'a str,
    /// Whether the Secret holds an unexpired token, so that pods may use it.
    pub in_service: bool,
}

/// The credential that holds the Secret: the present holder if the Secret is in service, otherwise the oldest
/// credential. If several were created in the same second, the present holder wins, otherwise the first by name.
/// `None`: no contenders.
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
        // The uids sort in the reverse order of the names.
        let uid = name.bytes().map(|byte| char::from(b'z' - (byte - b'a'))).collect();
        Contender { name: name.into(), uid, created: Some(created) }
    }

    #[test]
    fn the_holder_keeps_a_valid_secret_and_otherwise_the_oldest_owns_it() {
        // The credentials with their second of creation, the holder, whether the Secret is in service, and the winner.
        type Row<'a> = (&'a [(&'a str, i64)], Option<&'a str>, bool, &'a str);
        let table: [Row<'_>; 11] = [
            (&[("a", 0)], None, false, "a"),
            (&[("a", 1), ("b", 0)], None, false, "b"),
            (&[("a", 0), ("b", 0)], None, false, "a"),
            (&[("b", 0), ("a", 0)], None, false, "a"),
            // Two credentials that were created in the same second.
            (&[("a", 0), ("b", 0)], Some("b"), false, "b"),
            (&[("a", 0), ("b", 0)], Some("b"), true, "b"),
            (&[("a", 0), ("b", 0), ("c", 0)], Some("c"), false, "c"),
            // The younger credential holds the Secret.
            (&[("a", 0), ("b", 1)], Some("b"), true, "b"),
            (&[("a", 0), ("b", 1)], Some("b"), false, "a"),
            (&[("a", 0), ("b", 0), ("c", 1)], Some("c"), false, "a"),
            // The holder of the Secret no longer wants it.
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
