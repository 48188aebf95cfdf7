//! Everything that a decision about one credential rests on, gathered before it is made.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

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
    grant::RefreshGrant,
    hash::{AttemptHash, BindingHash, InputsHash, LayoutHash, RevocationHash},
    schedule::{self, RenewalPlan},
};

/// What was found out about one credential.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The object.
    pub credential: Arc<MailCredential>,
    /// What earlier attempts came to: from the status, and the outcome that has just come in.
    pub history: History,
    /// The Secret that pods mount.
    pub target: Target,
    /// The Secret under the name that `spec.secret.name` had before, while it still holds the token.
    pub previous: Option<Published>,
    /// Another credential with the same target, which has it.
    pub rival: Option<String>,
    /// The provider, or why there is none.
    pub provider: Result<Provider, Blocker>,
    /// What a person has granted; `None` for a grant that needs no person.
    pub grant: Option<RefreshGrant>,
    /// A token that was obtained and is not written yet.
    pub unwritten: Option<UnwrittenToken>,
    /// A token request is under way.
    pub in_flight: bool,
    /// A token request waits for its permit.
    pub queued: bool,
    /// Hash of everything that an attempt would be made with.
    pub attempt: AttemptHash,
}

/// The provider of a credential, as far as it is known without asking anyone.
#[derive(Clone, Debug)]
pub struct Provider {
    /// What it is.
    pub profile: Profile,
    /// Why it cannot be used for this credential: the spec, the allowance, its sources, its discovery.
    pub blocker: Option<Blocker>,
    /// Hash of the inputs of a token: issuer, client, scopes, grant, subject.
    pub issued_for: InputsHash,
    /// The scopes that are asked for.
    pub scopes: Vec<String>,
    /// Hash of what else shapes the Secret.
    pub layout: LayoutHash,
    /// What a refresh token is bound to, see [`RefreshGrant::bound_to`].
    pub bound_to: BindingHash,
    /// Where tokens may be revoked, see [`super::inputs::revocable_at`].
    pub revocable_at: RevocationHash,
    /// Bytes of the Secret's data with the token that is known, or with one of the usual length.
    pub secret_size: usize,
}

/// The target Secret.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// There is none.
    Absent,
    /// It is the credential's.
    Own(Published),
    /// It is somebody else's; who, in words.
    Foreign(String),
}

impl Target {
    /// The Secret, if it is the credential's.
    pub fn own(&self) -> Option<&Published> {
        match self {
            Self::Own(published) => Some(published),
            Self::Absent | Self::Foreign(_) => None,
        }
    }
}

/// A Secret of ours, without its data.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its resourceVersion.
    pub resource_version: String,
    /// The token in it; `None` where what stands there cannot be one of ours.
    pub token: Option<TokenFacts>,
    /// `mailtoken.dev/issued-for`.
    pub issued_for: InputsHash,
    /// `mailtoken.dev/layout`.
    pub layout: LayoutHash,
    /// `mailtoken.dev/applied`: which labels and annotations came from the spec.
    pub applied: Option<String>,
    /// It has a map of annotations at all; a JSON Patch needs to know.
    pub has_annotations: bool,
    /// `mailtoken.dev/handled-reissue`.
    pub handled_reissue: Option<String>,
    /// Its data, labels and owner are as the broker wrote them.
    pub intact: bool,
    /// It became immutable or has another type: only a new one can be written.
    pub must_recreate: bool,
}

impl Observed {
    /// The name that the target has or would have.
    pub fn target_name(&self) -> String {
        target_name(&self.credential)
    }

    /// The reissue value that was answered last, as the status or the Secret tells: the one that is asked for, if either
    /// does.
    pub fn handled_reissue(&self) -> Option<&str> {
        let wanted = self.wanted_reissue();
        let on_the_secret = self.target.own().and_then(|published| published.handled_reissue.as_deref());
        let told = [self.history.handled_reissue.as_deref(), on_the_secret];
        told.into_iter().flatten().find(|value| Some(*value) == wanted).or_else(|| told.into_iter().flatten().next())
    }

    /// The reissue value that has not been answered yet.
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

    /// Until when a token request, or the write of what it brought, has to wait after failures.
    pub fn backoff(&self, now: Timestamp) -> Option<Timestamp> {
        self.history.backoff(&self.attempt, self.credential.metadata.generation, now)
    }

    /// The same for a step of a sign-in.
    pub fn sign_in_backoff(&self, now: Timestamp) -> Option<Timestamp> {
        self.history.backoff(&self.sign_in_attempt(), self.credential.metadata.generation, now)
    }

    /// What a step of a sign-in is made with: its failures are counted apart from those of token requests.
    pub fn sign_in_attempt(&self) -> AttemptHash {
        names::short_digest([self.attempt.as_str(), "sign-in"]).into()
    }

    /// Whether the refresh token was refused, with all as it is now, so that only a person's sign-in helps; also while
    /// beginning that sign-in fails.
    pub fn wants_a_sign_in(&self) -> bool {
        let Some((reason, _)) = self.history.failure() else { return false };
        let refused = matches!(
            reason,
            Reason::InvalidGrant | Reason::AuthorizationRequired | Reason::ConsentRequired | Reason::InvalidScope
        );
        let failed_with = self.history.failed_with.as_ref();
        (refused && failed_with == Some(&self.attempt)) || failed_with == Some(&self.sign_in_attempt())
    }

    /// The token in the target Secret, whatever it was issued for.
    pub fn token(&self) -> Option<&TokenFacts> {
        self.target.own()?.token.as_ref()
    }

    /// When `token`, which stands in the Secret or is about to, is renewed.
    pub fn plan(&self, token: &TokenFacts) -> RenewalPlan {
        let uid = self.credential.metadata.uid.as_deref().unwrap_or_default();
        let plan = schedule::renewal(token, &self.credential.spec.renewal, uid);
        RenewalPlan { at: plan.at.max(self.soonest(token)), ..plan }
    }

    /// The earliest renewal of `token`, however short its life.
    pub fn soonest(&self, token: &TokenFacts) -> Timestamp {
        let size = self.provider.as_ref().map_or(0, |provider| provider.secret_size);
        schedule::soonest(token.issued_at, size)
    }

    /// Whether another broker has published another token since the one that is held was asked for. A token that was
    /// issued before the held one is no such token: a Secret of a deleted credential of this name may appear late.
    pub fn is_overtaken(&self) -> bool {
        let (Some(unwritten), Some(published)) = (&self.unwritten, self.token()) else { return false };
        if published.issued_at < unwritten.answer.token.issued_at {
            return false;
        }
        let published = Some(&published.fingerprint);
        published != unwritten.follows.as_ref() && published != Some(&unwritten.answer.token.fingerprint())
    }

    /// Whether the token in the target is for the spec as it stands. Where the provider is unknown the answer of the
    /// last time stands, if the spec is still that one: that it was `Ready`.
    pub fn is_for_this_spec(&self, published: &Published) -> bool {
        match &self.provider {
            Ok(provider) => published.issued_for.is(&provider.issued_for),
            Err(_) => self.credential.status.as_ref().is_some_and(|status| {
                status.observed_generation == self.credential.metadata.generation
                    && condition::is_true(&status.conditions, ConditionType::Ready)
                    && status.token.as_ref().is_some_and(|token| {
                        published.token.as_ref().is_some_and(|facts| facts.fingerprint == token.fingerprint)
                    })
            }),
        }
    }
}

/// The name of the Secret that pods mount.
pub fn target_name(credential: &MailCredential) -> String {
    credential.spec.secret.name.clone().unwrap_or_else(|| credential.name_any())
}
