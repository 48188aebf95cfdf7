//! The measured programs, each with settings that make it fast.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::process::geteuid;

use crate::{
    Lab,
    load::{PASSWORD, USER},
    process::{Core, Running},
    stand_in,
};

/// Maximum time until a program accepts its first connection.
const PATIENCE: Duration = Duration::from_secs(20);

/// A measured program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    Relay,
    /// stunnel, which only starts TLS and copies: the client logs in at the mail server.
    Stunnel,
    /// Dovecot's login proxy in fast mode.
    Dovecot,
    /// nginx's mail proxy. It supports neither XOAUTH2 nor TLS to the server: it passes the password to the server,
    /// through stunnel.
    Nginx,
    EmailProxy,
}

/// A program that accepts connections.
pub struct Started {
    /// The processes of the program.
    pub running: Running,
    /// The port for IMAP on loopback, without TLS.
    pub imap: u16,
    /// The port for SMTP on loopback, without TLS; `None` if the program has no SMTP set-up.
    pub smtp: Option<u16>,
    /// Time from the start to the first accepted connection.
    pub first_accept: Duration,
}

impl Program {
    /// All programs, in the order in which a round measures them.
    pub const ALL: [Self; 5] = [Self::Relay, Self::Stunnel, Self::Dovecot, Self::Nginx, Self::EmailProxy];

    /// The name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Stunnel => "stunnel",
            Self::Dovecot => "Dovecot",
            Self::Nginx => "nginx + stunnel",
            Self::EmailProxy => "email-oauth2-proxy",
        }
    }

    /// Returns the executable of the program.
    pub fn file(self, lab: &Lab) -> PathBuf {
        match self {
            Self::Relay => lab.relay.clone(),
            Self::Stunnel => PathBuf::from("/usr/bin/stunnel4"),
            Self::Dovecot => PathBuf::from("/usr/sbin/dovecot"),
            Self::Nginx => PathBuf::from("/usr/sbin/nginx"),
            Self::EmailProxy => lab.email_proxy.join("bin/python"),
        }
    }

    /// Returns why this machine cannot measure the program; `None` if it can.
    pub fn missing(self, lab: &Lab) -> Option<String> {
        let file = self.file(lab);
        if !file.exists() {
            return Some(format!("{} does not exist: run tools/setup relay-bench", file.display()));
        }
        let needs_root = matches!(self, Self::Dovecot | Self::Nginx);
        (needs_root && !geteuid().is_root()).then(|| "it starts only as root".to_owned())
    }

    /// Returns how many idle sessions the program holds, at most `wanted`. email-oauth2-proxy needs a tenth of a second
    /// for each login. It cannot hold more than about 500 sessions, because it waits with select(2).
    pub fn holds(self, wanted: usize) -> usize {
        if self == Self::EmailProxy { wanted.min(100) } else { wanted }
    }

    /// Starts the program with fresh files, and waits until it accepts connections.
    pub fn start(self, lab: &Lab) -> Started {
        let folder = lab.folder.join(format!("{self:?}"));
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap();
        }
        fs::create_dir_all(&folder).unwrap();
        let (imap, smtp) = (free_port(), free_port());
        let serves_smtp = matches!(self, Self::Relay | Self::Stunnel);
        let mut running = Running::default();
        if self == Self::Nginx {
            let behind = free_port();
            running.add(lab.cores.spawn(Core::Measured, &mut stunnel(lab, &folder, behind, None)).unwrap());
            accepts(behind, &mut running);
            nginx_files(&folder, imap, behind);
        }
        let mut command = match self {
            Self::Relay => relay(lab, &folder, imap, smtp),
            Self::Stunnel => stunnel(lab, &folder, imap, Some(smtp)),
            Self::Dovecot => dovecot(lab, &folder, imap),
            Self::Nginx => nginx(&folder),
            Self::EmailProxy => email_proxy(lab, &folder, imap),
        };
        let begun = Instant::now();
        running.add(lab.cores.spawn(Core::Measured, &mut command).unwrap());
        accepts(imap, &mut running);
        let first_accept = begun.elapsed();
        Started { running, imap, smtp: serves_smtp.then_some(smtp), first_accept }
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Waits until a port accepts connections.
fn accepts(port: u16, running: &mut Running) {
    let begun = Instant::now();
    while TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_err() {
        assert!(running.alive(), "a measured program ended at its start");
        assert!(begun.elapsed() < PATIENCE, "a measured program does not listen");
        thread::sleep(Duration::from_micros(200));
    }
}

/// Returns a command without output. With `RELAY_BENCH_LOGS=1` the command prints its output.
fn quiet(file: PathBuf) -> Command {
    let mut command = Command::new(file);
    if std::env::var_os("RELAY_BENCH_LOGS").is_none() {
        command.stdout(Stdio::null()).stderr(Stdio::null());
    }
    command
}

fn relay(lab: &Lab, folder: &Path, imap: u16, smtp: u16) -> Command {
    // The folder is like a Secret that the kubelet mounts: the keys are links through ..data.
    let mailboxes = folder.join("mailboxes");
    fs::create_dir_all(mailboxes.join("..1")).unwrap();
    symlink("..1", mailboxes.join("..data")).unwrap();
    let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 86_400;
    for (key, value) in [
        ("access_token", stand_in::token()),
        ("expires_at_unix", expires.to_string()),
        ("username", USER.to_owned()),
        ("imap_host", "localhost".to_owned()),
        ("imap_port", lab.imap.to_string()),
        ("imap_security", "TLS".to_owned()),
        ("smtp_host", "localhost".to_owned()),
        ("smtp_port", lab.smtp.to_string()),
        ("smtp_security", "TLS".to_owned()),
    ] {
        fs::write(mailboxes.join("..1").join(key), value).unwrap();
        symlink(Path::new("..data").join(key), mailboxes.join(key)).unwrap();
    }
    let mut command = quiet(Program::Relay.file(lab));
    command
        .arg(format!("--mailboxes={}", mailboxes.display()))
        .arg(format!("--ca-file={}", lab.root_file.display()))
        .arg(format!("--imap=127.0.0.1:{imap}"))
        .arg(format!("--smtp=127.0.0.1:{smtp}"))
        .args(["--pop3=off", "--max-connections=20000"]);
    command
}

fn stunnel(lab: &Lab, folder: &Path, imap: u16, smtp: Option<u16>) -> Command {
    let service = |name: &str, accept: u16, connect: u16| {
        format!(
            "[{name}]\nclient = yes\naccept = 127.0.0.1:{accept}\nconnect = localhost:{connect}\nsni = localhost\n\
             CAfile = {}\nverifyChain = yes\ncheckHost = localhost\n",
            lab.root_file.display()
        )
    };
    // Three settings change Debian's defaults. libwrap: a separate process checks each connection. TCP_NODELAY: Nagle's
    // algorithm delays data after a reply. syslog: without a daemon, each log line goes to the console.
    let mut text = "foreground = yes\nsyslog = no\noutput = /dev/null\npid =\nlibwrap = no\nsocket = l:TCP_NODELAY=1\n\
                    socket = r:TCP_NODELAY=1\n"
        .to_owned();
    text += &service("imap", imap, lab.imap);
    if let Some(smtp) = smtp {
        text += &service("smtp", smtp, lab.smtp);
    }
    let file = folder.join("stunnel.conf");
    fs::write(&file, text).unwrap();
    let mut command = quiet(Program::Stunnel.file(lab));
    command.arg(file);
    command
}

fn dovecot(lab: &Lab, folder: &Path, imap: u16) -> Command {
    let (run, server, token) = (folder.display(), lab.imap, stand_in::token());
    // any-cert: Dovecot's login processes do not read `ssl_client_ca_file`, so they verify no certificate.
    // service_count = 0: a login process serves many connections.
    let text = format!(
        "base_dir = {run}/run\nstate_dir = {run}/state\nlog_path = /dev/null\nprotocols = imap\nlisten = 127.0.0.1\n\
         ssl = no\ndisable_plaintext_auth = no\nauth_mechanisms = plain\n\
         default_vsz_limit = 0\nmail_max_userip_connections = 0\n\
         passdb {{\n  driver = static\n  args = proxy=y host=localhost hostip=127.0.0.1 port={server} ssl=any-cert \
         proxy_mech=xoauth2 pass={token} nopassword=y\n}}\n\
         service imap-login {{\n  inet_listener imap {{\n    port = {imap}\n  }}\n  inet_listener imaps {{\n    port = 0\n  }}\n  \
         service_count = 0\n  process_min_avail = 1\n  process_limit = 1\n  client_limit = 9000\n}}\n\
         service anvil {{\n  client_limit = 18000\n}}\nservice auth {{\n  client_limit = 18000\n}}\n"
    );
    let file = folder.join("dovecot.conf");
    fs::write(&file, text).unwrap();
    let mut command = quiet(Program::Dovecot.file(lab));
    command.arg("-F").arg("-c").arg(file);
    command
}

fn nginx_files(folder: &Path, imap: u16, behind: u16) {
    let (run, asks) = (folder.display(), free_port());
    let text = format!(
        "daemon off;\nworker_processes 1;\nworker_rlimit_nofile 18000;\npid {run}/nginx.pid;\nerror_log /dev/null;\n\
         load_module /usr/lib/nginx/modules/ngx_mail_module.so;\nevents {{ worker_connections 18000; }}\n\
         http {{\n  access_log off;\n  server {{\n    listen 127.0.0.1:{asks};\n    location / {{\n      \
         add_header Auth-Status OK;\n      add_header Auth-Server 127.0.0.1;\n      add_header Auth-Port {behind};\n      \
         return 204;\n    }}\n  }}\n}}\n\
         mail {{\n  auth_http 127.0.0.1:{asks}/;\n  proxy_timeout 1h;\n  timeout 1h;\n  \
         server {{ listen 127.0.0.1:{imap}; protocol imap; proxy on; imap_auth plain login; }}\n}}\n"
    );
    fs::write(folder.join("nginx.conf"), text).unwrap();
}

fn nginx(folder: &Path) -> Command {
    let mut command = quiet(PathBuf::from("/usr/sbin/nginx"));
    command.arg("-e").arg("/dev/null").arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf"));
    command
}

fn email_proxy(lab: &Lab, folder: &Path, imap: u16) -> Command {
    let (server, http) = (lab.imap, lab.http);
    let text = format!(
        "[IMAP-{imap}]\nlocal_address = 127.0.0.1\nserver_address = localhost\nserver_port = {server}\n\n\
         [{USER}]\ntoken_url = http://127.0.0.1:{http}/token\noauth2_scope = mail\noauth2_flow = client_credentials\n\
         client_id = bench\nclient_secret = {PASSWORD}\n"
    );
    let file = folder.join("emailproxy.config");
    fs::write(&file, text).unwrap();
    let mut command = quiet(Program::EmailProxy.file(lab));
    command.args(["-m", "emailproxy", "--no-gui"]).arg("--config-file").arg(file).env("SSL_CERT_FILE", &lab.root_file);
    command
}
