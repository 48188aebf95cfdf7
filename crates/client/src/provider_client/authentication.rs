//! The client authentications of a provider, read from the objects to which its spec refers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::{
    api::{
        Reason,
        authentication::{
            AUDIENCE_ISSUER, AUDIENCE_TOKEN_URL, ClientSecret, PrivateKeyJwt, SecretMethod, ServiceAccountKey,
            ServiceAccountToken,
        },
        provider::ProviderSpec,
        provider_object::ProviderKey,
        reference::KeyRef,
    },
    error::Error,
    oauth::{
        ClientAuth,
        assertion::{self, Part, SigningKey},
        client_auth::read_secret,
    },
    policy::{Blocker, advice::Federated, commands::KubectlObject},
    provider_client::{
        connection::subject_of,
        federation::{Federation, Identities},
        resolve_context::ResolveContext,
        sources::{Reach, read_secret_key, read_source},
    },
};

/// One client authentication of a provider's spec.
pub struct Authentication {
    /// The name of the field in the spec, such as `clientSecret`.
    pub method: &'static str,
    /// The index in the list `spec.client.authentication`.
    pub index: usize,
    /// When the client credential expires; `None` if unknown.
    pub expires_at: Option<Time>,
    /// Namespace, name and key of the Secret with the client credential.
    pub source: Option<(String, String, String)>,
    /// The client ID, if the spec has none: from the key file of a service account, or the Google service account.
    pub client_id: Option<String>,
    /// The federated identity; `None` for any other authentication.
    pub federated: Option<Federated>,
    /// The hosts to which the broker may send the content of the Secrets.
    reach: Vec<Reach>,
    /// The client credential, or the reason why the broker cannot use it.
    pub client_credential: Result<ClientCredential, Blocker>,
}

impl Authentication {
    /// Whether this is a client secret for the Authorization header.
    pub fn is_basic(&self, spec: &ProviderSpec) -> bool {
        let entry = spec.client.authentication.get(self.index);
        entry.and_then(|entry| entry.client_secret.as_ref()).is_some_and(|secret| secret.method == SecretMethod::Basic)
    }

    /// Whether the broker may send the client credential to this URL: the owner of the Secret may have restricted the
    /// hosts.
    ///
    /// # Errors
    /// `SourceInvalid`.
    pub fn may_go_to(&self, url: &str) -> Result<(), Blocker> {
        self.reach.iter().try_for_each(|reach| reach.allows(url))
    }

    /// Returns this entry. Blocks the entry if the broker may not send its client credential to the token endpoint.
    pub(super) fn judged(mut self, token_url: &str) -> Self {
        if self.client_credential.is_ok()
            && let Err(blocker) = self.may_go_to(token_url)
        {
            self.client_credential = Err(blocker);
        }
        self
    }

    /// Creates an entry without optional properties.
    pub(super) fn new(
        method: &'static str,
        index: usize,
        client_credential: Result<ClientCredential, Blocker>,
    ) -> Self {
        Self {
            method,
            index,
            expires_at: None,
            source: None,
            client_id: None,
            federated: None,
            reach: vec![],
            client_credential,
        }
    }
}

/// A client credential (RFC 6749 section 2.3).
pub enum ClientCredential {
    /// A credential that stays valid until the provider or an object to which the provider refers changes.
    Fixed(ClientAuth),
    /// An assertion. The broker replaces it before it expires.
    Federated(Federation),
    /// An assertion with which Google signs for this Google service account.
    Impersonated(Federation, String),
}

impl ClientCredential {
    /// Returns the client authentication for a request that the broker sends immediately.
    ///
    /// # Errors
    /// The step that failed in Kubernetes. If the credential can no longer be used, the result is a blocker.
    pub async fn auth(&self, identities: &Identities) -> Result<Result<ClientAuth, Blocker>, Error> {
        match self {
            Self::Fixed(auth) => Ok(Ok(auth.clone())),
            Self::Federated(federation) => {
                Ok(federation.assertion(identities).await?.map(|assertion| assertion.auth()))
            }
            Self::Impersonated(federation, account) => {
                Ok(federation.assertion(identities).await?.map(|assertion| assertion.impersonating(account)))
            }
        }
    }
}

/// Reads all client authentications of a provider. Each entry contains its credential or its blocker.
pub(super) async fn authentication(
    spec: &ProviderSpec,
    key: &ProviderKey,
    guid_is_flaw: bool,
    context: &ResolveContext<'_>,
) -> Result<Vec<Authentication>, Error> {
    if spec.client.authentication.is_empty() {
        return Ok(vec![Authentication::new("none", 0, Ok(ClientCredential::Fixed(ClientAuth::Public)))]);
    }
    let mut entries = vec![];
    for (index, entry) in spec.client.authentication.iter().enumerate() {
        if let Some(file) = &entry.service_account_key {
            entries.push(service_account_key(file, index, context).await?);
        } else if let (Some(token), Some(account)) = (&entry.service_account_token, google_account(spec)) {
            let made = service_account_token(token, index, key, context).await?;
            entries.push(impersonated(made, account));
        } else if spec.client.id.is_empty() {
            let message = format!(
                "spec.client.authentication[{index}] needs the client's id in spec.client.id; only a serviceAccountKey goes \
                 without: name it with `{}`",
                subject_of(key).merge(&json!({"spec": {"client": {"id": "<client id>"}}}))
            );
            entries.push(Authentication::new("none", index, Err(Blocker::new(Reason::InvalidSpec, message))));
        } else if let Some(secret) = &entry.client_secret {
            entries.push(client_secret(secret, index, guid_is_flaw, context).await?);
        } else if let Some(jwt) = &entry.private_key_jwt {
            entries.push(private_key_jwt(jwt, index, spec, context).await?);
        } else if let Some(token) = &entry.service_account_token {
            entries.push(service_account_token(token, index, key, context).await?);
        }
    }
    Ok(entries)
}

/// Returns the Google service account as which the broker acts without a key.
fn google_account(spec: &ProviderSpec) -> Option<&str> {
    spec.google.as_ref()?.service_account.as_deref()
}

/// Converts the entry of a ServiceAccount token: Google signs for `account` in exchange for the token.
fn impersonated(made: Authentication, account: &str) -> Authentication {
    let client_credential = made.client_credential.map(|client_credential| match client_credential {
        ClientCredential::Federated(federation) => ClientCredential::Impersonated(federation, account.to_owned()),
        other => other,
    });
    Authentication { client_credential, client_id: Some(account.to_owned()), ..made }
}

async fn client_secret(
    secret: &ClientSecret,
    index: usize,
    guid_is_flaw: bool,
    context: &ResolveContext<'_>,
) -> Result<Authentication, Error> {
    let (KeyRef { name, key }, home) = (&secret.secret_ref, context.home);
    let raw = read_source(&secret.secret_ref, home, context.kubernetes, context.reads).await?;
    let reach = raw.as_ref().map(|raw| raw.reach.clone()).into_iter().collect();
    let auth = raw.and_then(|raw| {
        let text = read_secret(&raw.value, guid_is_flaw).map_err(|flaw| {
            let command = KubectlObject::secret(home, name).put(key, "<client secret>");
            let message = format!(
                "the client secret in key {key} of the Secret {home}/{name} {flaw}: store the right one with `{command}`"
            );
            Blocker::new(Reason::SourceInvalid, message)
        })?;
        Ok(match secret.method {
            SecretMethod::Post => ClientAuth::SecretPost(text),
            SecretMethod::Basic => ClientAuth::SecretBasic(text),
        })
    });
    let source = Some((home.to_owned(), name.clone(), key.clone()));
    let expires_at = secret.expires_at.clone();
    let client_credential = auth.map(ClientCredential::Fixed);
    Ok(Authentication { expires_at, source, reach, ..Authentication::new("clientSecret", index, client_credential) })
}

async fn private_key_jwt(
    jwt: &PrivateKeyJwt,
    index: usize,
    spec: &ProviderSpec,
    context: &ResolveContext<'_>,
) -> Result<Authentication, Error> {
    let home = context.home;
    let key = read_source(&jwt.key_ref, home, context.kubernetes, context.reads).await?;
    let reach = key.as_ref().map(|key| key.reach.clone()).into_iter().collect();
    let certificate = match &jwt.certificate_ref {
        Some(reference) => Some(read_secret_key(reference, home, context.kubernetes, context.reads).await?),
        None => None,
    };
    let signing = key.and_then(|key| {
        let certificate = certificate.transpose()?;
        let certificate = certificate.as_ref().map(|pem| pem.as_slice());
        SigningKey::read(&key.value, certificate, jwt.algorithm, jwt.key_id.clone()).map_err(|(flaw, part)| {
            let reference = match (part, &jwt.certificate_ref) {
                (Part::Certificate, Some(reference)) => reference,
                (Part::Key, _) | (Part::Certificate, None) => &jwt.key_ref,
            };
            let KeyRef { name, key } = reference;
            let command = KubectlObject::secret(home, name).put(key, "<the file's content>");
            let message = format!("key {key} of the Secret {home}/{name} {flaw}: store the right one with `{command}`");
            Blocker::new(Reason::SourceInvalid, message)
        })
    });
    let expires_at = signing.as_ref().ok().and_then(SigningKey::expires_at).map(Time);
    let audience = audience(jwt, spec);
    let client_credential =
        signing.map(|key| ClientCredential::Fixed(ClientAuth::PrivateKeyJwt(key.with_audience(audience))));
    Ok(Authentication { expires_at, reach, ..Authentication::new("privateKeyJWT", index, client_credential) })
}

/// Returns the `aud` of the spec; `None` means the token endpoint.
fn audience(jwt: &PrivateKeyJwt, spec: &ProviderSpec) -> Option<String> {
    match jwt.audience.as_deref() {
        None | Some(AUDIENCE_TOKEN_URL) => None,
        Some(AUDIENCE_ISSUER) => spec.oidc.as_ref().map(|oidc| oidc.issuer_url.clone()),
        Some(url) => Some(url.to_owned()),
    }
}

async fn service_account_key(
    file: &ServiceAccountKey,
    index: usize,
    context: &ResolveContext<'_>,
) -> Result<Authentication, Error> {
    let (KeyRef { name, key }, home) = (&file.secret_ref, context.home);
    let json = read_source(&file.secret_ref, home, context.kubernetes, context.reads).await?;
    let reach = json.as_ref().map(|json| json.reach.clone()).into_iter().collect();
    let account = json.and_then(|json| {
        assertion::ServiceAccountKey::read(&json.value).map_err(|flaw| {
            let command = KubectlObject::secret(home, name).put(key, "<the JSON file's content>");
            let message = format!("key {key} of the Secret {home}/{name} {flaw}: store the right one with `{command}`");
            Blocker::new(Reason::SourceInvalid, message)
        })
    });
    let client_id = account.as_ref().ok().map(|account| account.client_id.clone());
    let client_credential = account.map(|account| ClientCredential::Fixed(ClientAuth::ServiceAccountKey(account)));
    let source = Some((home.to_owned(), name.clone(), key.clone()));
    Ok(Authentication {
        client_id,
        source,
        reach,
        ..Authentication::new("serviceAccountKey", index, client_credential)
    })
}

/// Requests a first assertion immediately, so that the provider's status reports what prevents it.
async fn service_account_token(
    token: &ServiceAccountToken,
    index: usize,
    key: &ProviderKey,
    context: &ResolveContext<'_>,
) -> Result<Authentication, Error> {
    let federation = Federation::new(token, key, context.home);
    let (federated, client_credential) = match federation.assertion(context.identities).await? {
        Ok(assertion) => (Some(assertion.names), Ok(ClientCredential::Federated(federation))),
        Err(blocker) => (None, Err(blocker)),
    };
    Ok(Authentication { federated, ..Authentication::new("serviceAccountToken", index, client_credential) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assertions_audience_is_the_token_endpoint_the_issuer_or_a_url() {
        let spec = |provider: serde_json::Value| -> ProviderSpec { serde_json::from_value(provider).unwrap() };
        let oidc = spec(json!({"oidc": {"issuerURL": "https://id.example.org"}, "client": {"id": "c"}}));
        let oauth2 = spec(json!({"oauth2": {"tokenURL": "https://id.example.org/token"}, "client": {"id": "c"}}));
        for (spec, named, reported) in [
            (&oidc, None, None),
            (&oidc, Some("TokenURL"), None),
            (&oidc, Some("Issuer"), Some("https://id.example.org")),
            (&oauth2, Some("Issuer"), None),
            (&oauth2, Some("https://outside.example.org"), Some("https://outside.example.org")),
        ] {
            let jwt = serde_json::from_value(json!({"keyRef": {"name": "a", "key": "b"}, "audience": named})).unwrap();
            assert_eq!(audience(&jwt, spec).as_deref(), reported, "{named:?}");
        }
    }
}
