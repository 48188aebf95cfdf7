//! A sign-in with a browser: the authorization code flow with PKCE (RFC 6749 section 4.1, RFC 7636, RFC 8252).

use axum::http::StatusCode;
use oauth2::{AuthUrl, ClientId, CsrfToken, PkceCodeChallenge, PkceCodeVerifier, Scope, basic::BasicClient};
use secrecy::SecretString;
use url::Url;

use crate::{
    login::{
        LoginError,
        browser::{Callback, Expected, Listener, Loopback, OpenedTwice},
        destination,
        exchange::{Attempt, Granted, Refused, unique},
        paste::{self, Pasted},
        show, terminal,
        way::Way,
        within_limit,
    },
    oauth::{ClientAuth, GrantProof, Refusal, authorization::read_authorization_response},
    policy::commands,
    settings::Login,
};

/// The line that a user sees in the terminal while the browser is at the provider.
const WAITING: &str = "waiting at most 5 minutes for the browser to return. If your browser is on another machine, press \
                       Ctrl-C and run the command again with `--paste`";

/// An authorization request, and the secrets that its response needs.
struct Authorization {
    /// The URL that the user opens.
    url: Url,
    /// The redirect URI to which the provider sends the browser.
    redirect_uri: String,
    state: String,
    verifier: SecretString,
}

/// Sends the user to the provider, exchanges the code, and passes the refresh token to `store`.
pub(super) async fn sign_in(
    attempt: &Attempt<'_>,
    settings: &Login,
    store: impl AsyncFnOnce(Granted) -> Result<String, LoginError>,
) -> Result<(), LoginError> {
    let endpoint = endpoint(attempt)?;
    let way = Way::choose(settings, attempt.profile.preset, attempt.profile.sign_in.redirect)?;
    destination::confirm(attempt, settings, endpoint).await?;
    match way {
        Way::Listen { loopback, port, path } => {
            let listener = Listener::bind(loopback, port).await.map_err(|error| {
                LoginError(format!(
                    "login cannot listen at a port of {} ({error}): choose another with `--port`",
                    loopback.host()
                ))
            })?;
            let redirect_uri = format!("http://{}:{}{path}", loopback.host(), listener.port());
            let authorization = authorize(attempt, endpoint, redirect_uri)?;
            sign_in_at(attempt, listener, path, authorization, settings, store).await
        }
        Way::PasteAddress(uri) => {
            let authorization = authorize(attempt, endpoint, uri)?;
            let wanted = "then copy the address of the page at which the browser ends, also if that page shows an error, \
                          paste it here, and press Enter:";
            sign_in_by_hand(attempt, authorization, ("address", wanted, paste::address), settings, store).await
        }
        Way::PasteCode(uri) => {
            let authorization = authorize(attempt, endpoint, uri)?;
            let wanted = "then paste the code that the last page shows, and press Enter:";
            sign_in_by_hand(attempt, authorization, ("code", wanted, paste::code), settings, store).await
        }
    }
}

/// Receives the code at the listener. The last page in the browser shows the result.
async fn sign_in_at(
    attempt: &Attempt<'_>,
    listener: Listener,
    path: String,
    authorization: Authorization,
    settings: &Login,
    store: impl AsyncFnOnce(Granted) -> Result<String, LoginError>,
) -> Result<(), LoginError> {
    let start = format!("/{}", unique());
    let page = format!("{}{start}", listener.origin());
    let (state, issuer) = (authorization.state.clone(), attempt.profile.issuer().map(str::to_owned));
    let accept = move |query: &str| read_authorization_response(query, &state, issuer.as_deref());
    let callback = listener.receive(Expected { path, start, url: authorization.url.clone(), accept });
    let callback = async {
        // `select!` polls the listener first, so that the listener answers when the browser opens.
        let printed = async {
            print_address(
                attempt,
                "with a browser on this machine",
                &authorization,
                (!settings.no_browser).then_some(&page),
            );
            show(WAITING);
            std::future::pending().await
        };
        tokio::select! { biased; callback = callback => callback, never = printed => never }
    };
    let Ok(callback) = within_limit(callback).await? else { return Err(opened_twice_error()) };

    let outcome = match &callback.response {
        Err(refusal) => Err(refused(attempt, refusal)),
        Ok(code) => match exchange(attempt, &authorization, code).await {
            Ok(granted) => store(granted).await,
            Err(error) => Err(error),
        },
    };
    let (status, page) = match &outcome {
        Ok(words) => (StatusCode::OK, format!("Signed in: {words}.\n\nYou can close this window.\n")),
        Err(error) => (StatusCode::BAD_REQUEST, format!("Not signed in: {error}.\n")),
    };
    callback.close(status, page).await;
    outcome.map(drop)
}

fn opened_twice_error() -> LoginError {
    LoginError(
        "the page that redirects to the provider was opened twice. If you did not open it twice, another user of this \
         machine did. Nothing was written. Run the command again, with `--no-browser` if the browser itself opens pages \
         twice"
            .to_owned(),
    )
}

/// Serves a local page that redirects to the provider. Returns `None` if the listener cannot bind a port.
async fn start_page(
    authorization: &Authorization,
) -> Option<(String, impl Future<Output = Option<Result<Callback, OpenedTwice>>>)> {
    let listener = Listener::bind(Loopback::V4, None).await.ok()?;
    let start = format!("/{}", unique());
    let page = format!("{}{start}", listener.origin());
    let expected = Expected { path: "/".to_owned(), start, url: authorization.url.clone(), accept: |_: &str| None };
    let callback = tokio::spawn(listener.receive(expected));
    Some((page, async { callback.await.ok().flatten() }))
}

/// Parameters of the authorization request that only the sign-in sets. The API server rejects further names in
/// `spec.client.parameters`.
const OWN_PARAMETERS: [&str; 5] = ["response_type", "state", "code_challenge", "code_challenge_method", "login_hint"];

/// Reads a pasted line. The other arguments are the `state` and the issuer of the sign-in.
type Reader = fn(&str, &str, Option<&str>) -> Pasted;

/// Reads the code, or the address that contains the code, from the terminal.
async fn sign_in_by_hand(
    attempt: &Attempt<'_>,
    authorization: Authorization,
    (what, wanted, read): (&str, &str, Reader),
    settings: &Login,
    store: impl AsyncFnOnce(Granted) -> Result<String, LoginError>,
) -> Result<(), LoginError> {
    // `--paste` is for a browser on another machine. The user opens that browser.
    let page = if settings.no_browser || settings.paste { None } else { start_page(&authorization).await };
    print_address(attempt, "with a browser", &authorization, page.as_ref().map(|(page, _)| page));
    let opened_twice = async {
        if let Some((_, callback)) = page
            && let Some(Err(OpenedTwice)) = callback.await
        {
            return;
        }
        std::future::pending().await
    };
    let mut opened_twice = std::pin::pin!(opened_twice);
    show(wanted);
    let code = loop {
        let line = tokio::select! {
            line = within_limit(terminal::line()) => line?,
            () = &mut opened_twice => return Err(opened_twice_error()),
        };
        if line.trim().is_empty() {
            return Err(LoginError(format!("no {what} was pasted, and nothing was written: run the command again")));
        }
        match read(&line, &authorization.state, attempt.profile.issuer()) {
            Pasted::Response(Ok(code)) => break code,
            Pasted::Response(Err(refusal)) => return Err(refused(attempt, &refusal)),
            Pasted::Unusable(why) => show(why),
        }
    };
    let granted = exchange(attempt, &authorization, &code).await?;
    store(granted).await.map(drop)
}

fn refused(attempt: &Attempt<'_>, refusal: &Refusal) -> LoginError {
    attempt.explain(Refused { refusal: attempt.refined(refusal.clone(), &ClientAuth::Public), entry: None })
}

fn endpoint<'a>(attempt: &'a Attempt<'_>) -> Result<&'a str, LoginError> {
    attempt.resolved.endpoints.authorization_url.as_deref().ok_or_else(|| {
        let device = commands::sign_in(attempt.credential);
        LoginError(match attempt.profile.preset {
            "oauth2" => format!(
                "the {} has no spec.oauth2.authorizationURL, the page to open in a browser: add it, or sign in with \
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
        LoginError(format!("the authorization endpoint of the {} is not a URL: {error}", attempt.provider()))
    };
    let client = BasicClient::new(ClientId::new(attempt.client_id().to_owned()))
        .set_auth_uri(AuthUrl::new(endpoint.to_owned()).map_err(invalid)?);
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let mut request = client
        .authorize_url(CsrfToken::new_random)
        .set_pkce_challenge(challenge)
        .add_scopes(attempt.scopes.iter().cloned().map(Scope::new))
        // The redirect URI `oob` is not a URL, so `set_redirect_uri` rejects it.
        .add_extra_param("redirect_uri", redirect_uri.clone())
        .add_extra_param("login_hint", attempt.credential.spec.mailbox.user());
    for (name, value) in wanted.parameters {
        request = request.add_extra_param(*name, *value);
    }
    for (name, value) in &attempt.object.spec().client.parameters {
        if !OWN_PARAMETERS.contains(&name.as_str()) && wanted.parameters.iter().all(|(own, _)| own != name) {
            request = request.add_extra_param(name.clone(), value.clone());
        }
    }
    let (url, state) = request.url();
    Ok(Authorization {
        url,
        redirect_uri,
        state: state.into_secret(),
        verifier: PkceCodeVerifier::into_secret(verifier).into(),
    })
}

/// Prints the URL, and opens a browser at `page`, if there is one. Always prints the URL, because the wrong browser or
/// no browser may open. The browser starts with `page` instead of the URL: other users can read the arguments of a
/// process, and the URL contains `state`.
fn print_address(attempt: &Attempt<'_>, how: &str, authorization: &Authorization, page: Option<&String>) {
    let url = authorization.url.as_str();
    show(&format!("sign in as {} {how}:\n\n{url}\n", attempt.credential.spec.mailbox.user()));
    if page.is_some_and(|page| open::that_detached(page).is_err()) {
        show("login could not open a browser: open the address yourself");
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
    use mailtoken_core::lacks;

    use crate::login::code::{Authorization, Callback, Granted};

    lacks!(std::fmt::Debug: Authorization, Granted, Callback);
    lacks!(std::fmt::Display: Authorization, Granted, Callback);
    lacks!(serde::Serialize: Authorization, Granted, Callback);
}
