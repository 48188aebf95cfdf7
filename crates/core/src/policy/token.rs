//! A token in a Secret, and a token that is not written yet.

use k8s_openapi::jiff::Timestamp;
use kube::core::ObjectMeta;

use super::hash::{InputsHash, RevocationHash};
use crate::{
    api::{names, status::ClientStatus},
    oauth::{
        TokenAnswer,
        token::{self, TokenFingerprint},
    },
};

/// Metadata of a token in a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFacts {
    /// Time at which the broker sent the token request.
    pub issued_at: Timestamp,
    /// Time at which the token expires.
    pub expires_at: Timestamp,
    /// Time at which the provider recommends a renewal, if it recommends one.
    pub refresh_at: Option<Timestamp>,
    /// The scopes that the provider granted.
    pub scopes: Vec<String>,
    /// The fingerprint of the access token.
    pub fingerprint: TokenFingerprint,
    /// The value of the annotation `mailtoken.dev/object-id`.
    pub object_id: Option<String>,
    /// The value of the annotation `mailtoken.dev/warning`.
    pub unsuitable: Option<String>,
    /// Length in characters. `None`: the broker has not read the Secret's data.
    pub length: Option<usize>,
}

impl TokenFacts {
    /// Reads the annotations of a Secret about its token. `None`: the annotations describe no token.
    pub fn read(meta: &ObjectMeta) -> Option<Self> {
        let annotation = |name: &str| meta.annotations.as_ref()?.get(name).map(String::as_str);
        let time = |name: &str| annotation(name).and_then(names::time);
        let facts = Self {
            issued_at: time(names::ANNOTATION_ISSUED_AT)?,
            expires_at: time(names::ANNOTATION_EXPIRES_AT)?,
            refresh_at: time(names::ANNOTATION_REFRESH_AT),
            scopes: token::scopes(annotation(names::ANNOTATION_SCOPES).unwrap_or_default()),
            fingerprint: annotation(names::ANNOTATION_FINGERPRINT)?.into(),
            object_id: annotation(names::ANNOTATION_OBJECT_ID).map(str::to_owned),
            unsuitable: annotation(names::ANNOTATION_WARNING).map(str::to_owned),
            length: None,
        };
        (facts.issued_at < facts.expires_at).then_some(facts)
    }

    /// Whether the token is still valid at `now`.
    pub fn is_unexpired(&self, now: Timestamp) -> bool {
        now < self.expires_at
    }
}

/// A token that the broker has obtained and must write.
#[derive(Clone, Debug)]
pub struct UnwrittenToken {
    /// The provider's token response.
    pub answer: TokenAnswer,
    /// Hash of the inputs of the token.
    pub issued_for: InputsHash,
    /// Hash of the inputs of a revocation request, see [`super::inputs::revocable_at`].
    pub revocable_at: RevocationHash,
    /// The id of the token's subject.
    pub object_id: Option<String>,
    /// Why mail servers will refuse the token, according to its claims.
    pub unsuitable: Option<String>,
    /// The value of the reissue annotation at the token request.
    pub reissue: Option<String>,
    /// The client authentication that the provider accepted.
    pub client: Option<ClientStatus>,
    /// The fingerprint of the token that was published when the broker sent the token request.
    pub follows: Option<TokenFingerprint>,
}
