//! Tests of the stand-ins of identity providers and mail servers: each refuses what the real server refuses.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "what fails here is a test's failure, in real time")]

mod mail;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use mailtoken_testkit::standin::{
    App, Cloud, Fault, Google, Jwt, Key, Microsoft, Strict,
    google::{ServiceAccount, TOKEN_URL},
    jwt::{Certificate, PublicKey},
    microsoft::TENANT_ID,
};
use serde_json::{Value, json};
use url::Url;

const APP: &str = "2f1c6a0e-0000-4000-8000-000000000000";
const TOKEN: &str = "/contoso.onmicrosoft.com/oauth2/v2.0/token";
const DEVICE_CODE: &str = "/contoso.onmicrosoft.com/oauth2/v2.0/devicecode";
const EXCHANGE: &str = "https://outlook.office365.com/.default";
const SEND: &str = "https://outlook.office.com/SMTP.Send";
const GMAIL: &str = "https://mail.google.com/";
const PERSON: &str = "billing@contoso.com";
const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const DEVICE: &str = "urn:ietf:params:oauth:grant-type:device_code";
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
const REDIRECT: &str = "http://localhost:4711/";

/// The fields of a request.
type Form<'a> = &'a [(&'a str, &'a str)];

/// A client that connects to a stand-in's port for a host.
struct Caller {
    client: reqwest::Client,
    base: String,
}

impl Caller {
    fn new(host: &str, port: u16, ca: &str) -> Self {
        let ca = reqwest::Certificate::from_pem(ca.as_bytes()).unwrap();
        let client = reqwest::Client::builder()
            .tls_certs_only([ca])
            .resolve(host, SocketAddr::from(([127, 0, 0, 1], port)))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .unwrap();
        Self { client, base: format!("https://{host}:{port}") }
    }

    fn of_microsoft(entra: &Microsoft) -> Self {
        Self::new("login.microsoftonline.com", entra.port(), &entra.ca())
    }

    fn of_google(google: &Google) -> Self {
        Self::new("oauth2.googleapis.com", google.port(), &google.ca())
    }

    fn of_strict(strict: &Strict) -> Self {
        Self::new("localhost", strict.port(), &strict.ca())
    }

    async fn send(&self, path: &str, form: Form<'_>) -> reqwest::Result<reqwest::Response> {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        self.client.post(format!("{}{path}", self.base)).body(body).send().await
    }

    /// Posts a form, and returns the status and the JSON of the response.
    async fn post(&self, path: &str, form: Form<'_>) -> (u16, Value) {
        let response = self.send(path, form).await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_str(&response.text().await.unwrap()).unwrap())
    }

    async fn granted(&self, path: &str, form: Form<'_>) -> Value {
        let (status, body) = self.post(path, form).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Posts a form, and returns the status and `error`.
    async fn refused(&self, path: &str, form: Form<'_>) -> (u16, String) {
        let (status, body) = self.post(path, form).await;
        (status, text(&body["error"]))
    }

    /// Posts a form, and returns the status and the AADSTS code.
    async fn aadsts(&self, path: &str, form: Form<'_>) -> (u16, u64) {
        let (status, body) = self.post(path, form).await;
        (status, body["error_codes"][0].as_u64().unwrap_or_default())
    }

    /// Signs in, and returns the URL of the redirect.
    async fn sign_in(&self, path: &str, query: Form<'_>) -> Url {
        let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        let response = self.client.get(format!("{}{path}?{query}", self.base)).send().await.unwrap();
        assert_eq!(response.status(), 302);
        Url::parse(response.headers()["location"].to_str().unwrap()).unwrap()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn parameter(url: &Url, name: &str) -> String {
    url.query_pairs().find(|(known, _)| known == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
}

fn with<'a>(form: &[(&'a str, &'a str)], changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let kept = form.iter().filter(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
    kept.chain(changes.iter().filter(|(_, value)| !value.is_empty())).copied().collect()
}

/// Returns the claims with changes. A null value removes a claim.
fn claims(claims: &Value, changes: &Value) -> Value {
    let mut changed = claims.clone();
    changed.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    changed.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    changed
}

const APP_ONLY: [(&str, &str); 4] =
    [("grant_type", "client_credentials"), ("client_id", APP), ("client_secret", "s3cret~"), ("scope", EXCHANGE)];

#[tokio::test]
async fn microsoft_issues_app_only_tokens_that_say_what_they_are_for() {
    let entra = Microsoft::start(Cloud::Public);
    let app = App::new(APP).secret("s3cret~");
    entra.register(app.clone());
    entra.refresh_in(Some(1800));
    let caller = Caller::of_microsoft(&entra);

    let body = caller.granted(TOKEN, &APP_ONLY).await;
    let fields: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["access_token", "expires_in", "ext_expires_in", "refresh_in", "token_type"]);
    assert_eq!((&body["expires_in"], &body["refresh_in"]), (&json!(3599), &json!(1800)));
    let token = Jwt::read(&text(&body["access_token"])).unwrap();
    let key = PublicKey::find(&entra.jwks(), &token.header["kid"]).unwrap();
    assert!(token.signed_by(&key, &["RS256"]));
    assert_eq!(token.text("aud"), "https://outlook.office365.com");
    assert_eq!((token.text("appid"), token.text("tid")), (APP, TENANT_ID));
    assert_eq!(token.text("oid"), app.object_id());
    assert_eq!(token.claims["roles"], json!(["SMTP.SendAsApp", "IMAP.AccessAsApp", "POP.AccessAsApp"]));
    assert!((token.time("exp").unwrap() - entra.now() - 3599).abs() < 30);
    assert_eq!(entra.issued(), [text(&body["access_token"])]);

    entra.register(app.roles(&[]));
    let body = caller.granted(TOKEN, &APP_ONLY).await;
    assert!(Jwt::read(&text(&body["access_token"])).unwrap().claims["roles"].is_null());
    assert_eq!(entra.token_requests()[1].form()["scope"], EXCHANGE);
}

#[tokio::test]
async fn microsoft_refuses_as_it_documents() {
    let entra = Microsoft::start(Cloud::Public);
    entra.register(App::new(APP).secret("s3cret~").expired_secret("old"));
    let caller = Caller::of_microsoft(&entra);
    let two = format!("{EXCHANGE} https://graph.microsoft.com/.default");
    let table: [(&str, Form<'_>, (u16, u64)); 14] = [
        ("contosso.onmicrosoft.com", &[], (400, 90002)),
        ("common", &[], (400, 9001023)),
        ("organizations", &[], (400, 50194)),
        ("contoso.com", &[("client_id", "")], (400, 900144)),
        ("contoso.com", &[("client_id", "other")], (400, 700016)),
        ("contoso.com", &[("grant_type", "")], (400, 900144)),
        ("contoso.com", &[("grant_type", "password")], (400, 70003)),
        (TENANT_ID, &[("scope", "")], (400, 90014)),
        (TENANT_ID, &[("scope", &two)], (400, 70011)),
        (TENANT_ID, &[("scope", SEND)], (400, 1002012)),
        (TENANT_ID, &[("scope", "https://outlook.example/.default")], (400, 500011)),
        (TENANT_ID, &[("client_secret", "wrong")], (401, 7000215)),
        (TENANT_ID, &[("client_secret", "old")], (401, 7000222)),
        (TENANT_ID, &[("client_secret", "")], (401, 7000218)),
    ];
    for (tenant, changes, expected) in table {
        let path = format!("/{tenant}/oauth2/v2.0/token");
        assert_eq!(caller.aadsts(&path, &with(&APP_ONLY, changes)).await, expected, "{tenant} {changes:?}");
    }

    let (_, body) = caller.post(TOKEN, &with(&APP_ONLY, &[("client_secret", "old")])).await;
    assert_eq!(body["error"], "invalid_client");
    let description = text(&body["error_description"]);
    let trace =
        format!("\r\nTrace ID: {}\r\nCorrelation ID: {}", text(&body["trace_id"]), text(&body["correlation_id"]));
    assert!(description.starts_with("AADSTS7000222: The provided client secret keys for app '2f1c"), "{description}");
    assert!(description.contains(&trace), "{description}");
    assert!(description.ends_with(&format!("\r\nTimestamp: {}", text(&body["timestamp"]))), "{description}");
    assert_eq!(body["error_uri"], "https://login.microsoftonline.com/error?code=7000222");
}

#[tokio::test]
async fn microsoft_verifies_assertions_of_certificates() {
    let entra = Microsoft::start(Cloud::Public);
    let (key, other) = (Key::generate(), Key::generate());
    let certificate = key.certificate();
    entra.register(App::new(APP).certificate(&certificate));
    let caller = Caller::of_microsoft(&entra);
    let Certificate { sha1, sha256, .. } = Certificate::read(&certificate);
    let now = entra.now();
    let good = json!({
        "aud": format!("https://login.microsoftonline.com{TOKEN}"), "iss": APP, "sub": APP, "jti": "1", "nbf": now,
        "iat": now, "exp": now + 300,
    });
    let ps256 = json!({"alg": "PS256", "typ": "JWT", "x5t#S256": sha256});
    let rs256 = json!({"alg": "RS256", "typ": "JWT", "x5t": sha1});
    let refusal = async |key: &Key, header: &Value, changes: &Value| {
        let assertion = key.jwt_with(header, &claims(&good, changes));
        let changes = [("client_secret", ""), ("client_assertion_type", ASSERTION), ("client_assertion", &assertion)];
        caller.aadsts(TOKEN, &with(&APP_ONLY, &changes)).await
    };

    assert_eq!(refusal(&key, &ps256, &json!({})).await, (200, 0));
    assert_eq!(refusal(&key, &ps256, &json!({})).await, (401, 700027), "the same jti");
    assert_eq!(refusal(&key, &rs256, &json!({"jti": "2"})).await, (200, 0));
    assert_eq!(refusal(&other, &ps256, &json!({"jti": "3"})).await, (401, 700027), "another key");
    assert_eq!(refusal(&key, &json!({"alg": "PS256"}), &json!({"jti": "3"})).await, (401, 700027), "no thumbprint");
    let disguised = json!({"alg": "none", "x5t#S256": sha256});
    assert_eq!(refusal(&key, &disguised, &json!({"jti": "3"})).await, (401, 700027), "another algorithm");
    let table = [
        (json!({"aud": "https://login.microsoftonline.com/other/oauth2/v2.0/token"}), 700023),
        (json!({"sub": "other"}), 700021),
        (json!({"iss": "other"}), 70025),
        (json!({"exp": now + 601}), 700024),
        (json!({"nbf": now - 900, "exp": now - 301}), 700024),
        (json!({"nbf": now + 400, "exp": now + 500}), 700024),
        (json!({"exp": null}), 700024),
        (json!({"jti": null}), 700027),
    ];
    for (mut change, code) in table {
        change["jti"] = if change.get("jti").is_some() { Value::Null } else { json!("4") };
        assert_eq!(refusal(&key, &ps256, &change).await, (401, code), "{change}");
    }
    assert_eq!(refusal(&key, &ps256, &json!({"jti": "4"})).await, (200, 0), "what was refused has spent no jti");
}

#[tokio::test]
async fn microsoft_verifies_federated_assertions() {
    const ISSUER: &str = "https://kubernetes.example";
    const SUBJECT: &str = "system:serviceaccount:shop:mailer";
    const AUDIENCE: &str = "api://AzureADTokenExchange";
    let entra = Microsoft::start(Cloud::Public);
    let key = Key::generate();
    entra.register(App::new(APP).federated(ISSUER, SUBJECT, AUDIENCE));
    entra.trust_issuer(ISSUER, key.jwks());
    let caller = Caller::of_microsoft(&entra);
    let now = entra.now();
    let good = json!({"aud": [AUDIENCE], "iss": ISSUER, "sub": SUBJECT, "nbf": now, "iat": now, "exp": now + 3607});
    let refusal = async |assertion: &str| {
        let changes = [("client_secret", ""), ("client_assertion_type", ASSERTION), ("client_assertion", assertion)];
        caller.aadsts(TOKEN, &with(&APP_ONLY, &changes)).await
    };

    for _ in 0..2 {
        assert_eq!(refusal(&key.jwt(&good)).await, (200, 0));
    }
    let table = [
        (json!({"iss": "https://kubernetes.example/"}), 700211),
        (json!({"aud": ["https://kubernetes.default.svc"]}), 700212),
        (json!({"sub": "system:serviceaccount:shop:Mailer"}), 700213),
        (json!({"nbf": now - 7200, "exp": now - 3600}), 700024),
    ];
    for (change, code) in table {
        assert_eq!(refusal(&key.jwt(&claims(&good, &change))).await, (401, code), "{change}");
    }
    assert_eq!(refusal(&Key::generate().jwt(&good)).await, (401, 50013), "a key that the issuer does not have");
    let forged = Key::generate().jwt_with(&json!({"alg": "RS256", "kid": key.id}), &good);
    assert_eq!(refusal(&forged).await, (401, 50013), "a key under another's name");
    let other = key.jwt_with(&json!({"alg": "PS256", "kid": key.id}), &good);
    assert_eq!(refusal(&other).await, (401, 50013), "RS256 alone is supported");
    assert_eq!(refusal("junk").await, (400, 50027));
    entra.register(App::new(APP).secret("s3cret~"));
    assert_eq!(refusal(&key.jwt(&good)).await, (401, 70025));
}

#[tokio::test]
async fn microsoft_replaces_refresh_tokens_and_accepts_the_old_ones() {
    let entra = Microsoft::start(Cloud::Public);
    entra.register(App::new(APP).public());
    entra.register(App::new("other").public());
    let caller = Caller::of_microsoft(&entra);
    let first = entra.refresh_token(APP, PERSON, SEND);
    let form = |token| [("grant_type", "refresh_token"), ("client_id", APP), ("refresh_token", token), ("scope", SEND)];

    let body = caller.granted(TOKEN, &form(&first)).await;
    let second = text(&body["refresh_token"]);
    assert!(second.len() > 100 && second != first);
    assert_eq!((&body["scope"], &body["id_token"]), (&json!(SEND), &Value::Null));
    let token = Jwt::read(&text(&body["access_token"])).unwrap();
    assert_eq!((token.text("scp"), token.text("upn")), ("SMTP.Send", PERSON));
    caller.granted(TOKEN, &form(&first)).await;
    caller.granted(TOKEN, &form(&second)).await;

    let two = format!("{SEND} https://graph.microsoft.com/Mail.Send");
    let more = "https://outlook.office.com/IMAP.AccessAsUser.All";
    let table: [(Form<'_>, (u16, u64)); 5] = [
        (&[("scope", &two)], (400, 28000)),
        (&[("scope", more)], (400, 65001)),
        (&[("refresh_token", "junk")], (400, 70000)),
        (&[("client_id", "other")], (400, 70000)),
        (&[("client_secret", "x")], (401, 700025)),
    ];
    for (changes, expected) in table {
        assert_eq!(caller.aadsts(TOKEN, &with(&form(&second), changes)).await, expected, "{changes:?}");
    }
    for code in [50173, 700082, 70043] {
        entra.end_grants(PERSON, code);
        assert_eq!(caller.aadsts(TOKEN, &form(&second)).await, (400, code.into()));
    }
    entra.register(App::new(APP).secret("s3cret~"));
    assert_eq!(caller.aadsts(TOKEN, &form(&second)).await, (401, 7000218));
}

#[tokio::test]
async fn microsoft_signs_people_in_by_device_code() {
    let entra = Microsoft::start(Cloud::Public);
    entra.register(App::new(APP).public());
    let caller = Caller::of_microsoft(&entra);
    let scope = format!("{SEND} offline_access openid profile email");
    let begin = async || caller.granted(DEVICE_CODE, &[("client_id", APP), ("scope", &scope)]).await;
    let poll = async |device: &Value| {
        let code = text(&device["device_code"]);
        caller.post(TOKEN, &[("grant_type", DEVICE), ("client_id", APP), ("device_code", &code)]).await
    };
    let error = async |device: &Value| {
        let (status, body) = poll(device).await;
        (status, text(&body["error"]), body["error_codes"][0].as_u64().unwrap())
    };

    let device = begin().await;
    let user_code = text(&device["user_code"]);
    assert_eq!(
        text(&device["message"]),
        format!(
            "To sign in, use a web browser to open the page https://microsoft.com/devicelogin and enter the code \
             {user_code} to authenticate."
        )
    );
    assert_eq!((&device["expires_in"], &device["interval"]), (&json!(900), &json!(5)));
    assert_eq!((user_code.len(), entra.pending()), (9, vec![user_code.clone()]));
    assert_eq!(error(&device).await, (400, "authorization_pending".into(), 70016));
    entra.approve(&user_code, PERSON);
    let (status, body) = poll(&device).await;
    assert_eq!((status, text(&body["scope"])), (200, SEND.to_owned()), "{body}");
    let id = Jwt::read(&text(&body["id_token"])).unwrap();
    assert_eq!((id.text("preferred_username"), id.text("aud")), (PERSON, APP));
    assert!(body["refresh_token"].is_string());
    assert_eq!(error(&device).await.2, 90120);

    let [denied, expired] = [begin().await, begin().await];
    entra.deny(&text(&denied["user_code"]));
    assert_eq!(error(&denied).await, (400, "authorization_declined".into(), 65004));
    entra.expire(&text(&expired["user_code"]));
    assert_eq!(error(&expired).await, (400, "expired_token".into(), 70019));
    assert_eq!(error(&json!({"device_code": "junk"})).await, (400, "bad_verification_code".into(), 70018));
    let two = format!("{SEND} https://graph.microsoft.com/Mail.Send");
    assert_eq!(caller.aadsts(DEVICE_CODE, &[("client_id", APP), ("scope", &two)]).await, (400, 700022));
}

#[tokio::test]
async fn microsoft_signs_people_in_with_a_browser() {
    let entra = Microsoft::start(Cloud::Public);
    entra.register(App::new(APP).public());
    let caller = Caller::of_microsoft(&entra);
    let path = TOKEN.replace("token", "authorize");
    let scope = format!("{SEND} offline_access openid profile");
    let query = [
        ("client_id", APP),
        ("response_type", "code"),
        ("redirect_uri", REDIRECT),
        ("scope", &scope),
        ("state", "s1"),
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
    ];
    let declined = caller.sign_in(&path, &query).await;
    assert_eq!((parameter(&declined, "error"), parameter(&declined, "state")), ("access_denied".into(), "s1".into()));

    entra.sign_in_as(Some(PERSON));
    let plain = caller.sign_in(&path, &with(&query, &[("code_challenge_method", "")])).await;
    assert_eq!(parameter(&plain, "error"), "invalid_request");
    let code = parameter(&caller.sign_in(&path, &query).await, "code");
    let form = [
        ("grant_type", "authorization_code"),
        ("client_id", APP),
        ("code", &code),
        ("redirect_uri", REDIRECT),
        ("code_verifier", VERIFIER),
    ];
    let table: [(Form<'_>, (u16, u64)); 4] = [
        (&[("code_verifier", "wrong")], (400, 501481)),
        (&[("code_verifier", "")], (400, 501481)),
        (&[("redirect_uri", "http://localhost:1/")], (400, 500112)),
        (&[("code", "junk")], (400, 70000)),
    ];
    for (changes, expected) in table {
        assert_eq!(caller.aadsts(TOKEN, &with(&form, changes)).await, expected, "{changes:?}");
    }
    let body = caller.granted(TOKEN, &form).await;
    assert_eq!(Jwt::read(&text(&body["id_token"])).unwrap().text("preferred_username"), PERSON);
    assert!(body["refresh_token"].is_string());
    assert_eq!(caller.aadsts(TOKEN, &form).await, (400, 54005));
}

#[tokio::test]
async fn faults_happen_once_and_in_order() {
    let entra = Microsoft::start(Cloud::Public);
    entra.register(App::new(APP).secret("s3cret~"));
    let caller = Caller::of_microsoft(&entra);
    entra.throttle_next(60);
    entra.refuse_next(50196);
    entra.next(Fault::bad_gateway());
    entra.next(Fault::Lost);
    let delay = Duration::from_millis(200);
    entra.next(Fault::Late(delay));

    let throttled = caller.send(TOKEN, &APP_ONLY).await.unwrap();
    assert_eq!((throttled.status().as_u16(), &throttled.headers()["retry-after"]), (429, &"60".parse().unwrap()));
    assert_eq!(caller.refused(TOKEN, &APP_ONLY).await, (400, "invalid_grant".to_owned()));
    assert!(entra.issued().is_empty());
    assert_eq!(caller.send(TOKEN, &APP_ONLY).await.unwrap().status(), 502);
    assert!(caller.send(TOKEN, &APP_ONLY).await.is_err());
    assert_eq!(entra.issued().len(), 2, "both were handled");
    let sent = Instant::now();
    caller.granted(TOKEN, &APP_ONLY).await;
    assert!(sent.elapsed() >= delay);
    caller.granted(TOKEN, &APP_ONLY).await;
    assert_eq!(entra.token_requests().len(), 6);
}

#[tokio::test]
async fn each_of_microsofts_clouds_has_its_hosts() {
    for (cloud, host, resource) in [
        (Cloud::UsGov, "login.microsoftonline.us", "https://outlook.office365.us"),
        (Cloud::China, "login.partner.microsoftonline.cn", "https://partner.outlook.cn"),
    ] {
        let entra = Microsoft::start(cloud);
        entra.register(App::new(APP).secret("s3cret~"));
        let caller = Caller::new(host, entra.port(), &entra.ca());
        let scope = format!("{resource}/.default");
        caller.granted(TOKEN, &with(&APP_ONLY, &[("scope", &scope)])).await;
        assert_eq!(caller.aadsts(TOKEN, &APP_ONLY).await, (400, 500011));
    }
}

const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

fn delegated(google: &Google) -> (ServiceAccount, Value) {
    let account = google.service_account("mailer");
    google.delegate(&account.client_id, &[GMAIL]);
    google.mailbox(PERSON);
    let now = google.now();
    let claims = json!({
        "iss": account.email, "sub": PERSON, "scope": GMAIL, "aud": TOKEN_URL, "iat": now, "exp": now + 3600,
    });
    (account, claims)
}

#[tokio::test]
async fn google_verifies_assertions_of_service_accounts() {
    let google = Google::start();
    let (account, good) = delegated(&google);
    let caller = Caller::of_google(&google);
    let now = google.now();
    let answer =
        async |assertion: &str| caller.post("/token", &[("grant_type", JWT_BEARER), ("assertion", assertion)]).await;

    let (status, body) = answer(&account.key.jwt(&good)).await;
    assert_eq!(status, 200, "{body}");
    let token = text(&body["access_token"]);
    assert!(token.starts_with("ya29.c.") && token.len() == 1024, "{token}");
    assert_eq!((&body["expires_in"], &body["refresh_token"]), (&json!(3599), &Value::Null));

    let short = "Invalid JWT: Token must be a short-lived token";
    let table = [
        (
            json!({"iss": "other@mail-project.iam.gserviceaccount.com"}),
            400,
            "invalid_grant",
            "Invalid grant: account not",
        ),
        (
            json!({"aud": "https://www.googleapis.com/oauth2/v4/token"}),
            400,
            "invalid_grant",
            "Invalid JWT: Failed audience",
        ),
        (json!({"exp": now + 3601}), 400, "invalid_grant", short),
        (json!({"iat": now - 4000, "exp": now - 400}), 400, "invalid_grant", short),
        (json!({"iat": now + 400, "exp": now + 500}), 400, "invalid_grant", short),
        (json!({"iat": null}), 400, "invalid_grant", short),
        (json!({"scope": null}), 400, "invalid_scope", "Invalid OAuth scope"),
        (json!({"sub": "nobody@contoso.com"}), 400, "invalid_grant", "Invalid email or User ID"),
        (json!({"scope": "https://mail.google.com"}), 401, "unauthorized_client", "Client is unauthorized to retrieve"),
    ];
    for (change, status, error, said) in table {
        let (answered, body) = answer(&account.key.jwt(&claims(&good, &change))).await;
        assert_eq!((answered, &body["error"]), (status, &json!(error)), "{change}");
        assert!(text(&body["error_description"]).starts_with(said), "{change} {body}");
    }
    let forged = Key::generate().jwt_with(&json!({"alg": "RS256", "kid": account.key.id}), &good);
    let other = account.key.jwt_with(&json!({"alg": "PS256", "kid": account.key.id}), &good);
    google.service_account("mailer");
    google.delete_key(&account);
    for assertion in [forged, other, account.key.jwt(&good)] {
        assert_eq!(answer(&assertion).await.1["error_description"], "Invalid JWT Signature.");
    }
}

#[tokio::test]
async fn google_exchanges_the_tokens_of_issuers_that_a_pool_trusts() {
    const PROVIDER: &str = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/c";
    const ISSUER: &str = "https://kubernetes.example";
    const SUBJECT: &str = "system:serviceaccount:shop:mailer";
    let (google, key) = (Google::start(), Key::generate());
    google.trust_issuer(PROVIDER, ISSUER, key.jwks(), Some(SUBJECT));
    let caller = Caller::new("sts.googleapis.com", google.port(), &google.ca());
    let now = google.now();
    let good = json!({"aud": [PROVIDER], "iss": ISSUER, "sub": SUBJECT, "iat": now, "exp": now + 600});
    let exchange = async |jwt: &str, changes: &[(&str, &str)]| {
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("audience", PROVIDER),
            ("scope", "https://www.googleapis.com/auth/cloud-platform"),
            ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("subject_token", jwt),
        ];
        caller.refused("/v1/token", &with(&form, changes)).await
    };
    assert_eq!(exchange(&key.jwt(&good), &[]).await, (200, String::new()));
    let elsewhere = PROVIDER.replace("/p/", "/other/");
    for (changes, error) in [
        (vec![("audience", elsewhere.as_str())], "invalid_target"),
        (vec![("audience", "api://x")], "invalid_request"),
        (vec![("scope", "https://mail.google.com/")], "invalid_scope"),
        (vec![("grant_type", "client_credentials")], "unsupported_grant_type"),
    ] {
        assert_eq!(exchange(&key.jwt(&good), &changes).await, (400, error.to_owned()), "{changes:?}");
    }
    for (change, error) in [
        (json!({"aud": ["api://x"]}), "invalid_grant"),
        (json!({"iss": "https://other.example"}), "invalid_grant"),
        (json!({"exp": now - 1}), "invalid_grant"),
        (json!({"sub": "system:serviceaccount:shop:other"}), "unauthorized_client"),
    ] {
        assert_eq!(exchange(&key.jwt(&claims(&good, &change)), &[]).await, (400, error.to_owned()), "{change}");
    }
    let forged = Key::generate().jwt_with(&json!({"alg": "RS256", "kid": key.id}), &good);
    assert_eq!(exchange(&forged, &[]).await, (400, "invalid_grant".to_owned()));
}

#[tokio::test]
async fn a_key_file_is_that_of_its_account() {
    let google = Google::start();
    let account = google.service_account("mailer");
    let file: Value = serde_json::from_str(&account.key_file()).unwrap();
    assert_eq!(file["type"], "service_account");
    assert_eq!(file["client_email"], "mailer@mail-project.iam.gserviceaccount.com");
    assert_eq!((&file["project_id"], &file["token_uri"]), (&json!("mail-project"), &json!(TOKEN_URL)));
    assert_eq!((text(&file["client_id"]), text(&file["private_key_id"])), (account.client_id, account.key.id.clone()));
    assert!(text(&file["private_key"]).starts_with("-----BEGIN PRIVATE KEY-----\n"), "PKCS#8");
    assert_eq!(text(&file["private_key"]), account.key.pem());
}

#[tokio::test]
async fn google_shows_its_clock_and_judges_by_it() {
    let google = Google::start();
    let (account, good) = delegated(&google);
    let caller = Caller::of_google(&google);
    google.clock_ahead(-7200);
    let assertion = account.key.jwt(&good);
    let response = caller.send("/token", &[("grant_type", JWT_BEARER), ("assertion", &assertion)]).await.unwrap();
    assert_eq!(response.status(), 400);
    let date = response.headers()["date"].to_str().unwrap();
    let date = k8s_openapi::jiff::fmt::rfc2822::parse(&date.replace("GMT", "+0000")).unwrap().timestamp().as_second();
    assert!((date - google.now()).abs() < 30, "{date}");
    assert!(response.text().await.unwrap().contains("reasonable timeframe"));
}

#[tokio::test]
async fn google_keeps_refresh_tokens_until_they_are_revoked() {
    let google = Google::start();
    google.client("desktop", "GOCSPX-1");
    google.client("other", "GOCSPX-2");
    let caller = Caller::of_google(&google);
    let [first, second, third] = [1, 2, 3].map(|_| google.refresh_token("desktop", PERSON, GMAIL));
    let form = |token| {
        let client = [("client_id", "desktop"), ("client_secret", "GOCSPX-1")];
        [("grant_type", "refresh_token"), client[0], client[1], ("refresh_token", token)]
    };
    google.token_length(200);

    for _ in 0..2 {
        let body = caller.granted("/token", &form(&first)).await;
        assert_eq!((&body["scope"], &body["refresh_token"]), (&json!(GMAIL), &Value::Null));
        assert!(body["refresh_token_expires_in"].is_null());
        assert_eq!(text(&body["access_token"]).len(), 200);
    }
    google.testing(true);
    assert_eq!(caller.granted("/token", &form(&first)).await["refresh_token_expires_in"], 604_799);
    let table: [(Form<'_>, (u16, &str)); 5] = [
        (&[("client_secret", "wrong")], (401, "invalid_client")),
        (&[("client_secret", "")], (400, "invalid_request")),
        (&[("client_id", "nobody")], (401, "invalid_client")),
        (&[("client_id", "other"), ("client_secret", "GOCSPX-2")], (401, "unauthorized_client")),
        (&[("scope", "https://www.googleapis.com/auth/drive")], (400, "invalid_scope")),
    ];
    for (changes, (status, error)) in table {
        let refused = caller.refused("/token", &with(&form(&first), changes)).await;
        assert_eq!(refused, (status, error.to_owned()), "{changes:?}");
    }

    assert_eq!(caller.granted("/revoke", &[("token", &first)]).await, json!({}));
    assert_eq!(caller.refused("/revoke", &[("token", &first)]).await, (400, "invalid_token".to_owned()));
    let access = text(&caller.granted("/token", &form(&second)).await["access_token"]);
    caller.granted("/revoke", &[("token", &access)]).await;
    assert!(google.is_valid(&third));
    google.revoke_grants(PERSON);
    for token in [&first, &second, &third] {
        let (status, body) = caller.post("/token", &form(token)).await;
        assert_eq!((status, &body["error"]), (400, &json!("invalid_grant")));
        assert_eq!(body["error_description"], "Token has been expired or revoked.");
    }
}

#[tokio::test]
async fn google_signs_people_in_with_a_browser() {
    let google = Google::start();
    google.client("desktop", "GOCSPX-1");
    google.sign_in_as(Some(PERSON));
    let (caller, accounts) =
        (Caller::of_google(&google), Caller::new("accounts.google.com", google.port(), &google.ca()));
    let scope = format!("{GMAIL} openid email");
    let query = [
        ("client_id", "desktop"),
        ("response_type", "code"),
        ("redirect_uri", REDIRECT),
        ("scope", &scope),
        ("access_type", "offline"),
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
    ];
    let code = parameter(&accounts.sign_in("/o/oauth2/v2/auth", &query).await, "code");
    let form = [
        ("grant_type", "authorization_code"),
        ("client_id", "desktop"),
        ("client_secret", "GOCSPX-1"),
        ("code", &code),
        ("redirect_uri", REDIRECT),
        ("code_verifier", VERIFIER),
    ];
    let wrong = caller.refused("/token", &with(&form, &[("code_verifier", "wrong")])).await;
    assert_eq!(wrong, (400, "invalid_grant".to_owned()));
    let body = caller.granted("/token", &form).await;
    assert_eq!(Jwt::read(&text(&body["id_token"])).unwrap().text("email"), PERSON);
    assert!(google.is_valid(&text(&body["refresh_token"])));
    assert_eq!(caller.refused("/token", &form).await, (400, "invalid_grant".to_owned()));

    let online = parameter(&accounts.sign_in("/o/oauth2/v2/auth", &with(&query, &[("access_type", "")])).await, "code");
    let body = caller.granted("/token", &with(&form, &[("code", &online)])).await;
    assert!(body["refresh_token"].is_null(), "only offline access has one");
}

fn rotation(token: &str) -> [(&str, &str); 4] {
    [("grant_type", "refresh_token"), ("client_id", "mailer"), ("client_secret", "s3cret"), ("refresh_token", token)]
}

fn strict() -> (Strict, Caller) {
    let strict = Strict::start();
    strict.client("mailer", Some("s3cret"));
    let caller = Caller::of_strict(&strict);
    (strict, caller)
}

#[tokio::test]
async fn the_strict_server_revokes_the_family_of_a_token_that_is_sent_twice() {
    let (strict, caller) = strict();
    let first = strict.refresh_token("mailer", PERSON, "mail.send mail.read");
    let unrelated = strict.refresh_token("mailer", PERSON, "mail.send");
    let body = caller.granted("/token", &rotation(&first)).await;
    let second = text(&body["refresh_token"]);
    assert_eq!(body["scope"], "mail.send mail.read");
    assert!(strict.is_valid(&second) && !strict.is_valid(&first));
    assert_eq!((strict.reuses(), strict.families_revoked()), (0, 0));

    let invalid = (400, "invalid_grant".to_owned());
    assert_eq!(caller.refused("/token", &rotation(&first)).await, invalid);
    assert_eq!((strict.reuses(), strict.families_revoked()), (1, 1));
    assert_eq!(caller.refused("/token", &rotation(&second)).await, invalid);
    assert_eq!((strict.presented(&first), strict.presented(&second)), (2, 1));
    caller.granted("/token", &rotation(&unrelated)).await;
    assert_eq!((strict.reuses(), strict.families_revoked()), (1, 1));
}

#[tokio::test]
async fn the_strict_server_refuses_other_clients_and_wider_scopes() {
    let (strict, caller) = strict();
    strict.client("desktop", None);
    let token = strict.refresh_token("mailer", PERSON, "mail.send");
    let table: [(Form<'_>, (u16, &str)); 5] = [
        (&[("client_secret", "wrong")], (401, "invalid_client")),
        (&[("client_secret", "")], (401, "invalid_client")),
        (&[("client_id", "desktop"), ("client_secret", "")], (400, "invalid_grant")),
        (&[("scope", "mail.send mail.read")], (400, "invalid_scope")),
        (&[("grant_type", "password")], (400, "unsupported_grant_type")),
    ];
    for (changes, (status, error)) in table {
        let refused = caller.refused("/token", &with(&rotation(&token), changes)).await;
        assert_eq!(refused, (status, error.to_owned()), "{changes:?}");
    }
    assert!(strict.is_valid(&token) && strict.reuses() == 0);
    let discovery = caller.client.get(format!("{}/.well-known/openid-configuration", strict.issuer()));
    let discovery: Value = serde_json::from_str(&discovery.send().await.unwrap().text().await.unwrap()).unwrap();
    assert_eq!(discovery["token_endpoint"], json!(strict.token_url()));
}

#[tokio::test]
async fn the_strict_server_rotates_although_its_answer_is_lost() {
    for fault in [Fault::Lost, Fault::bad_gateway(), Fault::garbage()] {
        let (strict, caller) = strict();
        let token = strict.refresh_token("mailer", PERSON, "mail.send");
        strict.next(fault.clone());
        drop(caller.send("/token", &rotation(&token)).await);
        assert!(!strict.is_valid(&token), "{fault:?}");
        caller.refused("/token", &rotation(&token)).await;
        assert_eq!((strict.reuses(), strict.families_revoked()), (1, 1), "{fault:?}");
    }
}

#[tokio::test]
async fn grace_accepts_a_second_request_after_a_lost_response() {
    let (strict, caller) = strict();
    strict.grace(1);
    let first = strict.refresh_token("mailer", PERSON, "mail.send");
    strict.next(Fault::Lost);
    assert!(caller.send("/token", &rotation(&first)).await.is_err());
    let lost = strict.issued().pop().unwrap();

    let second = text(&caller.granted("/token", &rotation(&first)).await["refresh_token"]);
    let third = text(&caller.granted("/token", &rotation(&second)).await["refresh_token"]);
    assert_eq!((strict.reuses(), strict.families_revoked()), (0, 0));
    assert_eq!(caller.refused("/token", &rotation(&lost)).await.0, 400, "what was lost is spent");
    assert!(strict.reuses() == 1 && !strict.is_valid(&third));
}

#[tokio::test]
async fn grace_ends() {
    let (strict, caller) = strict();
    strict.grace(1);
    let first = strict.refresh_token("mailer", PERSON, "mail.send");
    for _ in 0..2 {
        caller.granted("/token", &rotation(&first)).await;
    }
    assert_eq!(caller.refused("/token", &rotation(&first)).await, (400, "invalid_grant".to_owned()));
    assert_eq!((strict.reuses(), strict.families_revoked()), (1, 1));
}

#[tokio::test]
async fn the_strict_server_signs_people_in_by_device_code_and_slows_pollers_down() {
    let (strict, caller) = strict();
    strict.client("desktop", None);
    let begin = async || caller.granted("/device", &[("client_id", "desktop"), ("scope", "mail.send")]).await;
    let poll = async |device: &Value| {
        let code = text(&device["device_code"]);
        caller.post("/token", &[("grant_type", DEVICE), ("client_id", "desktop"), ("device_code", &code)]).await
    };
    strict.poll_interval(60);
    let device = begin().await;
    assert_eq!(poll(&device).await.1["error"], "authorization_pending");
    assert_eq!(poll(&device).await.1["error"], "slow_down");

    strict.poll_interval(0);
    let [approved, denied, expired] = [begin().await, begin().await, begin().await];
    strict.approve(&text(&approved["user_code"]), PERSON);
    strict.deny(&text(&denied["user_code"]));
    strict.expire(&text(&expired["user_code"]));
    let (_, body) = poll(&approved).await;
    assert!(strict.is_valid(&text(&body["refresh_token"])), "{body}");
    assert_eq!(poll(&approved).await.1["error"], "invalid_grant");
    assert_eq!(poll(&denied).await.1["error"], "access_denied");
    assert_eq!(poll(&expired).await.1["error"], "expired_token");
    assert_eq!(strict.pending(), [text(&device["user_code"])]);
}

#[tokio::test]
async fn the_strict_server_revokes_on_request() {
    let (strict, caller) = strict();
    let token = strict.refresh_token("mailer", PERSON, "mail.send");
    let client = [("client_id", "mailer"), ("client_secret", "s3cret")];
    caller.granted("/revoke", &[client[0], client[1], ("token", "junk")]).await;
    assert_eq!(strict.families_revoked(), 0);
    caller.granted("/revoke", &[client[0], client[1], ("token", &token)]).await;
    assert_eq!((strict.families_revoked(), strict.reuses()), (1, 0));
    assert_eq!(caller.refused("/token", &rotation(&token)).await, (400, "invalid_grant".to_owned()));
}
