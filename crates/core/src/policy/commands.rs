//! The commands in messages: complete, and quoted for `sh`.

use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::api::{MailCredential, credential::ProviderKind, names};

/// An object for `kubectl` commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubectlObject {
    namespace: Option<String>,
    resource: &'static str,
    name: String,
}

impl KubectlObject {
    /// The object of a MailCredential.
    pub fn credential(credential: &MailCredential) -> Self {
        Self::credential_named(credential.namespace_str(), &credential.name_any())
    }

    /// The object of a MailCredential, by its name.
    pub fn credential_named(namespace: &str, name: &str) -> Self {
        Self::namespaced("mailcredential", namespace, name)
    }

    /// The provider that a credential refers to.
    pub fn provider_of(credential: &MailCredential) -> Self {
        let reference = &credential.spec.provider_ref;
        Self::provider(reference.kind, credential.namespace_str(), &reference.name)
    }

    /// The object of a provider. A ClusterMailProvider has no namespace.
    pub fn provider(kind: ProviderKind, namespace: &str, name: &str) -> Self {
        match kind {
            ProviderKind::MailProvider => Self::namespaced("mailprovider", namespace, name),
            ProviderKind::ClusterMailProvider => {
                Self { namespace: None, resource: "clustermailprovider", name: name.to_owned() }
            }
        }
    }

    /// The object of a Secret.
    pub fn secret(namespace: &str, name: &str) -> Self {
        Self::namespaced("secret", namespace, name)
    }

    /// The object of a ConfigMap.
    pub fn config_map(namespace: &str, name: &str) -> Self {
        Self::namespaced("configmap", namespace, name)
    }

    fn namespaced(resource: &'static str, namespace: &str, name: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), resource, name: name.to_owned() }
    }

    /// The command that merges `fields` into the object.
    pub fn merge(&self, fields: &Value) -> String {
        format!("{} {}", self.merging(), quoted(&fields.to_string()))
    }

    /// The command of [`Self::merge`] without the fields.
    pub fn merging(&self) -> String {
        format!("{} --type merge -p", self.command("patch"))
    }

    /// The command that adds `value` to the list at `path`, a JSON pointer.
    pub fn append(&self, path: &str, value: &str) -> String {
        let operations = json!([{"op": "add", "path": format!("{path}/-"), "value": value}]);
        format!("{} --type json -p {}", self.command("patch"), quoted(&operations.to_string()))
    }

    /// The command that sets `key` of a Secret to `placeholder`.
    pub fn put(&self, key: &str, placeholder: &str) -> String {
        self.merge(&json!({"stringData": {key: placeholder}}))
    }

    /// The command that creates a ConfigMap from a file, or adds the file to an existing ConfigMap.
    pub fn put_file(&self, key: &str) -> String {
        format!("{} --from-file={key}=<file> --dry-run=client -o yaml | kubectl apply -f -", self.command("create"))
    }

    /// The command that creates a source Secret from a file, or replaces it.
    pub fn put_source(&self, key: &str) -> String {
        let Self { namespace, name, .. } = self;
        let namespace = namespace.as_deref().unwrap_or_default();
        format!(
            "kubectl -n {namespace} create secret generic {name} --from-file={key}=<file> --dry-run=client -o yaml | kubectl \
             label --local -f - {}=true -o yaml | kubectl apply -f -",
            names::LABEL_SOURCE
        )
    }

    /// The `kubectl` command with a verb and the object.
    pub fn command(&self, verb: &str) -> String {
        let namespace = self.namespace.as_ref().map(|namespace| format!("-n {namespace} ")).unwrap_or_default();
        format!("kubectl {namespace}{verb} {} {}", self.resource, self.name)
    }
}

/// The command with which the user signs in again for a credential.
pub fn sign_in(credential: &MailCredential) -> String {
    let spec = &credential.spec;
    let namespace = credential.namespace_str();
    match &spec.grant.refresh_token {
        Some(grant) => format!(
            "mail-token-broker login --provider {}{} -n {namespace} --mailbox {} --secret {}",
            spec.provider_ref.name,
            if spec.provider_ref.kind == ProviderKind::ClusterMailProvider { " --cluster" } else { "" },
            quoted(spec.mailbox.user()),
            grant.secret_ref.name
        ),
        None => reissue(credential),
    }
}

/// The command that asks for a new token, or for a new code of a sign-in.
pub fn reissue(credential: &MailCredential) -> String {
    format!(
        "{} --overwrite {}=\"$(date +%s)\"",
        KubectlObject::credential(credential).command("annotate"),
        names::ANNOTATION_REISSUE
    )
}

/// Returns `text` as one word of a `sh` command, quoted if necessary.
pub fn word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@+=".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) { text.to_owned() } else { quoted(text) }
}

/// Returns `text` as one quoted word of a `sh` command.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_only_where_the_shell_would_read_more_into_it() {
        for (text, quoted) in [
            ("2f1c6a0e-0000", "2f1c6a0e-0000"),
            ("billing+x@contoso.com", "billing+x@contoso.com"),
            ("$(id)", "'$(id)'"),
            ("a b", "'a b'"),
            ("", "''"),
        ] {
            assert_eq!(word(text), quoted);
        }
    }

    #[test]
    fn a_file_is_stored_in_a_new_or_existing_config_map() {
        assert_eq!(
            KubectlObject::config_map("shop", "roots").put_file("ca.crt"),
            "kubectl -n shop create configmap roots --from-file=ca.crt=<file> --dry-run=client -o yaml | kubectl apply -f -"
        );
    }

    #[test]
    fn a_quote_in_a_mailbox_does_not_end_the_shells_word() {
        let provider = KubectlObject::provider(ProviderKind::ClusterMailProvider, "", "corp");
        assert_eq!(
            provider.append("/spec/allowed/0/mailboxes", "o'neill@example.org"),
            r#"kubectl patch clustermailprovider corp --type json -p '[{"op":"add","path":"/spec/allowed/0/mailboxes/-","value":"o'\''neill@example.org"}]'"#
        );
    }
}
