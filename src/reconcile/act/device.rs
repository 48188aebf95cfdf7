//! Lets a user sign in by a device code (RFC 8628): the broker requests the code, and polls until the user has signed in.

use k8s_openapi::jiff::SignedDuration;

use crate::{
    api::Reason,
    idp::Exchange,
    oauth::{
        ClientAuth, GrantProof, Refusal, TokenAnswer,
        assertion::AssertionParams,
        device::{DeviceAuthorization, SLOW_DOWN, device_authorization_request, read_device_authorization},
        token::Rotated,
    },
    policy::{
        Blocker, checks,
        device_code::{code_refusal, scopes_with_identity},
        device_poll::{self, PollOutcome, wait_after_unanswered},
        grant::{SignIn, next_poll},
        notices::{self, EventNote},
    },
    provider_client::{
        authentication::Authentication,
        problem::{ProviderProblem, shown_blocker},
    },
    providers::account,
    reconcile::{
        act::{
            attempt::{Attempt, StepResult, noted, unique},
            refusals::write_refusal,
            sign::signed,
        },
        custody::{
            self,
            pending::{CustodyError, PendingGrantWrite, SignInEnd, SignedIn},
        },
    },
};

/// Requests a device code, and stores it in the grant Secret.
pub(super) async fn begin(attempt: &Attempt, entry: &Authentication, auth: &ClientAuth) -> StepResult {
    let Attempt { credential, context, resolved, .. } = attempt;
    let Some(url) = &resolved.endpoints.device_authorization_url else {
        let what = "the provider names no device authorization endpoint that can be used (an https URL), so no person can sign in \
                    by a code: use grant.refreshToken and `mail-token-broker login`";
        return Err(Some(Refusal::new(Reason::InvalidSpec, what)));
    };
    if let Err(blocker) = entry.may_go_to(url) {
        let problem = ProviderProblem::of_the_client(blocker);
        let Blocker { reason, message, .. } = shown_blocker(&attempt.object.key(), problem);
        return Err(Some(Refusal::new(reason, message)));
    }
    let request_code = async |scopes: &[String]| -> StepResult<DeviceAuthorization> {
        let wire = signed(auth, || {
            let unique = unique();
            let token_url = &resolved.endpoints.token_url;
            let params = AssertionParams { audience: token_url, token_url, unique: &unique, now: context.clock.now() };
            let client = &attempt.object.spec().client;
            device_authorization_request(url, &client.id, auth, scopes, &client.parameters, params)
        });
        let exchange = attempt.send(url, wire).await?;
        let read = read_device_authorization(&exchange.response, exchange.sent_at);
        Ok(read.map_err(|refusal| code_refusal(attempt.refined(refusal, auth)))?)
    };
    let identified = scopes_with_identity(&attempt.scopes, credential.spec.mailbox.user());
    let mut authorization = request_code(&identified).await;
    if identified != attempt.scopes
        && matches!(&authorization, Err(Some(refusal)) if refusal.reason == Reason::InvalidScope)
    {
        tracing::info!(
            "OpenID Connect scopes refused: requesting a code without them, the account that signs in stays unknown"
        );
        authorization = request_code(&attempt.scopes).await;
    }
    store_code(attempt, &authorization?).await.map_err(|error| write_refusal(error, credential))?;
    Ok(noted(entry))
}

async fn store_code(attempt: &Attempt, authorization: &DeviceAuthorization) -> Result<(), CustodyError> {
    let Attempt { credential, context, .. } = attempt;
    let grant = attempt.grant.as_ref().ok_or(CustodyError::Stale)?;
    let now = context.clock.now();
    custody::begin_sign_in(credential, authorization, grant, now, context).await?;
    context.cache.with(checks::uid(credential), |entry| {
        (entry.sign_in.next_poll, entry.sign_in.unanswered, entry.sign_in.code_over) =
            (Some(next_poll(authorization.interval.as_secs(), now)), 0, None);
    });
    Ok(())
}

/// Polls the token endpoint, to learn whether the user has signed in.
pub(super) async fn poll(attempt: &Attempt, entry: &Authentication, auth: &ClientAuth) -> StepResult {
    let Attempt { credential, context, .. } = attempt;
    let sign_in = attempt.grant.as_ref().and_then(|grant| grant.stored.as_ref()?.sign_in.as_ref()).ok_or(None)?;
    let code = match custody::device_code(credential, &sign_in.user_code, context).await {
        Ok(Some(code)) => code,
        Ok(None) => {
            over(attempt, sign_in);
            return Ok(noted(entry));
        }
        Err(error) => {
            tracing::warn!(%error, "device code not read");
            unanswered(attempt, sign_in, None);
            return Err(None);
        }
    };
    let refusal = match attempt.request_token(auth, GrantProof::DeviceCode(&code)).await {
        Ok((answer, exchange)) => return signed_in(attempt, entry, answer, &exchange).await,
        Err(refusal) => refusal.ok_or(None)?,
    };
    match device_poll::outcome(&refusal) {
        PollOutcome::Pending => again(attempt, sign_in.interval),
        PollOutcome::SlowDown => slow_down(attempt, sign_in).await,
        PollOutcome::CodeOver => over(attempt, sign_in),
        PollOutcome::Denied => return ended(attempt, "the sign-in was denied".to_owned(), refusal).await,
        PollOutcome::Failed => return ended(attempt, refusal.what.clone(), refusal).await,
        PollOutcome::Unanswered => {
            unanswered(attempt, sign_in, refusal.retry_after);
            return Err(None);
        }
        PollOutcome::Refused => {
            again(attempt, sign_in.interval);
            return Err(Some(refusal));
        }
    }
    Ok(noted(entry))
}

/// Stores the refresh token if the expected account has signed in. Otherwise ends the sign-in.
async fn signed_in(attempt: &Attempt, entry: &Authentication, answer: TokenAnswer, exchange: &Exchange) -> StepResult {
    if let Err(refusal) = attempt.check_account(&answer) {
        return ended(attempt, refusal.what.clone(), refusal).await;
    }
    if account::comparable(attempt.credential.spec.mailbox.user(), &answer.names).next().is_none() {
        emit(attempt, &notices::account_not_verified(attempt.credential.spec.mailbox.user()));
    }
    let rotated = Rotated::read(&exchange.response, exchange.sent_at);
    if rotated.is_none() {
        emit(attempt, &notices::no_refresh_token());
    }
    let bound_to = attempt.grant.as_ref().and_then(|grant| grant.bound_to.clone()).unwrap_or_default();
    let revocable_at = attempt.grant.as_ref().map(|grant| grant.revocable_at.clone()).unwrap_or_default();
    let unsaved = PendingGrantWrite::SignedIn(SignedIn { rotated, bound_to, revocable_at, at: exchange.sent_at });
    custody::persist(&attempt.credential, unsaved, &attempt.context).await;
    Ok(attempt.issued(answer, entry))
}

/// After a response to a poll: plans the next poll after the interval.
fn again(attempt: &Attempt, interval: i64) {
    let next = next_poll(interval, attempt.context.clock.now());
    attempt.context.cache.with(checks::uid(&attempt.credential), |entry| {
        (entry.sign_in.unanswered, entry.sign_in.next_poll) = (0, Some(next));
    });
}

/// After `slow_down`: lengthens the interval of all further polls.
async fn slow_down(attempt: &Attempt, sign_in: &SignIn) {
    again(attempt, sign_in.interval + SLOW_DOWN.as_secs());
    if let Err(error) = custody::slow_down(&attempt.credential, SLOW_DOWN, &attempt.context).await {
        tracing::warn!(%error, "longer poll interval not stored");
    }
}

/// After a poll without a response: doubles the wait until the next poll (RFC 8628 section 3.5), or follows Retry-After.
fn unanswered(attempt: &Attempt, sign_in: &SignIn, retry_after: Option<SignedDuration>) {
    let now = attempt.context.clock.now();
    attempt.context.cache.with(checks::uid(&attempt.credential), |entry| {
        entry.sign_in.unanswered = entry.sign_in.unanswered.saturating_add(1);
        let wait = wait_after_unanswered(sign_in.interval, entry.sign_in.unanswered, retry_after);
        entry.sign_in.next_poll = Some(next_poll(wait, now));
    });
}

/// Records that the code has expired. The next reconcile requests a new code.
fn over(attempt: &Attempt, sign_in: &SignIn) {
    let code = Some(sign_in.user_code.as_str().into());
    attempt.context.cache.with(checks::uid(&attempt.credential), |entry| entry.sign_in.code_over = code);
}

/// Ends the sign-in with `refusal`, whose message becomes `how`. Only a user can begin another sign-in.
async fn ended(attempt: &Attempt, how: String, mut refusal: Refusal) -> StepResult {
    (refusal.reason, refusal.what) = (Reason::AuthorizationRequired, how.clone());
    custody::end_sign_in(&attempt.credential, SignInEnd::Failed(how), &attempt.context)
        .await
        .map_err(|error| write_refusal(error, &attempt.credential))?;
    Err(Some(refusal))
}

fn emit(attempt: &Attempt, notice: &EventNote) {
    attempt.context.kubernetes.events.emit(&attempt.credential, notice, attempt.context.clock.now());
}
