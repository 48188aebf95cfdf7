//! The metadata that the stores keep: the fields that decisions use, each with a bound. Tenants write the other fields,
//! which may hold megabytes. The broker drops them before an object enters a store.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::ObjectMeta;

use crate::{api::names, policy::secret_metadata::controller_of};

/// The annotations of the broker's own Secrets that the broker reads, in the order in which it keeps them. Each has the
/// maximum length of its value in bytes. A longer value is not the broker's, so the broker drops it.
const SECRET_ANNOTATIONS: [(&str, usize); 18] = [
    (names::ANNOTATION_ISSUED_AT, 64),
    (names::ANNOTATION_EXPIRES_AT, 64),
    (names::ANNOTATION_REFRESH_AT, 64),
    (names::ANNOTATION_OBTAINED_AT, 64),
    (names::ANNOTATION_LAST_USED_AT, 64),
    (names::ANNOTATION_ROTATIONS, 32),
    (names::ANNOTATION_FINGERPRINT, 256),
    (names::ANNOTATION_ISSUED_FOR, 256),
    (names::ANNOTATION_REVOCABLE_AT, 256),
    (names::ANNOTATION_LAYOUT, 256),
    (names::ANNOTATION_HANDLED_REISSUE, REISSUE_MAX),
    (names::ANNOTATION_OBJECT_ID, 512),
    (names::ANNOTATION_CLAIM, 2 << 10),
    (names::ANNOTATION_SEED, 2 << 10),
    (names::ANNOTATION_WARNING, 2 << 10),
    (names::ANNOTATION_SIGN_IN, 12 << 10),
    (names::ANNOTATION_SCOPES, SCOPES_MAX),
    (names::ANNOTATION_APPLIED, 24 << 10),
];
/// Maximum length of `mailtoken.dev/scopes` in a store, in bytes. Of a longer value, the store keeps the scopes that
/// fit.
const SCOPES_MAX: usize = 4 << 10;
/// Maximum length of `mailtoken.dev/reissue`, in bytes. Of a longer value, the store keeps the beginning and a hash.
const REISSUE_MAX: usize = 256;
/// Maximum size of all annotations of one Secret in a store, in bytes. The broker writes about 1 KiB.
const SECRET_TOTAL: usize = 24 << 10;
/// Placeholder in a store for the finalizers of other controllers, if they are too long to keep. The API server rejects
/// a finalizer of this name.
pub const OTHER_FINALIZERS: &str = "...";
/// Maximum size of all finalizers of one credential in a store, in bytes.
const FINALIZERS_MAX: usize = 16 << 10;
/// Maximum length of a field of an owner reference, in characters. Kubernetes has no bound for these fields; names and
/// uids have at most 253 and 36 characters.
const OWNER_MAX: usize = 253;

/// The metadata that the stores keep of objects of one kind.
pub trait Slim: Clone + Debug + Send + Sync + 'static {
    /// Drops all other metadata.
    fn slim(meta: &mut ObjectMeta);
}

/// MailCredentials keep the metadata of [`credential`].
#[derive(Clone, Debug)]
pub enum Credential {}

/// MailProviders and ClusterMailProviders keep their identity and their deletion time.
#[derive(Clone, Debug)]
pub enum Provider {}

/// Namespaces keep their name and their labels, by which a provider selects namespaces.
#[derive(Clone, Debug)]
pub enum Namespace {}

/// Source Secrets keep their name and version.
#[derive(Clone, Debug)]
pub enum Source {}

/// Secrets with the broker's label keep the metadata of [`own_secret`].
#[derive(Clone, Debug)]
pub enum OwnSecret {}

impl Slim for Credential {
    fn slim(meta: &mut ObjectMeta) {
        credential(meta);
    }
}

impl Slim for Provider {
    fn slim(meta: &mut ObjectMeta) {
        *meta = ObjectMeta { deletion_timestamp: meta.deletion_timestamp.take(), ..identity(meta) };
    }
}

impl Slim for Namespace {
    fn slim(meta: &mut ObjectMeta) {
        *meta = ObjectMeta { labels: meta.labels.take(), ..identity(meta) };
    }
}

impl Slim for Source {
    fn slim(meta: &mut ObjectMeta) {
        *meta = identity(meta);
    }
}

impl Slim for OwnSecret {
    fn slim(meta: &mut ObjectMeta) {
        own_secret(meta);
    }
}

/// Keeps of a MailCredential its identity, its dates, `mailtoken.dev/reissue` and its finalizers.
pub fn credential(meta: &mut ObjectMeta) {
    let reissue = meta.annotations.as_mut().and_then(|annotations| annotations.remove(names::ANNOTATION_REISSUE));
    let finalizers = meta.finalizers.take().map(|mut all| {
        if all.iter().map(String::len).sum::<usize>() > FINALIZERS_MAX {
            all.retain(|name| name == names::FINALIZER_REVOKE);
            all.push(OTHER_FINALIZERS.to_owned());
        }
        all
    });
    *meta = ObjectMeta {
        creation_timestamp: meta.creation_timestamp.take(),
        deletion_timestamp: meta.deletion_timestamp.take(),
        annotations: reissue.map(|value| [(names::ANNOTATION_REISSUE.to_owned(), short(value))].into()),
        finalizers: finalizers.filter(|all| !all.is_empty()),
        ..identity(meta)
    };
}

/// Keeps of a Secret with the broker's label its controller, the labels that name its credential, and the broker's
/// annotations. Keeps empty maps: a JSON Patch depends on whether a map exists.
pub fn own_secret(meta: &mut ObjectMeta) {
    let controller = controller_of(meta).map(owner);
    let name = meta.name.as_deref().unwrap_or_default();
    let is_target = controller.as_ref().is_some_and(|owner| names::grant_secret(&owner.name) != name);
    let labels = meta.labels.take().map(|mut labels| {
        // For a target, the controller reference replaces the other labels. A namespace may have thousands of targets.
        labels.retain(|key, _| match key.as_str() {
            names::LABEL_ROLE => true,
            names::LABEL_MANAGED_BY | names::LABEL_CREDENTIAL => !is_target,
            _ => false,
        });
        labels
    });
    let annotations = meta.annotations.take().map(|mut all| {
        let mut total = 0;
        let mut keep = |(key, limit): (&str, usize)| {
            let mut value = all.remove(key)?;
            if key == names::ANNOTATION_SCOPES {
                cut_at_space(&mut value, limit);
            }
            let fits = value.len() <= limit && total + value.len() <= SECRET_TOTAL;
            fits.then(|| {
                total += value.len();
                (key.to_owned(), value)
            })
        };
        SECRET_ANNOTATIONS.into_iter().filter_map(&mut keep).collect()
    });
    *meta = ObjectMeta {
        labels: labels.filter(|labels| !is_target || !labels.is_empty()),
        annotations,
        owner_references: controller.map(|owner| vec![owner]),
        ..identity(meta)
    };
}

/// Takes the name, the namespace, the uid, the resourceVersion and the generation.
fn identity(meta: &mut ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: meta.name.take(),
        namespace: meta.namespace.take(),
        uid: meta.uid.take(),
        resource_version: meta.resource_version.take(),
        generation: meta.generation,
        ..ObjectMeta::default()
    }
}

fn owner(owner: &OwnerReference) -> OwnerReference {
    let bounded = |text: &str| text.chars().take(OWNER_MAX).collect();
    OwnerReference {
        api_version: bounded(&owner.api_version),
        kind: bounded(&owner.kind),
        name: bounded(&owner.name),
        uid: bounded(&owner.uid),
        controller: owner.controller,
        block_owner_deletion: None,
    }
}

fn short(value: String) -> String {
    if value.len() <= REISSUE_MAX {
        return value;
    }
    let head: String = value.chars().take(REISSUE_MAX / 8).collect();
    format!("{head}-{}", names::short_digest([value.as_str()]))
}

/// Cuts a list with spaces as separators after the last item that ends within `limit` bytes.
fn cut_at_space(value: &mut String, limit: usize) {
    if value.len() > limit {
        let end = value.bytes().take(limit + 1).rposition(|byte| byte == b' ').unwrap_or(0);
        value.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Returns the size of all metadata in bytes.
    fn size(meta: &ObjectMeta) -> usize {
        serde_json::to_string(meta).unwrap().len()
    }

    fn fat(pairs: &[(&str, &str)]) -> ObjectMeta {
        let text = |key: &str| [(key.to_owned(), "x".repeat(250 << 10))];
        let own = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        ObjectMeta {
            name: Some("billing".to_owned()),
            namespace: Some("shop".to_owned()),
            uid: Some("uid".to_owned()),
            resource_version: Some("7".to_owned()),
            generation: Some(3),
            labels: Some((0..10_000).map(|number| (format!("label-{number}"), "x".repeat(63))).collect()),
            annotations: Some(text("example.org/note").into_iter().chain(own).collect()),
            owner_references: Some(
                (0..1_000)
                    .map(|number| OwnerReference {
                        name: format!("owner-{number}-{}", "x".repeat(1_000)),
                        uid: "y".repeat(10_000),
                        controller: Some(number == 500),
                        ..OwnerReference::default()
                    })
                    .collect(),
            ),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn metadata_of_megabytes_costs_nearly_nothing_in_any_store() {
        for slim in [credential, Provider::slim, Source::slim, own_secret] {
            let mut meta = fat(&[(names::ANNOTATION_LAYOUT, "abc")]);
            assert!(size(&meta) > 1 << 20);
            slim(&mut meta);
            assert!(size(&meta) < 2 << 10, "{} bytes", size(&meta));
            assert_eq!((meta.name.as_deref(), meta.resource_version.as_deref()), (Some("billing"), Some("7")));
            assert_eq!((meta.uid.as_deref(), meta.generation), (Some("uid"), Some(3)));
        }
    }

    #[test]
    fn forged_annotations_of_the_broker_are_bounded_too() {
        let forged = "x".repeat(60 << 10);
        let pairs: Vec<_> = SECRET_ANNOTATIONS.iter().map(|(key, _)| (*key, forged.as_str())).collect();
        let mut meta = fat(&pairs);
        own_secret(&mut meta);
        assert!(size(&meta) < 2 << 10);
        // Every annotation has its maximum length.
        let values: Vec<_> = SECRET_ANNOTATIONS.iter().map(|(key, limit)| (*key, "x".repeat(*limit))).collect();
        let pairs: Vec<_> = values.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut meta = fat(&pairs);
        own_secret(&mut meta);
        assert!(size(&meta) < SECRET_TOTAL + (2 << 10));
        assert!(meta.annotations.unwrap().contains_key(names::ANNOTATION_CLAIM), "custody's come first");
    }

    #[test]
    fn what_the_broker_wrote_is_kept_whole() {
        let written = [
            (names::ANNOTATION_ISSUED_AT, "2026-11-22T20:40:00Z"),
            (names::ANNOTATION_CLAIM, "{}"),
            (names::ANNOTATION_SCOPES, "a b c"),
            (names::ANNOTATION_APPLIED, r#"{"labels":["a"],"annotations":[]}"#),
        ];
        let mut meta = fat(&written);
        own_secret(&mut meta);
        let expected: BTreeMap<_, _> =
            written.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        assert_eq!(meta.annotations, Some(expected));
        let mut many = vec!["scope-of-some-length"; 1_000].join(" ");
        cut_at_space(&mut many, SCOPES_MAX);
        assert!(many.len() <= SCOPES_MAX && many.ends_with("scope-of-some-length"));
    }

    #[test]
    fn no_annotation_of_the_brokers_is_forgotten_here() {
        let constants = include_str!("../../crates/core/src/api/names.rs")
            .lines()
            .filter(|line| line.starts_with("pub const ANNOTATION_"));
        let values: Vec<_> = constants.filter_map(|line| line.split('"').nth(1)).collect();
        assert!(values.len() >= SECRET_ANNOTATIONS.len());
        // Annotations of a MailCredential, of the Lease and of a ServiceAccount, and annotations that the broker reads
        // with a source.
        let elsewhere = [
            names::ANNOTATION_REISSUE,
            names::ANNOTATION_SERVES,
            names::ANNOTATION_ALLOWED_AUDIENCES,
            names::ANNOTATION_SOURCE_HOSTS,
        ];
        let known = |value: &&str| SECRET_ANNOTATIONS.iter().any(|(key, _)| key == value) || elsewhere.contains(value);
        let forgotten: Vec<_> = values.iter().filter(|value| !known(value)).collect();
        assert!(forgotten.is_empty(), "the stores drop {forgotten:?}: give each a bound in SECRET_ANNOTATIONS");
    }

    #[test]
    fn a_map_without_anything_of_the_brokers_is_still_a_map() {
        let mut meta = fat(&[]);
        meta.owner_references = None;
        own_secret(&mut meta);
        assert_eq!((meta.labels, meta.annotations), (Some(BTreeMap::new()), Some(BTreeMap::new())));
        let mut none = ObjectMeta::default();
        own_secret(&mut none);
        assert_eq!((none.labels, none.annotations), (None, None));
    }

    #[test]
    fn a_reissue_of_any_length_differs_from_every_other() {
        let reissue = |value: &str| {
            let mut meta = fat(&[(names::ANNOTATION_REISSUE, value)]);
            credential(&mut meta);
            meta.annotations.unwrap()[names::ANNOTATION_REISSUE].clone()
        };
        assert_eq!(reissue("1"), "1");
        let (one, other) = ("x".repeat(100_000), format!("{}y", "x".repeat(99_999)));
        assert_ne!(reissue(&one), reissue(&other));
        assert!(reissue(&one).len() < 128);
    }

    #[test]
    fn the_finalizers_of_others_are_kept_so_that_they_are_written_back() {
        let mut meta = fat(&[]);
        meta.finalizers = Some(vec!["example.org/x".to_owned(), names::FINALIZER_REVOKE.to_owned()]);
        credential(&mut meta);
        assert_eq!(meta.finalizers.map(|all| all.len()), Some(2));
    }

    #[test]
    fn finalizers_that_are_too_long_leave_the_brokers_own_and_a_sign_that_there_are_others() {
        let others: Vec<_> = (0..500).map(|number| format!("example.org/{number}-{}", "x".repeat(50))).collect();
        for own in [vec![], vec![names::FINALIZER_REVOKE.to_owned()]] {
            let mut meta = fat(&[]);
            meta.finalizers = Some(others.iter().cloned().chain(own.clone()).collect());
            credential(&mut meta);
            assert_eq!(meta.finalizers, Some(own.into_iter().chain([OTHER_FINALIZERS.to_owned()]).collect()));
        }
    }
}
