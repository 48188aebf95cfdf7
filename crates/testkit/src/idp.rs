//! An identity provider on the loopback interface, by HTTPS. A test decides each of its answers.
//!
//! Tests use it for answers that Keycloak cannot give: refusals of every kind, odd lifetimes, late, broken or missing
//! answers. By default it answers like a correct server:
//!
//! | path | answer |
//! |---|---|
//! | `/.well-known/openid-configuration` | the discovery document of [`Idp::issuer`] |
//! | `/authorize` | a redirect to the `redirect_uri` of the query, with a code and its `state` |
//! | `/token` | a new random token for an hour, for every client |
//! | `/device` | a device code and a user code |
//! | `/revoke` | 200 |
//! | any other | 404 |
//!
//! ```ignore
//! let idp = Idp::start();
//! idp.answer(Answer::token(60));                        // for all further requests
//! idp.next(Answer::error("invalid_grant"));             // for the next request only
//! idp.next(Answer::status(503).header("retry-after", "7").after(Duration::from_secs(1)));
//! idp.answer_at(DISCOVERY, Answer::hang());
//! assert_eq!(idp.token_requests()[0].form()["grant_type"], "client_credentials");
//! ```
//!
//! The server runs in its own thread, so that a test may block. It keeps every request, and stops when dropped.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::Mutex,
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::sync::watch;

pub use super::server::Request;
use super::{
    hostile::Validity,
    server::{Handler, LOOPBACK, Response, Server},
    wait::until,
};

/// The path of the discovery document.
pub const DISCOVERY: &str = "/.well-known/openid-configuration";
/// The path of the token endpoint.
pub const TOKEN: &str = "/token";
/// The path of the authorization endpoint.
pub const AUTHORIZE: &str = "/authorize";
/// The path of the device authorization endpoint.
pub const DEVICE: &str = "/device";
/// The path of the revocation endpoint.
pub const REVOKE: &str = "/revoke";

/// The response of the server to one request.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
    delay: Duration,
    held: bool,
}

#[derive(Clone, Debug)]
enum Body {
    Text(String),
    /// A token response. The server adds new tokens to each response.
    Token {
        fields: Map<String, Value>,
        rotating: bool,
    },
    /// No response. The connection stays open.
    Nothing,
    /// No response. The server closes the connection.
    Close,
}

impl Answer {
    /// Returns a token response with a new random Bearer token and this `expires_in`.
    pub fn token(expires_in: u64) -> Self {
        let Value::Object(fields) = json!({"token_type": "Bearer", "expires_in": expires_in}) else { unreachable!() };
        Self { body: Body::Token { fields, rotating: false }, ..Self::text(200, "") }
    }

    /// Returns an OAuth error response (RFC 6749 section 5.2).
    pub fn error(code: &str) -> Self {
        let status = if code == "invalid_client" { 401 } else { 400 };
        Self::json(status, json!({"error": code, "error_description": "sent by a test"}))
    }

    /// Returns a status with an HTML page, as proxies send it.
    pub fn status(status: u16) -> Self {
        Self::text(status, "<html><body>a page</body></html>").header("content-type", "text/html")
    }

    /// Returns a response with this JSON.
    pub fn json(status: u16, body: Value) -> Self {
        Self::text(status, &body.to_string()).header("content-type", "application/json")
    }

    /// Returns a response with this body.
    pub fn text(status: u16, body: &str) -> Self {
        Self { status, headers: vec![], body: Body::Text(body.to_owned()), delay: Duration::ZERO, held: false }
    }

    /// Returns no response: the connection stays open.
    pub fn hang() -> Self {
        Self { body: Body::Nothing, ..Self::text(200, "") }
    }

    /// Returns no response: the server closes the connection.
    pub fn close() -> Self {
        Self { body: Body::Close, ..Self::text(200, "") }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets a field of the token response: `refresh_in`, `scope`, another `token_type`, a fixed `access_token`.
    pub fn field(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields().insert(name.to_owned(), value.into());
        self
    }

    /// Removes a field of the token response, such as `expires_in`.
    pub fn without(mut self, name: &str) -> Self {
        self.fields().remove(name);
        self
    }

    /// Adds a new random refresh token to each token response.
    pub fn rotating(mut self) -> Self {
        self.fields();
        if let Body::Token { rotating, .. } = &mut self.body {
            *rotating = true;
        }
        self
    }

    /// Sends the response this long after the request.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sends the response only after [`Idp::release`].
    pub fn held(mut self) -> Self {
        self.held = true;
        self
    }

    fn fields(&mut self) -> &mut Map<String, Value> {
        match &mut self.body {
            Body::Token { fields, .. } => fields,
            other => panic!("not a token response: {other:?}"),
        }
    }
}

/// An identity provider. It stops when dropped.
pub struct Idp(Server<Scripted>);

struct Scripted {
    port: u16,
    scripts: Mutex<HashMap<String, Script>>,
    issued: Mutex<Vec<String>>,
    gate: watch::Sender<bool>,
}

#[derive(Default)]
struct Script {
    next: VecDeque<Answer>,
    always: Option<Answer>,
}

impl Idp {
    /// Starts on a free port, with a certificate for `localhost` and `127.0.0.1` from its own CA.
    pub fn start() -> Self {
        Self(Server::start(LOOPBACK, &["localhost", "127.0.0.1"], |port| Scripted {
            port,
            scripts: Mutex::default(),
            issued: Mutex::default(),
            gate: watch::Sender::new(false),
        }))
    }

    /// Listens again on the same port after [`Self::stop`].
    pub fn resume(&mut self) {
        self.0.resume();
    }

    /// Closes all connections and refuses new ones.
    pub fn stop(&mut self) {
        self.0.stop();
    }

    /// Returns the server's port.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Returns the issuer, whose discovery document has the path [`DISCOVERY`].
    pub fn issuer(&self) -> String {
        self.0.handler().issuer()
    }

    /// Returns the URL of the token endpoint.
    pub fn token_url(&self) -> String {
        self.url(TOKEN)
    }

    /// Returns a URL of this server.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.issuer())
    }

    /// Returns the CA's certificate in PEM.
    pub fn ca(&self) -> String {
        self.0.ca()
    }

    /// Presents another certificate of the same CA to new connections: for other names, or an expired certificate.
    pub fn present(&self, names: &[&str], validity: Validity) {
        self.0.present(names, validity);
    }

    /// Sets the answer of the token endpoint to all further requests.
    pub fn answer(&self, answer: Answer) {
        self.answer_at(TOKEN, answer);
    }

    /// Adds an answer of the token endpoint to the queue of answers to single requests.
    pub fn next(&self, answer: Answer) {
        self.next_at(TOKEN, answer);
    }

    /// Sets the answer of another path, as [`Self::answer`] does.
    pub fn answer_at(&self, path: &str, answer: Answer) {
        self.0.handler().scripts.lock().unwrap().entry(path.to_owned()).or_default().always = Some(answer);
    }

    /// Adds an answer of another path to its queue, as [`Self::next`] does.
    pub fn next_at(&self, path: &str, answer: Answer) {
        self.0.handler().scripts.lock().unwrap().entry(path.to_owned()).or_default().next.push_back(answer);
    }

    /// Sends the answers that are [`Answer::held`], including later ones.
    pub fn release(&self) {
        self.0.handler().gate.send_replace(true);
    }

    /// Returns all requests, in the order of their arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.0.requests()
    }

    /// Returns the requests to one path.
    pub fn requests_at(&self, path: &str) -> Vec<Request> {
        self.0.requests_at(path)
    }

    /// Returns the requests to the token endpoint.
    pub fn token_requests(&self) -> Vec<Request> {
        self.requests_at(TOKEN)
    }

    /// Waits until the token endpoint has received `number` requests.
    pub async fn token_requests_reach(&self, number: usize) -> Vec<Request> {
        until(&format!("{number} token requests"), async || match self.token_requests() {
            requests if requests.len() >= number => Ok(requests),
            requests => Err(format!("{} came: {requests:#?}", requests.len())),
        })
        .await
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.0.forget();
    }

    /// Returns all access and refresh tokens issued so far, also to search for leaks.
    pub fn issued(&self) -> Vec<String> {
        self.0.handler().issued.lock().unwrap().clone()
    }

    /// Returns all signed assertions received so far, also to search for leaks.
    pub fn assertions(&self) -> Vec<String> {
        self.requests().iter().flat_map(Request::assertions).collect()
    }

    /// Returns the number of connections so far.
    pub fn connections(&self) -> usize {
        self.0.connections()
    }
}

impl Handler for Scripted {
    async fn handle(&self, request: Request) -> Option<Response> {
        let answer = self.answer_to(&request);
        tokio::time::sleep(answer.delay).await;
        if answer.held {
            self.gate.subscribe().wait_for(|open| *open).await.ok()?;
        }
        if matches!(answer.body, Body::Nothing) {
            std::future::pending::<()>().await;
        }
        let body = self.body(answer.body)?;
        Some(Response { status: answer.status, headers: answer.headers, body })
    }
}

impl Scripted {
    fn issuer(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// Creates a unique token that a search for leaks finds easily.
    fn new_token(&self, kind: &str) -> String {
        let token = format!("{kind}-canary-{:016x}{:016x}", random(), random());
        self.issued.lock().unwrap().push(token.clone());
        token
    }

    fn answer_to(&self, request: &Request) -> Answer {
        let path = request.route();
        let mut scripts = self.scripts.lock().unwrap();
        let script = scripts.entry(path.to_owned()).or_default();
        let scripted = script.next.pop_front().or_else(|| script.always.clone());
        drop(scripts);
        scripted.unwrap_or_else(|| self.default_answer(request))
    }

    fn default_answer(&self, request: &Request) -> Answer {
        let issuer = self.issuer();
        match request.route() {
            AUTHORIZE => {
                let query = request.query();
                let mut back = url::Url::parse(&query["redirect_uri"]).unwrap();
                let code = self.new_token("code");
                back.query_pairs_mut().append_pair("code", &code).append_pair("state", &query["state"]);
                back.query_pairs_mut().append_pair("iss", &issuer);
                Answer::status(302).header("location", back.as_str())
            }
            TOKEN => Answer::token(3600),
            DEVICE => Answer::json(
                200,
                json!({
                    "device_code": self.new_token("device"), "user_code": "WDJB-MJHT", "expires_in": 600, "interval": 1,
                    "verification_uri": format!("{issuer}/sign-in"),
                    "verification_uri_complete": format!("{issuer}/sign-in?user_code=WDJB-MJHT"),
                }),
            ),
            REVOKE => Answer::text(200, ""),
            DISCOVERY => Answer::json(
                200,
                json!({
                    "issuer": issuer, "token_endpoint": format!("{issuer}{TOKEN}"),
                    "device_authorization_endpoint": format!("{issuer}{DEVICE}"),
                    "revocation_endpoint": format!("{issuer}{REVOKE}"),
                    "authorization_endpoint": format!("{issuer}{AUTHORIZE}"), "jwks_uri": format!("{issuer}/jwks"),
                    "response_types_supported": ["code"], "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["RS256"],
                }),
            ),
            _ => Answer::status(404),
        }
    }

    fn body(&self, body: Body) -> Option<String> {
        match body {
            Body::Text(text) => Some(text),
            Body::Token { mut fields, rotating } => {
                fields.entry("access_token").or_insert_with(|| self.new_token("access").into());
                if rotating {
                    fields.insert("refresh_token".to_owned(), self.new_token("refresh").into());
                }
                Some(Value::Object(fields).to_string())
            }
            Body::Nothing | Body::Close => None,
        }
    }
}

/// Returns a random number: every hasher of the standard library has a random key.
fn random() -> u64 {
    RandomState::new().hash_one(())
}
