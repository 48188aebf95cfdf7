//! Tests of the changes that change a hash.

use std::{collections::BTreeSet, fmt::Debug};

use serde_json::{Value, json};

use super::fixtures::credential;
use crate::{
    api::{
        MailCredential,
        credential::{DeletionPolicy, Format, Protocol},
        names,
        provider::{ProviderSpec, Security, Server},
    },
    policy::{
        grant::{asked_by, asked_for, bound_to},
        inputs::{attempt_hash, issued_for, layout, scopes},
    },
    providers::profile,
};

/// One change of a credential and its provider.
type Change = fn(&mut MailCredential, &mut ProviderSpec);

/// A provider with an SMTP server.
fn provider(spec: Value) -> ProviderSpec {
    let mut provider: ProviderSpec = serde_json::from_value(spec).unwrap();
    provider.servers.smtp = Some(server("smtp.x", 587));
    provider
}

fn server(host: &str, port: i32) -> Server {
    Server { host: host.into(), port, security: None }
}

fn changed(change: Change) -> (MailCredential, ProviderSpec) {
    let mut inputs =
        (credential(), provider(json!({"oauth2": {"tokenURL": "https://x/token"}, "client": {"id": "app"}})));
    inputs.0.spec.scopes = vec!["mail.send".into()];
    change(&mut inputs.0, &mut inputs.1);
    inputs
}

/// Asserts that each change in `matter` gives another hash, and that no change in `others` changes the hash.
fn hold<H: Clone + Ord + Debug>(
    hash: impl Fn(&MailCredential, &ProviderSpec) -> H,
    matter: &[Change],
    others: &[Change],
) {
    let of = |change: Change| {
        let (credential, provider) = changed(change);
        hash(&credential, &provider)
    };
    let plain = of(|_, _| ());
    let mut seen = BTreeSet::from([plain.clone()]);
    for (index, change) in matter.iter().enumerate() {
        assert!(seen.insert(of(*change)), "the change {index} is not seen, or taken for another");
    }
    for (index, change) in others.iter().enumerate() {
        assert_eq!(of(*change), plain, "the change {index} changes nothing");
    }
}

fn annotate(credential: &mut MailCredential, key: &str, value: &str) {
    credential.metadata.annotations.get_or_insert_default().insert(key.into(), value.into());
}

fn exchange(credential: &mut MailCredential, fields: Value) {
    let mut exchange = json!({"subjectToken": {"secretRef": {"name": "s", "key": "k"}}});
    exchange.as_object_mut().unwrap().extend(fields.as_object().cloned().unwrap_or_default());
    credential.spec.grant = serde_json::from_value(json!({"tokenExchange": exchange})).unwrap();
}

fn by_code(credential: &mut MailCredential) {
    credential.spec.grant = serde_json::from_value(json!({"deviceCode": {}})).unwrap();
}

fn usernames(credential: &mut MailCredential, names: Value) {
    credential.spec.mailbox.usernames = serde_json::from_value(names).unwrap();
}

fn reissue(credential: &mut MailCredential, value: &str) {
    annotate(credential, names::ANNOTATION_REISSUE, value);
}

#[test]
fn scopes_come_from_the_credential_then_the_provider_then_the_preset() {
    let of = |own: &[&str], providers: &[&str]| {
        let list = |scopes: &[&str]| scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let mut credential = credential();
        let mut google = provider(json!({"google": {}, "client": {"id": "app"}}));
        (credential.spec.scopes, google.scopes) = (list(own), list(providers));
        scopes(&credential, &google, &profile(&google).unwrap())
    };
    assert_eq!(of(&["own"], &["the provider's"]), ["own"]);
    assert_eq!(of(&["own"], &[]), ["own"]);
    assert_eq!(of(&[], &["the provider's"]), ["the provider's"]);
    assert_eq!(of(&[], &[]), ["https://mail.google.com/"]);
}

#[test]
fn a_token_is_for_one_issuer_client_grant_account_and_list_of_scopes() {
    let hash = |credential: &MailCredential, provider: &ProviderSpec| {
        let profile = profile(provider).unwrap();
        issued_for(credential, provider, &profile, &scopes(credential, provider, &profile))
    };
    let matter: [Change; 12] = [
        |_, provider| provider.client.parameters = [("audience".into(), "mail".into())].into(),
        |_, provider| provider.client.parameters = [("audience".into(), "mail2".into())].into(),
        |_, provider| provider.client.parameters = [("resource".into(), "mail".into())].into(),
        |_, provider| provider.oauth2.as_mut().unwrap().token_url = "https://y/token".into(),
        |_, provider| provider.client.id = "another".into(),
        |credential, _| by_code(credential),
        |credential, _| exchange(credential, json!({})),
        |credential, _| exchange(credential, json!({"audience": "mail"})),
        |credential, _| exchange(credential, json!({"subjectTokenType": "urn:ietf:params:oauth:token-type:jwt"})),
        |credential, _| credential.spec.mailbox.address = "another@example.org".into(),
        |credential, _| credential.spec.mailbox.authenticate_as = Some("svc@example.org".into()),
        |credential, _| credential.spec.scopes.push("mail.read".into()),
    ];
    let others: [Change; 7] = [
        |credential, _| credential.metadata.generation = Some(2),
        |credential, _| usernames(credential, json!({"smtp": "other"})),
        |credential, _| reissue(credential, "1"),
        |credential, _| credential.spec.protocols.push(Protocol::Imap),
        |credential, _| credential.spec.secret.formats = vec![Format::TokenJson],
        |credential, _| credential.spec.suspend = true,
        |_, provider| provider.servers.smtp = None,
    ];
    hold(hash, &matter, &others);
}

#[test]
fn a_secret_is_shaped_by_its_template_the_mailbox_and_the_servers_of_its_protocols() {
    let hash = |credential: &MailCredential, provider: &ProviderSpec| layout(credential, &profile(provider).unwrap());
    let matter: [Change; 16] = [
        |credential, _| usernames(credential, json!({"smtp": "other"})),
        |_, provider| provider.servers.smtp.as_mut().unwrap().security = Some(Security::Tls),
        |credential, _| credential.spec.mailbox.address = "another@example.org".into(),
        |credential, _| credential.spec.mailbox.authenticate_as = Some("svc@example.org".into()),
        |credential, _| credential.spec.protocols = vec![Protocol::Imap],
        |_, provider| provider.servers.smtp = None,
        |_, provider| provider.servers.smtp = Some(server("smtp.y", 587)),
        |_, provider| provider.servers.smtp = Some(server("smtp.x", 465)),
        |credential, _| credential.spec.secret.formats = vec![],
        |credential, _| credential.spec.secret.formats = vec![Format::OAuthBearer],
        |credential, _| credential.spec.secret.formats = vec![Format::SaslXoauth2],
        |credential, _| credential.spec.secret.formats = vec![Format::TokenJson],
        |credential, _| credential.spec.secret.labels = [("team".into(), "a".into())].into(),
        |credential, _| credential.spec.secret.annotations = [("team".into(), "a".into())].into(),
        |credential, _| credential.spec.secret.data = [("team".into(), "a".into())].into(),
        |credential, _| credential.spec.secret.deletion_policy = DeletionPolicy::Retain,
    ];
    let others: [Change; 7] = [
        |credential, _| usernames(credential, json!({"imap": "other"})),
        |_, provider| provider.servers.smtp.as_mut().unwrap().security = Some(Security::StartTls),
        |credential, _| credential.metadata.labels = Some([("team".into(), "a".into())].into()),
        |credential, _| credential.spec.scopes.push("mail.read".into()),
        |credential, _| credential.spec.suspend = true,
        |_, provider| provider.servers.imap = Some(server("imap.x", 993)),
        |_, provider| provider.client.id = "another".into(),
    ];
    hold(hash, &matter, &others);
}

#[test]
fn a_refresh_token_is_bound_to_issuer_and_client_and_after_a_device_code_to_the_account() {
    let hash = |credential: &MailCredential, provider: &ProviderSpec| {
        bound_to(credential, profile(provider).unwrap().source.identity(), &provider.client.id)
    };
    let matter: [Change; 5] = [
        |_, provider| provider.oauth2.as_mut().unwrap().token_url = "https://y/token".into(),
        |_, provider| provider.client.id = "another".into(),
        |credential, _| by_code(credential),
        |credential, _| {
            by_code(credential);
            credential.spec.mailbox.address = "another@example.org".into();
        },
        |credential, _| {
            by_code(credential);
            credential.spec.mailbox.authenticate_as = Some("svc@example.org".into());
        },
    ];
    let others: [Change; 3] = [
        |credential, _| credential.spec.mailbox.address = "another@example.org".into(),
        |credential, _| credential.spec.scopes.push("mail.read".into()),
        |credential, _| reissue(credential, "1"),
    ];
    hold(hash, &matter, &others);
    let by = |address: &str| {
        let mut credential = credential();
        by_code(&mut credential);
        credential.spec.mailbox.address = address.into();
        bound_to(&credential, "https://x/token", "app")
    };
    assert_eq!(by("billing@example.org"), by("Billing@Example.org"), "one account");
}

#[test]
fn another_spec_or_reissue_requests_a_new_sign_in() {
    let matter: [Change; 3] = [
        |credential, _| credential.metadata.generation = Some(2),
        |credential, _| reissue(credential, "1"),
        |credential, _| reissue(credential, "2"),
    ];
    hold(|credential, _| asked_by(credential), &matter, &[|credential, _| annotate(credential, "team", "a")]);
}

#[test]
fn a_code_is_good_for_the_inputs_of_a_token_until_a_reissue() {
    let hash = |credential: &MailCredential, provider: &ProviderSpec| {
        asked_for(credential, &provider.client.id.as_str().into())
    };
    let matter: [Change; 3] = [
        |_, provider| provider.client.id = "another".into(),
        |credential, _| reissue(credential, "1"),
        |credential, _| reissue(credential, "2"),
    ];
    let others: [Change; 2] =
        [|credential, _| credential.metadata.generation = Some(2), |credential, _| annotate(credential, "team", "a")];
    hold(hash, &matter, &others);
}

#[test]
fn an_attempt_is_made_with_the_spec_the_reissue_the_provider_and_the_sources() {
    let hash = |credential: &MailCredential, provider: &ProviderSpec| {
        attempt_hash(credential, &provider.client.id.as_str().into(), &[provider.scopes.join(" ")])
    };
    let matter: [Change; 4] = [
        |credential, _| credential.metadata.generation = Some(2),
        |credential, _| reissue(credential, "1"),
        |_, provider| provider.client.id = "another fingerprint".into(),
        |_, provider| provider.scopes = vec!["another version of a Secret".into()],
    ];
    let others: [Change; 2] = [
        |credential, _| annotate(credential, "team", "a"),
        |credential, _| credential.metadata.labels = Some([("team".into(), "a".into())].into()),
    ];
    hold(hash, &matter, &others);
}
