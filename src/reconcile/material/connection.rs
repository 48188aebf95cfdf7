//! What a failed connection to a provider means, and what mends it.

use crate::{
    api::{Reason, credential::ProviderKind},
    idp::{TlsProblem, TransportError},
    reconcile::stores::ProviderKey,
};

/// What a failed connection means, and what mends it.
pub(in crate::reconcile) fn transport(error: &TransportError, key: &ProviderKey) -> (Reason, String) {
    let patch = patch_command(key);
    match error {
        TransportError::EgressDenied { address, .. } => {
            let length = if address.is_ipv4() { 32 } else { 128 };
            (
                Reason::EgressDenied,
                format!(
                    "{error}. If the provider really is there, let the broker connect to it: start it with \
                     `--allow-private-cidr {address}/{length}` (chart: allowPrivateCIDRs)"
                ),
            )
        }
        TransportError::Tls { kind: TlsProblem::UnknownIssuer, .. } => (
            Reason::TLSFailed,
            format!(
                "{error}. Put the CA's certificate into a ConfigMap, `kubectl -n <namespace> create configmap idp-ca \
                 --from-file=ca.crt=<file>`, and name it: `kubectl {patch} --type merge -p \
                 '{{\"spec\":{{\"caBundleRef\":{{\"configMap\":{{\"name\":\"idp-ca\",\"key\":\"ca.crt\"}}}}}}}}'`"
            )
            .replace("<namespace>", if key.namespace.is_empty() { "<the broker's namespace>" } else { &key.namespace }),
        ),
        TransportError::Tls { .. } => {
            (Reason::TLSFailed, format!("{error}. The provider's certificate has to be mended"))
        }
        TransportError::BodyTooLarge { .. } => {
            (Reason::MalformedResponse, format!("{error}: check that the URL is right"))
        }
        TransportError::UnsupportedScheme | TransportError::InvalidUrl { .. } => {
            (Reason::InvalidSpec, format!("{error}: correct the provider's URL"))
        }
        _ => (Reason::ProviderUnavailable, format!("{error}. It is tried again by itself")),
    }
}

pub(super) fn patch_command(key: &ProviderKey) -> String {
    match key.kind {
        ProviderKind::MailProvider => format!("-n {} patch mailprovider {}", key.namespace, key.name),
        ProviderKind::ClusterMailProvider => format!("patch clustermailprovider {}", key.name),
    }
}
