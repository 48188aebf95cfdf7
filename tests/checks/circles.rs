//! Checks that no two source files import each other in a circle, directly or through others. A child module may use
//! the names that its parent module defines. Every other name in a file is an import, even if another module re-exports
//! it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Maximum number of re-exports through which a name leads.
const RE_EXPORTS: usize = 8;

/// A path in code, as its parts: `["crate", "policy", "decide"]`.
type Names = Vec<String>;

/// The position of a module: its package and its parent modules.
type Module = Vec<String>;

/// The source of a module.
struct File {
    path: PathBuf,
    tokens: Vec<String>,
}

/// The modules of all packages.
struct House {
    files: BTreeMap<Module, File>,
    /// The names that each module imports or re-exports, with their paths.
    imported: BTreeMap<Module, BTreeMap<String, Names>>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the folders of sources, and the names of their packages in Rust.
fn packages() -> Vec<(PathBuf, String)> {
    let members = fs::read_dir(root().join("crates")).unwrap().map(|member| member.unwrap().path().join("src"));
    let named = |folder: PathBuf| {
        let member = folder.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let package = format!("mailtoken_{}", member.replace('-', "_"));
        (folder, package)
    };
    let own = [("src", "mail_token_broker"), ("bench", "bench")];
    let own = own.map(|(folder, package)| (root().join(folder), package.to_owned()));
    members.filter(|folder| folder.is_dir()).map(named).chain(own).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => collect(&path, files),
            false if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            false => {}
        }
    }
}

/// Returns the tokens of a file without its comments and unit tests: identifiers, `::`, and single characters.
fn tokens(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code: Vec<_> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let mut tokens = vec![];
    let mut rest = code.as_str();
    while let Some(first) = rest.chars().next() {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let length = match rest.strip_prefix("::") {
            Some(_) => 2,
            None if word(first) => rest.find(|c| !word(c)).unwrap_or(rest.len()),
            None => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        if !first.is_whitespace() {
            tokens.push(token.to_owned());
        }
        rest = after;
    }
    tokens
}

/// Returns the paths that begin at a token, with braces resolved, each with its local name. Also returns the number of
/// tokens.
fn paths(tokens: &[String]) -> (Vec<(Names, String)>, usize) {
    let mut path = Names::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        if token == "{" {
            let mut found = vec![];
            at += 1;
            while tokens.get(at).is_some_and(|token| token != "}") {
                let (inner, length) = paths(&tokens[at..]);
                for (names, alias) in inner {
                    let is_self = names.len() == 1 && names[0] == "self";
                    let whole: Names = path.iter().cloned().chain(names.into_iter().filter(|_| !is_self)).collect();
                    let alias = if alias == "self" { path.last().cloned().unwrap_or_default() } else { alias };
                    found.push((whole, alias));
                }
                at += length.max(1);
                at += usize::from(tokens.get(at).is_some_and(|token| token == ","));
            }
            return (found, at + 1);
        }
        path.push(token.clone());
        at += 1;
        if tokens.get(at).is_none_or(|token| token != "::") {
            break;
        }
        at += 1;
    }
    let mut alias = path.last().cloned().unwrap_or_default();
    if tokens.get(at).is_some_and(|token| token == "as") {
        alias = tokens.get(at + 1).cloned().unwrap_or_default();
        at += 2;
    }
    (vec![(path, alias)], at)
}

impl House {
    fn read() -> Self {
        let mut files = BTreeMap::new();
        for (folder, package) in packages() {
            let mut found = vec![];
            collect(&folder, &mut found);
            for file in found {
                let inside = file.strip_prefix(&folder).unwrap().with_extension("");
                let parts = inside.iter().map(|part| part.to_str().unwrap().to_owned());
                let mut module: Module = [package.clone()].into_iter().chain(parts).collect();
                module.pop_if(|last| ["mod", "lib", "main"].contains(&last.as_str()));
                // A binary beside a library is a separate module.
                if file.ends_with("main.rs") && folder.join("lib.rs").exists() {
                    module.push("main".to_owned());
                }
                if module.iter().any(|part| part == "tests") {
                    continue;
                }
                let tokens = tokens(&fs::read_to_string(&file).unwrap());
                let path = file.strip_prefix(root()).unwrap().to_owned();
                files.insert(module, File { path, tokens });
            }
        }
        assert!(files.len() > 100, "only {} files were found", files.len());
        let imported = files.iter().map(|(module, file)| (module.clone(), imported(&file.tokens))).collect();
        Self { files, imported }
    }

    /// Returns the module that defines `names` in `module`; `None` for a module of another crate.
    fn find(&self, module: &Module, names: &[String], depth: usize) -> Option<Module> {
        let (first, mut rest) = names.split_first()?;
        let mut at = match first.as_str() {
            "crate" => module[..1].to_vec(),
            "self" => module.clone(),
            "super" => module[..module.len().checked_sub(1)?].to_vec(),
            package if self.files.contains_key(&vec![package.to_owned()]) => vec![package.to_owned()],
            _ => {
                rest = names;
                module.clone()
            }
        };
        while let Some((next, after)) = rest.split_first() {
            if next == "super" {
                at.pop();
            } else if self.files.contains_key(&[at.as_slice(), std::slice::from_ref(next)].concat()) {
                at.push(next.clone());
            } else {
                let Some(stands_for) = self.imported.get(&at).and_then(|names| names.get(next)) else { break };
                if depth == RE_EXPORTS || stands_for.first() == Some(next) && stands_for.len() == 1 {
                    break;
                }
                let whole: Names = stands_for.iter().chain(after).cloned().collect();
                return self.find(&at, &whole, depth + 1);
            }
            rest = after;
        }
        // Otherwise the path begins with another crate, or with a name that the module itself defines.
        let is_ours = at != *module || matches!(first.as_str(), "crate" | "self" | "super");
        (is_ours && self.files.contains_key(&at)).then_some(at)
    }

    /// Returns the modules that a module uses, without its parents.
    fn uses(&self, module: &Module) -> BTreeSet<Module> {
        let tokens = &self.files[module].tokens;
        let mut used = BTreeSet::new();
        let mut at = 0;
        while at < tokens.len() {
            let starts = tokens.get(at + 1).is_some_and(|next| next == "::") && (at == 0 || tokens[at - 1] != "::");
            // A module uses a re-export if it uses the name, possibly in the same file.
            if tokens[at] == "use" && at > 0 && (tokens[at - 1] == "pub" || tokens[at - 1] == ")") {
                let (found, length) = paths(&tokens[at + 1..]);
                let here = |name: &String| tokens.iter().filter(|token| *token == name).count() > 1;
                let named = found.iter().filter(|(_, alias)| here(alias));
                used.extend(named.filter_map(|(names, _)| self.find(module, names, 0)));
                at += 1 + length;
            } else if starts && tokens[at].starts_with(|c: char| c.is_alphabetic()) {
                let (found, length) = paths(&tokens[at..]);
                used.extend(found.iter().filter_map(|(names, _)| self.find(module, names, 0)));
                at += length.max(1);
            } else {
                at += 1;
            }
        }
        used.into_iter().filter(|used| !module.starts_with(used)).collect()
    }
}

/// Returns the names that `use` brings into a module.
fn imported(tokens: &[String]) -> BTreeMap<String, Names> {
    let uses = tokens.iter().enumerate().filter(|(_, token)| *token == "use");
    uses.flat_map(|(at, _)| paths(&tokens[at + 1..]).0).map(|(names, alias)| (alias, names)).collect()
}

/// Returns the circles of a graph: its strongly connected components of two nodes or more.
fn circles(graph: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<BTreeSet<Module>> {
    let reached = |from: &Module| {
        let mut reached = BTreeSet::new();
        let mut open: Vec<_> = graph[from].iter().collect();
        while let Some(next) = open.pop() {
            if reached.insert(next.clone()) {
                open.extend(&graph[next]);
            }
        }
        reached
    };
    let reached: BTreeMap<_, _> = graph.keys().map(|module| (module, reached(module))).collect();
    let mut circles = BTreeSet::new();
    for module in graph.keys().filter(|module| reached[module].contains(*module)) {
        circles.insert(reached[module].iter().filter(|other| reached[other].contains(module)).cloned().collect());
    }
    circles.into_iter().collect()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let house = House::read();
    let graph: BTreeMap<_, _> = house.files.keys().map(|module| (module.clone(), house.uses(module))).collect();
    let arrows: usize = graph.values().map(BTreeSet::len).sum();
    assert!(arrows > 300, "only {arrows} imports were found");
    let shown = |module: &Module| house.files[module].path.display().to_string();
    let mut found = vec![];
    for circle in circles(&graph) {
        found.push(format!("{} files:", circle.len()));
        for module in &circle {
            for used in graph[module].intersection(&circle) {
                found.push(format!("  {} uses {}", shown(module), shown(used)));
            }
        }
    }
    assert!(found.is_empty(), "files import each other in a circle\n{}", found.join("\n"));
}

#[test]
fn paths_are_read_with_braces_and_aliases() {
    let read = |text: &str| {
        let (paths, _) = paths(&tokens(text));
        paths.into_iter().map(|(names, alias)| format!("{} as {alias}", names.join("::"))).collect::<Vec<_>>()
    };
    assert_eq!(
        read("crate::{\n    api::{self, Reason as Why},\n    error::Error,\n};"),
        ["crate::api as api", "crate::api::Reason as Why", "crate::error::Error as Error"]
    );
    assert_eq!(read("super::checks::namespace(credential)"), ["super::checks::namespace as namespace"]);
}

#[test]
fn a_circle_is_found_through_others_and_an_arrow_alone_is_none() {
    let module = |name: &str| vec![name.to_owned()];
    let graph = [("a", &["b"][..]), ("b", &["c"]), ("c", &["a", "d"]), ("d", &[])];
    let graph = graph.map(|(from, to)| (module(from), to.iter().map(|name| module(name)).collect()));
    let found = circles(&graph.into_iter().collect());
    assert_eq!(found, [["a", "b", "c"].map(module).into_iter().collect::<BTreeSet<_>>()]);
}
