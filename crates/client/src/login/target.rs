//! The target of the refresh token: the MailCredentials that refer to the seed, or a proposed MailCredential.

use kube::{Resource as _, ResourceExt as _};
use serde_json::{Value, json};

use crate::{
    api::{MailCredential, credential::ProviderKind, names},
    login::LoginError,
    policy::{checks, commands::KubectlObject},
    providers::account::fold,
    settings::Login,
};

/// The credentials that get the refresh token.
pub(super) struct LoginTarget {
    /// The credentials that refer to the seed; if there are none, the proposed credential.
    pub credentials: Vec<MailCredential>,
    /// The MailCredential to print, if no credential refers to the seed.
    pub proposal: Option<Value>,
}

impl LoginTarget {
    /// Finds the target among the namespace's credentials, or proposes a new one.
    pub fn find(settings: &Login, namespace: &str, all: Vec<MailCredential>) -> Result<Self, LoginError> {
        let refers = |credential: &MailCredential| {
            let seed = credential.spec.grant.refresh_token.as_ref().map(|grant| &grant.secret_ref);
            seed.is_some_and(|seed| seed.name == settings.secret && seed.key == settings.key)
        };
        let (credentials, others): (Vec<_>, Vec<_>) = all.into_iter().partition(refers);
        if credentials.is_empty() {
            if !settings.mailbox.contains('@') {
                return Err(no_address(settings, namespace));
            }
            let proposal = propose(settings, namespace, &others);
            let credential = serde_json::from_value(proposal.clone())
                .map_err(|error| LoginError(format!("these flags make no valid MailCredential: {error}")))?;
            return Ok(Self { credentials: vec![credential], proposal: Some(proposal) });
        }
        for credential in &credentials {
            check(credential, settings)?;
        }
        Ok(Self { credentials, proposal: None })
    }

    /// Returns the credential for messages and the sign-in. All credentials of the target have the same provider and
    /// account.
    pub fn first(&self) -> Option<&MailCredential> {
        self.credentials.first()
    }

    /// Names the kinds and names of the credentials, for messages.
    pub fn words(&self) -> String {
        let name = |credential: &MailCredential| {
            format!("MailCredential {}/{}", checks::namespace(credential), credential.name_any())
        };
        self.credentials.iter().map(name).collect::<Vec<_>>().join(" and the ")
    }
}

/// Checks that a credential that refers to this Secret has the provider and the account of the flags.
fn check(credential: &MailCredential, settings: &Login) -> Result<(), LoginError> {
    let reference = &credential.spec.provider_ref;
    let name = format!("{}/{}", checks::namespace(credential), credential.name_any());
    if reference.name != settings.provider || reference.kind != kind(settings) {
        return Err(LoginError(format!(
            "the MailCredential {name} is seeded by this Secret, and its provider is the {}: sign in there with `--provider \
             {}{}`, or choose another name with `--secret`",
            checks::provider_words(credential),
            reference.name,
            if reference.kind == ProviderKind::ClusterMailProvider { " --cluster" } else { "" }
        )));
    }
    let user = credential.spec.mailbox.user();
    if fold(user) != fold(&settings.mailbox) {
        return Err(LoginError(format!(
            "the MailCredential {name} is seeded by this Secret, and logs in as {user}, not as {}: sign in as that account \
             with `--mailbox`, choose another name with `--secret`, or correct it with `{}`",
            settings.mailbox,
            KubectlObject::credential(credential).command("edit")
        )));
    }
    Ok(())
}

/// Returns the error for a user name that is not an address: a proposed MailCredential needs the address of the
/// mailbox.
fn no_address(settings: &Login, namespace: &str) -> LoginError {
    let Login { mailbox, secret, key, .. } = settings;
    LoginError(format!(
        "{mailbox} is a user name, not an address, and no MailCredential of the namespace {namespace} refers to the Secret \
         {secret} (key {key}) yet. First apply a MailCredential with `mailbox: {{address: <address>, authenticateAs: \
         {mailbox}}}` and `grant: {{refreshToken: {{secretRef: {{name: {secret}, key: {key}}}}}}}`, then run this command \
         again. For an account that has an address, give the address to `--mailbox`"
    ))
}

/// Returns the kind of the provider that the flags name.
pub(super) fn kind(settings: &Login) -> ProviderKind {
    if settings.cluster { ProviderKind::ClusterMailProvider } else { ProviderKind::MailProvider }
}

fn propose(settings: &Login, namespace: &str, others: &[MailCredential]) -> Value {
    let base = name_of(&settings.mailbox);
    let free = |name: &String| {
        let taken = others.iter().any(|credential| credential.name_any() == *name);
        !taken && settings.secret != target(name) && settings.secret != names::grant_secret(name)
    };
    let name = (1..).map(|n| if n == 1 { base.clone() } else { format!("{base}-{n}") }).find(free).unwrap_or_default();
    json!({
        "apiVersion": MailCredential::api_version(&()),
        "kind": MailCredential::kind(&()),
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "providerRef": {"kind": kind(settings), "name": settings.provider},
            "mailbox": {"address": settings.mailbox},
            "protocols": settings.protocols,
            "grant": {"refreshToken": {"secretRef": {"name": settings.secret, "key": settings.key}}},
            "secret": {"name": target(&name)},
        },
    })
}

/// Returns the name of the target Secret, which pods mount.
fn target(name: &str) -> String {
    format!("{name}-mail-token")
}

/// Returns the name for the credential of a mailbox: the local part, with `-` for each character that Kubernetes
/// rejects.
fn name_of(mailbox: &str) -> String {
    let local = mailbox.split('@').next().unwrap_or_default().to_lowercase();
    let plain: String = local.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    let name = plain.trim_matches('-');
    if name.is_empty() { "mail".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use crate::settings::tests::login;

    use super::*;

    fn settings(mailbox: &str, secret: &str) -> Login {
        login(mailbox, secret, &[]).unwrap()
    }

    fn find(settings: &Login, all: Vec<MailCredential>) -> Result<LoginTarget, LoginError> {
        LoginTarget::find(settings, "shop", all)
    }

    fn named(settings: &Login, all: Vec<MailCredential>) -> String {
        find(settings, all).unwrap().first().unwrap().name_any()
    }

    #[test]
    fn a_proposal_has_an_unused_name() {
        assert_eq!(named(&settings("Mr.O'Neill+x@example.org", "seed"), vec![]), "mr-o-neill-x");
        assert_eq!(named(&settings("++@example.org", "seed"), vec![]), "mail");
        for secret in ["billing-grant", "billing-mail-token"] {
            assert_eq!(named(&settings("billing@example.org", secret), vec![]), "billing-2");
        }
        let other = find(&settings("billing@example.org", "another-seed"), vec![]).unwrap().credentials;
        assert_eq!(named(&settings("billing@example.org", "seed"), other), "billing-2");
    }

    #[test]
    fn a_credential_that_refers_to_the_seed_needs_no_proposal() {
        let settings = settings("billing@example.org", "seed");
        let there = find(&settings, vec![]).unwrap().credentials;
        let found = find(&settings, there).unwrap();
        assert_eq!((found.proposal, found.credentials.len()), (None, 1));
    }

    #[test]
    fn a_plain_user_name_needs_an_existing_credential() {
        let svc = settings("svc", "seed");
        let refused = find(&svc, vec![]).err().unwrap().0;
        assert!(refused.contains("authenticateAs: svc") && refused.contains("name: seed"), "{refused}");
        let mut there = find(&settings("billing@example.org", "seed"), vec![]).unwrap().credentials;
        there[0].spec.mailbox.authenticate_as = Some("SVC".to_owned());
        let command = crate::policy::commands::sign_in(&there[0]);
        assert!(command.contains("--mailbox 'SVC'"), "{command}");
        assert!(find(&svc, there).unwrap().proposal.is_none(), "what a message proposes is accepted, in any case");
    }

    #[test]
    fn a_credential_with_another_account_or_provider_is_not_seeded() {
        let there = || find(&settings("billing@example.org", "seed"), vec![]).unwrap().credentials;
        let refusal = |settings: &Login| find(settings, there()).err().unwrap().0;
        assert!(find(&settings("Billing@Example.org", "seed"), there()).is_ok(), "case does not count");
        assert!(
            refusal(&settings("orders@example.org", "seed")).contains("logs in as billing@example.org, not as orders@")
        );
        let elsewhere = Login { cluster: true, ..settings("billing@example.org", "seed") };
        assert!(refusal(&elsewhere).contains("`--provider m365`"));
    }
}
