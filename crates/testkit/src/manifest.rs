//! Objects for tests: complete as they are, and changed field by field.

use serde_json::{Value, json};

use super::Idp;

/// An object as users write it.
#[derive(Clone, Debug)]
pub struct Manifest(pub Value);

impl Manifest {
    /// Sets a field by its path (`spec.renewal.minValidity`), with what is above it. Keys with dots: [`Self::entry`].
    pub fn set(self, path: &str, value: impl Into<Value>) -> Self {
        self.put(&path.split('.').collect::<Vec<_>>(), value.into())
    }

    /// Sets one key of a map: `entry("metadata.annotations", "mailtoken.dev/reissue", "1")`.
    pub fn entry(self, path: &str, key: &str, value: impl Into<Value>) -> Self {
        let keys: Vec<_> = path.split('.').chain([key]).collect();
        self.put(&keys, value.into())
    }

    /// Takes a field away.
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

/// A MailCredential for `NAME@example.org` by client credentials from the MailProvider `idp`.
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

/// The MailProvider `idp`: the token endpoint of this server, its CA in the ConfigMap `idp-ca`, the client secret in the
/// Secret `idp-client`.
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

/// A Secret with the label that lets the broker read it.
pub fn source(name: &str, key: &str, value: &str) -> Manifest {
    Manifest(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": {"mailtoken.dev/source": "true"}},
        "stringData": {key: value},
    }))
}

/// A ConfigMap with the CA of this server in `ca.crt`.
pub fn ca_bundle(name: &str, idp: &Idp) -> Manifest {
    Manifest(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"ca.crt": idp.ca()},
    }))
}
