//! How a token is obtained: the grants of OAuth.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{reference::KeyRef, schema::*};

/// How a token is obtained: exactly one field.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema, PartialEq)]
#[x_kube(validation = Rule::new(ONE_GRANT_RULE).message(ONE_GRANT_MESSAGE))]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// The client acts for itself (RFC 6749 section 4.4; Microsoft: app-only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_credentials: Option<ClientCredentials>,
    /// A person has signed in elsewhere, and left a refresh token (RFC 6749 section 6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<RefreshToken>,
    /// A person signs in with a code that the broker shows (RFC 8628).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_code: Option<DeviceCode>,
    /// The client vouches for the mailbox with a signed JWT (RFC 7523 section 2.1; Google: domain-wide delegation).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt_bearer: Option<JwtBearer>,
    /// A token of somebody else is exchanged for one for mail (RFC 8693).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_exchange: Option<TokenExchange>,
}

impl Grant {
    /// Which grant it is; the schema sees to it that there is one.
    pub fn kind(&self) -> GrantType {
        let fields = [
            (self.refresh_token.is_some(), GrantType::RefreshToken),
            (self.device_code.is_some(), GrantType::DeviceCode),
            (self.jwt_bearer.is_some(), GrantType::JwtBearer),
            (self.token_exchange.is_some(), GrantType::TokenExchange),
        ];
        fields.iter().find(|(given, _)| *given).map_or(GrantType::ClientCredentials, |(_, kind)| *kind)
    }

    /// The keys of Secrets that it refers to.
    pub fn sources(&self) -> impl Iterator<Item = &KeyRef> {
        let seed = self.refresh_token.iter().map(|grant| &grant.secret_ref);
        seed.chain(self.token_exchange.iter().map(|grant| &grant.subject_token.secret_ref))
    }
}

/// The client credentials grant has no settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct ClientCredentials {}

/// The refresh token grant.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RefreshToken {
    /// Where the first refresh token stands. Those that follow it are kept by the broker, in the Secret
    /// `<credential>-grant`; another one put here takes their place.
    pub secret_ref: KeyRef,
}

/// The device authorization grant has no settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct DeviceCode {}

/// The JWT bearer grant has no settings: the subject is the mailbox.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct JwtBearer {}

/// The token exchange grant.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TokenExchange {
    /// The token that is exchanged.
    pub subject_token: SubjectToken,
    /// What kind of token it is (RFC 8693 section 3).
    #[serde(default = "default_subject_token_type")]
    #[schemars(length(min = 1, max = 512), regex(pattern = TOKEN_TYPE))]
    pub subject_token_type: String,
    /// The service that the new token is for, as the provider calls it (RFC 8693 section 2.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = CLIENT_ID))]
    pub audience: Option<String>,
}

/// Where a subject token stands.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SubjectToken {
    /// The key of a Secret. It is read anew for each exchange.
    pub secret_ref: KeyRef,
}

fn default_subject_token_type() -> String {
    "urn:ietf:params:oauth:token-type:access_token".to_owned()
}

/// The grants, by their field in [`Grant`].
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub enum GrantType {
    /// RFC 6749 section 4.4.
    ClientCredentials,
    /// RFC 6749 section 6.
    RefreshToken,
    /// RFC 8628.
    DeviceCode,
    /// RFC 7523 section 2.1.
    JwtBearer,
    /// RFC 8693.
    TokenExchange,
}

impl GrantType {
    /// The name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientCredentials => "clientCredentials",
            Self::RefreshToken => "refreshToken",
            Self::DeviceCode => "deviceCode",
            Self::JwtBearer => "jwtBearer",
            Self::TokenExchange => "tokenExchange",
        }
    }

    /// Whether a person has signed in for it, so that a refresh token is kept.
    pub const fn is_delegated(self) -> bool {
        matches!(self, Self::RefreshToken | Self::DeviceCode)
    }
}
