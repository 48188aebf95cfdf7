//! The size of a credential's target Secret with a token of the provider.

use secrecy::ExposeSecret as _;

use crate::{
    api::MailCredential,
    oauth::token::ACCESS_TOKEN_MAX,
    policy::observed::{Provider, Target, UnwrittenToken},
    reconcile::publish,
    render::{self, SECRET_MAX, USUAL_TOKEN},
};

/// Sets the size of the target Secret with the unwritten or published token, or with a token of the usual length.
/// Blocks the provider if the Secret would be too large.
pub(super) fn sized(
    mut provider: Provider,
    credential: &MailCredential,
    target: &Target,
    unwritten: Option<&UnwrittenToken>,
) -> Provider {
    let published = target.own().and_then(|published| published.token.as_ref());
    let reported = credential.status.as_ref().and_then(|status| status.token.as_ref());
    let reported = reported.and_then(|reported| usize::try_from(reported.length).ok()).filter(|length| *length > 0);
    let length = unwritten
        .map(|unwritten| unwritten.answer.token.access_token.expose_secret().len())
        .or_else(|| published.and_then(|token| token.length.or(reported)))
        .or(reported)
        .unwrap_or(USUAL_TOKEN)
        .min(ACCESS_TOKEN_MAX);
    if credential.spec.secret.data.is_empty() {
        // Every other key contains the token at most once, and at most in base64.
        provider.secret_size = (10 * length).min(SECRET_MAX);
        return provider;
    }
    match render::size(credential, &provider.profile, length) {
        Ok(size) => provider.secret_size = size,
        Err(error) => {
            provider.secret_size = SECRET_MAX;
            provider.blocker.get_or_insert_with(|| publish::too_large(credential, &error));
        }
    }
    provider
}
