//! Requests a token. The broker sends a refresh token only under a claim that it wrote right before, and stores the refresh
//! token of the response before it uses the rest of the response.

use std::time::Duration;

use k8s_openapi::jiff::SignedDuration;
use secrecy::SecretString;

use crate::{
    api::{Reason, grant::GrantType, reference::KeyRef},
    error::describe_step,
    oauth::{ClientAuth, GrantProof, Refusal, TokenAnswer, client_auth::read_secret, token::Rotated},
    policy::{Blocker, checks, commands::KubectlObject, grant::RefreshGrant, notices, refresh_response::leaves_open},
    provider_client::{
        authentication::Authentication,
        sources::{SourceReads as _, read_source},
    },
    reconcile::{
        act::{
            attempt::{Attempt, StepResult},
            keyless,
            refusals::{request_refusal, write_refusal},
        },
        custody::{
            self,
            pending::{Claimed, PendingGrantWrite},
        },
        own_sources::of_a_provider,
    },
};

/// Wait before the broker checks leadership again, if the lease ends too soon for a claim.
const LEADERSHIP_RECHECK: Duration = Duration::from_secs(1);

/// Obtains a token by the credential's grant. If the provider refuses one client authentication, `claimed` holds
/// the claim for the attempt with the next one.
pub(super) async fn obtain(
    attempt: &Attempt,
    entry: &Authentication,
    auth: &ClientAuth,
    claimed: &mut Option<Claimed>,
) -> StepResult {
    let credential = &attempt.credential;
    let answer = match credential.spec.grant.kind() {
        GrantType::ClientCredentials => attempt.request_token(auth, GrantProof::ClientCredentials).await?.0,
        GrantType::JwtBearer => match auth {
            ClientAuth::Impersonation(account) => keyless::obtain(attempt, auth, account).await?,
            _ => {
                attempt.request_token(auth, GrantProof::JwtBearer { subject: credential.spec.mailbox.user() }).await?.0
            }
        },
        GrantType::TokenExchange => token_exchange(attempt, auth).await?,
        GrantType::RefreshToken | GrantType::DeviceCode => {
            return exchange_refresh_token(attempt, entry, auth, claimed).await;
        }
    };
    Ok(attempt.issued(answer, entry))
}

/// Exchanges a subject token (RFC 8693). The broker reads the subject token from its Secret for each request.
async fn token_exchange(attempt: &Attempt, auth: &ClientAuth) -> StepResult<TokenAnswer> {
    let invalid = || Refusal::new(Reason::InvalidSpec, "the spec names no subject token");
    let grant = attempt.credential.spec.grant.token_exchange.as_ref().ok_or_else(invalid)?;
    let token = subject_token(attempt, &grant.subject_token.secret_ref).await?;
    let proof = GrantProof::TokenExchange {
        token: &token,
        kind: &grant.subject_token_type,
        audience: grant.audience.as_deref(),
    };
    Ok(attempt.request_token(auth, proof).await?.0)
}

async fn subject_token(attempt: &Attempt, reference: &KeyRef) -> Result<SecretString, Refusal> {
    let namespace = checks::namespace(&attempt.credential);
    let refused = |blocker: Blocker| Refusal::new(blocker.reason, blocker.message);
    let contents = &attempt.context.providers.contents;
    let _reservation = contents.reserve(namespace).await;
    let read = read_source(reference, namespace, &attempt.context.kubernetes.client, Some(contents)).await;
    let source =
        read.map_err(|error| Refusal::new(Reason::ProviderUnavailable, describe_step(&error)))?.map_err(refused)?;
    of_a_provider(reference, namespace, &attempt.context.stores).map_or(Ok(()), |blocker| Err(refused(blocker)))?;
    source.reach.allows(&attempt.resolved.endpoints.token_url).map_err(refused)?;
    read_secret(&source.value, false).map_err(|flaw| {
        let put = KubectlObject::secret(namespace, &reference.name).put(&reference.key, "<token>");
        let what = format!(
            "the subject token in key {} of the Secret {namespace}/{} {flaw}: store the right one with `{put}`",
            reference.key, reference.name
        );
        Refusal::new(Reason::SourceInvalid, what)
    })
}

/// Exchanges the refresh token for an access token. After a lost response, the broker immediately sends the same refresh
/// token again: servers that accept a refresh token twice do so for a short time only.
async fn exchange_refresh_token(
    attempt: &Attempt,
    entry: &Authentication,
    auth: &ClientAuth,
    claimed: &mut Option<Claimed>,
) -> StepResult {
    let mut response = send_refresh_token(attempt, auth, claimed).await?;
    if response.is_lost {
        tracing::warn!("reply lost: sending the same refresh token again");
        response = send_refresh_token(attempt, auth, claimed).await?;
    }
    let answer = response.answer?;
    attempt.check_account(&answer)?;
    Ok(attempt.issued(answer, entry))
}

/// The response to an exchange, whose refresh token is stored.
struct RefreshResponse {
    answer: Result<TokenAnswer, Refusal>,
    /// Whether the provider may have exchanged the refresh token although the broker has no token of the response.
    is_lost: bool,
}

/// Sends the refresh token under a claim, and stores the refresh token of the response.
async fn send_refresh_token(
    attempt: &Attempt,
    auth: &ClientAuth,
    claimed: &mut Option<Claimed>,
) -> StepResult<RefreshResponse> {
    if !leads(attempt) {
        tokio::time::sleep(LEADERSHIP_RECHECK).await;
        return Err(None);
    }
    // Check the address before the claim is written.
    let target = attempt.approve(&attempt.resolved.endpoints.token_url)?;
    let current = current_claim(attempt, claimed).await?;
    let wire = attempt.request(auth, GrantProof::RefreshToken(&current.refresh_token)).await;
    let wire = wire.map_err(|error| request_refusal(&error))?;
    // The claim and the signature may have taken time.
    if !leads(attempt) {
        return Err(None);
    }
    let timer = attempt.context.metrics.token_request(attempt.profile.preset);
    timer.sent();
    let (answer, is_lost) = match attempt.dispatch(target, wire).await {
        Ok(exchange) => {
            let rotated = Rotated::read(&exchange.response, exchange.sent_at);
            let rotated = rotated.filter(|_| exchange.response.status().is_success());
            let answer = attempt.read(&exchange, auth);
            let is_lost = rotated.is_none() && answer.as_ref().is_err_and(leaves_open);
            if answer.is_ok() || rotated.is_some() {
                let unsaved =
                    PendingGrantWrite::Exchanged { claimed: Box::new(current), rotated, used_at: exchange.sent_at };
                custody::persist(&attempt.credential, unsaved, &attempt.context).await;
                *claimed = None;
            }
            (answer, is_lost)
        }
        Err(error) => (Err(attempt.unanswered(&error)), error.may_have_been_handled()),
    };
    attempt.count(timer, answer.as_ref());
    Ok(RefreshResponse { answer, is_lost })
}

fn leads(attempt: &Attempt) -> bool {
    let leads = attempt.context.leadership.leads_for(attempt.context.requests.timeout);
    if !leads {
        tracing::info!("request not sent: leadership may end before the reply");
    }
    leads
}

/// Returns the claim of an earlier request of this attempt, if the claim lasts for one more request; otherwise writes a
/// new claim.
async fn current_claim(attempt: &Attempt, claimed: &mut Option<Claimed>) -> StepResult<Claimed> {
    let Attempt { credential, context, .. } = attempt;
    let mut grant = attempt.grant.clone().ok_or(None)?;
    if let Some(current) = claimed {
        let timeout = SignedDuration::try_from(context.requests.timeout).unwrap_or(SignedDuration::MAX);
        if current.claim.until >= context.clock.now() + timeout {
            return Ok(current.clone());
        }
        grant = RefreshGrant { stored: Some(current.stored().clone()), seed: None, ..grant };
    }
    let token_url = &attempt.resolved.endpoints.token_url;
    let strict = !attempt.profile.keeps_replaced_tokens;
    let current = custody::claim(credential, &grant, token_url, strict, context)
        .await
        .map_err(|error| write_refusal(error, credential))?;
    if current.reseeded {
        context.kubernetes.events.emit(credential, &notices::grant_reseeded(), context.clock.now());
    }
    *claimed = Some(current.clone());
    Ok(current)
}
