//! Checks the rendered Helm chart, with every file of values in `ci/`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Parser as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use mail_token_broker::cli::{self, Cli};
use mailtoken_testkit::*;
use serde::Deserialize as _;
use serde_json::{Value, json};

fn chart() -> PathBuf {
    process::root().join("charts/mail-token-broker")
}

fn run(tool: &str) -> Command {
    let mut command = Command::new(process::tool("run"));
    command.arg(tool).env("HELM_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Returns the name and the file of each combination of values; the defaults have no file.
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

/// The kinds that a cluster has when Helm installs the chart. `helm template` alone assumes none.
const KINDS: [&str; 4] =
    ["--api-versions", "v1/Secret", "--api-versions", "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"];

/// Renders the chart as Helm does when it installs the chart.
fn render_installed(values: Option<&Path>) -> String {
    process::output(helm(&["template", "broker", "--namespace", "mail"], values).args(KINDS))
}

fn documents(yaml: &str) -> Vec<Value> {
    let all = serde_yaml::Deserializer::from_str(yaml).map(|document| Value::deserialize(document).unwrap());
    all.filter(|document| !document.is_null()).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// Runs `make chart`: lint, the schemas of Kubernetes, the alerts, and the unit tests in `charts/*/tests`.
#[test]
fn the_charts_pass_their_own_checks() {
    process::output(&mut Command::new(process::tool("chart")));
}

/// The golden files contain the rights of the broker and of users. `UPDATE_GOLDEN=1` writes the files again. Check the
/// diff.
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

/// Removes the labels that change with every release. Keeps labels that give rights.
fn bare(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(labels) = object.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.retain(|name, _| name.starts_with("rbac.authorization.k8s.io/"));
    }
    object
}

#[test]
fn no_role_grants_what_the_broker_never_needs() {
    // The account of the uninstall hook lists pods. No account may run commands in pods.
    let never = ["pods/exec", "validatingwebhookconfigurations", "customresourcedefinitions", "*"];
    for (name, values) in combinations() {
        for role in documents(&render_installed(values.as_deref())) {
            for rule in role["rules"].as_array().into_iter().flatten() {
                let words = |field: &str| rule[field].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
                // The broker reads what a ServiceAccount allows, and has no further rights on it.
                let reads = words("verbs").eq(["get"]);
                assert!(reads || !words("resources").any(|word| word == "serviceaccounts"), "{name}: {rule}");
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
    // Parse the CRDs, because Helm formats whole numbers differently.
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
        let objects = documents(&render_installed(values.as_deref()));
        let container = &of_kind(&objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0];
        let arguments: Vec<_> = match container["args"].as_array() {
            Some(given) => given.iter().map(|argument| argument.as_str().unwrap()).collect(),
            None => vec!["run"], // the image's own command
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

        let rules = of_kind(&objects, "Role").into_iter().flat_map(|role| role["rules"].as_array().unwrap());
        let leases = rules.filter(|rule| rule["resources"] == json!(["leases"]) && rule["verbs"] != json!(["create"]));
        for rule in leases {
            assert_eq!(rule["resourceNames"], json!([settings.lease_name]), "{name}: no other lease may be taken");
        }

        let Some(job) = of_kind(&objects, "Job").first().map(|job| &job["spec"]["template"]["spec"]["containers"][0])
        else {
            assert_eq!(name, "single", "without roles of the chart there is no hook");
            continue;
        };
        let arguments = job["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
        let parsed = Cli::try_parse_from(["mail-token-broker"].into_iter().chain(arguments));
        let cli::Command::Stop(settings) = parsed.unwrap_or_else(|error| panic!("{name}: {error}")).command else {
            panic!("{name}: {job}");
        };
        let deployment = &of_kind(&objects, "Deployment")[0]["metadata"];
        assert_eq!(
            (&json!(settings.deployment), &json!(settings.namespace)),
            (&deployment["name"], &deployment["namespace"])
        );
    }
}

/// `kubectl apply` does not know Helm's hooks: it would stop the brokers that it has just installed.
#[test]
fn the_hook_that_stops_the_brokers_is_there_only_where_helm_installs() {
    for (name, values) in combinations() {
        let hooks = |rendered: &str| {
            let objects = documents(rendered).into_iter();
            objects.filter(|object| !object["metadata"]["annotations"]["helm.sh/hook"].is_null()).collect::<Vec<_>>()
        };
        assert!(hooks(&render(values.as_deref(), &[])).is_empty(), "{name}");
        let hooks = hooks(&render_installed(values.as_deref()));
        if name == "single" {
            assert!(hooks.is_empty(), "it needs roles that another user creates");
            continue;
        }
        for hook in &hooks {
            assert_eq!(hook["metadata"]["annotations"]["helm.sh/hook"], "pre-delete", "{hook}");
        }
        let deployment = if name == "default" || name == "all-on" { "broker-mail-token-broker" } else { continue };
        let role = of_kind(&hooks, "Role")[0];
        assert_eq!(
            role["rules"],
            json!([
                {"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": [deployment], "verbs": ["get"]},
                {"apiGroups": ["apps"], "resources": ["deployments/scale"], "resourceNames": [deployment], "verbs": ["patch"]},
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
            ])
        );
        assert!(of_kind(&hooks, "ClusterRole").is_empty());
    }
}

/// In these cases Helm installs nothing. Its error names the place of the mistake, and the versions.
#[test]
fn a_values_file_with_typos_and_an_older_cluster_are_refused() {
    let values = Path::new(env!("CARGO_TARGET_TMPDIR")).join("typos.yaml");
    fs::write(&values, "replicas: 3\nnetworkPolicy: {enable: true}\n").unwrap();
    for (name, good) in [("mail-token-broker", "single-values.yaml"), ("mail-token-relay", "one-values.yaml")] {
        let chart = process::root().join("charts").join(name);
        let refusal = |values: &Path, more: &[&str]| {
            let mut helm = run("helm");
            helm.arg("template").arg("x").arg(&chart).arg("--values").arg(values).args(more);
            process::try_output(&mut helm).unwrap_err()
        };
        let typos = refusal(&values, &[]);
        for said in ["'': additional properties 'replicas'", "'/networkPolicy': additional properties 'enable'"] {
            assert!(typos.contains(said), "{typos}");
        }
        let older = refusal(&chart.join("ci").join(good), &["--kube-version", "1.30.9"]);
        for said in ["requires kubeVersion: >=1.31", "v1.30.9"] {
            assert!(older.contains(said), "{older}");
        }
    }
}

/// Renders the chart with these values.
fn render_with(values: &Value, more: &[&str]) -> String {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{:016x}-values.yaml", {
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        std::hash::Hash::hash(&values.to_string(), &mut hasher);
        std::hash::Hasher::finish(&hasher)
    }));
    fs::write(&file, serde_yaml::to_string(values).unwrap()).unwrap();
    process::output(helm(&["template", "broker", "--namespace", "mail"], Some(&file)).args(more))
}

#[test]
fn a_label_that_the_user_sets_too_occurs_once_with_the_users_value() {
    let own = json!({
        "app.kubernetes.io/name": "theirs", "app.kubernetes.io/instance": "theirs", "app.kubernetes.io/part-of": "theirs",
        "app.kubernetes.io/version": "theirs", "app.kubernetes.io/managed-by": "theirs", "helm.sh/chart": "theirs",
    });
    let values = json!({
        "commonLabels": own, "podLabels": {"app.kubernetes.io/name": "pods", "helm.sh/chart": "pods"},
        "podAnnotations": {"kubectl.kubernetes.io/default-container": "theirs"},
        "serviceAccount": {"labels": own}, "extraEnv": [{"name": "POD_UID", "value": "theirs"}],
        "metrics": {
            "serviceMonitor": {"enabled": true, "labels": own},
            "prometheusRule": {"enabled": true, "labels": own, "alertLabels": {"severity": "page"}},
        },
    });
    let rendered = render_with(&values, &KINDS);
    // `serde_yaml` rejects a key that occurs twice.
    for document in serde_yaml::Deserializer::from_str(&rendered) {
        serde_yaml::Value::deserialize(document).unwrap_or_else(|error| panic!("{error}\n{rendered}"));
    }
    let objects = documents(&rendered);
    for object in objects.iter().filter(|object| object["metadata"]["annotations"]["helm.sh/hook"].is_null()) {
        for (name, value) in own.as_object().unwrap() {
            assert_eq!(&object["metadata"]["labels"][name], value, "{object}");
        }
    }
    let deployment = of_kind(&objects, "Deployment")[0];
    let pods = json!({"app.kubernetes.io/name": "pods", "app.kubernetes.io/instance": "theirs"});
    let template = &deployment["spec"]["template"];
    assert_eq!(deployment["spec"]["selector"]["matchLabels"], pods);
    assert_eq!(template["metadata"]["labels"]["app.kubernetes.io/name"], "pods");
    assert_eq!(template["metadata"]["labels"]["helm.sh/chart"], "pods");
    assert_eq!(
        template["spec"]["containers"][0]["env"],
        json!([
            {"name": "MTB_METRICS_ADDR", "value": "[::]:8080"}, {"name": "POD_UID", "value": "theirs"},
        ])
    );
    assert_eq!(of_kind(&objects, "Service")[0]["spec"]["selector"], pods);
    assert_eq!(of_kind(&objects, "PodDisruptionBudget")[0]["spec"]["selector"]["matchLabels"], pods);
    let services = &of_kind(&objects, "ServiceMonitor")[0]["spec"]["selector"]["matchLabels"];
    assert_eq!(services["app.kubernetes.io/name"], "theirs");
    for rule in of_kind(&objects, "PrometheusRule")[0]["spec"]["groups"][0]["rules"].as_array().unwrap() {
        assert_eq!(rule["labels"]["severity"], "page", "{rule}");
    }
}

#[test]
fn a_parent_chart_switches_it_and_sets_what_is_global() {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).join("parent");
    fs::create_dir_all(parent.join("charts")).unwrap();
    let dependency = json!({"name": "mail-token-broker", "version": "*", "condition": "mail-token-broker.enabled"});
    let about = json!({"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]});
    fs::write(parent.join("Chart.yaml"), serde_yaml::to_string(&about).unwrap()).unwrap();
    let link = parent.join("charts/mail-token-broker");
    drop(fs::remove_file(&link));
    std::os::unix::fs::symlink(chart(), &link).unwrap();
    let render = |settings: &str| {
        let mut helm = run("helm");
        process::output(helm.args(["template", "p"]).arg(&parent).args(KINDS).args(["--set", settings]))
    };
    assert!(documents(&render("mail-token-broker.enabled=false")).is_empty());
    let settings = "mail-token-broker.enabled=true,mail-token-broker.x-anchor.a=b,global.other=x,\
                    global.imageRegistry=mirror.example.org:5000/all/,global.imagePullSecrets={a,b}";
    let objects = documents(&render(settings));
    for kind in ["Deployment", "Job"] {
        let pod = &of_kind(&objects, kind)[0]["spec"]["template"]["spec"];
        let image = pod["containers"][0]["image"].as_str().unwrap();
        assert!(image.starts_with("mirror.example.org:5000/all/mail-token-broker/mail-token-broker:"), "{image}");
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "a"}, {"name": "b"}]));
    }
    for (repository, image) in [("localhost/broker", "mirror/broker:v1"), ("team/broker", "mirror/team/broker:v1")] {
        let settings = ["global.imageRegistry=mirror", "image.tag=v1", &format!("image.repository={repository}")];
        let objects = documents(&self::render(None, &settings));
        assert_eq!(of_kind(&objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["image"], image);
    }
}

#[test]
fn the_chart_installs_the_dashboard_where_grafanas_sidecar_finds_it() {
    assert!(!render(None, &[]).contains("dashboard.json"));
    let set = ["dashboard.enabled=true", "dashboard.namespace=grafana", "dashboard.annotations.grafana_folder=Mail"];
    let objects = documents(&render(None, &set));
    let found = of_kind(&objects, "ConfigMap")[0];
    assert_eq!(found["metadata"]["namespace"], "grafana");
    assert_eq!(found["metadata"]["labels"]["grafana_dashboard"], "1");
    assert_eq!(found["metadata"]["annotations"], json!({"grafana_folder": "Mail"}));
    let text = found["data"]["mail-token-broker.json"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), super::dashboard::dashboard());
}

/// Collects the paths of the values, such as `metrics.port`, down to values that are not objects with fixed fields.
fn described(schema: &Value, path: &str, found: &mut BTreeMap<String, bool>) {
    for (name, value) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        found.insert(path.clone(), value["description"].as_str().is_some_and(|text| text.len() > 10));
        described(value, &path, found);
    }
}

#[test]
fn every_value_is_described_and_has_its_default() {
    for chart in [chart(), process::root().join("charts/mail-token-relay")] {
        let name = chart.display();
        let schema = fs::read_to_string(chart.join("values.schema.json")).unwrap();
        let mut all = BTreeMap::new();
        described(&serde_json::from_str(&schema).unwrap(), "", &mut all);
        let mute: Vec<_> = all.iter().filter(|(_, described)| !**described).map(|(path, _)| path).collect();
        assert!(mute.is_empty(), "{name}: no description: {mute:?}");
        let values: Value = serde_yaml::from_str(&fs::read_to_string(chart.join("values.yaml")).unwrap()).unwrap();
        for path in all.keys().filter(|path| *path != "enabled") {
            let pointer = format!("/{}", path.replace('.', "/"));
            assert!(values.pointer(&pointer).is_some(), "{name}: values.yaml has no {path}");
        }
    }
}

#[test]
fn the_readme_of_the_chart_lists_every_value() {
    let schema: Value = serde_json::from_str(&fs::read_to_string(chart().join("values.schema.json")).unwrap()).unwrap();
    let mut all = BTreeMap::new();
    described(&schema, "", &mut all);
    let readme = fs::read_to_string(chart().join("README.md")).unwrap();
    let reported = |path: &str| {
        let (parent, last) = path.rsplit_once('.').unwrap_or(("", path));
        readme.contains(&format!("`{path}`"))
            || (readme.contains(&format!("`{parent}.")) && readme.contains(&format!("`.{last}`")))
    };
    let objects = |path: &str| schema.pointer(&format!("/properties/{}", path.replace('.', "/properties/"))).unwrap();
    for path in
        all.keys().filter(|path| objects(path)["properties"].is_null() && !path.starts_with("metrics.podMonitor."))
    {
        assert!(reported(path), "the chart's README.md does not list {path}");
    }
}

/// The API server admits the objects of the relay's chart, including the pod.
#[tokio::test]
async fn the_relays_objects_are_admitted_where_pods_are_restricted() {
    let labels = [("pod-security.kubernetes.io/enforce", "restricted")].into();
    let ns = Namespace::create(Cluster::shared(), labels).await;
    ns.apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}})).await;
    let chart = process::root().join("charts/mail-token-relay");
    for name in ["one", "all"] {
        let values = chart.join(format!("ci/{name}-values.yaml"));
        let mut helm = run("helm");
        helm.args(["template", "relay", "--namespace", &ns.name]).arg(&chart).arg("--values").arg(values);
        let objects = documents(&process::output(helm.args(["--set", "priorityClassName="])));
        assert_eq!(objects.len(), 4, "{objects:?}");
        let template = of_kind(&objects, "Deployment")[0]["spec"]["template"].clone();
        for object in objects {
            ns.apply(object).await;
        }
        let labels = &template["metadata"]["labels"];
        let metadata = json!({"name": format!("relay-{name}"), "labels": labels});
        ns.apply(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})).await;
    }
}

#[tokio::test]
async fn the_pods_are_admitted_where_pods_are_restricted() {
    let labels = [("pod-security.kubernetes.io/enforce", "restricted")].into();
    let ns = Namespace::create(Cluster::shared(), labels).await;
    for (name, values) in combinations() {
        let set = ["--set", "serviceAccount.name=broker,priorityClassName="];
        let mut helm = helm(&["template", "broker", "--namespace", "mail"], values.as_deref());
        let objects = documents(&process::output(helm.args(KINDS).args(set)));
        ns.apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "broker"}})).await;
        for kind in ["Deployment", "Job"] {
            let Some(object) = of_kind(&objects, kind).first().copied() else { continue };
            let mut template = object["spec"]["template"].clone();
            template["spec"]["serviceAccountName"] = json!("broker");
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("{name}-{}", kind.to_lowercase()), "labels": template["metadata"]["labels"]},
                "spec": template["spec"],
            });
            ns.apply(pod).await;
        }
    }
    let mut careless = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "careless"}});
    careless["spec"] = json!({"serviceAccountName": "broker", "containers": [{"name": "a", "image": "a"}]});
    let refusal = ns.try_apply(careless).await.unwrap_err().to_string();
    assert!(refusal.contains("restricted"), "{refusal}");
}
