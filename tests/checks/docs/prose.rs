//! Checks for plain English in pages, chart texts, scripts, comments and messages: no words that hide the subject.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{pages, root};

/// Words and phrases to avoid, and what to write instead. A phrase matches whole words, in any letter case.
const AVOID: &[(&str, &str)] = &[
    ("somebody", "the user, another controller"),
    ("nobody", "no user, no replica"),
    ("whoever", "a user who"),
    ("tell", "report, show"),
    ("tells", "reports, shows"),
    ("told", "reported, shown"),
    ("what came", "the response"),
    ("what is there", "the stored token, the current value"),
    ("what stands there", "the current value"),
    ("anew", "again"),
    ("else", "otherwise, other"),
    ("is none", "is not one"),
    ("is had", "is available"),
    ("of ours", "the broker's"),
    ("of a person", "the user's"),
    ("mend", "fix"),
    ("mends", "fixes"),
    ("mended", "fixed"),
    ("put right", "repair"),
    ("look at", "check"),
    ("looks at", "checks"),
    ("looked at", "checked"),
    ("looking at", "checking"),
    ("by itself", "automatically"),
    ("by themselves", "automatically"),
    ("let in", "accept"),
    ("lets in", "accepts"),
    ("dressed", "the labels and owner are right"),
    ("undressed", "the labels and owner are wrong"),
    ("farewell", "clean-up"),
    ("errand", "request kind"),
    ("errands", "request kinds"),
    ("book", "cache"),
    ("hub", "mapper"),
    ("hands", "reconciler"),
    ("desk", "listener"),
    ("pace", "rate limiter"),
    ("lane", "semaphore"),
    ("lanes", "semaphores"),
    ("material", "client credentials"),
];

/// A text with its place.
struct Text {
    /// The path from the root of the repository, with the line.
    place: String,
    text: String,
}

impl Text {
    /// Returns the words to avoid in this text, outside of code in backticks.
    fn findings(&self) -> Vec<String> {
        let prose: String = self.text.split('`').step_by(2).collect::<Vec<_>>().join(" ` ");
        let words: Vec<_> = prose
            .split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect();
        let uses = |phrase: &str| {
            let phrase: Vec<_> = phrase.split(' ').collect();
            words.windows(phrase.len()).any(|window| window == phrase)
        };
        let found = AVOID.iter().filter(|(phrase, _)| uses(phrase));
        found.map(|(phrase, instead)| format!("{}: \"{phrase}\": write {instead}", self.place)).collect()
    }
}

/// Returns the files below a folder whose name has one of these endings, sorted.
fn files(folder: &str, ends: &[&str]) -> Vec<PathBuf> {
    let mut folders = vec![root().join(folder)];
    let mut files = vec![];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => files.push(path),
            }
        }
    }
    files.retain(|path| ends.iter().any(|end| path.to_string_lossy().ends_with(end)));
    files.sort();
    files
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// Returns the Rust files of all packages except the testkit.
fn sources() -> Vec<PathBuf> {
    let packages = fs::read_dir(root().join("crates")).into_iter().flatten();
    let packages = packages.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name() != "testkit"));
    let packages = packages.map(|entry| format!("crates/{}/src", entry.unwrap().file_name().display()));
    let folders: Vec<_> = ["src".to_owned()].into_iter().chain(packages).collect();
    folders.iter().flat_map(|folder| files(folder, &[".rs"])).collect()
}

/// A comment until the end of its line, or a string literal, with the number of its first line.
enum Part<'a> {
    Comment(usize, &'a str),
    Literal(usize, &'a str),
}

/// Returns the comments and string literals of a Rust file, in order.
fn parts(source: &str) -> Vec<Part<'_>> {
    let mut parts = vec![];
    let mut at = 0;
    let mut line = 1;
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        let length = match c {
            '/' if rest.starts_with("//") => {
                let comment = rest.lines().next().unwrap_or_default();
                parts.push(Part::Comment(line, comment.trim_start_matches(['/', '!'])));
                comment.len()
            }
            '"' => {
                let before = source[..at].trim_end_matches('#');
                let hashes = source[..at].len() - before.len();
                let is_raw = before.ends_with(['r']);
                let end = if is_raw {
                    rest[1..].find(&format!("\"{}", "#".repeat(hashes)))
                } else {
                    end_of_string(&rest[1..])
                };
                let literal = &rest[1..=end.unwrap_or(rest.len() - 2)];
                parts.push(Part::Literal(line, literal));
                literal.len() + 2
            }
            '\'' => {
                let mut chars = rest.chars().skip(1);
                match (chars.next(), chars.next()) {
                    (Some('\\'), _) => 2 + rest[2..].find('\'').map_or(0, |end| end.max(1) + 1),
                    (Some(quoted), Some('\'')) => 2 + quoted.len_utf8(),
                    _ => 1,
                }
            }
            c => c.len_utf8(),
        };
        line += rest[..length.min(rest.len())].matches('\n').count();
        at += length.min(rest.len());
    }
    parts
}

/// Returns the length of a string up to its closing quote.
fn end_of_string(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends.then_some(at)
    })
}

/// Returns the comments of a Rust file in blocks of adjacent lines, because a phrase may span two lines. With
/// `messages`, also returns the literals.
fn texts_of_source(path: &Path, messages: bool) -> Vec<Text> {
    let source = fs::read_to_string(path).unwrap();
    let mut texts: Vec<Text> = vec![];
    let mut last_comment: Option<(usize, usize)> = None;
    for part in parts(&source) {
        match part {
            Part::Comment(line, comment) => match last_comment {
                Some((last, text)) if line == last + 1 => {
                    texts[text].text += &format!(" {comment}");
                    last_comment = Some((line, text));
                }
                _ => {
                    last_comment = Some((line, texts.len()));
                    texts.push(Text { place: format!("{}:{line}", relative(path)), text: comment.to_owned() });
                }
            },
            Part::Literal(line, literal) if messages && literal.split_whitespace().count() >= 3 => {
                texts.push(Text { place: format!("{}:{line}", relative(path)), text: literal.to_owned() });
            }
            Part::Literal(..) => {}
        }
    }
    texts
}

/// Returns the comments that begin with `#` in a shell script, Makefile or YAML file.
fn texts_with_hashes(path: &Path) -> Vec<Text> {
    let text = fs::read_to_string(path).unwrap();
    let comments = text.lines().enumerate().filter_map(|(number, line)| {
        let comment = line.trim_start().strip_prefix('#').or_else(|| Some(line.split_once(" # ")?.1))?;
        Some(Text { place: format!("{}:{}", relative(path), number + 1), text: comment.to_owned() })
    });
    comments.collect()
}

/// Returns the pages without code blocks and link targets.
fn texts_of_pages() -> Vec<Text> {
    let text = |page: &super::Page| {
        let mut prose = String::new();
        for (at, part) in page.prose().split("](").enumerate() {
            prose += if at == 0 { part } else { part.split_once(')').map_or("", |(_, rest)| rest) };
            prose.push(' ');
        }
        Text { place: page.path.display().to_string(), text: prose }
    };
    pages().iter().map(text).collect()
}

/// Returns a template without its actions, but with its comments.
fn text_of_template(path: &Path) -> Text {
    let text = fs::read_to_string(path).unwrap();
    let mut parts = text.split("{{");
    let mut prose = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (action, rest) = part.split_once("}}").unwrap_or((part, ""));
        prose += if action.contains("/*") { action } else { " " };
        prose += rest;
    }
    Text { place: relative(path), text: prose }
}

/// Collects the descriptions in a schema, with their paths.
fn descriptions(schema: &Value, path: &str, found: &mut Vec<Text>) {
    if let Some(text) = schema["description"].as_str() {
        found.push(Text { place: path.to_owned(), text: text.to_owned() });
    }
    for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
        descriptions(schema, &format!("{path}.{key}"), found);
    }
    for (part, name) in [("items", "[]"), ("additionalProperties", ".*")] {
        if schema[part].is_object() {
            descriptions(&schema[part], &format!("{path}{name}"), found);
        }
    }
}

fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn pages_use_no_word_to_avoid() {
    assert_none(&texts_of_pages().iter().flat_map(Text::findings).collect::<Vec<_>>());
}

#[test]
fn the_chart_and_the_scripts_use_no_word_to_avoid() {
    let mut texts = vec![];
    for chart in ["charts/mail-token-broker", "charts/mail-token-relay"] {
        let templates = files(&format!("{chart}/templates"), &[".yaml", ".tpl", ".txt"]);
        texts.extend(templates.iter().map(|path| text_of_template(path)));
        let schema = fs::read_to_string(root().join(chart).join("values.schema.json")).unwrap();
        descriptions(&serde_json::from_str(&schema).unwrap(), &format!("{chart}/values.schema.json"), &mut texts);
        texts.extend(texts_with_hashes(&root().join(chart).join("values.yaml")));
    }
    let named = ["Makefile", "Dockerfile", ".ci/run"].map(|path| root().join(path));
    let scripts = fs::read_dir(root().join("tools")).unwrap().map(|entry| entry.unwrap().path());
    let scripts = scripts.filter(|path| path.is_file() && path.extension().is_none_or(|end| end == "sh"));
    let workflows = files(".github", &[".yml"]);
    let components = files("tools/components", &[".sh"]);
    for path in named.into_iter().chain(scripts).chain(workflows).chain(components) {
        texts.extend(texts_with_hashes(&path));
    }
    assert!(texts.len() >= 400, "only {} texts found", texts.len());
    assert_none(&texts.iter().flat_map(Text::findings).collect::<Vec<_>>());
}

#[test]
fn comments_and_messages_use_no_word_to_avoid() {
    let mut findings = vec![];
    let others = ["bench", "examples", "fuzz/fuzz_targets"].iter().flat_map(|folder| files(folder, &[".rs"]));
    for path in sources().into_iter().chain(others) {
        findings.extend(texts_of_source(&path, true).iter().flat_map(Text::findings));
    }
    assert_none(&findings);
}

#[test]
fn comments_of_tests_use_no_word_to_avoid() {
    let packages = fs::read_dir(root().join("crates")).into_iter().flatten();
    let folders = packages.map(|entry| format!("crates/{}/tests", entry.unwrap().file_name().display()));
    let folders = folders.chain(["tests", "crates/testkit/src"].map(str::to_owned));
    let paths: Vec<_> = folders.flat_map(|folder| files(&folder, &[".rs"])).collect();
    assert!(paths.len() >= 90, "only {} files found", paths.len());
    let texts = paths.iter().flat_map(|path| texts_of_source(path, false));
    assert_none(&texts.flat_map(|text| text.findings()).collect::<Vec<_>>());
}

/// Returns the doc comments of public items that have fewer than four words.
fn fragments(path: &Path) -> Vec<String> {
    let source = fs::read_to_string(path).unwrap();
    let mut found = vec![];
    let mut doc = String::new();
    let mut depth = 0;
    for (number, line) in source.lines().enumerate() {
        let line = line.trim_start();
        let brackets = |line: &str| line.matches('[').count() as i64 - line.matches(']').count() as i64;
        if let Some(text) = line.strip_prefix("///") {
            doc += text;
        } else if depth > 0 || line.starts_with("#[") {
            depth += brackets(line);
        } else {
            let words = doc.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).count();
            if line.starts_with("pub ") && (1..4).contains(&words) {
                found.push(format!("{}:{}: \"{}\" is a fragment: {line}", relative(path), number + 1, doc.trim()));
            }
            doc.clear();
        }
    }
    found
}

#[test]
fn doc_comments_of_public_items_are_no_fragments() {
    assert_none(&sources().iter().flat_map(|path| fragments(path)).collect::<Vec<_>>());
}

/// Returns the descriptions in the generated CRDs that do not begin with their field's name.
fn descriptions_without_their_field() -> Vec<String> {
    let mut found = vec![];
    for path in files("crds", &[".yaml"]) {
        let crd: Value = serde_yaml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let mut texts = vec![];
        for version in crd["spec"]["versions"].as_array().unwrap() {
            for (field, schema) in version["schema"]["openAPIV3Schema"]["properties"].as_object().unwrap() {
                descriptions(schema, field, &mut texts);
            }
        }
        assert!(texts.len() >= 50, "{}: only {} descriptions", path.display(), texts.len());
        for Text { place, text } in texts {
            let field = place.rsplit('.').next().unwrap_or_default();
            // The items of a list or map have no name.
            if !field.ends_with("[]") && field != "*" && text.split(' ').next() != Some(field) {
                found.push(format!("{}: {place}: {text}", relative(&path)));
            }
        }
    }
    found
}

#[test]
fn crd_descriptions_begin_with_their_fields_name() {
    assert_none(&descriptions_without_their_field());
}
