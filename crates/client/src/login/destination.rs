//! The confirmation that a sign-in needs if the token endpoint has another host than the sign-in page.

use url::Url;

use crate::{
    login::{LoginError, exchange::Attempt, show, terminal, within_limit},
    settings::Login,
};

/// Asks the user to confirm the host of the token endpoint if it differs from the host of `page`, the sign-in page.
///
/// `login` sends the response of a sign-in to the token endpoint. The author of the provider's object, or of its
/// discovery document, chose both hosts. An attacker could combine a genuine sign-in page with the attacker's token
/// endpoint (RFC 9700 section 4.4; RFC 8628 section 5.4). The hosts of the presets are fixed, so they need no
/// confirmation.
pub(super) async fn confirm(attempt: &Attempt<'_>, settings: &Login, page: &str) -> Result<(), LoginError> {
    if !matches!(attempt.profile.preset, "oidc" | "oauth2") {
        return Ok(());
    }
    let (page, destination) = (host(page), host(&attempt.resolved.endpoints.token_url));
    if page == destination {
        return Ok(());
    }
    show(&format!(
        "the sign-in page is on {page}, but the response will be sent to {destination}, the token endpoint of the {}",
        attempt.provider()
    ));
    if settings.token_host.as_deref() == Some(destination.as_str()) {
        return Ok(());
    }
    show(&format!(
        "the operator of {destination} gets the access that you consent to. If you trust this host with the account {}, \
         type yes and press Enter:",
        attempt.credential.spec.mailbox.user()
    ));
    match within_limit(terminal::line()).await?.trim() {
        "yes" => Ok(()),
        _ => Err(LoginError(format!(
            "you did not confirm that the response may go to {destination}: nothing was sent and nothing was written. Answer \
             yes, or add `--token-host {destination}`"
        ))),
    }
}

/// Returns the host of a URL, with its port if the port is not 443.
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
