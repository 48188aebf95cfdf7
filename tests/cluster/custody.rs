//! Refresh tokens: the broker takes them over from a seed, exchanges them under a claim, and stores them.

use k8s_openapi::api::core::v1::Secret;
use mail_token_broker::api::{MailCredential, names};
use mailtoken_testkit::{remedy::quoted, server::Response, standin::Fault, *};
use serde_json::json;

fn annotation(secret: &Secret, name: &str) -> String {
    secret.metadata.annotations.as_ref().and_then(|map| map.get(name)).cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_seed_is_exchanged_and_its_successors_are_kept_in_a_secret_that_no_pod_mounts() {
    let fixture = RefreshFixture::new().await;
    let seed = fixture.seed().await;
    fixture.ns.apply(by_seed("billing")).await;
    let credential = fixture.ready().await;
    let grant = fixture.grant().await;
    assert_eq!(fixture.idp.presented(&seed), 1);
    assert!(fixture.idp.is_valid(&text(&grant, "refresh_token")));
    assert_eq!(text(&grant, "previous_refresh_token"), seed);
    assert_eq!(grant.data.as_ref().unwrap().len(), 2);

    assert_eq!(grant.type_.as_deref(), Some("mailtoken.dev/grant"));
    let labels = grant.metadata.labels.clone().unwrap();
    let label = |key: &str| labels.get(key).map(String::as_str);
    assert_eq!(label("app.kubernetes.io/managed-by"), Some("mail-token-broker"));
    assert_eq!(label("mailtoken.dev/credential"), Some("billing"));
    assert_eq!(label("mailtoken.dev/role"), Some("grant"));
    let owners = grant.metadata.owner_references.clone().unwrap();
    assert_eq!(
        (owners.len(), owners[0].controller, &owners[0].uid),
        (1, Some(true), credential.metadata.uid.as_ref().unwrap())
    );
    for gone in ["mailtoken.dev/claim", "mailtoken.dev/sign-in"] {
        assert_eq!(annotation(&grant, gone), "", "{gone}");
    }
    assert_eq!(field(&credential, "/status/grant/rotations"), 1);
    assert!(field(&credential, "/status/grant/obtainedAt").is_string());
    assert!(field(&credential, "/status/grant/lastUsedAt").is_string());

    let published = fixture.ns.secret("billing").await;
    let secrets = [seed, text(&grant, "refresh_token"), "a client secret".to_owned()];
    let shown = format!("{published:?} {}", namespace::show(&credential));
    for secret in &secrets {
        assert!(!shown.contains(secret) && !fixture.broker.log().contains(secret));
    }
}

#[tokio::test]
async fn a_renewal_costs_one_request_and_four_writes_and_reads_no_secret() {
    let fixture = RefreshFixture::new().await;
    fixture.issued().await;
    let writes = ["create", "patch", "update", "delete"];
    let places = [("secrets", "billing-grant"), ("secrets", "billing"), ("mailcredentials/status", "billing")];
    // A write takes effect a moment before the audit log contains it.
    let wrote = async |wanted: [usize; 3]| {
        let count = |(resource, name): (&str, &str)| fixture.verbs(resource, name, &writes).len();
        until(&format!("so many writes: {wanted:?}"), async || match places.map(count) {
            written if written == wanted => Ok(()),
            written => Err(format!("{written:?}")),
        })
        .await;
    };
    wrote([2, 1, 1]).await;
    let reads = || ["billing-grant", "billing"].map(|name| fixture.verbs("secrets", name, &["get"]).len());
    // The annotation of a reissue is a write of the object, not of its status.
    let (read, requests) = (reads(), fixture.idp.token_requests().len());
    for time in 1..=3 {
        fixture.renew().await;
        wrote([2 + 2 * time, 1 + time, 1 + time]).await;
        assert_eq!(fixture.idp.token_requests().len(), requests + time);
    }
    assert_eq!(reads(), read);
    assert_eq!(
        fixture.verbs("secrets", "billing-grant", &writes),
        ["create", "patch", "patch", "patch", "patch", "patch", "patch", "patch"]
    );
    assert_eq!((fixture.idp.reuses(), fixture.idp.families_revoked()), (0, 0));
}

#[tokio::test]
async fn client_credentials_still_cost_two_writes() {
    let fixture = Fixture::new().await;
    fixture.issued(credential("billing")).await;
    fixture.wrote("secrets", "billing", &["create"]).await;
    fixture.wrote("mailcredentials/status", "billing", &["update"]).await;
    assert_eq!(fixture.writes("secrets", "billing-grant").len(), 0);
}

#[tokio::test]
async fn another_seed_is_used_immediately_and_the_same_seed_is_not_used_again() {
    let fixture = RefreshFixture::new().await;
    fixture.issued().await;
    let (kept, requests) = (fixture.kept().await, fixture.idp.token_requests().len());

    // The seed has the same content and another resourceVersion: the broker ignores the change, even at the next
    // renewal.
    fixture.ns.annotate::<Secret>("seed", "team", "mail").await;
    fixture.renew().await;
    assert_eq!(fixture.idp.token_requests().len(), requests + 1);
    let reported = fixture.ns.event_reasons("billing").await;
    assert!(!reported.contains("Normal GrantReseeded"), "{reported:?}");
    assert_ne!(fixture.kept().await, kept);

    let kept = fixture.kept().await;
    fixture.idp.next(Fault::error("temporarily_unavailable"));
    let second = fixture.seed().await;
    let taken = fixture
        .ns
        .until::<Secret>("billing-grant", "it keeps the other seed", |grant| text(grant, "refresh_token") == second)
        .await;
    assert_eq!(text(&taken, "previous_refresh_token"), kept);
    // The failure delays the next request, although the content of the source is new.
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "ProviderUnavailable").await;
    fixture.rotated(&second).await;
    let ready = fixture
        .ns
        .until::<MailCredential>("billing", "it is reported", |billing| field(billing, "/status/grant/rotations") == 1)
        .await;
    assert_eq!(field(&ready, "/status/failedAttempts"), 0);
    fixture.ns.event_reasons_include("billing", &["Normal GrantReseeded"]).await;
    assert_eq!((fixture.idp.presented(&second), fixture.idp.reuses()), (1, 0), "the first request was not handled");
}

#[tokio::test]
async fn a_stored_token_outlives_its_seed_and_stops_renewal_without_the_label() {
    let fixture = RefreshFixture::new().await;
    fixture.issued().await;
    // Without the label, the owner no longer allows the use of the seed.
    fixture.ns.patch::<Secret>("seed", json!({"metadata": {"labels": {"mailtoken.dev/source": null}}})).await;
    let reported = fixture.ns.condition::<MailCredential>("billing", "Renewed", "SourceNotLabeled").await;
    let requests = fixture.idp.token_requests().len();
    fixture.ask().await;
    fixture
        .ns
        .until::<MailCredential>("billing", "it is observed", |billing| {
            reason(billing, "Renewed") == "SourceNotLabeled"
        })
        .await;
    assert_eq!(reason(&fixture.ns.get("billing").await, "Ready"), "TokenValid");
    assert_eq!(fixture.idp.token_requests().len(), requests);
    remedy::run(&fixture.ns, &reported.message, &[]);
    fixture.asked(requests + 1).await;
    fixture
        .ns
        .until::<MailCredential>("billing", "it is renewed again", |billing| {
            reason(billing, "Renewed") == "RenewalSucceeded"
        })
        .await;

    fixture.ns.delete::<Secret>("seed").await;
    fixture.renew().await;
    fixture.renew().await;
    let billing: MailCredential = fixture.ns.get("billing").await;
    assert_eq!((reason(&billing, "Ready").as_str(), reason(&billing, "Stalled").as_str()), ("TokenValid", ""));
    assert_eq!(fixture.idp.reuses(), 0);
}

#[tokio::test]
async fn a_seed_that_cannot_be_right_is_not_sent_and_its_message_says_how_to_get_another() {
    let fixture = RefreshFixture::new().await;
    fixture.ns.apply(by_seed("billing")).await;
    fixture.ns.condition::<MailCredential>("billing", "Stalled", "SourceNotFound").await;
    let table = [
        ("", "is empty"),
        (" token", "white space at its beginning or end"),
        ("token\n\n", "white space at its beginning or end"),
        ("to ken", "white space inside"),
        ("to\u{1}ken", "control characters"),
    ];
    for (seed, flaw) in table {
        fixture.ns.apply(source("seed", "refresh_token", seed)).await;
        let fits = |billing: &MailCredential| {
            namespace::find(billing, "Stalled")
                .is_some_and(|stalled| stalled.reason == "SourceInvalid" && stalled.message.contains(flaw))
        };
        let billing = fixture.ns.until::<MailCredential>("billing", flaw, fits).await;
        let stalled = namespace::find(&billing, "Stalled").unwrap();
        let login = format!(
            "mail-token-broker login --provider idp -n {} --mailbox 'billing@example.org' --secret seed",
            fixture.ns.name
        );
        assert!(
            quoted(&stalled.message).iter().any(|command| command.replace('\'', "") == login.replace('\'', "")),
            "{}",
            stalled.message
        );
    }
    assert_eq!(fixture.idp.token_requests().len(), 0);
    // Editors add one trailing line break.
    let token = fixture.idp.refresh_token("mailer", "billing@example.org", "mail");
    fixture.ns.apply(source("seed", "refresh_token", &format!("{token}\n"))).await;
    fixture.ready().await;
    assert_eq!(fixture.idp.presented(&token), 1);
}

#[tokio::test]
async fn a_provider_that_does_not_rotate_keeps_the_old_token_in_use() {
    let fixture = RefreshFixture::new().await;
    let answer = json!({"access_token": "first", "token_type": "Bearer", "expires_in": 3600});
    fixture.idp.next(Fault::Refused(Response::json(200, &answer)));
    let seed = fixture.seed().await;
    fixture.ns.apply(by_seed("billing")).await;
    let credential = fixture.ready().await;
    let grant = fixture.grant().await;
    assert_eq!((text(&grant, "refresh_token"), text(&grant, "previous_refresh_token")), (seed.clone(), String::new()));
    assert_eq!(field(&credential, "/status/grant/rotations"), 0);
    assert!(field(&credential, "/status/grant/lastUsedAt").is_string());
    assert_eq!(annotation(&grant, names::ANNOTATION_CLAIM), "");
    // The provider begins to rotate the refresh token.
    assert_eq!(field(&fixture.renew().await, "/status/grant/rotations"), 1);
    assert_eq!(text(&fixture.grant().await, "previous_refresh_token"), seed);
}

#[tokio::test]
async fn a_known_end_of_the_refresh_token_is_reported_in_advance() {
    let fixture = RefreshFixture::new().await;
    let (hour, day) = (3600, 24 * 3600);
    fixture.seed().await;
    let table = [
        ("refresh_token_expires_in", day * 29, "Within30d"),
        ("refresh_expires_in", day * 6, "Within7d"),
        ("refresh_expires_in", hour, "Within1d"),
    ];
    for (index, (name, seconds, expected)) in table.into_iter().enumerate() {
        let answer = json!({"access_token": "t", "token_type": "Bearer", "expires_in": 3600, "refresh_token": format!("r{index}"), name: seconds});
        fixture.idp.next(Fault::Refused(Response::json(200, &answer)));
        match index {
            0 => drop(fixture.ns.apply(by_seed("billing")).await),
            _ => drop(fixture.ask().await),
        }
        let reported = fixture.ns.condition::<MailCredential>("billing", "GrantExpiringSoon", expected).await;
        assert!(reported.message.contains("mail-token-broker login"), "{}", reported.message);
        until("it is counted", async || {
            let end = fixture
                .broker
                .metric("mailtoken_grant_expiration_timestamp_seconds", "billing")
                .await
                .unwrap_or_default();
            let left = end - wait::now().as_second() as f64;
            if (left - f64::from(seconds)).abs() < 60.0 { Ok(()) } else { Err(left.to_string()) }
        })
        .await;
    }
    for (_, _, reason) in table {
        fixture.ns.event_reasons_include("billing", &[&format!("Warning {reason}")]).await;
    }
}
