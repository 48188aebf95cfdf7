//! Checks the modules of ARCHITECTURE.md against src/ and crates/: which module uses which, which modules are pure,
//! which files import each other, and the length of each file. Cargo itself checks the dependencies between the
//! packages.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use mail_token_broker::api::{ConditionType, Reason};

/// The folders of sources, and the names of their packages in Rust.
const PACKAGES: &[(&str, &str)] = &[
    ("src", "mail_token_broker"),
    ("crates/mail/src", "mailtoken_mail"),
    ("crates/core/src", "mailtoken_core"),
    ("crates/net/src", "mailtoken_net"),
    ("crates/client/src", "mailtoken_client"),
    ("crates/relay/src", RELAY),
];

/// The package whose modules this test does not distinguish. It is small, so only its imports of other packages count.
const RELAY: &str = "mailtoken_relay";

/// The modules that each module may use. The modules that build everything (`app`, `lib`, `main`) may use all.
const MAY_USE: &[(&str, &[&str])] = &[
    ("secret_keys", &[]),
    ("api", &["protocol", "secret_keys"]),
    ("oauth", &["api"]),
    ("providers", &["api", "oauth"]),
    ("protocol", &[]),
    ("answers", &["protocol"]),
    ("sasl", &["answers", "protocol"]),
    ("dialogue", &["answers", "protocol"]),
    ("server", &["answers", "dialogue", "protocol"]),
    ("render", &["api", "oauth", "providers", "sasl"]),
    ("policy", &["answers", "api", "oauth", "providers"]),
    // Only for unit tests.
    ("fixtures", &["api", "oauth", "policy", "providers"]),
    ("admission", &["policy"]),
    ("clock", &[]),
    ("fail_point", &[]),
    ("egress", &[]),
    ("tls", &[]),
    ("idp", &["clock", "egress", "fail_point", "tls"]),
    ("mail", &["answers", "dialogue", "egress", "idp", "protocol", "sasl", "tls"]),
    ("relay", &["answers", "clock", "dialogue", "mail", "protocol", "sasl", "server", "tls"]),
    ("error", &[]),
    ("lease", &["clock", "fail_point"]),
    // The content of the watches.
    ("stores", &["api", "error", "policy"]),
    // Reads the credentials and providers from the stores of the watches.
    ("metrics", &["api", "lease", "providers", "stores"]),
    ("kubernetes", &[]),
    // Resolves a provider, for the broker and for `login`.
    ("provider_client", &["api", "clock", "error", "idp", "kubernetes", "oauth", "policy", "providers"]),
    // Parses and checks the values of flags.
    ("settings", &["egress", "idp"]),
    // A separate command: it has its own settings, builds its client, and resolves providers as a reconcile does.
    (
        "login",
        &["api", "clock", "error", "idp", "kubernetes", "oauth", "policy", "provider_client", "providers", "settings"],
    ),
    ("side", &[]),
    ("health", &[]),
    ("admin", &["health", "metrics"]),
    ("cli", &["settings"]),
    ("telemetry", &["cli"]),
    (
        "reconcile",
        &[
            "admission",
            "api",
            "clock",
            "dialogue",
            "error",
            "fail_point",
            "idp",
            "kubernetes",
            "lease",
            "mail",
            "metrics",
            "oauth",
            "policy",
            "protocol",
            "provider_client",
            "providers",
            "render",
            "stores",
        ],
    ),
    (
        "controller",
        &["api", "error", "fail_point", "health", "kubernetes", "lease", "metrics", "policy", "reconcile", "stores"],
    ),
    // A separate command, which the chart's uninstall hook runs.
    ("stop", &["cli", "error", "kubernetes"]),
    ("release", &["api", "cli", "error", "kubernetes"]),
];

/// Modules that turn values into values: no waiting, no Kubernetes, no socket, no file, no clock.
const PURE: &[&str] = &[
    "answers",
    "api",
    "dialogue",
    "oauth",
    "policy",
    "protocol",
    "providers",
    "render",
    "sasl",
    "secret_keys",
    "server",
];

/// Pure files of other modules.
const PURE_FILES: &[&str] = &["src/admission/bucket.rs", "src/admission/queue.rs", "src/reconcile/queue.rs"];

/// Texts that no pure module may contain.
const IMPURE: &[&str] = &[
    "async ",
    ".await",
    "tokio::",
    "reqwest::",
    "hyper::",
    "kube::Client",
    "kube::Api",
    "Api::",
    "std::fs",
    "std::net",
    "std::env",
    "::now()",
    "Instant",
    "SystemTime",
    "clock::",
    "tracing::",
    "Mutex",
    "RwLock",
    "\nstatic ",
];

/// Maximum number of lines of a file, without its tests.
const LINES: usize = 400;

/// A source file without its tests and comments.
struct Source {
    /// The path from the root of the repository.
    path: PathBuf,
    /// The module path of the file: `["reconcile", "publish", "content"]`.
    modules: Vec<String>,
    text: String,
}

impl Source {
    fn module(&self) -> &str {
        &self.modules[0]
    }

    fn shown(&self) -> String {
        self.path.display().to_string()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let mut sources = vec![];
    for (folder, _) in PACKAGES {
        let mut files = vec![];
        collect(&root().join(folder), &mut files);
        assert!(!files.is_empty(), "{folder} has no sources");
        sources.extend(files.into_iter().map(|file| source(&file, folder)));
    }
    assert!(sources.len() > 40, "only {} files were found", sources.len());
    sources.into_iter().filter(|source| !source.modules.contains(&"tests".to_owned())).collect()
}

fn source(file: &Path, folder: &str) -> Source {
    let path = file.strip_prefix(root()).unwrap().to_owned();
    let inside = path.strip_prefix(folder).unwrap().with_extension("");
    let mut modules: Vec<_> = inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    modules.pop_if(|last| last == "mod");
    if PACKAGES.contains(&(folder, RELAY)) {
        modules.insert(0, "relay".to_owned());
    }
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    Source { path, modules, text: code.collect::<Vec<_>>().join("\n") }
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => collect(&path, files),
            false if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            false => {}
        }
    }
    files.sort();
}

/// Returns the modules for which a file may need a permission.
fn modules_used_by(source: &Source) -> BTreeSet<String> {
    let inside = if source.module() == "relay" { None } else { Some("crate") };
    modules_used(&source.text, inside)
}

/// Returns the modules that a text names after a package of this workspace or after `inside`, one by one or in braces.
fn modules_used(text: &str, inside: Option<&str>) -> BTreeSet<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut used = BTreeSet::new();
    let roots = PACKAGES
        .iter()
        .map(|(_, package)| *package)
        .filter(|package| *package != RELAY)
        .chain(inside)
        .map(|package| format!("{package}::"));
    for rest in roots.flat_map(|root| text.split(&root).skip(1).map(str::to_owned).collect::<Vec<_>>()) {
        let Some(list) = rest.strip_prefix('{') else {
            used.insert(name(&rest));
            continue;
        };
        let (mut depth, mut first) = (1, true);
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => first = true,
                c if first && !c.is_whitespace() => {
                    used.insert(name(&list[at..]));
                    first = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    used.remove("");
    used
}

#[test]
fn every_module_uses_only_those_that_it_may() {
    let may: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    let builders = ["app", "lib", "main"];
    let mut found = BTreeSet::new();
    for source in sources() {
        let module = source.module();
        found.insert(module.to_owned());
        if builders.contains(&module) {
            continue;
        }
        let allowed =
            may.get(module).unwrap_or_else(|| panic!("{}: a module that MAY_USE does not list", source.shown()));
        for used in modules_used_by(&source) {
            assert!(used == module || allowed.contains(&used.as_str()), "{} uses {used}", source.shown());
        }
        // A chain of `super` must not leave the module, because this test would not see it.
        let out = "super::".repeat(source.modules.len());
        assert!(!source.text.contains(&out), "{} leaves its module by {out}", source.shown());
    }
    let planned: BTreeSet<_> = MAY_USE.iter().map(|(module, _)| *module).chain(builders).map(str::to_owned).collect();
    assert_eq!(found, planned);
}

#[test]
fn pure_modules_touch_nothing() {
    let pure = |source: &&Source| {
        PURE.contains(&source.module()) || PURE_FILES.iter().any(|file| Path::new(file) == source.path)
    };
    assert_eq!(
        sources().iter().filter(|source| pure(source) && !PURE.contains(&source.module())).count(),
        PURE_FILES.len()
    );
    for source in sources().iter().filter(pure) {
        for word in IMPURE {
            let at = source.text.find(word);
            let line = at.and_then(|at| source.text[at..].trim_start().lines().next());
            assert_eq!(line, None, "{} has {word}", source.shown());
        }
    }
}

#[test]
fn every_module_has_its_line_in_the_map() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for (module, _) in MAY_USE {
        let named = PACKAGES
            .iter()
            .flat_map(|(folder, _)| [format!("`{folder}/{module}/`"), format!("`{folder}/{module}.rs`")]);
        assert!(named.into_iter().any(|name| map.contains(&name)), "ARCHITECTURE.md does not name {module}");
    }
}

#[test]
fn no_file_outgrows_a_reader() {
    for source in sources() {
        let text = fs::read_to_string(root().join(&source.path)).unwrap();
        let lines = text.split("#[cfg(test)]").next().unwrap_or_default().lines().count();
        assert!(lines <= LINES, "{} has {lines} lines: it holds two things", source.shown());
    }
}

#[test]
fn visible_names_are_spelled_in_one_module() {
    let reasons = Reason::ALL.iter().map(|reason| format!("\"{}\"", reason.as_str()));
    let kinds = ConditionType::ALL.iter().map(|kind| format!("\"{}\"", kind.as_str()));
    let keys = ["mailtoken.dev/", "app.kubernetes.io/managed-by"].map(|key| format!("\"{key}"));
    let words: Vec<_> = reasons.chain(kinds).chain(keys).collect();
    // The objects of unit tests are written as users write them. `answers` is below `api`: a unit test of the probe
    // checks that `api` has each reason of `answers`.
    for source in sources().iter().filter(|source| !["api", "fixtures", "answers"].contains(&source.module())) {
        for word in &words {
            let line = source.text.lines().find(|line| line.contains(word));
            assert_eq!(line, None, "{} spells {word}, a constant of the module api", source.shown());
        }
    }
}

#[test]
fn braces_and_paths_are_both_read() {
    let text = "use crate::{\n    api::{Reason, names},\n    error::Error,\n};\nfn f() { crate::render::render() }";
    assert_eq!(modules_used(text, Some("crate")), ["api", "error", "render"].map(str::to_owned).into());
}

#[test]
fn the_relay_has_no_kubernetes_and_no_http_client() {
    let tree = |package: &str| {
        let arguments =
            ["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}", "--package"];
        let output = Command::new(env!("CARGO")).args(arguments).arg(package).current_dir(root()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect::<BTreeSet<_>>()
    };
    let never = ["kube", "kube-client", "k8s-openapi", "reqwest", "hyper", "h2", "http", "axum", "mailtoken-core"];
    let (relay, broker) = (tree("mailtoken-relay"), tree("mail-token-broker"));
    assert!(relay.contains("mailtoken-mail") && relay.contains("rustls"), "{relay:?}");
    for package in never {
        assert!(!relay.contains(package), "the relay depends on {package}");
        assert!(broker.contains(package), "{package} is a package that this test would not find");
    }
}
