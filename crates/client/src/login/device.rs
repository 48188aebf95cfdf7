//! A sign-in with a code that the user enters on any device (RFC 8628).

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::{
    api::{Reason, grant::GrantType},
    login::{
        LoginError, destination,
        exchange::{Attempt, Granted, Refused, unique},
        show, unless_interrupted,
    },
    oauth::{
        ClientAuth, GrantProof, Refusal,
        assertion::AssertionParams,
        device::{DeviceAuthorization, SLOW_DOWN, device_authorization_request, read_device_authorization},
    },
    policy::device_poll::{self, PollOutcome},
    provider_client::authentication::Authentication,
    settings::Login,
};

/// Prints a code, and polls the provider until a user has signed in with the code.
pub(super) async fn sign_in(attempt: &Attempt<'_>, settings: &Login) -> Result<Granted, LoginError> {
    let profile = attempt.profile;
    if !profile.grants.contains(&GrantType::DeviceCode) {
        return Err(LoginError(format!(
            "the provider {} has no device flow for mail: leave out `--device`",
            profile.preset
        )));
    }
    let Some(url) = attempt.resolved.endpoints.device_authorization_url.as_deref() else {
        return Err(LoginError(match profile.preset {
            "oauth2" => format!(
                "the {} has no spec.oauth2.deviceAuthorizationURL, which a device sign-in needs: add it",
                attempt.provider()
            ),
            _ => format!("the {} has no device authorization endpoint: leave out `--device`", attempt.provider()),
        }));
    };
    for entry in &attempt.resolved.authentication {
        entry.may_go_to(url).map_err(|blocker| LoginError(blocker.message))?;
    }
    let begin = async |auth: &ClientAuth| {
        let (unique, token_url) = (unique(), &attempt.resolved.endpoints.token_url);
        let params = AssertionParams { audience: token_url, token_url, unique: &unique, now: attempt.clock.now() };
        let parameters = &attempt.object.spec().client.parameters;
        let request = device_authorization_request(url, attempt.client_id(), auth, &attempt.scopes, parameters, params);
        let exchange = attempt.send(request).await?;
        read_device_authorization(&exchange.response, exchange.sent_at)
            .map_err(|refusal| attempt.refined(refusal, auth))
    };
    let (authorization, entry) = attempt.in_turn(begin).await.map_err(|refused| attempt.explain(refused))?;
    destination::confirm(attempt, settings, &authorization.verification_uri).await?;
    print_code(attempt, &authorization);
    unless_interrupted(async {
        let polled = poll(attempt, entry, &authorization).await;
        polled.map_err(|refusal| attempt.explain(Refused { refusal, entry: Some(entry) }))
    })
    .await
}

fn print_code(attempt: &Attempt<'_>, authorization: &DeviceAuthorization) {
    let DeviceAuthorization { user_code, verification_uri, verification_uri_complete, .. } = authorization;
    show(&format!(
        "sign in as {} at {verification_uri} with the code {user_code}",
        attempt.credential.spec.mailbox.user()
    ));
    if let Some(complete) = verification_uri_complete {
        show(&format!("or open {complete}"));
    }
    let minutes = authorization.expires_at.duration_since(attempt.clock.now()).as_secs().div_euclid(60).max(1);
    show(&format!("waiting for the sign-in; the code expires in {minutes} min"));
}

/// Polls the token endpoint until the sign-in succeeds, fails or expires (RFC 8628 sections 3.4 and 3.5).
async fn poll(
    attempt: &Attempt<'_>,
    entry: &Authentication,
    authorization: &DeviceAuthorization,
) -> Result<Granted, Refusal> {
    let mut interval = authorization.interval;
    loop {
        tokio::time::sleep(interval.try_into().unwrap_or(Duration::from_secs(5))).await;
        let auth = attempt.proof(entry).await?;
        let refusal = match attempt.token(&auth, GrantProof::DeviceCode(&authorization.device_code)).await {
            Ok(granted) => return Ok(granted),
            Err(refusal) => refusal,
        };
        interval = match device_poll::outcome(&refusal) {
            PollOutcome::Pending => interval,
            PollOutcome::SlowDown => interval + SLOW_DOWN,
            // RFC 8628 section 3.5: double the interval after a timeout. Waiting does not fix other failures, so they
            // end the sign-in.
            PollOutcome::Unanswered if matches!(refusal.reason, Reason::ProviderUnavailable | Reason::Throttled) => {
                interval * 2
            }
            PollOutcome::CodeOver => return Err(expired()),
            PollOutcome::Unanswered | PollOutcome::Denied | PollOutcome::Failed | PollOutcome::Refused => {
                return Err(refusal);
            }
        };
        if is_over(authorization.expires_at, attempt.clock.now(), interval) {
            return Err(expired());
        }
    }
}

fn is_over(expires_at: Timestamp, now: Timestamp, next: SignedDuration) -> bool {
    now + next >= expires_at
}

fn expired() -> Refusal {
    let mut refusal = Refusal::new(Reason::AuthorizationRequired, "no user signed in before the code expired");
    refusal.advice = Some("Run the command again for a new code");
    refusal
}
