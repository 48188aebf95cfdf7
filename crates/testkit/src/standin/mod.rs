//! Stand-ins of real identity providers, by HTTPS on this machine. They follow the providers' documentation, so they refuse
//! the requests that the real providers refuse, with the same texts.
//!
//! | stand-in | of |
//! |---|---|
//! | [`Microsoft`] | login.microsoftonline.com and its national clouds |
//! | [`Google`] | oauth2, sts and iamcredentials.googleapis.com, and accounts.google.com |
//! | [`Strict`] | no real provider: it rotates refresh tokens, and revokes all tokens of a sign-in if one is used twice |
//!
//! ```ignore
//! let entra = Microsoft::start(Cloud::Public);
//! entra.register(App::new(CLIENT).secret("s3cret"));
//! entra.next(Fault::Lost);                                       // handles the token request, but sends no response
//! assert_eq!(entra.token_requests()[0].form()["grant_type"], "client_credentials");
//! ```
//!
//! [`mail`] has the mail servers of Microsoft and Google, which accept these tokens.
//!
//! Each stand-in has the real host names, on its own port. Requests reach it through a proxy ([`super::proxy`]), or from a
//! client that resolves the names to this machine.

mod aadsts;
mod app;
mod entra;
pub mod google;
pub mod jwt;
pub mod mail;
pub mod microsoft;
mod oauth;
pub mod odd;
pub mod organization;
pub mod strict;
pub mod workload;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::rand;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::jiff::Timestamp;
use rustls::ServerConfig;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use self::{
    app::App,
    google::Google,
    jwt::{Jwt, Key},
    mail::{Exchange, Gmail},
    microsoft::{Cloud, Microsoft},
    odd::Odd,
    strict::Strict,
};
use super::server::{Handler, Request, Response, Server};

/// The secret fields of a response.
const TOKENS: [&str; 5] = ["access_token", "refresh_token", "id_token", "device_code", "signedJwt"];

/// The rules and the state of a provider.
pub trait Provider: Send + 'static {
    /// Returns the answer to a request at `now`, in seconds since 1970.
    fn answer(&mut self, request: &Request, now: i64) -> Response;
}

/// The fault of one token request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The stand-in does not handle the request, and returns this response.
    Refused(Response),
    /// The stand-in handles the request, and closes the connection without a response.
    Lost,
    /// The stand-in handles the request, but returns this response.
    Replaced(Response),
    /// The stand-in handles the request, and returns the response after this time.
    Late(Duration),
}

impl Fault {
    /// Returns a refusal with an OAuth error (RFC 6749 section 5.2). The stand-in does not handle the request.
    pub fn error(code: &str) -> Self {
        let status = if code == "invalid_client" { 401 } else { 400 };
        Self::Refused(Response::json(status, &json!({"error": code})))
    }

    /// Returns a refusal with 429 and `Retry-After` in seconds. The stand-in does not handle the request.
    pub fn throttled(seconds: u32) -> Self {
        let body = json!({"error": "temporarily_unavailable"});
        Self::Refused(Response::json(429, &body).header("retry-after", &seconds.to_string()))
    }

    /// Returns a 502 page of a proxy. The stand-in handles the request.
    pub fn bad_gateway() -> Self {
        let page = "<html><body>502 Bad Gateway</body></html>";
        Self::Replaced(Response::text(502, page).header("content-type", "text/html"))
    }

    /// Returns the status 200 with broken JSON. The stand-in handles the request.
    pub fn garbage() -> Self {
        Self::Replaced(Response::text(200, r#"{"access_token": "#).header("content-type", "application/json"))
    }
}

/// A running stand-in. It stops when dropped.
pub struct StandIn<P>(Server<Served<P>>);

struct Served<P> {
    provider: Mutex<P>,
    faults: Mutex<VecDeque<Fault>>,
    issued: Mutex<Vec<String>>,
    odd: Mutex<Option<Odd>>,
    ahead: AtomicI64,
    latency: AtomicU64,
}

impl<P: Provider> Handler for Served<P> {
    async fn handle(&self, request: Request) -> Option<Response> {
        let now = self.now();
        let fault = if is_token_request(&request) { self.faults.lock().unwrap().pop_front() } else { None };
        let response = match fault {
            Some(Fault::Refused(response)) => response,
            Some(Fault::Replaced(response)) => {
                self.answer(&request, now);
                response
            }
            Some(Fault::Lost) => {
                self.answer(&request, now);
                return None;
            }
            Some(Fault::Late(delay)) => {
                let response = self.answer(&request, now);
                tokio::time::sleep(delay).await;
                response
            }
            None => {
                let response = self.answer(&request, now);
                tokio::time::sleep(Duration::from_millis(self.latency.load(Ordering::Relaxed))).await;
                response
            }
        };
        let date = Timestamp::from_second(now).unwrap().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        Some(response.header("date", &date).header("cache-control", "no-store"))
    }
}

impl<P: Provider> Served<P> {
    fn answer(&self, request: &Request, now: i64) -> Response {
        let response = self.provider.lock().unwrap().answer(request, now);
        let body: Value = serde_json::from_str(&response.body).unwrap_or_default();
        let tokens = TOKENS.iter().filter_map(|name| Some(body[name].as_str()?.to_owned()));
        self.issued.lock().unwrap().extend(tokens);
        match *self.odd.lock().unwrap() {
            Some(odd) if is_token_request(request) => odd.applied(response),
            _ => response,
        }
    }
}

impl<P> Served<P> {
    fn now(&self) -> i64 {
        Timestamp::now().as_second() + self.ahead.load(Ordering::Relaxed)
    }
}

impl<P: Provider> StandIn<P> {
    fn serve(address: impl Into<SocketAddr>, names: &[&str], provider: impl FnOnce(u16) -> P) -> Self {
        Self(Server::start(address, names, |port| Served {
            provider: Mutex::new(provider(port)),
            faults: Mutex::default(),
            issued: Mutex::default(),
            odd: Mutex::default(),
            ahead: AtomicI64::new(0),
            latency: AtomicU64::new(0),
        }))
    }

    /// Listens again on the same port after [`Self::stop`].
    pub fn resume(&mut self) {
        self.0.resume();
    }
}

impl<P> StandIn<P> {
    fn provider(&self) -> MutexGuard<'_, P> {
        self.0.handler().provider.lock().unwrap()
    }

    /// Closes all connections and refuses new ones. Issued tokens stay valid.
    pub fn stop(&mut self) {
        self.0.stop();
    }

    /// Returns the stand-in's port.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Issues a certificate of the CA for further names of this machine, such as names of mail servers.
    pub fn issue(&self, names: &[&str]) -> Arc<ServerConfig> {
        self.0.issue(names)
    }

    /// Returns the CA's certificate in PEM.
    pub fn ca(&self) -> String {
        self.0.ca()
    }

    /// Adds a fault to the queue. Each later token request takes one fault from the queue.
    pub fn next(&self, fault: Fault) {
        self.0.handler().faults.lock().unwrap().push_back(fault);
    }

    /// Sets in which way the responses of the token endpoint are odd; `None`, the default, means not at all.
    pub fn odd(&self, odd: Option<Odd>) {
        *self.0.handler().odd.lock().unwrap() = odd;
    }

    /// Sets the delay of each response (default: none).
    pub fn latency(&self, latency: Duration) {
        let milliseconds = latency.as_millis().try_into().unwrap();
        self.0.handler().latency.store(milliseconds, Ordering::Relaxed);
    }

    /// Sets the stand-in's clock this number of seconds ahead of this machine's clock, or behind it. The `Date` header
    /// shows this clock.
    pub fn clock_ahead(&self, seconds: i64) {
        self.0.handler().ahead.store(seconds, Ordering::Relaxed);
    }

    /// Returns the stand-in's time in seconds since 1970.
    pub fn now(&self) -> i64 {
        self.0.handler().now()
    }

    /// Returns all requests, in the order of their arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.0.requests()
    }

    /// Returns the requests to the token endpoint.
    pub fn token_requests(&self) -> Vec<Request> {
        self.requests().into_iter().filter(is_token_request).collect()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.0.forget();
    }

    /// Returns all access, refresh and ID tokens and device codes in responses so far, to search for leaks.
    pub fn issued(&self) -> Vec<String> {
        self.0.handler().issued.lock().unwrap().clone()
    }

    /// Returns all signed assertions received so far, to search for leaks.
    pub fn assertions(&self) -> Vec<String> {
        self.requests().iter().flat_map(Request::assertions).collect()
    }
}

fn is_token_request(request: &Request) -> bool {
    request.route().ends_with("/token")
}

/// Returns this number of random bytes in base64url.
fn random(bytes: usize) -> String {
    let mut buffer = vec![0; bytes];
    rand::fill(&mut buffer).unwrap();
    BASE64_URL_SAFE_NO_PAD.encode(buffer)
}

/// Returns a GUID that depends only on the name.
fn guid(name: &str) -> String {
    let hex: String = Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}
