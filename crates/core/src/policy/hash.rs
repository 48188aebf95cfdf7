//! Hashes by which the broker notices a change without reading what changed. Each kind is a type, so that one is never
//! compared with another. In annotations and in the status they are plain text.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::api::names;

macro_rules! hashes {
    ($($(#[$doc:meta])+ $name:ident;)+) => {
        $(
            $(#[$doc])+
            #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
            #[serde(transparent)]
            pub struct $name(String);

            impl $name {
                /// The text in annotations and in the status.
                pub fn as_str(&self) -> &str {
                    &self.0
                }

                /// Whether nothing was recorded.
                pub fn is_empty(&self) -> bool {
                    self.0.is_empty()
                }

                /// Whether this hash, which was read from an annotation, is `wanted`. Earlier versions of the broker
                /// stored the first 16 of the 64 digits.
                pub fn is(&self, wanted: &Self) -> bool {
                    names::is_digest(&self.0, &wanted.0)
                }
            }

            impl From<String> for $name {
                fn from(text: String) -> Self {
                    Self(text)
                }
            }

            impl From<&str> for $name {
                fn from(text: &str) -> Self {
                    Self(text.to_owned())
                }
            }

            impl From<$name> for String {
                fn from(hash: $name) -> Self {
                    hash.0
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                    formatter.write_str(&self.0)
                }
            }
        )+
    };
}

hashes! {
    /// Hash of the inputs of an access token: issuer, client, scopes, grant, subject. See
    /// [`issued_for`](super::inputs::issued_for).
    InputsHash;
    /// Hash of the other inputs that shape the target Secret. See [`layout`](super::inputs::layout).
    LayoutHash;
    /// Hash of what a refresh token is bound to: issuer, client, and with a device code the mailbox. See
    /// [`bound_to`](super::grant::bound_to).
    BindingHash;
    /// Hash of what a revocation request depends on. Empty where it was not recorded. See
    /// [`revocable_at`](super::inputs::revocable_at).
    RevocationHash;
    /// Hash of the generation and the reissue annotation that asked for a sign-in. See
    /// [`asked_by`](super::grant::asked_by).
    RequestHash;
    /// Hash of what the code of a sign-in is good for. See [`asked_for`](super::grant::asked_for).
    SignInHash;
    /// Hash of a provider, of the versions of everything that it refers to, and of what may be connected to.
    ProviderHash;
    /// Hash of everything that an attempt is made with. See [`attempt`](super::inputs::attempt).
    AttemptHash;
    /// Hash of everything that a probe is made with. See [`ProbeInputs`](super::probe::ProbeInputs).
    ProbeHash;
    /// Hash of a refresh token.
    RefreshTokenHash;
}
