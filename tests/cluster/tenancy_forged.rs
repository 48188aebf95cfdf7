//! Objects that a user has forged to look like the broker's own: they harm no other namespace, and the broker sends
//! nothing to another server because of them.

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_testkit::{idp::DEVICE, *};
use serde_json::{Value, json};

/// The last second that Kubernetes and the broker can format.
const END_OF_TIME: &str = "9999-12-30T22:00:00Z";

/// Returns a Secret that looks like the broker's Secret for this credential.
fn forged(name: &str, credential: &str, annotations: Value, data: Value) -> Manifest {
    let annotations: Value = annotations
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| (format!("mailtoken.dev/{key}"), value.clone()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    Manifest(json!({
        "apiVersion": "v1", "kind": "Secret", "stringData": data,
        "metadata": {"name": name, "annotations": annotations, "labels": {
            "app.kubernetes.io/managed-by": "mail-token-broker", "mailtoken.dev/credential": credential,
        }},
    }))
}

/// Returns a grant Secret whose content the broker would never write.
fn forged_grant(credential: &str) -> Manifest {
    let claim = json!({"holder": "another", "since": END_OF_TIME, "until": END_OF_TIME, "token": "x"});
    let sign_in = json!({
        "userCode": "AAAA", "verificationUri": "https://evil.example.org", "expiresAt": END_OF_TIME, "interval": i64::MAX,
        "shownAt": END_OF_TIME, "beganAt": END_OF_TIME, "askedFor": "x", "askedBy": "x",
    });
    let annotations = json!({
        "fingerprint": "x", "issued-for": "x", "obtained-at": END_OF_TIME, "last-used-at": END_OF_TIME,
        "expires-at": END_OF_TIME, "rotations": i64::MAX.to_string(), "seed": "{\"hash\":\"x\",\"version\":\"1\"}",
        "claim": claim.to_string(), "sign-in": sign_in.to_string(),
    });
    let data = json!({"refresh_token": "canary-forged", "previous_refresh_token": "canary-forged", "device_code": "canary-forged"});
    let grant = forged(&format!("{credential}-grant"), credential, annotations, data);
    grant.entry("metadata.labels", "mailtoken.dev/role", "grant").set("type", "mailtoken.dev/grant")
}

fn forged_target(credential: &str) -> Manifest {
    let annotations = json!({
        "issued-at": "1970-01-01T00:00:00Z", "expires-at": END_OF_TIME, "refresh-at": "-009999-01-02T01:59:59Z",
        "fingerprint": "sha256:c760e862714ef35e", "issued-for": "x", "layout": "x", "scopes": "x", "handled-reissue": "1",
        "applied": "{\"labels\":[\"app.kubernetes.io/managed-by\"],\"annotations\":[\"mailtoken.dev/expires-at\"]}",
    });
    forged(credential, credential, annotations, json!({"access_token": "canary-forged"}))
}

/// Checks that no step of the broker panicked because of the objects.
fn sane(broker: &Broker) {
    let log = broker.log();
    let reported = log.lines().find(|line| line.contains("panic"));
    assert_eq!(reported, None);
}

#[tokio::test]
async fn forged_secrets_with_dates_at_the_end_of_time_do_no_harm() {
    let mut tenants = Tenants::new(|settings| settings).await;
    let (attacker, hostile_ns) = (&tenants.attacker, &tenants.hostile_ns);
    let provider = tenants.provider("own").set("spec.oauth2.deviceAuthorizationURL", tenants.evil.url(DEVICE));
    attacker.apply(provider).await;
    attacker.apply(source("seed", "k", "canary-seed-of-the-attacker")).await;
    let seed = json!({"refreshToken": {"secretRef": {"name": "seed", "key": "k"}}});
    let grants = [("plain", json!({"clientCredentials": {}})), ("seeded", seed), ("code", json!({"deviceCode": {}}))];
    for (name, grant) in grants {
        attacker.apply(forged_target(name)).await;
        attacker.apply(forged_grant(name)).await;
        attacker.apply(credential(name).set("spec.providerRef.name", "own").set("spec.grant", grant)).await;
    }
    hostile_ns.condition::<MailCredential>("plain", "Ready", "TokenValid").await;
    let mended =
        |secret: &Secret| text(secret, "access_token") != "canary-forged" && secret.metadata.owner_references.is_some();
    hostile_ns.until::<Secret>("plain", "the forgery is replaced", mended).await;
    for name in ["seeded", "code"] {
        let seen =
            |found: &MailCredential| field(found, "/status/observedGeneration") == field(found, "/metadata/generation");
        hostile_ns.until::<MailCredential>(name, "it was checked", seen).await;
        attacker.delete::<Secret>(&format!("{name}-grant")).await;
        attacker.annotate::<MailCredential>(name, "mailtoken.dev/reissue", "1").await;
    }
    hostile_ns.condition::<MailCredential>("seeded", "Ready", "TokenValid").await;
    hostile_ns.condition::<MailCredential>("code", "Ready", "AuthorizationRequired").await;

    // Write the same dates into Secrets that the broker itself has written, one after the other.
    tenants.evil.answer(Answer::token(3600).rotating());
    for name in ["plain", "seeded", "plain-grant", "seeded-grant", "code-grant"] {
        attacker.annotate::<Secret>(name, "mailtoken.dev/rotations", &i64::MAX.to_string()).await;
        for date in ["last-used-at", "expires-at", "refresh-at", "issued-at", "obtained-at"] {
            for time in [END_OF_TIME, "-009999-01-02T01:59:59Z"] {
                attacker.annotate::<Secret>(name, &format!("mailtoken.dev/{date}"), time).await;
            }
        }
    }
    attacker.delete::<Secret>("seeded-grant").await;
    for name in ["plain", "seeded"] {
        attacker.annotate::<MailCredential>(name, "mailtoken.dev/reissue", "2").await;
        let answered = |found: &MailCredential| field(found, "/status/lastHandledReissue") == "2";
        hostile_ns.until::<MailCredential>(name, "the reissue is answered", answered).await;
        hostile_ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
    }
    sane(&tenants.broker);
    tenants.unharmed().await;
}

#[tokio::test]
async fn a_forged_status_deletes_nothing_and_is_repaired() {
    let mut tenants = Tenants::new(|settings| settings).await;
    let (attacker, hostile_ns) = (&tenants.attacker, &tenants.hostile_ns);
    attacker.apply(tenants.provider("own")).await;
    let own = |name: &str| credential(name).set("spec.providerRef.name", "own");
    for name in ["mine", "theirs"] {
        attacker.apply(own(name)).await;
        hostile_ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
    }
    hostile_ns.apply(source("crown", "k", "of another user")).await;
    hostile_ns.apply(forged_grant("theirs")).await;
    hostile_ns.apply(forged("made-up", "theirs", json!({}), json!({"k": "v"}))).await;
    let names = ["crown", "theirs", "theirs-grant", "made-up", "idp-client", "absent"];
    let mut before = vec![];
    for name in names {
        before.push(hostile_ns.api::<Secret>().get_opt(name).await.unwrap());
    }
    let version = |secret: &Secret| secret.metadata.resource_version.clone();
    for (number, name) in names.into_iter().enumerate() {
        let status = json!({"status": {
            "secretName": name, "secretResourceVersion": before[number].as_ref().and_then(version),
            "failedAttempts": i32::MAX, "nextAttemptTime": END_OF_TIME, "lastFailureTime": END_OF_TIME, "failedWith": "x",
            "token": {"issuedAt": END_OF_TIME, "expiresAt": END_OF_TIME, "renewalTime": END_OF_TIME, "fingerprint": "x", "length": i64::MAX},
            "grant": {"obtainedAt": END_OF_TIME, "lastUsedAt": END_OF_TIME, "expiresAt": END_OF_TIME, "rotations": i64::MAX},
            "lastHandledReissue": "x", "conditions": [],
        }});
        let api = hostile_ns.api::<MailCredential>();
        api.patch_status("mine", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        hostile_ns
            .until::<MailCredential>("mine", "the status is repaired", |found| {
                field(found, "/status/secretName") == "mine" && field(found, "/status/token/length") != i64::MAX
            })
            .await;
        hostile_ns.condition::<MailCredential>("mine", "Ready", "TokenValid").await;
    }
    attacker.annotate::<MailCredential>("mine", "mailtoken.dev/reissue", "1").await;
    let answered = |found: &MailCredential| field(found, "/status/lastHandledReissue") == "1";
    hostile_ns.until::<MailCredential>("mine", "it is served as anybody", answered).await;
    for (name, before) in names.into_iter().zip(before) {
        assert_eq!(hostile_ns.api::<Secret>().get_opt(name).await.unwrap(), before, "{name}");
    }
    sane(&tenants.broker);
    tenants.unharmed().await;
}

#[tokio::test]
async fn a_forged_expiry_lengthens_no_life_with_or_without_the_provider() {
    let mut tenants = Tenants::new(|settings| settings).await;
    let (attacker, hostile_ns) = (&tenants.attacker, &tenants.hostile_ns);
    const LATE: &str = "2036-01-01T00:00:00Z";
    let forgery = json!({
        "metadata": {"annotations": {"mailtoken.dev/expires-at": LATE}},
        "stringData": {"expires_at": LATE, "expires_at_unix": "2082758400"},
    });
    for name in ["down", "gone"] {
        attacker.apply(tenants.provider(name)).await;
        tenants.evil.next(Answer::token(20));
        let own = credential(name).set("spec.providerRef.name", name).set("spec.renewal.renewBefore", "1s");
        attacker.apply(own).await;
        hostile_ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
        let before: MailCredential = hostile_ns.get(name).await;
        let end = field(&before, "/status/token/expiresAt");
        match name {
            "down" => tenants.evil.answer(Answer::status(503)),
            _ => attacker.delete::<mail_token_broker::api::MailProvider>(name).await,
        }
        attacker.patch::<Secret>(name, forgery.clone()).await;
        if name == "down" {
            let mended = |secret: &Secret| {
                text(secret, "expires_at") == end.as_str().unwrap()
                    && field(secret, "/metadata/annotations/mailtoken.dev~1expires-at") == end
            };
            hostile_ns.until::<Secret>(name, "the forgery is replaced while the provider is down", mended).await;
        }
        let expired = hostile_ns.condition::<MailCredential>(name, "Ready", "Expired").await;
        let late = expired.last_transition_time.0.as_second()
            - end.as_str().unwrap().parse::<k8s_openapi::jiff::Timestamp>().unwrap().as_second();
        assert!((0..=5).contains(&late), "{late} s after the end");
        tenants.evil.answer(Answer::token(3600));
    }
    // The broker obtains a new token as soon as the provider works again.
    attacker.apply(tenants.provider("gone")).await;
    for name in ["down", "gone"] {
        hostile_ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
    }
    sane(&tenants.broker);
    tenants.unharmed().await;
}

#[tokio::test]
async fn forged_owners_take_nothing_over_in_another_namespace() {
    let mut tenants = Tenants::new(|settings| settings).await;
    let (attacker, hostile_ns, shop) = (&tenants.attacker, &tenants.hostile_ns, &tenants.shop);
    let theirs: MailCredential = shop.get("billing").await;
    let owner = |uid: &str| {
        json!([{
            "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailCredential", "name": "billing", "uid": uid, "controller": true,
        }])
    };
    let theirs = owner(theirs.metadata.uid.as_deref().unwrap());
    attacker.apply(tenants.provider("own")).await;
    // A Secret, its grant Secret, a credential and a provider have the shop's credential as owner.
    attacker.apply(forged_target("billing").set("metadata.ownerReferences", theirs.clone())).await;
    attacker.apply(forged_grant("billing").set("metadata.ownerReferences", theirs.clone())).await;
    attacker.apply(tenants.provider("idp").set("metadata.ownerReferences", theirs.clone())).await;
    let mine = credential("billing").set("spec.revocationPolicy", "OnDelete").set("metadata.ownerReferences", theirs);
    attacker.apply(mine.set("spec.providerRef.name", "own")).await;
    hostile_ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    assert_eq!(tenants.evil.token_requests().len(), 1);
    attacker.delete::<MailCredential>("billing").await;
    // The owner of this Secret never existed.
    attacker
        .apply(forged_target("gone").set("metadata.ownerReferences", owner("00000000-0000-0000-0000-000000000000")))
        .await;
    attacker.apply(credential("gone").set("spec.providerRef.name", "own")).await;
    hostile_ns.condition::<MailCredential>("gone", "Ready", "TokenValid").await;
    sane(&tenants.broker);
    tenants.unharmed().await;
}

#[tokio::test]
async fn a_credential_that_names_anothers_secret_gets_none_and_destroys_none() {
    let mut tenants = Tenants::new(|settings| settings).await;
    let (attacker, hostile_ns) = (&tenants.attacker, &tenants.hostile_ns);
    attacker.apply(tenants.provider("own")).await;
    let own = |name: &str| credential(name).set("spec.providerRef.name", "own");
    attacker.apply(source("seed", "k", "canary-seed-of-the-attacker")).await;
    let seed = json!({"refreshToken": {"secretRef": {"name": "seed", "key": "k"}}});
    tenants.evil.answer(Answer::token(3600).rotating());
    attacker.apply(own("other").set("spec.grant", seed)).await;
    hostile_ns.condition::<MailCredential>("other", "Ready", "TokenValid").await;
    hostile_ns.apply(source("crown", "k", "of another user").set("type", "example.org/of-another-kind")).await;
    let names = ["other-grant", "other", "seed", "crown"];
    let mut before = vec![];
    for name in names {
        before.push(hostile_ns.get::<Secret>(name).await);
    }
    // If two credentials were created in the same second, the uid decides which of them owns a Secret.
    let made = hostile_ns.get::<MailCredential>("other").await.metadata.creation_timestamp.unwrap().0;
    let next_second = async || (wait::now().as_second() > made.as_second()).then_some(()).ok_or_else(String::new);
    until("the next second", next_second).await;
    attacker.apply(own("mine")).await;
    hostile_ns.condition::<MailCredential>("mine", "Ready", "TokenValid").await;
    let grant = attacker.try_apply(own("mine").set("spec.secret.name", "other-grant")).await;
    assert!(grant.unwrap_err().to_string().contains("must not end in -grant"));
    for name in names.into_iter().filter(|name| *name != "other-grant") {
        attacker.apply(own("mine").set("spec.secret.name", name)).await;
        hostile_ns.condition::<MailCredential>("mine", "Stalled", "SecretConflict").await;
    }
    attacker.apply(own("mine").set("spec.secret.name", "renamed")).await;
    hostile_ns.condition::<MailCredential>("mine", "Ready", "TokenValid").await;
    hostile_ns.gone::<Secret>("mine").await;
    attacker.delete::<MailCredential>("mine").await;
    for (name, before) in names.into_iter().zip(before) {
        assert_eq!(hostile_ns.get::<Secret>(name).await, before, "{name}");
    }
    tenants.unharmed().await;
}

#[tokio::test]
async fn a_target_that_kubernetes_would_fill_with_an_identity_is_replaced() {
    let mut tenants = Tenants::new(|settings| settings).await;
    let (attacker, hostile_ns) = (&tenants.attacker, &tenants.hostile_ns);
    attacker.apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "admin"}})).await;
    attacker.apply(tenants.provider("own")).await;
    const ACCOUNT: &str = "kubernetes.io/service-account.name";
    const TYPE: &str = "kubernetes.io/service-account-token";
    attacker.apply(forged_target("mine").entry("metadata.annotations", ACCOUNT, "admin").set("type", TYPE)).await;
    let asked = credential("mine").set("spec.providerRef.name", "own");
    attacker.apply(asked.clone().entry("spec.secret.annotations", ACCOUNT, "admin")).await;
    hostile_ns.condition::<MailCredential>("mine", "Ready", "TokenValid").await;
    hostile_ns
        .until::<Secret>("mine", "it is of no kind of Kubernetes'", |secret| secret.type_.as_deref() == Some("Opaque"))
        .await;
    for path in ["spec.secret.type", "spec.secret.immutable", "spec.secret.namespace"] {
        assert!(attacker.try_apply(asked.clone().set(path, TYPE)).await.is_err(), "{path}");
    }
    tenants.unharmed().await;
}

#[tokio::test]
async fn forged_secrets_of_a_quarter_megabyte_and_hundreds_of_providers_cost_little_memory() {
    const SECRETS: usize = 80;
    const PROVIDERS: usize = 100;
    let mut fixture = Fixture::new().await;
    fixture.mark("before").await;
    let descriptors = |broker: &Broker| std::fs::read_dir(format!("/proc/{}/fd", broker.id())).unwrap().count();
    let open = descriptors(&fixture.broker);
    let fat = "x".repeat(240 << 10);
    for number in 0..SECRETS {
        let name = format!("forged-{number}");
        let secret = forged(&name, "nobody", json!({"layout": fat}), json!({}));
        let secret = match number % 2 {
            0 => secret,
            _ => secret.entry("metadata.labels", "mailtoken.dev/source", "true"),
        };
        fixture.ns.apply(secret).await;
    }
    for number in 0..PROVIDERS {
        let provider = provider(&fixture.idp).set("metadata.name", format!("p-{number}"));
        fixture.ns.apply(provider.set("spec.caBundleRef.configMap.name", format!("absent-{number}"))).await;
    }
    for number in 0..PROVIDERS {
        fixture.ns.condition::<MailProvider>(&format!("p-{number}"), "Ready", "SourceNotFound").await;
    }
    let more = descriptors(&fixture.broker).saturating_sub(open);
    assert!(more < 20, "{more} more file descriptors for {PROVIDERS} unused providers");
    // At a start the broker lists all of these objects.
    fixture.broker.terminate().await;
    fixture.broker.again().await;
    fixture.mark("after").await;
    let resident = fixture.broker.memory("VmHWM") >> 20;
    println!("{SECRETS} forged Secrets of 240 KiB: {resident} MiB at most");
    assert!(resident < 96, "{resident} MiB");
}

/// At a start the broker lists all credentials, in pages.
#[tokio::test]
async fn credentials_with_a_megabyte_of_labels_cost_a_start_little_memory() {
    const CREDENTIALS: usize = 60;
    const LABELS: usize = 10_000;
    let mut fixture = Fixture::new().await;
    fixture.mark("before").await;
    fixture.broker.terminate().await;
    let labels: Value = (0..LABELS)
        .map(|number| (format!("example.org/{number}"), Value::from("x".repeat(63))))
        .collect::<serde_json::Map<_, _>>()
        .into();
    for number in 0..CREDENTIALS {
        let fat = credential(&format!("fat-{number}")).set("spec.suspend", true).set("metadata.labels", labels.clone());
        fixture.ns.apply(fat).await;
    }
    fixture.broker.again().await;
    fixture.mark("after").await;
    let resident = fixture.broker.memory("VmHWM") >> 20;
    println!("{CREDENTIALS} credentials with {LABELS} labels: {resident} MiB at most");
    assert!(resident < 112, "{resident} MiB");
}
