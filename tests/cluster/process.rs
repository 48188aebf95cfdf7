//! The broker as a process: two brokers, the shutdown, a start without CRDs, objects that the broker cannot parse.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Secret};
use k8s_openapi::jiff::SignedDuration;
use mail_token_broker::{
    api::{MailCredential, MailProvider},
    lease,
};
use mailtoken_testkit::{fault_log::tried, remedy, *};
use serde_json::json;

/// Time without an API server, in which the broker retries lists, watches and the lease.
const AWAY: Duration = Duration::from_secs(12);

async fn leader(first: &Broker, second: &Broker) -> bool {
    until("one leads", async || {
        let leads = (first.metric("mailtoken_leader", "").await, second.metric("mailtoken_leader", "").await);
        match leads {
            (Some(1.0), Some(0.0)) => Ok(true),
            (Some(0.0), Some(1.0)) => Ok(false),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

#[tokio::test]
async fn a_standby_continues_where_a_killed_leader_stopped_and_requests_nothing_twice() {
    let mut fixture = Fixture::new().await;
    let mut standby = Broker::start(&fixture.ns).await;
    fixture.issued(credential("before")).await;
    if !leader(&fixture.broker, &standby).await {
        std::mem::swap(&mut fixture.broker, &mut standby);
    }
    fixture.broker.kill();
    fixture.mark("after").await;
    fixture.ready("before").await;
    assert_eq!(fixture.idp.token_requests().len(), 2);
    assert_eq!(fixture.writes("mailcredentials/status", "before"), ["update"]);
    assert_eq!(fixture.writes("secrets", "before"), ["create"]);
    tried("F10", 1, "nothing");
}

#[tokio::test]
async fn the_metrics_show_reasons_and_providers_and_one_client_secret_is_one_series_and_one_event() {
    let fixture = Fixture::new().await;
    let Fixture { ns, idp, broker } = &fixture;
    let end = wait::now() + SignedDuration::from_hours(5 * 24);
    let secret = json!({"secretRef": {"name": "idp-client", "key": "client-secret"}, "expiresAt": end.to_string()});
    ns.apply(provider(idp).set("spec.client.authentication", json!([{"clientSecret": secret}]))).await;
    ns.condition::<MailProvider>("idp", "ClientCredentialExpiringSoon", "Within7d").await;
    ns.event_reasons_include("idp", &["Warning Within7d"]).await;
    for name in ["billing", "second", "off"] {
        fixture.issued(credential(name)).await;
        ns.condition::<MailCredential>(name, "ClientCredentialExpiringSoon", "Within7d").await;
    }
    ns.apply(credential("off").set("spec.suspend", true)).await;
    ns.condition::<MailCredential>("off", "Renewed", "Suspended").await;
    ns.apply(credential("bad").set("spec.providerRef.name", "none")).await;
    ns.condition::<MailCredential>("bad", "Ready", "ProviderNotFound").await;
    idp.next(Answer::error("invalid_scope"));
    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    ns.condition::<MailCredential>("billing", "Renewed", "InvalidScope").await;

    let shop = format!("namespace=\"{}\"", ns.name);
    let metric = async |name: &str, labels: &str| broker.metric(&format!("mailtoken_{name}"), labels).await;
    let of = |name: &str| format!("{shop},name=\"{name}\"");
    assert_eq!(metric("credential_not_ready", &format!("{},reason=\"ProviderNotFound\"", of("bad"))).await, Some(1.0));
    assert_eq!(metric("credential_not_ready", &of("billing")).await, None, "its token still serves");
    assert_eq!(metric("credential_suspended", &of("off")).await, Some(1.0));
    assert_eq!(metric("credential_suspended", &of("billing")).await, None);
    for name in ["token_expiration_timestamp_seconds", "token_renewal_timestamp_seconds"] {
        assert!(metric(name, &of("billing")).await.is_some() && metric(name, &of("off")).await.is_none(), "{name}");
    }
    let about = r#"provider_kind="MailProvider",provider="idp",preset="oauth2",grant="clientCredentials""#;
    assert_eq!(metric("credential_info", &format!("{},{about}", of("second"))).await, Some(1.0));
    let idp_labels = format!("kind=\"MailProvider\",{}", of("idp"));
    assert_eq!(metric("provider_ready", &idp_labels).await, Some(1.0));
    let refused = format!("{idp_labels},reason=\"InvalidScope\"");
    assert_eq!(metric("token_request_errors_total", &refused).await, Some(1.0));
    assert_eq!(metric("refresh_tokens_unstored", "").await, Some(0.0));
    assert!(broker.metric("process_open_fds", "").await.is_some());
    let metrics = broker.metrics().await;
    let ends: Vec<_> = metrics
        .lines()
        .filter(|line| {
            line.starts_with("mailtoken_client_credential_expiration_timestamp_seconds{") && line.contains(&shop)
        })
        .collect();
    let series = format!(
        "mailtoken_client_credential_expiration_timestamp_seconds{{kind=\"MailProvider\",{shop},provider=\"idp\"}} {}",
        end.as_second()
    );
    assert_eq!(ends, [series]);
    for name in ["billing", "second", "off"] {
        let reported = ns.event_reasons(name).await;
        assert!(!reported.iter().any(|event| event.contains("Within")), "{name}: {reported:?}");
    }
    assert!(broker.log().contains("mail-token-broker starts"));
}

#[tokio::test]
async fn a_killed_container_continues_immediately_with_the_lease_of_its_pod() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    ns.provider(&idp).await;
    let broker = Broker::settings(&ns).env("HOSTNAME", "broker-0").env("POD_UID", "a-pods-uid").start().await;
    let mut fixture = Fixture { ns, idp, broker };
    fixture.issued(credential("billing")).await;
    let held = |lease: Lease| lease.spec.map(|spec| (spec.holder_identity, spec.acquire_time, spec.lease_transitions));
    let before = held(fixture.ns.get(lease::NAME).await);
    assert_eq!(before.clone().unwrap().0.as_deref(), Some("broker-0_a-pods-uid"));

    fixture.broker.kill();
    fixture.broker.again().await;
    fixture.issued(credential("next")).await;
    assert_eq!(held(fixture.ns.get(lease::NAME).await), before, "no replica had to wait for its expiry");
}

#[tokio::test]
async fn a_leader_that_stops_finishes_its_request_and_releases_the_lease_immediately() {
    let mut fixture = Fixture::new().await;
    let mut standby = Broker::start(&fixture.ns).await;
    if !leader(&fixture.broker, &standby).await {
        std::mem::swap(&mut fixture.broker, &mut standby);
    }
    fixture.idp.next(Answer::token(3600).held());
    fixture.ns.apply(credential("billing")).await;
    fixture.idp.token_requests_reach(1).await;
    fixture.broker.signal("TERM");
    fixture.ns.apply(credential("next")).await;
    until("the leader leaves", async || match fixture.broker.log().contains("stopping") {
        true => Ok(()),
        false => Err(fixture.broker.log()),
    })
    .await;
    assert!(fixture.broker.ended().is_none(), "it waits for the answer");
    let holder = |lease: Lease| lease.spec.and_then(|spec| spec.holder_identity).filter(|name| !name.is_empty());
    let stopped = holder(fixture.ns.get(lease::NAME).await);
    fixture.idp.release();
    assert!(fixture.broker.terminate().await.success());
    assert_ne!(holder(fixture.ns.get(lease::NAME).await), stopped, "nobody waits until the lease expires");
    fixture.ready("billing").await;
    fixture.ready("next").await;
    assert_eq!(fixture.idp.token_requests().len(), 2, "the answer was not thrown away");
    let secret: Secret = fixture.ns.get("billing").await;
    assert_eq!(text(&secret, "access_token"), fixture.idp.issued()[0]);
    tried("F27", 1, "nothing");
}

#[tokio::test]
async fn a_broker_of_one_namespace_leaves_the_others_alone() {
    let fixture = Fixture::new().await;
    let other = Cluster::shared().namespace().await;
    other.provider(&fixture.idp).await;
    other.apply(credential("billing")).await;
    fixture.mark("mark").await;
    let object: MailCredential = other.get("billing").await;
    assert_eq!(field(&object, "/status"), json!({"observedGeneration": -1}));
    assert!(!other.audit().iter().any(|event| event.access.resource.contains("status")));
}

#[tokio::test]
async fn a_broker_waits_for_its_crds_and_skips_unreadable_objects() {
    let cluster = Cluster::alone(&["control-plane"]);
    let ns = cluster.namespace().await;
    let idp = Idp::start();
    let crds = process::root().join("crds");
    process::output(cluster.kubectl().args(["delete", "-f"]).arg(&crds));
    let mut broker = Broker::settings(&ns).launch();
    until("it lives and is not ready", async || match (broker.get("/livez").await, broker.get("/readyz").await) {
        (Ok((200, _)), Ok((503, _))) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let log = until("the log says that each CRD is missing", async || {
        let log = broker.log();
        let said = |kind: &str| log.contains(&format!("the CRD {kind}.mailtoken.dev is not installed"));
        let all = ["mailcredentials", "mailproviders", "clustermailproviders"].into_iter().all(said);
        if all { Ok(log) } else { Err(log) }
    })
    .await;
    let line = log.lines().find(|line| line.contains("is not installed")).unwrap();
    remedy::shell(&ns, remedy::quoted(line)[0]);
    process::output(cluster.kubectl().args(["wait", "--for=condition=Established", "crd", "--all"]));
    broker.ready().await;
    ns.provider(&idp).await;
    let mut fixture = Fixture { ns, idp, broker };
    fixture.issued(credential("good")).await;

    // As after a downgrade, the cluster has objects that only another version accepts.
    let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let schema = json!({"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": any});
    let fields = json!({"op": "remove", "path": "/spec/versions/0/selectableFields"});
    let relax = |crd: &str, patch: serde_json::Value| {
        process::output(cluster.kubectl().args(["patch", "crd", crd, "--type=json", "-p", &patch.to_string()]));
    };
    relax("mailcredentials.mailtoken.dev", json!([fields, schema]));
    relax("mailproviders.mailtoken.dev", json!([schema]));
    relax("clustermailproviders.mailtoken.dev", json!([schema]));
    let poison = |kind: &str, spec: serde_json::Value| {
        Manifest(json!({
            "apiVersion": "mailtoken.dev/v1alpha1", "kind": kind, "metadata": {"name": "poison"}, "spec": spec,
        }))
    };
    let place = |manifest: Manifest| {
        let ns = &fixture.ns;
        async move {
            until("the schema is relaxed", async || ns.try_apply(manifest.clone()).await.map_err(|e| e.to_string()))
                .await
        }
    };
    place(poison("MailCredential", json!({"grant": 7}))).await;
    place(poison("MailProvider", json!("nothing"))).await;
    place(poison("ClusterMailProvider", json!({"microsoft365": [1]}))).await;
    place(credential("newer").set("spec.protocols", json!(["SMTP", "JMAP"]))).await;
    fixture.mark("beside").await;
    fixture.broker.terminate().await;
    fixture.broker.again().await;
    fixture.mark("after-a-restart").await;
    fixture.ready("good").await;
    let log = fixture.broker.log();
    for (kind, name) in [
        ("MailCredential", "poison"),
        ("MailCredential", "newer"),
        ("MailProvider", "poison"),
        ("ClusterMailProvider", "poison"),
    ] {
        let reported = |line: &str| {
            line.contains("does not parse") && line.contains(&format!("kind={kind} ")) && line.contains(name)
        };
        assert!(log.lines().any(reported), "{kind} {name}");
    }
    // The status of each object reports the problem.
    for (kind, name) in [
        ("mailcredential", "poison"),
        ("mailcredential", "newer"),
        ("mailprovider", "poison"),
        ("clustermailprovider", "poison"),
    ] {
        let condition = |kind: &str| format!("jsonpath={{.status.conditions[?(@.type==\"{kind}\")].reason}}");
        until(&format!("{kind} {name} says that it cannot be read"), async || {
            let reported =
                ["Ready", "Stalled"].map(|type_| fixture.ns.kubectl(["get", kind, name, "-o", &condition(type_)]));
            if reported == ["InvalidSpec", "InvalidSpec"] { Ok(()) } else { Err(format!("{reported:?}")) }
        })
        .await;
    }
    // This credential was valid before: the broker no longer acts on its old spec, and a deletion removes its record.
    let before = fixture.idp.token_requests().len();
    place(credential("good").set("spec.protocols", json!(["JMAP"]))).await;
    fixture.ns.kubectl(["annotate", "mailcredential", "good", "mailtoken.dev/reissue=1"]);
    fixture.mark("after-it-was-good").await;
    fixture.ns.kubectl(["delete", "mailcredential", "good"]);
    fixture.mark("after-it-was-deleted").await;
    assert_eq!(fixture.idp.token_requests().len(), before + 2, "nothing was asked for the one that does not parse");
    for name in ["poison", "newer"] {
        fixture.ns.apply(credential(name)).await;
        fixture.ready(name).await;
    }
    assert_eq!(fixture.idp.token_requests().len(), 7);
    tried("F22", 5, "nothing");
}

#[tokio::test]
async fn no_core_is_dumped() {
    // A server that sends nothing keeps the broker waiting.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [],
        "clusters": [{"name": "c", "cluster": {"server": format!("https://{}", silent.local_addr().unwrap())}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
    });
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("silent.kubeconfig");
    fs::write(&file, kubeconfig.to_string()).unwrap();
    // Run as the user `nobody`, who reaches the files by the open descriptors.
    let script = r#"exec 8<"$0" 9<"$1"; shift
        exec setpriv --reuid=65534 --regid=65534 --clear-groups -- /proc/self/fd/9 "$@""#;
    let by_nobody = |program: &str, arguments: &[&str]| {
        let mut command = process::mortal("sh");
        command.args(["-c", script]).arg(&file).arg(program).args(arguments).env("KUBECONFIG", "/proc/self/fd/8");
        process::spawn(command).unwrap()
    };
    // If the kernel may dump a process, the process' files in /proc belong to its user. Otherwise they belong to root.
    let owner = |id: u32| fs::metadata(format!("/proc/{id}/fd")).unwrap().uid();
    let sleeping = by_nobody("/bin/sleep", &["600"]);
    until("an ordinary process is its user's", async || match owner(sleeping.id()) {
        65534 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    let mut broker = by_nobody(env!("CARGO_BIN_EXE_mail-token-broker"), &["run", "--metrics-addr=127.0.0.1:0"]);
    drop(silent.accept().unwrap());
    assert!(broker.try_wait().unwrap().is_none());
    assert_eq!(owner(broker.id()), 0);
    for mut child in [sleeping, broker] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Writes a kubeconfig for the same API server and port under a name that does not resolve here.
fn under_another_name(cluster: &Cluster, file: &str) -> std::path::PathBuf {
    let text = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
    let path = cluster.dir().join(file);
    std::fs::write(&path, text.replace("https://127.0.0.1:", "https://kubernetes.default.svc:")).unwrap();
    path
}

#[tokio::test]
async fn the_api_server_is_reached_through_the_proxy_of_the_environment_as_by_kubectl() {
    let ns = Cluster::shared().namespace().await;
    let port = ns.cluster.env("KUBE_SERVER").rsplit(':').next().unwrap().parse().unwrap();
    let proxy = mailtoken_testkit::proxy::Proxy::start(port);
    let kubeconfig = under_another_name(&ns.cluster, &format!("{}.kubeconfig", ns.name));
    let settings = || Broker::settings(&ns).kubeconfig(&kubeconfig).env("HTTPS_PROXY", proxy.url());
    let idp = Idp::start();
    ns.provider(&idp).await;
    let _broker = settings().env("NO_PROXY", "127.0.0.1,.cluster.local,").start().await;
    ns.apply(credential("billing")).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    let asked = proxy.asked();
    assert!(
        !asked.is_empty() && asked.iter().all(|host| *host == format!("kubernetes.default.svc:{port}")),
        "{asked:?}"
    );

    // With the name in NO_PROXY, the broker resolves the name on this machine, whose resolver does not know it.
    let broker = settings().env("NO_PROXY", ".svc").launch();
    until("the name is not found", async || {
        let log = broker.log();
        let reported = log.lines().find(|line| line.contains("API server not reachable"));
        reported.filter(|line| line.contains("https://kubernetes.default.svc")).map(drop).ok_or(log)
    })
    .await;
}

#[tokio::test]
async fn a_proxy_in_the_environment_is_not_used_for_an_api_server_on_this_machine() {
    let ns = Cluster::shared().namespace().await;
    // No server listens at this address.
    let _broker = Broker::settings(&ns).env("HTTPS_PROXY", "http://127.0.0.1:9").start().await;
}

#[tokio::test]
async fn each_call_to_the_api_server_names_the_broker_and_its_version() {
    let ns = Cluster::shared().namespace().await;
    let idp = Idp::start();
    ns.provider(&idp).await;
    let _broker = Broker::start(&ns).await;
    ns.apply(credential("billing")).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    let agent = concat!("mail-token-broker/", env!("CARGO_PKG_VERSION"));
    for resource in ["leases", "secrets", "mailcredentials/status"] {
        until(&format!("the audit log has a call for {resource}"), async || {
            let calls = ns.audit();
            let called = calls.iter().any(|call| call.access.resource == resource && call.agent == agent);
            if called { Ok(()) } else { Err(format!("{calls:?}")) }
        })
        .await;
    }
    let calls = ns.audit();
    assert!(calls.iter().all(|call| !call.agent.is_empty()), "{calls:?}");
}

#[tokio::test]
async fn while_the_api_server_is_away_the_log_says_so_once_with_its_address() {
    let cluster = Cluster::alone(&["control-plane"]);
    let broker = Broker::cluster_wide(&cluster).start().await;
    cluster.down("control-plane");
    let said = |words: &str| -> Vec<_> {
        broker.log().lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    };
    let away = || said("API server not reachable");
    until("the log says that the API server is away", async || {
        (!away().is_empty()).then_some(()).ok_or_else(String::new)
    })
    .await;
    assert!(away()[0].contains(&cluster.env("KUBE_SERVER")), "{:?}", away());
    holds(AWAY, "the log says it once, and calls it no error", async || match (away().len(), said("ERROR")) {
        (1, errors) if errors.is_empty() => Ok(()),
        (number, errors) => Err(format!("{number} times; {errors:?}")),
    })
    .await;
    cluster.up("control-plane");
    until("the log says that it is back", async || {
        let log = broker.log();
        log.contains("API server reachable again").then_some(()).ok_or(log)
    })
    .await;
}

#[tokio::test]
async fn two_installations_in_one_namespace_act_both_with_a_lease_each_and_say_so_without() {
    let fixture = Fixture::new().await;
    let other = Cluster::shared().namespace().await;
    other.provider(&fixture.idp).await;
    other.apply(credential("billing")).await;
    fixture.mark("the-first-leads").await;
    let second = || {
        let settings = Broker::cluster_wide(&other.cluster).flag(format!("--namespace={}", other.name));
        settings.flag(format!("--broker-namespace={}", fixture.ns.name))
    };
    let standby = second().start().await;
    until("it says that the lease is for another installation", async || {
        let log = standby.log();
        let reported = log.contains("--lease-name") && log.contains("the holder of the lease serves other namespaces");
        if reported { Ok(()) } else { Err(log) }
    })
    .await;
    let waiting: MailCredential = other.get("billing").await;
    assert_eq!(field(&waiting, "/status"), json!({"observedGeneration": -1}));
    drop(standby);
    let _second = second().flag("--lease-name=second").start().await;
    other.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    fixture.mark("the-first-leads-still").await;
}

#[tokio::test]
async fn two_installations_that_find_a_provider_differently_do_not_write_against_each_other_in_a_loop() {
    let Fixture { ns, idp, broker: _first } = Fixture::new().await;
    let other = Cluster::shared().namespace().await;
    // The second broker searches the client secret in its own namespace, which does not have it.
    let settings = Broker::cluster_wide(&ns.cluster).flag(format!("--namespace={}", ns.name));
    let _second = settings.flag(format!("--broker-namespace={}", other.name)).start().await;
    let name = format!("p-{}", ns.name);
    let selector = json!({"matchLabels": {"kubernetes.io/metadata.name": ns.name}});
    let shared = provider(&idp).set("kind", "ClusterMailProvider").set("metadata.name", name.as_str());
    ns.apply(shared.set("spec.allowed", json!([{"namespaceSelector": selector, "mailboxes": ["*@example.org"]}])))
        .await;
    let reference = json!({"kind": "ClusterMailProvider", "name": name});
    ns.apply(credential("billing").set("spec.providerRef", reference)).await;
    let writes = || {
        let of = |resource: &str, name: &str| {
            let audit = ns.cluster.audit().into_iter();
            let written = audit.filter(|event| event.access.resource == resource && event.name == name);
            written.filter(|event| ["patch", "update"].contains(&event.access.verb.as_str())).count()
        };
        [of("clustermailproviders/status", &name), of("mailcredentials/status", "billing")]
    };
    // The brokers overwrite each other's statuses until they detect the conflict.
    until("both write", async || match writes() {
        [provider, credential] if provider + credential >= 8 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let (before, time) = (writes(), std::time::Duration::from_secs(10));
    // The brokers write ten statuses of each object in the first second, then ever fewer. Both statuses are correct.
    holds(time, "the statuses are not written in a loop", async || {
        let so_far = writes();
        let more = [so_far[0] - before[0], so_far[1] - before[1]];
        if more.iter().all(|number| *number < 40) { Ok(()) } else { Err(format!("{more:?}")) }
    })
    .await;
}
