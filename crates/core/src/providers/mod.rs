//! What is known about providers, as data: endpoints, scopes, mail servers, what does not work, and what their error
//! codes and tokens mean.
//!
//! To add a provider: a field in `api::provider::ProviderSpec`, a file here that makes its [`Profile`], an arm in
//! [`profile`].

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

/// A provider as its object describes it, presets filled in.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Which preset it is, for metrics.
    pub preset: &'static str,
    /// Where tokens come from.
    pub source: TokenSource,
    /// The mail servers.
    pub servers: Servers,
    /// The grants that work there.
    pub grants: &'static [GrantType],
    /// What a person's sign-in takes besides the scopes for mail.
    pub sign_in: SignIn,
    /// How accounts are named there.
    pub accounts: Accounts,
    /// Its client secrets are never GUIDs, so one that is must be the secret's ID.
    pub guid_is_no_secret: bool,
    /// The scopes of the preset, by grant and protocols.
    pub scopes: fn(&ProviderSpec, GrantType, &[Protocol]) -> Vec<String>,
    /// Why a use of it that the schema allows cannot work.
    pub unsupported: fn(&ProviderSpec, GrantType, &[String]) -> Option<String>,
    /// What its own error codes add to a refusal.
    pub refine: fn(&mut Refusal, &RefusalContext),
    /// What a token says of itself that will not do for these protocols.
    pub unsuitable: fn(&Claims, &ProviderSpec, GrantType, &[Protocol]) -> Option<String>,
    /// A refresh token that is not used for this long ends.
    pub idle_life: Option<SignedDuration>,
    /// A refresh token stays good after another one took its place.
    pub keeps_replaced_tokens: bool,
}

/// What a person's sign-in takes besides the scopes for mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignIn {
    /// Scopes by which the answer says who signed in (OpenID Connect Core section 5.4), and which bring a refresh token. A
    /// refresh does not need them.
    pub scopes: &'static [&'static str],
    /// Parameters of the authorization request beyond those of RFC 6749 section 4.1.1.
    pub parameters: &'static [(&'static str, &'static str)],
    /// How the code comes back.
    pub redirect: Redirect,
    /// Who the browser's answer says that it is from (RFC 9207), where the provider has no discovery document.
    pub issuer: Option<&'static str>,
}

impl Default for SignIn {
    fn default() -> Self {
        Self { scopes: &[], parameters: &[], redirect: Redirect::Localhost("/"), issuer: None }
    }
}

/// How the code of a sign-in comes back from the browser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// By itself, to `http://localhost:PORT` and this path (RFC 8252 section 7.3).
    Localhost(&'static str),
    /// The provider's page shows it, for the person to copy; this is the redirect URI then.
    OutOfBand(&'static str),
}

/// The request that was refused.
#[derive(Clone, Copy, Debug)]
pub struct RefusalContext {
    /// The grant that was asked for.
    pub grant: GrantType,
    /// How long ago the refresh token that was refused was obtained from a person.
    pub grant_age: Option<SignedDuration>,
    /// The client proved itself, or the grant, by a JWT, which holds times.
    pub assertion: bool,
}

impl RefusalContext {
    /// A request for a `grant` by a client that proved itself with `auth`.
    pub fn new(grant: GrantType, auth: &ClientAuth, grant_age: Option<SignedDuration>) -> Self {
        let timeless = matches!(auth, ClientAuth::Public | ClientAuth::SecretPost(_) | ClientAuth::SecretBasic(_));
        Self { grant, grant_age, assertion: !timeless }
    }
}

/// Where tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// Endpoints that are known.
    Known(Endpoints),
    /// Endpoints that the issuer's discovery document tells.
    Discovery {
        /// The issuer.
        issuer: String,
    },
}

impl TokenSource {
    /// What a token was issued by, as far as it is known without asking: part of `mailtoken.dev/issued-for`.
    pub fn identity(&self) -> &str {
        match self {
            Self::Known(endpoints) => &endpoints.token_url,
            Self::Discovery { issuer } => issuer,
        }
    }
}

impl Profile {
    /// A provider of which nothing more is known.
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

    /// Who the browser's answer to a sign-in has to be from (RFC 9207), if that is known.
    pub fn issuer(&self) -> Option<&str> {
        match &self.source {
            TokenSource::Discovery { issuer } => Some(issuer),
            TokenSource::Known(_) => self.sign_in.issuer,
        }
    }

    /// The server for `protocol`, if one is known.
    pub fn server(&self, protocol: Protocol) -> Option<&Server> {
        match protocol {
            Protocol::Smtp => self.servers.smtp.as_ref(),
            Protocol::Imap => self.servers.imap.as_ref(),
            Protocol::Pop3 => self.servers.pop3.as_ref(),
        }
    }
}

/// The profile of a provider. `None` only for a spec that the schema refuses.
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

/// The servers of a preset on the ports of RFC 6409, 8314 and 3501; those in the spec win. `hosts` are for SMTP, IMAP and POP3.
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

/// What a refusal means at any provider.
fn general(refusal: &mut Refusal, context: &RefusalContext) {
    let denied = refusal.error.as_ref().is_some_and(|error| error.as_str() == "access_denied");
    if denied && !context.grant.is_delegated() && refusal.reason == Reason::AuthorizationRequired {
        // No person signs in who could have denied it: an administrator has not allowed it.
        refusal.reason = Reason::ConsentRequired;
    }
    reclassify_clock_skew(refusal, context);
}

/// An assertion that is refused while the clocks differ was most likely found too old or too new. Without one, no time is
/// sent, and the difference is only told.
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

/// HTTP 429 says all that there is to say, whatever the body.
fn is_throttled(refusal: &Refusal) -> bool {
    refusal.http_status == Some(429)
}

#[cfg(test)]
mod tests;
