//! A sign-in with a browser: the authorization code flow with PKCE (RFC 6749 section 4.1, RFC 7636, RFC 8252).

use std::time::Duration;

use axum::http::StatusCode;
use oauth2::{
    AuthUrl, ClientId, CsrfToken, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope, basic::BasicClient,
};
use secrecy::SecretString;
use url::Url;

use super::{
    LoginError,
    browser::Listener,
    exchange::{Attempt, Granted, Refused},
    tell, unless_interrupted,
};
use crate::{
    cli::Login,
    oauth::{ClientAuth, GrantProof, authorization::read_authorization_response},
    policy::commands,
};

/// How long a person may take.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// An authorization request.
struct Authorization {
    /// What the person opens.
    url: Url,
    /// Where the browser comes back to.
    redirect_uri: String,
    state: String,
    verifier: SecretString,
}

/// Sends the person to the provider, and hands what they bring back to `store`; the browser shows how that went.
pub(super) async fn sign_in(
    attempt: &Attempt<'_>,
    settings: &Login,
    store: impl AsyncFnOnce(Granted) -> Result<String, LoginError>,
) -> Result<(), LoginError> {
    let endpoint = endpoint(attempt)?;
    let listener = Listener::bind(settings.port).await.map_err(|error| {
        LoginError(format!("a port of localhost cannot be listened at ({error}): choose another with `--port`"))
    })?;
    let authorization = authorize(attempt, endpoint, listener.port())?;
    invite(attempt, &authorization, settings.no_browser);
    let (state, issuer) = (authorization.state.clone(), attempt.profile.issuer().map(str::to_owned));
    let visit = listener.visit(move |query| read_authorization_response(query, &state, issuer.as_deref()));
    let visit = unless_interrupted(async {
        let visited = tokio::time::timeout(PATIENCE, visit).await.ok().flatten();
        visited.ok_or_else(|| {
            LoginError("nobody came back from the provider within 5 minutes: run the command again".into())
        })
    })
    .await?;

    let outcome =
        match &visit.brought {
            Err(refusal) => Err(attempt
                .explain(Refused { refusal: attempt.refined(refusal.clone(), &ClientAuth::Public), entry: None })),
            Ok(code) => match exchange(attempt, &authorization, code).await {
                Ok(granted) => store(granted).await,
                Err(error) => Err(error),
            },
        };
    let (status, page) = match &outcome {
        Ok(words) => (StatusCode::OK, format!("Signed in: {words}.\n\nYou can close this window.\n")),
        Err(error) => (StatusCode::BAD_REQUEST, format!("Not signed in: {error}.\n")),
    };
    visit.close(status, page).await;
    outcome.map(drop)
}

fn endpoint<'a>(attempt: &'a Attempt<'_>) -> Result<&'a str, LoginError> {
    attempt.prepared.endpoints.authorization_url.as_deref().ok_or_else(|| {
        let device = commands::sign_in(attempt.credential);
        LoginError(match attempt.profile.preset {
            "oauth2" => format!(
                "the {} is of the kind oauth2, which has no authorization endpoint to open in a browser: sign in with \
                 `{device} --device`",
                attempt.provider()
            ),
            _ => format!(
                "the {} has no authorization endpoint in its discovery document: sign in with `{device} --device`",
                attempt.provider()
            ),
        })
    })
}

fn authorize(attempt: &Attempt<'_>, endpoint: &str, port: u16) -> Result<Authorization, LoginError> {
    let wanted = &attempt.profile.sign_in;
    let redirect_uri = format!("http://localhost:{port}{}", wanted.redirect_path);
    let invalid = |error: oauth2::url::ParseError| {
        LoginError(format!("the authorization endpoint of the {} is no URL: {error}", attempt.provider()))
    };
    let client = BasicClient::new(ClientId::new(attempt.client_id().to_owned()))
        .set_auth_uri(AuthUrl::new(endpoint.to_owned()).map_err(invalid)?)
        .set_redirect_uri(RedirectUrl::new(redirect_uri.clone()).map_err(invalid)?);
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let mut request = client
        .authorize_url(CsrfToken::new_random)
        .set_pkce_challenge(challenge)
        .add_scopes(attempt.scopes.iter().cloned().map(Scope::new))
        .add_extra_param("login_hint", attempt.credential.spec.mailbox.user());
    for (name, value) in wanted.parameters {
        request = request.add_extra_param(*name, *value);
    }
    let (url, state) = request.url();
    Ok(Authorization {
        url,
        redirect_uri,
        state: state.into_secret(),
        verifier: PkceCodeVerifier::into_secret(verifier).into(),
    })
}

/// Always prints the URL: the browser that opens may be the wrong one, or none.
fn invite(attempt: &Attempt<'_>, authorization: &Authorization, no_browser: bool) {
    let url = authorization.url.as_str();
    tell(&format!("sign in as {} with a browser on this machine:\n\n{url}\n", attempt.credential.spec.mailbox.user()));
    if !no_browser && open::that_detached(url).is_err() {
        tell("no browser could be opened: open the address by hand");
    }
}

async fn exchange(
    attempt: &Attempt<'_>,
    authorization: &Authorization,
    code: &SecretString,
) -> Result<Granted, LoginError> {
    let Authorization { redirect_uri, verifier, .. } = authorization;
    let granted = attempt
        .in_turn(async |auth| attempt.token(auth, GrantProof::AuthorizationCode { code, redirect_uri, verifier }).await)
        .await;
    granted.map(|(granted, _)| granted).map_err(|refused| attempt.explain(refused))
}
