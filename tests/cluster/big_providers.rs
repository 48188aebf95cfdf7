//! Microsoft and Google under their real names. A proxy connects the broker to stand-ins.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::Secret;
use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_testkit::{
    fault_log::tried,
    namespace::find,
    proxy::Proxy,
    standin::{App, Cloud, Google, Microsoft, google},
    *,
};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256};
use serde_json::{Value, json};

const APP: &str = "2f1c6a0e-0000-4000-8000-000000000000";
const SECRET: &str = "a client secret of Entra";
const SEND: &str = "https://outlook.office.com/SMTP.Send";
const REISSUE: &str = "mailtoken.dev/reissue";

/// Creates a namespace whose broker reaches a stand-in by these names.
async fn fixture(port: u16, ca: &str, names: &[&str]) -> (Namespace, Broker) {
    let ns = Cluster::shared().namespace().await;
    let proxy = Proxy::start(port);
    let settings = names.iter().fold(Broker::settings(&ns), |settings, name| settings.host(name));
    let broker = settings.flag(format!("--egress-proxy={}", proxy.url())).start().await;
    ns.apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca.crt": ca}}))
        .await;
    (ns, broker)
}

async fn microsoft() -> (Namespace, Microsoft, Broker) {
    let entra = Microsoft::start(Cloud::Public);
    let (ns, broker) = fixture(entra.port(), &entra.ca(), &[Cloud::Public.host()]).await;
    (ns, entra, broker)
}

/// Applies the MailProvider `idp`, and waits until the broker has seen its current version.
async fn provide(ns: &Namespace, preset: Value, client: Value) {
    let mut spec = json!({"client": client, "caBundleRef": {"configMap": {"name": "ca", "key": "ca.crt"}}});
    spec.as_object_mut().unwrap().extend(preset.as_object().unwrap().clone());
    ns.apply(json!({
        "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailProvider", "metadata": {"name": "idp"}, "spec": spec,
    }))
    .await;
    ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
}

fn tenant() -> Value {
    json!({"microsoft": {"tenantID": "contoso.onmicrosoft.com"}})
}

fn by_secret(name: &str) -> Value {
    json!([{"clientSecret": {"secretRef": {"name": name, "key": "client-secret"}}}])
}

fn mailbox(grant: Value) -> Manifest {
    credential("billing").set("spec.mailbox.address", "billing@contoso.com").set("spec.grant", grant)
}

async fn ready(ns: &Namespace) -> MailCredential {
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    ns.get("billing").await
}

async fn renewed(ns: &Namespace) {
    let before = ns.secret("billing").await["access_token"].clone();
    ns.annotate::<MailCredential>("billing", REISSUE, "renewal").await;
    ns.until::<Secret>("billing", "it has another token", |secret| text(secret, "access_token") != before).await;
}

async fn message_of(ns: &Namespace, kind: &str, good: impl Fn(&str) -> bool) -> String {
    let fits = |credential: &MailCredential| find(credential, kind).is_some_and(|found| good(&found.message));
    find(&ns.until::<MailCredential>("billing", "the message fits", fits).await, kind).unwrap().message
}

#[tokio::test]
async fn microsoft_issues_app_only_tokens_for_a_secret_and_for_a_certificate() {
    let (ns, entra, broker) = microsoft().await;
    let pair = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let certificate = CertificateParams::new(vec!["mailer".to_owned()]).unwrap().self_signed(&pair).unwrap().pem();
    entra.register(App::new(APP).secret(SECRET).certificate(&certificate));
    ns.apply(source("app", "client-secret", SECRET)).await;
    provide(&ns, tenant(), json!({"id": APP, "authentication": by_secret("app")})).await;
    ns.apply(mailbox(json!({"clientCredentials": {}}))).await;
    let object_id = App::new(APP).object_id();
    let message = find(&ready(&ns).await, "Ready").unwrap().message;
    assert!(message.contains(&object_id), "what New-ServicePrincipal wants: {message}");

    let files = json!({"tls.key": pair.serialize_pem(), "tls.crt": certificate});
    ns.apply(source("files", "tls.key", "").set("stringData", files)).await;
    let file = |key: &str| json!({"name": "files", "key": key});
    let jwt =
        json!({"privateKeyJWT": {"keyRef": file("tls.key"), "certificateRef": file("tls.crt"), "algorithm": "PS256"}});
    provide(&ns, tenant(), json!({"id": APP, "authentication": [jwt]})).await;
    renewed(&ns).await;
    let last = entra.token_requests().pop().unwrap().form();
    assert!(last.contains_key("client_assertion") && !last.contains_key("client_secret"));
    let method = |credential: &MailCredential| field(credential, "/status/client/method") == "privateKeyJWT";
    ns.until::<MailCredential>("billing", "the certificate is in use", method).await;
    leaks::assert_no_secret_shown(&ns, &broker, [entra.issued(), entra.assertions()].concat()).await;
}

#[tokio::test]
async fn a_users_token_reads_the_shared_mailbox_and_sends_as_the_person() {
    let (ns, entra, _broker) = microsoft().await;
    entra.register(App::new(APP).public());
    entra.poll_interval(1);
    provide(&ns, tenant(), json!({"id": APP})).await;
    let names = json!({"address": "office@contoso.com", "authenticateAs": "anna@contoso.com"});
    let shared = mailbox(json!({"deviceCode": {}})).set("spec.mailbox", names);
    ns.apply(shared.set("spec.protocols", json!(["SMTP", "IMAP"]))).await;
    let code =
        |credential: &MailCredential| field(credential, "/status/authorization/userCode").as_str().map(str::to_owned);
    let shown = ns.until::<MailCredential>("billing", "a code is shown", |credential| code(credential).is_some()).await;
    entra.approve(&code(&shown).unwrap(), "anna@contoso.com");
    ready(&ns).await;
    let secret = ns.secret("billing").await;
    let key = |name: &str| secret.get(name).map(String::as_str);
    assert_eq!((key("username"), key("smtp_username")), (Some("anna@contoso.com"), Some("anna@contoso.com")));
    assert_eq!((key("imap_username"), key("from")), (Some("office@contoso.com"), Some("office@contoso.com")));
    assert_eq!((key("smtp_security"), key("imap_security")), (Some("STARTTLS"), Some("TLS")));
    let response =
        |user: &str| BASE64_STANDARD.encode(format!("user={user}\x01auth=Bearer {}\x01\x01", secret["access_token"]));
    assert_eq!(key("xoauth2"), Some(response("anna@contoso.com").as_str()));
    assert_eq!(key("imap_xoauth2"), Some(response("office@contoso.com").as_str()));
    assert_eq!((key("smtp_xoauth2"), key("imap_oauthbearer")), (None, None));
}

#[tokio::test]
async fn microsoft_signs_a_person_in_by_code_and_asks_again_when_the_sign_in_ends() {
    let (ns, entra, broker) = microsoft().await;
    entra.register(App::new(APP).public());
    entra.poll_interval(1);
    provide(&ns, tenant(), json!({"id": APP})).await;
    ns.apply(mailbox(json!({"deviceCode": {}}))).await;
    let code = async |before: &str| {
        let code = |credential: &MailCredential| {
            field(credential, "/status/authorization/userCode").as_str().unwrap_or_default().to_owned()
        };
        let another = |credential: &MailCredential| !["", before].contains(&code(credential).as_str());
        code(&ns.until::<MailCredential>("billing", "a code is shown", another).await)
    };
    let declined = code("").await;
    message_of(&ns, "Ready", |message| message.contains("https://microsoft.com/devicelogin")).await;
    entra.deny(&declined);
    let message = message_of(&ns, "Stalled", |message| message.contains("was denied")).await;
    remedy::run(&ns, &message, &[]);

    let foreign = code(&declined).await;
    entra.approve(&foreign, "other@contoso.com");
    let message = message_of(&ns, "Stalled", |message| message.contains("other@contoso.com")).await;
    remedy::run(&ns, &message, &[]);

    let expired = code(&foreign).await;
    entra.expire(&expired);
    let lost = code(&expired).await;
    broker.signal("STOP");
    entra.approve(&lost, "billing@contoso.com");
    entra.next(standin::Fault::Lost);
    broker.signal("CONT");
    let good = code(&lost).await;
    entra.approve(&good, "billing@contoso.com");
    ready(&ns).await;
    renewed(&ns).await;

    // An administrator revokes all sign-ins.
    entra.end_grants("billing@contoso.com", 50173);
    ns.annotate::<MailCredential>("billing", REISSUE, "revoked").await;
    let again = code(&good).await;
    let waiting: MailCredential = ns.get("billing").await;
    assert_eq!((reason(&waiting, "Ready"), reason(&waiting, "Renewed")), ("TokenValid".into(), "InvalidGrant".into()));
    assert_eq!(field(&waiting, "/status/lastError/providerCode"), "AADSTS50173");
    entra.approve(&again, "billing@contoso.com");
    let handled = |credential: &MailCredential| field(credential, "/status/lastHandledReissue") == "revoked";
    ns.until::<MailCredential>("billing", "the reissue is handled", handled).await;
    leaks::assert_no_secret_shown(&ns, &broker, entra.issued()).await;
}

/// Creates the credential `billing` with a seed, and waits until it is ready. Returns the seed.
async fn seeded(ns: &Namespace, entra: &Microsoft) -> String {
    entra.register(App::new(APP).public());
    provide(ns, tenant(), json!({"id": APP})).await;
    let seed = entra.refresh_token(APP, "billing@contoso.com", SEND);
    ns.apply(source("seed", "refresh_token", &seed)).await;
    ns.apply(mailbox(json!({"refreshToken": {"secretRef": {"name": "seed", "key": "refresh_token"}}}))).await;
    ready(ns).await;
    seed
}

#[tokio::test]
async fn microsofts_refresh_tokens_are_taken_over_and_replaced() {
    let (ns, entra, broker) = microsoft().await;
    let seed = seeded(&ns, &entra).await;
    assert_ne!(ns.secret("billing-grant").await["refresh_token"], seed);
    renewed(&ns).await;
    let uses =
        entra.token_requests().iter().filter(|request| request.form().get("refresh_token") == Some(&seed)).count();
    assert_eq!(uses, 1);
    leaks::assert_no_secret_shown(&ns, &broker, entra.issued()).await;
}

#[tokio::test]
async fn a_loop_that_microsoft_detects_is_waited_out_and_ends_no_sign_in() {
    let (ns, entra, broker) = microsoft().await;
    seeded(&ns, &entra).await;
    let token = ns.secret("billing").await["access_token"].clone();
    let kept = ns.secret("billing-grant").await["refresh_token"].clone();
    let presented = || {
        let with = |request: &&idp::Request| request.form().get("refresh_token") == Some(&kept);
        entra.token_requests().iter().filter(with).count()
    };

    // The OAuth error of AADSTS50196 is `invalid_grant`, which would otherwise end the sign-in.
    entra.refuse_next(50196);
    ns.annotate::<MailCredential>("billing", REISSUE, "loop").await;
    let renewed_not = ns.condition::<MailCredential>("billing", "Renewed", "Throttled").await;
    assert_eq!(renewed_not.status, "False");
    assert!(renewed_not.message.contains("status.nextAttemptTime"), "{}", renewed_not.message);
    let reported: MailCredential = ns.get("billing").await;
    let shown = namespace::show(&reported);
    assert_eq!(
        (reason(&reported, "Ready"), reason(&reported, "Stalled")),
        ("TokenValid".into(), String::new()),
        "{shown}"
    );
    assert_eq!(field(&reported, "/status/lastError/providerCode"), "AADSTS50196", "{shown}");
    let status = reported.status.unwrap();
    let wait = status.next_attempt_time.unwrap().0.duration_since(status.last_failure_time.unwrap().0);
    assert!(wait.as_secs() >= 60, "it stays away for a minute: {shown}");
    holds(Duration::from_secs(2), "no request is sent, and the old token stays", async || {
        match (presented(), ns.secret("billing").await["access_token"] == token) {
            (1, true) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    // The broker would otherwise retry in a minute.
    renewed(&ns).await;
    ns.condition::<MailCredential>("billing", "Renewed", "RenewalSucceeded").await;
    assert_eq!((presented(), entra.token_requests().len()), (2, 3));
    leaks::assert_no_secret_shown(&ns, &broker, entra.issued()).await;
    tried("F17", 1, "nothing");
}

#[tokio::test]
async fn google_issues_tokens_for_a_delegated_service_account_and_for_a_person() {
    let google = Google::start();
    let (ns, broker) = fixture(google.port(), &google.ca(), &["oauth2.googleapis.com", "accounts.google.com"]).await;
    google.mailbox("billing@contoso.com");
    let account = google.service_account("mailer");
    ns.apply(source("google", "key.json", &account.key_file())).await;
    let key = json!([{"serviceAccountKey": {"secretRef": {"name": "google", "key": "key.json"}}}]);
    provide(&ns, json!({"google": {}}), json!({"authentication": key})).await;
    ns.apply(mailbox(json!({"jwtBearer": {}}))).await;
    ns.condition::<MailCredential>("billing", "Ready", "ConsentRequired").await;

    google.delegate(&account.client_id, &["https://mail.google.com/"]);
    ns.annotate::<MailCredential>("billing", REISSUE, "delegated").await;
    ready(&ns).await;
    renewed(&ns).await;

    google.client("desktop", "not so secret");
    ns.apply(source("desktop", "client-secret", "not so secret")).await;
    provide(&ns, json!({"google": {}}), json!({"id": "desktop", "authentication": by_secret("desktop")})).await;
    let seed = google.refresh_token("desktop", "billing@contoso.com", "https://mail.google.com/");
    ns.apply(source("seed", "refresh_token", &seed)).await;
    ns.delete::<MailCredential>("billing").await;
    broker.forgets("billing").await;
    ns.delete::<Secret>("billing").await;
    ns.apply(mailbox(json!({"refreshToken": {"secretRef": {"name": "seed", "key": "refresh_token"}}}))).await;
    ready(&ns).await;
    renewed(&ns).await;
    let kept = ns.secret("billing-grant").await;
    assert_eq!(kept["refresh_token"], seed, "Google's stay good");
    leaks::assert_no_secret_shown(&ns, &broker, [google.issued(), google.assertions()].concat()).await;
}

#[tokio::test]
async fn google_signs_for_a_service_account_without_a_key() {
    const POOL: &str = "projects/123/locations/global/workloadIdentityPools/mail";
    let google = Google::start();
    let ns = Cluster::shared().namespace().await;
    let proxy = Proxy::start(google.port());
    let settings = google::HOSTS.iter().fold(Broker::settings(&ns), |settings, name| settings.host(name));
    let settings = settings.flag(format!("--egress-proxy={}", proxy.url())).flag("--allow-service-account-ref");
    let broker = settings.start().await;
    ns.apply(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca.crt": google.ca()},
    }))
    .await;
    let audience = format!("//iam.googleapis.com/{POOL}/providers/cluster");
    // The broker requests tokens only for the audiences that the ServiceAccount names.
    ns.apply(json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "mailer", "annotations": {"mailtoken.dev/allowed-audiences": audience}},
    }))
    .await;
    google.mailbox("billing@contoso.com");
    let account = google.service_account("mailer");
    let token = json!({"audience": audience, "serviceAccountRef": {"name": "mailer"}});
    let preset = json!({"google": {"serviceAccount": account.email}});
    provide(&ns, preset, json!({"authentication": [{"serviceAccountToken": token}]})).await;
    ns.apply(mailbox(json!({"jwtBearer": {}}))).await;

    // No step of the set-up is done yet. Each missing step has its own message, in the order of the requests.
    let blocked = async |reason: &str, said: &[&str]| {
        ns.annotate::<MailCredential>("billing", REISSUE, &random_word()).await;
        let fits = |credential: &MailCredential| {
            find(credential, "Ready")
                .is_some_and(|ready| ready.reason == reason && said.iter().all(|said| ready.message.contains(said)))
        };
        ns.until::<MailCredential>("billing", &format!("{reason} {said:?}"), fits).await;
    };
    google.switch_apis(true);
    blocked("ConsentRequired", &["sts.googleapis.com", "`gcloud services enable sts.googleapis.com"]).await;
    google.switch_apis(false);
    blocked("FederationMismatch", &["invalid_target", &format!("describe {POOL}/providers/cluster`")]).await;
    let discovery: Value =
        serde_json::from_str(&ns.kubectl(["get", "--raw", "/.well-known/openid-configuration"])).unwrap();
    let issuer = discovery["issuer"].as_str().unwrap();
    let jwks: Value = serde_json::from_str(&ns.kubectl(["get", "--raw", "/openid/v1/jwks"])).unwrap();
    google.trust_issuer(&audience, "https://elsewhere.example", jwks.clone(), None);
    blocked("FederationMismatch", &["invalid_grant", issuer]).await;
    google.trust_issuer(&audience, issuer, jwks.clone(), Some("system:serviceaccount:other:mailer"));
    blocked("FederationMismatch", &["attribute condition", &format!("system:serviceaccount:{}:mailer", ns.name)]).await;
    let subject = format!("system:serviceaccount:{}:mailer", ns.name);
    google.trust_issuer(&audience, issuer, jwks, Some(&subject));
    let principal = format!("principal://iam.googleapis.com/{POOL}/subject/{subject}");
    let role = format!("--role=roles/iam.serviceAccountTokenCreator --member='{principal}'");
    blocked("ConsentRequired", &["iamcredentials.googleapis.com", &account.email, &role]).await;
    google.let_sign(&account, &principal);
    blocked("ConsentRequired", &["unauthorized_client", "Domain-wide delegation", "domainwidedelegation"]).await;

    google.delegate(&account.client_id, &["https://mail.google.com/"]);
    ns.annotate::<MailCredential>("billing", REISSUE, "delegated").await;
    let credential = ready(&ns).await;
    assert_eq!(field(&credential, "/status/client"), json!({"method": "serviceAccountToken", "index": 0}));
    google.forget();
    renewed(&ns).await;
    let asked: Vec<_> = google.requests().iter().map(|request| request.route().to_owned()).collect();
    let sign = format!("/v1/projects/-/serviceAccounts/{}:signJwt", account.email);
    assert_eq!(asked, ["/v1/token".to_owned(), sign, "/token".to_owned()]);
    leaks::assert_no_secret_shown(&ns, &broker, [google.issued(), google.assertions()].concat()).await;
}

/// Returns a value that no annotation has had before.
fn random_word() -> String {
    k8s_openapi::jiff::Timestamp::now().as_nanosecond().to_string()
}

#[tokio::test]
async fn an_assertion_by_a_clock_that_differs_from_googles_is_tried_again_until_they_agree() {
    let google = Google::start();
    let (ns, broker) = fixture(google.port(), &google.ca(), &["oauth2.googleapis.com", "accounts.google.com"]).await;
    google.mailbox("billing@contoso.com");
    let account = google.service_account("mailer");
    google.delegate(&account.client_id, &["https://mail.google.com/"]);
    ns.apply(source("google", "key.json", &account.key_file())).await;
    let key = json!([{"serviceAccountKey": {"secretRef": {"name": "google", "key": "key.json"}}}]);
    provide(&ns, json!({"google": {}}), json!({"authentication": key})).await;
    google.clock_ahead(-7200);
    ns.apply(mailbox(json!({"jwtBearer": {}}))).await;
    ns.condition::<MailCredential>("billing", "Ready", "ClockSkew").await;
    google.clock_ahead(0);
    ready(&ns).await;
    assert!(google.token_requests().len() <= 3, "there is no loop");
    leaks::assert_no_secret_shown(&ns, &broker, [google.issued(), google.assertions()].concat()).await;
    tried("F18", 1, "nothing");
}
