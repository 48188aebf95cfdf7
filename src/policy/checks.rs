//! Whether a provider may be used for a credential at all, each refusal with what would mend it.

use std::collections::BTreeMap;

use kube::{
    ResourceExt as _,
    core::{Selector, SelectorExt as _},
};

use super::{Blocker, inputs};
use crate::{
    api::{
        MailCredential, Reason,
        credential::{Protocol, ProviderKind},
        provider::{Allowed, ProviderSpec},
    },
    providers::Profile,
};

/// The namespace of a credential; the API server sees to it that there is one.
pub fn namespace(credential: &MailCredential) -> &str {
    credential.metadata.namespace.as_deref().unwrap_or_default()
}

/// The uid of a credential.
pub fn uid(credential: &MailCredential) -> &str {
    credential.metadata.uid.as_deref().unwrap_or_default()
}

/// What makes a spec impossible with its provider.
pub fn spec_blocker(
    credential: &MailCredential,
    provider: &ProviderSpec,
    profile: &Profile,
    scopes: &[String],
) -> Option<Blocker> {
    let invalid = |message: String| Some(Blocker::new(Reason::InvalidSpec, message));
    let grant = inputs::grant_type(credential);
    if !profile.grants.contains(&grant) {
        let works: Vec<_> = profile.grants.iter().map(|grant| grant.as_str()).collect();
        return invalid(format!(
            "the grant {} does not work with the provider {}: use {}",
            grant.as_str(),
            profile.preset,
            works.join(" or ")
        ));
    }
    if let Some(objection) = (profile.objection)(provider, grant, scopes) {
        return invalid(objection);
    }
    unfillable_placeholder(credential, profile).and_then(|(key, protocol)| {
        let name = protocol.as_str().to_lowercase();
        let asked = credential.spec.protocols.contains(&protocol);
        let mend = if asked {
            format!("name the server in spec.servers.{name} of the provider")
        } else {
            format!("add {} to spec.protocols", protocol.as_str())
        };
        invalid(format!("spec.secret.data[{key}] uses a {name} placeholder, and there is no {name} server: {mend}"))
    })
}

/// A key of `spec.secret.data` with a host or port that is not known.
fn unfillable_placeholder<'a>(credential: &'a MailCredential, profile: &Profile) -> Option<(&'a str, Protocol)> {
    let spec = &credential.spec;
    let missing = |protocol: &Protocol| !spec.protocols.contains(protocol) || profile.server(*protocol).is_none();
    for protocol in [Protocol::Smtp, Protocol::Imap, Protocol::Pop3].into_iter().filter(missing) {
        let name = protocol.as_str().to_lowercase();
        let placeholders = [format!("${{{name}_host}}"), format!("${{{name}_port}}")];
        let uses = |text: &str| placeholders.iter().any(|placeholder| text.replace("$$", "").contains(placeholder));
        if let Some((key, _)) = spec.secret.data.iter().find(|(_, text)| uses(text)) {
            return Some((key, protocol));
        }
    }
    None
}

/// Why a ClusterMailProvider's `allowed` does not cover a credential. `labels` are those of its namespace; `preset`
/// are the scopes that the provider itself asks for.
pub fn allowance_blocker(
    credential: &MailCredential,
    allowed: &[Allowed],
    labels: &BTreeMap<String, String>,
    preset: &[String],
) -> Option<Blocker> {
    let provider = &credential.spec.provider_ref.name;
    let denied = |message: String| Some(Blocker::new(Reason::NotAllowed, message));
    let edit = format!("`kubectl edit clustermailprovider {provider}`");

    let for_namespace: Vec<_> = allowed.iter().filter(|rule| selects(rule, labels)).collect();
    if for_namespace.is_empty() {
        return denied(format!(
            "the ClusterMailProvider {provider} allows no namespace with the labels of {}: an admin can label it as one \
             of spec.allowed[].namespaceSelector wants, or add an entry with {edit}",
            namespace(credential)
        ));
    }
    let mailboxes = [credential.spec.mailbox.address.as_str(), credential.spec.mailbox.user()];
    let covers = |rule: &&&Allowed| {
        mailboxes.iter().all(|mailbox| rule.mailboxes.iter().any(|pattern| matches(pattern, mailbox)))
    };
    let for_mailbox: Vec<_> = for_namespace.iter().filter(covers).collect();
    if for_mailbox.is_empty() {
        let wanted: Vec<_> = if mailboxes[0] == mailboxes[1] { vec![mailboxes[0]] } else { mailboxes.to_vec() };
        return denied(format!(
            "the ClusterMailProvider {provider} does not allow {} to the namespace {}: an admin can add it to \
             spec.allowed[].mailboxes of one entry with {edit}",
            wanted.join(" and "),
            namespace(credential)
        ));
    }
    let grant = inputs::grant_type(credential);
    if !for_mailbox.iter().any(|rule| rule.grants.is_empty() || rule.grants.contains(&grant)) {
        return denied(format!(
            "the ClusterMailProvider {provider} does not allow the grant {} for this mailbox: an admin can add it to \
             spec.allowed[].grants with {edit}",
            grant.as_str()
        ));
    }
    let foreign = credential.spec.scopes.iter().find(|scope| !preset.contains(scope))?;
    denied(format!(
        "the scope {foreign} is not among those of the ClusterMailProvider {provider}: leave spec.scopes empty, or an \
         admin can add it to spec.scopes with {edit}"
    ))
}

fn selects(rule: &Allowed, labels: &BTreeMap<String, String>) -> bool {
    Selector::try_from(rule.namespace_selector.clone()).is_ok_and(|selector| selector.matches(labels))
}

/// Whether `pattern`, in which `*` stands for any characters but `@`, covers `address`. Case does not count.
fn matches(pattern: &str, address: &str) -> bool {
    let (pattern, address) = (pattern.to_ascii_lowercase(), address.to_ascii_lowercase());
    let (Some((pattern_local, pattern_domain)), Some((local, domain))) =
        (pattern.rsplit_once('@'), address.rsplit_once('@'))
    else {
        return false;
    };
    glob(pattern_local, local) && glob(pattern_domain, domain)
}

/// `*` matching by segments: the first and last are anchored, those between are found in order.
fn glob(pattern: &str, text: &str) -> bool {
    let mut segments = pattern.split('*');
    let Some(mut rest) = segments.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut segments: Vec<_> = segments.collect();
    let Some(last) = segments.pop() else { return rest.is_empty() };
    for segment in segments {
        match rest.split_once(segment) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// `kubectl`'s name of a provider, such as `mailprovider/m365` with its namespace flag.
pub fn provider_command(credential: &MailCredential) -> String {
    let name = &credential.spec.provider_ref.name;
    match credential.spec.provider_ref.kind {
        ProviderKind::MailProvider => format!("-n {} mailprovider {name}", namespace(credential)),
        ProviderKind::ClusterMailProvider => format!("clustermailprovider {name}"),
    }
}

/// What a provider is called in messages.
pub fn provider_words(credential: &MailCredential) -> String {
    let name = &credential.spec.provider_ref.name;
    match credential.spec.provider_ref.kind {
        ProviderKind::MailProvider => format!("MailProvider {}/{name}", namespace(credential)),
        ProviderKind::ClusterMailProvider => format!("ClusterMailProvider {name}"),
    }
}

/// The credential's name with its namespace.
pub fn full_name(credential: &MailCredential) -> String {
    format!("{}/{}", namespace(credential), credential.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{policy::tests::fixtures::credential, providers::profile};

    fn allowed(rules: serde_json::Value) -> Vec<Allowed> {
        serde_json::from_value(rules).unwrap()
    }

    fn refusal(rules: serde_json::Value, edit: impl FnOnce(&mut MailCredential)) -> Option<String> {
        let mut credential = credential();
        credential.spec.mailbox.address = "billing@example.org".into();
        edit(&mut credential);
        let labels = BTreeMap::from([("mail".to_owned(), "yes".to_owned())]);
        allowance_blocker(&credential, &allowed(rules), &labels, &["s".into()]).map(|blocker| {
            assert_eq!(blocker.reason, Reason::NotAllowed);
            blocker.message
        })
    }

    fn rule(mailbox: &str) -> serde_json::Value {
        serde_json::json!([{"namespaceSelector": {"matchLabels": {"mail": "yes"}}, "mailboxes": [mailbox]}])
    }

    #[test]
    fn a_star_stands_for_anything_but_the_at_sign() {
        for (pattern, address, covered) in [
            ("*@example.org", "a@example.org", true),
            ("*@example.org", "A@EXAMPLE.org", true),
            ("*@example.org", "a@sub.example.org", false),
            ("*@*.example.org", "a@sub.example.org", true),
            ("*@example.org", "a@example.org.evil.com", false),
            ("bill*@example.org", "billing@example.org", true),
            ("b*l*g@example.org", "billing@example.org", true),
            ("b*x*g@example.org", "billing@example.org", false),
            ("billing@example.org", "billing@example.org", true),
            ("a*a@x", "a@x", false),
        ] {
            assert_eq!(matches(pattern, address), covered, "{pattern} {address}");
        }
    }

    #[test]
    fn address_and_login_must_both_be_covered_by_one_entry() {
        let other =
            |credential: &mut MailCredential| credential.spec.mailbox.authenticate_as = Some("svc@example.com".into());
        assert_eq!(refusal(rule("*@example.org"), |_| ()), None);
        assert!(refusal(rule("*@example.org"), other).unwrap().contains("svc@example.com"));
        assert!(refusal(rule("*@example.com"), |_| ()).unwrap().contains("billing@example.org"));
    }

    #[test]
    fn namespace_grant_and_scope_are_limits_too() {
        let elsewhere =
            serde_json::json!([{"namespaceSelector": {"matchLabels": {"mail": "no"}}, "mailboxes": ["*@example.org"]}]);
        assert!(refusal(elsewhere, |_| ()).unwrap().contains("namespaceSelector"));
        let everywhere = serde_json::json!([{"namespaceSelector": {}, "mailboxes": ["*@example.org"], "grants": ["clientCredentials"]}]);
        assert_eq!(refusal(everywhere, |_| ()), None);
        assert!(
            refusal(rule("*@example.org"), |credential| credential.spec.scopes = vec!["other".into()])
                .unwrap()
                .contains("other")
        );
        assert_eq!(refusal(rule("*@example.org"), |credential| credential.spec.scopes = vec!["s".into()]), None);
    }

    #[test]
    fn a_placeholder_for_a_server_that_nobody_named_is_told() {
        let provider: ProviderSpec =
            serde_json::from_value(serde_json::json!({"oauth2": {"tokenURL": "https://x/t"}, "client": {"id": "c"}}))
                .unwrap();
        let mut credential = credential();
        let profile = profile(&provider).unwrap();
        credential.spec.secret.data.insert("k".into(), "$${imap_host}".into());
        assert_eq!(spec_blocker(&credential, &provider, &profile, &[]), None);
        credential.spec.secret.data.insert("k".into(), "${imap_host}".into());
        assert!(spec_blocker(&credential, &provider, &profile, &[]).unwrap().message.contains("add IMAP"));
        credential.spec.protocols.push(Protocol::Imap);
        assert!(spec_blocker(&credential, &provider, &profile, &[]).unwrap().message.contains("spec.servers.imap"));
    }
}
