//! All inputs of a decision about one credential, gathered before the decision.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::{ResourceExt as _, core::ObjectMeta};

use crate::{
    api::{ConditionType, MailCredential, Reason, condition, names},
    providers::Profile,
};

pub use super::{
    blocker::{Blocker, Cause},
    history::History,
    token::{TokenFacts, UnwrittenToken},
};

use super::{
    decision::RequestKind,
    grant::RefreshGrant,
    hash::{AttemptHash, BindingHash, InputsHash, LayoutHash, RevocationHash},
    probe::Probe,
    schedule::{self, RenewalPlan},
};

/// The observations of one credential.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The MailCredential that the broker reconciles.
    pub credential: Arc<MailCredential>,
    /// Results of earlier attempts, from the status and from the latest outcome.
    pub history: History,
    /// The Secret that pods mount.
    pub target: Target,
    /// The Secret under the former `spec.secret.name`, while it still holds the token.
    pub previous: Option<Published>,
    /// Name of another credential that holds the same target Secret.
    pub rival: Option<String>,
    /// The provider, or the reason why the credential has no provider.
    pub provider: Result<Provider, Blocker>,
    /// The user's grant. `None`: the grant type involves no user.
    pub grant: Option<RefreshGrant>,
    /// A token that the broker has obtained, but not written yet.
    pub unwritten: Option<UnwrittenToken>,
    /// Whether a token request is in flight.
    pub in_flight: bool,
    /// Whether a token request waits for its permit.
    pub queued: bool,
    /// Hash of all inputs of the next attempt.
    pub attempt_hash: AttemptHash,
    /// The probe of the mailbox. `None`: the credential has no `spec.probe`, or the broker makes no probes.
    pub probe: Option<Probe>,
}

/// The properties of a credential's provider that the broker knows without a request.
#[derive(Clone, Debug)]
pub struct Provider {
    /// The profile of the provider.
    pub profile: Profile,
    /// Why this credential cannot use the provider: its spec, the allowance, a source or the discovery.
    pub blocker: Option<Blocker>,
    /// Hash of the inputs of a token: issuer, client, scopes, grant, subject.
    pub issued_for: InputsHash,
    /// The id of the client at the provider.
    pub client_id: String,
    /// The scopes to request.
    pub scopes: Vec<String>,
    /// Hash of the inputs of the target Secret's content, except for the token's inputs.
    pub layout: LayoutHash,
    /// The binding of a refresh token, see [`RefreshGrant::bound_to`].
    pub bound_to: BindingHash,
    /// Hash of the inputs of a revocation request, see [`super::inputs::revocable_at`].
    pub revocable_at: RevocationHash,
    /// Size of the Secret's data in bytes. If the token is unknown, the broker assumes a usual length.
    pub secret_size: usize,
}

/// The state of the target Secret.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The Secret does not exist.
    Absent,
    /// The Secret belongs to the credential.
    Own(Published),
    /// The Secret belongs to another owner. The text describes the owner.
    Foreign(String),
}

impl Target {
    /// The Secret, if it belongs to the credential.
    pub fn own(&self) -> Option<&Published> {
        match self {
            Self::Own(published) => Some(published),
            Self::Absent | Self::Foreign(_) => None,
        }
    }
}

/// A Secret of the broker, without its data.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Name of the Secret.
    pub name: String,
    /// Uid of the Secret.
    pub uid: String,
    /// resourceVersion of the Secret.
    pub resource_version: String,
    /// The token in the Secret. `None`: the broker cannot have written this token, and requests a new token.
    pub token: Option<TokenFacts>,
    /// The value of the annotation `mailtoken.dev/issued-for`.
    pub issued_for: InputsHash,
    /// The value of the annotation `mailtoken.dev/layout`.
    pub layout: LayoutHash,
    /// The annotation `mailtoken.dev/applied`: the labels and annotations from the spec.
    pub applied: Option<String>,
    /// Whether the Secret has annotations. A JSON Patch must create them if they are missing.
    pub has_annotations: bool,
    /// The value of the annotation `mailtoken.dev/handled-reissue`.
    pub handled_reissue: Option<String>,
    /// Whether data, labels and owner are as the broker wrote them.
    pub intact: bool,
    /// Whether the Secret became immutable or has another type, so that the broker must recreate it.
    pub must_recreate: bool,
}

impl Published {
    /// Reads the metadata of a Secret whose data is as the broker wrote it.
    pub fn read(meta: &ObjectMeta) -> Self {
        let annotation = |name: &str| meta.annotations.as_ref().and_then(|map| map.get(name)).cloned();
        Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            token: TokenFacts::read(meta),
            issued_for: annotation(names::ANNOTATION_ISSUED_FOR).unwrap_or_default().into(),
            layout: annotation(names::ANNOTATION_LAYOUT).unwrap_or_default().into(),
            applied: annotation(names::ANNOTATION_APPLIED),
            has_annotations: meta.annotations.is_some(),
            handled_reissue: annotation(names::ANNOTATION_HANDLED_REISSUE),
            intact: true,
            must_recreate: false,
        }
    }
}

impl Observed {
    /// The name of the target Secret.
    pub fn target_name(&self) -> String {
        target_name(&self.credential)
    }

    /// The last handled reissue value, from the status or the Secret. If one of them has the requested value, returns
    /// that value.
    pub fn handled_reissue(&self) -> Option<&str> {
        let wanted = self.wanted_reissue();
        let on_the_secret = self.target.own().and_then(|published| published.handled_reissue.as_deref());
        let reported = [self.history.handled_reissue.as_deref(), on_the_secret];
        reported
            .into_iter()
            .flatten()
            .find(|value| Some(*value) == wanted)
            .or_else(|| reported.into_iter().flatten().next())
    }

    /// The requested reissue value, if the broker has not handled it yet.
    pub fn pending_reissue(&self) -> Option<&str> {
        self.wanted_reissue().filter(|wanted| self.handled_reissue() != Some(wanted))
    }

    fn wanted_reissue(&self) -> Option<&str> {
        self.credential.annotations().get(names::ANNOTATION_REISSUE).map(String::as_str)
    }

    /// Whether the last write failed.
    pub fn writes_failed(&self) -> bool {
        self.history.failure().is_some_and(|(reason, _)| reason == Reason::SecretWriteFailed)
    }

    /// Time until which a token request, or the write of its result, must wait after failures.
    pub fn backoff(&self, now: Timestamp) -> Option<Timestamp> {
        self.history.backoff(&self.attempt_hash, self.credential.metadata.generation, now)
    }

    /// Time until which a step of a sign-in must wait after failures.
    pub fn sign_in_backoff(&self, now: Timestamp) -> Option<Timestamp> {
        self.history.backoff(&self.sign_in_attempt_hash(), self.credential.metadata.generation, now)
    }

    /// Hash of the inputs of a sign-in step. The broker counts failures of sign-in steps separately from failures of
    /// token requests.
    pub fn sign_in_attempt_hash(&self) -> AttemptHash {
        names::short_digest([self.attempt_hash.as_str(), "sign-in"]).into()
    }

    /// Hash of the inputs of a request.
    pub fn attempt_hash_for(&self, request: RequestKind) -> AttemptHash {
        match request {
            RequestKind::Token => self.attempt_hash.clone(),
            RequestKind::SignIn | RequestKind::Poll => self.sign_in_attempt_hash(),
        }
    }

    /// Whether the provider refused the refresh token for the current inputs, so that only a sign-in helps. The result
    /// stays true while the start of the sign-in fails.
    pub fn wants_a_sign_in(&self) -> bool {
        let Some((reason, _)) = self.history.failure() else { return false };
        let refused = matches!(
            reason,
            Reason::InvalidGrant | Reason::AuthorizationRequired | Reason::ConsentRequired | Reason::InvalidScope
        );
        let failed_with = self.history.failed_with.as_ref();
        (refused && failed_with == Some(&self.attempt_hash)) || failed_with == Some(&self.sign_in_attempt_hash())
    }

    /// The token in the target Secret, regardless of its inputs.
    pub fn token(&self) -> Option<&TokenFacts> {
        self.target.own()?.token.as_ref()
    }

    /// Plans the renewal of `token`, which is in the Secret or will be written into it.
    pub fn plan(&self, token: &TokenFacts) -> RenewalPlan {
        let uid = self.credential.metadata.uid.as_deref().unwrap_or_default();
        let plan = schedule::renewal(token, &self.credential.spec.renewal, uid);
        RenewalPlan { at: plan.at.max(self.soonest(token)), ..plan }
    }

    /// The earliest renewal of `token`, regardless of its lifetime.
    pub fn soonest(&self, token: &TokenFacts) -> Timestamp {
        let size = self.provider.as_ref().map_or(0, |provider| provider.secret_size);
        schedule::soonest(token.issued_at, size)
    }

    /// Whether another broker has published a newer token since this broker requested its unwritten token. A token with
    /// an earlier issue time is not newer: a watch may show late the Secret of a deleted credential with the same name.
    pub fn is_overtaken(&self) -> bool {
        let (Some(unwritten), Some(published)) = (&self.unwritten, self.token()) else { return false };
        if published.issued_at < unwritten.answer.token.issued_at {
            return false;
        }
        let published = Some(&published.fingerprint);
        published != unwritten.follows.as_ref() && published != Some(&unwritten.answer.token.fingerprint())
    }

    /// Whether the token in the target Secret is for the current spec. If the provider is unknown, the last status
    /// decides: it must describe the current generation and this token, with `Ready` True.
    pub fn is_for_this_spec(&self, published: &Published) -> bool {
        match &self.provider {
            Ok(provider) => published.issued_for.is(&provider.issued_for),
            Err(_) => self.credential.status.as_ref().is_some_and(|status| {
                status.observed_generation == self.credential.metadata.generation
                    && condition::is_true(&status.conditions, ConditionType::Ready)
                    && status.token.as_ref().is_some_and(|token| {
                        published.token.as_ref().is_some_and(|facts| facts.fingerprint.as_str() == token.fingerprint)
                    })
            }),
        }
    }
}

/// The name of the Secret that pods mount.
pub fn target_name(credential: &MailCredential) -> String {
    credential.spec.secret.name.clone().unwrap_or_else(|| credential.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{at, token};

    #[test]
    fn a_published_secret_is_known_by_its_metadata() {
        let annotations = [
            (names::ANNOTATION_ISSUED_AT, names::rfc3339(at(0))),
            (names::ANNOTATION_EXPIRES_AT, names::rfc3339(at(3600))),
            (names::ANNOTATION_FINGERPRINT, token().fingerprint.to_string()),
            (names::ANNOTATION_SCOPES, "mail.send".to_owned()),
            (names::ANNOTATION_ISSUED_FOR, "inputs".to_owned()),
            (names::ANNOTATION_LAYOUT, "layout".to_owned()),
            (names::ANNOTATION_APPLIED, "applied".to_owned()),
            (names::ANNOTATION_HANDLED_REISSUE, "reissue".to_owned()),
        ];
        let meta = ObjectMeta {
            name: Some("billing".to_owned()),
            uid: Some("secret".to_owned()),
            resource_version: Some("7".to_owned()),
            annotations: Some(annotations.map(|(name, value)| (name.to_owned(), value)).into()),
            ..ObjectMeta::default()
        };
        let expected = Published {
            name: "billing".to_owned(),
            uid: "secret".to_owned(),
            resource_version: "7".to_owned(),
            token: Some(TokenFacts { length: None, ..token() }),
            issued_for: "inputs".into(),
            layout: "layout".into(),
            applied: Some("applied".to_owned()),
            has_annotations: true,
            handled_reissue: Some("reissue".to_owned()),
            intact: true,
            must_recreate: false,
        };
        assert_eq!(Published::read(&meta), expected);
        let bare = Published::read(&ObjectMeta { annotations: None, ..meta });
        assert_eq!((bare.token, bare.has_annotations, bare.layout.as_str(), bare.applied), (None, false, "", None));
    }
}
