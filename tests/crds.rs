//! The files that people install are what the types say.

#![allow(clippy::unwrap_used, reason = "what fails here is a test's failure")]

mod support;

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use serde::Deserialize as _;
use serde_json::Value;
use support::*;

#[test]
fn the_files_of_the_crds_are_those_that_the_broker_prints() {
    let printed = process::output(Command::new(env!("CARGO_BIN_EXE_mail-token-broker")).arg("crds"));
    let printed = by_name(&printed);
    assert_eq!(printed.len(), 3);
    for folder in ["crds", "charts/mail-token-broker/files/crds"] {
        assert_eq!(stored(&process::root().join(folder)), printed, "{folder} is old: run make crds");
    }
}

fn stored(folder: &Path) -> BTreeMap<String, Value> {
    let files = fs::read_dir(folder).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    files.flat_map(|text| by_name(&text)).collect()
}

fn by_name(text: &str) -> BTreeMap<String, Value> {
    let documents = serde_yaml::Deserializer::from_str(text).map(|document| Value::deserialize(document).unwrap());
    documents.map(|crd| (crd["metadata"]["name"].as_str().unwrap().to_owned(), crd)).collect()
}
