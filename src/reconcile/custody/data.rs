//! The data of the grant Secret.

use std::{collections::BTreeMap, ops::Deref};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::core::ObjectMeta;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroize as _;

use crate::{api::names, policy::hash::RefreshTokenHash, stores::slim};

/// Keys of the grant Secret.
const REFRESH_TOKEN: &str = "refresh_token";
const PREVIOUS: &str = "previous_refresh_token";
const DEVICE_CODE: &str = "device_code";

/// The data of the grant Secret.
#[derive(Clone, Debug, Default)]
pub(super) struct Data {
    pub(super) refresh_token: Option<SecretString>,
    pub(super) previous: Option<SecretString>,
    pub(super) device_code: Option<SecretString>,
}

impl Data {
    /// Takes the data out of a Secret, and wipes all values of the Secret, also the values of unknown keys.
    pub(super) fn take(secret: &mut Secret) -> Self {
        let mut data = secret.data.take().unwrap_or_default();
        let text = |key: &str| {
            let text = std::str::from_utf8(&data.get(key)?.0).ok().filter(|text| !text.is_empty());
            text.map(SecretString::from)
        };
        let taken =
            Self { refresh_token: text(REFRESH_TOKEN), previous: text(PREVIOUS), device_code: text(DEVICE_CODE) };
        data.values_mut().for_each(|value| value.0.zeroize());
        taken
    }

    /// Returns a copy of the data, in the form that a write encodes.
    pub(super) fn entries(&self) -> Entries {
        let keys = [(REFRESH_TOKEN, &self.refresh_token), (PREVIOUS, &self.previous), (DEVICE_CODE, &self.device_code)];
        let entry = |(key, value): (&str, &Option<SecretString>)| {
            Some((key.to_owned(), ByteString(value.as_ref()?.expose_secret().as_bytes().to_vec())))
        };
        Entries(keys.into_iter().filter_map(entry).collect())
    }

    /// Replaces the refresh token, and keeps the former token as `previous`.
    pub(super) fn replace(&mut self, token: SecretString) {
        if self.refresh_token.as_ref().is_none_or(|old| old.expose_secret() != token.expose_secret()) {
            self.previous = self.refresh_token.replace(token).or_else(|| self.previous.take());
        }
    }
}

/// The keys and values of a grant Secret. The values are wiped on drop.
pub(super) struct Entries(BTreeMap<String, ByteString>);

impl Deref for Entries {
    type Target = BTreeMap<String, ByteString>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        self.0.values_mut().for_each(|value| value.0.zeroize());
    }
}

/// Wipes the data of a Secret, and returns the metadata.
pub(super) fn wiped(mut secret: Secret) -> ObjectMeta {
    drop(Data::take(&mut secret));
    slim::own_secret(&mut secret.metadata);
    secret.metadata
}

/// Returns the hash that identifies a refresh token in annotations and in memory.
pub(super) fn hash(token: &SecretString) -> RefreshTokenHash {
    names::digest([token.expose_secret()]).into()
}
