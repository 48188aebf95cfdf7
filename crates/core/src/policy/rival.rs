//! Decides which of several credentials with the same target Secret holds this Secret. Pure.

use k8s_openapi::jiff::Timestamp;
use kube::core::ObjectMeta;

use super::{secret_metadata::controller_of, token::TokenFacts};
use crate::api::names;

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

impl<'a> Holder<'a> {
    /// The holder of the Secret with the metadata `target`: the Secret's controller. Without a controller, the holder
    /// is the contender that the Secret's label names.
    pub fn of(target: &'a ObjectMeta, contenders: &'a [Contender], now: Timestamp) -> Option<Self> {
        let labelled = || {
            let label = target.labels.as_ref()?.get(names::LABEL_CREDENTIAL)?;
            let holder = contenders.iter().find(|contender| *label == names::label_value(&contender.name))?;
            Some(holder.uid.as_str())
        };
        let uid = controller_of(target).map(|owner| owner.uid.as_str()).or_else(labelled)?;
        let in_service = TokenFacts::read(target).is_some_and(|token| token.is_unexpired(now));
        Some(Self { uid, in_service })
    }
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
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;
    use crate::fixtures::at;

    fn contender(name: &str, second: i64) -> Contender {
        let created = Timestamp::from_second(1_800_000_000 + second).unwrap();
        // The uids sort in the reverse order of the names.
        let uid = name.bytes().map(|byte| char::from(b'z' - (byte - b'a'))).collect();
        Contender { name: name.into(), uid, created: Some(created) }
    }

    #[test]
    fn a_secret_is_held_by_its_controller_and_otherwise_by_the_credential_in_its_label() {
        let contenders = [contender("a", 0), contender("b", 0)];
        let (of_a, of_b) = (contenders[0].uid.as_str(), contenders[1].uid.as_str());
        // The controller's uid, the label, the expiry of the token in seconds; the holder's uid and whether the token
        // serves.
        type Row<'a> = (Option<&'a str>, Option<&'a str>, Option<i64>, Option<(&'a str, bool)>);
        let table: [Row<'_>; 7] = [
            (None, None, Some(10), None),
            (Some("owner"), None, Some(10), Some(("owner", true))),
            (Some("owner"), Some("b"), Some(10), Some(("owner", true))),
            (None, Some("b"), Some(10), Some((of_b, true))),
            (None, Some("a"), Some(5), Some((of_a, false))),
            (None, Some("a"), None, Some((of_a, false))),
            (None, Some("c"), Some(10), None),
        ];
        for (owner, label, end, expected) in table {
            let owner = owner.map(|uid| OwnerReference {
                uid: uid.to_owned(),
                controller: Some(true),
                ..OwnerReference::default()
            });
            let annotations = end.map(|end| {
                let facts = [
                    (names::ANNOTATION_ISSUED_AT, names::rfc3339(at(0))),
                    (names::ANNOTATION_EXPIRES_AT, names::rfc3339(at(end))),
                    (names::ANNOTATION_FINGERPRINT, "sha256:0".to_owned()),
                ];
                facts.map(|(name, value)| (name.to_owned(), value)).into()
            });
            let target = ObjectMeta {
                labels: label.map(|name| [(names::LABEL_CREDENTIAL.to_owned(), name.to_owned())].into()),
                owner_references: owner.map(|owner| vec![owner]),
                annotations,
                ..ObjectMeta::default()
            };
            let holder = Holder::of(&target, &contenders, at(5));
            assert_eq!(holder.map(|holder| (holder.uid, holder.in_service)), expected, "{label:?} {end:?}");
        }
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
