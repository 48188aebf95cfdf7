//! Checks whether a credential may use its provider. Each blocker names its fix.

use std::collections::BTreeMap;

use kube::{
    ResourceExt as _,
    core::{Selector, SelectorExt as _},
};
use serde_json::json;

use super::{blocker::Blocker, commands::KubectlObject};
use crate::{
    api::{
        MailCredential, Reason,
        credential::{Protocol, ProviderKind},
        names,
        provider::{Allowed, ProviderSpec},
        provider_object::ProviderKey,
        reference::KeyRef,
        secret_keys::{self, SERVER, USERNAME},
    },
    providers::{Profile, account::fold},
};

/// The namespace of a credential. The API server requires every credential to have one.
pub fn namespace(credential: &MailCredential) -> &str {
    credential.namespace_str()
}

/// The uid of a credential.
pub fn uid(credential: &MailCredential) -> &str {
    credential.uid_str()
}

/// Returns why a spec cannot work with its provider. `None`: the spec fits the provider.
pub fn spec_blocker(
    credential: &MailCredential,
    provider: &ProviderSpec,
    profile: &Profile,
    scopes: &[String],
) -> Option<Blocker> {
    let invalid = |message: String| Some(Blocker::new(Reason::InvalidSpec, message));
    let grant = credential.spec.grant.kind();
    if !profile.grants.contains(&grant) {
        let works: Vec<_> = profile.grants.iter().map(|grant| grant.as_str()).collect();
        return invalid(format!(
            "the grant {} does not work with the provider {}: use {}",
            grant.as_str(),
            profile.preset,
            works.join(" or ")
        ));
    }
    if let Some(message) = (profile.unsupported)(provider, grant, scopes) {
        return invalid(message);
    }
    let names = credential.spec.mailbox.names();
    if !profile.accounts.plain_names
        && let Some(name) = names.into_iter().find(|name| !name.contains('@'))
    {
        return invalid(format!(
            "{name} in spec.mailbox is a plain user name, and the accounts of the provider {} are addresses: write the \
             whole address, with `{}`",
            profile.preset,
            KubectlObject::credential(credential).command("edit")
        ));
    }
    unfillable_placeholder(credential, profile).and_then(|(key, protocol)| {
        let name = protocol.as_str().to_lowercase();
        let asked = credential.spec.protocols.contains(&protocol);
        let fix = if asked {
            format!("name the server in spec.servers.{name} of the provider")
        } else {
            let protocols = credential.spec.protocols.iter().chain([&protocol]).map(|protocol| protocol.as_str());
            format!("write spec.protocols: [{}]", protocols.collect::<Vec<_>>().join(", "))
        };
        invalid(format!("spec.secret.data[{key}] uses a {name} placeholder, and there is no {name} server: {fix}"))
    })
}

/// Finds a key of `spec.secret.data` whose placeholder has no value, because the protocol's server is unknown or the
/// protocol is not requested.
fn unfillable_placeholder<'a>(credential: &'a MailCredential, profile: &Profile) -> Option<(&'a str, Protocol)> {
    let spec = &credential.spec;
    if spec.secret.data.is_empty() {
        return None;
    }
    for protocol in Protocol::ALL {
        let mut missing: Vec<_> = SERVER.into_iter().filter(|_| profile.server(protocol).is_none()).collect();
        if !spec.protocols.contains(&protocol) {
            missing = SERVER.into_iter().chain([USERNAME]).collect();
        }
        // The name ends at `}`, or at the `:` before an encoding.
        let placeholders: Vec<_> =
            missing.into_iter().map(|what| format!("${{{}", secret_keys::of(protocol, what))).collect();
        let uses = |text: &str| {
            let text = text.replace("$$", "");
            placeholders.iter().any(|placeholder| {
                text.match_indices(placeholder.as_str())
                    .any(|(at, found)| text[at + found.len()..].starts_with([':', '}']))
            })
        };
        if let Some((key, _)) = spec.secret.data.iter().find(|(_, text)| uses(text)) {
            return Some((key, protocol));
        }
    }
    None
}

/// Returns why a ClusterMailProvider's `allowed` does not cover a credential. `labels`: the labels of the credential's
/// namespace. `preset`: the provider's own scopes, which every allowed credential may request.
pub fn allowance_blocker(
    credential: &MailCredential,
    allowed: &[Allowed],
    labels: &BTreeMap<String, String>,
    preset: &[String],
) -> Option<Blocker> {
    let provider = &credential.spec.provider_ref.name;
    let denied = |message: String| Some(Blocker::new(Reason::NotAllowed, message));
    let subject = KubectlObject::provider_of(credential);

    let for_namespace: Vec<_> = allowed.iter().enumerate().filter(|(_, rule)| selects(rule, labels)).collect();
    let Some((first, _)) = for_namespace.first() else {
        // A tenant must not learn the administrator's selectors.
        return denied(format!(
            "no entry of spec.allowed of the ClusterMailProvider {provider} selects the namespace {0}: an administrator \
             reads the selectors with `{1} -o jsonpath='{{.spec.allowed[*].namespaceSelector}}'`, then labels the \
             namespace with `kubectl label namespace {0} <label>=<value>`, or adds an entry",
            namespace(credential),
            subject.command("get")
        ));
    };
    let mailboxes = credential.spec.mailbox.names();
    let covers = |(_, rule): &&(usize, &Allowed)| {
        mailboxes.iter().all(|mailbox| rule.mailboxes.iter().any(|pattern| matches(pattern, mailbox)))
    };
    let for_mailbox: Vec<_> = for_namespace.iter().filter(covers).collect();
    if for_mailbox.is_empty() {
        // The message names the entry that already covers most of the mailboxes, otherwise the first entry.
        let lacking = |rule: &Allowed| -> Vec<&str> {
            let covered = |mailbox: &str| rule.mailboxes.iter().any(|pattern| matches(pattern, mailbox));
            mailboxes.iter().copied().filter(|mailbox| !covered(mailbox)).collect()
        };
        let nearest = for_namespace.iter().min_by_key(|(_, rule)| lacking(rule).len());
        let (entry, missing) = nearest.map_or((*first, mailboxes.clone()), |(at, rule)| (*at, lacking(rule)));
        let path = format!("/spec/allowed/{entry}/mailboxes");
        let commands: Vec<_> = missing.iter().map(|mailbox| subject.append(&path, mailbox)).collect();
        return denied(format!(
            "the ClusterMailProvider {provider} does not allow {} to the namespace {}: an administrator can with `{}`",
            missing.join(" and "),
            namespace(credential),
            commands.join(" && ")
        ));
    }
    let grant = credential.spec.grant.kind();
    if let Some((entry, _)) = for_mailbox.first()
        && !for_mailbox.iter().any(|(_, rule)| rule.grants.is_empty() || rule.grants.contains(&grant))
    {
        return denied(format!(
            "the ClusterMailProvider {provider} does not allow the grant {} for this mailbox: an administrator can with `{}`",
            grant.as_str(),
            subject.append(&format!("/spec/allowed/{entry}/grants"), grant.as_str())
        ));
    }
    let foreign = credential.spec.scopes.iter().find(|scope| !preset.contains(scope))?;
    denied(format!(
        "the scope {foreign} is not among those of the ClusterMailProvider {provider}: ask for the provider's own with \
         `{}`, or an administrator can add it to spec.scopes with `{}`",
        KubectlObject::credential(credential).merge(&json!({"spec": {"scopes": null}})),
        subject.command("edit")
    ))
}

fn selects(rule: &Allowed, labels: &BTreeMap<String, String>) -> bool {
    Selector::try_from(rule.namespace_selector.clone()).is_ok_and(|selector| selector.matches(labels))
}

/// Whether `pattern` covers `name`, ignoring case. `*` matches any characters except `@`. Only a pattern without `@`
/// covers a plain user name.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (fold(pattern), fold(name));
    match (pattern.rsplit_once('@'), name.rsplit_once('@')) {
        (Some((pattern_local, pattern_domain)), Some((local, domain))) => {
            glob(pattern_local, local) && glob(pattern_domain, domain)
        }
        (None, None) => glob(&pattern, &name),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Matches the segments between the `*` of a pattern. The first and the last segment are anchored; the other segments
/// must occur in their order.
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

/// The blocker of a credential whose provider is not in the stores. `unreadable`: why the provider's object does not
/// parse, if the object exists. `watched`: whether the broker watches the objects of the provider's kind.
pub fn missing_provider(credential: &MailCredential, unreadable: Option<String>, watched: bool) -> Blocker {
    if let Some(why) = unreadable {
        return Blocker::new(Reason::ProviderNotReady, why);
    }
    let words = provider_words(credential);
    let kind = credential.spec.provider_ref.kind;
    let message = if watched {
        let others = match kind {
            ProviderKind::MailProvider => "mailproviders,clustermailproviders",
            ProviderKind::ClusterMailProvider => "clustermailproviders",
        };
        let fields = json!({"spec": {"providerRef": {"kind": kind.as_str(), "name": "<name>"}}});
        format!(
            "the {words} does not exist: create it, or refer to one that does with `{}`; `kubectl -n {} get {others}` \
             lists them",
            KubectlObject::credential(credential).merge(&fields),
            namespace(credential)
        )
    } else {
        format!(
            "the broker is not allowed to read the {words}: it watches single namespaces, and its ServiceAccount needs \
             get, list and watch on clustermailproviders and namespaces"
        )
    };
    Blocker::new(Reason::ProviderNotFound, message)
}

/// The blocker of a credential whose seed or subject token is in a Secret that a provider refers to. All keys of this
/// Secret belong to the provider's client.
pub fn secret_of_a_provider(reference: &KeyRef, namespace: &str, provider: &ProviderKey) -> Blocker {
    let name = &reference.name;
    // Tenants must not learn the name of a ClusterMailProvider that refers to the Secret.
    let whose = match provider.kind {
        ProviderKind::MailProvider => format!("the MailProvider {}", provider.name),
        ProviderKind::ClusterMailProvider => "a ClusterMailProvider".to_owned(),
    };
    Blocker::new(
        Reason::SourceInvalid,
        format!(
            "the Secret {namespace}/{name} is never sent as a user's token, because {whose} refers to it: store the token \
             in its own Secret with `kubectl -n {namespace} create secret generic <name> --from-literal={}=<token> \
             && kubectl -n {namespace} label secret <name> {}=true`, and refer to that Secret",
            reference.key,
            names::LABEL_SOURCE
        ),
    )
}

/// The provider's name in messages.
pub fn provider_words(credential: &MailCredential) -> String {
    let name = &credential.spec.provider_ref.name;
    match credential.spec.provider_ref.kind {
        ProviderKind::MailProvider => format!("MailProvider {}/{name}", namespace(credential)),
        ProviderKind::ClusterMailProvider => format!("ClusterMailProvider {name}"),
    }
}

/// Kind, namespace and name of a credential, for errors and logs.
pub fn credential_words(credential: &MailCredential) -> String {
    format!("MailCredential {}", full_name(credential))
}

/// The credential's name with its namespace.
pub fn full_name(credential: &MailCredential) -> String {
    format!("{}/{}", namespace(credential), credential.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fixtures::credential, providers::profile};

    fn allowed(rules: serde_json::Value) -> Vec<Allowed> {
        serde_json::from_value(rules).unwrap()
    }

    fn refusal(rules: serde_json::Value, edit: impl FnOnce(&mut MailCredential)) -> Option<String> {
        let mut credential = credential();
        credential.spec.provider_ref.kind = ProviderKind::ClusterMailProvider;
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
    fn a_star_matches_anything_but_the_at_sign() {
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
            ("svc-*", "SVC-mail", true),
            ("*", "a@x", false),
            ("*@*", "svc", false),
            ("*@example.org", "taro..y@example.org", true),
            ("BÜRO@example.org", "büro@example.org", true),
            ("*@kontoso.com", "a@\u{212a}ontoso.com", false),
        ] {
            assert_eq!(matches(pattern, address), covered, "{pattern} {address}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_mailbox_pattern_covers_what_its_plain_reading_does(
            pattern in "[ab*]{0,5}@[ab.*]{1,5}", address in "[abAB]{0,5}@[abAB.]{1,5}"
        ) {
            fn covers(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern.split_first(), text.split_first()) {
                    (None, _) => text.is_empty(),
                    (Some((b'*', rest)), _) if covers(rest, text) => true,
                    (Some((b'*', _)), Some((first, after))) => *first != b'@' && covers(pattern, after),
                    (Some((wanted, rest)), Some((first, after))) => wanted == first && covers(rest, after),
                    (Some(_), None) => false,
                }
            }
            let plain = covers(pattern.as_bytes(), address.to_ascii_lowercase().as_bytes());
            proptest::prop_assert_eq!(matches(&pattern, &address), plain);
        }
    }

    #[test]
    fn a_missing_provider_is_reported_with_what_the_user_can_do() {
        let create = "does not exist: create it, or refer to one that does with `kubectl -n shop patch mailcredential billing \
                      --type merge -p '{\"spec\":{\"providerRef\":{\"kind\":";
        let missing = Reason::ProviderNotFound;
        // The kind, whether the object does not parse, whether the broker watches the kind, the reason and the message.
        let table: [(ProviderKind, bool, bool, Reason, String); 4] = [
            (
                ProviderKind::MailProvider,
                false,
                true,
                missing,
                format!(
                    "the MailProvider shop/idp {create}\"MailProvider\",\"name\":\"<name>\"}}}}}}'`; `kubectl -n shop get \
                     mailproviders,clustermailproviders` lists them"
                ),
            ),
            (
                ProviderKind::ClusterMailProvider,
                false,
                true,
                missing,
                format!(
                    "the ClusterMailProvider idp {create}\"ClusterMailProvider\",\"name\":\"<name>\"}}}}}}'`; `kubectl -n shop \
                     get clustermailproviders` lists them"
                ),
            ),
            (
                ProviderKind::ClusterMailProvider,
                false,
                false,
                missing,
                "the broker is not allowed to read the ClusterMailProvider idp: it watches single namespaces, and its \
                 ServiceAccount needs get, list and watch on clustermailproviders and namespaces"
                    .to_owned(),
            ),
            (ProviderKind::MailProvider, true, true, Reason::ProviderNotReady, "it does not parse".to_owned()),
        ];
        for (kind, unreadable, watched, reason, message) in table {
            let mut credential = credential();
            credential.spec.provider_ref.kind = kind;
            let unreadable = unreadable.then(|| "it does not parse".to_owned());
            assert_eq!(missing_provider(&credential, unreadable, watched), Blocker::new(reason, message), "{kind:?}");
        }
    }

    #[test]
    fn a_secret_of_a_provider_is_refused_without_the_name_of_a_cluster_mail_provider() {
        let reference = KeyRef { name: "m365-app".to_owned(), key: "token".to_owned() };
        for (kind, whose) in [
            (ProviderKind::MailProvider, "the MailProvider m365"),
            (ProviderKind::ClusterMailProvider, "a ClusterMailProvider"),
        ] {
            let provider = ProviderKey { kind, namespace: "shop".to_owned(), name: "m365".to_owned() };
            let message = format!(
                "the Secret shop/m365-app is never sent as a user's token, because {whose} refers to it: store the token in \
                 its own Secret with `kubectl -n shop create secret generic <name> --from-literal=token=<token> && kubectl \
                 -n shop label secret <name> mailtoken.dev/source=true`, and refer to that Secret"
            );
            let expected = Blocker::new(Reason::SourceInvalid, message);
            assert_eq!(secret_of_a_provider(&reference, "shop", &provider), expected);
        }
    }

    #[test]
    fn address_and_login_must_both_be_covered_by_one_entry() {
        let other =
            |credential: &mut MailCredential| credential.spec.mailbox.authenticate_as = Some("svc@example.com".into());
        assert_eq!(refusal(rule("*@example.org"), |_| ()), None);
        let login = refusal(rule("*@example.org"), other).unwrap();
        assert!(login.contains("svc@example.com") && !login.contains("billing@example.org"), "{login}");
        let both = refusal(rule("*@example.net"), other).unwrap();
        assert!(
            both.contains("billing@example.org and svc@example.com")
                && both.contains(" && kubectl patch clustermailprovider idp "),
            "{both}"
        );
    }

    #[test]
    fn every_user_name_must_be_covered_too() {
        let names = |credential: &mut MailCredential| {
            credential.spec.mailbox.usernames =
                serde_json::from_value(serde_json::json!({"imap": "office@example.com", "pop3": "svc"})).unwrap();
        };
        let message = refusal(rule("*@example.org"), names).unwrap();
        assert!(message.contains("does not allow office@example.com and svc to"), "{message}");
        let all = serde_json::json!([{"namespaceSelector": {}, "mailboxes": ["*@example.org", "office@*", "svc"]}]);
        assert_eq!(refusal(all, names), None);
    }

    #[test]
    fn a_plain_user_name_is_for_ones_own_servers() {
        let mut credential = credential();
        credential.spec.mailbox.authenticate_as = Some("svc".into());
        for (provider, plain) in [
            (serde_json::json!({"oauth2": {"tokenURL": "https://x/t"}, "client": {"id": "c"}}), true),
            (serde_json::json!({"oidc": {"issuerURL": "https://x"}, "client": {"id": "c"}}), true),
            (serde_json::json!({"microsoft": {"tenantID": "contoso.com"}, "client": {"id": "c"}}), false),
        ] {
            let provider: ProviderSpec = serde_json::from_value(provider).unwrap();
            let profile = profile(&provider).unwrap();
            let scopes = (profile.scopes)(&provider, credential.spec.grant.kind(), &credential.spec.protocols);
            let blocker = spec_blocker(&credential, &provider, &profile, &scopes);
            assert_eq!(blocker.is_none(), plain, "{blocker:?}");
        }
    }

    #[test]
    fn namespace_grant_and_scope_are_limits_too() {
        let elsewhere =
            serde_json::json!([{"namespaceSelector": {"matchLabels": {"mail": "no"}}, "mailboxes": ["*@example.org"]}]);
        let reported = refusal(elsewhere, |_| ()).unwrap();
        assert!(reported.contains("the namespace shop") && !reported.contains("mail=no"), "{reported}");
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
    fn objects_are_named_with_their_namespace_where_they_have_one() {
        let mut credential = credential();
        assert_eq!(full_name(&credential), "shop/billing");
        assert_eq!(provider_words(&credential), "MailProvider shop/idp");
        credential.spec.provider_ref.kind = ProviderKind::ClusterMailProvider;
        assert_eq!(provider_words(&credential), "ClusterMailProvider idp");
    }

    #[test]
    fn a_placeholder_for_an_unnamed_server_is_reported() {
        let mut provider: ProviderSpec =
            serde_json::from_value(serde_json::json!({"oauth2": {"tokenURL": "https://x/t"}, "client": {"id": "c"}}))
                .unwrap();
        let mut credential = credential();
        let nowhere = profile(&provider).unwrap();
        provider.servers =
            serde_json::from_value(serde_json::json!({"imap": {"host": "imap.x", "port": 993}})).unwrap();
        let somewhere = profile(&provider).unwrap();
        let message = |credential: &MailCredential, profile: &Profile| {
            spec_blocker(credential, &provider, profile, &[]).map(|blocker| blocker.message)
        };
        credential.spec.secret.data.insert("k".into(), "$${imap_host}".into());
        assert_eq!(message(&credential, &nowhere), None);
        credential.spec.secret.data.insert("k".into(), "${imap_host}".into());
        for profile in [&nowhere, &somewhere] {
            assert!(message(&credential, profile).unwrap().contains("write spec.protocols: [SMTP, IMAP]"));
        }
        credential.spec.secret.data.insert("k".into(), "${imap_username:url}".into());
        assert!(message(&credential, &somewhere).unwrap().contains("write spec.protocols: [SMTP, IMAP]"));
        credential.spec.protocols.push(Protocol::Imap);
        assert_eq!(message(&credential, &nowhere), None, "a user name needs no server");
        credential.spec.secret.data.insert("k".into(), "${imap_security:json}".into());
        assert!(message(&credential, &nowhere).unwrap().contains("spec.servers.imap"));
        credential.spec.secret.data.insert("k".into(), "${imap_host}".into());
        assert!(message(&credential, &nowhere).unwrap().contains("spec.servers.imap"));
        assert_eq!(message(&credential, &somewhere), None);
    }
}
