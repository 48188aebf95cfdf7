//! Google's workload identity federation, as far as a signature without a key needs it.
//!
//! | host and path | |
//! |---|---|
//! | `sts.googleapis.com/v1/token` | exchanges the token of an issuer that a provider of a pool trusts (RFC 8693) |
//! | `iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/ACCOUNT:signJwt` | signs as a service account |
//!
//! Sources: "Workload Identity Federation with other identity providers", "Method: v1.token", "Method:
//! projects.serviceAccounts.signJwt", "Errors" (AIP-193), and published answers of the services.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};

use super::{
    super::server::{Request, Response},
    jwt::{Jwt, Key},
    random,
};

/// The hosts of the Security Token Service and of the IAM Service Account Credentials API.
pub const HOSTS: [&str; 2] = ["sts.googleapis.com", "iamcredentials.googleapis.com"];
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";
/// Maximum lifetime in seconds of a JWT that `signJwt` signs.
const TWELVE_HOURS: i64 = 12 * 3600;

/// The configuration and the issued tokens.
#[derive(Default)]
pub struct Workload {
    /// The trusted issuers by the provider's full name, which begins with `//iam.googleapis.com/` and is the audience.
    providers: BTreeMap<String, Trust>,
    /// The principal of each token that the Security Token Service issued.
    principals: HashMap<String, String>,
    /// Pairs of a service account and a principal with roles/iam.serviceAccountTokenCreator on it.
    creators: BTreeSet<(String, String)>,
    /// The keys by which Google signs for service accounts, by account.
    keys: BTreeMap<String, Key>,
    /// Whether both APIs are disabled in the project.
    pub off: bool,
}

struct Trust {
    issuer: String,
    jwks: Value,
    /// The subject in the attribute condition `assertion.sub == …`, if any.
    subject: Option<String>,
}

impl Workload {
    /// Creates a provider that trusts an issuer. With `subject`, it trusts only tokens with this subject.
    pub fn provider(&mut self, audience: &str, issuer: &str, jwks: Value, subject: Option<&str>) {
        let trust = Trust { issuer: issuer.to_owned(), jwks, subject: subject.map(str::to_owned) };
        self.providers.insert(audience.to_owned(), trust);
    }

    /// Deletes a provider.
    pub fn delete_provider(&mut self, audience: &str) {
        self.providers.remove(audience);
    }

    /// Grants roles/iam.serviceAccountTokenCreator on an account to a principal.
    pub fn let_sign(&mut self, account: &str, principal: &str) {
        self.creators.insert((account.to_owned(), principal.to_owned()));
    }

    /// Returns the key by which Google signs for an account. Creates the key at the first call.
    pub fn key(&mut self, account: &str) -> &Key {
        self.keys.entry(account.to_owned()).or_insert_with(Key::generate)
    }

    /// Answers `v1/token` of the Security Token Service.
    pub fn exchange(&mut self, request: &Request, now: i64) -> Response {
        if self.off {
            return api_error(403, "PERMISSION_DENIED", "SERVICE_DISABLED");
        }
        match self.exchanged(&request.form(), now) {
            Ok(body) => Response::json(200, &body),
            Err((error, said)) => Response::json(400, &json!({"error": error, "error_description": said})),
        }
    }

    fn exchanged(&mut self, form: &BTreeMap<String, String>, now: i64) -> Result<Value, (&'static str, String)> {
        let field = |name: &str| form.get(name).map_or("", String::as_str);
        let invalid = |said: &str| Err(("invalid_request", said.to_owned()));
        if field("grant_type") != EXCHANGE {
            return Err(("unsupported_grant_type", "Invalid grant type.".to_owned()));
        }
        if field("scope") != CLOUD_PLATFORM {
            return Err(("invalid_scope", "Invalid OAuth scope.".to_owned()));
        }
        if field("requested_token_type") != "urn:ietf:params:oauth:token-type:access_token"
            || field("subject_token_type") != "urn:ietf:params:oauth:token-type:jwt"
        {
            return invalid("Invalid token type.");
        }
        let audience = field("audience");
        if !audience.starts_with("//iam.googleapis.com/projects/") {
            return invalid("Invalid value for \"audience\".");
        }
        let Some(trust) = self.providers.get(audience) else {
            let said = "The target service indicated by the \"audience\" parameters is invalid. This might either be \
                        because the pool or provider is disabled or deleted or because it doesn't exist.";
            return Err(("invalid_target", said.to_owned()));
        };
        let refused = |said: String| Err(("invalid_grant", said));
        let Some(jwt) = Jwt::read(field("subject_token")) else { return refused("Malformed JWT.".to_owned()) };
        if jwt.text("iss") != trust.issuer {
            return refused(format!("The issuer in ID Token {} does not match the expected ones.", jwt.text("iss")));
        }
        // "The audience must be the full name of the provider, with or without the scheme".
        if !jwt.is_for(audience) && !jwt.is_for(&format!("https:{audience}")) {
            return refused("The audience in ID Token does not match the expected audience.".to_owned());
        }
        if !jwt.signed_by_set(&trust.jwks, &["RS256", "ES256"]) {
            return refused("Error: the signature of the ID Token could not be verified.".to_owned());
        }
        if jwt.time("iat").is_none_or(|from| from > now + 60) || jwt.time("exp").is_none_or(|until| until <= now) {
            return refused(format!("ID Token issued at {} is stale to sign-in.", jwt.time("iat").unwrap_or_default()));
        }
        if trust.subject.as_ref().is_some_and(|subject| subject != jwt.text("sub")) {
            let said = "The given credential is rejected by the attribute condition.";
            return Err(("unauthorized_client", said.to_owned()));
        }
        let pool = audience.split("/providers/").next().unwrap_or_default().trim_start_matches("//iam.googleapis.com/");
        let token = format!("ya29.d.{}", random(256));
        let principal = format!("principal://iam.googleapis.com/{pool}/subject/{}", jwt.text("sub"));
        self.principals.insert(token.clone(), principal);
        Ok(json!({
            "access_token": token, "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "token_type": "Bearer", "expires_in": 3599,
        }))
    }

    /// Answers `signJwt` of the IAM Service Account Credentials API. `exists` is true if the account exists.
    pub fn sign(&mut self, request: &Request, account: &str, exists: bool, now: i64) -> Response {
        if self.off {
            return api_error(403, "PERMISSION_DENIED", "SERVICE_DISABLED");
        }
        let bearer = request.headers.get("authorization").and_then(|header| header.strip_prefix("Bearer "));
        let Some(principal) = bearer.and_then(|token| self.principals.get(token)).cloned() else {
            return api_error(401, "UNAUTHENTICATED", "CREDENTIALS_MISSING");
        };
        if !exists || !self.creators.contains(&(account.to_owned(), principal)) {
            return api_error(403, "PERMISSION_DENIED", "IAM_PERMISSION_DENIED");
        }
        let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
        let payload: Value = serde_json::from_str(body["payload"].as_str().unwrap_or_default()).unwrap_or_default();
        let ends = payload["exp"].as_i64().unwrap_or_default();
        if !payload.is_object() || ends <= now || ends > now + TWELVE_HOURS {
            return api_error(400, "INVALID_ARGUMENT", "INVALID_PAYLOAD");
        }
        let key = self.key(account);
        Response::json(200, &json!({"keyId": key.id, "signedJwt": key.jwt(&payload)}))
    }
}

/// Returns an error in the format of all Google APIs.
fn api_error(code: u16, status: &str, reason: &str) -> Response {
    let info = json!({
        "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "iam.googleapis.com",
    });
    let error = json!({"code": code, "message": "Words of the service.", "status": status, "details": [info]});
    Response::json(code, &json!({"error": error}))
}
