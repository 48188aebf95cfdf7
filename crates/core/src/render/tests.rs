use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::{fixtures, providers};

fn rendered(edit: impl FnOnce(&mut MailCredential)) -> BTreeMap<String, String> {
    let mut credential = fixtures::credential();
    edit(&mut credential);
    let provider = serde_json::from_value(json!({
        "oauth2": {"tokenURL": "https://x/t"}, "client": {"id": "c"},
        "servers": {
            "smtp": {"host": "smtp.example.org", "port": 587}, "imap": {"host": "imap.example.org", "port": 993},
            "pop3": {"host": "pop3.example.org", "port": 995},
        },
    }))
    .unwrap();
    let token = Token {
        access_token: "t0k".into(),
        token_type: "Bearer".into(),
        issued_at: Timestamp::from_second(1_800_000_000).unwrap(),
        expires_at: Timestamp::from_second(1_800_003_600).unwrap(),
        refresh_at: None,
        scopes: vec![],
    };
    render(&credential, &providers::profile(&provider).unwrap(), &token)
        .unwrap()
        .into_iter()
        .map(|(key, value)| (key, String::from_utf8(value.0).unwrap()))
        .collect()
}

#[test]
fn the_default_secret_has_exactly_the_keys_of_the_contract() {
    let data = rendered(|_| ());
    let keys: Vec<_> = data.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "access_token",
            "expires_at",
            "expires_at_unix",
            "from",
            "smtp_host",
            "smtp_port",
            "smtp_security",
            "smtp_username",
            "token_type",
            "username",
            "xoauth2"
        ]
    );
    assert_eq!(data["expires_at"], "2027-01-15T09:00:00Z");
    assert_eq!(data["expires_at_unix"], "1800003600");
    assert_eq!((data["smtp_host"].as_str(), data["smtp_port"].as_str()), ("smtp.example.org", "587"));
    assert_eq!((data["smtp_security"].as_str(), data["smtp_username"].as_str()), ("STARTTLS", "billing@example.org"));
}

#[test]
fn all_formats_are_as_their_readers_want_them() {
    let data = rendered(|credential| {
        credential.spec.mailbox.authenticate_as = Some("svc@example.org".into());
        credential.spec.secret.formats = vec![Format::OAuthBearer, Format::SaslXoauth2, Format::TokenJson];
    });
    let sasl: serde_json::Value = serde_json::from_str(&data["sasl-xoauth2.json"]).unwrap();
    assert_eq!(
        sasl,
        json!({"access_token": "t0k", "refresh_token": "", "expiry": "1800003600", "user": "svc@example.org"})
    );
    let token: serde_json::Value = serde_json::from_str(&data["token.json"]).unwrap();
    assert_eq!(
        token,
        json!({"access_token": "t0k", "token_type": "Bearer", "expires_at": "2027-01-15T09:00:00Z", "username": "svc@example.org"})
    );
    assert!(data.contains_key("oauthbearer") && !data.contains_key("xoauth2"));
    assert_eq!((data["username"].as_str(), data["from"].as_str()), ("svc@example.org", "billing@example.org"));
}

#[test]
fn placeholders_are_filled_once_and_a_double_dollar_is_one() {
    let data = rendered(|credential| {
        let template = "U=${username}\nT=${access_token}\nH=${smtp_host}:${smtp_port} $$${token_type}$${from}";
        credential.spec.secret.data.insert("smtp.env".into(), template.into());
    });
    assert_eq!(data["smtp.env"], "U=billing@example.org\nT=t0k\nH=smtp.example.org:587 $Bearer${from}");
}

#[test]
fn user_names_and_responses_are_per_protocol_where_they_differ() {
    let data = rendered(|credential| {
        credential.spec.mailbox.usernames = serde_json::from_value(json!({"imap": "office@example.org"})).unwrap();
        credential.spec.protocols = vec![Protocol::Smtp, Protocol::Imap, Protocol::Pop3];
        credential.spec.secret.formats = vec![Format::XOAuth2, Format::OAuthBearer, Format::SaslXoauth2];
    });
    let names = ["username", "smtp_username", "imap_username", "pop3_username"].map(|key| data[key].as_str());
    assert_eq!(names, ["billing@example.org", "billing@example.org", "office@example.org", "billing@example.org"]);
    assert_eq!(data["imap_xoauth2"], sasl::xoauth2("office@example.org", "t0k"));
    assert_eq!(data["imap_oauthbearer"], sasl::oauthbearer("office@example.org", "t0k"));
    for key in ["smtp_xoauth2", "smtp_oauthbearer", "pop3_xoauth2", "pop3_oauthbearer"] {
        assert!(!data.contains_key(key), "{key}");
    }
    assert_eq!(["smtp", "imap", "pop3"].map(|at| data[&format!("{at}_security")].as_str()), ["STARTTLS", "TLS", "TLS"]);
    assert!(data["sasl-xoauth2.json"].contains(r#""user":"billing@example.org""#));

    let data = rendered(|credential| {
        credential.spec.mailbox.usernames = serde_json::from_value(json!({"imap": "office@example.org"})).unwrap();
        credential.spec.protocols = vec![Protocol::Imap, Protocol::Smtp];
        credential.spec.secret.formats = vec![Format::OAuthBearer, Format::SaslXoauth2, Format::TokenJson];
    });
    assert_eq!(data["username"], "office@example.org");
    assert_eq!(data["smtp_oauthbearer"], sasl::oauthbearer("billing@example.org", "t0k"));
    assert!(!data.contains_key("imap_oauthbearer") && !data.contains_key("smtp_xoauth2"));
    assert!(data["sasl-xoauth2.json"].contains(r#""user":"billing@example.org""#), "Postfix logs in by SMTP");
    assert!(data["token.json"].contains(r#""username":"office@example.org""#));
}

#[test]
fn only_fixed_keys_are_written_beside_those_of_data() {
    let fixed = secret_keys::fixed();
    let data = rendered(|credential| {
        credential.spec.mailbox.usernames = serde_json::from_value(json!({"imap": "a", "pop3": "b"})).unwrap();
        credential.spec.protocols = Protocol::ALL.to_vec();
        credential.spec.secret.formats =
            vec![Format::XOAuth2, Format::OAuthBearer, Format::SaslXoauth2, Format::TokenJson];
    });
    let others: Vec<_> = data.keys().filter(|key| !fixed.contains(key)).collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(data.len(), fixed.len() - 2, "all but smtp_xoauth2 and smtp_oauthbearer");
}

#[test]
fn values_are_encoded_as_the_placeholder_asks() {
    let values = |value: &str| Values::from([("from".to_owned(), Value::new(value.to_owned()))]);
    let fill = |template: &str, values: &Values| fill(template, values, 0);
    for (value, url, json) in [
        ("a+b@x.org", "a%2Bb%40x.org", "a+b@x.org"),
        ("a-b_c.d~e", "a-b_c.d~e", "a-b_c.d~e"),
        ("büro@x.org", "b%C3%BCro%40x.org", "büro@x.org"),
        ("a\"b\\c", "a%22b%5Cc", "a\\\"b\\\\c"),
        ("a b/c=&?#", "a%20b%2Fc%3D%26%3F%23", "a b/c=&?#"),
        ("$${from:url}", "%24%24%7Bfrom%3Aurl%7D", "$${from:url}"),
    ] {
        assert_eq!(fill("${from:url}", &values(value)), url);
        assert_eq!(fill("{\"u\":\"${from:json}\"}", &values(value)), format!("{{\"u\":\"{json}\"}}"));
    }
    assert_eq!(fill("${from:base64}${from:}$${from:url}", &values("x")), "${from:base64}${from:}${from:url}");
}

#[test]
fn every_placeholder_of_the_schema_has_a_value() {
    let data = rendered(|credential| {
        credential.spec.protocols = vec![Protocol::Smtp, Protocol::Imap, Protocol::Pop3];
        credential.spec.secret.data = secret_keys::placeholders()
            .iter()
            .map(|name| (format!("key-of-{name}"), format!("${{{name}}}${{{name}:url}}${{{name}:json}}")))
            .collect();
    });
    let unfilled: Vec<_> = data.iter().filter(|(_, text)| text.contains('$')).collect();
    assert!(unfilled.is_empty(), "{unfilled:?}");
}

fn oauth2() -> Profile {
    let spec = json!({"oauth2": {"tokenURL": "https://x/t"}, "client": {"id": "c"}});
    providers::profile(&serde_json::from_value(spec).unwrap()).unwrap()
}

fn token(length: usize) -> Token {
    Token {
        access_token: "x".repeat(length).into(),
        token_type: "Bearer".into(),
        issued_at: Timestamp::UNIX_EPOCH,
        expires_at: Timestamp::from_second(TEN_DIGITS).unwrap(),
        refresh_at: None,
        scopes: vec![],
    }
}

#[test]
fn a_template_that_multiplies_the_token_beyond_a_secret_is_refused_before_a_byte_is_made() {
    let mut credential = fixtures::credential();
    credential.spec.secret.data = (0..32).map(|n| (format!("k{n:02}"), "${xoauth2}".repeat(204))).collect();
    credential.spec.secret.data.insert("most".into(), "${xoauth2}".repeat(409));
    for length in [200, 1_400, USUAL_TOKEN, 32 * 1024] {
        let error = size(&credential, &oauth2(), length).unwrap_err();
        assert_eq!(render(&credential, &oauth2(), &token(length)), Err(error.clone()));
        assert_eq!((error.key.as_str(), error.token), ("most", length));
        assert!(error.bytes > 409 * length && error.total > SECRET_MAX, "{error}");
        let reported = error.to_string();
        assert!(reported.contains("spec.secret.data[most]") && reported.contains("1048576"), "{reported}");
    }
}

#[test]
fn a_secret_of_just_the_limit_is_made_and_of_one_byte_more_is_not() {
    let mut credential = fixtures::credential();
    let bare = size(&credential, &oauth2(), 0).unwrap();
    // 256 tokens of 4,000 bytes, and other letters up to the limit.
    let literal = SECRET_MAX
        - bare
        - 4_000
        - (sasl::xoauth2("billing@example.org", &"x".repeat(4_000)).len()
            - sasl::xoauth2("billing@example.org", "").len());
    let (tokens, rest) = (literal / 4_000, literal % 4_000);
    let template = |more: usize| "${access_token}".repeat(tokens) + &"y".repeat(rest + more);
    credential.spec.secret.data.insert("all".into(), template(0));
    assert_eq!(size(&credential, &oauth2(), 4_000), Ok(SECRET_MAX));
    let data = render(&credential, &oauth2(), &token(4_000)).unwrap();
    assert_eq!(data.values().map(|value| value.0.len()).sum::<usize>(), SECRET_MAX);
    credential.spec.secret.data.insert("all".into(), template(1));
    assert_eq!(size(&credential, &oauth2(), 4_000).unwrap_err().total, SECRET_MAX + 1);
}

#[test]
fn the_computed_size_is_the_size_of_the_secret_with_every_format() {
    let mut credential = fixtures::credential();
    credential.spec.secret.formats = vec![Format::XOAuth2, Format::OAuthBearer, Format::SaslXoauth2, Format::TokenJson];
    credential.spec.secret.data = secret_keys::placeholders()
        .iter()
        .map(|name| (format!("key-of-{name}"), format!("$${{{name}}} ${{{name}}}$$ ${{{name}:url}}${{{name}:json}}")))
        .collect();
    for length in [1, 2, 3, 1_400, 32 * 1024] {
        let made = render(&credential, &oauth2(), &token(length)).unwrap();
        let sum: usize = made.values().map(|value| value.0.len()).sum();
        assert_eq!(size(&credential, &oauth2(), length), Ok(sum));
        let of_templates = made.iter().filter(|(key, _)| key.starts_with("key-of-"));
        assert!(of_templates.clone().all(|(_, value)| value.0.capacity() == value.0.len()), "made in one piece");
    }
    assert!(size(&credential, &oauth2(), 32 * 1024).unwrap() < SECRET_MAX);
}

/// Values that would expand endlessly if the rendering expanded inserted values.
fn mischievous() -> Values {
    let value = |name: &String| Value::new(format!("{name}: ${{access_token}} $$ ${{{name}}} $"));
    secret_keys::placeholders().into_iter().map(|name| (name.clone(), value(&name))).collect()
}

/// A part of a template, and its result.
fn part() -> impl Strategy<Value = (String, String)> {
    let placeholder = |name: String| (format!("${{{name}}}"), mischievous()[&name].text.as_str().to_owned());
    prop_oneof![
        "[{}a-z_]{0,12}|[^$]{0,8}".prop_map(|text| (text.clone(), text)),
        Just(("$$".to_owned(), "$".to_owned())),
        select(secret_keys::placeholders()).prop_map(placeholder),
    ]
}

proptest! {
    #[test]
    fn a_template_becomes_its_parts_and_inserted_values_are_not_parsed_again(parts in vec(part(), 0..12)) {
        let (template, wanted): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let (template, wanted) = (template.concat(), wanted.concat());
        prop_assert_eq!(fill(&template, &mischievous(), wanted.len()), wanted);
    }

    #[test]
    fn no_template_panics_and_text_without_dollars_stays(template in ".{0,80}") {
        let filled = fill(&template, &Values::from([("from".to_owned(), Value::new("$${from}".to_owned()))]), 0);
        if !template.contains('$') {
            prop_assert_eq!(filled, template);
        }
    }
}
