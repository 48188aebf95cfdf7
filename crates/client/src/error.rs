//! Errors of Kubernetes and of the broker itself. The broker always logs, counts and retries them. A user's or a
//! provider's mistake is a condition, not an error.

use thiserror::Error;

/// The category of panics in `mailtoken_reconcile_errors_total`.
pub const PANIC: &str = "panic";

/// A failed step, with the object that it concerns.
#[derive(Debug, Error)]
pub enum Error {
    /// The broker could not read a Secret.
    #[error("reading the Secret {name}")]
    ReadSecret {
        /// Namespace and name of the object, as `namespace/name`.
        name: String,
        /// Error of the Kubernetes API.
        #[source]
        source: kube::Error,
    },
    /// The broker could not read a ConfigMap.
    #[error("reading the ConfigMap {name}")]
    ReadConfigMap {
        /// Namespace and name of the object, as `namespace/name`.
        name: String,
        /// Error of the Kubernetes API.
        #[source]
        source: kube::Error,
    },
    /// The broker could not delete a Secret.
    #[error("deleting the Secret {name}")]
    DeleteSecret {
        /// Namespace and name of the object, as `namespace/name`.
        name: String,
        /// Error of the Kubernetes API.
        #[source]
        source: kube::Error,
    },
    /// The broker could not obtain a token of a ServiceAccount.
    #[error("requesting a token of the ServiceAccount {name}")]
    RequestToken {
        /// Namespace and name of the object, as `namespace/name`.
        name: String,
        /// Error of the Kubernetes API.
        #[source]
        source: kube::Error,
    },
    /// The broker could not check whether the API server accepts a token.
    #[error("checking whether the API server accepts an identity token as a login")]
    ReviewToken {
        /// Error of the Kubernetes API.
        #[source]
        source: kube::Error,
    },
    /// The broker could not write a status.
    #[error("writing the status of {name}")]
    WriteStatus {
        /// Kind, namespace and name of the object, as `kind namespace/name`.
        name: String,
        /// Error of the Kubernetes API.
        #[source]
        source: kube::Error,
    },
    /// The broker could not write a finalizer.
    #[error("writing the finalizer of {name}")]
    WriteFinalizer {
        /// Kind, namespace and name of the object, as `kind namespace/name`.
        name: String,
        /// Error of the Kubernetes API.
        #[source]
        source: kube::Error,
    },
    /// The reconcile of an object panicked. Other objects are not affected.
    #[error("the reconcile of {name} (a panic)")]
    Panicked {
        /// Kind, namespace and name of the object, as `kind namespace/name`.
        name: String,
    },
}

impl Error {
    /// Returns the stable value of the label `category` of `mailtoken_reconcile_errors_total`.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::ReadSecret { .. } => "read_secret",
            Self::ReadConfigMap { .. } => "read_config_map",
            Self::DeleteSecret { .. } => "delete_secret",
            Self::RequestToken { .. } => "request_token",
            Self::ReviewToken { .. } => "review_token",
            Self::WriteStatus { .. } => "write_status",
            Self::WriteFinalizer { .. } => "write_finalizer",
            Self::Panicked { .. } => PANIC,
        }
    }
}

/// The category of a refused write of a Secret. A condition reports the refusal, not an [`Error`].
pub const WRITE_SECRET: &str = "write_secret";

/// The category of a status that another writer changes as often as the broker writes it.
pub const STATUS_OVERWRITTEN: &str = "status_overwritten";

/// Number of characters to keep at each end of an API server's message. The beginning names the object and the end
/// contains the cause. Long names of policies may be in between.
const SAID_MAX: usize = 150;

/// Makes the API server's message safe for a status: an admission webhook may have written the text.
fn bounded(text: &str) -> String {
    let plain = |character: char| match character {
        // These characters have a meaning for a shell or a terminal, or change the direction of text.
        '`' | '$' | '\\' => '\'',
        printable if printable.is_ascii_graphic() || printable.is_alphanumeric() => printable,
        _ => ' ',
    };
    let count = text.chars().count();
    if count <= 2 * SAID_MAX {
        return text.chars().map(plain).collect();
    }
    let beginning = text.chars().take(SAID_MAX).map(plain);
    beginning.chain(['…']).chain(text.chars().skip(count - SAID_MAX).map(plain)).collect()
}

/// Returns the API server's message. `kube::Error`'s own texts may contain a whole response.
pub fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", bounded(&status.message), status.code),
        kube::Error::SerdeError(_) => "the API server's response could not be read".to_owned(),
        other => {
            let mut text = "the API server could not be reached".to_owned();
            let mut source = std::error::Error::source(other);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            text
        }
    }
}

/// Returns the status code of the API server's response; `None` without a response.
pub fn status_code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Describes the failed step and Kubernetes' message, for a refusal or a status.
pub fn describe_step(error: &Error) -> String {
    match std::error::Error::source(error).and_then(|source| source.downcast_ref::<kube::Error>()) {
        Some(source) => format!("{error}: {}", describe(source)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_an_admission_webhook_is_shortened_to_plain_characters() {
        assert_eq!(bounded("quota exceeded: \"pods\", limited: 10"), "quota exceeded: \"pods\", limited: 10");
        assert_eq!(
            bounded("run `kubectl delete ns x` or $(id)\u{1b}[31m\u{202e}\nnow"),
            "run 'kubectl delete ns x' or '(id) [31m  now"
        );
        let long = bounded(&format!("secrets \"x\" is forbidden: {} denied request: it is shut", "x".repeat(5_000)));
        assert_eq!(long.chars().count(), 2 * SAID_MAX + 1);
        assert!(long.starts_with("secrets \"x\"") && long.ends_with("it is shut"), "{long}");
    }
}
