//! The grant `jwtBearer` of a Google service account without a key, in three requests: a token of Google's for that of the
//! ServiceAccount, the signature under the JWT, and the token for mail.

use secrecy::SecretString;

use crate::{
    idp::Exchange,
    oauth::{
        ClientAuth, GrantProof, Impersonation, Refusal, TokenAnswer, assertion::AssertionParams,
        token_request::RequestError,
    },
    providers::keyless,
    reconcile::act::{
        attempt::{Attempt, unique},
        refusals::request_refusal,
    },
};

/// Obtains a token. `None`: no further request was sent, and the credential is reconciled again.
pub(super) async fn obtain(
    attempt: &Attempt,
    auth: &ClientAuth,
    account: &Impersonation,
) -> Option<Result<(TokenAnswer, Exchange), Refusal>> {
    let timer = attempt.context.metrics.token_request(attempt.profile.preset);
    let jwt = match signed(attempt, account).await? {
        Ok(jwt) => jwt,
        Err(refusal) => {
            attempt.count(timer, Err(&refusal));
            return Some(Err(refusal));
        }
    };
    let answer = attempt.ask(auth, GrantProof::SignedJwt(&jwt)).await?;
    Some(answer.map_err(|mut refusal| {
        keyless::refine_token(&mut refusal);
        refusal
    }))
}

/// The JWT about the mailbox, signed by Google. Each of both requests counts against the provider's `rateLimit`, of which
/// the first has passed already.
async fn signed(attempt: &Attempt, account: &Impersonation) -> Option<Result<SecretString, Refusal>> {
    let exchange = match send(attempt, keyless::exchange_request(account)).await? {
        Ok(exchange) => exchange,
        Err(refusal) => return Some(Err(refusal)),
    };
    let bearer = match keyless::read_exchanged(&exchange.response, exchange.sent_at) {
        Ok(bearer) => bearer,
        Err(refusal) => return Some(Err(refusal)),
    };
    attempt.permit.charge();
    let unique = unique();
    let token_url = &attempt.resolved.endpoints.token_url;
    let now = attempt.context.clock.now();
    let params = AssertionParams { audience: token_url, token_url, unique: &unique, now };
    let subject = attempt.credential.spec.mailbox.user();
    let request = keyless::sign_request(account, &bearer, subject, &attempt.scopes, params);
    let exchange = match send(attempt, request).await? {
        Ok(exchange) => exchange,
        Err(refusal) => return Some(Err(refusal)),
    };
    let jwt = match keyless::read_signed(&exchange.response, exchange.sent_at) {
        Ok(jwt) => jwt,
        Err(refusal) => return Some(Err(refusal)),
    };
    attempt.permit.charge();
    Some(Ok(jwt))
}

async fn send(
    attempt: &Attempt,
    request: Result<http::Request<Vec<u8>>, RequestError>,
) -> Option<Result<Exchange, Refusal>> {
    match request {
        Ok(wire) => attempt.send(&wire.uri().to_string(), async { Ok(wire) }).await,
        Err(error) => Some(Err(request_refusal(&error))),
    }
}
