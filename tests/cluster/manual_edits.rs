//! Changes by users of the Secret that stores a refresh token, and of the objects that the token belongs to.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use mail_token_broker::api::{MailCredential, MailProvider, names};
use mailtoken_testkit::{namespace::show, remedy::quoted, standin::Strict, *};
use serde_json::json;

/// Waits until a new object is younger than a credential: creationTimestamp has whole seconds.
async fn a_second_after(ns: &Namespace, name: &str) {
    let created = ns.get::<MailCredential>(name).await.metadata.creation_timestamp.unwrap().0;
    until("the next second has begun", async || match wait::now().as_second() - created.as_second() {
        1.. => Ok(()),
        _ => Err(created.to_string()),
    })
    .await;
}

#[tokio::test]
async fn a_refresh_token_is_sent_to_no_other_provider_and_for_no_other_client() {
    let fixture = RefreshFixture::new().await;
    fixture.issued().await;
    let other = Strict::start();
    other.client("mailer", Some("a client secret"));
    other.client("another", Some("a client secret"));
    let (here, kept) = (fixture.idp.token_requests().len(), fixture.kept().await);
    let provider = |spec: serde_json::Value| fixture.ns.patch::<MailProvider>("idp", json!({"spec": spec}));

    fixture
        .ns
        .patch::<k8s_openapi::api::core::v1::ConfigMap>(
            "idp-ca",
            json!({"data": {"ca.crt": format!("{}{}", fixture.idp.ca(), other.ca())}}),
        )
        .await;
    provider(json!({"oauth2": {"tokenURL": other.token_url()}})).await;
    let stalled = fixture.ns.condition::<MailCredential>("billing", "Stalled", "AuthorizationRequired").await;
    assert!(
        stalled.message.contains("another provider") && stalled.message.contains("mail-token-broker login"),
        "{}",
        stalled.message
    );
    provider(json!({"oauth2": {"tokenURL": fixture.idp.token_url()}, "client": {"id": "another"}})).await;
    fixture.ask().await;
    fixture.ns.condition::<MailCredential>("billing", "Stalled", "AuthorizationRequired").await;
    assert_eq!((other.token_requests().len(), fixture.idp.token_requests().len()), (0, here));
    assert_eq!(fixture.kept().await, kept);

    // With the former provider the old token works again. A new sign-in works with the other provider.
    provider(json!({"client": {"id": "mailer"}})).await;
    fixture
        .ns
        .until::<MailCredential>("billing", "it is ready again", |billing| reason(billing, "Stalled").is_empty())
        .await;
    fixture.rotated(&kept).await;
    fixture.ready().await;
    provider(json!({"oauth2": {"tokenURL": other.token_url()}})).await;
    fixture.ns.condition::<MailCredential>("billing", "Stalled", "AuthorizationRequired").await;
    fixture
        .ns
        .apply(source("seed", "refresh_token", &other.refresh_token("mailer", "billing@example.org", "mail")))
        .await;
    fixture
        .ns
        .until::<MailCredential>("billing", "it is ready with the other", |billing| {
            reason(billing, "Ready") == "TokenValid"
        })
        .await;
    assert_eq!((other.token_requests().len(), other.reuses(), fixture.idp.reuses()), (1, 0, 0));
}

#[tokio::test]
async fn a_retained_grant_is_found_again_without_its_seed() {
    let fixture = RefreshFixture::new().await;
    let retained = || by_seed("billing").set("spec.secret", json!({"deletionPolicy": "Retain"}));
    fixture.seed().await;
    fixture.ns.apply(retained()).await;
    fixture.ready().await;
    assert!(fixture.grant().await.owner_references().is_empty());
    let kept = fixture.kept().await;
    fixture.ns.delete::<MailCredential>("billing").await;
    fixture.broker.forgets("billing").await;
    fixture.ns.delete::<Secret>("seed").await;
    fixture.ns.delete::<Secret>("billing").await;
    fixture.ns.apply(retained()).await;
    fixture.ready().await;
    assert_eq!(text(&fixture.grant().await, "previous_refresh_token"), kept);
    assert_eq!((fixture.idp.presented(&kept), fixture.idp.reuses()), (1, 0));
}

#[tokio::test]
async fn the_current_deletion_policy_decides_about_the_grant_secret() {
    let fixture = RefreshFixture::new().await;
    let billing = fixture.issued().await;
    let (kept, requests) = (fixture.kept().await, fixture.idp.token_requests().len());
    let owned = |secret: &Secret| {
        secret.owner_references().iter().any(|owner| Some(&owner.uid) == billing.metadata.uid.as_ref())
    };
    fixture.ns.patch::<MailCredential>("billing", json!({"spec": {"secret": {"deletionPolicy": "Retain"}}})).await;
    fixture.ns.until::<Secret>("billing-grant", "it would outlive the credential", |grant| !owned(grant)).await;
    fixture.ns.patch::<MailCredential>("billing", json!({"spec": {"secret": {"deletionPolicy": "Delete"}}})).await;
    fixture.ns.until::<Secret>("billing-grant", "it goes with the credential", owned).await;
    assert_eq!((fixture.kept().await, fixture.idp.token_requests().len()), (kept, requests));
}

#[tokio::test]
async fn a_foreign_secret_with_the_grants_name_is_left_alone_and_replaced_after_its_deletion() {
    let fixture = RefreshFixture::new().await;
    fixture.ns.apply(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "billing-grant"}, "stringData": {"a": "b"}})).await;
    let before = fixture.grant().await;
    fixture.seed().await;
    fixture.ns.apply(by_seed("billing")).await;
    let stalled = fixture.ns.condition::<MailCredential>("billing", "Stalled", "SecretConflict").await;
    assert_eq!(fixture.grant().await, before);
    assert_eq!(fixture.idp.token_requests().len(), 0);
    remedy::run(&fixture.ns, &stalled.message, &[]);
    fixture.ready().await;
    assert_eq!(fixture.grant().await.type_.as_deref(), Some("mailtoken.dev/grant"));
}

#[tokio::test]
async fn a_secret_that_keeps_a_refresh_token_is_no_source() {
    let fixture = RefreshFixture::new().await;
    fixture.issued().await;
    let requests = fixture.idp.token_requests().len();
    fixture
        .ns
        .patch::<Secret>("billing-grant", json!({"metadata": {"labels": {"mailtoken.dev/source": "true"}}}))
        .await;
    let thief = by_seed("thief").set("spec.grant.refreshToken.secretRef.name", "billing-grant");
    fixture.ns.apply(thief).await;
    fixture.ns.condition::<MailCredential>("thief", "Ready", "SourceInvalid").await;
    let exchange = json!({"tokenExchange": {
        "subjectToken": {"secretRef": {"name": "billing-grant", "key": "refresh_token"}},
        "subjectTokenType": "urn:ietf:params:oauth:token-type:refresh_token",
    }});
    fixture.ns.apply(credential("exchange").set("spec.grant", exchange)).await;
    fixture.ns.condition::<MailCredential>("exchange", "Ready", "SourceInvalid").await;
    assert_eq!(fixture.idp.token_requests().len(), requests);
}

#[tokio::test]
async fn the_longest_name_has_a_grant_of_its_own() {
    let fixture = RefreshFixture::new().await;
    let name = "b".repeat(253);
    fixture.seed().await;
    let short = json!({"name": "billing"});
    fixture.ns.apply(by_seed(&name).set("spec.mailbox.address", "billing@example.org").set("spec.secret", short)).await;
    fixture.ns.condition::<MailCredential>(&name, "Ready", "TokenValid").await;
    let grant = names::grant_secret(&name);
    assert!(grant.len() <= 253 && grant.ends_with("-grant"), "{grant}");
    assert!(fixture.idp.is_valid(&fixture.ns.secret(&grant).await["refresh_token"]));
}

#[tokio::test]
async fn nothing_is_requested_while_suspended() {
    let fixture = RefreshFixture::new().await;
    fixture.issued().await;
    let requests = fixture.idp.token_requests().len();
    fixture.ns.patch::<MailCredential>("billing", json!({"spec": {"suspend": true}})).await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "Suspended").await;
    fixture.ask().await;
    fixture.seed().await;
    let (grant, again) = (fixture.grant().await, by_seed("another").set("spec.suspend", true));
    fixture.ns.apply(again).await;
    fixture.ns.condition::<MailCredential>("another", "Renewed", "Suspended").await;
    assert_eq!((fixture.idp.token_requests().len(), fixture.grant().await), (requests, grant));
    fixture.ns.patch::<MailCredential>("billing", json!({"spec": {"suspend": false}})).await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "RenewalSucceeded").await;
    assert_eq!(fixture.idp.reuses(), 0);
}

#[tokio::test]
async fn removed_labels_are_restored() {
    let fixture = RefreshFixture::new().await;
    fixture.issued().await;
    fixture.ns.patch::<Secret>("billing-grant", json!({"metadata": {"labels": null}})).await;
    let labelled = |grant: &Secret| grant.labels().get("mailtoken.dev/role").is_some_and(|role| role == "grant");
    fixture.ns.until::<Secret>("billing-grant", "its labels are back", labelled).await;
    fixture.renew().await;
    assert_eq!(fixture.idp.reuses(), 0);
}

#[tokio::test]
async fn a_damaged_grant_is_reported_and_no_spent_seed_replaces_it() {
    let fixture = RefreshFixture::new().await;
    fixture.issued().await;
    fixture.renew().await;
    let (whole, requests) = (fixture.grant().await, fixture.idp.token_requests().len());
    let kept = text(&whole, "refresh_token");

    fixture.ns.patch::<Secret>("billing-grant", json!({"metadata": {"annotations": null}})).await;
    fixture.ask().await;
    let renewed = fixture.ns.condition::<MailCredential>("billing", "Renewed", "AuthorizationRequired").await;
    assert!(renewed.message.contains("removed the annotations"), "{}", renewed.message);
    assert!(
        quoted(&renewed.message).iter().any(|command| command.contains("delete secret billing-grant")),
        "{}",
        renewed.message
    );
    assert_eq!(fixture.kept().await, kept);

    let annotations = whole.metadata.annotations.clone().unwrap();
    fixture.ns.patch::<Secret>("billing-grant", json!({"metadata": {"annotations": annotations}})).await;
    fixture.renew().await;
    assert_eq!(fixture.idp.token_requests().len(), requests + 1);

    fixture.ns.patch::<Secret>("billing-grant", json!({"data": null})).await;
    fixture.ask().await;
    let emptied = |billing: &MailCredential| {
        namespace::find(billing, "Renewed").is_some_and(|renewed| renewed.message.contains("emptied"))
    };
    fixture.ns.until::<MailCredential>("billing", "the message says that it is empty", emptied).await;
    let billing: MailCredential = fixture.ns.get("billing").await;
    assert_eq!(reason(&billing, "Ready"), "TokenValid", "{}", show(&billing));
    assert_eq!((fixture.idp.token_requests().len(), fixture.idp.reuses()), (requests + 1, 0));
    fixture.drop("billing-grant").await;
    fixture.seed().await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "RenewalSucceeded").await;
    assert_eq!(fixture.idp.families_revoked(), 0);
}

#[tokio::test]
async fn a_grant_that_was_made_immutable_is_not_exchanged() {
    let fixture = RefreshFixture::new().await;
    fixture.issued().await;
    let (kept, requests) = (fixture.kept().await, fixture.idp.token_requests().len());
    fixture.ns.patch::<Secret>("billing-grant", json!({"immutable": true})).await;
    fixture.ask().await;
    let renewed = fixture.ns.condition::<MailCredential>("billing", "Renewed", "AuthorizationRequired").await;
    assert!(renewed.message.contains("immutable"), "{}", renewed.message);
    assert_eq!((fixture.kept().await, fixture.idp.token_requests().len()), (kept, requests));
}

/// Returns the credential `name` with the seed in the Secret `seed`.
fn by_seed_in(name: &str, seed: &str) -> Manifest {
    by_seed(name).set("spec.grant.refreshToken.secretRef.name", seed)
}

#[tokio::test]
async fn two_credentials_never_use_the_same_refresh_token() {
    let fixture = RefreshFixture::new().await;
    let first = fixture.seed().await;
    fixture.ns.apply(by_seed("billing")).await;
    fixture.ready().await;
    // Two credentials use the same seed: by the same Secret, as in a rename in which the user creates the new object
    // before deleting the old one; and by a copy of the token.
    fixture.ns.apply(source("copy", "refresh_token", &first)).await;
    for (name, seed) in [("younger", "seed"), ("copycat", "copy")] {
        fixture.ns.apply(by_seed_in(name, seed)).await;
        let stalled = fixture.ns.condition::<MailCredential>(name, "Stalled", "SecretConflict").await;
        assert!(stalled.message.contains("MailCredential billing"), "{}", stalled.message);
        // The next credential must also be younger than this one.
        a_second_after(&fixture.ns, name).await;
    }
    fixture.renew().await;
    let idp = &fixture.idp;
    assert_eq!((idp.families_revoked(), idp.reuses(), idp.presented(&first)), (0, 0, 1));

    // A new sign-in of the younger credential ends the conflict.
    let another = idp.refresh_token("mailer", "younger@example.org", "mail");
    fixture.ns.apply(source("copy", "refresh_token", &another)).await;
    fixture.ns.condition::<MailCredential>("copycat", "Ready", "TokenValid").await;
    assert_eq!((idp.families_revoked(), idp.reuses()), (0, 0));
}

#[tokio::test]
async fn of_two_created_together_with_one_seed_the_older_uses_it() {
    let fixture = RefreshFixture::new().await;
    fixture.ns.apply(by_seed("older")).await;
    fixture.ns.condition::<MailCredential>("older", "Ready", "SourceNotFound").await;
    a_second_after(&fixture.ns, "older").await;
    fixture.ns.apply(by_seed("a-younger")).await;
    fixture.ns.condition::<MailCredential>("a-younger", "Ready", "SourceNotFound").await;
    let first = fixture.seed().await;
    fixture.ns.condition::<MailCredential>("older", "Ready", "TokenValid").await;
    let stalled = fixture.ns.condition::<MailCredential>("a-younger", "Stalled", "SecretConflict").await;
    assert!(stalled.message.contains("MailCredential older"), "{}", stalled.message);
    assert_eq!((fixture.idp.families_revoked(), fixture.idp.presented(&first)), (0, 1));
}

#[tokio::test]
async fn a_spent_seed_is_not_sent_again_for_a_later_credential() {
    let fixture = RefreshFixture::new().await;
    let first = fixture.seed().await;
    fixture.ns.apply(by_seed("billing")).await;
    fixture.ready().await;
    fixture.ns.apply(by_seed("renamed")).await;
    fixture.ns.condition::<MailCredential>("renamed", "Stalled", "SecretConflict").await;
    fixture.ns.delete::<MailCredential>("billing").await;
    fixture.ns.delete::<Secret>("billing-grant").await;
    let stalled = fixture.ns.condition::<MailCredential>("renamed", "Stalled", "AuthorizationRequired").await;
    assert!(stalled.message.contains("mail-token-broker login"), "{}", stalled.message);
    a_second_after(&fixture.ns, "renamed").await;
    fixture.ns.delete::<Secret>("billing").await;
    fixture.ns.apply(by_seed("billing")).await;
    fixture.ns.condition::<MailCredential>("billing", "Stalled", "SecretConflict").await;
    fixture.ns.delete::<MailCredential>("renamed").await;
    fixture.ns.condition::<MailCredential>("billing", "Stalled", "AuthorizationRequired").await;
    let idp = &fixture.idp;
    assert_eq!((idp.families_revoked(), idp.reuses(), idp.presented(&first)), (0, 0, 1));
}

#[tokio::test]
async fn a_foreign_secret_created_during_an_exchange_is_reported_and_not_overwritten_in_a_loop() {
    let fixture = RefreshFixture::new().await;
    fixture.guarded().await;
    fixture.issued().await;
    let kept = fixture.kept().await;
    fixture.seal().await;
    fixture.ask().await;
    fixture.asked(2).await;
    // The broker cannot store the new refresh token, and meanwhile a foreign Secret has the name.
    let foreign =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "billing-grant"}, "stringData": {"a": "b"}});
    fixture.drop("billing-grant").await;
    if fixture.ns.try_apply(foreign.clone()).await.is_err() || fixture.grant().await.type_.as_deref() != Some("Opaque")
    {
        // The broker was faster, and has stored the token in its own Secret.
        fixture.rotated(&kept).await;
        return;
    }
    let before = fixture.grant().await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "SecretConflict").await;
    let calls = || fixture.verbs("secrets", "billing-grant", &["get", "create", "patch", "delete"]).len();
    let so_far = calls();
    holds(Duration::from_secs(4), "there is no hot loop", async || match calls() - so_far {
        0..20 => Ok(()),
        number => Err(format!("{number} calls")),
    })
    .await;
    assert_eq!(fixture.grant().await, before);
    fixture.drop("billing-grant").await;
    let stored = fixture
        .ns
        .until::<Secret>("billing-grant", "the token is stored", |secret| !text(secret, "refresh_token").is_empty());
    assert!(fixture.idp.is_valid(&text(&stored.await, "refresh_token")));
    assert_eq!((fixture.idp.families_revoked(), fixture.idp.reuses()), (0, 0));
}

#[tokio::test]
async fn a_secret_that_a_provider_refers_to_is_not_a_users_token() {
    let fixture = RefreshFixture::new().await;
    let requests = fixture.idp.token_requests().len();
    let thief = by_seed_in("thief", "idp-client").set("spec.grant.refreshToken.secretRef.key", "client-secret");
    fixture.ns.apply(thief).await;
    let stalled = fixture.ns.condition::<MailCredential>("thief", "Stalled", "SourceInvalid").await;
    // A ClusterMailProvider of another test may also refer to a Secret with this name in the broker's namespace.
    assert!(stalled.message.contains("MailProvider"), "{}", stalled.message);
    let exchange = json!({"tokenExchange": {
        "subjectToken": {"secretRef": {"name": "idp-client", "key": "client-secret"}},
        "subjectTokenType": "urn:ietf:params:oauth:token-type:access_token",
    }});
    fixture.ns.apply(credential("exchange").set("spec.grant", exchange)).await;
    fixture.ns.condition::<MailCredential>("exchange", "Ready", "SourceInvalid").await;
    assert_eq!(fixture.idp.token_requests().len(), requests);
}

#[tokio::test]
async fn a_source_is_sent_only_to_the_hosts_that_its_owner_named() {
    let fixture = RefreshFixture::new().await;
    const HOSTS: &str = "mailtoken.dev/source-hosts";
    fixture.seed().await;
    for secret in ["seed", "idp-client"] {
        fixture.ns.annotate::<Secret>(secret, HOSTS, "login.microsoftonline.com").await;
        if secret == "idp-client" {
            // Wait until the broker has seen the annotation.
            fixture.ns.condition::<MailProvider>("idp", "Ready", "SourceInvalid").await;
        }
        fixture.ns.apply(by_seed("billing")).await;
        let stalled = fixture.ns.condition::<MailCredential>("billing", "Stalled", "SourceInvalid").await;
        let reported = format!("Secret {}/{secret} does not allow", fixture.ns.name);
        assert!(stalled.message.contains(&reported) && stalled.message.contains(HOSTS), "{}", stalled.message);
        fixture.ns.annotate::<Secret>(secret, HOSTS, "login.microsoftonline.com, localhost").await;
        if secret == "seed" {
            fixture.ready().await;
            fixture.ns.delete::<MailCredential>("billing").await;
            fixture.ns.delete::<Secret>("billing-grant").await;
            fixture.ns.delete::<Secret>("billing").await;
            fixture.seed().await;
            fixture.ns.annotate::<Secret>("seed", HOSTS, "localhost").await;
        }
    }
    fixture.ready().await;
}

#[tokio::test]
async fn of_two_secrets_with_one_token_the_older_credential_uses_it_also_if_the_younger_is_first() {
    let fixture = RefreshFixture::new().await;
    let first = fixture.seed().await;
    fixture.ns.apply(source("copy", "refresh_token", &first)).await;
    // When the broker reconciles the younger credential, the older one has not taken over the token.
    fixture.ns.apply(by_seed_in("a-older", "copy").set("spec.suspend", true)).await;
    fixture.ns.condition::<MailCredential>("a-older", "Renewed", "Suspended").await;
    fixture.ns.apply(by_seed("b-younger")).await;
    let stalled = fixture.ns.condition::<MailCredential>("b-younger", "Stalled", "SecretConflict").await;
    assert!(stalled.message.contains("MailCredential a-older"), "{}", stalled.message);
    assert_eq!(fixture.idp.presented(&first), 0);

    fixture.ns.patch::<MailCredential>("a-older", json!({"spec": {"suspend": false}})).await;
    fixture.ns.condition::<MailCredential>("a-older", "Ready", "TokenValid").await;
    fixture.ns.condition::<MailCredential>("b-younger", "Stalled", "SecretConflict").await;
    assert_eq!((fixture.idp.families_revoked(), fixture.idp.presented(&first)), (0, 1));
}

#[tokio::test]
async fn a_seed_that_is_replaced_while_it_is_read_is_taken_over_too() {
    let api = ApiProxy::start(&Cluster::shared());
    let fixture =
        RefreshFixture::with(|settings| settings.flag("--leader-elect=false").kubeconfig(&api.kubeconfig())).await;
    let first = fixture.seed().await;
    fixture.ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    // The broker reads the seed for the decision, and again for the claim. The second response is late.
    api.next(1, "GET", "/secrets/seed", Trouble::None);
    api.next(usize::MAX, "GET", "/secrets/seed", Trouble::Late);
    fixture.ns.apply(by_seed("billing")).await;
    let late = api.late(1).await;
    let second = fixture.seed().await;
    // The watch has shown the new seed: the broker reconciles the credential again, and reads the seed.
    api.late(late + 1).await;
    api.calm();
    api.release();
    until("the other seed is used", async || match fixture.idp.presented(&second) {
        1 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    fixture.ready().await;
    assert_eq!((fixture.idp.presented(&first), fixture.idp.families_revoked()), (1, 0));
}
