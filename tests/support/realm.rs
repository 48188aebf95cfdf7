//! The realm `mail` of the stack's Keycloak, as its administrator changes it.

use std::process::Command;

use serde_json::{Value, json};

use super::{Cluster, Namespace, process};

/// One request to the admin API; `path` is below `/realms/mail`.
pub fn admin(cluster: &Cluster, method: &str, path: &str, body: &Value) -> String {
    let mut command = Command::new(process::tool("keycloak-admin"));
    let path = format!("/realms/mail{path}");
    process::output(command.arg(cluster.dir()).args([method, &path, &body.to_string()]))
}

/// Registers a client that authenticates with tokens of a ServiceAccount in this namespace, which is made. Their one
/// audience is the realm's issuer. Keycloak 26.4 takes a parameter `client_id` only when it is the token's subject,
/// `system:serviceaccount:NAMESPACE:NAME`, whatever the client is called; without one the subject finds the client.
pub async fn federate(ns: &Namespace, client: &str, service_account: &str) {
    ns.apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": service_account}})).await;
    // Keycloak reads the keys like anybody: its provider for Kubernetes wants to run in the cluster itself.
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
