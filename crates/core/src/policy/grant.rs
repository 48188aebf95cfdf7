//! What a person has granted: the refresh token that is kept in the Secret `<credential>-grant`, or the sign-in that is
//! waited for. What is known of it stands in that Secret's annotations; its data is read only to be used.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{ResourceExt as _, core::ObjectMeta};
use serde::{Deserialize, Serialize};

use super::{
    blocker::Blocker,
    hash::{BindingHash, InputsHash, RefreshTokenHash, RequestHash, RevocationHash, SignInHash},
};
use crate::api::{
    MailCredential,
    grant::GrantType,
    names,
    status::{AuthorizationStatus, GrantStatus},
};

/// Polls are no further apart than this, in seconds, whatever the annotation says.
const INTERVAL_MAX: i64 = 3600;
/// A refresh token is used at least this often, whether a token is needed or not.
const KEEP_ALIVE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// And not more often than this, however near its end is.
const KEEP_ALIVE_SOONEST: SignedDuration = SignedDuration::from_mins(10);

/// What was observed of a grant that a person gave.
#[derive(Clone, Debug, Default)]
pub struct RefreshGrant {
    /// The grant Secret, if it is there and the credential's.
    pub stored: Option<GrantSecret>,
    /// Whose the Secret of that name is, if it is somebody else's.
    pub foreign: Option<String>,
    /// Its labels or its owner are not as the spec would have them.
    pub out_of_sync: bool,
    /// The seed, as far as it differs from the one that the grant was begun with.
    pub seed: Option<Result<Seed, Blocker>>,
    /// What a refresh token is bound to: it is sent to no other provider and for no other client.
    /// `None` where the provider is unknown: nothing is sent then.
    pub bound_to: Option<BindingHash>,
    /// Where a refresh token that is obtained now may be revoked, see [`super::inputs::revocable_at`].
    pub revocable_at: RevocationHash,
    /// What a sign-in is asked for by: a changed spec or a new value of `mailtoken.dev/reissue` asks anew after one
    /// that ended.
    pub asked_by: RequestHash,
    /// What a code is good for, see [`asked_for`]; `None` where the provider is unknown.
    pub asked_for: Option<SignInHash>,
    /// This broker's name in claims.
    pub holder: String,
    /// A refresh token came and is not stored yet.
    pub unsaved: bool,
    /// Not to be polled before this.
    pub next_poll: Option<Timestamp>,
    /// The provider says that the code has ended.
    pub code_over: bool,
    /// A refresh token that is not used for this long ends.
    pub idle_life: Option<SignedDuration>,
}

/// A seed, without itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Seed {
    /// Hash of the refresh token.
    pub hash: RefreshTokenHash,
    /// resourceVersion of the Secret that it was read from.
    pub version: String,
}

/// The grant Secret, without its data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrantSecret {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its resourceVersion.
    pub resource_version: String,
    /// It has annotations at all; a JSON Patch needs to know.
    pub has_annotations: bool,
    /// It has labels at all.
    pub has_labels: bool,
    /// The refresh token in it.
    pub token: Option<TokenNote>,
    /// The seed that it was begun with.
    pub seed: Option<Seed>,
    /// Who is exchanging it.
    pub claim: Option<Claim>,
    /// The sign-in that is waited for, or how the last one ended.
    pub sign_in: Option<SignIn>,
}

/// What is known of a refresh token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenNote {
    /// Its hash.
    pub hash: RefreshTokenHash,
    /// What it is bound to, see [`RefreshGrant::bound_to`].
    pub bound_to: BindingHash,
    /// Where it may be revoked, see [`super::inputs::revocable_at`]. Empty where that was not recorded.
    pub revocable_at: RevocationHash,
    /// When a person signed in, or the seed was taken over.
    pub obtained_at: Timestamp,
    /// When it was last exchanged.
    pub last_used_at: Option<Timestamp>,
    /// When it ends, where the provider said so.
    pub expires_at: Option<Timestamp>,
    /// How many times the provider has replaced it.
    pub rotations: i64,
}

/// Written before a refresh token is exchanged: so two brokers cannot spend it, the write of the answer is known to
/// succeed, and a restart knows what was in flight.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Claim {
    /// Who.
    pub holder: String,
    /// Since when.
    #[serde(deserialize_with = "names::deserialize_time")]
    pub since: Timestamp,
    /// Until then only the holder acts.
    #[serde(deserialize_with = "names::deserialize_time")]
    pub until: Timestamp,
    /// Hash of the refresh token.
    pub token: RefreshTokenHash,
}

/// A sign-in (RFC 8628), without its device code.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SignIn {
    /// What a person enters.
    pub user_code: String,
    /// Where.
    pub verification_uri: String,
    /// The same, with the code in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification_uri_complete: Option<String>,
    /// When the code ends.
    #[serde(deserialize_with = "names::deserialize_time")]
    pub expires_at: Timestamp,
    /// How many seconds polls have to be apart.
    pub interval: i64,
    /// When this code was shown.
    #[serde(deserialize_with = "names::deserialize_time")]
    pub shown_at: Timestamp,
    /// When the first of the codes that replace each other was shown.
    #[serde(deserialize_with = "names::deserialize_time")]
    pub began_at: Timestamp,
    /// See [`RefreshGrant::asked_by`].
    pub asked_by: RequestHash,
    /// See [`RefreshGrant::asked_for`].
    pub asked_for: SignInHash,
    /// How it ended, in words, if it did without a grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

impl GrantSecret {
    /// Reads what the metadata of a grant Secret says.
    pub fn read(meta: &ObjectMeta) -> Self {
        let text = |name: &str| meta.annotations.as_ref()?.get(name).map(String::as_str);
        let time = |name: &str| text(name).and_then(names::time);
        let token = text(names::ANNOTATION_FINGERPRINT).zip(time(names::ANNOTATION_OBTAINED_AT));
        Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            has_annotations: meta.annotations.is_some(),
            has_labels: meta.labels.is_some(),
            token: token.map(|(hash, obtained_at)| TokenNote {
                hash: hash.into(),
                bound_to: text(names::ANNOTATION_ISSUED_FOR).unwrap_or_default().into(),
                revocable_at: text(names::ANNOTATION_REVOCABLE_AT).unwrap_or_default().into(),
                obtained_at,
                last_used_at: time(names::ANNOTATION_LAST_USED_AT),
                expires_at: time(names::ANNOTATION_EXPIRES_AT),
                rotations: text(names::ANNOTATION_ROTATIONS).and_then(|text| text.parse().ok()).unwrap_or_default(),
            }),
            seed: text(names::ANNOTATION_SEED).and_then(|text| serde_json::from_str(text).ok()),
            claim: text(names::ANNOTATION_CLAIM).and_then(|text| serde_json::from_str(text).ok()),
            sign_in: text(names::ANNOTATION_SIGN_IN).and_then(|text| serde_json::from_str(text).ok()),
        }
    }
}

impl TokenNote {
    /// When it ends: as the provider said, or for want of use.
    fn end(&self, idle_life: Option<SignedDuration>) -> Option<Timestamp> {
        let idle = idle_life.map(|life| self.last_used_at.unwrap_or(self.obtained_at) + life);
        self.expires_at.into_iter().chain(idle).min()
    }

    /// When it is used next, if nobody needs a token before.
    pub(super) fn keep_alive(&self, idle_life: Option<SignedDuration>) -> Timestamp {
        let used = self.last_used_at.unwrap_or(self.obtained_at);
        let half = self.end(idle_life).map_or(KEEP_ALIVE, |end| end.duration_since(used) / 2);
        used + half.clamp(KEEP_ALIVE_SOONEST, KEEP_ALIVE)
    }
}

impl RefreshGrant {
    fn is_bound(&self, to: &BindingHash) -> bool {
        self.bound_to.as_ref().is_none_or(|wanted| to.is(wanted))
    }

    /// The refresh token, if it is for this provider and client.
    pub fn token(&self) -> Option<&TokenNote> {
        self.stored.as_ref()?.token.as_ref().filter(|token| self.is_bound(&token.bound_to))
    }

    /// The sign-in that this spec asks for. A code that is shown outlives changes that it does not depend on, such as a
    /// suspension.
    pub(super) fn sign_in(&self) -> Option<&SignIn> {
        let sign_in = self.stored.as_ref()?.sign_in.as_ref()?;
        let fits = self.asked_for.as_ref().is_none_or(|wanted| *wanted == sign_in.asked_for);
        (fits && (sign_in.ended.is_none() || sign_in.asked_by == self.asked_by)).then_some(sign_in)
    }

    /// The sign-in that a person can complete now.
    pub fn pending(&self, now: Timestamp) -> Option<&SignIn> {
        self.sign_in().filter(|sign_in| sign_in.ended.is_none() && now < sign_in.expires_at)
    }

    /// Whether another refresh token was put into the seed's Secret, and has brought nothing yet.
    pub fn reseeded(&self) -> bool {
        let token = self.stored.as_ref().and_then(|stored| stored.token.as_ref());
        token.is_some_and(|token| matches!(&self.seed, Some(Ok(_))) || token.last_used_at.is_none())
    }

    /// For the status.
    pub fn status(&self) -> Option<GrantStatus> {
        use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
        let token = self.token()?;
        Some(GrantStatus {
            obtained_at: Time(token.obtained_at),
            last_used_at: token.last_used_at.map(Time),
            expires_at: self.end().map(Time),
            rotations: token.rotations,
        })
    }

    /// When the refresh token ends, where that is known.
    pub fn end(&self) -> Option<Timestamp> {
        self.token()?.end(self.idle_life)
    }

    /// For the status, while a sign-in is pending.
    pub fn authorization(&self, now: Timestamp) -> Option<AuthorizationStatus> {
        let sign_in = self.pending(now)?;
        Some(AuthorizationStatus {
            verification_uri: sign_in.verification_uri.clone(),
            verification_uri_complete: sign_in.verification_uri_complete.clone(),
            user_code: sign_in.user_code.clone(),
            expires_at: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(sign_in.expires_at),
        })
    }
}

/// What a refresh token of this credential is bound to. One that a person gave by a code is for one mailbox.
pub fn bound_to(credential: &MailCredential, issuer: &str, client_id: &str) -> BindingHash {
    let by_code = credential.spec.grant.kind() == GrantType::DeviceCode;
    let mailbox = if by_code { credential.spec.mailbox.user().to_ascii_lowercase() } else { String::new() };
    names::digest([issuer, client_id, &mailbox]).into()
}

/// What a sign-in is asked for by.
pub fn asked_by(credential: &MailCredential) -> RequestHash {
    let generation = credential.metadata.generation.unwrap_or_default().to_string();
    let reissue = credential.annotations().get(names::ANNOTATION_REISSUE);
    names::digest([generation.as_str(), reissue.map_or("", String::as_str)]).into()
}

/// What the code of a sign-in is good for: the inputs of a token, until somebody asks for another code.
pub fn asked_for(credential: &MailCredential, issued_for: &InputsHash) -> SignInHash {
    let reissue = credential.annotations().get(names::ANNOTATION_REISSUE);
    names::digest([issued_for.as_str(), reissue.map_or("", String::as_str)]).into()
}

/// The soonest poll after one that was answered at `now`, which is told in whole seconds only.
pub fn next_poll(interval: i64, now: Timestamp) -> Timestamp {
    now + SignedDuration::from_secs(interval.clamp(0, INTERVAL_MAX) + 1)
}
