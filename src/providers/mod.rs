//! What is known about providers, as data: endpoints, scopes, mail servers, and what their error codes mean.
//!
//! To add a provider: a field in `api::provider::ProviderSpec`, a file here that makes its [`Profile`], an arm in
//! [`profile`].

pub mod microsoft;

use k8s_openapi::jiff::SignedDuration;

use crate::{
    api::{
        credential::Protocol,
        grant::GrantType,
        provider::{ProviderSpec, Server, Servers},
    },
    oauth::{Claims, Refusal, discovery::Endpoints},
};

/// A provider as its object describes it, presets filled in.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Which preset it is, for metrics.
    pub preset: &'static str,
    /// Where tokens come from.
    pub source: TokenSource,
    /// The mail servers.
    pub servers: Servers,
    /// The grants that work there.
    pub grants: &'static [GrantType],
    /// Its client secrets are never GUIDs, so one that is must be the secret's ID.
    pub guid_is_no_secret: bool,
    /// The scopes of the preset, by grant and protocols.
    pub scopes: fn(&ProviderSpec, GrantType, &[Protocol]) -> Vec<String>,
    /// Why a use of it that the schema allows cannot work.
    pub objection: fn(&ProviderSpec, GrantType, &[String]) -> Option<String>,
    /// What its own error codes add to a refusal.
    pub refine: fn(&mut Refusal, &Case),
    /// What a token says of itself that will not do for these protocols.
    pub unsuitable: fn(&Claims, &ProviderSpec, GrantType, &[Protocol]) -> Option<String>,
    /// A refresh token that is not used for this long ends.
    pub idle_life: Option<SignedDuration>,
}

/// What a refusal was the answer to.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The grant that was asked for.
    pub grant: GrantType,
    /// How long ago the refresh token that was refused was obtained from a person.
    pub grant_age: Option<SignedDuration>,
}

/// Where tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// Endpoints that are known.
    Known(Endpoints),
    /// Endpoints that the issuer's discovery document tells.
    Discovery {
        /// The issuer.
        issuer: String,
    },
}

impl TokenSource {
    /// What a token was issued by, as far as it is known without asking: part of `mailtoken.dev/issued-for`.
    pub fn identity(&self) -> &str {
        match self {
            Self::Known(endpoints) => &endpoints.token_url,
            Self::Discovery { issuer } => issuer,
        }
    }
}

impl Profile {
    /// The server for `protocol`, if one is known.
    pub fn server(&self, protocol: Protocol) -> Option<&Server> {
        match protocol {
            Protocol::Smtp => self.servers.smtp.as_ref(),
            Protocol::Imap => self.servers.imap.as_ref(),
            Protocol::Pop3 => self.servers.pop3.as_ref(),
        }
    }
}

/// The profile of a provider. `None` only for a spec that the schema refuses.
pub fn profile(spec: &ProviderSpec) -> Option<Profile> {
    if let Some(settings) = &spec.microsoft {
        return Some(microsoft::profile(settings, &spec.servers));
    }
    let (preset, source) = match (&spec.oidc, &spec.oauth2) {
        (Some(oidc), None) => ("oidc", TokenSource::Discovery { issuer: oidc.issuer_url.clone() }),
        (None, Some(oauth2)) => (
            "oauth2",
            TokenSource::Known(Endpoints {
                token_url: oauth2.token_url.clone(),
                device_authorization_url: oauth2.device_authorization_url.clone(),
                revocation_url: oauth2.revocation_url.clone(),
                authorization_url: None,
            }),
        ),
        _ => return None,
    };
    Some(Profile {
        preset,
        source,
        servers: spec.servers.clone(),
        grants: &[
            GrantType::ClientCredentials,
            GrantType::RefreshToken,
            GrantType::DeviceCode,
            GrantType::JwtBearer,
            GrantType::TokenExchange,
        ],
        guid_is_no_secret: false,
        scopes: |_, _, _| vec![],
        objection: |_, _, _| None,
        refine: |_, _| {},
        unsuitable: |_, _, _, _| None,
        idle_life: None,
    })
}
