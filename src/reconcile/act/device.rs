//! Lets a person sign in by a code (RFC 8628): asks for one, shows it, and polls until the person has signed in.

use k8s_openapi::jiff::SignedDuration;

use super::{Attempt, Brought, Step, unique, unkept, unmade};
use crate::{
    api::{Reason, Retry},
    oauth::{
        ClientAuth, GrantProof, Refusal,
        client_auth::Occasion,
        device::{
            DEFAULT_INTERVAL, DeviceAuthorization, SLOW_DOWN, device_authorization_request, read_device_authorization,
        },
        token::Rotated,
    },
    policy::{checks, grant::SignIn, notices::Notice},
    reconcile::{
        custody::{self, SignInEnd, Unsaved},
        material::{self, Authentication},
        report,
    },
};

/// The person has not signed in yet.
pub(super) const PENDING: &str = "authorization_pending";

/// Asks for a code, and keeps it.
pub(super) async fn begin(attempt: &Attempt, auth: &ClientAuth) -> Step {
    let Attempt { credential, context, prepared, .. } = attempt;
    let Some(url) = &prepared.endpoints.device_authorization_url else {
        let what = "the provider names no device authorization endpoint, so nobody can sign in by a code: use \
                    grant.refreshToken and `mail-token-broker login`";
        return Some(Err(Refusal::new(Reason::InvalidSpec, what)));
    };
    let unique = unique();
    let occasion = Occasion { audience: &prepared.endpoints.token_url, unique: &unique, now: context.clock.now() };
    let client_id = &attempt.object.spec().client.id;
    let wire = match device_authorization_request(url, client_id, auth, &attempt.scopes, occasion) {
        Ok(wire) => wire,
        Err(error) => return Some(Err(unmade(&error))),
    };
    let answer = attempt.send(wire).await?;
    let authorization = answer.and_then(|exchange| {
        let read = read_device_authorization(&exchange.response, exchange.sent_at);
        read.map_err(|refusal| begun_in_vain(attempt.refined(refusal, auth)))
    });
    let authorization = match authorization {
        Ok(authorization) => authorization,
        Err(refusal) => return Some(Err(refusal)),
    };
    match keep(attempt, authorization).await {
        Ok(()) => Some(Ok(Brought::Noted)),
        Err(error) => unkept(error, credential).map(Err),
    }
}

/// Nobody has signed in yet, so no grant was refused: it must not begin the next sign-in.
fn begun_in_vain(mut refusal: Refusal) -> Refusal {
    if matches!(refusal.reason, Reason::InvalidGrant | Reason::AuthorizationRequired) {
        refusal.reason = Reason::RequestRefused;
    }
    refusal
}

async fn keep(attempt: &Attempt, authorization: DeviceAuthorization) -> Result<(), custody::CustodyError> {
    let Attempt { credential, context, grant, .. } = attempt;
    let now = context.clock.now();
    let DeviceAuthorization {
        device_code,
        user_code,
        verification_uri,
        verification_uri_complete,
        expires_at,
        interval,
    } = authorization;
    let asked_by = grant.as_ref().map(|grant| grant.asked_by.clone()).unwrap_or_default();
    let bound_to = grant.as_ref().and_then(|grant| grant.bound_to.clone()).unwrap_or_default();
    let make = |before: Option<&SignIn>| {
        let replaced = before.filter(|before| before.asked_by == asked_by && before.ended.is_none());
        SignIn {
            began_at: replaced.map_or(now, |before| before.began_at),
            shown_at: now,
            user_code,
            verification_uri,
            verification_uri_complete,
            expires_at,
            interval: interval.as_secs(),
            asked_by: asked_by.clone(),
            bound_to,
            ended: None,
        }
    };
    custody::begin_sign_in(credential, device_code, make, context).await?;
    context.memory.with(checks::uid(credential), |entry| {
        (entry.next_poll, entry.slowed, entry.code_over) = (Some(now + interval), SignedDuration::ZERO, None);
    });
    Ok(())
}

/// Asks whether the person has signed in.
pub(super) async fn poll(attempt: &Attempt, entry: &Authentication, auth: &ClientAuth) -> Step {
    let Attempt { credential, context, .. } = attempt;
    let code = match custody::device_code(credential, context).await {
        Ok(Some(code)) => code,
        Ok(None) => return over(attempt),
        Err(error) => return Some(Err(Refusal::new(Reason::SecretWriteFailed, material::told(&error)))),
    };
    let refusal = match attempt.ask(auth, GrantProof::DeviceCode(&code)).await? {
        Ok((answer, exchange)) => {
            let user = credential.spec.mailbox.user();
            if !answer.addresses.is_empty() && !answer.addresses.iter().any(|name| name.eq_ignore_ascii_case(user)) {
                let who = answer.addresses.join(", ");
                return ended(attempt, format!("{who} signed in, and {user} was expected"), None).await;
            }
            let bound_to = attempt.grant.as_ref().and_then(|grant| grant.bound_to.clone()).unwrap_or_default();
            let rotated = Rotated::read(&exchange.response, exchange.sent_at);
            if rotated.is_none() {
                tell_of_no_refresh_token(attempt).await;
            }
            let unsaved = Unsaved::SignedIn { rotated, bound_to, at: exchange.sent_at };
            custody::keep(credential, unsaved, context).await;
            return Some(Ok(attempt.held(answer, entry)));
        }
        Err(refusal) => refusal,
    };
    let error = refusal.error.as_ref().map(|error| error.as_str().to_owned()).unwrap_or_default();
    match error.as_str() {
        PENDING => later(attempt, SignedDuration::ZERO),
        "slow_down" => later(attempt, SLOW_DOWN),
        "expired_token" | "invalid_grant" | "bad_verification_code" => over(attempt),
        // Microsoft's name for it is the second.
        "access_denied" | "authorization_declined" => {
            ended(attempt, "the sign-in was denied".to_owned(), Some(refusal)).await
        }
        _ if refusal.reason.retry() == Retry::Transient => {
            later(attempt, refusal.retry_after.unwrap_or_default().max(SLOW_DOWN))
        }
        _ => Some(Err(refusal)),
    }
}

/// Polls again when the provider allows it; `slower` by this from now on.
fn later(attempt: &Attempt, slower: SignedDuration) -> Step {
    let sign_in = attempt.grant.as_ref().and_then(|grant| grant.kept.as_ref()?.sign_in.as_ref());
    let interval = sign_in.map_or(DEFAULT_INTERVAL, |sign_in| SignedDuration::from_secs(sign_in.interval));
    let now = attempt.context.clock.now();
    attempt.context.memory.with(checks::uid(&attempt.credential), |entry| {
        entry.slowed += slower;
        entry.next_poll = Some(now + interval + entry.slowed);
    });
    Some(Ok(Brought::Noted))
}

/// The provider does not know the code any more.
fn over(attempt: &Attempt) -> Step {
    let sign_in = attempt.grant.as_ref().and_then(|grant| grant.kept.as_ref()?.sign_in.as_ref());
    let code = sign_in.map(|sign_in| sign_in.user_code.clone());
    attempt.context.memory.with(checks::uid(&attempt.credential), |entry| entry.code_over = code);
    Some(Ok(Brought::Noted))
}

/// The sign-in came to nothing, and only a person can begin another.
async fn ended(attempt: &Attempt, how: String, refusal: Option<Refusal>) -> Step {
    let mut refusal = refusal.unwrap_or_else(|| Refusal::new(Reason::AuthorizationRequired, ""));
    (refusal.reason, refusal.what) = (Reason::AuthorizationRequired, how.clone());
    match custody::end_sign_in(&attempt.credential, SignInEnd::Nothing(how), &attempt.context).await {
        Ok(()) => Some(Err(refusal)),
        Err(error) => unkept(error, &attempt.credential).map(Err),
    }
}

async fn tell_of_no_refresh_token(attempt: &Attempt) {
    let notice = Notice {
        warning: true,
        reason: Reason::TokenUnsuitable,
        note: "the sign-in brought no refresh token, so a person has to sign in for each token: add the scope \
               offline_access, and let the client have it at the provider"
            .to_owned(),
    };
    report::tell(&attempt.credential, &notice, &attempt.context).await;
}
