//! The parts of OAuth that the stand-ins share: consents of users, authorization codes with PKCE, and device codes.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use sha2::{Digest as _, Sha256};
use url::Url;

use super::{
    super::server::{Request, Response},
    random,
};

/// The grant type of device codes (RFC 8628 section 3.4).
pub const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// The grant type of assertions (RFC 7523 section 2.1).
pub const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// The type of client assertions (RFC 7523 section 2.2).
pub const CLIENT_ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// A user's consent to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consent {
    pub client: String,
    pub account: String,
    pub scopes: Vec<String>,
    /// The nonce for the ID token.
    pub nonce: Option<String>,
}

impl Consent {
    /// Creates a consent. `scopes` are separated by spaces.
    pub fn new(client: &str, account: &str, scopes: &str) -> Self {
        let scopes = scopes.split_whitespace().map(str::to_owned).collect();
        Self { client: client.to_owned(), account: account.to_owned(), scopes, nonce: None }
    }

    pub fn has(&self, scope: &str) -> bool {
        self.scopes.iter().any(|granted| granted == scope)
    }
}

/// Returns the scopes in the field `scope` of a request.
pub fn scopes(form: &BTreeMap<String, String>) -> Vec<String> {
    form.get("scope").map(|text| text.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
}

/// Returns a client's id and secret, from the Authorization header or the body (RFC 6749 section 2.3.1).
pub fn client(request: &Request) -> (Option<String>, Option<String>) {
    let basic = request.headers.get("authorization").and_then(|header| {
        let pair = BASE64_STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
        let pair = String::from_utf8(pair).ok()?;
        let (id, secret) = pair.split_once(':')?;
        let decode =
            |part: &str| url::form_urlencoded::parse(part.as_bytes()).next().map(|(text, _)| text.into_owned());
        Some((decode(id), decode(secret)))
    });
    let form = request.form();
    basic.unwrap_or_else(|| (form.get("client_id").cloned(), form.get("client_secret").cloned()))
}

/// Whether this is a redirect URI of an application on this computer (RFC 8252 section 7.3).
pub fn is_loopback(uri: &str) -> bool {
    let host =
        Url::parse(uri).ok().filter(|uri| uri.scheme() == "http").and_then(|uri| uri.host_str().map(str::to_owned));
    host.is_some_and(|host| ["localhost", "127.0.0.1", "[::1]"].contains(&host.as_str()))
}

/// Returns a redirect to an application with these parameters and the request's `state`.
pub fn redirect(query: &BTreeMap<String, String>, parameters: &[(&str, &str)]) -> Response {
    let mut uri = Url::parse(&query["redirect_uri"]).unwrap();
    uri.query_pairs_mut().extend_pairs(parameters).extend_pairs(query.get("state").map(|state| ("state", state)));
    Response::text(302, "").header("location", uri.as_str())
}

/// Authorization codes (RFC 6749 section 4.1) with PKCE by S256 (RFC 7636).
#[derive(Default)]
pub struct Codes(HashMap<String, Code>);

struct Code {
    consent: Consent,
    redirect_uri: String,
    challenge: String,
    spent: bool,
}

/// Why the stand-in rejects an authorization code.
pub enum CodeFlaw {
    /// The stand-in did not issue the code to this client.
    Unknown,
    /// The code was already used.
    Spent,
    /// The code was requested with another redirect URI.
    RedirectUri,
    /// The verifier does not match the challenge.
    Verifier,
}

impl Codes {
    /// Issues a code for the account's consent; `None` if the request has no challenge by S256.
    pub fn issue(&mut self, query: &BTreeMap<String, String>, account: &str) -> Option<String> {
        let challenge =
            query.get("code_challenge").filter(|_| query.get("code_challenge_method").is_some_and(|m| m == "S256"));
        let consent = Consent {
            client: query["client_id"].clone(),
            account: account.to_owned(),
            scopes: scopes(query),
            nonce: query.get("nonce").cloned(),
        };
        let redirect_uri = query["redirect_uri"].clone();
        let code = random(48);
        self.0.insert(code.clone(), Code { consent, redirect_uri, challenge: challenge?.clone(), spent: false });
        Some(code)
    }

    /// Returns the consent of a code, once.
    pub fn redeem(&mut self, form: &BTreeMap<String, String>, client: &str) -> Result<Consent, CodeFlaw> {
        let code = form.get("code").and_then(|code| self.0.get_mut(code)).filter(|code| code.consent.client == client);
        let code = code.ok_or(CodeFlaw::Unknown)?;
        if code.spent {
            return Err(CodeFlaw::Spent);
        }
        if form.get("redirect_uri") != Some(&code.redirect_uri) {
            return Err(CodeFlaw::RedirectUri);
        }
        let verifier =
            form.get("code_verifier").map(|verifier| BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(verifier)));
        if verifier.as_ref() != Some(&code.challenge) {
            return Err(CodeFlaw::Verifier);
        }
        code.spent = true;
        Ok(code.consent.clone())
    }
}

/// Device codes (RFC 8628).
pub struct Devices {
    devices: Vec<Device>,
    /// Minimum number of seconds between two polls.
    pub interval: u64,
}

/// One sign-in with a device code.
pub struct Device {
    pub device_code: String,
    pub user_code: String,
    consent: Consent,
    ends: i64,
    interval: u64,
    polled: Option<Instant>,
    state: DeviceState,
}

enum DeviceState {
    Pending,
    Approved,
    Denied,
    Expired,
    Spent,
}

/// The decision of the user about a sign-in.
pub enum Decision {
    Approve(String),
    Deny,
    /// The user does nothing until the code has expired.
    Wait,
}

/// The result of a poll.
pub enum Poll {
    Unknown,
    Pending,
    /// The poll came too soon. The interval is now longer by 5 s.
    TooSoon,
    Denied,
    Expired,
    Spent,
    Approved(Consent),
}

impl Devices {
    pub fn new(interval: u64) -> Self {
        Self { devices: vec![], interval }
    }

    /// Begins a sign-in that expires at `ends`, in seconds since 1970.
    pub fn begin(&mut self, client: &str, scopes: Vec<String>, ends: i64) -> &Device {
        // Use no vowels, so that the code contains no words (RFC 8628 section 6.1).
        let letters = random(32).to_ascii_uppercase();
        let user_code: String =
            letters.chars().filter(|letter| "BCDFGHJKLMNPQRSTVWXZ".contains(*letter)).take(9).collect();
        let consent = Consent { client: client.to_owned(), account: String::new(), scopes, nonce: None };
        self.devices.push(Device {
            device_code: format!("device-canary-{}", random(96)),
            user_code,
            consent,
            ends,
            interval: self.interval,
            polled: None,
            state: DeviceState::Pending,
        });
        self.devices.last().unwrap()
    }

    /// Returns the user codes that no user has entered yet, the oldest first.
    pub fn pending(&self) -> Vec<String> {
        let pending = self.devices.iter().filter(|device| matches!(device.state, DeviceState::Pending));
        pending.map(|device| device.user_code.clone()).collect()
    }

    /// Enters a code, as a user does.
    pub fn decide(&mut self, user_code: &str, decision: Decision) {
        let device = self.devices.iter_mut().find(|device| device.user_code == user_code);
        let device = device.unwrap_or_else(|| panic!("no sign-in has the code {user_code}"));
        match decision {
            Decision::Approve(account) => {
                device.consent.account = account;
                device.state = DeviceState::Approved;
            }
            Decision::Deny => device.state = DeviceState::Denied,
            Decision::Wait => device.state = DeviceState::Expired,
        }
    }

    /// Polls for the sign-in as a client. With `at`, the time of the poll, enforces the interval.
    pub fn poll(&mut self, device_code: Option<&String>, client: &str, at: Option<Instant>, now: i64) -> Poll {
        let mut devices = self.devices.iter_mut();
        let found = devices.find(|device| Some(&device.device_code) == device_code && device.consent.client == client);
        let Some(device) = found else { return Poll::Unknown };
        if let Some(at) = at {
            let too_soon = |last: Instant| at.duration_since(last) < Duration::from_secs(device.interval);
            if device.polled.replace(at).is_some_and(too_soon) {
                device.interval += 5;
                return Poll::TooSoon;
            }
        }
        match device.state {
            _ if device.ends <= now => Poll::Expired,
            DeviceState::Pending => Poll::Pending,
            DeviceState::Denied => Poll::Denied,
            DeviceState::Expired => Poll::Expired,
            DeviceState::Spent => Poll::Spent,
            DeviceState::Approved => {
                device.state = DeviceState::Spent;
                Poll::Approved(device.consent.clone())
            }
        }
    }
}
