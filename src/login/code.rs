//! A sign-in with a browser: the authorization code flow with PKCE (RFC 6749 section 4.1, RFC 7636, RFC 8252).

use std::time::Duration;

use axum::http::StatusCode;
use oauth2::{AuthUrl, ClientId, CsrfToken, PkceCodeChallenge, PkceCodeVerifier, Scope, basic::BasicClient};
use secrecy::SecretString;
use url::Url;

use super::{
    LoginError,
    browser::Listener,
    exchange::{Attempt, Granted, Refused},
    tell, terminal, unless_interrupted,
};
use crate::{
    cli::Login,
    oauth::{ClientAuth, GrantProof, authorization::read_authorization_response},
    policy::commands,
    providers::Redirect,
};

/// How long a person may take.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// An authorization request.
struct Authorization {
    /// What the person opens.
    url: Url,
    /// Where the browser comes back to, if it does.
    redirect_uri: String,
    state: String,
    verifier: SecretString,
}

/// Sends the person to the provider, and hands what they bring back to `store`.
pub(super) async fn sign_in(
    attempt: &Attempt<'_>,
    settings: &Login,
    store: impl AsyncFnOnce(Granted) -> Result<String, LoginError>,
) -> Result<(), LoginError> {
    let endpoint = endpoint(attempt)?;
    match attempt.profile.sign_in.redirect {
        Redirect::Localhost(path) => sign_in_at_localhost(attempt, endpoint, path, settings, store).await,
        Redirect::OutOfBand(uri) => sign_in_out_of_band(attempt, endpoint, uri, settings, store).await,
    }
}

/// The browser brings the code, and shows how it went.
async fn sign_in_at_localhost(
    attempt: &Attempt<'_>,
    endpoint: &str,
    path: &str,
    settings: &Login,
    store: impl AsyncFnOnce(Granted) -> Result<String, LoginError>,
) -> Result<(), LoginError> {
    let listener = Listener::bind(settings.port).await.map_err(|error| {
        LoginError(format!("a port of localhost cannot be listened at ({error}): choose another with `--port`"))
    })?;
    let authorization = authorize(attempt, endpoint, format!("http://localhost:{}{path}", listener.port()))?;
    invite(attempt, "with a browser on this machine", &authorization, settings.no_browser);
    let (state, issuer) = (authorization.state.clone(), attempt.profile.issuer().map(str::to_owned));
    let visit = listener.visit(move |query| read_authorization_response(query, &state, issuer.as_deref()));
    let visit = brought(visit).await?;

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

/// The person brings the code. It comes without its `state`, for which PKCE makes up: a code that somebody else had them
/// paste does not fit the verifier (RFC 9700 section 2.1).
async fn sign_in_out_of_band(
    attempt: &Attempt<'_>,
    endpoint: &str,
    redirect_uri: &str,
    settings: &Login,
    store: impl AsyncFnOnce(Granted) -> Result<String, LoginError>,
) -> Result<(), LoginError> {
    if settings.port.is_some() {
        return Err(LoginError(format!(
            "the browser does not come back to this machine from the provider {}, which shows a code to copy: leave out \
             `--port`",
            attempt.profile.preset
        )));
    }
    let authorization = authorize(attempt, endpoint, redirect_uri.to_owned())?;
    invite(attempt, "with a browser", &authorization, settings.no_browser);
    tell("then paste the code that the last page shows, and press Enter:");
    let line = brought(terminal::line()).await?;
    let code = line.trim();
    if code.is_empty() {
        return Err(LoginError("no code was pasted, and nothing was written: run the command again".to_owned()));
    }
    let granted = exchange(attempt, &authorization, &code.into()).await?;
    store(granted).await.map(drop)
}

/// What a person brings, unless they take too long.
async fn brought<T>(bringing: impl Future<Output = Option<T>>) -> Result<T, LoginError> {
    unless_interrupted(async {
        let brought = tokio::time::timeout(PATIENCE, bringing).await.ok().flatten();
        brought.ok_or_else(|| {
            LoginError("nobody came back from the provider within 5 minutes: run the command again".into())
        })
    })
    .await
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

fn authorize(attempt: &Attempt<'_>, endpoint: &str, redirect_uri: String) -> Result<Authorization, LoginError> {
    let wanted = &attempt.profile.sign_in;
    let invalid = |error: oauth2::url::ParseError| {
        LoginError(format!("the authorization endpoint of the {} is no URL: {error}", attempt.provider()))
    };
    let client = BasicClient::new(ClientId::new(attempt.client_id().to_owned()))
        .set_auth_uri(AuthUrl::new(endpoint.to_owned()).map_err(invalid)?);
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let mut request = client
        .authorize_url(CsrfToken::new_random)
        .set_pkce_challenge(challenge)
        .add_scopes(attempt.scopes.iter().cloned().map(Scope::new))
        // One that is out of band is no URL.
        .add_extra_param("redirect_uri", redirect_uri.clone())
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
fn invite(attempt: &Attempt<'_>, how: &str, authorization: &Authorization, no_browser: bool) {
    let url = authorization.url.as_str();
    tell(&format!("sign in as {} {how}:\n\n{url}\n", attempt.credential.spec.mailbox.user()));
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

#[cfg(test)]
mod tests {
    use super::{super::browser::Visit, Authorization, Granted};
    use crate::oauth::tests::lacks;

    lacks!(std::fmt::Debug: Authorization, Granted, Visit);
    lacks!(std::fmt::Display: Authorization, Granted, Visit);
    lacks!(serde::Serialize: Authorization, Granted, Visit);
}
