//! The command `login`: a user signs in, and `login` writes the refresh token into a labelled Secret for
//! `grant.refreshToken`.
//!
//! `login` uses the authorization code flow with PKCE (RFC 6749 section 4.1, RFC 7636, RFC 8252) or a device code (RFC
//! 8628). It checks all other inputs before the user signs in. If another account than the mailbox signs in, `login`
//! writes nothing. It never prints a token.

mod browser;
mod code;
mod destination;
mod device;
mod exchange;
mod paste;
mod provider;
mod seed;
mod target;
mod terminal;
mod way;

use std::{collections::BTreeSet, io::Write as _, time::Duration};

use kube::{Api, Client, api::ListParams};
use serde_json::Value;
use thiserror::Error;

use crate::{
    api::MailCredential,
    clock::Clock,
    error::describe,
    idp::IdpClients,
    kubernetes::{AccessError, Connection},
    login::{
        exchange::{Attempt, Granted},
        provider::Reach,
        seed::Seed,
        target::LoginTarget,
    },
    policy::inputs,
    provider_client::federation::Identities,
    providers::{Profile, account},
    settings::{Kubernetes, Login},
};

/// The advice after a transient failure.
const AGAIN: &str = "Run the command again in a while";

/// Maximum time to wait for the user: for the browser, or for a line in the terminal.
const SIGN_IN_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// The message of a `login` that failed: what is wrong, and the command that fixes it. The message contains no secret.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct LoginError(String);

/// Signs a user in, stores the refresh token in the Secret, and prints a MailCredential if no credential refers to the
/// Secret yet.
///
/// # Errors
/// A message if the sign-in fails, or if the API server or the provider refuses a request. The Secret is then unchanged,
/// unless only the print failed.
pub async fn run(settings: Login) -> Result<(), LoginError> {
    let Kubernetes { kubeconfig, context } = &settings.kubernetes;
    let connection = Connection::find(kubeconfig.as_deref(), context.as_deref()).await;
    let connection = connection.map_err(|error| LoginError(error.to_string()))?;
    let client = connection.client().map_err(|error| LoginError(AccessError::Client(error).to_string()))?;
    let namespace = settings.namespace.clone().unwrap_or_else(|| connection.default_namespace().to_owned());
    let clock = Clock::system();
    let may_refer = settings.access.allow_service_account_ref;
    let identities = Identities::new(client.clone(), &connection, clock.clone(), None, may_refer);
    let clients =
        IdpClients::new(settings.access.idp(), clock.clone()).map_err(|error| LoginError(error.to_string()))?;
    let reach = Reach { kubernetes: &client, clients: &clients, identities: &identities };

    let target = LoginTarget::find(&settings, &namespace, credentials(&client, &namespace).await?)?;
    let Some(credential) = target.first() else { return Ok(()) };
    let provider = provider::read(&settings, &namespace, &client).await?;
    let profile = provider::check(&provider, &target, &client).await?;
    let seed = Seed::new(&client, &namespace, &settings.secret, &settings.key);
    seed.dry_run().await?;
    let resolved = provider::prepare(&provider, &settings, &namespace, &reach).await?;

    let mut scopes = vec![];
    for credential in &target.credentials {
        scopes.extend(inputs::scopes(credential, provider.spec(), &profile));
    }
    scopes.extend(profile.sign_in.scopes.iter().map(|scope| (*scope).to_owned()));
    if !settings.mailbox.contains('@') && profile.sign_in.scopes.contains(&"openid") {
        // The claim `preferred_username` belongs to this scope (OpenID Connect Core section 5.4).
        scopes.push("profile".to_owned());
    }
    let mut seen = std::collections::HashSet::new();
    scopes.retain(|scope| seen.insert(scope.clone()));
    let attempt = Attempt {
        credential,
        object: &provider,
        profile: &profile,
        resolved: &resolved,
        identities: &identities,
        home: provider::home(&settings, &namespace),
        scopes,
        clock,
    };

    let store = async |granted: Granted| store(granted, &settings.mailbox, &profile, &seed).await;
    if settings.device {
        let granted = device::sign_in(&attempt, &settings).await?;
        store(granted).await?;
    } else {
        code::sign_in(&attempt, &settings, store).await?;
    }
    conclude(&target)
}

async fn credentials(client: &Client, namespace: &str) -> Result<Vec<MailCredential>, LoginError> {
    let listed = Api::<MailCredential>::namespaced(client.clone(), namespace).list(&ListParams::default()).await;
    listed.map(|list| list.items).map_err(|error| {
        LoginError(format!(
            "the MailCredentials of the namespace {namespace} cannot be read: {}. Try `kubectl -n {namespace} get \
             mailcredentials`",
            describe(&error)
        ))
    })
}

/// Checks which account signed in, and stores the refresh token. Returns the message for the user.
async fn store(granted: Granted, mailbox: &str, profile: &Profile, seed: &Seed) -> Result<String, LoginError> {
    let Granted { refresh_token, names } = granted;
    let names: BTreeSet<_> = account::comparable(mailbox, &names).map(str::to_owned).collect();
    let names = Vec::from_iter(names);
    if profile.is_another_account(mailbox, &names) {
        return Err(LoginError(format!(
            "{} signed in, and the mailbox is {mailbox}: nothing was written. Sign out at the provider, or use a private \
             window, and run the command again",
            names.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ")
        )));
    }
    seed.put(&refresh_token).await?;
    let words = match names.is_empty() {
        true => format!(
            "the refresh token is in {}. The provider does not say who signed in: make sure that it was {mailbox}",
            seed.words()
        ),
        false => format!("{mailbox} signed in, and the refresh token is in {}", seed.words()),
    };
    show(&words);
    Ok(words)
}

/// Prints the next step. Standard output contains only the MailCredential that the user applies.
fn conclude(target: &LoginTarget) -> Result<(), LoginError> {
    let Some(proposal) = &target.proposal else {
        show(&format!("the {} is re-seeded: no further step is necessary", target.words()));
        return Ok(());
    };
    show("apply this, or pipe it to `kubectl apply -f -`:");
    let printed = yaml(proposal).and_then(|text| write!(std::io::stdout().lock(), "{text}").map_err(|e| e.to_string()));
    printed.map_err(|error| {
        LoginError(format!("the refresh token is stored, but the MailCredential cannot be printed: {error}"))
    })
}

fn yaml(object: &Value) -> Result<String, String> {
    serde_yaml::to_string(object).map_err(|error| error.to_string())
}

/// Removes control characters from the provider's text, and cuts it to 254 characters.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(254).collect()
}

/// Prints a line for the user to standard error.
fn show(text: &str) {
    eprintln!("{text}");
}

/// Waits for the browser or the terminal, at most [`SIGN_IN_TIMEOUT`].
async fn within_limit<T>(waiting: impl Future<Output = Option<T>>) -> Result<T, LoginError> {
    unless_interrupted(async {
        let result = tokio::time::timeout(SIGN_IN_TIMEOUT, waiting).await.ok().flatten();
        result.ok_or_else(|| {
            LoginError("the browser did not return from the provider within 5 minutes: run the command again".into())
        })
    })
    .await
}

/// Waits for a result, unless the user presses Ctrl-C first.
async fn unless_interrupted<T>(waiting: impl Future<Output = Result<T, LoginError>>) -> Result<T, LoginError> {
    tokio::select! {
        waited = waiting => waited,
        _ = tokio::signal::ctrl_c() => Err(LoginError("interrupted: nothing was written".to_owned())),
    }
}
