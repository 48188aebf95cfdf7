//! Fastmail.
//!
//! Sources: "OAuth" (<https://www.fastmail.com/developer/oauth/>), which has the errors of RFC 6749, and Thunderbird's
//! registration. Each refresh returns a new refresh token. A second use of an old refresh token revokes the grant.

use super::{Profile, TokenSource, servers};
use crate::{
    api::{
        credential::Protocol,
        grant::GrantType,
        provider::{ProviderSpec, Servers},
    },
    oauth::discovery::Endpoints,
};

pub(super) fn profile(given: &Servers) -> Profile {
    let source = TokenSource::Known(Endpoints {
        token_url: "https://api.fastmail.com/oauth/refresh".to_owned(),
        device_authorization_url: None,
        revocation_url: Some("https://api.fastmail.com/oauth/revoke".to_owned()),
        authorization_url: Some("https://api.fastmail.com/oauth/authorize".to_owned()),
    });
    let servers = servers(given, Some(["smtp.fastmail.com", "imap.fastmail.com", "pop.fastmail.com"]));
    Profile { scopes, ..Profile::new("fastmail", source, servers, &[GrantType::RefreshToken]) }
}

fn scopes(_: &ProviderSpec, _: GrantType, protocols: &[Protocol]) -> Vec<String> {
    let scope = |protocol: &Protocol| match protocol {
        Protocol::Smtp => "https://www.fastmail.com/dev/protocol-smtp",
        Protocol::Imap => "https://www.fastmail.com/dev/protocol-imap",
        Protocol::Pop3 => "https://www.fastmail.com/dev/protocol-pop",
    };
    protocols.iter().map(|protocol| scope(protocol).to_owned()).collect()
}
