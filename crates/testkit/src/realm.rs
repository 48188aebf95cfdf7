//! Administers the realm `mail` of the stack's Keycloak.

use std::process::Command;

use serde_json::{Value, json};

use super::{Cluster, Manifest, Namespace, process};

/// Sends one request to the admin API. `path` is below `/realms/mail`.
pub fn admin(cluster: &Cluster, method: &str, path: &str, body: &Value) -> String {
    let mut command = Command::new(process::tool("keycloak-admin"));
    let path = format!("/realms/mail{path}");
    process::output(command.arg(cluster.dir()).args([method, &path, &body.to_string()]))
}

/// Requests a user's access and refresh token, by password.
pub fn tokens(cluster: &Cluster, account: &str, scopes: &str) -> (String, String) {
    let env = |name: &str| cluster.env(name);
    let form = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs([
            ("grant_type", "password"),
            ("client_id", &env("KEYCLOAK_DESKTOP_CLIENT_ID")),
            ("username", account),
            ("password", &env("PERSON_PASSWORD")),
            ("scope", scopes),
        ])
        .finish();
    let answer = fetch(cluster, &env("KEYCLOAK_TOKEN_URL"), &["--data", &form]);
    let token = |name: &str| answer[name].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
    (token("access_token"), token("refresh_token"))
}

/// Revokes an access token of the demo's client (RFC 7009).
pub fn revoke(cluster: &Cluster, token: &str) {
    let env = |name: &str| cluster.env(name);
    let mut curl = Command::new("curl");
    curl.args(["-sSf", "--noproxy", "*", "--max-time", "20", "--cacert", &env("CA_CERT")]);
    for (field, value) in [
        ("client_id", env("KEYCLOAK_CLIENT_ID")),
        ("client_secret", env("KEYCLOAK_CLIENT_SECRET")),
        ("token_type_hint", "access_token".to_owned()),
        ("token", token.to_owned()),
    ] {
        curl.args(["--data-urlencode", &format!("{field}={value}")]);
    }
    process::output(curl.arg(format!("{}/protocol/openid-connect/revoke", env("KEYCLOAK_ISSUER"))));
}

/// Returns the list that the admin API has at a path below `/realms/mail`.
fn list(cluster: &Cluster, path: &str) -> Vec<Value> {
    let mut command = Command::new(process::tool("keycloak-admin"));
    let path = format!("/realms/mail{path}");
    serde_json::from_str(&process::output(command.arg(cluster.dir()).args(["GET", &path]))).unwrap()
}

/// Returns the realm's event log, the latest event first.
pub fn events(cluster: &Cluster) -> Vec<Value> {
    list(cluster, "/events?max=1000000")
}

/// Sets the lifetime in seconds of the access tokens of one client. The tokens of other clients keep theirs.
pub fn token_lifetime(cluster: &Cluster, client: &str, seconds: u32) {
    let found = list(cluster, &format!("/clients?clientId={client}"));
    let id = found[0]["id"].as_str().unwrap();
    let change = json!({"clientId": client, "attributes": {"access.token.lifespan": seconds.to_string()}});
    admin(cluster, "PUT", &format!("/clients/{id}"), &change);
}

/// Returns the public keys for the realm's tokens.
pub fn keys(cluster: &Cluster) -> Value {
    let discovery = format!("{}/.well-known/openid-configuration", cluster.env("KEYCLOAK_ISSUER"));
    fetch(cluster, fetch(cluster, &discovery, &[])["jwks_uri"].as_str().unwrap(), &[])
}

fn fetch(cluster: &Cluster, url: &str, arguments: &[&str]) -> Value {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--noproxy", "*", "--max-time", "20", "--cacert", &cluster.env("CA_CERT")]).args(arguments);
    serde_json::from_str(&process::output(curl.arg(url))).unwrap()
}

/// Registers a client that authenticates with tokens of a ServiceAccount, and creates the ServiceAccount in this
/// namespace. The only audience of the tokens is the realm's issuer. Keycloak 26.4 accepts a parameter `client_id` only
/// if it is the token's subject, `system:serviceaccount:NAMESPACE:NAME`, regardless of the client's name. Without the
/// parameter, Keycloak finds the client by the subject.
pub async fn federate(ns: &Namespace, client: &str, service_account: &str) {
    let account =
        Manifest(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": service_account}}));
    let issuer = ns.cluster.env("KEYCLOAK_ISSUER");
    ns.apply(account.entry("metadata.annotations", "mailtoken.dev/allowed-audiences", issuer.as_str())).await;
    // Keycloak reads the keys without authentication: its provider for Kubernetes requires that Keycloak runs in the
    // cluster.
    ns.apply(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "anyone-verifies-service-accounts"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "system:service-account-issuer-discovery",
        },
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:unauthenticated"}],
    }))
    .await;
    let cluster = &ns.cluster;
    let discovery = process::output(cluster.kubectl().args(["get", "--raw", "/.well-known/openid-configuration"]));
    let discovery: Value = serde_json::from_str(&discovery).unwrap();
    let provider = json!({
        "alias": ns.name,
        "providerId": "oidc",
        "hideOnLogin": true,
        "config": {
            "issuer": discovery["issuer"],
            "useJwksUrl": "true",
            "jwksUrl": discovery["jwks_uri"],
            "validateSignature": "true",
            "supportsClientAssertions": "true",
            "supportsClientAssertionReuse": "true",
            "authorizationUrl": "https://localhost/unused",
            "tokenUrl": "https://localhost/unused",
            "clientId": "unused",
        },
    });
    admin(cluster, "POST", "/identity-provider/instances", &provider);
    let registration = json!({
        "clientId": client,
        "serviceAccountsEnabled": true,
        "standardFlowEnabled": false,
        "clientAuthenticatorType": "federated-jwt",
        "attributes": {
            "jwt.credential.issuer": ns.name,
            "jwt.credential.sub": format!("system:serviceaccount:{}:{service_account}", ns.name),
        },
    });
    admin(cluster, "POST", "/clients", &registration);
}
