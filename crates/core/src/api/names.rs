//! Names that users see on objects: labels, annotations, Secret keys, and how long names are cut.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize as _, Deserializer, de::Error as _};
use sha2::{Digest as _, Sha256};

/// Field manager of everything that the broker applies, and the reporter of its Events.
pub const MANAGER: &str = "mail-token-broker";

/// Says which tool made an object (a label recommended by Kubernetes).
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The credential that a Secret belongs to, cut by [`label_value`].
pub const LABEL_CREDENTIAL: &str = "mailtoken.dev/credential";
/// Tells a grant Secret from a target Secret.
pub const LABEL_ROLE: &str = "mailtoken.dev/role";
/// Value of [`LABEL_ROLE`] on the Secret that keeps a refresh token.
pub const ROLE_GRANT: &str = "grant";
/// A Secret must carry this label, with the value `true`, before the broker reads it.
pub const LABEL_SOURCE: &str = "mailtoken.dev/source";

/// On a ServiceAccount: the audiences, separated by commas, that providers of its namespace may have its tokens made for.
pub const ANNOTATION_ALLOWED_AUDIENCES: &str = "mailtoken.dev/allowed-audiences";
/// On a source Secret: the hosts, separated by commas, that its content may be sent to. Without it, any.
pub const ANNOTATION_SOURCE_HOSTS: &str = "mailtoken.dev/source-hosts";

/// On a MailCredential: any new value obtains a token at once, and once.
pub const ANNOTATION_REISSUE: &str = "mailtoken.dev/reissue";
/// On the target Secret: the value of [`ANNOTATION_REISSUE`] that its token answered.
pub const ANNOTATION_HANDLED_REISSUE: &str = "mailtoken.dev/handled-reissue";
/// When the token in the Secret was issued, RFC 3339.
pub const ANNOTATION_ISSUED_AT: &str = "mailtoken.dev/issued-at";
/// When the token in the Secret expires, RFC 3339.
pub const ANNOTATION_EXPIRES_AT: &str = "mailtoken.dev/expires-at";
/// When the provider asked for the token to be refreshed, RFC 3339 (Microsoft's `refresh_in`).
pub const ANNOTATION_REFRESH_AT: &str = "mailtoken.dev/refresh-at";
/// `sha256:` and the first 16 hex digits of the token's SHA-256.
pub const ANNOTATION_FINGERPRINT: &str = "mailtoken.dev/fingerprint";
/// The digest of the provider, its endpoints and the client at the time of the exchange: the token is revoked there only.
pub const ANNOTATION_REVOCABLE_AT: &str = "mailtoken.dev/revocable-at";
/// Hash of the inputs that the token was issued for.
pub const ANNOTATION_ISSUED_FOR: &str = "mailtoken.dev/issued-for";
/// Hash of everything else that shapes the Secret, so that a change of it is seen without reading the Secret.
pub const ANNOTATION_LAYOUT: &str = "mailtoken.dev/layout";
/// The scopes that were granted, separated by spaces.
pub const ANNOTATION_SCOPES: &str = "mailtoken.dev/scopes";
/// Which labels and annotations came from `spec.secret`, so that those dropped there are dropped here.
pub const ANNOTATION_APPLIED: &str = "mailtoken.dev/applied";

/// On the target Secret: the id that the token gives for its subject (Microsoft's `oid`).
pub const ANNOTATION_OBJECT_ID: &str = "mailtoken.dev/object-id";
/// On the target Secret: what the token says of itself that will not do.
pub const ANNOTATION_WARNING: &str = "mailtoken.dev/warning";

/// On the grant Secret: when the grant was obtained, RFC 3339.
pub const ANNOTATION_OBTAINED_AT: &str = "mailtoken.dev/obtained-at";
/// On the grant Secret: when the refresh token was last exchanged, RFC 3339.
pub const ANNOTATION_LAST_USED_AT: &str = "mailtoken.dev/last-used-at";
/// On the grant Secret: how many times the provider has replaced the refresh token.
pub const ANNOTATION_ROTATIONS: &str = "mailtoken.dev/rotations";
/// On the grant Secret: hash of the seed that it was begun with, and the resourceVersion of the seed's Secret.
pub const ANNOTATION_SEED: &str = "mailtoken.dev/seed";
/// On the grant Secret: who is exchanging which refresh token, since when and until when.
pub const ANNOTATION_CLAIM: &str = "mailtoken.dev/claim";
/// On the grant Secret: the sign-in that is waited for, without the device code.
pub const ANNOTATION_SIGN_IN: &str = "mailtoken.dev/sign-in";

/// On the Lease: which namespaces its holder serves, `*` for all.
pub const ANNOTATION_SERVES: &str = "mailtoken.dev/serves";

/// On a MailCredential with `revocationPolicy: OnDelete`.
pub const FINALIZER_REVOKE: &str = "mailtoken.dev/revoke";

/// Type of the Secret that pods mount.
pub const SECRET_TYPE_TARGET: &str = "Opaque";
/// Type of the Secret that keeps a refresh token. Never a source, never mounted.
pub const SECRET_TYPE_GRANT: &str = "mailtoken.dev/grant";

/// The first second of the year 9000.
const MADE_UP: i64 = 221_845_392_000;
/// Longest value of a label.
const LABEL_MAX: usize = 63;
/// Longest name of a Secret.
const NAME_MAX: usize = 253;

/// RFC 3339 in whole seconds, as in annotations, Secret keys and messages.
pub fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time that stands in an annotation. What lies before 1970 or after the year 8999 was made up by somebody, and is
/// none: sums with it could overflow.
pub fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok().filter(|at: &Timestamp| (0..MADE_UP).contains(&at.as_second()))
}

/// [`time`] in what an annotation holds as JSON.
pub fn deserialize_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    time(&text).ok_or_else(|| D::Error::custom("no time of our days"))
}

/// The value of [`LABEL_CREDENTIAL`] for a credential's name: the name, cut with a hash past 63 characters.
pub fn label_value(name: &str) -> String {
    cut(name, LABEL_MAX)
}

/// The name of the Secret that keeps a credential's refresh token: cut with a hash past 253 characters.
pub fn grant_secret(credential: &str) -> String {
    let suffix = "-grant";
    format!("{}{suffix}", cut(credential, NAME_MAX - suffix.len()))
}

/// The SHA-256 of the parts in 64 hex digits, each part with its length in front so that no two lists of parts run
/// together. For what an attacker must not find a second preimage or a collision of: bindings and tokens.
pub fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    hashed(parts).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first 16 hex digits of [`digest`], for values that are only compared to notice a change.
pub fn short_digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    hex16(&hashed(parts))
}

/// Whether `stored`, a digest in an annotation, is `wanted`. Earlier versions of the broker stored the first 16 digits.
pub fn is_digest(stored: &str, wanted: &str) -> bool {
    stored == wanted || (stored.len() == 16 && wanted.len() == 64 && wanted.starts_with(stored))
}

fn hashed<'a>(parts: impl IntoIterator<Item = &'a str>) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

/// The first 16 hex digits of `bytes`.
pub fn hex16(bytes: &[u8]) -> String {
    bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// `name` where it fits `max`, else its beginning and a hash of the whole. Names are ASCII.
fn cut(name: &str, max: usize) -> String {
    if name.len() <= max {
        return name.to_owned();
    }
    let hash = hex16(&Sha256::digest(name.as_bytes()));
    let head: String = name.chars().take(max - hash.len() - 1).collect();
    format!("{}-{hash}", head.trim_end_matches(['.', '-']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_with_a_hash_that_keeps_it_apart_from_its_neighbour() {
        let (a, b) = (format!("{}a", "x".repeat(252)), format!("{}b", "x".repeat(252)));
        assert_eq!(label_value(&a).len(), 63);
        assert_ne!(label_value(&a), label_value(&b));
        assert_ne!(grant_secret(&a), grant_secret(&b));
        assert!(grant_secret(&a).len() <= 253);
        assert_eq!(grant_secret("billing"), "billing-grant");
    }

    #[test]
    fn a_time_that_nobody_lives_in_is_none() {
        assert_eq!(time("2026-11-22T20:40:00Z").map(rfc3339).as_deref(), Some("2026-11-22T20:40:00Z"));
        for made_up in
            ["9999-12-30T22:00:00Z", "9000-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "-009999-01-02T01:59:59Z", ""]
        {
            assert_eq!(time(made_up), None, "{made_up}");
        }
        assert!(time("8999-12-31T23:59:59Z").is_some());
    }

    #[test]
    fn digests_keep_the_borders_between_parts() {
        assert_ne!(digest(["ab", "c"]), digest(["a", "bc"]));
        assert_eq!((digest(["ab", "c"]).len(), short_digest(["ab", "c"]).len()), (64, 16));
    }

    #[test]
    fn a_digest_of_an_earlier_version_is_known_again_and_no_other_beginning_is() {
        let whole = digest(["ab", "c"]);
        assert!(is_digest(&whole, &whole) && is_digest(&short_digest(["ab", "c"]), &whole));
        for other in ["", &whole[..15], &whole[..17], &whole[..63], &short_digest(["a", "bc"])] {
            assert!(!is_digest(other, &whole), "{other}");
        }
        assert!(!is_digest(&whole, &whole[..16]), "what is wanted is always whole");
    }
}
