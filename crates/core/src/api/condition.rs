//! Condition types and reasons, how long each reason is waited out, and the one place that sets a transition time.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

macro_rules! condition_types {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// `metav1.Condition.type` of the conditions that the broker writes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ConditionType { $($(#[$doc])* $name),+ }

        impl ConditionType {
            /// Every type, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name in the API.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }
        }
    };
}

condition_types! {
    /// The Secret holds, now, an unexpired token for the spec as it stands. On a provider: it can be used.
    Ready,
    /// The last attempt to obtain a token succeeded.
    Renewed,
    /// Nothing will change until a person acts (kstatus). Absent while `Ready` is True.
    Stalled,
    /// The broker obtains the first token, or a token for a changed spec, or waits for what passes (kstatus).
    Reconciling,
    /// The refresh token's known end is near.
    GrantExpiringSoon,
    /// The client secret or certificate ends soon.
    ClientCredentialExpiringSoon,
}

/// How a reason is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It passes by itself: 5, 10, 20 … 300 seconds.
    Transient,
    /// A person has to act: still tried again, after 15 minutes to 6 hours, and at once on any change.
    Permanent,
    /// No token request is made until what is wrong has changed.
    OnChange,
    /// No failure.
    None,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $retry:ident),+ $(,)?) => {
        /// `metav1.Condition.reason`, also the reason of Events. Each has a heading in `docs/reasons.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name),+ }

        impl Reason {
            /// Every reason, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name in the API.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }

            /// How the broker goes on after this reason.
            pub const fn retry(self) -> Retry {
                match self { $(Self::$name => Retry::$retry),+ }
            }

            /// The reason of this name, `None` for one that this version does not know.
            pub fn parse(name: &str) -> Option<Self> {
                match name { $(stringify!($name) => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// The Secret holds an unexpired token.
    TokenValid => None,
    /// No token yet; it is being obtained.
    Pending => None,
    /// The token in the Secret is past its end.
    Expired => None,
    /// The last token request succeeded.
    RenewalSucceeded => None,
    /// Work is under way.
    Progressing => None,
    /// `spec.suspend` is true.
    Suspended => None,
    /// The provider can be used.
    ProviderReady => None,

    /// The provider did not answer, or answered 5xx.
    ProviderUnavailable => Transient,
    /// The provider asked for fewer requests.
    Throttled => Transient,
    /// The provider's answer is no token response.
    MalformedResponse => Transient,
    /// The provider's certificate was not accepted.
    TLSFailed => Transient,
    /// The provider finds the broker's clock wrong.
    ClockSkew => Transient,
    /// The token could not be written into the Secret.
    SecretWriteFailed => Transient,

    /// The provider's address is in a range that the broker may not connect to.
    EgressDenied => Permanent,
    /// The provider refused the client's id or secret.
    InvalidClient => Permanent,
    /// The client secret is past its end.
    ClientSecretExpired => Permanent,
    /// The provider refused the grant.
    InvalidGrant => Permanent,
    /// Nobody has consented to the permissions asked for.
    ConsentRequired => Permanent,
    /// The provider refused the scopes.
    InvalidScope => Permanent,
    /// The provider does not trust the federated identity.
    FederationMismatch => Permanent,
    /// The provider refused the request for another reason.
    RequestRefused => Permanent,
    /// A person has to sign in.
    AuthorizationRequired => Permanent,

    /// The spec contradicts itself or asks for what cannot be.
    InvalidSpec => OnChange,
    /// The provider object does not exist.
    ProviderNotFound => OnChange,
    /// The provider object is not usable yet.
    ProviderNotReady => OnChange,
    /// The provider does not allow this use.
    NotAllowed => OnChange,
    /// A Secret or ConfigMap that is referred to, or its key, does not exist.
    SourceNotFound => OnChange,
    /// A Secret that is referred to lacks the label that lets the broker read it.
    SourceNotLabeled => OnChange,
    /// A Secret or ConfigMap that is referred to holds something unusable.
    SourceInvalid => OnChange,
    /// The target Secret belongs to somebody else.
    SecretConflict => OnChange,

    /// The discovery document could not be read.
    DiscoveryFailed => Transient,
    /// The discovery document names another issuer.
    IssuerMismatch => Permanent,

    /// The end is 30 days or less away.
    Within30d => None,
    /// The end is 7 days or less away.
    Within7d => None,
    /// The end is a day or less away, or past.
    Within1d => None,

    /// Event only: the tokens' lifetime is too short for `spec.renewal.minValidity`.
    LifetimeTooShort => None,
    /// Event only: the token response did not say in a usable form how long the token lives.
    LifetimeUnknown => None,
    /// Event only: the token response did not say of what type the token is.
    TokenTypeUnknown => None,
    /// Event only: another client authentication is in use than before.
    ClientAuthenticationChanged => None,
    /// Event only: the token says of itself that it will not do.
    TokenUnsuitable => None,
    /// Event only: the provider did not say who signed in with a device code.
    AccountNotVerified => None,
    /// Event only: another refresh token was put into the seed's Secret and is used from now on.
    GrantReseeded => None,
    /// Event only: the tokens of a deleted credential were revoked.
    GrantRevoked => None,
    /// Event only: the tokens of a deleted credential could not be revoked.
    RevocationFailed => None,
    /// Event only: the provider has no way to revoke tokens.
    RevocationNotSupported => None,
}

impl Reason {
    /// Whether a person must act on this reason, so that `Stalled` may name it.
    pub const fn stalls(self) -> bool {
        match self.retry() {
            Retry::Permanent | Retry::OnChange => true,
            Retry::Transient | Retry::None => false,
        }
    }

    /// Whether the reason is that an object is missing which may have been applied in the same go and arrive later.
    pub const fn may_arrive(self) -> bool {
        matches!(self, Self::ProviderNotFound | Self::SourceNotFound | Self::SourceNotLabeled)
    }
}

/// The condition of type `kind` among `conditions`.
pub fn find(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == kind.as_str())
}

/// Whether the condition of type `kind` is True.
pub fn is_true(conditions: &[Condition], kind: ConditionType) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}

/// Sets the condition of type `kind`; its transition time moves only if its status does.
pub fn upsert(
    conditions: &mut Vec<Condition>,
    kind: ConditionType,
    status: bool,
    reason: Reason,
    message: String,
    generation: i64,
    now: Timestamp,
) {
    let status = if status { "True" } else { "False" };
    let before = conditions.iter().position(|condition| condition.type_ == kind.as_str());
    let since = before
        .and_then(|at| conditions.get(at))
        .filter(|condition| condition.status == status)
        .map_or(Time(now), |condition| condition.last_transition_time.clone());
    let condition = Condition {
        type_: kind.as_str().to_owned(),
        status: status.to_owned(),
        reason: reason.as_str().to_owned(),
        message: bounded(message),
        observed_generation: Some(generation),
        last_transition_time: since,
    };
    match before.and_then(|at| conditions.get_mut(at)) {
        Some(slot) => *slot = condition,
        None => conditions.push(condition),
    }
}

/// Takes the condition of type `kind` away.
pub fn remove(conditions: &mut Vec<Condition>, kind: ConditionType) {
    conditions.retain(|condition| condition.type_ != kind.as_str());
}

/// Longest message that we write; `metav1.Condition` allows 32,768 characters, a terminal far less.
const MESSAGE_MAX: usize = 2_048;

fn bounded(message: String) -> String {
    if message.chars().count() <= MESSAGE_MAX {
        return message;
    }
    message.chars().take(MESSAGE_MAX - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut conditions = vec![];
        let mut set = |status, reason, second| {
            upsert(&mut conditions, ConditionType::Ready, status, reason, "m".into(), 1, at(second));
            conditions[0].last_transition_time.0
        };
        assert_eq!(set(false, Reason::Pending, 1), at(1));
        assert_eq!(set(false, Reason::Expired, 2), at(1));
        assert_eq!(set(true, Reason::TokenValid, 3), at(3));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn every_reason_is_found_by_its_name() {
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
        }
        assert_eq!(Reason::parse("Nonsense"), None);
    }

    #[test]
    fn an_endless_message_is_cut() {
        assert_eq!(bounded("é".repeat(10_000)).chars().count(), 2_048);
    }
}
