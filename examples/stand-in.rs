//! Starts a stand-in of an identity provider and of its mail servers, to try a set-up without an account. See
//! docs/stand-ins.md.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a command-line tool, which ends with the error")]
#![allow(clippy::disallowed_methods, reason = "a provider has its own clock")]
#![allow(clippy::print_stdout, reason = "the tool prints to a terminal")]

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::mpsc::{RecvTimeoutError, channel},
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use mailtoken_mail::protocol::Protocol;
use mailtoken_testkit::{
    proxy::Proxy,
    server::Request,
    standin::{
        App, Cloud, Exchange, Gmail, Google, Key, Microsoft, Odd, Strict, google,
        mail::{Condition, gmail::Settings},
        microsoft,
    },
};

const CLIENT: &str = "2f1c6a0e-0000-4000-8000-000000000000";
const SECRET: &str = "s3cret";
const MAILBOX: &str = "billing@contoso.com";
/// The workload identity provider at Google.
const PROVIDER: &str =
    "//iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/mail/providers/cluster";
const GMAIL: &str = "https://mail.google.com/";

/// Time between two reads of the recorded requests.
const INTERVAL: Duration = Duration::from_millis(200);

/// A stand-in of an identity provider, on this machine.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    provider: Provider,
    /// The address to listen on.
    #[arg(long, global = true, default_value = "127.0.0.1")]
    address: IpAddr,
    /// The port to listen on.
    #[arg(long, global = true, default_value_t = 8443)]
    port: u16,
    /// The port of the mail server for SMTP with STARTTLS.
    #[arg(long, global = true, default_value_t = 8587)]
    smtp_port: u16,
    /// The port of the mail server for IMAP with TLS.
    #[arg(long, global = true, default_value_t = 8993)]
    imap_port: u16,
    /// The port of the mail server for POP3 with TLS.
    #[arg(long, global = true, default_value_t = 8995)]
    pop3_port: u16,
    /// The folder for the CA's certificate and the keys.
    #[arg(long, global = true, default_value = "target/stand-in")]
    dir: PathBuf,
}

#[derive(Subcommand)]
enum Provider {
    /// Microsoft Entra ID with one tenant and one application, and Exchange Online with one mailbox.
    Microsoft(MicrosoftArguments),
    /// Google's OAuth server with one service account and one client, and Gmail with one mailbox.
    Google(Federated),
    /// A server that revokes a refresh token's whole family when it is used twice.
    Strict,
}

#[derive(Args)]
struct MicrosoftArguments {
    #[arg(long, value_enum, default_value = "public")]
    cloud: CloudName,
    #[command(flatten)]
    federated: Federated,
}

/// A cluster whose ServiceAccount the provider trusts.
#[derive(Args)]
struct Federated {
    /// The issuer of a federated credential, such as that of `kubectl get --raw /.well-known/openid-configuration`.
    #[arg(long, requires_all = ["subject", "jwks"])]
    issuer: Option<String>,
    /// The subject of the federated credential: system:serviceaccount:NAMESPACE:NAME.
    #[arg(long, requires = "issuer")]
    subject: Option<String>,
    /// The file with the issuer's keys: `kubectl get --raw /openid/v1/jwks`.
    #[arg(long, requires = "issuer")]
    jwks: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum CloudName {
    Public,
    UsGov,
    China,
}

/// A running stand-in of one provider, with its mail servers.
enum Running {
    Microsoft(Microsoft, Exchange),
    Google(Google, Gmail),
    Strict(Strict),
}

fn main() {
    let Arguments { provider, address, port, smtp_port, imap_port, pop3_port, dir } = Arguments::parse();
    fs::create_dir_all(&dir).unwrap();
    let mail = [smtp_port, imap_port, pop3_port];
    let address = SocketAddr::from((address, port));
    let running = match provider {
        Provider::Microsoft(arguments) => microsoft(address, mail, &arguments, &dir),
        Provider::Google(federated) => google(&federated, address, mail, &dir),
        Provider::Strict => strict(address),
    };
    fs::write(dir.join("ca.crt"), running.ca()).unwrap();
    show("CA certificate", dir.join("ca.crt").display());
    let proxy = Proxy::with_mail(port, &[(587, smtp_port), (993, imap_port), (995, pop3_port)]);
    show("for the broker", format!("--egress-proxy={} --allow-private-cidr=127.0.0.0/8", proxy.url()));
    running.serve();
}

fn show(what: &str, value: impl ToString) {
    println!("{what:<16} {}", value.to_string());
}

fn listens(names: &[&str], address: SocketAddr) {
    show("listens on", address);
    for name in names {
        show("for /etc/hosts", format!("{} {name}", address.ip()));
    }
}

fn mail_servers(names: [&str; 3], address: SocketAddr, ports: [u16; 3]) {
    for (name, (port, own)) in names.iter().zip([587, 993, 995].into_iter().zip(ports)) {
        show("mail server", format!("{name}:{port} at {}:{own}", address.ip()));
    }
}

fn microsoft(address: SocketAddr, mail: [u16; 3], arguments: &MicrosoftArguments, dir: &Path) -> Running {
    let (cloud, resource, exchange, servers) = match arguments.cloud {
        CloudName::Public => (
            Cloud::Public,
            "https://outlook.office.com",
            "AzureADTokenExchange",
            ["smtp.office365.com", "outlook.office365.com", "outlook.office365.com"],
        ),
        CloudName::UsGov => (
            Cloud::UsGov,
            "https://outlook.office365.us",
            "AzureADTokenExchangeUSGov",
            ["smtp.office365.us", "outlook.office365.us", "outlook.office365.us"],
        ),
        CloudName::China => (
            Cloud::China,
            "https://partner.outlook.cn",
            "AzureADTokenExchangeChina",
            ["smtp.partner.outlook.cn", "partner.outlook.cn", "partner.outlook.cn"],
        ),
    };
    let entra = Microsoft::start_at(address, cloud);
    let key = Key::generate();
    let mut app = App::new(CLIENT).secret(SECRET).certificate(&write(dir, "tls.crt", key.certificate())).public();
    write(dir, "tls.key", key.pem());
    let Federated { issuer, subject, jwks } = &arguments.federated;
    if let (Some(issuer), Some(subject), Some(jwks)) = (issuer, subject, jwks) {
        app = app.federated(issuer, subject, &format!("api://{exchange}"));
        entra.trust_issuer(issuer, serde_json::from_slice(&fs::read(jwks).unwrap()).unwrap());
    }
    let object_id = app.object_id();
    entra.register(app);
    entra.sign_in_as(Some(MAILBOX));
    let exchange = Exchange::beside_at(&entra, address.ip(), mail);
    exchange.mailbox(MAILBOX);
    listens(&[cloud.host()], address);
    show("tenant", format!("{} ({})", microsoft::TENANT[0], microsoft::TENANT_ID));
    show("client", CLIENT);
    show("client secret", SECRET);
    show("certificate", format!("{0}/tls.crt, {0}/tls.key", dir.display()));
    show("refresh token", entra.refresh_token(CLIENT, MAILBOX, &format!("{resource}/SMTP.Send")));
    show("object id", object_id);
    show("signs in", MAILBOX);
    mail_servers(servers, address, mail);
    Running::Microsoft(entra, exchange)
}

fn google(federated: &Federated, address: SocketAddr, mail: [u16; 3], dir: &Path) -> Running {
    let google = Google::start_at(address);
    let account = google.service_account("mailer");
    google.delegate(&account.client_id, &[GMAIL]);
    google.mailbox(MAILBOX);
    google.client(CLIENT, SECRET);
    google.sign_in_as(Some(MAILBOX));
    write(dir, "key.json", account.key_file());
    let Federated { issuer, subject, jwks } = federated;
    if let (Some(issuer), Some(subject), Some(jwks)) = (issuer, subject, jwks) {
        let jwks = serde_json::from_slice(&fs::read(jwks).unwrap()).unwrap();
        google.trust_issuer(PROVIDER, issuer, jwks, Some(subject));
        let pool = PROVIDER.trim_start_matches('/').split("/providers/").next().unwrap();
        google.let_sign(&account, &format!("principal://{pool}/subject/{subject}"));
        show("without a key", format!("audience {PROVIDER}"));
    }
    listens(&google::HOSTS, address);
    show("service account", format!("{}, {}/key.json", account.email, dir.display()));
    show("delegated", GMAIL);
    show("mailbox", MAILBOX);
    show("client", CLIENT);
    show("client secret", SECRET);
    show("refresh token", google.refresh_token(CLIENT, MAILBOX, GMAIL));
    show("signs in", MAILBOX);
    mail_servers(["smtp.gmail.com", "imap.gmail.com", "pop.gmail.com"], address, mail);
    let gmail = Gmail::beside_at(&google, address.ip(), mail);
    Running::Google(google, gmail)
}

fn strict(address: SocketAddr) -> Running {
    let strict = Strict::start_at(address);
    strict.client(CLIENT, Some(SECRET));
    listens(&[], address);
    show("issuer", strict.issuer());
    show("client", CLIENT);
    show("client secret", SECRET);
    show("refresh token", strict.refresh_token(CLIENT, MAILBOX, "mail.send"));
    Running::Strict(strict)
}

fn write(dir: &Path, name: &str, content: String) -> String {
    fs::write(dir.join(name), &content).unwrap();
    content
}

impl Running {
    fn ca(&self) -> String {
        match self {
            Self::Microsoft(entra, _) => entra.ca(),
            Self::Google(google, _) => google.ca(),
            Self::Strict(strict) => strict.ca(),
        }
    }

    fn odd(&self, odd: Option<Odd>) {
        match self {
            Self::Microsoft(entra, _) => entra.odd(odd),
            Self::Google(google, _) => google.odd(odd),
            Self::Strict(strict) => strict.odd(odd),
        }
    }

    fn requests(&self) -> Vec<Request> {
        match self {
            Self::Microsoft(entra, _) => entra.requests(),
            Self::Google(google, _) => google.requests(),
            Self::Strict(strict) => strict.requests(),
        }
    }

    fn logins(&self) -> Vec<(Protocol, String, bool)> {
        match self {
            Self::Microsoft(_, exchange) => exchange.logins(),
            Self::Google(_, gmail) => gmail.logins(),
            Self::Strict(_) => vec![],
        }
    }

    fn set(&self, condition: Condition) {
        match self {
            Self::Microsoft(_, exchange) => exchange.set(condition),
            Self::Google(_, gmail) => gmail.set(condition),
            Self::Strict(_) => {}
        }
    }

    /// Shows requests and logins, and executes commands, until the process ends.
    fn serve(&self) {
        println!(
            "\ncommands: approve CODE ACCOUNT | deny CODE | expire CODE | revoke ACCOUNT | lifetime SECONDS | odd HOW | odd none\n\
             mail servers: mail well | mail throttled | mail hanging; Set-CASMailbox … (Exchange); imap off | pop off | \
             browser-sign-in on (Gmail)"
        );
        let (tx, rx) = channel();
        std::thread::spawn(move || std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| tx.send(line)));
        let (mut shown, mut judged) = (0, 0);
        loop {
            match rx.recv_timeout(INTERVAL) {
                Ok(line) => println!("{}", self.obey(&line)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(INTERVAL),
            }
            let requests = self.requests();
            for request in &requests[shown..] {
                let grant = request.form().remove("grant_type").unwrap_or_default();
                println!("{} {} {grant}", request.method, request.route());
            }
            shown = requests.len();
            let logins = self.logins();
            for (protocol, user, accepted) in &logins[judged..] {
                println!("{protocol:?} {user} {}", if *accepted { "accepted" } else { "refused" });
            }
            judged = logins.len();
        }
    }

    fn obey(&self, line: &str) -> String {
        if let Self::Microsoft(_, exchange) = self
            && line.split('-').next().is_some_and(|verb| ["Set", "New", "Add", "Remove"].contains(&verb))
        {
            return exchange.run(line).map_or_else(|refusal| refusal, |()| "done".to_owned());
        }
        self.control(line).to_owned()
    }

    fn control(&self, line: &str) -> &'static str {
        let words: Vec<_> = line.split_whitespace().collect();
        let known = |code: &str| match self {
            Self::Microsoft(entra, _) => entra.pending().iter().any(|pending| pending == code),
            Self::Strict(strict) => strict.pending().iter().any(|pending| pending == code),
            Self::Google(..) => false,
        };
        match (self, &words[..]) {
            (_, ["approve" | "deny" | "expire", code, ..]) if !known(code) => return "no sign-in waits for this code",
            (Self::Microsoft(entra, _), ["approve", code, account]) => entra.approve(code, account),
            (Self::Microsoft(entra, _), ["deny", code]) => entra.deny(code),
            (Self::Microsoft(entra, _), ["expire", code]) => entra.expire(code),
            (Self::Strict(strict), ["approve", code, account]) => strict.approve(code, account),
            (Self::Strict(strict), ["deny", code]) => strict.deny(code),
            (Self::Strict(strict), ["expire", code]) => strict.expire(code),
            (Self::Microsoft(entra, _), ["revoke", account]) => entra.end_grants(account, 50173),
            (Self::Google(google, _), ["revoke", account]) => google.revoke_grants(account),
            (_, ["mail", "well"]) => self.set(Condition::Well),
            (_, ["mail", "throttled"]) => self.set(Condition::Throttled),
            (_, ["mail", "hanging"]) => self.set(Condition::Hanging),
            (Self::Google(_, gmail), [what @ ("imap" | "pop" | "browser-sign-in"), how @ ("on" | "off")]) => {
                let (mut settings, on) = (Settings::default(), *how == "on");
                match *what {
                    "imap" => settings.imap = on,
                    "pop" => settings.pop = on,
                    _ => settings.browser_sign_in = on,
                }
                gmail.settings(MAILBOX, settings);
            }
            (_, ["odd", "none"]) => self.odd(None),
            (_, ["odd", how]) => match Odd::ALL.iter().find(|(name, _)| name == how) {
                Some((_, odd)) => self.odd(Some(*odd)),
                None => return "docs/stand-ins.md has the names",
            },
            (_, ["lifetime", seconds]) => match (self, seconds.parse()) {
                (Self::Microsoft(entra, _), Ok(seconds)) => entra.lifetime(seconds),
                (Self::Google(google, _), Ok(seconds)) => google.lifetime(seconds),
                (Self::Strict(strict), Ok(seconds)) => strict.lifetime(seconds),
                (_, Err(_)) => return "not a number of seconds",
            },
            _ => return "unknown command for this stand-in",
        }
        "done"
    }
}
