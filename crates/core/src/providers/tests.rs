//! Tables of cases for the presets.

use GrantType::{ClientCredentials, DeviceCode, JwtBearer, RefreshToken, TokenExchange};
use Protocol::{Imap, Pop3, Smtp};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::oauth::refusal::{SKEW_MIN, read_refusal};

const GRANTS: [GrantType; 5] = [ClientCredentials, RefreshToken, DeviceCode, JwtBearer, TokenExchange];
const ALL: &[Protocol] = &[Smtp, Imap, Pop3];

fn spec(preset: &Value) -> ProviderSpec {
    let mut fields = preset.clone();
    let client = fields.as_object_mut().unwrap().entry("client").or_insert(json!({}));
    client.as_object_mut().unwrap().entry("id").or_insert(json!("app"));
    serde_json::from_value(fields).unwrap()
}

fn of(preset: &Value) -> (ProviderSpec, Profile) {
    let spec = spec(preset);
    let profile = profile(&spec).unwrap();
    (spec, profile)
}

fn cloud(name: &str) -> Value {
    json!({"microsoft": {"tenantID": "contoso.com", "cloud": name}})
}

/// A provider of each kind that the schema accepts.
fn presets() -> Vec<Value> {
    vec![
        cloud("Public"),
        cloud("USGov"),
        cloud("USGovDoD"),
        cloud("China"),
        json!({"google": {}}),
        json!({"yahoo": {}}),
        json!({"fastmail": {}}),
        json!({"oidc": {"issuerURL": "https://id.example.org"}}),
        json!({"oauth2": {"tokenURL": "https://id.example.org/t"}}),
    ]
}

#[test]
fn each_preset_has_its_endpoints() {
    let microsoft = |authority: &str| {
        let endpoint = |name: &str| Some(format!("https://{authority}/contoso.com/oauth2/v2.0/{name}"));
        [endpoint("token"), endpoint("devicecode"), None, endpoint("authorize")]
    };
    let known = |token: &str, revocation: &str, authorization: &str| {
        [Some(token.to_owned()), None, Some(revocation.to_owned()), Some(authorization.to_owned())]
    };
    for (preset, [token, device, revocation, authorization]) in [
        (cloud("Public"), microsoft("login.microsoftonline.com")),
        (cloud("USGov"), microsoft("login.microsoftonline.us")),
        (cloud("USGovDoD"), microsoft("login.microsoftonline.us")),
        (cloud("China"), microsoft("login.partner.microsoftonline.cn")),
        (
            json!({"google": {}}),
            known(
                "https://oauth2.googleapis.com/token",
                "https://oauth2.googleapis.com/revoke",
                "https://accounts.google.com/o/oauth2/v2/auth",
            ),
        ),
        (
            json!({"yahoo": {}}),
            known(
                "https://api.login.yahoo.com/oauth2/get_token",
                "https://api.login.yahoo.com/oauth2/revoke",
                "https://api.login.yahoo.com/oauth2/request_auth",
            ),
        ),
        (
            json!({"fastmail": {}}),
            known(
                "https://api.fastmail.com/oauth/refresh",
                "https://api.fastmail.com/oauth/revoke",
                "https://api.fastmail.com/oauth/authorize",
            ),
        ),
    ] {
        let TokenSource::Known(endpoints) = of(&preset).1.source else { panic!("{preset}") };
        assert_eq!(Some(endpoints.token_url), token, "{preset}");
        assert_eq!(endpoints.device_authorization_url, device, "{preset}");
        assert_eq!(endpoints.revocation_url, revocation, "{preset}");
        assert_eq!(endpoints.authorization_url, authorization, "{preset}");
    }
}

#[test]
fn each_grant_asks_for_the_scopes_of_its_provider_and_cloud() {
    let outlook = "https://outlook.office.com/SMTP.Send offline_access";
    for (preset, grant, protocols, scopes) in [
        (cloud("Public"), ClientCredentials, ALL, "https://outlook.office365.com/.default"),
        (cloud("USGov"), ClientCredentials, &[Smtp][..], "https://outlook.office365.us/.default"),
        (cloud("USGovDoD"), ClientCredentials, &[Smtp], "https://outlook.office365.us/.default"),
        (cloud("China"), ClientCredentials, &[Imap], "https://partner.outlook.cn/.default"),
        (cloud("Public"), RefreshToken, &[Smtp], outlook),
        (
            cloud("Public"),
            RefreshToken,
            ALL,
            "https://outlook.office.com/SMTP.Send https://outlook.office.com/IMAP.AccessAsUser.All \
             https://outlook.office.com/POP.AccessAsUser.All offline_access",
        ),
        (
            cloud("Public"),
            DeviceCode,
            &[Smtp],
            "https://outlook.office.com/SMTP.Send offline_access openid profile email",
        ),
        (cloud("USGov"), RefreshToken, &[Smtp], "https://outlook.office365.us/SMTP.Send offline_access"),
        (cloud("USGovDoD"), RefreshToken, &[Smtp], "https://outlook.office365.us/SMTP.Send offline_access"),
        (cloud("China"), RefreshToken, &[Imap], "https://partner.outlook.cn/IMAP.AccessAsUser.All offline_access"),
        (json!({"google": {}}), JwtBearer, ALL, "https://mail.google.com/"),
        (json!({"google": {}}), RefreshToken, &[Smtp], "https://mail.google.com/"),
        (json!({"yahoo": {}}), RefreshToken, ALL, "mail-w"),
        (json!({"fastmail": {}}), RefreshToken, &[Smtp], "https://www.fastmail.com/dev/protocol-smtp"),
        (
            json!({"fastmail": {}}),
            RefreshToken,
            &[Imap, Pop3],
            "https://www.fastmail.com/dev/protocol-imap https://www.fastmail.com/dev/protocol-pop",
        ),
        (json!({"oidc": {"issuerURL": "https://id.example.org"}}), RefreshToken, ALL, ""),
    ] {
        let (spec, profile) = of(&preset);
        assert_eq!((profile.scopes)(&spec, grant, protocols).join(" "), scopes, "{preset} {grant:?}");
    }
}

#[test]
fn each_preset_knows_its_servers_and_the_specs_win() {
    let consumers = json!({"microsoft": {"tenantID": "Consumers"}});
    for (preset, hosts) in [
        (cloud("Public"), ["smtp.office365.com", "outlook.office365.com", "outlook.office365.com"]),
        (consumers, ["smtp-mail.outlook.com", "outlook.office365.com", "outlook.office365.com"]),
        (cloud("USGov"), ["smtp.office365.us", "outlook.office365.us", "outlook.office365.us"]),
        (cloud("China"), ["smtp.partner.outlook.cn", "partner.outlook.cn", "partner.outlook.cn"]),
        (json!({"google": {}}), ["smtp.gmail.com", "imap.gmail.com", "pop.gmail.com"]),
        (json!({"yahoo": {}}), ["smtp.mail.yahoo.com", "imap.mail.yahoo.com", "pop.mail.yahoo.com"]),
        (json!({"fastmail": {}}), ["smtp.fastmail.com", "imap.fastmail.com", "pop.fastmail.com"]),
    ] {
        let ports = [(587, Security::StartTls), (993, Security::Tls), (995, Security::Tls)];
        let profile = of(&preset).1;
        for ((protocol, host), (port, security)) in ALL.iter().zip(hosts).zip(ports) {
            let server = Server { host: host.to_owned(), port, security: Some(security) };
            assert_eq!(profile.server(*protocol), Some(&server), "{preset}");
        }
        let mut own = preset.clone();
        own["servers"] = json!({"imap": {"host": "mail.example.org", "port": 1}});
        let profile = of(&own).1;
        assert_eq!(profile.server(Imap).unwrap().host, "mail.example.org");
        assert_eq!(profile.server(Smtp).unwrap().host, hosts[0]);
    }
    for preset in [cloud("USGovDoD"), json!({"oauth2": {"tokenURL": "https://id.example.org/t"}})] {
        assert_eq!(of(&preset).1.server(Smtp), None, "{preset}");
    }
}

#[test]
fn each_preset_has_the_grants_of_the_contract() {
    for (preset, grants) in [
        (cloud("Public"), &[ClientCredentials, RefreshToken, DeviceCode][..]),
        (json!({"google": {}}), &[RefreshToken, JwtBearer]),
        (json!({"yahoo": {}}), &[RefreshToken]),
        (json!({"fastmail": {}}), &[RefreshToken]),
        (json!({"oidc": {"issuerURL": "https://id.example.org"}}), &GRANTS),
        (json!({"oauth2": {"tokenURL": "https://id.example.org/t"}}), &GRANTS),
    ] {
        assert_eq!(of(&preset).1.grants, grants, "{preset}");
    }
}

#[test]
fn only_disuse_that_is_documented_ends_a_refresh_token() {
    let days = |preset: &Value| of(preset).1.idle_life.map(|life| life.as_hours() / 24);
    let lives: Vec<_> = presets().iter().map(days).collect();
    assert_eq!(lives, [Some(90), Some(90), Some(90), Some(90), Some(180), None, None, None, None]);
}

#[test]
fn the_default_scopes_of_a_preset_are_supported() {
    for preset in presets() {
        let mut preset = preset;
        let way = if preset.get("google").is_some() { "serviceAccountKey" } else { "privateKeyJWT" };
        preset["client"]["authentication"] = json!([
            {way: if way == "privateKeyJWT" { json!({"keyRef": {"name": "s", "key": "k"}}) } else { secret() }},
            {"clientSecret": secret()},
        ]);
        if preset.get("oauth2").is_some() {
            preset["oauth2"]["deviceAuthorizationURL"] = json!("https://id.example.org/d");
        }
        let (spec, profile) = of(&preset);
        for grant in profile.grants {
            let scopes = (profile.scopes)(&spec, *grant, ALL);
            assert_eq!((profile.unsupported)(&spec, *grant, &scopes), None, "{preset} {grant:?}");
        }
    }
}

fn secret() -> Value {
    json!({"secretRef": {"name": "s", "key": "k"}})
}

#[test]
fn unsupported_scopes_are_refused_with_scopes_that_work() {
    let tenant = |tenant: &str| json!({"microsoft": {"tenantID": tenant}});
    let google = |authentication: Value| json!({"google": {}, "client": {"authentication": authentication}});
    let key_file = || google(json!([{"serviceAccountKey": secret()}]));
    let oauth2 = || json!({"oauth2": {"tokenURL": "https://id.example.org/t"}});
    let default = "https://outlook.office365.com/.default";
    let mail = "https://mail.google.com/";
    for (preset, grant, scopes, part) in [
        (tenant("Common"), ClientCredentials, default, "spec.microsoft.tenantID"),
        (tenant("organizations"), ClientCredentials, default, "spec.microsoft.tenantID"),
        (tenant("contoso.com"), ClientCredentials, "https://graph.microsoft.com/.default", "outlook.office365.com"),
        (tenant("contoso.com"), ClientCredentials, "https://outlook.office.com/SMTP.Send", ".default"),
        (tenant("common"), RefreshToken, "https://graph.microsoft.com/Mail.Send offline_access", "Microsoft Graph"),
        (tenant("common"), RefreshToken, "Mail.Send", "Microsoft Graph"),
        (tenant("common"), RefreshToken, "https://outlook.office.com/.default", "not for .default"),
        (
            tenant("common"),
            DeviceCode,
            "https://outlook.office.com/SMTP.Send https://vault.azure.net/user_impersonation",
            "vault.azure.net",
        ),
        (tenant("common"), DeviceCode, "https://outlook.office.com/EWS.AccessAsUser.All", "SMTP, IMAP or POP3"),
        (tenant("common"), DeviceCode, "https://outlook.office.com/SMTP.Send", "offline_access"),
        (google(json!([{"clientSecret": secret()}])), JwtBearer, mail, "serviceAccountKey"),
        (key_file(), RefreshToken, mail, "clientSecret"),
        (key_file(), JwtBearer, "https://www.googleapis.com/auth/gmail.send", mail),
        (oauth2(), DeviceCode, "", "spec.oauth2.deviceAuthorizationURL"),
        (oauth2(), JwtBearer, "", "privateKeyJWT"),
        (json!({"oidc": {"issuerURL": "https://id.example.org"}}), JwtBearer, "", "privateKeyJWT"),
    ] {
        let (spec, profile) = of(&preset);
        let scopes: Vec<_> = scopes.split_ascii_whitespace().map(str::to_owned).collect();
        let unsupported = (profile.unsupported)(&spec, grant, &scopes);
        assert!(unsupported.as_ref().is_some_and(|text| text.contains(part)), "{preset} {grant:?}: {unsupported:?}");
    }
}

#[test]
fn unusual_scopes_that_work_are_accepted() {
    for (preset, grant, scopes) in [
        (
            json!({"microsoft": {"tenantID": "consumers"}}),
            DeviceCode,
            "https://outlook.office.com/SMTP.Send offline_access",
        ),
        (
            cloud("Public"),
            RefreshToken,
            "https://outlook.office365.com/IMAP.AccessAsUser.All https://outlook.office.com/SMTP.Send",
        ),
        (cloud("Public"), RefreshToken, "openid https://outlook.office.com//SMTP.Send"),
        (json!({"google": {}}), RefreshToken, "https://mail.google.com/ openid"),
        (json!({"oidc": {"issuerURL": "https://id.example.org"}}), DeviceCode, "mail"),
    ] {
        let (spec, profile) = of(&preset);
        let scopes: Vec<_> = scopes.split_ascii_whitespace().map(str::to_owned).collect();
        assert_eq!((profile.unsupported)(&spec, grant, &scopes), None, "{preset} {grant:?}");
    }
}

/// The refusal that a preset reads from a response.
fn understood(preset: &Value, status: u16, body: &Value, skew: SignedDuration, context: RefusalContext) -> Refusal {
    let sent_at = k8s_openapi::jiff::Timestamp::from_second(1_800_000_000).unwrap();
    let date = (sent_at + skew).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let response = http::Response::builder().status(status).header("date", date).body(body.to_string()).unwrap();
    let mut refusal = read_refusal(&response, sent_at);
    (of(preset).1.refine)(&mut refusal, &context);
    refusal
}

fn context(grant: GrantType, assertion: bool) -> RefusalContext {
    RefusalContext { grant, grant_age: None, assertion }
}

#[test]
fn an_assertion_that_is_refused_while_clocks_differ_is_a_matter_of_clocks() {
    let five_minutes = SignedDuration::from_mins(5);
    for preset in presets() {
        for error in ["invalid_grant", "invalid_client", "invalid_request"] {
            let body = json!({"error": error});
            let grant = if preset.get("google").is_some() { JwtBearer } else { RefreshToken };
            let reason = |skew, assertion| understood(&preset, 400, &body, skew, context(grant, assertion));
            let behind = reason(five_minutes, true);
            assert_eq!(behind.reason, Reason::ClockSkew, "{preset} {error}");
            assert!(behind.what.ends_with("its clock is 300 s ahead of the broker's"), "{}", behind.what);
            assert!(reason(-five_minutes, true).what.ends_with("its clock is 300 s behind the broker's"));
            assert_ne!(reason(SKEW_MIN, true).reason, Reason::ClockSkew, "{preset} {error}");
            assert_ne!(
                reason(five_minutes, false).reason,
                Reason::ClockSkew,
                "{preset} {error}: no response had a date"
            );
            assert_eq!(understood(&preset, 429, &body, five_minutes, context(grant, true)).reason, Reason::Throttled);
        }
        let other =
            understood(&preset, 400, &json!({"error": "invalid_scope"}), five_minutes, context(JwtBearer, true));
        assert_eq!(other.reason, Reason::InvalidScope, "{preset}");
    }
}

#[test]
fn http_429_is_throttling_whatever_the_body() {
    for preset in presets() {
        for body in [
            json!({"error": "invalid_client", "error_codes": [7000215]}),
            json!({"error": "unauthorized_client"}),
            json!({"error": "invalid_grant", "error_subtype": "invalid_rapt"}),
        ] {
            for grant in GRANTS {
                let refusal = understood(&preset, 429, &body, SignedDuration::ZERO, context(grant, true));
                assert_eq!((refusal.reason, refusal.advice), (Reason::Throttled, None), "{preset} {body}");
            }
        }
    }
}

proptest! {
    #[test]
    fn an_unknown_code_leaves_the_meaning_of_the_oauth_error(
        number in 1_000_000_000_u64..9_999_999_999, word in "x[a-z_]{0,20}", error in "x[a-z_]{0,20}", at in 0_usize..9, grant in 0_usize..5,
    ) {
        for code in [json!({"error_codes": [number / 10]}), json!({"error_subtype": word}), json!({"suberror": word})] {
            let mut body = code;
            body["error"] = json!(error);
            let refusal = understood(&presets()[at], 400, &body, SignedDuration::ZERO, context(GRANTS[grant], true));
            prop_assert_eq!((refusal.reason, refusal.advice), (Reason::RequestRefused, None));
        }
    }

    #[test]
    fn nothing_of_an_answer_but_checked_codes_gets_through(text in "[A-Z]{20}", at in 0_usize..9, grant in 0_usize..5) {
        let body = json!({
            "error": "invalid_grant", "error_description": text, "error_subtype": text, "suberror": text, "error_uri": text,
        });
        let refusal = understood(&presets()[at], 400, &body, SignedDuration::ZERO, context(GRANTS[grant], true));
        let shown = format!("{refusal:?}");
        prop_assert!(!shown.contains(&text));
    }
}

#[test]
fn a_denial_where_no_person_signs_in_is_a_matter_of_consent() {
    let presets = [
        json!({"microsoft": {"tenantID": "t"}}),
        json!({"google": {}}),
        json!({"yahoo": {}}),
        json!({"oauth2": {"tokenURL": "https://x/t"}}),
    ];
    for preset in presets {
        let mut spec = preset.clone();
        spec["client"] = json!({"id": "c"});
        let profile = profile(&serde_json::from_value(spec).unwrap()).unwrap();
        for (grant, reason) in [
            (GrantType::ClientCredentials, Reason::ConsentRequired),
            (GrantType::JwtBearer, Reason::ConsentRequired),
            (GrantType::TokenExchange, Reason::ConsentRequired),
            (GrantType::RefreshToken, Reason::AuthorizationRequired),
            (GrantType::DeviceCode, Reason::AuthorizationRequired),
        ] {
            let response = http::Response::builder().status(403).body(r#"{"error":"access_denied"}"#).unwrap();
            let mut refusal = crate::oauth::refusal::read_refusal(&response, k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
            (profile.refine)(&mut refusal, &RefusalContext { grant, grant_age: None, assertion: false });
            assert_eq!(refusal.reason, reason, "{preset} {grant:?}");
        }
    }
}
