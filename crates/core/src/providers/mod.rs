//! Knowledge about providers as data: endpoints, scopes, mail servers, unsupported features, and the meaning of their error
//! codes and tokens.
//!
//! `ARCHITECTURE.md` lists the steps for a new provider.

pub mod account;
mod fastmail;
mod generic;
mod google;
pub mod keyless;
mod microsoft;
mod yahoo;

use k8s_openapi::jiff::SignedDuration;

use self::account::Accounts;
use crate::{
    api::{
        Reason,
        credential::Protocol,
        grant::GrantType,
        provider::{ProviderSpec, Security, Server, Servers},
    },
    oauth::{Claims, ClientAuth, Refusal, discovery::Endpoints},
};

/// The properties of a provider, with the preset's values.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The name of the preset, for metrics.
    pub preset: &'static str,
    /// The source of the provider's endpoints.
    pub source: TokenSource,
    /// The mail servers by protocol.
    pub servers: Servers,
    /// The grants that the provider supports.
    pub grants: &'static [GrantType],
    /// The requirements of a user's sign-in in addition to the scopes for mail.
    pub sign_in: SignIn,
    /// The rules for the provider's accounts.
    pub accounts: Accounts,
    /// Whether client secrets are never GUIDs, so that a GUID must be the secret's ID.
    pub guid_is_no_secret: bool,
    /// Returns the preset's scopes by grant and protocols.
    pub scopes: fn(&ProviderSpec, GrantType, &[Protocol]) -> Vec<String>,
    /// Returns why a use that the schema allows cannot work. `None`: the use can work.
    pub unsupported: fn(&ProviderSpec, GrantType, &[String]) -> Option<String>,
    /// Refines a refusal by the provider's own error codes.
    pub refine: fn(&mut Refusal, &RefusalContext),
    /// Returns why mail servers will refuse a token with these claims for these protocols.
    pub unsuitable: fn(&Claims, &ProviderSpec, GrantType, &[Protocol]) -> Option<String>,
    /// Lifetime of a refresh token without use, if known.
    pub idle_life: Option<SignedDuration>,
    /// Whether a replaced refresh token stays valid.
    pub keeps_replaced_tokens: bool,
}

/// The requirements of a user's sign-in in addition to the scopes for mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignIn {
    /// Scopes that make the provider name the account (OpenID Connect Core section 5.4) and return a refresh token. A
    /// refresh does not need these scopes.
    pub scopes: &'static [&'static str],
    /// Parameters of the authorization request in addition to the parameters of RFC 6749 section 4.1.1.
    pub parameters: &'static [(&'static str, &'static str)],
    /// How the browser returns the code.
    pub redirect: Redirect,
    /// The issuer in the browser's response (RFC 9207), if the provider has no discovery document.
    pub issuer: Option<&'static str>,
}

impl Default for SignIn {
    fn default() -> Self {
        Self { scopes: &[], parameters: &[], redirect: Redirect::Localhost("/"), issuer: None }
    }
}

/// Ways in which the browser returns the code of a sign-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// The browser returns automatically to `http://localhost:PORT` and this path (RFC 8252 section 7.3).
    Localhost(&'static str),
    /// The provider's page shows the code, and the user copies it. The value is the redirect URI.
    OutOfBand(&'static str),
}

/// The properties of a refused request.
#[derive(Clone, Copy, Debug)]
pub struct RefusalContext {
    /// The grant of the refused request.
    pub grant: GrantType,
    /// Time from the user's sign-in to the refusal, for a refused refresh token.
    pub grant_age: Option<SignedDuration>,
    /// Whether the client or the grant used a JWT, which contains times.
    pub assertion: bool,
}

impl RefusalContext {
    /// Creates the context of a request for a `grant` by a client with the authentication `auth`.
    pub fn new(grant: GrantType, auth: &ClientAuth, grant_age: Option<SignedDuration>) -> Self {
        let timeless = matches!(auth, ClientAuth::Public | ClientAuth::SecretPost(_) | ClientAuth::SecretBasic(_));
        Self { grant, grant_age, assertion: !timeless }
    }
}

/// Sources of a provider's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// The broker knows the endpoints without a request.
    Known(Endpoints),
    /// The issuer's discovery document names the endpoints.
    Discovery {
        /// The URL of the issuer.
        issuer: String,
    },
}

impl TokenSource {
    /// The identity of the issuer, as far as the broker knows it without a request. It is a part of
    /// `mailtoken.dev/issued-for`.
    pub fn identity(&self) -> &str {
        match self {
            Self::Known(endpoints) => &endpoints.token_url,
            Self::Discovery { issuer } => issuer,
        }
    }
}

impl Profile {
    /// Creates the profile of a provider without further knowledge.
    fn new(preset: &'static str, source: TokenSource, servers: Servers, grants: &'static [GrantType]) -> Self {
        Self {
            preset,
            source,
            servers,
            grants,
            sign_in: SignIn::default(),
            accounts: Accounts::default(),
            guid_is_no_secret: false,
            scopes: |_, _, _| vec![],
            unsupported: |_, _, _| None,
            refine: general,
            unsuitable: |_, _, _, _| None,
            idle_life: None,
            keeps_replaced_tokens: false,
        }
    }

    /// The required issuer of the browser's response to a sign-in (RFC 9207), if known.
    pub fn issuer(&self) -> Option<&str> {
        match &self.source {
            TokenSource::Discovery { issuer } => Some(issuer),
            TokenSource::Known(_) => self.sign_in.issuer,
        }
    }

    /// The server for `protocol`, if known.
    pub fn server(&self, protocol: Protocol) -> Option<&Server> {
        match protocol {
            Protocol::Smtp => self.servers.smtp.as_ref(),
            Protocol::Imap => self.servers.imap.as_ref(),
            Protocol::Pop3 => self.servers.pop3.as_ref(),
        }
    }
}

/// Returns the profile of a provider. `None`: the schema rejects the spec.
pub fn profile(spec: &ProviderSpec) -> Option<Profile> {
    if let Some(settings) = &spec.microsoft {
        return Some(microsoft::profile(settings, &spec.servers));
    }
    if spec.google.is_some() {
        return Some(google::profile(&spec.servers));
    }
    if spec.yahoo.is_some() {
        return Some(yahoo::profile(&spec.servers));
    }
    if spec.fastmail.is_some() {
        return Some(fastmail::profile(&spec.servers));
    }
    generic::profile(spec)
}

/// The servers of a preset on the ports of RFC 6409, 8314 and 3501. Servers in the spec override them. `hosts`: the
/// hosts for SMTP, IMAP and POP3.
fn servers(given: &Servers, hosts: Option<[&str; 3]>) -> Servers {
    let [smtp, imap, pop3] = hosts.map_or([None; 3], |hosts| hosts.map(Some));
    let server = |given: &Option<Server>, host: Option<&str>, port, security| {
        given.clone().or_else(|| Some(Server { host: host?.to_owned(), port, security: Some(security) }))
    };
    Servers {
        smtp: server(&given.smtp, smtp, 587, Security::StartTls),
        imap: server(&given.imap, imap, 993, Security::Tls),
        pop3: server(&given.pop3, pop3, 995, Security::Tls),
    }
}

/// Refines a refusal by rules that hold for all providers.
fn general(refusal: &mut Refusal, context: &RefusalContext) {
    let denied = refusal.error.as_ref().is_some_and(|error| error.as_str() == "access_denied");
    if denied && !context.grant.is_delegated() && refusal.reason == Reason::AuthorizationRequired {
        // No user signs in for this grant, so an administrator has not allowed the request.
        refusal.reason = Reason::ConsentRequired;
    }
    reclassify_clock_skew(refusal, context);
}

/// If the clocks differ, a provider that refuses an assertion most likely found it too old or too new. Without an
/// assertion, the request contains no time, and the message only mentions the difference.
fn reclassify_clock_skew(refusal: &mut Refusal, context: &RefusalContext) {
    let code = refusal.error.as_ref().map(|error| error.as_str());
    if !matches!(code, Some("invalid_grant" | "invalid_client" | "invalid_request")) || is_throttled(refusal) {
        return;
    }
    if let Some(skew) = refusal.skew {
        let way = if skew.is_positive() { "ahead of" } else { "behind" };
        refusal.what += &format!("; its clock is {} s {way} the broker's", skew.abs().as_secs());
    }
    if context.assertion && (refusal.skew.is_some() || refusal.untimely) {
        refusal.reason = Reason::ClockSkew;
    }
}

/// Whether the provider limits requests. The status 429 suffices, whatever the body contains.
fn is_throttled(refusal: &Refusal) -> bool {
    refusal.http_status == Some(429)
}

#[cfg(test)]
mod tests;
