//! A token in a Secret, and a token that is not written yet.

use k8s_openapi::jiff::Timestamp;
use kube::core::ObjectMeta;

use super::hash::{InputsHash, RevocationHash};
use crate::{
    api::{names, status::ClientStatus},
    oauth::{TokenAnswer, token},
};

/// What is known about a token in a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFacts {
    /// When it was asked for.
    pub issued_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When the provider would like it to be refreshed.
    pub refresh_at: Option<Timestamp>,
    /// The scopes granted.
    pub scopes: Vec<String>,
    /// See [`crate::oauth::token::fingerprint`].
    pub fingerprint: String,
    /// `mailtoken.dev/object-id`.
    pub object_id: Option<String>,
    /// `mailtoken.dev/warning`.
    pub unsuitable: Option<String>,
    /// Length in characters; `None` where the Secret's data was not read.
    pub length: Option<usize>,
}

impl TokenFacts {
    /// Reads what the annotations of a Secret say about its token; `None` where they describe no token.
    pub fn read(meta: &ObjectMeta) -> Option<Self> {
        let annotation = |name: &str| meta.annotations.as_ref()?.get(name).map(String::as_str);
        let time = |name: &str| annotation(name).and_then(names::time);
        let facts = Self {
            issued_at: time(names::ANNOTATION_ISSUED_AT)?,
            expires_at: time(names::ANNOTATION_EXPIRES_AT)?,
            refresh_at: time(names::ANNOTATION_REFRESH_AT),
            scopes: token::scopes(annotation(names::ANNOTATION_SCOPES).unwrap_or_default()),
            fingerprint: annotation(names::ANNOTATION_FINGERPRINT)?.to_owned(),
            object_id: annotation(names::ANNOTATION_OBJECT_ID).map(str::to_owned),
            unsuitable: annotation(names::ANNOTATION_WARNING).map(str::to_owned),
            length: None,
        };
        (facts.issued_at < facts.expires_at).then_some(facts)
    }

    /// Whether it can still be used at `now`.
    pub fn is_unexpired(&self, now: Timestamp) -> bool {
        now < self.expires_at
    }
}

/// A token that was obtained and must be written.
#[derive(Clone, Debug)]
pub struct UnwrittenToken {
    /// The answer of the provider.
    pub answer: TokenAnswer,
    /// What it was issued for.
    pub issued_for: InputsHash,
    /// See [`super::inputs::revocable_at`].
    pub revocable_at: RevocationHash,
    /// The id that the token gives for its subject.
    pub object_id: Option<String>,
    /// What the token says of itself that will not do.
    pub unsuitable: Option<String>,
    /// The value of the reissue annotation when it was asked for.
    pub reissue: Option<String>,
    /// The client authentication that worked.
    pub client: Option<ClientStatus>,
    /// The fingerprint of the token that was published when it was asked for.
    pub follows: Option<String>,
}
