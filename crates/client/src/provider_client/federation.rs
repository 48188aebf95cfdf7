//! Kubernetes ServiceAccounts as the client's identity: their tokens are the assertions (RFC 7523 section 2.2).
//!
//! The broker requests such a token for one audience, and never for an audience of the API server: a provider that
//! receives that token could log in to Kubernetes with it (KEDA's CVE-2026-77524).

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use k8s_openapi::{
    api::{
        authentication::v1::{SelfSubjectReview, TokenRequest, TokenRequestSpec},
        core::v1::ServiceAccount,
    },
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt as _, api::PostParams};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::{
    api::{Reason, authentication::ServiceAccountToken, credential::ProviderKind, names, provider_object::ProviderKey},
    clock::Clock,
    error::{Error, describe},
    kubernetes::Connection,
    oauth::{Claims, ClientAuth, Impersonation},
    policy::{Blocker, advice::Federated, commands::word},
    provider_client::connection::subject_of,
};

/// The lifetime of requested tokens, in seconds: the shortest that Kubernetes issues. The broker uses a token for the first
/// half of its lifetime, so it stops using the token of a deleted ServiceAccount within five minutes.
const LIFETIME_SECONDS: i64 = 600;
/// Maximum size of a token file, in bytes.
const TOKEN_MAX: u64 = 64 * 1024;
/// The default names of API servers, without scheme, port and path.
const API_SERVER: [&str; 3] = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];

/// The sources of ServiceAccount tokens: the broker's own token file, and the API server.
pub struct Identities {
    /// The value of `--identity-token-file`: the file with the broker's own token.
    token_file: Option<PathBuf>,
    /// The value of `--allow-service-account-ref`: whether providers may name ServiceAccounts.
    may_refer: bool,
    /// The client for the API server, which issues the tokens.
    kubernetes: Client,
    /// The API server's address, for calls whose only credential is a token.
    connection: Connection,
    clock: Clock,
}

impl Identities {
    /// Creates the sources. `connection` is the connection of `kubernetes`. Without `token_file` and `may_refer`, the
    /// broker has no identity.
    pub fn new(
        kubernetes: Client,
        connection: &Connection,
        clock: Clock,
        token_file: Option<PathBuf>,
        may_refer: bool,
    ) -> Self {
        Self { token_file, may_refer, kubernetes, connection: connection.clone(), clock }
    }

    /// Whether the API server accepts `token` as a login, regardless of the names of its audiences. The request carries
    /// the token itself, so the broker needs no permission for it.
    async fn is_login(&self, token: &SecretString) -> Result<bool, Error> {
        let bearer = self.connection.as_bearer(Some(token.clone()));
        let ask = async {
            let reviews: Api<SelfSubjectReview> = Api::all(bearer.client()?);
            reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await
        };
        match ask.await {
            Err(kube::Error::Api(status)) if status.code == 401 => Ok(false),
            // Status 403 means authenticated but not authorized: the API server accepted the token.
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(true),
            Ok(_) => Ok(true),
            Err(source) => Err(Error::ReviewToken { source }),
        }
    }
}

/// An identity that the broker presents to a provider.
pub struct Federation {
    provider: ProviderKey,
    audience: String,
    /// Namespace and name of the ServiceAccount; `None` means the broker's own identity.
    account: Option<(String, String)>,
    /// The last assertion that the broker presented.
    last: Mutex<Option<Assertion>>,
}

/// A token that passed the checks for the provider.
#[derive(Clone)]
pub struct Assertion {
    token: SecretString,
    /// The issuer, subject and audience that the token names.
    pub names: Federated,
    /// The time until which the broker requests no other token; `None` for the broker's own token, which the broker
    /// reads from the file each time.
    fresh_until: Option<Timestamp>,
}

impl Assertion {
    /// Returns the assertion as a client authentication.
    pub fn auth(self) -> ClientAuth {
        ClientAuth::Assertion(self.token)
    }

    /// Returns the client authentication with which Google signs for the service account `account`.
    pub fn impersonating(self, account: &str) -> ClientAuth {
        ClientAuth::Impersonation(Impersonation {
            token: self.token,
            audience: self.names.audience,
            account: account.to_owned(),
        })
    }
}

impl Federation {
    /// Creates the identity that a provider's spec requires. `home` is the namespace of the objects that the provider
    /// refers to.
    pub fn new(spec: &ServiceAccountToken, provider: &ProviderKey, home: &str) -> Self {
        Self {
            provider: provider.clone(),
            audience: spec.audience.clone(),
            account: spec.service_account_ref.as_ref().map(|account| (home.to_owned(), account.name.clone())),
            last: Mutex::default(),
        }
    }

    /// Returns an assertion for a request that the broker sends immediately.
    ///
    /// # Errors
    /// The step that failed in Kubernetes. If no assertion is allowed or available, the result is a blocker.
    pub async fn assertion(&self, identities: &Identities) -> Result<Result<Assertion, Blocker>, Error> {
        if is_api_server(&self.audience) {
            return Ok(Err(self.login()));
        }
        let mut last = self.last.lock().await;
        let found = match &self.account {
            None => self.own(last.as_ref(), identities),
            Some((namespace, name)) => self.requested(last.as_ref(), namespace, name, identities).await?,
        };
        let assertion = match found {
            Ok(assertion) => assertion,
            Err(blocker) => return Ok(Err(blocker)),
        };
        let known = last.as_ref().is_some_and(|last| last.token.expose_secret() == assertion.token.expose_secret());
        if !known && identities.is_login(&assertion.token).await? {
            return Ok(Err(self.login()));
        }
        *last = Some(assertion.clone());
        Ok(Ok(assertion))
    }

    /// Reads the broker's own token from its file. The kubelet replaces the token before it expires.
    fn own(&self, last: Option<&Assertion>, identities: &Identities) -> Result<Assertion, Blocker> {
        let provider = &self.provider;
        if self.provider.kind == ProviderKind::MailProvider {
            let message = format!(
                "the {provider} requests the broker's own identity, which only a ClusterMailProvider may use: name a \
                 ServiceAccount of its namespace in serviceAccountToken.serviceAccountRef, with `{}`",
                subject_of(&self.provider).command("edit")
            );
            return Err(Blocker::new(Reason::NotAllowed, message));
        }
        let Some(file) = &identities.token_file else {
            let message = format!(
                "the {provider} requests the broker's own identity, and the broker has none: start it with \
                 `--identity-token-file=<path>` (chart: identityToken.audience={})",
                self.audience
            );
            return Err(Blocker::new(Reason::InvalidSpec, message));
        };
        let token = read_token(file).map_err(|error| {
            let message = format!(
                "the broker's identity token cannot be read from {} (--identity-token-file): {error}",
                file.display()
            );
            Blocker::new(Reason::SourceNotFound, message)
        })?;
        if let Some(last) = last.filter(|last| last.token.expose_secret() == token.expose_secret()) {
            return Ok(last.clone());
        }
        let names = self.names(&token).map_err(|audiences| match audiences {
            None => Blocker::new(
                Reason::SourceInvalid,
                format!("the content of {} (--identity-token-file) is not a ServiceAccount token", file.display()),
            ),
            Some(audiences) => Blocker::new(
                Reason::InvalidSpec,
                format!(
                    "the {provider} requests an assertion for the audience {}, and the broker's identity token is for \
                     {audiences}: the two must be the same; correct the audience with `{}`, or give the broker the other \
                     token (chart: identityToken.audience)",
                    self.audience,
                    subject_of(&self.provider).command("edit")
                ),
            ),
        })?;
        Ok(Assertion { token, names, fresh_until: None })
    }

    /// Requests a token of the ServiceAccount from the API server.
    async fn requested(
        &self,
        last: Option<&Assertion>,
        namespace: &str,
        name: &str,
        identities: &Identities,
    ) -> Result<Result<Assertion, Blocker>, Error> {
        if !identities.may_refer {
            let message = format!(
                "the {} names the ServiceAccount {namespace}/{name}, and the broker may not use ServiceAccounts: \
                 start it with `--allow-service-account-ref` (chart: allowServiceAccountRef=true)",
                self.provider
            );
            return Ok(Err(Blocker::new(Reason::NotAllowed, message)));
        }
        let now = identities.clock.now();
        if let Some(last) = last.filter(|last| last.fresh_until.is_some_and(|until| now < until)) {
            return Ok(Ok(last.clone()));
        }
        let accounts: Api<ServiceAccount> = Api::namespaced(identities.kubernetes.clone(), namespace);
        let account = match accounts.get_metadata(name).await {
            Ok(account) => account,
            Err(error) => return self.not_made(namespace, name, "get for serviceaccounts", error).map(Err),
        };
        let listed = account.annotations().get(names::ANNOTATION_ALLOWED_AUDIENCES);
        if let Err(blocker) = self.consent(namespace, name, listed.map(String::as_str)) {
            return Ok(Err(blocker));
        }
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec![self.audience.clone()],
                expiration_seconds: Some(LIFETIME_SECONDS),
                bound_object_ref: None,
            },
            ..TokenRequest::default()
        };
        let made = match accounts.create_token_request(name, &PostParams::default(), &request).await {
            Ok(made) => made.status.map(|made| (SecretString::from(made.token), made.expiration_timestamp.0)),
            Err(error) => {
                return self.not_made(namespace, name, "create for serviceaccounts/token", error).map(Err);
            }
        };
        let Some((names, token, end)) = made.and_then(|(token, end)| Some((self.names(&token).ok()?, token, end)))
        else {
            let message = format!(
                "the token that the API server issued for the ServiceAccount {namespace}/{name} is not for the audience \
                 {} alone: the broker does not use it",
                self.audience
            );
            return Ok(Err(Blocker::new(Reason::NotAllowed, message)));
        };
        Ok(Ok(Assertion { token, names, fresh_until: Some(now + end.duration_since(now) / 2) }))
    }

    /// Checks that the ServiceAccount's annotation names the audience. Otherwise a user who may write a MailProvider
    /// could act as any account of the namespace, wherever that account is trusted.
    fn consent(&self, namespace: &str, name: &str, listed: Option<&str>) -> Result<(), Blocker> {
        let audiences = || listed.unwrap_or_default().split(',').map(str::trim).filter(|audience| !audience.is_empty());
        if audiences().any(|audience| audience == self.audience) {
            return Ok(());
        }
        let all = audiences().chain([self.audience.as_str()]).collect::<Vec<_>>().join(",");
        let message = format!(
            "the ServiceAccount {namespace}/{name} does not allow tokens for the audience {}: its owner allows them with \
             `kubectl -n {namespace} annotate serviceaccount {name} --overwrite {}={}`",
            self.audience,
            names::ANNOTATION_ALLOWED_AUDIENCES,
            word(&all)
        );
        Err(Blocker::new(Reason::NotAllowed, message))
    }

    fn not_made(&self, namespace: &str, name: &str, right: &str, error: kube::Error) -> Result<Blocker, Error> {
        let (reason, message) = match &error {
            kube::Error::Api(status) if status.code == 404 => (
                Reason::SourceNotFound,
                format!(
                    "the ServiceAccount {namespace}/{name} does not exist: create it with `kubectl -n {namespace} create \
                     serviceaccount {name}`"
                ),
            ),
            kube::Error::Api(status) if status.code == 403 => (
                Reason::NotAllowed,
                format!(
                    "Kubernetes does not allow the broker to request tokens of the ServiceAccount {namespace}/{name}; it needs \
                     the verb {right} there (chart: allowServiceAccountRef=true): {}",
                    describe(&error)
                ),
            ),
            _ => return Err(Error::RequestToken { name: format!("{namespace}/{name}"), source: error }),
        };
        Ok(Blocker::new(reason, message))
    }

    /// Returns the identity in a token whose only audience is the provider's. The error contains the other audiences,
    /// if the token is a JWT.
    fn names(&self, token: &SecretString) -> Result<Federated, Option<String>> {
        let claims = Claims::read(token.expose_secret()).ok_or(None)?;
        let (Some(issuer), Some(subject)) = (claims.text("iss"), claims.text("sub")) else { return Err(None) };
        if claims.words("aud") != [self.audience.as_str()] {
            return Err(Some(claims.words("aud").join(", ")));
        }
        Ok(Federated { issuer: issuer.to_owned(), subject: subject.to_owned(), audience: self.audience.clone() })
    }

    fn login(&self) -> Blocker {
        let message = format!(
            "the {} requests an assertion for the audience {}, which is the API server's own: the provider could log in \
             to Kubernetes with it. Name the audience that the provider wants, with `{}`",
            self.provider,
            self.audience,
            subject_of(&self.provider).command("edit")
        );
        Blocker::new(Reason::NotAllowed, message)
    }
}

/// Whether an audience is one of the default names of API servers.
fn is_api_server(audience: &str) -> bool {
    let audience = audience.to_ascii_lowercase();
    let host = audience.split_once("://").map_or(audience.as_str(), |(_, rest)| rest);
    let host = host.split(['/', ':']).next().unwrap_or_default();
    API_SERVER.contains(&host) || host.starts_with("kubernetes.default.svc.")
}

fn read_token(file: &Path) -> io::Result<SecretString> {
    let mut text = Zeroizing::new(String::new());
    File::open(file)?.take(TOKEN_MAX).read_to_string(&mut text)?;
    Ok(text.trim().into())
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    use mailtoken_core::lacks;
    use serde_json::{Value, json};

    use super::*;

    lacks!(std::fmt::Debug: Assertion, Federation);
    lacks!(std::fmt::Display: Assertion, Federation);
    lacks!(serde::Serialize: Assertion, Federation);

    fn token(claims: &Value) -> SecretString {
        format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string())).into()
    }

    fn federation() -> Federation {
        let spec = ServiceAccountToken { audience: "api://exchange".into(), service_account_ref: None };
        let provider =
            ProviderKey { kind: ProviderKind::ClusterMailProvider, namespace: String::new(), name: "m365".into() };
        Federation::new(&spec, &provider, "mail")
    }

    #[test]
    fn the_names_of_the_api_server_are_known_in_every_spelling() {
        for audience in [
            "https://kubernetes.default.svc",
            "https://kubernetes.default.svc/",
            "https://kubernetes.default.svc.cluster.local",
            "https://kubernetes.default.svc.example.org:443",
            "HTTPS://Kubernetes.Default.SVC",
            "kubernetes.default.svc",
            "kubernetes.default",
            "kubernetes",
        ] {
            assert!(is_api_server(audience), "{audience}");
        }
        for audience in ["api://AzureADTokenExchange", "https://id.example.org", "kubernetes-mail", "mailer"] {
            assert!(!is_api_server(audience), "{audience}");
        }
    }

    #[test]
    fn a_service_account_names_its_allowed_audiences() {
        for listed in ["api://exchange", "a, api://exchange ,b", ",api://exchange,"] {
            assert_eq!(federation().consent("shop", "mailer", Some(listed)), Ok(()), "{listed}");
        }
        for (listed, value) in [
            (None, "api://exchange"),
            (Some(""), "api://exchange"),
            (Some("api://exchange2"), "'api://exchange2,api://exchange'"),
            (Some("API://EXCHANGE"), "'API://EXCHANGE,api://exchange'"),
            (Some("*"), "'*,api://exchange'"),
        ] {
            let blocker = federation().consent("shop", "mailer", listed).unwrap_err();
            assert_eq!(blocker.reason, Reason::NotAllowed);
            let command = format!(
                "`kubectl -n shop annotate serviceaccount mailer --overwrite mailtoken.dev/allowed-audiences={value}`"
            );
            assert!(blocker.message.ends_with(&command), "{}", blocker.message);
        }
    }

    #[test]
    fn an_assertion_is_for_the_asked_audience_and_for_no_other_besides() {
        let named = |audience: Value| federation().names(&token(&json!({"iss": "i", "sub": "s", "aud": audience})));
        let federated = named(json!(["api://exchange"])).unwrap();
        assert_eq!((federated.issuer.as_str(), federated.subject.as_str()), ("i", "s"));
        assert!(named(json!("api://exchange")).is_ok());
        assert_eq!(named(json!(["api://exchange", "https://api"])), Err(Some("api://exchange, https://api".into())));
        assert_eq!(named(json!([])), Err(Some(String::new())));
        assert_eq!(federation().names(&"opaque".into()), Err(None));
    }
}
