//! Checks the status that Flux's libraries compute for recorded objects and for objects of a running broker, as
//! `docs/gitops.md` documents it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_testkit::{
    hostile::{Authority, Validity},
    hostile_mail::{HostileMail, script},
    idp::{DEVICE, DISCOVERY},
    namespace::find,
    *,
};
use serde_json::{Value, json};

use super::{docs, gitops};

/// For each recorded object: its status by kstatus, and its status by the expressions in `docs/gitops.md`.
const CREDENTIALS: [(&str, &str, &str); 14] = [
    ("new", "InProgress", "InProgress"),
    ("changed", "InProgress", "InProgress"),
    ("deleted", "Terminating", "InProgress"),
    ("ready", "Current", "Current"),
    ("renewal-failed", "Current", "Current"),
    ("reconciling", "InProgress", "InProgress"),
    ("stalled", "Failed", "Failed"),
    ("expired", "InProgress", "Failed"),
    ("sign-in", "InProgress", "InProgress"),
    ("no-sign-in", "Failed", "Failed"),
    ("suspended", "Current", "Current"),
    ("suspended-without-token", "InProgress", "Current"),
    ("mailbox-refused", "Current", "Failed"),
    ("mailbox-unknown", "Current", "Current"),
];
const PROVIDERS: [(&str, &str); 6] = [
    ("new", "InProgress"),
    ("changed", "InProgress"),
    ("deleted", "Terminating"),
    ("ready", "Current"),
    ("reconciling", "InProgress"),
    ("stalled", "Failed"),
];

/// Writes the Kustomization of `docs/gitops.md` to a file, for the tool.
fn kustomization() -> String {
    let blocks = docs::blocks("docs/gitops.md", "yaml");
    let with_expressions: Vec<_> = blocks.iter().filter(|text| text.contains("healthCheckExprs")).collect();
    let [text] = with_expressions[..] else { panic!("{with_expressions:?}") };
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kustomization.yaml");
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Returns the status of each object: by kstatus, or by the expressions of a Kustomization.
fn statuses(objects: &[&Value], kustomization: Option<&str>) -> Vec<String> {
    let mut command = Command::new(process::tool("run"));
    command.arg("kstatus").args(kustomization).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut tool = command.spawn().unwrap();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    tool.stdin.take().unwrap().write_all(list.to_string().as_bytes()).unwrap();
    let done = tool.wait_with_output().unwrap();
    assert!(done.status.success(), "{list:#}");
    String::from_utf8(done.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn recorded(kind: &str, name: &str) -> Value {
    gitops::yaml(&gitops::folder(kind).join(format!("testdata/{name}.yaml")))
}

#[test]
fn flux_sees_each_recorded_object_as_the_page_says() {
    let kustomization = kustomization();
    let objects: Vec<_> = CREDENTIALS.iter().map(|(name, ..)| recorded("MailCredential", name)).collect();
    let objects: Vec<_> = objects.iter().collect();
    let all = fs::read_dir(gitops::folder("MailCredential").join("testdata")).unwrap().count();
    assert_eq!(all, CREDENTIALS.len());
    assert_eq!(statuses(&objects, None), CREDENTIALS.map(|(_, by_kstatus, _)| by_kstatus));
    assert_eq!(statuses(&objects, Some(&kustomization)), CREDENTIALS.map(|(.., by_expressions)| by_expressions));
    for kind in ["MailProvider", "ClusterMailProvider"] {
        let objects: Vec<_> = PROVIDERS.iter().map(|(name, _)| recorded(kind, name)).collect();
        let objects: Vec<_> = objects.iter().collect();
        assert_eq!(fs::read_dir(gitops::folder(kind).join("testdata")).unwrap().count(), PROVIDERS.len());
        for kustomization in [None, Some(&*kustomization)] {
            assert_eq!(statuses(&objects, kustomization), PROVIDERS.map(|(_, status)| status), "{kind}");
        }
    }
}

/// Returns the inputs of an object's health: the conditions, and whether the token, the code, the generation and the
/// deletion exist.
fn state(object: &Value) -> (BTreeSet<String>, [bool; 4]) {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let word = |condition: &Value, field: &str| condition[field].as_str().unwrap().to_owned();
    let conditions = conditions.map(|it| [word(it, "type"), word(it, "status"), word(it, "reason")].join(" "));
    let has = |pointer: &str| object.pointer(pointer).is_some_and(|value| !value.is_null());
    let observed = object["status"]["observedGeneration"] == object["metadata"]["generation"];
    let facts = [has("/status/token"), has("/status/authorization"), observed, has("/metadata/deletionTimestamp")];
    (conditions.collect(), facts)
}

async fn live(ns: &Namespace, name: &str) -> Value {
    serde_json::to_value(ns.get::<MailCredential>(name).await).unwrap()
}

async fn live_provider(ns: &Namespace, name: &str) -> Value {
    serde_json::to_value(ns.get::<MailProvider>(name).await).unwrap()
}

/// A running broker brings credentials and providers into each recorded state.
#[tokio::test]
async fn a_running_broker_writes_the_recorded_states() {
    let mut credentials = BTreeMap::new();
    let mut providers = BTreeMap::new();
    let Fixture { ns, idp, mut broker } = Fixture::new().await;

    // The broker waits 30 s for these objects before it sets Stalled.
    ns.apply(credential("stalled").set("spec.providerRef", json!({"name": "absent"}))).await;
    let secret = json!({"clientSecret": {"secretRef": {"name": "absent", "key": "client-secret"}}});
    let without = provider(&idp).set("metadata.name", "stalled");
    ns.apply(without.set("spec.client.authentication", json!([secret]))).await;

    ns.apply(credential("billing")).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    credentials.insert("ready", live(&ns, "billing").await);
    providers.insert("ready", live_provider(&ns, "idp").await);

    idp.answer(Answer::error("invalid_client"));
    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    ns.condition::<MailCredential>("billing", "Renewed", "InvalidClient").await;
    credentials.insert("renewal-failed", live(&ns, "billing").await);

    idp.answer(Answer::status(503));
    idp.next(Answer::token(4));
    ns.apply(credential("short")).await;
    ns.condition::<MailCredential>("short", "Ready", "Expired").await;
    ns.condition::<MailCredential>("short", "Renewed", "ProviderUnavailable").await;
    credentials.insert("expired", live(&ns, "short").await);

    ns.apply(credential("late")).await;
    ns.condition::<MailCredential>("late", "Ready", "ProviderUnavailable").await;
    credentials.insert("reconciling", live(&ns, "late").await);

    idp.answer_at(DISCOVERY, Answer::status(503));
    let discovered = provider(&idp).set("metadata.name", "discovered").set("spec.oauth2", Value::Null);
    ns.apply(discovered.set("spec.oidc", json!({"issuerURL": idp.issuer()}))).await;
    ns.condition::<MailProvider>("discovered", "Ready", "DiscoveryFailed").await;
    providers.insert("reconciling", live_provider(&ns, "discovered").await);

    idp.answer(Answer::error("authorization_pending"));
    let by_code = provider(&idp).set("metadata.name", "by-code");
    ns.apply(by_code.set("spec.oauth2.deviceAuthorizationURL", idp.url(DEVICE))).await;
    let signs_in = credential("person").set("spec.providerRef", json!({"name": "by-code"}));
    ns.apply(signs_in.set("spec.grant", json!({"deviceCode": {}}))).await;
    ns.condition::<MailCredential>("person", "Ready", "AuthorizationRequired").await;
    let shown = |it: &MailCredential| !field(it, "/status/authorization").is_null() && find(it, "Ready").is_some();
    ns.until("person", "a code is shown", shown).await;
    credentials.insert("sign-in", live(&ns, "person").await);
    idp.answer(Answer::error("access_denied"));
    ns.condition::<MailCredential>("person", "Stalled", "AuthorizationRequired").await;
    credentials.insert("no-sign-in", live(&ns, "person").await);

    idp.answer(Answer::token(3600));
    ns.patch::<MailCredential>("billing", json!({"spec": {"suspend": true}})).await;
    ns.condition::<MailCredential>("billing", "Renewed", "Suspended").await;
    credentials.insert("suspended", live(&ns, "billing").await);
    ns.apply(credential("off").set("spec.suspend", true)).await;
    ns.condition::<MailCredential>("off", "Ready", "Suspended").await;
    credentials.insert("suspended-without-token", live(&ns, "off").await);

    let authority = Authority::new();
    let refusal = "S: 220 mail\nC: EHLO [\nS: 250-mail\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go on\nTLS\nC: EHLO [\n\
                   S: 250-mail\nS: 250 AUTH XOAUTH2\nC: AUTH XOAUTH2\nS: 334 \nC: \n\
                   S: 535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox.";
    let tls = authority.issue(&["localhost"], Validity::Present);
    let server = HostileMail::start("127.0.0.1", tls, script(refusal)).await;
    let bundle = idp.ca() + &String::from_utf8(authority.bundle()).unwrap();
    ns.apply(ca_bundle("mail-ca", &idp).set("data", json!({"ca.crt": bundle}))).await;
    for (name, port, reason, state) in [
        ("refused", server.port(), "SMTPAuthDisabled", "mailbox-refused"),
        ("unknown", 1, "ProbePending", "mailbox-unknown"),
    ] {
        let smtp = json!({"host": "localhost", "port": port, "security": "STARTTLS"});
        let with_server = provider(&idp).set("metadata.name", name).set("spec.servers", json!({"smtp": smtp}));
        ns.apply(with_server.set("spec.caBundleRef.configMap.name", "mail-ca")).await;
        ns.apply(credential(name).set("spec.providerRef", json!({"name": name})).set("spec.probe", json!({}))).await;
        ns.condition::<MailCredential>(name, "MailboxAuthorized", reason).await;
        credentials.insert(state, live(&ns, name).await);
    }

    for name in ["revoked", "changed"] {
        ns.apply(credential(name).set("spec.revocationPolicy", "OnDelete")).await;
        ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
    }
    ns.condition::<MailCredential>("stalled", "Stalled", "ProviderNotFound").await;
    credentials.insert("stalled", live(&ns, "stalled").await);
    ns.condition::<MailProvider>("stalled", "Stalled", "SourceNotFound").await;
    providers.insert("stalled", live_provider(&ns, "stalled").await);

    // The broker does not see the following changes.
    broker.kill();
    ns.api::<MailCredential>().delete("revoked", &Default::default()).await.unwrap();
    credentials.insert("deleted", live(&ns, "revoked").await);
    ns.patch::<MailCredential>("changed", json!({"spec": {"protocols": ["IMAP"]}})).await;
    credentials.insert("changed", live(&ns, "changed").await);
    ns.apply(credential("new")).await;
    credentials.insert("new", live(&ns, "new").await);
    ns.patch::<MailProvider>("unknown", json!({"metadata": {"finalizers": ["example.org/hold"]}})).await;
    ns.api::<MailProvider>().delete("unknown", &Default::default()).await.unwrap();
    providers.insert("deleted", live_provider(&ns, "unknown").await);
    ns.patch::<MailProvider>("unknown", json!({"metadata": {"finalizers": null}})).await;
    ns.patch::<MailProvider>("refused", json!({"spec": {"client": {"id": "another"}}})).await;
    providers.insert("changed", live_provider(&ns, "refused").await);
    ns.apply(provider(&idp).set("metadata.name", "new")).await;
    providers.insert("new", live_provider(&ns, "new").await);

    let kustomization = kustomization();
    let mut findings = vec![];
    let mut compare = |object: &Value, kind: &str, name: &str, by_kstatus: &str, by_expressions: &str| {
        let written = recorded(kind, name);
        let flux = [statuses(&[object], None), statuses(&[object], Some(&kustomization))].concat();
        let found = (state(object), flux, gitops::health(object));
        let expected =
            (state(&written), vec![by_kstatus.to_owned(), by_expressions.to_owned()], gitops::health(&written));
        if found != expected {
            findings.push(format!("{kind} {name}: {found:?}, not {expected:?}\n{object:#}"));
        }
    };
    assert_eq!((credentials.len(), providers.len()), (CREDENTIALS.len(), PROVIDERS.len()));
    for (name, by_kstatus, by_expressions) in CREDENTIALS {
        compare(&credentials[name], "MailCredential", name, by_kstatus, by_expressions);
    }
    for (name, status) in PROVIDERS {
        compare(&providers[name], "MailProvider", name, status, status);
        compare(&providers[name], "ClusterMailProvider", name, status, status);
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}
