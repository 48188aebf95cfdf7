use std::collections::BTreeSet;

use GrantType::{ClientCredentials, DeviceCode, RefreshToken};
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::oauth::refusal::read_refusal;

fn understood(code: u32, grant: GrantType) -> Refusal {
    let mut refusal = Refusal::new(Reason::RequestRefused, "x");
    refusal.provider_code = Some(format!("AADSTS{code}"));
    refusal.unknown_code = true;
    refine(&mut refusal, &RefusalContext { grant, grant_age: None, assertion: false });
    refusal
}

#[test]
fn each_code_has_its_reason() {
    for (reason, codes) in [
        (Reason::Throttled, &[50196, 90055][..]),
        (
            Reason::ProviderUnavailable,
            &[
                50000, 50033, 50087, 50088, 70012, 80001, 80002, 80005, 80013, 80014, 90006, 90012, 90024, 90033,
                90036, 90090, 90091, 501621,
            ],
        ),
        (
            Reason::InvalidClient,
            &[
                70002, 7000215, 7000229, 700027, 700030, 700025, 7000218, 70001, 7000112, 700011, 700016, 90038,
                900382, 900432, 50012, 50027, 1000031,
            ],
        ),
        (Reason::ClientSecretExpired, &[7000222]),
        (Reason::ClockSkew, &[700024, 500133]),
        (
            Reason::RequestRefused,
            &[90002, 900023, 900021, 50059, 50128, 9001023, 50194, 90130, 9002332, 50011, 900144, 9002313, 50146],
        ),
        (Reason::InvalidScope, &[70011, 28002, 28003, 500011, 500014, 700022, 650052, 650054, 901002]),
        (Reason::ConsentRequired, &[650056, 650057, 65001, 65002, 65005, 90094, 90095, 90099, 65004, 50105]),
        (Reason::FederationMismatch, &[70021, 700211, 700212, 700213, 700229]),
        (
            Reason::InvalidGrant,
            &[
                700082, 70008, 700084, 50173, 70043, 70000, 50055, 50132, 50133, 50057, 50089, 50020, 50034, 50053,
                50126, 50144, 54005, 90072,
            ],
        ),
        (
            Reason::AuthorizationRequired,
            &[
                50072, 50076, 50078, 50079, 50074, 50158, 53000, 53001, 53002, 53003, 53004, 53011, 530032, 530035,
                70016, 70019, 70018, 90119, 90120, 700020, 500021, 9002341, 500212, 50199,
            ],
        ),
    ] {
        for code in codes {
            assert_eq!(understood(*code, RefreshToken).reason, reason, "{code}");
            assert_eq!(understood(*code, ClientCredentials).reason, reason, "{code}");
            assert!(!understood(*code, RefreshToken).unknown_code, "{code}");
        }
    }
}

#[test]
fn a_right_secret_is_not_called_wrong_and_a_tenant_that_is_none_is_named() {
    let missing = understood(7000229, ClientCredentials).advice.unwrap();
    assert!(missing.contains("secret is right") && missing.contains("az ad sp create --id {client}"), "{missing}");
    let tenant = understood(900023, ClientCredentials).advice.unwrap();
    assert!(tenant.contains("tenantID"), "{tenant}");
}

/// "Microsoft Entra authentication and authorization error codes", at 04f6554: every code of the list.
const PUBLISHED: &[u32] = &[
    16000, 16001, 16002, 160021, 16003, 17003, 20001, 20012, 20033, 230109, 28002, 28003, 40008, 40009, 40010, 40015,
    50000, 50001, 50002, 500011, 500021, 500022, 50003, 50005, 50006, 50007, 50008, 5000819, 50010, 50011, 50012,
    50013, 500133, 50014, 50015, 50017, 50020, 500208, 500212, 500213, 50027, 50029, 50032, 50033, 50034, 50042, 50043,
    50048, 50049, 50050, 50053, 50055, 50056, 50057, 50058, 50059, 50061, 50064, 50068, 50070, 50071, 50072, 50074,
    50076, 50078, 50079, 50085, 50086, 50087, 50088, 50089, 50097, 50099, 50105, 50107, 50120, 50124, 501241, 50125,
    50126, 50127, 50128, 50129, 50131, 50132, 50133, 50134, 50135, 50136, 50139, 50140, 50143, 50144, 50146, 501461,
    50147, 501481, 501491, 50155, 50158, 50161, 50166, 50168, 50169, 50170, 50173, 50177, 50178, 50180, 50187, 50192,
    50194, 50196, 50197, 50199, 51000, 51001, 1000104, 51004, 51005, 51006, 52004, 53000, 53001, 53002, 53003, 530035,
    53004, 53010, 53011, 530034, 54000, 54005, 65001, 65002, 65004, 65005, 650052, 650054, 650056, 650057, 67003,
    70000, 70001, 700011, 70002, 700025, 700027, 70003, 700030, 70004, 70005, 700054, 70007, 70008, 700082, 700084,
    70011, 70012, 70016, 70018, 70019, 70043, 75001, 75003, 75005, 7500514, 750054, 75008, 75011, 75016, 76021, 76026,
    80001, 80002, 80005, 80007, 80010, 80012, 80013, 80014, 81004, 81005, 81006, 81007, 81009, 81010, 81011, 81012,
    90002, 90004, 90005, 90006, 90007, 90008, 90009, 90010, 9001023, 90012, 90013, 90014, 900144, 90015, 90016, 90019,
    90020, 90022, 90023, 900236, 9002313, 9002332, 90024, 90027, 90033, 90036, 90038, 900384, 90043, 900432, 90051,
    90055, 90056, 900561, 90072, 90081, 90082, 90084, 90085, 90086, 90087, 90090, 90091, 90092, 90093, 90094, 900382,
    90095, 90099, 900971, 90100, 901002, 90101, 90102, 90107, 90114, 90117, 90119, 90120, 90121, 90123, 90124, 90125,
    90126, 90130, 120000, 120002, 120003, 120004, 120005, 120008, 120011, 120012, 120013, 120014, 120015, 120016,
    120018, 120020, 120021, 130004, 130005, 130006, 130007, 130008, 135010, 135011, 140000, 140001, 165004, 165900,
    220450, 220501, 221000, 240001, 240002, 501621, 530032, 700016, 700020, 700022, 700023, 7000215, 7000218, 7000222,
    700229, 700005, 1000000, 1000002, 100007, 1000031, 7000112, 7000114, 7500529, 9002341,
];
/// Codes of the list that no request of the broker can cause.
const ELSEWHERE: &[(&str, &[u32])] = &[
    ("WS-Federation and federation metadata", &[20001, 20012, 20033, 90081, 90082, 90084, 90085, 90086, 90087]),
    (
        "SAML",
        &[
            50007, 50008, 50010, 50099, 501241, 67003, 75001, 75003, 75005, 75008, 75011, 75016, 76021, 76026, 90020,
            90107, 750054, 900236, 5000819, 7500514, 7500529,
        ],
    ),
    ("signing out", &[50061, 50068, 50070, 50071]),
    ("Kerberos and seamless sign-on", &[51001, 81004, 81005, 81006, 81007, 81009, 81010, 81011, 81012, 90022]),
    ("the password agent, while a person types the password", &[80010, 80012]),
    ("a person's certificate or passkey", &[50017, 50032, 50192, 130004, 130005, 130006, 130007, 130008, 220501]),
    ("devices", &[17003, 90114, 135010, 135011, 140000, 140001, 220450, 221000, 240001]),
    (
        "a changed password",
        &[
            120_000, 120_002, 120_003, 120_004, 120_005, 120_008, 120_011, 120_012, 120_013, 120_014, 120_015, 120_016,
            120_018, 120_020, 120_021,
        ],
    ),
    ("the pages of a browser", &[50136, 90007, 90101, 90125, 90126, 165_004, 165_900, 1_000_000, 1_000_002]),
    ("ID tokens by the implicit grant", &[700_054]),
    ("on behalf of, and JWT grants", &[90016, 240_002, 7_000_114]),
    ("LinkedIn", &[52004]),
    ("regional endpoints", &[100_007]),
];
/// Codes that users report, although the list lacks them.
const REPORTED: &[u32] = &[
    28000, 70021, 70025, 500_014, 700_021, 700_024, 700_211, 700_212, 700_213, 900_021, 900_023, 1_002_012, 7_000_229,
];

#[test]
fn every_published_code_has_a_reason_or_a_known_other_purpose() {
    let elsewhere: Vec<u32> = ELSEWHERE.iter().flat_map(|(_, codes)| *codes).copied().collect();
    for code in PUBLISHED {
        assert_eq!(find(*code).is_some(), !elsewhere.contains(code), "AADSTS{code}");
    }
    for code in &elsewhere {
        assert!(PUBLISHED.contains(code), "AADSTS{code} is not in the list");
    }
    for code in GROUPS.iter().flat_map(|group| group.codes) {
        assert_ne!(PUBLISHED.contains(code), REPORTED.contains(code), "AADSTS{code}");
    }
}

#[test]
fn a_code_with_two_meanings_follows_the_oauth_error() {
    let read = |error: &str| {
        let body = serde_json::json!({"error": error, "error_codes": [700_023]}).to_string();
        let response = http::Response::builder().status(400).body(body).unwrap();
        let mut refusal = read_refusal(&response, Timestamp::UNIX_EPOCH);
        refine(&mut refusal, &RefusalContext { grant: ClientCredentials, grant_age: None, assertion: true });
        refusal.reason
    };
    assert_eq!(["invalid_scope", "invalid_client"].map(read), [Reason::InvalidScope, Reason::InvalidClient]);
}

#[test]
fn the_policy_that_blocks_a_sign_in_is_named() {
    for (code, part) in
        [(530_035, "security defaults"), (500_021, "proxy"), (500_213, "cross-tenant"), (53003, "Conditional")]
    {
        for grant in [ClientCredentials, RefreshToken] {
            let advice = understood(code, grant).advice.unwrap();
            assert!(advice.contains(part), "{code}: {advice}");
        }
    }
}

#[test]
fn no_code_is_in_two_groups() {
    let all: Vec<_> = GROUPS.iter().flat_map(|group| group.codes).collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
}

#[test]
fn the_fix_depends_on_the_account_of_the_token() {
    for code in [65001, 53003] {
        let [app, person] = [ClientCredentials, DeviceCode].map(|grant| understood(code, grant).advice.unwrap());
        assert!(!app.contains("{sign_in}") && person.contains("{sign_in}"), "{code}");
    }
    assert_eq!(understood(50076, ClientCredentials).advice, None);
}

#[test]
fn the_loop_detection_is_given_a_minute_at_least() {
    let wait = |asked: Option<i64>| {
        let mut refusal = Refusal::new(Reason::InvalidGrant, "x");
        refusal.provider_code = Some("AADSTS50196".into());
        refusal.retry_after = asked.map(SignedDuration::from_secs);
        refine(&mut refusal, &RefusalContext { grant: RefreshToken, grant_age: None, assertion: false });
        refusal.retry_after.map(|wait| wait.as_secs())
    };
    assert_eq!([None, Some(5), Some(600)].map(wait), [Some(60), Some(60), Some(600)]);
}
