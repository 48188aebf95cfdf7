//! The user's grant: the refresh token in the Secret `<credential>-grant`, or the pending sign-in. The Secret's
//! annotations describe the grant. The broker reads the Secret's data only to use the grant.

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

/// Maximum interval between polls in seconds, even if the annotation has a longer interval.
const INTERVAL_MAX: i64 = 3600;
/// Maximum time between two uses of a refresh token, even if the credential needs no access token.
const KEEP_ALIVE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Minimum time between two uses that only keep a refresh token alive, even if the token expires soon.
const KEEP_ALIVE_SOONEST: SignedDuration = SignedDuration::from_mins(10);

/// Observations of a user's grant.
#[derive(Clone, Debug, Default)]
pub struct RefreshGrant {
    /// The grant Secret, if it exists and belongs to the credential.
    pub stored: Option<GrantSecret>,
    /// The owner of a foreign Secret with the grant Secret's name.
    pub foreign: Option<String>,
    /// Whether the grant Secret's labels or owner differ from the spec.
    pub out_of_sync: bool,
    /// The seed, if it differs from the seed of the stored grant.
    pub seed: Option<Result<Seed, Blocker>>,
    /// Hash of the binding of a refresh token: the broker sends the token to no other provider and for no other client.
    /// `None`: the provider is unknown, and the broker sends no request.
    pub bound_to: Option<BindingHash>,
    /// Hash of the revocation inputs of a refresh token that the broker obtains now, see
    /// [`super::inputs::revocable_at`].
    pub revocable_at: RevocationHash,
    /// Hash of the request for a sign-in. After a sign-in has ended, a changed spec or a new value of
    /// `mailtoken.dev/reissue` starts a new sign-in.
    pub asked_by: RequestHash,
    /// Hash of the inputs for which a code is valid, see [`asked_for`]. `None`: the provider is unknown, and a shown
    /// code stays.
    pub asked_for: Option<SignInHash>,
    /// This broker's identity in claims.
    pub holder: String,
    /// Whether the broker has a new refresh token that the grant Secret does not have yet.
    pub unsaved: bool,
    /// Time of the next poll.
    pub next_poll: Option<Timestamp>,
    /// Whether the provider reported that the code has expired.
    pub code_over: bool,
    /// Lifetime of a refresh token without use, if known.
    pub idle_life: Option<SignedDuration>,
}

/// Properties of a seed, without the refresh token.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Seed {
    /// Hash of the refresh token.
    pub hash: RefreshTokenHash,
    /// resourceVersion of the seed's Secret.
    pub version: String,
}

/// The grant Secret, without its data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrantSecret {
    /// Name of the Secret.
    pub name: String,
    /// Uid of the Secret.
    pub uid: String,
    /// resourceVersion of the Secret.
    pub resource_version: String,
    /// Whether the Secret has annotations. A JSON Patch must create them if they are missing.
    pub has_annotations: bool,
    /// Whether the Secret has labels. A JSON Patch must create them if they are missing.
    pub has_labels: bool,
    /// Properties of the refresh token in the Secret.
    pub token: Option<TokenNote>,
    /// The seed of the stored grant.
    pub seed: Option<Seed>,
    /// The claim on the refresh token in the Secret.
    pub claim: Option<Claim>,
    /// The pending sign-in, or the last sign-in with its end.
    pub sign_in: Option<SignIn>,
}

/// Properties of a refresh token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenNote {
    /// Hash of the refresh token.
    pub hash: RefreshTokenHash,
    /// The binding of the refresh token, see [`RefreshGrant::bound_to`].
    pub bound_to: BindingHash,
    /// Hash of the revocation inputs of the refresh token, see [`super::inputs::revocable_at`]. Empty if not recorded.
    pub revocable_at: RevocationHash,
    /// When the user signed in, or the broker copied the seed.
    pub obtained_at: Timestamp,
    /// Time of the last exchange.
    pub last_used_at: Option<Timestamp>,
    /// Expiry of the refresh token, if the provider reported one.
    pub expires_at: Option<Timestamp>,
    /// Number of times that the provider has replaced the refresh token.
    pub rotations: i64,
}

/// A claim on a refresh token, which the broker writes before the exchange. The claim prevents two brokers from
/// spending the token. The write of the claim shows that the broker can also write the response. After a restart, the
/// claim shows which exchange was in flight.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Claim {
    /// Identity of the holder.
    pub holder: String,
    /// Start time of the claim.
    #[serde(deserialize_with = "names::deserialize_time")]
    pub since: Timestamp,
    /// Deadline of the claim. Until then, only the holder uses the refresh token.
    #[serde(deserialize_with = "names::deserialize_time")]
    pub until: Timestamp,
    /// Hash of the refresh token.
    pub token: RefreshTokenHash,
}

/// A sign-in (RFC 8628), without its device code.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SignIn {
    /// The code that the user enters.
    pub user_code: String,
    /// The page at which the user enters the code.
    pub verification_uri: String,
    /// The page with the code in its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification_uri_complete: Option<String>,
    /// The time at which the code expires.
    #[serde(deserialize_with = "names::deserialize_time")]
    pub expires_at: Timestamp,
    /// Interval between polls in seconds.
    pub interval: i64,
    /// Time at which the status first showed this code.
    #[serde(deserialize_with = "names::deserialize_time")]
    pub shown_at: Timestamp,
    /// Time at which the status showed the first of the consecutive codes.
    #[serde(deserialize_with = "names::deserialize_time")]
    pub began_at: Timestamp,
    /// The request for the sign-in, see [`RefreshGrant::asked_by`].
    pub asked_by: RequestHash,
    /// The inputs of the sign-in, see [`RefreshGrant::asked_for`].
    pub asked_for: SignInHash,
    /// Why the sign-in ended without a grant. `None`: the sign-in has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

impl GrantSecret {
    /// Reads the metadata of a grant Secret.
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
    /// Records an exchange at `used_at`. `rotated`: the hash and the expiry of the refresh token in the response, which
    /// may be the exchanged token. `None`: the response has no refresh token, so the exchanged token stays in use.
    pub fn note_exchange(&mut self, used_at: Timestamp, rotated: Option<(RefreshTokenHash, Option<Timestamp>)>) {
        self.last_used_at = Some(used_at);
        if let Some((hash, expires_at)) = rotated {
            self.rotations = self.rotations.saturating_add(i64::from(hash != self.hash));
            (self.hash, self.expires_at) = (hash, expires_at);
        }
    }

    /// Expiry of the refresh token: the provider's expiry, or the end of its lifetime without use, whichever is
    /// earlier.
    fn end(&self, idle_life: Option<SignedDuration>) -> Option<Timestamp> {
        let idle = idle_life.map(|life| self.last_used_at.unwrap_or(self.obtained_at) + life);
        self.expires_at.into_iter().chain(idle).min()
    }

    /// Time of the next use that only keeps the refresh token alive.
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

    /// The stored refresh token, if it is bound to the current provider and client.
    pub fn token(&self) -> Option<&TokenNote> {
        self.stored.as_ref()?.token.as_ref().filter(|token| self.is_bound(&token.bound_to))
    }

    /// The stored sign-in, if it fits the current spec. A shown code survives changes on which it does not depend, such
    /// as a suspension.
    pub(super) fn sign_in(&self) -> Option<&SignIn> {
        let sign_in = self.stored.as_ref()?.sign_in.as_ref()?;
        let fits = self.asked_for.as_ref().is_none_or(|wanted| *wanted == sign_in.asked_for);
        (fits && (sign_in.ended.is_none() || sign_in.asked_by == self.asked_by)).then_some(sign_in)
    }

    /// The sign-in that the user can complete now.
    pub fn pending(&self, now: Timestamp) -> Option<&SignIn> {
        self.sign_in().filter(|sign_in| sign_in.ended.is_none() && now < sign_in.expires_at)
    }

    /// Whether the seed's Secret has a new refresh token that the broker has not used yet.
    pub fn reseeded(&self) -> bool {
        let token = self.stored.as_ref().and_then(|stored| stored.token.as_ref());
        token.is_some_and(|token| matches!(&self.seed, Some(Ok(_))) || token.last_used_at.is_none())
    }

    /// The grant's part of the status.
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

    /// Expiry of the refresh token, if known.
    pub fn end(&self) -> Option<Timestamp> {
        self.token()?.end(self.idle_life)
    }

    /// The status of a pending sign-in.
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

/// Hash of the binding of this credential's refresh token. A refresh token from a device-code sign-in is bound to one
/// mailbox.
pub fn bound_to(credential: &MailCredential, issuer: &str, client_id: &str) -> BindingHash {
    let by_code = credential.spec.grant.kind() == GrantType::DeviceCode;
    let mailbox = if by_code { credential.spec.mailbox.user().to_ascii_lowercase() } else { String::new() };
    names::digest([issuer, client_id, &mailbox]).into()
}

/// Hash of the request for a sign-in, for [`RefreshGrant::asked_by`].
pub fn asked_by(credential: &MailCredential) -> RequestHash {
    let generation = credential.metadata.generation.unwrap_or_default().to_string();
    let reissue = credential.annotations().get(names::ANNOTATION_REISSUE);
    names::digest([generation.as_str(), reissue.map_or("", String::as_str)]).into()
}

/// Hash of the inputs for which a code is valid: the inputs of a token, and the annotation by which a user requests
/// another code.
pub fn asked_for(credential: &MailCredential, issued_for: &InputsHash) -> SignInHash {
    let reissue = credential.annotations().get(names::ANNOTATION_REISSUE);
    names::digest([issued_for.as_str(), reissue.map_or("", String::as_str)]).into()
}

/// The earliest time of a poll after a response at `now`. `now` has whole seconds, so the result is a second later.
pub fn next_poll(interval: i64, now: Timestamp) -> Timestamp {
    now + SignedDuration::from_secs(interval.clamp(0, INTERVAL_MAX) + 1)
}
