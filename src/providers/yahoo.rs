//! Yahoo Mail.
//!
//! Sources: the discovery document of api.login.yahoo.com, and Yahoo's "IMAP and SMTP access" and "Authorization Code Flow
//! for Server-side Apps" for developers. A new refresh token takes the place of the old one, and a change of the password
//! ends it.

use super::{Profile, Redirect, SignIn, TokenSource, servers};
use crate::{
    api::{grant::GrantType, provider::Servers},
    oauth::discovery::Endpoints,
};

/// The profile of Yahoo.
pub(super) fn profile(given: &Servers) -> Profile {
    let source = TokenSource::Known(Endpoints {
        token_url: "https://api.login.yahoo.com/oauth2/get_token".to_owned(),
        device_authorization_url: None,
        revocation_url: Some("https://api.login.yahoo.com/oauth2/revoke".to_owned()),
        authorization_url: Some("https://api.login.yahoo.com/oauth2/request_auth".to_owned()),
    });
    let servers = servers(given, Some(["smtp.mail.yahoo.com", "imap.mail.yahoo.com", "pop.mail.yahoo.com"]));
    Profile {
        // A redirect URI that is registered has to be https, which nothing on the person's machine answers to.
        sign_in: SignIn { redirect: Redirect::OutOfBand("oob"), ..SignIn::default() },
        scopes: |_, _, _| vec!["mail-w".to_owned()],
        ..Profile::new("yahoo", source, servers, &[GrantType::RefreshToken])
    }
}
