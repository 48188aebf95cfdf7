//! Applications registered in Microsoft Entra ID, and their client authentication.
//!
//! Sources: "Certificate credentials" and "Workload identity federation" (identity platform documentation).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    aadsts::{Refusal, time},
    guid,
    jwt::{Certificate, Jwt, PublicKey},
    oauth::CLIENT_ASSERTION,
};

/// Maximum difference of two clocks in seconds.
const SKEW: i64 = 300;
/// Maximum lifetime of an assertion in seconds: "5-10 minutes after `nbf` at most" (certificate credentials).
const ASSERTION_MAX: i64 = 600;

/// An application registered in the tenant, with all application permissions for mail.
#[derive(Clone, Debug)]
pub struct App {
    /// The Application (client) ID.
    pub id: String,
    secrets: Vec<(String, Validity)>,
    certificates: Vec<Certificate>,
    federated: Vec<Federated>,
    pub(super) roles: Vec<String>,
    public: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Validity {
    Valid,
    Expired,
}

#[derive(Clone, Debug)]
struct Federated {
    issuer: String,
    subject: String,
    audience: String,
}

/// The facts against which the stand-in checks an assertion.
pub(super) struct Realm<'a> {
    /// The URL of the token endpoint, in all its forms.
    pub audiences: &'a [String],
    /// Key sets by issuer.
    pub issuers: &'a BTreeMap<String, Value>,
    /// Every `jti` used so far.
    pub seen: &'a mut BTreeSet<String>,
    pub now: i64,
}

impl App {
    /// Creates an application without credentials.
    pub fn new(id: &str) -> Self {
        let roles = ["SMTP.SendAsApp", "IMAP.AccessAsApp", "POP.AccessAsApp"].map(str::to_owned).to_vec();
        Self { id: id.to_owned(), secrets: vec![], certificates: vec![], federated: vec![], roles, public: false }
    }

    /// Adds a client secret.
    pub fn secret(mut self, value: &str) -> Self {
        self.secrets.push((value.to_owned(), Validity::Valid));
        self
    }

    /// Adds an expired client secret.
    pub fn expired_secret(mut self, value: &str) -> Self {
        self.secrets.push((value.to_owned(), Validity::Expired));
        self
    }

    /// Adds a certificate in PEM.
    pub fn certificate(mut self, pem: &str) -> Self {
        self.certificates.push(Certificate::read(pem));
        self
    }

    /// Adds a federated credential. Its audience is `api://AzureADTokenExchange`, except in China.
    pub fn federated(mut self, issuer: &str, subject: &str, audience: &str) -> Self {
        let [issuer, subject, audience] = [issuer, subject, audience].map(str::to_owned);
        self.federated.push(Federated { issuer, subject, audience });
        self
    }

    /// Sets the application permissions, possibly none.
    pub fn roles(mut self, roles: &[&str]) -> Self {
        self.roles = roles.iter().map(|role| (*role).to_owned()).collect();
        self
    }

    /// Sets "Allow public client flows": users may sign in without a credential of the application.
    pub fn public(mut self) -> Self {
        self.public = true;
        self
    }

    /// Returns the object id of the Enterprise application. The application's tokens have it as `oid`, which Exchange
    /// checks.
    pub fn object_id(&self) -> String {
        guid(&format!("service principal of {}", self.id))
    }

    /// Verifies the client authentication of a request, for a user's grant or the application's own grant.
    pub(super) fn authenticate(
        &self,
        secret: Option<&str>,
        form: &BTreeMap<String, String>,
        app_only: bool,
        realm: Realm<'_>,
    ) -> Result<(), Refusal> {
        let assertion = form.get("client_assertion");
        let credentials = self.secrets.len() + self.certificates.len() + self.federated.len();
        match (secret, assertion) {
            (None, None) if self.public && !app_only => Ok(()),
            (None, None) => Err(Refusal::new(7000218, &[])),
            _ if credentials == 0 => Err(Refusal::new(700025, &[])),
            (_, Some(assertion)) => {
                if form.get("client_assertion_type").is_none_or(|kind| kind != CLIENT_ASSERTION) {
                    return Err(Refusal::new(900144, &["client_assertion_type"]));
                }
                let jwt = Jwt::read(assertion).ok_or_else(|| Refusal::new(50027, &[]))?;
                if jwt.text("iss") == self.id { self.own(&jwt, realm) } else { self.foreign(&jwt, &realm) }
            }
            (Some(secret), None) => match self.secrets.iter().find(|(known, _)| known == secret) {
                Some((_, Validity::Valid)) => Ok(()),
                Some((_, Validity::Expired)) => Err(Refusal::new(7000222, &[&self.id])),
                None => Err(Refusal::new(7000215, &[&self.id])),
            },
        }
    }

    /// Verifies an assertion signed with the key of a registered certificate.
    fn own(&self, jwt: &Jwt, realm: Realm<'_>) -> Result<(), Refusal> {
        let thumbprints = [&jwt.header["x5t#S256"], &jwt.header["x5t"]];
        let named = |certificate: &&Certificate| {
            *thumbprints[0] == certificate.sha256 || (thumbprints[0].is_null() && *thumbprints[1] == certificate.sha1)
        };
        let shown = thumbprints.iter().find_map(|thumbprint| thumbprint.as_str()).unwrap_or_default();
        let flaw = |reason: &str| Err(Refusal::new(700027, &[reason, shown]));
        let Some(certificate) = self.certificates.iter().find(named) else { return flaw("The key was not found.") };
        if !jwt.signed_by(&certificate.key, &["PS256", "RS256"]) {
            return flaw("The provided signature value did not match the expected signature value.");
        }
        if !realm.audiences.iter().any(|audience| jwt.is_for(audience)) {
            return Err(Refusal::new(700023, &[]));
        }
        if jwt.text("sub") != self.id {
            return Err(Refusal::new(700021, &[]));
        }
        in_time(jwt, realm.now, ASSERTION_MAX)?;
        let unique = jwt.text("jti");
        if unique.is_empty() || !realm.seen.insert(unique.to_owned()) {
            return flaw("The jti is missing or was presented before.");
        }
        Ok(())
    }

    /// Verifies an assertion of another identity provider, such as Kubernetes: "issuer, subject and audience must match
    /// exactly".
    fn foreign(&self, jwt: &Jwt, realm: &Realm<'_>) -> Result<(), Refusal> {
        if self.federated.is_empty() {
            return Err(Refusal::new(70025, &[&self.id]));
        }
        let (issuer, subject) = (jwt.text("iss"), jwt.text("sub"));
        let of_issuer: Vec<_> = self.federated.iter().filter(|known| known.issuer == issuer).collect();
        if of_issuer.is_empty() {
            return Err(Refusal::new(700211, &[issuer]));
        }
        let of_audience: Vec<_> = of_issuer.into_iter().filter(|known| jwt.is_for(&known.audience)).collect();
        if of_audience.is_empty() {
            let audience = jwt.claims["aud"].as_array().map_or(&jwt.claims["aud"], |several| &several[0]);
            return Err(Refusal::new(700212, &[audience.as_str().unwrap_or_default()]));
        }
        if !of_audience.iter().any(|known| known.subject == subject) {
            return Err(Refusal::new(700213, &[subject]));
        }
        let key = realm.issuers.get(issuer).and_then(|jwks| PublicKey::find(jwks, &jwt.header["kid"]));
        let Some(key) = key else { return Err(Refusal::new(50013, &["The key was not found."])) };
        // "Only issuers that provide tokens signed using the RS256 algorithm are supported".
        if !jwt.signed_by(&key, &["RS256"]) {
            let reason = "The provided signature value did not match the expected signature value.";
            return Err(Refusal::new(50013, &[reason]));
        }
        in_time(jwt, realm.now, i64::MAX)
    }
}

fn in_time(jwt: &Jwt, now: i64, longest: i64) -> Result<(), Refusal> {
    let from = jwt.time("nbf").or_else(|| jwt.time("iat")).unwrap_or_default();
    let until = jwt.time("exp").unwrap_or_default();
    if from - SKEW <= now && now < until + SKEW && until - from <= longest {
        return Ok(());
    }
    Err(Refusal::new(700024, &[&time(now), &time(from), &time(until)]))
}
