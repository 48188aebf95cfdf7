//! The settings of the command `login`, and of the connections that `run` makes too: to the API server and to providers.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use ipnet::IpNet;
use url::Url;

use crate::{
    egress::{Direct, EgressPolicy},
    idp,
};

/// Settings of the connection to the API server. The environment names its proxy, as for kubectl.
#[derive(Args, Clone, Debug, Default)]
pub struct Kubernetes {
    /// The kubeconfig [default: KUBECONFIG, then ~/.kube/config, then the pod's ServiceAccount].
    #[arg(long, env = "MTB_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig [default: its current one].
    #[arg(long, env = "MTB_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
}

/// Settings of the connections to providers, and of the objects that providers refer to.
#[derive(Args, Clone, Debug)]
pub struct Access {
    /// Namespace of the lease and of the Secrets of ClusterMailProviders [default: the pod's own, otherwise `default`].
    #[arg(long, env = "MTB_BROKER_NAMESPACE", value_name = "NAME")]
    pub broker_namespace: Option<String>,
    /// Range to which the broker never connects, even if another flag allows it: for pods, Services and nodes with public addresses (repeatable).
    #[arg(long = "deny-cidr", env = "MTB_DENY_CIDR", value_delimiter = ',', value_parser = cidr, value_name = "CIDR")]
    pub deny_cidrs: Vec<IpNet>,
    /// Private range into which a provider's host may resolve (repeatable).
    #[arg(long = "allow-private-cidr", env = "MTB_ALLOW_PRIVATE_CIDR", value_delimiter = ',', value_parser = cidr, value_name = "CIDR")]
    pub allow_private_cidrs: Vec<IpNet>,
    /// Private range into which the host of a ClusterMailProvider may resolve (repeatable).
    #[arg(long = "allow-private-cidr-cluster", env = "MTB_ALLOW_PRIVATE_CIDR_CLUSTER", value_delimiter = ',',
          value_parser = cidr, value_name = "CIDR")]
    pub allow_private_cidrs_cluster: Vec<IpNet>,
    /// Proxy for all requests to providers (CONNECT).
    #[arg(long, env = "MTB_EGRESS_PROXY", value_name = "URL", hide_env_values = true)]
    pub egress_proxy: Option<Url>,
    /// Host, .suffix or CIDR to which the broker connects directly, without the egress proxy (repeatable).
    #[arg(long, env = "MTB_NO_PROXY", value_delimiter = ',', value_name = "HOST")]
    pub no_proxy: Vec<Direct>,
    /// Allow a provider to name a ServiceAccount of its namespace, whose tokens are its client assertions.
    #[arg(long, env = "MTB_ALLOW_SERVICE_ACCOUNT_REF", default_value_t = false, default_missing_value = "true",
          num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub allow_service_account_ref: bool,
    /// Total time of one request to a provider.
    #[arg(long, env = "MTB_REQUEST_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub request_timeout: Duration,
}

/// File with the pod's own namespace.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

impl Access {
    /// Returns the namespace of the lease and of the Secrets of ClusterMailProviders.
    pub fn broker_namespace(&self) -> String {
        self.broker_namespace.clone().unwrap_or_else(|| own_namespace(Path::new(NAMESPACE_FILE)))
    }

    /// Returns the settings of the client for providers.
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

/// Settings of the command `login`.
#[derive(Args, Clone, Debug)]
pub struct Login {
    /// MailProvider at which the user signs in.
    #[arg(long, value_parser = object_name, value_name = "NAME")]
    pub provider: String,
    /// The provider is a ClusterMailProvider.
    #[arg(long)]
    pub cluster: bool,
    /// Namespace of the credential [default: the kubeconfig's].
    #[arg(short, long, value_parser = object_name, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Account that must sign in: spec.mailbox.authenticateAs of the MailCredential, otherwise its address.
    #[arg(long, value_parser = account, value_name = "ADDRESS")]
    pub mailbox: String,
    /// Secret that stores the refresh token.
    #[arg(long, value_parser = object_name, value_name = "NAME")]
    pub secret: String,
    /// Key of the refresh token in the Secret.
    #[arg(long, default_value = "refresh_token", value_parser = data_key, value_name = "KEY")]
    pub key: String,
    /// Protocol for the token, unless a MailCredential already names the protocols (repeatable).
    #[arg(long = "protocol", default_value = "SMTP", value_delimiter = ',',
          value_parser = ["SMTP", "IMAP", "POP3"], value_name = "PROTOCOL")]
    pub protocols: Vec<String>,
    /// Sign in with a code on any device, instead of a browser on this one.
    #[arg(long, conflicts_with_all = ["no_browser", "paste", "port", "redirect_uri"])]
    pub device: bool,
    /// Print the address to open, and open no browser.
    #[arg(long)]
    pub no_browser: bool,
    /// Paste the address at which the browser ended, for a browser on another machine or a redirect URI at which no server listens.
    #[arg(long)]
    pub paste: bool,
    /// Registered redirect URI of the client [default: one on localhost, or that of the provider's preset].
    #[arg(long, value_parser = redirect_uri, value_name = "URI")]
    pub redirect_uri: Option<String>,
    /// Host (and port) of the token endpoint, if it differs from that of the sign-in page. `login` then asks for no confirmation.
    #[arg(long, value_name = "HOST")]
    pub token_host: Option<String>,
    /// Port of localhost to which the browser returns, for a client that is registered with a port [default: any].
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Settings of the connection to the API server.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
    /// Settings of the connections to providers, and of the objects that providers refer to.
    #[command(flatten)]
    pub access: Access,
}

/// Parses a range of addresses. Rejects an address without a prefix length: a user who writes 10.0.0.0 means the
/// network, not one host.
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

/// Parses a positive duration such as `10s`, at most five minutes: a longer wait for a hanging request is useless.
pub fn duration(text: &str) -> Result<Duration, String> {
    let duration: kube::core::Duration = text.parse().map_err(|_| "write a duration such as 10s".to_owned())?;
    let positive = !duration.is_negative() && Duration::from(duration) > Duration::ZERO;
    if positive && Duration::from(duration) <= Duration::from_secs(300) {
        Ok(duration.into())
    } else {
        Err("must be more than 0s and at most 5m".to_owned())
    }
}

/// Parses a redirect URI: only URI characters, and no fragment (RFC 6749 section 3.1.2).
fn redirect_uri(text: &str) -> Result<String, String> {
    let plain = text.chars().all(|c| c.is_ascii_graphic() && c != '#');
    if plain && !text.is_empty() {
        Ok(text.to_owned())
    } else {
        Err("must be the registered URI, without a fragment: http://localhost:8400/, https://localhost".to_owned())
    }
}

/// Parses a name that Kubernetes allows (RFC 1123). The broker uses names in paths and in commands for the user.
pub fn object_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fits = text.len() <= 253 && text.chars().all(plain) && text.starts_with(ends) && text.ends_with(ends);
    if fits {
        Ok(text.to_owned())
    } else {
        Err("must be the name of an object: lower case, digits, - and .".to_owned())
    }
}

/// Parses a key that Kubernetes allows in a Secret.
fn data_key(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let fits = (1..=253).contains(&text.len()) && text.chars().all(plain);
    if fits { Ok(text.to_owned()) } else { Err("must be letters, digits, -, _ and .".to_owned()) }
}

/// Parses a mail address or a plain user name. The API server validates it completely.
fn account(text: &str) -> Result<String, String> {
    let whole = text.rsplit_once('@').is_none_or(|(local, domain)| !local.is_empty() && !domain.is_empty());
    let plain = !text.chars().any(|c| c.is_whitespace() || c.is_control());
    if whole && plain && !text.is_empty() {
        Ok(text.to_owned())
    } else {
        Err("must be a mail address, or, with oidc and oauth2, a user name without blanks".to_owned())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        login: Login,
    }

    /// Parses the arguments of `login`: the required ones, then `arguments`.
    pub(crate) fn login(mailbox: &str, secret: &str, arguments: &[&str]) -> Result<Login, clap::Error> {
        let required = ["login", "--provider", "m365", "--mailbox", mailbox, "--secret", secret];
        Program::try_parse_from(required.iter().chain(arguments)).map(|program| program.login)
    }

    #[test]
    fn a_login_takes_only_what_may_stand_in_a_path_and_in_a_command() {
        let settings = login("a@b.c", "seed", &["--protocol", "IMAP,SMTP"]).unwrap();
        assert_eq!(settings.protocols, ["IMAP", "SMTP"]);
        assert_eq!(settings.key, "refresh_token");
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
            assert!(login("a@b.c", "seed", &arguments).is_err(), "{arguments:?}");
        }
        for (mailbox, taken) in [
            ("a@b.c", true),
            ("svc", true),
            ("", false),
            ("@b", false),
            ("a@", false),
            ("a b@c", false),
            ("a b", false),
        ] {
            assert_eq!(login(mailbox, "seed", &[]).is_ok(), taken, "{mailbox}");
        }
    }
}
