//! Logins with a password at the stand-ins of Exchange and Gmail, with tokens of the stand-ins of Microsoft and Google.
//! The tests check the program's answer, and the one log line that explains how to fix a refusal.

use std::{fs, process::Command};

use mailtoken_mail::protocol::Protocol::{self, Imap, Pop3, Smtp};
use mailtoken_testkit::standin::{
    google::TOKEN_URL,
    mail::{Condition, MailStandIn, exchange::Policy, gmail},
    organization::{APP, Contoso, MAILBOX, Workspace},
};
use serde_json::Value;

use super::support::{Client, Folder, PATIENCE, Relay, plain, secret};

const GMAIL: &str = "https://mail.google.com/";

/// Returns the name of a protocol in ports and logs.
fn name(protocol: Protocol) -> String {
    protocol.as_str().to_owned()
}

/// Requests a token from a token endpoint on this machine that has the name of the real host. Returns the access token.
fn token_from(url: &str, port: u16, ca: &str, form: &[(&str, &str)]) -> String {
    let folder = Folder::new();
    let ca_file = folder.path().join("ca.pem");
    fs::write(&ca_file, ca).unwrap();
    let (host, path) = url.strip_prefix("https://").unwrap().split_once('/').unwrap();
    let mut curl = Command::new("curl");
    curl.args(["-sSf", "--noproxy", "*", "--resolve", &format!("{host}:{port}:127.0.0.1"), "--cacert"]).arg(&ca_file);
    for (name, value) in form {
        curl.args(["--data-urlencode", &format!("{name}={value}")]);
    }
    let output = curl.arg(format!("https://{host}:{port}/{path}")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let response: Value = serde_json::from_slice(&output.stdout).unwrap();
    response["access_token"].as_str().unwrap().to_owned()
}

/// Requests a token of the tenant's application.
fn microsoft_token(contoso: &Contoso) -> String {
    let url = "https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/token";
    token_from(url, contoso.entra.port(), &contoso.entra.ca(), &Contoso::form())
}

/// Requests a token of the service account.
fn google_token(workspace: &Workspace, scope: &str) -> String {
    let assertion = workspace.assertion(scope);
    let form = [("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("assertion", &assertion)];
    token_from(TOKEN_URL, workspace.google.port(), &workspace.google.ca(), &form)
}

/// Starts the relay for a mailbox of Exchange, with a token of the tenant's application.
fn at_exchange(contoso: &Contoso, mailbox: &'static str) -> Program {
    Program::new(&contoso.exchange, &contoso.entra.ca(), mailbox, &microsoft_token(contoso))
}

/// Starts the relay for the mailbox at Gmail, with this token.
fn at_gmail(workspace: &Workspace, token: &str) -> Program {
    Program::new(&workspace.gmail, &workspace.google.ca(), MAILBOX, token)
}

/// A relay for one mailbox, as a program uses it.
struct Program {
    relay: Relay,
    mailbox: &'static str,
    token: String,
    /// The folder of the mounted Secret.
    _folder: Folder,
}

impl Program {
    fn new<S>(server: &MailStandIn<S>, ca: &str, mailbox: &'static str, token: &str) -> Self {
        let mut keys = secret(mailbox, token, &[]);
        for protocol in Protocol::ALL {
            let prefix = name(protocol).to_lowercase();
            let security = if protocol == Smtp { "STARTTLS" } else { "TLS" };
            let values = [("host", "localhost"), ("port", &server.port(protocol).to_string()), ("security", security)];
            keys.extend(values.map(|(key, value)| (format!("{prefix}_{key}"), value.to_owned())));
        }
        let folder = Folder::new();
        let ca_file = folder.path().join("ca.pem");
        fs::write(&ca_file, ca).unwrap();
        folder.publish("mailbox", &keys);
        let relay = Relay::start(&folder.path().join("mailbox"), &["--ca-file", ca_file.to_str().unwrap()]);
        Self { relay, mailbox, token: token.to_owned(), _folder: folder }
    }

    /// Connects and logs in as a program. Returns the connection and the answer.
    async fn log_in(&self, protocol: Protocol) -> (Client, String) {
        let mut client = Client::connect(self.relay.port(&name(protocol))).await;
        client.line().await;
        match protocol {
            Smtp => client.send(&format!("AUTH PLAIN {}", plain(self.mailbox, "any"))).await,
            Imap => client.send(&format!("a LOGIN {} any", self.mailbox)).await,
            Pop3 => {
                client.ask(&format!("USER {}", self.mailbox), "+OK").await;
                client.send("PASS any").await;
            }
        }
        let answer = client.line().await;
        (client, answer)
    }

    /// Logs in by a protocol, expects success, and sends a command to the server.
    async fn is_accepted(&self, protocol: Protocol) -> Client {
        let (mut client, answer) = self.log_in(protocol).await;
        let (accepted, command, begins) = match protocol {
            Smtp => ("235 2.7.0", "NOOP", "250 2.0.0"),
            Imap => ("a OK [CAPABILITY IMAP4", "b EXAMINE INBOX", "* FLAGS"),
            Pop3 => ("+OK", "STAT", "+OK 0 0"),
        };
        assert!(answer.starts_with(accepted), "{answer}");
        client.ask(command, begins).await;
        client
    }

    /// Logs in by a protocol, expects this answer, and expects one new line in the log, with the outcome and these
    /// parts of the explanation. The session continues. Returns the explanation.
    async fn is_refused(&self, protocol: Protocol, answer: &str, outcome: &str, parts: &[&str]) -> String {
        let before = self.lines().len();
        let (mut client, answered) = self.log_in(protocol).await;
        assert!(answered.starts_with(answer), "{protocol:?}: {answered}");
        client.ask(if protocol == Imap { "b NOOP" } else { "NOOP" }, ["250", "b OK", "+OK"][protocol as usize]).await;
        let logged = async {
            while self.lines().len() == before {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, logged).await.expect("a line in the log");
        let [line] = &self.lines()[before..] else { panic!("{protocol:?}: {:?}", &self.lines()[before..]) };
        let why = line["why"].as_str().unwrap_or_default();
        let fields =
            ["message", "mailbox", "outcome", "protocol"].map(|field| line[field].as_str().unwrap_or_default());
        assert_eq!(fields, ["login failed", self.mailbox, outcome, &name(protocol)], "{line}");
        for part in parts {
            assert!(why.contains(part), "{protocol:?}: no {part} in {why}");
        }
        assert!(!line.to_string().contains(&self.token), "{protocol:?}");
        why.to_owned()
    }

    /// Calls [`Self::is_refused`] for each protocol, with a part of the explanation for each.
    async fn all_are_refused(&self, answers: [&str; 3], outcome: &str, parts: [&str; 3]) {
        for (protocol, (answer, part)) in Protocol::ALL.into_iter().zip(answers.into_iter().zip(parts)) {
            self.is_refused(protocol, answer, outcome, &[part]).await;
        }
    }

    /// Returns the log lines about clients, without the lines about the ends of sessions.
    fn lines(&self) -> Vec<Value> {
        let log = self.relay.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line.get("client").is_some() && line["message"] != "session ended").collect()
    }
}

/// The answers to a login that may succeed later. `PERMANENT` has the answers to a login that a user must fix.
const TEMPORARY: [&str; 3] = ["454 4.7.0", "a NO [UNAVAILABLE]", "-ERR [SYS/TEMP]"];
const PERMANENT: [&str; 3] = ["535 5.7.8", "a NO [AUTHENTICATIONFAILED]", "-ERR [AUTH]"];

/// Returns the command after the colon at the end of an explanation.
fn command(why: &str) -> &str {
    why.rsplit_once(": ").unwrap().1
}

#[tokio::test]
async fn exchange_and_gmail_accept_logins_with_a_password() {
    let (contoso, workspace) = (Contoso::set_up(), Workspace::start());
    let (exchange, gmail) = (at_exchange(&contoso, MAILBOX), at_gmail(&workspace, &google_token(&workspace, GMAIL)));
    for protocol in Protocol::ALL {
        exchange.is_accepted(protocol).await;
        gmail.is_accepted(protocol).await;
    }
    let accepted = Protocol::ALL.map(|protocol| (protocol, MAILBOX.to_owned(), true));
    assert_eq!(contoso.exchange.logins(), accepted);
    assert_eq!(workspace.gmail.logins(), accepted);
    // The relay offers the next program what the server offers.
    let mut client = Client::connect(gmail.relay.port("IMAP")).await;
    assert!(client.line().await.contains(" IDLE "));
}

#[tokio::test]
async fn the_log_names_the_commands_that_set_a_new_tenant_up() {
    let contoso = Contoso::start();
    let program = at_exchange(&contoso, MAILBOX);
    let refused = "535 5.7.8 The mail server refused the token (535 5.7.139)";
    let why =
        program.is_refused(Smtp, refused, "refused", &["535 5.7.139: SMTP AUTH is off for the whole tenant"]).await;
    contoso.run(command(&why));
    let permission =
        format!("Add-MailboxPermission -Identity {MAILBOX} -User <object id of the Enterprise application>");
    let refused = "535 5.7.8 The mail server refused the token (535 5.7.3)";
    program.is_refused(Smtp, refused, "refused", &["535 5.7.3: ", &permission]).await;
    program.is_refused(Pop3, "-ERR [AUTH]", "refused", &["-ERR: ", &permission]).await;
    // Exchange accepts the login but refuses the mailbox. The program sees the refusal.
    let (mut client, answer) = program.log_in(Imap).await;
    assert!(answer.starts_with("a OK"), "{answer}");
    client.ask("b SELECT INBOX", "b BAD User is authenticated but not connected.").await;

    contoso.permit();
    for protocol in Protocol::ALL {
        program.is_accepted(protocol).await;
    }
}

#[tokio::test]
async fn each_refusal_of_exchange_has_its_answer_and_its_command() {
    let contoso = Contoso::set_up();
    let program = at_exchange(&contoso, MAILBOX);

    contoso.run(&format!("Set-CASMailbox -Identity {MAILBOX} -SmtpClientAuthenticationDisabled $true"));
    let why = program.is_refused(Smtp, PERMANENT[0], "refused", &["SMTP AUTH is off for this mailbox"]).await;
    contoso.run(command(&why));
    program.is_accepted(Smtp).await;
    for (protocol, setting) in [(Imap, "ImapEnabled"), (Pop3, "PopEnabled")] {
        let command = format!("Set-CASMailbox -Identity {MAILBOX} -{setting} $true");
        contoso.run(&command.replace("$true", "$false"));
        program.is_refused(protocol, PERMANENT[protocol as usize], "refused", &[&command]).await;
        contoso.run(&command);
        program.is_accepted(protocol).await;
    }

    let (codes, permission) = (["535 5.7.3: ", "NO: ", "-ERR: "], ["Add-MailboxPermission -Identity "; 3]);
    contoso.run(&format!("Remove-MailboxPermission -Identity {MAILBOX} -User {APP} -AccessRights FullAccess"));
    program.all_are_refused(PERMANENT, "refused", codes).await;
    contoso.run(&format!("Add-MailboxPermission -Identity {MAILBOX} -User {APP} -AccessRights FullAccess"));
    let unknown = at_exchange(&contoso, "unknown@contoso.com");
    unknown.all_are_refused(PERMANENT, "refused", permission).await;

    for policy in [Policy::SecurityDefaults, Policy::ConditionalAccess] {
        contoso.exchange.block(Some(policy));
        program
            .is_refused(Smtp, PERMANENT[0], "refused", &["535 5.7.139: a policy of the tenant blocks the login"])
            .await;
    }
    contoso.exchange.block(None);

    // Exchange's clock is ahead, so Exchange refuses a token that is valid by the Secret.
    contoso.exchange.clock_ahead(3600);
    program.all_are_refused(PERMANENT, "refused", codes).await;
    contoso.exchange.clock_ahead(0);
    contoso.exchange.set(Condition::Throttled);
    program
        .all_are_refused(TEMPORARY, "unavailable", ["432 4.3.2: localhost limits", "BAD: localhost limits", "-ERR: "])
        .await;
    contoso.exchange.set(Condition::Well);
    program.is_accepted(Smtp).await;
}

#[tokio::test]
async fn high_volume_email_refuses_a_token_that_ends_soon() {
    let contoso = Contoso::start();
    contoso.exchange.high_volume("hve@contoso.com");
    contoso.entra.lifetime(540);
    let program = at_exchange(&contoso, "hve@contoso.com");
    let refused = "535 5.7.8 The mail server refused the token (501 5.5.127)";
    program.is_refused(Smtp, refused, "refused", &["set spec.renewal.minValidity of the MailCredential to 15m"]).await;
    contoso.entra.lifetime(3599);
    at_exchange(&contoso, "hve@contoso.com").is_accepted(Smtp).await;
}

#[tokio::test]
async fn each_refusal_of_gmail_has_its_answer_and_its_advice() {
    let workspace = Workspace::start();
    let codes = ["535 5.7.8: ", "NO [AUTHENTICATIONFAILED]: ", "-ERR [AUTH]: "];
    let wrong_scope = google_token(&workspace, "https://www.googleapis.com/auth/gmail.send");
    for token in ["garbage", &wrong_scope] {
        at_gmail(&workspace, token).all_are_refused(PERMANENT, "refused", codes).await;
    }

    let program = at_gmail(&workspace, &google_token(&workspace, GMAIL));
    let gmail = &workspace.gmail;
    gmail.clock_ahead(3600);
    program.all_are_refused(PERMANENT, "refused", codes).await;
    gmail.clock_ahead(0);
    let well = gmail::Settings::default();
    gmail.settings(MAILBOX, gmail::Settings { browser_sign_in: true, ..well });
    let refused = "535 5.7.8 The mail server refused the token (534 5.7.9)";
    program.is_refused(Smtp, refused, "refused", &["sign in at Google as billing@contoso.com with a browser"]).await;
    gmail.settings(MAILBOX, gmail::Settings { imap: false, pop: false, ..well });
    program.is_refused(Imap, PERMANENT[1], "refused", &["NO [ALERT]: "]).await;
    program.is_refused(Pop3, PERMANENT[2], "refused", &["-ERR [SYS/PERM]: "]).await;
    gmail.settings(MAILBOX, well);

    gmail.set(Condition::Throttled);
    program.all_are_refused(TEMPORARY, "unavailable", ["454 4.7.0: ", "NO [ALERT]: ", "-ERR [SYS/TEMP]: "]).await;
    gmail.set(Condition::Well);
    for protocol in Protocol::ALL {
        program.is_accepted(protocol).await;
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_a_temporary_failure() {
    let workspace = Workspace::start();
    workspace.gmail.set(Condition::Hanging);
    let program = at_gmail(&workspace, &google_token(&workspace, GMAIL));
    let [smtp, imap, pop3] = Protocol::ALL.map(|protocol| program.log_in(protocol));
    let answers = tokio::join!(smtp, imap, pop3);
    for ((_, answer), begins) in [answers.0, answers.1, answers.2].into_iter().zip(TEMPORARY) {
        assert!(answer.starts_with(begins), "{answer}");
    }
    assert_eq!(workspace.gmail.logins().len(), 3);
}
