//! A provider of either kind, and the objects that its spec refers to.

use std::{fmt, sync::Arc};

use kube::{ResourceExt as _, core::ObjectMeta};

use super::{
    credential::{MailCredential, ProviderKind},
    provider::{Allowed, CaBundleRef, ClusterMailProvider, MailProvider, ProviderSpec, ProviderStatus},
    reference::KeyRef,
};

/// Kind, namespace and name of a provider.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProviderKey {
    /// The kind of the provider.
    pub kind: ProviderKind,
    /// The namespace, empty for a ClusterMailProvider.
    pub namespace: String,
    /// The name of the provider.
    pub name: String,
}

impl ProviderKey {
    /// The provider that a credential refers to.
    pub fn of(credential: &MailCredential) -> Self {
        let reference = &credential.spec.provider_ref;
        let namespace = match reference.kind {
            ProviderKind::MailProvider => credential.namespace().unwrap_or_default(),
            ProviderKind::ClusterMailProvider => String::new(),
        };
        Self { kind: reference.kind, namespace, name: reference.name.clone() }
    }
}

impl fmt::Display for ProviderKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        match kind {
            ProviderKind::MailProvider => write!(formatter, "MailProvider {namespace}/{name}"),
            ProviderKind::ClusterMailProvider => write!(formatter, "ClusterMailProvider {name}"),
        }
    }
}

/// A provider of either kind.
#[derive(Clone)]
pub enum ProviderObject {
    /// A MailProvider.
    Namespaced(Arc<MailProvider>),
    /// A ClusterMailProvider.
    Cluster(Arc<ClusterMailProvider>),
}

impl ProviderObject {
    /// The part of the spec that both kinds share.
    pub fn spec(&self) -> &ProviderSpec {
        match self {
            Self::Namespaced(provider) => &provider.spec.provider,
            Self::Cluster(provider) => &provider.spec.provider,
        }
    }

    /// The metadata of the provider.
    pub fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Namespaced(provider) => &provider.metadata,
            Self::Cluster(provider) => &provider.metadata,
        }
    }

    /// The status of the provider. `None`: the broker has not written a status yet.
    pub fn status(&self) -> Option<&ProviderStatus> {
        match self {
            Self::Namespaced(provider) => provider.status.as_ref(),
            Self::Cluster(provider) => provider.status.as_ref(),
        }
    }

    /// The allowances of a ClusterMailProvider. `None`: the provider is a MailProvider, which serves its own namespace.
    pub fn allowed(&self) -> Option<&[Allowed]> {
        match self {
            Self::Namespaced(_) => None,
            Self::Cluster(provider) => Some(&provider.spec.allowed),
        }
    }

    /// The key of the provider.
    pub fn key(&self) -> ProviderKey {
        let (kind, namespace) = match self {
            Self::Namespaced(_) => (ProviderKind::MailProvider, self.meta().namespace.clone().unwrap_or_default()),
            Self::Cluster(_) => (ProviderKind::ClusterMailProvider, String::new()),
        };
        ProviderKey { kind, namespace, name: self.meta().name.clone().unwrap_or_default() }
    }
}

/// Names of all Secrets that a provider's spec refers to.
pub fn source_secrets(spec: &ProviderSpec) -> Vec<&str> {
    let mut references = vec![];
    for entry in &spec.client.authentication {
        references.extend(entry.client_secret.iter().map(|secret| &secret.secret_ref));
        references.extend(entry.service_account_key.iter().map(|file| &file.secret_ref));
        references.extend(
            entry.private_key_jwt.iter().flat_map(|jwt| [&jwt.key_ref].into_iter().chain(&jwt.certificate_ref)),
        );
    }
    references.extend(bundle_secret(spec));
    references.into_iter().map(|reference| reference.name.as_str()).collect()
}

/// The key of a Secret that holds the provider's CA bundle. `None`: the bundle is not in a Secret.
pub fn bundle_secret(spec: &ProviderSpec) -> Option<&KeyRef> {
    spec.ca_bundle_ref.as_ref().and_then(|CaBundleRef { secret, .. }| secret.as_ref())
}

/// The key of a ConfigMap that holds the provider's CA bundle. `None`: the bundle is not in a ConfigMap.
pub fn bundle_config_map(spec: &ProviderSpec) -> Option<&KeyRef> {
    spec.ca_bundle_ref.as_ref().and_then(|CaBundleRef { config_map, .. }| config_map.as_ref())
}
