//! Attacks by a user with all rights of an editor in their own namespace: to obtain a Secret of another namespace, the
//! identity of the broker, or a mailbox that the administrator did not allow.

use std::{fs, path::Path};

use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    core::v1::{Namespace as CoreNamespace, Secret},
};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use mail_token_broker::api::{ClusterMailProvider, MailCredential, MailProvider};
use mailtoken_testkit::{idp::DEVICE, tenants::OF_THE_ADMIN, *};
use rcgen::KeyPair;
use serde_json::{Value, json};

/// The fields that name another object, each with an object that is complete except for that name.
fn references(tenants: &Tenants) -> Vec<(&'static str, Manifest)> {
    let key = || json!({"name": "", "key": "k"});
    let client =
        |authentication: Value| tenants.provider("p").set("spec.client.authentication", json!([authentication]));
    let bundle = |reference: Value| tenants.provider("p").set("spec.caBundleRef", reference);
    let grant = |grant: Value| credential("c").set("spec.grant", grant);
    let signed = json!({"privateKeyJWT": {"keyRef": {"name": "k", "key": "k"}, "certificateRef": key()}});
    let vouched = json!({"serviceAccountToken": {"audience": "a", "serviceAccountRef": {"name": ""}}});
    let google = client(json!({"serviceAccountKey": {"secretRef": key()}}));
    let authentication = "spec.client.authentication.0";
    let at = |field: &str| -> &'static str { format!("{authentication}.{field}").leak() };
    vec![
        (at("clientSecret.secretRef"), client(json!({"clientSecret": {"secretRef": key()}}))),
        (at("privateKeyJWT.keyRef"), client(json!({"privateKeyJWT": {"keyRef": key()}}))),
        (at("privateKeyJWT.certificateRef"), client(signed)),
        (at("serviceAccountToken.serviceAccountRef"), client(vouched)),
        (at("serviceAccountKey.secretRef"), google.without("spec.oauth2").set("spec.google", json!({}))),
        ("spec.caBundleRef.configMap", bundle(json!({"configMap": key()}))),
        ("spec.caBundleRef.secret", bundle(json!({"secret": key()}))),
        ("spec.providerRef", credential("c")),
        ("spec.grant.refreshToken.secretRef", grant(json!({"refreshToken": {"secretRef": key()}}))),
        (
            "spec.grant.tokenExchange.subjectToken.secretRef",
            grant(json!({"tokenExchange": {"subjectToken": {"secretRef": key()}}})),
        ),
        ("spec.secret", credential("c")),
    ]
}

#[tokio::test]
async fn no_name_leads_out_of_the_namespace() {
    let mut tenants = Tenants::new(|settings| settings).await;
    let shop = tenants.shop.name.clone();
    for (field, manifest) in references(&tenants) {
        let name = format!("{field}.name");
        let good = tenants.attacker.try_apply(manifest.clone().set(&name, "idp-client")).await;
        good.unwrap_or_else(|error| panic!("{field}: {error}"));
        for bad in [
            format!("../{shop}/secrets/idp-client"),
            format!("../../namespaces/{shop}/secrets/idp-client"),
            format!("{shop}/idp-client"),
            "idp-client/../idp-client".to_owned(),
            "..".to_owned(),
            "idp-client%2F..".to_owned(),
            "idp-client?watch=1".to_owned(),
            "idp-client#".to_owned(),
            "idp-client\n".to_owned(),
            String::new(),
        ] {
            let refusal = tenants.attacker.try_apply(manifest.clone().set(&name, bad.as_str())).await.unwrap_err();
            assert!(refusal.to_string().contains("Invalid"), "{field} {bad:?}: {refusal}");
        }
        let elsewhere = manifest.set(&name, "idp-client").set(&format!("{field}.namespace"), shop.as_str());
        let refusal = tenants.attacker.try_apply(elsewhere).await.unwrap_err().to_string();
        assert!(refusal.contains("namespace"), "{field}: {refusal}");
    }
    tenants.unharmed().await;
}

#[tokio::test]
async fn a_name_that_exists_in_other_namespaces_is_read_only_in_its_own() {
    let mut tenants = Tenants::new(|settings| settings).await;
    let (attacker, hostile_ns) = (&tenants.attacker, &tenants.hostile_ns);
    let secret = json!([{"clientSecret": {"secretRef": {"name": "idp-client", "key": "client-secret"}}}]);
    attacker.apply(tenants.provider("secret").set("spec.client.authentication", secret)).await;
    attacker.apply(tenants.provider("bundle").set("spec.caBundleRef.configMap.name", "idp-ca")).await;
    attacker.apply(tenants.provider("good")).await;
    for name in ["secret", "bundle"] {
        attacker.apply(credential(name).set("spec.providerRef.name", name)).await;
        hostile_ns.condition::<MailProvider>(name, "Ready", "SourceNotFound").await;
    }
    let seed = json!({"refreshToken": {"secretRef": {"name": "idp-client", "key": "client-secret"}}});
    attacker.apply(credential("seed").set("spec.providerRef.name", "good").set("spec.grant", seed)).await;
    hostile_ns.condition::<MailCredential>("seed", "Ready", "SourceNotFound").await;
    attacker.apply(credential("provider")).await;
    hostile_ns.condition::<MailCredential>("provider", "Ready", "ProviderNotFound").await;
    assert_eq!(tenants.evil.requests().len(), 0);
    tenants.unharmed().await;
}

#[tokio::test]
async fn no_field_sends_a_secret_without_the_label() {
    let mut tenants = Tenants::new(|settings| settings).await;
    let (attacker, hostile_ns) = (&tenants.attacker, &tenants.hostile_ns);
    let plain = source("plain", "k", "canary-that-nobody-labelled").set("metadata.labels", json!({}));
    hostile_ns.apply(plain.clone()).await;
    attacker.apply(tenants.provider("good")).await;
    for (number, (field, manifest)) in references(&tenants).into_iter().enumerate() {
        let of_a_secret = field.ends_with("ecretRef") || field.ends_with("eyRef") || field.ends_with("Ref.secret");
        if !of_a_secret {
            continue;
        }
        let name = format!("n{number}");
        let manifest = manifest.set("metadata.name", name.as_str()).set(&format!("{field}.name"), "plain");
        if manifest.0["kind"] == "MailCredential" {
            attacker.apply(manifest.set("spec.providerRef.name", "good")).await;
            hostile_ns.condition::<MailCredential>(&name, "Ready", "SourceNotLabeled").await;
        } else {
            attacker.apply(manifest).await;
            attacker.apply(credential(&name).set("spec.providerRef.name", name.as_str())).await;
            hostile_ns.condition::<MailProvider>(&name, "Ready", "SourceNotLabeled").await;
        }
    }
    // A label that is similar to the source label does not allow a read.
    let secret = json!([{"clientSecret": {"secretRef": {"name": "near", "key": "k"}}}]);
    attacker.apply(tenants.provider("near").set("spec.client.authentication", secret)).await;
    let label = "mailtoken.dev/source";
    let near = plain.set("metadata.name", "near").entry("metadata.annotations", label, "true");
    for (key, value) in [(label, "True"), (label, ""), (label, "yes"), ("x.mailtoken.dev/source", "true")] {
        hostile_ns.apply(near.clone().entry("metadata.labels", key, value)).await;
        attacker.annotate::<MailProvider>("near", "tried", &format!("{key}={value}")).await;
        hostile_ns.condition::<MailProvider>("near", "Ready", "SourceNotLabeled").await;
    }
    assert_eq!(tenants.evil.requests().len(), 0);
    tenants.unharmed().await;
}

#[tokio::test]
async fn the_admins_provider_gives_no_mailbox_grant_or_scope_that_the_admin_did_not_allow() {
    let mut tenants = Tenants::new(|settings| settings).await;
    let (attacker, hostile_ns, idp) = (&tenants.attacker, &tenants.hostile_ns, &tenants.idp);
    tenants.home.apply(source("signing", "key", &KeyPair::generate().unwrap().serialize_pem())).await;
    let key = json!({"keyRef": {"name": "signing", "key": "key"}, "algorithm": "ES256"});
    let able = json!({"spec": {
        "oauth2": {"deviceAuthorizationURL": idp.url(DEVICE)},
        "client": {"authentication": [{"privateKeyJWT": key}]},
    }});
    let admins: Api<ClusterMailProvider> = Api::all(hostile_ns.client.clone());
    admins.patch(&tenants.home.name, &PatchParams::default(), &Patch::Merge(able)).await.unwrap();
    let before = idp.requests().len();
    for (number, address) in [
        "ceo@example.org",
        "CEO@Example.ORG",
        "xbilling@example.org",
        "billing@sub.example.org",
        "billing@example.org.evil.example",
        "billing@evil-example.org",
        "billing+ceo@example.org",
        "team-a@example.net",
        "team-@example.organisation",
        "ateam-a@example.org",
        "*@example.org",
        "billing/ceo@example.org",
        "b\u{131}lling@example.org",
        "billing@ex\u{e4}mple.org",
        "billin\u{ff47}@example.org",
        "\u{212a}@example.org",
    ]
    .into_iter()
    .enumerate()
    {
        for (field, other) in [("address", "authenticateAs"), ("authenticateAs", "address")] {
            let name = format!("m{number}-{}", field.to_lowercase());
            let manifest =
                tenants.by_the_admins(&name).set("spec.mailbox", json!({field: address, other: "billing@example.org"}));
            attacker.apply(manifest).await;
            hostile_ns.condition::<MailCredential>(&name, "Stalled", "NotAllowed").await;
        }
    }
    for protocol in ["smtp", "imap", "pop3"] {
        let mailbox = json!({"address": "billing@example.org", "usernames": {protocol: "ceo@example.org"}});
        attacker.apply(tenants.by_the_admins(&format!("user-{protocol}")).set("spec.mailbox", mailbox)).await;
        hostile_ns.condition::<MailCredential>(&format!("user-{protocol}"), "Stalled", "NotAllowed").await;
    }
    for address in [
        "billing@example.org.",
        "billing@example.org\r\n",
        "billing@example.org\0",
        "billing@example.org ",
        "billing@example.org,ceo@example.org",
        "ceo@evil@example.org",
        "\"ceo@example.org\"@example.org",
        "billing\u{1}auth=Bearer@example.org",
        "@example.org",
        "billing@[127.0.0.1]",
    ] {
        for field in ["address", "authenticateAs"] {
            let manifest = tenants.by_the_admins("refused").set("spec.mailbox.address", "billing@example.org");
            let tried = attacker.try_apply(manifest.set(&format!("spec.mailbox.{field}"), address)).await;
            assert!(tried.is_err(), "{field} {address:?}");
        }
    }
    let ceo = |name: &str| tenants.by_the_admins(name).set("spec.mailbox.address", "ceo@example.org");
    let subject = json!({"tokenExchange": {"subjectToken": {"secretRef": {"name": "s", "key": "k"}}}});
    for (name, grant) in [("jwt", json!({"jwtBearer": {}})), ("code", json!({"deviceCode": {}})), ("exchange", subject)]
    {
        attacker.apply(ceo(name).set("spec.grant", grant)).await;
        hostile_ns.condition::<MailCredential>(name, "Stalled", "NotAllowed").await;
    }
    let scoped = tenants.by_the_admins("scope").set("spec.mailbox.address", "billing@example.org");
    for scopes in [json!(["mail.send", "admin"]), json!(["MAIL.SEND"]), json!(["mail.send/"])] {
        attacker.apply(scoped.clone().set("spec.scopes", scopes)).await;
        hostile_ns.condition::<MailCredential>("scope", "Stalled", "NotAllowed").await;
    }
    assert_eq!(idp.requests().len(), before, "nothing was asked for");

    // The credential gets the token for the allowed mailbox, and no other token under its name.
    attacker.apply(tenants.by_the_admins("team-a").set("spec.mailbox.address", "Team-A@example.org")).await;
    hostile_ns.condition::<MailCredential>("team-a", "Ready", "TokenValid").await;
    attacker.patch::<MailCredential>("team-a", json!({"spec": {"mailbox": {"address": "ceo@example.org"}}})).await;
    hostile_ns.condition::<MailCredential>("team-a", "Stalled", "NotAllowed").await;
    assert_eq!(hostile_ns.secret("team-a").await["username"], "Team-A@example.org");
    assert_eq!(idp.requests().len(), before + 1);
    tenants.unharmed().await;
}

#[tokio::test]
async fn the_rights_of_an_editor_change_no_rule() {
    let mut tenants = Tenants::new(|settings| settings).await;
    let Tenants { attacker, home, shop, .. } = &tenants;
    let forbidden = |what: &str, tried: Result<(), kube::Error>| match tried {
        Err(kube::Error::Api(status)) if status.code == 403 => {}
        other => panic!("{what}: {other:?}"),
    };
    let everything = json!([{"namespaceSelector": {}, "mailboxes": ["*@*"]}]);
    let mine = tenants.provider("mine").set("kind", "ClusterMailProvider").set("spec.allowed", everything.clone());
    forbidden("a provider of the cluster", attacker.try_apply(mine).await.map(drop));
    let (client, params) = (|| attacker.client.clone(), PatchParams::default());
    let allow = Patch::Merge(json!({"spec": {"allowed": everything}}));
    let admins: Api<ClusterMailProvider> = Api::all(client());
    forbidden("the admin's provider", admins.patch(&home.name, &params, &allow).await.map(drop));
    let label = Patch::Merge(json!({"metadata": {"labels": {"mail": "yes"}}}));
    let namespaces: Api<CoreNamespace> = Api::all(client());
    forbidden("the own namespace's labels", namespaces.patch(&attacker.name, &params, &label).await.map(drop));

    attacker.apply(tenants.provider("own")).await;
    attacker.apply(credential("own").set("spec.providerRef.name", "own")).await;
    let ready = Patch::Merge(json!({"status": {"secretName": "another"}}));
    let credentials = attacker.api::<MailCredential>();
    forbidden("a credential's status", credentials.patch_status("own", &params, &ready).await.map(drop));
    let providers = attacker.api::<MailProvider>();
    forbidden("a provider's status", providers.patch_status("own", &params, &ready).await.map(drop));

    for ns in [home, shop] {
        let secrets: Api<Secret> = Api::namespaced(client(), &ns.name);
        forbidden("others' Secrets", secrets.get("idp-client").await.map(drop));
        let there = Namespace { name: ns.name.clone(), cluster: ns.cluster.clone(), client: client() };
        forbidden("others' credentials", there.try_apply(credential("mine")).await.map(drop));
        forbidden("others' providers", there.try_apply(tenants.provider("idp")).await.map(drop));
    }
    tenants.unharmed().await;
}

#[tokio::test]
async fn a_provider_of_the_same_name_gets_nothing_that_is_the_admins() {
    let mut tenants = Tenants::new(|settings| settings).await;
    let (attacker, hostile_ns, name) = (&tenants.attacker, &tenants.hostile_ns, tenants.home.name.clone());
    attacker.apply(tenants.by_the_admins("billing")).await;
    hostile_ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    attacker.apply(source("idp-client", "client-secret", "the attacker's own")).await;
    let own = json!([{"clientSecret": {"secretRef": {"name": "idp-client", "key": "client-secret"}}}]);
    attacker.apply(tenants.provider(&name).set("spec.client.authentication", own)).await;
    attacker.apply(credential("own").set("spec.providerRef.name", name.as_str())).await;
    hostile_ns.condition::<MailCredential>("own", "Ready", "TokenValid").await;
    attacker.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    let theirs = tenants.idp.token_requests_reach(3).await;
    let secrets: Vec<_> = theirs.iter().map(|request| request.form()["client_secret"].clone()).collect();
    assert_eq!(secrets[1..], [OF_THE_ADMIN, OF_THE_ADMIN]);
    let mine = tenants.evil.token_requests();
    assert_eq!(mine.len(), 1);
    assert_eq!(mine[0].form()["client_secret"], "the attacker's own");

    // One credential changes its provider several times.
    for kind in ["MailProvider", "ClusterMailProvider", "MailProvider"] {
        attacker.patch::<MailCredential>("billing", json!({"spec": {"providerRef": {"kind": kind}}})).await;
        hostile_ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    }
    tenants.unharmed().await;
}

/// Returns the user as whom the API server authenticates the bearer of a token.
async fn login(cluster: &Cluster, token: &str) -> kube::Result<SelfSubjectReview> {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.auth_info = Default::default();
    config.auth_info.token = Some(token.to_owned().into());
    let reviews: Api<SelfSubjectReview> = Api::all(Client::try_from(config).unwrap());
    reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await
}

#[tokio::test]
async fn a_tenants_server_gets_only_the_tenants_identity_and_that_is_no_login() {
    const OWN: &str = "canary-identity-of-the-broker";
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.identity", std::process::id()));
    fs::write(&file, OWN).unwrap();
    let identity = format!("--identity-token-file={}", file.display());
    let mut tenants = Tenants::new(|settings| settings.flag("--allow-service-account-ref").flag(identity)).await;
    let (attacker, hostile_ns) = (&tenants.attacker, &tenants.hostile_ns);
    let account = Manifest(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "mailer"}}));
    let account = account.entry("metadata.annotations", "mailtoken.dev/allowed-audiences", "api://x");
    attacker.apply(account.clone()).await;
    tenants.home.apply(account).await;
    let vouched = |audience: &str, account: Option<Value>| {
        let mut token = json!({"audience": audience});
        if let Some(account) = account {
            token["serviceAccountRef"] = account;
        }
        tenants.provider("vouched").set("spec.client.authentication", json!([{"serviceAccountToken": token}]))
    };
    let name = |name: &str| Some(json!({"name": name}));
    let own = [None, Some(Value::Null), Some(json!({})), name(""), Some(json!({"name": null}))];
    let foreign = [name(&format!("system:serviceaccount:{}:mailer", tenants.home.name)), name("mailer/token?x=")];
    for account in own.into_iter().chain(foreign) {
        let tried = attacker.try_apply(vouched("api://x", account.clone())).await;
        assert!(tried.is_err(), "{account:?}");
    }
    attacker.apply(credential("vouched").set("spec.providerRef.name", "vouched")).await;
    for audience in ["https://kubernetes.default.svc.cluster.local", "https://kubernetes.default.svc", "kubernetes"] {
        attacker.apply(vouched(audience, name("mailer"))).await;
        hostile_ns.condition::<MailProvider>("vouched", "Ready", "NotAllowed").await;
    }
    assert_eq!(tenants.evil.requests().len(), 0);

    attacker.apply(vouched("api://x", name("mailer"))).await;
    hostile_ns.condition::<MailCredential>("vouched", "Ready", "TokenValid").await;
    let requests = tenants.evil.requests();
    assert!(!format!("{requests:?}").contains(OWN));
    let assertion = requests[0].form()["client_assertion"].clone();
    let refusal = login(&hostile_ns.cluster, &assertion).await.unwrap_err();
    assert!(matches!(&refusal, kube::Error::Api(status) if status.code == 401), "{refusal}");
    let made = tenants.home.audit().into_iter().filter(|event| event.access.resource == "serviceaccounts/token");
    assert_eq!(made.count(), 0, "no token was made in the broker's namespace");
    fs::remove_file(file).unwrap();
    tenants.unharmed().await;
}
