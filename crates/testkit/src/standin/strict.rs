//! A server with the strictest refresh token rotation of RFC 9700 section 4.14: each token is valid for one use. When a
//! token is used twice, the server revokes its family: all tokens of the same sign-in.
//!
//! | path | |
//! |---|---|
//! | `/.well-known/openid-configuration` | the discovery document of [`Strict::issuer`] |
//! | `/token` | the grants `refresh_token`, `client_credentials` and device code |
//! | `/device` | device codes; a poll that comes too soon gets `slow_down` |
//! | `/revoke` | RFC 7009 |

use std::{collections::BTreeMap, net::SocketAddr};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    super::server::{LOOPBACK, Request, Response},
    Provider, StandIn,
    oauth::{Consent, DEVICE_CODE, Decision, Devices, Poll, client, scopes},
    random,
};

/// Lifetime of a device code in seconds.
const SIGN_IN: i64 = 600;

/// A running server with strict rotation.
pub type Strict = StandIn<Families>;

/// The state of the server: clients, families of refresh tokens, and requests.
pub struct Families {
    port: u16,
    /// The secret of each client; `None` for a public client.
    clients: BTreeMap<String, Option<String>>,
    families: Vec<Family>,
    devices: Devices,
    journal: Vec<Exchange>,
    reuses: usize,
    grace: usize,
    lifetime: i64,
}

/// A request by one of the grants `refresh_token` and `client_credentials`.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The time at which the server handled the request.
    pub at: Timestamp,
    /// The account that the token is for, or the client itself.
    pub account: String,
    /// The refresh token in the request.
    pub presented: Option<String>,
    /// The issued access token; `None` if the server refused the request.
    pub issued: Option<String>,
}

/// The refresh tokens of one sign-in. The last one is valid.
struct Family {
    consent: Consent,
    tokens: Vec<String>,
    revoked: bool,
    /// How often the server still accepts the token before the valid one.
    grace: usize,
}

impl Strict {
    /// Starts a server without clients on a free port.
    pub fn start() -> Self {
        Self::start_at(LOOPBACK)
    }

    /// Starts a server without clients at this address.
    pub fn start_at(address: impl Into<SocketAddr>) -> Self {
        Self::serve(address, &["localhost", "127.0.0.1"], |port| Families {
            port,
            clients: BTreeMap::new(),
            families: vec![],
            devices: Devices::new(1),
            journal: vec![],
            reuses: 0,
            grace: 0,
            lifetime: 3600,
        })
    }

    /// Returns the issuer of the discovery document.
    pub fn issuer(&self) -> String {
        self.provider().issuer()
    }

    /// Returns the URL of the token endpoint.
    pub fn token_url(&self) -> String {
        format!("{}/token", self.issuer())
    }

    /// Registers a client. A client without a secret is public.
    pub fn client(&self, id: &str, secret: Option<&str>) {
        self.provider().clients.insert(id.to_owned(), secret.map(str::to_owned));
    }

    /// Sets the lifetime in seconds of access tokens issued later (default 3600).
    pub fn lifetime(&self, seconds: i64) {
        self.provider().lifetime = seconds;
    }

    /// Sets how often the server accepts the token before the valid one, for clients that lost the response (default
    /// 0). Such a retry invalidates the token in the lost response.
    pub fn grace(&self, uses: usize) {
        self.provider().grace = uses;
    }

    /// Sets the number of seconds between two polls for a device code (default 1).
    pub fn poll_interval(&self, seconds: u64) {
        self.provider().devices.interval = seconds;
    }

    /// Issues a refresh token of a new family.
    pub fn refresh_token(&self, client: &str, account: &str, scopes: &str) -> String {
        self.provider().begin(Consent::new(client, account, scopes))
    }

    /// Returns all token requests of the grants without a sign-in, in order.
    pub fn journal(&self) -> Vec<Exchange> {
        self.provider().journal.clone()
    }

    /// Returns how often this refresh token was presented at the token endpoint.
    pub fn presented(&self, refresh_token: &str) -> usize {
        let with = |exchange: &&Exchange| exchange.presented.as_deref() == Some(refresh_token);
        self.provider().journal.iter().filter(with).count()
    }

    /// Returns how often a used token was presented, beyond the grace.
    pub fn reuses(&self) -> usize {
        self.provider().reuses
    }

    /// Returns how many families were revoked, for reuse or on request.
    pub fn families_revoked(&self) -> usize {
        self.provider().families.iter().filter(|family| family.revoked).count()
    }

    /// Whether a refresh token is the valid one of its family.
    pub fn is_valid(&self, refresh_token: &str) -> bool {
        let valid = |family: &Family| !family.revoked && family.tokens.last().is_some_and(|last| last == refresh_token);
        self.provider().families.iter().any(valid)
    }

    /// Returns the owner of an access token: an account, or a client itself. `None` if this server did not issue the
    /// token.
    pub fn account(&self, access_token: &str) -> Option<String> {
        let journal = &self.provider().journal;
        let issued = journal.iter().rev().find(|exchange| exchange.issued.as_deref() == Some(access_token));
        issued.map(|exchange| exchange.account.clone())
    }

    /// Returns the access token that was issued last for an account, or for a client itself.
    pub fn latest(&self, account: &str) -> Option<String> {
        let journal = &self.provider().journal;
        journal.iter().rev().filter(|exchange| exchange.account == account).find_map(|exchange| exchange.issued.clone())
    }

    /// Returns the user codes that no user has entered yet, the oldest first.
    pub fn pending(&self) -> Vec<String> {
        self.provider().devices.pending()
    }

    /// Enters a user code and signs in, as a user does.
    pub fn approve(&self, user_code: &str, account: &str) {
        self.provider().devices.decide(user_code, Decision::Approve(account.to_owned()));
    }

    /// Enters a user code and declines, as a user does.
    pub fn deny(&self, user_code: &str) {
        self.provider().devices.decide(user_code, Decision::Deny);
    }

    /// Makes a user code expire.
    pub fn expire(&self, user_code: &str) {
        self.provider().devices.decide(user_code, Decision::Wait);
    }
}

/// A refusal: the error, and its description.
type Refusal = (&'static str, &'static str);

impl Provider for Families {
    fn answer(&mut self, request: &Request, now: i64) -> Response {
        let answer = match (request.method.as_str(), request.route()) {
            ("GET", "/.well-known/openid-configuration") => return Response::json(200, &self.discovery()),
            ("POST", "/token") => self.token(request, now),
            ("POST", "/device") => self.device(request, now),
            ("POST", "/revoke") => self.revoke(request),
            _ => return Response::text(404, ""),
        };
        match answer {
            Ok(body) => Response::json(200, &body),
            Err((error, said)) => {
                let status = if error == "invalid_client" { 401 } else { 400 };
                Response::json(status, &json!({"error": error, "error_description": said}))
            }
        }
    }
}

impl Families {
    fn issuer(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    fn discovery(&self) -> Value {
        let issuer = self.issuer();
        json!({
            "issuer": issuer, "token_endpoint": format!("{issuer}/token"),
            "device_authorization_endpoint": format!("{issuer}/device"),
            "revocation_endpoint": format!("{issuer}/revoke"), "jwks_uri": format!("{issuer}/jwks"),
            "authorization_endpoint": format!("{issuer}/authorize"), "response_types_supported": ["code"],
            "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["RS256"],
            "grant_types_supported": ["refresh_token", DEVICE_CODE],
        })
    }

    fn authenticate(&self, request: &Request) -> Result<String, Refusal> {
        let (id, secret) = client(request);
        let id = id.ok_or(("invalid_request", "no client_id"))?;
        match self.clients.get(&id) {
            Some(right) if *right == secret => Ok(id),
            Some(_) => Err(("invalid_client", "not the client's secret")),
            None => Err(("invalid_client", "no such client")),
        }
    }

    fn token(&mut self, request: &Request, now: i64) -> Result<Value, Refusal> {
        let (client, form) = (self.authenticate(request)?, request.form());
        match form.get("grant_type").map_or("", String::as_str) {
            "refresh_token" => {
                let token = form.get("refresh_token").ok_or(("invalid_request", "no refresh_token"))?;
                let answer = self.rotate(&client, token, &scopes(&form));
                let family = self.families.iter().find(|family| family.tokens.contains(token));
                let account = family.map(|family| family.consent.account.clone()).unwrap_or_default();
                self.note(account, Some(token), &answer);
                answer
            }
            "client_credentials" => {
                let answer = Ok(self.tokens(None, &scopes(&form)));
                self.note(client, None, &answer);
                answer
            }
            DEVICE_CODE => match self.devices.poll(form.get("device_code"), &client, Some(request.at), now) {
                Poll::Approved(consent) => {
                    let scopes = consent.scopes.clone();
                    let token = self.begin(consent);
                    Ok(self.tokens(Some(&token), &scopes))
                }
                Poll::Pending => Err(("authorization_pending", "no user has entered the code")),
                Poll::TooSoon => Err(("slow_down", "polled too soon: the interval is 5 seconds longer now")),
                Poll::Denied => Err(("access_denied", "declined")),
                Poll::Expired => Err(("expired_token", "the device code has ended")),
                Poll::Unknown | Poll::Spent => Err(("invalid_grant", "no such device code")),
            },
            _ => Err(("unsupported_grant_type", "")),
        }
    }

    fn rotate(&mut self, client: &str, token: &str, asked: &[String]) -> Result<Value, Refusal> {
        let mine =
            |family: &&mut Family| family.consent.client == client && family.tokens.iter().any(|one| one == token);
        let family = self.families.iter_mut().find(mine).ok_or(("invalid_grant", "no such refresh token"))?;
        if family.revoked {
            return Err(("invalid_grant", "the refresh token is revoked"));
        }
        if !asked.iter().all(|scope| family.consent.has(scope)) {
            return Err(("invalid_scope", "more than was granted"));
        }
        let uses_ago = family.tokens.iter().rev().position(|one| one == token);
        match uses_ago {
            Some(0) => family.grace = self.grace,
            Some(1) if family.grace > 0 => {
                family.grace -= 1;
                // Spend the token of the lost response, so that `token` stays the one before the valid token.
                family.tokens.remove(family.tokens.len() - 2);
                family.tokens.push(token.to_owned());
            }
            _ => {
                self.reuses += 1;
                family.revoked = true;
                return Err(("invalid_grant", "the refresh token was used before: its family is revoked"));
            }
        }
        let next = format!("strict-canary-{}", random(40));
        family.tokens.push(next.clone());
        let scopes = if asked.is_empty() { family.consent.scopes.clone() } else { asked.to_vec() };
        Ok(self.tokens(Some(&next), &scopes))
    }

    fn device(&mut self, request: &Request, now: i64) -> Result<Value, Refusal> {
        let client = self.authenticate(request)?;
        let (issuer, interval) = (self.issuer(), self.devices.interval);
        let device = self.devices.begin(&client, scopes(&request.form()), now + SIGN_IN);
        let code = &device.user_code;
        Ok(json!({
            "device_code": device.device_code, "user_code": code, "verification_uri": format!("{issuer}/sign-in"),
            "verification_uri_complete": format!("{issuer}/sign-in?user_code={code}"), "expires_in": SIGN_IN,
            "interval": interval,
        }))
    }

    /// Revokes a token. An unknown token is not an error (RFC 7009 section 2.2).
    fn revoke(&mut self, request: &Request) -> Result<Value, Refusal> {
        let client = self.authenticate(request)?;
        let token = request.form().remove("token").ok_or(("invalid_request", "no token"))?;
        for family in self.families.iter_mut().filter(|family| family.consent.client == client) {
            family.revoked |= family.tokens.contains(&token);
        }
        Ok(json!({}))
    }

    fn begin(&mut self, consent: Consent) -> String {
        let token = format!("strict-canary-{}", random(40));
        let family = Family { consent, tokens: vec![token.clone()], revoked: false, grace: 0 };
        self.families.push(family);
        token
    }

    fn note(&mut self, account: String, presented: Option<&str>, answer: &Result<Value, Refusal>) {
        let issued = answer.as_ref().ok().and_then(|body| body["access_token"].as_str());
        let [presented, issued] = [presented, issued].map(|token| token.map(str::to_owned));
        self.journal.push(Exchange { at: Timestamp::now(), account, presented, issued });
    }

    fn tokens(&self, refresh_token: Option<&str>, scopes: &[String]) -> Value {
        let mut answer = json!({
            "access_token": format!("access-canary-{}", random(40)), "token_type": "Bearer", "expires_in": self.lifetime,
            "scope": scopes.join(" "),
        });
        if let Some(refresh_token) = refresh_token {
            answer["refresh_token"] = refresh_token.into();
        }
        answer
    }
}
