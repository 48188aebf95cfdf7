//! End-to-end tests of users' tokens: the built broker, Keycloak and oidc-provider, where a user signs in as in a
//! browser, and logins at Dovecot and Postfix that use only the content of the Secret.

use std::{collections::BTreeMap, fs};

use k8s_openapi::api::core::v1::Secret;
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{namespace::find, *};
use serde_json::{Value, json};

/// Creates a namespace of the complete stack, with the stack's CA.
async fn namespace() -> Namespace {
    let ns = Cluster::complete().namespace().await;
    let ca = fs::read_to_string(ns.cluster.env("CA_CERT")).unwrap();
    ns.apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca.crt": ca}}))
        .await;
    ns
}

/// Returns the MailProvider `idp`: a client of an issuer of the stack, and the stack's mail servers.
fn people(ns: &Namespace, issuer: &str, client: &str) -> Manifest {
    let env = |name: &str| ns.cluster.env(name);
    let server = |host: &str, port: &str, security: &str| json!({"host": env(host), "port": env(port).parse::<u16>().unwrap(), "security": security});
    Manifest(json!({
        "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailProvider", "metadata": {"name": "idp"},
        "spec": {
            "oidc": {"issuerURL": env(issuer)},
            "client": {"id": env(client)},
            "scopes": ["openid", "email", "offline_access"],
            "servers": {
                "smtp": server("SUBMISSION_HOST", "SUBMISSION_PORT", "STARTTLS"),
                "imap": server("IMAP_HOST", "IMAP_PORT", "TLS"),
                "pop3": server("POP3_HOST", "POP3_PORT", "TLS"),
            },
            "caBundleRef": {"configMap": {"name": "ca", "key": "ca.crt"}},
        },
    }))
}

/// Returns a credential of the user for a shared address.
fn shared(ns: &Namespace, grant: Value) -> Manifest {
    credential("billing")
        .set("spec.mailbox", json!({"address": "team@shop.example", "authenticateAs": ns.cluster.env("PERSON_USER")}))
        .set("spec.protocols", json!(["SMTP", "IMAP", "POP3"]))
        .set("spec.grant", grant)
}

/// Signs a user in by the code that the credential shows.
async fn sign_in(ns: &Namespace, before: &str, options: &[&str]) -> String {
    let uri = |credential: &MailCredential| {
        field(credential, "/status/authorization/verificationURIComplete").as_str().map(str::to_owned)
    };
    let another = |credential: &MailCredential| uri(credential).is_some_and(|uri| uri != before);
    let shown = uri(&ns.until("billing", "a code is shown", another).await).unwrap();
    ns.cluster.sign_in(&shown, options).unwrap();
    shown
}

async fn ready(ns: &Namespace) -> BTreeMap<String, String> {
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    ns.secret("billing").await
}

/// Requests another token, waits for it, and returns the Secret.
async fn renewed(ns: &Namespace, reissue: &str, before: &str) -> BTreeMap<String, String> {
    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", reissue).await;
    let other = |secret: &Secret| text(secret, "access_token") != before;
    ns.until::<Secret>("billing", "it has another token", other).await;
    ns.secret("billing").await
}

/// Renews several times. Checks that the refresh token changes each time.
async fn renewals(ns: &Namespace, mut token: String) {
    for (round, rotations) in [("renewal-1", 1), ("renewal-2", 2), ("renewal-3", 3)] {
        let before = ns.secret("billing-grant").await["refresh_token"].clone();
        token = renewed(ns, round, &token).await["access_token"].clone();
        let grant = ns.secret("billing-grant").await;
        assert!(grant["refresh_token"] != before && grant["previous_refresh_token"] == before, "{round}");
        let counted = |credential: &MailCredential| field(credential, "/status/grant/rotations") == rotations;
        ns.until::<MailCredential>("billing", "rotations are counted", counted).await;
    }
}

fn logins(ns: &Namespace, secret: &BTreeMap<String, String>) {
    let (person, address) = (ns.cluster.env("PERSON_USER"), "team@shop.example");
    assert_eq!((&secret["username"], &secret["from"]), (&person, &address.to_owned()));
    for protocol in ["imap", "pop3", "smtp"] {
        let reported = mail::login(ns, protocol, secret).unwrap();
        assert!(reported.contains(&person) && (protocol != "smtp" || reported.contains(address)), "{reported}");
    }
    let mut other = secret.clone();
    other.insert("xoauth2".to_owned(), secret["xoauth2"].replacen(|letter| letter != 'A', "A", 1));
    assert!(mail::login(ns, "imap", &other).unwrap_err().contains("refused"));
}

#[tokio::test]
async fn a_user_signs_in_at_keycloak_and_pods_log_in_after_renewals() {
    let ns = namespace().await;
    ns.apply(people(&ns, "KEYCLOAK_ISSUER", "KEYCLOAK_DESKTOP_CLIENT_ID")).await;
    let broker = Broker::start(&ns).await;
    ns.apply(shared(&ns, json!({"deviceCode": {}}))).await;
    sign_in(&ns, "", &[]).await;
    let first = ready(&ns).await;
    logins(&ns, &first);
    renewals(&ns, first["access_token"].clone()).await;
    logins(&ns, &ns.secret("billing").await);
    leaks::assert_no_secret_shown(&ns, &broker, vec![first["access_token"].clone()]).await;
}

#[tokio::test]
async fn a_person_denies_and_another_signs_in_before_the_right_one_does() {
    for (issuer, client) in
        [("KEYCLOAK_ISSUER", "KEYCLOAK_DESKTOP_CLIENT_ID"), ("OIDC_ISSUER", "OIDC_NATIVE_CLIENT_ID")]
    {
        let ns = namespace().await;
        ns.apply(people(&ns, issuer, client)).await;
        let _broker = Broker::start(&ns).await;
        ns.apply(shared(&ns, json!({"deviceCode": {}}))).await;
        let other = ns.cluster.env("OTHER_USER");
        let said = |words: &'static str| {
            move |credential: &MailCredential| {
                find(credential, "Stalled").is_some_and(|stalled| stalled.message.contains(words))
            }
        };
        let mut shown = sign_in(&ns, "", &["--deny"]).await;
        let reported: MailCredential = ns.until("billing", issuer, said("was denied")).await;
        remedy::run(&ns, &find(&reported, "Stalled").unwrap().message, &[]);

        shown = sign_in(&ns, &shown, &["--as", &other]).await;
        let reported: MailCredential = ns.until("billing", issuer, said("was expected")).await;
        let message = find(&reported, "Stalled").unwrap().message;
        assert!(message.contains(&other) && message.contains(&ns.cluster.env("PERSON_USER")), "{message}");
        assert!(ns.api::<Secret>().get_opt("billing").await.unwrap().is_none());
        assert!(!ns.secret("billing-grant").await.contains_key("refresh_token"));
        remedy::run(&ns, &message, &[]);

        sign_in(&ns, &shown, &[]).await;
        let first = ready(&ns).await;
        renewals(&ns, first["access_token"].clone()).await;
    }
}

#[tokio::test]
async fn a_seed_from_keycloak_is_renewed_and_a_seed_of_another_account_is_not_used() {
    let ns = namespace().await;
    ns.apply(people(&ns, "KEYCLOAK_ISSUER", "KEYCLOAK_DESKTOP_CLIENT_ID")).await;
    let (person, other) = (ns.cluster.env("PERSON_USER"), ns.cluster.env("OTHER_USER"));
    let _broker = Broker::start(&ns).await;
    let grant = json!({"refreshToken": {"secretRef": {"name": "seed", "key": "refresh_token"}}});

    ns.apply(source("seed", "refresh_token", &realm::tokens(&ns.cluster, &other, "openid email offline_access").1))
        .await;
    ns.apply(shared(&ns, grant)).await;
    let reported = ns.condition::<MailCredential>("billing", "Stalled", "AuthorizationRequired").await.message;
    assert!(
        reported.contains(&other) && reported.contains(&person) && reported.contains("mail-token-broker login"),
        "{reported}"
    );
    assert!(ns.api::<Secret>().get_opt("billing").await.unwrap().is_none());

    ns.apply(source("seed", "refresh_token", &realm::tokens(&ns.cluster, &person, "openid email offline_access").1))
        .await;
    let first = ready(&ns).await;
    logins(&ns, &first);
    let rotations = field(&ns.get::<MailCredential>("billing").await, "/status/grant/rotations");
    assert_eq!(rotations, 1, "the seed itself was exchanged");
    renewed(&ns, "1", &first["access_token"]).await;
    logins(&ns, &ns.secret("billing").await);
}

#[tokio::test]
async fn tokens_of_a_deleted_credential_are_revoked_at_keycloak() {
    let ns = namespace().await;
    ns.apply(people(&ns, "KEYCLOAK_ISSUER", "KEYCLOAK_DESKTOP_CLIENT_ID")).await;
    let broker = Broker::start(&ns).await;
    let grant = json!({"refreshToken": {"secretRef": {"name": "seed", "key": "refresh_token"}}});
    let seed = realm::tokens(&ns.cluster, &ns.cluster.env("PERSON_USER"), "openid email offline_access").1;
    ns.apply(source("seed", "refresh_token", &seed)).await;
    ns.apply(shared(&ns, grant.clone()).set("spec.revocationPolicy", "OnDelete")).await;
    ready(&ns).await;
    let kept = ns.secret("billing-grant").await["refresh_token"].clone();
    ns.delete::<MailCredential>("billing").await;
    ns.gone::<MailCredential>("billing").await;

    ns.apply(source("seed", "refresh_token", &kept)).await;
    ns.apply(shared(&ns, grant).set("metadata.name", "again")).await;
    ns.condition::<MailCredential>("again", "Ready", "InvalidGrant").await;
    leaks::assert_no_secret_shown(&ns, &broker, vec![seed, kept]).await;
}

#[tokio::test]
async fn a_users_token_is_exchanged_at_keycloak_for_one_that_mail_servers_accept() {
    let ns = namespace().await;
    let [id, secret] =
        ["KEYCLOAK_EXCHANGE_CLIENT_ID", "KEYCLOAK_EXCHANGE_CLIENT_SECRET"].map(|name| ns.cluster.env(name));
    let person = ns.cluster.env("PERSON_USER");
    ns.apply(source("exchange", "client-secret", &secret)).await;
    let entry = json!([{"clientSecret": {"secretRef": {"name": "exchange", "key": "client-secret"}}}]);
    let provider = people(&ns, "KEYCLOAK_ISSUER", "KEYCLOAK_EXCHANGE_CLIENT_ID").without("spec.scopes");
    ns.apply(provider.set("spec.client", json!({"id": id, "authentication": entry}))).await;
    ns.apply(source("subject", "access_token", &realm::tokens(&ns.cluster, &person, "openid").0)).await;
    let broker = Broker::start(&ns).await;
    let subject = json!({"secretRef": {"name": "subject", "key": "access_token"}});
    let kind = "urn:ietf:params:oauth:token-type:access_token";
    ns.apply(shared(&ns, json!({"tokenExchange": {"subjectToken": subject, "subjectTokenType": kind}}))).await;
    let first = ready(&ns).await;
    logins(&ns, &first);

    // The first subject token is unknown to Keycloak, the second is valid.
    ns.apply(source("subject", "access_token", "no.subject.token")).await;
    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    let refused =
        |credential: &MailCredential| find(credential, "Renewed").is_some_and(|renewed| renewed.status == "False");
    let reported: MailCredential = ns.until("billing", "the exchange is refused", refused).await;
    assert_eq!(reason(&reported, "Ready"), "TokenValid");
    ns.apply(source("subject", "access_token", &realm::tokens(&ns.cluster, &person, "openid").0)).await;
    let other = |secret: &Secret| text(secret, "access_token") != first["access_token"];
    ns.until::<Secret>("billing", "it has another token", other).await;
    logins(&ns, &ns.secret("billing").await);
    leaks::assert_no_secret_shown(&ns, &broker, vec![first["access_token"].clone()]).await;
}

#[tokio::test]
async fn oidc_provider_takes_each_key_and_a_person_for_a_client_that_signs() {
    let ns = namespace().await;
    let folder = ns.cluster.env("OIDC_JWT_KEYS");
    let broker = Broker::start(&ns).await;
    for (algorithm, kind) in [("PS256", "rsa"), ("RS256", "rsa"), ("ES256", "ec"), ("EdDSA", "ed25519")] {
        let name = algorithm.to_lowercase();
        let key = fs::read_to_string(format!("{folder}/{kind}.key")).unwrap();
        let file = format!("{name}-key");
        ns.apply(source(&file, "tls.key", &key)).await;
        let jwt = json!({"keyRef": {"name": file, "key": "tls.key"}, "algorithm": algorithm, "keyID": kind});
        let client = json!({"id": ns.cluster.env("OIDC_JWT_CLIENT_ID"), "authentication": [{"privateKeyJWT": jwt}]});
        let provider = people(&ns, "OIDC_ISSUER", "OIDC_JWT_CLIENT_ID").set("metadata.name", name.as_str());
        ns.apply(provider.set("spec.client", client)).await;
        let app = credential(&name).set("spec.providerRef.name", name.as_str()).set("spec.scopes", json!(["mail"]));
        ns.apply(app).await;
        ns.condition::<MailCredential>(&name, "Ready", "TokenValid").await;
    }
    ns.apply(shared(&ns, json!({"deviceCode": {}})).set("spec.providerRef.name", "es256")).await;
    sign_in(&ns, "", &[]).await;
    let first = ready(&ns).await;
    renewals(&ns, first["access_token"].clone()).await;
    leaks::assert_no_secret_shown(&ns, &broker, vec![first["access_token"].clone()]).await;
}
