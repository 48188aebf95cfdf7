//! Runs the command in a message exactly as written.

use std::process::Command;

use super::{Idp, Namespace, process};

/// Returns all texts in backticks in a message.
pub fn quoted(message: &str) -> Vec<&str> {
    assert_eq!(message.matches('`').count() % 2, 0, "a backtick is left open: {message}");
    message.split('`').skip(1).step_by(2).collect()
}

/// Runs the first command in a message. Replaces its `<placeholders>` by `values`, in this order.
pub fn run(ns: &Namespace, message: &str, values: &[&str]) {
    let commands = quoted(message);
    let command =
        commands.iter().find(|text| text.starts_with("kubectl ")).unwrap_or_else(|| panic!("no command: {message}"));
    assert!(!command.starts_with("kubectl edit") && !command.contains(" edit "), "an editor is no command: {message}");
    shell(ns, &filled(command, values));
}

/// Runs a command from the broker exactly as written, with the administrator's kubectl.
pub fn shell(ns: &Namespace, command: &str) {
    let path = format!("{}/bin:{}", ns.cluster.dir().display(), std::env::var("PATH").unwrap_or_default());
    let cache = ns.cluster.dir().join("remedy-cache").join(&ns.name);
    let mut shell = Command::new("sh");
    shell
        .args(["-euc", command])
        .env("KUBECONFIG", ns.cluster.kubeconfig())
        .env("KUBECACHEDIR", cache)
        .env("PATH", path);
    process::output(&mut shell);
}

fn filled(command: &str, values: &[&str]) -> String {
    let mut command = command.to_owned();
    for value in values {
        let (start, end) = (command.find('<'), command.find('>'));
        let (Some(start), Some(end)) = (start, end) else { panic!("no place for {value}: {command}") };
        command.replace_range(start..=end, value);
    }
    assert!(!command.contains('<'), "a placeholder is left: {command}");
    command
}

/// Writes the CA's certificate to a file, as an operator would have it. Returns the file.
pub fn ca_file(ns: &Namespace, idp: &Idp) -> String {
    let file = ns.cluster.dir().join(format!("{}.crt", ns.name));
    std::fs::write(&file, idp.ca()).unwrap();
    file.to_str().unwrap().to_owned()
}
