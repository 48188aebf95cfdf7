//! Condition types and reasons, the retry class of each reason, and the only function that sets a transition time.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

macro_rules! condition_types {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Types of the conditions that the broker writes (`metav1.Condition.type`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ConditionType { $($(#[$doc])* $name),+ }

        impl ConditionType {
            /// Every type, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name of the value in the API.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }
        }
    };
}

condition_types! {
    /// The Secret currently holds an unexpired token for the current spec. On a provider: the broker can use the provider.
    Ready,
    /// The last attempt to obtain a token succeeded.
    Renewed,
    /// Nothing will change until a person acts (kstatus). Absent while `Ready` is True.
    Stalled,
    /// The broker is obtaining the first token or a token for a changed spec, or waits for a transient problem to end
    /// (kstatus).
    Reconciling,
    /// The known expiry of the refresh token is near.
    GrantExpiringSoon,
    /// The client secret or certificate expires soon.
    ClientCredentialExpiringSoon,
    /// The mail servers accepted a login with the token. Absent without `spec.probe`.
    MailboxAuthorized,
}

/// Retry classes of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Transient: the broker retries after 5 to 300 seconds.
    Transient,
    /// A person must act: the broker retries after 15 minutes to 6 hours, and immediately after any change.
    Permanent,
    /// An object must change: the broker sends no token request until then.
    OnChange,
    /// The reason is no failure: the broker has nothing to retry.
    None,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $retry:ident),+ $(,)?) => {
        /// Reasons of conditions (`metav1.Condition.reason`) and of Events. Each reason has a heading in
        /// `docs/reasons.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name),+ }

        impl Reason {
            /// Every reason, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name of the value in the API.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }

            /// The retry class of this reason.
            pub const fn retry(self) -> Retry {
                match self { $(Self::$name => Retry::$retry),+ }
            }

            /// The reason with this name. `None`: this version does not know the name.
            pub fn parse(name: &str) -> Option<Self> {
                match name { $(stringify!($name) => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// The Secret holds an unexpired token.
    TokenValid => None,
    /// There is no token for the current spec yet. The broker is obtaining one.
    Pending => None,
    /// The token in the Secret has expired.
    Expired => None,
    /// The last token request succeeded.
    RenewalSucceeded => None,
    /// The broker is obtaining a token, or waits for a change that needs no person.
    Progressing => None,
    /// `spec.suspend` is true.
    Suspended => None,
    /// The broker can use the provider.
    ProviderReady => None,

    /// The provider did not respond, or responded with 5xx.
    ProviderUnavailable => Transient,
    /// The provider asked for fewer requests.
    Throttled => Transient,
    /// The provider's response is not a token response.
    MalformedResponse => Transient,
    /// The broker did not accept the provider's certificate.
    TLSFailed => Transient,
    /// The clocks of provider and broker differ.
    ClockSkew => Transient,
    /// The broker could not write the token into the Secret.
    SecretWriteFailed => Transient,

    /// The provider's address is in a range that the broker may not connect to.
    EgressDenied => Permanent,
    /// The provider refused the client's id or secret.
    InvalidClient => Permanent,
    /// The client secret has expired.
    ClientSecretExpired => Permanent,
    /// The provider refused the grant.
    InvalidGrant => Permanent,
    /// Consent for the requested permissions is missing.
    ConsentRequired => Permanent,
    /// The provider refused the scopes.
    InvalidScope => Permanent,
    /// The provider does not trust the federated identity.
    FederationMismatch => Permanent,
    /// The provider refused the request for another reason.
    RequestRefused => Permanent,
    /// A user must sign in.
    AuthorizationRequired => Permanent,

    /// The spec contradicts itself, or cannot work with the provider.
    InvalidSpec => OnChange,
    /// The provider object does not exist.
    ProviderNotFound => OnChange,
    /// The provider object is not usable yet.
    ProviderNotReady => OnChange,
    /// The provider does not allow this use.
    NotAllowed => OnChange,
    /// A referenced Secret or ConfigMap, or its key, does not exist.
    SourceNotFound => OnChange,
    /// A referenced Secret lacks the label that allows the broker to read it.
    SourceNotLabeled => OnChange,
    /// A referenced Secret or ConfigMap has an unusable value.
    SourceInvalid => OnChange,
    /// The target Secret belongs to another owner.
    SecretConflict => OnChange,

    /// The broker could not read the discovery document.
    DiscoveryFailed => Transient,
    /// The discovery document names another issuer.
    IssuerMismatch => Permanent,

    /// The expiry is at most 30 days away.
    Within30d => None,
    /// The expiry is at most 7 days away.
    Within7d => None,
    /// The expiry is at most a day away, or past.
    Within1d => None,

    /// Every mail server of the probe accepted the token.
    LoginSucceeded => None,
    /// Exchange Online refuses SMTP logins of the tenant or of the mailbox.
    SMTPAuthDisabled => None,
    /// The token has no permission for the mailbox.
    MailboxPermissionMissing => None,
    /// A policy of the provider blocks the login.
    LoginBlockedByPolicy => None,
    /// The mail server refuses tokens that expire soon.
    TokenTooShortLived => None,
    /// The mail server refused the token for another reason.
    LoginRefused => None,
    /// The mail server does not offer a login with a token over TLS.
    MailServerUnsupported => None,
    /// The mail server limits connections or requests.
    MailServerThrottled => None,
    /// The broker cannot reach the mail server, or the server does not answer.
    MailServerUnavailable => None,
    /// The connection to the mail server is not secure.
    MailServerTLSFailed => None,
    /// No probe has a result yet.
    ProbePending => None,

    /// Event only: the tokens' lifetime is too short for `spec.renewal.minValidity`.
    LifetimeTooShort => None,
    /// Event only: the token response has no usable lifetime.
    LifetimeUnknown => None,
    /// Event only: the token response has no token type.
    TokenTypeUnknown => None,
    /// Event only: the broker uses another client authentication than before.
    ClientAuthenticationChanged => None,
    /// Event only: the token's claims show that mail servers will refuse it.
    TokenUnsuitable => None,
    /// Event only: the provider did not report who signed in with a device code.
    AccountNotVerified => None,
    /// Event only: the broker uses a new refresh token from the seed's Secret.
    GrantReseeded => None,
    /// Event only: the provider revoked the tokens of a deleted credential.
    GrantRevoked => None,
    /// Event only: the broker could not revoke the tokens of a deleted credential.
    RevocationFailed => None,
    /// Event only: the provider cannot revoke tokens.
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

    /// Whether the reason is a missing object. A user may have applied it together with the object that refers to it,
    /// so it may still arrive.
    pub const fn may_arrive(self) -> bool {
        matches!(self, Self::ProviderNotFound | Self::SourceNotFound | Self::SourceNotLabeled)
    }
}

/// The status of a condition (`metav1.ConditionStatus`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// The condition holds.
    True,
    /// The condition does not hold.
    False,
    /// The broker does not know.
    Unknown,
}

impl ConditionStatus {
    /// The name of the value in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// Returns the condition of type `kind` among `conditions`.
pub fn find(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == kind.as_str())
}

/// Whether the condition of type `kind` is True.
pub fn is_true(conditions: &[Condition], kind: ConditionType) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}

/// Sets the condition of type `kind`. The transition time changes only with the status.
pub fn upsert(
    conditions: &mut Vec<Condition>,
    kind: ConditionType,
    status: impl Into<ConditionStatus>,
    reason: Reason,
    message: String,
    generation: i64,
    now: Timestamp,
) {
    let status = status.into().as_str();
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

/// Removes the condition of type `kind`.
pub fn remove(conditions: &mut Vec<Condition>, kind: ConditionType) {
    conditions.retain(|condition| condition.type_ != kind.as_str());
}

/// Maximum length of a message in characters. `metav1.Condition` allows 32,768, which are too many for a terminal.
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
