//! Explains a failed connection to a provider, and its fix.

use serde_json::json;

use crate::{
    api::{
        Reason,
        credential::ProviderKind,
        provider_object::{ProviderKey, ProviderObject, bundle_config_map, bundle_secret},
    },
    idp::{TlsProblem, TransportError},
    policy::commands::KubectlObject,
};

/// Returns the reason of a failed connection to the provider, and the message with the fix. `home` is the namespace of
/// the provider's CA bundle. `again` says when the broker retries a transient failure.
pub fn transport(error: &TransportError, object: &ProviderObject, home: &str, again: &str) -> (Reason, String) {
    match error {
        TransportError::EgressDenied { .. } => {
            (Reason::EgressDenied, format!("{error}. {}", allow(error.allowance(), object, "provider")))
        }
        TransportError::Tls { kind, .. } => match trust_advice(*kind, object, home) {
            Some(advice) => (Reason::TLSFailed, format!("{error}. {advice}")),
            None => (Reason::TLSFailed, format!("{error}. The operator of the provider must fix that. {again}")),
        },
        TransportError::BodyTooLarge { .. } | TransportError::BadEncoding => {
            (Reason::MalformedResponse, format!("{error}, so it is not a token response"))
        }
        TransportError::UnsupportedScheme | TransportError::InvalidUrl { .. } => {
            (Reason::InvalidSpec, format!("{error}: correct it with `{}`", subject(object).command("edit")))
        }
        TransportError::NameNotFound { .. } => (
            Reason::ProviderUnavailable,
            format!("{error}: correct the URL with `{}`", subject(object).command("edit")),
        ),
        _ => (Reason::ProviderUnavailable, error.to_string()),
    }
}

/// Returns what the user of a provider can do about a certificate; `None` if only the server's operator can fix the
/// problem.
pub fn trust_advice(problem: TlsProblem, object: &ProviderObject, home: &str) -> Option<String> {
    match problem {
        TlsProblem::UnknownIssuer => Some(format!("If it is a private authority, {}", trust(object, home))),
        TlsProblem::CriticalExtension => Some(format!(
            "If that is an intermediate certificate, {}: the broker does not read the extensions of a trusted certificate. If \
             it is the server's own certificate, its authority must issue one without this extension, or in which the \
             extension is not critical",
            trust(object, home)
        )),
        _ => None,
    }
}

/// Returns the advice for a denied address. `range` is the range that an administrator may allow. The advice never
/// proposes to allow a metadata service, the broker's own host, or a range that the administrator denies.
pub fn allow(range: Option<String>, object: &ProviderObject, what: &str) -> String {
    let Some(range) = range else {
        return format!(
            "The broker connects to no {what} there: correct the address with `{}`",
            subject(object).command("edit")
        );
    };
    let (flag, value) = match object.key().kind {
        ProviderKind::MailProvider => ("--allow-private-cidr", "allowPrivateCIDRs"),
        ProviderKind::ClusterMailProvider => ("--allow-private-cidr-cluster", "allowPrivateCIDRsForCluster"),
    };
    format!(
        "If the {what} really is there, the broker's administrator can allow it with the argument `{flag}={range}` \
         (chart: {value}); the line `egress denied` of the broker's log names the address"
    )
}

/// Returns the command that makes the broker trust the provider's CA.
fn trust(object: &ProviderObject, home: &str) -> String {
    let spec = object.spec();
    if let Some(bundle) = bundle_config_map(spec) {
        let put = KubectlObject::config_map(home, &bundle.name).put_file(&bundle.key);
        return format!(
            "its certificate is missing in the CA bundle that the provider refers to: put it there with `{put}`"
        );
    }
    if let Some(bundle) = bundle_secret(spec) {
        let put =
            KubectlObject::secret(home, &bundle.name).put(&bundle.key, "<certificates in PEM, line breaks as \\n>");
        return format!(
            "its certificate is missing in the CA bundle that the provider refers to: put it there with `{put}`"
        );
    }
    let name = format!("{}-ca", object.key().name);
    let put = KubectlObject::config_map(home, &name).put_file("ca.crt");
    let refer =
        subject(object).merge(&json!({"spec": {"caBundleRef": {"configMap": {"name": name, "key": "ca.crt"}}}}));
    format!("trust it with `{put} && {refer}`")
}

/// Returns the provider as an object for `kubectl` commands.
pub fn subject(object: &ProviderObject) -> KubectlObject {
    subject_of(&object.key())
}

/// Returns the provider with this key as an object for `kubectl` commands.
pub(super) fn subject_of(key: &ProviderKey) -> KubectlObject {
    KubectlObject::provider(key.kind, &key.namespace, &key.name)
}
