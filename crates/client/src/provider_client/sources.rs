//! Reads the objects to which a provider refers: keys of labelled Secrets and of ConfigMaps.

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, ResourceExt as _};
use url::Url;
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    api::{
        Reason, names,
        reference::{KeyRef, ObjectKey},
    },
    error::Error,
    policy::{
        Blocker,
        commands::{KubectlObject, word},
    },
};

/// Hooks of a reconciling process around each read of a source Secret. A command ends soon, so it has no hooks.
pub trait SourceReads: Send + Sync {
    /// Waits until memory is free to read the Secrets of a namespace. Dropping the result frees the memory.
    fn reserve<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Box<dyn Send + 'a>>;

    /// Records the content of a Secret that was read.
    fn note(&self, key: &ObjectKey, secret: &Secret);
}

/// A Secret that was read. Dropping it wipes its data and annotations.
pub struct Opened(pub Secret);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.data.iter_mut().flatten().for_each(|(_, value)| value.0.zeroize());
        // `kubectl apply` stores a copy of the applied object in an annotation.
        self.0.metadata.annotations.iter_mut().flatten().for_each(|(_, value)| value.zeroize());
    }
}

/// The value of a key of a source Secret.
pub struct Source {
    /// The value of the key.
    pub value: Zeroizing<Vec<u8>>,
    /// resourceVersion of the Secret.
    pub version: String,
    /// The hosts to which the broker may send the value.
    pub reach: Reach,
}

/// The hosts to which the broker may send the content of a source Secret: all hosts, or only those in the annotation
/// `mailtoken.dev/source-hosts`.
#[derive(Clone, Debug)]
pub struct Reach {
    /// `namespace/name` of the Secret.
    secret: String,
    hosts: Option<Vec<String>>,
    /// The `kubectl annotate` command without the list of hosts.
    command: String,
}

impl Reach {
    fn of(secret: &Secret, home: &str, name: &str) -> Self {
        let listed = secret.annotations().get(names::ANNOTATION_SOURCE_HOSTS);
        let hosts = listed.map(|listed| {
            let hosts = listed.split(',').map(|host| host.trim().to_ascii_lowercase());
            hosts.filter(|host| !host.is_empty()).collect()
        });
        let command = KubectlObject::secret(home, name).command("annotate");
        Self { secret: format!("{home}/{name}"), hosts, command }
    }

    /// Checks that the broker may send the content to this URL.
    ///
    /// # Errors
    /// `SourceInvalid`, with the command that allows the host.
    pub fn allows(&self, url: &str) -> Result<(), Blocker> {
        let Some(hosts) = &self.hosts else { return Ok(()) };
        let host = Url::parse(url).ok().and_then(|url| Some(url.host_str()?.to_ascii_lowercase())).unwrap_or_default();
        if !host.is_empty() && hosts.contains(&host) {
            return Ok(());
        }
        let all = hosts.iter().map(String::as_str).chain([host.as_str()]).collect::<Vec<_>>().join(",");
        Err(Blocker::new(
            Reason::SourceInvalid,
            format!(
                "the annotation {} of the Secret {} does not allow sending its content to {host}: its owner allows it with \
                 `{} --overwrite {}={}`",
                names::ANNOTATION_SOURCE_HOSTS,
                self.secret,
                self.command,
                names::ANNOTATION_SOURCE_HOSTS,
                word(&all)
            ),
        ))
    }
}

/// Reads the value under a key of a Secret with the source label.
pub(super) async fn read_secret_key(
    reference: &KeyRef,
    home: &str,
    client: &Client,
    reads: Option<&dyn SourceReads>,
) -> Result<Result<Zeroizing<Vec<u8>>, Blocker>, Error> {
    Ok(read_source(reference, home, client, reads).await?.map(|source| source.value))
}

/// Reads a key of a Secret with the source label. `reads` records the content of the Secret.
pub async fn read_source(
    reference: &KeyRef,
    home: &str,
    client: &Client,
    reads: Option<&dyn SourceReads>,
) -> Result<Result<Source, Blocker>, Error> {
    let KeyRef { name, key } = reference;
    let api: Api<Secret> = Api::namespaced(client.clone(), home);
    let secret =
        api.get_opt(name).await.map_err(|source| Error::ReadSecret { name: format!("{home}/{name}"), source })?;
    let label = format!("{} {}=true", KubectlObject::secret(home, name).command("label"), names::LABEL_SOURCE);
    let Some(mut secret) = secret.map(Opened) else {
        return Ok(Err(Blocker::new(
            Reason::SourceNotFound,
            format!(
                "the Secret {home}/{name} does not exist: create it with `kubectl -n {home} create secret generic {name} \
                 --from-literal={key}=<value> && {label}`"
            ),
        )));
    };
    if let Some(reads) = reads {
        reads.note(&(home.to_owned(), name.clone()), &secret.0);
    }
    if is_own(&secret.0) {
        return Ok(Err(Blocker::new(
            Reason::SourceInvalid,
            format!(
                "the Secret {home}/{name} is the broker's own and never a source: refer to another one in the provider's spec"
            ),
        )));
    }
    if !is_labelled(&secret.0) {
        return Ok(Err(Blocker::new(
            Reason::SourceNotLabeled,
            format!(
                "the Secret {home}/{name} lacks the label that allows the broker to read it: `{label} --overwrite`"
            ),
        )));
    }
    let data = secret.0.data.get_or_insert_default();
    let keys: Vec<_> = data.keys().cloned().collect();
    let value = data.remove(key).map(|value| Zeroizing::new(value.0));
    let version = secret.0.resource_version().unwrap_or_default();
    let reach = Reach::of(&secret.0, home, name);
    let source = value.map(|value| Source { value, version, reach });
    Ok(source.ok_or_else(|| no_key("Secret", home, reference, &keys)))
}

/// Whether the broker created this Secret. Such a Secret is never a source, regardless of its labels.
pub fn is_own(secret: &Secret) -> bool {
    let managed = secret.labels().get(names::LABEL_MANAGED_BY).is_some_and(|by| by == names::MANAGER);
    managed || secret.type_.as_deref() == Some(names::SECRET_TYPE_GRANT)
}

/// Whether the Secret has the label by which its owner allows the broker to read it.
pub fn is_labelled(secret: &Secret) -> bool {
    secret.labels().get(names::LABEL_SOURCE).is_some_and(|value| value == "true")
}

/// Reads a key of a ConfigMap.
pub(super) async fn read_config_map_key(
    reference: &KeyRef,
    home: &str,
    client: &Client,
) -> Result<Result<Vec<u8>, Blocker>, Error> {
    let KeyRef { name, key } = reference;
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), home);
    let map =
        api.get_opt(name).await.map_err(|source| Error::ReadConfigMap { name: format!("{home}/{name}"), source })?;
    let Some(map) = map else {
        return Ok(Err(Blocker::new(
            Reason::SourceNotFound,
            format!(
                "the ConfigMap {home}/{name} does not exist: create it with `{}`",
                KubectlObject::config_map(home, name).put_file(key)
            ),
        )));
    };
    let mut text = map.data.unwrap_or_default();
    let mut binary = map.binary_data.unwrap_or_default();
    let keys: Vec<_> = text.keys().chain(binary.keys()).cloned().collect();
    let value = text.remove(key).map(String::into_bytes).or_else(|| binary.remove(key).map(|value| value.0));
    Ok(value.ok_or_else(|| no_key("ConfigMap", home, reference, &keys)))
}

fn no_key(kind: &str, home: &str, reference: &KeyRef, keys: &[String]) -> Blocker {
    let KeyRef { name, key } = reference;
    let has = if keys.is_empty() { "it has none".to_owned() } else { format!("it has {}", keys.join(", ")) };
    let put = match kind {
        "Secret" => KubectlObject::secret(home, name).put(key, "<value>"),
        _ => KubectlObject::config_map(home, name).put_file(key),
    };
    Blocker::new(
        Reason::SourceNotFound,
        format!(
            "the {kind} {home}/{name} has no key {key} ({has}): correct the reference, or add the key with `{put}`"
        ),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reach(hosts: Option<&str>) -> Reach {
        let annotations = hosts.map(|hosts| json!({names::ANNOTATION_SOURCE_HOSTS: hosts}));
        let secret = serde_json::from_value(json!({"metadata": {"name": "app", "annotations": annotations}})).unwrap();
        Reach::of(&secret, "shop", "app")
    }

    #[test]
    fn the_content_of_a_source_is_sent_only_to_the_hosts_that_it_names() {
        const ENTRA: &str = "https://login.microsoftonline.com/contoso/oauth2/v2.0/token";
        assert_eq!(reach(None).allows("https://anywhere.example/"), Ok(()));
        for hosts in ["login.microsoftonline.com", "a.example, LOGIN.microsoftonline.com ,"] {
            assert_eq!(reach(Some(hosts)).allows(ENTRA), Ok(()), "{hosts}");
        }
        for (hosts, url) in [
            ("login.microsoftonline.com", "https://login.microsoftonline.com.evil.example/token"),
            ("login.microsoftonline.com", "https://login.microsoftonline.com@evil.example/token"),
            ("login.microsoftonline.com", "https://sub.login.microsoftonline.com/token"),
            ("*", ENTRA),
            ("", ENTRA),
            ("", "no url"),
        ] {
            let refusal = reach(Some(hosts)).allows(url).unwrap_err();
            assert_eq!(refusal.reason, Reason::SourceInvalid, "{hosts} {url}");
            let command = "`kubectl -n shop annotate secret app --overwrite mailtoken.dev/source-hosts=";
            assert!(refusal.message.contains(command), "{}", refusal.message);
        }
    }
}
