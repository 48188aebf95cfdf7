//! The OAuth grants by which the broker obtains tokens.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{reference::KeyRef, schema::*};

/// The grant of a credential, with exactly one field.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema, PartialEq)]
#[x_kube(validation = Rule::new(ONE_GRANT_RULE).message(ONE_GRANT_MESSAGE))]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// clientCredentials is the grant in which the client acts for itself (RFC 6749 section 4.4; Microsoft: app-only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_credentials: Option<ClientCredentials>,
    /// refreshToken is the grant for a user who signed in before, with the refresh token in a Secret (RFC 6749 section 6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<RefreshToken>,
    /// deviceCode is the grant in which a user signs in with a code that the broker shows (RFC 8628).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_code: Option<DeviceCode>,
    /// jwtBearer is the grant in which the client signs a JWT for the mailbox (RFC 7523 section 2.1; Google: domain-wide delegation).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt_bearer: Option<JwtBearer>,
    /// tokenExchange is the grant in which the broker exchanges another service's token for a mail token (RFC 8693).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_exchange: Option<TokenExchange>,
}

impl Grant {
    /// The type of the grant. The schema requires exactly one field.
    pub fn kind(&self) -> GrantType {
        let fields = [
            (self.refresh_token.is_some(), GrantType::RefreshToken),
            (self.device_code.is_some(), GrantType::DeviceCode),
            (self.jwt_bearer.is_some(), GrantType::JwtBearer),
            (self.token_exchange.is_some(), GrantType::TokenExchange),
        ];
        fields.iter().find(|(given, _)| *given).map_or(GrantType::ClientCredentials, |(_, kind)| *kind)
    }

    /// The keys of Secrets that the grant refers to.
    pub fn sources(&self) -> impl Iterator<Item = &KeyRef> {
        let seed = self.refresh_token.iter().map(|grant| &grant.secret_ref);
        seed.chain(self.token_exchange.iter().map(|grant| &grant.subject_token.secret_ref))
    }
}

/// The client credentials grant has no settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct ClientCredentials {}

/// Settings of the refresh token grant.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RefreshToken {
    /// secretRef names the Secret and key with the first refresh token. The broker never changes this Secret. It stores the
    /// refresh tokens that the provider returns later in the Secret `<credential>-grant`. A new refresh token in
    /// this Secret replaces the stored one.
    pub secret_ref: KeyRef,
}

/// The device authorization grant has no settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct DeviceCode {}

/// The JWT bearer grant has no settings: the subject is the mailbox.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct JwtBearer {}

/// Settings of the token exchange grant.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TokenExchange {
    /// subjectToken is the token to exchange.
    pub subject_token: SubjectToken,
    /// subjectTokenType is the type of the subject token (RFC 8693 section 3). Defaults to
    /// `urn:ietf:params:oauth:token-type:access_token`.
    #[serde(default = "default_subject_token_type")]
    #[schemars(length(min = 1, max = 512), regex(pattern = TOKEN_TYPE))]
    pub subject_token_type: String,
    /// audience is the provider's name of the service that the new token is for (RFC 8693 section 2.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = CLIENT_ID))]
    pub audience: Option<String>,
}

/// The source of a subject token.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SubjectToken {
    /// secretRef names the Secret and key with the subject token. The broker reads it for each exchange.
    pub secret_ref: KeyRef,
}

fn default_subject_token_type() -> String {
    "urn:ietf:params:oauth:token-type:access_token".to_owned()
}

/// The types of grants, named by their field in `spec.grant`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub enum GrantType {
    /// The client credentials grant (RFC 6749 section 4.4).
    ClientCredentials,
    /// The refresh token grant (RFC 6749 section 6).
    RefreshToken,
    /// The device authorization grant (RFC 8628).
    DeviceCode,
    /// The JWT bearer grant (RFC 7523 section 2.1).
    JwtBearer,
    /// The token exchange grant (RFC 8693).
    TokenExchange,
}

impl GrantType {
    /// The grant's name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientCredentials => "clientCredentials",
            Self::RefreshToken => "refreshToken",
            Self::DeviceCode => "deviceCode",
            Self::JwtBearer => "jwtBearer",
            Self::TokenExchange => "tokenExchange",
        }
    }

    /// Whether a user signs in for this grant, so that the broker stores a refresh token.
    pub const fn is_delegated(self) -> bool {
        matches!(self, Self::RefreshToken | Self::DeviceCode)
    }
}
