//! MailCredentials that the API server rejects by the schema alone. The broker has no webhook.

use mailtoken_testkit::{table::*, *};
use serde_json::{Value, json};

#[tokio::test]
async fn a_credential_names_one_grant_that_there_is() {
    let grant = |grant: Value| plain().set("spec.grant", grant);
    let seed = json!({"secretRef": {"name": "billing-seed", "key": "refresh_token"}});
    refused([
        ("no grant", plain().without("spec.grant"), "spec.grant: required value"),
        ("an empty grant", grant(json!({})), "name exactly one grant"),
        ("an unknown grant", grant(json!({"password": {}})), "password"),
        ("a second, unknown grant", plain().set("spec.grant.password", json!({})), "password"),
        ("two", grant(json!({"clientCredentials": {}, "deviceCode": {}})), "name exactly one grant"),
        ("another two", grant(json!({"jwtBearer": {}, "refreshToken": seed})), "name exactly one grant"),
        ("a seed nowhere", grant(json!({"refreshToken": {}})), "secretref: required value"),
        (
            "a seed of another namespace",
            grant(json!({"refreshToken": seed})).set("spec.grant.refreshToken.secretRef.namespace", "other"),
            "namespace",
        ),
    ])
    .await;
    accepted([
        ("clientCredentials", grant(json!({"clientCredentials": {}}))),
        ("refreshToken", grant(json!({"refreshToken": seed}))),
        ("deviceCode", grant(json!({"deviceCode": {}}))),
        ("jwtBearer", grant(json!({"jwtBearer": {}}))),
    ])
    .await;
}

#[tokio::test]
async fn a_token_exchange_names_its_token_and_what_it_is() {
    let place = json!({"secretRef": {"name": "subject", "key": "token"}});
    let exchange = || plain().set("spec.grant", json!({"tokenExchange": {"subjectToken": place}}));
    let field = |name: &str, value: &str| exchange().set(&format!("spec.grant.tokenExchange.{name}"), value);
    let long = "x".repeat(513);
    refused([
        ("no token", plain().set("spec.grant", json!({"tokenExchange": {}})), "subjecttoken: required value"),
        ("no place", plain().set("spec.grant", json!({"tokenExchange": {"subjectToken": {}}})), "secretref: required"),
        ("a type that is no URI", field("subjectTokenType", "access_token"), "subjecttokentype"),
        ("a type with a space", field("subjectTokenType", "urn:a b"), "subjecttokentype"),
        ("a type with a line break", field("subjectTokenType", "urn:a\n"), "subjecttokentype"),
        ("no type", field("subjectTokenType", ""), "subjecttokentype"),
        ("a long type", field("subjectTokenType", &format!("urn:{long}")), "too long"),
        ("an empty audience", field("audience", ""), "audience"),
        ("an audience with a line break", field("audience", "a\nb"), "audience"),
        ("a long audience", field("audience", &long), "too long"),
        ("an unknown field", field("actorToken", "x"), "actortoken"),
    ])
    .await;
    accepted([
        ("the token alone", exchange()),
        ("with its type", field("subjectTokenType", "urn:ietf:params:oauth:token-type:jwt")),
        ("with an audience", field("audience", "mail")),
    ])
    .await;
}

#[tokio::test]
async fn a_revocation_policy_is_one_that_there_is() {
    let policy = |policy: &str| plain().set("spec.revocationPolicy", policy);
    refused([("unknown", policy("Always"), "unsupported value"), ("empty", policy(""), "unsupported value")]).await;
    accepted(["Never", "OnDelete"].map(|name| (name, policy(name)))).await;
}

#[tokio::test]
async fn a_mailbox_is_an_address_and_nothing_that_could_end_a_sasl_string() {
    let long = format!("{}@example.org", "x".repeat(243));
    let bad: [(&str, &str); 16] = [
        ("billing@", "must be an e-mail address"),
        ("@example.org", "must be an e-mail address"),
        ("bill ing@example.org", "must be an e-mail address"),
        ("billing@example.org\n", "must be an e-mail address"),
        ("billing@example.org\r\nBcc: x@example.org", "must be an e-mail address"),
        ("billing@example.org\u{1}auth=Bearer x", "must be an e-mail address"),
        ("billing\n@example.org", "must be an e-mail address"),
        ("billing@example.org,x", "must be an e-mail address"),
        ("billing@example..org", "must be an e-mail address"),
        ("billing@-example.org", "must be an e-mail address"),
        ("a@b@example.org", "must be an e-mail address"),
        ("<billing@example.org>", "must be an e-mail address"),
        ("\"billing\"@example.org", "must be an e-mail address"),
        ("bill\u{200b}ing@example.org", "must be an e-mail address"),
        ("bill\u{a0}ing@example.org", "must be an e-mail address"),
        (&long, "too long"),
    ];
    let accounts = ["authenticateAs", "usernames.smtp", "usernames.imap", "usernames.pop3"];
    let accounts = accounts.map(|field| format!("spec.mailbox.{field}"));
    for field in accounts.iter().map(String::as_str).chain(["spec.mailbox.address"]) {
        refused(bad.iter().map(|(address, why)| (*address, plain().set(field, *address), *why))).await;
    }
    refused([("no domain", plain().set("spec.mailbox.address", "billing"), "must be an e-mail address")]).await;
    let good = [
        "o'brien+tag@example.org",
        "a@b",
        "x.y_z=1!@sub-1.example.org",
        "A@EXAMPLE.ORG",
        "1@1.2",
        "taro..y@docomo.example",
        ".taro.@docomo.example",
        "büro@example.org",
        "почта@пример.рф",
        "用户@例子.广告",
    ];
    for field in accounts.iter().map(String::as_str).chain(["spec.mailbox.address"]) {
        accepted(good.map(|address| (address, plain().set(field, address)))).await;
    }
    for field in &accounts {
        accepted(["billing", "s", "corp\\svc", "büro"].map(|name| (name, plain().set(field, name)))).await;
        refused([("an empty one", plain().set(field, ""), "spec.mailbox")]).await;
    }
}

#[tokio::test]
async fn scopes_are_scopes() {
    let scopes = |scopes: Value| plain().set("spec.scopes", scopes);
    refused([
        ("a space", scopes(json!(["mail.send offline_access"])), "spec.scopes[0]"),
        ("a line break", scopes(json!(["mail.send\nx"])), "spec.scopes[0]"),
        ("a line break at the end", scopes(json!(["mail.send\n"])), "spec.scopes[0]"),
        ("a quote", scopes(json!(["mail\"send"])), "spec.scopes[0]"),
        ("a backslash", scopes(json!(["mail\\send"])), "spec.scopes[0]"),
        ("umlauts", scopes(json!(["böse"])), "spec.scopes[0]"),
        ("an empty one", scopes(json!([""])), "spec.scopes[0]"),
        ("513 characters", scopes(json!(["s".repeat(513)])), "too long"),
        ("65 of them", scopes(json!(many("scope", 65))), "must have at most 64 items"),
    ])
    .await;
    accepted([
        ("64 of 512", scopes(json!(vec!["s".repeat(512); 64]))),
        ("a URL", scopes(json!(["https://outlook.office365.com/.default"]))),
    ])
    .await;
}

#[tokio::test]
async fn protocols_and_formats_are_those_that_there_are() {
    refused([
        ("no protocol", plain().set("spec.protocols", json!([])), "spec.protocols"),
        ("in lower case", plain().set("spec.protocols", json!(["smtp"])), "unsupported value"),
        ("twice", plain().set("spec.protocols", json!(["SMTP", "SMTP"])), "duplicate"),
        ("an unknown format", plain().set("spec.secret.formats", json!(["Xoauth2"])), "unsupported value"),
        ("a format twice", plain().set("spec.secret.formats", json!(["XOAuth2", "XOAuth2"])), "duplicate"),
        ("an unknown policy", plain().set("spec.secret.deletionPolicy", "Orphan"), "unsupported value"),
        ("a word for suspend", plain().set("spec.suspend", "yes"), "spec.suspend"),
        ("an unknown field", plain().set("spec.nonsense", 1), "nonsense"),
    ])
    .await;
    accepted([
        ("all", plain().set("spec.protocols", json!(["SMTP", "IMAP", "POP3"]))),
        (
            "all formats",
            plain().set("spec.secret.formats", json!(["XOAuth2", "OAuthBearer", "SaslXoauth2", "TokenJSON"])),
        ),
        ("no format", plain().set("spec.secret.formats", json!([]))),
    ])
    .await;
}

#[tokio::test]
async fn a_provider_is_named_in_the_own_namespace() {
    refused([
        ("no provider", plain().without("spec.providerRef"), "spec.providerref: required value"),
        ("no name", plain().set("spec.providerRef.name", ""), "spec.providerref.name"),
        ("a line break", plain().set("spec.providerRef.name", "idp\n"), "spec.providerref.name"),
        ("an unknown kind", plain().set("spec.providerRef.kind", "Issuer"), "unsupported value"),
        ("another namespace", plain().set("spec.providerRef.namespace", "other"), "namespace"),
    ])
    .await;
    accepted([("of the cluster", plain().set("spec.providerRef.kind", "ClusterMailProvider"))]).await;
}

#[tokio::test]
async fn placeholders_of_data_are_a_closed_set() {
    let data = |text: &str| plain().entry("spec.secret.data", "smtp.env", text);
    let unknown = [
        "$",
        "a$b",
        "$$$",
        "${}",
        "${password}",
        "${ACCESS_TOKEN}",
        "${access_token",
        "$access_token",
        "${ access_token }",
        "${refresh_token}",
        "${access_token:-x}",
        "${access_token:URL}",
        "${access_token:}",
        "${access_token:url:json}",
        "${imap_xoauth2}",
        "$(access_token)",
        "a\n$\nb",
    ];
    refused(unknown.map(|text| (text, data(text), "unknown placeholder"))).await;
    let all = "access_token token_type expires_at expires_at_unix username from xoauth2 oauthbearer smtp_host \
               smtp_port smtp_security smtp_username imap_host imap_port imap_security imap_username pop3_host \
               pop3_port pop3_security pop3_username";
    let all: String = all.split(' ').map(|name| format!("${{{name}}}${{{name}:url}}${{{name}:json}}\n")).collect();
    accepted([
        ("all placeholders", data(&all)),
        ("dollars", data("$$ $$$$ $${x} $$$$${from}")),
        ("braces and other languages", data("{{ .Values }} {} `id` %s\ttab\r\n")),
        ("nothing", data("")),
    ])
    .await;
}

#[tokio::test]
async fn keys_of_data_are_keys_that_the_broker_does_not_write_itself() {
    let fixed = "access_token token_type expires_at expires_at_unix username from smtp_host smtp_port imap_host \
                 imap_port pop3_host pop3_port xoauth2 oauthbearer sasl-xoauth2.json token.json smtp_security \
                 imap_security pop3_security smtp_username imap_username pop3_username smtp_xoauth2 imap_xoauth2 \
                 pop3_xoauth2 smtp_oauthbearer imap_oauthbearer pop3_oauthbearer";
    let data = |key: &str| plain().entry("spec.secret.data", key, "x");
    refused(fixed.split(' ').map(|key| (key, data(key), "the broker writes this key itself"))).await;
    let long = "k".repeat(254);
    let wrong = ["", "a/b", "a b", "a\nb", "schlüssel", ".", "..", "..data", &long];
    refused(wrong.map(|key| (key, data(key), "spec.secret.data"))).await;

    let umlauts = |entries: usize| {
        (0..entries).map(|n| (format!("key{n}"), Value::from("ü".repeat(4096)))).collect::<serde_json::Map<_, _>>()
    };
    let full = |entries: usize, size: usize| {
        let map: serde_json::Map<_, _> =
            (0..entries).map(|n| (format!("key{n}"), Value::from("x".repeat(size)))).collect();
        plain().set("spec.secret.data", map)
    };
    refused([
        ("33 entries", full(33, 1), "must have at most 32 items"),
        ("4097 characters", full(1, 4097), "too long"),
        ("17 entries of 4096", full(17, 4096), "at most 65536 bytes in all"),
        ("32 entries of 4096", full(32, 4096), "at most 65536 bytes in all"),
        ("umlauts of two bytes", plain().set("spec.secret.data", umlauts(9)), "at most 65536 bytes in all"),
    ])
    .await;
    accepted([
        ("16 entries of 4096", full(16, 4096)),
        ("32 entries of 2048", full(32, 2048)),
        ("umlauts", plain().set("spec.secret.data", umlauts(8))),
        ("dots", data("..x.y_z-1").without("spec.secret.data")),
        ("a dot file", data(".netrc")),
    ])
    .await;
}

#[tokio::test]
async fn labels_and_annotations_leave_the_brokers_own_alone() {
    let own = [
        "app.kubernetes.io/managed-by",
        "mailtoken.dev/credential",
        "mailtoken.dev/source",
        "mailtoken.dev/role",
        "mailtoken.dev/issued-for",
        "mailtoken.dev/anything",
    ];
    for map in ["spec.secret.labels", "spec.secret.annotations"] {
        refused(own.map(|key| (key, plain().entry(map, key, "x"), "belong to the broker"))).await;
        let long = format!("{}/{}", "x".repeat(63), "k".repeat(64));
        let wrong = ["", "a b", "a\nb", "/a", "a/", "a/b/c", "-a", "a-", "example..org/a", "-x.org/a", &long];
        refused(wrong.map(|key| (key, plain().entry(map, key, "x"), map))).await;
        let good = ["team", "example.org/team", "app.kubernetes.io/part-of", "A_b.c-9", "mailtoken.development/x"];
        accepted(good.map(|key| (key, plain().entry(map, key, "x")))).await;
        let full = |count: usize| {
            let map: serde_json::Map<_, _> = (0..count).map(|n| (format!("key{n}"), "x".into())).collect();
            Value::from(map)
        };
        refused([("33 entries", plain().set(map, full(33)), "must have at most 32 items")]).await;
        accepted([("32 entries", plain().set(map, full(32)))]).await;
    }
    let label = |value: &str| plain().entry("spec.secret.labels", "team", value);
    let long = "x".repeat(64);
    let wrong = ["a b", "a\nb", "a\n", "-a", "a/b", "ä", &long];
    refused(wrong.map(|value| (value, label(value), "spec.secret.labels"))).await;
    accepted([("an empty value", label("")), ("63 characters", label(&"x".repeat(63)))]).await;
    let text = "any text\n{\"with\": \"lines\"}";
    accepted([("an annotation", plain().entry("spec.secret.annotations", "note", text))]).await;
    let note = plain().entry("spec.secret.annotations", "note", "x".repeat(4097));
    refused([("4097 characters", note, "too long")]).await;
    let notes = |count: usize, size: usize| {
        let map: serde_json::Map<_, _> = (0..count).map(|n| (format!("note{n}"), "x".repeat(size).into())).collect();
        plain().set("spec.secret.annotations", map)
    };
    let labels: serde_json::Map<_, _> = (0..32).map(|n| (format!("label{n:02}"), "x".repeat(63).into())).collect();
    let both = |size| notes(4, size).set("spec.secret.labels", labels.clone());
    refused([
        ("annotations of 20 KiB", notes(5, 4096), "at most 16384 bytes together"),
        ("labels and annotations", both(4000), "at most 16384 bytes together"),
    ])
    .await;
    accepted([("annotations of 16 KiB", notes(4, 4091)), ("labels and annotations", both(3500))]).await;
}

#[tokio::test]
async fn the_secret_has_a_name_of_its_own() {
    let name = |name: &str| plain().set("spec.secret.name", name);
    let long = "x".repeat(254);
    let wrong = ["", "Billing", "a b", "a\n", "-a", "a/b", "a..b", &long];
    refused(wrong.map(|text| (text, name(text), "spec.secret.name"))).await;
    let cut = format!("{}-0123456789abcdef-grant", "x".repeat(200));
    refused([
        ("that of the grant", name("billing-grant"), "must not end in -grant"),
        ("another's grant", name("other-grant"), "must not end in -grant"),
        ("a long one's grant", name(&cut), "must not end in -grant"),
    ])
    .await;
    accepted([("253 characters", name(&"x".repeat(253))), ("a grant of another kind", name("grant"))]).await;
}

#[tokio::test]
async fn durations_are_positive_and_bounded() {
    for field in ["spec.renewal.minValidity", "spec.renewal.renewBefore"] {
        let wrong =
            ["-5m", "5", "m", "", "1d", "1.5h", "5 m", "5m\n", "10ms", "1h-5m", "5M", "100000h", "24h1s", "25h"];
        refused(wrong.map(|text| (text, plain().set(field, text), field))).await;
        refused([("a number", plain().set(field, 600), field)]).await;
        accepted(["10m", "1h30m", "24h", "90s", "1h30m5s", "00010m"].map(|text| (text, plain().set(field, text))))
            .await;
    }
    refused([("at once", plain().set("spec.renewal.renewBefore", "0s"), "must be more than 0s")]).await;
    accepted([("any validity will do", plain().set("spec.renewal.minValidity", "0s"))]).await;
}

fn plain() -> Manifest {
    credential("billing")
}
