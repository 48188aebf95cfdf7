//! Checks that no public helper of the testkit is unused. The testkit is a library, so the compiler does not check
//! this.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

const TESTKIT: &str = "crates/testkit/src";

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match path.is_dir() {
            true => files(&path, found),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
}

/// Returns the code of the files below these folders, without comments.
fn code(folders: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![];
    folders.iter().for_each(|folder| files(&root.join(folder), &mut found));
    let without_comments = |text: String| -> String {
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
    };
    found.into_iter().map(|path| without_comments(fs::read_to_string(path).unwrap())).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Returns the public names of a file: the names after `pub fn`, `pub struct` and others.
fn offered(text: &str) -> Vec<&str> {
    const KINDS: [&str; 7] = ["fn", "struct", "enum", "trait", "const", "static", "type"];
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix("pub "));
    lines
        .filter_map(|line| {
            let mut words = words(line).skip_while(|word| ["async", "const"].contains(word) && line.contains(" fn "));
            words.next().filter(|kind| KINDS.contains(kind))?;
            words.next()
        })
        .collect()
}

#[test]
fn every_helper_is_used() {
    let testkit = code(&[TESTKIT]);
    let all = [testkit.clone(), code(&["tests", "bench", "examples"])].concat();
    let mut uses = BTreeMap::<_, usize>::new();
    all.iter().flat_map(|text| words(text)).for_each(|word| *uses.entry(word).or_default() += 1);
    let offered: Vec<_> = testkit.iter().flat_map(|text| offered(text)).collect();
    assert!(offered.len() > 200, "only {} helpers found", offered.len());
    let unused: Vec<_> = offered.into_iter().filter(|name| uses[name] < 2).collect();
    assert!(unused.is_empty(), "nothing uses these helpers of {TESTKIT}: {unused:?}");
}

#[test]
fn names_after_each_keyword_are_found() {
    let text = "    pub async fn a(&self) {}\npub const B: u8 = 1;\npub const fn c() {}\npub struct D;\npub use e::F;\n    pub g: u8,";
    assert_eq!(offered(text), ["a", "B", "c", "D"]);
}
