//! Searches for secrets in places where no secret may be.

use base64::{Engine as _, prelude::BASE64_STANDARD};

use k8s_openapi::api::core::v1::Secret;

use super::{Broker, Namespace};

/// Returns the forms in which a secret may leak: plain, form-encoded, and inside any base64 text.
fn spellings(secret: &str) -> Vec<String> {
    let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let mut spellings = vec![secret.to_owned(), form];
    for shift in 0..3 {
        let encoded = BASE64_STANDARD.encode([" ".repeat(shift).as_bytes(), secret.as_bytes()].concat());
        // The characters at both ends depend on the neighbouring bytes.
        spellings.push(encoded[4..encoded.trim_end_matches('=').len() - 3].to_owned());
    }
    spellings
}

/// The beginning of a JWT whose header names its algorithm first: tokens of Keycloak, tokens of ServiceAccounts, which
/// no test knows, and assertions that the broker signs.
const JWT: &str = "eyJhbGciOi";

/// Returns the texts that many users of a namespace may read: the broker's kinds, also cluster-scoped ones, their
/// Events, and the metadata of the broker's Secrets.
pub fn shown(ns: &Namespace) -> Vec<(&'static str, String)> {
    let mut places = vec![];
    for kind in ["mailcredentials", "mailproviders", "events"] {
        places.push((kind, ns.kubectl(["get", kind, "-o", "yaml"])));
        places.push((kind, ns.kubectl(["describe", kind])));
    }
    // Do not describe ClusterMailProviders: other tests may delete their ClusterMailProviders at the same time. The
    // Events of ClusterMailProviders are in the namespace `default`.
    let cluster = "clustermailproviders";
    places.push((cluster, ns.kubectl(["get", cluster, "-o", "yaml"])));
    let events = ns.kubectl(["get", "events", "--namespace=default", "-o", "yaml"]);
    places.push(("events on clustermailproviders", events));
    let own = "app.kubernetes.io/managed-by=mail-token-broker";
    let metadata = ns.kubectl(["get", "secrets", "-l", own, "-o", "jsonpath={.items[*].metadata}"]);
    places.push(("the metadata of the broker's Secrets", metadata));
    places
}

/// Fails if one of `secrets`, in any form of `spellings`, appears in one of the `places`.
pub fn assert_absent(places: &[(&str, String)], secrets: &[String]) {
    for secret in secrets {
        for spelling in spellings(secret) {
            assert!(spelling.len() >= 12, "{spelling}");
            for (place, text) in places {
                if let Some(at) = text.find(&spelling) {
                    let around = text.get(at.saturating_sub(300)..(at + 200).min(text.len()));
                    panic!("a secret appears in {place}: {around:?}");
                }
            }
        }
    }
}

/// Returns the secret values in a namespace's Secrets.
pub async fn kept(ns: &Namespace) -> Vec<String> {
    const PLAIN: [&str; 7] = ["username", "from", "_host", "_port", "expires_at", "expires_at_unix", "token_type"];
    let secrets = ns.api::<Secret>().list(&Default::default()).await.unwrap();
    let entries = secrets.items.into_iter().flat_map(|secret| secret.data.unwrap_or_default());
    let values = entries.filter(|(key, _)| !PLAIN.iter().any(|plain| key.ends_with(plain)));
    let secret = values.filter(|(key, _)| !key.ends_with(".crt"));
    secret.flat_map(|(_, value)| lines(&String::from_utf8(value.0).unwrap())).collect()
}

/// Returns the lines of a PEM file that must appear nowhere, even if the file is in JSON. The file must not be a public
/// certificate.
pub fn lines(file: &str) -> Vec<String> {
    let file = file.replace("\\n", "\n");
    let secret = |line: &&str| line.len() >= 24 && !line.starts_with("-----");
    file.lines().filter(secret).map(str::to_owned).collect()
}

/// Fails if the broker's log, its metrics, an Event or a status contains a JWT, a value of the namespace's Secrets, or
/// one of the secrets in `more`.
pub async fn assert_no_secret_shown(ns: &Namespace, broker: &Broker, more: Vec<String>) {
    let mut places = vec![("metrics", broker.metrics().await), ("log", broker.log())];
    places.extend(shown(ns));
    let secrets: Vec<_> = kept(ns).await.into_iter().chain(more).collect();
    assert!(secrets.len() >= 3, "{} secrets only", secrets.len());
    assert_absent(&places, &secrets);
    for (place, text) in &places {
        assert_eq!(text.lines().find(|line| line.contains(JWT)), None, "a JWT appears in {place}");
    }
}
