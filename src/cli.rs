//! The command line; each flag is also an environment variable, `MTB_` and its name.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use url::Url;

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
    /// Print the CustomResourceDefinitions, for `kubectl apply -f -`.
    Crds,
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
    /// Where leases and the Secrets of ClusterMailProviders are [default: the pod's own, else `default`].
    #[arg(long, env = "MTB_BROKER_NAMESPACE", value_name = "NAME")]
    pub broker_namespace: Option<String>,
    /// Act only while holding the lease.
    #[arg(long, env = "MTB_LEADER_ELECT", default_value_t = true, default_missing_value = "true", num_args = 0..=1,
          require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub leader_elect: bool,
    /// Reconciles at once.
    #[arg(long, env = "MTB_CONCURRENCY", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..), value_name = "N")]
    pub concurrency: u16,
    /// A range that providers may resolve into although it is private (repeatable).
    #[arg(long = "allow-private-cidr", env = "MTB_ALLOW_PRIVATE_CIDR", value_delimiter = ',', value_name = "CIDR")]
    pub allow_private_cidrs: Vec<IpNet>,
    /// A proxy for all requests to providers (CONNECT).
    #[arg(long, env = "MTB_EGRESS_PROXY", value_name = "URL", hide_env_values = true)]
    pub egress_proxy: Option<Url>,
    /// The broker's own ServiceAccount token, which a ClusterMailProvider may present as client assertion.
    #[arg(long, env = "MTB_IDENTITY_TOKEN_FILE", value_name = "PATH")]
    pub identity_token_file: Option<PathBuf>,
    /// Let a provider name a ServiceAccount of its namespace, whose tokens are then its client assertions.
    #[arg(long, env = "MTB_ALLOW_SERVICE_ACCOUNT_REF", default_value_t = false, default_missing_value = "true",
          num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub allow_service_account_ref: bool,
    /// Time for one request to a provider, in all.
    #[arg(long, env = "MTB_REQUEST_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub request_timeout: Duration,
    /// Form of the log; its level is taken from RUST_LOG.
    #[arg(long, env = "MTB_LOG_FORMAT", default_value = "json", value_enum, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// Forms of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn settings(arguments: &[&str]) -> Settings {
        match Cli::try_parse_from(["mail-token-broker", "run"].iter().chain(arguments)).unwrap().command {
            Command::Run(settings) => *settings,
            Command::Crds => panic!("not this command"),
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        Cli::command().debug_assert();
        let settings = settings(&[]);
        assert_eq!(settings.metrics_addr.to_string(), "0.0.0.0:8080");
        assert_eq!((settings.leader_elect, settings.concurrency), (true, 64));
        assert_eq!(settings.request_timeout, Duration::from_secs(10));
        assert_eq!(settings.log_format, LogFormat::Json);
        assert_eq!((settings.identity_token_file, settings.allow_service_account_ref), (None, false));
    }

    #[test]
    fn a_switch_may_stand_alone_or_with_a_value() {
        assert!(settings(&["--leader-elect"]).leader_elect);
        assert!(!settings(&["--leader-elect=false"]).leader_elect);
        assert!(settings(&["--allow-service-account-ref"]).allow_service_account_ref);
        assert!(!settings(&["--allow-service-account-ref=false"]).allow_service_account_ref);
        assert!(settings(&["--namespace", "a", "--namespace", "b,c"]).namespaces.len() == 3);
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
}
