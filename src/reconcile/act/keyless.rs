//! The grant `jwtBearer` of a Google service account without a key, in three requests: the first exchanges the
//! ServiceAccount token for a token of Google's, the second obtains the signature under the JWT, the third the token for mail.

use secrecy::SecretString;

use crate::{
    idp::Exchange,
    oauth::{
        ClientAuth, GrantProof, Impersonation, TokenAnswer, assertion::AssertionParams, token_request::RequestError,
    },
    providers::keyless,
    reconcile::act::{
        attempt::{Attempt, StepResult, unique},
        refusals::request_refusal,
    },
};

/// Obtains a token for mail by the three requests.
pub(super) async fn obtain(attempt: &Attempt, auth: &ClientAuth, account: &Impersonation) -> StepResult<TokenAnswer> {
    let timer = attempt.context.metrics.token_request(attempt.profile.preset);
    let jwt = signed(attempt, account).await.inspect_err(|refusal| {
        if let Some(refusal) = refusal {
            attempt.count(timer, Err(refusal));
        }
    })?;
    let requested = attempt.request_token(auth, GrantProof::SignedJwt(&jwt)).await;
    requested.map(|(answer, _)| answer).map_err(|mut refusal| {
        refusal.iter_mut().for_each(keyless::refine_token);
        refusal
    })
}

/// Returns the JWT about the mailbox, signed by Google.
async fn signed(attempt: &Attempt, account: &Impersonation) -> StepResult<SecretString> {
    let exchange = send(attempt, keyless::exchange_request(account)).await?;
    let bearer = keyless::read_exchanged(&exchange.response, exchange.sent_at)?;
    let unique = unique();
    let token_url = &attempt.resolved.endpoints.token_url;
    let now = attempt.context.clock.now();
    let params = AssertionParams { audience: token_url, token_url, unique: &unique, now };
    let subject = attempt.credential.spec.mailbox.user();
    let request = keyless::sign_request(account, &bearer, subject, &attempt.scopes, params);
    let exchange = send(attempt, request).await?;
    Ok(keyless::read_signed(&exchange.response, exchange.sent_at)?)
}

async fn send(attempt: &Attempt, request: Result<http::Request<Vec<u8>>, RequestError>) -> StepResult<Exchange> {
    let wire = request.map_err(|error| request_refusal(&error))?;
    attempt.send(&wire.uri().to_string(), async { Ok(wire) }).await
}
