//! Hashes that show a change of the inputs without the inputs themselves.

use super::hash::{AttemptHash, InputsHash, LayoutHash, ProviderHash, RevocationHash};
use crate::{
    api::{
        MailCredential,
        credential::{DeletionPolicy, Format},
        names,
        provider::ProviderSpec,
    },
    providers::{Profile, TokenSource},
};

/// The requested scopes: the credential's, otherwise the provider's, otherwise the preset's.
pub fn scopes(credential: &MailCredential, provider: &ProviderSpec, profile: &Profile) -> Vec<String> {
    let spec = &credential.spec;
    match (spec.scopes.is_empty(), provider.scopes.is_empty()) {
        (false, _) => spec.scopes.clone(),
        (true, false) => provider.scopes.clone(),
        (true, true) => (profile.scopes)(provider, credential.spec.grant.kind(), &spec.protocols),
    }
}

/// Hash of the inputs of a token: issuer, client, scopes, grant and subject.
pub fn issued_for(
    credential: &MailCredential,
    provider: &ProviderSpec,
    profile: &Profile,
    scopes: &[String],
) -> InputsHash {
    let exchange = credential.spec.grant.token_exchange.as_ref();
    let exchanged = exchange
        .map(|exchange| [exchange.subject_token_type.as_str(), exchange.audience.as_deref().unwrap_or_default()]);
    // Without parameters, the hash is the same as in earlier versions. Scopes contain no blank, so no scope equals "a
    // parameter".
    let parameters = provider.client.parameters.iter().flat_map(|(name, value)| ["a parameter", name, value]);
    let account = provider.google.as_ref().and_then(|google| google.service_account.as_deref());
    let account = account.into_iter().flat_map(|account| ["a service account", account]);
    let parts = [
        profile.source.identity(),
        &provider.client.id,
        credential.spec.grant.kind().as_str(),
        credential.spec.mailbox.user(),
    ];
    let parts = parts.into_iter().chain(exchanged.into_iter().flatten()).chain(parameters).chain(account);
    names::digest(parts.chain(scopes.iter().map(String::as_str))).into()
}

/// Digest of the inputs of a revocation request: the provider, its token and revocation endpoints, and the client. The
/// broker revokes a token only while this digest is the same as at the exchange. For a provider with a discovery
/// document, the digest has the issuer instead of the endpoints.
pub fn revocable_at(credential: &MailCredential, profile: &Profile, client_id: &str) -> RevocationHash {
    let reference = &credential.spec.provider_ref;
    let endpoint = match &profile.source {
        TokenSource::Known(endpoints) => endpoints.revocation_url.as_deref().unwrap_or_default(),
        TokenSource::Discovery { .. } => "",
    };
    names::digest([reference.kind.as_str(), &reference.name, profile.source.identity(), endpoint, client_id]).into()
}

/// Hash of the inputs of the target Secret's content, except for the token's inputs.
pub fn layout(credential: &MailCredential, profile: &Profile) -> LayoutHash {
    let spec = &credential.spec;
    let mut parts: Vec<String> = vec![spec.mailbox.address.clone(), spec.mailbox.user().to_owned()];
    for protocol in &spec.protocols {
        let server = profile
            .server(*protocol)
            .map(|server| format!("{}:{} {}", server.host, server.port, server.security().as_str()));
        let user = profile.username(credential, *protocol).to_owned();
        parts.extend([protocol.as_str().to_owned(), server.unwrap_or_default(), user]);
    }
    parts.extend(spec.secret.formats.iter().map(|format| format_name(*format).to_owned()));
    for map in [&spec.secret.labels, &spec.secret.annotations, &spec.secret.data] {
        parts.push(map.len().to_string());
        parts.extend(map.iter().flat_map(|(key, value)| [key.clone(), value.clone()]));
    }
    parts.push(
        match spec.secret.deletion_policy {
            DeletionPolicy::Delete => "Delete",
            DeletionPolicy::Retain => "Retain",
        }
        .to_owned(),
    );
    names::short_digest(parts.iter().map(String::as_str)).into()
}

const fn format_name(format: Format) -> &'static str {
    match format {
        Format::XOAuth2 => "XOAuth2",
        Format::OAuthBearer => "OAuthBearer",
        Format::SaslXoauth2 => "SaslXoauth2",
        Format::TokenJson => "TokenJSON",
    }
}

/// Hash of all inputs of an attempt. A change ends the back-off. `sources`: the versions of the Secrets that the
/// credential itself refers to.
pub fn attempt_hash(credential: &MailCredential, provider: &ProviderHash, sources: &[String]) -> AttemptHash {
    let generation = credential.metadata.generation.unwrap_or_default().to_string();
    let reissue = credential.metadata.annotations.as_ref().and_then(|map| map.get(names::ANNOTATION_REISSUE));
    let own = [generation.as_str(), reissue.map_or("", String::as_str), provider.as_str()];
    names::short_digest(own.into_iter().chain(sources.iter().map(String::as_str))).into()
}
