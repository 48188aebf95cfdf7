//! Installs the chart and runs the broker with the chart's account. The account has the rights that the broker needs,
//! and no others.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{ConfigMap, Secret},
};
use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_testkit::{
    audit::{Access, AuditEvent},
    standin::Strict,
    *,
};
use serde_json::{Value, json};

/// The namespace of the installed chart.
const HOME: &str = "mail";
/// The ServiceAccount of a release with the chart's own name.
const ACCOUNT: &str = "mail-token-broker";

#[tokio::test]
async fn a_broker_of_all_namespaces_may_do_only_what_it_does() {
    let cluster = Cluster::alone(&["control-plane"]);
    let ns = cluster.namespace().await;
    let release = Release::install(&ns, &[]).await;
    let idp = Idp::start();
    let mut broker = release.broker().start().await;

    whole_life(&ns, &idp).await;
    grant_life(&ns).await;
    cluster_provider(&ns, &idp).await;
    broker.terminate().await;

    release.compare();
    only_its_own_secrets(&release, &ns).await;
}

#[tokio::test]
async fn a_broker_of_one_namespace_that_serves_cluster_providers_may_do_only_what_it_does() {
    let cluster = Cluster::alone(&["control-plane"]);
    let (ns, other) = (cluster.namespace().await, cluster.namespace().await);
    let settings =
        [&format!("namespaces={{{}}}", ns.name), "clusterMailProviders=true", "leaderElection.leaseName=own"];
    let release = Release::install(&ns, &settings).await;
    let idp = Idp::start();
    let mut broker = release.broker().start().await;
    other.provider(&idp).await;
    other.apply(credential("elsewhere")).await;

    whole_life(&ns, &idp).await;
    cluster_provider(&ns, &idp).await;
    broker.terminate().await;

    release.compare();
    let asked = release.events().into_iter().filter(|event| event.namespace == other.name).collect::<Vec<_>>();
    assert!(asked.is_empty(), "{asked:#?}");
    only_its_own_secrets(&release, &ns).await;
    for (verb, resource, place) in
        [("list", "secrets", "--all-namespaces"), ("create", "secrets", "-n=mail"), ("get", "secrets", "-n=default")]
    {
        let account = format!("--as=system:serviceaccount:{HOME}:{ACCOUNT}");
        let asked = process::try_output(cluster.kubectl().args(["auth", "can-i", verb, resource, place, &account]));
        assert!(asked.is_err(), "{verb} {resource} {place}");
    }
}

/// Checks what an attacker cannot do with a stolen token of the broker, although RBAC allows writes of all Secrets.
async fn only_its_own_secrets(release: &Release, ns: &Namespace) {
    let try_as_broker = |arguments: &[&str], object: Option<Value>| {
        let mut kubectl = release.cluster.kubectl();
        kubectl.env("KUBECONFIG", &release.kubeconfig).args(["-n", &ns.name]).args(arguments);
        if let Some(object) = object {
            let file = release.cluster.dir().join("object.json");
            fs::write(&file, object.to_string()).unwrap();
            kubectl.arg("-f").arg(file);
        }
        process::try_output(&mut kubectl)
    };
    let secret = |name: &str, kind: &str, managed_by: &str, annotations: Value| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": kind,
            "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": managed_by}, "annotations": annotations},
        })
    };
    let refused = |attempt: Result<String, String>, why: &str| {
        let refusal = attempt.expect_err("it is refused");
        assert!(refusal.contains("ValidatingAdmissionPolicy") && refusal.contains(why), "{refusal}");
    };
    // Such a Secret would give the token of any ServiceAccount.
    let any = json!({"kubernetes.io/service-account.name": "default"});
    let stolen = secret("stolen", "kubernetes.io/service-account-token", "mail-token-broker", any);
    refused(try_as_broker(&["create"], Some(stolen)), "types Opaque and mailtoken.dev/grant");
    refused(try_as_broker(&["create"], Some(secret("foreign", "Opaque", "helm", json!({})))), "managed-by");
    for kind in ["Opaque", "mailtoken.dev/grant"] {
        let own = secret("own", kind, "mail-token-broker", json!({}));
        try_as_broker(&["create"], Some(own)).unwrap();
        refused(
            try_as_broker(&["patch", "secret", "own", "-p", r#"{"metadata":{"labels":null}}"#], None),
            "managed-by",
        );
        try_as_broker(&["patch", "secret", "own", "-p", r#"{"stringData":{"a":"b"}}"#], None).unwrap();
        try_as_broker(&["delete", "secret", "own"], None).unwrap();
    }
    // The broker may neither change nor take over nor delete a foreign Secret.
    ns.apply(secret("foreign", "Opaque", "helm", json!({}))).await;
    for patch in [
        r#"{"stringData":{"a":"b"}}"#,
        r#"{"metadata":{"labels":{"app.kubernetes.io/managed-by":"mail-token-broker"}}}"#,
    ] {
        refused(try_as_broker(&["patch", "secret", "foreign", "-p", patch], None), "MailCredential as controller");
    }
    refused(try_as_broker(&["delete", "secret", "foreign"], None), "MailCredential as controller");
    // The broker repairs a Secret that lost its label but has a MailCredential as controller.
    let owner = json!([{"apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailCredential", "name": "a", "uid": "a", "controller": true}]);
    let mut lost = secret("lost", "Opaque", "helm", json!({}));
    lost["metadata"]["ownerReferences"] = owner;
    ns.apply(lost).await;
    let label = r#"{"metadata":{"labels":{"app.kubernetes.io/managed-by":"mail-token-broker"}}}"#;
    try_as_broker(&["patch", "secret", "lost", "-p", label], None).unwrap();
    // The policy does not apply to users.
    ns.apply(source("of-a-person", "refresh_token", "a")).await;
}

/// Helm deletes RBAC within milliseconds of the Deployment. A broker in the middle of a refresh could then not store
/// the new refresh token. The test does the work of the controllers of Deployments and Jobs, and of the kubelet.
#[tokio::test]
async fn an_uninstall_ends_the_brokers_before_it_takes_their_rights() {
    let cluster = Cluster::alone(&["control-plane"]);
    let ns = cluster.namespace().await;
    Release::install(&ns, &[]).await;
    let home = Namespace { name: HOME.to_owned(), cluster: cluster.clone(), client: ns.client.clone() };
    let deployment: Deployment = home.get(ACCOUNT).await;
    let template = serde_json::to_value(&deployment).unwrap()["spec"]["template"].clone();
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one", "labels": template["metadata"]["labels"]}});
    pod["spec"] = template["spec"].clone();
    home.apply(pod).await;

    let mut helm = cluster.command("helm");
    helm.args(["uninstall", ACCOUNT, "--namespace", HOME]);
    let uninstall = tokio::task::spawn_blocking(move || process::try_output(&mut helm));
    let hook = format!("{ACCOUNT}-stop");
    let job: Job = home.until(&hook, "the hook's Job is there", |_: &Job| true).await;
    let account = job.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    let arguments = account.containers[0].args.clone().unwrap();

    // The test runs the command of the Job's pod, with the Job's account.
    let token = process::output(cluster.kubectl().args([
        "-n",
        HOME,
        "create",
        "token",
        account.service_account_name.as_ref().unwrap(),
    ]));
    let kubeconfig = cluster.dir().join("hook.kubeconfig");
    as_account(&cluster, &kubeconfig, &token);
    let mut stop = Command::new(env!("CARGO_BIN_EXE_mail-token-broker"));
    stop.args(&arguments).env("KUBECONFIG", &kubeconfig);
    let stop = tokio::task::spawn_blocking(move || process::try_output(&mut stop));

    let scaled =
        home.until(ACCOUNT, "it is scaled to 0", |it: &Deployment| it.spec.as_ref().unwrap().replicas == Some(0)).await;
    let seen = json!({"status": {"observedGeneration": scaled.metadata.generation, "replicas": 0}});
    home.kubectl(["patch", "deployment", ACCOUNT, "--subresource=status", "--type=merge", "-p", &seen.to_string()]);
    // The broker's pod has not ended yet.
    holds(Duration::from_secs(2), "a pod runs, and the broker has its rights", async || {
        let rights = process::try_output(cluster.kubectl().args(["get", "clusterrolebinding", ACCOUNT]));
        rights.map(drop).and_then(|()| if stop.is_finished() { Err("it did not wait".to_owned()) } else { Ok(()) })
    })
    .await;
    home.kubectl(["delete", "pod", "one", "--grace-period=0", "--force"]);
    stop.await.unwrap().unwrap();

    let done = json!({"status": {
        "startTime": wait::now().to_string(), "completionTime": wait::now().to_string(), "succeeded": 1, "active": 0,
        "uncountedTerminatedPods": {}, "conditions": [
            {"type": "SuccessCriteriaMet", "status": "True", "lastTransitionTime": wait::now().to_string()},
            {"type": "Complete", "status": "True", "lastTransitionTime": wait::now().to_string()},
        ],
    }});
    home.kubectl(["patch", "job", &hook, "--subresource=status", "--type=merge", "-p", &done.to_string()]);
    uninstall.await.unwrap().unwrap();
    let selector = format!("app.kubernetes.io/instance={ACCOUNT}");
    let kinds = "deployments,jobs,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,services,\
                 validatingadmissionpolicies";
    let left =
        process::output(cluster.kubectl().args(["get", kinds, "--all-namespaces", "-l", &selector, "-o", "name"]));
    assert_eq!(left, "", "nothing is left");
    let crds = process::output(cluster.kubectl().args(["get", "crd", "-o", "name"]));
    assert_eq!(crds.lines().count(), 3, "they stay, and with them all credentials");
    fault_log::tried("F29", 1, "nothing");
}

/// Installs exactly the files of a release, on a cluster without the CRDs.
#[tokio::test]
async fn the_files_of_a_release_install_the_broker() {
    let cluster = Cluster::alone(&["control-plane"]);
    let files = cluster.dir().join("release");
    let digest = format!("sha256:{}", "7".repeat(64));
    let relay_digest = format!("sha256:{}", "8".repeat(64));
    let mut release = Command::new(process::tool("release"));
    release.args(["files", "--digest", &digest, "--relay-digest", &relay_digest]).arg(&files);
    let made = process::output(&mut release);
    let names: BTreeSet<_> =
        fs::read_dir(&files).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let version = env!("CARGO_PKG_VERSION");
    let chart = format!("mail-token-broker-{version}.tgz");
    let relay_chart = format!("mail-token-relay-{version}.tgz");
    let all = ["SHA256SUMS", "crds.yaml", "install.yaml", &chart, &relay_chart];
    assert_eq!(names, all.map(str::to_owned).into(), "{made}");
    process::output(Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(&files));
    let sums = fs::read_to_string(files.join("SHA256SUMS")).unwrap();
    assert_eq!(sums.lines().count(), names.len() - 1, "{sums}");

    let crds = || process::output(cluster.kubectl().args(["get", "crd", "-o", "name"])).lines().count();
    let apply =
        |file: &str| process::output(cluster.kubectl().args(["apply", "--server-side", "-f"]).arg(files.join(file)));
    // If the storage of a kind is not ready, the API server tries its deletion again only after five minutes.
    let served = async || {
        for kind in ["mailcredentials", "mailproviders", "clustermailproviders"] {
            let list = || process::try_output(cluster.kubectl().args(["get", kind, "--all-namespaces"]));
            until(&format!("the API server lists {kind}"), async || list().map(drop)).await;
        }
    };
    let without = || process::output(cluster.kubectl().args(["delete", "crd", "--all"]));
    served().await;
    without();
    assert_eq!(crds(), 0);
    apply("crds.yaml");
    assert_eq!(crds(), 3, "one file, three kinds");
    served().await;
    without();

    // Installs with kubectl. One file has the kinds and their objects; the kinds come first.
    apply("install.yaml");
    assert_eq!(crds(), 3);
    let image = |namespace: &str| {
        let query =
            ["-n", namespace, "get", "deployment", ACCOUNT, "-o", "jsonpath={.spec.template.spec.containers[0].image}"];
        process::output(cluster.kubectl().args(query))
    };
    assert!(image("mail-token-broker").ends_with(&format!("@{digest}")));
    let jobs = process::output(cluster.kubectl().args(["get", "jobs", "--all-namespaces", "-o", "name"]));
    assert_eq!(jobs, "", "kubectl would run a hook at once");
    process::output(cluster.kubectl().args(["delete", "-f"]).arg(files.join("install.yaml")).arg("--wait=false"));

    // Installs with Helm.
    let mut helm = cluster.command("helm");
    helm.args(["install", ACCOUNT, "--namespace", HOME, "--create-namespace", "--take-ownership"])
        .arg(files.join(&chart));
    process::output(&mut helm);
    assert!(image(HOME).ends_with(&format!("@{digest}")));
    let mut helm = cluster.command("helm");
    helm.args(["template", "relay"]).arg(files.join(&relay_chart));
    let from = ["mailboxes={billing-mail}", "logins={billing-login}", "tls.secretName=relay-tls"];
    helm.args(from.iter().flat_map(|setting| ["--set", setting])).args(["--set-json", "networkPolicy.from=[{}]"]);
    let rendered = process::output(&mut helm);
    assert!(rendered.contains(&format!("mail-token-relay@{relay_digest}")), "{rendered}");
}

#[tokio::test]
async fn a_broker_of_one_namespace_may_do_only_what_it_does() {
    let cluster = Cluster::alone(&["control-plane"]);
    let (ns, other) = (cluster.namespace().await, cluster.namespace().await);
    let settings = [&format!("namespaces={{{}}}", ns.name), "allowServiceAccountRef=true"];
    let release = Release::install(&ns, &settings).await;
    let idp = Idp::start();
    let mut broker = release.broker().start().await;
    other.provider(&idp).await;
    other.apply(credential("elsewhere")).await;

    whole_life(&ns, &idp).await;
    federated(&ns, &idp).await;
    broker.terminate().await;

    release.compare();
    let asked = release.events().into_iter().filter(|event| event.namespace == other.name).collect::<Vec<_>>();
    assert!(asked.is_empty(), "{asked:#?}");
}

/// Each team has its own broker, with its own account, Lease and namespace.
#[tokio::test]
async fn two_releases_leave_each_others_objects_alone() {
    let cluster = Cluster::alone(&["control-plane"]);
    let idp = Idp::start();
    let mut releases = vec![];
    for name in ["mail-token-broker-blue", "mail-token-broker-green"] {
        let ns = cluster.namespace().await;
        let settings = [&*format!("namespaces={{{}}}", ns.name), "crds.enabled=false"];
        let release = Release::install_as(&ns, name, name, &settings).await;
        let broker = release.broker().start().await;
        ns.provider(&idp).await;
        ns.apply(credential("billing")).await;
        releases.push((ns, release, broker));
    }
    for (ns, ..) in &releases {
        ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    }
    for (ns, release, broker) in &mut releases {
        broker.terminate().await;
        let places: BTreeSet<_> = release.served().into_iter().map(|event| event.namespace).collect();
        // The Lease is in the first namespace. A request without a namespace has an empty one.
        assert_eq!(
            places.iter().filter(|place| !place.is_empty()).collect::<BTreeSet<_>>(),
            BTreeSet::from([&release.home, &ns.name])
        );
    }

    let green = &releases[1].1;
    let mut helm = cluster.command("helm");
    process::output(helm.args(["uninstall", &green.name, "--namespace", &green.home, "--no-hooks"]));
    let (ns, blue, broker) = &mut releases[0];
    broker.again().await;
    ns.apply(credential("after")).await;
    ns.condition::<MailCredential>("after", "Ready", "TokenValid").await;
    blue.served();

    // The names of ClusterRoles contain the name of the release.
    process::output(&mut helm_install(&cluster, "mail-token-broker", "a", &["crds.enabled=false"]));
    let refusal = process::try_output(&mut helm_install(&cluster, "mail-token-broker", "b", &["crds.enabled=false"]));
    let refusal = refusal.unwrap_err();
    assert!(refusal.contains("ClusterRole") && refusal.contains("invalid ownership metadata"), "{refusal}");
}

fn helm_install(cluster: &Cluster, name: &str, namespace: &str, settings: &[&str]) -> Command {
    let mut helm = cluster.command("helm");
    helm.args(["install", name, "--create-namespace", "--namespace", namespace]);
    helm.arg(process::root().join("charts/mail-token-broker"));
    helm.args(settings.iter().flat_map(|setting| ["--set", setting]));
    helm
}

/// Writes a kubeconfig for the ServiceAccount of this token.
fn as_account(cluster: &Cluster, kubeconfig: &Path, token: &str) {
    fs::copy(cluster.kubeconfig(), kubeconfig).unwrap();
    let credentials = ["config", "set-credentials", "broker", &format!("--token={}", token.trim())].map(str::to_owned);
    let context = ["config", "set-context", "--current", "--user=broker"].map(str::to_owned);
    for words in [credentials.as_slice(), &context] {
        let mut kubectl = cluster.kubectl();
        process::output(kubectl.env("KUBECONFIG", kubeconfig).args(words));
    }
}

/// An installed chart. Its account has the name of the release.
struct Release {
    cluster: Cluster,
    name: String,
    home: String,
    kubeconfig: PathBuf,
    flags: Vec<String>,
}

impl Release {
    async fn install(ns: &Namespace, settings: &[&str]) -> Self {
        Self::install_as(ns, ACCOUNT, HOME, settings).await
    }

    /// Installs the chart in the namespace `home` on the cluster of `ns`, and creates `home`.
    async fn install_as(ns: &Namespace, name: &str, home: &str, settings: &[&str]) -> Self {
        let cluster = ns.cluster.clone();
        ns.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": home}})).await;
        let settings = [&["allowPrivateCIDRs={127.0.0.0/8}"], settings].concat();
        // The CRDs exist already, as after `kubectl apply`.
        process::output(helm_install(&cluster, name, home, &settings).arg("--take-ownership"));

        let token = process::output(cluster.kubectl().args(["-n", home, "create", "token", name]));
        let kubeconfig = cluster.dir().join(format!("{name}.kubeconfig"));
        as_account(&cluster, &kubeconfig, &token);

        let query = ["-n", home, "get", "deployment", name, "-o", "jsonpath={.spec.template.spec.containers[0].args}"];
        let arguments: Vec<String> = serde_json::from_str(&process::output(cluster.kubectl().args(query))).unwrap();
        assert_eq!(arguments[0], "run");
        Self { cluster, name: name.to_owned(), home: home.to_owned(), kubeconfig, flags: arguments[1..].to_vec() }
    }

    /// Returns the settings of the broker in the chart's pod. In a pod, the namespace is in a file; here it is a flag.
    fn broker(&self) -> broker::Settings {
        let settings = Broker::bare(&self.kubeconfig).flag(format!("--broker-namespace={}", self.home));
        self.flags.iter().fold(settings, |settings, flag| settings.flag(flag))
    }

    /// Returns the audit events of the broker's requests.
    fn events(&self) -> Vec<AuditEvent> {
        let user = format!("system:serviceaccount:{}:{}", self.home, self.name);
        self.cluster.audit_where(|event| event.user == user)
    }

    /// Returns the audit events of the broker's requests. Fails if the API server refused one.
    fn served(&self) -> Vec<AuditEvent> {
        let events = self.events();
        let refused: Vec<_> = events.iter().filter(|event| event.code == 401 || event.code == 403).collect();
        assert!(refused.is_empty(), "{refused:#?}");
        events
    }

    /// Checks that the API server refused no request, and that the broker used every right.
    fn compare(&self) {
        let events = self.served();
        // Every user may send these reviews of their own rights.
        let used = events.into_iter().filter(|event| event.access.group != "authorization.k8s.io");
        let used: BTreeSet<_> = used.map(|event| event.access).collect();
        let granted = self.granted();
        let excess: Vec<_> = granted.difference(&used).collect();
        assert!(excess.is_empty(), "granted, but not used: {excess:#?}");
        let missing: Vec<_> = used.difference(&granted).collect();
        assert!(missing.is_empty(), "used, but granted by others than the chart: {missing:#?}");
    }

    /// Returns the rights in the release's roles, without the roles for users.
    fn granted(&self) -> BTreeSet<Access> {
        let selector = format!("app.kubernetes.io/instance={}", self.name);
        let roles = ["get", "clusterroles,roles", "--all-namespaces", "-o", "json", "-l", &selector].map(str::to_owned);
        let roles: Value = serde_json::from_str(&process::output(self.cluster.kubectl().args(roles))).unwrap();
        let for_people =
            |role: &Value| role.pointer("/metadata/labels/rbac.authorization.k8s.io~1aggregate-to-admin").is_some();
        let words = |rule: &Value, field: &str| -> Vec<String> { serde_json::from_value(rule[field].clone()).unwrap() };
        let mut granted = BTreeSet::new();
        for role in roles["items"].as_array().unwrap().iter().filter(|role| !for_people(role)) {
            for rule in role["rules"].as_array().unwrap() {
                for group in words(rule, "apiGroups") {
                    for resource in words(rule, "resources") {
                        for verb in words(rule, "verbs") {
                            granted.insert(Access { group: group.clone(), resource: resource.clone(), verb });
                        }
                    }
                }
            }
        }
        granted
    }
}

/// Makes the broker do all of its work for a credential and its provider in one namespace.
async fn whole_life(ns: &Namespace, idp: &Idp) {
    // The broker obtains the first token and renews it.
    idp.next(Answer::token(4));
    ns.provider(idp).await;
    ns.apply(credential("billing")).await;
    ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    holds_token(ns, idp, 2).await;

    // The broker repairs the Secret.
    ns.patch::<Secret>("billing", json!({"stringData": {"access_token": "wrong"}})).await;
    holds_token(ns, idp, 3).await;
    let uid = ns.get::<Secret>("billing").await.metadata.uid;
    ns.api::<Secret>().delete("billing", &Default::default()).await.unwrap();
    ns.until::<Secret>("billing", "it is made again", |secret| secret.metadata.uid != uid).await;

    // The same problem occurs twice, which makes one Event with a count. Each time, the next token ends the problem.
    for round in ["1", "2"] {
        for (answer, reason) in
            [(Answer::error("invalid_client"), "InvalidClient"), (Answer::token(3600), "RenewalSucceeded")]
        {
            idp.answer(answer);
            ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", &format!("{round} {reason}")).await;
            ns.condition::<MailCredential>("billing", "Renewed", reason).await;
        }
    }

    // Change the client, the CA bundle, and the name of the Secret.
    idp.forget();
    ns.apply(provider(idp).set("spec.client.id", "another")).await;
    assert_eq!(idp.token_requests_reach(1).await[0].form()["client_id"], "another");
    let bundle: ConfigMap = ns.get("idp-ca").await;
    let twice = bundle.data.unwrap()["ca.crt"].repeat(2);
    ns.patch::<ConfigMap>("idp-ca", json!({"data": {"ca.crt": twice}})).await;
    let last = credential("billing").set("spec.secret.name", "elsewhere").set("spec.revocationPolicy", "OnDelete");
    ns.apply(last).await;
    ns.until::<Secret>("elsewhere", "it holds a token", |secret| secret.data.is_some()).await;
    ns.gone::<Secret>("billing").await;

    ns.delete::<MailCredential>("billing").await;
    ns.delete::<MailProvider>("idp").await;
}

/// Waits until the Secret contains the token with this number in the order of issue.
async fn holds_token(ns: &Namespace, idp: &Idp, number: usize) {
    let issued = async || idp.issued().get(number - 1).cloned().ok_or_else(String::new);
    let token = until(&format!("{number} tokens are issued"), issued).await;
    let holds = |secret: &Secret| secret.data.as_ref().is_some_and(|data| data["access_token"].0 == token.as_bytes());
    ns.until::<Secret>("billing", &format!("it holds {token}"), holds).await;
}

/// Makes the broker claim, rotate and store a refresh token, and repair labels and a type that another writer removed.
/// The admission policy must allow each of these writes.
async fn grant_life(ns: &Namespace) {
    let idp = Strict::start();
    idp.client("mailer", Some("a client secret"));
    ns.apply(source("idp-client", "client-secret", "a client secret")).await;
    refresh_fixture::provider(ns, &idp).await;
    let seed = idp.refresh_token("mailer", "granted@example.org", "mail");
    ns.apply(source("seed", "refresh_token", &seed)).await;
    ns.apply(by_seed("granted")).await;
    ns.condition::<MailCredential>("granted", "Ready", "TokenValid").await;

    let managed = |secret: &Secret| {
        secret.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key("app.kubernetes.io/managed-by"))
    };
    for name in ["granted", "granted-grant"] {
        ns.patch::<Secret>(name, json!({"metadata": {"labels": null}})).await;
        ns.until::<Secret>(name, "its labels are back", managed).await;
    }
    for round in ["1", "2"] {
        ns.annotate::<MailCredential>("granted", "mailtoken.dev/reissue", round).await;
        let handled = |it: &MailCredential| field(it, "/status/lastHandledReissue") == round;
        ns.until::<MailCredential>("granted", "another token", handled).await;
    }

    // The Secret has the credential as owner, but another type: the broker deletes it and creates it again.
    ns.apply(by_seed("granted").set("spec.suspend", true)).await;
    ns.condition::<MailCredential>("granted", "Renewed", "Suspended").await;
    let target: Secret = ns.get("granted").await;
    ns.api::<Secret>().delete("granted", &Default::default()).await.unwrap();
    let (labels, owners) = (target.metadata.labels, target.metadata.owner_references);
    let another = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "example.org/other",
        "metadata": {"name": "granted", "labels": labels, "ownerReferences": owners},
    });
    ns.apply(another).await;
    ns.apply(by_seed("granted")).await;
    let opaque = |secret: &Secret| secret.type_.as_deref() == Some("Opaque") && secret.data.is_some();
    ns.until::<Secret>("granted", "it is of the broker's type", opaque).await;

    // The grant Secret stays, and a new credential takes it over.
    ns.apply(by_seed("granted").set("spec.secret.deletionPolicy", "Retain")).await;
    ns.until::<Secret>("granted-grant", "it has no owner", |secret| secret.metadata.owner_references.is_none()).await;
    ns.delete::<MailCredential>("granted").await;
    ns.apply(by_seed("granted")).await;
    ns.condition::<MailCredential>("granted", "Ready", "TokenValid").await;
    ns.until::<Secret>("granted-grant", "it has an owner", |secret| secret.metadata.owner_references.is_some()).await;
    ns.delete::<MailCredential>("granted").await;
    ns.delete::<MailProvider>("idp").await;
}

/// Adds a provider with a ServiceAccount token as client authentication.
async fn federated(ns: &Namespace, idp: &Idp) {
    let account = Manifest(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "mailer"}}));
    let audience = "api://AzureADTokenExchange";
    ns.apply(account.entry("metadata.annotations", "mailtoken.dev/allowed-audiences", audience)).await;
    let token = json!({"audience": "api://AzureADTokenExchange", "serviceAccountRef": {"name": "mailer"}});
    ns.apply(provider(idp).set("spec.client.authentication", json!([{"serviceAccountToken": token}]))).await;
    ns.apply(credential("vouched")).await;
    ns.condition::<MailCredential>("vouched", "Ready", "TokenValid").await;
}

/// Adds a ClusterMailProvider, whose objects are in the broker's namespace.
async fn cluster_provider(ns: &Namespace, idp: &Idp) {
    let mut kubectl = ns.cluster.kubectl();
    process::output(kubectl.args(["label", "namespace", &ns.name, "mail=yes"]));
    let home = Namespace { name: HOME.to_owned(), cluster: ns.cluster.clone(), client: ns.client.clone() };
    home.apply(ca_bundle("idp-ca", idp)).await;
    home.apply(source("idp-client", "client-secret", "a client secret")).await;
    let allowed = json!([{"namespaceSelector": {"matchLabels": {"mail": "yes"}}, "mailboxes": ["*@example.org"]}]);
    home.apply(provider(idp).set("kind", "ClusterMailProvider").set("spec.allowed", allowed)).await;
    ns.apply(credential("shared").set("spec.providerRef.kind", "ClusterMailProvider")).await;
    ns.condition::<MailCredential>("shared", "Ready", "TokenValid").await;
}
