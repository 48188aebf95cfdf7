//! The command line; each flag of `run` is also an environment variable, `MTB_` and its name.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use url::Url;

use crate::{
    egress::{Direct, EgressPolicy},
    idp,
};

/// Keeps OAuth2 access tokens for mail in Kubernetes Secrets.
#[derive(Debug, Parser)]
#[command(name = "mail-token-broker", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the broker.
    Run(Box<Settings>),
    /// Sign a person in, and store the refresh token in a labelled Secret for `grant.refreshToken`.
    Login(Box<Login>),
    /// Remove the broker's finalizer from MailCredentials, for an uninstall: nothing is revoked any more.
    ReleaseFinalizers(Box<Release>),
    /// Print the CustomResourceDefinitions, for `kubectl apply -f -`.
    Crds,
    /// Scale a broker's Deployment to 0 and wait until its pods have ended; the chart does so before an uninstall.
    Stop(Stop),
}

/// Settings of `stop`.
#[derive(Args, Clone, Debug)]
pub struct Stop {
    /// The broker's Deployment.
    #[arg(long, value_parser = object_name, value_name = "NAME")]
    pub deployment: String,
    /// The Deployment's namespace [default: the kubeconfig's, or the pod's own].
    #[arg(short, long, value_parser = object_name, value_name = "NAME")]
    pub namespace: Option<String>,
    /// How long to wait for the end of the pods, at most five minutes.
    #[arg(long, default_value = "2m", value_parser = duration, value_name = "DURATION")]
    pub timeout: Duration,
}

/// Settings of `run`.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Where /metrics, /livez and /readyz are served.
    #[arg(long, env = "MTB_METRICS_ADDR", default_value = "0.0.0.0:8080", value_name = "ADDR")]
    pub metrics_addr: SocketAddr,
    /// Watch only this namespace (repeatable).
    #[arg(long = "namespace", env = "MTB_NAMESPACE", value_delimiter = ',', value_name = "NAME")]
    pub namespaces: Vec<String>,
    /// Act only while holding the lease.
    #[arg(long, env = "MTB_LEADER_ELECT", default_value_t = true, default_missing_value = "true", num_args = 0..=1,
          require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub leader_elect: bool,
    /// Name of the lease. Two installations with one --broker-namespace need two names, or only one of them acts.
    #[arg(long, env = "MTB_LEASE_NAME", default_value = "mail-token-broker", value_parser = object_name, value_name = "NAME")]
    pub lease_name: String,
    /// Reconciles at once.
    #[arg(long, env = "MTB_CONCURRENCY", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..), value_name = "N")]
    pub concurrency: u16,
    /// The broker's own ServiceAccount token, which a ClusterMailProvider may present as client assertion.
    #[arg(long, env = "MTB_IDENTITY_TOKEN_FILE", value_name = "PATH")]
    pub identity_token_file: Option<PathBuf>,
    /// How providers, and what they refer to, are reached.
    #[command(flatten)]
    pub access: Access,
    /// Which API server the broker calls, and as whom.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
    /// Form of the log; its level is taken from RUST_LOG.
    #[arg(long, env = "MTB_LOG_FORMAT", default_value = "json", value_enum, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// Which API server is called, and as whom. A proxy for it is taken from the environment, as by kubectl.
#[derive(Args, Clone, Debug, Default)]
pub struct Kubernetes {
    /// The kubeconfig [default: KUBECONFIG, then ~/.kube/config, then the pod's ServiceAccount].
    #[arg(long, env = "MTB_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig [default: its current one].
    #[arg(long, env = "MTB_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
}

/// How providers, and what they refer to, are reached.
#[derive(Args, Clone, Debug)]
pub struct Access {
    /// Where leases and the Secrets of ClusterMailProviders are [default: the pod's own, else `default`].
    #[arg(long, env = "MTB_BROKER_NAMESPACE", value_name = "NAME")]
    pub broker_namespace: Option<String>,
    /// A range that is never connected to, whatever else is allowed: where pods, Services or nodes have public addresses (repeatable).
    #[arg(long = "deny-cidr", env = "MTB_DENY_CIDR", value_delimiter = ',', value_parser = cidr, value_name = "CIDR")]
    pub deny_cidrs: Vec<IpNet>,
    /// A range that providers may resolve into although it is private (repeatable).
    #[arg(long = "allow-private-cidr", env = "MTB_ALLOW_PRIVATE_CIDR", value_delimiter = ',', value_parser = cidr, value_name = "CIDR")]
    pub allow_private_cidrs: Vec<IpNet>,
    /// The same for ClusterMailProviders alone (repeatable).
    #[arg(long = "allow-private-cidr-cluster", env = "MTB_ALLOW_PRIVATE_CIDR_CLUSTER", value_delimiter = ',',
          value_parser = cidr, value_name = "CIDR")]
    pub allow_private_cidrs_cluster: Vec<IpNet>,
    /// A proxy for all requests to providers (CONNECT).
    #[arg(long, env = "MTB_EGRESS_PROXY", value_name = "URL", hide_env_values = true)]
    pub egress_proxy: Option<Url>,
    /// A host, .suffix or CIDR that is connected to directly although there is an egress proxy (repeatable).
    #[arg(long, env = "MTB_NO_PROXY", value_delimiter = ',', value_name = "HOST")]
    pub no_proxy: Vec<Direct>,
    /// Let a provider name a ServiceAccount of its namespace, whose tokens are then its client assertions.
    #[arg(long, env = "MTB_ALLOW_SERVICE_ACCOUNT_REF", default_value_t = false, default_missing_value = "true",
          num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub allow_service_account_ref: bool,
    /// Time for one request to a provider, in all.
    #[arg(long, env = "MTB_REQUEST_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub request_timeout: Duration,
}

/// Where a pod finds its own namespace.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

impl Access {
    /// Where leases and the Secrets of ClusterMailProviders are.
    pub fn broker_namespace(&self) -> String {
        self.broker_namespace.clone().unwrap_or_else(|| own_namespace(Path::new(NAMESPACE_FILE)))
    }

    /// How the client towards providers behaves.
    pub fn idp(&self) -> idp::Settings {
        let egress = EgressPolicy::new(self.allow_private_cidrs.clone())
            .allow_for_cluster(self.allow_private_cidrs_cluster.clone())
            .deny(self.deny_cidrs.clone());
        idp::Settings {
            request_timeout: self.request_timeout,
            egress,
            proxy: self.egress_proxy.clone(),
            no_proxy: self.no_proxy.clone(),
        }
    }
}

fn own_namespace(file: &Path) -> String {
    std::fs::read_to_string(file).map_or_else(|_| "default".to_owned(), |text| text.trim().to_owned())
}

/// Settings of `release-finalizers`.
#[derive(Args, Clone, Debug)]
pub struct Release {
    /// Only in this namespace [default: in all].
    #[arg(short, long, value_parser = object_name, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Only print what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Which API server is called, and as whom.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
}

/// Settings of `login`.
#[derive(Args, Clone, Debug)]
pub struct Login {
    /// The MailProvider to sign in at.
    #[arg(long, value_parser = object_name, value_name = "NAME")]
    pub provider: String,
    /// It is a ClusterMailProvider.
    #[arg(long)]
    pub cluster: bool,
    /// The namespace of the credential [default: the kubeconfig's].
    #[arg(short, long, value_parser = object_name, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The account that has to sign in.
    #[arg(long, value_parser = address, value_name = "ADDRESS")]
    pub mailbox: String,
    /// The Secret to store the refresh token in.
    #[arg(long, value_parser = object_name, value_name = "NAME")]
    pub secret: String,
    /// Its key.
    #[arg(long, default_value = "refresh_token", value_parser = data_key, value_name = "KEY")]
    pub key: String,
    /// What the token is for, unless a MailCredential says so already (repeatable).
    #[arg(long = "protocol", default_value = "SMTP", value_delimiter = ',',
          value_parser = ["SMTP", "IMAP", "POP3"], value_name = "PROTOCOL")]
    pub protocols: Vec<String>,
    /// Show a code to enter on any device, instead of using a browser on this one.
    #[arg(long, conflicts_with_all = ["no_browser", "paste", "port", "redirect_uri"])]
    pub device: bool,
    /// Only print the address to open.
    #[arg(long)]
    pub no_browser: bool,
    /// Paste the address at which the browser ended, for a browser on another machine or a redirect URI that nothing answers at.
    #[arg(long)]
    pub paste: bool,
    /// The redirect URI as it is registered for the client [default: one on localhost, or what the provider's preset wants].
    #[arg(long, value_parser = redirect_uri, value_name = "URI")]
    pub redirect_uri: Option<String>,
    /// The host (and port) of the token endpoint, where it is not that of the page to sign in at: it is not asked about then.
    #[arg(long, value_name = "HOST")]
    pub token_host: Option<String>,
    /// The port of localhost that the browser comes back to, for a client that is registered with one [default: any].
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Which API server is called, and as whom.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
    /// How providers, and what they refer to, are reached.
    #[command(flatten)]
    pub access: Access,
}

/// Forms of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// A range of addresses. An address alone is no range: who writes 10.0.0.0 for a network would allow one host of it.
fn cidr(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(address) => {
            let length = if address.is_ipv4() { 32 } else { 128 };
            format!("the length of the range is missing: write {address}/{length} for this one address, or for example {address}/{}", length / 2)
        }
        Err(_) => "write a range of addresses as 10.20.0.0/16 or fd00:20::/64".to_owned(),
    })
}

/// A positive duration such as `10s`, at most five minutes: a request that hangs longer helps nobody.
fn duration(text: &str) -> Result<Duration, String> {
    let duration: kube::core::Duration = text.parse().map_err(|_| "write a duration such as 10s".to_owned())?;
    let positive = !duration.is_negative() && Duration::from(duration) > Duration::ZERO;
    if positive && Duration::from(duration) <= Duration::from_secs(300) {
        Ok(duration.into())
    } else {
        Err("must be more than 0s and at most 5m".to_owned())
    }
}

/// A redirect URI: it has no fragment (RFC 6749 section 3.1.2), nor anything that is no character of a URI.
fn redirect_uri(text: &str) -> Result<String, String> {
    let plain = text.chars().all(|c| c.is_ascii_graphic() && c != '#');
    if plain && !text.is_empty() {
        Ok(text.to_owned())
    } else {
        Err("must be the URI as it is registered, without a fragment: http://localhost:8400/, https://localhost"
            .to_owned())
    }
}

/// A name that Kubernetes allows (RFC 1123): it goes into paths, and into commands that are shown.
fn object_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fits = text.len() <= 253 && text.chars().all(plain) && text.starts_with(ends) && text.ends_with(ends);
    if fits {
        Ok(text.to_owned())
    } else {
        Err("must be the name of an object: lower case, digits, - and .".to_owned())
    }
}

/// A key that Kubernetes allows in a Secret.
fn data_key(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let fits = (1..=253).contains(&text.len()) && text.chars().all(plain);
    if fits { Ok(text.to_owned()) } else { Err("must be letters, digits, -, _ and .".to_owned()) }
}

/// Something like a mail address; the API server looks closer.
fn address(text: &str) -> Result<String, String> {
    let halves = text.split_once('@').filter(|(local, domain)| !local.is_empty() && !domain.is_empty());
    let plain = !text.chars().any(|c| c.is_whitespace() || c.is_control());
    if halves.is_some() && plain { Ok(text.to_owned()) } else { Err("must be a mail address".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn settings(arguments: &[&str]) -> Settings {
        match Cli::try_parse_from(["mail-token-broker", "run"].iter().chain(arguments)).unwrap().command {
            Command::Run(settings) => *settings,
            Command::Login(_) | Command::ReleaseFinalizers(_) | Command::Crds | Command::Stop(_) => {
                panic!("not this command")
            }
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        Cli::command().debug_assert();
        let settings = settings(&[]);
        assert_eq!(settings.metrics_addr.to_string(), "0.0.0.0:8080");
        assert_eq!((settings.leader_elect, settings.concurrency), (true, 64));
        assert_eq!(settings.lease_name, "mail-token-broker");
        assert_eq!(settings.access.request_timeout, Duration::from_secs(10));
        assert_eq!(settings.log_format, LogFormat::Json);
        assert_eq!((settings.identity_token_file, settings.access.allow_service_account_ref), (None, false));
    }

    #[test]
    fn a_switch_may_stand_alone_or_with_a_value() {
        assert!(settings(&["--leader-elect"]).leader_elect);
        assert!(!settings(&["--leader-elect=false"]).leader_elect);
        assert!(settings(&["--allow-service-account-ref"]).access.allow_service_account_ref);
        assert!(!settings(&["--allow-service-account-ref=false"]).access.allow_service_account_ref);
        assert!(settings(&["--namespace", "a", "--namespace", "b,c"]).namespaces.len() == 3);
    }

    #[test]
    fn ranges_are_read_and_an_address_without_a_length_is_explained() {
        let access = settings(&[
            "--deny-cidr=2600:1f00::/24,30.0.0.0/8",
            "--deny-cidr=9.0.0.0/8",
            "--allow-private-cidr=10.1.0.0/16",
            "--allow-private-cidr-cluster=10.2.0.0/16",
            "--egress-proxy=http://proxy:3128",
            "--no-proxy=id.example.org,.corp.example",
            "--no-proxy=10.0.0.0/8",
        ])
        .access;
        let settings = access.idp();
        assert_eq!((access.deny_cidrs.len(), settings.no_proxy.len()), (3, 3));
        let judged = |address: &str| settings.egress.judge(address.parse().unwrap()).is_ok();
        assert_eq!(["10.1.0.1", "10.2.0.1", "9.1.1.1", "8.8.8.8"].map(judged), [true, false, false, true]);
        let cluster = settings.egress.for_cluster();
        assert!(cluster.judge("10.2.0.1".parse().unwrap()).is_ok());
        for flag in ["--deny-cidr", "--allow-private-cidr", "--allow-private-cidr-cluster"] {
            let refused = Cli::try_parse_from(["mail-token-broker", "run", flag, "10.20.0.0"]).unwrap_err().to_string();
            assert!(refused.contains("10.20.0.0/32") && refused.contains("10.20.0.0/16"), "{refused}");
        }
        let refused =
            Cli::try_parse_from(["mail-token-broker", "run", "--no-proxy=https://a"]).unwrap_err().to_string();
        assert!(refused.contains("without scheme and port"), "{refused}");
    }

    #[test]
    fn senseless_values_are_refused() {
        for arguments in [
            ["--request-timeout", "0s"],
            ["--request-timeout", "-5s"],
            ["--concurrency", "0"],
            ["--allow-private-cidr", "x"],
        ] {
            assert!(
                Cli::try_parse_from(["mail-token-broker", "run"].iter().chain(&arguments)).is_err(),
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn a_login_takes_only_what_may_stand_in_a_path_and_in_a_command() {
        let login = |arguments: &[&str]| {
            let given = ["mail-token-broker", "login", "--provider", "m365", "--secret", "seed", "--mailbox", "a@b.c"];
            Cli::try_parse_from(given.iter().chain(arguments))
        };
        let Command::Login(login_settings) = login(&["--protocol", "IMAP,SMTP"]).unwrap().command else { panic!() };
        assert_eq!(login_settings.protocols, ["IMAP", "SMTP"]);
        assert_eq!(login_settings.key, "refresh_token");
        for arguments in [
            ["--namespace", "a/b"],
            ["--namespace", "A"],
            ["--namespace", "-a"],
            ["--key", "a b"],
            ["--key", "a;b"],
            ["--protocol", "JMAP"],
            ["--device", "--no-browser"],
            ["--device", "--paste"],
            ["--redirect-uri", "https://a#b"],
        ] {
            assert!(login(&arguments).is_err(), "{arguments:?}");
        }
        for mailbox in ["a", "@b", "a@", "a b@c"] {
            let given = ["mail-token-broker", "login", "--provider", "p", "--secret", "s", "--mailbox", mailbox];
            assert!(Cli::try_parse_from(given).is_err(), "{mailbox}");
        }
    }
}
