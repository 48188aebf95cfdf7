//! What went wrong between the broker and Kubernetes, or inside the broker: told in the log and counted, always retried.
//! What a user or a provider did wrong is no error: it is a condition.

use thiserror::Error;

/// How panics are counted.
pub const PANIC: &str = "panic";

/// A step that failed, with the object it was about.
#[derive(Debug, Error)]
pub enum Error {
    /// A Secret could not be read.
    #[error("reading the Secret {name}")]
    ReadSecret {
        /// `namespace/name`.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// A ConfigMap could not be read.
    #[error("reading the ConfigMap {name}")]
    ReadConfigMap {
        /// `namespace/name`.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// A Secret could not be deleted.
    #[error("deleting the Secret {name}")]
    DeleteSecret {
        /// `namespace/name`.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// A token of a ServiceAccount could not be had.
    #[error("asking for a token of the ServiceAccount {name}")]
    RequestToken {
        /// `namespace/name`.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The API server could not be asked whether it takes a token for its own.
    #[error("asking whether the API server takes an identity token for a login")]
    ReviewToken {
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// A status could not be written.
    #[error("writing the status of {name}")]
    WriteStatus {
        /// `kind namespace/name`.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// A finalizer could not be written.
    #[error("writing the finalizer of {name}")]
    WriteFinalizer {
        /// `kind namespace/name`.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The reconcile of an object panicked; others go on.
    #[error("the reconcile of {name} (a panic)")]
    Panicked {
        /// `kind namespace/name`.
        name: String,
    },
}

impl Error {
    /// A stable name for the metric `mailtoken_reconcile_errors_total`.
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

/// The category of a Secret that Kubernetes does not let the broker write: a condition tells of it, no [`Error`].
pub const WRITE_SECRET: &str = "write_secret";

/// The category of a status that another writer changes as often as the broker writes it.
pub const STATUS_OVERWRITTEN: &str = "status_overwritten";

/// Characters that are reported of either end of what Kubernetes said: the beginning names the object, the end has the
/// cause, and the names of policies between them may be long.
const SAID_MAX: usize = 150;

/// What Kubernetes said, fit for a status: the author of an admission webhook's text is unknown to the reader.
fn bounded(text: &str) -> String {
    let plain = |character: char| match character {
        // What a shell or a terminal reads more into, or what reads backwards.
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

/// What Kubernetes said, without the request: `kube::Error`'s own texts may hold a whole response.
pub fn told_by(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", bounded(&status.message), status.code),
        kube::Error::SerdeError(_) => "the API server's answer could not be read".to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_admission_webhook_says_is_told_in_part_and_in_plain_characters() {
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
