//! Renders the chart `charts/mail-token-relay` with each file of values in `ci/`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a test's failure")]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::Parser as _;
use mailtoken_relay::settings::{Cli, Settings};
use serde::Deserialize as _;
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn chart() -> PathBuf {
    root().join("charts/mail-token-relay")
}

fn tool(name: &str) -> Command {
    let mut command = Command::new(root().join("tools/run"));
    command.arg(name).env("HELM_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Returns the output of a command, or its error output if the command fails.
fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))),
    }
}

fn values(name: &str) -> PathBuf {
    chart().join(format!("ci/{name}-values.yaml"))
}

fn render(name: &str, sets: &[&str]) -> Result<String, String> {
    let sets = sets.iter().flat_map(|set| ["--set-json", set]);
    output(
        tool("helm")
            .args(["template", "relay", "--namespace", "shop"])
            .arg(chart())
            .arg("--values")
            .arg(values(name))
            .args(sets),
    )
}

fn documents(yaml: &str) -> Vec<Value> {
    let all = serde_yaml::Deserializer::from_str(yaml).map(|document| Value::deserialize(document).unwrap());
    all.filter(|document| !document.is_null()).collect()
}

fn of_kind(yaml: &str, kind: &str) -> Value {
    documents(yaml).into_iter().find(|object| object["kind"] == kind).unwrap()
}

#[test]
fn lint_finds_nothing() {
    for name in ["one", "all"] {
        output(tool("helm").args(["lint", "--strict"]).arg(chart()).arg("--values").arg(values(name))).unwrap();
    }
}

#[test]
fn every_object_fits_the_schema_of_its_kind() {
    let schemas = Path::new(env!("CARGO_TARGET_TMPDIR")).join("relay-kube-schemas");
    output(Command::new(root().join("tools/kube-schemas")).arg(&schemas)).unwrap();
    let location = format!("{}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json", schemas.display());
    for name in ["one", "all"] {
        let mut command = tool("kubeconform");
        command.args(["-strict", "-summary", "-output", "json", "-schema-location", &location]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        process.stdin.take().unwrap().write_all(render(name, &[]).unwrap().as_bytes()).unwrap();
        let done = process.wait_with_output().unwrap();
        let text = String::from_utf8(done.stdout).unwrap();
        assert!(done.status.success(), "{name}: {text}");
        let summary = &serde_json::from_str::<Value>(&text).unwrap()["summary"];
        assert_eq!(summary["valid"], 4, "{name}: {text}");
    }
}

#[test]
fn unsafe_values_are_refused() {
    for (set, named) in [
        ("mailboxes=[]", "/mailboxes"),
        ("logins=[]", "/logins"),
        (r#"tls={"secretName": ""}"#, "/tls/secretName"),
        (r#"networkPolicy.from=[]"#, "/networkPolicy/from"),
        ("protocols=[]", "/protocols"),
        (r#"protocols=["SMTP", "HTTP"]"#, "/protocols"),
        (r#"mailboxes=["../other"]"#, "/mailboxes"),
        (r#"withoutAuth="a@b.c""#, "withoutAuth"),
        (r#"smtpFallback=[{"first": "billing-mail-token", "second": "other"}]"#, "smtpFallback names other"),
    ] {
        let refused = render("one", &[set]).unwrap_err();
        assert!(refused.contains(named), "{set}: {refused}");
    }
    let schema: Value = serde_json::from_str(&fs::read_to_string(chart().join("values.schema.json")).unwrap()).unwrap();
    for (path, why) in [
        ("/properties/logins", "every pod that reaches the Service could use all mailboxes"),
        ("/properties/tls/properties/secretName", "in plain text"),
        ("/properties/networkPolicy/properties/from", "would allow every peer"),
        ("/properties/mailboxes", "nothing to serve"),
    ] {
        assert!(schema.pointer(path).unwrap()["description"].as_str().unwrap().contains(why), "{path}");
    }
}

/// `UPDATE_GOLDEN=1` writes the golden files again. Check the diff.
#[test]
fn the_objects_are_the_golden_ones() {
    for name in ["one", "all"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/chart-{name}.yaml"));
        let rendered = render(name, &[]).unwrap();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, &rendered).unwrap();
        }
        assert!(rendered == fs::read_to_string(&file).unwrap(), "{} differs", file.display());
    }
}

#[test]
fn the_relay_understands_its_arguments_and_starts_beyond_loopback() {
    for name in ["one", "all"] {
        let deployment = of_kind(&render(name, &[]).unwrap(), "Deployment");
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let arguments = container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
        let settings =
            Settings::new(Cli::try_parse_from(["relay"].into_iter().chain(arguments)).unwrap().flags).unwrap();
        let ports: Vec<_> = settings.listeners.iter().map(|listener| u64::from(listener.address.port())).collect();
        let declared =
            container["ports"].as_array().unwrap().iter().map(|port| port["containerPort"].as_u64().unwrap());
        let mut declared: Vec<_> = declared.filter(|port| *port != 8080).collect();
        declared.sort_by_key(|port| ports.iter().position(|other| other == port));
        assert_eq!(ports, declared);
        assert!(settings.listeners.iter().all(|listener| !listener.is_loopback()));
        assert!(
            settings.drain.as_secs()
                < deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap()
        );
    }
}

#[test]
fn the_service_has_the_ports_of_the_protocols_alone() {
    let ports = |sets: &[&str]| {
        let service = of_kind(&render("one", sets).unwrap(), "Service");
        let ports = service["spec"]["ports"].as_array().unwrap().iter().map(|port| port["port"].as_u64().unwrap());
        ports.collect::<Vec<_>>()
    };
    assert_eq!(ports(&[]), [587, 465, 143, 993, 110, 995]);
    assert_eq!(ports(&[r#"protocols=["IMAP"]"#]), [143, 993]);
}

#[test]
fn the_pods_are_restricted_and_have_no_token() {
    let pod = of_kind(&render("one", &[]).unwrap(), "Deployment")["spec"]["template"]["spec"].clone();
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(
        (&pod["securityContext"]["runAsNonRoot"], &pod["securityContext"]["seccompProfile"]["type"]),
        (&json!(true), &json!("RuntimeDefault"))
    );
    let container = &pod["containers"][0]["securityContext"];
    assert_eq!(container["allowPrivilegeEscalation"], false);
    assert_eq!(container["readOnlyRootFilesystem"], true);
    assert_eq!(container["capabilities"]["drop"], json!(["ALL"]));
    let kinds: Vec<_> = documents(&render("all", &[]).unwrap()).iter().map(|object| object["kind"].clone()).collect();
    assert_eq!(kinds, ["NetworkPolicy", "PodDisruptionBudget", "Service", "Deployment"]);
}

#[test]
fn the_network_policy_lets_only_the_named_peers_connect() {
    let policy = of_kind(&render("one", &[]).unwrap(), "NetworkPolicy");
    assert_eq!(policy["spec"]["ingress"].as_array().unwrap().len(), 1);
    assert_eq!(policy["spec"]["ingress"][0]["from"], json!([{"podSelector": {"matchLabels": {"app": "grafana"}}}]));
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    // Kubernetes treats a peer without a selector as no peer, so the chart renders `[{}]` as a rule for all peers.
    let policy = of_kind(&render("all", &[]).unwrap(), "NetworkPolicy");
    assert_eq!(policy["spec"]["ingress"][0]["from"], Value::Null);
    assert_eq!(policy["spec"]["ingress"][1]["ports"], json!([{"port": "metrics", "protocol": "TCP"}]));
}
