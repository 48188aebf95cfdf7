//! The answers of [`Entra`].

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{
    super::server::{Request, Response},
    Provider,
    aadsts::{Refusal, time},
    app::{App, Realm},
    guid,
    microsoft::{Entra, Grant, TENANT, TENANT_ID},
    oauth::{CodeFlaw, Consent, DEVICE_CODE, Poll, client, is_loopback, redirect, scopes},
    random,
};

/// Names in a path that are not a single tenant.
const SHARED: [&str; 3] = ["common", "organizations", "consumers"];
/// Scopes that do not belong to a resource.
const OPENID: [&str; 4] = ["openid", "profile", "email", "offline_access"];
/// The delegated permissions of Exchange Online for mail.
const DELEGATED: [&str; 4] = ["SMTP.Send", "IMAP.AccessAsUser.All", "POP.AccessAsUser.All", ".default"];
/// "From the moment the request is sent, the user has 15 minutes to sign in" (device authorization grant), in seconds.
const SIGN_IN: i64 = 900;

impl Provider for Entra {
    fn answer(&mut self, request: &Request, now: i64) -> Response {
        let path: Vec<_> = request.route().trim_start_matches('/').split('/').collect();
        let [tenant, "oauth2", "v2.0", endpoint] = path[..] else { return Response::text(404, "") };
        if (endpoint, request.method.as_str()) == ("authorize", "GET") {
            return self.authorize(tenant, &request.query()).unwrap_or_else(|refusal| refusal.page());
        }
        let answer = match (endpoint, request.method.as_str()) {
            ("token", "POST") => self.token(tenant, request, now),
            ("devicecode", "POST") => self.device_code(tenant, &request.form(), now),
            _ => return Response::text(404, ""),
        };
        answer.map_or_else(|refusal| refusal.response(self.cloud.host(), now), |body| Response::json(200, &body))
    }
}

impl Entra {
    fn authorize(&mut self, tenant: &str, query: &BTreeMap<String, String>) -> Result<Response, Refusal> {
        let app = self.app(tenant, query.get("client_id"))?;
        let redirect_uri = query.get("redirect_uri").map_or("", String::as_str);
        if !is_loopback(redirect_uri) {
            return Err(Refusal::new(50011, &[redirect_uri, &app.id]));
        }
        let flaw = self.delegated(&scopes(query), 700022).err();
        let flaw =
            flaw.or_else(|| (query.get("response_type")? != "code").then(|| Refusal::new(70003, &["authorize"])));
        if let Some(flaw) = flaw {
            return Ok(redirect(query, &[("error", flaw.error())]));
        }
        let Some(account) = self.account.clone() else {
            let said = "AADSTS65004: User declined to consent to access the app.";
            return Ok(redirect(query, &[("error", "access_denied"), ("error_description", said)]));
        };
        Ok(match self.codes.issue(query, &account) {
            Some(code) => redirect(query, &[("code", &code), ("session_state", &guid(&random(9)))]),
            None => redirect(query, &[("error", "invalid_request")]),
        })
    }

    fn device_code(&mut self, tenant: &str, form: &BTreeMap<String, String>, now: i64) -> Result<Value, Refusal> {
        let client = self.app(tenant, form.get("client_id"))?.id.clone();
        let asked = scopes(form);
        if asked.is_empty() {
            return Err(Refusal::new(900144, &["scope"]));
        }
        self.delegated(&asked, 700022)?;
        let (page, interval) = (self.cloud.device_login(), self.devices.interval);
        let device = self.devices.begin(&client, asked, now + SIGN_IN);
        let code = &device.user_code;
        Ok(json!({
            "user_code": code, "device_code": device.device_code, "verification_uri": page, "expires_in": SIGN_IN,
            "interval": interval,
            "message": format!("To sign in, use a web browser to open the page {page} and enter the code {code} to authenticate."),
        }))
    }

    fn token(&mut self, tenant: &str, request: &Request, now: i64) -> Result<Value, Refusal> {
        let form = request.form();
        let (client_id, secret) = client(request);
        let missing = |name: &'static str| Refusal::new(900144, &[name]);
        let grant_type = form.get("grant_type").ok_or_else(|| missing("grant_type"))?;
        let app_only = grant_type == "client_credentials";
        if app_only && ["common", "consumers"].contains(&tenant) {
            return Err(Refusal::new(9001023, &[]));
        }
        let app = self.app(tenant, client_id.as_ref())?.clone();
        let mut names: Vec<_> = TENANT.iter().chain([&TENANT_ID]).collect();
        names.push(&tenant);
        let audiences: Vec<_> =
            names.iter().map(|name| format!("https://{}/{name}/oauth2/v2.0/token", self.cloud.host())).collect();
        let realm = Realm { audiences: &audiences, issuers: &self.issuers, seen: &mut self.seen, now };
        app.authenticate(secret.as_deref(), &form, app_only, realm)?;
        match grant_type.as_str() {
            "client_credentials" => self.app_only(&app, &scopes(&form), now),
            "refresh_token" => self.refresh(&app, &form, now),
            "authorization_code" => {
                let consent = self.codes.redeem(&form, &app.id).map_err(|flaw| match flaw {
                    CodeFlaw::Unknown => Refusal::new(70000, &["code"]),
                    CodeFlaw::Spent => Refusal::new(54005, &[]),
                    CodeFlaw::RedirectUri => {
                        Refusal::new(500112, &[form.get("redirect_uri").map_or("", String::as_str)])
                    }
                    CodeFlaw::Verifier => Refusal::new(501481, &[]),
                })?;
                let asked = consent.scopes.clone();
                self.signed_in(consent, &asked, now)
            }
            DEVICE_CODE => match self.devices.poll(form.get("device_code"), &app.id, None, now) {
                Poll::Approved(consent) => {
                    let asked = consent.scopes.clone();
                    self.signed_in(consent, &asked, now)
                }
                Poll::Pending | Poll::TooSoon => Err(Refusal::new(70016, &[])),
                Poll::Denied => Err(Refusal::new(65004, &[])),
                Poll::Expired => Err(Refusal::new(70019, &[])),
                Poll::Unknown => Err(Refusal::new(70018, &[])),
                Poll::Spent => Err(Refusal::new(90120, &[])),
            },
            other => Err(Refusal::new(70003, &[other])),
        }
    }

    /// Returns the application that the request names, if it is in the tenant that the request names.
    fn app(&self, tenant: &str, client_id: Option<&String>) -> Result<&App, Refusal> {
        let client_id = client_id.ok_or_else(|| Refusal::new(900144, &["client_id"]))?;
        if SHARED.contains(&tenant) {
            return Err(Refusal::new(50194, &[client_id]));
        }
        if !TENANT.iter().chain([&TENANT_ID]).any(|known| known.eq_ignore_ascii_case(tenant)) {
            return Err(Refusal::new(90002, &[tenant]));
        }
        self.apps.get(client_id).ok_or_else(|| Refusal::new(700016, &[client_id, "Contoso"]))
    }

    fn app_only(&self, app: &App, asked: &[String], now: i64) -> Result<Value, Refusal> {
        let [scope] = asked else {
            let several = asked.join(" ");
            return Err(if asked.is_empty() {
                Refusal::new(90014, &["scope"])
            } else {
                Refusal::new(70011, &[&several])
            });
        };
        let Some(resource) = scope.strip_suffix("/.default") else { return Err(Refusal::new(1002012, &[scope])) };
        if !self.cloud.resources().contains(&resource) {
            return Err(Refusal::new(500011, &[resource, "Contoso"]));
        }
        let mut claims = json!({"oid": app.object_id(), "sub": app.object_id(), "idtyp": "app"});
        if !app.roles.is_empty() {
            claims["roles"] = json!(app.roles);
        }
        Ok(self.tokens(resource, &app.id, claims, now))
    }

    /// Exchanges a refresh token. "Refresh tokens replace themselves with a fresh token upon every use. … the old
    /// refresh token isn't revoked".
    fn refresh(&mut self, app: &App, form: &BTreeMap<String, String>, now: i64) -> Result<Value, Refusal> {
        let token = form.get("refresh_token").ok_or_else(|| Refusal::new(900144, &["refresh_token"]))?;
        let grant = self.grants.get(token).filter(|grant| grant.consent.client == app.id);
        let grant = grant.ok_or_else(|| Refusal::new(70000, &["refresh_token"]))?;
        if let Some(code) = grant.ended {
            let until = if code == 700082 { "90.00:00:00".to_owned() } else { time(now) };
            return Err(Refusal::new(code, &[&time(grant.issued), &until]));
        }
        let consent = grant.consent.clone();
        let asked = scopes(form);
        let asked = if asked.is_empty() { consent.scopes.clone() } else { asked };
        self.delegated(&asked, 28000)?;
        let ungranted = |scope: &&String| !OPENID.contains(&scope.as_str()) && !consent.has(scope);
        if asked.iter().find(ungranted).is_some() {
            return Err(Refusal::new(65001, &[&app.id]));
        }
        self.signed_in(consent, &asked, now)
    }

    fn signed_in(&mut self, consent: Consent, asked: &[String], now: i64) -> Result<Value, Refusal> {
        let resource = self.delegated(asked, 28000)?;
        let granted: Vec<_> = asked.iter().filter(|scope| !OPENID.contains(&scope.as_str())).collect();
        let names: Vec<_> = granted.iter().filter_map(|scope| Some(scope.rsplit_once('/')?.1)).collect();
        let person = guid(&consent.account);
        let claims = json!({
            "oid": person, "sub": random(32), "scp": names.join(" "), "idtyp": "user", "upn": consent.account,
            "unique_name": consent.account, "name": consent.account,
        });
        let mut body = self.tokens(&resource, &consent.client, claims, now);
        body["scope"] = json!(granted.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" "));
        if asked.iter().any(|scope| scope == "openid") {
            body["id_token"] = json!(self.id_token(&consent, asked, &person, now));
        }
        if consent.has("offline_access") {
            body["refresh_token"] = json!(self.keep(consent, now));
        }
        Ok(body)
    }

    /// Returns the resource of delegated scopes. Refuses scopes of several resources with `code`.
    fn delegated(&self, asked: &[String], code: u32) -> Result<String, Refusal> {
        let all = asked.join(" ");
        let mut found = BTreeSet::new();
        for scope in asked.iter().filter(|scope| !OPENID.contains(&scope.as_str())) {
            let (resource, permission) = scope.rsplit_once('/').ok_or_else(|| Refusal::new(70011, &[&all]))?;
            found.insert(resource.to_owned());
            if self.cloud.resources().contains(&resource) && !DELEGATED.contains(&permission) {
                return Err(Refusal::new(70011, &[&all]));
            }
        }
        match found.len() {
            0 => Err(Refusal::new(70011, &[&all])),
            1 => found
                .pop_first()
                .filter(|resource| self.cloud.resources().contains(&resource.as_str()))
                .ok_or_else(|| Refusal::new(500011, &[&all, "Contoso"])),
            _ => Err(Refusal::new(code, &[&all])),
        }
    }

    /// Returns a token response. Tokens for Exchange have the version 1.0.
    fn tokens(&self, resource: &str, client: &str, claims: Value, now: i64) -> Value {
        let own = json!({
            "aud": resource, "iss": format!("https://sts.windows.net/{TENANT_ID}/"), "tid": TENANT_ID, "appid": client,
            "iat": now - 300, "nbf": now - 300, "exp": now + self.lifetime, "ver": "1.0", "uti": random(16),
        });
        let access_token = self.key.jwt(&merged(own, claims));
        let mut body = json!({
            "token_type": "Bearer", "expires_in": self.lifetime, "ext_expires_in": self.lifetime,
            "access_token": access_token,
        });
        if let Some(seconds) = self.refresh_in {
            body["refresh_in"] = json!(seconds);
        }
        body
    }

    fn id_token(&self, consent: &Consent, asked: &[String], person: &str, now: i64) -> String {
        let host = self.cloud.host();
        let mut claims = json!({
            "aud": consent.client, "iss": format!("https://{host}/{TENANT_ID}/v2.0"), "tid": TENANT_ID, "oid": person,
            "sub": random(32), "iat": now, "nbf": now, "exp": now + 3600, "ver": "2.0",
        });
        let more = [
            ("profile", "preferred_username", Some(&consent.account)),
            ("profile", "name", Some(&consent.account)),
            ("email", "email", Some(&consent.account)),
            ("openid", "nonce", consent.nonce.as_ref()),
        ];
        for (scope, claim, value) in more {
            if let Some(value) = value.filter(|_| asked.iter().any(|asked| asked == scope)) {
                claims[claim] = json!(value);
            }
        }
        self.key.jwt(&claims)
    }

    /// Issues a refresh token.
    pub(super) fn keep(&mut self, consent: Consent, now: i64) -> String {
        let token = format!("1.{}", random(600));
        self.grants.insert(token.clone(), Grant { consent, issued: now, ended: None });
        token
    }
}

fn merged(into: Value, from: Value) -> Value {
    let (Value::Object(mut into), Value::Object(from)) = (into, from) else { unreachable!("both are objects") };
    into.extend::<Map<String, Value>>(from);
    Value::Object(into)
}
