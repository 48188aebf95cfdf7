//! Real programs that know only a password log in through the relay at Dovecot and Postfix, with a token of Keycloak. A
//! script tests each program; `docs/relay/` has a page for each program.
//!
//! `MTB_TEST_STACK` names a running stack to use, as for the other tests.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a test's failure")]
#![allow(clippy::disallowed_methods, reason = "tests make tokens that are valid now")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

/// The running servers, with the variables of their `env` file.
struct Stack {
    dir: PathBuf,
    env: BTreeMap<String, String>,
    /// The process that stops the servers when its standard input closes, at the end of this process.
    _guard: Option<Child>,
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

impl Stack {
    fn shared() -> &'static Self {
        static STACK: OnceLock<Stack> = OnceLock::new();
        STACK.get_or_init(Self::start)
    }

    fn start() -> Self {
        let (dir, guard) = match std::env::var_os("MTB_TEST_STACK") {
            Some(dir) => {
                let up = Command::new(root().join("tools/stack")).arg("up").arg(&dir).arg("mail").status().unwrap();
                assert!(up.success());
                (dir.into(), None)
            }
            None => Self::guarded(),
        };
        let file = fs::read_to_string(dir.join("env")).unwrap();
        let pair = |line: &str| {
            let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
            Some((name.to_owned(), value.trim_matches('\'').to_owned()))
        };
        Self { env: file.lines().filter_map(pair).collect(), dir, _guard: guard }
    }

    /// Starts the servers under a shell in its own session, which receives no signals for the test.
    fn guarded() -> (PathBuf, Option<Child>) {
        const SCRIPT: &str = r#"
            "$1" up "$2" mail >&2 && echo up
            exec >&-
            read -r
            "$1" down "$2"; rm -rf "$2"
        "#;
        let dir = std::env::temp_dir().join(format!("mtr-test.{}", std::process::id()));
        let log = dir.with_extension("log");
        let mut command = Command::new("setsid");
        command.args(["bash", "-c", SCRIPT, "guard"]).arg(root().join("tools/stack")).arg(&dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log).unwrap());
        let mut guard = command.spawn().unwrap();
        let mut answer = String::new();
        guard.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
        let complaints = fs::read_to_string(&log).unwrap_or_default();
        drop(fs::remove_file(&log));
        assert_eq!(answer.trim(), "up", "the stack did not start (has tools/setup been run?):\n{complaints}");
        (dir, Some(guard))
    }

    /// Requests a token for the mailbox from Keycloak.
    fn token(&self) -> String {
        let form = |name: &str, value: &str| format!("{name}={value}");
        let output = Command::new("curl")
            .args(["-sSf", "--noproxy", "*", "--cacert", &self.env["CA_CERT"], "-d", "grant_type=client_credentials"])
            .args(["-d", &form("client_id", &self.env["KEYCLOAK_CLIENT_ID"])])
            .args(["-d", &form("client_secret", &self.env["KEYCLOAK_CLIENT_SECRET"])])
            .arg(&self.env["KEYCLOAK_TOKEN_URL"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let response: Value = serde_json::from_slice(&output.stdout).unwrap();
        response["access_token"].as_str().unwrap().to_owned()
    }

    /// Writes the keys of a Secret as the broker does.
    fn write_secret(&self, folder: &Path) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let (token, mailbox) = (self.token(), &self.env["MAILBOX"]);
        fs::create_dir_all(folder).unwrap();
        let write = |key: &str, value: &str| fs::write(folder.join(key), value).unwrap();
        for (key, value) in [("access_token", &token), ("username", mailbox), ("from", mailbox)] {
            write(key, value);
        }
        // The tokens of this Keycloak are valid for 300 s.
        write("expires_at_unix", &(now + 300).to_string());
        for (protocol, server, security) in
            [("smtp", "SUBMISSION", "STARTTLS"), ("imap", "IMAP", "TLS"), ("pop3", "POP3", "TLS")]
        {
            write(&format!("{protocol}_host"), &self.env[&format!("{server}_HOST")]);
            write(&format!("{protocol}_port"), &self.env[&format!("{server}_PORT")]);
            write(&format!("{protocol}_security"), security);
            write(&format!("{protocol}_username"), mailbox);
        }
    }
}

/// A relay process and its ports. Dropping it kills the process.
struct Relay {
    child: Child,
    ports: BTreeMap<String, String>,
    log: PathBuf,
}

impl Relay {
    fn start(folder: &Path, ca_file: &str, log: PathBuf) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mail-token-relay"));
        for flag in ["--smtp", "--imap", "--pop3"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        command.arg("--mailboxes").arg(folder).args(["--ca-file", ca_file]).stderr(File::create(&log).unwrap());
        let mut relay = Self { child: command.spawn().unwrap(), ports: BTreeMap::new(), log };
        while relay.ports.len() < 3 {
            assert!(relay.child.try_wait().unwrap().is_none(), "{}", fs::read_to_string(&relay.log).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(5));
            for line in BufReader::new(File::open(&relay.log).unwrap()).lines() {
                let Ok(line) = serde_json::from_str::<Value>(&line.unwrap()) else { continue };
                if line["message"] == "listening" {
                    let port = line["address"].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned();
                    relay.ports.insert(format!("{}_PORT", line["protocol"].as_str().unwrap()), port);
                }
            }
        }
        relay
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs the script of a program. The script checks the mail that the program sent and read.
fn run(program: &str) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let stack = Stack::shared();
    let folder =
        std::env::temp_dir().join(format!("mtr-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let (secret, work) = (folder.join("secret"), folder.join("work"));
    fs::create_dir_all(&work).unwrap();
    stack.write_secret(&secret);
    let relay = Relay::start(&secret, &stack.env["CA_CERT"], folder.join("relay.log"));
    let scripts = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs"));
    let mailbox = &stack.env["MAILBOX"];
    let (user, domain) = mailbox.split_once('@').unwrap();
    let output = Command::new("timeout")
        .args(["300", "bash", "-c", ". \"$0/functions.sh\"; . \"$1\"; await_mail"])
        .arg(scripts)
        .arg(scripts.join(format!("{program}.sh")))
        .current_dir(&work)
        .stdin(Stdio::null())
        .env("MAILBOX", mailbox)
        .env("SUBJECT", format!("{program}-{}", folder.file_name().unwrap().display()))
        .env("SECRET", &secret)
        .env("MAIL", stack.dir.join("mail").join(domain).join(user))
        .envs(&relay.ports)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let log = fs::read_to_string(&relay.log).unwrap();
    drop(relay);
    drop(fs::remove_dir_all(&folder));
    assert!(output.status.success(), "{program} ({}):\n{said}\nthe relay's log:\n{log}", output.status);
}

/// The scripts. One test runs each of them.
const PROGRAMS: &[&str] = &[
    "alertmanager",
    "curl",
    "fetchmail",
    "getmail",
    "go",
    "imapflow",
    "jakarta-mail",
    "mbsync",
    "msmtp",
    "mutt",
    "nodemailer",
    "phpmailer",
    "postfix",
    "python",
    "swaks",
];

#[test]
fn alertmanager_sends_a_notification() {
    run("alertmanager");
}

#[test]
fn curl_sends_and_reads() {
    run("curl");
}

#[test]
fn fetchmail_reads() {
    run("fetchmail");
}

#[test]
fn getmail_reads() {
    run("getmail");
}

#[test]
fn gos_net_smtp_sends() {
    run("go");
}

#[test]
fn imapflow_waits_for_mail_and_reads() {
    run("imapflow");
}

#[test]
fn jakarta_mail_sends_and_reads() {
    run("jakarta-mail");
}

#[test]
fn mbsync_reads() {
    run("mbsync");
}

#[test]
fn msmtp_sends() {
    run("msmtp");
}

#[test]
fn mutt_sends_and_reads() {
    run("mutt");
}

#[test]
fn nodemailer_sends() {
    run("nodemailer");
}

#[test]
fn phpmailer_sends() {
    run("phpmailer");
}

#[test]
fn postfix_queues_over_an_expired_token_and_loses_nothing() {
    run("postfix");
}

#[test]
fn pythons_library_sends_and_reads() {
    run("python");
}

#[test]
fn swaks_sends_by_plain_and_login() {
    run("swaks");
}

#[test]
fn each_program_has_a_script_and_a_page() {
    let names = |folder: &Path, end: &str| {
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = files.filter_map(|name| Some(name.strip_suffix(end)?.to_owned())).collect();
        names.sort();
        names
    };
    let scripts = names(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs")), ".sh");
    let scripts: Vec<_> = scripts.into_iter().filter(|name| name != "functions").collect();
    assert_eq!(scripts, PROGRAMS);
    assert_eq!(names(&root().join("docs/relay"), ".md"), PROGRAMS);
}
