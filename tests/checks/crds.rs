//! Checks that the files that users install match the types, and that the workflows that make them are safe.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use mailtoken_testkit::*;
use serde::Deserialize as _;
use serde_json::Value;

#[test]
fn the_files_of_the_crds_are_those_that_the_broker_prints() {
    let printed = process::output(Command::new(env!("CARGO_BIN_EXE_mail-token-broker")).arg("crds"));
    let printed = by_name(&printed);
    assert_eq!(printed.len(), 3);
    for folder in ["crds", "charts/mail-token-broker/files/crds"] {
        assert_eq!(stored(&process::root().join(folder)), printed, "{folder} is old: run make crds");
    }
}

/// Argo CD compares a list as a whole. An item to which the API server adds a default never equals the item in git.
#[test]
fn no_item_of_a_list_has_a_default() {
    let crds = stored(&process::root().join("crds"));
    let found: Vec<_> = crds.values().flat_map(|crd| defaults(crd, "", false)).collect();
    assert!(found.is_empty(), "{found:#?}");
}

/// The API server stores, converts and sends each default with each object (docs/performance.md).
#[test]
fn the_spec_of_a_credential_has_only_the_defaults_that_expressions_of_users_read() {
    let crds = stored(&process::root().join("crds"));
    let found = defaults(&crds["mailcredentials.mailtoken.dev"], "", true);
    let in_spec: Vec<_> = found.iter().filter_map(|path| path.split_once("/properties/spec/")).collect();
    let versions = "/spec/versions/0/schema/openAPIV3Schema";
    assert_eq!(in_spec, [(versions, "properties/providerRef/properties/kind"), (versions, "properties/suspend")]);
}

/// Returns the paths of schemas with a default. Without `inside`, only of those inside `items`.
fn defaults(schema: &Value, path: &str, inside: bool) -> Vec<String> {
    let children = |part: String, value, inside| defaults(value, &format!("{path}/{part}"), inside);
    match schema {
        Value::Object(fields) => {
            let own =
                (inside && fields.contains_key("default") && fields.contains_key("type")).then(|| path.to_owned());
            let deeper = fields.iter().flat_map(|(name, value)| {
                children(name.clone(), value, inside || (name == "items" && path.contains("/spec")))
            });
            own.into_iter().chain(deeper).collect()
        }
        Value::Array(values) => {
            values.iter().enumerate().flat_map(|(at, value)| children(at.to_string(), value, inside)).collect()
        }
        _ => vec![],
    }
}

/// Returns the name, the text and the content of each workflow of this repository.
fn workflows() -> Vec<(String, String, Value)> {
    let files = fs::read_dir(process::root().join(".github/workflows")).unwrap().map(|entry| entry.unwrap().path());
    let read = |file: std::path::PathBuf| {
        let text = fs::read_to_string(&file).unwrap();
        let said = serde_yaml::from_str(&text).unwrap();
        (file.file_name().unwrap().to_str().unwrap().to_owned(), text, said)
    };
    files.map(read).collect()
}

fn steps(job: &Value) -> impl Iterator<Item = &Value> {
    job["steps"].as_array().unwrap().iter()
}

/// The owner of an action can move a tag to other code.
#[test]
fn every_action_is_pinned_by_its_commit() {
    let mut found = 0;
    for (file, text, _) in workflows() {
        for line in text.lines().filter_map(|line| line.split_once("uses:").map(|(_, used)| used.trim())) {
            let (used, version) =
                line.split_once(" # ").unwrap_or_else(|| panic!("{file}: {line}: no version beside it"));
            let (_, commit) = used.split_once('@').unwrap_or_else(|| panic!("{file}: {line}"));
            assert!(commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit()), "{file}: {line}");
            assert!(version.starts_with('v'), "{file}: {line}");
            found += 1;
        }
    }
    assert!(found >= 10, "only {found} actions found");
}

/// A build runs build scripts and tests of all dependencies. None of them may find a token that can publish or sign.
#[test]
fn no_job_that_can_publish_or_sign_runs_foreign_code() {
    // Programs of the runner and of cosign-installer.
    const PROGRAMS: [&str; 16] = [
        "set",
        "docker",
        "skopeo",
        "helm",
        "cosign",
        "gh",
        "jq",
        "sed",
        "grep",
        "echo",
        "printf",
        "sha256sum",
        "for",
        "done",
        "if",
        "(cd",
    ];
    const ACTIONS: [&str; 4] =
        ["actions/download-artifact", "actions/upload-artifact", "actions/attest", "sigstore/cosign-installer"];
    let (mut privileged, mut plain) = (0, 0);
    for (file, _, workflow) in workflows() {
        assert_eq!(workflow["permissions"], serde_json::json!({}), "{file}: a job has only the rights that it names");
        for (name, job) in workflow["jobs"].as_object().unwrap() {
            let rights = job["permissions"].as_object().unwrap_or_else(|| panic!("{file}: {name} names no rights"));
            let may = |right: &str| rights.get(right).is_some_and(|level| level == "write");
            for script in steps(job).filter_map(|step| step["run"].as_str()) {
                assert!(
                    !script.contains("${{"),
                    "{file}: {name}: an expression in a script is a way to inject code: {script}"
                );
            }
            if !rights.values().any(|level| level == "write") {
                plain += 1;
                for checkout in
                    steps(job).filter(|step| step["uses"].as_str().is_some_and(|used| used.contains("checkout")))
                {
                    assert_eq!(checkout["with"]["persist-credentials"], false, "{file}: {name}");
                }
                continue;
            }
            privileged += 1;
            assert!(!(may("id-token") && may("contents")), "{file}: {name} can sign and publish");
            for step in steps(job) {
                if let Some(used) = step["uses"].as_str() {
                    let action = used.split('@').next().unwrap();
                    assert!(ACTIONS.contains(&action), "{file}: {name} runs {action}");
                }
                for line in
                    step["run"].as_str().unwrap_or_default().lines().map(str::trim).filter(|line| !line.is_empty())
                {
                    let first = line.split_whitespace().next().unwrap();
                    let assigns = first.contains('=') || first.starts_with('\'') || first.starts_with('"');
                    assert!(PROGRAMS.contains(&first) || assigns, "{file}: {name} runs {line}");
                    for word in
                        ["cargo", "make ", "tools/", ".ci/", "docker build ", "buildx build", "curl", "npm", "go run"]
                    {
                        assert!(!line.contains(word), "{file}: {name} runs {line}");
                    }
                }
            }
        }
    }
    assert!(privileged >= 3 && plain >= 3, "{privileged} {plain}");
}

#[test]
fn a_release_is_tested_first_and_its_images_are_named_by_digest() {
    let (_, text, release) = workflows().into_iter().find(|(file, ..)| file == "release.yml").unwrap();
    let jobs = release["jobs"].as_object().unwrap();
    for (name, job) in jobs.iter().filter(|(name, _)| *name != "check") {
        assert!(job["needs"].to_string().contains("check"), "{name} does not wait for the tests");
    }
    assert!(steps(&jobs["check"]).any(|step| step["run"].as_str().is_some_and(|run| run.contains(".ci/run"))));
    assert!(text.contains("--build-arg BUILDER_IMAGE=\"$BUILDER_IMAGE\"") && text.contains("image=$BUILDKIT"));
    // A Dockerfile may build from its arguments, which the release sets to images with a digest, or from an image with
    // a digest.
    let file = fs::read_to_string(process::root().join("Dockerfile")).unwrap();
    let from: Vec<_> = file.lines().filter_map(|line| line.strip_prefix("FROM ")).collect();
    let stages = [
        "${BUILDER_IMAGE} AS source",
        "source AS relay-builder",
        "${RUNTIME_IMAGE} AS mail-token-relay",
        "source AS builder",
        "${RUNTIME_IMAGE} AS mail-token-broker",
    ];
    assert_eq!(from, stages);
    assert!(file.contains("ARG RUNTIME_IMAGE=scratch"));
    let (_, _, ci) = workflows().into_iter().find(|(file, ..)| file == "ci.yml").unwrap();
    let rights: Vec<_> = ci["jobs"].as_object().unwrap().values().map(|job| job["permissions"].to_string()).collect();
    assert!(
        rights.iter().all(|rights| rights == r#"{"contents":"read"}"#),
        "it runs what a pull request brings: {rights:?}"
    );
    assert!(!ci.to_string().contains("pull_request_target"));
}

fn stored(folder: &Path) -> BTreeMap<String, Value> {
    let files = fs::read_dir(folder).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    files.flat_map(|text| by_name(&text)).collect()
}

fn by_name(text: &str) -> BTreeMap<String, Value> {
    let documents = serde_yaml::Deserializer::from_str(text).map(|document| Value::deserialize(document).unwrap());
    documents.map(|crd| (crd["metadata"]["name"].as_str().unwrap().to_owned(), crd)).collect()
}
