//! The documentation against the code: reasons, examples, commands, names, files and links.

mod prose;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use mail_token_broker::api::{self, ClusterMailProvider, ConditionType, MailCredential, MailProvider, Reason, names};
use serde::Deserialize as _;
use serde_json::Value;

/// The conditions that a command in the documentation may wait for.
const CONDITIONS: [ConditionType; 5] = [
    ConditionType::Ready,
    ConditionType::Renewed,
    ConditionType::Stalled,
    ConditionType::Reconciling,
    ConditionType::MailboxAuthorized,
];

struct Page {
    /// The path from the root of the repository.
    path: PathBuf,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<Page> {
    let files = |folder: &str| {
        let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|ext| ext == "md")).collect::<Vec<_>>()
    };
    let mut paths: Vec<_> = [
        "",
        "docs",
        "docs/providers",
        "docs/relay",
        "charts/mail-token-broker",
        "charts/mail-token-relay",
        "tools",
        "tests",
    ]
    .into_iter()
    .flat_map(files)
    .collect();
    paths.sort();
    assert!(paths.len() >= 10, "{paths:?}");
    let page = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        Page { path: path.strip_prefix(root()).unwrap().to_owned(), text }
    };
    paths.into_iter().map(page).collect()
}

impl Page {
    /// Returns the fenced blocks: the language, and the text.
    fn blocks(&self) -> Vec<(&str, String)> {
        let mut blocks = vec![];
        let mut open: Option<(&str, String)> = None;
        for line in self.text.lines() {
            match (line.strip_prefix("```"), &mut open) {
                (Some(language), None) => open = Some((language, String::new())),
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some((_, text))) => *text += &format!("{line}\n"),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a block does not end", self.path.display());
        blocks
    }

    /// Returns the text outside of fenced blocks.
    fn prose(&self) -> String {
        let mut inside = false;
        let outside = |line: &&str| {
            let fence = line.starts_with("```");
            inside ^= fence;
            !inside && !fence
        };
        self.text.lines().filter(outside).collect::<Vec<_>>().join("\n")
    }

    /// Returns the texts in backticks in the prose.
    fn code(&self) -> Vec<String> {
        self.prose().split('`').skip(1).step_by(2).map(|code| code.replace('\n', " ")).collect()
    }

    fn headings(&self) -> Vec<String> {
        let prose = self.prose();
        let heading = |line: &str| Some(line.trim_start_matches('#').strip_prefix(' ')?.to_owned());
        prose.lines().filter(|line| line.starts_with('#')).filter_map(heading).collect()
    }

    /// Returns the commands of the page: lines of shell blocks, with continued lines joined and cut at pipes, and
    /// commands in backticks.
    fn commands(&self) -> Vec<String> {
        let shell = |(language, _): &(&str, String)| ["sh", "console", "bash"].contains(language);
        let lines = self.blocks().into_iter().filter(shell).map(|(_, text)| text.replace("\\\n", " "));
        let text = lines.chain(self.code()).collect::<Vec<_>>().join("\n");
        let starts = |part: &&str| part.starts_with("kubectl ") || part.starts_with("helm ");
        text.split(['\n', '|', ';'])
            .map(|part| part.trim().trim_start_matches("$(").trim())
            .filter(starts)
            .map(str::to_owned)
            .collect()
    }
}

#[test]
fn every_reason_has_a_heading_and_every_heading_a_reason() {
    let page = fs::read_to_string(root().join("docs/reasons.md")).unwrap();
    let reported: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let known: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(
        reported, known,
        "the headings of docs/reasons.md are the reasons in crates/core/src/api/condition.rs, in that order"
    );
}

#[test]
fn every_reason_has_a_confirmation_a_fix_and_its_retry() {
    let page = fs::read_to_string(root().join("docs/reasons.md")).unwrap();
    for section in page.split("\n## ").skip(1) {
        let name = section.lines().next().unwrap();
        let confirm = section.split("\nConfirm: ").nth(1).unwrap_or_else(|| panic!("{name}: no line Confirm"));
        assert!(section.contains("\nDo: ") || section.contains("\nDo, "), "{name}: no line Do");
        assert!(section.contains("\nRetry: "), "{name}: no line Retry");
        assert!(confirm.contains('`') || confirm.contains("condition"), "{name}: nothing to confirm it with");
    }
}

#[test]
fn reasons_stand_in_the_row_that_says_how_they_are_retried() {
    let page = fs::read_to_string(root().join("docs/reasons.md")).unwrap();
    for (row, retry) in [
        ("| transient", api::Retry::Transient),
        ("| a person must act", api::Retry::Permanent),
        ("| an object must change", api::Retry::OnChange),
    ] {
        let row = page.lines().find(|line| line.starts_with(row)).unwrap();
        let reported: BTreeSet<_> = row.split('[').skip(1).filter_map(|rest| rest.split(']').next()).collect();
        let known = Reason::ALL.iter().filter(|reason| reason.retry() == retry).map(|reason| reason.as_str());
        assert_eq!(reported, known.collect(), "{retry:?}");
    }
}

/// Returns the blocks of a page in one language.
pub(super) fn blocks(path: &str, language: &str) -> Vec<String> {
    let page = pages().into_iter().find(|page| page.path == Path::new(path)).unwrap();
    page.blocks().into_iter().filter(|(of, _)| *of == language).map(|(_, text)| text).collect()
}

/// Returns the objects of the broker's kinds in the pages, with the page of each object.
pub(super) fn examples() -> Vec<(PathBuf, Value)> {
    let mut examples = vec![];
    for page in pages() {
        for (language, text) in page.blocks() {
            // A shell block may also contain objects, in a here document.
            let objects = text.split("<<'EOF'\n").nth(1).and_then(|rest| rest.split("\nEOF").next());
            let Some(text) = objects.or((language == "yaml").then_some(text.as_str())) else { continue };
            for document in serde_yaml::Deserializer::from_str(text) {
                let value = Value::deserialize(document).unwrap_or_else(|e| panic!("{}: {e}", page.path.display()));
                if value["apiVersion"] == format!("{}/{}", api::GROUP, api::VERSION) {
                    examples.push((page.path.clone(), value));
                }
            }
        }
    }
    assert!(examples.len() >= 8, "only {} objects found", examples.len());
    examples
}

#[test]
fn examples_are_what_the_api_server_and_the_broker_understand() {
    for (page, value) in examples() {
        check_object(&value).unwrap_or_else(|e| panic!("{}: {e}\n{value:#}", page.display()));
    }
}

/// The example output of `kubectl get` in a page has the columns of the CRD.
#[test]
fn the_readme_shows_the_columns_that_kubectl_shows() {
    let columns = api::crds()
        .into_iter()
        .find(|crd| crd.spec.names.kind == "MailCredential")
        .and_then(|crd| crd.spec.versions.into_iter().next()?.additional_printer_columns)
        .unwrap();
    let shown = columns.into_iter().filter(|column| column.priority.unwrap_or(0) == 0);
    let expected: Vec<_> =
        ["NAME".to_owned()].into_iter().chain(shown.map(|column| column.name.to_uppercase())).collect();
    let page = fs::read_to_string(root().join("README.md")).unwrap();
    let header = page.lines().find(|line| line.starts_with("NAME ")).unwrap();
    assert_eq!(header.split_whitespace().collect::<Vec<_>>(), expected);
    let row = page.lines().skip_while(|line| *line != header).nth(1).unwrap();
    assert_eq!(row.split_whitespace().count(), expected.len(), "{row}");
}

fn check_object(value: &Value) -> Result<(), String> {
    let kind = value["kind"].as_str().ok_or("no kind")?;
    let unknown = unknown_fields(schema(kind).ok_or(format!("no kind {kind}"))?, value, "");
    if !unknown.is_empty() {
        return Err(format!("{kind} has no {}", unknown.join(", ")));
    }
    if kind != "ClusterMailProvider" && value["metadata"]["namespace"].as_str().is_none() {
        return Err("no namespace".to_owned());
    }
    let typed = match kind {
        "MailCredential" => again::<MailCredential>(value),
        "MailProvider" => again::<MailProvider>(value),
        _ => again::<ClusterMailProvider>(value),
    };
    let typed = typed.map_err(|error| error.to_string())?;
    // A field that the types drop is unknown.
    match lost(&value["spec"], &typed["spec"], "spec").as_slice() {
        [] => Ok(()),
        lost => Err(format!("{} is lost", lost.join(", "))),
    }
}

fn again<T: serde::de::DeserializeOwned + serde::Serialize>(value: &Value) -> serde_json::Result<Value> {
    serde_json::to_value(serde_json::from_value::<T>(value.clone())?)
}

/// Returns the paths that `before` has and `after` does not have.
fn lost(before: &Value, after: &Value, path: &str) -> Vec<String> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => before
            .iter()
            .flat_map(|(key, value)| match after.get(key) {
                Some(after) => lost(value, after, &format!("{path}.{key}")),
                None => vec![format!("{path}.{key}")],
            })
            .collect(),
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            let pairs = before.iter().zip(after).enumerate();
            pairs.flat_map(|(at, (before, after))| lost(before, after, &format!("{path}[{at}]"))).collect()
        }
        (before, after) if before == after => vec![],
        _ => vec![path.to_owned()],
    }
}

/// Returns the schema of a kind, by any of its names.
pub(super) fn schema(name: &str) -> Option<&'static JSONSchemaProps> {
    static CRDS: LazyLock<Vec<CustomResourceDefinition>> = LazyLock::new(api::crds);
    let is_named = |crd: &&CustomResourceDefinition| {
        let names = &crd.spec.names;
        let all = [Some(&names.kind), Some(&names.plural), names.singular.as_ref()].into_iter().flatten();
        all.chain(names.short_names.iter().flatten()).any(|known| known == name)
    };
    CRDS.iter().find(is_named)?.spec.versions.first()?.schema.as_ref()?.open_api_v3_schema.as_ref()
}

fn property<'a>(schema: &'a JSONSchemaProps, key: &str) -> Option<&'a JSONSchemaProps> {
    if let Some(found) = schema.properties.as_ref().and_then(|properties| properties.get(key)) {
        return Some(found);
    }
    match schema.additional_properties.as_ref()? {
        JSONSchemaPropsOrBool::Schema(schema) => Some(schema),
        JSONSchemaPropsOrBool::Bool(_) => None,
    }
}

fn item(schema: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match schema.items.as_ref()? {
        JSONSchemaPropsOrArray::Schema(schema) => Some(schema),
        JSONSchemaPropsOrArray::Schemas(_) => None,
    }
}

/// Returns the fields of `value` that the schema does not know. Does not check fields that every object has.
pub(super) fn unknown_fields(schema: &JSONSchemaProps, value: &Value, path: &str) -> Vec<String> {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(key, _)| !path.is_empty() || !["apiVersion", "kind", "metadata"].contains(&key.as_str()))
            .flat_map(|(key, value)| {
                let path = format!("{path}.{key}");
                match property(schema, key) {
                    Some(schema) => unknown_fields(schema, value, &path),
                    None => vec![path],
                }
            })
            .collect(),
        Value::Array(items) => match item(schema) {
            Some(schema) => {
                items.iter().flat_map(|value| unknown_fields(schema, value, &format!("{path}[]"))).collect()
            }
            None => vec![path.to_owned()],
        },
        _ => vec![],
    }
}

#[test]
fn commands_speak_of_fields_that_there_are() {
    let mut checked = 0;
    for page in pages() {
        for command in page.commands() {
            let problem = |what: String| panic!("{}: `{command}`: {what}", page.path.display());
            if command.starts_with("helm ") {
                for setting in arguments_of(&command, "--set") {
                    checked += 1;
                    let name = setting.split('=').next().unwrap_or_default();
                    if !chart_has(name) {
                        problem(format!("the chart has no value {name}"));
                    }
                }
                continue;
            }
            for wanted in command.split("--for=condition=").skip(1) {
                checked += 1;
                let name: String = wanted.chars().take_while(char::is_ascii_alphabetic).collect();
                if !CONDITIONS.iter().any(|kind| kind.as_str() == name) {
                    problem(format!("no condition {name}"));
                }
            }
            let Some(schema) = command.split([' ', '/']).find_map(schema) else { continue };
            for path in fields_of(&command) {
                checked += 1;
                if !path.starts_with("metadata") && !has_path(schema, &path) {
                    problem(format!("no field {path}"));
                }
            }
            for patch in arguments_of(&command, "-p") {
                checked += 1;
                let patch: Value = serde_json::from_str(&patch).unwrap_or_else(|error| problem(error.to_string()));
                let unknown = unknown_fields(schema, &patch, "");
                if !unknown.is_empty() {
                    problem(format!("no field {}", unknown.join(", ")));
                }
            }
        }
    }
    assert!(checked >= 40, "only {checked} things found to check");
}

/// Returns the values of an option, quoted or not.
fn arguments_of(command: &str, option: &str) -> Vec<String> {
    let value = |rest: &str| match rest.trim_start().strip_prefix('\'') {
        Some(quoted) => quoted.split('\'').next().unwrap_or_default().to_owned(),
        None => rest.split_whitespace().next().unwrap_or_default().to_owned(),
    };
    command.split(&format!(" {option} ")).skip(1).map(value).collect()
}

/// Returns the paths in `jsonpath` and `custom-columns`.
fn fields_of(command: &str) -> Vec<String> {
    let braces = command.split("{.").skip(1).filter_map(|rest| rest.split('}').next());
    let columns = command.split("custom-columns=").skip(1).flat_map(|rest| {
        let columns = rest.split_whitespace().next().unwrap_or_default();
        columns.split(',').filter_map(|column| column.split(":.").nth(1)).collect::<Vec<_>>()
    });
    braces.filter(|_| command.contains("jsonpath")).chain(columns).map(str::to_owned).collect()
}

fn has_path(schema: &JSONSchemaProps, path: &str) -> bool {
    let step = |schema, part: &str| {
        let (name, indexed) = part.split_once('[').map_or((part, false), |(name, _)| (name, true));
        let found = property(schema, name)?;
        if indexed { item(found) } else { Some(found) }
    };
    path.split('.').try_fold(schema, step).is_some()
}

fn chart_has(name: &str) -> bool {
    let text = fs::read_to_string(root().join("charts/mail-token-broker/values.yaml")).unwrap();
    let values: Value = serde_yaml::from_str(&text).unwrap();
    name.split('.').try_fold(&values, |values, part| values.get(part)).is_some()
}

#[test]
fn names_in_the_documentation_are_names_of_the_code() {
    let known = [
        names::LABEL_CREDENTIAL,
        names::LABEL_SOURCE,
        names::LABEL_ROLE,
        names::SECRET_TYPE_GRANT,
        names::ANNOTATION_REISSUE,
        names::ANNOTATION_HANDLED_REISSUE,
        names::ANNOTATION_ISSUED_AT,
        names::ANNOTATION_EXPIRES_AT,
        names::ANNOTATION_FINGERPRINT,
        names::ANNOTATION_ISSUED_FOR,
        names::FINALIZER_REVOKE,
        names::ANNOTATION_ALLOWED_AUDIENCES,
        names::ANNOTATION_SOURCE_HOSTS,
    ];
    for page in pages() {
        for rest in page.text.split("mailtoken.dev/").skip(1) {
            let name: String =
                rest.chars().take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-').collect();
            let full = format!("mailtoken.dev/{name}");
            assert!(name == api::VERSION || known.contains(&full.as_str()), "{}: {full}", page.path.display());
        }
    }
}

#[test]
fn files_and_make_targets_that_are_named_exist() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let folders = ["src/", "crates/", "tests/", "docs/", "tools/", "charts/", "crds/", ".ci/"];
    for page in pages() {
        for code in page.code() {
            let path = code.split(' ').next().unwrap_or_default();
            if folders.iter().any(|folder| path.starts_with(folder)) {
                assert!(exists(path), "{}: there is no {path}", page.path.display());
            }
        }
        let shell = page.blocks().into_iter().filter(|(language, _)| *language == "sh").map(|(_, text)| text);
        for line in shell.chain(page.code()).flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()) {
            let Some(rest) = line.strip_prefix("make ") else { continue };
            let of_target = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-';
            let target: String = rest.chars().take_while(of_target).collect();
            let rule = format!("\n{target}:");
            assert!(makefile.contains(&rule), "{}: there is no make {target}", page.path.display());
        }
    }
}

/// Whether a file exists. A `*` in a part of its path matches any text.
fn exists(path: &str) -> bool {
    let Some((before, after)) = path.split_once('*') else { return root().join(path).exists() };
    let (folder, start) = before.rsplit_once('/').unwrap_or(("", before));
    let (end, below) = after.split_once('/').unwrap_or((after, ""));
    let entries = fs::read_dir(root().join(folder)).into_iter().flatten().flatten();
    let matches = |name: &str| name.starts_with(start) && name.ends_with(end);
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(matches))
        .any(|entry| entry.path().join(below).exists())
}

/// A test as the pages name it: `cluster::issue::a_name`, `standins::a_name` or, for unit tests, `lib::a_name`. Names
/// of tests are sentences; `policy::decide` is not the name of a test.
struct TestName<'a> {
    binary: &'a str,
    module: Option<&'a str>,
    test: &'a str,
}

fn test_name(code: &str) -> Option<TestName<'_>> {
    let word = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let parts: Vec<_> = code.split("::").collect();
    let (binary, module, test) = match parts[..] {
        [binary, test] => (binary, None, test),
        [binary, module, test] => (binary, Some(module), test),
        _ => return None,
    };
    let sentence = test.matches('_').count() >= 2;
    (sentence && parts.into_iter().all(word)).then_some(TestName { binary, module, test })
}

/// Returns the text of all files below these folders.
fn sources(folders: &[&str]) -> String {
    let mut folders: Vec<_> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut sources = String::new();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => sources += &fs::read_to_string(path).unwrap(),
            }
        }
    }
    sources
}

#[test]
fn tests_that_are_named_exist() {
    let unit = sources(&["src", "crates"]);
    let mut checked = 0;
    for page in pages().iter().filter(|page| page.path.starts_with("docs")) {
        for code in page.code() {
            let Some(TestName { binary, module, test }) = test_name(&code) else { continue };
            let source = match (binary, module.unwrap_or("main")) {
                ("lib", "main") => unit.clone(),
                (binary, module) => {
                    let file = format!("tests/{binary}/{module}.rs");
                    let files = [root().join(&file), root().join("crates/relay").join(&file)];
                    files.iter().find_map(|file| fs::read_to_string(file).ok()).unwrap_or_default()
                }
            };
            assert!(source.contains(&format!("fn {test}(")), "{}: there is no test {code}", page.path.display());
            checked += 1;
        }
    }
    assert!(checked >= 30, "only {checked} tests are named");
}

#[test]
fn every_fault_has_its_row_and_a_test() {
    let page = pages().into_iter().find(|page| page.path.ends_with("reliability.md")).unwrap();
    let row = |fault: &str| {
        page.text.lines().find(|line| line.starts_with("| ") && line.split(' ').any(|word| word == fault))
    };
    for fault in (1..=7).map(|number| format!("K{number}")).chain((1..=33).map(|number| format!("F{number:02}"))) {
        let row = row(&fault).unwrap_or_else(|| panic!("{fault} has no row"));
        // F23 is the failure of a webhook, which the broker does not have.
        assert!(row.contains("::") || fault == "F23", "{fault}: {row}");
    }
}

#[test]
fn every_row_of_a_fault_is_noted_by_a_test() {
    let page = pages().into_iter().find(|page| page.path.ends_with("reliability.md")).unwrap();
    let tests = sources(&["tests"]);
    let first = |row: &str| row.strip_prefix("| ")?.split(' ').next().map(str::to_owned);
    let is_fault = |word: &String| word.starts_with(['K', 'F']) && word[1..].bytes().all(|byte| byte.is_ascii_digit());
    let faults: Vec<_> =
        page.text.lines().filter(|row| row.contains("::")).filter_map(first).filter(is_fault).collect();
    assert!(faults.len() >= 30, "{faults:?}");
    for fault in faults {
        assert!(tests.contains(&format!("\"{fault}\"")), "no test notes {fault}, so `make faults` would miss it");
    }
}

#[test]
fn every_threat_names_a_test() {
    let page = pages().into_iter().find(|page| page.path.ends_with("threat-model.md")).unwrap();
    let is_threat = |cell: &str| {
        let number = cell.strip_prefix(['T', 'P', 'R', 'B', 'M']).unwrap_or_default();
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    };
    let mut checked = 0;
    for row in page.text.lines() {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [_, threat, .., tests, ""] = cells[..] else { continue };
        if is_threat(threat) {
            let mut named = tests.split('`').skip(1).step_by(2).filter_map(test_name);
            assert!(named.next().is_some(), "{threat} is tried by no test: {tests}");
            checked += 1;
        }
    }
    assert!(checked >= 27, "only {checked} threats found");
}

#[test]
fn every_provider_page_begins_with_what_was_tested_and_ends_with_a_login_test() {
    let of_provider = |page: &Page| page.path.starts_with("docs/providers");
    let pages: Vec<_> = pages().into_iter().filter(of_provider).collect();
    assert!(pages.len() >= 7, "{} pages", pages.len());
    for page in pages {
        let shown = page.path.display();
        let first = page.text.lines().skip(1).find(|line| !line.is_empty()).unwrap();
        assert!(first.starts_with("*Tested:*"), "{shown} begins with {first}");
        let (_, last) = page.text.rsplit_once("\n## ").unwrap();
        assert!(last.starts_with("Test the login\n"), "{shown} ends with {last:.40}");
        // One command covers both protocols, with the token by standard input.
        let command = last.split("```sh\n").nth(1).unwrap();
        assert!(command.contains("for at in smtp imap") && command.contains("curl --config -"), "{shown}");
    }
}

#[test]
fn every_set_up_of_a_provider_waits_until_the_mail_server_accepts_the_token() {
    for page in pages().iter().filter(|page| page.path.starts_with("docs/providers")) {
        let commands = page.commands();
        let ready = commands.iter().filter(|command| command.contains("--for=condition=Ready "));
        let mailbox = commands.iter().filter(|command| command.contains("--for=condition=MailboxAuthorized "));
        let of = |command: &String| {
            command.split("mailcredential/").nth(1).map(|rest| rest.split(' ').next().unwrap().to_owned())
        };
        let (ready, mailbox): (BTreeSet<_>, BTreeSet<_>) =
            (ready.filter_map(of).collect(), mailbox.filter_map(of).collect());
        assert!(!mailbox.is_empty(), "{}: no set-up waits for MailboxAuthorized", page.path.display());
        // The page of the grants shows how a user signs in, without a probe.
        if !page.path.ends_with("generic.md") {
            assert!(ready.is_subset(&mailbox), "{}: {ready:?} {mailbox:?}", page.path.display());
        }
    }
}

/// Each cause in a mail server's answer has a reason, and the runbook explains the reason.
#[test]
fn every_reason_of_a_mail_server_is_in_the_table_of_the_probe() {
    let page = fs::read_to_string(root().join("docs/mailbox.md")).unwrap();
    let rows: BTreeSet<_> =
        page.lines().filter_map(|line| line.strip_prefix("| [")?.split(']').next()).map(str::to_owned).collect();
    let from = Reason::ALL.iter().position(|reason| *reason == Reason::LoginSucceeded).unwrap();
    let to = Reason::ALL.iter().position(|reason| *reason == Reason::ProbePending).unwrap();
    let probe = Reason::ALL[from..=to].iter().chain([&Reason::EgressDenied]);
    assert_eq!(rows, probe.map(|reason| reason.as_str().to_owned()).collect());
}

#[test]
fn links_lead_somewhere() {
    let pages = pages();
    let mut checked = 0;
    for page in &pages {
        for target in links(&page.prose()) {
            let of_the_chart = page.path.starts_with("charts/mail-token-broker");
            assert!(!of_the_chart || !target.starts_with(".."), "{target} is dead where the chart is shown alone");
            let here = "https://github.com/mail-token-broker/mail-token-broker";
            if target == here || target == format!("{here}#install") {
                continue;
            }
            let target = match target.strip_prefix(&format!("{here}/blob/main/")) {
                Some(file) => format!("{}{file}", "../".repeat(page.path.components().count() - 1)),
                None => target,
            };
            if target.starts_with("https://") {
                continue;
            }
            checked += 1;
            let (file, anchor) =
                target.split_once('#').map_or((target.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let path = match file {
                "" => page.path.clone(),
                file => normal(&page.path.parent().unwrap_or(Path::new("")).join(file)),
            };
            assert!(root().join(&path).exists(), "{}: {target}: there is no {}", page.path.display(), path.display());
            let Some(anchor) = anchor else { continue };
            let there = pages.iter().find(|other| other.path == path).unwrap_or_else(|| panic!("{target}: no page"));
            let anchors: Vec<_> = there.headings().iter().map(|heading| slug(heading)).collect();
            assert!(
                anchors.iter().any(|a| a == anchor),
                "{}: {target}: no such heading among {anchors:?}",
                page.path.display()
            );
        }
    }
    assert!(checked >= 40, "only {checked} links found");
}

fn links(prose: &str) -> Vec<String> {
    let ends = prose.split("](").skip(1);
    ends.filter_map(|rest| Some(rest.split(')').next()?.to_owned())).collect()
}

/// Resolves `..` in a path.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    normal
}

/// Returns a heading's anchor, as GitHub creates it.
fn slug(heading: &str) -> String {
    let kept = heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c))
        .collect::<String>();
    kept.replace(' ', "-")
}
