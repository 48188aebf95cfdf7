//! The command line; each flag of `run` is also an environment variable, `MTB_` and its name.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::settings::{Access, Kubernetes, Login, duration, object_name};

/// Obtains OAuth2 access tokens for mail and keeps them in Kubernetes Secrets.
#[derive(Debug, Parser)]
#[command(name = "mail-token-broker", version, about)]
pub struct Cli {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of the binary.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the broker.
    Run(Box<Settings>),
    /// Sign a user in, and store the refresh token in a labeled Secret for `grant.refreshToken`.
    Login(Box<Login>),
    /// Remove the broker's finalizer from MailCredentials, for an uninstall. This command revokes no token.
    ReleaseFinalizers(Box<Release>),
    /// Print the CustomResourceDefinitions, for `kubectl apply -f -`.
    Crds,
    /// Scale a broker's Deployment to 0 and wait until its pods have ended. The chart runs this command before an uninstall.
    Stop(Stop),
}

/// Settings of the command `stop`.
#[derive(Args, Clone, Debug)]
pub struct Stop {
    /// Name of the broker's Deployment.
    #[arg(long, value_parser = object_name, value_name = "NAME")]
    pub deployment: String,
    /// Namespace of the Deployment [default: the kubeconfig's, or the pod's own].
    #[arg(short, long, value_parser = object_name, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Time to wait until the pods have ended, at most five minutes.
    #[arg(long, default_value = "2m", value_parser = duration, value_name = "DURATION")]
    pub timeout: Duration,
}

/// Settings of the command `run`.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Address that serves /metrics, /livez and /readyz.
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
    /// Number of concurrent reconciles of each kind: MailCredential, MailProvider and ClusterMailProvider.
    #[arg(long, env = "MTB_CONCURRENCY", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..), value_name = "N")]
    pub concurrency: u16,
    /// Log in at mail servers for the credentials that have `spec.probe`.
    #[arg(long, env = "MTB_PROBE", default_value_t = true, default_missing_value = "true", num_args = 0..=1,
          require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub probe: bool,
    /// The broker's own ServiceAccount token, which a ClusterMailProvider may present as client assertion.
    #[arg(long, env = "MTB_IDENTITY_TOKEN_FILE", value_name = "PATH")]
    pub identity_token_file: Option<PathBuf>,
    /// Settings of the connections to providers, and of the objects that providers refer to.
    #[command(flatten)]
    pub access: Access,
    /// Settings of the connection to the API server.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
    /// Format of log lines. RUST_LOG sets the level.
    #[arg(long, env = "MTB_LOG_FORMAT", default_value = "json", value_enum, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// Settings of the command `release-finalizers`.
#[derive(Args, Clone, Debug)]
pub struct Release {
    /// Release only MailCredentials of this namespace [default: all namespaces].
    #[arg(short, long, value_parser = object_name, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Only print the MailCredentials to release.
    #[arg(long)]
    pub dry_run: bool,
    /// Settings of the connection to the API server.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
}

/// Formats of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Plain text for a terminal.
    Text,
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
}
