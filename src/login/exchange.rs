//! Requests to the provider, with each of the client's authentications in turn, and what a refusal says to the person.

use oauth2::CsrfToken;
use secrecy::SecretString;

use crate::{
    api::{MailCredential, Reason, grant::GrantType, provider_object::ProviderObject},
    clock::Clock,
    error::describe_step,
    idp::Exchange,
    login::{AGAIN, LoginError},
    oauth::{
        ClientAuth, GrantProof, Refusal, TokenRequest, grant::RequestError, read_token_response, token::Rotated,
        token_request,
    },
    policy::{
        Blocker,
        advice::{self, AdviceContext},
        checks,
        commands::{self, KubectlObject},
    },
    providers::{Profile, RefusalContext},
    reconcile::provider_client::{
        authentication::Authentication, connection::transport, federation::Identities,
        resolved_provider::ResolvedProvider, try_each::TryEach,
    },
};

/// What a sign-in is made with.
pub(super) struct Attempt<'a> {
    /// Whom it is for.
    pub credential: &'a MailCredential,
    /// The provider.
    pub object: &'a ProviderObject,
    /// What is known about it.
    pub profile: &'a Profile,
    /// Its endpoints and secrets.
    pub resolved: &'a ResolvedProvider,
    /// Where ServiceAccount tokens come from.
    pub identities: &'a Identities,
    /// Where the objects that the provider refers to stand.
    pub home: String,
    /// What to ask for.
    pub scopes: Vec<String>,
    /// The time.
    pub clock: Clock,
}

/// What a sign-in brought.
pub(super) struct Granted {
    /// For the seed.
    pub refresh_token: SecretString,
    /// Who signed in, as far as the provider says.
    pub names: Vec<String>,
}

/// A request that was refused, and with which authentication.
pub(super) struct Refused<'a> {
    pub refusal: Refusal,
    pub entry: Option<&'a Authentication>,
}

impl<'a> Attempt<'a> {
    /// The provider in words.
    pub fn provider(&self) -> String {
        checks::provider_words(self.credential)
    }

    /// The client's id.
    pub fn client_id(&self) -> &str {
        &self.object.spec().client.id
    }

    /// Asks with each authentication, as long as the client is what is refused. A code is still good after that.
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
                let what = "the client has no authentication that can be used";
                Refused { refusal: Refusal::new(Reason::InvalidClient, what), entry: None }
            }
        })
    }

    /// What proves the client; a token of a ServiceAccount is made anew.
    pub async fn proof(&self, entry: &Authentication) -> Result<ClientAuth, Refusal> {
        let blocked = |blocker: &Blocker| Refusal::new(blocker.reason, blocker.message.clone());
        let client_credential = entry.client_credential.as_ref().map_err(blocked)?;
        match client_credential.auth(self.identities).await {
            Ok(auth) => auth.map_err(|blocker| blocked(&blocker)),
            Err(error) => Err(Refusal::new(Reason::ProviderUnavailable, describe_step(&error))),
        }
    }

    /// One token request.
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
                "the provider gave an access token, but no refresh token with it: the client has to be allowed offline \
                 access at the provider",
            ));
        };
        Ok(Granted { refresh_token: rotated.refresh_token, names: answer.names })
    }

    /// Sends a request.
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

    /// With what the provider's own codes say.
    pub fn refined(&self, mut refusal: Refusal, auth: &ClientAuth) -> Refusal {
        (self.profile.refine)(&mut refusal, &RefusalContext::new(GrantType::RefreshToken, auth, None));
        refusal
    }

    /// The refusal, with what mends it.
    pub fn explain(&self, refused: Refused<'_>) -> LoginError {
        let Refused { refusal, entry } = refused;
        let declined = matches!(
            refusal.error.as_ref().map(|error| error.as_str()),
            Some("access_denied" | "authorization_declined")
        );
        let again = "run the command again";
        LoginError(match refusal.reason {
            _ if declined && refusal.advice.is_none() => format!(
                "{}: the sign-in was declined. To sign in after all, {again}, and consent as {}",
                refusal.what,
                self.credential.spec.mailbox.user()
            ),
            Reason::ProviderUnavailable | Reason::Throttled | Reason::MalformedResponse => {
                format!("{}: nothing was written; {again} in a while", refusal.what)
            }
            // What is advised without a code of the provider's is about refresh tokens.
            Reason::InvalidGrant if refusal.provider_code.is_none() => {
                format!("{}: the provider does not accept what the sign-in brought; {again}", refusal.what)
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

/// 128 random bits, for an assertion's `jti`.
pub(super) fn unique() -> String {
    CsrfToken::new_random().into_secret()
}
