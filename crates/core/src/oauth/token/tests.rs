use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::*;
use crate::api::Reason;

const NOW: i64 = 1_000_000;

fn sent_at() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn read(status: u16, body: &str) -> Result<TokenAnswer, Refusal> {
    let response = Response::builder().status(status).body(body.as_bytes().to_vec()).unwrap();
    read_token_response(&response, sent_at(), &["asked".to_owned()])
}

/// A response with a token and the members `fields`.
fn with(fields: &str) -> Result<TokenAnswer, Refusal> {
    let comma = if fields.is_empty() { "" } else { "," };
    read(200, &format!(r#"{{"access_token":"t"{comma}{fields}}}"#))
}

fn lifetime_of(answer: &TokenAnswer) -> i64 {
    answer.token.expires_at.as_second() - NOW
}

fn flaw(answer: &TokenAnswer) -> Option<&'static str> {
    answer.assumed.iter().find_map(|assumed| match assumed {
        Assumption::Lifetime { flaw, .. } => Some(*flaw),
        Assumption::TokenType => None,
    })
}

fn jwt(claims: &Value) -> String {
    format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
}

#[test]
fn a_plain_response_is_read_and_its_lifetime_counts_from_the_request() {
    let answer =
        read(200, r#"{"access_token":"t0k","token_type":"bearer","expires_in":3599,"refresh_in":1800}"#).unwrap();
    assert_eq!(answer.token.expires_at.as_second(), 1_003_599);
    assert_eq!(answer.token.refresh_at.unwrap().as_second(), 1_001_800);
    assert_eq!(answer.token.scopes, ["asked"]);
    assert_eq!(answer.assumed, []);
    assert!(!format!("{answer:?}").contains("t0k"));
}

#[test]
fn a_token_type_is_bearer_in_many_spellings_and_none_means_bearer_with_a_warning() {
    for (fields, spelling, assumed) in [
        (r#""token_type":"Bearer""#, "Bearer", false),
        (r#""token_type":"bearer""#, "bearer", false),
        (r#""token_type":" BEARER ""#, "BEARER", false),
        (r#""token_type":["Bearer"]"#, "Bearer", false),
        (r#""token_type":"BearerToken""#, "Bearer", false),
        ("", "Bearer", true),
        (r#""token_type":null"#, "Bearer", true),
        (r#""token_type":"""#, "Bearer", true),
    ] {
        let answer = with(&format!(r#"{fields}{}"expires_in":60"#, if fields.is_empty() { "" } else { "," })).unwrap();
        assert_eq!(answer.token.token_type, spelling, "{fields}");
        assert_eq!(answer.assumed, if assumed { vec![Assumption::TokenType] } else { vec![] }, "{fields}");
    }
    for other in [r#""mac""#, r#""N_A""#, r#""DPoP""#, r#""Bearer DPoP""#, r#"["mac"]"#, r#"["Bearer","mac"]"#] {
        let refusal = with(&format!(r#""token_type":{other}"#)).unwrap_err();
        assert_eq!(
            (refusal.reason, refusal.what.as_str()),
            (Reason::MalformedResponse, "the token_type is not Bearer")
        );
    }
}

#[test]
fn scopes_are_a_text_or_a_list_and_the_granted_ones_override_the_requested() {
    for (scope, scopes) in [
        (r#""a b""#, &["a", "b"][..]),
        (r#""  a   b ""#, &["a", "b"]),
        (r#"["a","b"]"#, &["a", "b"]),
        (r#"["a b","c"]"#, &["a", "b", "c"]),
        (r#"["a",7,null,{"b":1},["c"],"d"]"#, &["a", "d"]),
        // A response without scopes means the requested scopes (RFC 6749 section 5.1).
        (r#""""#, &["asked"]),
        ("[]", &["asked"]),
        ("null", &["asked"]),
        ("7", &["asked"]),
        (r#"{"a":"b"}"#, &["asked"]),
    ] {
        assert_eq!(with(&format!(r#""scope":{scope}"#)).unwrap().token.scopes, scopes, "{scope}");
    }
}

#[test]
fn scopes_are_bounded_in_number_length_and_characters() {
    let many = with(&format!(r#""scope":"{}""#, "a ".repeat(120_000))).unwrap();
    assert_eq!(many.token.scopes.len(), SCOPES_MAX);
    let list = with(&format!(r#""scope":{}"#, json!(vec!["a"; 1_000]))).unwrap();
    assert_eq!(list.token.scopes.len(), SCOPES_MAX);
    let odd = json!(["ok", "x".repeat(513), "q\"uote", "back\\slash", "\u{1b}[31m", "b\u{fc}ro", "x".repeat(512)]);
    assert_eq!(with(&format!(r#""scope":{odd}"#)).unwrap().token.scopes, ["ok".to_owned(), "x".repeat(512)]);
    assert_eq!(scopes(&"a ".repeat(100)).len(), SCOPES_MAX);
    assert_eq!(scopes("a \u{1b}b c"), ["a", "c"]);
}

#[test]
fn a_lifetime_is_a_number_however_it_is_written() {
    for (expires_in, seconds) in [
        ("3600", 3600),
        ("3600.0", 3600),
        ("3.6e3", 3600),
        ("59.9", 59),
        ("\"90\"", 90),
        ("\" 90 \"", 90),
        ("\"+90\"", 90),
        ("\"3600.0\"", 3600),
        ("31622400", 366 * 24 * 3600),
    ] {
        let answer = with(&format!(r#""token_type":"Bearer","expires_in":{expires_in}"#)).unwrap();
        assert_eq!((lifetime_of(&answer), answer.assumed), (seconds, vec![]), "{expires_in}");
    }
}

#[test]
fn a_lifetime_that_cannot_be_right_is_an_hour_with_a_warning_that_says_what_is_wrong() {
    for (expires_in, what) in [
        ("0", "zero"),
        ("0.5", "zero"),
        ("-0", "zero"),
        ("-1", "negative"),
        ("\"-5\"", "negative"),
        ("1e12", "more than a year"),
        ("1000000000000", "more than a year"),
        ("99999999999999999999999999", "more than a year"),
        ("31622401", "more than a year"),
        ("\"1h\"", "not a number"),
        ("\"soon\"", "not a number"),
        ("\"\"", "not a number"),
        ("\"NaN\"", "not a number"),
        ("\"inf\"", "not a number"),
        ("\"0x10\"", "not a number"),
        ("true", "not a number"),
        ("[3600]", "not a number"),
        ("{}", "not a number"),
        // Numbers that no 64-bit float holds, and words that are no JSON.
        ("1e999", "not a number"),
        ("-1E+400", "not a number"),
        (&"9".repeat(400), "not a number"),
        ("Infinity", "not a number"),
        ("-Infinity", "not a number"),
        ("NaN", "not a number"),
        ("null", "no expires_in"),
    ] {
        let answer = with(&format!(r#""expires_in":{expires_in}"#)).unwrap();
        assert_eq!(lifetime_of(&answer), 3600, "{expires_in}");
        assert!(flaw(&answer).unwrap().contains(what), "{expires_in}: {:?}", answer.assumed);
    }
    assert_eq!(flaw(&with("").unwrap()), Some("has no expires_in"));
}

#[test]
fn of_the_response_and_the_token_itself_the_earlier_end_counts() {
    let of = |claims: Value, expires_in: Value| {
        let body = json!({"access_token": jwt(&claims), "token_type": "Bearer", "expires_in": expires_in});
        let answer = read(200, &body.to_string()).unwrap();
        (lifetime_of(&answer), flaw(&answer).is_some())
    };
    for (claims, expires_in, seconds, warns) in [
        (json!({"exp": NOW + 300}), json!(null), 300, false),
        (json!({"exp": (NOW + 300).to_string()}), json!(null), 300, false),
        (json!({"exp": 1_000_300.5}), json!(null), 300, false),
        (json!({"exp": NOW + 300}), json!(3600), 300, false),
        (json!({"exp": NOW + 7200}), json!(3600), 3600, false),
        (json!({"exp": NOW + 300}), json!("soon"), 300, true),
        (json!({"exp": NOW + 300}), json!(0), 300, true),
        // Claims without an expiry.
        (json!({"sub": "x"}), json!(60), 60, false),
        (json!({"exp": "soon"}), json!(60), 60, false),
        (json!({"exp": null}), json!(60), 60, false),
        (json!({"exp": -5}), json!(60), 60, false),
        (json!({"exp": 1e300}), json!(60), 60, false),
        (json!({"exp": NOW + 400 * 24 * 3600}), json!(null), 3600, true),
        // A clock is wrong: the response's lifetime applies, with a Warning.
        (json!({"exp": NOW - 10}), json!(60), 60, true),
        (json!({"exp": NOW}), json!(null), 3600, true),
    ] {
        let reported = format!("{claims} {expires_in}");
        assert_eq!(of(claims, expires_in), (seconds, warns), "{reported}");
    }
}

#[test]
fn the_tokens_own_end_is_by_the_providers_clock() {
    let body = json!({"access_token": jwt(&json!({"exp": NOW - 600 + 300})), "token_type": "Bearer"});
    // The provider's clock is ten minutes behind the broker's clock, which shows 1970-01-12 13:46:40.
    let response = Response::builder().header("date", "Mon, 12 Jan 1970 13:36:40 GMT").body(body.to_string()).unwrap();
    let answer = read_token_response(&response, sent_at(), &[]).unwrap();
    assert_eq!((lifetime_of(&answer), answer.assumed), (300, vec![]));
    for date in ["Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 GMT"] {
        let exp = json!({"access_token": jwt(&json!({"exp": 221_845_000_000_i64})), "expires_in": 60});
        let response = Response::builder().header("date", date).body(exp.to_string()).unwrap();
        assert_eq!(lifetime_of(&read_token_response(&response, sent_at(), &[]).unwrap()), 60);
    }
}

#[test]
fn a_byte_order_mark_is_skipped() {
    let body = |text: &str| [b"\xef\xbb\xbf", text.as_bytes()].concat();
    let good = Response::new(body(r#"{"access_token":"t","refresh_token":"r1"}"#));
    assert!(read_token_response(&good, sent_at(), &[]).is_ok());
    assert_eq!(Rotated::read(&good, sent_at()).unwrap().refresh_token.expose_secret(), "r1");
    let bad = Response::builder().status(400).body(body(r#"{"error":"invalid_grant"}"#)).unwrap();
    assert_eq!(read_token_response(&bad, sent_at(), &[]).unwrap_err().reason, Reason::InvalidGrant);
}

#[test]
fn an_access_token_is_a_b64token_of_at_most_32_kib() {
    for good in ["t", "a.b-c_d~e+f/g", "abc==", "A0=", &"x".repeat(ACCESS_TOKEN_MAX)] {
        let answer = read(200, &json!({"access_token": good}).to_string()).unwrap();
        assert_eq!(answer.token.access_token.expose_secret(), good);
        assert!(is_access_token(good));
    }
    for bad in [
        "a b",
        "a\nb",
        "a\u{1}b",
        "a\"b",
        "a`b",
        "a$b",
        "a;b",
        "a'b",
        "a\\b",
        "a|b",
        "a:b",
        "a%20b",
        "a=b",
        "=",
        "b\u{fc}ro",
        "a\0",
    ] {
        let refusal = read(200, &json!({"access_token": bad}).to_string()).unwrap_err();
        assert_eq!(refusal.reason, Reason::MalformedResponse, "{bad:?}");
        assert!(refusal.what.contains("characters") && !refusal.what.contains(bad), "{}", refusal.what);
        assert!(!is_access_token(bad));
    }
    let long = json!({"access_token": "x".repeat(ACCESS_TOKEN_MAX + 1)});
    assert_eq!(read(200, &long.to_string()).unwrap_err().what, "the access_token has more than 32768 characters");
}

#[test]
fn a_response_that_is_not_a_token_response_is_malformed() {
    for body in [
        "",
        "<html>",
        "[]",
        "7",
        "{}",
        "null",
        r#"{"access_token":""}"#,
        r#"{"access_token":null}"#,
        r#"{"access_token":7}"#,
        r#"{"access_token":["t"]}"#,
        r#"{"access_token":"t","token_type":"Bearer","expires"#,
        r#"{"access_token":"t","access_token":"u","token_type":"Bearer"}"#,
    ] {
        assert_eq!(read(200, body).unwrap_err().reason, Reason::MalformedResponse, "{body}");
    }
}

#[test]
fn a_fingerprint_is_the_beginning_of_the_hash() {
    // The example of FIPS 180-4.
    let token = read(200, r#"{"access_token":"abc","token_type":"Bearer"}"#).unwrap().token;
    assert_eq!(token.fingerprint().as_str(), "sha256:ba7816bf8f01cfea");
}

#[test]
fn a_refresh_token_is_kept_however_odd_the_response_around_it() {
    let rotated = |body: &str| Rotated::read(&Response::new(body.as_bytes().to_vec()), sent_at());
    let kept = rotated(r#"{"refresh_token":"r1","refresh_expires_in":60}"#).unwrap();
    assert_eq!(kept.refresh_token.expose_secret(), "r1");
    assert_eq!(kept.expires_at, Some(sent_at() + SignedDuration::from_secs(60)));
    for (body, life) in [
        (r#"{"refresh_token":"r1"}"#, None),
        (r#"{"refresh_token":"r1","refresh_expires_in":0}"#, None),
        (r#"{"refresh_token":"r1","refresh_expires_in":"soon"}"#, None),
        (r#"{"refresh_token":"r1","refresh_token_expires_in":"604800.0"}"#, Some(604_800)),
        (r#"{"refresh_token":"r1","refresh_token_expires_in":[],"refresh_expires_in":60}"#, Some(60)),
        (r#"{"access_token":{"odd":[1,2]},"scope":7,"token_type":{},"refresh_token":"r1"}"#, None),
        (r#"{"access_token":"a b","refresh_token":"r1","expires_in":true}"#, None),
        (r#"{"access_token":"a","access_token":"b","refresh_token":"r1"}"#, None),
        (r#"{"refresh_token":"r0","refresh_token":"r1"}"#, None),
        (r#"{"refresh_token":"r1","refresh_token":null}"#, None),
        (r#"{"refresh_token":"r1","access_token":"trunc"#, None),
        (r#"{"refresh_token":"r1"} and more"#, None),
        (r#"[{"refresh_token":"r1"}]"#, None),
        (r#"{"expires_in":1e999,"refresh_token":"r1","refresh_expires_in":1e999}"#, None),
        (r#"{"expires_in":NaN,"refresh_token":"r1","refresh_expires_in":60}"#, Some(60)),
    ] {
        let kept = rotated(body).unwrap_or_else(|| panic!("{body}"));
        assert_eq!(kept.refresh_token.expose_secret(), "r1", "{body}");
        assert_eq!(kept.expires_at.map(|at| at.as_second() - NOW), life, "{body}");
    }
    let long = format!(r#"{{"refresh_token":"{}"}}"#, "x".repeat(REFRESH_TOKEN_MAX + 1));
    for body in [
        r#"{"access_token":"a"}"#,
        r#"{"refresh_token":7}"#,
        r#"{"refresh_token":""}"#,
        r#"{"refresh_token":"a b"}"#,
        r#"{"refresh_token":"trunc"#,
        "",
        "<html>",
        &long,
    ] {
        assert!(rotated(body).is_none(), "{body:.40}");
    }
}

#[test]
fn a_hint_to_renew_that_says_nothing_is_none() {
    let refresh_at = |fields: &str| with(fields).unwrap().token.refresh_at.map(|at| at.as_second() - NOW);
    assert_eq!(refresh_at(r#""expires_in":100,"refresh_in":100"#), None);
    assert_eq!(refresh_at(r#""expires_in":100,"refresh_in":99"#), Some(99));
    assert_eq!(refresh_at(r#""expires_in":100,"refresh_in":"50.0""#), Some(50));
    for odd in ["0", "-1", "\"soon\"", "[]", "null"] {
        assert_eq!(refresh_at(&format!(r#""expires_in":100,"refresh_in":{odd}"#)), None, "{odd}");
    }
}

#[test]
fn a_malformed_response_is_reported() {
    for (body, what) in [
        ("", "the answer is empty"),
        ("{}", "the response has no access_token"),
        (r#"{"access_token":"t","token_type":"mac"}"#, "the token_type is not Bearer"),
        ("<html>", "the response is not a token response"),
    ] {
        assert_eq!(read(200, body).unwrap_err().what, what, "{body}");
    }
    for (encoding, named) in [("br", "(br)"), ("zstd", "(zstd)"), ("s3cr3t", "(an unknown one)")] {
        let response = Response::builder().header("content-encoding", encoding).body(&b"\x1b\x00"[..]).unwrap();
        let what = read_token_response(&response, sent_at(), &[]).unwrap_err().what;
        assert!(what.contains(named) && what.contains("not a token response"), "{what}");
    }
}

#[test]
fn an_error_with_status_200_is_the_error_and_an_empty_one_is_none() {
    for body in [
        r#"{"error":"invalid_grant"}"#,
        r#"{"error":"invalid_grant","access_token":"t"}"#,
        r#"{"errorCode":"invalid_grant"}"#,
    ] {
        assert_eq!(read(200, body).unwrap_err().reason, Reason::InvalidGrant, "{body}");
    }
    for empty in ["null", "\"\"", "false", "0", "[]", "{}"] {
        assert!(with(&format!(r#""error":{empty}"#)).is_ok(), "{empty}");
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_without_panic_and_never_make_an_unusable_token(body: Vec<u8>, status in 100u16..600) {
        let response = Response::builder().status(status).body(body).unwrap();
        if let Ok(answer) = read_token_response(&response, sent_at(), &[]) {
            proptest::prop_assert!(answer.token.expires_at > sent_at());
        }
    }

    #[test]
    fn any_lifetimes_and_dates_end_in_a_time_ahead(expires_in: f64, exp: f64, skew in -4_000_000_000_i64..200_000_000_000) {
        let body = json!({"access_token": jwt(&json!({"exp": exp})), "expires_in": expires_in});
        let theirs = Timestamp::from_second(NOW + skew).unwrap().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let response = Response::builder().header("date", theirs).body(body.to_string()).unwrap();
        let token = read_token_response(&response, sent_at(), &[]).unwrap().token;
        proptest::prop_assert!(token.expires_at > sent_at());
        proptest::prop_assert!(token.expires_at.duration_since(sent_at()).as_hours() <= 366 * 24);
    }
}
