//! The flags, and the checked settings.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use mailtoken_mail::protocol::Protocol;

/// The arguments of the program.
#[derive(Debug, Parser)]
#[command(
    name = "mail-token-relay",
    version,
    about = "Logs in at mail servers with tokens, for programs that know only a password"
)]
pub struct Cli {
    /// The command. Without one, the program runs the relay.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of all commands.
    #[command(flatten)]
    pub flags: Flags,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the relay (default)
    Run,
    /// Log in at the mail servers now, and print each result with the command that fixes the problem
    Check {
        /// Only the mailbox with this user name
        #[arg(long)]
        mailbox: Option<String>,
        /// Only this protocol
        #[arg(long)]
        protocol: Option<ProtocolName>,
    },
    /// Check that the relay listens, for a probe
    Ready,
}

/// The name of a protocol on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub enum ProtocolName {
    /// Message submission: AUTH of RFC 4954.
    #[value(alias = "smtp")]
    Smtp,
    /// The protocol of RFC 9051.
    #[value(alias = "imap")]
    Imap,
    /// The protocol of RFC 1939.
    #[value(alias = "pop3")]
    Pop3,
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Self {
        match name {
            ProtocolName::Smtp => Self::Smtp,
            ProtocolName::Imap => Self::Imap,
            ProtocolName::Pop3 => Self::Pop3,
        }
    }
}

/// The flags, as written. Each has an environment variable.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// A mounted Secret of the broker, or a folder of them
    #[arg(long, global = true, env = "MTR_MAILBOXES", value_name = "DIR", default_value = "/var/run/mail-tokens")]
    pub mailboxes: PathBuf,
    /// Where to listen for SMTP, repeatable, or "off" [default: 127.0.0.1:1587 and [::1]:1587]
    #[arg(long, global = true, env = "MTR_SMTP", value_name = "ADDR:PORT", value_delimiter = ',')]
    pub smtp: Vec<Listen>,
    /// Where to listen for IMAP, repeatable, or "off" [default: 127.0.0.1:1143 and [::1]:1143]
    #[arg(long, global = true, env = "MTR_IMAP", value_name = "ADDR:PORT", value_delimiter = ',')]
    pub imap: Vec<Listen>,
    /// Where to listen for POP3, repeatable, or "off" [default: 127.0.0.1:1110 and [::1]:1110]
    #[arg(long, global = true, env = "MTR_POP3", value_name = "ADDR:PORT", value_delimiter = ',')]
    pub pop3: Vec<Listen>,
    /// Where to listen for SMTP with TLS from the first byte, repeatable
    #[arg(long, global = true, env = "MTR_SMTPS", value_name = "ADDR:PORT", value_delimiter = ',')]
    pub smtps: Vec<Listen>,
    /// Where to listen for IMAP with TLS from the first byte, repeatable
    #[arg(long, global = true, env = "MTR_IMAPS", value_name = "ADDR:PORT", value_delimiter = ',')]
    pub imaps: Vec<Listen>,
    /// Where to listen for POP3 with TLS from the first byte, repeatable
    #[arg(long, global = true, env = "MTR_POP3S", value_name = "ADDR:PORT", value_delimiter = ',')]
    pub pop3s: Vec<Listen>,
    /// The certificate for clients, with its chain (PEM); read again when it changes
    #[arg(long, global = true, env = "MTR_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The key of the certificate (PEM)
    #[arg(long, global = true, env = "MTR_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Clients must present a certificate of this authority (PEM)
    #[arg(long, global = true, env = "MTR_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Local logins: a mounted Secret of type kubernetes.io/basic-auth, or a folder of them
    #[arg(long, global = true, env = "MTR_LOGINS", value_name = "DIR")]
    pub logins: Option<PathBuf>,
    /// SMTP clients that never send AUTH are this mailbox; on loopback only
    #[arg(long, global = true, env = "MTR_WITHOUT_AUTH", value_name = "MAILBOX")]
    pub without_auth: Option<String>,
    /// For SMTP, the folder to use where the login with the first folder fails; repeatable
    #[arg(long, global = true, env = "MTR_SMTP_FALLBACK", value_name = "FIRST=SECOND", value_delimiter = ',')]
    pub smtp_fallback: Vec<Fallback>,
    /// Certificate authorities of mail servers (PEM), in addition to the system's
    #[arg(long, global = true, env = "MTR_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Connections at the same time, at most; at most half of them before login
    #[arg(long, global = true, env = "MTR_MAX_CONNECTIONS", value_name = "N", default_value_t = 256, value_parser = at_least_one)]
    pub max_connections: usize,
    /// SMTP sessions of one mailbox at the same time, at most; the next one waits up to 30 s
    #[arg(long, global = true, env = "MTR_MAX_SMTP_PER_MAILBOX", value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    pub max_smtp_per_mailbox: usize,
    /// Time until a client has logged in
    #[arg(long, global = true, env = "MTR_LOGIN_TIMEOUT", value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub login_timeout: Duration,
    /// Time for sessions to end after SIGTERM
    #[arg(long, global = true, env = "MTR_DRAIN", value_name = "DURATION", default_value = "25s", value_parser = duration)]
    pub drain: Duration,
    /// Where to serve /metrics, /livez and /readyz [default: off]
    #[arg(long, global = true, env = "MTR_ADMIN", value_name = "ADDR:PORT")]
    pub admin: Option<Listen>,
    /// The form of log lines
    #[arg(long, global = true, env = "MTR_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// The least important level that is logged
    #[arg(long, global = true, env = "MTR_LOG_LEVEL", value_enum, default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object for each line.
    Json,
    /// Text for a person to read.
    Text,
}

/// The least important level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Only what stops the relay.
    Error,
    /// Also failed logins.
    Warn,
    /// Also each login and each end.
    Info,
    /// Also connections that end without a login.
    Debug,
    /// Everything that libraries log, too.
    Trace,
}

/// An address to listen at, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// No listener of this kind.
    Off,
    /// A listener at this address.
    At(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            _ => text.parse().map(Self::At).map_err(|_| {
                "must be ADDR:PORT with an address, such as 127.0.0.1:1587 or [::]:587, or \"off\"".to_owned()
            }),
        }
    }
}

/// A pair of folders. If the login with the first folder fails, the relay uses the second folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// The folder to use first.
    pub first: String,
    /// The folder to use if the login with the first folder fails.
    pub second: String,
}

impl FromStr for Fallback {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |name: &&str| !name.is_empty() && !name.contains('/') && !name.starts_with('.');
        let parts = text.split_once('=').filter(|(first, second)| named(first) && named(second) && first != second);
        let (first, second) = parts.ok_or("must be FIRST=SECOND with the names of two folders")?;
        Ok(Self { first: first.to_owned(), second: second.to_owned() })
    }
}

/// A listener to which clients connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The mail protocol of the listener.
    pub protocol: Protocol,
    /// Whether TLS begins with the first byte.
    pub implicit_tls: bool,
    /// The address to bind to.
    pub address: SocketAddr,
    /// Whether the address is a default. If so, a missing address family is not an error.
    pub is_default: bool,
}

impl Listener {
    /// Whether only processes of this pod or machine can connect.
    pub fn is_loopback(&self) -> bool {
        self.address.ip().to_canonical().is_loopback()
    }
}

/// The files of the relay's own certificate.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate with its chain.
    pub cert: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
    /// The authority of the clients' certificates; `None` if clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// The checked settings of all commands.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A mounted Secret, or a folder of them.
    pub mailboxes: PathBuf,
    /// The listeners to which clients connect.
    pub listeners: Vec<Listener>,
    /// The relay's own certificate.
    pub tls: Option<TlsFiles>,
    /// Folder of the local logins; `None` if the relay accepts any password.
    pub logins: Option<PathBuf>,
    /// The mailbox of SMTP clients that never send AUTH.
    pub without_auth: Option<String>,
    /// Pairs of folders for SMTP.
    pub fallbacks: Vec<Fallback>,
    /// File with additional certificate authorities of mail servers.
    pub ca_file: Option<PathBuf>,
    /// Maximum number of connections at the same time.
    pub max_connections: usize,
    /// Maximum number of SMTP sessions of one mailbox at the same time.
    pub max_smtp_per_mailbox: usize,
    /// Time limit until a client has logged in.
    pub login_timeout: Duration,
    /// Time limit for sessions to end after SIGTERM.
    pub drain: Duration,
    /// Address that serves metrics and probes; `None` if off.
    pub admin: Option<SocketAddr>,
    /// The form of log lines.
    pub log_format: LogFormat,
    /// The least important level that the relay logs.
    pub log_level: LogLevel,
}

impl Settings {
    /// Checks the flags, and returns the settings.
    ///
    /// # Errors
    ///
    /// A sentence that says which flags are wrong, and why.
    pub fn new(flags: Flags) -> Result<Self, String> {
        let listeners = listeners(&flags);
        let tls = match (flags.tls_cert, flags.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key, client_ca: flags.tls_client_ca }),
            (None, None) if flags.tls_client_ca.is_some() => {
                return Err("--tls-client-ca needs --tls-cert and --tls-key".to_owned());
            }
            (None, None) => None,
            _ => return Err("--tls-cert and --tls-key need each other".to_owned()),
        };
        if listeners.is_empty() {
            return Err("no listener is left: every protocol is off".to_owned());
        }
        if tls.is_none() && listeners.iter().any(|listener| listener.implicit_tls) {
            return Err("--smtps, --imaps and --pop3s need --tls-cert and --tls-key".to_owned());
        }
        if let Some(open) = listeners.iter().find(|listener| !listener.is_loopback()) {
            if tls.is_none() || flags.logins.is_none() {
                return Err(format!(
                    "{} is not a loopback address: every client that reaches it could use the mailboxes, and could read \
                     passwords on the network. Set --tls-cert, --tls-key and --logins, or listen on 127.0.0.1 and [::1]",
                    open.address
                ));
            }
            let smtp = listeners.iter().find(|listener| listener.protocol == Protocol::Smtp && !listener.is_loopback());
            if let Some(smtp) = smtp.filter(|_| flags.without_auth.is_some()) {
                return Err(format!(
                    "--without-auth is for loopback only, and {} is not a loopback address: every client that reaches it \
                     could send mail",
                    smtp.address
                ));
            }
        }
        Ok(Self {
            mailboxes: flags.mailboxes,
            listeners,
            tls,
            logins: flags.logins,
            without_auth: flags.without_auth,
            fallbacks: flags.smtp_fallback,
            ca_file: flags.ca_file,
            max_connections: flags.max_connections,
            max_smtp_per_mailbox: flags.max_smtp_per_mailbox,
            login_timeout: flags.login_timeout,
            drain: flags.drain,
            admin: flags.admin.and_then(|admin| match admin {
                Listen::Off => None,
                Listen::At(address) => Some(address),
            }),
            log_format: flags.log_format,
            log_level: flags.log_level,
        })
    }

    /// Whether a client must start TLS at this listener before it sends a password.
    pub fn needs_start_tls(&self, listener: &Listener) -> bool {
        let has_client_ca = self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        !listener.implicit_tls && (has_client_ca || !listener.is_loopback())
    }
}

fn listeners(flags: &Flags) -> Vec<Listener> {
    let at = |listen: &Listen| match listen {
        Listen::Off => None,
        Listen::At(address) => Some(*address),
    };
    let kinds = [
        (Protocol::Smtp, &flags.smtp, Some(1587)),
        (Protocol::Imap, &flags.imap, Some(1143)),
        (Protocol::Pop3, &flags.pop3, Some(1110)),
        (Protocol::Smtp, &flags.smtps, None),
        (Protocol::Imap, &flags.imaps, None),
        (Protocol::Pop3, &flags.pop3s, None),
    ];
    kinds
        .into_iter()
        .flat_map(|(protocol, listens, default_port)| {
            let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
            let (addresses, is_default): (Vec<_>, _) = match default_port {
                Some(port) if listens.is_empty() => (loopback.map(|ip| SocketAddr::new(ip, port)).to_vec(), true),
                _ => (listens.iter().filter_map(at).collect(), false),
            };
            let implicit_tls = default_port.is_none();
            addresses.into_iter().map(move |address| Listener { protocol, implicit_tls, address, is_default })
        })
        .collect()
}

/// Parses a number with a unit: `500ms`, `25s`, `5m` or `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|sign: char| !sign.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u32 = number.parse().map_err(|_| "must be a number with a unit, such as 25s".to_owned())?;
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return Err("needs a unit: ms, s, m or h".to_owned()),
    };
    Ok(unit * number)
}

fn at_least_one(text: &str) -> Result<usize, String> {
    let most = tokio::sync::Semaphore::MAX_PERMITS;
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| "must be a number of at least 1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(arguments: &str) -> Result<Settings, String> {
        let arguments = ["mail-token-relay"].into_iter().chain(arguments.split_whitespace());
        Settings::new(Cli::try_parse_from(arguments).map_err(|error| error.to_string())?.flags)
    }

    fn shown(settings: &Settings) -> String {
        let one = |listener: &Listener| {
            let tls = if listener.implicit_tls { "TLS " } else { "" };
            format!("{tls}{:?} {}", listener.protocol, listener.address)
        };
        settings.listeners.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_sidecar_needs_no_arguments() {
        let settings = settings("").unwrap();
        assert_eq!(
            shown(&settings),
            "Smtp 127.0.0.1:1587, Smtp [::1]:1587, Imap 127.0.0.1:1143, Imap [::1]:1143, Pop3 127.0.0.1:1110, Pop3 [::1]:1110"
        );
        assert_eq!((settings.max_connections, settings.max_smtp_per_mailbox), (256, 3));
        assert_eq!((settings.login_timeout.as_secs(), settings.drain.as_secs()), (60, 25));
        assert!(settings.listeners.iter().all(|listener| !settings.needs_start_tls(listener)));
    }

    #[test]
    fn listeners_are_chosen_and_switched_off() {
        let tls = "--tls-cert c --tls-key k";
        for (arguments, listeners) in [
            ("--smtp 127.0.0.1:25 --smtp [::1]:25 --imap off --pop3 off", "Smtp 127.0.0.1:25, Smtp [::1]:25"),
            (
                "--smtp off --imap 127.0.0.1:143 --pop3 off --imaps 127.0.0.1:993",
                "Imap 127.0.0.1:143, TLS Imap 127.0.0.1:993",
            ),
        ] {
            assert_eq!(shown(&settings(&format!("{arguments} {tls}")).unwrap()), listeners);
        }
    }

    #[test]
    fn unsafe_settings_are_refused_with_the_reason() {
        for (arguments, why) in [
            ("--smtp 0.0.0.0:587", "0.0.0.0:587 is not a loopback address"),
            ("--smtp [::]:587 --tls-cert c --tls-key k", "[::]:587 is not a loopback address"),
            ("--imap 10.0.0.1:143 --logins d", "10.0.0.1:143 is not a loopback address"),
            (
                "--smtp 0.0.0.0:587 --tls-cert c --tls-key k --logins d --without-auth a@b.c",
                "--without-auth is for loopback only",
            ),
            ("--tls-cert c", "--tls-cert and --tls-key need each other"),
            ("--tls-client-ca c", "--tls-client-ca needs"),
            ("--imaps 127.0.0.1:993", "need --tls-cert"),
            ("--smtp off --imap off --pop3 off", "no listener is left"),
            ("--smtp localhost:25", "must be ADDR:PORT"),
            ("--smtp-fallback a=a", "must be FIRST=SECOND"),
            ("--smtp-fallback ../a=b", "must be FIRST=SECOND"),
            ("--drain 25", "needs a unit"),
            ("--max-connections 0", "at least 1"),
        ] {
            let refused = settings(arguments).unwrap_err();
            assert!(refused.contains(why), "{arguments}: {refused}");
        }
        assert!(settings("--smtp 0.0.0.0:587 --tls-cert c --tls-key k --logins d").is_ok());
        assert!(
            settings("--smtp 127.0.0.1:1 --imap 0.0.0.0:2 --tls-cert c --tls-key k --logins d --without-auth a")
                .is_ok()
        );
    }

    #[test]
    fn a_password_needs_tls_beyond_loopback_and_with_client_certificates() {
        let needs = |arguments: &str| {
            let settings = settings(&format!("--imap off --pop3 off --tls-cert c --tls-key k {arguments}")).unwrap();
            settings.listeners.iter().map(|listener| settings.needs_start_tls(listener)).collect::<Vec<_>>()
        };
        assert_eq!(needs("--smtp 127.0.0.1:1 --smtps 127.0.0.1:2"), [false, false]);
        assert_eq!(needs("--logins d --smtp 0.0.0.0:1 --smtps 0.0.0.0:2"), [true, false]);
        assert_eq!(needs("--tls-client-ca d --smtp 127.0.0.1:1 --smtps 127.0.0.1:2"), [true, false]);
    }

    #[test]
    fn commands_take_the_flags_before_and_behind_their_name() {
        for arguments in
            ["--mailboxes /m check --mailbox a --protocol IMAP", "check --mailboxes /m --protocol imap --mailbox a"]
        {
            let cli = Cli::try_parse_from(["mail-token-relay"].into_iter().chain(arguments.split(' '))).unwrap();
            assert_eq!(cli.flags.mailboxes, PathBuf::from("/m"));
            assert!(
                matches!(cli.command, Some(Command::Check { mailbox: Some(name), protocol: Some(ProtocolName::Imap) }) if name == "a")
            );
        }
    }
}
