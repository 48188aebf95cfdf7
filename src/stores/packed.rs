//! Packs objects to save memory: compresses their JSON with the text of typical objects as the dictionary.

use std::sync::Arc;

use lz4_flex::block::{compress_prepend_size_with_dict, decompress_size_prepended_with_dict};
use serde::{Serialize, de::DeserializeOwned};

/// Text that most objects have in common, in the order of the fields. An object with other content only takes more
/// memory.
const DICTIONARY: &[u8] = include_bytes!("dictionary.txt");

/// Packs an object; `None` if the object cannot be serialised.
pub(super) fn pack(object: &impl Serialize) -> Option<Box<[u8]>> {
    let text = serde_json::to_vec(object).ok()?;
    // Copy the result: if a vector shrinks by less than half, the allocator keeps the larger piece of memory.
    Some(compress_prepend_size_with_dict(&text, DICTIONARY).as_slice().into())
}

/// Unpacks an object; `None` if the bytes do not fit the type.
pub(super) fn unpack<K: DeserializeOwned>(packed: &[u8]) -> Option<Arc<K>> {
    let text = decompress_size_prepended_with_dict(packed, DICTIONARY).ok()?;
    serde_json::from_slice(&text).ok().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::Time};
    use kube::core::{ObjectMeta, PartialObjectMeta};
    use serde_json::json;

    use crate::{
        api::{MailCredential, Reason, names},
        stores::slim,
    };
    use mailtoken_core::fixtures::{self, Case};

    use super::*;

    /// Metadata as the API server returns it, for the object with this number.
    fn identity(number: u64) -> ObjectMeta {
        ObjectMeta {
            name: Some(format!("mailbox-{number:05}")),
            namespace: Some("mail-of-a-team".to_owned()),
            uid: Some(format!("7d5e1b5e-93c2-4b60-8a7f-{:012x}", number * 1_000_003)),
            resource_version: Some((123_456_789 + number).to_string()),
            ..ObjectMeta::default()
        }
    }

    fn credential(number: u64, edit: impl FnOnce(&mut Case)) -> MailCredential {
        let mut case = Case::ready();
        case.credential(|credential| {
            let created = Some(Time(fixtures::at(-100)));
            credential.metadata = ObjectMeta { creation_timestamp: created, generation: Some(1), ..identity(number) };
            credential.spec.mailbox.address = format!("mailbox-{number:05}@example.org");
        });
        edit(&mut case);
        case.write_status();
        let text = serde_json::to_string(&*case.observed.credential).unwrap();
        let mut credential: MailCredential = serde_json::from_str(&text).unwrap();
        slim::credential(&mut credential.metadata);
        credential
    }

    fn secret(number: u64) -> PartialObjectMeta<Secret> {
        let digest = |what: u64| format!("{:016x}{:016x}", u64::MAX / what, u64::MAX / (what + 7));
        let ObjectMeta { name, namespace, uid, resource_version, .. } = identity(number);
        let owner = json!({
            "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailCredential", "controller": true,
            "name": name, "uid": identity(number + 100_000).uid,
        });
        let annotations = json!({
            names::ANNOTATION_ISSUED_AT: "2026-11-22T20:40:00Z",
            names::ANNOTATION_EXPIRES_AT: "2026-11-22T21:40:00Z",
            names::ANNOTATION_FINGERPRINT: format!("sha256:{:016x}", u64::MAX / (number + 3)),
            names::ANNOTATION_ISSUED_FOR: digest(number + 3),
            names::ANNOTATION_REVOCABLE_AT: digest(5),
            names::ANNOTATION_LAYOUT: digest(9),
            names::ANNOTATION_SCOPES: "https://mail.example.org/.default",
        });
        let mut secret: PartialObjectMeta<Secret> = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {
                "name": name, "namespace": namespace, "uid": uid, "resourceVersion": resource_version, "labels": {},
                "ownerReferences": [owner], "annotations": annotations,
            },
        }))
        .unwrap();
        slim::own_secret(&mut secret.metadata);
        secret
    }

    #[test]
    fn an_object_is_the_same_after_it_was_packed() {
        let edits: [fn(&mut Case); 3] =
            [|_| {}, |case| case.failed(Reason::ProviderUnavailable), |case| drop(case.by_refresh_token().clone())];
        for edit in edits {
            let object = credential(7, edit);
            let unpacked: MailCredential = Arc::unwrap_or_clone(unpack(&pack(&object).unwrap()).unwrap());
            assert_eq!(serde_json::to_value(&unpacked).unwrap(), serde_json::to_value(&object).unwrap());
            assert_eq!(
                (unpacked.metadata, unpacked.spec, unpacked.status),
                (object.metadata, object.spec, object.status)
            );
        }
        let object = secret(7);
        let unpacked = unpack::<PartialObjectMeta<Secret>>(&pack(&object).unwrap()).unwrap();
        assert_eq!(unpacked.metadata, object.metadata);
        assert!(unpack::<MailCredential>(b"other").is_none());
    }

    /// A credential at rest may take 3 KiB, including the index, the queue and the allocator's overhead.
    #[test]
    fn a_typical_object_takes_a_third_of_its_text() {
        let sizes = |number| {
            let (ready, secret) = (credential(number, |_| {}), secret(number));
            let failed = credential(number, |case| case.failed(Reason::ProviderUnavailable));
            let packed = [pack(&ready), pack(&failed), pack(&secret)].map(|packed| packed.unwrap().len());
            let text = [serde_json::to_vec(&ready), serde_json::to_vec(&failed), serde_json::to_vec(&secret)];
            (packed, text.map(|text| text.unwrap().len()))
        };
        for number in [7, 23_456] {
            let (packed, text) = sizes(number);
            assert!(packed[0] <= 448 && packed[1] <= 576 && packed[2] <= 448, "{packed:?} of {text:?} bytes");
        }
    }
}
