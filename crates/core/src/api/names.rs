//! Names that users see on objects: labels, annotations and Secret types, and the truncation of long names.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize as _, Deserializer, de::Error as _};
use sha2::{Digest as _, Sha256};

/// Field manager of the broker's writes, and the reporter of its Events.
pub const MANAGER: &str = "mail-token-broker";

/// Label with the tool that manages an object (recommended by Kubernetes).
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label with the credential that owns a Secret, truncated by [`label_value`].
pub const LABEL_CREDENTIAL: &str = "mailtoken.dev/credential";
/// Label that distinguishes a grant Secret from a target Secret.
pub const LABEL_ROLE: &str = "mailtoken.dev/role";
/// Value of [`LABEL_ROLE`] on a grant Secret.
pub const ROLE_GRANT: &str = "grant";
/// Label with the value `true` that allows the broker to read a Secret.
pub const LABEL_SOURCE: &str = "mailtoken.dev/source";

/// Annotation of a ServiceAccount: the audiences, separated by commas, for which providers of its namespace may use its
/// tokens.
pub const ANNOTATION_ALLOWED_AUDIENCES: &str = "mailtoken.dev/allowed-audiences";
/// Annotation of a source Secret: the hosts, separated by commas, to which the broker may send the Secret's content.
/// Without the annotation, the broker may send the content to any host.
pub const ANNOTATION_SOURCE_HOSTS: &str = "mailtoken.dev/source-hosts";

/// Annotation of a MailCredential: each new value makes the broker obtain one token immediately.
pub const ANNOTATION_REISSUE: &str = "mailtoken.dev/reissue";
/// On the target Secret: the last handled value of [`ANNOTATION_REISSUE`].
pub const ANNOTATION_HANDLED_REISSUE: &str = "mailtoken.dev/handled-reissue";
/// On the target Secret: when the token was issued, RFC 3339.
pub const ANNOTATION_ISSUED_AT: &str = "mailtoken.dev/issued-at";
/// On the target Secret: when the token expires, RFC 3339.
pub const ANNOTATION_EXPIRES_AT: &str = "mailtoken.dev/expires-at";
/// On the target Secret: when the provider recommends a renewal, RFC 3339 (Microsoft's `refresh_in`).
pub const ANNOTATION_REFRESH_AT: &str = "mailtoken.dev/refresh-at";
/// On the target Secret: `sha256:` and the first 16 hex digits of the token's SHA-256.
pub const ANNOTATION_FINGERPRINT: &str = "mailtoken.dev/fingerprint";
/// On the target and the grant Secret: digest of the provider, its endpoints and the client at the exchange. The broker
/// revokes the token only while this digest is the same.
pub const ANNOTATION_REVOCABLE_AT: &str = "mailtoken.dev/revocable-at";
/// On the target Secret: hash of the inputs for which the token was issued.
pub const ANNOTATION_ISSUED_FOR: &str = "mailtoken.dev/issued-for";
/// On the target Secret: hash of the inputs of its content, except for the token's inputs. It shows a change without a
/// read of the Secret.
pub const ANNOTATION_LAYOUT: &str = "mailtoken.dev/layout";
/// On the target Secret: the granted scopes, separated by spaces.
pub const ANNOTATION_SCOPES: &str = "mailtoken.dev/scopes";
/// On the target Secret: the labels and annotations from `spec.secret`. The broker removes a recorded entry that the
/// spec no longer has.
pub const ANNOTATION_APPLIED: &str = "mailtoken.dev/applied";

/// On the target Secret: the id of the token's subject (Microsoft's `oid`).
pub const ANNOTATION_OBJECT_ID: &str = "mailtoken.dev/object-id";
/// On the target Secret: why mail servers will refuse the token, according to its claims.
pub const ANNOTATION_WARNING: &str = "mailtoken.dev/warning";

/// On the grant Secret: when the user signed in or the broker copied the seed, RFC 3339.
pub const ANNOTATION_OBTAINED_AT: &str = "mailtoken.dev/obtained-at";
/// On the grant Secret: when the refresh token was last exchanged, RFC 3339.
pub const ANNOTATION_LAST_USED_AT: &str = "mailtoken.dev/last-used-at";
/// On the grant Secret: how many times the provider has replaced the refresh token.
pub const ANNOTATION_ROTATIONS: &str = "mailtoken.dev/rotations";
/// On the grant Secret: hash of the grant's seed, and the resourceVersion of the seed's Secret.
pub const ANNOTATION_SEED: &str = "mailtoken.dev/seed";
/// On the grant Secret: the claim with its holder, the refresh token's hash, the start time and the deadline.
pub const ANNOTATION_CLAIM: &str = "mailtoken.dev/claim";
/// On the grant Secret: the pending sign-in, without the device code.
pub const ANNOTATION_SIGN_IN: &str = "mailtoken.dev/sign-in";

/// On the Lease: the namespaces that its holder serves, `*` for all.
pub const ANNOTATION_SERVES: &str = "mailtoken.dev/serves";

/// Finalizer of a MailCredential with `revocationPolicy: OnDelete`.
pub const FINALIZER_REVOKE: &str = "mailtoken.dev/revoke";

/// Type of the Secret that pods mount.
pub const SECRET_TYPE_TARGET: &str = "Opaque";
/// Type of the Secret that stores a refresh token. Such a Secret is never a source and never mounted.
pub const SECRET_TYPE_GRANT: &str = "mailtoken.dev/grant";

/// The first second of the year 9000. Later times count as forged.
const MADE_UP: i64 = 221_845_392_000;
/// Longest value of a label in Kubernetes, in characters.
const LABEL_MAX: usize = 63;
/// Longest name of a Secret in Kubernetes, in characters.
const NAME_MAX: usize = 253;

/// Formats a time by RFC 3339 in whole seconds, for annotations, Secret keys and messages.
pub fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Parses a time from an annotation. `None`: the text is no time, or the time is before 1970 or after the year 8999.
/// Such a time is forged, and sums with it could overflow.
pub fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok().filter(|at: &Timestamp| (0..MADE_UP).contains(&at.as_second()))
}

/// Deserializes a time with [`time`], for annotations in JSON.
pub fn deserialize_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    time(&text).ok_or_else(|| D::Error::custom("time out of range"))
}

/// The value of [`LABEL_CREDENTIAL`] for a credential's name: the name, truncated with a hash beyond 63 characters.
pub fn label_value(name: &str) -> String {
    cut(name, LABEL_MAX)
}

/// The name of a credential's grant Secret, truncated with a hash beyond 253 characters.
pub fn grant_secret(credential: &str) -> String {
    let suffix = "-grant";
    format!("{}{suffix}", cut(credential, NAME_MAX - suffix.len()))
}

/// The SHA-256 of `parts` in 64 hex digits. The hash includes each part's length, so that different lists of parts have
/// different digests. Bindings and tokens need this digest: an attacker must not find a second preimage or a collision.
pub fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    hex(&hashed(parts))
}

/// The first 16 hex digits of [`digest`], for hashes that only detect a change.
pub fn short_digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    hex16(&hashed(parts))
}

/// Whether `stored`, a digest in an annotation, equals `wanted`. Earlier versions of the broker stored only 16 digits.
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
    hex(bytes.get(..8).unwrap_or(bytes))
}

/// Encodes `bytes` in lower-case hex digits, in one allocation: each reconcile computes about ten digests.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(if value < 10 { b'0' + value } else { b'a' - 10 + value });
    let mut text = String::with_capacity(2 * bytes.len());
    text.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
    text
}

/// Returns `name` if it fits `max`, otherwise its beginning and a hash of the whole name. Names are ASCII.
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
    fn an_implausible_time_is_not_read() {
        assert_eq!(time("2026-11-22T20:40:00Z").map(rfc3339).as_deref(), Some("2026-11-22T20:40:00Z"));
        for made_up in
            ["9999-12-30T22:00:00Z", "9000-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "-009999-01-02T01:59:59Z", ""]
        {
            assert_eq!(time(made_up), None, "{made_up}");
        }
        assert!(time("8999-12-31T23:59:59Z").is_some());
    }

    #[test]
    fn hex_has_two_digits_for_each_byte() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(hex(&all), all.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        assert_eq!((hex16(&all), hex16(&[0xab]), hex(&[])), ("0001020304050607".into(), "ab".into(), String::new()));
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
