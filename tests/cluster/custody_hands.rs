//! What people do to the Secret that keeps a refresh token, and to what it is for.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use mail_token_broker::api::{MailCredential, MailProvider, names};
use mailtoken_testkit::{namespace::show, remedy::quoted, standin::Strict, *};
use serde_json::json;

#[tokio::test]
async fn a_refresh_token_is_sent_to_no_other_provider_and_for_no_other_client() {
    let custody = Custody::new().await;
    custody.issued().await;
    let other = Strict::start();
    other.client("mailer", Some("a client secret"));
    other.client("another", Some("a client secret"));
    let (here, kept) = (custody.idp.token_requests().len(), custody.kept().await);
    let provider = |spec: serde_json::Value| custody.ns.patch::<MailProvider>("idp", json!({"spec": spec}));

    custody
        .ns
        .patch::<k8s_openapi::api::core::v1::ConfigMap>(
            "idp-ca",
            json!({"data": {"ca.crt": format!("{}{}", custody.idp.ca(), other.ca())}}),
        )
        .await;
    provider(json!({"oauth2": {"tokenURL": other.token_url()}})).await;
    let stalled = custody.ns.condition::<MailCredential>("billing", "Stalled", "AuthorizationRequired").await;
    assert!(
        stalled.message.contains("another provider") && stalled.message.contains("mail-token-broker login"),
        "{}",
        stalled.message
    );
    provider(json!({"oauth2": {"tokenURL": custody.idp.token_url()}, "client": {"id": "another"}})).await;
    custody.ask().await;
    custody.ns.condition::<MailCredential>("billing", "Stalled", "AuthorizationRequired").await;
    assert_eq!((other.token_requests().len(), custody.idp.token_requests().len()), (0, here));
    assert_eq!(custody.kept().await, kept);

    // Back again it is good as it was, and another sign-in is good for the other provider.
    provider(json!({"client": {"id": "mailer"}})).await;
    custody
        .ns
        .until::<MailCredential>("billing", "it is ready again", |billing| reason(billing, "Stalled").is_empty())
        .await;
    custody.rotated(&kept).await;
    custody.ready().await;
    provider(json!({"oauth2": {"tokenURL": other.token_url()}})).await;
    custody.ns.condition::<MailCredential>("billing", "Stalled", "AuthorizationRequired").await;
    custody
        .ns
        .apply(source("seed", "refresh_token", &other.refresh_token("mailer", "billing@example.org", "mail")))
        .await;
    custody
        .ns
        .until::<MailCredential>("billing", "it is ready with the other", |billing| {
            reason(billing, "Ready") == "TokenValid"
        })
        .await;
    assert_eq!((other.token_requests().len(), other.reuses(), custody.idp.reuses()), (1, 0, 0));
}

#[tokio::test]
async fn a_retained_grant_is_found_again_without_its_seed() {
    let custody = Custody::new().await;
    let retained = || by_seed("billing").set("spec.secret", json!({"deletionPolicy": "Retain"}));
    custody.seed().await;
    custody.ns.apply(retained()).await;
    custody.ready().await;
    assert!(custody.grant().await.owner_references().is_empty());
    let kept = custody.kept().await;
    custody.ns.delete::<MailCredential>("billing").await;
    custody.broker.forgets("billing").await;
    custody.ns.delete::<Secret>("seed").await;
    custody.ns.delete::<Secret>("billing").await;
    custody.ns.apply(retained()).await;
    custody.ready().await;
    assert_eq!(text(&custody.grant().await, "previous_refresh_token"), kept);
    assert_eq!((custody.idp.presented(&kept), custody.idp.reuses()), (1, 0));
}

#[tokio::test]
async fn the_deletion_policy_of_today_decides_what_becomes_of_the_grant() {
    let custody = Custody::new().await;
    let billing = custody.issued().await;
    let (kept, requests) = (custody.kept().await, custody.idp.token_requests().len());
    let owned = |secret: &Secret| {
        secret.owner_references().iter().any(|owner| Some(&owner.uid) == billing.metadata.uid.as_ref())
    };
    custody.ns.patch::<MailCredential>("billing", json!({"spec": {"secret": {"deletionPolicy": "Retain"}}})).await;
    custody.ns.until::<Secret>("billing-grant", "it would outlive the credential", |grant| !owned(grant)).await;
    custody.ns.patch::<MailCredential>("billing", json!({"spec": {"secret": {"deletionPolicy": "Delete"}}})).await;
    custody.ns.until::<Secret>("billing-grant", "it goes with the credential", owned).await;
    assert_eq!((custody.kept().await, custody.idp.token_requests().len()), (kept, requests));
}

#[tokio::test]
async fn a_foreign_secret_of_the_grants_name_is_left_alone_and_made_way_for_when_it_goes() {
    let custody = Custody::new().await;
    custody.ns.apply(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "billing-grant"}, "stringData": {"a": "b"}})).await;
    let before = custody.grant().await;
    custody.seed().await;
    custody.ns.apply(by_seed("billing")).await;
    let stalled = custody.ns.condition::<MailCredential>("billing", "Stalled", "SecretConflict").await;
    assert_eq!(custody.grant().await, before);
    assert_eq!(custody.idp.token_requests().len(), 0);
    remedy::run(&custody.ns, &stalled.message, &[]);
    custody.ready().await;
    assert_eq!(custody.grant().await.type_.as_deref(), Some("mailtoken.dev/grant"));
}

#[tokio::test]
async fn a_secret_that_keeps_a_refresh_token_is_no_source() {
    let custody = Custody::new().await;
    custody.issued().await;
    let requests = custody.idp.token_requests().len();
    custody
        .ns
        .patch::<Secret>("billing-grant", json!({"metadata": {"labels": {"mailtoken.dev/source": "true"}}}))
        .await;
    let thief = by_seed("thief").set("spec.grant.refreshToken.secretRef.name", "billing-grant");
    custody.ns.apply(thief).await;
    custody.ns.condition::<MailCredential>("thief", "Ready", "SourceInvalid").await;
    let exchange = json!({"tokenExchange": {
        "subjectToken": {"secretRef": {"name": "billing-grant", "key": "refresh_token"}},
        "subjectTokenType": "urn:ietf:params:oauth:token-type:refresh_token",
    }});
    custody.ns.apply(credential("exchange").set("spec.grant", exchange)).await;
    custody.ns.condition::<MailCredential>("exchange", "Ready", "SourceInvalid").await;
    assert_eq!(custody.idp.token_requests().len(), requests);
}

#[tokio::test]
async fn the_longest_name_has_a_grant_of_its_own() {
    let custody = Custody::new().await;
    let name = "b".repeat(253);
    custody.seed().await;
    let short = json!({"name": "billing"});
    custody.ns.apply(by_seed(&name).set("spec.mailbox.address", "billing@example.org").set("spec.secret", short)).await;
    custody.ns.condition::<MailCredential>(&name, "Ready", "TokenValid").await;
    let grant = names::grant_secret(&name);
    assert!(grant.len() <= 253 && grant.ends_with("-grant"), "{grant}");
    assert!(custody.idp.is_valid(&custody.ns.secret(&grant).await["refresh_token"]));
}

#[tokio::test]
async fn nothing_is_asked_for_while_suspended() {
    let custody = Custody::new().await;
    custody.issued().await;
    let requests = custody.idp.token_requests().len();
    custody.ns.patch::<MailCredential>("billing", json!({"spec": {"suspend": true}})).await;
    custody.ns.condition::<MailCredential>("billing", "Renewed", "Suspended").await;
    custody.ask().await;
    custody.seed().await;
    let (grant, again) = (custody.grant().await, by_seed("another").set("spec.suspend", true));
    custody.ns.apply(again).await;
    custody.ns.condition::<MailCredential>("another", "Renewed", "Suspended").await;
    assert_eq!((custody.idp.token_requests().len(), custody.grant().await), (requests, grant));
    custody.ns.patch::<MailCredential>("billing", json!({"spec": {"suspend": false}})).await;
    custody.ns.condition::<MailCredential>("billing", "Renewed", "RenewalSucceeded").await;
    assert_eq!(custody.idp.reuses(), 0);
}

#[tokio::test]
async fn labels_that_somebody_took_are_put_back() {
    let custody = Custody::new().await;
    custody.issued().await;
    custody.ns.patch::<Secret>("billing-grant", json!({"metadata": {"labels": null}})).await;
    let dressed = |grant: &Secret| grant.labels().get("mailtoken.dev/role").is_some_and(|role| role == "grant");
    custody.ns.until::<Secret>("billing-grant", "its labels are back", dressed).await;
    custody.renew().await;
    assert_eq!(custody.idp.reuses(), 0);
}

#[tokio::test]
async fn a_spoilt_grant_is_told_and_no_spent_seed_is_put_over_it() {
    let custody = Custody::new().await;
    custody.issued().await;
    custody.renew().await;
    let (whole, requests) = (custody.grant().await, custody.idp.token_requests().len());
    let kept = text(&whole, "refresh_token");

    custody.ns.patch::<Secret>("billing-grant", json!({"metadata": {"annotations": null}})).await;
    custody.ask().await;
    let renewed = custody.ns.condition::<MailCredential>("billing", "Renewed", "AuthorizationRequired").await;
    assert!(renewed.message.contains("removed the annotations"), "{}", renewed.message);
    assert!(
        quoted(&renewed.message).iter().any(|command| command.contains("delete secret billing-grant")),
        "{}",
        renewed.message
    );
    assert_eq!(custody.kept().await, kept);

    let annotations = whole.metadata.annotations.clone().unwrap();
    custody.ns.patch::<Secret>("billing-grant", json!({"metadata": {"annotations": annotations}})).await;
    custody.renew().await;
    assert_eq!(custody.idp.token_requests().len(), requests + 1);

    custody.ns.patch::<Secret>("billing-grant", json!({"data": null})).await;
    custody.ask().await;
    let emptied = |billing: &MailCredential| {
        namespace::find(billing, "Renewed").is_some_and(|renewed| renewed.message.contains("emptied"))
    };
    custody.ns.until::<MailCredential>("billing", "it is told that it is empty", emptied).await;
    let billing: MailCredential = custody.ns.get("billing").await;
    assert_eq!(reason(&billing, "Ready"), "TokenValid", "{}", show(&billing));
    assert_eq!((custody.idp.token_requests().len(), custody.idp.reuses()), (requests + 1, 0));
    custody.drop("billing-grant").await;
    custody.seed().await;
    custody.ns.condition::<MailCredential>("billing", "Renewed", "RenewalSucceeded").await;
    assert_eq!(custody.idp.families_revoked(), 0);
}

#[tokio::test]
async fn a_grant_that_was_made_immutable_is_not_exchanged() {
    let custody = Custody::new().await;
    custody.issued().await;
    let (kept, requests) = (custody.kept().await, custody.idp.token_requests().len());
    custody.ns.patch::<Secret>("billing-grant", json!({"immutable": true})).await;
    custody.ask().await;
    let renewed = custody.ns.condition::<MailCredential>("billing", "Renewed", "AuthorizationRequired").await;
    assert!(renewed.message.contains("immutable"), "{}", renewed.message);
    assert_eq!((custody.kept().await, custody.idp.token_requests().len()), (kept, requests));
}

/// The credential `NAME` by the seed in the Secret `SEED`.
fn by_seed_in(name: &str, seed: &str) -> Manifest {
    by_seed(name).set("spec.grant.refreshToken.secretRef.name", seed)
}

#[tokio::test]
async fn two_credentials_never_use_the_same_refresh_token() {
    let custody = Custody::new().await;
    let first = custody.seed().await;
    custody.ns.apply(by_seed("billing")).await;
    custody.ready().await;
    // By the same Secret, as in a rename where the new object comes before the old one goes; and by a copy of the token.
    custody.ns.apply(source("copy", "refresh_token", &first)).await;
    for (name, seed) in [("younger", "seed"), ("copycat", "copy")] {
        custody.ns.apply(by_seed_in(name, seed)).await;
        let stalled = custody.ns.condition::<MailCredential>(name, "Stalled", "SecretConflict").await;
        assert!(stalled.message.contains("MailCredential billing"), "{}", stalled.message);
    }
    custody.renew().await;
    let idp = &custody.idp;
    assert_eq!((idp.families_revoked(), idp.reuses(), idp.presented(&first)), (0, 0, 1));

    // A sign-in of its own ends the conflict.
    let another = idp.refresh_token("mailer", "younger@example.org", "mail");
    custody.ns.apply(source("copy", "refresh_token", &another)).await;
    custody.ns.condition::<MailCredential>("copycat", "Ready", "TokenValid").await;
    assert_eq!((idp.families_revoked(), idp.reuses()), (0, 0));
}

#[tokio::test]
async fn of_two_that_come_at_once_by_one_seed_the_older_uses_it() {
    let custody = Custody::new().await;
    custody.ns.apply(by_seed("older")).await;
    custody.ns.condition::<MailCredential>("older", "Ready", "SourceNotFound").await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    custody.ns.apply(by_seed("a-younger")).await;
    custody.ns.condition::<MailCredential>("a-younger", "Ready", "SourceNotFound").await;
    let first = custody.seed().await;
    custody.ns.condition::<MailCredential>("older", "Ready", "TokenValid").await;
    let stalled = custody.ns.condition::<MailCredential>("a-younger", "Stalled", "SecretConflict").await;
    assert!(stalled.message.contains("MailCredential older"), "{}", stalled.message);
    assert_eq!((custody.idp.families_revoked(), custody.idp.presented(&first)), (0, 1));
}

#[tokio::test]
async fn a_spent_seed_is_not_sent_again_for_what_comes_after_the_credential() {
    let custody = Custody::new().await;
    let first = custody.seed().await;
    custody.ns.apply(by_seed("billing")).await;
    custody.ready().await;
    custody.ns.apply(by_seed("renamed")).await;
    custody.ns.condition::<MailCredential>("renamed", "Stalled", "SecretConflict").await;
    custody.ns.delete::<MailCredential>("billing").await;
    custody.ns.delete::<Secret>("billing-grant").await;
    let stalled = custody.ns.condition::<MailCredential>("renamed", "Stalled", "AuthorizationRequired").await;
    assert!(stalled.message.contains("mail-token-broker login"), "{}", stalled.message);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    custody.ns.delete::<Secret>("billing").await;
    custody.ns.apply(by_seed("billing")).await;
    custody.ns.condition::<MailCredential>("billing", "Stalled", "SecretConflict").await;
    custody.ns.delete::<MailCredential>("renamed").await;
    custody.ns.condition::<MailCredential>("billing", "Stalled", "AuthorizationRequired").await;
    let idp = &custody.idp;
    assert_eq!((idp.families_revoked(), idp.reuses(), idp.presented(&first)), (0, 0, 1));
}

#[tokio::test]
async fn a_foreign_secret_that_comes_during_an_exchange_is_told_of_and_not_written_over_in_a_loop() {
    let custody = Custody::new().await;
    custody.guarded().await;
    custody.issued().await;
    let kept = custody.kept().await;
    custody.seal().await;
    custody.ask().await;
    custody.asked(2).await;
    // The new refresh token cannot be stored, and meanwhile the place is taken.
    let foreign =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "billing-grant"}, "stringData": {"a": "b"}});
    custody.drop("billing-grant").await;
    if custody.ns.try_apply(foreign.clone()).await.is_err() || custody.grant().await.type_.as_deref() != Some("Opaque")
    {
        // The broker was faster: it has stored the token in a Secret of its own.
        custody.rotated(&kept).await;
        return;
    }
    let before = custody.grant().await;
    custody.ns.condition::<MailCredential>("billing", "Renewed", "SecretConflict").await;
    let calls = || custody.verbs("secrets", "billing-grant", &["get", "create", "patch", "delete"]).len();
    let so_far = calls();
    holds(Duration::from_secs(4), "there is no hot loop", async || match calls() - so_far {
        0..20 => Ok(()),
        number => Err(format!("{number} calls")),
    })
    .await;
    assert_eq!(custody.grant().await, before);
    custody.drop("billing-grant").await;
    let stored = custody
        .ns
        .until::<Secret>("billing-grant", "the token is stored", |secret| !text(secret, "refresh_token").is_empty());
    assert!(custody.idp.is_valid(&text(&stored.await, "refresh_token")));
    assert_eq!((custody.idp.families_revoked(), custody.idp.reuses()), (0, 0));
}

#[tokio::test]
async fn a_secret_that_a_provider_refers_to_is_no_persons_token() {
    let custody = Custody::new().await;
    let requests = custody.idp.token_requests().len();
    let thief = by_seed_in("thief", "idp-client").set("spec.grant.refreshToken.secretRef.key", "client-secret");
    custody.ns.apply(thief).await;
    let stalled = custody.ns.condition::<MailCredential>("thief", "Stalled", "SourceInvalid").await;
    assert!(stalled.message.contains("MailProvider idp"), "{}", stalled.message);
    let exchange = json!({"tokenExchange": {
        "subjectToken": {"secretRef": {"name": "idp-client", "key": "client-secret"}},
        "subjectTokenType": "urn:ietf:params:oauth:token-type:access_token",
    }});
    custody.ns.apply(credential("exchange").set("spec.grant", exchange)).await;
    custody.ns.condition::<MailCredential>("exchange", "Ready", "SourceInvalid").await;
    assert_eq!(custody.idp.token_requests().len(), requests);
}

#[tokio::test]
async fn a_source_goes_to_the_hosts_alone_that_its_owner_named() {
    let custody = Custody::new().await;
    const HOSTS: &str = "mailtoken.dev/source-hosts";
    custody.seed().await;
    for secret in ["seed", "idp-client"] {
        custody.ns.annotate::<Secret>(secret, HOSTS, "login.microsoftonline.com").await;
        custody.ns.apply(by_seed("billing")).await;
        let stalled = custody.ns.condition::<MailCredential>("billing", "Stalled", "SourceInvalid").await;
        let told = format!("Secret {}/{secret} does not allow", custody.ns.name);
        assert!(stalled.message.contains(&told) && stalled.message.contains(HOSTS), "{}", stalled.message);
        custody.ns.annotate::<Secret>(secret, HOSTS, "login.microsoftonline.com, localhost").await;
        if secret == "seed" {
            custody.ready().await;
            custody.ns.delete::<MailCredential>("billing").await;
            custody.ns.delete::<Secret>("billing-grant").await;
            custody.ns.delete::<Secret>("billing").await;
            custody.seed().await;
            custody.ns.annotate::<Secret>("seed", HOSTS, "localhost").await;
        }
    }
    custody.ready().await;
}

#[tokio::test]
async fn of_two_secrets_with_one_token_the_older_credential_uses_it_also_if_the_younger_comes_first() {
    let custody = Custody::new().await;
    let first = custody.seed().await;
    custody.ns.apply(source("copy", "refresh_token", &first)).await;
    // The older one has not taken the token over when the younger one is reconciled.
    custody.ns.apply(by_seed_in("a-older", "copy").set("spec.suspend", true)).await;
    custody.ns.condition::<MailCredential>("a-older", "Renewed", "Suspended").await;
    custody.ns.apply(by_seed("b-younger")).await;
    let stalled = custody.ns.condition::<MailCredential>("b-younger", "Stalled", "SecretConflict").await;
    assert!(stalled.message.contains("MailCredential a-older"), "{}", stalled.message);
    assert_eq!(custody.idp.presented(&first), 0);

    custody.ns.patch::<MailCredential>("a-older", json!({"spec": {"suspend": false}})).await;
    custody.ns.condition::<MailCredential>("a-older", "Ready", "TokenValid").await;
    custody.ns.condition::<MailCredential>("b-younger", "Stalled", "SecretConflict").await;
    assert_eq!((custody.idp.families_revoked(), custody.idp.presented(&first)), (0, 1));
}

#[tokio::test]
async fn a_seed_that_is_replaced_while_it_is_read_is_taken_over_too() {
    let api = ApiProxy::start(&Cluster::shared());
    let custody = Custody::with(|settings| settings.flag("--leader-elect=false").kubeconfig(&api.kubeconfig())).await;
    let first = custody.seed().await;
    custody.ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    // The seed is read for the decision, and then for the claim, whose answer comes late.
    api.next(1, "GET", "/secrets/seed", Trouble::None);
    api.next(usize::MAX, "GET", "/secrets/seed", Trouble::Late);
    custody.ns.apply(by_seed("billing")).await;
    let late = api.late(1).await;
    let second = custody.seed().await;
    // The watch has shown that: the credential is reconciled again, and reads the seed.
    api.late(late + 1).await;
    api.calm();
    api.release();
    until("the other seed is used", async || match custody.idp.presented(&second) {
        1 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    custody.ready().await;
    assert_eq!((custody.idp.presented(&first), custody.idp.families_revoked()), (1, 0));
}
