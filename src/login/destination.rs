//! Who gets what the person consents to, where that is not the host of the page at which they sign in.

use url::Url;

use crate::{
    cli::Login,
    login::{LoginError, brought, exchange::Attempt, tell, terminal},
};

/// What a sign-in at `page` brings is sent to the token endpoint. Where that has another host, the author of the provider's
/// object, or of its discovery document, may be after the sign-in: a genuine page, and a code that goes elsewhere (RFC 9700
/// section 4.4; RFC 8628 section 5.4). So the person is told of it first and confirms it. The presets' hosts are known.
pub(super) async fn confirm(attempt: &Attempt<'_>, settings: &Login, page: &str) -> Result<(), LoginError> {
    if !matches!(attempt.profile.preset, "oidc" | "oauth2") {
        return Ok(());
    }
    let (page, destination) = (host(page), host(&attempt.resolved.endpoints.token_url));
    if page == destination {
        return Ok(());
    }
    tell(&format!(
        "the page to sign in at is on {page}, but the response will be sent to {destination}, which the {} names as its \
         token endpoint",
        attempt.provider()
    ));
    if settings.token_host.as_deref() == Some(destination.as_str()) {
        return Ok(());
    }
    tell(&format!(
        "whoever runs {destination} gets the access that you consent to. If you trust it with the account {}, type yes and \
         press Enter:",
        attempt.credential.spec.mailbox.user()
    ));
    match brought(terminal::line()).await?.trim() {
        "yes" => Ok(()),
        _ => Err(LoginError(format!(
            "it was not confirmed that the response may go to {destination}: nothing was sent and nothing was written. Answer \
             yes, or add `--token-host {destination}`"
        ))),
    }
}

/// Host and port of a URL, the port only if it is not 443.
fn host(url: &str) -> String {
    let url = Url::parse(url).ok();
    let host = url.as_ref().and_then(|url| Some((url.host_str()?, url.port())));
    match host {
        Some((host, Some(port))) => format!("{host}:{port}"),
        Some((host, None)) => host.to_owned(),
        None => "an unknown host".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_compared_with_its_port() {
        assert_eq!(host("https://ID.example.org/authorize"), host("https://id.example.org:443/token"));
        assert_ne!(host("https://id.example.org/authorize"), host("https://id.example.org:8443/token"));
        assert_eq!(host("https://[::1]:8443/x"), "[::1]:8443");
        assert_ne!(host("not a url"), host("https://id.example.org"));
    }
}
