//! Sends requests to the provider with each client authentication in turn, and explains a refused request.

use oauth2::CsrfToken;
use secrecy::SecretString;

use crate::{
    api::{MailCredential, Reason, grant::GrantType, provider_object::ProviderObject},
    clock::Clock,
    error::describe_step,
    idp::Exchange,
    login::{AGAIN, LoginError},
    oauth::{
        ClientAuth, GrantProof, Refusal, TokenRequest, read_token_response, token::Rotated, token_request,
        token_request::RequestError,
    },
    policy::{
        Blocker,
        advice::{self, AdviceContext},
        checks,
        commands::{self, KubectlObject},
    },
    provider_client::{
        authentication::Authentication, connection::transport, federation::Identities,
        resolved_provider::ResolvedProvider, try_each::TryEach,
    },
    providers::{Profile, RefusalContext},
};

/// One sign-in: the credential, the provider and the scopes.
pub(super) struct Attempt<'a> {
    /// The credential that gets the refresh token.
    pub credential: &'a MailCredential,
    /// The object that describes the provider.
    pub object: &'a ProviderObject,
    /// The properties of the provider's preset.
    pub profile: &'a Profile,
    /// The provider's endpoints and client credentials.
    pub resolved: &'a ResolvedProvider,
    /// The client that requests ServiceAccount tokens.
    pub identities: &'a Identities,
    /// The namespace of the objects that the provider refers to.
    pub home: String,
    /// The scopes to request.
    pub scopes: Vec<String>,
    /// The clock for assertions and expiry times.
    pub clock: Clock,
}

/// The result of a successful sign-in.
pub(super) struct Granted {
    /// The refresh token, which becomes the seed.
    pub refresh_token: SecretString,
    /// The names of the account that signed in, if the provider reports them.
    pub names: Vec<String>,
}

/// A refused request, with the client authentication of the request.
pub(super) struct Refused<'a> {
    pub refusal: Refusal,
    pub entry: Option<&'a Authentication>,
}

impl<'a> Attempt<'a> {
    /// Returns the provider's kind and name, for messages.
    pub fn provider(&self) -> String {
        checks::provider_words(self.credential)
    }

    /// Returns the client ID at the provider.
    pub fn client_id(&self) -> &str {
        &self.object.spec().client.id
    }

    /// Sends a request with each client authentication, until the provider accepts the client. An authorization code
    /// stays valid after the provider has refused the client.
    pub async fn in_turn<T>(
        &self,
        ask: impl AsyncFn(&ClientAuth) -> Result<T, Refusal>,
    ) -> Result<(T, &'a Authentication), Refused<'a>> {
        let mut each = TryEach::new(&self.resolved.authentication, 0);
        while let Some(entry) = each.next_entry() {
            let auth = match self.proof(entry).await {
                Ok(auth) => auth,
                Err(refusal) => {
                    each.unusable(entry, refusal);
                    continue;
                }
            };
            match ask(&auth).await {
                Ok(answer) => return Ok((answer, entry)),
                Err(refusal) => each.refused(entry, refusal),
            }
        }
        Err(match each.into_refusal() {
            Some((refusal, entry)) => Refused { refusal, entry: Some(entry) },
            None => {
                let what = "the client has no usable authentication";
                Refused { refusal: Refusal::new(Reason::InvalidClient, what), entry: None }
            }
        })
    }

    /// Builds the client authentication. Requests a new token if the authentication is a ServiceAccount token.
    pub async fn proof(&self, entry: &Authentication) -> Result<ClientAuth, Refusal> {
        let blocked = |blocker: &Blocker| Refusal::new(blocker.reason, blocker.message.clone());
        let client_credential = entry.client_credential.as_ref().map_err(blocked)?;
        match client_credential.auth(self.identities).await {
            Ok(auth) => auth.map_err(|blocker| blocked(&blocker)),
            Err(error) => Err(Refusal::new(Reason::ProviderUnavailable, describe_step(&error))),
        }
    }

    /// Sends one token request, and reads the refresh token from the response.
    pub async fn token(&self, auth: &ClientAuth, proof: GrantProof<'_>) -> Result<Granted, Refusal> {
        let unique = unique();
        let request = TokenRequest {
            token_url: &self.resolved.endpoints.token_url,
            client_id: self.client_id(),
            auth,
            grant: proof,
            scopes: &self.scopes,
            parameters: &self.object.spec().client.parameters,
            unique: &unique,
            now: self.clock.now(),
        };
        let exchange = self.send(token_request(&request)).await?;
        let rotated = Rotated::read(&exchange.response, exchange.sent_at);
        let answer = read_token_response(&exchange.response, exchange.sent_at, &self.scopes)
            .map_err(|refusal| self.refined(refusal, auth))?;
        let Some(rotated) = rotated else {
            return Err(Refusal::new(
                Reason::InvalidScope,
                "the provider issued an access token, but no refresh token with it: allow offline access for the client at \
                 the provider",
            ));
        };
        Ok(Granted { refresh_token: rotated.refresh_token, names: answer.names })
    }

    /// Sends a request to the provider, and converts transport errors to a refusal.
    pub async fn send(&self, request: Result<http::Request<Vec<u8>>, RequestError>) -> Result<Exchange, Refusal> {
        let request = request.map_err(|error| {
            let elsewhere = matches!(error, RequestError::OtherOrigin { .. });
            let reason = if elsewhere { Reason::InvalidSpec } else { Reason::RequestRefused };
            Refusal::new(reason, error.to_string())
        })?;
        self.resolved.client.send(request, || true).await.map_err(|error| {
            let (reason, message) = transport(&error, self.object, &self.home, AGAIN);
            Refusal::new(reason, message)
        })
    }

    /// Adds the meaning of the provider's own error codes to a refusal.
    pub fn refined(&self, mut refusal: Refusal, auth: &ClientAuth) -> Refusal {
        (self.profile.refine)(&mut refusal, &RefusalContext::new(GrantType::RefreshToken, auth, None));
        refusal
    }

    /// Returns the message for a refusal, with the command that fixes it.
    pub fn explain(&self, refused: Refused<'_>) -> LoginError {
        let Refused { refusal, entry } = refused;
        let declined = matches!(
            refusal.error.as_ref().map(|error| error.as_str()),
            Some("access_denied" | "authorization_declined")
        );
        let again = "run the command again";
        LoginError(match refusal.reason {
            _ if declined && refusal.advice.is_none() => format!(
                "{}: the sign-in was declined. To sign in, {again}, and consent as {}",
                refusal.what,
                self.credential.spec.mailbox.user()
            ),
            Reason::ProviderUnavailable | Reason::Throttled | Reason::MalformedResponse => {
                format!("{}: nothing was written; {again} in a while", refusal.what)
            }
            // If the provider sent no code, `advice` would assume a refresh token.
            Reason::InvalidGrant if refusal.provider_code.is_none() => {
                format!("{}: the provider does not accept the code from the sign-in; {again}", refusal.what)
            }
            _ => advice::explain(&refusal, &self.advice_context(entry)),
        })
    }

    fn advice_context(&self, entry: Option<&Authentication>) -> AdviceContext {
        let subject = KubectlObject::provider_of(self.credential);
        AdviceContext {
            provider: self.provider(),
            scopes: subject.clone(),
            subject,
            client_id: self.client_id().to_owned(),
            secret: entry.and_then(|entry| entry.source.clone()),
            basic: entry.is_some_and(|entry| entry.is_basic(self.object.spec())),
            grant: GrantType::RefreshToken,
            credential: KubectlObject::credential(self.credential),
            mailbox: self.credential.spec.mailbox.user().to_owned(),
            sign_in: commands::sign_in(self.credential),
            federated: entry.and_then(|entry| entry.federated.clone()),
            again: AGAIN,
        }
    }
}

/// Returns a random text of 128 bits, for the `jti` of an assertion and for the path of the local page.
pub(super) fn unique() -> String {
    CsrfToken::new_random().into_secret()
}
