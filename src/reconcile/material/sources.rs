//! Reads what a provider refers to: keys of labelled Secrets, and of ConfigMaps.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, ResourceExt as _};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    api::{Reason, names, provider::KeyRef},
    error::Error,
    policy::{Blocker, commands::Subject},
};

/// A Secret that was read. Whatever becomes of the read, all that may be secret in it is wiped after that.
struct Opened(Secret);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.data.iter_mut().flatten().for_each(|(_, value)| value.0.zeroize());
        // `kubectl apply` leaves a copy of what it was given in one of them.
        self.0.metadata.annotations.iter_mut().flatten().for_each(|(_, value)| value.zeroize());
    }
}

/// A key of a Secret that carries the source label.
pub(in crate::reconcile) async fn read_secret_key(
    reference: &KeyRef,
    home: &str,
    client: &Client,
) -> Result<Result<Zeroizing<Vec<u8>>, Blocker>, Error> {
    let KeyRef { name, key } = reference;
    let api: Api<Secret> = Api::namespaced(client.clone(), home);
    let secret =
        api.get_opt(name).await.map_err(|source| Error::ReadSecret { name: format!("{home}/{name}"), source })?;
    let label = format!("{} {}=true", Subject::secret(home, name).command("label"), names::LABEL_SOURCE);
    let Some(mut secret) = secret.map(Opened) else {
        return Ok(Err(Blocker::new(
            Reason::SourceNotFound,
            format!(
                "the Secret {home}/{name} does not exist: make it with `kubectl -n {home} create secret generic {name} \
                 --from-literal={key}=<value> && {label}`"
            ),
        )));
    };
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
                "the Secret {home}/{name} does not carry the label that lets the broker read it: `{label} --overwrite`"
            ),
        )));
    }
    let data = secret.0.data.get_or_insert_default();
    let keys: Vec<_> = data.keys().cloned().collect();
    let value = data.remove(key).map(|value| Zeroizing::new(value.0));
    Ok(value.ok_or_else(|| no_key("Secret", home, reference, &keys)))
}

/// Whether the broker made this Secret: such a one is never a source, whatever its labels.
pub(crate) fn is_own(secret: &Secret) -> bool {
    let managed = secret.labels().get(names::LABEL_MANAGED_BY).is_some_and(|by| by == names::MANAGER);
    managed || secret.type_.as_deref() == Some(names::SECRET_TYPE_GRANT)
}

/// Whether its owner lets the broker read this Secret.
pub(crate) fn is_labelled(secret: &Secret) -> bool {
    secret.labels().get(names::LABEL_SOURCE).is_some_and(|value| value == "true")
}

/// A key of a ConfigMap.
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
                "the ConfigMap {home}/{name} does not exist: make it with `{}`",
                Subject::config_map(home, name).put_file(key)
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
        "Secret" => Subject::secret(home, name).put(key, "<value>"),
        _ => Subject::config_map(home, name).put_file(key),
    };
    Blocker::new(
        Reason::SourceNotFound,
        format!(
            "the {kind} {home}/{name} has no key {key} ({has}): correct the reference, or add the key with `{put}`"
        ),
    )
}
