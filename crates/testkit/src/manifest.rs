//! Manifests for tests: complete objects whose fields a test can change.

use serde_json::{Value, json};

use super::Idp;

/// An object as users write it.
#[derive(Clone, Debug)]
pub struct Manifest(pub Value);

impl Manifest {
    /// Sets a field by its path (`spec.renewal.minValidity`), and creates missing parents. For keys with dots use
    /// [`Self::entry`].
    pub fn set(self, path: &str, value: impl Into<Value>) -> Self {
        self.put(&path.split('.').collect::<Vec<_>>(), value.into())
    }

    /// Sets one key of a map: `entry("metadata.annotations", "mailtoken.dev/reissue", "1")`.
    pub fn entry(self, path: &str, key: &str, value: impl Into<Value>) -> Self {
        let keys: Vec<_> = path.split('.').chain([key]).collect();
        self.put(&keys, value.into())
    }

    /// Removes a field by its path.
    pub fn without(mut self, path: &str) -> Self {
        let pointer = format!("/{}", path.replace('.', "/"));
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.0.pointer_mut(parent).and_then(Value::as_object_mut).and_then(|map| map.remove(key));
        self
    }

    fn put(mut self, keys: &[&str], value: Value) -> Self {
        let mut place = &mut self.0;
        for key in keys {
            if place.is_null() {
                *place = json!({});
            }
            place = match key.parse::<usize>() {
                Ok(index) if place.is_array() => &mut place[index],
                _ => &mut place[*key],
            };
        }
        *place = value;
        self
    }
}

impl From<Value> for Manifest {
    fn from(value: Value) -> Self {
        Self(value)
    }
}

/// Returns a MailCredential for `NAME@example.org` by client credentials from the MailProvider `idp`.
pub fn credential(name: &str) -> Manifest {
    Manifest(json!({
        "apiVersion": "mailtoken.dev/v1alpha1",
        "kind": "MailCredential",
        "metadata": {"name": name},
        "spec": {
            "providerRef": {"name": "idp"},
            "mailbox": {"address": format!("{name}@example.org")},
            "grant": {"clientCredentials": {}},
        },
    }))
}

/// Returns the MailProvider `idp` for the token endpoint of this server. Its CA is in the ConfigMap `idp-ca`, its
/// client secret in the Secret `idp-client`.
pub fn provider(idp: &Idp) -> Manifest {
    Manifest(json!({
        "apiVersion": "mailtoken.dev/v1alpha1",
        "kind": "MailProvider",
        "metadata": {"name": "idp"},
        "spec": {
            "oauth2": {"tokenURL": idp.token_url()},
            "client": {
                "id": "mailer",
                "authentication": [{"clientSecret": {"secretRef": {"name": "idp-client", "key": "client-secret"}}}],
            },
            "servers": {"smtp": {"host": "smtp.example.org", "port": 587, "security": "STARTTLS"}},
            "caBundleRef": {"configMap": {"name": "idp-ca", "key": "ca.crt"}},
        },
    }))
}

/// Returns a Secret with the label that allows the broker to read it.
pub fn source(name: &str, key: &str, value: &str) -> Manifest {
    Manifest(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": {"mailtoken.dev/source": "true"}},
        "stringData": {key: value},
    }))
}

/// Returns a ConfigMap with the CA of this server in `ca.crt`.
pub fn ca_bundle(name: &str, idp: &Idp) -> Manifest {
    Manifest(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"ca.crt": idp.ca()},
    }))
}
