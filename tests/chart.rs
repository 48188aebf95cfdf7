//! The Helm chart as it is rendered, in every combination of values that `ci/` has.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a test's failure")]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use clap::Parser as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use mail_token_broker::cli::{self, Cli};
use serde::Deserialize as _;
use serde_json::{Value, json};
use support::*;

fn chart() -> PathBuf {
    process::root().join("charts/mail-token-broker")
}

fn run(tool: &str) -> Command {
    let mut command = Command::new(process::tool("run"));
    command.arg(tool).env("HELM_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Names of combinations of values, and the file; the defaults need none.
fn combinations() -> Vec<(String, Option<PathBuf>)> {
    let files = fs::read_dir(chart().join("ci")).unwrap().map(|entry| entry.unwrap().path());
    let named = files.filter_map(|file| {
        let name = file.file_name()?.to_str()?.strip_suffix("-values.yaml")?.to_owned();
        Some((name, Some(file)))
    });
    let mut all: Vec<_> = named.chain([("default".to_owned(), None)]).collect();
    all.sort();
    assert!(all.len() >= 4, "{all:?}");
    all
}

fn helm(words: &[&str], values: Option<&Path>) -> Command {
    let mut command = run("helm");
    command.args(words).arg(chart());
    if let Some(values) = values {
        command.arg("--values").arg(values);
    }
    command
}

fn render(values: Option<&Path>, settings: &[&str]) -> String {
    let sets = settings.iter().flat_map(|setting| ["--set", setting]);
    process::output(helm(&["template", "broker", "--namespace", "mail"], values).args(sets))
}

fn documents(yaml: &str) -> Vec<Value> {
    let all = serde_yaml::Deserializer::from_str(yaml).map(|document| Value::deserialize(document).unwrap());
    all.filter(|document| !document.is_null()).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

#[test]
fn lint_finds_nothing() {
    for (_, values) in combinations() {
        process::output(&mut helm(&["lint", "--strict"], values.as_deref()));
    }
}

#[test]
fn every_object_fits_the_schema_of_its_kind() {
    let location = format!("{}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json", schemas().display());
    for (name, values) in combinations() {
        let objects = render(values.as_deref(), &[]);
        let mut command = run("kubeconform");
        // Kinds of the Prometheus operator.
        command.args(["-strict", "-summary", "-output", "json", "-skip", "ServiceMonitor,PrometheusRule"]);
        command.args(["-schema-location", &location]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        process.stdin.take().unwrap().write_all(objects.as_bytes()).unwrap();
        let done = process.wait_with_output().unwrap();
        let told = String::from_utf8(done.stdout).unwrap();
        assert!(done.status.success(), "{name}: {told}");
        let summary = &serde_json::from_str::<Value>(&told).unwrap()["summary"];
        assert!(summary["valid"].as_u64() > Some(1), "{name}: {told}");
    }
}

/// Written once.
fn schemas() -> &'static Path {
    static SCHEMAS: OnceLock<PathBuf> = OnceLock::new();
    SCHEMAS.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kube-schemas");
        process::output(Command::new(process::tool("kube-schemas")).arg(&folder));
        folder
    })
}

/// What the broker and people may do is a constant. `UPDATE_GOLDEN=1` writes the files anew: read the difference.
#[test]
fn access_is_what_the_golden_files_say() {
    let kinds = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
    for (name, values) in combinations() {
        let mut objects = documents(&render(values.as_deref(), &[]));
        objects.retain(|object| kinds.iter().any(|kind| object["kind"] == *kind));
        let text: String =
            objects.iter().map(|object| format!("---\n{}", serde_yaml::to_string(&bare(object)).unwrap())).collect();
        let file = process::root().join(format!("tests/golden/rbac-{name}.yaml"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, &text).unwrap();
        }
        let golden = fs::read_to_string(&file).unwrap_or_default();
        assert!(text == golden, "{} says:\n{golden}\nThe chart says:\n{text}", file.display());
    }
}

/// Without the labels that change with every release, but with those that give rights.
fn bare(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(labels) = object.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.retain(|name, _| name.starts_with("rbac.authorization.k8s.io/"));
    }
    object
}

#[test]
fn nobody_is_given_what_the_broker_never_needs() {
    let never = ["pods/exec", "serviceaccounts", "validatingwebhookconfigurations", "customresourcedefinitions", "*"];
    for (name, values) in combinations() {
        for role in documents(&render(values.as_deref(), &[])) {
            for rule in role["rules"].as_array().into_iter().flatten() {
                let words = |field: &str| rule[field].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
                for word in words("apiGroups").chain(words("resources")).chain(words("verbs")) {
                    assert!(
                        !never.contains(&word) && !["escalate", "bind", "impersonate"].contains(&word),
                        "{name}: {rule}"
                    );
                }
            }
        }
    }
}

#[test]
fn single_namespaces_need_no_access_to_the_cluster() {
    let objects = documents(&render(None, &["namespaces={shop,billing}", "crds.enabled=false"]));
    for object in &objects {
        let kind = object["kind"].as_str().unwrap();
        assert!(!["ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"].contains(&kind), "{object}");
    }
    let places: Vec<_> = of_kind(&objects, "Role").into_iter().map(|role| &role["metadata"]["namespace"]).collect();
    assert_eq!(places, ["shop", "billing", "mail"], "the last one holds the lease");
}

#[test]
fn the_crds_are_those_of_the_repository_and_stay() {
    // Typed: Helm writes whole numbers as it likes.
    let typed = |crd: &Value| serde_json::from_value::<CustomResourceDefinition>(crd.clone()).unwrap();
    let plain: BTreeMap<_, _> = fs::read_dir(process::root().join("crds"))
        .unwrap()
        .flat_map(|entry| documents(&fs::read_to_string(entry.unwrap().path()).unwrap()))
        .map(|crd| (typed(&crd).metadata.name, typed(&crd).spec))
        .collect();
    for (setting, policy) in [("crds.keep=true", Some("keep")), ("crds.keep=false", None)] {
        let objects = documents(&render(None, &[setting]));
        let crds: Vec<_> = of_kind(&objects, "CustomResourceDefinition").into_iter().map(typed).collect();
        assert_eq!(crds.len(), plain.len());
        for crd in crds {
            assert!(plain.get(&crd.metadata.name) == Some(&crd.spec), "{:?}: run make crds", crd.metadata.name);
            let annotations = crd.metadata.annotations.unwrap_or_default();
            assert_eq!(annotations.get("helm.sh/resource-policy").map(String::as_str), policy);
        }
    }
}

#[test]
fn the_broker_knows_the_arguments_it_is_given() {
    for (name, values) in combinations() {
        let objects = documents(&render(values.as_deref(), &[]));
        let container = &of_kind(&objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0];
        let arguments: Vec<_> = match container["args"].as_array() {
            Some(given) => given.iter().map(|argument| argument.as_str().unwrap()).collect(),
            None => vec!["run"], // the image's own
        };
        let parsed = Cli::try_parse_from(["mail-token-broker"].iter().chain(&arguments));
        let cli::Command::Run(settings) = parsed.unwrap_or_else(|error| panic!("{name}: {error}")).command else {
            panic!("{name}: {arguments:?}");
        };
        let port = container["ports"][0]["containerPort"].as_u64().unwrap();
        assert_eq!(u64::from(settings.metrics_addr.port()), port, "{name}");
        let mounted = |file: PathBuf| {
            let folder = file.parent().unwrap().to_str();
            container["volumeMounts"].as_array().unwrap().iter().any(|mount| mount["mountPath"].as_str() == folder)
        };
        assert!(settings.identity_token_file.is_none_or(mounted), "{name}");
    }
}

#[test]
fn values_that_are_wrong_or_contradict_each_other_are_refused() {
    for (settings, said) in [
        (vec!["nonsense=1"], "nonsense"),
        (vec!["leaderElection.enabled=false"], "replicaCount=1"),
        (vec!["metrics.serviceMonitor.enabled=true", "metrics.service.enabled=false"], "metrics.service.enabled"),
        (vec!["metrics.prometheusRule.enabled=true"], "serviceMonitor.enabled"),
        (vec!["requestTimeout=soon"], "requestTimeout"),
        (vec!["identityToken.expirationSeconds=60"], "expirationSeconds"),
        (vec!["identityToken.audience= a"], "audience"),
        (vec!["allowPrivateCIDRs={10.0.0.0}"], "allowPrivateCIDRs"),
    ] {
        let sets = settings.iter().flat_map(|setting| ["--set", setting]);
        let refusal = process::try_output(helm(&["template", "broker"], None).args(sets)).unwrap_err();
        assert!(refusal.contains(said), "{settings:?}: {refusal}");
    }
}

#[test]
fn the_alerts_fire_when_they_should() {
    let set = ["metrics.serviceMonitor.enabled=true", "metrics.prometheusRule.enabled=true"];
    let objects = documents(&render(None, &set));
    let rules = &of_kind(&objects, "PrometheusRule")[0]["spec"];
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("alerts");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("alerts.yaml"), serde_yaml::to_string(rules).unwrap()).unwrap();
    fs::copy(chart().join("ci/alerts.test.yaml"), folder.join("alerts.test.yaml")).unwrap();
    // Debian: the package prometheus, which `tools/setup checks` installs.
    process::output(Command::new("promtool").args(["test", "rules", "alerts.test.yaml"]).current_dir(folder));
}

#[tokio::test]
async fn the_pods_are_admitted_where_pods_are_restricted() {
    let labels = [("pod-security.kubernetes.io/enforce", "restricted")].into();
    let ns = Namespace::create(Cluster::shared(), labels).await;
    for (name, values) in combinations() {
        let objects = documents(&render(values.as_deref(), &["serviceAccount.name=broker", "priorityClassName="]));
        let template = &of_kind(&objects, "Deployment")[0]["spec"]["template"];
        ns.apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "broker"}})).await;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": template["metadata"]["labels"]},
            "spec": template["spec"],
        });
        ns.apply(pod).await;
    }
    let mut careless = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "careless"}});
    careless["spec"] = json!({"serviceAccountName": "broker", "containers": [{"name": "a", "image": "a"}]});
    let refusal = ns.try_apply(careless).await.unwrap_err().to_string();
    assert!(refusal.contains("restricted"), "{refusal}");
}
