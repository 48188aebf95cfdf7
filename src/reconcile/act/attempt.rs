//! One request to a provider: the broker signs it, sends it while this replica leads, and reads the response.

use std::sync::Arc;

use kube::ResourceExt as _;

use crate::{
    api::{MailCredential, Reason, provider_object::ProviderObject, status::ClientStatus},
    error::Error,
    idp::{ApprovedTarget, Exchange, TransportError},
    metrics::RequestTimer,
    oauth::{
        ClientAuth, GrantProof, Refusal, TokenAnswer, TokenRequest, discovery::Endpoints, read_token_response,
        token::TokenFingerprint, token_request, token_request::RequestError,
    },
    policy::{
        RequestKind, advice, checks,
        device_poll::{self, PollOutcome},
        grant::RefreshGrant,
        outcome::Outcome,
    },
    provider_client::{authentication::Authentication, connection::transport, resolved_provider::ResolvedProvider},
    providers::{Profile, RefusalContext, TokenSource},
    reconcile::{
        act::{activity::Permit, refusals::request_refusal, sign},
        context::Context,
    },
};

/// The result of a step of an attempt. `Err(None)`: the attempt ends without an outcome, and the credential is reconciled
/// again.
pub(super) type StepResult<T = Outcome> = Result<T, Option<Refusal>>;

/// Returns the endpoint that receives a request of this kind.
pub(super) fn endpoint(kind: RequestKind) -> fn(&Endpoints) -> Option<&str> {
    match kind {
        RequestKind::Token | RequestKind::Poll => |endpoints| Some(&endpoints.token_url),
        RequestKind::SignIn => |endpoints| endpoints.device_authorization_url.as_deref(),
    }
}

/// The inputs of a credential's request.
pub(super) struct Attempt {
    /// The right to have this request in flight.
    pub(super) permit: Permit,
    pub(super) credential: Arc<MailCredential>,
    pub(super) grant: Option<RefreshGrant>,
    /// The fingerprint of the token in the target Secret.
    pub(super) published: Option<TokenFingerprint>,
    pub(super) object: ProviderObject,
    pub(super) profile: Profile,
    pub(super) resolved: Arc<ResolvedProvider>,
    pub(super) scopes: Vec<String>,
    pub(super) context: Arc<Context>,
}

impl Attempt {
    /// Whether the attempt is still wanted: no user has changed, suspended or deleted the credential or the provider since the
    /// attempt was prepared.
    pub(super) fn is_wanted(&self) -> bool {
        let Self { credential, object, context, .. } = self;
        let provider = context.stores.provider(&object.key());
        let same_provider = provider.is_some_and(|shown| {
            let (now, then) = (shown.meta(), object.meta());
            (&now.uid, now.generation) == (&then.uid, then.generation) && now.deletion_timestamp.is_none()
        });
        if !same_provider {
            return false;
        }
        let shown = context.stores.credentials.get(checks::namespace(credential), &credential.name_any());
        shown.is_some_and(|shown| {
            let (now, then) = (&shown.metadata, &credential.metadata);
            (&now.uid, now.generation) == (&then.uid, then.generation) && now.deletion_timestamp.is_none()
        })
    }

    /// Returns the client authentication for a request that the caller sends now. `None`: the broker cannot use the
    /// entry.
    pub(super) async fn proof(&self, entry: &Authentication) -> Result<Option<ClientAuth>, Error> {
        let Self { object, context, .. } = self;
        let Ok(client_credential) = &entry.client_credential else { return Ok(None) };
        let auth = client_credential.auth(context.providers.identities()).await.map(Result::ok);
        if matches!(auth, Ok(None)) {
            // The provider's status reports the reason, after the broker has resolved the provider again.
            context.providers.invalidate(&object.key());
            context.queue.enqueue_provider(object.key());
        }
        auth
    }

    /// Builds and signs the HTTP request for a token.
    pub(super) async fn request(
        &self,
        auth: &ClientAuth,
        grant: GrantProof<'_>,
    ) -> Result<http::Request<Vec<u8>>, RequestError> {
        sign::signed(auth, || {
            token_request(&TokenRequest {
                token_url: &self.resolved.endpoints.token_url,
                client_id: &self.object.spec().client.id,
                auth,
                grant,
                scopes: &self.scopes,
                parameters: &self.object.spec().client.parameters,
                unique: &unique(),
                now: self.context.clock.now(),
            })
        })
        .await
    }

    /// Sends a token request while this replica leads, reads the response, and counts the request.
    pub(super) async fn request_token(
        &self,
        auth: &ClientAuth,
        grant: GrantProof<'_>,
    ) -> StepResult<(TokenAnswer, Exchange)> {
        let timer = self.context.metrics.token_request(self.profile.preset);
        let request = async {
            let wire = self.request(auth, grant).await;
            timer.sent();
            wire
        };
        let result = match self.send(&self.resolved.endpoints.token_url, request).await {
            Ok(exchange) => self.read(&exchange, auth).map(|answer| (answer, exchange)),
            Err(Some(refusal)) => Err(refusal),
            // This replica sent no request, so the metrics count nothing.
            Err(None) => return Err(None),
        };
        self.count(timer, result.as_ref().map(|(answer, _)| answer));
        Ok(result?)
    }

    /// Sends a request to `url` while this replica leads. Calls `make` right before, because an assertion in the
    /// request is valid for minutes only.
    pub(super) async fn send(
        &self,
        url: &str,
        make: impl Future<Output = Result<http::Request<Vec<u8>>, RequestError>>,
    ) -> StepResult<Exchange> {
        let target = self.approve(url)?;
        let wire = make.await.map_err(|error| request_refusal(&error))?;
        if !self.context.leadership.is_leader() {
            tracing::info!("request not sent: leadership lost");
            return Err(None);
        }
        Ok(self.dispatch(target, wire).await.map_err(|error| self.unanswered(&error))?)
    }

    /// Checks that the broker may connect to `url`. A caller does this before it writes a claim.
    pub(super) fn approve(&self, url: &str) -> Result<ApprovedTarget<'_>, Refusal> {
        let uri = url.parse().map_err(|_| Refusal::new(Reason::RequestRefused, "the endpoint is no URL"))?;
        self.resolved.client.approve(&uri).map_err(|error| self.unanswered(&error))
    }

    /// Sends the request, counts it against the provider's `rateLimit`, and records with the permit whether the host served
    /// it. The caller has checked the leadership.
    pub(super) async fn dispatch(
        &self,
        target: ApprovedTarget<'_>,
        wire: http::Request<Vec<u8>>,
    ) -> Result<Exchange, TransportError> {
        self.permit.begin();
        let result = target.send(wire).await;
        self.permit.record(&result);
        result
    }

    /// Reads the response to a request with `auth`.
    pub(super) fn read(&self, exchange: &Exchange, auth: &ClientAuth) -> Result<TokenAnswer, Refusal> {
        let answer = read_token_response(&exchange.response, exchange.sent_at, &self.scopes);
        answer.map_err(|refusal| self.refined(refusal, auth))
    }

    /// Refines a refusal by the provider's own codes, by the client authentication and by the age of the grant.
    pub(super) fn refined(&self, mut refusal: Refusal, auth: &ClientAuth) -> Refusal {
        let obtained = self.grant.as_ref().and_then(|grant| Some(grant.token()?.obtained_at));
        let grant_age = obtained.map(|at| self.context.clock.now().duration_since(at));
        (self.profile.refine)(&mut refusal, &RefusalContext::new(self.credential.spec.grant.kind(), auth, grant_age));
        refusal
    }

    pub(super) fn unanswered(&self, error: &TransportError) -> Refusal {
        let home = self.context.stores.home(&self.object.key()).to_owned();
        let (reason, message) = transport(error, &self.object, &home, advice::AGAIN);
        match (&self.object, reason) {
            // Tenants must not learn the name of the administrator's CA bundle.
            (ProviderObject::Cluster(_), Reason::TLSFailed) => {
                let repair = "an administrator must correct the provider's CA bundle or its certificate";
                Refusal::new(reason, format!("{error}: {repair}"))
            }
            _ => Refusal::new(reason, message),
        }
    }

    /// Counts and logs a token request. Invalidates the provider if the response shows that the endpoints may have moved.
    pub(super) fn count(&self, timer: RequestTimer<'_>, answer: Result<&TokenAnswer, &Refusal>) {
        let outcome = answer.err().map_or(Reason::RenewalSucceeded, |refusal| refusal.reason);
        timer.observe(self.credential.spec.grant.kind(), outcome);
        match answer {
            Ok(TokenAnswer { token, .. }) => {
                tracing::info!(expires_at = %token.expires_at, fingerprint = %token.fingerprint(), "token obtained");
            }
            // The user has not signed in yet (RFC 8628 section 3.5), which is not a failure.
            Err(refusal) if device_poll::outcome(refusal) == PollOutcome::Pending => {}
            Err(refusal) => {
                let provider = self.object.key();
                self.context.metrics.token_request_error(&provider, refusal.reason);
                tracing::warn!(
                    reason = refusal.reason.as_str(),
                    provider = provider.to_string(),
                    mailbox = self.credential.spec.mailbox.user(),
                    correlation_id = refusal.correlation_id,
                    what = %refusal.what,
                    "token request failed"
                );
            }
        }
        if answer.is_err_and(|refusal| self.may_have_moved(refusal)) {
            self.context.providers.invalidate(&self.object.key());
        }
    }

    /// Whether a refusal shows that the discovered endpoints may have moved.
    fn may_have_moved(&self, refusal: &Refusal) -> bool {
        let is_discovered = matches!(self.profile.source, TokenSource::Discovery { .. });
        is_discovered && refusal.error.is_none() && matches!(refusal.http_status, Some(301..=308 | 404 | 410))
    }
}

/// Returns 128 random bits in hex, for an assertion's `jti`.
pub(super) fn unique() -> String {
    let mut bytes = [0; 16];
    // Without random numbers, TLS does not work either. A provider refuses the second assertion whose `jti` is zero.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        tracing::error!("random numbers not available");
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the outcome of a step of a sign-in whose result the broker has stored.
pub(super) fn noted(entry: &Authentication) -> Outcome {
    Outcome::Noted { client: client_status(entry) }
}

pub(super) fn client_status(entry: &Authentication) -> ClientStatus {
    ClientStatus {
        method: entry.method.to_owned(),
        index: i32::try_from(entry.index).unwrap_or_default(),
        expires_at: entry.expires_at.clone(),
    }
}
