//! Hashes by which the broker notices changed inputs without storing the former inputs. Each kind of hash is a type, so
//! that the code cannot compare hashes of two kinds. Annotations and the status hold the hashes as plain text.

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
                /// The hash as text, as annotations and the status hold it.
                pub fn as_str(&self) -> &str {
                    &self.0
                }

                /// Whether the hash is empty, because it was not recorded.
                pub fn is_empty(&self) -> bool {
                    self.0.is_empty()
                }

                /// Whether this hash, which was read from an annotation, equals `wanted`. Earlier versions of the
                /// broker stored the first 16 of the 64 digits.
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
    /// Hash of the inputs of the target Secret, except for the token's inputs. See [`layout`](super::inputs::layout).
    LayoutHash;
    /// Hash of the binding of a refresh token: issuer, client, and with a device code the mailbox. See
    /// [`bound_to`](super::grant::bound_to).
    BindingHash;
    /// Hash of the inputs of a revocation request. Empty if not recorded. See
    /// [`revocable_at`](super::inputs::revocable_at).
    RevocationHash;
    /// Hash of the generation and the reissue annotation of the credential that requests a sign-in. See
    /// [`asked_by`](super::grant::asked_by).
    RequestHash;
    /// Hash of the inputs for which the code of a sign-in is valid. See [`asked_for`](super::grant::asked_for).
    SignInHash;
    /// Hash of a provider, the versions of all objects that it refers to, and the broker's rules for connections.
    ProviderHash;
    /// Hash of the credential's spec, the provider and the source Secrets. See [`attempt_hash`](super::inputs::attempt_hash).
    AttemptHash;
    /// Hash of the inputs of a probe. See [`ProbeInputs`](super::probe::ProbeInputs).
    ProbeHash;
    /// Hash of a refresh token.
    RefreshTokenHash;
}
