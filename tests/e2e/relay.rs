//! Programs that know only a password, at the built relay. The broker writes the Secret, with tokens of Keycloak.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use mail_token_broker::api::MailCredential;
use mailtoken_testkit::*;
use serde_json::Value;

use super::keycloak::{LIFETIME, TARGET, demo, fingerprint, other_token};

/// Programs whose scripts are in `crates/relay/tests/programs`. Each sends a mail and waits for its arrival. curl and
/// Python also read by IMAP and POP3.
const PROGRAMS: [&str; 3] = ["msmtp", "curl", "python"];

/// A relay process for the programs. Dropping it kills the process.
struct Relay {
    child: Child,
    folder: PathBuf,
    /// The ports, by the variables of the scripts.
    ports: BTreeMap<String, String>,
}

/// Builds the relay. Cargo builds the relay automatically only for the tests of its own package.
fn built() -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--package", "mailtoken-relay", "--bin", "mail-token-relay"]);
    process::output(cargo.current_dir(process::root()));
    process::binary("mail-token-broker").with_file_name("mail-token-relay")
}

/// Publishes the keys of a Secret in a folder as the kubelet does.
fn publish(folder: &Path, generation: &str, keys: &BTreeMap<String, String>) {
    fs::create_dir_all(folder.join(generation)).unwrap();
    for (key, value) in keys {
        fs::write(folder.join(generation).join(key), value).unwrap();
        if fs::symlink_metadata(folder.join(key)).is_err() {
            symlink(Path::new("..data").join(key), folder.join(key)).unwrap();
        }
    }
    symlink(generation, folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}

impl Relay {
    /// Starts a relay with this Secret, and waits until it listens.
    async fn start(binary: &Path, ns: &Namespace, keys: &BTreeMap<String, String>) -> Self {
        let folder = process::scratch("relays").join(&ns.name);
        drop(fs::remove_dir_all(&folder));
        publish(&folder.join("secret"), "..1", keys);
        let mut command = process::mortal(binary);
        for flag in ["--smtp", "--imap", "--pop3"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        command.arg("--mailboxes").arg(folder.join("secret")).args(["--ca-file", &ns.cluster.env("CA_CERT")]);
        command.stderr(File::create(folder.join("log")).unwrap());
        let child = process::spawn(command).unwrap();
        let mut relay = Self { child, folder, ports: BTreeMap::new() };
        relay.ports = until("the relay listens", async || match relay.listening() {
            ports if ports.len() == 3 => Ok(ports),
            _ => Err(relay.log()),
        })
        .await;
        relay
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    fn listening(&self) -> BTreeMap<String, String> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let port = |line: Value| {
            let (_, port) = line["address"].as_str()?.rsplit_once(':')?;
            Some((format!("{}_PORT", line["protocol"].as_str()?), port.to_owned()))
        };
        lines.filter(|line| line["message"] == "listening").filter_map(port).collect()
    }

    /// Runs the script of a program. Returns its output; if it failed, its output and exit status.
    fn run(&self, ns: &Namespace, program: &str) -> Result<String, String> {
        let scripts = process::root().join("crates/relay/tests/programs");
        let subject: PathBuf =
            process::output(Command::new("mktemp").args(["-d", "-p"]).arg(&self.folder)).trim().into();
        let mailbox = ns.cluster.env("MAILBOX");
        let (user, domain) = mailbox.split_once('@').unwrap();
        let mut command = Command::new("timeout");
        command.args(["120", "bash", "-c", ". \"$0/functions.sh\"; . \"$1\"; await_mail"]);
        command.arg(&scripts).arg(scripts.join(format!("{program}.sh"))).current_dir(&subject).stdin(Stdio::null());
        command.env("MAIL", ns.cluster.dir().join("mail").join(domain).join(user)).env("MAILBOX", &mailbox);
        command.env("SUBJECT", format!("{program}-{}", subject.file_name().unwrap().display())).envs(&self.ports);
        process::try_output(&mut command)
    }

    /// Runs all programs. Each must send and read.
    fn run_all(&self, ns: &Namespace) {
        for program in PROGRAMS {
            self.run(ns, program).unwrap_or_else(|said| panic!("{program}: {said}\nthe relay's log:\n{}", self.log()));
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_dir_all(&self.folder));
    }
}

#[tokio::test]
async fn programs_with_a_password_continue_with_each_token_that_the_broker_writes() {
    // Build the relay before the first token exists: the build may take longer than a token is valid.
    let binary = built();
    let _usual = LIFETIME.read().await;
    let ns = demo().await;
    let broker = Broker::start(&ns).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    let first = ns.secret(TARGET).await;
    let mut relay = Relay::start(&binary, &ns, &first).await;
    relay.run_all(&ns);

    // Keycloak revokes the token, and the mail servers then refuse it.
    realm::revoke(&ns.cluster, &first["access_token"]);
    let said = relay.run(&ns, "msmtp").unwrap_err();
    assert!(said.contains("535 5.7.8"), "{said}\n{}", relay.log());

    // The broker requests another token, and the kubelet updates the mount. The relay keeps running.
    ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", "1").await;
    other_token(&ns, &fingerprint(&first)).await;
    let second = ns.secret(TARGET).await;
    publish(&relay.folder.join("secret"), "..2", &second);
    fs::remove_dir_all(relay.folder.join("secret/..1")).unwrap();
    relay.run_all(&ns);
    assert!(relay.child.try_wait().unwrap().is_none(), "{}", relay.log());

    let tokens = [&first, &second].map(|secret| secret["access_token"].clone());
    assert!(!tokens.iter().any(|token| relay.log().contains(token)), "{}", relay.log());
    leaks::assert_no_secret_shown(&ns, &broker, tokens.to_vec()).await;
}
