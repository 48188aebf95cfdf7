//! A stand-in of Google's OAuth server, as mail needs it: service accounts with domain-wide delegation, sign-in in a
//! browser, refresh tokens.
//!
//! | host and path | |
//! |---|---|
//! | `oauth2.googleapis.com/token` | the token endpoint |
//! | `oauth2.googleapis.com/revoke` | revocation |
//! | `accounts.google.com/o/oauth2/v2/auth` | signs the account of [`Google::sign_in_as`] in immediately |
//! | `sts.googleapis.com`, `iamcredentials.googleapis.com` | [`super::workload`] |
//!
//! Sources: "Using OAuth 2.0 for Server to Server Applications", "OAuth 2.0 for Mobile & Desktop Apps" (Google Identity),
//! and published answers of the service where these have no text. The stand-in is stricter than Google in one point: a
//! sign-in requires PKCE by S256.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use super::{
    super::server::{LOOPBACK, Request, Response},
    Provider, StandIn, guid,
    jwt::{Jwt, Key, PublicKey},
    oauth::{CodeFlaw, Codes, Consent, JWT_BEARER, client, is_loopback, redirect, scopes},
    random,
    workload::{self, Workload},
};

/// The hosts.
pub const HOSTS: [&str; 4] = ["oauth2.googleapis.com", "accounts.google.com", workload::HOSTS[0], workload::HOSTS[1]];
/// The URL of the token endpoint, which is the audience of assertions.
pub const TOKEN_URL: &str = "https://oauth2.googleapis.com/token";
/// Maximum lifetime of an assertion in seconds.
const HOUR: i64 = 3600;
/// Maximum difference of two clocks in seconds.
const SKEW: i64 = 300;
/// `refresh_token_expires_in` of an application whose publishing status is "Testing".
const SEVEN_DAYS: i64 = 604_799;

/// A running stand-in of Google.
pub type Google = StandIn<Directory>;

/// The state of the stand-in: accounts, clients, settings and tokens.
pub struct Directory {
    key: Key,
    accounts: BTreeMap<String, Registered>,
    delegated: BTreeMap<String, BTreeSet<String>>,
    mailboxes: BTreeSet<String>,
    clients: BTreeMap<String, String>,
    codes: Codes,
    /// Authorization codes that were requested with `access_type=offline`. Only these codes give a refresh token.
    offline: BTreeSet<String>,
    /// The consent for each refresh token.
    grants: HashMap<String, Consent>,
    access: Tokens,
    account: Option<String>,
    lifetime: i64,
    token_length: usize,
    testing: bool,
    workload: Workload,
}

/// The access tokens that are valid or have expired.
#[derive(Clone, Default)]
pub struct Tokens(Arc<Mutex<HashMap<String, Access>>>);

/// The rights of an access token.
#[derive(Clone)]
pub struct Access {
    /// The account whose mailbox the token opens.
    pub account: String,
    /// The scopes of the token.
    pub scopes: Vec<String>,
    expires: i64,
    /// The refresh token from which the access token was issued, if any.
    refresh_token: Option<String>,
}

impl Tokens {
    /// Returns the rights of a token that is valid at `now`, in seconds since 1970.
    pub fn find(&self, token: &str, now: i64) -> Option<Access> {
        self.0.lock().unwrap().get(token).filter(|access| now < access.expires).cloned()
    }
}

struct Registered {
    client_id: String,
    keys: BTreeMap<String, PublicKey>,
}

/// A service account with one key.
pub struct ServiceAccount {
    /// The account's address, which is the `iss` of its assertions.
    pub email: String,
    /// The numeric client ID, to which the Admin console delegates.
    pub client_id: String,
    /// The key that signs assertions.
    pub key: Key,
}

impl ServiceAccount {
    /// Returns the JSON key file, as Google offers it for download.
    pub fn key_file(&self) -> String {
        let Self { email, client_id, key } = self;
        let project = email.split(['@', '.']).nth(1).unwrap_or_default();
        let certificates = "https://www.googleapis.com";
        let file = json!({
            "type": "service_account",
            "project_id": project,
            "private_key_id": key.id,
            "private_key": key.pem(),
            "client_email": email,
            "client_id": client_id,
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": TOKEN_URL,
            "auth_provider_x509_cert_url": format!("{certificates}/oauth2/v1/certs"),
            "client_x509_cert_url": format!("{certificates}/robot/v1/metadata/x509/{}", email.replace('@', "%40")),
            "universe_domain": "googleapis.com",
        });
        serde_json::to_string_pretty(&file).unwrap()
    }
}

impl Google {
    /// Starts a stand-in without accounts on a free port.
    pub fn start() -> Self {
        Self::start_at(LOOPBACK)
    }

    /// Starts a stand-in without accounts at this address.
    pub fn start_at(address: impl Into<SocketAddr>) -> Self {
        let names = [&HOSTS[..], &["localhost"]].concat();
        Self::serve(address, &names, |_| Directory {
            key: Key::generate(),
            accounts: BTreeMap::new(),
            delegated: BTreeMap::new(),
            mailboxes: BTreeSet::new(),
            clients: BTreeMap::new(),
            codes: Codes::default(),
            offline: BTreeSet::new(),
            grants: HashMap::new(),
            access: Tokens::default(),
            account: None,
            lifetime: 3599,
            token_length: 1024,
            testing: false,
            workload: Workload::default(),
        })
    }

    /// Creates a service account, or another key of a service account.
    pub fn service_account(&self, name: &str) -> ServiceAccount {
        let email = format!("{name}@mail-project.iam.gserviceaccount.com");
        let client_id = format!("1{:020}", u64::from_str_radix(&guid(&email)[..8], 16).unwrap());
        let key = Key::generate();
        let mut provider = self.provider();
        let registered = Registered { client_id: client_id.clone(), keys: BTreeMap::new() };
        let keys = &mut provider.accounts.entry(email.clone()).or_insert(registered).keys;
        keys.insert(key.id.clone(), key.public());
        ServiceAccount { email, client_id, key }
    }

    /// Deletes a key of a service account.
    pub fn delete_key(&self, account: &ServiceAccount) {
        self.provider().accounts.get_mut(&account.email).unwrap().keys.remove(&account.key.id);
    }

    /// Makes a provider of a workload identity pool trust an issuer's tokens, or only the tokens of `subject`. The
    /// provider's `audience` begins with `//iam.googleapis.com/projects/`.
    pub fn trust_issuer(&self, audience: &str, issuer: &str, jwks: Value, subject: Option<&str>) {
        self.provider().workload.provider(audience, issuer, jwks, subject);
    }

    /// Deletes a provider of a workload identity pool.
    pub fn delete_provider(&self, audience: &str) {
        self.provider().workload.delete_provider(audience);
    }

    /// Grants roles/iam.serviceAccountTokenCreator on an account to a principal.
    pub fn let_sign(&self, account: &ServiceAccount, principal: &str) {
        self.provider().workload.let_sign(&account.email, principal);
    }

    /// Disables the Security Token Service and the IAM Credentials API, or enables them again.
    pub fn switch_apis(&self, off: bool) {
        self.provider().workload.off = off;
    }

    /// Delegates exactly these scopes to a service account by its client ID, as the Admin console does.
    pub fn delegate(&self, client_id: &str, scopes: &[&str]) {
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        self.provider().delegated.insert(client_id.to_owned(), scopes);
    }

    /// Adds a mailbox to the organisation.
    pub fn mailbox(&self, address: &str) {
        self.provider().mailboxes.insert(address.to_owned());
    }

    /// Registers an OAuth client of the type Desktop app.
    pub fn client(&self, id: &str, secret: &str) {
        self.provider().clients.insert(id.to_owned(), secret.to_owned());
    }

    /// Sets the lifetime in seconds of access tokens issued later (default 3599).
    pub fn lifetime(&self, seconds: i64) {
        self.provider().lifetime = seconds;
    }

    /// Sets the number of characters of access tokens issued later (default 1,024).
    pub fn token_length(&self, characters: usize) {
        self.provider().token_length = characters;
    }

    /// Sets the publishing status to "Testing", in which refresh tokens are valid for seven days and responses say so.
    pub fn testing(&self, testing: bool) {
        self.provider().testing = testing;
    }

    /// Issues a refresh token for a user's consent to these scopes.
    pub fn refresh_token(&self, client: &str, account: &str, scopes: &str) -> String {
        self.provider().keep(Consent::new(client, account, scopes))
    }

    /// Revokes all refresh tokens of a user, as a change of the password does.
    pub fn revoke_grants(&self, account: &str) {
        self.provider().grants.retain(|_, consent| consent.account != account);
    }

    /// Whether a refresh token is valid.
    pub fn is_valid(&self, refresh_token: &str) -> bool {
        self.provider().grants.contains_key(refresh_token)
    }

    /// Returns the access tokens. The result also shows tokens that the stand-in issues later.
    pub fn tokens(&self) -> Tokens {
        self.provider().access.clone()
    }

    /// Sets the account that signs in immediately at the authorization endpoint. With `None`, the default, the user
    /// declines.
    pub fn sign_in_as(&self, account: Option<&str>) {
        self.provider().account = account.map(str::to_owned);
    }
}

/// A refusal: the status, the error, and its description.
type Refusal = (u16, &'static str, &'static str);

impl Provider for Directory {
    fn answer(&mut self, request: &Request, now: i64) -> Response {
        let answer = match (request.method.as_str(), request.route()) {
            ("POST", "/token") => self.token(request, now),
            ("POST", "/revoke") => self.revoke(request),
            ("POST", "/v1/token") => return self.workload.exchange(request, now),
            ("POST", path) if path.ends_with(":signJwt") => return self.sign(request, now),
            ("GET", "/o/oauth2/v2/auth") => return self.authorize(&request.query()),
            _ => return Response::text(404, ""),
        };
        match answer {
            Ok(body) => Response::json(200, &body),
            Err((status, error, "")) => Response::json(status, &json!({"error": error})),
            Err((status, error, said)) => Response::json(status, &json!({"error": error, "error_description": said})),
        }
    }
}

impl Directory {
    /// Signs a JWT with the key by which Google signs for the account.
    fn sign(&mut self, request: &Request, now: i64) -> Response {
        let account = request.route().trim_start_matches("/v1/projects/-/serviceAccounts/");
        let account = account.trim_end_matches(":signJwt");
        let Some(registered) = self.accounts.get_mut(account) else {
            return self.workload.sign(request, account, false, now);
        };
        let key = self.workload.key(account);
        registered.keys.insert(key.id.clone(), key.public());
        self.workload.sign(request, account, true, now)
    }

    fn authorize(&mut self, query: &BTreeMap<String, String>) -> Response {
        let known = query.get("client_id").is_some_and(|id| self.clients.contains_key(id));
        if !known || query.get("redirect_uri").is_none_or(|uri| !is_loopback(uri)) {
            let error = if known { "redirect_uri_mismatch" } else { "invalid_client" };
            return Response::text(400, &format!("Error 400: {error}\n"));
        }
        let Some(account) = self.account.clone() else { return redirect(query, &[("error", "access_denied")]) };
        let code = self.codes.issue(query, &account);
        let granted = scopes(query).join(" ");
        match code.filter(|_| query.get("response_type").is_some_and(|kind| kind == "code")) {
            Some(code) => {
                if query.get("access_type").is_some_and(|kind| kind == "offline") {
                    self.offline.insert(code.clone());
                }
                redirect(query, &[("code", &format!("4/{code}")), ("scope", &granted)])
            }
            None => redirect(query, &[("error", "invalid_request")]),
        }
    }

    fn token(&mut self, request: &Request, now: i64) -> Result<Value, Refusal> {
        let form = request.form();
        match form.get("grant_type").map_or("", String::as_str) {
            JWT_BEARER => self.delegation(&form, now),
            "refresh_token" => self.refresh(request, &form, now),
            "authorization_code" => self.redeem(request, form, now),
            "" => Err((400, "invalid_request", "Missing required parameter: grant_type")),
            _ => Err((400, "unsupported_grant_type", "Invalid grant_type: ")),
        }
    }

    /// Exchanges the assertion of a service account, for itself or for a mailbox (domain-wide delegation).
    fn delegation(&mut self, form: &BTreeMap<String, String>, now: i64) -> Result<Value, Refusal> {
        let assertion =
            form.get("assertion").ok_or((400, "invalid_request", "Missing required parameter: assertion"))?;
        let jwt = Jwt::read(assertion).ok_or((400, "invalid_grant", "Invalid JWT: Malformed token."))?;
        let account = self.accounts.get(jwt.text("iss"));
        let account = account.ok_or((400, "invalid_grant", "Invalid grant: account not found"))?;
        let kid = jwt.header["kid"].as_str();
        let mut keys = account.keys.iter().filter(|(id, _)| kid.is_none_or(|kid| kid == id.as_str()));
        if !keys.any(|(_, key)| jwt.signed_by(key, &["RS256"])) {
            return Err((400, "invalid_grant", "Invalid JWT Signature."));
        }
        if jwt.claims["aud"] != TOKEN_URL {
            return Err((
                400,
                "invalid_grant",
                "Invalid JWT: Failed audience check. The right audience is https://oauth2.googleapis.com/token",
            ));
        }
        let (from, until) = (jwt.time("iat").unwrap_or_default(), jwt.time("exp").unwrap_or_default());
        if from > now + SKEW || until <= now - SKEW || until <= from || until - from > HOUR {
            return Err((
                400,
                "invalid_grant",
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your \
                 iat and exp values in the JWT claim.",
            ));
        }
        let asked: Vec<_> = jwt.text("scope").split_whitespace().collect();
        if asked.is_empty() {
            return Err((400, "invalid_scope", "Invalid OAuth scope or ID token audience provided."));
        }
        let subject = jwt.text("sub");
        if !subject.is_empty() && subject != jwt.text("iss") {
            if !self.mailboxes.contains(subject) {
                return Err((400, "invalid_grant", "Invalid email or User ID"));
            }
            let delegated = self.delegated.get(&account.client_id);
            if !delegated.is_some_and(|delegated| asked.iter().all(|scope| delegated.contains(*scope))) {
                return Err((
                    401,
                    "unauthorized_client",
                    "Client is unauthorized to retrieve access tokens using this method, or client not authorized for \
                     any of the scopes requested.",
                ));
            }
        }
        let asked = asked.into_iter().map(str::to_owned).collect();
        let account = if subject.is_empty() { jwt.text("iss") } else { subject };
        Ok(self.tokens("ya29.c.", account, asked, None, now))
    }

    /// Exchanges a refresh token. Google does not replace refresh tokens, so the response has none.
    fn refresh(&mut self, request: &Request, form: &BTreeMap<String, String>, now: i64) -> Result<Value, Refusal> {
        let client = self.authenticate(request)?;
        let token = form.get("refresh_token").cloned();
        let token = token.ok_or((400, "invalid_request", "Missing required parameter: refresh_token"))?;
        let consent = self.grants.get(&token).ok_or((400, "invalid_grant", "Token has been expired or revoked."))?;
        if consent.client != client {
            return Err((401, "unauthorized_client", "Unauthorized"));
        }
        let asked = scopes(form);
        if !asked.iter().all(|scope| consent.has(scope)) {
            return Err((400, "invalid_scope", "Bad Request"));
        }
        let granted = if asked.is_empty() { consent.scopes.clone() } else { asked };
        let (scope, account) = (granted.join(" "), consent.account.clone());
        let mut body = self.tokens("ya29.a0", &account, granted, Some(token), now);
        body["scope"] = json!(scope);
        Ok(body)
    }

    fn redeem(&mut self, request: &Request, mut form: BTreeMap<String, String>, now: i64) -> Result<Value, Refusal> {
        let client = self.authenticate(request)?;
        if let Some(code) = form.get_mut("code") {
            *code = code.trim_start_matches("4/").to_owned();
        }
        let consent = self.codes.redeem(&form, &client).map_err(|flaw| match flaw {
            CodeFlaw::Unknown => (400, "invalid_grant", "Malformed auth code."),
            CodeFlaw::Spent => (400, "invalid_grant", "Bad Request"),
            CodeFlaw::RedirectUri => (400, "redirect_uri_mismatch", "Bad Request"),
            CodeFlaw::Verifier => (400, "invalid_grant", "Invalid code verifier."),
        })?;
        let offline = form.get("code").is_some_and(|code| self.offline.contains(code));
        let token = offline.then(|| self.keep(consent.clone()));
        let mut body = self.tokens("ya29.a0", &consent.account, consent.scopes.clone(), token.clone(), now);
        body["scope"] = json!(consent.scopes.join(" "));
        if let Some(token) = token {
            body["refresh_token"] = json!(token);
        }
        if consent.has("openid") {
            body["id_token"] = json!(self.id_token(&consent, now));
        }
        Ok(body)
    }

    fn authenticate(&self, request: &Request) -> Result<String, Refusal> {
        let (id, secret) = client(request);
        let id = id.ok_or((400, "invalid_request", "Could not determine client ID from request."))?;
        let right = self.clients.get(&id).ok_or((401, "invalid_client", "The OAuth client was not found."))?;
        match secret {
            None => Err((400, "invalid_request", "client_secret is missing.")),
            Some(secret) if secret != *right => Err((401, "invalid_client", "Unauthorized")),
            Some(_) => Ok(id),
        }
    }

    /// Revokes a token. "The token can be an access token or a refresh token. If the token is an access token and it
    /// has a corresponding refresh token, the refresh token will also be revoked." An error has the status 400.
    fn revoke(&mut self, request: &Request) -> Result<Value, Refusal> {
        let token = request.form().remove("token").or_else(|| request.query().remove("token"));
        let token = token.ok_or((400, "invalid_request", "Missing required parameter: token"))?;
        let mut access = self.access.0.lock().unwrap();
        let refresh_token = match access.remove(&token) {
            Some(access) => access.refresh_token,
            None if self.grants.contains_key(&token) => Some(token),
            None => return Err((400, "invalid_token", "Token expired or revoked")),
        };
        if let Some(refresh_token) = refresh_token {
            self.grants.remove(&refresh_token);
            access.retain(|_, behind| behind.refresh_token.as_ref() != Some(&refresh_token));
        }
        Ok(json!({}))
    }

    fn tokens(
        &mut self,
        prefix: &str,
        account: &str,
        scopes: Vec<String>,
        refresh_token: Option<String>,
        now: i64,
    ) -> Value {
        let mut token = format!("{prefix}{}", random(self.token_length));
        token.truncate(self.token_length);
        let mut body = json!({"access_token": token, "expires_in": self.lifetime, "token_type": "Bearer"});
        if self.testing && refresh_token.is_some() {
            body["refresh_token_expires_in"] = json!(SEVEN_DAYS);
        }
        let access = Access { account: account.to_owned(), scopes, expires: now + self.lifetime, refresh_token };
        self.access.0.lock().unwrap().insert(token, access);
        body
    }

    fn id_token(&self, consent: &Consent, now: i64) -> String {
        let Consent { client, account, nonce, .. } = consent;
        let subject: String = guid(account).bytes().map(|byte| char::from(b'0' + byte % 10)).take(21).collect();
        let mut claims = json!({
            "iss": "https://accounts.google.com", "azp": client, "aud": client, "sub": subject, "iat": now,
            "exp": now + HOUR, "hd": account.split('@').next_back(),
        });
        if consent.has("email") {
            claims["email"] = json!(account);
            claims["email_verified"] = json!(true);
        }
        if let Some(nonce) = nonce {
            claims["nonce"] = json!(nonce);
        }
        self.key.jwt(&claims)
    }

    /// Issues a refresh token.
    fn keep(&mut self, consent: Consent) -> String {
        let token = format!("1//0{}", random(72));
        self.grants.insert(token.clone(), consent);
        token
    }
}
