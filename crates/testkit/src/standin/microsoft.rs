//! A stand-in of Microsoft Entra ID with one tenant, as mail needs it: app-only tokens, device codes, sign-in in a browser,
//! refresh tokens.
//!
//! | path | |
//! |---|---|
//! | `/{tenant}/oauth2/v2.0/token` | the token endpoint |
//! | `/{tenant}/oauth2/v2.0/devicecode` | device codes |
//! | `/{tenant}/oauth2/v2.0/authorize` | signs the account of [`Microsoft::sign_in_as`] in immediately |
//!
//! Sources: "OAuth 2.0 client credentials flow", "OAuth 2.0 device authorization grant", "OAuth 2.0 authorization code
//! flow", "Refresh tokens" and "Certificate credentials" (identity platform documentation). The stand-in is stricter than
//! Entra in three points: assertions are valid for 10 minutes at most, a `jti` is accepted once, and a sign-in requires
//! PKCE by S256.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
};

use serde_json::Value;

use super::{
    super::server::LOOPBACK,
    Fault, StandIn,
    aadsts::Refusal,
    app::App,
    jwt::Key,
    oauth::{Codes, Consent, Decision, Devices},
};

/// The tenant's domains.
pub const TENANT: [&str; 2] = ["contoso.onmicrosoft.com", "contoso.com"];
/// The tenant's directory id.
pub const TENANT_ID: &str = "8f2c7d1e-0000-4000-8000-00000000c0de";

/// Microsoft's clouds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    /// The public cloud.
    Public,
    /// The US government clouds GCC High and DoD.
    UsGov,
    /// The cloud in China, operated by 21Vianet.
    China,
}

impl Cloud {
    /// Returns the authority's host.
    pub fn host(self) -> &'static str {
        match self {
            Self::Public => "login.microsoftonline.com",
            Self::UsGov => "login.microsoftonline.us",
            Self::China => "login.partner.microsoftonline.cn",
        }
    }

    /// Returns Exchange Online's resources.
    pub(super) fn resources(self) -> &'static [&'static str] {
        match self {
            Self::Public => &["https://outlook.office365.com", "https://outlook.office.com"],
            Self::UsGov => &["https://outlook.office365.us"],
            Self::China => &["https://partner.outlook.cn"],
        }
    }

    /// Returns the page on which a user enters a user code.
    pub(super) fn device_login(self) -> &'static str {
        match self {
            Self::Public => "https://microsoft.com/devicelogin",
            Self::UsGov => "https://microsoft.com/deviceloginus",
            Self::China => "https://microsoft.com/deviceloginchina",
        }
    }
}

/// A running stand-in of Microsoft Entra ID.
pub type Microsoft = StandIn<Entra>;

/// The state of the stand-in: applications, settings and tokens.
pub struct Entra {
    pub(super) cloud: Cloud,
    pub(super) key: Key,
    pub(super) apps: BTreeMap<String, App>,
    pub(super) issuers: BTreeMap<String, Value>,
    pub(super) seen: BTreeSet<String>,
    pub(super) codes: Codes,
    pub(super) devices: Devices,
    pub(super) grants: HashMap<String, Grant>,
    pub(super) account: Option<String>,
    pub(super) lifetime: i64,
    pub(super) refresh_in: Option<i64>,
}

/// The grant of a refresh token.
pub(super) struct Grant {
    pub(super) consent: Consent,
    pub(super) issued: i64,
    /// The AADSTS code with which the stand-in refuses the token, if it does.
    pub(super) ended: Option<u32>,
}

impl Microsoft {
    /// Starts a stand-in without applications on a free port.
    pub fn start(cloud: Cloud) -> Self {
        Self::start_at(LOOPBACK, cloud)
    }

    /// Starts a stand-in without applications at this address.
    pub fn start_at(address: impl Into<SocketAddr>, cloud: Cloud) -> Self {
        Self::serve(address, &[cloud.host(), "localhost"], |_| Entra {
            cloud,
            key: Key::generate(),
            apps: BTreeMap::new(),
            issuers: BTreeMap::new(),
            seen: BTreeSet::new(),
            codes: Codes::default(),
            devices: Devices::new(5),
            grants: HashMap::new(),
            account: None,
            lifetime: 3599,
            refresh_in: None,
        })
    }

    /// Registers an application, or changes one.
    pub fn register(&self, app: App) {
        self.provider().apps.insert(app.id.clone(), app);
    }

    /// Sets the keys of an issuer of federated credentials: `{"keys": […]}`.
    pub fn trust_issuer(&self, issuer: &str, jwks: Value) {
        self.provider().issuers.insert(issuer.to_owned(), jwks);
    }

    /// Sets the lifetime in seconds of access tokens issued later (default 3599).
    pub fn lifetime(&self, seconds: i64) {
        self.provider().lifetime = seconds;
    }

    /// Sets `refresh_in` of later token responses, in seconds (default: absent).
    pub fn refresh_in(&self, seconds: Option<i64>) {
        self.provider().refresh_in = seconds;
    }

    /// Sets the number of seconds between two polls for a device code (default 5). The stand-in accepts earlier polls:
    /// Microsoft documents no `slow_down`.
    pub fn poll_interval(&self, seconds: u64) {
        self.provider().devices.interval = seconds;
    }

    /// Throttles the next token request with 429 and `Retry-After`.
    pub fn throttle_next(&self, seconds: u32) {
        let response = Refusal::new(90055, &[]).response_with(429, self.host(), self.now());
        self.next(Fault::Refused(response.header("retry-after", &seconds.to_string())));
    }

    /// Refuses the next token request with this AADSTS code, such as 50196, 50076, 53003 or 65001.
    pub fn refuse_next(&self, code: u32) {
        self.next(Fault::Refused(Refusal::new(code, &[]).response(self.host(), self.now())));
    }

    /// Issues a refresh token for a user's consent to delegated permissions and `offline_access`.
    pub fn refresh_token(&self, client: &str, account: &str, scopes: &str) -> String {
        let now = self.now();
        self.provider().keep(Consent::new(client, account, &format!("{scopes} offline_access")), now)
    }

    /// Refuses all current refresh tokens of a user with this AADSTS code: 50173 (revoked), 700082 (inactive), 70043
    /// (sign-in frequency).
    pub fn end_grants(&self, account: &str, code: u32) {
        for grant in self.provider().grants.values_mut().filter(|grant| grant.consent.account == account) {
            grant.ended = Some(code);
        }
    }

    /// Sets the account that signs in immediately at `authorize`. With `None`, the default, the user declines.
    pub fn sign_in_as(&self, account: Option<&str>) {
        self.provider().account = account.map(str::to_owned);
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

    /// Makes a user code expire, as it does after 15 minutes.
    pub fn expire(&self, user_code: &str) {
        self.provider().devices.decide(user_code, Decision::Wait);
    }

    /// Returns the key set for the signatures of access tokens.
    pub fn jwks(&self) -> Value {
        self.provider().key.jwks()
    }

    /// Returns the stand-in's cloud.
    pub fn cloud(&self) -> Cloud {
        self.provider().cloud
    }

    fn host(&self) -> &'static str {
        self.provider().cloud.host()
    }
}
