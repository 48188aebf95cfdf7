//! The servers at which the broker renews its tokens, and their records of each request.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use mailtoken_testkit::{
    Cluster, Manifest, realm, refresh_fixture, source,
    standin::{Jwt, Strict, jwt::PublicKey, strict::Exchange},
};

/// Lifetime of access tokens in seconds. The broker renews a token after half of it.
const LIFETIME: i64 = 4;
/// Delay of each response of the stand-in, similar to that of a near provider.
const LATENCY: Duration = Duration::from_millis(30);
/// The name of the provider of users' refresh tokens.
pub const PEOPLE: &str = "people";
/// The name of the provider of client credentials.
pub const APP: &str = "app";

/// A server whose refresh tokens are valid for one use.
pub trait Server {
    /// Returns the server's name for the table.
    fn name(&self) -> &str;
    /// Returns the MailProviders [`PEOPLE`] and [`APP`], and the objects to which they refer.
    fn manifests(&self) -> Vec<Manifest>;
    /// Returns the mailbox of a credential with this name.
    fn mailbox(&self, name: &str) -> String;
    /// Signs a user in. Returns the account of the access tokens, and the refresh token.
    fn sign_in(&self, name: &str) -> (String, String);
    /// Returns the account of the access tokens by client credentials.
    fn app(&self) -> String;
    /// Returns all handled token requests in order, with tokens by [`Self::id`].
    fn journal(&self) -> Vec<Exchange>;
    /// Returns the id of a token in the journal.
    fn id(&self, token: &str) -> String;
    /// Returns the account of an access token; `None` if the server did not issue the token.
    fn account(&self, access_token: &str) -> Option<String>;
    /// Returns the delay between the handling of a request and its response.
    fn latency(&self) -> Duration;
}

/// The stand-in that revokes a sign-in when a token is used more often than the grace allows.
pub struct Patience {
    name: &'static str,
    strict: Strict,
}

impl Patience {
    pub fn start(name: &'static str, grace: usize) -> Self {
        let strict = Strict::start();
        strict.client("mailer", Some("a client secret"));
        strict.grace(grace);
        strict.lifetime(LIFETIME);
        strict.latency(LATENCY);
        Self { name, strict }
    }
}

impl Server for Patience {
    fn name(&self) -> &str {
        self.name
    }

    fn manifests(&self) -> Vec<Manifest> {
        let [bundle, provider] = refresh_fixture::provider_of(&self.strict);
        let named = |name: &str| provider.clone().set("metadata.name", name);
        vec![source("idp-client", "client-secret", "a client secret"), bundle, named(PEOPLE), named(APP)]
    }

    fn mailbox(&self, name: &str) -> String {
        format!("{name}@example.org")
    }

    fn sign_in(&self, name: &str) -> (String, String) {
        let mailbox = self.mailbox(name);
        let token = self.strict.refresh_token("mailer", &mailbox, "mail");
        (mailbox, token)
    }

    fn app(&self) -> String {
        "mailer".to_owned()
    }

    fn journal(&self) -> Vec<Exchange> {
        self.strict.journal()
    }

    fn id(&self, token: &str) -> String {
        token.to_owned()
    }

    fn account(&self, access_token: &str) -> Option<String> {
        self.strict.account(access_token)
    }

    fn latency(&self) -> Duration {
        LATENCY
    }
}

/// Keycloak, which replaces refresh tokens and accepts none twice. Its event log records each request. The id of a
/// token is its `jti`, and its account is its session.
pub struct Keycloak {
    cluster: Cluster,
    keys: Value,
    since: Timestamp,
}

impl Keycloak {
    pub fn of(cluster: &Cluster) -> Self {
        let events = ["REFRESH_TOKEN", "REFRESH_TOKEN_ERROR", "CLIENT_LOGIN"];
        let change = json!({"accessTokenLifespan": LIFETIME, "eventsEnabled": true, "enabledEventTypes": events});
        realm::admin(cluster, "PUT", "", &change);
        Self { cluster: cluster.clone(), keys: realm::keys(cluster), since: Timestamp::now() }
    }

    fn provider(&self, name: &str, client: Value) -> Manifest {
        Manifest(json!({
            "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailProvider", "metadata": {"name": name},
            "spec": {
                "oidc": {"issuerURL": self.cluster.env("KEYCLOAK_ISSUER")},
                "client": client,
                "scopes": if name == PEOPLE { json!(["openid", "email", "offline_access"]) } else { json!([]) },
                "caBundleRef": {"configMap": {"name": "ca", "key": "ca.crt"}},
            },
        }))
    }
}

impl Server for Keycloak {
    fn name(&self) -> &str {
        "Keycloak, reuse 0"
    }

    fn manifests(&self) -> Vec<Manifest> {
        let env = |name: &str| self.cluster.env(name);
        let ca = std::fs::read_to_string(env("CA_CERT")).unwrap();
        let secret = json!([{"clientSecret": {"secretRef": {"name": "idp-client", "key": "client-secret"}}}]);
        vec![
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca.crt": ca}}).into(),
            source("idp-client", "client-secret", &env("KEYCLOAK_CLIENT_SECRET")),
            self.provider(PEOPLE, json!({"id": env("KEYCLOAK_DESKTOP_CLIENT_ID")})),
            self.provider(APP, json!({"id": env("KEYCLOAK_CLIENT_ID"), "authentication": secret})),
        ]
    }

    fn mailbox(&self, _: &str) -> String {
        self.cluster.env("PERSON_USER")
    }

    fn sign_in(&self, name: &str) -> (String, String) {
        let token = realm::tokens(&self.cluster, &self.mailbox(name), "openid email offline_access").1;
        (Jwt::read(&token).unwrap().text("sid").to_owned(), token)
    }

    fn app(&self) -> String {
        self.cluster.env("KEYCLOAK_CLIENT_ID")
    }

    fn journal(&self) -> Vec<Exchange> {
        let mut events = realm::events(&self.cluster);
        events.reverse();
        let exchange = |event: &Value| {
            let detail = |name: &str| event["details"][name].as_str().map(str::to_owned);
            let account = event["sessionId"].as_str().or(event["clientId"].as_str()).unwrap_or_default();
            Exchange {
                at: Timestamp::from_millisecond(event["time"].as_i64().unwrap()).unwrap(),
                account: account.to_owned(),
                presented: detail("refresh_token_id"),
                issued: detail("token_id").filter(|_| event["error"].is_null()),
            }
        };
        events.iter().map(exchange).filter(|exchange| exchange.at > self.since).collect()
    }

    fn id(&self, token: &str) -> String {
        Jwt::read(token).map(|jwt| jwt.text("jti").to_owned()).unwrap_or_default()
    }

    fn account(&self, access_token: &str) -> Option<String> {
        let jwt = Jwt::read(access_token)?;
        let key = PublicKey::find(&self.keys, &jwt.header["kid"])?;
        let whose = [jwt.text("sid"), jwt.text("azp")].into_iter().find(|text| !text.is_empty())?;
        jwt.signed_by(&key, &["RS256"]).then(|| whose.to_owned())
    }

    fn latency(&self) -> Duration {
        Duration::ZERO
    }
}
