//! The token in a target Secret, as the annotations and the data describe it. Pure.

use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    expiry::{self, DataExpiry},
    hash::RevocationHash,
    token::TokenFacts,
};
use crate::{
    api::{names, status::TokenStatus},
    oauth::{
        Token,
        token::{TokenFingerprint, is_access_token},
    },
};

/// A token in a target Secret, with its annotations.
pub struct Stored {
    /// The token and its times.
    pub token: Token,
    /// The value of the annotation `mailtoken.dev/revocable-at`; empty if the annotation is missing.
    pub revocable_at: RevocationHash,
    /// The value of the annotation `mailtoken.dev/object-id`.
    pub object_id: Option<String>,
    /// The value of the annotation `mailtoken.dev/warning`.
    pub unsuitable: Option<String>,
}

/// The token in a target Secret, and whether annotations, data and `status` agree about its expiry. If they disagree,
/// the token expires at the earliest time. `None`: the annotations do not describe the token in the data.
pub fn stored_token(secret: &Secret, status: Option<&TokenStatus>) -> Option<(Stored, bool)> {
    let mut facts = TokenFacts::read(&secret.metadata)?;
    let text = |key: &str| String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok();
    // Another writer may have changed the data. The broker copies a value into the other keys only if the value can be
    // an access token.
    let access_token = SecretString::from(text("access_token").filter(|token| is_access_token(token))?);
    if TokenFingerprint::of(access_token.expose_secret()) != facts.fingerprint {
        return None;
    }
    let data = DataExpiry {
        date: text("expires_at").and_then(|text| names::time(&text)),
        seconds: text("expires_at_unix").and_then(|text| Timestamp::from_second(text.parse().ok()?).ok()),
    };
    let agrees = expiry::settle_with_data(&mut facts, data) & expiry::settle_with_status(&mut facts, status);
    let token_type =
        text("token_type").filter(|kind| kind.eq_ignore_ascii_case("bearer")).unwrap_or_else(|| "Bearer".to_owned());
    let token = Token {
        access_token,
        token_type,
        issued_at: facts.issued_at,
        expires_at: facts.expires_at,
        refresh_at: facts.refresh_at,
        scopes: facts.scopes,
    };
    let revocable_at = secret.metadata.annotations.as_ref().and_then(|map| map.get(names::ANNOTATION_REVOCABLE_AT));
    let stored = Stored {
        token,
        revocable_at: revocable_at.map_or("", String::as_str).into(),
        object_id: facts.object_id,
        unsuitable: facts.unsuitable,
    };
    Some((stored, agrees))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::Time};

    use super::*;
    use crate::fixtures::at;

    const TOKEN: &str = "ya29.a0Af-token";

    /// The Secret with the token, issued at `at(0)` and valid for an hour.
    fn secret() -> Secret {
        let annotations = [
            (names::ANNOTATION_ISSUED_AT, names::rfc3339(at(0))),
            (names::ANNOTATION_EXPIRES_AT, names::rfc3339(at(3600))),
            (names::ANNOTATION_FINGERPRINT, TokenFingerprint::of(TOKEN).to_string()),
            (names::ANNOTATION_SCOPES, "imap smtp".to_owned()),
            (names::ANNOTATION_REVOCABLE_AT, "revocable".to_owned()),
            (names::ANNOTATION_OBJECT_ID, "oid".to_owned()),
            (names::ANNOTATION_WARNING, "unsuitable".to_owned()),
        ];
        let data = [
            ("access_token", TOKEN.to_owned()),
            ("token_type", "bearer".to_owned()),
            ("expires_at", names::rfc3339(at(3600))),
            ("expires_at_unix", at(3600).as_second().to_string()),
        ];
        let mut secret = Secret::default();
        let text = |(key, value): (&str, String)| (key.to_owned(), value);
        secret.metadata.annotations = Some(annotations.map(text).into());
        secret.data = Some(data.map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))).into());
        secret
    }

    fn put(secret: &mut Secret, key: &str, value: impl Into<Vec<u8>>) {
        secret.data.as_mut().unwrap().insert(key.to_owned(), ByteString(value.into()));
    }

    fn status(end: i64) -> TokenStatus {
        TokenStatus {
            issued_at: Time(at(0)),
            expires_at: Time(at(end)),
            renewal_time: Time(at(0)),
            scopes: vec![],
            fingerprint: TokenFingerprint::of(TOKEN).to_string(),
            length: 1,
        }
    }

    #[test]
    fn a_stored_token_has_the_properties_in_annotations_and_data() {
        let (stored, agrees) = stored_token(&secret(), None).unwrap();
        assert!(agrees);
        let Token { access_token, token_type, issued_at, expires_at, refresh_at, scopes } = stored.token;
        assert_eq!(access_token.expose_secret(), TOKEN);
        assert_eq!((issued_at, expires_at, refresh_at), (at(0), at(3600), None));
        assert_eq!((token_type.as_str(), scopes), ("bearer", vec!["imap".to_owned(), "smtp".to_owned()]));
        assert_eq!(stored.revocable_at.as_str(), "revocable");
        assert_eq!((stored.object_id.as_deref(), stored.unsuitable.as_deref()), (Some("oid"), Some("unsuitable")));
    }

    #[test]
    fn a_secret_whose_annotations_do_not_describe_its_data_stores_no_token() {
        type Change = fn(&mut Secret);
        let cases: [(&str, Change); 6] = [
            ("no annotations", |secret| secret.metadata.annotations = None),
            ("no data", |secret| secret.data = None),
            ("no access token", |secret| put(secret, "access_token", "")),
            ("another token", |secret| put(secret, "access_token", "another")),
            ("no text", |secret| put(secret, "access_token", [0xff])),
            ("a value that no token has", |secret| {
                let value = "two lines\n";
                put(secret, "access_token", value);
                let fingerprint = TokenFingerprint::of(value).to_string();
                let annotations = secret.metadata.annotations.as_mut().unwrap();
                annotations.insert(names::ANNOTATION_FINGERPRINT.to_owned(), fingerprint);
            }),
        ];
        for (name, change) in cases {
            let mut secret = secret();
            change(&mut secret);
            assert!(stored_token(&secret, None).is_none(), "{name}");
        }
    }

    #[test]
    fn a_stored_token_expires_at_the_earliest_of_all_times() {
        // A key of the data with its value, the expiry in the status; the expiry, whether all times agree, the token type.
        type Row<'a> = (&'a str, &'a str, Option<i64>, i64, bool, &'a str);
        let table: [Row<'_>; 9] = [
            ("", "", Some(3600), 3600, true, "bearer"),
            ("expires_at", "2027-01-15T08:10:00Z", None, 600, false, "bearer"),
            ("expires_at_unix", "1800000600", None, 600, false, "bearer"),
            ("expires_at", "tomorrow", None, 3600, true, "bearer"),
            ("expires_at_unix", "tomorrow", None, 3600, true, "bearer"),
            ("", "", Some(600), 600, false, "bearer"),
            ("expires_at", "2027-01-15T08:10:00Z", Some(300), 300, false, "bearer"),
            ("token_type", "BEARER", None, 3600, true, "BEARER"),
            ("token_type", "mac", None, 3600, true, "Bearer"),
        ];
        for (key, value, reported, end, agree, token_type) in table {
            let mut secret = secret();
            put(&mut secret, key, value);
            let (stored, agrees) = stored_token(&secret, reported.map(status).as_ref()).unwrap();
            assert_eq!((stored.token.expires_at, agrees), (at(end), agree), "{key} {value} {reported:?}");
            assert_eq!(stored.token.token_type, token_type, "{key} {value}");
        }
        let mut secret = secret();
        secret.data.as_mut().unwrap().remove("token_type");
        secret.metadata.annotations.as_mut().unwrap().remove(names::ANNOTATION_REVOCABLE_AT);
        let (stored, _) = stored_token(&secret, None).unwrap();
        assert_eq!((stored.token.token_type.as_str(), stored.revocable_at.as_str()), ("Bearer", ""));
    }
}
