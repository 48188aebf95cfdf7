//! The broker's report about an object that exists but does not parse. Pure.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use kube::core::ApiResource;

use super::commands::KubectlObject;
use crate::api::{
    ClusterMailProvider, ConditionType, MailCredential, MailProvider, Reason, condition, credential::ProviderKind,
    reference::ObjectKey,
};

/// The kinds whose objects may not parse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// A MailCredential.
    Credential,
    /// A MailProvider or a ClusterMailProvider.
    Provider(ProviderKind),
}

impl ObjectKind {
    /// The kind in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Credential => "MailCredential",
            Self::Provider(kind) => kind.as_str(),
        }
    }

    /// The kind's resource in the API.
    pub fn resource(self) -> ApiResource {
        match self {
            Self::Credential => ApiResource::erase::<MailCredential>(&()),
            Self::Provider(ProviderKind::MailProvider) => ApiResource::erase::<MailProvider>(&()),
            Self::Provider(ProviderKind::ClusterMailProvider) => ApiResource::erase::<ClusterMailProvider>(&()),
        }
    }

    fn subject(self, (namespace, name): &ObjectKey) -> KubectlObject {
        match self {
            Self::Credential => KubectlObject::credential_named(namespace, name),
            Self::Provider(kind) => KubectlObject::provider(kind, namespace, name),
        }
    }
}

/// Why an object does not parse, and how to fix it. `error` is the parser's error.
pub fn message(kind: ObjectKind, key: &ObjectKey, error: &str) -> String {
    format!(
        "this version of the broker cannot read the {}: {error}. Correct the field with `{}`, or install the version of the \
         broker that the CRDs belong to",
        kind.as_str(),
        kind.subject(key).command("edit")
    )
}

/// The conditions of an object that does not parse. `generation`: the object's generation.
pub fn conditions(kind: ObjectKind, key: &ObjectKey, error: &str, generation: i64, now: Timestamp) -> Vec<Condition> {
    let mut conditions = vec![];
    for (condition, is_true) in [(ConditionType::Ready, false), (ConditionType::Stalled, true)] {
        let words = message(kind, key, error);
        condition::upsert(&mut conditions, condition, is_true, Reason::InvalidSpec, words, generation, now);
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::at;

    #[test]
    fn an_object_that_does_not_parse_is_reported_with_the_command_that_corrects_it() {
        let (namespaced, cluster) = (ProviderKind::MailProvider, ProviderKind::ClusterMailProvider);
        for (kind, name, plural, namespace, command) in [
            (ObjectKind::Credential, "MailCredential", "mailcredentials", "shop", "-n shop edit mailcredential m365"),
            (
                ObjectKind::Provider(namespaced),
                "MailProvider",
                "mailproviders",
                "shop",
                "-n shop edit mailprovider m365",
            ),
            (
                ObjectKind::Provider(cluster),
                "ClusterMailProvider",
                "clustermailproviders",
                "",
                "edit clustermailprovider m365",
            ),
        ] {
            let resource = kind.resource();
            assert_eq!((kind.as_str(), resource.kind.as_str(), resource.plural.as_str()), (name, name, plural));
            let message = format!(
                "this version of the broker cannot read the {name}: unknown field. Correct the field with `kubectl \
                 {command}`, or install the version of the broker that the CRDs belong to"
            );
            let conditions = conditions(kind, &(namespace.to_owned(), "m365".to_owned()), "unknown field", 3, at(0));
            let found: Vec<_> = conditions
                .iter()
                .map(|condition| {
                    let Condition { type_, status, reason, observed_generation, message, .. } = condition;
                    (type_.as_str(), status.as_str(), reason.as_str(), *observed_generation, message.as_str())
                })
                .collect();
            let reason = Reason::InvalidSpec.as_str();
            let expected = [("Ready", "False"), ("Stalled", "True")]
                .map(|(kind, status)| (kind, status, reason, Some(3), message.as_str()));
            assert_eq!(found, expected);
        }
    }
}
