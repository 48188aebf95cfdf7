//! OpenID Connect providers with a discovery document, and OAuth 2.0 servers with explicit endpoints.

use super::{
    Profile, SignIn, TokenSource,
    account::{self, Accounts},
};
use crate::{
    api::{
        authentication::ClientAuthentication,
        grant::GrantType,
        provider::{OAuth2, ProviderSpec},
    },
    oauth::{discovery::Endpoints, token_request::same_origin},
};

/// All grants. Only the server shows whether it has the endpoints for them.
const GRANTS: &[GrantType] = &[
    GrantType::ClientCredentials,
    GrantType::RefreshToken,
    GrantType::DeviceCode,
    GrantType::JwtBearer,
    GrantType::TokenExchange,
];

/// Users' own servers often have plain account names.
const ACCOUNTS: Accounts = Accounts { shared_by_address: false, plain_names: true, canonical: account::fold };

/// Returns the profile of `oidc` or `oauth2`, whichever the spec has.
pub(super) fn profile(spec: &ProviderSpec) -> Option<Profile> {
    let servers = spec.servers.clone();
    match (&spec.oidc, &spec.oauth2) {
        (Some(oidc), None) => {
            let source = TokenSource::Discovery { issuer: oidc.issuer_url.clone() };
            let sign_in = SignIn {
                scopes: &["openid", "email", "offline_access"],
                // Without consent, a provider must ignore offline_access (OpenID Connect Core section 11).
                parameters: &[("prompt", "consent")],
                ..SignIn::default()
            };
            Some(Profile { sign_in, accounts: ACCOUNTS, unsupported, ..Profile::new("oidc", source, servers, GRANTS) })
        }
        (None, Some(oauth2)) => {
            let source = TokenSource::Known(Endpoints {
                token_url: oauth2.token_url.clone(),
                device_authorization_url: oauth2.device_authorization_url.clone(),
                revocation_url: oauth2.revocation_url.clone(),
                authorization_url: oauth2.authorization_url.clone(),
            });
            Some(Profile { accounts: ACCOUNTS, unsupported, ..Profile::new("oauth2", source, servers, GRANTS) })
        }
        _ => None,
    }
}

fn unsupported(spec: &ProviderSpec, grant: GrantType, _: &[String]) -> Option<String> {
    let endpoint = |oauth2: &OAuth2| oauth2.device_authorization_url.is_some();
    let asserts =
        |entry: &ClientAuthentication| entry.private_key_jwt.is_some() || entry.service_account_token.is_some();
    let elsewhere = |oauth2: &OAuth2| {
        let device = oauth2.device_authorization_url.as_ref();
        device.is_some_and(|device| !same_origin(device, &oauth2.token_url))
    };
    let signs = |entry: &ClientAuthentication| entry.private_key_jwt.is_some();
    match grant {
        GrantType::DeviceCode if !spec.oauth2.as_ref().is_none_or(endpoint) => Some(
            "the grant deviceCode needs an endpoint: name it in spec.oauth2.deviceAuthorizationURL of the provider".to_owned(),
        ),
        GrantType::DeviceCode
            if spec.client.authentication.iter().any(asserts) && spec.oauth2.as_ref().is_some_and(elsewhere) =>
        {
            Some(
                "spec.oauth2.deviceAuthorizationURL of the provider has another origin (scheme, host, port) than tokenURL, \
                 and an assertion or ServiceAccount token is sent to the token endpoint's origin only: correct the URL, or \
                 use a clientSecret"
                    .to_owned(),
            )
        }
        GrantType::JwtBearer if !spec.client.authentication.iter().any(signs) => Some(
            "the grant jwtBearer needs a key that signs: name a privateKeyJWT in spec.client.authentication of the provider"
                .to_owned(),
        ),
        _ => None,
    }
}
